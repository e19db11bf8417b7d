"""Taking in: one raw file becomes accepted events, split by their UTC day, and rejected lines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa

from pipeline import artifacts
from pipeline.contract.tables import EVENT
from pipeline.engine import SCAN_ROWS, Engine, statement
from pipeline.errors import CheckFailed
from pipeline.line import FUTURE_TOLERANCE, Rejected, Request, is_blank, read_line, read_text
from pipeline.raw import RawFile, RawPass
from pipeline.rows import without_line_end
from pipeline.run import Run

TAKE_IN_RULE = 1  # counts changes to line.py, rows.py or raw.py after which a file must be taken in anew
SUSPECTS_AT_ONCE = 2_048


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
        _judge_in_bulk(engine, opened, latest)
        content = opened.content()
        numbered = opened.numbered
    blank, heals_at = _look_again(engine, latest, _read_row if opened.is_parquet else _read_line)

    rule = rule_of(raw_file.read_as)
    made_from = (content, rule, str(latest) if heals_at else "")
    name = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:32]
    events = tuple(
        EventFile(day, accepted, _keep_events(run, name, day)) for day, accepted in engine.query("accepted_days")
    )
    ((quarantined,),) = engine.query("count_rejected")
    accepted = sum(event_file.accepted for event_file in events)
    if numbered - blank != accepted + quarantined:
        raise CheckFailed("lines = accepted + quarantined", raw_file.file, numbered - blank, accepted + quarantined)
    return TakeIn(
        name=name,
        content=content,
        format=raw_file.read_as,
        rule=rule,
        taken_at=run.started,
        lines=numbered - blank,
        accepted=accepted,
        quarantined=quarantined,
        heals_at=heals_at,
        rejected=_keep_rejected(run, name) if quarantined else None,
        events=events,
    )


def _judge_in_bulk(engine: Engine, opened: RawPass, latest: datetime) -> None:
    engine.run("create_judged")
    engine.name_arrow("lines", opened.batches())
    engine.name_statement("candidates", f"formats/{opened.raw_file.format}{'_parquet' if opened.is_parquet else ''}")
    try:
        engine.run("accept", latest=latest.replace(tzinfo=None))
    except duckdb.Error:
        if opened.failure:  # raised while DuckDB pulled the lines
            raise opened.failure from None
        raise


def _read_line(text: str, latest: datetime) -> Request | Rejected | None:
    line = without_line_end(text.encode())
    return None if is_blank(line) else read_line(line, latest)


def _read_row(text: str, latest: datetime) -> Request | Rejected | None:
    """A row of Parquet is never blank, and has no length in bytes: its JSON is ours."""
    return read_text(text, latest)


def _look_again(
    engine: Engine, latest: datetime, read: Callable[[str, datetime], Request | Rejected | None]
) -> tuple[int, datetime | None]:
    """Judge what the bulk read could not take; how many of it were blank lines, and when the first of it heals."""
    blank = 0
    heals_at: datetime | None = None
    for batch in engine.stream("suspects", SUSPECTS_AT_ONCE):
        judged: list[tuple[Any, ...]] = []
        for number, text in zip(*batch.to_pydict().values(), strict=True):
            verdict = read(text, latest)
            if verdict is None:
                blank += 1
                continue
            if isinstance(verdict, Rejected):
                judged.append((number, verdict.reason.value, *(None,) * len(EVENT.columns)))
                if verdict.heals_at and (heals_at is None or verdict.heals_at < heals_at):
                    heals_at = verdict.heals_at
            else:
                judged.append((number, None, *verdict))
        engine.name_arrow("second_look", _as_arrow(judged))
        engine.run("add_second_look")
    return blank, heals_at


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
