"""The quarantine: every line of the published contents that is no request, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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

    However many there are, a few are in memory. Raises ArtifactDamaged, before the first of them, when a list of
    rejected lines is missing or damaged.
    """
    present = {raw_file.file: raw_file for raw_file in list_raw(layout.raw).files}
    lists = _lists(layout)
    return (line for entry, rejected in lists for line in _lines(entry, rejected, present.get(entry.file)))


def _lists(layout: Layout) -> list[tuple[FileEntry, Path]]:
    """The files of which lines were rejected, with the list of these, in order of file."""
    lists = [
        (entry, layout.rejected / entry.take_in.rejected)
        for _, entry in sorted(read_ledger(layout).files.items())
        if entry.take_in.rejected and not entry.same_as
    ]
    for _, rejected in lists:
        verify(rejected)
    return lists


def _lines(entry: FileEntry, rejected: Path, raw_file: RawFile | None) -> Iterator[QuarantinedLine]:
    texts = _texts(entry, raw_file, (line for line, _ in _rejected_lines(rejected)))
    number, text = next(texts, (0, None))
    for line, reason in _rejected_lines(rejected):
        yield QuarantinedLine(entry.file, line, reason, text if number == line else None)
        if number == line:
            number, text = next(texts, (0, None))


def _rejected_lines(rejected: Path) -> Iterator[tuple[int, str]]:
    for batch in pq.ParquetFile(rejected).iter_batches():
        yield from zip(batch["line"].to_pylist(), batch["reason"].to_pylist(), strict=True)


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
    for entry, rejected in _lists(layout):
        counts: Counter[str] = Counter()
        first: dict[str, list[int]] = {}
        for batch in pq.ParquetFile(rejected).iter_batches():
            for reason in pc.unique(batch["reason"]).to_pylist():
                numbers = batch["line"].filter(pc.equal(batch["reason"], reason))
                wanted = examples - shown[reason] - len(first.setdefault(reason, []))
                first[reason] += numbers.slice(0, max(wanted, 0)).to_pylist()
                counts[reason] += len(numbers)
        wanted_lines = sorted(number for numbers in first.values() for number in numbers)
        texts = dict(_texts(entry, present.get(entry.file), wanted_lines))
        for reason, count in counts.items():
            lines = tuple(QuarantinedLine(entry.file, n, reason, texts.get(n)) for n in first[reason])
            shown[reason] += len(lines)
            found.append(Rejection(entry.file, reason, count, lines))
    totals: Counter[str] = Counter()
    for rejection in found:
        totals[rejection.reason] += rejection.lines
    return sorted(found, key=lambda each: (-totals[each.reason], each.reason, -each.lines, each.file))


def _texts(entry: FileEntry, raw_file: RawFile | None, lines: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Those of a file's lines whose text can be read."""
    if raw_file is None or raw_file.signature != entry.signature:
        return
    with suppress(HeldBack):  # it changed at this moment: as good as gone
        yield from read_texts(raw_file, lines, TEXT_CHARACTERS)
