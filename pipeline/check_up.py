"""What there is to look at, one line each, with the exit code of a run: for whoever is told by a machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pipeline.contract.last_run import LATE
from pipeline.contract.wording import age_of, ago_text, count_of, duration_text, instant_text
from pipeline.disagreements import WHAT_TO_DO as DISAGREEMENT_ADVICE
from pipeline.status import Status

FAILED, FINDINGS = 1, 3  # exit codes, as a run has them


class Matter(NamedTuple):
    """Something to look at. kind: a word, as `status` shows it. exit_code: 1 where nothing is published because of it,
    else 3."""

    kind: str
    what: str
    what_to_do: str
    exit_code: int

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


def exit_code_of(matters: Sequence[Matter]) -> int:
    """0 if there is nothing to look at; else 1 if a matter keeps runs from publishing, and 3 if none does."""
    return min((matter.exit_code for matter in matters), default=0)


def matters_of(found: Status) -> list[Matter]:
    """What there is to look at, the gravest first.

    What can be put right is listed until it is. What cannot (copies of a past day that disagree, say) is listed for 26
    hours after the run that found it.
    """
    return sorted([*_of_runs(found), *_of_raw(found), *_of_days(found)], key=lambda matter: matter.exit_code)


def _of_runs(found: Status) -> Iterator[Matter]:
    """What keeps runs from publishing, or did."""
    if found.failed:
        ago = ago_text(found.failed.failed, found.now)
        what = f"the newest run, {ago}: {found.failed.why}"
        yield Matter("FAILED", what, "do what it says, then keytally rollup", FAILED)
    if found.killed_at:
        ago = ago_text(found.killed_at, found.now)
        yield Matter("KILLED", f"a run, {ago}, before it was done", "see what killed it, then keytally rollup", FAILED)
    if found.lost:
        yield Matter("LOST", found.lost, "restore rollups/, or keytally rollup", FAILED)
    if found.bad_prices:
        yield Matter("BAD PRICES", found.bad_prices, "mend prices.csv or fx.csv, then keytally rollup", FAILED)
    age = age_of(found.confirmed_at, found.now)
    if age is not None and age > LATE:
        yield Matter(
            "LATE", f"no run has done its work for {duration_text(age)}", "see why; then keytally rollup", FAILED
        )
    elif found.confirmed_at is not None and age is None:
        yield Matter(
            "CLOCK",
            f"the clock says {instant_text(found.now)}, but the newest run began at"
            f" {instant_text(found.confirmed_at)}: the age of the data is unknown",
            "set the clocks right",
            FAILED,
        )
    elif found.confirmed_at is None and found.ledger.publication.files:
        yield Matter("AS OF", "unknown: last_run.json is gone or cannot be read", "keytally rollup", FINDINGS)
    for each in found.reported:
        yield Matter(each.kind, each.what, each.what_to_do, FINDINGS)


def _of_raw(found: Status) -> Iterator[Matter]:
    """What lies below raw/, or does not."""
    if found.raw_missing or not found.has_raw:
        code = FINDINGS if found.has_raw else FAILED
        yield Matter("NO LOGS", found.raw_missing or "raw/ is not there", "mount raw/, then keytally rollup", code)
    for held in found.held_back:
        yield Matter("HELD BACK", f"{held.file}: {held.reason}", "deliver it again; then keytally rollup", FINDINGS)
    for ignored in found.ignored_logs:
        yield Matter("IGNORED LOG", f"{ignored.file}: {ignored.reason}", ignored.what_to_do, FINDINGS)
    for odd in found.odd:
        entry = found.ledger.files[odd.file]
        if _is_recent(entry.take_in.taken_at, found.now):
            yield Matter("ODD LOG", f"{odd.file}: {odd.what}", odd.what_to_do, FINDINGS)


def _of_days(found: Status) -> Iterator[Matter]:
    """What there is about days."""
    for day in found.days:
        if day.finding and not day.finding.startswith("held back: "):  # the file itself is listed
            yield Matter("FINDING", f"{day.day}: {day.finding}", "do what it says", FINDINGS)
    for entry in found.disagreeing:
        if _is_recent(entry.as_of, found.now):
            what = f"{entry.day}: other billed values in {count_of(entry.disagreeing, 'line')}"
            yield Matter("DISAGREEING", what, DISAGREEMENT_ADVICE, FINDINGS)
    for unpriced in found.unpriced:
        priceable = unpriced.requests - unpriced.without_tokens
        if priceable or _is_recent(found.ledger.days[unpriced.day].as_of, found.now):
            what = f"{unpriced.day}: {count_of(unpriced.requests, 'request')} without a cost"
            missing = f"; missing: {', '.join(unpriced.missing[:3])}" if unpriced.missing else ""
            what_to_do = "add what is missing to prices.csv or fx.csv" if priceable else "have the producer log tokens"
            yield Matter("UNPRICED", what + missing, what_to_do, FINDINGS)


def _is_recent(moment: datetime, now: datetime) -> bool:
    """Return True unless the moment is known to be more than 26 hours ago."""
    return now - moment <= LATE
