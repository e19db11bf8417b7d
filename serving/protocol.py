"""HTTP/1.1 as uvicorn speaks it, with limits of our own: how long a head may be, and how long a client may take."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.app import utc_now
from serving.errors import BadRequest, Refusal, RequestTimeout, error_answer
from serving.tracing import log_request, trace_id_of

LARGEST_HEAD = 16 * 1024  # bytes of request line and headers together
KEEP_ALIVE_SECONDS = 15  # an idle connection stays open for this time
HEAD_SECONDS = 10  # from the connection, or a request's first byte, to the end of its head
BODY_SECONDS = 30  # from there to the end of the body, which nobody reads
TAKE_SECONDS = 25  # for a client to take the next part of its answer, or the rest of it
TAKE_LEAST = 2**19  # bytes of that part
CLOSE_SECONDS = 5  # for the rest of an answer, once the connection is being closed
_LOOK_SECONDS = 1.0  # how often a connection is looked at


class Protocol(H11Protocol):
    """uvicorn's protocol, but what is not HTTP gets the same shape of error as everything else, and who is slow does
    not stay.

    uvicorn itself has a time limit for idle connections alone. Each connection is looked at once a second, whatever
    happens on it: a request costs nothing more for it.
    """

    _head = False  # whether the newest request's method is HEAD, as far as it can be told
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
        """As uvicorn's."""
        super().connection_lost(exc)
        if self._look is not None:
            self._look.cancel()
        self._unset_keepalive_if_required()

    def shutdown(self) -> None:
        """As uvicorn's, but for a connection that is being closed already: h11 would object."""
        if not self.transport.is_closing():
            super().shutdown()

    def handle_events(self) -> None:
        """As uvicorn's. It reads one request at most, and what cannot be read is gone afterwards: so look before."""
        if self.conn.their_state is h11.IDLE:
            received = self.conn.trailing_data[0]
            self._head = received.startswith(b"HEAD ")
            # h11 looks at the length only while a head is not complete.
            if len(received) > LARGEST_HEAD and not 0 <= received.find(b"\r\n\r\n") <= LARGEST_HEAD:
                self._refuse(BadRequest())
                return
        super().handle_events()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answers, and closes the connection."""
        self._refuse(BadRequest())

    def _refuse(self, refusal: Refusal) -> None:
        if self.cycle is not None and not self.cycle.response_started:
            # What came behind a whole request is broken, while that request is still being answered. Of two answers
            # only this one can be sent; the other goes nowhere, as if the client had left.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        trace_id = trace_id_of(())
        headers, body = error_answer(refusal, trace_id, utc_now())
        headers += [(b"x-request-id", trace_id.encode("ascii")), (b"connection", b"close")]
        try:
            response = h11.Response(
                status_code=refusal.status,
                headers=[*self.server_state.default_headers, *headers],
                reason=HTTPStatus(refusal.status).phrase.encode("ascii"),
            )
            # h11 knows no method of what it could not read, and would insist on the body.
            for event in (response,) if self._head else (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            log_request({"method": "-"}, trace_id, refusal.status, 0.0, None)
            metrics = self.app_state.get("metrics")
            if metrics is not None:
                metrics.count(None, refusal.status, 0.0)
        except h11.LocalProtocolError:
            pass  # an answer had begun: the connection ends in the middle of it
        self.transport.close()

    def _look_again(self) -> None:
        """Ends the connection when its client has taken too long for one and the same thing.

        A long answer is many such things: a client that goes on taking it may take as long as it needs.
        """
        waiting, seconds = self._waits_for()
        now = self.loop.time()
        if (waiting, self.cycle) != self._waiting:
            if self._waiting[0]:  # else it is the first look: the time began with the connection
                self._since = now - _LOOK_SECONDS
            self._waiting = (waiting, self.cycle)
            self._left = self._to_take()
        elif waiting == "take" and self._left - (left := self._to_take()) >= TAKE_LEAST:
            self._since, self._left = now, left
        if seconds and now - self._since >= seconds:
            if waiting == "head" and self.conn.trailing_data[0]:
                self._refuse(RequestTimeout())
            elif waiting in ("head", "body"):
                self.transport.close()
            else:
                self.transport.abort()
                return
        self._look = self.loop.call_later(_LOOK_SECONDS, self._look_again)

    def _to_take(self) -> int:
        """Bytes of the answer that its client has not taken: those not yet written, by h11's count, and those ready."""
        unwritten: int = getattr(self.conn._writer, "_length", 0)  # only a writer of a known length has one
        return unwritten + self.transport.get_write_buffer_size()

    def _waits_for(self) -> tuple[str, float]:
        """What the client is to do now, and the seconds it has for that; 0: as many as it takes."""
        if self.transport.is_closing():
            return "close", CLOSE_SECONDS
        if self.transport.get_write_buffer_size():
            return "take", TAKE_SECONDS
        if self.cycle is not None and not self.cycle.response_complete:
            return "answer", 0  # it waits for us
        if self.conn.their_state is h11.SEND_BODY:
            return "body", BODY_SECONDS
        if self.timeout_keep_alive_task is not None:
            return "idle", 0  # uvicorn's own limit
        return "head", HEAD_SECONDS
