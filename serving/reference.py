"""The OpenAPI document: the endpoints as their clients see them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from pydantic.json_schema import models_json_schema

from pipeline.contract.coverage import DayState
from serving import errors
from serving.errors import Refusal, error_body
from serving.key_usage import MOST_GROUPS
from serving.models import (
    DayCoverage,
    ErrorAnswer,
    KeyGroup,
    ModelGroup,
    MonthOfDays,
    MonthOfKey,
    Summary,
    TopKey,
    TopKeys,
)
from serving.parameters import API_KEY_ID, LIMITS, ORGANIZATION_ID, YEARS
from serving.routes import DAILY, SUMMARY, TOP, USAGE
from serving.usage import MEASURES, Usage, total_of

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
    errors.TooManyLargeAnswers(),
    errors.TooManyWideQuestions(),
)
_TRACE_ID = "0b9f6f8e-3c1d-4f43-9a53-0d7c5f1f2a64"
_NOW = datetime(2025, 11, 15, 10, 30, tzinfo=UTC)
_NOVEMBER = date(2025, 11, 1)
_USAGE = [
    Usage(date(2025, 11, 15), 850, Decimal("212.5"), Decimal("425000"), Decimal("8500")),
    Usage(date(2025, 11, 14), 820, Decimal("205"), Decimal("410000"), Decimal("8200")),
]
_STATES: dict[int, DayState] = {15: "open", 14: "loaded_with_findings"}
_COVERAGE = [
    DayCoverage(
        day=date(2025, 11, day),
        state=_STATES.get(day, "loaded" if day in (12, 13) else "not_loaded"),
        requests={15: 850, 14: 820}.get(day, 0),
    )
    for day in range(30, 0, -1)
]
_ORGANIZATION_ID = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": f"^{ORGANIZATION_ID}$"}
_KEY_ID = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": f"^{API_KEY_ID}$"}
_ORGANIZATION: dict[str, Any] = {
    "name": "org_id",
    "in": "path",
    "required": True,
    "description": "the organization whose usage is asked for: the key's own; any with an operator's key",
    "schema": _ORGANIZATION_ID,
    "example": "org_abc123",
}
_MONTH: tuple[dict[str, Any], ...] = (
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
)
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "tags of the bodies the client has: 304 when one of them is still right",
    "schema": {"type": "string"},
}
_IF_MODIFIED_SINCE = {
    "name": "If-Modified-Since",
    "in": "header",
    "description": "the Last-Modified of the body the client has: 304 when it is still right. Not looked at beside"
    " If-None-Match",
    "schema": {"type": "string"},
    "example": "Sat, 15 Nov 2025 10:30:00 GMT",
}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "tags of the bodies the client builds on, or *: 412 when none of them is right any more",
    "schema": {"type": "string"},
    "example": "*",
}
_IF_UNMODIFIED_SINCE = {
    "name": "If-Unmodified-Since",
    "in": "header",
    "description": "the Last-Modified of the body the client builds on: 412 when it is not right any more. Not looked"
    " at beside If-Match",
    "schema": {"type": "string"},
    "example": "Sat, 15 Nov 2025 10:30:00 GMT",
}
_DESCRIPTIONS = {
    "X-Request-Id": "the request's id: the client's own when it sent one of [A-Za-z0-9-]{1,64}, else a UUID",
    "X-Data-As-Of": "start of the newest run that published or confirmed the data, UTC, whole seconds, as"
    " 2025-11-15T10:30:00Z; not there when no run ever did",
    "X-Usage-Unpriced": "how many of the organization's requests in this month count without a cost, because no price"
    " of them is known yet; not there when every cost is",
    "ETag": "a hash of the body; none for a month that was never published",
    "Last-Modified": "when the publication that last changed this month was committed; none for a month that was never"
    " published, and with include=coverage, which changes without one. Two publications within a second have one"
    " moment, and two tags",
    "Cache-Control": "private, and the seconds that the answer may be taken for the newest, in which the server itself"
    " may miss a publication; no-store for a month that was never published, and for errors",
    "Content-Encoding": "gzip, for a longer body and a client that accepts it; its ETag is another one",
    "Vary": "the answer belongs to the key it was asked with, and to the types and encodings that were accepted",
    "RateLimit-Limit": "requests that the organization is granted in one window; with several workers and no shared"
    " store, by the worker that answered",
    "RateLimit-Remaining": "how many more of them are granted now",
    "RateLimit-Reset": "whole seconds until the oldest counted request leaves the window and makes room for another",
    "Retry-After": "whole seconds until a request may be granted",
    "Allow": "the methods this path knows",
    "WWW-Authenticate": "how to authenticate",
}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
    "X-Data-As-Of": {"type": "string", "format": "date-time"},
    "X-Usage-Unpriced": {"type": "integer", "minimum": 1},
    "ETag": {"type": "string", "pattern": '^"[0-9a-f]{32}"$'},
    "Last-Modified": {"type": "string", "pattern": "^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT$"},
    "Cache-Control": {"type": "string", "pattern": "^(no-store|private, max-age=[0-9]+, must-revalidate)$"},
    "Content-Encoding": {"type": "string", "enum": ["gzip"]},
    "RateLimit-Limit": {"type": "integer", "minimum": 1},
    "RateLimit-Remaining": _COUNT,
    "RateLimit-Reset": {"type": "integer", "minimum": 1},
    "Retry-After": {"type": "integer", "minimum": 1},
}
_SAME_PERIOD = {"year": "$response.body#/period/year", "month": "$response.body#/period/month"}
_DEAREST = "$response.body#/top_keys/0/api_key_id"
_ALWAYS = ("X-Request-Id", "X-Data-As-Of")
_SURE = ("X-Request-Id", "Cache-Control", "Vary")  # wherever they are named
_KEPT = ("X-Usage-Unpriced", "ETag", "Cache-Control", "Vary")
_COUNTED = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")  # where there is a limit
_NOT_COUNTED = (401, 404, 405, 408)  # refused before it is looked at


def openapi_document(title: str, version: str, currency: str) -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    bodies = (MonthOfDays, KeyGroup, ModelGroup, Summary, MonthOfKey, TopKeys, ErrorAnswer)
    _, schemas = models_json_schema(
        [(body, "serialization") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": "Usage of API keys, day by day, exactly."},
        "paths": {
            DAILY: _daily(currency),
            SUMMARY: _summary(currency),
            USAGE: _usage(currency),
            TOP: _top(currency),
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


def _daily(currency: str) -> dict[str, Any]:
    groups = {
        date(2025, 11, 15): [_group("key_prod", 850, "212.5", "425000", "8500")],
        date(2025, 11, 14): [
            _group("key_batch", 20, "5", "10000", "200"),
            _group("key_prod", 800, "200", "400000", "8000"),
        ],
    }
    return _operations(
        "daily",
        "Daily usage of an organization's API keys in one month",
        "What the organization's API keys used on each UTC day of the month, newest first, and the exact"
        f" sums. Costs are in {currency}. Only requests made with an API key count. A month without usage, a future"
        " month and an organization that never sent a request have an empty list and zeros. Unknown parameters are"
        " ignored. Whether a zero is a zero is told by X-Data-As-Of, and for each day by include=coverage. With"
        " Accept: text/csv the same days come as rows of RFC 4180, with CRLF and a header line: date, group (with"
        " group_by, and then a row for each group of each day; not quoted and empty for null), requests, cost,"
        " synapses, neurons, state (with include=coverage).",
        [
            _ORGANIZATION,
            *_MONTH,
            {
                "name": "include",
                "in": "query",
                "description": "coverage: adds, after summary, the state of every day of the month; to CSV, the state"
                " of each day that has a row",
                "schema": {"type": "string", "enum": ["coverage"]},
            },
            {
                "name": "fill",
                "in": "query",
                "description": "zero: lists every day of the month, those without usage too",
                "schema": {"type": "string", "enum": ["zero"]},
            },
            {
                "name": "api_key_id",
                "in": "query",
                "description": "only the usage of this key, in the summary too; a key without usage has an empty list"
                " and zeros",
                "schema": _KEY_ID,
                "example": "key_prod",
            },
            {
                "name": "group_by",
                "in": "query",
                "description": "adds to each day what each API key used, or what was used of each model. The groups of"
                f" a day sum to the day exactly. More than {MOST_GROUPS:,} groups in one answer are refused",
                "schema": {"type": "string", "enum": ["api_key", "model"]},
            },
        ],
        "the month, day by day",
        {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/MonthOfDays"},
                "examples": {
                    "usage": {"value": _month()},
                    "include=coverage": {"value": _month(_COVERAGE)},
                    "group_by=api_key": {"value": _month(groups=groups)},
                },
            },
            "text/csv": {
                "schema": {"type": "string"},
                "examples": {
                    "usage": {
                        "value": "date,requests,cost,synapses,neurons\r\n2025-11-15,850,212.5,425000.0,8500.0\r\n"
                        "2025-11-14,820,205.0,410000.0,8200.0\r\n"
                    }
                },
            },
        },
        links={"top": _link("top", "the keys that cost most in the same month", **_SAME_PERIOD)},
    )


def _summary(currency: str) -> dict[str, Any]:
    return _operations(
        "summary",
        "What an organization's API keys used in one month, in all",
        f"The summary of the daily usage, alone. Costs are in {currency}.",
        [_ORGANIZATION, *_MONTH],
        "the sums of the month",
        _json("Summary", Summary.of("org_abc123", _NOVEMBER, total_of(_USAGE), _NOW)),
    )


def _usage(currency: str) -> dict[str, Any]:
    return _operations(
        "usage",
        "Daily usage of one API key in one month",
        "What one of the organization's API keys used on each UTC day of the month, newest first, and the exact sums."
        f" Costs are in {currency}. A key that was used in another month only has an empty list and zeros; one that the"
        " organization never used is not found, whether or not another organization has it.",
        [
            _ORGANIZATION,
            {
                "name": "api_key_id",
                "in": "path",
                "required": True,
                "description": "the gateway key whose usage is asked for; what no key can be called is not found",
                "schema": _KEY_ID,
                "example": "key_prod",
            },
            *_MONTH,
        ],
        "the month of the key, day by day",
        _json("MonthOfKey", MonthOfKey.of("org_abc123", "key_prod", "production", _NOVEMBER, _USAGE)),
        errors.ApiKeyNotFound(),
    )


def _top(currency: str) -> dict[str, Any]:
    keys = [
        TopKey(api_key_id="key_prod", name="production", **_used(1650, "412.5", "825000", "16500")),
        TopKey(api_key_id="key_batch", name=None, **_used(20, "5", "10000", "200")),
    ]
    return _operations(
        "top",
        "The API keys of an organization that cost most in one month",
        f"The dearest key first; costs are in {currency}. Of keys that cost the same, the one with more requests comes"
        " first, of those with as many requests the one with the smaller id.",
        [
            _ORGANIZATION,
            {**_MONTH[1], "in": "path", "required": True, "description": "one or two digits, 1 to 12"},
            {
                **_MONTH[0],
                "in": "path",
                "required": True,
                "description": f"four digits, {YEARS[0]} to {YEARS[-1]}",
            },
            {
                "name": "limit",
                "in": "query",
                "description": "keys to list at most; 10 when left out",
                "schema": {"type": "integer", "minimum": LIMITS[0], "maximum": LIMITS[-1], "default": 10},
            },
            {
                "name": "period",
                "in": "query",
                "description": "monthly is all there is",
                "schema": {"type": "string", "enum": ["monthly"], "default": "monthly"},
            },
        ],
        "the keys that cost most",
        _json("TopKeys", TopKeys.of("org_abc123", _NOVEMBER, keys, 2, 10)),
        links={
            "usage": _link("usage", "the days of the dearest key", api_key_id=_DEAREST, **_SAME_PERIOD),
            "daily": _link("daily", "the same, as a filter of the daily usage", api_key_id=_DEAREST, **_SAME_PERIOD),
            "summary": _link("summary", "the sums of the same month", **_SAME_PERIOD),
        },
    )


def _operations(
    name: str,
    summary: str,
    description: str,
    parameters: list[dict[str, Any]],
    found: str,
    content: dict[str, Any],
    *more: Refusal,
    links: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """GET and HEAD of one path. found: what its 200 is. more: refusals that only this path has."""
    # What depends on names changes without a publication: it has a tag and no date.
    dated = ("Last-Modified",) if name in ("daily", "summary") else ()
    operation = {
        "summary": summary,
        "description": description,
        "parameters": [
            *parameters,
            *(_IF_NONE_MATCH, _IF_MATCH),
            *((_IF_MODIFIED_SINCE, _IF_UNMODIFIED_SINCE) if dated else ()),
        ],
        "security": [{"X-API-Key": []}, {"Api-Key": []}],
    }
    answers = {
        "200": {
            "description": found,
            "headers": _headers(*_ALWAYS, *_KEPT, *dated, "Content-Encoding", *_COUNTED),
            "content": content,
            **({"links": links} if links else {}),
        },
        "304": {
            "description": "the client's copy is still right",
            "headers": _headers(*_ALWAYS, *_KEPT, *_COUNTED, sure=("ETag",)),
        },
        **_errors(*_REFUSALS, *more),
    }
    without_bodies = {
        status: {name: value for name, value in answer.items() if name not in ("content", "links")}
        for status, answer in answers.items()
    }
    return {
        "get": {**operation, "operationId": name, "responses": answers},
        "head": {**operation, "operationId": f"{name}_head", "responses": without_bodies},
    }


def _json(schema: str, example: MonthOfKey | Summary | TopKeys) -> dict[str, Any]:
    return {
        "application/json": {
            "schema": {"$ref": f"#/components/schemas/{schema}"},
            "examples": {"usage": {"value": json.loads(example.json_bytes())}},
        }
    }


def _link(operation: str, description: str, **parameters: str) -> dict[str, Any]:
    """Where to go on from an answer, for the same organization. parameters: to ask with, as runtime expressions."""
    return {
        "operationId": operation,
        "description": description,
        "parameters": {"org_id": "$request.path.org_id", **parameters},
    }


def _month(coverage: Iterable[DayCoverage] | None = None, groups: Mapping[date, Any] | None = None) -> Any:
    """A body as an example."""
    return json.loads(MonthOfDays.of("org_abc123", _NOVEMBER, _USAGE, _NOW, coverage, groups).json_bytes())


def _group(key: str, *used: Any) -> dict[str, Any]:
    return KeyGroup(api_key_id=key, **_used(*used)).model_dump()


def _used(requests: int, *amounts: str) -> dict[str, Any]:
    return dict(zip(MEASURES, (requests, *map(Decimal, amounts)), strict=True))


def _errors(*refusals: Refusal) -> dict[str, Any]:
    """Every refusal as an example, under its status."""
    answers: dict[str, Any] = {}
    for refusal in refusals:
        counted = () if refusal.status in _NOT_COUNTED else _COUNTED
        answer = answers.setdefault(
            str(refusal.status),
            {
                "description": refusal.message,
                "headers": _headers(*_ALWAYS, "Cache-Control", *counted, *refusal.headers, sure=refusal.headers),
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}, "examples": {}}
                },
            },
        )
        body = error_body(refusal, _TRACE_ID, _NOW).model_dump(mode="json", by_alias=True)
        answer["headers"].update(_headers(*refusal.headers))
        examples = answer["content"]["application/json"]["examples"]
        examples[refusal.code if refusal.code not in examples else type(refusal).__name__] = {"value": body}
    return dict(sorted(answers.items()))


def _headers(*names: str, sure: Iterable[str] = ()) -> dict[str, Any]:
    """Headers of an answer. sure: those that are there, beside those that always are."""
    return {
        name: {
            "description": _DESCRIPTIONS[name],
            **({"required": True} if name in _SURE or name in sure else {}),
            "schema": _SCHEMAS.get(name, _TEXT),
        }
        for name in names
    }
