"""The plain reading of shipped formats agrees with their SQL on odd values, and with the pipeline on odd lines."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.engine import Engine
from pipeline.format import SHIPPED, Format, read_format
from pipeline.mapping import MappedRecords
from pipeline.records import MAPPED
from pipeline.recount import Mapped, Verdict, mapped_requests_in
from pipeline.recount_formats import PLAIN_FORMATS
from pipeline.recount_traces import Traces
from pipeline.traces import Traces as SqlTraces
from tests.conftest import Place, Record
from tests.test_mutants import LOGS, NOW, PRICES, nginx, recounted, span


class Digits(str):
    """A number, with the digits that stand in the line."""

    __slots__ = ()


LONG = "é" * 257
ODD = st.one_of(
    st.sampled_from([None, "", "-", "0", "7", "-5", "07", "5.0", "1e2", "x", "success", "failure", "batch_1"]),
    st.sampled_from([0, 7, -5, 5.0, 5.5, 2**63, True, False, [], {}, [1], {"a": 1}, LONG, "\ud800"]),
    st.sampled_from(["200", 200, 429, "404", 99, 600, "retrieve_batch", "aget_responses", "chat", "invoke_agent"]),
    st.sampled_from(["LLM", "AGENT", "Embedding", "CHAIN", "messages"]),
    st.sampled_from(
        ["0123", "4.0", "5_00", "+7", " 7", "0200", "10.00000000000000000001", "1.50e3", "true", "[Errno 1] x"]
    ),
    st.sampled_from([1794272401.2500005, "1794272401.5", "2026-11-10T01:00:00Z", 1794276001123456789, "1" * 40]),
)
# Numbers and texts that are read in more than one way: odd spellings of amounts, and texts with a line end.
DIGITS = st.from_regex(r"\A-?[0-9]{1,14}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?\Z")
ODDER = ODD | st.one_of(
    st.builds(Digits, st.from_regex(r"\A-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?\Z")),
    DIGITS,
    st.builds("{}{}".format, DIGITS, st.sampled_from(["\n", " ", "_0", "."])),
    st.sampled_from(
        ["1e-100", "-4e-13", "0.0005", "1e-99999", "5_00", "+7", ".7", "success\n", "429\n", "retrieve_batch\n"]
    ),
    st.sampled_from(
        ["get_a\nb", "list\n", "true", "false", "{}", "[]", '["a"]', "[1m]", "{3F}", '{"', "[1,", "a" * 64]
    ),
    st.sampled_from([["x", 1.50], {"a": [1e5, None]}, [[False]], "0" * 64 + "\n", "1794272401250000.5e-6", "\u0667"]),
)
VALUE = st.one_of(
    ODD,
    st.builds(
        # An empty text stands in no number: whether it is missing there is not defined.
        lambda kind, value: {kind: 7 if value == "" and kind != "stringValue" else value},
        st.sampled_from(["stringValue", "intValue", "doubleValue", "boolValue", "other"]),
        ODD,
    ),
)
ATTRIBUTES = [
    *("gen_ai.operation.name", "llm.request.type", "gen_ai.request.model", "gen_ai.response.model", "gen_ai.system"),
    *("gen_ai.response.id", "error.type", "http.response.status_code", "http.status_code", "keytally.api_key_id"),
    *("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens"),
    *("gen_ai.usage.cache_read_input_tokens", "gen_ai.usage.cache_write.input_tokens"),
    *("keytally.organization_id", "gen_ai.usage.reasoning_tokens", "gen_ai.provider.name"),
    *("llm.usage.total_tokens", "gen_ai.usage.cost", "llm.token_count.prompt", "llm.model_name", "llm.provider"),
    *("openinference.span.kind", "ai.usage.tokens", "gen_ai.usage.details.cache_read_tokens"),
]


ODD_PARTS: dict[str, list[Any]] = {
    "attributes": [None, {}, {"a": 1}, "text", 200, True, [1, None, {"key": 5, "value": 5}, {"key": "error.type"}]],
    "status": [None, {}, [], "2", 2, 200, *({"code": code} for code in (None, 2, 2.0, "2", "STATUS_CODE_ERROR", 1))],
    "startTimeUnixNano": [" 1794276001123456789", "+1794276001123456789", ".7", 1.794e18, "9" * 19, "1" * 20, "0", {}],
    "traceId": [None, {"a": 1}, [1], True, "true", "[x"],
    "parentSpanId": [None, {"a": 1}, [1], False],
}
ODD_PARTS["status"] += [{"code": code} for code in (True, [], {}, "x", 7, 2.5, "")]
PARTS_ABOVE: list[Any] = [None, {}, [], "x", 5, True, [1], [None], ["a"], [{}], [[]]]


@st.composite
def odd_exports(draw: st.DrawFn, export: Any) -> Any:
    """An export of which one part above the spans has another shape; or a few of its spans."""
    resource = export["resourceSpans"][0]
    scope = resource["scopeSpans"][0]
    owner, name = draw(
        st.sampled_from(
            [
                (export, "resourceSpans"),
                *((resource, name) for name in ("resource", "scopeSpans", "instrumentationLibrarySpans")),
                *((scope, name) for name in ("scope", "spans")),
                (resource.setdefault("resource", {}), "attributes"),
            ]
        )
    )
    owner[name] = draw(st.sampled_from(PARTS_ABOVE))
    if draw(st.booleans()) and isinstance(owner[name], list):
        owner[name] = owner[name] + draw(st.sampled_from(PARTS_ABOVE[6:]))
    return export


@st.composite
def odd_records(draw: st.DrawFn, name: str) -> Record:
    """A record of a format with a few values of a wrong shape, or none."""
    record: Any = json.loads(json.dumps(draw(st.sampled_from(LOGS[name]))))
    if name == "otel-genai":
        spans = record["resourceSpans"][0]["scopeSpans"][0]["spans"] or [span(1)]
        changed = spans[0]
        for key in draw(st.lists(st.sampled_from(ATTRIBUTES), max_size=4, unique=True)):
            others = [attribute for attribute in changed["attributes"] if attribute["key"] != key]
            changed["attributes"] = [{"key": key, "value": draw(VALUE)}, *others]
        for field, shapes in ODD_PARTS.items():
            if draw(st.integers(0, 9)) == 0:
                changed[field] = draw(st.sampled_from(shapes))
        if draw(st.integers(0, 5)) == 0:
            return cast("Record", draw(odd_exports(record)))
    else:
        changed = record
    for _ in range(draw(st.integers(0, 3))):
        inner = changed
        while True:
            key = draw(st.sampled_from(sorted(inner)))
            if not isinstance(inner[key], dict) or not inner[key] or draw(st.integers(0, 3)) == 0:
                break
            inner = inner[key]
        if not (name == "otel-genai" and key == "attributes"):
            # No producer's span has a long id; whether a call has a response id is not known there.
            odd = ODD if name == "otel-genai" else ODDER
            inner[key] = draw(odd.filter(lambda value: value != LONG) if key.endswith("Id") else odd)
    return record


def written(value: Any) -> str:
    """A value as JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return str(value) if isinstance(value, Digits) else json.dumps(value)


def read(mapped: Mapped, records: list[Record]) -> list[Verdict]:
    content = "".join(written(record) + "\n" for record in records).encode()
    return list(
        mapped_requests_in(cast("io.RawIOBase", io.BytesIO(content)), ".jsonl", NOW, len(content), mapped, Traces())
    )


@pytest.fixture(scope="module", params=LOGS)
def both(request: pytest.FixtureRequest) -> Iterator[tuple[str, Mapped, Mapped]]:
    """A shipped format read by its SQL, and read plainly."""
    format = read_format(request.param, (SHIPPED / f"{request.param}.sql").read_text(encoding="utf-8"))
    sql = MappedRecords(format)

    def requests_of(texts: Sequence[str]) -> Iterator[tuple[int, Record]]:
        table = sql.requests_of(range(len(texts)), pa.array(texts, pa.string()))
        return ((row.pop("line"), row) for row in table.to_pylist())

    by_sql = Mapped(None, requests_of, None, False, *_terms(format))
    yield format.name, by_sql, by_sql._replace(plain=PLAIN_FORMATS[format.name].reader)
    sql.close()


def _terms(format: Format) -> tuple[Any, ...]:
    terms = format.terms
    plain = PLAIN_FORMATS[format.name]
    assert (terms.book_prices, terms.currency, terms.most_complete) == plain[1:]
    return terms.book_prices, terms.tokens_as_units, terms.currency, terms.cached_beside_input, terms.most_complete


@settings(
    max_examples=int(os.environ.get("KEYTALLY_EXAMPLES", "150")), deadline=None, suppress_health_check=[*HealthCheck]
)
@given(data=st.data())
def test_the_sql_and_the_plain_reading_agree_on_odd_values(
    both: tuple[str, Mapped, Mapped], data: st.DataObject
) -> None:
    name, by_sql, plain = both
    records = data.draw(st.lists(odd_records(name), min_size=20, max_size=40))
    if Counter(read(plain, records)) != Counter(read(by_sql, records)):
        for record in records:
            assert read(plain, [record]) == read(by_sql, [record]), record
        pytest.fail("they differ only on all records together")


ROWS = st.fixed_dictionaries(
    {
        "span": st.integers(0, 6),
        "parent": st.sampled_from([None, 0, 0, 1, 2, 3, 6, 7]),
        "role": st.sampled_from(["call"] * 6 + ["embedding", "agent", None]),
        "status": st.sampled_from(["500"] * 6 + [None, "200", "0429", "600", "x"]),
        "input_tokens": st.sampled_from([None, None, "5", "0", "70", "x"]),
        "output_tokens": st.sampled_from([None, None, None, "5"]),
        "response": st.sampled_from([None] * 5 + ["resp_1", "resp_2"]),
        "scope": st.sampled_from(["one", "two"]),
        "model": st.sampled_from(["m", "m-2024-08-06", "p/m", "n"]),
        "organization_id": st.sampled_from(["a"] * 5 + ["b"]),
    }
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    scratch = tmp_path_factory.mktemp("scratch")
    place = Place(scratch / "data")
    made = Engine(place.settings, place.store, scratch)
    yield made, scratch
    made.close()


@settings(
    max_examples=int(os.environ.get("KEYTALLY_EXAMPLES", "60")), deadline=None, suppress_health_check=[*HealthCheck]
)
@given(rows=st.lists(ROWS, min_size=1, max_size=7, unique_by=lambda row: row["span"]), copies=st.integers(1, 2))
def test_both_readings_resolve_a_trace_alike(
    engine: tuple[Engine, Path], rows: list[dict[str, Any]], copies: int
) -> None:
    """Whatever is above whatever, circles too: the same requests, and the same counts."""
    spans = []
    for row in rows:
        record = f"t-{row['span']}"
        parent = None if row["parent"] is None else f"t-{row['parent']}"
        request = f"t-{row['response'] or row['span']}"
        spans.append({**row, "record_id": record, "parent_id": parent, "request_id": request})
    made = [pa.Table.from_pylist([span], schema=MAPPED) for span in spans * copies]
    with SqlTraces(*engine) as by_sql:
        tables = [by_sql.undoubted(table) for table in made]
        tables += list(by_sql.waiting())
    plain = Traces()
    read = [row for row in plain.resolved(table.to_pylist()[0] for table in made) if not row["skipped"]]
    found = [row for table in tables for row in table.to_pylist()]
    ids = ("record_id", "request_id")
    assert Counter(tuple(row[name] for name in ids) for row in found) == Counter(
        tuple(row[name] for name in ids) for row in read
    )
    assert (by_sql.merged, by_sql.undecided.total()) == (plain.merged, plain.undecided)
    assert len(found) + by_sql.skipped.total() == len(made)


def test_what_is_wrong_in_a_field_that_nobody_reads_costs_no_request(place: Place) -> None:
    """The plain reading and the pipeline take the same lines for records."""

    def line(number: int, agent: bytes, **fields: Any) -> bytes:
        return json.dumps(nginx(number, http_user_agent="AGENT", **fields)).encode().replace(b'"AGENT"', agent) + b"\n"

    agents = [
        b'"caf\xe9"',
        b'"\xff\xfe"',
        b"NaN",
        b"-Infinity",
        b"1e999",
        b'"\\ud800"',
        b'"\\udc00\\ud83d"',
        b'"\\u0000"',
    ]
    agents += [b'"\\x22"', b'"a\tb"', b'"\\u12"', b'{"a": [Infinity]}', b'"' + b"x" * 2**21 + b'"']
    bad = [b"{\n", b"[]\n", b"nul\n", b'{"a": 1} {"a": 2}\n', b"NaN\n"]
    content = b"".join(line(number, agent) for number, agent in enumerate(agents)) + b"".join(bad)
    content += line(98, b'"a"', http_x_org_id="\udfff") + line(99, b'"b"', http_x_model="\ud800")
    content += b'{"resourceLogs": []}\n'
    place.now = NOW
    place.layout.prices.write_text(PRICES, encoding="utf-8")
    place.write_raw("nginx/access.jsonl", content)
    place.roll_up()
    take_in = place.ledger().files["nginx/access.jsonl"].take_in
    assert (take_in.accepted, take_in.quarantined) == (len(agents) + 1, len(bad) + 2)  # number 98 has no organization
    assert recounted(place).as_json()["differences"] == []
    assert {row["model"] for row in place.events("nginx/access.jsonl")} == {"gpt-4o", "\ufffd"}
