"""The quarantine: every line of the published contents that is no request, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import verify
from pipeline.contract.layout import Layout
from pipeline.errors import HeldBack
from pipeline.ledger import FileEntry, read_ledger
from pipeline.raw import RawFile, list_raw, read_texts

TEXT_CHARACTERS = 2_000


@dataclass(frozen=True)
class QuarantinedLine:
    """A rejected line. text: cut at TEXT_CHARACTERS; None when its raw file is gone or was changed since."""

    file: str
    line: int
    reason: str
    text: str | None


def quarantined_lines(layout: Layout) -> Iterator[QuarantinedLine]:
    """Every quarantined line of the newest version, in order of file and line, with its text read from raw/.

    Raises ArtifactDamaged when a list of rejected lines is missing or damaged.
    """
    present = {raw_file.file: raw_file for raw_file in list_raw(layout.raw).files}
    for _, entry in sorted(read_ledger(layout).files.items()):
        if entry.same_as or not entry.take_in.rejected:
            continue
        rejected = layout.rejected / entry.take_in.rejected
        verify(rejected)
        rows = pq.read_table(rejected).to_pydict()
        texts = _texts(entry, present.get(entry.file), frozenset(rows["line"]))
        for line, reason in zip(rows["line"], rows["reason"], strict=True):
            yield QuarantinedLine(entry.file, line, reason, texts.get(line))


@dataclass(frozen=True)
class Rejection:
    """The lines of one file that were rejected for one reason; `examples`: the first few, with their texts."""

    file: str
    reason: str
    lines: int
    examples: tuple[QuarantinedLine, ...]


def summarize(layout: Layout, examples: int) -> list[Rejection]:
    """The quarantine by reason (the most frequent first) and file, with up to `examples` lines of each reason.

    Only the texts of the examples are read from raw/. Raises ArtifactDamaged.
    """
    present = {raw_file.file: raw_file for raw_file in list_raw(layout.raw).files}
    found: list[Rejection] = []
    shown: Counter[str] = Counter()
    for _, entry in sorted(read_ledger(layout).files.items()):
        if entry.same_as or not entry.take_in.rejected:
            continue
        rejected = layout.rejected / entry.take_in.rejected
        verify(rejected)
        counts: Counter[str] = Counter()
        first: dict[str, list[int]] = {}
        for batch in pq.ParquetFile(rejected).iter_batches():
            for reason in pc.unique(batch["reason"]).to_pylist():
                numbers = batch["line"].filter(pc.equal(batch["reason"], reason))
                wanted = examples - shown[reason] - len(first.setdefault(reason, []))
                first[reason] += numbers.slice(0, max(wanted, 0)).to_pylist()
                counts[reason] += len(numbers)
        wanted_lines = frozenset(number for numbers in first.values() for number in numbers)
        texts = _texts(entry, present.get(entry.file), wanted_lines) if wanted_lines else {}
        for reason, count in counts.items():
            lines = tuple(QuarantinedLine(entry.file, n, reason, texts.get(n)) for n in first[reason])
            shown[reason] += len(lines)
            found.append(Rejection(entry.file, reason, count, lines))
    totals: Counter[str] = Counter()
    for rejection in found:
        totals[rejection.reason] += rejection.lines
    return sorted(found, key=lambda each: (-totals[each.reason], each.reason, -each.lines, each.file))


def _texts(entry: FileEntry, raw_file: RawFile | None, lines: frozenset[int]) -> dict[int, str]:
    if raw_file is None or raw_file.signature != entry.signature:
        return {}
    try:
        return read_texts(raw_file, lines, TEXT_CHARACTERS)
    except HeldBack:
        return {}  # it changed at this moment: as good as gone
