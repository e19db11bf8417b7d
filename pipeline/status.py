"""Where things stand: what is published, through which moment, and what of raw/ is not in it; by day and by file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from pipeline.contents import events_by_day, held_back_by_day, is_still, needs_reading, quarantined_by_day
from pipeline.contract.coverage import DayState, state_of
from pipeline.contract.last_run import LATE, FailedRun, LastRun, Outcome, ReportedFinding, read_failure, read_last_run
from pipeline.contract.layout import days_between
from pipeline.contract.published import run_of
from pipeline.contract.seam import step
from pipeline.contract.settings import Settings
from pipeline.contract.store import Store
from pipeline.contract.wording import age_of, count_of, instant_text
from pipeline.errors import BadPrices, HeldBack
from pipeline.ignored import IgnoredLog, ignored_logs
from pipeline.ledger import DayEntry, FileEntry, Ledger, read_ledger
from pipeline.odd_logs import OddLog, odd_logs
from pipeline.prices import Prices, read_prices
from pipeline.raw import CHANGING, RawFile, RawListing, list_raw
from pipeline.report import Unpriced, unpriced_days
from pipeline.rollup import fingerprint_of
from pipeline.run import Run, look_at_runs

Why = Literal["new", "changed", "moment has come", "rules changed"]


@dataclass(frozen=True)
class DayStatus:
    """A day from the first that is loaded to the last that could be.

    entry: how its accepted lines were counted; None for a day that is not loaded. files: how many contents count on it.
    quarantined: lines of these contents that are no requests; such a line has no day of its own. not_counted: accepted
    lines of these contents that the published day does not have. finding: what somebody should look at.
    """

    day: date
    state: DayState
    entry: DayEntry | None
    files: int
    quarantined: int
    not_counted: int
    finding: str | None

    def as_json(self) -> dict[str, Any]:
        counts = {
            name: getattr(self.entry, name) if self.entry else 0
            for name in ("accepted", "counted", "duplicate", "conflicting", "disagreeing", "session", "unpriced")
        }
        return {
            "day": str(self.day),
            "state": self.state,
            **counts,
            "files": self.files,
            "quarantined": self.quarantined,
            "not_counted": self.not_counted,
            "finding": self.finding,
        }


@dataclass(frozen=True)
class Waiting:
    """A raw file that the next run reads, and why. since: from when on it has been waiting; None where nobody knows."""

    raw_file: RawFile
    why: Why
    since: datetime | None


@dataclass(frozen=True)
class FileStatus:
    """A raw file as the version counts it (None when it does not), and as it lies in raw/ now.

    waiting, held_back: why the next run reads it, or why the newest could not take it. since: from when on.
    """

    file: str
    entry: FileEntry | None
    in_raw: bool
    waiting: Why | None
    held_back: str | None
    since: datetime | None

    def as_json(self) -> dict[str, Any]:
        taken = self.entry.take_in if self.entry else None
        counted = None if self.entry is None else not self.entry.same_as
        return {
            "file": self.file,
            "lines": taken and taken.lines,
            "accepted": taken and taken.accepted * bool(counted),
            "quarantined": taken and taken.quarantined * bool(counted),
            "skipped": taken and taken.skipped * bool(counted),
            "because": [tally._asdict() for tally in taken.tally] if taken and counted else [],
            "same_as": self.entry and self.entry.same_as,
            "taken_at": instant_text(taken.taken_at if taken else None),
            "heals_at": instant_text(taken.heals_at if taken else None),
            "in_raw": self.in_raw,
            "waiting": self.waiting,
            "held_back": self.held_back,
            "since": instant_text(self.since),
        }


@dataclass(frozen=True)
class Status:
    """The ledger of what is published, and what a run would find in raw/.

    confirmed_at: start of the newest run that published or confirmed it; None before the first run.
    held_back: files the newest run could not take, unchanged since. waiting: all others that are new or changed.
    held_since: since when a file is held back: the start of the
    first run in a row that could not take it. ignored: files that no format reads, with the reason.
    days, files: all there are, in order. lost: a sentence on what that run published or confirmed and is there no more.
    odd: files that the version counts and of which something may be wrong. disagreeing: the days on which copies differ
    in a billed value. unpriced: days with requests of which no cost is known. bad_prices: a sentence on why the price
    book or the rates cannot be used. raw_missing: a sentence on raw/ that is not there, or is empty, although it had
    files. has_raw: whether raw/ is there. reported: what runs of the last 26 hours reported and nothing else tells of.
    failed: the newest run, where it published nothing. under_way_since: when the oldest run on this machine began that
    is not done, a recount too; None where there is none. killed_at: about when one here ended without a word; None once
    the next has cleared it away or, wherever that was, done its work.
    """

    ledger: Ledger
    now: datetime
    confirmed_at: datetime | None
    waiting: tuple[Waiting, ...]
    held_back: tuple[HeldBack, ...]
    held_since: Mapping[str, datetime]
    ignored: Mapping[str, str]
    ignored_logs: tuple[IgnoredLog, ...]
    days: tuple[DayStatus, ...]
    files: tuple[FileStatus, ...]
    lost: str | None
    odd: tuple[OddLog, ...]
    disagreeing: tuple[DayEntry, ...]
    unpriced: tuple[Unpriced, ...]
    bad_prices: str | None
    raw_missing: str | None
    has_raw: bool
    reported: tuple[ReportedFinding, ...]
    failed: FailedRun | None
    under_way_since: datetime | None
    killed_at: datetime | None

    @property
    def is_late(self) -> bool:
        """Whether a night has passed without a run that did its work."""
        age = age_of(self.confirmed_at, self.now)
        return age is not None and age > LATE

    @property
    def absent_day(self) -> date | None:
        """The last day that was over when the newest run began, where it is not loaded."""
        first_open = self.confirmed_at.astimezone(UTC).date() if self.confirmed_at else date.max
        over = [day for day in self.days if day.day < first_open]
        return over[-1].day if over and over[-1].state == "not_loaded" else None

    def as_json(self) -> dict[str, Any]:
        days = [entry for entry in self.ledger.days.values() if entry.accepted]
        published = max((file.published_at for file in self.ledger.publication.files.values()), default=None)
        counting = [entry.take_in for entry in self.ledger.files.values() if entry.same_as is None]
        return {
            "version": self.ledger.publication.version,
            "published_at": instant_text(published),
            "as_of": instant_text(self.confirmed_at),
            "first_day": str(min(entry.day for entry in days)) if days else None,
            "last_day": str(max(entry.day for entry in days)) if days else None,
            "days": len(days),
            "counted": sum(entry.counted for entry in days),
            "session": sum(entry.session for entry in days),
            "duplicate": sum(entry.duplicate for entry in days),
            "conflicting": sum(entry.conflicting for entry in days),
            "quarantined": sum(take_in.quarantined for take_in in counting),
            "skipped": sum(take_in.skipped for take_in in counting),
            "not_counted": sum(day.not_counted for day in self.days),
            "files": len(self.ledger.files),
            "waiting": [
                {
                    "file": waiting.raw_file.file,
                    "bytes": waiting.raw_file.size,
                    "why": waiting.why,
                    **self._since(waiting.since),
                }
                for waiting in self.waiting
            ],
            "held_back": [
                {"file": held.file, "reason": held.reason, **self._since(self.held_since.get(held.file))}
                for held in self.held_back
            ],
            "ignored": list(self.ignored),
            "ignored_because": dict(self.ignored),
            "ignored_logs": [log.file for log in self.ignored_logs],
            "lost": self.lost,
            "odd": [log.as_json() for log in self.odd],
            "disagreeing": [
                {
                    "day": str(day.day),
                    "copies": day.disagreeing,
                    **(day.disagreement._asdict() if day.disagreement else {}),
                }
                for day in self.disagreeing
            ],
            "unpriced": [day.as_json() for day in self.unpriced],
            "bad_prices": self.bad_prices,
            "raw_missing": self.raw_missing,
            "reported": [each.as_json() for each in self.reported],
            "failed": self.failed and self.failed.as_json(),
            "under_way": self.under_way_since is not None,
            "under_way_since": instant_text(self.under_way_since),
            "killed_at": instant_text(self.killed_at),
            "findings": [str(day.day) for day in self.days if day.finding],
            "by_day": [day.as_json() for day in self.days],
            "by_file": [file.as_json() for file in self.files],
        }

    def _since(self, since: datetime | None) -> dict[str, Any]:
        age = age_of(since, self.now)
        return {"since": instant_text(since), "seconds": None if age is None else int(age.total_seconds())}


def status_of(store: Store, now: datetime, settings: Settings) -> Status:
    """How things stand at `now`. Opens no raw file."""
    ledger = read_ledger(store)
    prices, bad_prices = _prices(store, settings.currency)
    version = ledger.publication.version
    listing = list_raw(store)
    note = read_last_run(store)
    newest = newest_run(store, note, version)
    confirmed_at = newest.started if newest else None
    refused = note.held_back if note else {}
    confirmed = note.confirmed if note else {}
    unread = [raw_file for raw_file in listing.files if needs_reading(raw_file, ledger.files, confirmed, now)]
    # A file that changes inside what is read has another signature each time, and is held back all the same.
    changing = {file: reason for (file, _), reason in refused.items() if reason.startswith(CHANGING)}
    held = {
        raw_file.file: HeldBack(raw_file.file, reason)
        for raw_file in unread
        if (reason := refused.get((raw_file.file, raw_file.signature), changing.get(raw_file.file)))
    }
    held_since = note.held_since if note else {}
    held_back = (*listing.held_back, *held.values())
    failed = read_failure(store)
    if failed and confirmed_at and failed.started <= confirmed_at:
        failed = None  # another has done its work since
    under_way_since, killed_at = look_at_runs(store.layout.scratch)
    if killed_at and confirmed_at and killed_at <= confirmed_at:
        killed_at = None  # another has done its work since, on another machine
    waiting = [_waiting(raw_file, ledger, confirmed, now) for raw_file in unread if raw_file.file not in held]
    since = {
        raw_file.file: held_since.get(raw_file.file, _as_it_is_since(raw_file))
        for raw_file in unread
        if raw_file.file in held
    }
    findings = newest.findings if newest else frozenset()
    return Status(
        ledger=ledger,
        now=now,
        confirmed_at=confirmed_at,
        waiting=tuple(waiting),
        held_back=held_back,
        held_since=since,
        ignored=listing.ignored,
        ignored_logs=tuple(ignored_logs(listing)),
        days=tuple(_days(ledger, prices, confirmed_at, findings, held_back, waiting)),
        files=tuple(_files(ledger, listing.files, waiting, held, since)),
        lost=lost_versions(version, note) if note and note.version > version else None,
        odd=tuple(odd_logs((ledger.files[file] for file in sorted(ledger.files)), settings.rejected_limit)),
        disagreeing=tuple(entry for _, entry in sorted(ledger.days.items()) if entry.disagreeing),
        unpriced=unpriced_days(ledger.days, prices),
        bad_prices=bad_prices,
        raw_missing=missing_raw(store, ledger, listing),
        has_raw=store.has_folder(store.layout.raw),
        reported=tuple(
            each for each in (note.outcome.reported if note and note.outcome else ()) if now - each.started <= LATE
        ),
        failed=failed,
        under_way_since=under_way_since,
        killed_at=killed_at,
    )


def _prices(store: Store, currency: str) -> tuple[Prices | None, str | None]:
    """The prices as they are, or why they cannot be used."""
    try:
        return read_prices(store, currency), None
    except BadPrices as error:
        return None, str(error)


def missing_raw(store: Store, ledger: Ledger, listing: RawListing) -> str | None:
    """A sentence on raw/ that is not there, or is as empty as the folder something should be mounted on."""
    if not ledger.files or listing.files or listing.held_back:
        return None
    what = "is empty" if store.has_folder(store.layout.raw) else "is not there"
    return f"{store.name_of(store.layout.raw)} {what}, out of which {count_of(len(ledger.files), 'file')} came"


def lost_versions(newest: int, last_run: LastRun) -> str:
    """A sentence on versions that a run published and that are there no more. newest: the one that is."""
    there = f"the log ends at version {newest}" if newest else "the published table is gone"
    return f"version {last_run.version} was published, but {there}"


def newest_run(store: Store, note: LastRun | None, version: int) -> LastRun | None:
    """The newest run that is known of, as a server knows of it: from its note, or from the commit of `version`."""
    if note is not None and note.version == version:
        return note
    # A note of a later version speaks of another table: an older copy was put back in its place.
    known = note if note is not None and note.version < version else None
    committed = run_of(store, version)
    return max((run for run in (known, committed) if run), key=lambda run: run.started, default=None)


def _as_it_is_since(raw_file: RawFile) -> datetime:
    """When a file was last written to, renamed, or put where it lies: its time of change, which nothing sets back."""
    return datetime.fromtimestamp(int(raw_file.changed_at), UTC)


def _waiting(raw_file: RawFile, ledger: Ledger, confirmed: Mapping[tuple[str, str], str], now: datetime) -> Waiting:
    entry, since = ledger.files.get(raw_file.file), _as_it_is_since(raw_file)
    if entry is None:
        return Waiting(raw_file, "new", since)
    if entry.signature != raw_file.signature and not is_still(entry, raw_file, confirmed):
        return Waiting(raw_file, "changed", since)
    heals_at = entry.take_in.heals_at
    if heals_at is not None and heals_at <= now:
        return Waiting(raw_file, "moment has come", heals_at)
    return Waiting(raw_file, "rules changed", None)


def _days(
    ledger: Ledger,
    prices: Prices | None,
    confirmed_at: datetime | None,
    findings: frozenset[date],
    held_back: Sequence[HeldBack],
    waiting: Sequence[Waiting],
) -> Iterator[DayStatus]:
    """Every day from the first loaded one to the last, or to the last that was over when the newest run began."""
    loaded = {day: entry for day, entry in ledger.days.items() if entry.accepted}
    inputs = events_by_day(ledger.files)
    if not loaded and not inputs:
        return
    first_open = confirmed_at.astimezone(UTC).date() if confirmed_at else date.min
    over = [first_open - timedelta(days=1)] if confirmed_at else []
    quarantined = quarantined_by_day(ledger.files)
    touched = held_back_by_day(ledger.files, {held.file for held in held_back})
    grown = held_back_by_day(ledger.files, {each.raw_file.file for each in waiting if each.why == "changed"})
    known = {*loaded, *inputs}
    for day in days_between(min(known), max(*known, *over)):
        entry, made_from = loaded.get(day), inputs.get(day, {})
        published = ledger.days[day].fingerprint if day in ledger.days else None
        behind = bool(published or made_from) and published != fingerprint_of(made_from)
        behind |= entry is not None and prices is not None and not prices.is_current(day, entry.pricing)
        finding = _finding(day, behind, day in findings, sorted(touched.get(day, ())), sorted(grown.get(day, ())))
        accepted = sum(event.accepted for event in made_from.values())
        yield DayStatus(
            day=day,
            state=state_of(is_loaded=entry is not None, is_open=day >= first_open, has_finding=finding is not None),
            entry=entry,
            files=len(made_from),
            quarantined=quarantined.get(day, 0),
            not_counted=max(accepted - (entry.accepted if entry else 0), 0),
            finding=finding,
        )


def _finding(day: date, behind: bool, noted: bool, held_back: Sequence[str], changed: Sequence[str]) -> str | None:
    if held_back:
        return f"held back: {', '.join(held_back)}"
    again = f"keytally backfill --from {day} --to {day}"
    if noted and behind:
        return (
            f"it is not what its files say: something it is made from is lost; '{again}' says which raw file it needs"
        )
    if noted and changed:
        return f"lines wait for the next run, in files that have changed since they were read: {', '.join(changed)}"
    if noted:
        return f"a file is held back, or something it is made from is lost; '{again}' says which"
    return (
        "it is not what its files, rules and prices say by now; 'keytally rollup' rolls it up anew" if behind else None
    )


def _files(
    ledger: Ledger,
    raw_files: Sequence[RawFile],
    waiting: Sequence[Waiting],
    held_back: Mapping[str, HeldBack],
    held_since: Mapping[str, datetime],
) -> Iterator[FileStatus]:
    """Every file that the version counts, and every one that it does not count yet."""
    present = {raw_file.file: raw_file for raw_file in raw_files}
    by_file = {each.raw_file.file: each for each in waiting}
    for file in sorted({*ledger.files, *by_file, *held_back}):
        wait, held = by_file.get(file), held_back.get(file)
        yield FileStatus(
            file=file,
            entry=ledger.files.get(file),
            in_raw=file in present,
            waiting=wait.why if wait else None,
            held_back=held.reason if held else None,
            since=wait.since if wait else held_since.get(file),
        )


def write_last_run(
    run: Run,
    version: int,
    held_back: Mapping[tuple[str, str], str],
    findings: frozenset[date],
    confirmed: Mapping[tuple[str, str], str],
    quarantined: int,
    outcome: Outcome | None = None,
) -> None:
    """Note that this run published or confirmed `version`, but for these files.

    held_back: reasons by file and signature. findings: days of which something is held back. confirmed, quarantined,
    outcome: see LastRun.
    """
    started, currency = run.started, run.settings.currency
    before = read_last_run(run.store)
    if before and before.started <= run.clock() and before.version >= version and before.started > started:
        return  # a run that started later has ended already, and knew more
    if before and before.version > version and run.store.signature(run.layout.log_entry(before.version)):
        return  # another run published since
    # A run that started later may have ended earlier; what it confirmed stands. But a moment that has not come is a
    # clock that was wrong.
    if before is not None and before.started <= run.clock():
        started = max(started, before.started)
    unfinished = run.scratch / run.layout.last_run.name
    step("write the note of the run")
    held_since = {file: _held_since(before, file, run.started) for file, _ in held_back}
    note = LastRun(started, version, held_back, findings, confirmed, quarantined, currency, outcome, held_since)
    unfinished.write_text(note.as_json(), encoding="utf-8")
    run.store.write(unfinished, run.layout.last_run)


def _held_since(before: LastRun | None, file: str, started: datetime) -> datetime:
    """Since when a file is held back that the run held back which began at `started`."""
    if before is None or not any(held == file for held, _ in before.held_back):
        return started
    return min(before.held_since.get(file, before.started), started)
