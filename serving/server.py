"""The server process: `serve` runs until it is told to stop."""

from __future__ import annotations

import functools
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from pipeline.contract.settings import Settings
from serving.app import create_app, utc_now
from serving.errors import BadRequest, error_answer
from serving.keys import KeyRegistry, RegistryError
from serving.tracing import ACCESS_LOG, log_request, trace_id_of

_LOG = logging.getLogger("keytally.server")
GRACE_SECONDS = 30  # running requests may finish within this time
KEEP_ALIVE_SECONDS = 15  # an idle connection stays open for this time
LARGEST_HEAD = 16 * 1024  # bytes of request line and headers together


class ServeError(Exception):
    """A server that cannot be started. `str()` of it is one line: why, and what to do."""


def serve(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    *,
    on_started: Callable[[str], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the running requests and returns.

    port: 0 takes a free one. on_started: called once, with the server's URL, when connections are accepted.
    Logs to stderr, one JSON object a line. Call it in the main thread. Raises ServeError.
    """
    if not settings.data.is_dir():
        raise ServeError(f"the data folder {settings.data} does not exist; KEYTALLY_DATA says where it is")
    registry = KeyRegistry(settings.keys)
    try:
        registry.open()
        has_keys = bool(registry.list())
    except RegistryError as error:
        raise ServeError(f"{error}; KEYTALLY_KEYS says where it is") from error
    try:
        listener = _listen(host, port)
    except OSError as error:
        raise ServeError(
            f"cannot listen on {host}, port {port}: {error.strerror}; --host and --port say where"
        ) from error
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    # A partial, since workers are spawned: they get these very settings, not another look at the environment.
    configuration = configure(functools.partial(create_app, settings, workers=workers), workers)
    if not has_keys:
        _LOG.warning(
            "%s holds no reading key, so that every request is refused: 'keytally keys create' makes one, and"
            " KEYTALLY_KEYS says where they are",
            settings.keys,
        )
    limit = settings.rate_limit
    if limit and limit.amount < workers and not settings.rate_limit_store:
        _LOG.warning(
            "KEYTALLY_RATE_LIMIT grants %d in %d seconds, but each of %d workers grants at least 1: up to %d together;"
            " with KEYTALLY_RATE_LIMIT_STORE they share one limit",
            *(limit.amount, limit.seconds, workers, workers),
        )
    with listener, _stopping_quietly():
        if workers > 1:
            if on_started is not None:
                on_started(url)  # the socket listens: whoever connects now is answered when the first worker is up
            Multiprocess(configuration, sockets=[listener]).run()
        else:
            _Server(configuration, functools.partial(on_started, url) if on_started else None).run([listener])


def configure(factory: Callable[[], Any], workers: int = 1, *, logging: bool = True) -> uvicorn.Config:
    """How uvicorn runs the application that `factory` makes."""
    return uvicorn.Config(
        factory,
        factory=True,
        workers=workers,
        http=_Protocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=LOGGING if logging else None,
        access_log=False,  # keytally.access is ours
        server_header=False,
        proxy_headers=False,  # nothing depends on who the client is said to be
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class JsonLines(logging.Formatter):
    """One JSON object for each record. Those of keytally.access are already one, and get time and logger in front."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "logger": record.name,
        }
        if record.name == ACCESS_LOG.name:
            return msgspec.json.encode(line).decode("utf-8")[:-1] + "," + record.getMessage()[1:]
        line |= {"level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode("utf-8")


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "serving.server.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
    "loggers": {
        "keytally": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        # Its warnings are about malformed requests, and keytally.access has a line for each.
        "uvicorn.error": {"handlers": ["stderr"], "level": "ERROR", "propagate": False},
    },
}


class _Server(uvicorn.Server):
    def __init__(self, configuration: uvicorn.Config, on_started: Callable[[], None] | None) -> None:
        super().__init__(configuration)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then says so."""
        await super().startup(sockets)
        if self._on_started is not None:
            self._on_started()


class _Protocol(H11Protocol):
    """uvicorn's protocol, but what is not HTTP gets the same shape of error as everything else."""

    _head = False  # whether the newest request's method is HEAD, as far as it can be told

    def handle_events(self) -> None:
        """As uvicorn's. It reads one request at most, and what cannot be read is gone afterwards: so look before."""
        if self.conn.their_state is h11.IDLE:
            self._head = self.conn.trailing_data[0].startswith(b"HEAD ")
        super().handle_events()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answers, and closes the connection."""
        if self.cycle is not None and not self.cycle.response_started:
            # What came behind a whole request is broken, while that request is still being answered. Of two answers
            # only this one can be sent; the other goes nowhere, as if the client had left.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        trace_id = trace_id_of(())
        headers, body = error_answer(BadRequest(), trace_id, utc_now())
        headers += [(b"x-request-id", trace_id.encode("ascii")), (b"connection", b"close")]
        try:
            response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            # h11 knows no method of what it could not read, and would insist on the body.
            for event in (response,) if self._head else (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            log_request({"method": "-"}, trace_id, BadRequest.status, 0.0, None)
        except h11.LocalProtocolError:
            pass  # an answer had begun: the connection ends in the middle of it
        self.transport.close()


def _listen(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    # TCP by name: asyncio switches Nagle off only for sockets that say so, and with Nagle each answer takes 40 ms.
    listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


@contextmanager
def _stopping_quietly() -> Iterator[None]:
    """uvicorn stops in good order on a signal, then raises it once more for whoever was there before: not for us."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
