"""Reads the published usage of one organization: at most 31 rows of one sorted file.

Nothing is read from a file whose bytes are not the ones its name was given for: an error, never a wrong number.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from pipeline.contract.layout import Layout, checksum_of, month_of, stated_checksum
from pipeline.contract.published import (
    NOTHING_PUBLISHED,
    Publication,
    PublishedFile,
    open_published,
    publication_of,
)
from pipeline.contract.tables import ORGANIZATION_DAY
from serving.errors import UsageUnavailable
from serving.models import Usage

_LOG = logging.getLogger("keytally.reader")
_COLUMNS = ("organization_id", *Usage._fields)
_SCHEMA = pa.schema([ORGANIZATION_DAY.arrow_schema.field(name) for name in _COLUMNS])


class Reader:
    """What is published, and the rows of it. Safe to share between threads."""

    OPEN_FILES = 132  # every month from 2020 to 2030; a file that is opened again is checked again

    def __init__(self, layout: Layout) -> None:
        self._rollups = layout.rollups
        self._refreshing = threading.Lock()
        self._table: DeltaTable | None = None
        self._log_folder: tuple[int, int] | None = None  # device and inode of the log that `_table` reads
        self._publication: Publication | None = None
        self._failure: str | None = "it has not been looked at yet"
        self._opening = threading.Lock()
        self._files: OrderedDict[str, _SortedFile] = OrderedDict()
        self._refused: dict[str, tuple[tuple[int, ...], str]] = {}

    @property
    def failure(self) -> str | None:
        """Why the newest version could not be looked up; None when it could. What was read before stays."""
        return self._failure

    @property
    def publication(self) -> Publication:
        """The newest version that could be looked up. Raises UsageUnavailable when none could, ever."""
        if self._publication is None:
            raise UsageUnavailable(f"the published table cannot be read: {self._failure}")
        return self._publication

    def refresh(self) -> None:
        """Looks for a newer version: about a millisecond when there is none. Never raises; see `failure`."""
        with self._refreshing:
            try:
                self._publication = self._newest()
                failure = None
            except (
                Exception
            ) as error:  # whatever it is, the last good version is still right, and the next look may succeed
                self._table = None
                failure = f"{type(error).__name__}: {error}"
            if failure != self._failure:
                if failure is not None:
                    _LOG.error("the published table cannot be read: %s", failure)
                elif self.publication.version:
                    _LOG.info("serving version %d", self.publication.version)
                self._failure = failure

    def file_of(self, month: date) -> PublishedFile | None:
        """The file that holds the usage of the month of which `month` is the first day; None when never published.

        Raises UsageUnavailable.
        """
        return self.publication.files.get((ORGANIZATION_DAY.name, month))

    def usage_of(self, organization_id: str, file: PublishedFile) -> Sequence[Usage]:
        """The days of `organization_id` in `file`, at most 31, oldest first. Raises UsageUnavailable.

        Costs the reading of one row group, two where the organization lies across; the first call for a file also
        reads all of it, to check its bytes.
        """
        try:
            days = self._open(file).days_of(organization_id)
            if any(value is None for usage in days for value in usage):
                raise ValueError("a value is missing")
            if any(month_of(usage.day) != file.month for usage in days):
                raise ValueError("a day is not of this month")
            if len({usage.day for usage in days}) != len(days):
                raise ValueError("a day is listed twice")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UsageUnavailable(f"{file.path}: {error}") from error
        return sorted(days)

    def _newest(self) -> Publication:
        log = self._rollups / "_delta_log"
        try:
            status = log.stat()
            log_folder = (status.st_dev, status.st_ino)
        except FileNotFoundError:
            log_folder = None
        known = self._table is not None and log_folder == self._log_folder
        if known and self._table is not None:
            self._table.update_incremental()
        else:  # the first look, another table at the same place, or one that could not be read the last time
            self._table = open_published(self._rollups)
            self._log_folder = log_folder
        if self._table is None:
            if self._publication not in (None, NOTHING_PUBLISHED):
                raise FileNotFoundError("it is gone")
            return NOTHING_PUBLISHED
        if known and self._publication is not None and self._publication.version == self._table.version():
            return self._publication
        return publication_of(self._table)

    def _open(self, file: PublishedFile) -> _SortedFile:
        opened = self._files.get(file.path)
        if opened is not None and opened.is_unchanged(self._rollups / file.path):
            return opened
        with self._opening:
            opened = self._files.get(file.path)
            if opened is None or not opened.is_unchanged(self._rollups / file.path):
                self._files.pop(file.path, None)
                opened = self._checked(file)
                self._files[file.path] = opened
                if len(self._files) > self.OPEN_FILES:
                    self._files.popitem(last=False)  # closed when its last reader lets go of it
        return opened

    def _checked(self, file: PublishedFile) -> _SortedFile:
        path = self._rollups / file.path
        signature = _signature(path)
        refused = self._refused.get(file.path)
        if refused is not None and refused[0] == signature:
            raise ValueError(refused[1])  # do not read a damaged file whole for each request; a restored one is another
        try:
            if checksum_of(path) != stated_checksum(path):
                raise ValueError("its bytes are not those that were published")
            opened = _SortedFile.at(path, signature)
        except ValueError as error:
            self._refused[file.path] = (signature, str(error))
            raise
        self._refused.pop(file.path, None)
        return opened


def _signature(path: Path) -> tuple[int, ...]:
    """What changes when somebody writes to the file, or puts another in its place."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class _SortedFile:
    """An open file of `organization_day`, and which organizations each of its row groups begins and ends with."""

    parquet: pq.ParquetFile
    groups: Sequence[int]  # those with rows
    first: Sequence[str]
    last: Sequence[str]
    signature: tuple[int, ...]  # of the file when it was checked
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def at(cls, path: Path, signature: tuple[int, ...]) -> _SortedFile:
        """Opens the file. Raises ValueError when it is no sorted file of `organization_day`."""
        # Not memory-mapped: a mapped file that is cut short kills the process that touches it.
        parquet = pq.ParquetFile(path)
        for column in _SCHEMA:
            index = parquet.schema_arrow.get_field_index(column.name)
            if index < 0 or parquet.schema_arrow.field(index).type != column.type:
                raise ValueError(f"its column {column.name} is missing, or is not {column.type}")
        index = parquet.metadata.schema.names.index("organization_id")
        groups, first, last = [], [], []
        for group in range(parquet.num_row_groups):
            if not parquet.metadata.row_group(group).num_rows:
                continue
            statistics = parquet.metadata.row_group(group).column(index).statistics
            if statistics is None or not statistics.has_min_max:
                raise ValueError(f"its row group {group} does not say which organizations it holds")
            groups.append(group)
            first.append(statistics.min)
            last.append(statistics.max)
        if any(end > start for end, start in zip(last, first[1:], strict=False)):
            raise ValueError("it is not sorted by organization")
        return cls(parquet, groups, first, last, signature)

    def is_unchanged(self, path: Path) -> bool:
        """Whether nobody wrote to the file since it was checked. One that was moved away is still open, and whole."""
        try:
            return _signature(path) == self.signature
        except FileNotFoundError:
            return True

    def days_of(self, organization_id: str) -> list[Usage]:
        """The organization's rows, as they stand."""
        groups = self.groups[bisect_left(self.last, organization_id) : bisect_right(self.first, organization_id)]
        if not groups:
            return []
        with self.lock:  # a ParquetFile is not made for several threads at once
            table = self.parquet.read_row_groups(groups, columns=list(_COLUMNS), use_threads=False)
        found = table.filter(pc.equal(table["organization_id"], organization_id)).select(list(Usage._fields))
        if found.num_rows > 31:
            raise ValueError("it has more than 31 days of an organization")
        return [Usage(*row) for row in zip(*(column.to_pylist() for column in found.columns), strict=True)]
