"""A day too large for one step: its events are summed part by part, and what copies added is taken off again.

Copies are found bucket by bucket. A bucket is a range of hashes of what identifies a request: all copies of one fall
into the same, whatever parts they stand in. What lies between the steps is in buckets/, until the day is done: a file
for each part or bucket, in the order in which the next step looks for its share of it. Names begin with the run's, so
that no other run deletes them, and end in the checksum: who does a step again does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import artifacts
from pipeline.checks import check_copies
from pipeline.contract.tables import API_KEY_DAY, EVENT, Column, Table
from pipeline.engine import SCAN_ROWS
from pipeline.fan_out import FanOut
from pipeline.intake import EventFile
from pipeline.ledger import DayEntry
from pipeline.prices import Demand
from pipeline.rollup import (
    FILES_AT_ONCE,
    Copies,
    DayInputs,
    DayUsage,
    Summation,
    find_copies,
    finish_days,
    keep_day,
    statement_for,
)
from pipeline.run import Run

LINES_A_BUCKET = 1_000_000  # about so many, for a hash does not fill them evenly; in a part at most
LINES_IN_ONE_STEP = 2 * LINES_A_BUCKET
SHARE_ROWS = 32_768  # in a row group of what is read by shares: with 8,192 a file takes three times as long to open
_HASHES = 2**64

_PART = Column("part", pa.int32(), "number of the part that it stands in")
_HASH = Column("identity_hash", pa.uint64(), "hash of what identifies its request")
_LINES = Column("lines", pa.int64(), "how many lines of the part have it")
_IDENTITY_HASH = Table("identity_hash", "a line", (), (_HASH, _PART))
_REPEATED_HASH = Table("repeated_hash", "a hash in a part", ("part", "identity_hash"), (_PART, _HASH, _LINES))


class Part(NamedTuple):
    """Some of a day's events: of each of these files the rows from `first` up to, but not including, `end`."""

    number: int
    events: Sequence[EventFile]
    first: int
    end: int


class HashRange(NamedTuple):
    """A bucket: the requests whose hashes are from `first` to `last`."""

    number: int
    first: int
    last: int


@dataclass(frozen=True)
class Summed:
    """What the lines of a part come to, copies too, and the hashes of their requests, in a file each; what they ask of
    a price book."""

    sums: str
    hashes: str
    demand: Demand


class Repeats(NamedTuple):
    """Lines whose hash repeats on the day, or the hashes of such lines: in a file, None where there are none."""

    file: str | None
    lines: int


class TakenOff(NamedTuple):
    """What the copies in a bucket that do not count come to, as sums below zero, in a file; the copies, and among how
    many lines they were looked for."""

    sums: str
    copies: Copies
    lines: int


@dataclass(frozen=True)
class Pieces:
    """What is to be merged into a day: the files of sums; its copies, and what it asks of a price book."""

    sums: Sequence[str]
    copies: Copies
    demand: Demand


def is_large(day: DayInputs) -> bool:
    """Whether a day is too large for one step."""
    return day.accepted > LINES_IN_ONE_STEP


def roll_up_in_buckets(run: Run, day: DayInputs, fan_out: FanOut) -> DayEntry:
    """Roll a large day up whole; each step has to hold some million lines at most.

    Raises CheckFailed when the lines of the day do not add up; then it is not kept.
    """
    with _pieces(run, day, fan_out) as pieces:
        (entry,) = fan_out(run, partial(_merge, day), [pieces])
    return entry


def use_in_buckets(run: Run, day: DayInputs, fan_out: FanOut) -> DayUsage:
    """What was used on a large day, in a finished file in scratch. Raises CheckFailed."""
    with _pieces(run, day, fan_out) as pieces:
        return _merged(run, day, pieces)


@contextmanager
def _pieces(run: Run, day: DayInputs, fan_out: FanOut) -> Iterator[Pieces]:
    """The pieces of a day, for as long as it takes to merge them; then all that lies between the steps is deleted.

    Raises CheckFailed when not every line that may be a copy was looked at.
    """
    name = f"{run.name}-{day.day}"
    parts, buckets = _parts(day), _buckets(day.accepted)
    sums: list[str] = []
    hashes: list[str] = []
    demand = Demand()
    try:
        for summed in fan_out(run, partial(_sum, name), parts):
            sums.append(summed.sums)
            hashes.append(summed.hashes)
            demand = demand.union(summed.demand)
        looked = list(fan_out(run, partial(_find_repeated, name, hashes), buckets))
        repeated = [found.file for found, _ in looked if found.file]
        handed = list(fan_out(run, partial(_hand_over, name, repeated), parts)) if repeated else []
        copies = [found.file for found in handed if found.file]
        having = [bucket for bucket, (found, _) in zip(buckets, looked, strict=True) if found.file]
        taken_off = list(fan_out(run, partial(_take_off, name, day.day, copies), having)) if having else []
        check_copies(
            day.day,
            accepted=day.accepted,
            in_buckets=sum(lines for _, lines in looked),
            repeated=sum(found.lines for found, _ in looked),
            handed_over=sum(found.lines for found in handed),
            taken_up=sum(one.lines for one in taken_off),
        )
        sums += [one.sums for one in taken_off]
        yield Pieces(sums, Copies().and_those_of(one.copies for one in taken_off), demand)
    finally:
        for left in run.store.list(run.layout.buckets):
            if left.path.name.startswith(name):
                run.store.delete(left.path)


def _parts(day: DayInputs) -> list[Part]:
    """The day's events, some of them at a time: neither many lines nor many files. A large file is cut."""
    parts: list[tuple[Sequence[EventFile], int]] = []
    some: list[EventFile] = []
    lines = 0
    for event in day.events:
        if event.accepted > LINES_A_BUCKET:
            parts += [([event], first) for first in range(0, event.accepted, LINES_A_BUCKET)]
            continue
        if some and (lines + event.accepted > LINES_A_BUCKET or len(some) == FILES_AT_ONCE):
            parts.append((some, 0))
            some, lines = [], 0
        some.append(event)
        lines += event.accepted
    if some:
        parts.append((some, 0))
    return [Part(number, events, first, first + LINES_A_BUCKET) for number, (events, first) in enumerate(parts)]


def _buckets(lines: int) -> list[HashRange]:
    """All hashes, in ranges that have as many lines as a part, or so."""
    count = -(-lines // LINES_A_BUCKET)
    bounds = [_HASHES * number // count for number in range(count + 1)]
    return [HashRange(number, bounds[number], bounds[number + 1] - 1) for number in range(count)]


def _sum(name: str, run: Run, part: Part) -> Summed:
    """What a part's lines come to."""
    run.engine.name_files("events", [], EVENT)
    find_copies(run)  # none, as yet
    _name_events(run, part)
    statement, demands = statement_for(run)
    sums, hashes = (run.scratch / f"{what}.parquet" for what in ("sums", "hashes"))
    run.engine.copy(statement, sums, SCAN_ROWS)
    run.engine.copy("identity_hashes", hashes, SHARE_ROWS, part=part.number)
    return Summed(
        _keep(run, sums, f"{name}-part-{part.number}-sums"),
        _keep(run, hashes, f"{name}-part-{part.number}-hashes"),
        Demand().union(*demands.values()),
    )


def _find_repeated(name: str, hashes: Sequence[str], run: Run, bucket: HashRange) -> tuple[Repeats, int]:
    """The hashes in a bucket that occur more than once, for each part in which they do; and how many lines it has."""
    run.engine.name_files("identity_hashes", _paths(run, hashes), _IDENTITY_HASH, where=_in(bucket))
    run.engine.run("lines_of_bucket")
    ((lines,),) = run.engine.query("count_lines_of_bucket")
    repeated = run.scratch / "repeated.parquet"
    if not run.engine.copy("repeated_hashes", repeated, SHARE_ROWS):
        return Repeats(None, 0), lines
    of_them = pc.sum(pq.read_table(repeated, columns=[_LINES.name])[_LINES.name]).as_py()
    return Repeats(_keep(run, repeated, f"{name}-bucket-{bucket.number}-repeated"), of_them), lines


def _hand_over(name: str, repeated: Sequence[str], run: Run, part: Part) -> Repeats:
    """The lines of a part whose hash repeats on the day."""
    _name_events(run, part)
    run.engine.name_files("repeated_hashes", _paths(run, repeated), _REPEATED_HASH, where=f"part = {part.number}")
    copies = run.scratch / "copies.parquet"
    lines = run.engine.copy("repeated_events", copies, SHARE_ROWS)
    return Repeats(_keep(run, copies, f"{name}-part-{part.number}-copies") if lines else None, lines)


def _take_off(name: str, day: date, copies: Sequence[str], run: Run, bucket: HashRange) -> TakenOff:
    """What the copies in a bucket come to that do not count."""
    run.engine.name_files("events", _paths(run, copies), EVENT, where=_in(bucket))
    ((lines,),) = run.engine.query("count_events")
    found = find_copies(run)
    statement, _ = statement_for(run)
    run.engine.name_files("events", [], EVENT)
    sums = run.scratch / "sums.parquet"
    run.engine.copy(statement, sums, SCAN_ROWS)
    return TakenOff(_keep(run, sums, f"{name}-bucket-{bucket.number}-sums"), found.get(day, Copies()), lines)


def _merge(day: DayInputs, run: Run, pieces: Pieces) -> DayEntry:
    """The day that its pieces come to, where it stays."""
    return keep_day(run, day, _merged(run, day, pieces))


def _merged(run: Run, day: DayInputs, pieces: Pieces) -> DayUsage:
    """The day that its pieces come to, in scratch. Raises CheckFailed."""
    run.engine.name_files("some_sums", _paths(run, pieces.sums), API_KEY_DAY)
    copies = {day.day: pieces.copies}
    demands = {day.day: pieces.demand} if pieces.demand else {}
    (usage,) = finish_days(run, [day], Summation("merge_sums", copies, demands))
    return usage


def _name_events(run: Run, part: Part) -> None:
    """Name the events of a part."""
    files = [event.path_in(run.layout) for event in part.events]
    rows = f"file_row_number >= {part.first} and file_row_number < {part.end}"
    run.engine.name_files("events", files, EVENT, where=rows)


def _in(bucket: HashRange) -> str:
    """A condition on hashes that those in a bucket meet."""
    return f"identity_hash between cast({bucket.first} as ubigint) and cast({bucket.last} as ubigint)"


def _keep(run: Run, finished: Path, name: str) -> str:
    return artifacts.keep(run.store, finished, run.layout.buckets, name)


def _paths(run: Run, files: Iterable[str]) -> list[Path]:
    return [run.layout.buckets / file for file in files]
