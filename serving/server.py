"""The server process: `serve` runs until it is told to stop."""

from __future__ import annotations

import functools
import logging
import logging.config
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import uvicorn
from prometheus_client.registry import Collector
from uvicorn.supervisors import Multiprocess

from pipeline.contract.settings import Settings
from pipeline.contract.store import StoreError, open_store
from serving import metrics
from serving.app import can_have_keys, create_app, create_metrics_app
from serving.keys import KeyRegistry, RegistryError
from serving.metrics import Metrics
from serving.protocol import Protocol
from serving.tracing import ACCESS_LOG

_LOG = logging.getLogger("keytally.server")
SEND_BUFFER = 128 * 1024  # bytes of an answer that the kernel keeps for a slow reader; Linux takes it twice
GRACE_SECONDS = 30  # running requests may finish within this time


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
    try:
        store = open_store(settings)
        store.check()
        can_open = can_have_keys(store, settings.keys)
    except StoreError as error:
        raise ServeError(str(error)) from error
    registry = KeyRegistry(settings.keys)
    try:
        has_keys = True
        if can_open:
            registry.open()
            has_keys = bool(registry.list())
    except RegistryError as error:
        raise ServeError(f"{error}; KEYTALLY_KEYS says where it is") from error
    listener = _listen_or_say_why(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    logging.config.dictConfig(LOGGING)
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
    with ExitStack() as stack:
        stack.enter_context(listener)
        stack.enter_context(_stopping_quietly())
        # Partials, since workers are spawned: they get these very settings, not another look at the environment.
        factory = functools.partial(create_app, settings, workers=workers)
        if workers > 1:
            folder = stack.enter_context(_counting_together())
            stack.enter_context(_showing_metrics(settings, lambda: metrics.counted_in(folder)))
            if on_started is not None:
                on_started(url)  # the socket listens: whoever connects now is answered when the first worker is up
            Multiprocess(configure(factory, settings.keep_alive, workers), sockets=[listener]).run()
        else:
            counted = Metrics()
            configuration = configure(functools.partial(factory, metrics=counted), settings.keep_alive)
            stack.enter_context(_showing_metrics(settings, counted.collectors))
            _Server(configuration, functools.partial(on_started, url) if on_started else None).run([listener])


def configure(factory: Callable[[], Any], keep_alive: int, workers: int = 1, *, logging: bool = True) -> uvicorn.Config:
    """How uvicorn runs the application that `factory` makes. keep_alive: seconds an idle connection stays open."""
    return uvicorn.Config(
        factory,
        factory=True,
        workers=workers,
        http=Protocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=LOGGING if logging else None,
        access_log=False,  # keytally.access is ours
        server_header=False,
        proxy_headers=False,  # nothing depends on who the client is said to be
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


# What the lines do not say need not be looked up for each of them: it took a quarter of a request's time.
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
logging._srcfile = None


class JsonLines(logging.Formatter):
    """One JSON object for each record. Those of keytally.access are already one, and get time and logger in front."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        if record.name == ACCESS_LOG.name:
            return f'{{"time":"{moment}","logger":"{record.name}",{record.getMessage()[1:]}'
        line: dict[str, Any] = {"time": moment, "logger": record.name}
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


@contextmanager
def _counting_together() -> Iterator[str]:
    """A folder in which workers that are spawned meanwhile keep their counts, so that all can be shown as one."""
    with tempfile.TemporaryDirectory(prefix="keytally-metrics-") as folder:
        os.environ[metrics.FOLDER] = folder  # prometheus-client looks here when it is imported
        try:
            yield folder
        finally:
            del os.environ[metrics.FOLDER]


@contextmanager
def _showing_metrics(settings: Settings, collectors: Callable[[], list[Collector]]) -> Iterator[None]:
    """/metrics on its own address, where one is set, from a thread of this process."""
    if settings.metrics is None:
        yield
        return
    with _listen_or_say_why(settings.metrics.host, settings.metrics.port) as listener:
        factory = functools.partial(create_metrics_app, collectors, settings)
        server = uvicorn.Server(configure(factory, settings.keep_alive, logging=False))
        thread = threading.Thread(target=server.run, args=([listener],), name="metrics")
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


def _listen_or_say_why(host: str, port: int) -> socket.socket:
    try:
        return _listen(host, port)
    except OSError as error:
        raise ServeError(f"cannot listen on {host}, port {port}: {error.strerror}") from error


def _listen(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    # TCP by name: asyncio switches Nagle off only for sockets that say so, and with Nagle each answer takes 40 ms.
    listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What clients do not read waits in the kernel, in up to 4 MB a connection where nobody says otherwise.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
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
