"""The rule book: one line, one request or one reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contract.tables import EVENT
from pipeline.format import Terms
from pipeline.line import MAX_LINE_BYTES, NATIVE_FIELDS, Number, Reason, Rejected, read_line, read_record
from tests.conftest import request

LATEST = datetime(2025, 11, 15, 10, 35, tzinfo=UTC)
FIELDS = NATIVE_FIELDS
# A value that breaks each field's own rule, and the reason; in the order of the table.
BROKEN: dict[str, tuple[Any, Reason]] = {
    "request_id": ("", Reason.BAD_ID),
    "timestamp": ("2025-11-31T00:00:00Z", Reason.BAD_TIMESTAMP),
    "organization_id": ("org a", Reason.BAD_ID),
    "api_key_id": ("", Reason.BAD_ID),
    "cost": (-1, Reason.NEGATIVE_AMOUNT),
    "synapses": (10**12, Reason.AMOUNT_OUT_OF_RANGE),
    "neurons": ("0.0000001", Reason.AMOUNT_PRECISION),
    "model": ("x" * 257, Reason.BAD_ID),
    "endpoint": (7, Reason.BAD_TYPE),
    "status": (99, Reason.AMOUNT_OUT_OF_RANGE),
    "input_tokens": (2**63, Reason.AMOUNT_OUT_OF_RANGE),
    "output_tokens": (1.5, Reason.BAD_TYPE),
    "cached_input_tokens": (-1, Reason.AMOUNT_OUT_OF_RANGE),
    "cache_write_tokens": ("1", Reason.BAD_TYPE),
    "reasoning_tokens": (1, Reason.BAD_TYPE),
}


def read(record: dict[str, Any]) -> Any:
    return read_line(json.dumps(record).encode(), LATEST)


def reason_of(line: bytes) -> Reason | None:
    verdict = read_line(line, LATEST)
    return verdict.reason if isinstance(verdict, Rejected) else None


def test_a_whole_request_keeps_every_value() -> None:
    record = request(
        synapses=1.5,
        neurons="2",
        model="m",
        endpoint="/v1",
        status=200,
        input_tokens=3,
        output_tokens=4,
        timestamp="2025-11-10T13:00:00.123456789+01:00",
        something="else",
    )
    moment = datetime(2025, 11, 10, 12, 0, 0, 123456, tzinfo=UTC)
    amounts = (Decimal("0.25"), Decimal("1.5"), Decimal(2))
    assert read(record) == ("req_1", moment, "org_a", "key_1", *amounts, "m", "/v1", 200, 3, 4, *[None] * 7)


def test_what_is_left_out_has_its_default() -> None:
    absent = read(request())
    assert absent[5:] == (Decimal(0), Decimal(0), None, None, None, 0, 0, *[None] * 7)
    assert read(request(currency="any", provider=7)) == absent, "the native format has no such fields"
    assert read(request(**dict.fromkeys(FIELDS[5:]))) == absent


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_has_a_rule_of_its_own(field: str) -> None:
    value, reason = BROKEN[field]
    assert read(request(**{field: value})).reason is reason


@pytest.mark.parametrize("earlier", FIELDS)
@pytest.mark.parametrize("later", FIELDS)
def test_of_two_broken_fields_the_earlier_gives_the_reason(earlier: str, later: str) -> None:
    if FIELDS.index(earlier) < FIELDS.index(later):
        broken = {name: BROKEN[name][0] for name in (later, earlier)}
        assert read({**broken, **{k: v for k, v in request().items() if k not in broken}}).reason is BROKEN[earlier][1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff" * (MAX_LINE_BYTES + 1), Reason.LINE_TOO_LONG),
        (b'{"a": NaN, "b": "\xff"}', Reason.INVALID_UTF8),
        (b"[NaN]", Reason.NOT_JSON),
        (b"[]", Reason.NOT_AN_OBJECT),
        (b"{}", Reason.MISSING_FIELD),
        (b"[" * 100_000, Reason.NOT_JSON),
    ],
)
def test_the_line_is_judged_before_its_fields(line: bytes, reason: Reason) -> None:
    assert reason_of(line) is reason


def test_a_line_from_the_future_says_when_it_heals() -> None:
    assert isinstance(read(request(timestamp="2025-11-15T10:35:00Z")), tuple)
    waiting = read(request(timestamp="2025-11-15T10:35:00.000001Z"))
    assert waiting == Rejected(Reason.FUTURE_TIMESTAMP, datetime(2025, 11, 15, 10, 30, 0, 1, tzinfo=UTC), "timestamp")


@pytest.mark.parametrize(
    ("tokens", "field"),
    [
        ({"input_tokens": 10, "cached_input_tokens": 6, "cache_write_tokens": 4}, None),
        ({"input_tokens": 10, "cached_input_tokens": None, "cache_write_tokens": 10}, None),
        ({"input_tokens": 10, "cached_input_tokens": 11, "cache_write_tokens": "x"}, "cached_input_tokens"),
        ({"input_tokens": 10, "cached_input_tokens": 6, "cache_write_tokens": 5}, "cache_write_tokens"),
        ({"cached_input_tokens": 1}, "cached_input_tokens"),
        ({"output_tokens": 7, "reasoning_tokens": 7}, None),
        ({"output_tokens": 7, "reasoning_tokens": 8}, "reasoning_tokens"),
    ],
)
def test_no_more_tokens_of_a_kind_than_there_are(tokens: dict[str, Any], field: str | None) -> None:
    """Cached and written tokens are part of the input tokens, reasoning tokens are part of the output tokens."""
    verdict = read(request(**tokens))
    assert verdict == Rejected(Reason.BAD_TYPE, field=field) if field else isinstance(verdict, tuple)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((3, 5758, 6174), (11_935, 5758, 6174)),
        ((3, None, 6174), (6177, None, 6174)),
        ((None, 7, None), (7, 7, None)),
        ((3, None, None), (3, None, None)),
        ((None, None, None), (None, None, None)),
    ],
)
def test_tokens_beside_the_input_are_added_to_it(given: Any, kept: Any) -> None:
    names = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
    record = request(**{name: None if n is None else Number(str(n)) for name, n in zip(names, given, strict=True)})
    verdict = read_record(record, LATEST, Terms(cached_beside_input=True))
    assert isinstance(verdict, tuple), verdict
    assert tuple(verdict[EVENT.arrow_schema.names.index(name)] for name in names) == kept


def test_tokens_beside_the_input_are_no_more_than_a_number_holds() -> None:
    record = request(input_tokens=Number(str(2**63 - 1)), cached_input_tokens=Number("1"))
    verdict = read_record(record, LATEST, Terms(cached_beside_input=True))
    assert verdict == Rejected(Reason.AMOUNT_OUT_OF_RANGE, field="cache_write_tokens")


def test_a_record_in_which_nothing_is_found_is_not_of_its_format() -> None:
    nothing = {"request_id": None, "timestamp": None, "organization_id": None, "cost": "1", "api_key_id": "key_1"}
    assert read_record(nothing, LATEST, Terms()) == Rejected(Reason.NOT_THIS_FORMAT)
    assert read_record(nothing, LATEST) == Rejected(Reason.MISSING_FIELD, field="request_id"), "the native one is known"
    for name in ("request_id", "timestamp", "organization_id"):
        assert read_record({**nothing, name: request()[name]}, LATEST, Terms()) != Rejected(Reason.NOT_THIS_FORMAT)


def test_an_amount_of_a_million_digits_is_judged_at_once() -> None:
    for text in ("9" * 1_000_000, "0." + "0" * 1_000_000 + "1", "1e" + "9" * 1_000_000, "0" * 1_000_000 + "1e-3"):
        assert reason_of(json.dumps(request(cost=text)).encode()) in (
            None,
            Reason.AMOUNT_OUT_OF_RANGE,
            Reason.AMOUNT_PRECISION,
        )


@given(
    digits=st.integers(-(10**20), 10**20),
    exponent=st.integers(-25, 8),
    zeros=st.integers(0, 3),
    spell=st.sampled_from(["plain", "exponent", "Exponent"]),
)
def test_an_amount_as_a_string_is_taken_to_its_last_digit(digits: int, exponent: int, zeros: int, spell: str) -> None:
    value = Decimal(digits).scaleb(exponent)
    text = f"{value:f}" if spell == "plain" else f"{digits}{'e' if spell == 'exponent' else 'E'}{exponent:+d}"
    if spell == "plain" and zeros:
        text = text + ("." if "." not in text else "") + "0" * zeros
    verdict = read(request(cost=text))
    if value < 0:
        assert verdict.reason is Reason.NEGATIVE_AMOUNT
    elif value >= 1_000_000:
        assert verdict.reason is Reason.AMOUNT_OUT_OF_RANGE
    elif value != round(value, 12):
        assert verdict.reason is Reason.AMOUNT_PRECISION
    else:
        assert verdict[4] == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_an_amount_as_a_number_is_the_shortest_decimal_of_its_double(number: float) -> None:
    verdict = read(request(cost=number))
    value = Decimal(repr(number))
    if value < 0:
        assert verdict.reason is Reason.NEGATIVE_AMOUNT
    elif value >= 1_000_000:
        assert verdict.reason is Reason.AMOUNT_OUT_OF_RANGE
    elif value != round(value, 12) or len(value.normalize().as_tuple().digits) > 15:
        assert verdict.reason is Reason.AMOUNT_PRECISION
    else:
        assert verdict[4] == value
