"""A cluster in place of this machine's cores: an existing Dask scheduler, and its workers.

A worker does the very steps that are done here, by the same code, with a DuckDB of its own, on the same data root. It
is sent names and values and sends names and values back; what it makes it keeps there, under names that say what it was
made from. So a step that is done twice, because a worker died over it, makes nothing that was not there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, cast

from distributed import Client, Future, get_worker
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm.core import CommClosedError, connect
from distributed.scheduler import KilledWorker
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from pipeline.contract.settings import Settings, SettingsError
from pipeline.contract.store import Store
from pipeline.errors import KeytallyError
from pipeline.fan_out import FanOut, Item, Result, fan_out, in_order
from pipeline.prices import read_kept
from pipeline.raw import RawFile
from pipeline.run import Run, Watch, start_run

log = logging.getLogger(__name__)

CONNECT_SECONDS = 30  # for the scheduler to answer, and for a first worker, or the next one when all are gone
HELLO_SECONDS = 5  # for who listens at its address to say a word
LOOK_SECONDS = 1  # between two looks at who the workers are
RETURNS = 3  # of a scheduler that went away, before the run gives it up
STEPS_A_THREAD = 4  # sent ahead, so that no worker waits for its next
OUTSIDE_ENGINE = 400 * 10**6  # bytes a step needs beside what DuckDB has
LEAST_ENGINE = 128 * 10**6
USABLE_SHARE = 0.8  # of a worker's memory: where there is less left, Dask pauses it

Connect = Callable[[str, float], AbstractContextManager[Client]]  # to an address, within so many seconds


class Unfit(KeytallyError):
    """A worker that cannot do our steps. It gets no more of them; the others do."""

    def __init__(self, worker: str, why: str) -> None:
        super().__init__(f"the worker {worker} {why}")
        self.worker = worker
        self.why = why


class _GoneError(Exception):
    """The scheduler no longer answers, or forgot what it was asked."""


class _NoWorkersError(Exception):
    """Nobody has been there for a while to send a step to."""


@dataclass(frozen=True)
class Order:
    """What a worker is told of the run whose steps it does. prices: the files below books/ that it prices by."""

    run: str
    settings: Settings
    started: datetime
    prices: Mapping[str, str]
    versions: Mapping[str, str]


class Done(NamedTuple, Generic[Result]):
    """What a worker made of an item, how far it told its run's watch that it came, and of how many rows."""

    result: Result
    advanced: int
    rows: int


class _Sent(NamedTuple):
    """A step under way: the item's number, and where it may be done; None: anywhere."""

    number: int
    future: Future[Any]
    workers: frozenset[str] | None


def _greet(address: str, seconds: float) -> None:
    """Say hello to the scheduler. Raises OSError when it does not answer.

    A client would wait for ever for who listens and says nothing: a scheduler that hangs, or the server of some page.
    """

    async def greet() -> None:
        connection = await asyncio.wait_for(
            connect(address, timeout=seconds, **Security().get_connection_args("client")), seconds + HELLO_SECONDS
        )
        connection.abort()

    try:
        with ThreadPoolExecutor(1) as elsewhere:  # there may be a loop in this thread
            elsewhere.submit(asyncio.run, greet()).result()
    except (TimeoutError, MemoryError) as error:  # other words than Dask's may be read as the length of a message
        raise OSError("somebody is there, and does not speak as a scheduler does") from error
    except OSError:
        raise
    except Exception as error:  # TLS that is not set up is a TypeError
        raise OSError(str(error)) from error


def connect_plainly(address: str, seconds: float) -> AbstractContextManager[Client]:
    """A client of the scheduler. Raises OSError when it does not answer."""
    return closing(Client(address, timeout=seconds, set_as_default=False))


@contextmanager
def cluster_of(
    settings: Settings,
    connect: Connect = connect_plainly,
    task_of: Callable[[Callable[..., Any], Callable[..., Any], object], Callable[..., Any]] = lambda carry, *_: carry,
) -> Iterator[FanOut]:
    """How steps are fanned out over the cluster of `settings`, which names one; over this machine, where the settings
    say so and the cluster is not there.

    task_of: what is sent to the client for a step and an item, as `carry_out` is that it is given. Raises KeytallyError
    when the cluster does not answer, or is not fit for our steps.
    """
    cluster = _Cluster(settings, connect, task_of)
    try:
        cluster.connect()
        yield cluster if cluster.is_there else fan_out
    finally:
        cluster.close()


class _Cluster:
    """A scheduler that steps are sent to, for as long as it is there."""

    def __init__(self, settings: Settings, connect: Connect, task_of: Callable[..., Callable[..., Any]]) -> None:
        self._settings = settings
        self._address = str(settings.dask)
        self._connect = connect
        self._task_of = task_of
        self._client: Client | None = None  # None: it is done without
        self._connection = ExitStack()
        self._unfit: dict[str, Unfit] = {}  # by worker
        self._threads: dict[str, int] = {}  # of the fit workers, when they were last looked at
        self._looked_at = self._seen_at = time.monotonic()  # and when there was one of them
        self._kept: set[str] = set()  # files below books/, for workers to read

    @property
    def is_there(self) -> bool:
        """Whether steps are sent to it, and not done here."""
        return self._client is not None

    def __call__(self, run: Run, step: Callable[[Run, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return in_order(self._results(run, step, dict(enumerate(items))))

    def _results(
        self, run: Run, step: Callable[[Run, Item], Result], waiting: dict[int, Item]
    ) -> Iterator[tuple[int, Result]]:
        """What is made of each item, with its number, as it comes. What came is not asked for again."""
        count = len(waiting)
        for returns in reversed(range(1 + RETURNS)):
            if self._client is None:
                break
            try:
                for number, result in self._fan_out(self._client, run, step, waiting):
                    del waiting[number]
                    yield number, result
            except _GoneError:
                done = count - len(waiting)
                log.warning("the Dask scheduler at %s went away; %d of %d steps are done", self._address, done, count)
                self.close()
                if returns:
                    self.connect()
                else:
                    self._do_without(f"went away {1 + RETURNS} times", "See to it")
            except _NoWorkersError:
                fit = "fit " if self._unfit else ""
                self._do_without(f"has no {fit}workers any more", f"Start one with: dask worker {self._address}")
            else:
                return
        yield from zip(list(waiting), fan_out(run, step, list(waiting.values())), strict=True)

    def connect(self) -> None:
        """Find the scheduler, and see that it has fit workers; or do without it, if the settings say so."""
        try:
            _greet(self._address, CONNECT_SECONDS)
            self._client = self._connection.enter_context(self._connect(self._address, CONNECT_SECONDS))
            self._wait_for_workers(self._client)
        except (OSError, ValueError, _GoneError) as error:
            self._do_without(f"does not answer ({str(error) or type(error).__name__})", "Start it")

    def close(self) -> None:
        """Send nothing more."""
        self._client = None
        self._connection.close()

    def _do_without(self, what: str, remedy: str) -> None:
        """Go on with this machine alone. Raises KeytallyError unless the settings say so."""
        said = f"the Dask scheduler at {self._address} {what}"
        if self._settings.dask_lost != "local":
            raise KeytallyError(
                f"{said}; nothing was published. {remedy} and run the command again, or set KEYTALLY_DASK_LOST=local to"
                " go on with this machine alone"
            ) from None
        log.warning("%s; going on with this machine alone", said)
        self.close()

    def _wait_for_workers(self, client: Client) -> None:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            self._do_without("has no workers", f"Start one with: dask worker {self._address}")
            return
        self._seen_at = time.monotonic()
        self._note_unfit(client)
        self._look(client, at_once=True)
        if self._unfit and not self._threads:
            raise list(self._unfit.values())[-1]

    def _note_unfit(self, client: Client) -> bool:
        """Note the workers that are not fit by what they have. Whether there was one that was not noted before."""
        before = len(self._unfit)
        for worker, found in client.run(_versions, on_error="return").items():
            if isinstance(found, CommClosedError):
                continue  # it is gone, whatever it had
            try:
                if isinstance(found, Exception):
                    raise Unfit(worker, f"cannot load keytally ({found}); install the same keytally there")
                _check_versions(_versions(), worker, found)
            except Unfit as unfit:
                self._note(unfit)
        return len(self._unfit) > before

    def _note(self, unfit: Unfit) -> None:
        if unfit.worker not in self._unfit:
            self._unfit[unfit.worker] = unfit
            log.warning("%s; it gets no steps", unfit)

    def _look(self, client: Client, *, at_once: bool = False) -> None:
        """See who of the fit workers is there, once a second. Raises _GoneError, and _NoWorkersError after a while."""
        now = time.monotonic()
        if now < self._looked_at + LOOK_SECONDS and not at_once:
            return
        self._looked_at = now
        scheduler = cast("Any", client.scheduler)
        try:
            if client.status != "running":
                raise _GoneError("the connection broke")
            found = client.sync(scheduler.ncores, workers=None, callback_timeout=CONNECT_SECONDS)
        except OSError as error:
            raise _GoneError(str(error) or type(error).__name__) from error
        self._threads = {worker: threads for worker, threads in found.items() if worker not in self._unfit}
        if self._threads:
            self._seen_at = now
        elif now > self._seen_at + CONNECT_SECONDS:
            raise _NoWorkersError

    def _fan_out(
        self, client: Client, run: Run, step: Callable[[Run, Item], Result], items: Mapping[int, Item]
    ) -> Iterator[tuple[int, Result]]:
        """What workers make of the items, with their numbers, as it comes. Raises _GoneError, _NoWorkersError."""
        order = self._order_of(run)
        to_send = deque(items)
        under_way: dict[object, _Sent] = {}
        finished: SimpleQueue[Future[Any]] = SimpleQueue()
        self._seen_at = time.monotonic()

        def send_again(key: object) -> None:
            sent = under_way.pop(key)
            client.cancel([sent.future])
            to_send.appendleft(sent.number)

        try:
            while to_send or under_way:
                self._look(client)
                for key in [key for key, sent in under_way.items() if self._is_stranded(sent)]:
                    send_again(key)
                while to_send and len(under_way) < STEPS_A_THREAD * sum(self._threads.values()):
                    number = to_send.popleft()
                    sent = self._send(client, order, step, number, items[number])
                    under_way[sent.future.key] = sent
                    sent.future.add_done_callback(finished.put)
                with suppress(Empty):
                    future = finished.get(timeout=LOOK_SECONDS)
                    if future.key not in under_way:
                        continue  # it was sent again meanwhile
                    done = self._done(client, future)
                    if done is None:
                        send_again(future.key)
                        continue
                    run.watch.advance(done.advanced)
                    run.watch.count(done.rows)
                    yield under_way.pop(future.key).number, done.result
        except (ClosedClientError, CommClosedError) as error:
            raise _GoneError from error
        finally:
            with suppress(ClosedClientError, CommClosedError):
                client.cancel([sent.future for sent in under_way.values()])

    def _order_of(self, run: Run) -> Order:
        """What a worker is told of a run; nothing in it is secret. The prices it names are kept."""
        kept = run.prices.kept
        if not self._kept.issuperset(kept.values()):  # once: no run is as long as the grace of what nobody names
            run.prices.keep(run.store, run.scratch)
            self._kept.update(kept.values())
        return Order(run.name, run.settings.for_a_worker(), run.started, kept, _versions())

    def _is_stranded(self, sent: _Sent) -> bool:
        """Whether those it was sent to are gone, and others are there."""
        return bool(sent.workers and self._threads and not sent.workers & self._threads.keys())

    def _send(
        self,
        client: Client,
        order: Order,
        step: Callable[[Run, Item], Result],
        number: int,
        item: Item,
    ) -> _Sent:
        only = frozenset(self._threads) if self._unfit else None
        future = client.submit(
            self._task_of(carry_out, step, item),
            *(order, step, item),
            workers=only and sorted(only),
            allow_other_workers=False,
            pure=False,
        )
        return _Sent(number, future, only)

    def _done(self, client: Client, future: Future[Any]) -> Done[Any] | None:
        """What came of a step that ended; None where another worker has to do it. Raises what the step raised."""
        try:
            done: Done[Any] = future.result(timeout=CONNECT_SECONDS)
        except KilledWorker as error:
            raise KeytallyError(
                f"{error.allowed_failures + 1} workers died over one step, the last at {error.last_worker.address};"
                " nothing was published. Most often they had too little memory: give them more, or fewer threads"
            ) from None
        except (FutureCancelledError, CommClosedError) as error:
            raise _GoneError from error
        except Unfit as unfit:
            self._note(unfit)
            self._look(client, at_once=True)
            if not self._threads:
                raise
        except KeytallyError:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and future.status != "error":
                return None  # who made it died before it was fetched
            # Other versions may come to grief before they are compared.
            if not self._note_unfit(client):
                raise
            self._look(client, at_once=True)
            if not self._threads:
                raise list(self._unfit.values())[-1] from None
        else:
            return done
        return None


def _check_versions(expected: Mapping[str, str], worker: str, found: Mapping[str, str]) -> None:
    for name, here in expected.items():
        if found.get(name) != here:
            raise Unfit(
                worker,
                f"has {name} {found.get(name)}, this machine {here}: results may differ; install the same there and"
                " start it anew",
            )


@cache
def _versions() -> dict[str, str]:
    """What decides what a step makes, and whether it can be sent."""
    sources = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.sql"))):
        sources.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "keytally": sources.hexdigest()[:12],
        "duckdb": version("duckdb"),
        "pyarrow": version("pyarrow"),
    }


# --- on a worker -----------------------------------------------------------------------------------------------------


class _Told(Watch):
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.advanced = 0
        self.rows = 0

    def advance(self, amount: int) -> None:
        self.advanced += amount

    def count(self, rows: int) -> None:
        self.rows += rows


def carry_out(order: Order, step: Callable[[Run, Item], Result], item: Item) -> Done[Result]:
    """Do a step on this worker. Raises Unfit when it cannot do steps of this run."""
    worker = get_worker()
    _check_versions(order.versions, worker.address, _versions())
    memory = _engine_memory(order, worker, worker.memory_manager.memory_limit or MEMORY_LIMIT)
    try:
        settings = replace(order.settings.on_this_machine(os.environ), threads=1, memory_limit=memory)
    except SettingsError as error:
        raise Unfit(worker.address, f"has a setting that cannot be used: {error}") from None
    watch = _Told()
    with start_run(settings, lambda: order.started, watch, is_part=True) as run:
        if not run.store.sees_run(order.run):
            raise Unfit(
                worker.address,
                f"has another {settings.data} than this machine: the data root must be a folder that all of them"
                " share, or a bucket",
            )
        prices = read_kept(run.store, settings.currency, order.prices)
        return Done(step(replace(run, prices=prices), _received(item, run.store)), watch.advanced, watch.rows)


def _engine_memory(order: Order, worker: Any, limit: int) -> int:
    """Bytes for DuckDB in one thread of a worker that may have `limit`."""
    share = int(limit * USABLE_SHARE) // worker.state.nthreads - OUTSIDE_ENGINE
    if share < LEAST_ENGINE:
        has, needs = limit // worker.state.nthreads, int((LEAST_ENGINE + OUTSIDE_ENGINE) / USABLE_SHARE)
        raise Unfit(
            worker.address,
            f"has {has // 10**6:,} MB for each of its threads, and a step needs {needs // 10**6:,} MB; start it with a"
            " larger --memory-limit or a smaller --nthreads",
        )
    engine: int = min(order.settings.memory_limit, share)
    return engine


def _received(item: Item, store: Store) -> Item:
    """An item as it is used here: a raw file is opened by this machine's own store."""
    return cast("Item", item.in_store(store)) if isinstance(item, RawFile) else item
