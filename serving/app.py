"""The application: the endpoints, their document, its state of health, and what keeps them up to date."""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.contract.data_root import has_data
from pipeline.contract.settings import Settings
from pipeline.contract.store import Store, open_store
from serving.answer_cache import AnswerCache
from serving.auth import Gate
from serving.clock import Clock, utc_now
from serving.errors import BadRequest, InternalError, MethodNotAllowed, NotFound
from serving.health import Healthz, Readyz
from serving.keys import KeyRegistry
from serving.limiter import Limiter
from serving.metrics import Metrics, ShowMetrics, State
from serving.names import NamesFile
from serving.pages.routes import Pages
from serving.pages.sessions import Sessions
from serving.reader import Reader
from serving.reference import openapi_document
from serving.routes import Direct, TracedRoute, routes
from serving.tracing import Tracing

_LOG = logging.getLogger("keytally.app")
REGISTRY_SECONDS = 0.25  # how often the key registry is looked at
PARENT_SECONDS = 1.0  # how often a worker looks for its parent


def create_app(
    settings: Settings, *, workers: int = 1, clock: Clock = utc_now, metrics: Metrics | None = None
) -> FastAPI:
    """The application for one process of `workers`. metrics: where requests are counted, where somebody else shows it.

    Its lifespan opens the key registry, which it makes where there is none, and raises RegistryUnavailable when that
    cannot be done.
    """
    registry = KeyRegistry(settings.keys)
    store = open_store(settings)
    reader = Reader(store)
    metrics = metrics or Metrics()
    names = NamesFile(store)
    # A client may take an answer for the newest as long as the server itself does.
    answers = AnswerCache(reader, names, settings.answer_cache, int(settings.refresh_seconds), metrics.looked_up)
    limiter = Limiter(settings.rate_limit, settings.rate_limit_store, workers)
    gate = Gate(registry, limiter, clock)
    sessions = Sessions(settings.keys)
    pages = Pages(gate, sessions, answers, reader, clock, settings.currency)

    open_keys = OpenKeys(store, settings.keys, registry.open, sessions.open)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Metrics]]:
        await asyncio.to_thread(open_keys)
        await asyncio.to_thread(reader.refresh)
        await asyncio.to_thread(names.refresh)
        watches = [
            asyncio.create_task(_repeat(open_keys, settings.refresh_seconds / 2)),
            asyncio.create_task(_repeat(registry.poll, REGISTRY_SECONDS)),
            asyncio.create_task(_repeat(reader.refresh, settings.refresh_seconds / 2)),
            asyncio.create_task(_repeat(names.refresh, settings.refresh_seconds / 2)),
        ]
        if (parent := multiprocessing.parent_process()) is not None:
            watches.append(asyncio.create_task(_repeat(functools.partial(_end_without, parent), PARENT_SECONDS)))
        yield {"metrics": metrics}  # for the protocol, which answers what never becomes a request
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        answers.close()
        await limiter.close()
        registry.close()

    app = FastAPIOffline(
        title="keytally",
        version=_version(),
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        exception_handlers={HTTPException: _refuse},
        # keytally.access and /metrics tell what happened; FastAPI's own spans would name organizations.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    document_in = functools.cache(functools.partial(openapi_document, app.title, app.version))
    app.openapi = lambda: document_in(reader.currency or settings.currency)  # type: ignore[method-assign]
    for route in app.routes:
        if isinstance(route, Mount):
            route.app = _whole(route.app)
        elif isinstance(route, APIRoute):
            route.methods = {"GET", "HEAD"}  # the pages; FastAPI lets HEAD ask for /openapi.json alone
    endpoints = routes(gate, answers, clock)
    app.router.routes[:0] = endpoints
    plain: list[tuple[str, ASGIApp]] = [("/healthz", Healthz()), ("/readyz", Readyz(reader, registry, clock))]
    if settings.metrics is None:
        plain.append(("/metrics", ShowMetrics(metrics.collectors, State(reader, clock))))
    app.router.routes.extend(TracedRoute(path, answer, methods=["GET"]) for path, answer in plain)
    app.router.routes.extend(pages.routes())
    app.add_middleware(Direct, routes=endpoints)
    app.add_middleware(Tracing, clock=clock, as_of=reader.as_of, metrics=metrics)
    return app


def create_metrics_app(
    collectors: Callable[[], list[Collector]], settings: Settings, clock: Clock = utc_now
) -> Starlette:
    """/metrics alone, for an address of its own. collectors: what the serving processes count."""
    reader = Reader(open_store(settings))
    show = ShowMetrics(collectors, State(reader, clock), reader.refresh)
    app = Starlette(
        routes=[TracedRoute("/metrics", show, methods=["GET"])], exception_handlers={HTTPException: _refuse}
    )
    app.router.redirect_slashes = False
    app.add_middleware(Tracing, clock=clock, as_of=reader.as_of)
    return app


def create_app_from_environment() -> FastAPI:
    """The application with the settings of the environment, alone in its process: for `uvicorn --factory`.

    Raises SettingsError.
    """
    return create_app(Settings.from_environment())


class OpenKeys:
    """Opens the registry of keys, and makes it where there is none; once, as soon as there is a data root.

    The registry lies in the data root by default. One that is made below the mount point of a disk would refuse every
    key.
    """

    def __init__(self, store: Store, keys: Path, *opens: Callable[[], None]) -> None:
        self._store = store
        self._keys = keys
        self._opens = opens
        self._opened = False

    def __call__(self) -> None:
        """Opens it. Raises RegistryUnavailable."""
        if not self._opened and can_have_keys(self._store, self._keys):
            for open_one in self._opens:
                open_one()
            self._opened = True


def can_have_keys(store: Store, keys: Path) -> bool:
    """Return True unless the registry of keys belongs into a data root that is not there. Raises StoreError."""
    return store.layout.root not in keys.parents or has_data(store)


async def _refuse(_: Request, error: Exception) -> NoReturn:
    """What the router and the files of the documentation refuse, in our words. Always raises."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET, HEAD")
        raise MethodNotAllowed(headers={"Allow": ", ".join(sorted(allowed.split(", ")))})
    if error.status_code == 404:
        raise NotFound
    raise BadRequest if error.status_code < 500 else InternalError


def _whole(files: ASGIApp) -> ASGIApp:
    """The files, never a part of one: to a bad Range Starlette answers by itself, and in another shape than ours.

    A server may ignore Range.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await files({**scope, "headers": headers}, receive, send)

    return answer


def _end_without(parent: BaseProcess) -> None:
    """Ends this worker when its parent is gone: who else would end it, or let another server have the port?"""
    if not parent.is_alive():
        _LOG.error("the parent process is gone: this worker ends")
        os.kill(os.getpid(), signal.SIGTERM)


async def _repeat(look: Callable[[], None], seconds: float) -> None:
    """Calls `look` in a thread, again and again. What it raises is logged when it is news."""
    failure = ""
    while True:
        try:
            await asyncio.to_thread(look)
            failure = ""
        except Exception as error:
            if str(error) != failure:
                failure = str(error)
                _LOG.error("%s", failure)
        await asyncio.sleep(seconds)


def _version() -> str:
    try:
        return version("keytally")
    except PackageNotFoundError:  # run from a source folder
        return "0"
