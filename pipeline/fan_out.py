"""Steps of a run that do not need each other, fanned out over the cores there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import replace
from itertools import islice
from queue import SimpleQueue
from threading import Event
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipeline.contract.settings import Settings
from pipeline.engine import Engine
from pipeline.errors import KeytallyError
from pipeline.run import Run, Watch

ENGINE_BYTES = 256 * 10**6  # of the memory limit, for each step that is under way
BESIDE_BYTES = 120 * 10**6  # of these, for what a step holds beside its engine: measured with tests/test_memory.py

Item = TypeVar("Item")
Result = TypeVar("Result")


class FanOut(Protocol):
    """How a step is done for many items that do not need each other."""

    def __call__(self, run: Run, step: Callable[[Run, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """What the step makes of each item, in their order."""


@contextmanager
def fan_out_of(settings: Settings, *how: Callable[..., Any]) -> Iterator[FanOut]:
    """Over the workers of the cluster that the settings name, or else over the cores of this machine.

    how: what `cluster_of` is given beside the settings. Raises KeytallyError when there is a cluster that cannot be
    used.
    """
    if settings.dask is None:
        yield fan_out
        return
    with dask_extra():
        from pipeline.cluster import cluster_of  # noqa: PLC0415  # an extra, and half a second to import
    with cluster_of(settings, *how) as over_the_cluster:
        yield over_the_cluster


@contextmanager
def dask_extra() -> Iterator[None]:
    """Around the imports that only KEYTALLY_DASK needs. Raises KeytallyError when one of them is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise KeytallyError(
            f"KEYTALLY_DASK is set, and {error.name} is not installed; pip install 'keytally[dask]'"
        ) from None


def in_order(numbered: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Results by their numbers, which begin at 0. What comes early waits: one slow step holds up no other."""
    early: dict[int, Result] = {}
    due = 0
    for number, result in numbered:
        early[number] = result
        while due in early:
            yield early.pop(due)
            due += 1


def fan_out(run: Run, step: Callable[[Run, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What `step` makes of each item, in their order.

    Each runs in a thread, with an engine of its own that has one thread: two threads of DuckDB take a third more CPU
    than one for what a file holds, and are slower than one file each. An error ends the steps that are under way.
    """
    count = min(run.settings.threads, len(items), run.settings.memory_limit // ENGINE_BYTES)
    if count < 2:
        for item in items:
            yield _done(step, run, item)
        return
    watch = _Stoppable(run.watch)
    with ExitStack() as stack:
        idle: SimpleQueue[Run] = SimpleQueue()
        for number in range(count):
            idle.put(_part_of(run, number, count, watch, stack))

        def with_an_idle_engine(item: Item) -> Result:
            part = idle.get()
            try:
                return _done(step, part, item)
            finally:
                idle.put(part)

        pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="fan-out"))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        stack.callback(watch.stop)
        waiting = enumerate(items)
        under_way: dict[Future[Result], int] = {}

        def results() -> Iterator[tuple[int, Result]]:
            while True:
                for number, item in islice(waiting, 2 * count - len(under_way)):
                    # Whoever follows what a flow does looks for its run in the context.
                    under_way[pool.submit(copy_context().run, with_an_idle_engine, item)] = number
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), future.result()

        yield from in_order(results())


def _done(step: Callable[[Run, Item], Result], run: Run, item: Item) -> Result:
    """What a step makes of an item. The memory that Arrow keeps for later goes back to the system."""
    try:
        return step(run, item)
    finally:
        pa.default_memory_pool().release_unused()  # of this thread: no other may


def _part_of(run: Run, number: int, count: int, watch: Watch, stack: ExitStack) -> Run:
    scratch = run.scratch / f"part-{number}"
    scratch.mkdir(exist_ok=True)
    settings = replace(run.settings, threads=1, memory_limit=run.settings.memory_limit // count - BESIDE_BYTES)
    engine = Engine(settings, run.store, scratch)
    stack.callback(engine.close)
    return replace(run, settings=settings, scratch=scratch, engine=engine, watch=watch)


class _StoppedError(Exception):
    """Nobody waits for what this step makes."""


class _Stoppable(Watch):
    """Ends the steps that tell it how far they are."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._stopped = Event()

    def stop(self) -> None:
        self._stopped.set()

    def advance(self, amount: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        self._watch.advance(amount)

    def count(self, rows: int) -> None:
        self._watch.count(rows)
