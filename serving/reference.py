"""The OpenAPI document: the endpoint as its clients see it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from pydantic.json_schema import models_json_schema

from serving import errors
from serving.errors import Refusal, error_body
from serving.models import DayCoverage, ErrorAnswer, MonthOfDays, State, Usage
from serving.routes import DAILY, YEARS

_REFUSALS: tuple[Refusal, ...] = (
    errors.InvalidRequest(f"year must be four digits from {YEARS[0]} to {YEARS[-1]}"),
    errors.BadRequest(),
    errors.AuthenticationRequired(),
    errors.InvalidApiKey(),
    errors.ApiKeyDeactivated(),
    errors.ApiKeyExpired(),
    errors.OrganizationAccessDenied(),
    errors.NotFound(),
    errors.MethodNotAllowed(headers={"Allow": "GET, HEAD"}),
    errors.RequestTimeout(),
    errors.PreconditionFailed(),
    errors.RateLimitExceeded(1),
    errors.InternalError(),
    errors.UsageUnavailable(""),
)
_TRACE_ID = "0b9f6f8e-3c1d-4f43-9a53-0d7c5f1f2a64"
_NOW = datetime(2025, 11, 15, 10, 30, tzinfo=UTC)
_USAGE = [
    Usage(date(2025, 11, 14), 820, Decimal("205"), Decimal("410000"), Decimal("8200")),
    Usage(date(2025, 11, 15), 850, Decimal("212.5"), Decimal("425000"), Decimal("8500")),
]
_STATES: dict[int, State] = {15: "open", 14: "loaded_with_findings"}
_COVERAGE = [
    DayCoverage(
        day=date(2025, 11, day),
        state=_STATES.get(day, "loaded" if day in (12, 13) else "not_loaded"),
        requests={15: 850, 14: 820}.get(day, 0),
    )
    for day in range(30, 0, -1)
]
_DESCRIPTIONS = {
    "X-Request-Id": "the request's id: the client's own when it sent one of [A-Za-z0-9-]{1,64}, else a UUID",
    "X-Data-As-Of": "start of the newest run that published or confirmed the data, UTC, whole seconds, as"
    " 2025-11-15T10:30:00Z; not there when no run ever did",
    "ETag": "a hash of the body; none for a month that was never published",
    "Last-Modified": "when the publication that last changed this month was committed; none for a month that was never"
    " published, and with include=coverage, which changes without one. Two publications within a second have one"
    " moment, and two tags",
    "Cache-Control": "private, and the seconds that the answer may be taken for the newest, in which the server itself"
    " may miss a publication; no-store for a month that was never published, and for errors",
    "Content-Encoding": "gzip, for a longer body and a client that accepts it; its ETag is another one",
    "Vary": "the answer belongs to the key it was asked with, and to the encodings that were accepted",
    "RateLimit-Limit": "requests that the organization is granted in one window; with several workers and no shared"
    " store, by the worker that answered",
    "RateLimit-Remaining": "how many more of them are granted now",
    "RateLimit-Reset": "whole seconds until the oldest counted request leaves the window and makes room for another",
    "Retry-After": "whole seconds until a request may be granted",
    "Allow": "the methods this path knows",
    "WWW-Authenticate": "how to authenticate",
}
_ALWAYS = ("X-Request-Id", "X-Data-As-Of")
_KEPT = ("ETag", "Cache-Control", "Vary")
_COUNTED = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")  # where there is a limit
_NOT_COUNTED = (401, 404, 405, 408)  # refused before it is looked at


def openapi_document(title: str, version: str, currency: str) -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    _, schemas = models_json_schema(
        [(MonthOfDays, "serialization"), (ErrorAnswer, "serialization")], ref_template="#/components/schemas/{model}"
    )
    operation = {
        "summary": "Daily usage of an organization's API keys in one month",
        "description": "What the organization's API keys used on each UTC day of the month, newest first, and the exact"
        f" sums. Costs are in {currency}. Only requests made with an API key count. A month without usage, a future"
        " month and an organization that never sent a request have an empty list and zeros. Unknown parameters are"
        " ignored. Whether a zero is a zero is told by X-Data-As-Of, and for each day by include=coverage.",
        "parameters": [
            {
                "name": "org_id",
                "in": "path",
                "required": True,
                "description": "the organization whose usage is asked for: the key's own",
                "schema": {"type": "string"},
                "example": "org_abc123",
            },
            {
                "name": "year",
                "in": "query",
                "description": f"four digits, {YEARS[0]} to {YEARS[-1]}; the current UTC year when left out",
                "schema": {"type": "integer", "minimum": YEARS[0], "maximum": YEARS[-1]},
                "example": 2025,
            },
            {
                "name": "month",
                "in": "query",
                "description": "one or two digits, 1 to 12; the current UTC month when left out",
                "schema": {"type": "integer", "minimum": 1, "maximum": 12},
                "example": 11,
            },
            {
                "name": "include",
                "in": "query",
                "description": "coverage: adds, after summary, the state of every day of the month",
                "schema": {"type": "string", "enum": ["coverage"]},
            },
            {
                "name": "If-None-Match",
                "in": "header",
                "description": "tags of the bodies the client has: 304 when one of them is still right",
                "schema": {"type": "string"},
            },
            {
                "name": "If-Modified-Since",
                "in": "header",
                "description": "the Last-Modified of the body the client has: 304 when it is still right. Not looked at"
                " beside If-None-Match",
                "schema": {"type": "string"},
                "example": "Sat, 15 Nov 2025 10:30:00 GMT",
            },
        ],
        "security": [{"X-API-Key": []}, {"Api-Key": []}],
    }
    answers = {
        "200": {
            "description": "the month, day by day",
            "headers": _headers(*_ALWAYS, *_KEPT, "Last-Modified", "Content-Encoding", *_COUNTED),
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/MonthOfDays"},
                    "examples": {
                        "usage": {"value": _month(None)},
                        "include=coverage": {"value": _month(_COVERAGE)},
                    },
                }
            },
        },
        "304": {
            "description": "the client's copy is still right",
            "headers": _headers(*_ALWAYS, *_KEPT, *_COUNTED),
        },
        **_errors(),
    }
    without_bodies = {
        status: {name: value for name, value in answer.items() if name != "content"}
        for status, answer in answers.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": "Usage of API keys, day by day, exactly."},
        "paths": {
            DAILY: {
                "get": {**operation, "operationId": "daily", "responses": answers},
                "head": {**operation, "operationId": "daily_head", "responses": without_bodies},
            }
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "a reading key"},
                "Api-Key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Api-Key",
                    "description": "a reading key; looked at where there is no X-API-Key",
                },
            },
        },
    }


def _month(coverage: Iterable[DayCoverage] | None) -> Any:
    """A body as an example."""
    return json.loads(MonthOfDays.of("org_abc123", date(2025, 11, 1), _USAGE, _NOW, coverage).json_bytes())


def _errors() -> dict[str, Any]:
    """Every refusal as an example, under its status."""
    answers: dict[str, Any] = {}
    for refusal in _REFUSALS:
        counted = () if refusal.status in _NOT_COUNTED else _COUNTED
        answer = answers.setdefault(
            str(refusal.status),
            {
                "description": refusal.message,
                "headers": _headers(*_ALWAYS, "Cache-Control", *counted, *refusal.headers),
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}, "examples": {}}
                },
            },
        )
        body = error_body(refusal, _TRACE_ID, _NOW).model_dump(mode="json", by_alias=True)
        answer["content"]["application/json"]["examples"][refusal.code] = {"value": body}
    return dict(sorted(answers.items()))


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"description": _DESCRIPTIONS[name], "schema": {"type": "string"}} for name in names}
