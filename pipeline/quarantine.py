"""The quarantine: every line of the published contents that is no request, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import verify
from pipeline.contract.store import Store
from pipeline.contract.text_encoding import BEGINNING_BYTES, is_utf16
from pipeline.errors import ArtifactDamaged, FormatRefused, HeldBack
from pipeline.format import NATIVE, Terms
from pipeline.ledger import FileEntry, read_ledger
from pipeline.line import END_INSTANT, FUTURE_TOLERANCE, Rejected, parse, read_record
from pipeline.mapping import FIELDS
from pipeline.masking import LOOKED_AT, masked
from pipeline.raw import CSV_ENDINGS, PARQUET_ENDING, RawFile, RawPass, list_raw, part_of, read_texts
from pipeline.records import as_record, read_records

TEXT_CHARACTERS = 2_000
VALUE_CHARACTERS = 300  # of a value that a format made; more than any field may have
MOST_REQUESTS = 10  # of a line, if the rejected one is not known

Made = Mapping[str, str]  # a request as the SQL of its format made it, without what is null


@dataclass(frozen=True)
class QuarantinedLine:
    """A rejected line.

    Attributes:
        text: The raw line, cut at TEXT_CHARACTERS; a row of Parquet as JSON. A key that the line's format hashes is
            masked. None if the raw file is gone or was changed since.
        field: The field that breaks the rule, if the line tells.
        is_mapped: Whether the line is of a mapped format; only then there may be a `record`.
        record: What the format's SQL made of the line: the rejected request. Of a line with several requests of which
            the rejected one is not known, the first MOST_REQUESTS. None if the SQL made nothing.
    """

    file: str
    line: int
    reason: str
    text: str | None
    field: str | None = None
    is_mapped: bool = False
    record: Made | Sequence[Made] | None = None

    def as_json(self) -> dict[str, Any]:
        shown = {"file": self.file, "line": self.line, "reason": self.reason, "text": self.text}
        return {**shown, "record": self.record} if self.is_mapped else shown


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
    """The quarantine of the newest version, each of its lists checked.

    lost: the files whose list cannot be shown. utf16: the files of which no line counts because they are UTF-16.

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
        self.utf16 = tuple(entry.file for entry, _ in self._lists if self._is_utf16(entry))

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
            raw_lines = {line.number: line for line in _raw_lines(entry, self._raw_file_of(entry), wanted_lines)}
            for reason, count in counts.items():
                lines = tuple(
                    self._line(entry, number, reason, position, raw_lines.get(number))
                    for number, of_line in groupby(first[reason])
                    for position, _ in enumerate(of_line)
                )
                shown[reason] += len(lines)
                found.append(Rejection(entry.file, reason, count, lines))
        totals: Counter[str] = Counter()
        for rejection in found:
            totals[rejection.reason] += rejection.lines
        return sorted(found, key=lambda each: (-totals[each.reason], each.reason, -each.lines, each.file))

    def _lines(self, entry: FileEntry, rejected: Path) -> Iterator[QuarantinedLine]:
        numbers = (line for line, _ in self._rejected_lines(rejected))
        raw_lines = _raw_lines(entry, self._raw_file_of(entry), numbers)
        raw_line = next(raw_lines, None)
        for number, of_line in groupby(self._rejected_lines(rejected), lambda each: each[0]):
            while raw_line and raw_line.number < number:
                raw_line = next(raw_lines, None)
            seen: Counter[str] = Counter()
            for _, reason in of_line:
                found = raw_line if raw_line and raw_line.number == number else None
                yield self._line(entry, number, reason, seen[reason], found)
                seen[reason] += 1

    def _line(
        self, entry: FileEntry, number: int, reason: str, position: int, raw_line: _RawLine | None
    ) -> QuarantinedLine:
        """position: how many requests of this line were rejected for the same reason before."""
        is_mapped = _is_mapped(entry)
        if raw_line is None:
            return QuarantinedLine(entry.file, number, reason, None, is_mapped=is_mapped)
        field, record = raw_line.rejected(reason, position)
        return QuarantinedLine(entry.file, number, reason, raw_line.text, field, is_mapped, record)

    def _rejected_lines(self, rejected: Path) -> Iterator[tuple[int, str]]:
        with self._store.fetch(rejected) as file:
            for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(use_threads=False):
                yield from zip(batch["line"].to_pylist(), batch["reason"].to_pylist(), strict=True)

    def _is_utf16(self, entry: FileEntry) -> bool:
        raw_file = None if entry.take_in.accepted else self._raw_file_of(entry)
        if raw_file is None or raw_file.file.endswith(PARQUET_ENDING):
            return False
        with suppress(HeldBack), RawPass(raw_file) as opened:
            return is_utf16(opened.beginning(BEGINNING_BYTES))
        return False

    def _raw_file_of(self, entry: FileEntry) -> RawFile | None:
        """The raw file as it was ingested, without what was appended since; None when it is gone or was changed."""
        raw_file = self._present.get(entry.file)
        return raw_file and part_of(raw_file, entry.signature, entry.take_in.content)


@dataclass
class _RawLine:
    """A line as it stands in its raw file. made: the requests that the SQL of its format made of it.

    terms: what the format says; None for the native one. latest: a later request is from the future.
    """

    number: int
    text: str
    made: Sequence[Mapping[str, Any]]
    terms: Terms | None
    latest: datetime
    _rejected: dict[str, list[tuple[str | None, int]]] | None = None  # by reason: the field, and which request

    def rejected(self, reason: str, position: int) -> tuple[str | None, Made | Sequence[Made] | None]:
        """The field that breaks the rule, and the request, by asking the rules once more.

        Another verdict means that the text is not whole, or that the rules have changed since.
        """
        if self._rejected is None:
            self._rejected = self._ask_again()
        verdicts = self._rejected.get(reason, [])
        name, index = verdicts[position] if position < len(verdicts) else (None, None)
        requests = self.made[:MOST_REQUESTS] if index is None else self.made[index : index + 1]
        shown = [_shown(request) for request in requests]
        return name, shown[0] if len(shown) == 1 else shown or None

    def _ask_again(self) -> dict[str, list[tuple[str | None, int]]]:
        rejected: dict[str, list[tuple[str | None, int]]] = {}
        for index, record in enumerate(self._records()):
            verdict = read_record(record, self.latest, self.terms)
            if isinstance(verdict, Rejected):
                rejected.setdefault(verdict.reason, []).append((verdict.field, index))
        return rejected

    def _records(self) -> Iterator[Mapping[str, Any]]:
        if self.terms is not None:
            yield from map(as_record, self.made)
        elif isinstance(record := parse(self.text), dict):
            yield record


def _raw_lines(entry: FileEntry, raw_file: RawFile | None, lines: Iterable[int]) -> Iterator[_RawLine]:
    """Those of a file's lines, by their numbers in order, whose text can be read."""
    if raw_file is None:
        return
    latest = min(entry.take_in.taken_at + FUTURE_TOLERANCE, END_INSTANT)
    numbers = (number for number, _ in groupby(lines))
    with suppress(HeldBack):  # it changed at this moment: as good as gone
        if not raw_file.format.is_mapped:
            for number, text in read_texts(raw_file, numbers, TEXT_CHARACTERS):
                yield _RawLine(number, text, (), None, latest)
            return
        wanted = list(numbers)
        records = _records_of(raw_file, wanted)
        at, made = next(records, (0, []))
        for number, text in read_texts(raw_file, wanted, LOOKED_AT):
            while at and at < number:
                at, made = next(records, (0, []))
            of_line = made if at == number else []
            yield _RawLine(number, _masked(text, of_line, raw_file), of_line, raw_file.format.terms, latest)


def _records_of(raw_file: RawFile, lines: list[int]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    with suppress(FormatRefused):  # a format that does not work any more makes nothing
        yield from read_records(raw_file, lines)


def _masked(text: str, made: Iterable[Mapping[str, Any]], raw_file: RawFile) -> str:
    # A long request id becomes its hash, and is no key.
    values = (row[name] for row in made for name in FIELDS if name != "request_id" and row[name] is not None)
    is_json = not raw_file.file.endswith(CSV_ENDINGS)
    return masked(text, values, raw_file.format.text, is_json=is_json)[:TEXT_CHARACTERS]


def _shown(row: Mapping[str, Any]) -> Made:
    return {name: row[name][:VALUE_CHARACTERS] for name in FIELDS if row[name] is not None}


def _is_mapped(entry: FileEntry) -> bool:
    return not entry.take_in.format.startswith(f"{NATIVE.name}.")
