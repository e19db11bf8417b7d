"""A day too large for one step: its events are split into buckets, each bucket is summed, and the sums are merged.

All copies of a request fall into one bucket, by a hash of what identifies it, so a bucket is summed as a day is. What
lies between the steps is in buckets/, where whoever does the next one finds it, until the day is done. Its names begin
with the run's, so that no other run deletes it, and end in the checksum: done twice, a step makes the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline import artifacts
from pipeline.contract.tables import API_KEY_DAY, EVENT
from pipeline.engine import SCAN_ROWS
from pipeline.fan_out import FanOut
from pipeline.intake import EventFile
from pipeline.ledger import DayEntry
from pipeline.prices import Demand
from pipeline.rollup import FILES_AT_ONCE, DayInputs, Found, finish_days, keep_day, look_at
from pipeline.run import Run

LINES_A_BUCKET = 1_000_000  # or so: a hash does not fill them evenly
LINES_IN_ONE_STEP = 2 * LINES_A_BUCKET

Split = dict[int, list[str]]  # by bucket, the files that hold some events' share of it


class Part(NamedTuple):
    """Some of a day's events: of each of these files the rows from `first` up to, but not including, `end`."""

    events: Sequence[EventFile]
    first: int
    end: int


@dataclass(frozen=True)
class Sums:
    """What a bucket sums to, in a file; its copies that do not count, those of them that differ, and what it asks of a
    price book."""

    file: str
    duplicate: int
    conflicting: int
    demand: Demand


def roll_up_in_buckets(run: Run, day: DayInputs, fan_out: FanOut) -> DayEntry:
    """Roll a large day up whole; each step has to hold some million lines at most.

    Raises CheckFailed when the lines of the day do not add up; then it is not kept.
    """
    buckets = -(-day.accepted // LINES_A_BUCKET)
    name = f"{run.name}-{day.day}"
    try:
        splits = list(fan_out(run, partial(_split, name, buckets), _parts(day)))
        files = [[file for split in splits for file in split.get(bucket, ())] for bucket in range(buckets)]
        sums = list(fan_out(run, partial(_sum, name, day.day), files))
        (entry,) = fan_out(run, partial(_merge, day), [sums])
    finally:
        for found in run.store.list(run.layout.buckets):
            if found.path.name.startswith(name):
                run.store.delete(found.path)
    return entry


def _parts(day: DayInputs) -> list[Part]:
    """The day's events, some of them at a time: neither many lines nor many files. A large file is cut."""
    parts: list[Part] = []
    some: list[EventFile] = []
    lines = 0
    for event in day.events:
        if event.accepted > LINES_A_BUCKET:
            cuts = range(0, event.accepted, LINES_A_BUCKET)
            parts += [Part([event], first, first + LINES_A_BUCKET) for first in cuts]
            continue
        if some and (lines + event.accepted > LINES_A_BUCKET or len(some) == FILES_AT_ONCE):
            parts.append(Part(some, 0, LINES_A_BUCKET))
            some, lines = [], 0
        some.append(event)
        lines += event.accepted
    return [*parts, Part(some, 0, LINES_A_BUCKET)] if some else parts


def _split(name: str, buckets: int, run: Run, part: Part) -> Split:
    """Split some events by the hash of what identifies a request."""
    files = [event.path_in(run.layout) for event in part.events]
    run.engine.name_files("some_event_files", files, EVENT, with_rows=True)
    split = run.engine.copy_by(
        "bucket", "split_events", run.scratch / "split", buckets=buckets, first=part.first, end=part.end
    )
    return {bucket: [_keep(run, path, f"{name}-{bucket}-of-{buckets}") for path in split[bucket]] for bucket in split}


def _sum(name: str, day: date, run: Run, files: Sequence[str]) -> Sums:
    """What one bucket of the day sums to."""
    found = look_at(run, _paths(run, files))
    path = run.scratch / "sums.parquet"
    run.engine.copy(found.statement, path, SCAN_ROWS)
    return Sums(_keep(run, path, f"{name}-sums"), *found.copies.get(day, (0, 0)), found.demands.get(day, Demand()))


def _merge(day: DayInputs, run: Run, sums: Sequence[Sums]) -> DayEntry:
    """The day that its buckets sum to."""
    run.engine.name_files("bucket_sums", _paths(run, [one.file for one in sums]), API_KEY_DAY)
    copies = (sum(one.duplicate for one in sums), sum(one.conflicting for one in sums))
    demand = Demand().union(*(one.demand for one in sums))
    (usage,) = finish_days(run, [day], Found("merge_buckets", {day.day: copies}, {day.day: demand} if demand else {}))
    return keep_day(run, day, usage)


def _keep(run: Run, finished: Path, name: str) -> str:
    return artifacts.keep(run.store, finished, run.layout.buckets, name)


def _paths(run: Run, files: Iterable[str]) -> list[Path]:
    return [run.layout.buckets / file for file in files]
