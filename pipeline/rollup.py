"""Rolling up: a day's events into what each key used of each model; a month's days into the published rollups."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import artifacts
from pipeline.checks import check_day, check_month, check_schema
from pipeline.contract.layout import month_name
from pipeline.contract.seam import step
from pipeline.contract.tables import API_KEY_DAY, EVENT, USAGE, Table
from pipeline.engine import POINT_READ_ROWS, SCAN_ROWS, statement
from pipeline.intake import EventFile
from pipeline.ledger import DayEntry
from pipeline.run import Run

LINES_AT_ONCE = 1_000_000  # of more, what is hashed no longer lies in the caches: 2 million took 5 % more
FILES_AT_ONCE = 1_000  # DuckDB holds some 10 KB of each file a statement reads, and every statement opens all anew
_REPEATED = ["organization_id", "day", "api_key_id", "model"]  # a dictionary of anything else is thrown away again
ROLL_UP_RULE = 1  # counts changes outside that SQL after which a day must be rolled up anew; tests/test_rules.py


class DayInputs(NamedTuple):
    """What a day is made from: the event files of every content that has requests on it, `accepted` lines in all."""

    day: date
    fingerprint: str
    events: Sequence[EventFile]
    accepted: int


CopiesFound = Mapping[date, tuple[int, int]]  # by day: copies that do not count, and those of them that differ


@dataclass(frozen=True)
class RolledMonth:
    """A month's finished rollups, one file a table, not yet where readers look."""

    month: date
    files: Mapping[Table, Path]


def fingerprint_of(take_ins: Iterable[str]) -> str:
    """Names a day by what it is made from: the taken-in contents, in whatever order, and the rule."""
    return hashlib.sha256("\0".join((_rule(), *sorted(take_ins))).encode()).hexdigest()[:32]


@cache
def _rule() -> str:
    texts = (statement("copies"), statement("roll_up_days"))
    return hashlib.sha256("\0".join((str(ROLL_UP_RULE), *texts)).encode()).hexdigest()


def grouped(days: Iterable[DayInputs]) -> list[list[DayInputs]]:
    """The days in groups, in order; none of more lines or files than are rolled up at once, but for one day alone."""
    groups: list[list[DayInputs]] = []
    lines = files = 0
    for day in days:
        lines, files = lines + day.accepted, files + len(day.events)
        if not groups or lines > LINES_AT_ONCE or files > FILES_AT_ONCE:
            groups.append([])
            lines, files = day.accepted, len(day.events)
        groups[-1].append(day)
    return groups


def roll_up_days(run: Run, days: Sequence[DayInputs]) -> list[DayEntry]:
    """Roll days up, each of them whole, in one go.

    Raises CheckFailed when the lines of a day do not add up; then none of them is kept.
    """
    copies = find_copies(run, [event.path_in(run.layout) for day in days for event in day.events])
    return keep_days(run, days, "roll_up_days", copies)


def find_copies(run: Run, events: Sequence[Path]) -> CopiesFound:
    """Name the event files `events`, and make the table of copies of them."""
    run.engine.name_files("events", _gathered(run, events), EVENT)
    run.engine.run("copies")
    return {day: (duplicate, conflicting) for day, duplicate, conflicting in run.engine.query("count_copies")}


def keep_days(run: Run, days: Sequence[DayInputs], rows: str, copies: CopiesFound) -> list[DayEntry]:
    """Check and keep the days that a statement's rows are. It is `roll_up_days`, or has its columns and its order."""
    used = _written(run, days, rows)
    accepted = {day.day: day.accepted for day in days}
    for day, usage in used.items():
        duplicate, _ = copies.get(day, (0, 0))
        check_day(
            day,
            accepted=accepted.get(day, 0),
            in_events=usage.in_events,
            counted=usage.counted,
            duplicate=duplicate,
            session=usage.session,
        )
    entries = []
    for day, fingerprint, _, lines in days:
        usage, (duplicate, conflicting) = used[day], copies.get(day, (0, 0))
        artifact = artifacts.keep(run.store, usage.path, run.layout.daily_of(day), fingerprint)
        entry = DayEntry(
            day, fingerprint, artifact, run.started, lines, usage.counted, duplicate, conflicting, usage.session
        )
        entries.append(entry)
    return entries


class _Usage(NamedTuple):
    """A day's finished file, not yet where it stays, and how many lines and requests were summed up for it."""

    path: Path
    in_events: int
    counted: int
    session: int


def _written(run: Run, days: Sequence[DayInputs], rows: str) -> dict[date, _Usage]:
    """What a statement makes of each of the days, and of any other that its rows are dated on."""
    used = {
        day: _write_day((part for _, part in parts), run.scratch / f"daily-{day}.parquet")
        for day, parts in groupby(_by_day(run.engine.rows(rows, SCAN_ROWS)), itemgetter(0))
    }
    for day in (day.day for day in days if day.day not in used):
        used[day] = _write_day((), run.scratch / f"daily-{day}.parquet")
    return used


def _by_day(rows: Iterable[pa.RecordBatch]) -> Iterator[tuple[date, pa.RecordBatch]]:
    """Rows in order of day, cut where one day ends and the next begins."""
    for batch in rows:
        start = 0
        days = pc.run_end_encode(batch.column("day"))
        for day, end in zip(days.values.to_pylist(), days.run_ends.to_pylist(), strict=True):
            yield day, batch.slice(start, end - start)
            start = end


def _write_day(parts: Iterable[pa.RecordBatch], path: Path) -> _Usage:
    """Write what API keys used as one Parquet file, whose bytes do not depend on how the rows come in parts."""
    in_events = counted = session = 0
    schema = API_KEY_DAY.arrow_schema

    def usage() -> Iterator[pa.Table]:
        nonlocal in_events, counted, session
        for part in parts:
            has_key = pc.is_valid(part.column("api_key_id"))
            used = part.filter(pc.and_(has_key, pc.greater(part.column("requests"), 0)))
            in_events += pc.sum(part.column("lines")).as_py()
            session += pc.sum(part.filter(pc.invert(has_key)).column("requests")).as_py() or 0
            counted += pc.sum(used.column("requests")).as_py() or 0
            yield pa.Table.from_batches([used.select(schema.names)])

    step("write a file in scratch")
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=_REPEATED) as file:
        for rows in _in_parts(usage(), schema):
            file.write_table(rows.combine_chunks())
    return _Usage(path, in_events, counted, session)


def _gathered(run: Run, events: Sequence[Path]) -> Sequence[Path]:
    """The events of a day in files that are not too many: a gateway may have written a file for each request."""
    if len(events) <= FILES_AT_ONCE:
        return events
    gathered = []
    for start in range(0, len(events), FILES_AT_ONCE):
        run.engine.name_files("some_event_files", events[start : start + FILES_AT_ONCE], EVENT)
        gathered.append(run.scratch / f"events-{start}.parquet")
        run.engine.copy("some_events", gathered[-1], SCAN_ROWS)
    return gathered


def roll_up_month(run: Run, month: date, days: Sequence[DayEntry]) -> RolledMonth:
    """Roll a month up from its days.

    Raises CheckFailed when a rollup repeats a row of its grain, or does not sum to its days.
    """
    engine = run.engine
    engine.name_files("day_files", [entry.path_in(run.layout) for entry in days], API_KEY_DAY)
    engine.run("daily")
    files = {}
    for table in USAGE:
        path = run.scratch / f"{table.name}-{month_name(month)}.parquet"
        engine.copy(table.name, path, POINT_READ_ROWS)
        check_schema(path, table)
        engine.name_files(table.name, [path], table)
        files[table] = path
    check_month(engine, month, counted=sum(entry.counted for entry in days))
    return RolledMonth(month, files)


def same_rows(run: Run, table: Table, published: Path, rolled: Path) -> bool:
    """Whether two files of a table hold the same rows in the same order, however they are written."""
    held = run.scratch / "compared"
    shutil.rmtree(held, ignore_errors=True)
    files = run.store.fetch_all([published, rolled], held)
    with pq.ParquetFile(files[0]) as one, pq.ParquetFile(files[1]) as other:
        if one.metadata.num_rows != other.metadata.num_rows:
            return False
        parts = (_in_parts(_rows_of(file, table), table.arrow_schema) for file in (one, other))
        return all(mine.equals(others) for mine, others in zip(*parts, strict=True))


def _rows_of(file: pq.ParquetFile, table: Table) -> Iterator[pa.Table]:
    for batch in file.iter_batches(SCAN_ROWS):
        yield pa.Table.from_batches([batch]).cast(table.arrow_schema)


def _in_parts(rows: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of SCAN_ROWS each, and one of those that remain."""
    waiting = schema.empty_table()
    for some in rows:
        waiting = pa.concat_tables([waiting, some])
        while waiting.num_rows >= SCAN_ROWS:
            yield waiting.slice(0, SCAN_ROWS)
            waiting = waiting.slice(SCAN_ROWS)
    yield waiting
