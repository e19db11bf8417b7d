"""How far a run has come, shown elsewhere now and then: never at each line, and never in the way of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from threading import Event, Lock, Thread

from pipeline.run import Watch

EVERY_SECONDS = 5.0
LAST_WORD_SECONDS = 10  # that a finished run waits, where what shows it hangs

log = logging.getLogger(__name__)

Show = Callable[[float, str], None]  # percent of the whole run, and in words


class Progress(Watch):
    """Knows how far a run of these stages has come. Each is an equal part of the whole, however long it takes."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = stages
        self._lock = Lock()  # steps are done in several threads
        self._stage = 0
        self._done = self._total = 0
        self.has_begun = False  # whether there was anything to do

    def begin(self, stage: str, total: int) -> None:
        with self._lock:
            self._stage, self._done, self._total = self._stages.index(stage), 0, total
            self.has_begun = self.has_begun or bool(total)

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done = min(self._done + amount, self._total)

    def so_far(self) -> tuple[float, str]:
        """Percent of the run, and the stage in words, as `Rolling up days: 12 of 31 (part 3 of 4)`."""
        with self._lock:
            stage, done, total = self._stage, self._done, self._total
        parts = len(self._stages)
        name = self._stages[stage]
        amount = f"{_amount(name, done)} of {_amount(name, total)}" if total else "nothing to do"
        share = done / total if total else 1
        return round((stage + share) / parts * 100, 1), f"{name.capitalize()}: {amount} (part {stage + 1} of {parts})"


def _amount(stage: str, number: int) -> str:
    return f"{number / 1e6:,.1f} MB" if stage in ("taking in", "recounting") else f"{number:,}"


@contextmanager
def shown(stages: Sequence[str], show: Show) -> Iterator[Progress]:
    """A watch that is shown every few seconds, from a thread of its own, and once more at the end.

    A run in which there is nothing to do shows nothing. What cannot be shown is shown later, or not at all.
    """
    progress = Progress(stages)
    over = Event()
    how_it_ended: list[str] = []

    def keep_showing() -> None:
        shown_last: tuple[float, str] | None = None
        while not over.wait(EVERY_SECONDS):
            now = progress.so_far()
            if progress.has_begun and now != shown_last and _try_to(show, *now):
                shown_last = now
        if progress.has_begun:
            percent, text = progress.so_far()
            _try_to(show, *((percent, f"{how_it_ended[0]} {text}") if how_it_ended else (100.0, "Done.")))

    # In a copy of the context, in which whoever shows it finds the flow's run.
    thread = Thread(target=copy_context().run, args=(keep_showing,), name="progress", daemon=True)
    thread.start()
    try:
        yield progress
    except BaseException:
        how_it_ended.append("Stopped here; the run's message says why.")
        raise
    finally:
        over.set()
        thread.join(LAST_WORD_SECONDS)


def _try_to(show: Show, percent: float, text: str) -> bool:
    try:
        show(percent, text)
    except Exception as error:  # the run goes on whatever becomes of the page about it
        log.debug("progress cannot be shown: %s", error)
        return False
    return True
