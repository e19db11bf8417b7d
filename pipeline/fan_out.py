"""Steps of a run that do not need each other, fanned out over the cores there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import replace
from queue import SimpleQueue
from threading import Event
from typing import Protocol, TypeVar

from pipeline.contract.settings import Settings
from pipeline.engine import Engine
from pipeline.errors import KeytallyError
from pipeline.run import Run, Watch

ENGINE_BYTES = 256 * 10**6  # of the memory limit, for each engine

Item = TypeVar("Item")
Result = TypeVar("Result")


class FanOut(Protocol):
    """How a step is done for many items that do not need each other."""

    def __call__(self, run: Run, step: Callable[[Run, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """What the step makes of each item, in their order."""


@contextmanager
def fan_out_of(settings: Settings) -> Iterator[FanOut]:
    """Over the workers of the cluster that the settings name, or else over the cores of this machine.

    Raises KeytallyError when there is such a cluster, and it cannot be used.
    """
    if settings.dask is None:
        yield fan_out
        return
    try:
        from pipeline.cluster import cluster_of  # noqa: PLC0415  # an extra, and half a second to import
    except ModuleNotFoundError as error:
        raise KeytallyError(
            f"KEYTALLY_DASK is set, and {error.name} is not installed; pip install 'keytally[dask]'"
        ) from None
    with cluster_of(settings) as over_the_cluster:
        yield over_the_cluster


def fan_out(run: Run, step: Callable[[Run, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What `step` makes of each item, in their order.

    Each runs in a thread, with an engine of its own that has one thread: two threads of DuckDB take a third more CPU
    than one for what a file holds, and are slower than one file each. An error ends the steps that are under way.
    """
    count = min(run.settings.threads, len(items), run.settings.memory_limit // ENGINE_BYTES)
    if count < 2:
        for item in items:
            yield step(run, item)
        return
    watch = _Stoppable(run.watch)
    with ExitStack() as stack:
        idle: SimpleQueue[Run] = SimpleQueue()
        for number in range(count):
            idle.put(_part_of(run, number, count, watch, stack))

        def with_an_idle_engine(item: Item) -> Result:
            part = idle.get()
            try:
                return step(part, item)
            finally:
                idle.put(part)

        pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="fan-out"))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        stack.callback(watch.stop)
        under_way: deque[Future[Result]] = deque()
        for item in items:
            # Whoever follows what a flow does looks for its run in the context.
            under_way.append(pool.submit(copy_context().run, with_an_idle_engine, item))
            if len(under_way) > 2 * count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _part_of(run: Run, number: int, count: int, watch: Watch, stack: ExitStack) -> Run:
    scratch = run.scratch / f"part-{number}"
    scratch.mkdir(exist_ok=True)
    settings = replace(run.settings, threads=1, memory_limit=run.settings.memory_limit // count)
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
