"""Prices by the book: which one is in force, which days a change touches, and what nobody knows a price of."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.store import FolderStore
from pipeline.engine import Engine
from pipeline.errors import KeytallyError
from pipeline.prices import Answer, Exchange, Largest, Prices, Tariff, read_kept, read_prices
from pipeline.publish import publish
from pipeline.run import Run, start_run
from pipeline.status import status_of
from pipeline.update import roll_up
from tests.conftest import request
from tests.pricing import STEPS, PricedPlace, priced


@pytest.fixture
def shop(tmp_path: Path) -> PricedPlace:
    """A data root of records without costs, at 2025-11-15T10:30:00Z."""
    return PricedPlace(tmp_path / "data")


def test_a_request_costs_what_its_tokens_cost_at_its_own_moment(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,2.5,10,1.25,0.01,CHF", "gpt,2025-11-10T12:00:00Z,5,20,CHF")
    shop.write_raw(
        "a.jsonl",
        priced(1, at="2025-11-10T11:59:59.999999Z", input_tokens=1000, output_tokens=100, cached=400),
        priced(2, at="2025-11-10T12:00:00Z", input_tokens=1000, output_tokens=100, cached=400),
        request(3, model="gpt", cost="7"),
    )
    report = shop.roll_up()
    assert not report.has_findings
    before = Decimal("0.0025") * 600 / 1000 + Decimal("0.00125") * 400 / 1000 + Decimal("0.001") + Decimal("0.01")
    after = Decimal("0.005") + Decimal("0.002")
    assert shop.costs() == {("gpt", "2025-11-10"): (3, f"{(before + after + 7).normalize():f}", 0)}


def test_a_request_that_nobody_knows_a_price_of_counts_and_is_priced_once_it_is_known(shop: PricedPlace) -> None:
    shop.write_raw("a.jsonl", priced(1, input_tokens=10), priced(2, api_key_id=None), request(3, model="gpt", cost="1"))
    report = shop.roll_up()
    assert report.has_findings
    assert [day.as_json() for day in report.unpriced] == [
        {"day": "2025-11-10", "requests": 1, "missing": ["a price of gpt"]}
    ]
    assert shop.costs() == {("gpt", "2025-11-10"): (2, "1", 1)}
    shop.write_book("gpt*,2025-01-01,1,1,CHF")
    report = shop.roll_up()
    assert not report.has_findings
    assert shop.costs() == {("gpt", "2025-11-10"): (2, "1.00001", 0)}
    assert not shop.roll_up().published


@pytest.mark.parametrize("price", ["1", "1.0000001"], ids=["summed", "rounded"])
def test_a_request_that_a_price_makes_too_dear_has_none_and_that_is_told(shop: PricedPlace, price: str) -> None:
    shop.write_book(f"gpt,2025-01-01,{price},1,CHF")
    shop.write_raw("a.jsonl", priced(1, input_tokens=10**12), priced(2, input_tokens=10**6))
    (day,) = shop.roll_up().unpriced
    assert (day.requests, day.missing) == (1, ["a price by which no request costs 1000000 or more"])
    assert shop.costs() == {("gpt", "2025-11-10"): (2, price, 1)}
    shop.write_book("gpt,2025-01-01,0.5,1,CHF")
    told = status_of(shop.store, shop.now, shop.settings).unpriced
    assert [day.missing for day in told] == [[]], "the next run prices it"
    assert not shop.roll_up().has_findings
    assert shop.costs() == {("gpt", "2025-11-10"): (2, "500000.5", 0)}


def test_a_request_that_names_no_model_has_the_price_of_a_star_alone(shop: PricedPlace) -> None:
    shop.write_raw("a.jsonl", priced(1, None, input_tokens=1_000_000))
    shop.write_book("g*,2025-01-01,9,9,CHF")
    report = shop.roll_up()
    assert [day.missing for day in report.unpriced] == [["a price of requests that name no model"]]
    shop.write_book("g*,2025-01-01,9,9,CHF", "*,2025-01-01,2,1,CHF")
    shop.roll_up()
    assert list(shop.costs().values()) == [(1, "2", 0)]


def test_a_change_of_the_book_rolls_up_exactly_the_days_it_touches(shop: PricedPlace) -> None:
    days = [f"2025-11-{day:02}" for day in range(1, 7)]
    for number, day in enumerate(days):
        model = "gpt" if number % 2 else "llama"
        shop.write_raw(f"{day}.jsonl", priced(number, model, f"{day}T10:00:00Z", input_tokens=1_000_000))
    shop.write_raw("native.jsonl", request(99, timestamp="2025-11-07T10:00:00Z", model="gpt"))
    shop.write_book("gpt,2025-01-01,1,1,CHF", "llama,2025-01-01,2,1,CHF")
    assert [str(day.day) for day in shop.roll_up().days] == [*days, "2025-11-07"]
    book = "gpt,2025-01-01,1,1,CHF", "gpt,2025-11-04,3,1,CHF", "llama,2025-01-01,2,1,CHF"
    shop.write_book(*book)
    assert [str(day.day) for day in shop.roll_up().days] == ["2025-11-04", "2025-11-06"]
    assert shop.costs()["gpt", "2025-11-04"] == (1, "3", 0)
    assert shop.costs()["gpt", "2025-11-02"] == (1, "1", 0)
    shop.write_book(*book, "gpt-5,2025-01-01,9,9,CHF", "*,2025-01-01,9,9,USD", "gpt,2025-11-05,3.0,1,CHF")
    assert not shop.roll_up().published, "none of it is for any of these requests"


def test_tokens_become_units_once_for_a_key_and_model_of_a_day(shop: PricedPlace) -> None:
    """By a factor of 3, seven tokens are 2.333333 neurons, and three times seven are 7."""
    shop.write_book("gpt,2025-01-01,1,1,,,3,,CHF")
    shop.write_raw("a.jsonl", *(priced(number, input_tokens=7, output_tokens=7) for number in range(3)))
    shop.write_raw("b.jsonl", *(priced(number + 3, "llama", input_tokens=7, output_tokens=7) for number in range(3)))
    shop.write_raw("c.jsonl", priced(9, "llama", input_tokens=7, output_tokens=7, neurons="0.5", synapses="0"))
    shop.roll_up()
    units = {row.model: (str(row.neurons), str(row.synapses)) for row in shop.published("api_key_day").itertuples()}
    assert units == {"gpt": ("7.000000", "2.100000"), "llama": ("2.600000", "2.100000")}
    (month,) = shop.published("organization_month").itertuples()
    assert (month.input_tokens, month.output_tokens, month.neurons) == (49, 49, Decimal("9.6"))


def test_a_factor_goes_for_the_whole_day_on_which_it_is_the_first(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,1,1,,,4,,CHF", "gpt,2025-11-10T12:00:00Z,1,1,,,8,,CHF")
    for number, day in enumerate(("2025-11-10T18:00:00Z", "2025-11-11T18:00:00Z")):
        shop.write_raw(f"{number}.jsonl", priced(number, at=day, input_tokens=16))
    shop.roll_up()
    assert list(shop.published("api_key_day").neurons) == [Decimal(4), Decimal(2)]


def test_amounts_in_another_currency_are_converted_by_the_day_or_have_no_price(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,1,1,USD")
    shop.write_rates("2025-11-10,USD,CHF,0.8", "2025-11-11,USD,CHF,0.9", "2025-11-12,CHF,USD,1.25")
    for number in (10, 11, 12):
        at = f"2025-11-{number}T12:00:00Z"
        shop.write_raw(
            f"{number}.jsonl",
            priced(1, at=at, input_tokens=1_000_000),
            priced(2, "own", at=at, cost="3", currency="USD"),
            priced(3, "home", at=at, cost="3", currency="CHF"),
        )
    report = shop.roll_up()
    costs = shop.costs()
    assert [costs["gpt", f"2025-11-{day}"] for day in (10, 11, 12)] == [(1, "0.8", 0), (1, "0.9", 0), (1, "0", 1)]
    assert [costs["own", f"2025-11-{day}"] for day in (10, 11, 12)] == [(1, "2.4", 0), (1, "2.7", 0), (1, "0", 1)]
    assert {costs["home", f"2025-11-{day}"] for day in (10, 11, 12)} == {(1, "3", 0)}
    assert [day.as_json() for day in report.unpriced] == [
        {"day": "2025-11-12", "requests": 2, "missing": ["the rate from USD to CHF"]}
    ]
    shop.write_rates("2025-11-10,USD,CHF,0.8", "2025-11-11,USD,CHF,0.9", "2025-11-12,USD,CHF,1", "2025-11-10,EUR,CHF,1")
    assert [str(day.day) for day in shop.roll_up().days] == ["2025-11-12"]
    assert shop.costs()["own", "2025-11-12"] == (1, "3", 0)


@pytest.mark.parametrize("price", ["1", "1.0000001"], ids=["summed", "rounded"])
def test_more_cached_tokens_than_input_are_no_more_than_it_in_a_copy_either(shop: PricedPlace, price: str) -> None:
    shop.write_book(f"gpt,2025-01-01,{price},1,0.5,CHF")
    call = priced(1, input_tokens=1_000_000, cached=3_000_000)
    shop.write_raw("a.jsonl", call, call, priced(1, input_tokens=2_000_000, cached=9_000_000))
    shop.write_raw("b.jsonl", priced(2, input_tokens=1_000_000))
    assert [day.lines for day in shop.roll_up().disagreeing] == [1]
    assert shop.costs() == {("gpt", "2025-11-10"): (2, f"{Decimal(price) + Decimal('0.5'):f}", 0)}


@pytest.mark.parametrize("price", ["3", "3.0000001"], ids=["summed", "rounded"])
def test_tokens_written_into_a_cache_have_a_price_of_their_own(shop: PricedPlace, price: str) -> None:
    """3 uncached, 5,758 read and 6,174 written of 11,935 input tokens, and 40 output tokens."""
    shop.write_book(f"claude,2025-01-01,{price},15,0.3,,,,3.75,CHF", f"llama,2025-01-01,{price},15,0.3,CHF")
    call = {"input_tokens": 11_935, "output_tokens": 40, "cached": 5_758, "written": 6_174}
    shop.write_raw("a.jsonl", priced(1, "claude", **call), priced(2, "llama", **call))
    assert not shop.roll_up().has_findings
    more = (Decimal(price) - 3) / 10**6
    exact = {"claude": Decimal("0.0254889") + more * 3, "llama": Decimal("0.0208584") + more * 6_177}
    assert shop.costs() == {
        (model, "2025-11-10"): (1, f"{round(cost, 12).normalize():f}", 0) for model, cost in exact.items()
    }, "without a price of their own they cost what other input costs"


@pytest.mark.parametrize("price", ["1", "1.0000001"], ids=["summed", "rounded"])
def test_a_request_without_token_counts_has_no_known_cost(shop: PricedPlace, price: str) -> None:
    shop.write_book(f"*,2025-01-01,{price},1,,0.25,CHF")
    shop.write_raw("a.jsonl", priced(1, tokens=None), priced(2, tokens=None, status=200), priced(3))
    shop.write_raw("b.jsonl", priced(4, tokens=None, status=500), priced(5, None, tokens=None))
    report = shop.roll_up()
    assert shop.costs()["gpt", "2025-11-10"] == (4, "0.25", 2), (
        "zero tokens are known, and a failed request costs nothing"
    )
    (unnamed,) = shop.published("api_key_day").query("model.isna()").itertuples()
    assert (unnamed.requests, unnamed.cost, unnamed.unpriced) == (1, Decimal("0.25"), 0), "it called no model"
    assert unnamed.input_tokens is None, "how many tokens it had nobody knows"
    (day,) = report.unpriced
    assert (day.requests, day.missing) == (2, ["token counts: 2 requests have none"])
    assert shop.ledger().days[DAY].without_tokens == 2


@pytest.mark.parametrize("price", ["1", "1.0000001"], ids=["summed", "rounded"])
def test_the_price_of_a_request_is_for_those_that_did_not_fail(shop: PricedPlace, price: str) -> None:
    shop.write_book(f"gpt,2025-01-01,{price},1,,0.25,CHF")
    calls = [priced(n, status=status, output_tokens=1_000_000) for n, status in enumerate((200, 399, 400, 429, None))]
    shop.write_raw("a.jsonl", *calls, calls[2])
    shop.roll_up()
    assert shop.costs()["gpt", "2025-11-10"] == (5, "5.75", 0)


def test_what_is_missing_later_on_a_day_is_told_too(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,1,1,CHF", "gpt,2025-11-10T12:00:00Z,1,1,USD")
    shop.write_raw("a.jsonl", priced(1, at="2025-11-10T11:00:00Z"), priced(2, at="2025-11-10T12:00:00Z"))
    (day,) = shop.roll_up().unpriced
    assert (day.requests, day.missing) == (1, ["the rate from USD to CHF"])


def test_the_ledger_says_which_book_priced_which_day(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,1,1,CHF")
    shop.write_raw("a.jsonl", priced(1), request(2, timestamp="2025-11-11T12:00:00Z"))
    shop.write_raw("b.jsonl", priced(3, at="2025-11-12T12:00:00Z"))
    shop.roll_up()
    first = shop.layout.prices.read_bytes()
    shop.write_book("gpt,2025-01-01,1,1,CHF", "gpt,2025-11-12,2,2,CHF")
    shop.roll_up()
    pricings = [entry.pricing for _, entry in sorted(shop.ledger().days.items())]
    assert pricings[1] is None
    books = [(shop.layout.books / pricing.book).read_bytes() for pricing in pricings if pricing and pricing.book]
    assert books == [first, shop.layout.prices.read_bytes()]


def test_a_day_that_asks_for_very_much_is_priced_too(shop: PricedPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prices.MOST_ASKED", 2)
    shop.write_raw("a.jsonl", *(priced(number, f"m-{number}", input_tokens=1_000_000) for number in range(3)))
    shop.write_book("m-*,2025-01-01,1,1,CHF")
    shop.roll_up()
    (entry,) = shop.ledger().days.values()
    assert (entry.pricing and entry.pricing.demand, entry.unpriced) == (None, 0)
    assert not shop.roll_up().published
    shop.write_book("m-*,2025-01-01,1,1,CHF", "m-1,2025-01-01,5,1,CHF")
    assert shop.roll_up().published
    assert shop.costs()["m-1", "2025-11-10"] == (1, "5", 0)


def test_a_changed_price_is_a_restatement_that_says_so(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,1,1,CHF")
    shop.write_raw("a.jsonl", priced(1, input_tokens=1_000_000))
    shop.roll_up()
    shop.write_book("gpt,2025-01-01,2,1,CHF")
    shop.roll_up()
    (row,) = shop.published("restatement").itertuples()
    assert (row.cause, row.cost_before, row.cost_after) == ("price change", 1, 2)


def test_a_backfill_by_another_book_that_says_the_same_publishes_nothing(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,1,1,CHF")
    shop.write_raw("a.jsonl", priced(1, input_tokens=1_000_000))
    shop.roll_up()
    shop.write_book("gpt,2025-01-01,1.0,1,CHF", "gpt,2025-11-10T06:00:00Z,1,1,CHF", "llama,2025-01-01,1,1,CHF")
    assert not shop.backfill("2025-11-10", "2025-11-10").published


def test_an_interactive_session_asks_for_no_price(shop: PricedPlace) -> None:
    shop.write_raw("a.jsonl", priced(1, api_key_id=None), request(2))
    assert not shop.roll_up().has_findings
    assert [entry.pricing for entry in shop.ledger().days.values()] == [None]


def test_a_run_that_lost_against_another_takes_the_book_as_it_is_then(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,1,1,CHF")
    shop.write_raw("a.jsonl", priced(1, input_tokens=1_000_000))
    refused: list[int] = []

    def publish_second(run: Run, *arguments: Any) -> int:
        if not refused:
            refused.append(1)
            shop.write_book("gpt,2025-01-01,3,1,CHF")
            shop.roll_up()
        return publish(run, *arguments)

    with start_run(shop.settings, lambda: shop.now) as run:
        roll_up(run, STEPS._replace(publish=publish_second))
    assert (refused, shop.costs()) == ([1], {("gpt", "2025-11-10"): (1, "3", 0)})
    assert not shop.roll_up().published


def test_another_currency_is_refused_unless_it_is_meant(shop: PricedPlace) -> None:
    """A shell without the variable must not make dollars of francs."""
    shop.write_raw("a.jsonl", request(1, cost="2"))
    shop.roll_up()
    other = PricedPlace(shop.layout.root, KEYTALLY_CURRENCY="USD")
    with pytest.raises(KeytallyError, match="published is in CHF, and KEYTALLY_CURRENCY is USD: set it to CHF, or run"):
        other.roll_up()
    assert not shop.roll_up().published
    with start_run(other.settings, lambda: other.now) as run:
        assert roll_up(run, STEPS, new_currency=True).published
    assert not other.roll_up().published
    with pytest.raises(KeytallyError, match="set it to USD"):
        shop.roll_up()


def test_a_day_that_cannot_be_in_the_new_currency_leaves_all_in_the_old_one(shop: PricedPlace) -> None:
    gone = shop.write_raw("a.jsonl", request(1))
    shop.write_raw("b.jsonl", request(2, timestamp="2025-11-11T12:00:00Z"))
    shop.roll_up()
    raw = gone.read_bytes()
    gone.unlink()
    for event in (shop.layout.events / "day=2025-11-10").iterdir():
        event.unlink()
    other = PricedPlace(shop.layout.root, KEYTALLY_CURRENCY="USD")
    with start_run(other.settings, lambda: other.now) as run:
        with pytest.raises(KeytallyError, match="2025-11-10 is published in CHF and cannot be in USD"):
            roll_up(run, STEPS, new_currency=True)
        assert shop.publication().version == 1
        shop.write_raw("a.jsonl", raw)
        assert roll_up(run, STEPS, new_currency=True).published
    assert {entry.currency for entry in shop.ledger().days.values()} == {"USD"}


@pytest.mark.parametrize("file", ["prices.csv", "fx.csv"])
def test_a_file_of_prices_that_is_gone_leaves_what_was_published(shop: PricedPlace, file: str) -> None:
    shop.write_book("gpt,2025-01-01,1,1,USD")
    shop.write_rates("2025-11-10,USD,CHF,0.8")
    shop.write_raw("a.jsonl", priced(1, input_tokens=1_000_000))
    shop.roll_up()
    path = shop.layout.root / file
    header = path.read_text().splitlines()[0]
    path.rename(path.with_suffix(".away"))
    shop.write_raw("b.jsonl", request(2))
    with pytest.raises(KeytallyError, match=f"{file} is gone, by which 1 day had prices"):
        shop.roll_up()
    assert shop.costs() == {("gpt", "2025-11-10"): (1, "0.8", 0)}
    path.write_text(header + "\n")
    assert shop.roll_up().unpriced[0].requests == 1


def test_a_worker_parses_a_book_once_for_all_steps_of_a_run(shop: PricedPlace) -> None:
    def kept(run: Run, currency: str = "CHF") -> Prices:
        prices = read_prices(run.store, currency)
        prices.keep(run.store, run.scratch)
        found = read_kept(run.store, currency, prices.kept)
        assert found == prices
        return found

    with start_run(shop.settings, lambda: shop.now) as run:
        nothing = kept(run)
        shop.write_book("gpt,2025-01-01,1,1,USD")
        book = kept(run)
        again = kept(run)
        assert again.book is book.book
        assert again._matching is not book._matching
        assert book != nothing
        shop.write_rates("2025-11-10,USD,CHF,0.8")
        assert kept(run) != book
        assert kept(run, "EUR").currency == "EUR"


def test_a_book_that_is_written_to_while_it_is_read_is_not_taken(
    shop: PricedPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.write_book("gpt,2025-01-01,1,1,CHF")
    honest = FolderStore.open

    def written_to(store: FolderStore, path: Path) -> Any:
        opened = honest(store, path)
        if path.name == "prices.csv":
            path.write_text(path.read_text() + "llama,2025-01-01,1,1,,,,,CHF\n")
        return opened

    monkeypatch.setattr(FolderStore, "open", written_to)
    with pytest.raises(KeytallyError, match="written to while it was read"):
        shop.roll_up()


DAY = date(2025, 11, 10)


@pytest.mark.parametrize(
    ("dividend", "divisor", "fits"),
    [(2**63 - 1, 1, True), (2**63, 1, False), (1, 2**62 - 1, True), (1, 2**62, False)],
)
def test_64_bits_are_taken_where_they_hold_every_number(dividend: int, divisor: int, fits: bool) -> None:
    start = datetime(2025, 11, 10, tzinfo=UTC)
    small = Tariff(DAY, "llama", start, start + timedelta(days=1), 0, 0, 0, 0, 0, 1)
    for price in ("input", "cached_input", "cache_write", "output", "request"):
        tariff = small._replace(divisor=divisor, **{price: dividend})
        assert Answer((small, tariff)).fits_64_bits(Largest(1, 1, 0)) == fits
        assert Answer((small, tariff)).fits_64_bits(Largest(0, 0, 0)) == fits, "the price itself is a number too"
    exchange = Exchange(DAY, "USD", dividend, divisor)
    assert Answer((), (), (exchange,)).fits_64_bits(Largest(0, 0, 1)) == fits
    halves = small._replace(input=2**62, output=2**62 - 1)
    assert Answer((halves,)).fits_64_bits(Largest(1, 1, 0))
    assert not Answer((halves._replace(request=1),)).fits_64_bits(Largest(1, 1, 0))


@pytest.mark.parametrize(("output_tokens", "taken"), [(1, "in_64_bits"), (2, "in_128_bits")])
def test_a_day_at_the_edge_of_64_bits_is_priced_to_the_last_digit(
    shop: PricedPlace, monkeypatch: pytest.MonkeyPatch, output_tokens: int, taken: str
) -> None:
    """With one token of the answer the dividend is 2^63 - 1, with two it is 2^63; over a million."""
    shop.write_book("gpt,2025-01-01,0.004294967298,0.000000000001,CHF")
    requests = [priced(number, input_tokens=2**31 - 1, output_tokens=output_tokens) for number in range(1_000)]
    shop.write_raw("a.jsonl", *requests, priced(1_000, input_tokens=0, output_tokens=0))
    done: list[str] = []
    honest = Engine.run

    def noting(engine: Engine, name: str, **parameters: object) -> None:
        done.append(name)
        honest(engine, name, **parameters)

    monkeypatch.setattr(Engine, "run", noting)
    shop.roll_up()
    assert {name for name in done if name.endswith("_bits")} == {taken}
    assert shop.costs() == {("gpt", "2025-11-10"): (1_001, "9223.372036855", 0)}
    monkeypatch.setattr(Answer, "fits_64_bits", lambda *_: False)
    assert not shop.backfill("2025-11-10", "2025-11-10").published, "128 bits find the same"


def test_a_session_of_any_size_fails_nothing(shop: PricedPlace) -> None:
    shop.write_book("gpt,2025-01-01,999999,999999,USD")
    shop.write_rates("2025-11-10,USD,CHF,26000")
    sessions = [priced(10 + number, api_key_id=None, input_tokens=2**63 - 1) for number in range(600)]
    shop.write_raw("a.jsonl", priced(1, input_tokens=1), *sessions)
    shop.roll_up()
    assert shop.costs() == {("gpt", "2025-11-10"): (1, "25999.974", 0)}
