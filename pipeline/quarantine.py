"""The quarantine: every line of the published contents that is no request, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import verify
from pipeline.contract.store import Store
from pipeline.errors import ArtifactDamaged, FormatRefused, HeldBack
from pipeline.ledger import FileEntry, read_ledger
from pipeline.line import END_INSTANT, FIRST_INSTANT, Reason, Rejected, parse, read_record
from pipeline.raw import RawFile, list_raw, read_texts
from pipeline.records import as_record, read_records

TEXT_CHARACTERS = 2_000


@dataclass(frozen=True)
class QuarantinedLine:
    """A rejected line.

    text: cut at TEXT_CHARACTERS; of a mapped format what its SQL made of the line. None when its raw file is gone or
    was changed since. field: the one that breaks the rule, where the text tells.
    """

    file: str
    line: int
    reason: str
    text: str | None
    field: str | None = None


@dataclass(frozen=True)
class Rejection:
    """The lines of one file that were rejected for one reason; `examples`: the first few, with their texts."""

    file: str
    reason: str
    lines: int
    examples: tuple[QuarantinedLine, ...]


@dataclass(frozen=True)
class LostList:
    """A file whose list of `lines` rejected lines is lost. what: which list it is, and what is the matter with it.

    in_raw: whether a backfill can make it anew, because the file lies in raw/ as it was taken in.
    """

    file: str
    lines: int
    what: str
    in_raw: bool


class Quarantine:
    """The quarantine of the newest version, each of its lists checked. lost: the files whose list cannot be shown.

    However many lines there are, a few are in memory.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._present = {raw_file.file: raw_file for raw_file in list_raw(store).files}
        self._lists: list[tuple[FileEntry, Path]] = []
        lost: list[LostList] = []
        for _, entry in sorted(read_ledger(store).files.items()):
            if entry.take_in.rejected and not entry.same_as:
                rejected = store.layout.rejected / entry.take_in.rejected
                try:
                    verify(store, rejected)
                except ArtifactDamaged as damage:
                    in_raw = self._raw_file_of(entry) is not None
                    what = f"{damage.artifact} {damage.what}"
                    lost.append(LostList(entry.file, entry.take_in.quarantined, what, in_raw))
                else:
                    self._lists.append((entry, rejected))
        self.lost = tuple(lost)

    def lines(self) -> Iterator[QuarantinedLine]:
        """Every line whose list can be read, in order of file and line, with its text read from raw/."""
        return (line for entry, rejected in self._lists for line in self._lines(entry, rejected))

    def summary(self, examples: int) -> list[Rejection]:
        """The same by reason (the most frequent first) and file, with up to `examples` lines of each reason.

        Only the texts of the examples are read from raw/.
        """
        found: list[Rejection] = []
        shown: Counter[str] = Counter()
        for entry, rejected in self._lists:
            counts: Counter[str] = Counter()
            first: dict[str, list[int]] = {}
            with self._store.fetch(rejected) as file:
                for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(use_threads=False):
                    for reason in pc.unique(batch["reason"]).to_pylist():
                        numbers = batch["line"].filter(pc.equal(batch["reason"], reason))
                        wanted = examples - shown[reason] - len(first.setdefault(reason, []))
                        first[reason] += numbers.slice(0, max(wanted, 0)).to_pylist()
                        counts[reason] += len(numbers)
            wanted_lines = sorted(number for numbers in first.values() for number in numbers)
            texts = dict(_texts(self._raw_file_of(entry), wanted_lines))
            for reason, count in counts.items():
                lines = tuple(
                    QuarantinedLine(entry.file, n, reason, texts.get(n), self._field_of(entry, reason, texts.get(n)))
                    for n in first[reason]
                )
                shown[reason] += len(lines)
                found.append(Rejection(entry.file, reason, count, lines))
        totals: Counter[str] = Counter()
        for rejection in found:
            totals[rejection.reason] += rejection.lines
        return sorted(found, key=lambda each: (-totals[each.reason], each.reason, -each.lines, each.file))

    def _lines(self, entry: FileEntry, rejected: Path) -> Iterator[QuarantinedLine]:
        texts = _texts(self._raw_file_of(entry), (line for line, _ in self._rejected_lines(rejected)))
        number, text = next(texts, (0, None))
        for line, reason in self._rejected_lines(rejected):
            while number and number < line:
                number, text = next(texts, (0, None))
            yield QuarantinedLine(entry.file, line, reason, text if number == line else None)

    def _rejected_lines(self, rejected: Path) -> Iterator[tuple[int, str]]:
        with self._store.fetch(rejected) as file:
            for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(use_threads=False):
                yield from zip(batch["line"].to_pylist(), batch["reason"].to_pylist(), strict=True)

    def _field_of(self, entry: FileEntry, reason: str, text: str | None) -> str | None:
        """Asks the rules once more. Another verdict is of a text that is not whole."""
        raw_file = self._present.get(entry.file)
        record = None if raw_file is None or text is None else parse(text)
        if raw_file is None or not isinstance(record, dict):
            return None
        latest = FIRST_INSTANT if reason == Reason.FUTURE_TIMESTAMP else END_INSTANT  # whatever its moment was
        if raw_file.format.is_mapped:
            verdict = read_record(as_record(defaultdict(lambda: None, record)), latest, raw_file.format.terms)
        else:
            verdict = read_record(record, latest)
        return verdict.field if isinstance(verdict, Rejected) and verdict.reason == reason else None

    def _raw_file_of(self, entry: FileEntry) -> RawFile | None:
        """The raw file as it was taken in; None when it is gone or was changed since."""
        raw_file = self._present.get(entry.file)
        return raw_file if raw_file and raw_file.signature == entry.signature else None


def _texts(raw_file: RawFile | None, lines: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Those of a file's lines whose text can be read."""
    if raw_file is None:
        return
    read = read_records if raw_file.format.is_mapped else read_texts
    with suppress(HeldBack, FormatRefused):  # it changed at this moment: as good as gone
        yield from read(raw_file, (number for number, _ in groupby(lines)), TEXT_CHARACTERS)
