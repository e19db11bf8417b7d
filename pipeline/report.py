"""What a run did, for people and machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from pipeline.contract.layout import month_name
from pipeline.disagreements import Disagreement
from pipeline.errors import HeldBack
from pipeline.falls import LoweredDay, rows_of
from pipeline.ignored import IgnoredLog
from pipeline.ledger import DayEntry, FileEntry
from pipeline.odd_logs import OddLog
from pipeline.prices import COST_LIMIT, Prices


class Unpriced(NamedTuple):
    """A published day with requests of which no cost is known.

    missing_prices: which prices and rates are missing, in words. without_tokens: how many of the requests no price book
    can price, because their log carries no token count.
    """

    day: date
    requests: int
    missing_prices: list[str]
    without_tokens: int = 0

    @property
    def missing(self) -> list[str]:
        """Everything that is missing, in words: prices, rates and token counts."""
        if not self.without_tokens:
            return self.missing_prices
        have = "request has" if self.without_tokens == 1 else "requests have"
        return [*self.missing_prices, f"token counts: {self.without_tokens:,} {have} none"]

    def as_json(self) -> dict[str, Any]:
        return {"day": str(self.day), "requests": self.requests, "missing": self.missing}


class Pace(NamedTuple):
    """How long a step took that rolled up `days` days together. Which of them took how much of it nobody knows."""

    seconds: float
    days: int


@dataclass
class Report:
    """What a run did. `as_json` is the document a machine gets."""

    ingested: list[FileEntry] = field(default_factory=list)
    replaced: list[tuple[str, int, int]] = field(default_factory=list)  # file, accepted before, accepted after
    held_back: list[HeldBack] = field(default_factory=list)
    lowered: list[LoweredDay] = field(default_factory=list)  # published days that lost requests
    ignored: list[IgnoredLog] = field(default_factory=list)  # files that no format reads, and that look like logs
    odd: list[OddLog] = field(default_factory=list)  # files among `ingested` of which something may be wrong
    disagreeing: list[Disagreement] = field(default_factory=list)  # of `days`, those on which copies disagree
    days: list[DayEntry] = field(default_factory=list)
    quarantined_on: dict[date, int] = field(default_factory=dict)  # of the contents that count on each of `days`
    paces: dict[date, Pace] = field(default_factory=dict)  # of the step that rolled each of `days` up
    months: list[date] = field(default_factory=list)
    lost: str | None = None  # a version that was published and is there no more, in a sentence
    lost_days: list[date] = field(default_factory=list)  # of which something counts no more: its raw files are gone
    records_lost: list[date] = field(default_factory=list)  # months whose restatements so far were damaged
    unpriced: tuple[Unpriced, ...] = ()  # of all published days
    version: int = 0
    published: bool = False  # whether this run made that version
    seconds: float = 0.0

    @property
    def has_findings(self) -> bool:
        """Whether somebody should look: a file was held back, a published day lost requests, a file that is ignored
        looks like a log, something is odd about a log, copies disagree, what was published of days is not any more, a
        record of restatements is lost, or a request has no price.

        A request without token counts is a finding of the runs that roll its day up: no later run can price it.
        """
        lost = self.lowered or self.lost_days or self.records_lost
        rolled_up = {entry.day for entry in self.days}
        unpriced = any(day.requests > day.without_tokens or day.day in rolled_up for day in self.unpriced)
        return bool(self.held_back or self.ignored or self.odd or self.disagreeing or lost or unpriced)

    def as_json(self) -> dict[str, Any]:
        lowered, more_lowered = rows_of(self.lowered)
        return {
            "ingested": [_ingested(entry) for entry in self.ingested],
            "replaced": [
                {"file": file, "accepted_before": before, "accepted_after": after}
                for file, before, after in self.replaced
            ],
            "held_back": [{"file": held.file, "reason": held.reason} for held in self.held_back],
            "days": [
                {
                    "day": str(entry.day),
                    "accepted": entry.accepted,
                    "counted": entry.counted,
                    "duplicate": entry.duplicate,
                    "conflicting": entry.conflicting,
                    "session": entry.session,
                }
                for entry in self.days
            ],
            "months": [month_name(month) for month in self.months],
            **({"lowered": lowered} if lowered else {}),
            **({"lowered_more": more_lowered} if more_lowered else {}),
            **({"ignored": [log.as_json() for log in self.ignored]} if self.ignored else {}),
            **({"left_out": left_out} if (left_out := _left_out(self.ingested)) else {}),
            **({"odd": [log.as_json() for log in self.odd]} if self.odd else {}),
            **({"disagreeing": [day.as_json() for day in self.disagreeing]} if self.disagreeing else {}),
            **({"lost": self.lost} if self.lost else {}),
            **({"lost_days": [str(day) for day in self.lost_days]} if self.lost_days else {}),
            **({"unpriced": [day.as_json() for day in self.unpriced]} if self.unpriced else {}),
            "version": self.version,
            "seconds": round(self.seconds, 3),
            **({"records_lost": [month_name(month) for month in self.records_lost]} if self.records_lost else {}),
        }

    @property
    def quarantined(self) -> int:
        """Lines quarantined, of the files that were taken in; a content that several files have counts once."""
        return sum(entry.take_in.quarantined for entry in self.ingested if not entry.same_as)


def unpriced_days(days: Mapping[date, DayEntry], prices: Prices | None) -> tuple[Unpriced, ...]:
    """The days with requests of which no cost is known, in order. prices: which do not know them; None: not at hand."""
    return tuple(
        Unpriced(day, entry.unpriced, _missing_prices(entry, prices) if prices else [], entry.without_tokens)
        for day, entry in sorted(days.items())
        if entry.unpriced
    )


def _missing_prices(entry: DayEntry, prices: Prices) -> list[str]:
    """The prices and rates that a day lacks, in words; none if they are not listed, or the next run prices the day."""
    missing = prices.missing(entry.day, entry.pricing)
    if missing or entry.without_tokens or not entry.pricing or not entry.pricing.demand:
        return missing
    if not prices.is_current(entry.day, entry.pricing):
        return missing
    return [f"a price by which no request costs {COST_LIMIT // 10**12} or more"]  # all else is known


def _left_out(ingested: Iterable[FileEntry]) -> list[dict[str, Any]]:
    """How many lines of which file were skipped, merged or undecided, for each reason."""
    return [
        {"file": entry.file, **tally._asdict()}
        for entry in ingested
        if not entry.same_as
        for tally in entry.take_in.tally
        if tally.kind != "quarantined"
    ]


def _ingested(entry: FileEntry) -> dict[str, Any]:
    taken = entry.take_in
    lines = {"file": entry.file, "lines": taken.lines}
    if entry.same_as:
        return {**lines, "accepted": 0, "quarantined": 0, "same_as": entry.same_as}
    lines |= {"accepted": taken.accepted, "quarantined": taken.quarantined}
    if taken.skipped:
        lines["skipped"] = taken.skipped
    return lines
