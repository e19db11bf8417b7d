"""The first look at a log: which format it is in or, where none knows it, a draft of one; and what would come of it.

A file is looked at from its beginning, as far as a few seconds reach. Nothing is written, and nothing is shown of a
record but what a format makes of it: a log may name keys in clear that its format hashes.
"""

from __future__ import annotations

import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.beginnings import BEGINNING_BYTES, check_encoding, check_other_signals, csv_of, no_record
from pipeline.contract.settings import Settings
from pipeline.contract.store import this_machine
from pipeline.draft_fields import TOKENS
from pipeline.drafting import draft_of
from pipeline.engine import Engine
from pipeline.errors import FormatRefused, HeldBack, KeytallyError
from pipeline.format import ENDINGS_OF, NATIVE, Csv, Format, read_format
from pipeline.line import FUTURE_TOLERANCE, NATIVE_FIELDS, Reason, Rejected, Request, parse, read_line, read_record
from pipeline.mapping import FIELDS, MappedRecords
from pipeline.raw import RawFile, RawPass
from pipeline.records import as_record, mapped
from pipeline.repeats import NAMES, Repeats, repeats_of
from pipeline.rows import as_json_record, without_line_end
from pipeline.traces import AGENT, Traces

MOST_LINES = 5_000
MOST_BYTES = 64 * 2**20  # read of the file
FEW_LINES = 200  # to try every format with
SAMPLES = 3
ENOUGH_FIELDS = 6  # of a request, id and timestamp among them: a format that finds them is meant, accepted or not


def _any(csv: Csv) -> Format:
    """A format that reads records of whatever kind."""
    return Format("any", "any", tuple(ENDINGS_OF), csv=csv)


@dataclass(frozen=True)
class Rejects:
    """The lines that would be rejected for one reason. field: the one that breaks the rule, where it is of one;
    first_line: the first of them; made: what its format made of it, where that made anything."""

    reason: str
    field: str | None
    lines: int
    first_line: int
    made: Mapping[str, str] | None


@dataclass(frozen=True)
class Accepted:
    """How many of the accepted lines would count, and what a price book could say of them.

    sessions: Lines without a key, which are kept and not counted.
    requests: Different requests. Spans of one call are one request, and so are copies.
    merged_spans: Spans that tell of a request of which another span tells too.
    without_cost: Lines whose cost the price book has to give.
    without_tokens: Those of them that name a model, did not fail and have no token count: no price book prices them.
    """

    sessions: int
    requests: int
    merged_spans: int
    without_cost: int
    without_tokens: int


@dataclass(frozen=True)
class FirstLook:
    """What a file looks like. lines: how many were looked at; whole: whether these are all.

    format: the name of the one that fits best; None where it is a draft. text: its SQL, empty for the native one.
    fields: for each field of a request what gives it. rejected: by reason and field, the most frequent first. skipped:
    how many records the format leaves out, by reason. lines = accepted + rejected + skipped. samples:
    the first accepted requests, as they would be stored. notes: what else the user of a draft needs to know.
    of_accepted: what would become of the accepted lines.
    """

    file: str
    format: str | None
    text: str
    fields: Mapping[str, str]
    lines: int
    whole: bool
    accepted: int
    rejected: Sequence[Rejects]
    skipped: Mapping[str, int]
    samples: Sequence[Mapping[str, Any]]
    repeats: Repeats | None
    notes: Sequence[str]
    of_accepted: Accepted

    def as_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "format": self.format,
            "draft": self.text if self.format is None else None,
            "fields": dict(self.fields),
            "lines": self.lines,
            "whole": self.whole,
            "accepted": self.accepted,
            "rejected": [vars(rejects) for rejects in self.rejected],
            "skipped": dict(self.skipped),
            "samples": list(self.samples),
            "repeats": vars(self.repeats) if self.repeats else None,
            "notes": list(self.notes),
            **vars(self.of_accepted),
        }


def look_at(path: Path, formats: Mapping[str, Format], now: datetime) -> FirstLook:
    """What a file is, tried with every known format. Raises KeytallyError for one that cannot be read as a log."""
    endings = [ending for kind in ENDINGS_OF.values() for ending in kind]
    if not path.name.endswith(tuple(endings)):
        raise KeytallyError(f"{path} does not end in one of {_any(Csv()).endings_text}: name it for what it holds")
    kind = next(kind for kind, endings in ENDINGS_OF.items() if path.name.endswith(endings))
    beginning = _beginning(path)
    check_encoding(path, beginning)
    csv = csv_of(beginning) if kind == "csv" else Csv()
    lines, whole = _sample(path, csv)
    few = lines.slice(0, FEW_LINES)
    latest = now + FUTURE_TOLERANCE
    tried = [_Trial(NATIVE, _verdicts(NATIVE, path, few, latest))] if kind != "csv" else []
    for format in formats.values():
        if kind in format.reads and not format.problem and (format.csv.name or "commas") == (csv.name or "commas"):
            try:
                tried.append(_Trial(format, _verdicts(format, path, few, latest)))
            except FormatRefused:
                continue  # it is not for such records
    notes: Sequence[str] = ()
    best = max(tried, key=lambda trial: trial.fit, default=None)
    if best and best.is_fit:
        format, known = best.format, True
    else:
        format, notes = _drafted(path, few, kind, csv)
        known = False
    verdicts = _verdicts(format, path, lines, latest)
    accepted = [judged.verdict for judged in verdicts if isinstance(judged.verdict, tuple)]
    skipped = Counter(judged.verdict.reason for judged in verdicts if isinstance(judged.verdict, _Skipped))
    return FirstLook(
        file=str(path),
        format=format.name if known else None,
        text=format.text,
        fields=_sources(format),
        lines=len(verdicts),
        whole=whole,
        accepted=len(accepted),
        rejected=_rejects(verdicts),
        skipped=dict(skipped.most_common()),
        samples=[_shown(request) for request in accepted[:SAMPLES]],
        repeats=repeats_of(
            ((each.line, each.verdict, each.record) for each in verdicts if isinstance(each.verdict, tuple)),
            most_complete=format.terms.most_complete,
        ),
        notes=notes,
        of_accepted=_of_accepted(verdicts),
    )


def _of_accepted(verdicts: Sequence[_Judged]) -> Accepted:
    accepted = [
        (dict(zip(NAMES, each.verdict, strict=False)), each.record)
        for each in verdicts
        if isinstance(each.verdict, tuple)
    ]
    spans = {(_identity(request), record) for request, record in accepted}
    without_cost = [request for request, _ in accepted if request["cost"] is None]
    return Accepted(
        sessions=sum(request["api_key_id"] is None for request, _ in accepted),
        requests=len({identity for identity, _ in spans}),
        merged_spans=len(spans) - len({identity for identity, _ in spans}),
        without_cost=len(without_cost),
        without_tokens=sum(map(_has_no_price, without_cost)),
    )


def _identity(request: Mapping[str, Any]) -> tuple[Any, ...]:
    return request["organization_id"], request["request_id"], request["timestamp"].date()


def _has_no_price(request: Mapping[str, Any]) -> bool:
    """Whether no price book can price a request without a cost: it used a model, and no one knows how much."""
    has_failed = request["status"] is not None and request["status"] >= 400
    has_tokens = any(request[name] is not None for name in TOKENS)
    return request["model"] is not None and not has_failed and not has_tokens


@dataclass(frozen=True)
class _Skipped:
    """A record that its format leaves out. is_known: whether its SQL says so, of this very record."""

    reason: str
    is_known: bool


_Verdict = Request | Rejected | _Skipped


class _Judged(NamedTuple):
    """A line, what it was judged to be, and what its format made of it. record: its id, where it is one of a trace."""

    line: int
    verdict: _Verdict
    made: Mapping[str, Any] | None = None
    record: str | None = None


def _rejects(judged: Sequence[_Judged]) -> list[Rejects]:
    counts: Counter[tuple[str, str | None]] = Counter()
    first: dict[tuple[str, str | None], _Judged] = {}
    for each in judged:
        if isinstance(each.verdict, Rejected):
            why = each.verdict.reason.value, each.verdict.field
            counts[why] += 1
            first.setdefault(why, each)
    return [Rejects(*why, count, first[why].line, first[why].made) for why, count in counts.most_common()]


def _beginning(path: Path) -> bytes:
    """The first bytes of a file, inflated; none if they cannot be read, which the whole reading explains."""
    try:
        with RawPass(_loose(path, _any(Csv()))) as opened:
            return opened.beginning(BEGINNING_BYTES)
    except HeldBack:
        return b""


class _EnoughError(Exception):
    """As much of the file has been read as is to be looked at."""


def _sample(path: Path, csv: Csv) -> tuple[pa.Table, bool]:
    """The first lines of a file as records (schema rows.LINES), and whether these are all."""
    read = 0

    def on_read(count: int) -> None:
        nonlocal read
        read += count
        if read > MOST_BYTES:
            raise _EnoughError

    batches: list[pa.RecordBatch] = []
    lines = 0
    try:
        with RawPass(_loose(path, _any(csv)), on_read) as opened:
            for batch in opened.batches():
                batches.append(batch)
                lines += batch.num_rows
                if lines > MOST_LINES:
                    raise _EnoughError
    except _EnoughError:
        if not batches:
            raise KeytallyError(
                f"{path} has no end of a line in its first {MOST_BYTES >> 20} MiB: no line may be that long"
            ) from None
        return pa.Table.from_batches(batches).slice(0, MOST_LINES).combine_chunks(), False
    except HeldBack as held_back:
        if not batches:
            raise KeytallyError(str(held_back)) from held_back
        # A beginning that can be read says what the file is.
        return pa.Table.from_batches(batches).combine_chunks(), False
    if not batches:
        only_a_header = path.name.endswith(ENDINGS_OF["csv"]) and _beginning(path).strip(b"\xef\xbb\xbf \t\r\n")
        raise KeytallyError(f"{path} is empty: it holds {'a header and no row' if only_a_header else 'no line'}")
    return pa.Table.from_batches(batches).combine_chunks(), True


def _loose(path: Path, format: Format) -> RawFile:
    """A file that lies anywhere, as one below raw/."""
    found = path.stat()
    size = found.st_size if stat.S_ISREG(found.st_mode) else sys.maxsize  # a pipe is read to its end
    return RawFile(str(path.absolute()), format, size, f"{size}:", found.st_mtime, this_machine())


@dataclass(frozen=True)
class _Trial:
    format: Format
    judged: Sequence[_Judged]

    @property
    def fit(self) -> tuple[int, int, int, bool]:
        """How well the format fits: what it accepts, what it knows and leaves out, then what it finds; of two that fit
        as well the native one."""
        accepted = sum(isinstance(each.verdict, tuple) for each in self.judged)
        known = sum(isinstance(each.verdict, _Skipped) and each.verdict.is_known for each in self.judged)
        made = (each.made for each in self.judged if each.made and {"request_id", "timestamp"} <= each.made.keys())
        found = max(map(len, made), default=0)
        return accepted, known, found, self.format is NATIVE

    @property
    def is_fit(self) -> bool:
        return self.fit[0] > 0 or self.fit[1] > 0 or self.fit[2] >= ENOUGH_FIELDS


def _verdicts(format: Format, path: Path, lines: pa.Table, latest: datetime) -> list[_Judged]:
    """What becomes of the lines in a format. Raises FormatRefused."""
    if not format.is_mapped:
        return list(_native(path, len(lines), latest))
    mapping = MappedRecords(format)
    try:
        (batch,) = lines.combine_chunks().to_batches()
        rows = _resolved(mapped(batch, mapping, format))
        is_known = "skipped" in mapping.given
    finally:
        mapping.close()

    def verdict(row: Mapping[str, Any]) -> _Verdict:
        if row["reason"]:
            return Rejected(Reason(row["reason"]))
        if row["skipped"]:
            return _Skipped(row["skipped"], is_known)
        return read_record(as_record(row), latest, format.terms)

    return [
        _Judged(
            row["line"],
            verdict(row),
            {name: row[name] for name in FIELDS if row[name] is not None} or None,
            row["record_id"],
        )
        for row in rows
    ]


def _resolved(records: pa.Table) -> list[dict[str, Any]]:
    """Return records (schema MAPPED) as a run resolves the spans of traces, as if they were the whole file.

    An agent above other calls is skipped. Two spans of a failed call have one request id.
    """
    if records["record_id"].null_count == len(records):
        return records.to_pylist()  # type: ignore[no-any-return]
    with (
        TemporaryDirectory() as scratch,
        closing(Engine(Settings.from_environment(), this_machine(), Path(scratch))) as engine,
        Traces(engine, Path(scratch)) as traces,
    ):
        tables = [traces.undoubted(records), *traces.waiting()]
    requests = {row["record_id"]: row["request_id"] for table in tables for row in table.to_pylist()}

    def resolved(row: dict[str, Any]) -> dict[str, Any]:
        if row["role"] == "agent" and row["record_id"] and row["record_id"] not in requests:
            return {**row, "skipped": AGENT}
        if row["role"] and row["record_id"] and row["record_id"] == row["request_id"]:
            return {**row, "request_id": requests[row["record_id"]]}
        return row

    return [resolved(row) for row in records.to_pylist()]


def _native(path: Path, count: int, latest: datetime) -> Iterator[_Judged]:
    """What becomes of the first lines in the native format: unlike a mapped one, it takes strict JSON only."""

    def read(row: Mapping[str, Any]) -> Request | Rejected:
        if row["reason"]:
            return Rejected(Reason(row["reason"]))
        if "text" in row:
            return read_line(without_line_end(row["text"].encode()), latest)
        return read_record(as_json_record(row), latest)

    try:
        with RawPass(_loose(path, NATIVE)) as opened:
            for batch in opened.batches():
                for row in batch.slice(0, count).to_pylist():
                    yield _Judged(row["line"], read(row))
                count -= min(count, batch.num_rows)
                if not count:
                    return
    except HeldBack:  # it has not the columns, or its end is damaged
        return


def _drafted(path: Path, lines: pa.Table, kind: str, csv: Csv) -> tuple[Format, Sequence[str]]:
    """A draft for the records in some lines, and what there is to say of it.

    Raises:
        KeytallyError: There is nothing to draft a format from.
    """
    found = [parse(text) for text in lines["text"].to_pylist() if text]
    records = [record for record in found if not isinstance(record, Reason)]
    if not records:
        raise no_record(path, kind, lines, _beginning(path))
    check_other_signals(path, records)
    name = re.sub(r"[^a-z0-9_-]+", "-", path.name.partition(".")[0].lower()).strip("-") or "mine"
    draft = draft_of(records, kind, path.name, csv)
    return read_format(name, draft.text), draft.notes


def _sources(format: Format) -> dict[str, str]:
    """For each field of a request what gives it, as the last select of a format says.

    A name that an earlier select gave is told as what that says, a value by its path.
    """
    if not format.is_mapped:
        return {name: name for name in NATIVE_FIELDS}
    text = re.sub(r"--[^\n]*", "", format.text)
    if whole := re.search(r"^select \* from (\w+)$", text, re.MULTILINE):  # the requests are those of one named select
        text = text[: text.find("\n)", text.find(f"\n{whole[1]} as ("))]
    *before, last = re.split(r"\bselect$", text, flags=re.MULTILINE)
    code = re.split(r"^ *from\b", last, flags=re.MULTILINE)[0]
    paths = re.findall(r"'\$\.([\w.]+)'", "".join(before))
    given: dict[str, str] = {}
    for select in before[1:]:
        for column in _columns(re.split(r"^ *from\b", select, flags=re.MULTILINE)[0]):
            source, is_named, name = column.rpartition(" as ")
            if is_named and name.isidentifier() and f"{name}[" not in code:
                given[name] = source
    constants = {name: source for name, source in given.items() if source.startswith("'")}

    def put_in(source: str, known: Mapping[str, str]) -> str:
        return re.sub(r"[a-z_]+", lambda name: known.get(name[0], name[0]), source)

    def told(source: str) -> str:
        source = " ".join(put_in(put_in(source, given), constants).split())
        return re.sub(r"value\[(\d+)\]", lambda value: paths[int(value[1]) - 1], source)

    found: dict[str, str] = {}
    for column in _columns(code):
        source, given_name, name = column.rpartition(" as ")
        name = name.strip()
        if name in FIELDS:
            found[name] = told(source if given_name else name)
    return found


def _columns(code: str) -> Iterator[str]:
    """The columns of a select: what stands between its commas that are in no brackets and no quotes."""
    column, depth, quoted = "", 0, False
    for character in code:
        quoted ^= character == "'"
        depth += (character in "([") - (character in ")]") if not quoted else 0
        if character == "," and not depth and not quoted:
            yield column.strip()
            column = ""
        else:
            column += character
    yield column.strip()


def _shown(request: Request) -> dict[str, Any]:
    return {name: _text(value) for name, value in zip(NAMES, request, strict=True) if name != "most_complete"}


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value if value is None or isinstance(value, (int, str)) else f"{value:f}"
