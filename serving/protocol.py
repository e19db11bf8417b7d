"""HTTP/1.1 as uvicorn speaks it, with limits of our own: how long a head may be, and how long a client may take."""

from __future__ import annotations

import asyncio
import re

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serving.clock import utc_now
from serving.errors import BadRequest, MethodNotAllowed, Refusal, RequestTimeout, error_answer
from serving.tracing import log_request, trace_id_of

LARGEST_HEAD = 16 * 1024  # bytes of request line and headers together
HEAD_SECONDS = 10  # from the connection, or a request's first byte, to the end of its head
BODY_SECONDS = 30  # from there to the end of the body, which nobody reads
TAKE_SECONDS = 25  # for a client to take the next part of its answer, or the rest of it
TAKE_LEAST = 2**19  # bytes of that part
CLOSE_SECONDS = 5  # for a client that was refused to read that and go
_LOOK_SECONDS = 1.0  # how often a connection is looked at
_ABSOLUTE = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")  # as far as it is needed


class _Unreadable(Exception):
    """What the parser lets pass and we do not."""


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, but what is not HTTP gets the same shape of error as everything else, and who is slow does
    not stay.

    uvicorn itself has a time limit for idle connections alone. Each connection is looked at once a second, whatever
    happens on it: a request costs nothing more for it.
    """

    _receiving = ""  # "head" or "body" while a request has begun and not ended
    _head = 0  # bytes of the newest head, but for the header that is not complete
    _unfinished = 0  # bytes of that one
    _ended = False  # whether what the client sends now is no request any more
    _refusal: Refusal | None = None  # the answer to what was none
    _is_head = False  # whether that had the method HEAD
    _running: RequestResponseCycle | None = None  # the newest request that is, or was, being answered
    _look: asyncio.TimerHandle | None = None
    _waiting: tuple[str, object] = ("", None)  # what the connection waits for, and in which request
    _since = 0.0  # when that was first seen, or a client that takes an answer had taken enough of it
    _left = 0  # bytes of the answer that were still to be taken then

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._look = self.loop.call_later(_LOOK_SECONDS, self._look_again)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, which tells only the newest request of a connection that its client is gone."""
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        if self._look is not None:
            self._look.cancel()
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, in our words."""
        if self._ended:
            return
        self._unset_keepalive_if_required()
        head, cycle = self._head, self.cycle
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ended = True  # the request is answered as if it had not asked for another protocol
        except httptools.HttpParserInvalidMethodError:
            # Neither the parser nor any of our paths knows the method; what it stands in front of is not looked at.
            is_method = self.cycle is cycle and _REQUEST_LINE.match(data)
            self._refuse(MethodNotAllowed(headers={"Allow": "GET, HEAD"}) if is_method else BadRequest(), is_head=False)
        except httptools.HttpParserError:
            self._refuse(BadRequest())
        else:
            if self._receiving == "head":
                line = data.rfind(b"\n") + 1
                if line:
                    self._unfinished = len(data) - line
                elif self._head == head:
                    self._unfinished += len(data)
                if self._head + self._unfinished > LARGEST_HEAD:
                    self._refuse(BadRequest())

    def on_message_begin(self) -> None:
        """As uvicorn's."""
        super().on_message_begin()
        self._receiving = "head"
        self._head = self._unfinished = 0

    def on_url(self, url: bytes) -> None:
        """As uvicorn's."""
        super().on_url(url)
        self._head += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """As uvicorn's."""
        super().on_header(name, value)
        self._head += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        """As uvicorn's, for those requests that are as RFC 9112 wants them."""
        version = self.parser.get_http_version()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if self._head > LARGEST_HEAD or version not in ("1.0", "1.1") or (hosts != 1 and (hosts or version == "1.1")):
            raise _Unreadable
        if self.url[:1] != b"/" and self.url != b"*":
            self.url = _origin_form(self.url)
        self.expect_100_continue = False  # else whoever asks whether the client is still there would answer it
        super().on_headers_complete()
        self._receiving = "body"
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """As uvicorn's."""
        super().on_message_complete()
        self._receiving = ""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._running = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        """As uvicorn's."""
        super().on_response_complete()
        is_last = self._running is not None and self._running.response_complete
        if self._refusal is not None and is_last and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._answer(self._refusal)

    def _refuse(self, refusal: Refusal, *, is_head: bool | None = None) -> None:
        """Answers once everything before it is answered, and ends the connection. A request whose body is broken is
        answered as it would have been, since nobody reads bodies.
        """
        self._ended = True
        self._refusal = refusal
        self._is_head = self.parser.get_method() == b"HEAD" if is_head is None else is_head
        if self._receiving == "body":
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.transport.close()
        elif self._running is None or self._running.response_complete:
            self._answer(refusal)

    def _answer(self, refusal: Refusal) -> None:
        trace_id = trace_id_of(())
        headers, body = error_answer(refusal, trace_id, utc_now())
        headers += [(b"x-request-id", trace_id.encode("ascii")), (b"connection", b"close")]
        answer = [STATUS_LINE[refusal.status]]
        answer += [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *headers)]
        answer.append(b"\r\n")
        if not self._is_head:
            answer.append(body)
        self.transport.write(b"".join(answer))
        # To close it now would take the answer back from a client that is still sending.
        self.transport.write_eof()
        log_request({"method": "-"}, trace_id, refusal.status, 0.0, None)
        metrics = self.app_state.get("metrics")
        if metrics is not None:
            metrics.count(None, refusal.status, 0.0)

    def _look_again(self) -> None:
        """Ends the connection when its client has taken too long for one and the same thing.

        A long answer is many such things: a client that goes on taking it may take as long as it needs.
        """
        waiting, seconds = self._waits_for()
        now = self.loop.time()
        if (waiting, self._running) != self._waiting:
            if self._waiting[0]:  # else it is the first look: the time began with the connection
                self._since = now - _LOOK_SECONDS
            self._waiting = (waiting, self._running)
            self._left = self._to_take()
        elif waiting == "take" and self._left - (left := self._to_take()) >= TAKE_LEAST:
            self._since, self._left = now, left
        if seconds and now - self._since >= seconds:
            if waiting == "head" and self._receiving:
                self._refuse(RequestTimeout())
            elif waiting in ("head", "body"):
                self.transport.close()
            else:
                self.transport.abort()
                return
        self._look = self.loop.call_later(_LOOK_SECONDS, self._look_again)

    def _to_take(self) -> int:
        """Bytes of the answer that its client has not taken: those not yet written, and those ready."""
        unwritten = self._running.expected_content_length if self._running is not None else 0
        return unwritten + self.transport.get_write_buffer_size()

    def _waits_for(self) -> tuple[str, float]:
        """What the client is to do now, and the seconds it has for that; 0: as many as it takes."""
        if self.transport.get_write_buffer_size():
            return "take", TAKE_SECONDS
        if self._running is not None and not self._running.response_complete:
            return "answer", 0  # it waits for us
        if self._ended:
            return "close", CLOSE_SECONDS
        if self._receiving == "body":
            return "body", BODY_SECONDS
        if self.timeout_keep_alive_task is not None:
            return "idle", 0  # uvicorn's own limit
        return "head", HEAD_SECONDS


def _origin_form(url: bytes) -> bytes:
    """`/path` of `http://host/path`: a server must take a request for a proxy as well (RFC 9112, 3.2.2)."""
    found = _ABSOLUTE.match(url)
    if found is None:
        raise _Unreadable
    target = url[found.end() :]
    return target if target[:1] == b"/" else b"/" + target
