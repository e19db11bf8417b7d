"""What nobody reads of a line must not cost a request; what cannot be read is not taken for something else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import SHIPPED
from pipeline.lenient_json import as_json
from pipeline.line import Reason
from tests.conftest import Place
from tests.test_mutants import NOW, PRICES, nginx, recounted


@pytest.mark.parametrize(
    ("line", "made"),
    [
        (b'{"a": NaN, "b": -Infinity, "c": [Infinity]}', {"a": "NaN", "b": "-Infinity", "c": ["Infinity"]}),
        (b'{"a": "NaN", "b": "x -Infinity"}', {"a": "NaN", "b": "x -Infinity"}),
        (b'{"agent": "caf\xe9"}', {"agent": "caf\ufffd"}),
        (b'{"agent": "\xff\xfe", "n": 1}', {"agent": "\ufffd\ufffd", "n": 1}),
        (rb'{"a": "\ud83d\ude00 \ud83d x \\ud83d \ude00"}', {"a": "😀 \ufffd x \\ud83d \ufffd"}),
        (rb'{"a": "\u0000"}', {"a": "\0"}),
        (b'{"a": "x\0y\tz\x1f"}', {"a": "x\0y\tz\x1f"}),
        (rb'{"a": "\x22 \u12"}', {"a": "\ufffdx22 \ufffdu12"}),
        (b'{"N": 1, "Infinity": NaN}', {"N": 1, "Infinity": "NaN"}),
    ],
)
def test_a_value_that_json_does_not_have_is_replaced(line: bytes, made: Any) -> None:
    text = as_json(line)
    assert json.loads(text) == made


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', Reason.NOT_JSON),
        (b'{"a": 1}{"b": 2}', Reason.NOT_JSON),
        (b'{"a": 1,}', Reason.NOT_JSON),
        (b'{"a": Nan}', Reason.NOT_JSON),
        (b'{"a": "\\"}', Reason.NOT_JSON),
        (b"[NaN]", Reason.NOT_AN_OBJECT),
        (b"7", Reason.NOT_AN_OBJECT),
        (b'\0\0\0{"a": 1}', Reason.NOT_JSON),
        (b"\xff\xfe{\0}\0", Reason.NOT_JSON),
        (b'{"a": ' + b"[" * 100_000, Reason.NOT_JSON),
    ],
)
def test_what_holds_no_object_says_why(line: bytes, reason: Reason) -> None:
    assert as_json(line) is reason


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values), st.booleans())
def test_whatever_python_writes_is_read_as_it_is(record: dict[str, Any], ascii_only: bool) -> None:
    """Python writes NaN and Infinity as no JSON."""
    written = json.dumps(record, ensure_ascii=ascii_only)
    expected = json.loads(written, parse_constant=str)
    assert json.loads(as_json(written.encode("utf-8", "surrogatepass"))) == expected


@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_are_an_object_or_not(noise: bytes, position: int) -> None:
    line = b'{"a": "x", "n": 1}'
    made = as_json(line[:position] + noise + line[position:])
    assert isinstance(made, Reason) or isinstance(json.loads(made), dict)


def nested(levels: int, inside: str = "1") -> str:
    """A list in a list, as deep as that."""
    return "[" * levels + inside + "]" * levels


@pytest.mark.parametrize("levels", [50, 500, 950, 1_500, 10_000, 100_000])
def test_a_field_that_nobody_reads_may_be_nested_however_deeply(place: Place, levels: int) -> None:
    """By the shipped SQL and by a format of one's own, for both readings."""
    place.now = NOW
    place.layout.prices.write_text(PRICES, encoding="utf-8")
    place.layout.formats.mkdir(exist_ok=True)
    (place.layout.formats / "house.sql").write_text((SHIPPED / "nginx.sql").read_text(encoding="utf-8"))
    deep = '{"a": ' + nested(levels, '"]", {"b": [2]}') + "}"
    texts = [json.dumps(nginx(number, extra="DEEP")).replace('"DEEP"', deep) for number in range(2)]
    texts.append(json.dumps(nginx(2, http_x_model="DEEP")).replace('"DEEP"', nested(levels)))  # read, and refused
    texts.append(json.dumps(nginx(3, extra="DEEP")).replace('"DEEP"', nested(levels, "1,")))  # no JSON
    texts.append(json.dumps(nginx(4, extra="DEEP")).replace('"DEEP"', nested(levels, "NaN, 1e999")))
    texts.append(json.dumps(nginx(5, extra="DEEP")).replace('"DEEP"', nested(levels)[:-1]))  # no JSON
    for format in ("nginx", "house"):
        place.write_raw(f"{format}/log.jsonl", *texts, json.dumps({"format": format}))
    place.roll_up()
    for format in ("nginx", "house"):
        reasons = [(3, "bad_type"), (4, "not_json"), (6, "not_json"), (7, "not_this_format")]
        assert place.rejected(f"{format}/log.jsonl") == reasons
    assert place.usage()["acme", "2026-11-10"][0] == 3
    assert recounted(place).as_json()["differences"] == []


def test_what_is_cut_off_a_line_that_is_too_deep_lies_100_levels_deep() -> None:
    whole = as_json(('{"a": ' + nested(5_000, '"x"') + ', "b": [[1]]}').encode())
    assert whole == '{"a": ' + nested(98, "null") + ', "b": [[1]]}'
