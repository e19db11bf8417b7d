"""What a page about a run says: a table of its days, its findings, and a report in Markdown that ends in what to do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, NamedTuple

import duckdb

from pipeline.contract.data_root import NoDataRoot
from pipeline.contract.layout import month_name
from pipeline.contract.settings import SettingsError
from pipeline.contract.store import StoreError
from pipeline.contract.wording import count_of, in_a_line
from pipeline.disagreements import WHAT_TO_DO as DISAGREEMENT_ADVICE
from pipeline.errors import CheckFailed, KeytallyError
from pipeline.reconcile import Reconciliation
from pipeline.report import Report

MOST_LISTED = 20  # files, findings or days that the report names one by one
LONGEST_CELL = 60  # characters: Prefect folds no cell of a table, and a laptop shows some 95 of a row

ABOUT_DAYS = (
    "One row for each day rolled up. **quarantined**: rejected lines of the files that have requests on the day; such a"
    " line has no day of its own, so a file of several days is said on each of them, and this column has no sum."
    " **seconds**: of the step that rolled the day up; in brackets how many days it rolled up together."
)

ABOUT_FINDINGS = "What somebody should look at. `report` has each in full, and what to do about it."


def days_table(report: Report) -> list[dict[str, Any]]:
    """A row for each day: its lines, the rejected lines of its files, and the seconds of its step."""
    rows = []
    for row, entry in zip(report.as_json()["days"], report.days, strict=True):
        pace = report.paces.get(entry.day)
        shared = f" ({pace.days})" if pace and pace.days > 1 else ""
        seconds = f"{pace.seconds:.1f}{shared}" if pace else "–"
        rows.append({**row, "quarantined": report.quarantined_on.get(entry.day, 0), "seconds": seconds})
    return rows


class Finding(NamedTuple):
    """What somebody should look at. kind: in few words what is found."""

    file: str
    kind: str
    finding: str
    what_to_do: str


def findings_table(report: Report) -> list[dict[str, str]]:
    """A row for each finding, with no more than what tells it from the others."""
    return [{"file": _end_of(each.file), "finding": each.kind} for each in findings_of(report)]


def _end_of(file: str) -> str:
    return file if len(file) <= LONGEST_CELL else f"…{file[1 - LONGEST_CELL :]}"


def findings_of(report: Report) -> list[Finding]:
    """What somebody should look at, each with what to do. None exactly when the report has none."""
    held_back = [
        Finding(
            held.file,
            f"held back: {held.reason.partition(':')[0]}"[:LONGEST_CELL],
            f"held back: {held.reason}",
            _mending(held.reason),
        )
        for held in report.held_back
    ]
    lowered = [
        Finding(
            next(iter(lowered.files), str(lowered.day)),
            f"{lowered.day}: {lowered.requests_before:,} before, {lowered.requests_after:,} now",
            f"a file by which {lowered.day} lost requests: {lowered.what}",
            lowered.what_to_do,
        )
        for lowered in report.lowered
    ]
    ignored = [
        Finding(
            log.file,
            "ignored, and looks like a log",
            f"ignored, and looks like a log: {log.reason}",
            log.what_to_do,
        )
        for log in report.ignored
    ]
    odd = [Finding(log.file, log.what[:LONGEST_CELL], log.what, log.what_to_do) for log in report.odd]
    disagreeing = [
        Finding(
            str(day.day),
            f"copies disagree: {day.lines:,}",
            f"a day on which {day.what}",
            DISAGREEMENT_ADVICE,
        )
        for day in report.disagreeing
    ]
    lost = [
        Finding(
            f"restatements of {month_name(month)}",
            "damaged",
            "damaged: what they recorded before now is lost",
            "nothing; or see what a backup of rollups/ has of them",
        )
        for month in report.records_lost
    ]
    gone = [
        Finding(
            f"raw files of {day}",
            "gone",
            "gone, and so is the version that counted them",
            "put them back into raw/, or rollups/ as it was, and run again",
        )
        for day in report.lost_days
    ]
    unpriced = [
        Finding(
            str(day.day),
            f"unpriced: {count_of(day.requests, 'request')}",
            f"unpriced in part: of {count_of(day.requests, 'request')} no cost is known; missing:"
            f" {', '.join(day.missing[:MOST_LISTED]) or 'too much to list'}",
            "add what is missing to prices.csv or fx.csv in the data root; the next run prices them",
        )
        for day in report.unpriced
        if day.requests > day.without_tokens
    ]
    rolled_up = {entry.day for entry in report.days}
    without_tokens = [
        Finding(
            str(day.day),
            f"no token counts: {count_of(day.without_tokens, 'request')}",
            f"unpriced in part: {count_of(day.without_tokens, 'request')} without token counts, which no price book can"
            " price",
            "have the producer log the usage of streams (OpenAI: stream_options.include_usage)",
        )
        for day in report.unpriced
        if day.without_tokens and day.day in rolled_up
    ]
    return held_back + lowered + ignored + odd + disagreeing + lost + gone + unpriced + without_tokens


def _mending(reason: str) -> str:
    if reason.startswith("damaged"):
        return "put the raw file back into raw/, then 'keytally backfill' over its days"
    if reason.startswith("changing"):
        return "nothing, or write it under a name that begins with '_' and rename it when it is done"
    return "deliver it again under the same name, whole; the next run takes it in"


def report_of(report: Report) -> str:
    """What a run did, in Markdown."""
    taken = [entry for entry in report.ingested if not entry.same_as]
    again = len(report.ingested) - len(taken)
    lines = sum(entry.take_in.lines for entry in taken)
    accepted = sum(entry.counted_lines for entry in taken)
    skipped = sum(entry.take_in.skipped for entry in taken)
    quarantined = [entry for entry in taken if entry.take_in.quarantined]
    findings = findings_of(report)
    published = (
        f"Version {report.version} is published."
        if report.published
        else f"Nothing new: version {report.version} stands."
    )
    sections = [
        f"## {published}",
        _bullets(
            [
                f"**Taken in:** {count_of(len(taken), 'file')}, {count_of(lines, 'line')}: {accepted:,} accepted,"
                f" {report.quarantined:,} quarantined"
                + (f", {skipped:,} skipped." if skipped else ".")
                + (f" {count_of(again, 'more file')} of contents that count already." if again else ""),
                f"**Rolled up:** {_days([entry.day for entry in report.days])}"
                + (f", and {', '.join(map(month_name, report.months))}" if report.months else ""),
                f"**Findings:** {len(findings) or 'none'}",
                f"**Took:** {report.seconds:,.1f} seconds",
            ]
        ),
        *([f"**{_plain(report.lost)}**"] if report.lost else []),
        _section("Findings", (f"{_code(each.file)} is {_plain(each.finding)}" for each in findings)),
        _section(
            "Quarantined lines",
            (f"{_code(entry.file)}: {count_of(entry.take_in.quarantined, 'line')}" for entry in quarantined),
        ),
        _section("What to do next", _next_steps(findings, bool(quarantined))),
    ]
    return "\n\n".join(filter(None, sections))


def _next_steps(findings: Sequence[Finding], has_quarantined: bool) -> list[str]:
    steps = [f"{_code(each.file)}: {_plain(each.what_to_do)}." for each in findings]
    if has_quarantined:
        steps.append(
            "`keytally quarantine` shows the rejected lines and why. Correct the file in place: the next run replaces"
            " what it contributed."
        )
    return steps or ["Nothing."]


def _days(days: Sequence[date]) -> str:
    if not days:
        return "no days"
    first, last = min(days), max(days)
    return f"{first}" if first == last else f"{count_of(len(days), 'day')} from {first} to {last}"


def recount_of(recounted: Reconciliation, day: date) -> str:
    """How a recounted day compares, in Markdown."""
    again = f"`keytally reconcile --from {day} --to {day}`"
    if recounted.differences:
        found = f"{count_of(len(recounted.differences), 'number')} not as in the raw logs"
        steps = [
            f"`keytally backfill --from {day} --to {day}`, then {again}.",
            "What differs still is a fault in keytally: keep the raw files and report it.",
        ]
    elif recounted.unverifiable:
        found = "not compared: something it was made from is gone from raw/ or was changed there"
        steps = [f"Put back what the table `unverifiable` names, then {again}."]
    else:
        found, steps = "equals its raw logs", ["Nothing."]
    if recounted.waiting:
        steps.append(
            f"{count_of(len(recounted.waiting), 'raw file')} in raw/ not counted yet: the next run sees to it."
        )
    return "\n\n".join([f"## {day} {found}", f"Version {recounted.version}.", _section("What to do next", steps)])


# A failure


def what_failed(error: Exception) -> str:
    """The sentence of a failure, which ends in what to do."""
    if isinstance(error, (KeytallyError, SettingsError, StoreError)):
        return f"{error}. {_remedy(error)}"
    text = in_a_line(str(error)) if isinstance(error, OSError) else str(error).strip()
    first_line = text.splitlines()[0] if text else "no more is known"
    return f"{type(error).__name__}: {first_line}. {_remedy(error)}"


def failure_report(error: Exception, run_again: str) -> str:
    """A failed run in Markdown. run_again: the command that starts such a run."""
    remedy = _remedy(error)
    sentence = what_failed(error).removesuffix(remedy).strip()
    steps = [
        "Do what this says." if remedy == AS_IT_SAYS else remedy,
        f"Run it again: `{run_again}`, or wait for the next night, which makes up for this one.",
    ]
    return "\n\n".join(
        [
            "## The run failed",
            f"{_code(sentence)}",
            "Readers see a whole version, as always: nothing half-done is visible. What the run had finished is kept.",
            _section("What to do next", steps),
        ]
    )


AS_IT_SAYS = "Then start the run again."  # behind a sentence that says itself what to do first
REMEDIES: list[tuple[tuple[type[Exception], ...], str]] = [  # the first that fits
    ((SettingsError,), "Set it right where the flows are served, and start 'python flows.py' again."),
    (
        (CheckFailed,),
        "Start the run again; if it says the same, keep the raw files and report it: it is a fault in keytally.",
    ),
    ((KeytallyError, NoDataRoot), AS_IT_SAYS),
    ((StoreError,), "See to the store or the way to it, then start the run again."),
    (
        (duckdb.OutOfMemoryException,),
        "Raise KEYTALLY_MEMORY_LIMIT, or make room in the data root, and start the run again.",
    ),
    ((OSError, duckdb.IOException), "See to the disk (room, rights, what is in the way), then start the run again."),
    (
        (Exception,),
        "Start the run again; if it says the same, report it with the run's log: it is a fault in keytally.",
    ),
]


def _remedy(error: Exception) -> str:
    return next(remedy for kinds, remedy in REMEDIES if isinstance(error, kinds))


# Markdown


def _section(title: str, lines: Iterable[str]) -> str:
    listed = list(itertools.islice(it := iter(lines), MOST_LISTED))
    more = sum(1 for _ in it)
    if not listed:
        return ""
    return f"### {title}\n\n{_bullets([*listed, *([f'and {more:,} more'] if more else [])])}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _code(text: str) -> str:
    """Text that whoever delivers files has chosen, so that nothing in it is taken for Markdown or HTML."""
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


def _plain(text: str) -> str:
    """A sentence of ours, in which something of others may be quoted."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
