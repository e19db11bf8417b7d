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
    """

    ledger: Ledger
    confirmed_at: datetime | None
    waiting: tuple[RawFile, ...]
    held_back: tuple[HeldBack, ...]
    ignored: tuple[str, ...]

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
        }


def status_of(layout: Layout, now: datetime) -> Status:
    """How things stand at `now`. Opens no raw file."""
    ledger = read_ledger(layout)
    listing = list_raw(layout.raw)
    last_run = read_last_run(layout)
    refused = last_run.held_back if last_run else {}
    unread = [raw_file for raw_file in listing.files if needs_reading(raw_file, ledger.files, now)]
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
    )


def write_last_run(
    run: Run, version: int, held_back: Mapping[tuple[str, str], str], findings: frozenset[date], quarantined: int
) -> None:
    """Note that this run published or confirmed `version`, but for these files.

    held_back: reasons by file and signature. findings: days of which something is held back. quarantined: lines.
    """
    started = run.started
    before = read_last_run(run.layout)
    # A run that started later may have ended earlier; what it confirmed stands. But a moment that has not come is a
    # clock that was wrong.
    if before is not None and before.started <= run.clock():
        started = max(started, before.started)
    unfinished = run.scratch / run.layout.last_run.name
    step("write the note of the run")
    unfinished.write_text(LastRun(started, version, held_back, findings, quarantined).as_json(), encoding="utf-8")
    sync(unfinished)
    step("rename the note of the run")
    unfinished.replace(run.layout.last_run)
