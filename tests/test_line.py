"""The rule book: one line, one request or one reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.line import MAX_LINE_BYTES, NATIVE_FIELDS, Reason, Rejected, read_line
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
    assert read(record) == ("req_1", moment, "org_a", "key_1", *amounts, "m", "/v1", 200, 3, 4, None, None)


def test_what_is_left_out_has_its_default() -> None:
    absent = read(request())
    assert absent[5:] == (Decimal(0), Decimal(0), None, None, None, 0, 0, None, None)
    assert read(request(cached_input_tokens="any", currency=7)) == absent, "the native format has no such fields"
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
