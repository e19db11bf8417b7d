"""One run: its moment, its settings, its engine, and a scratch folder that does not outlive it."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.contract.layout import Layout
from pipeline.contract.settings import Settings
from pipeline.engine import Engine
from pipeline.seam import step


class Watch:
    """Is told how far a run has come. This one does nothing with it."""

    def begin(self, stage: str, total: int) -> None:
        """A stage begins: `total` bytes to take in, or days or months to roll up."""

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""


@dataclass(frozen=True)
class Run:
    """What every step of a run is given. started: the one moment that counts as now, UTC."""

    settings: Settings
    layout: Layout
    clock: Callable[[], datetime]
    started: datetime
    scratch: Path
    engine: Engine
    watch: Watch


@contextmanager
def start_run(settings: Settings, clock: Callable[[], datetime], watch: Watch | None = None) -> Iterator[Run]:
    """A run on the data root of `settings`. What earlier runs left unfinished because they died is removed."""
    layout = Layout(settings.data)
    step("make the folder of scratches")
    layout.scratch.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(layout.scratch)
    scratch, lock = _locked_scratch(layout.scratch)
    try:
        engine = Engine(settings, scratch)
        try:
            yield Run(settings, layout, clock, clock(), scratch, engine, watch or Watch())
            step("remove the scratch")
        finally:
            engine.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _locked_scratch(folder: Path) -> tuple[Path, int]:
    """A new folder, and the handle that locks it.

    The lock says that this run lives; the kernel lets go of it when the process ends, however it ends.
    """
    while True:
        scratch = folder / uuid.uuid4().hex
        step("make a scratch")
        scratch.mkdir(mode=0o700)  # what spills into it is raw text of a customer's requests
        step("lock the scratch")
        with suppress(FileNotFoundError):
            lock = os.open(scratch, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if scratch.exists():
                return scratch, lock
            os.close(lock)
        # Another run, starting now, took it for abandoned before it was locked.


def _remove_abandoned(folder: Path) -> None:
    for scratch in folder.iterdir():
        try:
            lock = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its run is alive
        else:
            shutil.rmtree(scratch, ignore_errors=True)
        finally:
            os.close(lock)
