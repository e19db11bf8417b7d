"""Read OTLP traces (JSON) in plain Python: the calls of models among their spans, a row for every span.

It exists to disagree: nothing here comes from the SQL of the format otel-genai. The names of attributes are those of
the OpenTelemetry semantic conventions for generative AI, today's first and then the older ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pipeline.recount_lines import Digits, Record, at, text_of

# "llm" and "agent" are OpenInference's kinds of spans, and so is "embedding".
_CALLS = frozenset(
    (
        *("chat", "text_completion", "generate_content", "chat.completions", "text.completions"),
        *("completion", "acompletion", "messages", "responses", "llm"),
    )
)
_EMBEDDINGS = frozenset(("embeddings", "embedding"))
_AGENTS = frozenset(("invoke_agent", "create_agent", "agent"))
_TOKENS = {
    "input_tokens": (
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.prompt_tokens",
        "llm.usage.prompt_tokens",
        "llm.token_count.prompt",
    ),
    "output_tokens": (
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "llm.usage.completion_tokens",
        "llm.token_count.completion",
    ),
    "cached_input_tokens": (
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
    ),
    "cache_write_tokens": (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "gen_ai.usage.cache_write_input_tokens",
        "gen_ai.usage.input_tokens.cache_write",
        "gen_ai.usage.prompt_tokens_details.cache_write",
        "gen_ai.usage.details.cache_write_tokens",
        "llm.token_count.prompt_details.cache_write",
    ),
    "reasoning_tokens": (
        "gen_ai.usage.reasoning.output_tokens",
        "gen_ai.usage.reasoning_tokens",
        "gen_ai.usage.output_tokens.reasoning",
        "gen_ai.usage.output_tokens_details.reasoning_tokens",
        "gen_ai.usage.completion_tokens_details.reasoning_tokens",
        "gen_ai.usage.completion_tokens_details.reasoning",
        "gen_ai.usage.details.reasoning_tokens",
        "llm.token_count.completion_details.reasoning",
    ),
}
_ORGANIZATION, _API_KEY = "keytally.organization_id", "keytally.api_key_id"
_USAGE = ("gen_ai.usage.", "llm.usage.", "llm.token_count.")
_OUTER_USAGE = "ai.usage."  # of the Vercel AI SDK: the span that has it alone repeats the span below it
_CODES = ("0", "1", "2", "0.0", "1.0", "2.0", "STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR")
_ERRORS = ("2", "2.0", "STATUS_CODE_ERROR")
Attributes = Mapping[str, str]


def spans_of(export: Record) -> Iterator[Record]:
    """Give a row for each span of an export; none for a record that is no export of spans."""
    scopes = _scopes(export)
    if scopes is None:
        return
    found = False
    for resource, scope in scopes:
        name = text_of(at(scope, "scope", "name"))
        for span in _list(scope, "spans"):
            found = True
            yield _row(span, _attributes(span), _attributes(at(resource, "resource")), name)
    if not found:
        yield {"skipped": "an export without spans"}


def _scopes(export: Record) -> list[tuple[Any, Any]] | None:
    """Return each resource of an export with each of its scopes; None if the export has another shape than OTLP's."""
    resources = export.get("resourceSpans")
    if not isinstance(resources, list):
        return None
    scopes = [(resource, scope) for resource in resources for scope in _list(resource, "scopeSpans")]
    objects = [*resources, *(scope for _, scope in scopes)]
    objects_or_null = [at(resource, "resource") for resource in resources] + [at(scope, "scope") for _, scope in scopes]
    lists_or_null = [at(resource, "scopeSpans") for resource in resources]
    lists_or_null += [at(resource, "resource", "attributes") for resource in resources]
    lists_or_null += [at(scope, "spans") for _, scope in scopes]
    is_otlp = (
        all(isinstance(value, dict) for value in objects)
        and all(value is None or isinstance(value, dict) for value in objects_or_null)
        and all(value is None or isinstance(value, list) for value in lists_or_null)
        and all(at(resource, "instrumentationLibrarySpans") is None for resource in resources)
    )
    return scopes if is_otlp else None


def _row(span: Any, attributes: Attributes, of_resource: Attributes, scope: str | None) -> Record:
    trace_id, span_id, above, start = (
        text_of(at(span, name)) or None for name in ("traceId", "spanId", "parentSpanId", "startTimeUnixNano")
    )
    operation = attributes.get("gen_ai.operation.name") or attributes.get("openinference.span.kind")
    request_type = attributes.get("llm.request.type")
    has_usage = any(name.startswith(_USAGE) for name in attributes)
    response, error = attributes.get("gen_ai.response.id"), attributes.get("error.type")
    odd = _odd_part(span, (trace_id, span_id, above, operation or request_type, response, error))
    role = _role((operation or "").lower(), (request_type or "").lower(), has_usage)
    skipped = None
    if role is None and odd is None and (trace_id or span_id or start):
        has_outer_usage = any(name.startswith(_OUTER_USAGE) for name in attributes)
        skipped = f"tokens of {operation}" if has_usage or has_outer_usage else "no model call"
    return {
        "request_id": _joined(trace_id, response or span_id),
        "record_id": _joined(trace_id, span_id),
        "parent_id": _joined(trace_id, above),
        "role": role,
        "scope": scope,
        "skipped": skipped,
        "timestamp": _moment(start),
        "organization_id": attributes.get(_ORGANIZATION) or of_resource.get(_ORGANIZATION),
        "api_key_id": attributes.get(_API_KEY) or of_resource.get(_API_KEY),
        "model": attributes.get("gen_ai.request.model")
        or attributes.get("llm.model_name")
        or attributes.get("gen_ai.response.model"),
        "deployed_model": attributes.get("gen_ai.response.model"),
        "provider": attributes.get("gen_ai.provider.name")
        or attributes.get("gen_ai.system")
        or attributes.get("llm.provider"),
        "endpoint": operation or request_type,
        "status": odd or _status(span, attributes, error),
        **{name: _tokens(attributes, names) for name, names in _TOKENS.items()},
    }


def _role(operation: str, request_type: str, has_usage: bool) -> str | None:
    """Return what a span is in its trace, from its operation and its request type in lower case; empty if missing."""
    if (operation or request_type) in _EMBEDDINGS:
        return "embedding"
    if operation in _CALLS or (not operation and (has_usage or request_type)):
        return "call"
    return "agent" if operation in _AGENTS and has_usage else None


def _odd_part(span: Any, texts: Iterable[str | None]) -> str | None:
    """Return what of a span has another kind than OTLP gives it, as JSON that no field takes; None if nothing has."""
    attributes, status = at(span, "attributes"), at(span, "status")
    if attributes is not None and not isinstance(attributes, list):
        return f'{{"attributes":{text_of(attributes)}}}'
    if status is not None:
        code = _code(span)
        if not isinstance(status, dict) or (code is not None and code not in _CODES):
            return f'{{"status":{text_of(status)}}}'
    return next((text for text in texts if text is not None and _is_json(text)), None)


def _is_json(text: str) -> bool:
    """Return True for a text that is a JSON object, array, true or false."""
    if not text.startswith(("{", "[")):
        return text in ("true", "false")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _list(value: Any, name: str) -> list[Any]:
    found = at(value, name)
    return found if isinstance(found, list) else []


def _attributes(owner: Any) -> Attributes:
    """Return the attributes of a span or a resource as text; of a repeated name the first.

    An attribute without a value is left out, and so is an empty text that is no token count.
    """
    found: dict[str, str] = {}
    for attribute in _list(owner, "attributes"):
        name = at(attribute, "key")
        if isinstance(name, str):
            text = _value(at(attribute, "value"), name.startswith((*_USAGE, "http.")))
            if text is not None and (text or name.startswith(_USAGE)):
                found.setdefault(name, text)
    return found


def _value(value: Any, is_count: bool) -> str | None:
    """Return an attribute's value as text; None for a null, or an object that holds nothing but nulls.

    Args:
        value: The value, bare or wrapped by its kind.
        is_count: It is a token count or an HTTP status. There, a double that is a whole number becomes its digits.

    A value of another kind than its field needs is returned as its JSON.
    """
    if value is None or (isinstance(value, dict) and all(inner is None for inner in value.values())):
        return None
    kind = next((kind for kind in ("stringValue", "intValue", "doubleValue") if at(value, kind) is not None), None)
    content = value[kind] if kind else value
    is_double = isinstance(content, Digits) and not re.fullmatch("-?[0-9]+", content)
    if not isinstance(content, str):
        return text_of(value)
    if is_double and not is_count:
        return text_of(value) if kind else f'{{"doubleValue":{content}}}'
    text = repr(float(content)) if is_double else text_of(content)
    return _digits(text) if is_count and text and kind in (None, "doubleValue") else text


def _digits(text: str) -> str:
    """Return the digits of a number without decimals (500.0, 5e2), every other text as it stands."""
    if not _NUMBER.fullmatch(text):
        return text
    number = Decimal(text)
    return str(int(number)) if number == int(number) else text


# JSON's numbers, but for those with a negative exponent.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE]\+?[0-9]{1,2})?")


def _tokens(attributes: Attributes, names: tuple[str, ...]) -> str | None:
    """Return the count under the first of these names, a value that is no count as it stands."""
    return next((attributes[name] for name in names if name in attributes), None)


def _code(span: Any) -> str | None:
    """Return the code of a span's status as text."""
    code = at(span, "status", "code")
    if isinstance(code, Digits) and not code.isdecimal():
        return repr(float(code))
    return text_of(code)


def _status(span: Any, attributes: Attributes, error: str | None) -> str | None:
    """Return the HTTP status. Of a failed call without one: 500, or what the error's type says."""
    http = attributes.get("http.response.status_code") or attributes.get("http.status_code")
    if error is None and _code(span) not in _ERRORS:
        return http
    if http is not None and not re.fullmatch("0*[0-3]?[0-9]{1,2}", http):
        return http
    return error if error and re.fullmatch("[45][0-9]{2}", error) else "500"


def _joined(trace_id: str | None, id: str | None) -> str | None:
    return None if trace_id is None or id is None else f"{trace_id}-{id}"


def _moment(text: str | None) -> str | None:
    """Return the moment that a number of nanoseconds since 1970 stands for, cut to microseconds."""
    if text is None or not re.fullmatch("[0-9]{1,19}", text):
        return text
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(text) // 1_000)
    return moment.isoformat(timespec="microseconds")
