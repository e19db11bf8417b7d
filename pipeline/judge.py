"""Judging: every line of one raw file is a request or is rejected with a reason.

The bulk read (accept.sql) takes what is certainly a request; whatever is not gets a second look from the rule book
(line.py). Few lines go to the rule book at once: to prepare the bulk read takes longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contract.tables import DAY, EVENT, REJECTED
from pipeline.engine import Engine
from pipeline.line import END_INSTANT, FIRST_INSTANT, Reason, Rejected, Request, read_line, read_record
from pipeline.raw import RawPass
from pipeline.rows import as_json_record, without_line_end

FEW_BYTES = 8_192
BLOCK_BYTES = 32 * 2**20  # of lines judged together
SUSPECTS_AT_ONCE = 2_048  # lines that plain Python looks at together
STREAMED_ROWS = 32_768  # of the events; they come on top of what the engine is allowed

Lines = np.ndarray[Any, np.dtype[np.int64]]  # their numbers


@dataclass(frozen=True)
class Judged:
    """What the lines of a file were judged to be; each of the two is read once.

    events: batches of `day` and the columns of EVENT, in order of day, organization, key and line: a roll-up of sorted
    events takes a third of the time, their file three quarters. The same content gives the same order.
    rejected: batches of REJECTED, in order of line. heals_at: when the first line from the future is none any more.
    """

    events: Iterable[pa.RecordBatch]
    rejected: Iterable[pa.RecordBatch]
    heals_at: datetime | None


def judge(engine: Engine, opened: RawPass, latest: datetime) -> Judged:
    """Judge every line of a file, a block of them at a time; requests later than `latest` are from the future.

    No text is kept: lines may be as long as they like.
    """
    # A thread of its own: how deeply a line may be nested must not depend on who called us.
    with ThreadPoolExecutor(1, thread_name_prefix="second-look") as second_look:

        def look_again(suspects: pa.RecordBatch) -> _Looked:
            return second_look.submit(_look_again, suspects, latest, opened.is_parquet).result()

        blocks = _blocks(opened.batches())
        block = next(blocks, [])
        if not opened.is_parquet and sum(batch.nbytes for batch in block) <= FEW_BYTES:  # and no other follows
            return _judged_by_hand([look_again(batch) for batch in block])

        engine.run("create_judged")
        heals_at: list[datetime] = []
        while block:
            suspects = _judge_in_bulk(engine, block, opened, latest)
            for part in _of(block, suspects):
                looked = look_again(part)
                heals_at += looked.heals_at
                engine.name_arrow("second_look", _as_arrow(looked.judged))
                engine.run("add_second_look")
            block = next(blocks, [])
    return Judged(
        engine.stream("event", STREAMED_ROWS), engine.stream("rejected", STREAMED_ROWS), min(heals_at, default=None)
    )


def _judged_by_hand(parts: list[_Looked]) -> Judged:
    rows = _as_arrow([row for looked in parts for row in looked.judged])
    is_rejected = pc.is_valid(rows["reason"])
    events = rows.filter(pc.invert(is_rejected))
    events = events.append_column("day", events["timestamp"].cast(DAY))
    order = [(name, "ascending") for name in ("day", "organization_id", "api_key_id", "line")]
    return Judged(
        events.sort_by(order).select(["day", *EVENT.arrow_schema.names]).to_batches(),
        rows.filter(is_rejected).select(REJECTED.arrow_schema.names).to_batches(),
        min((moment for looked in parts for moment in looked.heals_at), default=None),
    )


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


def _judge_in_bulk(engine: Engine, block: list[pa.RecordBatch], opened: RawPass, latest: datetime) -> Lines:
    """The numbers, in order, of the block's lines that the bulk read could not take."""
    engine.name_arrow("lines", pa.Table.from_batches(block))
    engine.name_statement("candidates", f"formats/{opened.raw_file.format}{'_parquet' if opened.is_parquet else ''}")
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
