"""Repricing: what another price book would make of days that are published, and putting it in force."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import verify
from pipeline.buckets import is_large, use_in_buckets
from pipeline.contents import events_by_day
from pipeline.contract.tables import API_KEY_DAY
from pipeline.errors import BadPrices, KeytallyError
from pipeline.fan_out import FanOut, fan_out
from pipeline.ledger import Ledger, read_ledger
from pipeline.prices import Prices, read_prices
from pipeline.report import Report
from pipeline.rollup import DayInputs, grouped, use_of
from pipeline.run import Run
from pipeline.update import PLAIN_STEPS, refuse_what_would_reprice_all, roll_up


class Change(NamedTuple):
    """What one API key's requests to one model cost and use over the days, before and after. Amounts are exact."""

    organization_id: str
    api_key_id: str
    model: str | None
    requests: int
    unpriced_before: int
    unpriced_after: int
    cost_before: Decimal
    cost_after: Decimal
    synapses_before: Decimal
    synapses_after: Decimal
    neurons_before: Decimal
    neurons_after: Decimal

    def as_json(self) -> dict[str, Any]:
        """Plain values; amounts as strings, which keep every digit."""
        return {name: f"{value:f}" if isinstance(value, Decimal) else value for name, value in self._asdict().items()}


@dataclass(frozen=True)
class Repricing:
    """What a book changes of what is published.

    days: those of the range that it touches. beyond: those outside of it. changes: over the days of the range, in order
    of organization, key and model.
    """

    days: Sequence[date]
    beyond: Sequence[date]
    changes: Sequence[Change]

    def as_json(self) -> dict[str, Any]:
        return {
            "days": [str(day) for day in self.days],
            "beyond": [str(day) for day in self.beyond],
            "changes": [change.as_json() for change in self.changes],
        }


def reprice(run: Run, prices: Prices, first_day: date, last_day: date, fan_out: FanOut = fan_out) -> Repricing:
    """What `prices` would change of the published days from `first_day` to `last_day` (both included).

    Nothing is written but what lies in scratch and, while a large day is rolled up, in buckets/; and below books/ these
    prices, where other machines do its steps. Raises KeytallyError where a run would refuse these prices, and
    ArtifactDamaged when a file that it takes is not what was written.
    """
    ledger = read_ledger(run.store)
    refuse_what_would_reprice_all(ledger, prices)
    touched = sorted(day for day, entry in ledger.days.items() if not prices.is_current(day, entry.pricing))
    days = [day for day in touched if first_day <= day <= last_day]
    inputs = _inputs(run, ledger, days)
    run.watch.begin("rolling up days", len(days))
    rolled: list[Path] = []
    repriced = replace(run, prices=prices)
    for group in grouped(day for day in inputs if not is_large(day)):
        rolled += (of_day.usage.path for of_day in use_of(repriced, group))
        run.watch.advance(len(group))
    for day in filter(is_large, inputs):
        rolled.append(use_in_buckets(repriced, day, fan_out).usage.path)
        run.watch.advance(1)
    published = [ledger.days[day].path_in(run.layout) for day in days]
    for path in published:
        verify(run.store, path)
    run.engine.name_files("published", published, API_KEY_DAY)
    run.engine.name_files("rolled", rolled, API_KEY_DAY)
    changes = [Change(*row) for row in run.engine.query("repriced")] if days else []
    return Repricing(days, [day for day in touched if day not in set(days)], changes)


def _inputs(run: Run, ledger: Ledger, days: Sequence[date]) -> list[DayInputs]:
    """What the days are made from, each file of it checked."""
    events_of = events_by_day(ledger.files)
    inputs = []
    for day in days:
        events = [event for _, event in sorted(events_of.get(day, {}).items())]
        for event in events:
            verify(run.store, event.path_in(run.layout))
        inputs.append(DayInputs(day, ledger.days[day].fingerprint, events, sum(event.accepted for event in events)))
    return inputs


def put_in_force(run: Run, repricing: Repricing, book: bytes, fan_out: FanOut = fan_out) -> Report:
    """Put a book in the place of the data root's, which stays below books/, and roll up what it touches, with what
    else is new in raw/.

    A crash leaves the one book or the other, and the next run rolls up what is to be. Raises KeytallyError when the
    book touches days that were not looked at; then nothing is changed.
    """
    if repricing.beyond:
        first, last = repricing.beyond[0], repricing.beyond[-1]
        raise KeytallyError(
            f"the book also changes days outside of the range, from {first} to {last}; look at these too, with a range"
            " that has them, then apply it; nothing was changed"
        )
    with suppress(BadPrices):  # one that cannot be read priced nothing
        read_prices(run.store, run.settings.currency).keep(run.store, run.scratch)
    finished = run.scratch / run.layout.prices.name
    finished.write_bytes(book)
    run.store.write(finished, run.layout.prices)
    return roll_up(run, PLAIN_STEPS._replace(fan_out=fan_out))
