"""Restating: a published day that changes after it was over says for whom, from what to what, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipeline.artifacts import verify
from pipeline.contents import events_by_day
from pipeline.contract.layout import Layout, month_name, month_of, stated_checksum
from pipeline.contract.tables import API_KEY_DAY, EVENT, RESTATEMENT
from pipeline.engine import SCAN_ROWS
from pipeline.errors import ArtifactDamaged
from pipeline.intake import EventFile
from pipeline.ledger import DayEntry, FileEntry, Ledger
from pipeline.prices import Prices
from pipeline.rollup import FILES_AT_ONCE, fingerprint_of
from pipeline.run import Run

log = logging.getLogger(__name__)

MOST_FILES = 20  # as add_restated.sql has it
ORGANIZATIONS_AT_ONCE = 10_000  # whose causes are gathered together

IsSound = Callable[[Path], bool]


class Restated(NamedTuple):
    """A month's new file of restatements, None where it stays; and whether what it recorded before is lost."""

    path: Path | None
    lost: bool


def restate(
    run: Run,
    month: date,
    before: Ledger,
    after: Ledger,
    confirmed_at: datetime | None,
    *,
    is_sound: IsSound,
    check: bool,
) -> Restated:
    """Record what the ledger `after` changes of the month's days that were published `before` and over.

    confirmed_at: start of the newest run on record. check: whether a damaged record is replaced though nothing changed.
    A damaged record begins anew: raw/ knows nothing of what was published once.
    """
    changed = [
        entry
        for day, entry in sorted(after.days.items())
        if month_of(day) == month
        and day in before.days
        and stated_checksum(Path(entry.artifact)) != stated_checksum(Path(before.days[day].artifact))
        and was_over(before.days[day], confirmed_at, run.started)
    ]
    if not changed and not check:
        return Restated(None, lost=False)
    recorded = before.publication.files.get((RESTATEMENT.name, month))
    so_far = run.layout.rollups / recorded.path if recorded else None
    run.engine.name_files("restatements_so_far", [], RESTATEMENT)
    run.engine.run("create_restated")
    was, now = (events_by_day(ledger.files) if changed else {} for ledger in (before, after))
    causes = came_or_left(before, after) if changed else {}
    found = 0
    for entry in changed:
        blame = _blame_of(run.prices, before, entry.day, was.get(entry.day, {}), now.get(entry.day, {}), causes)
        found += _restate_day(run, before, entry, blame, is_sound)
    lost = so_far is not None and (check or found > 0) and not _is_kept(run, so_far, month)
    if not found and not lost:
        return Restated(None, lost=False)
    if so_far and not lost:
        run.engine.name_files("restatements_so_far", [so_far], RESTATEMENT)
    path = run.scratch / f"{RESTATEMENT.name}-{month_name(month)}.parquet"
    run.engine.copy("restatement", path, SCAN_ROWS)
    return Restated(path, lost)


def _is_kept(run: Run, recorded: Path, month: date) -> bool:
    try:
        verify(run.store, recorded)
    except ArtifactDamaged as damage:
        log.warning(
            "%s %s; what was restated of %s before now is lost, and its record begins anew",
            damage.artifact,
            damage.what,
            month_name(month),
        )
        return False
    return True


def was_over(entry: DayEntry, confirmed_at: datetime | None, now: datetime) -> bool:
    """Whether the day had ended when the newest run began that published or confirmed it. Before, a day just grows.

    confirmed_at: start of the newest run on record. now: start of this one; a clock that was ahead ends no day.
    """
    newest = min(max(entry.as_of, confirmed_at or entry.as_of), now)
    return newest >= datetime.combine(entry.day + timedelta(days=1), time(), UTC)


def _restate_day(run: Run, before: Ledger, entry: DayEntry, blame: Blame, is_sound: IsSound) -> int:
    """Record what a day changes for each organization; how many these are."""
    engine = run.engine
    published = published_of(run.layout, before, entry.day, is_sound)
    if published is None:
        log.warning(
            "what was published of %s cannot be read any more; its restatements say only what it is from now on",
            entry.day,
        )
    engine.name_files("published", [published] if published else [], API_KEY_DAY)
    engine.name_files("rolled", [entry.path_in(run.layout)], API_KEY_DAY)
    engine.run("changed_usage", day=entry.day, known=published is not None)
    ((organizations,),) = engine.query("count_changed")
    if organizations:
        unreadable = _name_shares(run, blame.sources, is_sound)
        slices = organizations // ORGANIZATIONS_AT_ONCE + 1
        for number in range(slices):
            engine.run(
                "add_restated",
                day=entry.day,
                version=before.publication.version + 1,
                run_started=run.started,
                always=list(blame.always),
                otherwise=sorted({source.cause for source in unreadable}) or list(blame.otherwise),
                otherwise_files=sorted({source.file for source in unreadable})[:MOST_FILES],
                slice=number,
                slices=slices,
            )
    return int(organizations)


def published_of(layout: Layout, before: Ledger, day: date, is_sound: IsSound) -> Path | None:
    """A sound file with what was published of a day: what it was rolled up to, or else the month's file of all keys."""
    daily = before.days[day].path_in(layout)
    if is_sound(daily):
        return daily
    file = before.publication.files.get((API_KEY_DAY.name, month_of(day)))
    return layout.rollups / file.path if file and is_sound(layout.rollups / file.path) else None


@dataclass(frozen=True)
class Source:
    """An event file that came to a day or left it, with the raw file that brought it about, and why."""

    event: EventFile
    file: str
    cause: str


class Blame(NamedTuple):
    """Why a day changed: the event files that did it, causes for everybody, and for whom no file is to blame."""

    sources: Sequence[Source]
    always: Sequence[str]
    otherwise: Sequence[str]


def came_or_left(before: Ledger, after: Ledger) -> dict[str, tuple[str, str]]:
    """File and cause of every take-in that counts in one of two ledgers and not in the other, by its name."""
    counting = [
        {entry.take_in.name: file for file, entry in ledger.files.items() if entry.same_as is None}
        for ledger in (before, after)
    ]
    files = [{name: had[name] for name in had.keys() - other.keys()} for had, other in (counting, counting[::-1])]
    return {
        name: (file, _cause(before.files.get(file), after.files.get(file)))
        for named in files
        for name, file in named.items()
    }


def _blame_of(
    prices: Prices,
    before: Ledger,
    day: date,
    was: Mapping[str, EventFile],
    now: Mapping[str, EventFile],
    causes: Mapping[str, tuple[str, str]],
) -> Blame:
    """Why a day is not made of what it was made of. was, now: the event files that count on it, by take-in."""
    sources = [
        Source(events[name], *causes[name])
        for events, others in ((was, now), (now, was))
        for name in events.keys() - others.keys()
    ]
    always: list[str] = []
    if before.days[day].accepted != sum(event.accepted for event in was.values()):
        always.append("repaired damage")  # what was to count on it could not: its events were beyond repair
    elif before.days[day].fingerprint != fingerprint_of(was):
        always.append("rule change")
    if not prices.is_current(day, before.days[day].pricing):
        always.append("price change")
    return Blame(sources, always, always or ["backfill"])


def _cause(before: FileEntry | None, after: FileEntry | None) -> str:
    """What happened to a raw file, by its entries in two ledgers."""
    if before is None:
        return "late file"
    if after is None or before.take_in.content != after.take_in.content:
        return "replaced file"
    return "healed line" if before.take_in.rule == after.take_in.rule else "rule change"


def _name_shares(run: Run, sources: Sequence[Source], is_sound: IsSound) -> list[Source]:
    """Let statements read who has what in the sources; those that cannot be read, which may concern anybody."""
    paths = {source: source.event.path_in(run.layout) for source in sources}
    unreadable = [source for source in sources if not is_sound(paths[source])]
    readable = [source for source in sources if source not in set(unreadable)]
    run.engine.run("create_content_share")
    for start in range(0, len(readable), FILES_AT_ONCE):
        some = readable[start : start + FILES_AT_ONCE]
        run.engine.name_files("named_events", [paths[source] for source in some], EVENT, with_names=True)
        run.engine.run("add_content_share")
    rows = [(source.event.artifact, source.file, source.cause) for source in readable]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    names = ["artifact", "file", "cause"]
    run.engine.name_arrow("source", pa.table([pa.array(column, pa.string()) for column in columns], names=names))
    return unreadable
