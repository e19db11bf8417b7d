"""Read the records of the shipped formats in plain Python: `reconcile` holds the result against that of their SQL.

It exists to disagree: nothing here comes from the SQL. A reader takes a parsed record, in which every number is the
text that stands in the line, and gives the fields of its requests as text. A value without the shape that its field
needs is passed on as its text, so that the field's own rule refuses it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal
from typing import NamedTuple

from pipeline.recount_lines import Record, at, is_other_json, text_of
from pipeline.recount_otel import spans_of

_WIDE = Context(prec=1_000, rounding=ROUND_HALF_EVEN)
# The casts of the SQL hold so many digits before the point, wherever an exponent moves the point to.
_COST_DIGITS, _MOMENT_DIGITS, _MILLISECOND_DIGITS = 8, 12, 15
_NUMBER = re.compile(r"(-?)0*([0-9]+)(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?")
_CODE_OF_ERROR = re.compile("[45][0-9]{2}")
_1970 = datetime(1970, 1, 1, tzinfo=UTC)


class PlainFormat(NamedTuple):
    """A shipped format: its reader, and what holds for all its records."""

    reader: Callable[[Record], Iterable[Record]]
    book_prices: bool
    currency: str | None
    most_complete: bool


# --- LiteLLM ---------------------------------------------------------------------------------------------------------

# Calls that look at an object that exists already, as a poll of a batch does.
_VERBS = frozenset(("get", "retrieve", "list", "cancel", "delete", "update"))
_OBJECTS = ("batch", "file", "video", "vector_store", "vector_store_file")
_VERBS_OF_OBJECTS = (*_VERBS, "status", "content")


def _litellm(record: Record) -> Iterator[Record]:
    """Give the request of a StandardLoggingPayload."""
    usage = at(record, "metadata", "usage_object")
    of_prompt = at(usage, "prompt_tokens_details")
    yield {
        "request_id": _litellm_identity(record),
        "timestamp": _moment(text_of(record.get("startTime"))),
        "organization_id": _first(
            at(record, "metadata", "user_api_key_org_id"), at(record, "metadata", "user_api_key_team_id")
        ),
        "api_key_id": _key(_first(at(record, "metadata", "user_api_key_hash"))),
        "cost": _rounded(text_of(record.get("response_cost"))),
        "model": _litellm_model(record),
        "deployed_model": _first(record.get("model")),
        "provider": _first(record.get("custom_llm_provider")),
        "endpoint": _first(at(record, "metadata", "user_api_key_request_route")),
        "status": _litellm_status(record),
        "input_tokens": text_of(record.get("prompt_tokens")),
        "output_tokens": text_of(record.get("completion_tokens")),
        "cached_input_tokens": _greatest(at(of_prompt, "cached_tokens"), at(usage, "cache_read_input_tokens")),
        "cache_write_tokens": _greatest(
            at(usage, "cache_creation_input_tokens"),
            at(of_prompt, "cache_creation_tokens"),
            at(of_prompt, "cache_write_tokens"),
        ),
        "reasoning_tokens": text_of(at(usage, "completion_tokens_details", "reasoning_tokens")),
    }


def _litellm_identity(record: Record) -> str | None:
    """Return the call's id and the response's: clients may choose the first, servers may repeat the second."""
    call, response = _first(record.get("litellm_call_id")), _first(record.get("id"))
    if call is None or response is None:
        return call or response
    if _is_look(text_of(record.get("call_type")) or ""):
        return response
    return next((text for text in (call, response) if is_other_json(text)), f"{call}/{response}")


def _litellm_model(record: Record) -> str | None:
    """Return the name that was asked for. Instead of one, some releases write the deployment's hash."""
    group, model = _first(record.get("model_group")), _first(record.get("model"))
    is_hash = group is not None and group == text_of(record.get("model_id"))
    return (model or group) if is_hash else (group or model)


def _is_look(call_type: str) -> bool:
    """Return True for a call that looks at an object of another call, or ends it: `aretrieve_batch`, `video_status`."""
    name = call_type.removeprefix("CallTypes.").removeprefix("_")
    return any(_begins_with_look(spelled) for spelled in (name, name.removeprefix("a")))


def _begins_with_look(name: str) -> bool:
    looks = (*_VERBS, *(f"{object_}_{verb}" for object_ in _OBJECTS for verb in _VERBS_OF_OBJECTS))
    return any(name == look or (name.startswith(f"{look}_") and len(name) > len(look) + 1) for look in looks)


def _litellm_status(record: Record) -> str:
    code = text_of(at(record, "error_information", "error_code"))
    if record.get("status") == "success":
        return "200"
    return code if code and _CODE_OF_ERROR.fullmatch(code) else "500"


def _first(*values: object) -> str | None:
    """Return the first value that is neither null nor an empty text."""
    return next((text for value in values if (text := text_of(value))), None)


def _key(text: str | None) -> str | None:
    """Return a key's hash: a rejected key stands in the log as it was sent. A key that is no text is refused."""
    if text is None or re.fullmatch("[0-9a-fA-F]{64}", text):
        return text
    if is_other_json(text):
        return "[]"
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _greatest(*values: object) -> str | None:
    """Return the greatest count; a value that is none comes first, to be refused."""
    texts = [text for value in values if (text := text_of(value)) is not None]
    odd = [text for text in texts if not re.fullmatch("[0-9]{1,400}", text)]
    return odd[0] if odd else max(texts, key=int, default=None)


def _rounded(text: str | None) -> str | None:
    """Return a cost rounded to 12 decimals, half to even: the producer computes it in binary floats.

    A negative cost stays as it is, and is refused, however small it is.
    """
    if text is None or text.startswith("-") or not _is_number(text, _COST_DIGITS):
        return text
    cost = _decimal(text)
    return text if cost.adjusted() > _COST_DIGITS else str(cost.quantize(Decimal("1e-12"), context=_WIDE))


def _is_number(text: str, digits: int) -> bool:
    """Return True for a number with at most so many digits before its point."""
    match = _NUMBER.fullmatch(text)
    return match is not None and len(match[2]) <= digits


def _decimal(text: str) -> Decimal:
    return _WIDE.create_decimal(text)


def _moment(text: str | None) -> str | None:
    """Return the moment that a number of seconds since 1970 stands for, to the microsecond, half to even."""
    if text is None or not _is_number(text, _MOMENT_DIGITS):
        return text
    return _written(int(_decimal(text).scaleb(6, _WIDE).to_integral_value(ROUND_HALF_EVEN))) or text


def _written(microseconds: int) -> str | None:
    """Return a moment's text; None where Python has no such year."""
    try:
        moment = _1970 + timedelta(microseconds=microseconds)
    except OverflowError:
        return None
    return moment.isoformat(timespec="microseconds")


# --- nginx -----------------------------------------------------------------------------------------------------------


def _nginx(record: Record) -> Iterator[Record]:
    """Give the request of a line of the access log."""
    yield {
        "request_id": _known(record, "request_id"),
        "timestamp": _begin(_known(record, "msec"), _known(record, "request_time")),
        "organization_id": _known(record, "http_x_org_id"),
        "api_key_id": _known(record, "http_x_api_key_id"),
        "cost": "0" if record.get("upstream_status") in ("", "-") else None,  # nginx answered without its upstream
        "model": _known(record, "http_x_model"),
        "endpoint": _known(record, "uri"),
        "status": _known(record, "status"),
        "input_tokens": _known(record, "upstream_x_prompt_tokens"),
        "output_tokens": _known(record, "upstream_x_completion_tokens"),
    }


def _known(record: Record, name: str) -> str | None:
    """Return the value of a variable. nginx writes an empty text or a dash for one that has none."""
    text = _first(record.get(name))
    return None if text == "-" else text


def _begin(end: str | None, seconds: str | None) -> str | None:
    """Return when a request began. nginx writes when it ended and how many seconds it took, both in milliseconds."""
    if end is None or seconds is None or not all(_is_number(text, _MILLISECOND_DIGITS) for text in (end, seconds)):
        return end
    milliseconds = [_decimal(text).scaleb(3, _WIDE).to_integral_value(ROUND_HALF_UP) for text in (end, seconds)]
    return _written(1_000 * int(milliseconds[0] - milliseconds[1])) or end


PLAIN_FORMATS: Mapping[str, PlainFormat] = {
    "litellm": PlainFormat(_litellm, book_prices=False, currency="USD", most_complete=True),
    "nginx": PlainFormat(_nginx, book_prices=True, currency=None, most_complete=False),
    "otel-genai": PlainFormat(spans_of, book_prices=True, currency=None, most_complete=True),
}
