"""The published files that are open: each is opened and checked once, by one thread.

Whoever is late, and wants a file that was let go of, opens it again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import TypeVar

from pipeline.contract.published import Publication, PublishedFile
from pipeline.contract.tables import DAY_LEDGER, ORGANIZATION_DAY, PUBLISHED
from serving.checked_file import CheckedFile, OtherBytes
from serving.coverage import loaded_days_of
from serving.sorted_file import SortedFile

_Read = TypeVar("_Read")
_Opened = SortedFile | frozenset[date]  # of a ledger of days nothing is needed but its days with accepted records


class BeingOpened(Exception):
    """Another thread is opening the file that is wanted. opened: is done when it has, or could not."""

    def __init__(self, opened: Future[None]) -> None:
        super().__init__("the file is being opened")
        self.opened = opened


class OpenFiles:
    """The open ones of the published files. Safe to share between threads."""

    MOST = 4 * 132  # four files of every month from 2020 to 2030; one that is opened again is checked again
    AHEAD_SECONDS = 5.0  # how long a new version may wait for its files to be opened: no file is begun later

    def __init__(self, place: Callable[[PublishedFile], Path]) -> None:
        """place: where a file lies on this machine. It may take its time, and raise OSError; no lock is held meanwhile.

        It is called whenever a file is opened, and by nobody else.
        """
        self._place = place
        self._looking = threading.Lock()  # held for a look at what is open, never while a file is read
        self._open: OrderedDict[str, _Opened] = OrderedDict()  # by path
        self._opening: dict[str, Future[None]] = {}  # done when the file at that path was opened, or could not be
        self._refused: dict[str, tuple[tuple[int, ...], str]] = {}  # signature of a file that is damaged, and why
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
                if self._open.get(file.path) is opened:
                    del self._open[file.path]
            raise

    def loaded_days(self, ledger: PublishedFile) -> frozenset[date]:
        """The days with accepted records, by a month's ledger of days. Raises as `reading`."""
        opened = self._opened(ledger)
        assert isinstance(opened, frozenset)
        return opened

    async def read_in(self, threads: Executor | None, read: Callable[[], _Read]) -> _Read:
        """What `read` returns in one of the threads, or raises; None: in those of the event loop.

        Where another thread is opening the file it wants, it is called again after that. Were it to wait in the
        threads, none would be left for others: to read another month, or to look for revoked keys.
        """
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(threads, self._without_waiting, read)
            except BeingOpened as being:
                await asyncio.wrap_future(being.opened)

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
        # The newest month first, and of a month its usage by day: what is asked for most, should the time not suffice.
        for name in sorted(
            wanted, key=lambda name: (name[1] or date.min, name[0] == ORGANIZATION_DAY.name), reverse=True
        ):
            file = newest.files.get(name)
            if file is None or file.path in open_now:
                continue
            if time.monotonic() > until:
                break
            with suppress(Exception):  # a damaged file keeps no other from being served: who asks for it is told
                self._opened(file)

    def let_go(self, *needed: Publication) -> None:
        """Closes the files that are in none of these versions, once their last reader is through.

        Each takes memory, and room on the disk though it was deleted.
        """
        paths = {file.path for publication in needed for file in publication.files.values()}
        with self._looking:
            for path in [path for path in self._open if path not in paths]:
                del self._open[path]

    def _opened(self, file: PublishedFile) -> _Opened:
        """The file, if it is open. Else opens it, or waits for whoever is opening it."""
        mine: Future[None] = Future()
        mine.set_running_or_notify_cancel()  # who stops waiting for it must not cancel it
        while True:
            with self._looking:
                opened = self._open.get(file.path)
                if opened is not None:
                    return opened
                opening = self._opening.setdefault(file.path, mine)
            if opening is mine:
                break
            if getattr(self._waiting, "refused", False):
                raise BeingOpened(opening)
            opening.result()
        try:
            opened = self._checked(file)
            with self._looking:
                self._open[file.path] = opened
                if len(self._open) > self.MOST:
                    self._open.popitem(last=False)  # closed when its last reader lets go of it
        finally:
            with self._looking:
                del self._opening[file.path]
            mine.set_result(None)
        return opened

    def _without_waiting(self, read: Callable[[], _Read]) -> _Read:
        self._waiting.refused = True
        try:
            return read()
        finally:
            self._waiting.refused = False

    def _checked(self, file: PublishedFile) -> _Opened:
        path = self._place(file)
        status = path.stat()
        signature = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        refused = self._refused.get(file.path)
        if refused is not None and refused[0] == signature:
            raise ValueError(refused[1])  # do not read a damaged file whole for each request; a restored one is another
        try:
            checked = CheckedFile(path)
            opened: _Opened
            if file.rollup == DAY_LEDGER.name:
                opened = loaded_days_of(checked)
            else:
                opened = SortedFile.of(checked, PUBLISHED[file.rollup])
        except ValueError as error:
            self._refused[file.path] = (signature, str(error))
            raise
        self._refused.pop(file.path, None)
        return opened
