"""Where things stand: what is published, through which moment, and what of raw/ is not in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from pipeline.artifacts import sync
from pipeline.contents import needs_reading
from pipeline.contract.last_run import LastRun, read_last_run
from pipeline.contract.layout import Layout
from pipeline.contract.wording import instant_text
from pipeline.errors import HeldBack
from pipeline.ledger import Ledger, read_ledger
from pipeline.raw import RawFile, list_raw
from pipeline.run import Run
from pipeline.seam import step


@dataclass(frozen=True)
class Status:
    """The ledger of what is published, and what a run would find in raw/.

    confirmed_at: start of the newest run that published or confirmed it; None before the first run.
    held_back: files the newest run could not take, unchanged since. waiting: all others that are new or changed.
    findings: days of which that run held something back, or that it could not roll up anew.
    lost: a sentence on what that run published or confirmed and is there no more.
    """

    ledger: Ledger
    confirmed_at: datetime | None
    waiting: tuple[RawFile, ...]
    held_back: tuple[HeldBack, ...]
    ignored: tuple[str, ...]
    findings: tuple[date, ...] = ()
    lost: str | None = None

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
            "files": len(self.ledger.files),
            "waiting": [{"file": raw_file.file, "bytes": raw_file.size} for raw_file in self.waiting],
            "held_back": [{"file": held.file, "reason": held.reason} for held in self.held_back],
            "ignored": list(self.ignored),
            "findings": [str(day) for day in self.findings],
        }


def status_of(layout: Layout, now: datetime) -> Status:
    """How things stand at `now`. Opens no raw file."""
    ledger = read_ledger(layout)
    newest = ledger.publication.version
    listing = list_raw(layout.raw)
    last_run = read_last_run(layout)
    refused = last_run.held_back if last_run else {}
    confirmed = last_run.confirmed if last_run else {}
    unread = [raw_file for raw_file in listing.files if needs_reading(raw_file, ledger.files, confirmed, now)]
    held_back = [
        HeldBack(raw_file.file, refused[raw_file.file, raw_file.signature])
        for raw_file in unread
        if (raw_file.file, raw_file.signature) in refused
    ]
    held_files = {held.file for held in held_back}
    return Status(
        ledger=ledger,
        confirmed_at=last_run.started if last_run else None,
        waiting=tuple(raw_file for raw_file in unread if raw_file.file not in held_files),
        held_back=(*listing.held_back, *held_back),
        ignored=listing.ignored,
        findings=tuple(sorted(last_run.findings)) if last_run else (),
        lost=lost_versions(newest, last_run) if last_run and last_run.version > newest else None,
    )


def lost_versions(newest: int, last_run: LastRun) -> str:
    """A sentence on versions that a run published and that are there no more. newest: the one that is."""
    there = f"the log ends at version {newest}" if newest else "the published table is gone"
    return f"version {last_run.version} was published, but {there}"


def write_last_run(
    run: Run,
    version: int,
    held_back: Mapping[tuple[str, str], str],
    findings: frozenset[date],
    confirmed: Mapping[tuple[str, str], str],
) -> None:
    """Note that this run published or confirmed `version`, but for these files.

    held_back: reasons by file and signature. findings: days of which something is held back. confirmed: see LastRun.
    """
    started = run.started
    before = read_last_run(run.layout)
    # A run that started later may have ended earlier; what it confirmed stands. But a moment that has not come is a
    # clock that was wrong.
    if before is not None and before.started <= run.clock():
        started = max(started, before.started)
    unfinished = run.scratch / run.layout.last_run.name
    step("write the note of the run")
    unfinished.write_text(LastRun(started, version, held_back, findings, confirmed).as_json(), encoding="utf-8")
    sync(unfinished)
    step("rename the note of the run")
    unfinished.replace(run.layout.last_run)
