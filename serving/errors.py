"""Every error this application answers with, and the one shape they have.

A `Refusal` ends a request wherever it is raised; the middleware in `tracing` turns it into the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

from serving.models import ErrorAnswer, ErrorDetail, ErrorType


class Refusal(Exception):
    """An answer that is not what was asked for. What a client is told stands in the class, but for `system_message`.

    reason: for the log line only, what an operator needs to know and a client must not.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    type: ClassVar[ErrorType] = "client_error"
    message: ClassVar[str]
    system_message: str
    headers: Mapping[str, str]
    reason: str | None = None

    def __init__(self, system_message: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.system_message = system_message or type(self).system_message
        self.headers = headers or {}
        super().__init__(self.system_message)


class BadRequest(Refusal):
    """Not HTTP as we understand it."""

    status = 400
    code = "BAD_REQUEST"
    message = "Bad request"
    system_message = "The request is not valid HTTP, or is too long"


class RequestTimeout(Refusal):
    """A request that did not arrive in time."""

    status = 408
    code = "REQUEST_TIMEOUT"
    message = "Request timeout"
    system_message = "The request did not arrive in time"


class NotFound(Refusal):
    """No endpoint has this path."""

    status = 404
    code = "NOT_FOUND"
    message = "Not found"
    system_message = "No endpoint has this path"


class MethodNotAllowed(Refusal):
    """The endpoint exists, and does not know this method."""

    status = 405
    code = "METHOD_NOT_ALLOWED"
    message = "Method not allowed"
    system_message = "This endpoint does not know this method; see the Allow header"


class ApiKeyNotFound(Refusal):
    """A key that the organization never used. Another organization's keys are not told from keys of nobody."""

    status = 404
    code = "API_KEY_NOT_FOUND"
    message = "API key not found"
    system_message = "The organization has no usage with this API key in any published month"


class Unauthenticated(Refusal):
    """Nobody we know. What exactly is wrong is in the code."""

    status = 401
    message = "Authentication required"

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": 'ApiKey header="X-API-Key"'})


class AuthenticationRequired(Unauthenticated):
    """No key, or an empty one."""

    code = "AUTHENTICATION_REQUIRED"
    system_message = "No API key provided"


class SignInRequired(AuthenticationRequired):
    """A page that is shown to whoever has signed in, and nobody has, or not lately."""

    system_message = "Sign in at / to see this page"


class InvalidApiKey(Unauthenticated):
    """A key that is unknown or malformed; one is not told from the other."""

    code = "INVALID_API_KEY"
    system_message = "API key is not valid"


class ApiKeyDeactivated(Unauthenticated):
    """A real key that was revoked."""

    code = "API_KEY_DEACTIVATED"
    system_message = "API key has been deactivated"


class ApiKeyExpired(Unauthenticated):
    """A real key past its expiry."""

    code = "API_KEY_EXPIRED"
    system_message = "API key has expired"


class RateLimitExceeded(Refusal):
    """More requests than the organization is granted."""

    status = 429
    code = "RATE_LIMIT_EXCEEDED"
    message = "Too many requests"
    system_message = "Too many requests for this organization; try again after the seconds in Retry-After"

    def __init__(self, retry_after: int) -> None:
        super().__init__(headers={"Retry-After": str(retry_after)})


class TooManyTries(RateLimitExceeded):
    """More wrong keys from one address than it may try."""

    system_message = "Too many keys that are not valid; try again after the seconds in Retry-After"


class OrganizationAccessDenied(Refusal):
    """Not the key's organization. Never says whether it exists."""

    status = 403
    code = "ORGANIZATION_ACCESS_DENIED"
    type = "authorization_error"
    message = "Access denied to organization"
    system_message = "API key doesn't belong to organization"


class ForeignForm(Refusal):
    """A form that was not sent from a page of ours by a browser."""

    status = 403
    code = "FOREIGN_FORM"
    type = "authorization_error"
    message = "Forms are taken from this site's own pages only"
    system_message = "Sign in with a browser at /, or send the key as X-API-Key to the API"


class OperatorsOnly(Refusal):
    """A page about every organization."""

    status = 403
    code = "OPERATORS_ONLY"
    type = "authorization_error"
    message = "This page is for operators"
    system_message = "API key doesn't belong to an operator"


class InvalidRequest(Refusal):
    """A query parameter that cannot be used; `system_message` names it and what it may be."""

    status = 400
    code = "INVALID_REQUEST"
    type = "validation_error"
    message = "Invalid query parameters"
    system_message = "A query parameter cannot be used"


class PreconditionFailed(Refusal):
    """The month is not, or no longer, what `If-Match` or `If-Unmodified-Since` asks for."""

    status = 412
    code = "PRECONDITION_FAILED"
    message = "Precondition failed"
    system_message = "The month has changed; ask again without If-Match and If-Unmodified-Since"


class UsageUnavailable(Refusal):
    """The published data cannot be read, or is not what was published."""

    status = 503
    code = "SERVICE_UNAVAILABLE"
    type = "server_error"
    message = "Usage data is temporarily unavailable"
    system_message = "Published usage data cannot be read"

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class KeysUnavailable(UsageUnavailable):
    """The registry of reading keys cannot be read, so that nobody can be let in."""

    system_message = "Reading keys cannot be looked up"


class TooManyLargeAnswers(Refusal):
    """Very large answers that others are still taking leave no room for this one."""

    status = 503
    code = "SERVICE_UNAVAILABLE"
    type = "server_error"
    message = "Too many large answers at once"
    system_message = "Answers that are still being taken leave no room for this one; try again after Retry-After"
    reason = "no room for another large answer"

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class TooManyWideQuestions(Refusal):
    """As many questions about the organization that take long are waiting as may."""

    status = 503
    code = "SERVICE_UNAVAILABLE"
    type = "server_error"
    message = "Too many long questions at once"
    system_message = (
        "Other questions with group_by, or for the top keys, of this organization are still waiting; try again after"
        " Retry-After"
    )
    reason = "too many wide questions of one organization are waiting"

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class InternalError(Refusal):
    """Anything unforeseen."""

    status = 500
    code = "INTERNAL_ERROR"
    type = "server_error"
    message = "An unexpected error occurred"
    system_message = "The request could not be answered"


def error_answer(refusal: Refusal, trace_id: str, now: datetime) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The answer's headers, all but `X-Request-Id`, and its body, JSON."""
    body = error_body(refusal, trace_id, now).json_bytes()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
        *((name.lower().encode("ascii"), value.encode("ascii")) for name, value in refusal.headers.items()),
    ]
    return headers, body


def error_body(refusal: Refusal, trace_id: str, now: datetime) -> ErrorAnswer:
    """The answer's body. now: UTC, cut to whole seconds."""
    detail = ErrorDetail(
        code=refusal.code,
        message=refusal.message,
        system_message=refusal.system_message,
        type=refusal.type,
        status=refusal.status,
        trace_id=trace_id,
        timestamp=now.replace(microsecond=0),
    )
    return ErrorAnswer(success=False, error=detail)
