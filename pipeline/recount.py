"""A second reading of raw files: the same contract as the intake's, another implementation.

It exists to disagree. Nothing here may come from the intake (line.py, rows.py, raw.py, accept.sql): one line after
another goes through the standard library's JSON and Decimal, and comes out as a request or as none. Why it is none
does not matter here.

A mapped format is defined by its SQL, so that is run here as well, over records read here; what it makes of them goes
through the rules of this module. How rows of CSV and Parquet become its records is given, too.

Amounts are counts of their smallest unit (10^-12 of the currency, 10^-6 synapses or neurons), so that sums are sums
of Python's integers. Memory depends on the longest line, not on the file.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LINE_BYTES = 1_048_576
COST_DECIMALS, UNITS_DECIMALS = 12, 6
COST_LIMIT, UNITS_LIMIT = 10**6, 10**12
DAY_MICROSECONDS = 86_400_000_000
TOLERANCE = timedelta(minutes=5)
TEXT_FIELDS = ("request_id", "timestamp", "organization_id", "api_key_id", "model", "endpoint")
FIELDS = (*TEXT_FIELDS, "cost", "synapses", "neurons", "status", "input_tokens", "output_tokens")

Record = Mapping[str, Any]


class Request(NamedTuple):
    """A request. day: days since 1970; timestamp: microseconds since 1970; amounts in their smallest unit."""

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
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int | None = None
    currency: str | None = None


class Mapped(NamedTuple):
    """A mapped format. requests_of: for some records (JSON), by number, what its SQL makes of each: fields as text.

    rows_of: where its records are no lines, what reads them out of an open file: their texts, None for one that is
    none. skips: a record of which the SQL makes nothing is left out. The others are the terms of its header.
    """

    requests_of: Callable[[Sequence[str]], Iterable[tuple[int, Record]]]
    rows_of: Callable[[Any], Iterator[str | None]] | None
    skips: bool
    book_prices: bool
    tokens_as_units: bool
    currency: str | None


def mapped_requests_in(
    raw: io.RawIOBase, ending: str, taken_at: datetime, size: int, mapped: Mapped
) -> Iterator[Request | None]:
    """The same as `requests_in` for a mapped format, of which a record may hold several requests."""
    latest = _since_1970(taken_at + TOLERANCE)
    for some in _together(_texts(raw, ending, size, mapped)):
        texts = [text for text in some if text is not None]
        yield from (None for _ in range(len(some) - len(texts)))
        seen: set[int] = set()
        for number, record in mapped.requests_of(texts):
            seen.add(number)
            try:
                yield _mapped_request(record, latest, mapped)
            except (_NoRequestError, DecimalException):
                yield None
        if not mapped.skips:
            yield from (None for _ in range(len(texts) - len(seen)))


def _texts(raw: io.RawIOBase, ending: str, size: int, mapped: Mapped) -> Iterator[str | None]:
    """The records, each as JSON without half characters; None for one that is none."""
    if mapped.rows_of is None:
        for value in _objects(raw, ending, size):
            text = None if value is None else json.dumps(value, ensure_ascii=False)
            yield None if text is None else text.encode("utf-8", "replace").decode()
    elif ending == ".parquet" and size:
        yield from mapped.rows_of(raw)
    else:
        with _opened(_Beginning(raw, size), ending, size) as opened:
            yield from mapped.rows_of(opened)


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


def _mapped_request(record: Record, latest: int, mapped: Mapped) -> Request:
    numbers = {name: _number_of(record[name]) for name in ("status", *_TOKENS)}
    cached = _integer(numbers.pop("cached_input_tokens"), 0, 2**63 - 1, None)
    priced = record["cost"] is not None or not mapped.book_prices
    request = _request({**record, **numbers, **({} if priced else {"cost": 0})}, latest)
    without = mapped.tokens_as_units
    return request._replace(
        cost=request.cost if priced else None,
        synapses=None if without and record["synapses"] is None else request.synapses,
        neurons=None if without and record["neurons"] is None else request.neurons,
        cached_input_tokens=cached,
        currency=mapped.currency if priced else None,
    )


_TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens")


def _number_of(text: str | None) -> Any:
    """The integer that a text is, or the text, which no rule for integers takes."""
    return int(text[:400]) if text is not None and re.fullmatch("-?[0-9]+", text) else text


def requests_in(raw: io.RawIOBase, ending: str, taken_at: datetime, size: int) -> Iterator[Request | None]:
    """For each line of an open raw file its request, or None where the line is none; blank lines are left out.

    ending: the extension it is read by. taken_at: the moment at which it was taken in, which decides what is from
    the future. size: bytes of it that are read, from its beginning; of Parquet all is read. Raises what its
    decompressor or Parquet raise when so much of it is not whole.
    """
    latest = _since_1970(taken_at + TOLERANCE)
    records = _rows(raw) if ending == ".parquet" and size else _objects(raw, ending, size)
    for record in records:
        try:
            yield None if record is None else _request(record, latest)
        except (_NoRequestError, DecimalException):
            yield None


class _NoRequestError(Exception):
    """The record breaks a rule."""


# --- the rules -------------------------------------------------------------------------------------------------------


def _request(record: Record, latest: int) -> Request:
    timestamp = _timestamp(record.get("timestamp"))
    _demand(_FIRST <= timestamp < _END and timestamp <= latest)
    status = _integer(record.get("status"), 100, 599, None)
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
        input_tokens=_integer(record.get("input_tokens"), 0, 2**63 - 1, 0) or 0,
        output_tokens=_integer(record.get("output_tokens"), 0, 2**63 - 1, 0) or 0,
    )


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


def _integer(value: Any, low: int, high: int, missing: int | None) -> int | None:
    if value is None:
        return missing
    _demand(type(value) is int and low <= value <= high)
    return int(value)


class _Moment(int):
    """Microseconds since 1970 that Parquet gave as a timestamp: no number in a log is one."""


_1970 = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _since_1970(moment: datetime) -> int:
    return (moment - _1970) // _MICROSECOND


_FIRST, _END = _since_1970(datetime(2020, 1, 1, tzinfo=UTC)), _since_1970(datetime(2031, 1, 1, tzinfo=UTC))
_CLOCK = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3])(:\d\d){2}(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)


def _timestamp(value: Any) -> int:
    if type(value) is _Moment:
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


# --- lines of JSON ---------------------------------------------------------------------------------------------------


def _objects(raw: io.RawIOBase, ending: str, size: int) -> Iterator[Record | None]:
    """The object on each line that is not blank; None where it holds no object."""
    with _opened(_Beginning(raw, size), ending, size) as text:
        for line in _lines(text):
            try:
                value = None if line is None else _JSON.decode(line.decode("utf-8"))
            except (ValueError, RecursionError):
                value = None
            yield value if isinstance(value, dict) else None


def _opened(beginning: _Beginning, ending: str, size: int) -> io.BufferedReader:
    source: Any = io.BufferedReader(beginning, 2**18)
    if size == 0:
        return source  # type: ignore[no-any-return]  # nothing, whatever its name says
    if ending.endswith(".gz"):
        source = gzip.GzipFile(fileobj=source)
    elif ending.endswith(".zst"):
        source = zstd.ZstdFile(source)
    return io.BufferedReader(source, 2**18)


class _Beginning(io.RawIOBase):
    """The first `size` bytes of a file: what was written behind them since is not there."""

    def __init__(self, file: io.RawIOBase, size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left]) or 0
        self._left -= count
        return count


def _lines(text: io.BufferedReader) -> Iterator[bytes | None]:
    """Each line that is not blank, without its end; None for one that is too long."""
    most = LINE_BYTES + 5  # with a byte-order mark and a line end
    mark = b"\xef\xbb\xbf"
    while piece := text.readline(most):
        line = piece.removeprefix(mark)
        mark = b""
        if line.endswith(b"\n"):
            line = line[:-1].removesuffix(b"\r")
        blank = not line.strip(b" \t")
        while len(piece) == most and not piece.endswith(b"\n"):  # too long, and not kept
            piece = text.readline(most)
            blank = blank and not piece.strip(b" \t\r\n")
        if not blank:
            yield line if len(line) <= LINE_BYTES else None


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        record.setdefault(name, value)
    return record


def _no_json(_: str) -> NoReturn:
    raise ValueError


_JSON = json.JSONDecoder(
    object_pairs_hook=_first_of_each,
    parse_int=lambda digits: int(digits[:400]),  # what is longer is out of every range at any length
    parse_constant=_no_json,
)


# --- rows of Parquet -------------------------------------------------------------------------------------------------


def _rows(raw: io.RawIOBase) -> Iterator[Record | None]:
    """Each row as the record it stands for; None where one of its texts is no UTF-8."""
    with pq.ParquetFile(raw, buffer_size=2**20, pre_buffer=False) as parquet:
        names = parquet.schema_arrow.names
        present = [name for name in FIELDS if name in names]
        for batch in parquet.iter_batches(batch_size=4096, columns=present, use_threads=False):
            columns = [_values(batch.column(batch.schema.names.index(name))) for name in present]
            for row in zip(*columns, strict=True):
                yield None if _BROKEN in row else dict(zip(present, row, strict=True))


class _Strange:
    """A value of a type that no rule knows."""


_STRANGE, _BROKEN = _Strange(), _Strange()
_TEXT = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _values(column: pa.Array) -> list[Any]:
    """A column's values in Python's types, and moments where it holds timestamps."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary_decode())
    if str(kind) in _TEXT:
        return [None if value is None else _text(value) for value in column.cast(pa.binary()).to_pylist()]
    if pa.types.is_timestamp(kind):
        per_second = _PER_SECOND[kind.unit]
        counts = column.cast(pa.int64()).to_pylist()  # Python's integers: no instant is too far away
        return [None if count is None else _Moment(count * 10**6 // per_second) for count in counts]
    if any(known(kind) for known in _PLAIN):
        return list(column.to_pylist())
    return [None if missing else _STRANGE for missing in column.is_null().to_pylist()]


_PLAIN = (pa.types.is_null, pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_decimal)


def _text(value: bytes) -> str | _Strange:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return _BROKEN
