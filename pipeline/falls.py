"""Lowered days: published days on which an organization has fewer counted requests than in the version before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.contents import events_by_day
from pipeline.contract.layout import stated_checksum
from pipeline.contract.published import notes_of
from pipeline.contract.store import Store
from pipeline.contract.tables import API_KEY_DAY, EVENT
from pipeline.contract.wording import count_of
from pipeline.ignored import readable_name
from pipeline.intake import EventFile
from pipeline.ledger import DayEntry, Ledger
from pipeline.restate import IsSound, came_or_left, published_of
from pipeline.rollup import FILES_AT_ONCE
from pipeline.run import Run

LOWERED = "keytally.lowered"  # in a commit: the lowered days of its version, for a run that ends before it reports them
MOST_LISTED = 100  # rows of a day
MOST_FILES = 20  # of a day
MOST_TRACED = 31  # days whose lost requests are traced to their raw files: this reads the events of the day
MOST_NOTED = 10  # days in a commit
MOST_NOTED_ROWS = 3  # of each of them
MOST_VERSIONS = 20  # whose commits are read for what their runs did not report


@dataclass(frozen=True)
class Lowered:
    """One organization with fewer counted requests on a published day, and one raw file that held lost requests.

    file: None where no raw file is known to have held them. organization_id: None where the published day cannot be
    read any more; the counts are those of the whole day then.
    """

    file: str | None
    organization_id: str | None
    requests_before: int
    requests_after: int


@dataclass(frozen=True)
class LoweredDay:
    """A published day on which organizations have fewer counted requests than in the version before.

    organizations: how many. requests_before, requests_after: the sums over these organizations. files: the raw files
    that held the lost requests, the one with the most first. replaced: whether a file has another content now; if not,
    another rule or a copy in another file is the cause. rotated: files, each with an ignored file beside it that is
    probably its rotated log. rows: at most MOST_LISTED. more_rows: how many more there are.
    """

    day: date
    organizations: int
    requests_before: int
    requests_after: int
    files: tuple[str, ...]
    replaced: bool
    rotated: tuple[tuple[str, str], ...]
    rows: tuple[Lowered, ...]
    more_rows: int = 0

    @property
    def what(self) -> str:
        """The finding in a sentence, without the day: both counts, the organizations and the files."""
        if self.rows and self.rows[0].organization_id is None:
            whose = ""
        else:
            named = list(dict.fromkeys(str(row.organization_id) for row in self.rows))[:3]
            others = self.organizations - len(named)
            whose = f" of {', '.join(named)}" + (f" and {count_of(others, 'more organization')}" if others else "")
        lost = self.requests_before - self.requests_after
        text = (
            f"{count_of(lost, 'request')}{whose} {'is' if lost == 1 else 'are'} not counted any more:"
            f" {self.requests_before:,} before, {self.requests_after:,} now"
        )
        if not self.files:
            return text
        files = _some(self.files)
        if not self.replaced:
            return f"{text}; ingested for this day: {files}"
        return f"{text}; the content of {files} was replaced"

    @property
    def what_to_do(self) -> str:
        """What a person should do about it, in a sentence."""
        if self.rotated:
            named = [f"{ignored}, which is ignored, is the rotated log of {file}" for file, ignored in self.rotated]
            renamed = readable_name(self.rotated[0][1].rpartition("/")[2])
            rename = "give it a name that ends as the log's does"
            if renamed:
                rename = f"rename {'it' if len(named) == 1 else 'the first'} to {renamed}"
            return f"probably {_some(named, 3)}: {rename}, and the next run counts its requests again"
        if self.replaced:
            return (
                "if a log was truncated or written over, put its old content back below raw/ under another name; if"
                " the new content is a correction, do nothing. 'keytally history' shows the day"
            )
        return (
            "see whether a changed rule or format, or a copy of the requests without an API key, is meant to lower the"
            " day: 'keytally history' shows the day, 'keytally quarantine' the rejected lines"
        )

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "file": row.file,
                "day": str(self.day),
                "organization_id": row.organization_id,
                "requests_before": row.requests_before,
                "requests_after": row.requests_after,
            }
            for row in self.rows
        ]


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def rows_of(lowered: Sequence[LoweredDay]) -> tuple[list[dict[str, Any]], int]:
    """The first MOST_LISTED rows of all days, as a machine gets them, and how many more there are."""
    rows = [row for day in lowered for row in day.as_json()]
    return rows[:MOST_LISTED], len(rows[MOST_LISTED:]) + sum(day.more_rows for day in lowered)


# --- finding them ----------------------------------------------------------------------------------------------------


def lowered_days(
    run: Run, before: Ledger, after: Ledger, ignored: Iterable[str], *, is_sound: IsSound
) -> list[LoweredDay]:
    """The days published `before` on which an organization has fewer counted requests `after`, in order.

    ignored: the files below raw/ that no format reads.
    """
    changed = {
        day: entry
        for day, entry in sorted(after.days.items())
        if day in before.days and not _has_same_usage(entry, before.days[day])
    }
    if not changed:
        return []
    tracing = _Tracing(run, before, after, sorted(ignored), is_sound)
    found: list[LoweredDay] = []
    for published, days in _together(run, before, changed, is_sound):
        if not published:
            found += (tracing.of_unknown(before.days[day], changed[day]) for day in days if _fell(before, changed, day))
            continue
        run.engine.name_files("published", published, API_KEY_DAY)
        run.engine.name_files("rolled", [changed[day].path_in(run.layout) for day in days], API_KEY_DAY)
        run.engine.run("lowered_usage", days=days)
        found += [tracing.of(*row) for row in run.engine.query("lowered_days")]
    return sorted(found, key=lambda lowered: lowered.day)


def _has_same_usage(entry: DayEntry, other: DayEntry) -> bool:
    return stated_checksum(Path(entry.artifact)) == stated_checksum(Path(other.artifact))


def _fell(before: Ledger, after: Mapping[date, DayEntry], day: date) -> bool:
    return after[day].counted < before.days[day].counted


def _together(
    run: Run, before: Ledger, changed: Mapping[date, DayEntry], is_sound: IsSound
) -> Iterator[tuple[list[Path], list[date]]]:
    """The days in groups, with the files to read what was published of a group from; no files if there are none.

    The file of a month has rows of all its days, so that it is read with no other.
    """
    daily: list[tuple[Path, date]] = []
    others: dict[Path | None, list[date]] = {}
    for day in changed:
        path = published_of(run.layout, before, day, is_sound)
        if path == before.days[day].path_in(run.layout):
            daily.append((path, day))
        else:
            others.setdefault(path, []).append(day)
    for start in range(0, len(daily), FILES_AT_ONCE):
        some = daily[start : start + FILES_AT_ONCE]
        yield [path for path, _ in some], [day for _, day in some]
    for monthly, days in others.items():
        yield [monthly] if monthly else [], days


class _Tracing:
    """Traces what a day lost to the raw files that held it."""

    def __init__(self, run: Run, before: Ledger, after: Ledger, ignored: Sequence[str], is_sound: IsSound) -> None:
        self._run = run
        self._was, self._now = events_by_day(before.files), events_by_day(after.files)
        self._came_or_left = came_or_left(before, after)
        self._ignored = ignored
        self._is_sound = is_sound
        self._traced = 0

    def of(self, day: date, organizations: int, requests_before: int, requests_after: int) -> LoweredDay:
        """What is found of a day of `lowered`."""
        engine = self._run.engine
        was, now = self._was.get(day, {}), self._now.get(day, {})
        left = {name: was[name] for name in was.keys() - now.keys()}
        engine.run("create_lost_request")
        unreadable: list[str] = []
        if self._traced < MOST_TRACED:
            self._traced += 1
            unreadable = self._gather(day, left, now)
        self._name_source(left)
        files = [file for file, _ in engine.query("lost_files")] + sorted(unreadable)
        # Without a lost request that is known, every file that came or left may be to blame.
        files = files or self._involved([*left, *(now.keys() - was.keys())])
        rows = engine.query("lost_by_file", day=day, most=MOST_LISTED)
        listed = tuple(
            Lowered(file or next(iter(files), None), organization, had, has) for organization, had, has, file, _ in rows
        )
        more = rows[0][-1] - len(rows)
        return self._day(day, (organizations, requests_before, requests_after), files, listed, more)

    def of_unknown(self, before: DayEntry, after: DayEntry) -> LoweredDay:
        """What is found of a day of which nothing that was published can be read: the counts of the ledger."""
        was, now = self._was.get(after.day, {}), self._now.get(after.day, {})
        files = self._involved(was.keys() ^ now.keys())
        row = Lowered(next(iter(files), None), None, before.counted, after.counted)
        return self._day(after.day, (0, before.counted, after.counted), files, (row,), 0)

    def _day(
        self, day: date, counts: tuple[int, int, int], files: Sequence[str], rows: tuple[Lowered, ...], more: int
    ) -> LoweredDay:
        files = tuple(files[:MOST_FILES])
        causes = {cause for file, cause in self._came_or_left.values() if file in files}
        rotated = tuple((file, ignored) for file in files if (ignored := self._rotated(file)))
        return LoweredDay(day, *counts, files, "replaced file" in causes, rotated, rows, more)

    def _rotated(self, file: str) -> str | None:
        """The ignored file beside a file whose name begins with the file's name; of several the one rotated last."""
        beside = [ignored for ignored in self._ignored if ignored.startswith(file) and "/" not in ignored[len(file) :]]
        numbered = [ignored for ignored in beside if re.match(r"\.\d{1,3}(\.|$)", ignored[len(file) :])]
        return min(numbered, key=len) if numbered else max(beside, default=None)

    def _involved(self, take_ins: Iterable[str]) -> list[str]:
        return sorted({self._came_or_left[name][0] for name in take_ins if name in self._came_or_left})

    def _gather(self, day: date, left: Mapping[str, EventFile], now: Mapping[str, EventFile]) -> list[str]:
        """Put into `lost_request` what the day lost. Returns the raw files whose events cannot be read any more."""
        engine = self._run.engine
        for paths in self._readable(left.values()):
            engine.name_files("named_events", paths, EVENT, with_names=True)
            engine.run("add_lost_request", day=day)
        for paths in self._readable(now.values()):
            engine.name_files("kept_events", paths, EVENT)
            engine.run("remove_kept_request")
        return self._involved(
            name for name, event in left.items() if not self._is_sound(event.path_in(self._run.layout))
        )

    def _readable(self, events: Iterable[EventFile]) -> Iterator[list[Path]]:
        paths = {path for event in events if self._is_sound(path := event.path_in(self._run.layout))}
        ordered = sorted(paths)
        for start in range(0, len(ordered), FILES_AT_ONCE):
            yield ordered[start : start + FILES_AT_ONCE]

    def _name_source(self, left: Mapping[str, EventFile]) -> None:
        """Let statements read which raw file each of the event files came from that left the day."""
        columns = {
            "artifact": pa.array([event.artifact for event in left.values()], pa.string()),
            "file": pa.array([self._came_or_left[name][0] for name in left], pa.string()),
        }
        self._run.engine.name_arrow("source", pa.table(columns))


# --- those of a run that ended before it reported them ---------------------------------------------------------------


def note_of(lowered: Sequence[LoweredDay]) -> str:
    """The lowered days as a commit carries them: the first of them, each with its first rows."""
    return json.dumps([_noted(day) for day in lowered[:MOST_NOTED]], ensure_ascii=True)


def _noted(lowered: LoweredDay) -> dict[str, Any]:
    return {
        **vars(lowered),
        "day": str(lowered.day),
        "files": lowered.files[:MOST_NOTED_ROWS],
        "rotated": lowered.rotated[:MOST_NOTED_ROWS],
        "rows": [vars(row) for row in lowered.rows[:MOST_NOTED_ROWS]],
        "more_rows": lowered.more_rows + len(lowered.rows[MOST_NOTED_ROWS:]),
    }


def unreported(store: Store, noted: int, newest: int) -> list[LoweredDay]:
    """The lowered days of the versions after `noted` (of the newest run's note) up to `newest`, in order of day.

    A run notes its version after its commit. If a run ended between the two, nobody was told what it lowered. The
    commits of runs that are just about to write their note are reported by both. Raises StoreError.
    """
    found: dict[date, LoweredDay] = {}
    for version in range(max(noted, newest - MOST_VERSIONS) + 1, newest + 1):
        said = notes_of(store, version).get(LOWERED)
        found |= {lowered.day: lowered for lowered in _read_note(said)}
    return [found[day] for day in sorted(found)]


def _read_note(said: object) -> list[LoweredDay]:
    try:
        return [_read_day(row) for row in json.loads(said)] if isinstance(said, str) else []
    except (ValueError, LookupError, TypeError):  # of a keytally that writes another note
        return []


def _read_day(noted: Mapping[str, Any]) -> LoweredDay:
    read = LoweredDay(**noted)
    return replace(
        read,
        day=date.fromisoformat(noted["day"]),
        files=tuple(noted["files"]),
        rotated=tuple((file, ignored) for file, ignored in noted["rotated"]),
        rows=tuple(Lowered(**row) for row in noted["rows"]),
    )
