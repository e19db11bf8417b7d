"""A second reading of raw files: the same contract as the intake's, another implementation.

It exists to disagree. Nothing here may come from the intake (line.py, rows.py, raw.py, accept.sql): one line after
another goes through the standard library's JSON and Decimal, and comes out as a request or as none. Why it is none
does not matter here.

The shipped mapped formats are read in plain Python (recount_formats.py, recount_otel.py), not by their SQL: a mistake
in the SQL is a difference. The SQL of any other mapped format defines that format, so it is run here as well, over
records read here; its rows go through the rules of this module. The conversion of CSV and Parquet rows to the JSON
records of a mapped format is shared with the intake.

Amounts are counts of their smallest unit (10^-12 of the currency, 10^-6 synapses or neurons), so that sums are sums
of Python's integers. Memory depends on the longest line, not on the file; of a trace, a few numbers of each span
are kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import (
    MAX_EMAX,
    MAX_PREC,
    MIN_EMIN,
    Context,
    Decimal,
    DecimalException,
    Inexact,
    InvalidOperation,
    Overflow,
)
from typing import Any, Final, NamedTuple

from pipeline.recount_lines import (
    AS_TEXT,
    Moment,
    Record,
    is_other_json,
    mapped_objects,
    objects,
    opened,
    rows,
    without_depths,
    without_halves,
)
from pipeline.recount_traces import Traces

COST_DECIMALS, UNITS_DECIMALS = 12, 6
COST_LIMIT, UNITS_LIMIT = 10**6, 10**12
DAY_MICROSECONDS = 86_400_000_000
TOLERANCE = timedelta(minutes=5)
MOST_TOKENS = 2**63 - 1


class Request(NamedTuple):
    """A request. day: days since 1970; timestamp: microseconds since 1970; amounts in their smallest unit.

    most_complete: its format says `copies: most complete`. All other fields decide whether two copies conflict.
    """

    day: int
    organization_id: str
    request_id: str
    timestamp: int
    api_key_id: str | None
    cost: int | None
    synapses: int | None
    neurons: int | None
    model: str | None
    endpoint: str | None
    status: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    currency: str | None = None
    most_complete: bool = False


class Skipped:
    """A record that its format leaves out."""


SKIPPED: Final = Skipped()
Verdict = Request | Skipped | None  # None: the line is quarantined


class Mapped(NamedTuple):
    """How a mapped format is recounted.

    plain: our own reader of a shipped format: a record's rows, each with the fields of a request as text.
    requests_of: without `plain`, runs the SQL: for some records (JSON) the rows of each, by the record's number in the
    list.
    texts_of: reads the records (JSON) out of an open CSV or Parquet file; None for a record that cannot be read. None
    for files of lines.
    skips: a record without any row is left out; otherwise it is quarantined, as it is by a plain reader.
    The others are what the format's header says of all its records.
    """

    plain: Callable[[Record], Iterable[Record]] | None
    requests_of: Callable[[Sequence[str]], Iterable[tuple[int, Record]]] | None
    texts_of: Callable[[Any], Iterator[str | None]] | None
    skips: bool
    book_prices: bool
    tokens_as_units: bool
    currency: str | None
    cached_beside_input: bool = False
    most_complete: bool = False


def requests_in(raw: io.RawIOBase, ending: str, taken_at: datetime, size: int) -> Iterator[Request | None]:
    """Yield for each line of a native raw file its request, or None where the line is none.

    Args:
        raw: the open raw file.
        ending: the extension the file is read by.
        taken_at: the moment at which the file was taken in: it decides which lines are from the future.
        size: how many bytes of the file are read, from its beginning; Parquet is read whole.

    Raises:
        OSError, EOFError, zlib.error, ZstdError, pa.ArrowException: the file is not whole.
    """
    latest = _since_1970(taken_at + TOLERANCE)
    for record in rows(raw) if ending == ".parquet" and size else objects(raw, ending, size):
        try:
            yield None if record is None else _request(record, latest)
        except (_NoRequestError, DecimalException):
            yield None


# --- mapped formats --------------------------------------------------------------------------------------------------


def mapped_requests_in(
    raw: io.RawIOBase, ending: str, taken_at: datetime, size: int, mapped: Mapped, traces: Traces
) -> Iterator[Verdict]:
    """Yield the same as `requests_in` for a mapped format, of which a record may hold several requests.

    Args:
        raw, ending, taken_at, size: as of `requests_in`.
        mapped: the format.
        traces: counts the spans that were merged, and the calls that could not be decided.
    """
    latest = _since_1970(taken_at + TOLERANCE)
    read = _read_plainly if mapped.plain else _run_sql
    for row in traces.resolved(read(raw, ending, size, mapped)):
        if row is None or isinstance(row, Skipped):
            yield row
        elif row.get("skipped") is not None:
            yield SKIPPED
        else:
            try:
                yield _mapped_request(row, latest, mapped)
            except (_NoRequestError, DecimalException):
                yield None


def _read_plainly(raw: io.RawIOBase, ending: str, size: int, mapped: Mapped) -> Iterator[Record | Skipped | None]:
    """Yield the rows that the plain reader makes of a file; None for each record that is quarantined as a whole."""
    assert mapped.plain is not None
    if mapped.texts_of is None:
        records = mapped_objects(raw, ending, size, numbers_as_text=True)
    else:
        records = (None if text is None else AS_TEXT.decode(text) for text in _texts(raw, ending, size, mapped))
    for record in records:
        found = () if record is None else tuple(mapped.plain(record))
        yield from found or (None,)


def _run_sql(raw: io.RawIOBase, ending: str, size: int, mapped: Mapped) -> Iterator[Record | Skipped | None]:
    """Yield the rows that the format's SQL makes of a file; SKIPPED or None for each record without a row."""
    assert mapped.requests_of is not None
    without = SKIPPED if mapped.skips else None
    for some in _together(_texts(raw, ending, size, mapped)):
        texts = [text for text in some if text is not None]
        yield from (None for _ in range(len(some) - len(texts)))
        seen: set[int] = set()
        for number, row in mapped.requests_of(texts):
            seen.add(number)
            yield row
        yield from (without for _ in range(len(texts) - len(seen)))


def _texts(raw: io.RawIOBase, ending: str, size: int, mapped: Mapped) -> Iterator[str | None]:
    """Yield the records, each as JSON without half characters; None for one that is none."""
    if mapped.texts_of is None:
        for value in mapped_objects(raw, ending, size, numbers_as_text=False):
            yield None if value is None else without_halves(_dumped(value))
    elif ending == ".parquet" and size:
        yield from mapped.texts_of(raw)
    else:
        with opened(raw, ending, size) as file:
            yield from mapped.texts_of(file)


def _dumped(value: Record) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return json.dumps(without_depths(value), ensure_ascii=False)


def _together(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    some: list[str | None] = []
    characters = 0
    for text in texts:
        some.append(text)
        characters += len(text or "")
        if characters > 2**22 or len(some) == 4_096:
            yield some
            some, characters = [], 0
    yield some


def _mapped_request(row: Record, latest: int, mapped: Mapped) -> Request:
    """Return the request that a row of text fields holds. Raises _NoRequestError, DecimalException."""
    fields = {**row, **{name: _number_of(row.get(name)) for name in ("status", *_TOKENS)}}
    _demand(not any(is_other_json(row.get(text) or "") for text in _TEXTS))
    name = row.get("request_id")
    if name is not None and len(name) > 128:
        fields["request_id"] = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    priced = row.get("cost") is not None or not mapped.book_prices
    if not priced:
        fields["cost"] = 0
    for described in ("deployed_model", "provider"):  # kept beside the request, and held to the same rule as its model
        _label(row.get(described))
    request = _request(fields, latest, no_tokens=None, cached_beside_input=mapped.cached_beside_input)
    from_tokens = mapped.tokens_as_units
    return request._replace(
        cost=request.cost if priced else None,
        synapses=None if from_tokens and row.get("synapses") is None else request.synapses,
        neurons=None if from_tokens and row.get("neurons") is None else request.neurons,
        currency=mapped.currency if priced else None,
        most_complete=mapped.most_complete,
    )


_TEXTS = ("request_id", "organization_id", "api_key_id", "model", "endpoint", "deployed_model", "provider")
_TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")


def _number_of(text: str | None) -> Any:
    """Return the integer that a text is, or the text itself, which no rule for integers takes."""
    return int(text[:400]) if text is not None and re.fullmatch("-?[0-9]+", text) else text


class _NoRequestError(Exception):
    """The record breaks a rule."""


# --- the rules -------------------------------------------------------------------------------------------------------


def _request(record: Record, latest: int, *, no_tokens: int | None = 0, cached_beside_input: bool = False) -> Request:
    """Return the request of a record that keeps all rules.

    Args:
        record: the fields by name.
        latest: the latest moment that is not from the future, in microseconds since 1970.
        no_tokens: the input and output tokens of a record that names none.
        cached_beside_input: cached and written tokens are not part of the input tokens, and are added to them.

    Raises:
        _NoRequestError, DecimalException: the record breaks a rule.
    """
    timestamp = _timestamp(record.get("timestamp"))
    _demand(_FIRST <= timestamp < _END and timestamp <= latest)
    status = _integer(record.get("status"), 100, 599)
    return Request(
        day=timestamp // DAY_MICROSECONDS,
        organization_id=_name(record.get("organization_id"), _ORGANIZATION_ID),
        request_id=_request_id(record.get("request_id")),
        timestamp=timestamp,
        # It may be null, but must be there.
        api_key_id=None if record.get("api_key_id", "") is None else _name(record.get("api_key_id"), _API_KEY_ID),
        cost=_amount(record.get("cost"), COST_LIMIT, COST_DECIMALS),
        synapses=_amount(_or_zero(record.get("synapses")), UNITS_LIMIT, UNITS_DECIMALS),
        neurons=_amount(_or_zero(record.get("neurons")), UNITS_LIMIT, UNITS_DECIMALS),
        model=_label(record.get("model")),
        endpoint=_label(record.get("endpoint")),
        status=status,
        **_tokens(record, no_tokens, cached_beside_input),  # type: ignore[arg-type]  # the names of _TOKENS
    )


def _tokens(record: Record, missing: int | None, cached_beside_input: bool) -> dict[str, int | None]:
    found = {name: _integer(record.get(name), 0, MOST_TOKENS) for name in _TOKENS}
    from_cache = (found["cached_input_tokens"], found["cache_write_tokens"])
    if cached_beside_input and (found["input_tokens"], *from_cache) != (None, None, None):
        found["input_tokens"] = _total(found["input_tokens"], *from_cache)
        _demand(_total(found["input_tokens"]) <= MOST_TOKENS)
    for name in ("input_tokens", "output_tokens"):
        found[name] = missing if found[name] is None else found[name]
    _demand(_total(*from_cache) <= _total(found["input_tokens"]))
    _demand(_total(found["reasoning_tokens"]) <= _total(found["output_tokens"]))
    return found


def _total(*numbers: int | None) -> int:
    return sum(number or 0 for number in numbers)


def _demand(kept: bool) -> None:
    if not kept:
        raise _NoRequestError


def _or_zero(value: Any) -> Any:
    return 0 if value is None else value


_ORGANIZATION_ID = re.compile("[A-Za-z0-9_-]{1,128}")
_API_KEY_ID = re.compile("[A-Za-z0-9_.:-]{1,128}")


def _name(value: Any, pattern: re.Pattern[str]) -> str:
    _demand(type(value) is str and pattern.fullmatch(value) is not None)
    return str(value)


def _request_id(value: Any) -> str:
    _demand(type(value) is str and 1 <= len(value) <= 128)
    # Control characters (C0, delete, C1), and halves of characters, which text cannot hold.
    _demand(value.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in value))
    return str(value)


def _label(value: Any) -> str | None:
    if value is None:
        return None
    _demand(type(value) is str and len(value) <= 256)
    _demand(value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value))
    return str(value)


def _integer(value: Any, low: int, high: int) -> int | None:
    if value is None:
        return None
    _demand(type(value) is int and low <= value <= high)
    return int(value)


_1970 = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _since_1970(moment: datetime) -> int:
    return (moment - _1970) // _MICROSECOND


_FIRST, _END = _since_1970(datetime(2020, 1, 1, tzinfo=UTC)), _since_1970(datetime(2031, 1, 1, tzinfo=UTC))
_CLOCK = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3])(:\d\d){2}(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)


def _timestamp(value: Any) -> int:
    if type(value) is Moment:
        return value
    _demand(type(value) is str and _CLOCK.fullmatch(value) is not None)
    try:
        return _since_1970(datetime.fromisoformat(value))  # cuts to microseconds, knows the calendar
    except ValueError:
        raise _NoRequestError from None


_AMOUNT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

# As many digits as there are. An exponent beyond even this is an exception, not a rounding.
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact, InvalidOperation, Overflow])


def _amount(value: Any, limit: int, decimals: int) -> int:
    """An amount as a count of its smallest unit, 10^-decimals."""
    if type(value) is float:
        _demand(0 <= value < limit)  # NaN is not
        number = Decimal(repr(value))  # the shortest decimal of the double
        _demand(len(number.normalize().as_tuple().digits) <= 15)
    elif type(value) is str:
        _demand(_AMOUNT.fullmatch(value) is not None)
        number = _EXACT.create_decimal(value)
    else:
        _demand(type(value) in (int, Decimal))
        number = Decimal(value)
    if not number:
        return 0
    _demand(0 < number < limit)
    units = _EXACT.scaleb(number, decimals)
    _demand(units == units.to_integral_value(context=_EXACT))
    return int(units)
