"""Judging: every line of one raw file is a request or is rejected with a reason.

The bulk read (bulk.py) takes what is certainly a request; whatever is not gets a second look from the rule book
(line.py). Few lines go to the rule book at once: to prepare the bulk read takes longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.bulk import accept
from pipeline.contract.tables import DAY, EVENT, REJECTED
from pipeline.engine import Engine
from pipeline.errors import FormatRefused
from pipeline.format import Terms
from pipeline.line import Reason, Rejected, Request, read_line, read_record
from pipeline.mapping import MappedRecords
from pipeline.raw import RawPass
from pipeline.records import as_record, held_back, mapped
from pipeline.rows import as_json_record, without_line_end
from pipeline.traces import Traces

FEW_BYTES = 8_192
BLOCK_BYTES = 8 * 2**20  # of lines judged together: what is made of them takes some twelve times as much
SUSPECTS_AT_ONCE = 2_048  # lines that plain Python looks at together

Lines = np.ndarray[Any, np.dtype[np.int64]]  # their numbers


@dataclass(frozen=True)
class Judged:
    """What some lines of a file were judged to be.

    lines: how many there were; of a mapped format every request that a line holds is one.
    events: batches of EVENT, each of one day. What the bulk read took of a block is in order of organization, key and
    line: a roll-up of events in order takes less time, their file less room. The same content gives the same order.
    rejected: rows of REJECTED, in order of line. heals_at: when the first line from the future is none any more.
    skipped: how many records the format leaves out, by reason; each of them is a line. merged: how many spans tell of a
    call that another one tells of. undecided: how many spans nobody can decide about, by reason.
    """

    lines: int
    events: list[tuple[date, pa.RecordBatch]]
    rejected: pa.Table
    heals_at: datetime | None
    skipped: Counter[str] = field(default_factory=Counter)
    merged: int = 0
    undecided: Counter[str] = field(default_factory=Counter)


def judge(engine: Engine, opened: RawPass, latest: datetime, scratch: Path) -> Iterator[Judged]:
    """Judge every line of a file, a block of them at a time; requests later than `latest` are from the future.

    No text is kept: lines may be as long as they like. scratch: a folder for what waits for the end of the file. Raises
    HeldBack where the format of the file cannot be used.
    """
    # A thread of its own: how deeply a line may be nested must not depend on who called us.
    with ThreadPoolExecutor(1, thread_name_prefix="second-look") as thread:
        format = opened.raw_file.format
        if format.is_mapped:
            look = _Look(engine, thread, latest, "mapped", partial(_read_mapped, terms=format.terms))
            skipped: Counter[str] = Counter()
            with Traces(engine, scratch) as traces:
                for block in _blocks(_mapped(engine, opened, traces, skipped)):
                    yield _judged_by_place(look, block)
                skipped += traces.skipped
                yield Judged(
                    skipped.total(),
                    [],
                    REJECTED.arrow_schema.empty_table(),
                    None,
                    skipped,
                    traces.merged,
                    traces.undecided,
                )
        elif opened.is_parquet:
            look = _Look(engine, thread, latest, "formats/native_parquet", _read_row)
            for block in _blocks(opened.batches()):
                yield _judged_in_bulk(look, block)
        else:
            look = _Look(engine, thread, latest, "formats/native", _read_text)
            for block in _blocks(opened.batches()):
                few = sum(batch.nbytes for batch in block) <= FEW_BYTES
                yield _judged(block, [], map(look.again, block)) if few else _judged_in_bulk(look, block)


@dataclass(frozen=True)
class _Look:
    """How lines are looked at. candidates: the statement that finds their fields for the bulk read. read: what the rule
    book makes of a line."""

    engine: Engine
    thread: ThreadPoolExecutor
    latest: datetime
    candidates: str
    read: Callable[[Mapping[str, Any], datetime], Request | Rejected]

    def again(self, suspects: pa.RecordBatch) -> tuple[pa.Table, list[datetime]]:
        return self.thread.submit(_look_again, suspects, self.latest, self.read).result()


def _judged_in_bulk(look: _Look, block: list[pa.RecordBatch]) -> Judged:
    lines = pa.Table.from_batches(block)
    accepted = accept(look.engine, lines, look.candidates, look.latest)
    suspects = _others(lines["line"].to_numpy(), accepted["line"].to_numpy())
    return _judged(block, _by_day(accepted), map(look.again, _of(block, suspects)))


def _judged_by_place(look: _Look, block: list[pa.RecordBatch]) -> Judged:
    """Several requests may stand on one line: they are judged by their place in the block instead."""
    lines = pa.Table.from_batches(block).combine_chunks()
    placed = lines.set_column(0, "line", pa.array(np.arange(len(lines)))).to_batches()
    few = lines.nbytes <= FEW_BYTES
    judged = _judged(placed, [], map(look.again, placed)) if few else _judged_in_bulk(look, placed)
    numbers = lines["line"].combine_chunks()
    rejected = judged.rejected.set_column(0, "line", numbers.take(judged.rejected["line"].combine_chunks()))
    events = [
        (day, batch.set_column(_LINE, EVENT.arrow_schema.field(_LINE), numbers.take(batch["line"])))
        for day, batch in judged.events
    ]
    return replace(judged, events=events, rejected=rejected)


_LINE = EVENT.arrow_schema.names.index("line")


def _mapped(engine: Engine, opened: RawPass, traces: Traces, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
    """What the SQL of the file's format makes of its records (schema MAPPED), but for those that are skipped."""
    format = opened.raw_file.format
    try:
        mapping = engine.lasting(format, partial(MappedRecords, format))
        for batch in opened.batches():
            records = traces.undoubted(mapped(batch, mapping, format))
            is_skipped = pc.is_valid(records["skipped"])
            if pc.any(is_skipped).as_py():
                for found in records["skipped"].filter(is_skipped).value_counts().to_pylist():
                    skipped[found["values"]] += found["counts"]
                records = records.filter(pc.invert(is_skipped))
            yield from records.combine_chunks().to_batches()
        for records in traces.waiting():
            yield from records.combine_chunks().to_batches()
    except FormatRefused as refused:
        raise held_back(opened.raw_file, refused) from refused


def _judged(
    block: list[pa.RecordBatch],
    accepted: list[tuple[date, pa.RecordBatch]],
    looked_again: Iterable[tuple[pa.Table, list[datetime]]],
) -> Judged:
    looked = list(looked_again)
    rows = pa.concat_tables([_SECOND_LOOK.empty_table(), *(table for table, _ in looked)])
    is_rejected = pc.is_valid(rows["reason"])
    events = rows.filter(pc.invert(is_rejected))
    return Judged(
        sum(batch.num_rows for batch in block),
        accepted + _by_day(events.take(pc.sort_indices(events["timestamp"].cast(DAY)))),
        rows.filter(is_rejected).select(REJECTED.arrow_schema.names),
        min((moment for _, moments in looked for moment in moments), default=None),
    )


def _by_day(events: pa.Table) -> list[tuple[date, pa.RecordBatch]]:
    """Events in order of day, as one batch for each."""
    if not events.num_rows:
        return []
    (batch,) = events.select(EVENT.arrow_schema.names).combine_chunks().to_batches()
    days = batch["timestamp"].cast(DAY)
    bounds = np.flatnonzero(np.diff(days.cast(pa.int32()).to_numpy(), prepend=-1, append=-1)).tolist()
    return [(days[start].as_py(), batch.slice(start, end - start)) for start, end in pairwise(bounds)]


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


def _others(lines: Lines, accepted: Lines) -> Lines:
    """The lines, by their numbers in order, that were not accepted."""
    is_other = np.ones(len(lines), np.bool_)
    is_other[np.searchsorted(lines, accepted)] = False
    return lines[is_other]


def _of(block: list[pa.RecordBatch], lines: Lines) -> Iterator[pa.RecordBatch]:
    """Some of the block's lines, by their numbers in order, not too many at a time."""
    for batch in block:
        numbers = batch["line"].to_numpy()
        start, end = np.searchsorted(lines, (numbers[0], numbers[-1] + 1))
        for position in range(start, end, SUSPECTS_AT_ONCE):
            wanted = lines[position : min(end, position + SUSPECTS_AT_ONCE)]
            yield batch.take(pa.array(np.searchsorted(numbers, wanted)))


_SECOND_LOOK = pa.schema([("reason", pa.string()), *EVENT.arrow_schema])


def _look_again(
    suspects: pa.RecordBatch, latest: datetime, read: Callable[[Mapping[str, Any], datetime], Request | Rejected]
) -> tuple[pa.Table, list[datetime]]:
    """What plain Python makes of lines that the bulk read could not take, or was not asked to; and when those from the
    future are none any more."""
    judged: list[tuple[Any, ...]] = []
    heals_at: list[datetime] = []
    for row in suspects.to_pylist():
        if row["reason"]:
            verdict: Request | Rejected = Rejected(Reason(row["reason"]))
        else:
            verdict = read(row, latest)
        if isinstance(verdict, Rejected):
            judged.append((verdict.reason.value, *(None,) * (len(EVENT.columns) - 1), row["line"]))
            if verdict.heals_at:
                heals_at.append(verdict.heals_at)
        else:
            judged.append((None, *verdict, row["line"]))
    columns = zip(*judged, strict=True) if judged else ((),) * len(_SECOND_LOOK)
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, _SECOND_LOOK, strict=True)],
        schema=_SECOND_LOOK,
    )
    return table, heals_at


def _read_text(row: Mapping[str, Any], latest: datetime) -> Request | Rejected:
    return read_line(without_line_end(row["text"].encode()), latest)


def _read_row(row: Mapping[str, Any], latest: datetime) -> Request | Rejected:
    return read_record(as_json_record(row), latest)


def _read_mapped(row: Mapping[str, Any], latest: datetime, terms: Terms) -> Request | Rejected:
    return read_record(as_record(row), latest, terms)
