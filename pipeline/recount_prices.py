"""A second reading of price books and rates: the same rules as the roll-up's, another implementation.

It exists to disagree: nothing here may come from prices.py or price_book.py. Amounts are decimals of as many digits as
there are, and a cost is rounded once, half to even.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact
from fractions import Fraction

from pipeline.recount import COST_DECIMALS, COST_LIMIT, DAY_MICROSECONDS, UNITS_DECIMALS, Request

_EXACT = Context(prec=200, traps=[Inexact])
_ROUND = Context(prec=200, rounding=ROUND_HALF_EVEN)
_SMALLEST = Decimal(f"1e-{COST_DECIMALS}")
_TOKENS_PER_UNIT = "10"

Row = dict[str, str]


class PriceList:
    """A price book and rates as they were in force, in the currency that everything is published in."""

    def __init__(self, book: str, rates: str, currency: str) -> None:
        """book, rates: the texts of the files, empty where there were none."""
        self._currency = currency
        self._rows = [(_microseconds(row["valid_from"]), row) for row in _rows(book)]
        self._rates = {(row["day"], row["from"]): Decimal(row["rate"]) for row in _rows(rates) if row["to"] == currency}
        self._matching: dict[str | None, list[tuple[int, Row]]] = {}

    def cost_of(self, request: Request) -> int | None:
        """A request's cost in 10^-12 of the currency; None where nobody knows it."""
        if request.cost is not None:
            return self._converted(Decimal(request.cost).scaleb(-COST_DECIMALS, _EXACT), request.currency, request.day)
        price = self._in_force(request.model, request.timestamp)
        failed = (request.status or 0) >= 400
        if price is None or has_unknown_tokens(request):
            return None
        cached, written = request.cached_input_tokens or 0, request.cache_write_tokens or 0
        cost = Decimal(0 if failed else price.get("per_request") or 0)
        for tokens, per_million in (
            ((request.input_tokens or 0) - cached - written, price["input_per_million"]),
            (cached, price.get("cached_input_per_million") or price["input_per_million"]),
            (written, price.get("cache_write_per_million") or price["input_per_million"]),
            (request.output_tokens or 0, price["output_per_million"]),
        ):
            cost = _EXACT.add(cost, _EXACT.multiply(Decimal(tokens).scaleb(-6, _EXACT), Decimal(per_million)))
        units = self._converted(cost, price["currency"], request.day)
        return None if units is None or units >= COST_LIMIT * 10**COST_DECIMALS else units

    def units_of(self, day: int, model: str | None, tokens: int, factor: str) -> int:
        """Tokens in 10^-6 of a unit. day: since 1970. factor: the column that says how many tokens are one."""
        start = day * DAY_MICROSECONDS
        begins = sorted({start, *(begin for begin, _ in self._of(model) if 0 < begin - start < DAY_MICROSECONDS)})
        first = next((price for begin in begins if (price := self._in_force(model, begin))), {})
        units: int = round(Fraction(tokens) / Fraction(first.get(factor) or _TOKENS_PER_UNIT) * 10**UNITS_DECIMALS)
        return units

    def _converted(self, amount: Decimal, currency: str | None, day: int) -> int | None:
        rate: Decimal | None = Decimal(1)
        if currency not in (None, self._currency):
            rate = self._rates.get((str(datetime.fromtimestamp(day * 86_400, UTC).date()), currency or ""))
        if rate is None:
            return None
        rounded: Decimal = _EXACT.multiply(amount, rate).quantize(_SMALLEST, context=_ROUND)
        return int(rounded.scaleb(COST_DECIMALS, _EXACT))

    def _in_force(self, model: str | None, moment: int) -> Row | None:
        """Of the rows for a model that have begun, the one that names it best, and of these the latest."""
        begun = [(_closeness(row["model"], model), begin, row) for begin, row in self._of(model) if begin <= moment]
        return max(begun, key=lambda found: found[:2])[2] if begun else None

    def _of(self, model: str | None) -> list[tuple[int, Row]]:
        if model not in self._matching:
            self._matching[model] = [row for row in self._rows if _closeness(row[1]["model"], model) >= 0]
        return self._matching[model]


def has_unknown_tokens(request: Request) -> bool:
    """Return True if a call of a model did not fail and its log has no token count: missing is not zero."""
    tokens = (request.input_tokens, request.output_tokens, request.cached_input_tokens)
    is_empty = {*tokens, request.cache_write_tokens, request.reasoning_tokens} == {None}
    return is_empty and request.model is not None and (request.status or 0) < 400


def _closeness(pattern: str, model: str | None) -> int:
    """How well a pattern names a model: its length, more where it is its name; -1 where it does not."""
    if pattern == model:
        return len(pattern) + 1
    named = pattern.endswith("*") and (model or "").startswith(pattern[:-1])
    return len(pattern) - 1 if named else -1


def _rows(text: str) -> list[Row]:
    header, *rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")) if text else [[]]
    return [dict(zip(header, row, strict=True)) for row in rows if any(row)]


def _microseconds(moment: str) -> int:
    parsed = datetime.fromisoformat(moment)
    since = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds
