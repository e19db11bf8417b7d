"""How a run ended, as its note has it: for whoever looks later, and for the figures that a server shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date, datetime

from pipeline.contract.last_run import LATE, LastRun, Outcome, ReportedFinding
from pipeline.contract.layout import month_name
from pipeline.contract.wording import count_of
from pipeline.ledger import DayEntry, FileEntry
from pipeline.report import Report

MOST_REPORTED = 100  # findings in a note


def outcome_of(
    report: Report,
    files: Mapping[str, FileEntry],
    days: Mapping[date, DayEntry],
    started: datetime,
    before: LastRun | None,
) -> Outcome:
    """How the run ended that began at `started`.

    Args:
        report: what the run did.
        files: the ledger of files of its version.
        days: the ledger of days of its version.
        started: start of the run, UTC.
        before: the note of the run before it, whose findings stay for a day: whoever looks once a day sees them.
    """
    reported = list(_reported(report, started))
    known = {(each.kind, each.what) for each in reported}
    earlier = before.outcome.reported if before and before.outcome else ()
    reported += [each for each in earlier if started - each.started <= LATE and (each.kind, each.what) not in known]
    return Outcome(
        exit_code=3 if report.has_findings else 0,
        counts={
            "held_back_files": len(report.held_back),
            "ignored_logs": len(report.ignored),
            "lowered_days": len({each.what.partition(":")[0] for each in reported if each.kind == "LOWERED"}),
            "conflicting_copies": sum(day.conflicting for day in days.values()),
            "disagreeing_copies": sum(day.disagreeing for day in days.values()),
            "unpriced_requests": sum(day.unpriced for day in days.values()),
        },
        quarantined_for=_quarantined_for(files),
        reported=tuple(reported[:MOST_REPORTED]),
    )


def _reported(report: Report, started: datetime) -> Iterator[ReportedFinding]:
    """The findings of this run that neither the ledger nor raw/ tells of."""
    for lowered in report.lowered:
        yield ReportedFinding("LOWERED", f"{lowered.day}: {lowered.what}", lowered.what_to_do, started)
    if report.lost_days:
        yield ReportedFinding(
            "LOST",
            f"{report.lost or 'what was published is gone'}; something of"
            f" {count_of(len(report.lost_days), 'day')} from {report.lost_days[0]} on counts no more",
            "put the raw files back into raw/, or rollups/ as it was, then keytally rollup",
            started,
        )
    for month in report.records_lost:
        yield ReportedFinding(
            "LOST", f"what was restated of {month_name(month)} before now: its file was damaged", "nothing", started
        )


def _quarantined_for(files: Mapping[str, FileEntry]) -> dict[str, int]:
    """Lines in quarantine by reason; a content that several files have counts once."""
    counts: Counter[str] = Counter()
    for entry in files.values():
        if entry.same_as is None:
            for tally in entry.take_in.tally:
                if tally.kind == "quarantined":
                    counts[tally.reason] += tally.lines
    return dict(sorted(counts.items()))
