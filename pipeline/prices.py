"""What a request costs that does not say so itself: the price in force at its moment, in the deployment's currency.

A day asks for the models whose requests carry no cost, and for the currencies of those that carry another one than the
deployment's. What is answered is made of the price book and the rates alone, and is all that the day takes from them:
as long as the answer stays the same, so does the day.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from math import gcd
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipeline import artifacts
from pipeline.contract.store import Store
from pipeline.contract.tables import DAY, INSTANT
from pipeline.errors import KeytallyError
from pipeline.price_book import MOST_BYTES, UNITS_FACTOR, Price, Rates, read_price_book, read_rates

MOST_ASKED = 1_000  # models that the ledger lists of a day; of more, any change of book or rates touches the day
_A_DAY = timedelta(days=1)
COST_LIMIT = 10**18  # in 10^-12: a request that a price makes dearer than a record may say has no price
_RATE_UNITS = 10**12
_PRICE_UNITS = 10**6 * _RATE_UNITS  # a million tokens, and a rate
_VALID_FROM = attrgetter("valid_from")


@dataclass(frozen=True)
class Demand:
    """What a day asks for. models: of requests without a cost. units: of those without synapses or neurons.

    currencies: in which costs are stated. None among the models: requests that name none.
    """

    models: frozenset[str | None] = frozenset()
    units: frozenset[str | None] = frozenset()
    currencies: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.models or self.units or self.currencies)

    def union(self, *others: Demand) -> Demand:
        """All that this one or another asks for."""
        all_of_them = (self, *others)
        return Demand(
            frozenset[str | None]().union(*(each.models for each in all_of_them)),
            frozenset[str | None]().union(*(each.units for each in all_of_them)),
            frozenset[str]().union(*(each.currencies for each in all_of_them)),
        )


@dataclass(frozen=True)
class Pricing:
    """By what a day was priced.

    book, rates: the files that were in force then, below books/; None where there was none. Others may say the same of
    the day. currency: the deployment's. answer: names what they answered. demand: None where that is too much to list.
    """

    book: str | None = field(compare=False)
    rates: str | None = field(compare=False)
    currency: str
    answer: str
    demand: Demand | None


class Tariff(NamedTuple):
    """What a model's requests cost from `start` to `end`: this much for each token and request, over `divisor`, is the
    cost in 10^-12 of the deployment's currency."""

    day: date
    model: str | None
    start: datetime
    end: datetime
    input: int
    cached_input: int
    cache_write: int
    output: int
    request: int
    divisor: int

    def most(self, largest: Largest) -> int:
        """What the largest request costs at most, times the divisor."""
        tokens = max(self.input, self.cached_input, self.cache_write) * largest.input + self.output * largest.output
        return tokens + self.request


class Factor(NamedTuple):
    """How many 10^-6 neurons and synapses a model's tokens are on a day: tokens times the first over the second."""

    day: date
    model: str | None
    neurons: int
    neurons_divisor: int
    synapses: int
    synapses_divisor: int


class Exchange(NamedTuple):
    """What an amount of a currency is on a day in the deployment's: times the first over the second."""

    day: date
    currency: str
    rate: int
    divisor: int


class Largest(NamedTuple):
    """The most input and output tokens of a request that is to be priced, and the largest cost that is to be
    converted, in 10^-12."""

    input: int
    output: int
    cost: int


class Answer(NamedTuple):
    """What book and rates say to a day's demand. What they do not know is not there."""

    tariffs: tuple[Tariff, ...] = ()
    factors: tuple[Factor, ...] = ()
    exchanges: tuple[Exchange, ...] = ()

    def is_of_sums(self, largest: Largest) -> bool:
        """Whether the tokens of a day and model cost what its requests cost together: each has the same price, needs no
        rounding, and costs what it may."""
        return all(
            tariff.divisor == 1 and tariff.most(largest) < COST_LIMIT and tariff.end - tariff.start == _A_DAY
            for tariff in self.tariffs
        )

    def fits_64_bits(self, largest: Largest) -> bool:
        """Whether no number that a cost is reckoned with is larger than 64 bits hold."""
        at_least_one = Largest(*(max(number, 1) for number in largest))
        dividends = [tariff.most(at_least_one) for tariff in self.tariffs]
        dividends += [exchange.rate * at_least_one.cost for exchange in self.exchanges]
        divisors = [tariff.divisor for tariff in self.tariffs] + [exchange.divisor for exchange in self.exchanges]
        return max(dividends, default=0) < 2**63 and max(divisors, default=1) < 2**62


_WIDE, _NARROW = pa.decimal128(38, 0), pa.int64()
_MODEL_OF_A_DAY = [("day", DAY), ("model", pa.string())]
_FACTORS = pa.schema([*_MODEL_OF_A_DAY, *((name, _WIDE) for name in Factor._fields[2:])])


def _schemas(number: pa.DataType) -> dict[str, pa.Schema]:
    return {
        "tariff": pa.schema(
            [*_MODEL_OF_A_DAY, ("start", INSTANT), ("end", INSTANT), *((name, number) for name in Tariff._fields[4:])]
        ),
        "exchange": pa.schema([("day", DAY), ("currency", pa.string()), ("rate", number), ("divisor", number)]),
    }


def tables_of(answers: Sequence[Answer], *, in_64_bits: bool) -> dict[str, pa.Table]:
    """What answers of different days say of costs, as tables that statements read, by name.

    in_64_bits: so wide are their numbers; else decimals, from which DuckDB takes a while to make a whole number.
    """
    rows: dict[str, Iterable[Tariff | Exchange]] = {
        "tariff": [tariff for answer in answers for tariff in answer.tariffs],
        "exchange": [exchange for answer in answers for exchange in answer.exchanges],
    }
    return {
        name: pa.Table.from_pylist([row._asdict() for row in rows[name]], schema=schema)
        for name, schema in _schemas(_NARROW if in_64_bits else _WIDE).items()
    }


def table_of_factors(factors: Iterable[Factor]) -> pa.Table:
    """Factors as the table that tokens_in_units.sql reads."""
    return pa.Table.from_pylist([factor._asdict() for factor in factors], schema=_FACTORS)


@dataclass(frozen=True)
class _File:
    """A file of prices: its bytes, and the name it is kept under below books/."""

    content: bytes
    name: str


@dataclass(frozen=True)
class Prices:
    """A price book and rates of currencies, and the currency that everything is published in."""

    currency: str
    book: Mapping[str, Sequence[Price]] = field(default_factory=dict)  # by pattern, in order of valid_from
    rates: Rates = field(default_factory=dict)
    files: Mapping[str, _File] = field(default_factory=dict)
    _matching: dict[str | None, Sequence[Sequence[Price]]] = field(default_factory=dict, init=False, compare=False)

    def factors(self, day: date, demand: Demand) -> tuple[Factor, ...]:
        """How the tokens of the models that a day asks units for become units."""
        return tuple(self._factor(day, model) for model in in_order(demand.units))

    def answer(self, day: date, demand: Demand) -> Answer:
        """What is known of what a day asks for."""
        return Answer(
            tuple(tariff for model in in_order(demand.models) for tariff in self._tariffs(day, model)),
            self.factors(day, demand),
            tuple(
                Exchange(day, currency, *_reduced(rate, _RATE_UNITS))
                for currency in sorted(demand.currencies)
                if (rate := self._rate(day, currency))
            ),
        )

    def pricing(self, day: date, demand: Demand) -> Pricing | None:
        """By what a day is priced; None where it asks for nothing."""
        if not demand:
            return None
        few = len(demand.models | demand.units | demand.currencies) <= MOST_ASKED
        book, rates = (self.files[name].name if name in self.files else None for name in ("prices", "fx"))
        listed = demand if few else None
        return Pricing(book, rates, self.currency, self._answered(day, listed), listed)

    def is_current(self, day: date, pricing: Pricing | None) -> bool:
        """Whether a day that was priced so would be priced so now."""
        return pricing is None or (
            pricing.currency == self.currency and pricing.answer == self._answered(day, pricing.demand)
        )

    def missing(self, day: date, pricing: Pricing | None) -> list[str]:
        """What is not known of what a day asks for, each in words; nothing where that is not listed."""
        demand = (pricing and pricing.demand) or Demand()
        found = []
        for model in in_order(demand.models):
            prices = [price for _, _, price in self._in_force(day, model)]
            for price in dict.fromkeys(prices):
                if price is None:
                    found.append("a price of requests that name no model" if model is None else f"a price of {model}")
                elif not self._rate(day, price.currency):
                    found.append(f"the rate from {price.currency} to {self.currency}")
        found += [
            f"the rate from {currency} to {self.currency}"
            for currency in sorted(demand.currencies)
            if not self._rate(day, currency)
        ]
        return list(dict.fromkeys(found))

    @property
    def kept(self) -> dict[str, str]:
        """The names of the files below books/, of a book as `prices` and of rates as `fx`."""
        return {made_from: file.name for made_from, file in self.files.items()}

    def keep(self, store: Store, scratch: Path) -> None:
        """Keep the files below books/, where the ledger names them; anew where they are, for another run's sweep may
        just have found that nobody names them."""
        for made_from, file in self.files.items():
            finished = scratch / f"{made_from}.csv"
            finished.write_bytes(file.content)
            artifacts.keep(store, finished, store.layout.books, made_from)

    def _answered(self, day: date, demand: Demand | None) -> str:
        """Names what is answered; where the demand is not listed, everything there is to answer with."""
        if demand is None:
            answered = repr((self.currency, sorted(file.name for file in self.files.values())))
        else:
            answered = repr([[tuple(map(str, row)) for row in rows] for rows in self.answer(day, demand)])
        return hashlib.sha256(answered.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _tariffs(self, day: date, model: str | None) -> list[Tariff]:
        tariffs: list[Tariff] = []
        for start, end, price in self._in_force(day, model):
            rate = self._rate(day, price.currency) if price else None
            if not price or not rate:
                continue
            amounts = (
                price.input_per_million,
                price.cached_input_per_million,
                price.cache_write_per_million,
                price.output_per_million,
            )
            units = _reduced(*(amount * rate for amount in amounts), price.per_request * rate * 10**6, _PRICE_UNITS)
            if units[-2] >= COST_LIMIT * units[-1]:
                continue
            if tariffs and tariffs[-1].end == start and tariffs[-1][4:] == units:
                tariffs[-1] = tariffs[-1]._replace(end=end)  # a new row that says the same
            else:
                tariffs.append(Tariff(day, model, start, end, *units))
        return tariffs

    def _factor(self, day: date, model: str | None) -> Factor:
        """The first that is in force on the day: it goes for the whole of it."""
        price = next((price for _, _, price in self._in_force(day, model) if price), None)
        factors = (price.tokens_per_neuron, price.tokens_per_synapse) if price else (UNITS_FACTOR, UNITS_FACTOR)
        neurons, synapses = (_reduced(10**12, factor) for factor in factors)
        return Factor(day, model, *neurons, *synapses)

    def _rate(self, day: date, currency: str) -> int | None:
        return _RATE_UNITS if currency == self.currency else self.rates.get((day, currency, self.currency))

    def _in_force(self, day: date, model: str | None) -> Iterator[tuple[datetime, datetime, Price | None]]:
        """Each price of a model on a day, with the moments from which and until which it is in force."""
        start = datetime.combine(day, time(), UTC)
        end = start + _A_DAY
        histories = self._histories(model)
        changes = {
            price.valid_from
            for prices in histories
            for price in prices[
                bisect_right(prices, start, key=_VALID_FROM) : bisect_left(prices, end, key=_VALID_FROM)
            ]
        }
        for since, until in pairwise((start, *sorted(changes), end)):
            yield since, until, _newest(histories, since)

    def _histories(self, model: str | None) -> Sequence[Sequence[Price]]:
        """The prices by each pattern that a model matches, the most specific pattern first."""
        if model not in self._matching:
            name = model or ""
            patterns = [f"{name[:length]}*" for length in range(len(name), -1, -1)]
            if model is not None:
                patterns.insert(0, model)
            self._matching[model] = [self.book[pattern] for pattern in dict.fromkeys(patterns) if pattern in self.book]
        return self._matching[model]


def _newest(histories: Iterable[Sequence[Price]], moment: datetime) -> Price | None:
    """The price in force at a moment: of the first history that has one."""
    for prices in histories:
        if begun := bisect_right(prices, moment, key=_VALID_FROM):
            return prices[begun - 1]
    return None


def in_order(models: Iterable[str | None]) -> list[str | None]:
    """The names sorted, none of them first."""
    return sorted(models, key=lambda model: (model is not None, model or ""))


def _reduced(*numbers: int) -> tuple[int, ...]:
    """The numbers, each divided by what divides all of them."""
    divisor = gcd(*numbers)
    return tuple(number // divisor for number in numbers)


def read_prices(store: Store, currency: str, book: bytes | None = None, book_name: str = "prices.csv") -> Prices:
    """The price book and the rates that lie in the data root now; none where there are no such files.

    book, book_name: another book, that is taken in the place of the one there. Raises BadPrices for what cannot be
    used, StoreError.
    """
    if book is None:
        book = _content(store, store.layout.prices)
    return prices_of(currency, book, _content(store, store.layout.rates), book_name)


def read_kept(store: Store, currency: str, kept: Mapping[str, str]) -> Prices:
    """The prices of these files below books/; they are not parsed again where they are those of the last call.

    Raises FileNotFoundError when one of them is not there, StoreError.
    """
    contents: dict[str, bytes] = {}
    for made_from, name in kept.items():
        with store.open(store.layout.books / name) as file:
            contents[made_from] = file.read()
    # But it forgets what models it was asked for: in a worker they would become ever more.
    return replace(_prices_once(currency, contents.get("prices"), contents.get("fx")))


def _content(store: Store, path: Path) -> bytes | None:
    """What a file holds that nobody writes to meanwhile; None where there is none. Raises KeytallyError."""
    signature = store.signature(path)
    try:
        with store.open(path) as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    if store.signature(path) != signature:
        raise KeytallyError(f"{path.name} was written to while it was read; run the command again. Nothing was changed")
    return content


def prices_of(currency: str, book: bytes | None, rates: bytes | None, book_name: str = "prices.csv") -> Prices:
    """Prices by the contents of a book and of a table of rates. Raises BadPrices."""
    by_pattern: dict[str, list[Price]] = {}
    for price in read_price_book(book, book_name) if book is not None else ():
        by_pattern.setdefault(price.model, []).append(price)
    for prices in by_pattern.values():
        prices.sort(key=_VALID_FROM)
    files = {
        name: _File(content, f"{name}-{hashlib.sha256(content).hexdigest()[:32]}.csv")
        for name, content in (("prices", book), ("fx", rates))
        if content is not None
    }
    return Prices(currency, by_pattern, read_rates(rates, "fx.csv") if rates is not None else {}, files)


# A worker is sent step after step of one run, and 2,000 rows take it 70 ms to parse.
_prices_once = lru_cache(maxsize=1)(prices_of)
