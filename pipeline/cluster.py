"""A cluster in place of this machine's cores: an existing Dask scheduler, and its workers.

A worker does the very steps that are done here, by the same code, with a DuckDB of its own, on the same data root. It
is sent names and values and sends names and values back; what it makes it keeps there, under names that say what it was
made from. So a step that is done twice, because a worker died over it, makes nothing that was not there.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from distributed import Client, Future, get_worker
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from pipeline.contract.settings import Settings
from pipeline.contract.store import Store
from pipeline.errors import KeytallyError
from pipeline.fan_out import FanOut, Item, Result, fan_out
from pipeline.prices import read_kept
from pipeline.raw import RawFile
from pipeline.run import Run, start_run

log = logging.getLogger(__name__)

CONNECT_SECONDS = 30  # for the scheduler to answer, and for a first worker
RETURNS = 3  # of a scheduler that went away, before the run gives it up
STEPS_A_THREAD = 4  # sent ahead, so that no worker waits for its next
OUTSIDE_ENGINE = 400 * 10**6  # bytes a step needs beside what DuckDB has
LEAST_ENGINE = 128 * 10**6
USABLE_SHARE = 0.8  # of a worker's memory: where there is less left, Dask pauses it


class _GoneError(Exception):
    """The scheduler no longer answers, or forgot what it was asked."""


@dataclass(frozen=True)
class Order:
    """What a worker is told of the run whose steps it does. prices: the files below books/ that it prices by."""

    run: str
    settings: Settings
    started: datetime
    prices: Mapping[str, str]
    versions: Mapping[str, str]


def order_of(run: Run) -> Order:
    """What a worker is told of a run; nothing in it is secret. The run's prices are kept, for workers to read them."""
    run.prices.keep(run.store, run.scratch)
    return Order(run.name, run.settings.for_a_worker(), run.started, run.prices.kept, _versions())


@contextmanager
def cluster_of(settings: Settings) -> Iterator[FanOut]:
    """How steps are fanned out over the cluster of `settings`, which names one.

    Raises KeytallyError when it does not answer, or is not fit for our steps.
    """
    cluster = _Cluster(settings)
    try:
        cluster.connect()
        yield cluster
    finally:
        cluster.close()


class _Cluster:
    """A scheduler that steps are sent to, for as long as it is there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = str(settings.dask)
        self._client: Client | None = None  # None: it is done without

    def __call__(self, run: Run, step: Callable[[Run, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        done = 0
        for _ in range(1 + RETURNS):
            if self._client is None:
                break
            try:
                for result in _fan_out(self._client, run, step, items[done:]):
                    yield result
                    done += 1
            except _GoneError:
                log.warning(
                    "the Dask scheduler at %s went away; %d of %d steps are done", self._address, done, len(items)
                )
                self.close()
                self.connect()
            else:
                return
        yield from fan_out(run, step, items[done:])

    def connect(self) -> None:
        """Find the scheduler, and see that its workers are fit; or do without it, if the settings say so."""
        try:
            self._client = Client(self._address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            said = f"the Dask scheduler at {self._address} does not answer ({str(error) or type(error).__name__})"
            if self._settings.dask_lost != "local":
                raise KeytallyError(
                    f"{said}; nothing was published. Start it and run the command again, or set"
                    " KEYTALLY_DASK_LOST=local to go on with this machine alone"
                ) from None
            log.warning("%s; going on with this machine alone", said)
        else:
            _check_workers(self._client, self._address)

    def close(self) -> None:
        if self._client:
            self._client.close()
            self._client = None


def _check_workers(client: Client, address: str) -> None:
    """See that there are workers, all of them with what is here. Raises KeytallyError."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        raise KeytallyError(
            f"the Dask scheduler at {address} has no workers; start one with: dask worker {address}"
        ) from None
    for worker, found in client.run(_versions, on_error="return").items():
        if isinstance(found, Exception):
            raise KeytallyError(f"the worker {worker} cannot load keytally ({found}); install the same keytally there")
        _check_versions(_versions(), worker, found)


def _check_versions(expected: Mapping[str, str], worker: str, found: Mapping[str, str]) -> None:
    for name, here in expected.items():
        if found.get(name) != here:
            raise KeytallyError(
                f"the worker {worker} has {name} {found.get(name)}, this machine {here}: results may differ; install"
                " the same there and start it anew"
            )


@cache
def _versions() -> dict[str, str]:
    """What decides what a step makes."""
    sources = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.sql"))):
        sources.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return {"keytally": sources.hexdigest()[:12], "duckdb": version("duckdb"), "pyarrow": version("pyarrow")}


def _fan_out(client: Client, run: Run, step: Callable[[Run, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What workers make of the items, in their order. Raises _GoneError."""
    order = order_of(run)
    ahead = STEPS_A_THREAD * max(1, sum(client.nthreads().values()))
    under_way: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            under_way.append((item, client.submit(carry_out, order, step, item, pure=False)))
            if len(under_way) > ahead:
                yield _result(run, *under_way.popleft())
        while under_way:
            yield _result(run, *under_way.popleft())
    finally:
        client.cancel([future for _, future in under_way])


def _result(run: Run, item: object, future: Future[Any]) -> Any:
    try:
        result = future.result()
    except KilledWorker as error:
        raise KeytallyError(
            f"{error.allowed_failures + 1} workers died over one step, the last at {error.last_worker.address}; nothing"
            " was published. Most often they had too little memory: give them more, or fewer threads"
        ) from None
    except (FutureCancelledError, CommClosedError) as error:
        raise _GoneError from error
    if isinstance(item, RawFile):
        run.watch.advance(item.size)
    return result


# --- on a worker -----------------------------------------------------------------------------------------------------


def carry_out(order: Order, step: Callable[[Run, Item], Result], item: Item) -> Result:
    """Do a step on this worker."""
    worker = get_worker()
    _check_versions(order.versions, worker.address, _versions())
    memory = _engine_memory(order, worker, worker.memory_manager.memory_limit)
    settings = replace(order.settings.with_keys_of(os.environ), threads=1, memory_limit=memory)
    with start_run(settings, lambda: order.started) as run:
        if not run.store.sees_run(order.run):
            raise KeytallyError(
                f"the worker {worker.address} has another {settings.data} than this machine: the data root must be a"
                " folder that all of them share, or a bucket"
            )
        prices = read_kept(run.store, settings.currency, order.prices)
        return step(replace(run, prices=prices), _received(item, run.store))


def _engine_memory(order: Order, worker: Any, limit: int | None) -> int:
    """Bytes for DuckDB in one thread of a worker."""
    if limit is None:
        return order.settings.memory_limit
    share = int(limit * USABLE_SHARE) // worker.state.nthreads - OUTSIDE_ENGINE
    if share < LEAST_ENGINE:
        has, needs = limit // worker.state.nthreads, int((LEAST_ENGINE + OUTSIDE_ENGINE) / USABLE_SHARE)
        raise KeytallyError(
            f"the worker {worker.address} has {has // 10**6:,} MB for each of its threads, and a step needs"
            f" {needs // 10**6:,} MB; start it with a larger --memory-limit or a smaller --nthreads"
        )
    engine: int = min(order.settings.memory_limit, share)
    return engine


def _received(item: Item, store: Store) -> Item:
    """An item as it is used here: a raw file is opened by this machine's own store."""
    return cast("Item", item.in_store(store)) if isinstance(item, RawFile) else item
