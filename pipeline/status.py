"""Where things stand: what is published, through which moment, and what of raw/ is not in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.artifacts import sync
from pipeline.contents import needs_reading
from pipeline.contract.layout import Layout
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
            "published_at": _instant(published),
            "as_of": _instant(self.confirmed_at),
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
    confirmed_at, refused = read_last_run(layout)
    unread = [raw_file for raw_file in listing.files if needs_reading(raw_file, ledger.files, now)]
    held_back = [
        HeldBack(raw_file.file, refused[raw_file.file, raw_file.signature])
        for raw_file in unread
        if (raw_file.file, raw_file.signature) in refused
    ]
    held_files = {held.file for held in held_back}
    return Status(
        ledger=ledger,
        confirmed_at=confirmed_at,
        waiting=tuple(raw_file for raw_file in unread if raw_file.file not in held_files),
        held_back=(*listing.held_back, *held_back),
        ignored=listing.ignored,
    )


def write_last_run(run: Run, held_back: Mapping[tuple[str, str], str]) -> None:
    """Note that this run published or confirmed everything, but for these files.

    held_back: reasons by file and signature. A note for people: nothing that is counted depends on it.
    """
    note = {
        "started": run.started.isoformat(),
        "held_back": [
            {"file": file, "signature": signature, "reason": reason} for (file, signature), reason in held_back.items()
        ],
    }
    unfinished = run.scratch / run.layout.last_run.name
    step("write the note of the run")
    unfinished.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    sync(unfinished)
    step("rename the note of the run")
    unfinished.replace(run.layout.last_run)


def read_last_run(layout: Layout) -> tuple[datetime | None, dict[tuple[str, str], str]]:
    """When the newest run started, and the files it held back: reasons by file and signature."""
    try:
        note = json.loads(layout.last_run.read_text(encoding="utf-8"))
        refused = {(held["file"], held["signature"]): held["reason"] for held in note["held_back"]}
        return datetime.fromisoformat(note["started"]), refused
    except (OSError, ValueError, KeyError, TypeError):
        return None, {}


def _instant(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
