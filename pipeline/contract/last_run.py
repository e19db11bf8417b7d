"""What runs note: the newest one, that it published or confirmed everything, but for the files it held back; and one
that failed, why.

A run that finds nothing new publishes nothing. Only its note says that it looked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pipeline.contract.store import Store, StoreError
from pipeline.contract.wording import instant_text

LATE = timedelta(hours=26)  # since the newest run began: a day, and what a run takes


@dataclass(frozen=True)
class ReportedFinding:
    """A finding that nothing but the run that reported it tells of.

    kind: the word that the run printed before it. what, what_to_do: sentences. started: start of that run, UTC.
    """

    kind: str
    what: str
    what_to_do: str
    started: datetime

    def as_json(self) -> dict[str, str]:
        return {**vars(self), "started": self.started.isoformat()}


@dataclass(frozen=True)
class Outcome:
    """How a run ended that did its work.

    exit_code: 0 or 3. counts: how much of each kind there is to look at, by a name in the plural. quarantined_for:
    lines in quarantine of the version, by reason. reported: its findings that nothing else tells of, and those of
    earlier runs of the same day.
    """

    exit_code: int
    counts: Mapping[str, int]
    quarantined_for: Mapping[str, int]
    reported: tuple[ReportedFinding, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "reported": [each.as_json() for each in self.reported]}


@dataclass(frozen=True)
class FailedRun:
    """A run that published nothing. started, failed: UTC. why: the sentence it ended with."""

    started: datetime
    failed: datetime
    why: str

    def as_json(self) -> dict[str, str | None]:
        return {"started": instant_text(self.started), "failed": instant_text(self.failed), "why": self.why}


@dataclass(frozen=True)
class LastRun:
    """What the note says.

    started: start of the newest run, UTC. version: the one it published or confirmed. held_back: the files it could
    not take, reasons by file and signature. held_since: by file, the start of the first of the runs in a row that could
    not take it. findings: the days of which lines wait for the next run. confirmed: by
    file and signature, the content that the version's ledger says the file has, although it knows another signature:
    the file was touched and holds it still, or was emptied, which takes nothing back. quarantined: lines it
    quarantined, of the files it took in. currency: what all costs of the version are in; None where that was not
    written down yet. outcome: how it ended; None where that was not written down yet.
    """

    started: datetime
    version: int
    held_back: Mapping[tuple[str, str], str]
    findings: frozenset[date]
    confirmed: Mapping[tuple[str, str], str] = field(default_factory=dict)
    quarantined: int = 0
    currency: str | None = None
    outcome: Outcome | None = None
    held_since: Mapping[str, datetime] = field(default_factory=dict)

    def as_json(self) -> str:
        """The note as it is written."""
        note = {
            "started": self.started.isoformat(),
            "version": self.version,
            "held_back": [
                {
                    "file": file,
                    "signature": signature,
                    "reason": reason,
                    "since": self.held_since.get(file, self.started).isoformat(),
                }
                for (file, signature), reason in self.held_back.items()
            ],
            "findings": [str(day) for day in sorted(self.findings)],
            "confirmed": [
                {"file": file, "signature": signature, "content": content}
                for (file, signature), content in self.confirmed.items()
            ],
            "quarantined": self.quarantined,
            "currency": self.currency,
            "outcome": self.outcome and self.outcome.as_json(),
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
            outcome=_outcome(note.get("outcome")),
            held_since={held["file"]: instant(held["since"]) for held in note["held_back"] if "since" in held},
        )
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def _outcome(noted: Mapping[str, Any] | None) -> Outcome | None:
    if noted is None:
        return None
    return Outcome(
        exit_code=int(noted["exit_code"]),
        counts={str(name): int(count) for name, count in noted["counts"].items()},
        quarantined_for={str(reason): int(lines) for reason, lines in noted["quarantined_for"].items()},
        reported=tuple(
            ReportedFinding(each["kind"], each["what"], each["what_to_do"], instant(each["started"]))
            for each in noted["reported"]
        ),
    )


def read_failure(store: Store) -> FailedRun | None:
    """The newest failure noted; None where there is none, or none that can be read or may be."""
    try:
        with store.open(store.layout.failed_run) as file:
            note = json.load(file)
        return FailedRun(instant(note["started"]), instant(note["failed"]), str(note["why"]))
    except (StoreError, OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def instant(text: str) -> datetime:
    """An instant as a run states it, UTC. Raises ValueError, OverflowError or TypeError for what is none."""
    stated = datetime.fromisoformat(text)
    if stated.tzinfo is None:
        raise ValueError(f"{text} has no offset")
    return stated.astimezone(UTC)
