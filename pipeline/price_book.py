"""The price book and the rates of currencies as files: rows with exact decimals, or a sentence that says what is wrong.

Amounts become counts of their smallest unit, so that whatever is made of them is made of integers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple

from pipeline.contract.text_encoding import UTF16_ADVICE, is_utf16
from pipeline.errors import BadPrices

AMOUNT_DECIMALS, FACTOR_DECIMALS, MOST_DIGITS = 12, 6, 6
MOST_BYTES = 32 * 2**20  # of a book that is read; some 400,000 rows
UNITS_FACTOR = 10 * 10**FACTOR_DECIMALS  # where no book says otherwise: ten tokens


class Price(NamedTuple):
    """What a model costs from a moment on. model: its name, or the beginning of it and `*`.

    Amounts in 10^-12 of `currency`: for a million tokens, or a request. Factors in 10^-6 of a token.
    """

    model: str
    valid_from: datetime
    input_per_million: int
    output_per_million: int
    cached_input_per_million: int
    cache_write_per_million: int
    per_request: int
    tokens_per_neuron: int
    tokens_per_synapse: int
    currency: str


Rates = Mapping[tuple[date, str, str], int]  # 10^-12 of the second currency for one of the first, by UTC day


def read_price_book(content: bytes, name: str) -> list[Price]:
    """The rows of a price book, in their order. Raises BadPrices."""
    prices: list[Price] = []
    known: dict[tuple[str, datetime], int] = {}
    for row, values in _rows(content, name, _PRICE_COLUMNS, _PRICE_DEFAULTS):
        for of_cache in ("cached_input_per_million", "cache_write_per_million"):
            if values[of_cache] is None:
                values[of_cache] = values["input_per_million"]
        price = Price(**values)
        before = known.setdefault((price.model, price.valid_from), row)
        if before != row:
            raise BadPrices(
                name, row, "valid_from", f"row {before} has a price of this model from this moment on; keep one"
            )
        prices.append(price)
    return prices


def read_rates(content: bytes, name: str) -> Rates:
    """The rates of a table of rates. Raises BadPrices."""
    rates: dict[tuple[date, str, str], int] = {}
    known: dict[tuple[date, str, str], int] = {}
    for row, values in _rows(content, name, _RATE_COLUMNS, {}):
        key = (values["day"], values["from"], values["to"])
        if key[1] == key[2]:
            raise BadPrices(name, row, "to", f"{key[2]} is the currency it converts from; remove the row")
        if known.setdefault(key, row) != row:
            raise BadPrices(
                name, row, "day", f"row {known[key]} has a rate of this day from {key[1]} to {key[2]}; keep one"
            )
        rates[key] = values["rate"]
    return rates


# --- values ----------------------------------------------------------------------------------------------------------


class _WrongError(ValueError):
    """A value that cannot be used; `str()` of it says what it must be."""


def _pattern(text: str) -> str:
    if not 1 <= len(text) <= 256 or "*" in text[:-1] or not text.isprintable() or text != text.strip():
        raise _WrongError(
            "must be the name of a model, of at most 256 characters and no blanks around it, or the beginning of one"
            " and a * behind it"
        )
    return text


_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)


def _instant(text: str) -> datetime:
    try:
        if not _INSTANT.fullmatch(text):
            return datetime.combine(_day(text), time(), UTC)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _WrongError("must be a UTC day, as 2025-11-01, or a moment, as 2025-11-01T09:30:00Z") from None


def _day(text: str) -> date:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise _WrongError("must be a day, as 2025-11-01")


def _currency(text: str) -> str:
    if not re.fullmatch("[A-Z]{3}", text):
        raise _WrongError("must be a currency code of three capital letters, as USD")
    return text


def _decimal(text: str, decimals: int, *, positive: bool) -> int:
    match = re.fullmatch(r"([0-9]+)(?:\.([0-9]+))?", text)
    whole, fraction = (match[1].lstrip("0"), (match[2] or "").rstrip("0")) if match else ("", "")
    fits = match is not None and len(whole) <= MOST_DIGITS and len(fraction) <= decimals
    units = int(f"0{whole}{fraction.ljust(decimals, '0')}") if fits else 0
    if not fits or (positive and not units):
        least = "greater than 0 and below" if positive else "from 0 to below"
        raise _WrongError(f"must be a number {least} 1000000, written as 0.075, with at most {decimals} decimals")
    return units


def _amount(text: str) -> int:
    return _decimal(text, AMOUNT_DECIMALS, positive=False)


def _rate(text: str) -> int:
    return _decimal(text, AMOUNT_DECIMALS, positive=True)


def _factor(text: str) -> int:
    return _decimal(text, FACTOR_DECIMALS, positive=True)


_Columns = Mapping[str, Callable[[str], Any]]
_PRICE_COLUMNS: _Columns = {
    "model": _pattern,
    "valid_from": _instant,
    "input_per_million": _amount,
    "output_per_million": _amount,
    "cached_input_per_million": _amount,
    "cache_write_per_million": _amount,
    "per_request": _amount,
    "tokens_per_neuron": _factor,
    "tokens_per_synapse": _factor,
    "currency": _currency,
}
# What an empty field, or a column that is not there, stands for; every other column must be there and filled.
_PRICE_DEFAULTS: Mapping[str, int | None] = {
    "cached_input_per_million": None,  # as any other input
    "cache_write_per_million": None,  # as any other input
    "per_request": 0,
    "tokens_per_neuron": UNITS_FACTOR,
    "tokens_per_synapse": UNITS_FACTOR,
}
_RATE_COLUMNS: _Columns = {"day": _day, "from": _currency, "to": _currency, "rate": _rate}


# --- rows ------------------------------------------------------------------------------------------------------------


def _rows(
    content: bytes, name: str, columns: _Columns, defaults: Mapping[str, int | None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row that is not blank, with its number as a spreadsheet counts: the header is row 1. Raises BadPrices."""
    if len(content) > MOST_BYTES:
        raise BadPrices(name, None, None, f"it is larger than {MOST_BYTES:,} bytes; leave out what is long past")
    if is_utf16(content):
        raise BadPrices(name, None, None, UTF16_ADVICE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise BadPrices(name, row, None, "it is not UTF-8; save the file as UTF-8") from None
    _check_separator(text, name)
    records = _records(text, name)
    _, header = next(records, (1, []))
    _check_header(header, name, columns, defaults)
    for row, record in records:
        if not any(record):  # a spreadsheet writes its blank rows as commas
            continue
        if len(record) != len(header):
            raise BadPrices(
                name, row, None, f"it has {len(record)} fields, and the header {len(header)}; see to its commas"
            )
        given = dict(zip(header, record, strict=True))
        values: dict[str, Any] = {}
        for column, parse in columns.items():
            value = given.get(column, "")
            if not value and column in defaults:
                values[column] = defaults[column]
                continue
            try:
                values[column] = parse(value)
            except _WrongError as wrong:
                raise BadPrices(name, row, column, f"{_shown(value)} {wrong}") from None
        yield row, values


def _shown(value: str) -> str:
    return f"{value[:60]!r}{'...' if len(value) > 60 else ''}"


def _records(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    row = 0
    while True:
        row += 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadPrices(name, row, None, f"it is no row of CSV ({error}); see to its quotes") from None
        yield row, record


def _check_separator(text: str, name: str) -> None:
    first = text.partition("\n")[0]
    for separator, named in ((";", "semicolons"), ("\t", "tabs")):
        if separator in first and "," not in first:
            what = f"its fields are separated by {named}; save it with commas between them, and points in numbers"
            raise BadPrices(name, 1, None, what)


def _check_header(header: list[str], name: str, columns: _Columns, defaults: Mapping[str, int | None]) -> None:
    known = ", ".join(f"{column}?" if column in defaults else column for column in columns)
    for column in header:
        if column not in columns:
            raise BadPrices(name, 1, column[:60], f"there is no such column; there are {known}")
        if header.count(column) > 1:
            raise BadPrices(name, 1, column, "it is named twice; keep one")
    for column in columns:
        if column not in header and column not in defaults:
            raise BadPrices(name, 1, column, f"it is missing; the first row names the columns {known}")
