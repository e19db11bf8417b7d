"""Rolling up: a day's events into what each key used of each model; a month's days into the published rollups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from pipeline import artifacts
from pipeline.checks import check_day, check_month, check_schema
from pipeline.contract.layout import month_name
from pipeline.contract.tables import API_KEY_DAY, EVENT, USAGE, Table
from pipeline.engine import POINT_READ_ROWS, SCAN_ROWS, statement
from pipeline.ledger import DayEntry
from pipeline.run import Run

FILES_AT_ONCE = 1_000  # DuckDB holds some 10 KB of each file a statement reads, and every statement opens all anew
ROLL_UP_RULE = 1  # counts changes outside that SQL after which a day must be rolled up anew; tests/test_rules.py


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
    texts = (statement("copies"), statement("roll_up_day"), statement("daily"))
    return hashlib.sha256("\0".join((str(ROLL_UP_RULE), *texts)).encode()).hexdigest()


def roll_up_day(run: Run, day: date, fingerprint: str, events: Sequence[Path], accepted: int) -> DayEntry:
    """Roll a day up whole, from the event files of every content that has requests on it; `accepted` lines in all.

    Raises CheckFailed when the day's lines do not add up.
    """
    engine = run.engine
    engine.name_files("events", _gathered(run, events), EVENT)
    engine.run("copies")
    engine.run("roll_up_day")
    ((in_events, counted, duplicate, conflicting, session),) = engine.query("count_day")
    check_day(day, accepted=accepted, in_events=in_events, counted=counted, duplicate=duplicate, session=session)
    path = run.scratch / "daily.parquet"
    engine.copy("daily", path, SCAN_ROWS, day=day)
    artifact = artifacts.keep(run.store, path, run.layout.daily_of(day), fingerprint)
    return DayEntry(day, fingerprint, artifact, run.started, accepted, counted, duplicate, conflicting, session)


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
    engine.name_files("daily", [entry.path_in(run.layout) for entry in days], API_KEY_DAY)
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
    """Whether two files of a table hold the same rows, however they are written."""
    run.engine.name_files("published", [published], table)
    run.engine.name_files("rolled", [rolled], table)
    ((differing,),) = run.engine.query("differing_rows")
    return bool(differing == 0)
