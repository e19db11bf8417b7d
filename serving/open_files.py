"""The published files that are open: each is opened and checked once, by one thread.

Whoever is late, and wants a file that was let go of, opens it again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.published import Publication, PublishedFile
from pipeline.contract.store import Signature, Store
from pipeline.contract.tables import DAY_LEDGER, ORGANIZATION_DAY, PUBLISHED
from serving.checked_file import CheckedFile, OtherBytes
from serving.coverage import loaded_days_of
from serving.sorted_file import SortedFile

_Read = TypeVar("_Read")
_Opened = SortedFile | frozenset[date]  # of a ledger of days nothing is needed but its days with accepted records


class BeingOpened(Exception):
    """Another thread is opening the file that is wanted. opened: is done when it has, or has the error."""

    def __init__(self, path: str, opened: Future[None]) -> None:
        super().__init__("the file is being opened")
        self.path = path
        self.opened = opened


@dataclass
class _Held:
    """What is held open. late_since: when it was first seen that the newest version does not name it, monotonic."""

    opened: _Opened
    late_since: float | None = None


def _row_groups_of(opened: _Opened) -> int:
    """Those of which footer and hashes are in memory."""
    return opened.parquet.num_row_groups if isinstance(opened, SortedFile) else 0


class OpenFiles:
    """The open ones of the published files. Safe to share between threads.

    When they become too many, or hold too many row groups together, what was not used for the longest time goes. The
    one that was opened last stays, whatever its size.
    """

    MOST = 4 * 132  # four files of every month from 2020 to 2030; one that is opened again is checked again
    ROW_GROUPS = 32 * 1024  # of all open files, some 9 KB of memory each
    LATE_SECONDS = 30.0  # how long a file stays that only the version before names: requests may still be under way
    AHEAD_SECONDS = 5.0  # how long a new version may wait for its files to be opened: no file is begun later

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looking = threading.Lock()  # held for a look at what is open, never while a file is read
        self._open: OrderedDict[str, _Held] = OrderedDict()  # by path, what was used last at the end
        self._row_groups = 0  # of all of these
        self._newest: frozenset[str] | None = None  # what the newest version names; None before there was a second
        self._opening: dict[str, Future[None]] = {}  # done when the file at that path was opened, or could not be
        self._refused: dict[str, tuple[Signature | None, str]] = {}  # signature of a file that is damaged, and why
        self._waiting = threading.local()

    @contextmanager
    def reading(self, file: PublishedFile) -> Iterator[SortedFile]:
        """The file, open. Raises OSError, ValueError and ArrowException where it cannot be opened.

        It is opened anew for whoever comes next when the block raises that it cannot be read, or has other bytes.
        """
        opened = self._opened(file)
        assert isinstance(opened, SortedFile)
        try:
            yield opened
        except (OSError, OtherBytes):
            with self._looking:  # the next call opens and checks what stands there then
                held = self._open.get(file.path)
                if held is not None and held.opened is opened:
                    self._close(file.path)
            raise

    def loaded_days(self, ledger: PublishedFile) -> frozenset[date]:
        """The days with accepted records, by a month's ledger of days. Raises as `reading`."""
        opened = self._opened(ledger)
        assert isinstance(opened, frozenset)
        return opened

    def rows(self, file: PublishedFile, columns: Sequence[str]) -> pa.Table:
        """All rows of a file that is not kept open. Raises as `reading`."""
        try:
            checked = self._fetched(file, anew=False)
        except OtherBytes:  # it may be a copy that is damaged
            checked = self._fetched(file, anew=True)
        with checked, pq.ParquetFile(checked, pre_buffer=False) as parquet:
            return parquet.read(columns=list(columns), use_threads=False)

    async def read_in(self, threads: Executor | None, read: Callable[[], _Read]) -> _Read:
        """What `read` returns in one of the threads, or raises; None: in those of the event loop.

        Where another thread is opening the file it wants, it is called again after that, and is raised the error of
        that one where it could not. Were it to wait in the threads, none would be left for others: to read another
        month, or to look for revoked keys.
        """
        failed: dict[str, BaseException] = {}
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(threads, self._without_waiting, read, failed)
            except BeingOpened as being:
                await asyncio.wait([asyncio.wrap_future(being.opened)])
                if error := being.opened.exception():
                    failed[being.path] = error

    def open_ahead(self, before: Publication, newest: Publication) -> None:
        """Opens what will be asked for first: what takes the place of files that are open, and the newest month.

        Else the first requests after a publication would wait until all of a file is read and checked. Who has no file
        open, like who only shows figures, gets none opened.
        """
        with self._looking:
            open_now = set(self._open)
        if not open_now:
            return
        wanted = {name for name, file in before.files.items() if file.path in open_now}
        months = [month for rollup, month in newest.files if rollup == ORGANIZATION_DAY.name and month]
        wanted |= {(rollup, max(months)) for rollup in (ORGANIZATION_DAY.name, DAY_LEDGER.name) if months}
        until = time.monotonic() + self.AHEAD_SECONDS
        row_groups = 0
        # The newest month first, and of a month its usage by day: what is asked for most, should the time not suffice.
        for name in sorted(
            wanted, key=lambda name: (name[1] or date.min, name[0] == ORGANIZATION_DAY.name), reverse=True
        ):
            file = newest.files.get(name)
            if file is None or file.path in open_now:
                continue
            # More would take the place of what was opened first, or of what is still served.
            if time.monotonic() > until or row_groups >= self.ROW_GROUPS // 2:
                break
            with suppress(Exception):  # a damaged file keeps no other from being served: who asks for it is told
                row_groups += _row_groups_of(self._opened(file))

    def switch(self, before: Publication, newest: Publication) -> None:
        """Closes the files that neither version names, once their last reader is through.

        Each takes memory, and room on the disk though it was deleted. Those that only the one before names stay for a
        while, for requests that began with it: `close_late` closes them.
        """
        named = frozenset(file.path for file in newest.files.values())
        needed = named.union(file.path for file in before.files.values())
        with self._looking:
            self._newest = named
            for path in [path for path in self._open if path not in needed]:
                self._close(path)
            for path in [path for path in self._refused if path not in needed]:
                del self._refused[path]
        self.close_late()

    def close_late(self) -> None:
        """Closes what the newest version has not named for LATE_SECONDS. Some microseconds where there is nothing."""
        now = time.monotonic()
        with self._looking:
            if self._newest is None:
                return
            for path in [path for path in self._open if path not in self._newest]:
                held = self._open[path]
                if held.late_since is None:
                    held.late_since = now
                if now - held.late_since >= self.LATE_SECONDS:
                    self._close(path)

    def _opened(self, file: PublishedFile) -> _Opened:
        """The file, if it is open. Else opens it, or waits for whoever is opening it, and has the same error then."""
        mine: Future[None] = Future()
        mine.set_running_or_notify_cancel()  # who stops waiting for it must not cancel it
        while True:
            with self._looking:
                held = self._open.get(file.path)
                if held is not None:
                    self._open.move_to_end(file.path)
                    return held.opened
                failed: dict[str, BaseException] | None = getattr(self._waiting, "failed", None)
                if failed and file.path in failed:
                    raise failed[file.path]
                opening = self._opening.setdefault(file.path, mine)
            if opening is mine:
                break
            if failed is not None:
                raise BeingOpened(file.path, opening)
            opening.result()
        error: BaseException | None = None
        try:
            opened = self._checked(file)
            with self._looking:
                self._hold(file.path, _Held(opened))
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._looking:
                del self._opening[file.path]
            if error is None:
                mine.set_result(None)
            else:
                mine.set_exception(error)
        return opened

    def _hold(self, path: str, held: _Held) -> None:
        self._open[path] = held
        self._row_groups += _row_groups_of(held.opened)
        while len(self._open) > 1 and (len(self._open) > self.MOST or self._row_groups > self.ROW_GROUPS):
            self._close(next(iter(self._open)))

    def _close(self, path: str) -> None:
        """Lets go of it; it is closed when its last reader does so too."""
        self._row_groups -= _row_groups_of(self._open.pop(path).opened)

    def _without_waiting(self, read: Callable[[], _Read], failed: dict[str, BaseException]) -> _Read:
        """failed: why files that are wanted could not be opened by those that were waited for, by path."""
        self._waiting.failed = failed
        try:
            return read()
        finally:
            self._waiting.failed = None

    def _checked(self, file: PublishedFile) -> _Opened:
        path = self._store.layout.rollups / file.path
        refused = self._refused.get(file.path)
        if refused is not None and refused[0] == self._store.signature(path):
            raise ValueError(refused[1])  # do not read a damaged file whole for each request; a restored one is another
        try:
            return self._read(file, anew=False)
        except ValueError:  # it may be a copy that is damaged
            signature = self._store.signature(path)  # before it is read: what is restored meanwhile is another
            try:
                return self._read(file, anew=True)
            except ValueError as error:
                self._refused[file.path] = (signature, str(error))
                raise

    def _fetched(self, file: PublishedFile, *, anew: bool) -> CheckedFile:
        path = self._store.layout.rollups / file.path
        return CheckedFile(self._store.fetch(path, anew=anew), path)

    def _read(self, file: PublishedFile, *, anew: bool) -> _Opened:
        checked = self._fetched(file, anew=anew)
        if file.rollup == DAY_LEDGER.name:
            return loaded_days_of(checked)
        return SortedFile.of(checked, PUBLISHED[file.rollup])
