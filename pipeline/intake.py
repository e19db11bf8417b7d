"""Taking in: one raw file becomes accepted events, split by their UTC day, and rejected lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline import artifacts
from pipeline.contract.tables import EVENT
from pipeline.engine import SCAN_ROWS, Engine, statement
from pipeline.errors import CheckFailed
from pipeline.line import (
    END_INSTANT,
    FIRST_INSTANT,
    FUTURE_TOLERANCE,
    Reason,
    Rejected,
    Request,
    read_line,
    read_record,
)
from pipeline.raw import RawFile, RawPass
from pipeline.rows import as_json_record, without_line_end
from pipeline.run import Run

TAKE_IN_RULE = 1  # counts changes to line.py, rows.py or raw.py after which a file must be taken in anew
FEW_BYTES = 8_192  # of lines; to prepare the bulk read takes longer than to judge so few one by one
BLOCK_BYTES = 32 * 2**20  # of lines judged together
SUSPECTS_AT_ONCE = 2_048  # lines that plain Python looks at together

Lines = np.ndarray[Any, np.dtype[np.int64]]  # their numbers


@dataclass(frozen=True)
class EventFile:
    """The events of one content on one day: `accepted` lines, in a file below events/day=`day`/."""

    day: date
    accepted: int
    artifact: str


@dataclass(frozen=True)
class TakeIn:
    """What a content was made into.

    name: hash of the content, the rule, and of the moment where a line was from the future. format: RawFile.read_as.
    taken_at: start of the run that took it in. heals_at: when the earliest line from the future may be taken in.
    rejected: artifact of the quarantined lines.
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


@cache
def rule_of(read_as: str) -> str:
    """Names the rules a file is read by (RawFile.read_as): when they change, its files are taken in anew."""
    name = read_as.partition(".")[0]
    texts = (statement(f"formats/{name}"), statement(f"formats/{name}_parquet"), statement("accept"))
    return hashlib.sha256("\0".join((read_as, str(TAKE_IN_RULE), *texts)).encode()).hexdigest()[:16]


def take_in(run: Run, raw_file: RawFile) -> TakeIn:
    """Read a raw file once, and keep its events by day and its rejected lines.

    Raises HeldBack when the file cannot be read whole and right; then nothing of it is kept.
    """
    latest = run.started + FUTURE_TOLERANCE
    engine = run.engine
    with RawPass(raw_file, run.watch.advance) as opened:
        heals_at = _judge(engine, opened, latest)
        content = opened.content()
        lines = opened.numbered

    rule = rule_of(raw_file.read_as)
    made_from = (content, rule, str(latest) if heals_at else "")
    name = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:32]
    events = tuple(
        EventFile(day, accepted, _keep_events(run, name, day)) for day, accepted in engine.query("accepted_days")
    )
    ((quarantined,),) = engine.query("count_rejected")
    accepted = sum(event_file.accepted for event_file in events)
    if lines != accepted + quarantined:
        raise CheckFailed("lines = accepted + quarantined", raw_file.file, lines, accepted + quarantined)
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
        rejected=_keep_rejected(run, name) if quarantined else None,
        events=events,
    )


def _judge(engine: Engine, opened: RawPass, latest: datetime) -> datetime | None:
    """Judge every line, a block of them at a time; when the first one from the future heals."""
    engine.run("create_judged")
    format_name = f"formats/{opened.raw_file.format}{'_parquet' if opened.is_parquet else ''}"
    heals_at: list[datetime] = []
    # A thread of its own: how deeply a line may be nested must not depend on who called us.
    with ThreadPoolExecutor(1, thread_name_prefix="second-look") as second_look:
        for block in _blocks(opened.batches()):
            if opened.is_parquet or sum(batch.nbytes for batch in block) > FEW_BYTES:
                suspects = _judge_in_bulk(engine, block, format_name, latest)
            else:
                suspects = np.concatenate([batch["line"].to_numpy() for batch in block])
            for part in _of(block, suspects):
                looked = second_look.submit(_look_again, part, latest, opened.is_parquet).result()
                heals_at += looked.heals_at
                engine.name_arrow("second_look", _as_arrow(looked.judged))
                engine.run("add_second_look")
    return min(heals_at, default=None)


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """The batches, some of them at a time: enough for every thread, and a bounded number of bytes."""
    block: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        block.append(batch)
        size += batch.nbytes
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _judge_in_bulk(engine: Engine, block: list[pa.RecordBatch], format_name: str, latest: datetime) -> Lines:
    """The numbers, in order, of the block's lines that the bulk read could not take."""
    engine.name_arrow("lines", pa.Table.from_batches(block))
    engine.name_statement("candidates", format_name)
    start, end, latest = (instant.replace(tzinfo=None) for instant in (FIRST_INSTANT, END_INSTANT, latest))
    engine.run("accept", start=start, end=end, latest=latest)
    first, last = block[0]["line"][0].as_py(), block[-1]["line"][-1].as_py()
    return engine.column("suspects", first=first, last=last)


def _of(block: list[pa.RecordBatch], lines: Lines) -> Iterator[pa.RecordBatch]:
    """Some of the block's lines, by their numbers in order, not too many at a time."""
    for batch in block:
        numbers = batch["line"].to_numpy()
        start, end = np.searchsorted(lines, (numbers[0], numbers[-1] + 1))
        for position in range(start, end, SUSPECTS_AT_ONCE):
            wanted = lines[position : min(end, position + SUSPECTS_AT_ONCE)]
            yield batch.take(pa.array(np.searchsorted(numbers, wanted)))


class _Looked(NamedTuple):
    judged: list[tuple[Any, ...]]  # line, reason, and the values of an event
    heals_at: list[datetime]


def _look_again(suspects: pa.RecordBatch, latest: datetime, is_parquet: bool) -> _Looked:
    """What plain Python makes of lines that the bulk read could not take, or was not asked to."""
    looked = _Looked([], [])
    for row in suspects.to_pylist():
        if row["reason"]:
            verdict: Request | Rejected = Rejected(Reason(row["reason"]))
        elif is_parquet:
            verdict = read_record(as_json_record(row), latest)
        else:
            verdict = read_line(without_line_end(row["text"].encode()), latest)
        if isinstance(verdict, Rejected):
            looked.judged.append((row["line"], verdict.reason.value, *(None,) * len(EVENT.columns)))
            if verdict.heals_at:
                looked.heals_at.append(verdict.heals_at)
        else:
            looked.judged.append((row["line"], None, *verdict))
    return looked


_SECOND_LOOK = pa.schema([("line", pa.int64()), ("reason", pa.string()), *EVENT.arrow_schema])


def _as_arrow(judged: list[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*judged, strict=True) if judged else ((),) * len(_SECOND_LOOK)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, _SECOND_LOOK, strict=True)],
        schema=_SECOND_LOOK,
    )


def _keep_events(run: Run, name: str, day: date) -> str:
    path = run.scratch / "events.parquet"
    run.engine.copy("event", path, SCAN_ROWS, day=day)
    return artifacts.keep(path, run.layout.events_of(day), name)


def _keep_rejected(run: Run, name: str) -> str:
    path = run.scratch / "rejected.parquet"
    run.engine.copy("rejected", path, SCAN_ROWS)
    return artifacts.keep(path, run.layout.rejected, name)
