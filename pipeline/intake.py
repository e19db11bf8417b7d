"""Taking in: one raw file becomes accepted events, split by their UTC day, and rejected lines."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import artifacts
from pipeline.contract.tables import EVENT
from pipeline.engine import SCAN_ROWS, Engine, statement
from pipeline.errors import CheckFailed
from pipeline.line import FUTURE_TOLERANCE, Rejected, Request, read_line, read_text
from pipeline.raw import RawFile, RawPass
from pipeline.rows import LINES, without_line_end
from pipeline.run import Run

TAKE_IN_RULE = 1  # counts changes to line.py, rows.py or raw.py after which a file must be taken in anew
SUSPECTS_AT_ONCE = 4_096
WIDE_BYTES = 8_192  # longer lines are judged at once: the engine would hand out thousands of megabytes in one batch
FEW_BYTES = 8_192  # of text; to prepare the bulk read takes longer than to judge so few lines one by one


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
    engine.run("create_judged")
    with RawPass(raw_file, run.watch.advance) as opened:
        try:
            heals_at = (_judge_rows if opened.is_parquet else _judge_lines)(engine, opened, latest)
        except (duckdb.Error, pa.ArrowException):
            if opened.failure:  # raised while others pulled the lines
                raise opened.failure from None
            raise
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


def _judge_rows(engine: Engine, opened: RawPass, latest: datetime) -> datetime | None:
    """Judge the rows of a Parquet file; when the first of those from the future heals."""
    _judge_in_bulk(engine, opened, opened.batches(), "_parquet", latest)
    # A row has no length in bytes: its JSON is ours.
    return _look_again(engine, engine.stream("suspects", SUSPECTS_AT_ONCE), latest, read_text)


def _judge_lines(engine: Engine, opened: RawPass, latest: datetime) -> datetime | None:
    """Judge the lines of a text; when the first of those from the future heals."""
    batches = opened.batches()
    begun: list[pa.RecordBatch] = []
    for batch in batches:
        begun.append(batch)
        if sum(batch.nbytes for batch in begun) > FEW_BYTES:
            break
    else:
        return _look_again(engine, begun, latest, _read_line)
    narrow = (_narrow(batch, latest) for batch in itertools.chain(begun, batches))
    _judge_in_bulk(engine, opened, pa.RecordBatchReader.from_batches(LINES, narrow), "", latest)
    return _look_again(engine, engine.stream("suspects", SUSPECTS_AT_ONCE), latest, _read_line)


def _judge_in_bulk(
    engine: Engine, opened: RawPass, batches: pa.RecordBatchReader, shape: str, latest: datetime
) -> None:
    engine.name_arrow("lines", batches)
    engine.name_statement("candidates", f"formats/{opened.raw_file.format}{shape}")
    engine.run("accept", latest=latest.replace(tzinfo=None))


def _read_line(text: str, latest: datetime) -> Request | Rejected:
    return read_line(without_line_end(text.encode()), latest)


def _narrow(batch: pa.RecordBatch, latest: datetime) -> pa.RecordBatch:
    """The batch with every wide line judged: its reason, or a text as short as what it says."""
    lengths = pc.binary_length(batch["text"])
    if (pc.max(lengths).as_py() or 0) <= WIDE_BYTES:
        return batch
    lines = batch.to_pylist()
    for line in lines:
        if line["text"] is not None and len(line["text"].encode()) > WIDE_BYTES:
            verdict = _read_line(line["text"], latest)
            if isinstance(verdict, Rejected) and verdict.heals_at is None:
                line.update(text=None, reason=verdict.reason.value)
            else:
                line.update(text=_short(verdict), sound=True, plain=False)
    return pa.RecordBatch.from_pylist(lines, schema=LINES)


def _short(verdict: Request | Rejected) -> str:
    """A line of which the same verdict is made."""
    if isinstance(verdict, Rejected):
        assert verdict.heals_at is not None
        return json.dumps({"request_id": "?", "timestamp": _json_text(verdict.heals_at + FUTURE_TOLERANCE)})
    record = {column.name: _json_text(value) for column, value in zip(EVENT.columns, verdict, strict=True)}
    return json.dumps(record, ensure_ascii=False)


def _json_text(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat() + "Z"
    return f"{value:f}" if isinstance(value, Decimal) else value


def _look_again(
    engine: Engine,
    suspects: Iterable[pa.RecordBatch],
    latest: datetime,
    read: Callable[[str, datetime], Request | Rejected],
) -> datetime | None:
    """Judge lines one by one, but those with a reason already; when the first of those from the future heals."""
    heals_at: datetime | None = None
    for batch in suspects:
        reasons = batch["reason"].to_pylist() if "reason" in batch.schema.names else [None] * batch.num_rows
        judged: list[tuple[Any, ...]] = []
        for number, text, reason in zip(batch["line"].to_pylist(), batch["text"].to_pylist(), reasons, strict=True):
            verdict = Rejected(reason) if reason else read(text, latest)
            if isinstance(verdict, Rejected):
                judged.append((number, str(verdict.reason), *(None,) * len(EVENT.columns)))
                if verdict.heals_at and (heals_at is None or verdict.heals_at < heals_at):
                    heals_at = verdict.heals_at
            else:
                judged.append((number, None, *verdict))
        engine.name_arrow("second_look", _as_arrow(judged))
        engine.run("add_second_look")
    return heals_at


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
