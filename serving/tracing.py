"""What every request has in common: a trace id, a log line, and one shape of error."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.clock import Clock
from serving.errors import InternalError, Refusal, error_answer
from serving.limiter import Standing
from serving.metrics import Metrics

ACCESS_LOG = logging.getLogger("keytally.access")
_LOG = logging.getLogger("keytally.error")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "-"})
_TRACE_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")


class Tracing:
    """ASGI middleware around everything: adds `X-Request-Id`, `X-Data-As-Of` and `RateLimit-*`, writes the log line,
    counts, answers what is refused or fails.
    """

    def __init__(
        self, app: ASGIApp, clock: Clock, as_of: Callable[[], bytes | None], metrics: Metrics | None = None
    ) -> None:
        self.app = app
        self.clock = clock
        self.as_of = as_of
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on. Nothing it raises goes further, but once an answer has begun."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        trace_id = trace_id_of(scope["headers"])
        added = [(b"x-request-id", trace_id.encode("ascii"))]
        # Before the answer is made: the header must not promise more than the answer was made from.
        as_of = self.as_of()
        if as_of is not None:
            added.append((b"x-data-as-of", as_of))
        status = 0
        reason: str | None = None

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                standing = scope.get("keytally.standing")
                message["headers"] = [*message.get("headers", ()), *added, *(headers_of(standing) if standing else ())]
            await send(message)

        try:
            try:
                await self.app(scope, receive, send_traced)
            except Exception as error:
                if status:
                    raise  # too late for another answer: the server closes the connection
                refusal = error if isinstance(error, Refusal) else InternalError()
                reason = refusal.reason
                if refusal is not error:
                    reason = type(error).__name__
                    _LOG.error("request %s failed", trace_id, exc_info=error)
                answer_of = scope.get("keytally.error_answer", error_answer)  # a page's, where a browser asks for one
                headers, body = answer_of(refusal, trace_id, self.clock())
                await send_traced({"type": "http.response.start", "status": refusal.status, "headers": headers})
                await send_traced({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        finally:
            seconds = time.perf_counter() - begun
            if self.metrics is not None:
                self.metrics.count(_route_of(scope), status, seconds)
            log_request(scope, trace_id, status, seconds, reason)


def trace_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own `X-Request-Id` when it is one we can repeat, else a new UUID."""
    for name, value in headers:
        if name == b"x-request-id" and _TRACE_ID.fullmatch(value):
            return value.decode("ascii")
    return str(uuid.uuid4())


def headers_of(standing: Standing) -> tuple[tuple[bytes, bytes], ...]:
    """`RateLimit-*`: where the organization stands."""
    return (
        (b"ratelimit-limit", b"%d" % standing.limit),
        (b"ratelimit-remaining", b"%d" % standing.remaining),
        (b"ratelimit-reset", b"%d" % standing.reset),
    )


def _route_of(scope: Scope) -> str | None:
    """The route's template; None where no route has the path."""
    return getattr(scope.get("route"), "path", None)


def log_request(scope: Scope, trace_id: str, status: int, seconds: float, reason: str | None) -> None:
    """Writes the request's log line: one JSON object. Nothing that the client made up is in it but a trace id."""
    if not ACCESS_LOG.isEnabledFor(logging.INFO):
        return
    line = {
        "trace_id": trace_id,
        "method": scope["method"] if scope["method"] in _METHODS else "other",
        "route": _route_of(scope),
        "status": status or None,  # none: the server stopped before there was an answer
        "milliseconds": round(seconds * 1000, 3),
        "key_id": scope.get("keytally.key_id"),
    }
    if reason is not None:
        line["reason"] = reason
    ACCESS_LOG.info("%s", msgspec.json.encode(line).decode("utf-8"))
