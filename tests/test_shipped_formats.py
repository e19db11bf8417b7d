"""The shipped formats: what each SQL makes of a record, rule by rule."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.format import read_format
from pipeline.mapping import MappedRecords

FORMATS = Path(__file__).parent.parent / "pipeline" / "formats"
KEY = "a" * 64
NOTHING = object()  # a field that the record does not have
_READY: dict[str, MappedRecords] = {}


@pytest.fixture(scope="module", autouse=True)
def closed_in_the_end() -> Iterator[None]:
    yield
    while _READY:
        _READY.popitem()[1].close()


def made_of(format: str, *records: dict[str, Any] | str) -> list[dict[str, Any]]:
    """What a shipped format makes of these records, one a line; fields that are null are left out, and so is `line`."""
    if format not in _READY:
        _READY[format] = MappedRecords(read_format(format, (FORMATS / f"{format}.sql").read_text(encoding="utf-8")))
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    rows = _READY[format].requests_of(range(1, len(lines) + 1), pa.array(lines)).to_pylist()
    return [{name: value for name, value in row.items() if value is not None and name != "line"} for row in rows]


def only(format: str, record: dict[str, Any] | str) -> dict[str, Any]:
    (row,) = made_of(format, record)
    return row


def changed(record: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The record with other values at these paths (`metadata.usage_object`); NOTHING takes a field away."""
    record = json.loads(json.dumps(record))
    for path, value in changes.items():
        *parents, name = path.split(".")
        at = record
        for parent in parents:
            if not isinstance(at.get(parent), dict):
                at[parent] = {}
            at = at[parent]
        if value is NOTHING:
            at.pop(name, None)
        else:
            at[name] = value
    return record


# --- litellm ---------------------------------------------------------------------------------------------------------

LITELLM = {
    "id": "chatcmpl-1",
    "litellm_call_id": "call-1",
    "call_type": "acompletion",
    "status": "success",
    "custom_llm_provider": "openai",
    "startTime": 1794272401.25,
    "model": "openai/gpt-4o-2024-08-06",
    "model_group": "gpt-4o",
    "metadata": {
        "user_api_key_hash": KEY,
        "user_api_key_org_id": "acme",
        "user_api_key_team_id": "team-1",
        "user_api_key_request_route": "/v1/chat/completions",
        "usage_object": {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": None},
    },
    "response_cost": 3.2200000000000003e-05,
    "prompt_tokens": 100,
    "completion_tokens": 10,
    "error_information": {"error_code": ""},
}
USAGE = "metadata.usage_object"
READS = "prompt_tokens_details.cached_tokens", "cache_read_input_tokens"
WRITES = (
    "prompt_tokens_details.cache_creation_tokens",
    "prompt_tokens_details.cache_write_tokens",
    "cache_creation_input_tokens",
)


def test_a_call_of_litellm() -> None:
    assert only("litellm", LITELLM) == {
        "request_id": "call-1/chatcmpl-1",
        "timestamp": "2026-11-10T01:00:01.250000Z",
        "organization_id": "acme",
        "api_key_id": KEY,
        "cost": "0.000032200000",
        "model": "gpt-4o",
        "deployed_model": "openai/gpt-4o-2024-08-06",
        "provider": "openai",
        "endpoint": "/v1/chat/completions",
        "status": "200",
        "input_tokens": "100",
        "output_tokens": "10",
    }


@pytest.mark.parametrize(
    ("field", "changes", "expected"),
    [
        ("request_id", {"id": ""}, "call-1"),
        ("request_id", {"id": NOTHING}, "call-1"),
        ("request_id", {"litellm_call_id": None}, "chatcmpl-1"),
        ("request_id", {"litellm_call_id": "", "id": ""}, None),
        ("request_id", {"call_type": None}, "call-1/chatcmpl-1"),
        ("organization_id", {"metadata.user_api_key_org_id": None}, "team-1"),
        ("organization_id", {"metadata.user_api_key_org_id": ""}, "team-1"),
        ("organization_id", {"metadata.user_api_key_org_id": "", "metadata.user_api_key_team_id": ""}, None),
        ("api_key_id", {"metadata.user_api_key_hash": ""}, None),
        ("api_key_id", {"metadata.user_api_key_hash": None}, None),
        ("api_key_id", {"metadata.user_api_key_hash": KEY.upper()}, KEY.upper()),
        ("api_key_id", {"metadata.user_api_key_hash": "sk-1"}, "sha256:" + hashlib.sha256(b"sk-1").hexdigest()),
        ("model", {"model_group": ""}, "openai/gpt-4o-2024-08-06"),
        ("model", {"model_group": NOTHING}, "openai/gpt-4o-2024-08-06"),
        ("model", {"model_group": "", "model": ""}, None),
        ("model", {"model_group": "0f" * 32, "model_id": "0f" * 32}, "openai/gpt-4o-2024-08-06"),
        ("model", {"model_group": "0f" * 32, "model_id": "0f" * 32, "model": ""}, "0f" * 32),
        ("model", {"model_group": "gpt", "model_id": "0f" * 32}, "gpt"),
        ("deployed_model", {"model": ""}, None),
        ("provider", {"custom_llm_provider": ""}, None),
        ("endpoint", {"metadata.user_api_key_request_route": ""}, None),
        ("status", {"status": "failure"}, "500"),
        ("status", {"status": "failure", "error_information": None}, "500"),
        ("status", {"status": "failure", "error_information.error_code": "200"}, "500"),
        ("status", {"status": "failure", "error_information.error_code": "429"}, "429"),
        ("status", {"status": "failure", "error_information.error_code": 503}, "503"),
        ("status", {"status": "failure", "error_information.error_code": "600"}, "500"),
        ("status", {"status": "failure", "error_information.error_code": "context_length_exceeded"}, "500"),
        ("timestamp", {"startTime": "yesterday"}, "yesterday"),
        ("timestamp", {"startTime": ""}, None),
        ("cost", {"response_cost": "NaN"}, "NaN"),
        ("cost", {"response_cost": None}, None),
        ("input_tokens", {"prompt_tokens": None}, None),
        ("input_tokens", {"prompt_tokens": "many"}, "many"),
        ("output_tokens", {"completion_tokens": ""}, ""),
        ("cached_input_tokens", {f"{USAGE}.{READS[0]}": 0, f"{USAGE}.{READS[1]}": 2455}, "2455"),
        ("cached_input_tokens", {f"{USAGE}.{READS[0]}": 2455, f"{USAGE}.{READS[1]}": 0}, "2455"),
        ("cached_input_tokens", {f"{USAGE}.{READS[0]}": 900, f"{USAGE}.{READS[1]}": 1000}, "1000"),
        ("cached_input_tokens", {f"{USAGE}.{READS[0]}": None, f"{USAGE}.{READS[1]}": 0}, "0"),
        ("cached_input_tokens", {f"{USAGE}.{READS[0]}": "many", f"{USAGE}.{READS[1]}": 7}, "many"),
        ("cached_input_tokens", {f"{USAGE}.{READS[0]}": 7, f"{USAGE}.{READS[1]}": -1}, "-1"),
        ("cached_input_tokens", {f"{USAGE}.{READS[0]}": 7, f"{USAGE}.{READS[1]}": 1.5}, "1.5"),
        ("cached_input_tokens", {f"{USAGE}.{READS[0]}": 7, f"{USAGE}.{READS[1]}": "9" * 39}, "9" * 39),
        ("cached_input_tokens", {USAGE: None}, None),
        *(
            ("cache_write_tokens", {f"{USAGE}.{other}": 6174 if other == name else 0 for other in WRITES}, "6174")
            for name in WRITES
        ),
        ("cache_write_tokens", {f"{USAGE}.{WRITES[1]}": {"ephemeral": 5}}, '{"ephemeral":5}'),
        ("reasoning_tokens", {f"{USAGE}.completion_tokens_details": {"reasoning_tokens": 640}}, "640"),
        ("reasoning_tokens", {f"{USAGE}.completion_tokens_details": {"reasoning_tokens": True}}, "true"),
    ],
)
def test_a_field_of_litellm(field: str, changes: dict[str, Any], expected: str | None) -> None:
    assert only("litellm", changed(LITELLM, changes)).get(field) == expected


@pytest.mark.parametrize(
    ("looks", "call_types"),
    [
        (
            True,
            "retrieve_batch cancel_batch get_responses delete_responses cancel_responses list_input_items file_retrieve"
            " file_content file_delete video_status video_retrieve video_retrieve_job video_content video_get_character"
            " video_delete retrieve_fine_tuning_job cancel_fine_tuning_job retrieve_container delete_container"
            " get_assistants get_thread get_messages vector_store_retrieve vector_store_file_retrieve"
            " vector_store_file_content vector_store_file_update get_run get retrieve",
        ),
        (
            False,
            "completion text_completion embedding responses compact_responses create_batch create_video"
            " video_generation video_remix video_edit image_generation transcription speech rerank search moderation"
            " generate_content generate_content_stream create_file create_fine_tuning_job run_thread add_message"
            " vector_store_create vector_store_search create_container anthropic_messages send_message"
            " pass_through_endpoint llm_passthrough_route realtime responses_websocket ocr",
        ),
    ],
)
def test_a_look_at_an_object_of_litellm_has_the_id_of_the_object(looks: bool, call_types: str) -> None:
    spellings = [
        spelt for name in call_types.split() for spelt in (name, f"a{name}", f"_a{name}", f"CallTypes.a{name}")
    ]
    rows = made_of("litellm", *(changed(LITELLM, {"call_type": spelt}) for spelt in spellings))
    wrong = [
        spelt
        for spelt, row in zip(spellings, rows, strict=True)
        if row["request_id"] != ("chatcmpl-1" if looks else "call-1/chatcmpl-1")
    ]
    assert not wrong


def test_a_look_at_nothing_has_the_id_of_its_call() -> None:
    assert only("litellm", changed(LITELLM, {"call_type": "aget_responses", "id": ""}))["request_id"] == "call-1"


def test_another_field_than_the_team_may_stand_for_the_organization() -> None:
    text = (FORMATS / "litellm.sql").read_text(encoding="utf-8")
    block = text[: text.index("from records")]
    assert block.count("user_api_key_team_id") == 2, "the word is in the header and in the first block"
    ready = MappedRecords(read_format("mine", text.replace("user_api_key_team_id", "user_api_key_project_id")))
    record = changed(LITELLM, {"metadata.user_api_key_org_id": None, "metadata.user_api_key_project_id": "project"})
    (row,) = ready.requests_of([1], pa.array([json.dumps(record)])).to_pylist()
    ready.close()
    assert row["organization_id"] == "project"


# --- nginx -----------------------------------------------------------------------------------------------------------

NGINX = {
    "msec": 1795387853.004,
    "request_id": "9ebe20456ead170ee897ea6852ee346f",
    "uri": "/v1/chat/completions",
    "status": 200,
    "request_time": 0.055,
    "http_x_org_id": "acme",
    "http_x_api_key_id": "key_1",
    "http_x_model": "mini",
    "upstream_x_prompt_tokens": "10",
    "upstream_x_completion_tokens": "20",
}


def test_a_request_of_nginx() -> None:
    assert only("nginx", NGINX) == {
        "request_id": "9ebe20456ead170ee897ea6852ee346f",
        "timestamp": "2026-11-22T22:50:52.949000Z",
        "organization_id": "acme",
        "api_key_id": "key_1",
        "model": "mini",
        "endpoint": "/v1/chat/completions",
        "status": "200",
        "input_tokens": "10",
        "output_tokens": "20",
    }


@pytest.mark.parametrize(("status", "cost"), [("200", None), ("", "0"), ("-", "0"), (None, None), (NOTHING, None)])
def test_an_answer_of_nginx_without_its_upstream_costs_nothing(status: Any, cost: str | None) -> None:
    assert only("nginx", changed(NGINX, {"upstream_status": status})).get("cost") == cost


@pytest.mark.parametrize("missing", ["", "-", None, NOTHING])
@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("request_id", "request_id"),
        ("http_x_org_id", "organization_id"),
        ("http_x_api_key_id", "api_key_id"),
        ("http_x_model", "model"),
        ("upstream_x_prompt_tokens", "input_tokens"),
        ("upstream_x_completion_tokens", "output_tokens"),
    ],
)
def test_a_variable_of_nginx_without_a_value_is_missing(name: str, column: str, missing: Any) -> None:
    row = only("nginx", changed(NGINX, {name: missing}))
    expected = only("nginx", NGINX)
    del expected[column]
    assert row == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"msec": "late"}, {"timestamp": "late"}),
        ({"request_time": "long"}, {"timestamp": "1795387853.004"}),
        ({"upstream_x_prompt_tokens": "ten"}, {"input_tokens": "ten"}),
        ({"upstream_x_completion_tokens": "2.5"}, {"output_tokens": "2.5"}),
    ],
)
def test_what_nginx_wrote_and_nobody_can_read_reaches_its_field(changes: Any, expected: dict[str, str]) -> None:
    assert only("nginx", changed(NGINX, changes)).items() >= expected.items()


# --- otel-genai ------------------------------------------------------------------------------------------------------

TRACE = "0" * 31 + "1"
CALL = {
    "keytally.organization_id": "acme",
    "keytally.api_key_id": "key_1",
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.response.id": "chatcmpl-1",
    "gen_ai.usage.input_tokens": 500,
    "gen_ai.usage.output_tokens": 150,
}


def listed(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    """Attributes as OTLP lists them. A dict as value stands as it is, as does a value that OTLP wraps in none."""
    return [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}}
        if isinstance(value, str | int)
        else {"key": key, "value": value}
        for key, value in attributes.items()
        if value is not NOTHING
    ]


def span(changes: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A span of CALL with other attributes and, by keyword, other fields."""
    given = {
        "traceId": TRACE,
        "spanId": "00000000000000a1",
        "parentSpanId": "00000000000000a0",
        "startTimeUnixNano": "1794276001123456789",
        "attributes": listed({**CALL, **(changes or {})}),
        "status": {},
        **fields,
    }
    return {name: value for name, value in given.items() if value is not NOTHING}


def exported(*spans: Any, resource: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": listed(resource or {})},
                "scopeSpans": [{"scope": {"name": "openai_v2"}, "spans": list(spans)}],
            }
        ]
    }


def test_a_call_of_opentelemetry() -> None:
    assert only("otel-genai", exported(span())) == {
        "request_id": f"{TRACE}-chatcmpl-1",
        "timestamp": "2026-11-10T02:00:01.123456Z",
        "organization_id": "acme",
        "api_key_id": "key_1",
        "model": "gpt-4o",
        "deployed_model": "gpt-4o-2024-08-06",
        "provider": "openai",
        "endpoint": "chat",
        "input_tokens": "500",
        "output_tokens": "150",
        "record_id": f"{TRACE}-00000000000000a1",
        "parent_id": f"{TRACE}-00000000000000a0",
        "role": "call",
        "scope": "openai_v2",
    }


INPUT, OUTPUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"


@pytest.mark.parametrize(
    ("column", "newest_first"),
    [
        ("input_tokens", [INPUT, "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens", "llm.token_count.prompt"]),
        (
            "output_tokens",
            [
                OUTPUT,
                "gen_ai.usage.completion_tokens",
                "llm.usage.completion_tokens",
                "llm.token_count.completion",
            ],
        ),
        (
            "cached_input_tokens",
            [
                "gen_ai.usage.cache_read.input_tokens",
                "gen_ai.usage.cache_read_input_tokens",
                "gen_ai.usage.cached_input_tokens",
                "gen_ai.usage.cache_read_tokens",
                "gen_ai.usage.cached_tokens",
                "gen_ai.usage.input_cached_tokens",
                "gen_ai.usage.input_tokens.cached",
                "gen_ai.usage.input_tokens_details.cached_tokens",
                "gen_ai.usage.prompt_tokens_details.cached_tokens",
                "gen_ai.usage.prompt_tokens_details.cache_read",
                "gen_ai.usage.details.cache_read_tokens",
                "llm.token_count.prompt_details.cache_read",
            ],
        ),
        (
            "cache_write_tokens",
            [
                "gen_ai.usage.cache_creation.input_tokens",
                "gen_ai.usage.cache_write.input_tokens",
                "gen_ai.usage.cache_creation_input_tokens",
                "gen_ai.usage.cache_write_input_tokens",
                "gen_ai.usage.input_tokens.cache_write",
                "gen_ai.usage.prompt_tokens_details.cache_write",
                "gen_ai.usage.details.cache_write_tokens",
                "llm.token_count.prompt_details.cache_write",
            ],
        ),
        (
            "reasoning_tokens",
            [
                "gen_ai.usage.reasoning.output_tokens",
                "gen_ai.usage.reasoning_tokens",
                "gen_ai.usage.output_tokens.reasoning",
                "gen_ai.usage.output_tokens_details.reasoning_tokens",
                "gen_ai.usage.completion_tokens_details.reasoning_tokens",
                "gen_ai.usage.completion_tokens_details.reasoning",
                "gen_ai.usage.details.reasoning_tokens",
                "llm.token_count.completion_details.reasoning",
            ],
        ),
    ],
)
def test_every_name_of_the_tokens_is_read(column: str, newest_first: list[str]) -> None:
    none = {INPUT: NOTHING, OUTPUT: NOTHING}
    assert column not in only("otel-genai", exported(span(none)))
    for at, name in enumerate(newest_first):
        older = dict.fromkeys(newest_first[at + 1 :], 1)
        newer = {other: {"intValue": None} for other in newest_first[:at]}
        assert only("otel-genai", exported(span({**none, **older, name: 77, **newer})))[column] == "77", name


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"intValue": "500"}, "500"),
        ({"intValue": 500}, "500"),
        ({"doubleValue": 500}, "500"),
        ({"doubleValue": 500.0}, "500"),
        ({"doubleValue": "5e2"}, "500"),
        ({"stringValue": "500"}, "500"),
        (500.0, "500"),
        ({"doubleValue": 0.0}, "0"),
        ({"intValue": "9223372036854775807"}, "9223372036854775807"),
        ({"intValue": "-5"}, "-5"),
        ({"doubleValue": 499.5}, "499.5"),
        ({"doubleValue": "NaN"}, "NaN"),
        ({"stringValue": "many"}, "many"),
        ({"stringValue": "500.0"}, "500.0"),
        ({"doubleValue": "1.50e3"}, "1500"),
        ({"doubleValue": "-5.0"}, "-5"),
        ({"doubleValue": "10.00000000000000000001"}, "10.00000000000000000001"),
        ({"doubleValue": "5_00"}, "5_00"),
        ({"doubleValue": "+7"}, "+7"),
        ({"doubleValue": " 7"}, " 7"),
        ({"doubleValue": "0123.0"}, "0123.0"),
        ("4.0", "4.0"),
        ({"intValue": True}, '{"intValue":true}'),
        ({"stringValue": None, "intValue": None}, None),
        ({"stringValue": ""}, ""),
        ({"boolValue": True}, '{"boolValue":true}'),
        ({"arrayValue": {"values": []}}, '{"arrayValue":{"values":[]}}'),
        ([500], "[500]"),
        ({"intValue": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_number_of_tokens_in_every_spelling(value: Any, expected: str | None) -> None:
    assert only("otel-genai", exported(span({INPUT: value}))).get("input_tokens") == expected


def test_a_bare_value_counts() -> None:
    text = (
        json.dumps(exported(span())).replace('{"intValue": "500"}', "500").replace('{"stringValue": "gpt-4o"}', '"m"')
    )
    row = only("otel-genai", text)
    assert (row["input_tokens"], row["model"]) == ("500", "m")


@pytest.mark.parametrize(
    ("field", "changes", "expected"),
    [
        ("request_id", {"gen_ai.response.id": NOTHING}, f"{TRACE}-00000000000000a1"),
        ("request_id", {"gen_ai.response.id": ""}, f"{TRACE}-00000000000000a1"),
        ("model", {"gen_ai.request.model": NOTHING}, "gpt-4o-2024-08-06"),
        ("model", {"gen_ai.request.model": ""}, "gpt-4o-2024-08-06"),
        ("model", {"llm.model_name": "other"}, "gpt-4o"),
        ("model", {"gen_ai.request.model": NOTHING, "llm.model_name": "gpt-4o-mini"}, "gpt-4o-mini"),
        ("provider", {"llm.provider": "azure"}, "openai"),
        ("provider", {"gen_ai.provider.name": NOTHING, "llm.provider": "azure"}, "azure"),
        ("endpoint", {"gen_ai.operation.name": NOTHING, "openinference.span.kind": "LLM"}, "LLM"),
        ("deployed_model", {"gen_ai.response.model": NOTHING}, None),
        ("provider", {"gen_ai.provider.name": NOTHING, "gen_ai.system": "OpenAI"}, "OpenAI"),
        ("endpoint", {"gen_ai.operation.name": NOTHING, "llm.request.type": "completion"}, "completion"),
        ("api_key_id", {"keytally.api_key_id": ""}, None),
        ("status", {"http.response.status_code": 200}, "200"),
        ("status", {"http.status_code": 404}, "404"),
        ("status", {"http.response.status_code": "fine"}, "fine"),
        ("status", {"error.type": "RateLimitError"}, "500"),
        ("status", {"error.type": "429"}, "429"),
        ("status", {"error.type": "200"}, "500"),
        ("status", {"error.type": "ReadError", "http.response.status_code": 200}, "500"),
        ("status", {"error.type": "503", "http.response.status_code": 429}, "429"),
        ("status", {"error.type": "ReadError", "http.response.status_code": "fine"}, "fine"),
        ("status", {"error.type": ""}, None),
        ("status", {"error.type": "[Errno 111] Connection refused"}, "500"),
        ("status", {"error.type": "ReadError", "http.response.status_code": "0200"}, "500"),
        ("status", {"error.type": "ReadError", "http.response.status_code": "0429"}, "0429"),
        ("endpoint", {"gen_ai.operation.name": NOTHING, "llm.request.type": ""}, None),
        ("model", {"gen_ai.request.model": {"boolValue": False}}, '{"boolValue":false}'),
        ("model", {"gen_ai.request.model": {"arrayValue": {}}}, '{"arrayValue":{}}'),
        ("model", {"gen_ai.request.model": {"doubleValue": 4.0}}, '{"doubleValue":4.0}'),
        ("model", {"gen_ai.request.model": {"intValue": "4"}}, "4"),
    ],
)
def test_a_field_of_opentelemetry(field: str, changes: dict[str, Any], expected: str | None) -> None:
    assert only("otel-genai", exported(span(changes))).get(field) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        *(({"status": {"code": code}}, {"status": "500"}) for code in (2, "2", 2.0, "STATUS_CODE_ERROR")),
        *(({"status": {"code": code}}, {"status": None}) for code in (None, 0, "0", 1.0, "STATUS_CODE_OK")),
        ({"status": None}, {"status": None}),
        ({"startTimeUnixNano": " 1794276001123456789"}, {"timestamp": " 1794276001123456789"}),
        ({"startTimeUnixNano": "+1794276001123456789"}, {"timestamp": "+1794276001123456789"}),
        ({"startTimeUnixNano": ".7"}, {"timestamp": ".7"}),
        ({"startTimeUnixNano": "01794276001123456789"}, {"timestamp": "01794276001123456789"}),
        ({"startTimeUnixNano": 1.794e18}, {"timestamp": "1.794e+18"}),
        ({"status": {"code": "STATUS_CODE_ERROR", "message": "no"}}, {"status": "500"}),
        ({"status": {"code": 1}}, {"status": None}),
        ({"status": NOTHING}, {"status": None}),
        ({"startTimeUnixNano": 1794276001123456789}, {"timestamp": "2026-11-10T02:00:01.123456Z"}),
        ({"startTimeUnixNano": "soon"}, {"timestamp": "soon"}),
        ({"startTimeUnixNano": ""}, {"timestamp": None}),
        ({"parentSpanId": ""}, {"parent_id": None}),
        ({"parentSpanId": NOTHING}, {"parent_id": None}),
        ({"traceId": ""}, {"request_id": None, "record_id": None}),
        ({"spanId": ""}, {"request_id": f"{TRACE}-chatcmpl-1", "record_id": None}),
    ],
)
def test_a_field_beside_the_attributes(fields: dict[str, Any], expected: dict[str, str | None]) -> None:
    row = only("otel-genai", exported(span(**fields)))
    assert {name: row.get(name) for name in expected} == expected


@pytest.mark.parametrize("value", ["0123", "4.0", "5_00", "+7", " 7", "1e2"])
@pytest.mark.parametrize("is_bare", [True, False])
def test_a_text_that_looks_like_a_number_stays_as_it_is(value: str, is_bare: bool) -> None:
    names = ("keytally.organization_id", "keytally.api_key_id", "gen_ai.request.model", "gen_ai.response.id")
    attributes = [{"key": name, "value": value if is_bare else {"stringValue": value}} for name in names]
    rest = listed({"gen_ai.operation.name": "chat"})
    row = only("otel-genai", exported(span(attributes=attributes + rest)))
    assert (row["organization_id"], row["api_key_id"], row["model"]) == (value, value, value)
    assert row["request_id"] == f"{TRACE}-{value}"


@pytest.mark.parametrize(
    ("changes", "fields", "status"),
    [
        ({"error.type": {"boolValue": False}}, {}, '{"boolValue":false}'),
        ({"error.type": {"kvlistValue": {"values": []}}}, {}, '{"kvlistValue":{"values":[]}}'),
        ({"gen_ai.response.id": {"arrayValue": {"values": []}}}, {}, '{"arrayValue":{"values":[]}}'),
        ({"gen_ai.operation.name": {"bytesValue": "YQ=="}}, {}, '{"bytesValue":"YQ=="}'),
        ({"gen_ai.operation.name": NOTHING, "openinference.span.kind": {"boolValue": True}}, {}, '{"boolValue":true}'),
        ({"gen_ai.operation.name": NOTHING, "llm.request.type": {"boolValue": True}}, {}, '{"boolValue":true}'),
        ({}, {"attributes": {"a": 1}}, '{"attributes":{"a":1}}'),
        ({}, {"attributes": 200}, '{"attributes":200}'),
        ({}, {"attributes": "text"}, '{"attributes":"text"}'),
        ({}, {"status": 200}, '{"status":200}'),
        ({}, {"status": [{"code": 2}]}, '{"status":[{"code":2}]}'),
        ({}, {"status": {"code": True}}, '{"status":{"code":true}}'),
        ({}, {"status": {"code": "ERROR"}}, '{"status":{"code":"ERROR"}}'),
        ({}, {"traceId": {"a": 1}}, '{"a":1}'),
        ({}, {"spanId": True}, "true"),
        ({}, {"parentSpanId": [1]}, "[1]"),
    ],
)
def test_a_part_of_another_kind_stands_in_the_status_where_it_is_refused(
    changes: dict[str, Any], fields: dict[str, Any], status: str
) -> None:
    """It is not hidden in an id that is made of several parts, it fails no call, and its span is not skipped."""
    row = only("otel-genai", exported(span(changes, **fields)))
    assert (row["status"], row.get("skipped")) == (status, None)


def test_a_status_of_error_fails_a_call_whatever_its_http_status() -> None:
    failed = {"status": {"code": 2}}
    assert only("otel-genai", exported(span({"http.response.status_code": 200}, **failed)))["status"] == "500"
    assert only("otel-genai", exported(span({"http.response.status_code": 429}, **failed)))["status"] == "429"


def test_the_span_before_its_resource_says_whose_call_it_was() -> None:
    resource = {"keytally.organization_id": "tenant", "keytally.api_key_id": "key_t", "service.name": "s"}
    bare = {"keytally.organization_id": NOTHING, "keytally.api_key_id": ""}
    rows = made_of("otel-genai", exported(span(), span(bare), resource=resource))
    assert [(row["organization_id"], row["api_key_id"]) for row in rows] == [("acme", "key_1"), ("tenant", "key_t")]


NO_TOKENS = {INPUT: NOTHING, OUTPUT: NOTHING}
CALLS = (
    *("chat", "text_completion", "generate_content", "chat.completions", "text.completions"),
    *("completion", "acompletion", "messages", "responses", "Chat", "TEXT_COMPLETION"),
)
OPENINFERENCE = {**NO_TOKENS, "gen_ai.operation.name": NOTHING, "llm.token_count.prompt": 5}
VERCEL = {**NO_TOKENS, "gen_ai.operation.name": NOTHING, "ai.usage.promptTokens": 5}


@pytest.mark.parametrize(
    ("changes", "role", "skipped"),
    [
        *(({"gen_ai.operation.name": name}, "call", None) for name in CALLS),
        *(({"gen_ai.operation.name": name}, "embedding", None) for name in ("embeddings", "embedding", "Embeddings")),
        ({"gen_ai.operation.name": NOTHING, "llm.request.type": "embedding"}, "embedding", None),
        (OPENINFERENCE, "call", None),
        ({**OPENINFERENCE, "openinference.span.kind": "LLM"}, "call", None),
        ({**OPENINFERENCE, "openinference.span.kind": "LLM", "llm.token_count.prompt": NOTHING}, "call", None),
        ({**OPENINFERENCE, "openinference.span.kind": "EMBEDDING"}, "embedding", None),
        ({**OPENINFERENCE, "openinference.span.kind": "AGENT"}, "agent", None),
        ({**OPENINFERENCE, "openinference.span.kind": "AGENT", "llm.token_count.prompt": {}}, None, "no model call"),
        ({**OPENINFERENCE, "openinference.span.kind": "CHAIN"}, None, "CHAIN with tokens"),
        ({**OPENINFERENCE, "openinference.span.kind": "CHAIN", "gen_ai.operation.name": "chat"}, "call", None),
        (VERCEL, None, "ai.usage (Vercel) with tokens"),
        ({**VERCEL, "ai.usage.promptTokens": {}}, None, "no model call"),
        ({**VERCEL, "gen_ai.operation.name": "execute_tool"}, None, "execute_tool with tokens"),
        ({**VERCEL, "gen_ai.usage.input_tokens": 5}, "call", None),
        (NO_TOKENS, "call", None),
        ({"gen_ai.operation.name": NOTHING}, "call", None),
        ({"gen_ai.operation.name": "", **NO_TOKENS, "gen_ai.usage.total_tokens": 5}, "call", None),
        ({"gen_ai.operation.name": NOTHING, **NO_TOKENS, "llm.request.type": "chat"}, "call", None),
        ({"gen_ai.operation.name": NOTHING, **NO_TOKENS}, None, "no model call"),
        ({"gen_ai.operation.name": NOTHING, **NO_TOKENS, "llm.request.type": ""}, None, "no model call"),
        ({"gen_ai.operation.name": NOTHING, **NO_TOKENS, "llm.usage.total_tokens": 5}, "call", None),
        ({"gen_ai.operation.name": NOTHING, **NO_TOKENS, "gen_ai.usage.cost": {"doubleValue": 0.5}}, "call", None),
        ({"gen_ai.operation.name": NOTHING, **NO_TOKENS, "gen_ai.usage.cost": {}}, None, "no model call"),
        ({"gen_ai.operation.name": "invoke_agent"}, "agent", None),
        ({"gen_ai.operation.name": "Invoke_Agent"}, "agent", None),
        ({"gen_ai.operation.name": "create_agent"}, "agent", None),
        ({"gen_ai.operation.name": "invoke_workflow"}, None, "invoke_workflow with tokens"),
        ({"gen_ai.operation.name": "invoke_agent", **NO_TOKENS}, None, "no model call"),
        ({"gen_ai.operation.name": "execute_tool", **NO_TOKENS}, None, "no model call"),
        ({"gen_ai.operation.name": "execute_tool"}, None, "execute_tool with tokens"),
        ({"gen_ai.operation.name": "x" * 100}, None, "x" * 64 + " with tokens"),
    ],
)
def test_what_a_span_is(changes: dict[str, Any], role: str | None, skipped: str | None) -> None:
    row = only("otel-genai", exported(span(changes)))
    assert (row.get("role"), row.get("skipped")) == (role, skipped)
    assert row["record_id"] == f"{TRACE}-00000000000000a1"


def test_a_span_without_attributes_is_skipped_with_its_place_in_the_trace() -> None:
    assert only("otel-genai", exported(span(attributes=NOTHING))) == {
        "request_id": f"{TRACE}-00000000000000a1",
        "timestamp": "2026-11-10T02:00:01.123456Z",
        "skipped": "no model call",
        "record_id": f"{TRACE}-00000000000000a1",
        "parent_id": f"{TRACE}-00000000000000a0",
        "scope": "openai_v2",
    }


def test_every_span_of_a_line_gives_a_row_in_its_place() -> None:
    first, second = exported(span(spanId="b1"), span(spanId="b2")), exported(span(spanId="b3"))
    together = {"resourceSpans": first["resourceSpans"] + second["resourceSpans"]}
    together["resourceSpans"][0]["scopeSpans"].append({"spans": [span(spanId="b4")]})
    rows = made_of("otel-genai", together, exported(span(spanId="b5")))
    assert [row["record_id"].rpartition("-")[2] for row in rows] == ["b1", "b2", "b4", "b3", "b5"]
    assert [row.get("scope") for row in rows] == ["openai_v2", "openai_v2", None, "openai_v2", "openai_v2"]


@pytest.mark.parametrize(
    "record",
    [
        {"resourceSpans": []},
        exported(),
        {"resourceSpans": [{"resource": {}}, {"resource": {}, "scopeSpans": []}]},
        {"resourceSpans": [{"resource": None, "scopeSpans": [{"scope": None, "spans": None}, {}]}]},
        {"resourceSpans": [{"resource": {"attributes": listed({"note": '"spanId"'})}}]},
    ],
)
def test_an_export_without_spans_says_so(record: dict[str, Any]) -> None:
    assert only("otel-genai", record) == {"skipped": "an export without spans"}


@pytest.mark.parametrize(
    "record",
    [
        *({"resourceLogs": [{}]}, {"resourceMetrics": [{}]}, {}),
        *({"resourceSpans": value} for value in (None, "x", {}, {"scopeSpans": []}, [1], [None], ["a"], [[]], [{}, 1])),
        *({"resourceSpans": [{"scopeSpans": value}]} for value in ({}, "x", 5, [1], [None], [[]])),
        *({"resourceSpans": [{"resource": value, "scopeSpans": []}]} for value in ([], "x", 5, {"attributes": {}})),
        *({"resourceSpans": [{"scopeSpans": [{"scope": value, "spans": []}]}]} for value in ([], "x", 5)),
        *({"resourceSpans": [{"scopeSpans": [{"spans": value}]}]} for value in ({}, "x", 5, True)),
        {"resourceSpans": [{"instrumentationLibrarySpans": [{"spans": []}]}]},
        {"resourceSpans": [{"instrumentationLibrarySpans": [], "scopeSpans": [{"scope": {}, "spans": [span()]}]}]},
    ],
)
def test_a_record_of_another_kind_gives_no_row(record: dict[str, Any]) -> None:
    assert made_of("otel-genai", record) == []


@pytest.mark.parametrize("odd", [5, "span", {"name": "chat gpt-4o"}, None, {}, []])
def test_what_is_no_span_is_not_skipped_in_silence(odd: Any) -> None:
    first, second = made_of("otel-genai", exported(span(), odd))
    assert first["request_id"] == f"{TRACE}-chatcmpl-1"
    assert "skipped" not in second and "request_id" not in second and "timestamp" not in second


def test_odd_attributes_do_not_harm_their_span() -> None:
    odd = [None, 5, {"key": None, "value": {"stringValue": "x"}}, {"key": "gen_ai.usage.input_tokens"}, {"value": 5}]
    row = only("otel-genai", exported(span(attributes=odd + listed(CALL) + listed({INPUT: 1}))))
    assert row == only("otel-genai", exported(span()))


# --- csv -------------------------------------------------------------------------------------------------------------


def test_a_row_of_csv() -> None:
    fields = {
        "request_id": "r1",
        "timestamp": "2026-11-10T02:00:01Z",
        "organization_id": "acme",
        "api_key_id": "key_1",
        "cost": "0.5",
        "synapses": "1",
        "neurons": "2",
        "model": "m",
        "endpoint": "/v1",
        "status": "200",
        "input_tokens": "10",
        "output_tokens": "20",
    }
    tokens = {"cached_input_tokens": "4", "cache_write_tokens": "5", "reasoning_tokens": "6"}
    assert only("csv", {**fields, **tokens}) == {**fields, **tokens}
    assert only("csv", fields) == fields, "the three columns may be absent"
    assert only("csv", {**fields, **dict.fromkeys(tokens, "")}) == fields
    assert only("csv", {**fields, "cache_write_tokens": "some"})["cache_write_tokens"] == "some"
    assert only("csv", dict.fromkeys(fields, "")) == {}


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["litellm", "otel-genai"])
def test_logs_that_write_a_response_while_it_grows_count_the_most_complete_copy(name: str) -> None:
    assert re.search(r"^-- copies: most complete$", (FORMATS / f"{name}.sql").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("text", ["1_000", "+1", ".5", "5.", " 0.5 "])
def test_what_only_duckdb_takes_for_a_number_reaches_its_field_as_it_is(text: str) -> None:
    statement = (Path(__file__).parent.parent / "pipeline/formats/litellm.sql").read_text()
    mapping = MappedRecords(read_format("litellm", statement))
    record = {"id": "a", "startTime": text, "response_cost": text, "metadata": {"user_api_key_org_id": "acme"}}
    (row,) = mapping.requests_of([1], pa.array([json.dumps(record)])).to_pylist()
    mapping.close()
    assert (row["cost"], row["timestamp"]) == (text, text)
