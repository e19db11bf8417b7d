"""Traffic without prices: native records that say what another format would have left out, and a data root of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import artifacts
from pipeline.contract.tables import EVENT
from pipeline.intake import EventFile, TakeIn, take_in
from pipeline.raw import RawFile
from pipeline.report import Report
from pipeline.run import Run, start_run
from pipeline.update import PLAIN_STEPS, backfill, roll_up
from tests.conftest import Place, Record, request

HEADER = (
    "model,valid_from,input_per_million,output_per_million,cached_input_per_million,per_request,"
    "tokens_per_neuron,tokens_per_synapse,cache_write_per_million,currency"
)


def priced(number: int, model: str | None = "gpt", at: str = "2025-11-10T12:00:00Z", **fields: Any) -> Record:
    """A request that says its tokens alone. Of an own cost: cost and currency; cached, written: tokens read from
    and written into a cache; tokens=None: it has no token counts."""
    without = [name for name in ("cost", "synapses", "neurons") if name not in fields]
    without += [f"{name}={fields.pop(name)}" for name in ("currency", "cached", "written", "tokens") if name in fields]
    return request(number, model=model, timestamp=at, endpoint=" ".join(without), **{"cost": "0", **fields})


def as_mapped(event: Record) -> Record:
    """The event, without what its endpoint says that its format leaves out, and with what only other formats have."""
    for word in (event["endpoint"] or "").split():
        name, _, value = word.partition("=")
        if name in ("cached", "written"):
            event["cached_input_tokens" if name == "cached" else "cache_write_tokens"] = int(value)
        elif name == "tokens":
            event["input_tokens"] = event["output_tokens"] = None
        else:
            event[name] = value or None
    return event


def take_in_mapped(run: Run, raw_file: RawFile) -> TakeIn:
    """The step take_in, for such records."""
    taken = take_in(run, raw_file)
    return replace(taken, events=tuple(_mapped(run, taken.name, event) for event in taken.events))


def _mapped(run: Run, name: str, event: EventFile) -> EventFile:
    rows = pq.read_table(event.path_in(run.layout), partitioning=None).to_pylist()
    path = run.scratch / f"mapped-{event.day}.parquet"
    pq.write_table(pa.Table.from_pylist([as_mapped(row) for row in rows], schema=EVENT.arrow_schema), path)
    return replace(event, artifact=artifacts.keep(run.store, path, run.layout.events_of(event.day), name))


STEPS = PLAIN_STEPS._replace(take_in=take_in_mapped)


class PricedPlace(Place):
    """A data root whose records are `priced`."""

    def roll_up(self) -> Report:
        with start_run(self.settings, lambda: self.now) as run:
            return roll_up(run, STEPS)

    def backfill(self, first_day: str, last_day: str) -> Report:
        with start_run(self.settings, lambda: self.now) as run:
            return backfill(run, date.fromisoformat(first_day), date.fromisoformat(last_day), STEPS)

    def write_book(self, *rows: str) -> None:
        """Put a price book in place: rows as HEADER has them, with what is left out behind the output's price."""
        self.layout.prices.write_text(book_of(*rows), encoding="utf-8")

    def write_rates(self, *rows: str) -> None:
        self.layout.rates.write_text("\n".join(("day,from,to,rate", *rows)), encoding="utf-8")

    def costs(self) -> dict[tuple[str, str], tuple[int, str, int]]:
        """Requests, cost and unpriced requests by model and day."""
        return {
            (row.model, str(row.day)): (row.requests, f"{row.cost.normalize():f}", row.unpriced)
            for row in self.published("api_key_day").itertuples()
        }


def book_of(*rows: str) -> str:
    """A price book: rows of four to nine fields and the currency."""
    filled = []
    for row in rows:
        *fields, currency = row.split(",")
        filled.append(",".join([*fields, *[""] * (9 - len(fields)), currency]))
    return "\n".join((HEADER, *filled)) + "\n"
