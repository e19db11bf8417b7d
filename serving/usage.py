"""Usage: what was used, counted exactly, and its sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Literal, NamedTuple

from pipeline.contract.layout import days_between, last_day_of

Measure = Literal["requests", "cost", "synapses", "neurons"]
MEASURES: tuple[Measure, ...] = ("requests", "cost", "synapses", "neurons")
UNPRICED = "unpriced"  # the column with how many requests have no known cost


class Usage(NamedTuple):
    """What was used on one UTC day, by all API keys of an organization or by one of them. Amounts are exact."""

    day: date
    requests: int
    cost: Decimal
    synapses: Decimal
    neurons: Decimal


class UsageOfMonth(NamedTuple):
    """The days of an organization's month, oldest first, and how many of its requests have no known cost."""

    days: Sequence[Usage] = ()
    unpriced: int = 0


def listed(days: Iterable[Usage]) -> list[Usage]:
    """The days with requests, newest first."""
    return sorted((usage for usage in days if usage.requests), reverse=True)


def every_day(month: date, days: Iterable[Usage]) -> list[Usage]:
    """Every day of `month` (its first day), newest first; one that is not among `days` has zeros."""
    used = {usage.day: usage for usage in days}
    zero = Decimal(0)
    return [
        used.get(day) or Usage(day, 0, zero, zero, zero)
        for day in reversed(list(days_between(month, last_day_of(month))))
    ]


class Total(NamedTuple):
    """What was used in all. Amounts are exact."""

    requests: int
    cost: Decimal
    synapses: Decimal
    neurons: Decimal

    @property
    def average_cost(self) -> Decimal:
        """Cost of a request, rounded half-even to 12 decimals; 0 when there was none."""
        with localcontext(prec=100):
            return (self.cost / (self.requests or 1)).quantize(Decimal("1e-12"), ROUND_HALF_EVEN)


def total_of(days: Iterable[Usage]) -> Total:
    """The sum of the days."""
    used = list(days)
    with localcontext(prec=100):  # the default of 28 digits would round a sum of 38
        return Total(
            sum(usage.requests for usage in used),
            sum((usage.cost for usage in used), Decimal(0)),
            sum((usage.synapses for usage in used), Decimal(0)),
            sum((usage.neurons for usage in used), Decimal(0)),
        )
