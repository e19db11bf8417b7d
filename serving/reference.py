"""The OpenAPI document: the endpoint as its clients see it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic.json_schema import models_json_schema

from serving import errors
from serving.errors import Refusal, error_body
from serving.models import ErrorAnswer, MonthOfDays
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
    errors.RateLimitExceeded(1),
    errors.InternalError(),
    errors.UsageUnavailable(""),
)
_TRACE_ID = "0b9f6f8e-3c1d-4f43-9a53-0d7c5f1f2a64"
_NOW = datetime(2025, 11, 15, 10, 30, tzinfo=UTC)
_DESCRIPTIONS = {
    "X-Request-Id": "the request's id: the client's own when it sent one of [A-Za-z0-9-]{1,64}, else a UUID",
    "ETag": "a hash of the body; none for a month that was never published",
    "Cache-Control": "revalidate before each use; no-store for a month that was never published, and for errors",
    "Vary": "the answer belongs to the key it was asked with",
    "Retry-After": "whole seconds until a request may be granted",
    "Allow": "the methods this path knows",
    "WWW-Authenticate": "how to authenticate",
}


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
        " ignored.",
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
                "name": "If-None-Match",
                "in": "header",
                "description": "tags of the bodies the client has: 304 when one of them is still right",
                "schema": {"type": "string"},
            },
        ],
        "security": [{"X-API-Key": []}, {"Api-Key": []}],
    }
    answers = {
        "200": {
            "description": "the month, day by day",
            "headers": _headers("X-Request-Id", "ETag", "Cache-Control", "Vary"),
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/MonthOfDays"}}},
        },
        "304": {
            "description": "the client's copy is still right",
            "headers": _headers("X-Request-Id", "ETag", "Cache-Control", "Vary"),
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


def _errors() -> dict[str, Any]:
    """Every refusal as an example, under its status."""
    answers: dict[str, Any] = {}
    for refusal in _REFUSALS:
        answer = answers.setdefault(
            str(refusal.status),
            {
                "description": refusal.message,
                "headers": _headers("X-Request-Id", "Cache-Control", *refusal.headers),
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
