"""One line of the raw log: a request, or the reason why not.

This is the rule book in plain Python, and the second look at every line that the bulk read (sql/accept.sql) could
not take. The two must agree: what the bulk read accepts, this accepts with the same values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

from pipeline.contract.layout import FIRST_DAY, LAST_DAY
from pipeline.contract.tables import EVENT
from pipeline.format import Terms

MAX_LINE_BYTES = 1_048_576
MAX_MAPPED_LINE_BYTES = 64 * 2**20  # of a mapped format: a batch of spans is one line, a prompt may be long
FUTURE_TOLERANCE = timedelta(minutes=5)
FIRST_INSTANT = datetime.combine(FIRST_DAY, time(), UTC)
END_INSTANT = datetime.combine(LAST_DAY + timedelta(days=1), time(), UTC)
COST_DIGITS, COST_DECIMALS = 6, 12
UNITS_DIGITS, UNITS_DECIMALS = 12, 6
NUMBER_DIGITS = 15  # what every decimal of that length survives in a double
MAX_TOKENS = 2**63 - 1
# What a line of the native format may hold; the other columns of an event come from mapped formats alone.
NATIVE_FIELDS = tuple(EVENT.arrow_schema.names[: EVENT.arrow_schema.names.index("currency")])


class Reason(StrEnum):
    """Why a line is quarantined, in the order the rules are asked."""

    LINE_TOO_LONG = "line_too_long"
    INVALID_UTF8 = "invalid_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NOT_THIS_FORMAT = "not_this_format"
    MISSING_FIELD = "missing_field"
    BAD_TYPE = "bad_type"
    BAD_ID = "bad_id"
    BAD_TIMESTAMP = "bad_timestamp"
    TIMESTAMP_OUT_OF_RANGE = "timestamp_out_of_range"
    FUTURE_TIMESTAMP = "future_timestamp"
    NEGATIVE_AMOUNT = "negative_amount"
    AMOUNT_OUT_OF_RANGE = "amount_out_of_range"
    AMOUNT_PRECISION = "amount_precision"


@dataclass(frozen=True)
class Rejected:
    """A line that is no request.

    heals_at: when a line from the future may be taken in. field: the one that breaks the rule, where it is of one.
    """

    reason: Reason
    heals_at: datetime | None = None
    field: str | None = None


Request = tuple[Any, ...]  # the values of tables.EVENT, in its order, but for the last one: the number of the line


_Read = Callable[[Mapping[str, Any], datetime, Terms | None], Any]


class Number(str):
    """A JSON number as it was written. A `str` that is no JSON string: tell them apart by `type(value) is str`."""

    __slots__ = ()


class _RuleBrokenError(Exception):
    def __init__(self, reason: Reason, heals_at: datetime | None = None) -> None:
        self.reason = reason
        self.heals_at = heals_at


def is_blank(line: bytes) -> bool:
    """Whether a line (its line end cut off) is no line at all: nothing but spaces and tabs."""
    return not line.strip(b" \t")


def read_line(line: bytes, latest: datetime) -> Request | Rejected:
    """The request that a line (its line end cut off) of the native format holds, or why it holds none.

    A request dated after `latest` is from the future.
    """
    if len(line) > MAX_LINE_BYTES:
        return Rejected(Reason.LINE_TOO_LONG)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return Rejected(Reason.INVALID_UTF8)
    record = parse(text)
    return Rejected(record) if isinstance(record, Reason) else read_record(record, latest)


def parse(text: str) -> dict[str, Any] | Reason:
    """The JSON object that a text is, numbers as `Number`; or the reason why it is none."""
    try:
        record = json.loads(
            text,
            object_pairs_hook=first_of_each_name,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError):
        return Reason.NOT_JSON
    return record if isinstance(record, dict) else Reason.NOT_AN_OBJECT


def read_record(record: Mapping[str, Any], latest: datetime, terms: Terms | None = None) -> Request | Rejected:
    """The request in a parsed record (numbers as `Number`), or the first rule it breaks, field by field.

    terms: what its format says of it, if it was mapped.
    """
    if terms and all(record.get(name) is None for name in _IDENTIFYING):
        return Rejected(Reason.NOT_THIS_FORMAT)
    request: dict[str, Any] = {}
    for field, read in _FIELDS.items():
        try:
            if terms and field in _TEXTS:
                _refuse_other_json(record.get(field))
            request[field] = read(record, latest, terms)
            if check := _CHECKS.get(field):
                check(request, terms)
        except _RuleBrokenError as broken:
            return Rejected(broken.reason, broken.heals_at, field)
    currency = terms.currency if terms and request["cost"] is not None else None
    described = request.pop("deployed_model"), request.pop("provider")
    return *request.values(), currency, *described, terms.most_complete if terms else None


def first_of_each_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which the first counts of a repeated name."""
    return dict(reversed(pairs))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _required(record: Mapping[str, Any], name: str) -> Any:
    if (value := record.get(name)) is None:
        raise _RuleBrokenError(Reason.MISSING_FIELD)
    return value


def _string(value: object) -> str:
    if type(value) is not str:
        raise _RuleBrokenError(Reason.BAD_TYPE)
    return value


# What the SQL of a format makes of a JSON object, a JSON array, true and false, where a field is read as text.
# A text such as '{3F2504E0-4F89}' or 'claude[1m]' is none of them. sql/format_functions.sql has the same pattern.
_OTHER_JSON = re.compile(
    r'true|false|\{(?:".*)?\}|\[(?:|["\[{].*|(?:-?[0-9][0-9.eE+-]*|true|false|null)(?:,.*)?)\]', re.DOTALL
)


def _refuse_other_json(value: object) -> None:
    if isinstance(value, str) and _OTHER_JSON.fullmatch(value):
        raise _RuleBrokenError(Reason.BAD_TYPE)


def _matching(value: object, pattern: re.Pattern[str]) -> str:
    text = _string(value)
    if not pattern.fullmatch(text):
        raise _RuleBrokenError(Reason.BAD_ID)
    return text


# A lone surrogate is half a character: JSON can write it, text cannot hold it.
_REQUEST_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")
_ORGANIZATION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_API_KEY_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TEXT = re.compile(r"[^\ud800-\udfff]{0,256}", re.DOTALL)


def _request_id(record: Mapping[str, Any], *_: object) -> str:
    return _matching(_required(record, "request_id"), _REQUEST_ID)


def _organization_id(record: Mapping[str, Any], *_: object) -> str:
    return _matching(_required(record, "organization_id"), _ORGANIZATION_ID)


def _api_key_id(record: Mapping[str, Any], *_: object) -> str | None:
    if "api_key_id" not in record:
        raise _RuleBrokenError(Reason.MISSING_FIELD)
    value = record["api_key_id"]
    return None if value is None else _matching(value, _API_KEY_ID)


_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)


def _timestamp(record: Mapping[str, Any], latest: datetime, _: object) -> datetime:
    match = _TIMESTAMP.fullmatch(_string(_required(record, "timestamp")))
    if not match:
        raise _RuleBrokenError(Reason.BAD_TIMESTAMP)
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = match.groups()[6:]
    try:
        # The year 0 exists in the grammar but not in Python; 2000 has the same calendar.
        microsecond = int((fraction or "0").ljust(6, "0")[:6])
        local = datetime(year or 2000, month, day, hour, minute, second, microsecond, UTC)
    except ValueError:
        raise _RuleBrokenError(Reason.BAD_TIMESTAMP) from None
    if not FIRST_INSTANT.year - 1 <= year <= END_INSTANT.year:  # beyond any offset; and no overflow below
        raise _RuleBrokenError(Reason.TIMESTAMP_OUT_OF_RANGE)
    offset = timedelta(hours=int(offset_hours or 0), minutes=int(offset_minutes or 0))
    instant = local - (-offset if sign == "-" else offset)
    if not FIRST_INSTANT <= instant < END_INSTANT:
        raise _RuleBrokenError(Reason.TIMESTAMP_OUT_OF_RANGE)
    if instant > latest:
        raise _RuleBrokenError(Reason.FUTURE_TIMESTAMP, heals_at=instant - FUTURE_TOLERANCE)
    return instant


_AMOUNT = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?")


def _amount(value: object, max_digits: int, max_decimals: int) -> Decimal:
    """The exact decimal of an amount below 10^max_digits with at most max_decimals decimals.

    Works on the digits as text: the grammar allows a million of them, and an exponent as long.
    """
    if type(value) is Number:
        text = repr(float(value))  # the shortest decimal of the double
        if text in ("inf", "-inf"):
            raise _RuleBrokenError(Reason.NEGATIVE_AMOUNT if text[0] == "-" else Reason.AMOUNT_OUT_OF_RANGE)
    else:
        text = _string(value)
    match = _AMOUNT.fullmatch(text)
    if not match:
        raise _RuleBrokenError(Reason.BAD_TYPE)
    sign, whole, fraction, exponent_sign, exponent_digits = (part or "" for part in match.groups())
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return Decimal(0)
    if sign:
        raise _RuleBrokenError(Reason.NEGATIVE_AMOUNT)
    # Ten million is past every line's digits: a longer exponent cannot change what is out of range.
    exponent = min(int(exponent_digits.lstrip("0")[:9] or "0"), 10_000_000) * (-1 if exponent_sign == "-" else 1)
    exponent += len(digits) - len(significant) - len(fraction)
    if len(significant) + exponent > max_digits:
        raise _RuleBrokenError(Reason.AMOUNT_OUT_OF_RANGE)
    if -exponent > max_decimals or (type(value) is Number and len(significant) > NUMBER_DIGITS):
        raise _RuleBrokenError(Reason.AMOUNT_PRECISION)
    return Decimal(significant).scaleb(exponent)


def short_amount(text: str) -> str:
    """The same amount in at most 40 characters, or a text that is refused for the same reason."""
    if len(text) <= 40:
        return text
    match = _AMOUNT.fullmatch(text)
    if not match:
        return "no amount"
    sign, whole, fraction, exponent_sign, exponent_digits = (part or "" for part in match.groups())
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return "0"
    # More than 26 digits are too many before the point or behind it, for whatever amount.
    exponent = min(int(exponent_digits.lstrip("0")[:9] or "0"), 10_000_000) * (-1 if exponent_sign == "-" else 1)
    exponent += len(digits) - len(significant) - len(fraction)
    if len(significant) > 26:
        exponent += len(significant) - 26
        significant = significant[:25] + "1"
    return f"{sign}{significant}e{exponent}"


def _cost(record: Mapping[str, Any], _: object, terms: Terms | None) -> Decimal | None:
    if terms and terms.book_prices and record.get("cost") is None:
        return None
    return _amount(_required(record, "cost"), COST_DIGITS, COST_DECIMALS)


def _units(name: str) -> _Read:
    def read(record: Mapping[str, Any], _: object, terms: Terms | None) -> Decimal | None:
        value = record.get(name)
        if value is None:
            return None if terms and terms.tokens_as_units else Decimal(0)
        return _amount(value, UNITS_DIGITS, UNITS_DECIMALS)

    return read


def _text(name: str) -> _Read:
    def read(record: Mapping[str, Any], *_: object) -> str | None:
        value = record.get(name)
        return None if value is None else _matching(value, _TEXT)

    return read


_INTEGER = re.compile(r"(-?)([0-9]+)")


def _integer(value: object, low: int, high: int) -> int:
    match = _INTEGER.fullmatch(value) if type(value) is Number else None
    if not match:
        raise _RuleBrokenError(Reason.BAD_TYPE)
    digits = match[2].lstrip("0") or "0"
    if len(digits) > 19 or not low <= (number := int(match[1] + digits)) <= high:
        raise _RuleBrokenError(Reason.AMOUNT_OUT_OF_RANGE)
    return number


def _status(record: Mapping[str, Any], *_: object) -> int | None:
    value = record.get("status")
    return None if value is None else _integer(value, 100, 599)


def _tokens(name: str, native_default: int | None = None) -> _Read:
    def read(record: Mapping[str, Any], _: object, terms: Terms | None) -> int | None:
        value = record.get(name)
        if value is None:
            return None if terms else native_default
        return _integer(value, 0, MAX_TOKENS)

    return read


def _description(name: str) -> _Read:
    """A text that only mapped formats have."""
    read = _text(name)
    return lambda record, latest, terms: read(record, latest, terms) if terms else None


_Check = Callable[[dict[str, Any], Terms | None], None]


def _check_cached(request: dict[str, Any], terms: Terms | None) -> None:
    """Refuse more tokens read from a cache than input tokens, unless the format counts them beside the input."""
    if not (terms and terms.cached_beside_input) and (request["cached_input_tokens"] or 0) > (
        request["input_tokens"] or 0
    ):
        raise _RuleBrokenError(Reason.BAD_TYPE)


def _check_or_add_cached(request: dict[str, Any], terms: Terms | None) -> None:
    """Refuse more tokens read from a cache and written to it than input tokens; or add both to the input tokens.

    They are added where the format says that its records count them beside the input. This changes `request`.
    """
    parts = (request["cached_input_tokens"], request["cache_write_tokens"])
    from_cache = sum(part or 0 for part in parts)
    if not (terms and terms.cached_beside_input):
        if from_cache > (request["input_tokens"] or 0):
            raise _RuleBrokenError(Reason.BAD_TYPE)
    elif parts != (None, None):
        request["input_tokens"] = (request["input_tokens"] or 0) + from_cache
        if request["input_tokens"] > MAX_TOKENS:
            raise _RuleBrokenError(Reason.AMOUNT_OUT_OF_RANGE)


def _check_reasoning(request: dict[str, Any], _: Terms | None) -> None:
    if (request["reasoning_tokens"] or 0) > (request["output_tokens"] or 0):
        raise _RuleBrokenError(Reason.BAD_TYPE)


_FIELDS: Mapping[str, _Read] = {
    "request_id": _request_id,
    "timestamp": _timestamp,
    "organization_id": _organization_id,
    "api_key_id": _api_key_id,
    "cost": _cost,
    "synapses": _units("synapses"),
    "neurons": _units("neurons"),
    "model": _text("model"),
    "endpoint": _text("endpoint"),
    "status": _status,
    "input_tokens": _tokens("input_tokens", native_default=0),
    "output_tokens": _tokens("output_tokens", native_default=0),
    "cached_input_tokens": _tokens("cached_input_tokens"),
    "cache_write_tokens": _tokens("cache_write_tokens"),
    "reasoning_tokens": _tokens("reasoning_tokens"),
    "deployed_model": _description("deployed_model"),
    "provider": _description("provider"),
}
# What is done once a field is read that depends on fields before it.
_CHECKS: Mapping[str, _Check] = {
    "cached_input_tokens": _check_cached,
    "cache_write_tokens": _check_or_add_cached,
    "reasoning_tokens": _check_reasoning,
}
# The fields of text. The SQL of a mapped format gives text for JSON of every kind.
_TEXTS = frozenset(("request_id", "organization_id", "api_key_id", "model", "endpoint", "deployed_model", "provider"))
# A record of a mapped format in which none of these is found is no record of that format.
_IDENTIFYING = ("request_id", "timestamp", "organization_id")
