"""Taking in: one raw file becomes accepted events, split by their UTC day, and rejected lines."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import artifacts
from pipeline.contract.layout import Layout
from pipeline.contract.seam import step
from pipeline.contract.store import StoreError
from pipeline.contract.tables import EVENT, REJECTED, Table
from pipeline.engine import statement
from pipeline.errors import CheckFailed, HeldBack
from pipeline.format import NATIVE, Format
from pipeline.judge import Judged, judge
from pipeline.line import FUTURE_TOLERANCE
from pipeline.raw import CSV_ENDINGS, HalfLineError, RawFile, RawPass, size_now
from pipeline.run import Run
from pipeline.spool import Spool
from pipeline.traces import MERGED

TAKE_IN_RULE = 3  # counts changes after which a file must be taken in anew; tests/test_rules.py sees them

GROUP_ROWS = 32_768  # of a row group, at least, where there are so many

# Of the rest, a dictionary of the values is larger than the values.
_REPEATED = [
    *("organization_id", "api_key_id", "model", "endpoint", "status", "currency", "deployed_model", "provider"),
    "most_complete",
    "reason",
]
_ENCODINGS = {"line": "DELTA_BINARY_PACKED"}  # lines of a key go up: a byte or two each


@dataclass(frozen=True)
class EventFile:
    """The events of one content on one day: `accepted` lines, in a file below events/day=`day`/."""

    day: date
    accepted: int
    artifact: str

    def path_in(self, layout: Layout) -> Path:
        return layout.events_of(self.day) / self.artifact


class Tally(NamedTuple):
    """How many lines of a content something was done with, and why.

    kind: `quarantined` or `skipped`, for a reason; or of the spans of traces `merged` (they tell of a call that another
    one tells of) or `undecided` (it cannot be decided whether they do).
    """

    kind: Literal["quarantined", "skipped", "merged", "undecided"]
    reason: str
    lines: int


@dataclass(frozen=True)
class TakeIn:
    """What a content was made into.

    name: hash of the content, the rule, and of the moment where a line was from the future. format: RawFile.read_as.
    taken_at: start of the run that took it in. heals_at: when the earliest line from the future may be taken in.
    rejected: artifact of the quarantined lines. skipped: lines that the format leaves out. tally: the reasons for both.
    """

    name: str
    content: str
    format: str
    rule: str
    taken_at: datetime
    lines: int
    accepted: int
    quarantined: int
    heals_at: datetime | None
    rejected: str | None
    events: tuple[EventFile, ...]
    skipped: int = 0
    tally: tuple[Tally, ...] = ()
    size: int = 0  # bytes of the content, as they lie in raw/

    def lines_of(self, kind: str, reason: str | None = None) -> int:
        """How many lines a kind of the tally has, or one reason of it."""
        return sum(each.lines for each in self.tally if each.kind == kind and reason in (None, each.reason))


@cache
def rule_of(read_as: str, format: Format = NATIVE) -> str:
    """Names the rules a file is read by (RawFile.read_as): when they change, its files are taken in anew."""
    if format.is_mapped:
        texts = [format.text, statement("mapped")]
    else:
        texts = [statement("formats/native"), statement("formats/native_parquet")]
    texts += [statement("accept"), statement("bulk_functions")]
    return hashlib.sha256("\0".join((read_as, str(TAKE_IN_RULE), *texts)).encode()).hexdigest()[:16]


def take_in(run: Run, raw_file: RawFile) -> TakeIn:
    """Read a raw file once, and keep its events by day and its rejected lines.

    Of a log that grows meanwhile, these are the whole lines of what was there when it was listed. Raises HeldBack when
    the file cannot be read whole and right; then nothing of it is kept.
    """
    try:
        return _take_in(run, raw_file)
    except HalfLineError:
        return _take_in(run, raw_file, whole_lines=True)


def days_in(run: Run, raw_file: RawFile, start: int = 0) -> frozenset[date]:
    """Return the days of the requests that can be read in a file that cannot be ingested, or behind its first bytes.

    Nothing is kept. start: in bytes, at the beginning of a line.
    """
    days: set[date] = set()
    latest = run.started + FUTURE_TOLERANCE
    with suppress(HeldBack), RawPass(raw_file, start=start, as_far_as_readable=True) as opened:
        for judged in judge(run.engine, opened, latest, run.scratch):
            days |= {day for day, _ in judged.events}
    return frozenset(days)


def days_of_rest(run: Run, raw_file: RawFile, taken: TakeIn) -> frozenset[date]:
    """Return the days of the lines that were appended to a log behind the part that was ingested."""
    try:
        size = size_now(raw_file)
    except (OSError, StoreError):  # it was renamed or deleted meanwhile
        return frozenset()
    if size <= taken.size:
        return frozenset()
    # The rows of a CSV file mean nothing without its header.
    start = 0 if raw_file.file.endswith(CSV_ENDINGS) else taken.size
    return days_in(run, raw_file.part(size), start)


def _take_in(run: Run, raw_file: RawFile, *, whole_lines: bool = False) -> TakeIn:
    latest = run.started + FUTURE_TOLERANCE
    with (
        RawPass(raw_file, run.watch.advance, whole_lines=whole_lines) as opened,
        Spool(run.scratch / "events.arrow", EVENT.arrow_schema) as events,
        Spool(run.scratch / "rejected.arrow", REJECTED.arrow_schema) as rejected,
    ):
        days: dict[date, list[int]] = {}
        moments: list[datetime] = []
        lines = 0
        tally: Counter[tuple[str, str]] = Counter()
        for judged in judge(run.engine, opened, latest, run.scratch):
            lines += judged.lines
            tally += _tally_of(judged)
            run.watch.count(judged.lines)
            for day, batch in judged.events:
                days.setdefault(day, []).append(events.add(batch))
            for batch in judged.rejected.to_batches():
                rejected.add(batch)
            moments += [judged.heals_at] if judged.heals_at else []
        content = opened.content()

        rule = rule_of(raw_file.read_as, raw_file.format)
        heals_at = min(moments, default=None)
        made_from = (content, rule, str(latest) if heals_at else "")
        name = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:32]
        event_files = tuple(_keep_events(run, name, day, events.read(days[day])) for day in sorted(days))
        rejected_file, quarantined = _keep_rejected(run, name, rejected.read())
    accepted = sum(event_file.accepted for event_file in event_files)
    counts = tuple(Tally(kind, reason, count) for (kind, reason), count in sorted(tally.items()))  # type: ignore[arg-type]
    skipped = sum(each.lines for each in counts if each.kind == "skipped")
    if lines != accepted + quarantined + skipped:
        raise CheckFailed(
            "lines = accepted + quarantined + skipped", raw_file.file, lines, accepted + quarantined + skipped
        )
    return TakeIn(
        name=name,
        content=content,
        format=raw_file.read_as,
        rule=rule,
        taken_at=run.started,
        lines=lines,
        accepted=accepted,
        quarantined=quarantined,
        heals_at=heals_at,
        rejected=rejected_file,
        events=event_files,
        skipped=skipped,
        tally=counts,
        size=opened.size,
    )


def _tally_of(judged: Judged) -> Counter[tuple[str, str]]:
    """What was done with some lines, and why, as in Tally."""
    counts = Counter({("skipped", reason): count for reason, count in judged.skipped.items()})
    for found in judged.rejected["reason"].value_counts().to_pylist():
        counts["quarantined", found["values"]] += found["counts"]
    counts["merged", MERGED] += judged.merged
    counts += Counter({("undecided", reason): count for reason, count in judged.undecided.items()})
    return +counts


def _keep_events(run: Run, name: str, day: date, events: Iterable[pa.RecordBatch]) -> EventFile:
    path = run.scratch / "events.parquet"
    accepted = _write(events, path, EVENT)
    return EventFile(day, accepted, artifacts.keep(run.store, path, run.layout.events_of(day), name))


def _keep_rejected(run: Run, name: str, rejected: Iterable[pa.RecordBatch]) -> tuple[str | None, int]:
    """The name of the list of rejected lines, if there are any, and how many there are."""
    batches = iter(rejected)
    first = next(batches, None)
    if first is None:
        return None, 0
    path = run.scratch / "rejected.parquet"
    quarantined = _write(chain([first], batches), path, REJECTED)
    return artifacts.keep(run.store, path, run.layout.rejected, name), quarantined


def _write(batches: Iterable[pa.RecordBatch], path: Path, table: Table) -> int:
    """Write batches as a Parquet file; how many rows that are."""
    step("write a file in scratch")
    rows = 0
    with pq.ParquetWriter(
        path,
        table.arrow_schema,
        compression="zstd",
        use_dictionary=[name for name in table.arrow_schema.names if name in _REPEATED],
        column_encoding={name: _ENCODINGS[name] for name in table.arrow_schema.names if name in _ENCODINGS},
        write_statistics=False,  # whoever reads it reads all of it
        store_schema=False,
    ) as writer:
        for group in _groups(batches):
            writer.write_table(group)
            rows += group.num_rows
    return rows


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The batches in tables of so many rows that each may be a row group."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(part.num_rows for part in group) >= GROUP_ROWS:
            yield pa.Table.from_batches(group)
            group = []
    if group:
        yield pa.Table.from_batches(group)
