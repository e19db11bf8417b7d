"""One run: its moment, its settings, its engine, and a scratch folder that does not outlive it."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.contract.data_root import check_raw
from pipeline.contract.layout import Layout
from pipeline.contract.seam import step
from pipeline.contract.settings import Settings
from pipeline.contract.store import Store, StoreError, open_store
from pipeline.engine import Engine
from pipeline.errors import InterruptedRunError
from pipeline.failure import is_interruption, note_failure
from pipeline.prices import Prices

_STARTED = "%Y%m%dT%H%M%SZ"
PATIENCE = 120  # seconds that a store may be away in the middle of a run


class Watch:
    """Is told how far a run has come. This one does nothing with it."""

    def begin(self, stage: str, total: int) -> None:
        """A stage begins: `total` bytes to take in, or days or months to roll up."""

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""

    def count(self, rows: int) -> None:
        """So many more lines were taken in or recounted, or accepted lines rolled up."""


@dataclass(frozen=True)
class Run:
    """What every step of a run is given. name: no other run has it. started: the one moment that counts as now, UTC.
    prices: as they were read last; none before."""

    name: str
    settings: Settings
    store: Store
    clock: Callable[[], datetime]
    started: datetime
    scratch: Path
    engine: Engine
    watch: Watch
    prices: Prices

    @property
    def layout(self) -> Layout:
        """What the files of the data root are called."""
        return self.store.layout


@contextmanager
def start_run(
    settings: Settings,
    clock: Callable[[], datetime],
    watch: Watch | None = None,
    *,
    publishes: bool = False,
    is_part: bool = False,
) -> Iterator[Run]:
    """A run on the data root of `settings`. What earlier runs left unfinished because they died is removed.

    publishes: whether it is to bring what is published up to date; if it fails, it notes why. is_part: whether it does
    a step of a run that another machine began. Raises StoreError when the data root cannot be reached, NoDataRoot when
    it has no raw/ (then nothing is written), InterruptedRunError when a signal ends the work.
    """
    store = open_store(settings, PATIENCE)
    if not is_part:
        check_raw(store)
    if publishes:
        store.check_rights()
    step("make the folder of scratches")
    store.layout.scratch.mkdir(parents=True, exist_ok=True)
    store.check()
    _remove_abandoned(store.layout.scratch)
    started = clock()
    scratch, lock = _locked_scratch(store.layout.scratch, started)
    try:
        if publishes:
            _check_hard_links(scratch)
        engine = Engine(settings, store, scratch)
        prices = Prices(settings.currency)
        run = Run(scratch.name, settings, store, clock, started, scratch, engine, watch or Watch(), prices)
        try:
            try:
                yield run
                step("remove the scratch")
            finally:
                engine.close()
        except (Exception, KeyboardInterrupt) as error:
            told = error if isinstance(error, Exception) and not is_interruption(error) else InterruptedRunError()
            if publishes:
                note_failure(run, told)
            if told is error:
                raise
            raise told from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _locked_scratch(folder: Path, started: datetime) -> tuple[Path, int]:
    """A new folder, named for its run's start, and the handle that locks it.

    The lock says that this run lives; the kernel lets go of it when the process ends, however it ends.
    """
    while True:
        scratch = folder / f"{started.astimezone(UTC):{_STARTED}}-{uuid.uuid4().hex}"
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


def _check_hard_links(scratch: Path) -> None:
    """Raise StoreError where the file system has no hard links, as exFAT: a version is committed by means of one."""
    probe, link = scratch / "a file", scratch / "a link to it"
    probe.touch()
    try:
        link.hardlink_to(probe)
    except OSError as error:
        raise StoreError(
            f"the file system of {scratch.parent} has no hard links ({error.strerror}), and keytally commits a version"
            " by means of one: put the data root on another file system, as ext4 or XFS. Nothing was changed"
        ) from error
    link.unlink()
    probe.unlink()


def look_at_runs(folder: Path) -> tuple[datetime | None, datetime | None]:
    """When the oldest run began that is under way on this machine, and when the newest one was last at work that died;
    None for none.

    folder: of the scratches. What a dead run leaves lies there until the next one begins.
    """
    began, died = [], []
    for scratch in folder.iterdir() if folder.is_dir() else ():
        # A shared lock: of two who look at once neither is taken for a run. An error: it is gone, or somebody else's.
        with suppress(OSError), _lock_of_the_dead(scratch, fcntl.LOCK_SH) as is_dead:
            last_at_work = datetime.fromtimestamp(scratch.stat().st_mtime, UTC)
            if is_dead:
                died.append(last_at_work)
            else:
                began.append(_start_of(scratch) or last_at_work)
    return min(began, default=None), max(died, default=None)


def _start_of(scratch: Path) -> datetime | None:
    """When its run began; None where another release named it."""
    with suppress(ValueError):
        return datetime.strptime(scratch.name.partition("-")[0], _STARTED).replace(tzinfo=UTC)
    return None


def _remove_abandoned(folder: Path) -> None:
    for scratch in folder.iterdir():
        with suppress(FileNotFoundError), _lock_of_the_dead(scratch, fcntl.LOCK_EX) as is_dead:
            if is_dead:
                shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _lock_of_the_dead(scratch: Path, how: int) -> Iterator[bool]:
    """Whether the run of a scratch is dead; if so, the scratch is locked meanwhile, shared or not, as `how` says.

    Raises FileNotFoundError.
    """
    lock = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)
