"""The newest run's note: that it published or confirmed everything, but for the files it held back.

A run that finds nothing new publishes nothing. Only this note says that it looked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from pipeline.contract.store import Store

LATE = timedelta(hours=26)  # since the newest run began: a day, and what a run takes


@dataclass(frozen=True)
class LastRun:
    """What the note says.

    started: start of the newest run, UTC. version: the one it published or confirmed. held_back: the files it could
    not take, reasons by file and signature. findings: the days of which something is held back. confirmed: by
    file and signature, the content that the version's ledger says the file has, although it knows another signature:
    the file was touched and holds it still, or was emptied, which takes nothing back. quarantined: lines it
    quarantined, of the files it took in. currency: what all costs of the version are in; None where that was not
    written down yet.
    """

    started: datetime
    version: int
    held_back: Mapping[tuple[str, str], str]
    findings: frozenset[date]
    confirmed: Mapping[tuple[str, str], str] = field(default_factory=dict)
    quarantined: int = 0
    currency: str | None = None

    def as_json(self) -> str:
        """The note as it is written."""
        note = {
            "started": self.started.isoformat(),
            "version": self.version,
            "held_back": [
                {"file": file, "signature": signature, "reason": reason}
                for (file, signature), reason in self.held_back.items()
            ],
            "findings": [str(day) for day in sorted(self.findings)],
            "confirmed": [
                {"file": file, "signature": signature, "content": content}
                for (file, signature), content in self.confirmed.items()
            ],
            "quarantined": self.quarantined,
            "currency": self.currency,
        }
        return json.dumps(note, indent=2) + "\n"


def read_last_run(store: Store) -> LastRun | None:
    """The note; None where there is none, or none that can be read. Raises StoreError."""
    try:
        with store.open(store.layout.last_run) as file:
            note = json.load(file)
        return LastRun(
            started=instant(note["started"]),
            version=int(note["version"]),
            held_back={(held["file"], held["signature"]): held["reason"] for held in note["held_back"]},
            findings=frozenset(date.fromisoformat(day) for day in note["findings"]),
            confirmed={(one["file"], one["signature"]): one["content"] for one in note.get("confirmed", ())},
            quarantined=int(note.get("quarantined", 0)),
            currency=note.get("currency"),
        )
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def instant(text: str) -> datetime:
    """An instant as a run states it, UTC. Raises ValueError, OverflowError or TypeError for what is none."""
    stated = datetime.fromisoformat(text)
    if stated.tzinfo is None:
        raise ValueError(f"{text} has no offset")
    return stated.astimezone(UTC)
