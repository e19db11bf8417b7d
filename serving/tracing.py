"""What every request has in common: a trace id, a log line, and one shape of error."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.auth import Clock
from serving.errors import InternalError, Refusal, error_answer

ACCESS_LOG = logging.getLogger("keytally.access")
_LOG = logging.getLogger("keytally.error")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "-"})
_TRACE_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")


class Tracing:
    """ASGI middleware around everything: adds `X-Request-Id` and `X-Data-As-Of`, writes the log line, answers what is
    refused or fails.
    """

    def __init__(self, app: ASGIApp, clock: Clock, as_of: Callable[[], bytes | None]) -> None:
        self.app = app
        self.clock = clock
        self.as_of = as_of

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
                message["headers"] = [*message.get("headers", ()), *added]
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
                headers, body = error_answer(refusal, trace_id, self.clock())
                await send_traced({"type": "http.response.start", "status": refusal.status, "headers": headers})
                await send_traced({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        finally:
            log_request(scope, trace_id, status, time.perf_counter() - begun, reason)


def trace_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own `X-Request-Id` when it is one we can repeat, else a new UUID."""
    for name, value in headers:
        if name == b"x-request-id" and _TRACE_ID.fullmatch(value):
            return value.decode("ascii")
    return str(uuid.uuid4())


def log_request(scope: Scope, trace_id: str, status: int, seconds: float, reason: str | None) -> None:
    """Writes the request's log line: one JSON object. Nothing that the client made up is in it but a trace id."""
    if not ACCESS_LOG.isEnabledFor(logging.INFO):
        return
    line = {
        "trace_id": trace_id,
        "method": scope["method"] if scope["method"] in _METHODS else "other",
        "route": getattr(scope.get("route"), "path", None),
        "status": status or None,  # none: the server stopped before there was an answer
        "milliseconds": round(seconds * 1000, 3),
        "key_id": scope.get("keytally.key_id"),
    }
    if reason is not None:
        line["reason"] = reason
    ACCESS_LOG.info("%s", msgspec.json.encode(line).decode("utf-8"))
