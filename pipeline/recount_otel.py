"""Read OTLP traces (JSON) in plain Python: the calls of models among their spans, a row for every span.

It exists to disagree: nothing here comes from the SQL of the format otel-genai. The names of attributes are those of
the OpenTelemetry semantic conventions for generative AI, today's first and then the older ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pipeline.recount_lines import Record, at, text_of

_CALLS = ("chat", "text_completion", "generate_content", "embeddings")
_AGENTS = ("invoke_agent", "create_agent")
_TOKENS = {
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens"),
    "cached_input_tokens": (
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.cached_input_tokens",
    ),
    "cache_write_tokens": (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "gen_ai.usage.cache_write_input_tokens",
    ),
    "reasoning_tokens": ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens"),
}
Attributes = Mapping[str, str]


def spans_of(export: Record) -> Iterator[Record]:
    """Give a row for each span of an export; none for a record that is no export of spans."""
    resources = export.get("resourceSpans")
    if not isinstance(resources, list):
        return
    found = False
    for resource in resources:
        of_resource = _attributes(at(resource, "resource"))
        for scope in _list(resource, "scopeSpans"):
            name = text_of(at(scope, "scope", "name"))
            for span in _list(scope, "spans"):
                found = True
                yield _row(span, _attributes(span), of_resource, name)
    if not found:
        yield {"skipped": "an export without spans"}


def _row(span: Any, attributes: Attributes, of_resource: Attributes, scope: str | None) -> Record:
    trace_id, span_id, above = (text_of(at(span, name)) or None for name in ("traceId", "spanId", "parentSpanId"))
    tokens = {name: _tokens(attributes, names) for name, names in _TOKENS.items()}
    operation = attributes.get("gen_ai.operation.name") or None
    has_usage = any(text is not None for text in tokens.values())
    if operation in _CALLS or (operation is None and (has_usage or "llm.request.type" in attributes)):
        role, skipped = "call", None
    elif operation in _AGENTS and has_usage:
        role, skipped = "agent", None
    else:
        role, skipped = None, f"tokens of {operation}" if has_usage else "no model call"
    own = {name: attributes.get(name) or of_resource.get(name) or None for name in (_ORGANIZATION, _API_KEY)}
    return {
        "request_id": _joined(trace_id, attributes.get("gen_ai.response.id") or span_id),
        "record_id": _joined(trace_id, span_id),
        "parent_id": _joined(trace_id, above),
        "role": role,
        "scope": scope,
        "skipped": skipped,
        "timestamp": _moment(text_of(at(span, "startTimeUnixNano"))),
        "organization_id": own[_ORGANIZATION],
        "api_key_id": own[_API_KEY],
        "model": attributes.get("gen_ai.request.model") or attributes.get("gen_ai.response.model") or None,
        "deployed_model": attributes.get("gen_ai.response.model") or None,
        "provider": attributes.get("gen_ai.provider.name") or attributes.get("gen_ai.system") or None,
        "endpoint": operation or attributes.get("llm.request.type") or None,
        "status": _status(span, attributes),
        **tokens,
    }


_ORGANIZATION, _API_KEY = "keytally.organization_id", "keytally.api_key_id"


def _list(value: Any, name: str) -> list[Any]:
    found = at(value, name)
    return found if isinstance(found, list) else []


def _attributes(owner: Any) -> Attributes:
    """Return the attributes of a span or a resource as text; of a repeated name the first."""
    found: dict[str, str] = {}
    for attribute in _list(owner, "attributes"):
        name, text = at(attribute, "key"), _value(at(attribute, "value"))
        if isinstance(name, str) and text is not None:
            found.setdefault(name, text)
    return found


def _value(value: Any) -> str | None:
    """Return an attribute's text or number as text, a double that is a whole number as its digits.

    A value of another kind is passed on as it stands. A value that holds nothing is none.
    """
    kind = next((kind for kind in ("stringValue", "intValue", "doubleValue") if at(value, kind) is not None), None)
    if kind is None and isinstance(value, dict) and all(inner is None for inner in value.values()):
        return None
    text = text_of(value[kind] if kind else value)
    if text and kind in (None, "doubleValue") and _DOUBLE.fullmatch(text):
        number = Decimal(text)
        return str(int(number)) if number == int(number) else text
    return text


_DOUBLE = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?")


def _tokens(attributes: Attributes, names: tuple[str, ...]) -> str | None:
    """Return the count under the first of these names, a value that is none as it stands."""
    return next((attributes[name] for name in names if name in attributes), None)


def _status(span: Any, attributes: Attributes) -> str | None:
    """Return the HTTP status. Of a failed call without one: 500, or what the error's type says."""
    http = attributes.get("http.response.status_code") or attributes.get("http.status_code") or None
    error = attributes.get("error.type") or None
    if error is None and text_of(at(span, "status", "code")) not in ("2", "STATUS_CODE_ERROR"):
        return http
    if http is not None and not (http.isdecimal() and int(http[:400]) < 400):
        return http
    return error if error and re.fullmatch("[45][0-9]{2}", error) else "500"


def _joined(trace_id: str | None, id: str | None) -> str | None:
    return None if trace_id is None or id is None else f"{trace_id}-{id}"


def _moment(text: str | None) -> str | None:
    """Return the moment that a number of nanoseconds since 1970 stands for, cut to microseconds."""
    if text is None or not re.fullmatch("[0-9]{1,30}", text):
        return text
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(text) // 1_000)
    except OverflowError:
        return text
    return moment.isoformat(timespec="microseconds")
