"""The law of prices: whatever the book, the rates and the requests, each cost is the one a recount in fractions finds.

The recount knows the rules by their words: nothing of pipeline/prices.py is in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import rollup
from pipeline.contract.tables import EVENT
from pipeline.intake import EventFile
from pipeline.ledger import DayEntry
from pipeline.prices import prices_of
from pipeline.recount import Request
from pipeline.recount_prices import PriceList
from pipeline.rollup import DayInputs, roll_up_days
from pipeline.run import Run, start_run
from tests.conftest import Place, Record
from tests.pricing import HEADER

DAYS = (date(2025, 11, 10), date(2025, 11, 11))
# On the boundaries of validity and beside them.
MOMENTS = [
    datetime(2025, 11, 10, tzinfo=UTC),
    datetime(2025, 11, 10, 12, tzinfo=UTC),
    datetime(2025, 11, 10, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2025, 11, 11, tzinfo=UTC),
    datetime(2025, 11, 11, 6, 0, 0, 1, tzinfo=UTC),
]
AROUND = [moment + timedelta(microseconds=by) for moment in MOMENTS for by in (-1, 0, 1)]
AROUND = [moment for moment in AROUND if moment.date() in DAYS]
MODELS = [None, "", "gpt", "gpt-5", "gpt-5-mini", "llama"]
PATTERNS = ["*", "gpt", "gpt*", "gpt-5", "gpt-5*", "gpt-5-*", "g*", "llama", "llama*"]
CURRENCIES = ["CHF", "USD", "EUR"]

amounts = st.one_of(
    st.sampled_from(["0", "1", "2.5", "0.075", "999999.999999999999", "0.000000000001", "0.0000005", "000.50"]),
    st.decimals(0, 999_999, places=12).map(lambda amount: f"{amount:f}"),
)
rates = st.sampled_from(["1", "0.5", "0.88451", "0.333333333333", "123456.789012345678", "0.000000000001"])
factors = st.sampled_from(["", "", "10", "3", "0.7", "1000", "0.000001", "999999.999999"])
rows = st.tuples(
    st.sampled_from(PATTERNS),
    st.one_of(st.just(datetime(2024, 1, 1, tzinfo=UTC)), st.sampled_from(MOMENTS)),
    amounts,
    amounts,
    st.one_of(st.just(""), amounts),
    st.one_of(st.just(""), amounts),
    factors,
    factors,
    st.one_of(st.just(""), amounts),
    st.sampled_from(CURRENCIES),
)
books = st.lists(rows, max_size=8, unique_by=lambda row: row[:2])
tables_of_rates = st.dictionaries(st.tuples(st.sampled_from(DAYS), st.sampled_from(["USD", "EUR"])), rates)
tokens = st.one_of(st.integers(0, 10_000), st.sampled_from([1, 5, 500_000, 2**31, 2**63 - 1]))
requests = st.lists(
    st.fixed_dictionaries(
        {
            "timestamp": st.sampled_from(AROUND),
            "model": st.sampled_from(MODELS),
            "api_key_id": st.sampled_from(["key_1", "key_2", None]),
            "cost": st.one_of(st.none(), st.none(), st.sampled_from(["0", "0.25", "999999.999999999999"])),
            "currency": st.one_of(st.none(), st.sampled_from(CURRENCIES)),
            "synapses": st.one_of(st.none(), st.just("1.5")),
            "neurons": st.one_of(st.none(), st.just("0.000001")),
            "input_tokens": tokens,
            "output_tokens": tokens,
            "cached_input_tokens": st.one_of(st.none(), tokens),
            "cache_write_tokens": st.one_of(st.none(), tokens),
            "has_tokens": st.sampled_from([True, True, True, False]),
            "status": st.sampled_from([None, 200, 399, 400, 500]),
            "copies": st.sampled_from([1, 1, 2]),
        }
    ),
    min_size=1,
    max_size=12,
)


def half_even(number: Fraction, decimals: int) -> Fraction:
    """As Python rounds a fraction: to the even one of two that are as near."""
    return Fraction(round(number * 10**decimals), 10**decimals)


def in_force(book: list[Any], model: str | None, moment: datetime) -> Any:
    """The row of the book for a model at a moment: by its name, else by its longest beginning, the latest of them."""
    begun = [row for row in book if row[1] <= moment]
    matching = [
        row
        for row in begun
        if row[0] == model
        or (row[0].endswith("*") and (model or "").startswith(row[0][:-1]) and (model or row[0] == "*"))
        or (model == "" and row[0] == "*")
    ]
    return max(matching, key=lambda row: (row[0] == model, len(row[0]), row[1]), default=None)


def recount(book: list[Any], rates: dict[Any, str], events: list[Record]) -> dict[Any, list[Fraction]]:
    """requests, cost, synapses, neurons and unpriced requests by day, key and model."""
    sums: dict[Any, list[Fraction]] = defaultdict(lambda: [Fraction(0)] * 7)
    for event in events:
        if event["api_key_id"] is None:
            continue
        day = event["timestamp"].date()
        row = sums[day, event["api_key_id"], event["model"]]
        currency, cost = event["currency"] or "CHF", event["cost"]
        if cost is None:
            cost = None
            if price := in_force(book, event["model"], event["timestamp"]):
                currency = price[9]
                cached, written = event["cached_input_tokens"] or 0, event["cache_write_tokens"] or 0
                cost = Fraction(price[2]) * ((event["input_tokens"] or 0) - cached - written) / 10**6
                cost += Fraction(price[4] or price[2]) * cached / 10**6
                cost += Fraction(price[8] or price[2]) * written / 10**6
                cost += Fraction(price[3]) * (event["output_tokens"] or 0) / 10**6
                has_failed = event["status"] is not None and event["status"] >= 400
                cost += 0 if has_failed else Fraction(price[5] or 0)
                if event["input_tokens"] is None and event["model"] is not None and not has_failed:
                    cost = None
        rate = Fraction(1) if currency == "CHF" else Fraction(rates.get((day, currency), 0))
        if cost is not None and rate:
            cost = half_even(Fraction(cost) * rate, 12)
        if cost is None or not rate or (event["cost"] is None and cost >= 10**6):
            cost, row[4] = Fraction(0), row[4] + 1
        row[0], row[1] = row[0] + 1, row[1] + Fraction(cost)
        row[2] += Fraction(event["synapses"] or 0)
        row[3] += Fraction(event["neurons"] or 0)
        row[5] += event["output_tokens"] or 0 if event["synapses"] is None else 0
        row[6] += event["input_tokens"] or 0 if event["neurons"] is None else 0
    for (day, _, model), row in sums.items():
        start = datetime.combine(day, datetime.min.time(), UTC)
        moments = sorted({start, *(r[1] for r in book if start < r[1] < start + timedelta(days=1))})
        price = next((p for moment in moments if (p := in_force(book, model, moment))), ("",) * 10)
        row[2] += half_even(row[5] / Fraction(price[7] or 10), 6)
        row[3] += half_even(row[6] / Fraction(price[6] or 10), 6)
    return {key: row[:5] for key, row in sums.items()}


plain_amounts = st.sampled_from(["0", "1", "2.5", "0.075", "0.000001", "12"])
plain_books = st.lists(
    st.tuples(
        st.sampled_from(PATTERNS),
        st.one_of(st.just(datetime(2024, 1, 1, tzinfo=UTC)), st.sampled_from(MOMENTS)),
        *[plain_amounts] * 3,
        st.one_of(st.just(""), plain_amounts),
        factors,
        factors,
        st.one_of(st.just(""), plain_amounts),
        st.just("CHF"),
    ),
    max_size=8,
    unique_by=lambda row: row[:2],
)


def in_francs(drawn: list[Record]) -> list[Record]:
    small = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens")
    return [{**one, "currency": None, **{name: one[name] and one[name] % 10_000 for name in small}} for one in drawn]


@pytest.mark.parametrize(
    ("laws", "statement"),
    [
        (st.tuples(books, tables_of_rates, requests), "roll_up_rounded_days"),
        (st.tuples(plain_books, st.just({}), requests.map(in_francs)), "roll_up_priced_days"),
    ],
    ids=["rounded", "without rounding"],
)
def test_every_cost_is_the_exact_one_rounded_once(
    place: Place, monkeypatch: pytest.MonkeyPatch, laws: Any, statement: str
) -> None:
    taken: set[str] = set()
    honest = rollup.look_at

    def watched(run: Run, events: Sequence[Path]) -> rollup.Found:
        found = honest(run, events)
        taken.add(found.statement)
        return found

    monkeypatch.setattr(rollup, "look_at", watched)
    with start_run(replace(place.settings, threads=1), lambda: place.now) as run:

        @given(laws)
        @settings(max_examples=25, deadline=None)
        def law(drawn: Any) -> None:
            book, rates, said = drawn
            events = [event_of(number, request) for number, request in enumerate(said)]
            prices = prices_of("CHF", book_text(book), rates_text(rates))
            entries = rolled_up(replace(run, prices=prices), [one for one in events for _ in range(one["copies"])])
            found = [
                row
                for entry in entries
                for row in pq.read_table(entry.path_in(place.layout), partitioning=None).to_pylist()
            ]
            assert {
                (row["day"], row["api_key_id"], row["model"]): [Fraction(row[name]) for name in MEASURES]
                for row in found
            } == recount(book, rates, events)
            listed = PriceList(book_text(book).decode(), rates_text(rates).decode(), "CHF")
            assert second_look(listed, events) == {
                (row["day"], row["api_key_id"], row["model"]): [row["requests"], row["cost"], row["unpriced"]]
                for row in found
            }
            assert sum(entry.unpriced for entry in entries) == sum(row["unpriced"] for row in found)

        law()
    assert statement in taken


def second_look(listed: PriceList, events: list[Record]) -> dict[Any, list[Any]]:
    """requests, cost and unpriced requests by day, key and model, as reconcile finds them."""
    sums: dict[Any, list[Any]] = defaultdict(lambda: [0, Decimal(0), 0])
    for event in (event for event in events if event["api_key_id"] is not None):
        moment = (event["timestamp"] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        cost = None if event["cost"] is None else int(Decimal(event["cost"]).scaleb(12))
        fields = {name: event[name] for name in Request._fields if name in event}
        asked = Request(**{**fields, "day": moment // 86_400_000_000, "timestamp": moment, "cost": cost})
        found = listed.cost_of(asked)
        row = sums[event["timestamp"].date(), event["api_key_id"], event["model"]]
        with localcontext(prec=100):
            row[:] = [row[0] + 1, row[1] + Decimal(found or 0).scaleb(-12), row[2] + (found is None)]
    return dict(sums)


MEASURES = ("requests", "cost", "synapses", "neurons", "unpriced")


def event_of(number: int, drawn: Record) -> Record:
    event = {**dict.fromkeys(EVENT.arrow_schema.names), **drawn, "request_id": f"req_{number}"}
    event.update((name, Decimal(event[name])) for name in ("cost", "synapses", "neurons") if event[name])
    of_cache = ("cached_input_tokens", "cache_write_tokens")
    if not event.pop("has_tokens"):
        event.update(dict.fromkeys(("input_tokens", "output_tokens", *of_cache)))
    else:  # they are parts of the input
        left = event["input_tokens"]
        for name in of_cache:
            event[name] = event[name] and min(event[name], left)
            left -= event[name] or 0
    return {**event, "organization_id": "org_a", "currency": event["currency"] if event["cost"] is not None else None}


def book_text(book: Any) -> bytes:
    return "\n".join([HEADER, *(",".join([row[0], row[1].isoformat(), *row[2:]]) for row in book)]).encode()


def rates_text(rates: Any) -> bytes:
    rows = (f"{day},{currency},CHF,{rate}" for (day, currency), rate in rates.items())
    return "\n".join(["day,from,to,rate", *rows]).encode()


def rolled_up(run: Run, events: list[Record]) -> list[DayEntry]:
    days = []
    for day in DAYS:
        of_day = [event for event in events if event["timestamp"].date() == day]
        event = EventFile(day, len(of_day), "events.parquet")
        path = event.path_in(run.layout)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(of_day, schema=EVENT.arrow_schema), path)
        days.append(DayInputs(day, "f" * 32, [event], len(of_day)))
    return roll_up_days(run, days)
