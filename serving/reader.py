"""Reads what is published: which version is the newest, and rows of its files.

Nothing is read from a file whose bytes are not the ones its name was given for, and whatever is read of it later is
checked again: an error, never a wrong number.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
from deltalake import DeltaTable

from pipeline.contract.data_root import NoDataRoot, check_data
from pipeline.contract.last_run import FailedRun, LastRun, read_failure, read_last_run
from pipeline.contract.layout import month_of
from pipeline.contract.published import (
    NOTHING_PUBLISHED,
    Publication,
    PublishedFile,
    digest_of,
    open_published,
    publication_of,
    run_of,
    update_published,
)
from pipeline.contract.store import LogState, Signature, Store, StoreError
from pipeline.contract.tables import API_KEY_DAY, API_KEY_MONTH, DAY_LEDGER, ORGANIZATION_DAY
from pipeline.contract.wording import backfill_of
from serving.coverage import Basis
from serving.errors import UsageUnavailable
from serving.open_files import OpenFiles
from serving.sorted_file import SortedFile
from serving.usage import UNPRICED, Usage, UsageOfMonth

_LOG = logging.getLogger("keytally.reader")


class MonthFiles(NamedTuple):
    """The files of a published month: usage by day, by key and day, by key. The latter two for who asks for keys."""

    days: PublishedFile
    key_days: PublishedFile | None
    key_months: PublishedFile | None

    def of_keys(self) -> tuple[PublishedFile, PublishedFile]:
        """Usage by key and day, and by key. Raises UsageUnavailable."""
        if self.key_days is None or self.key_months is None:
            raise UsageUnavailable(f"{self.days.path}: the month is published without the usage of its keys")
        return self.key_days, self.key_months


@dataclass(frozen=True)
class Confirmed:
    """A version, and what the newest run that published or confirmed it said.

    last_run: its note, None where there is none. as_of: start of that run, UTC; None when nobody knows.
    findings: days that files it held back touch. currency: what all costs are in; None where it did not say.
    """

    publication: Publication
    last_run: LastRun | None
    as_of: datetime | None
    findings: frozenset[date]
    currency: str | None = None

    @cached_property
    def as_of_text(self) -> bytes | None:
        """`as_of` as RFC 3339 writes it, in whole seconds."""
        if self.as_of is None:
            return None
        return f"{self.as_of.replace(microsecond=0, tzinfo=None).isoformat()}Z".encode("ascii")

    def usage_of(self, month: date) -> PublishedFile | None:
        """The file that holds the usage of the month of which `month` is the first day; None when never published."""
        return self.publication.files.get((ORGANIZATION_DAY.name, month))

    def files_of(self, month: date) -> MonthFiles | None:
        """The files of the month of which `month` is the first day; None when never published."""
        files = self.publication.files
        days = files.get((ORGANIZATION_DAY.name, month))
        if days is None:
            return None
        return MonthFiles(days, files.get((API_KEY_DAY.name, month)), files.get((API_KEY_MONTH.name, month)))

    @cached_property
    def key_months(self) -> Sequence[PublishedFile]:
        """The files that hold which keys were used, of every published month, the newest month first."""
        files = [file for file in self.publication.files.values() if file.rollup == API_KEY_MONTH.name]
        return sorted(files, key=lambda file: file.month or date.min, reverse=True)

    @cached_property
    def key_months_digest(self) -> int:
        """A number that stands for these files."""
        return digest_of(file.path for file in self.key_months)

    def coverage_of(self, month: date) -> Basis:
        """What the coverage of the month is told from."""
        return Basis.of(month, self.publication.files.get((DAY_LEDGER.name, month)), self.as_of, self.findings)


class Reader:
    """What is published, and the rows of it. Safe to share between threads. files: those that are open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rollups = store.layout.rollups
        self._refreshing = threading.Lock()
        self._table: DeltaTable | None = None
        self._log: Signature | None = None  # which log `_table` reads
        self._entry: Signature | None = None  # signature of the log entry of its version
        self._confirmed: Confirmed | None = None
        self._note: tuple[Signature | None, LastRun | None] = ((), None)  # the newest run's, and what the log showed
        self._failure: str | None = "it has not been looked at yet"
        self.files = OpenFiles(store)

    @property
    def failure(self) -> str | None:
        """Why the newest version could not be looked up; None when it could. What was read before stays."""
        return self._failure

    @property
    def confirmed(self) -> Confirmed:
        """The newest version that could be looked up. Raises UsageUnavailable when none could, ever."""
        if self._confirmed is None:
            raise UsageUnavailable(f"the published table cannot be read: {self._failure}")
        return self._confirmed

    @property
    def last_confirmed(self) -> Confirmed | None:
        """As `confirmed`; None when none could be looked up, ever."""
        return self._confirmed

    @property
    def currency(self) -> str | None:
        """What all costs of it are in; None when nobody says."""
        return None if self._confirmed is None else self._confirmed.currency

    @property
    def publication(self) -> Publication:
        """What that version publishes. Raises UsageUnavailable."""
        return self.confirmed.publication

    def as_of(self) -> bytes | None:
        """Data-as-of, as RFC 3339 writes it; None when nobody knows."""
        return None if self._confirmed is None else self._confirmed.as_of_text

    def failed_run(self) -> FailedRun | None:
        """The newest run that failed; None where none did, or a run that started later has done its work."""
        failed = read_failure(self._store)
        done = self._confirmed.as_of if self._confirmed else None
        return None if failed is None or (done is not None and failed.started <= done) else failed

    def refresh(self) -> None:
        """Looks for a newer version, and for a run that confirmed it: about a millisecond when there is neither.

        A newer version is served once the files that will be asked for first are open. Until then requests are answered
        from the one before. Never raises; see `failure`.
        """
        with self._refreshing:
            before = self._confirmed
            try:
                newest = self._newest_confirmed()
                if before is None or before.publication is newest.publication:
                    self._confirmed = newest
                else:
                    self.files.open_ahead(before.publication, newest.publication)
                    self._confirmed = newest
                    self.files.switch(before.publication, newest.publication)
                failure = None
            except (
                Exception
            ) as error:  # whatever it is, the last good version is still right, and the next look may succeed
                self._table = None
                name = "" if isinstance(error, StoreError) else f"{type(error).__name__}: "
                failure = f"{name}{str(error).strip().split(chr(10), 1)[0]}"  # deltalake's are pages
            is_another = failure != self._failure
            if is_another and failure is not None:
                _LOG.error("the published table cannot be read: %s; 'keytally status' says what to do", failure)
            elif failure is None and (is_another or before is None or before.publication is not self.publication):
                if self.publication.version:
                    _LOG.info("serving version %d", self.publication.version)
                else:
                    _LOG.info("nothing is published yet: every answer is a zero that is not loaded")
            self._failure = failure
            self.files.close_late()

    def usage_of(self, organization_id: str, file: PublishedFile) -> UsageOfMonth:
        """The usage of `organization_id` in `file`, at most 31 days. Raises UsageUnavailable.

        Costs the reading and checking of one row group, two where the organization lies across; the first call for a
        file also reads all of it, to check its bytes.
        """
        with self.reading(file) as opened:
            parts = list(opened.rows_of(organization_id))
            if sum(rows.num_rows for rows in parts) > 31:
                raise ValueError("it has more than 31 days of an organization")
            days = [
                Usage(*row)
                for rows in parts
                for row in zip(*(rows[name].to_pylist() for name in Usage._fields), strict=True)
            ]
            # A file from before there were prices has no such column.
            unpriced = [
                count for rows in parts if UNPRICED in rows.column_names for count in rows[UNPRICED].to_pylist()
            ]
            if any(value is None for values in (*days, unpriced) for value in values):
                raise ValueError("a value is missing")
            if any(month_of(usage.day) != file.month for usage in days):
                raise ValueError("a day is not of this month")
            if len({usage.day for usage in days}) != len(days):
                raise ValueError("a day is listed twice")
        return UsageOfMonth(sorted(days), sum(unpriced))

    @contextmanager
    def reading(self, file: PublishedFile) -> Iterator[SortedFile]:
        """The open file. What goes wrong with it in the block, a ValueError too, is raised as UsageUnavailable."""
        try:
            with self.files.reading(file) as opened:
                yield opened
        except (OSError, ValueError, StoreError, pa.ArrowException) as error:
            raise UsageUnavailable(f"{file.path}: {error}; run {backfill_of(file.path)}") from error

    def rows(self, file: PublishedFile, columns: Sequence[str]) -> pa.Table:
        """All rows of a published file, which is not kept open. Raises UsageUnavailable."""
        try:
            return self.files.rows(file, columns)
        except (OSError, ValueError, StoreError, pa.ArrowException) as error:
            raise UsageUnavailable(f"{file.path}: {error}; 'keytally status' says what to do") from error

    def check(self, file: PublishedFile) -> None:
        """Opens the file, and reads a block of it again. Raises UsageUnavailable."""
        with self.reading(file) as opened:
            opened.check()

    def loaded_days(self, ledger: PublishedFile | None, usage: Sequence[Usage]) -> Collection[date]:
        """The days with accepted records of anyone, by a month's ledger of days. Raises UsageUnavailable.

        ledger: None for a month that has usage and no ledger, which is an error. usage: some organization's in that
        month; its days must be in the ledger.
        """
        if ledger is None:
            raise UsageUnavailable("a month is published without its ledger of days")
        try:
            loaded = self.files.loaded_days(ledger)
            if any(month_of(day) != ledger.month for day in loaded):
                raise ValueError("a day is not of this month")
            if any(day.day not in loaded for day in usage if day.requests):
                raise ValueError("a day with requests is not in it")
        except (OSError, ValueError, StoreError, pa.ArrowException) as error:
            raise UsageUnavailable(f"{ledger.path}: {error}; 'keytally status' says what to do") from error
        return loaded

    def _newest_confirmed(self) -> Confirmed:
        log = self._look_at_log()
        if log.note != self._note[0]:
            self._note = (log.note, self._newest_run(log))
            log = self._look_at_log()  # the note before the table: what it confirms was committed before it was written
        last_run = self._note[1]
        publication = self._newest(log)
        before = self._confirmed
        if before is not None and before.publication is publication and before.last_run is last_run:
            return before
        if last_run is not None and last_run.version > publication.version:
            # Older numbers, or none, in the place of those that a run published: the next run publishes them anew.
            raise ValueError(f"version {last_run.version} was published, and the log ends at {publication.version}")
        said = [last_run] if last_run is not None else []
        if not said or said[0].version < publication.version:  # the note is written after the commit
            committed = run_of(self._store, publication.version)
            said += [committed] if committed is not None else []
        as_of = max((run.started for run in said), default=None)
        if not said:
            return Confirmed(publication, last_run, as_of, frozenset())
        return Confirmed(publication, last_run, as_of, said[-1].findings, said[-1].currency)

    def _look_at_log(self) -> LogState:
        return self._store.look_at_log(self._table.version() if self._table else None)

    def _newest_run(self, log: LogState) -> LastRun | None:
        last_run = read_last_run(self._store)
        if last_run is None and log.note is not None:
            _LOG.error("%s cannot be read; the next run writes it anew", self._store.layout.last_run.name)
        return last_run

    def _newest(self, log: LogState) -> Publication:
        known = self._table is not None and log.place == self._log and not self._is_replaced(self._table, log)
        if known and self._table is not None:
            if log.newest is None or log.newest > self._table.version():
                update_published(self._store, self._table)
        else:  # the first look, another table at the same place, or one that could not be read the last time
            self._table = open_published(self._store)
            self._log = log.place
        self._entry = (log.entry_of(self._table.version()) if self._table else None) or self._entry
        if self._table is None:
            if self._confirmed is not None and self._confirmed.publication.version:
                raise FileNotFoundError("it is gone")
            try:
                check_data(self._store)
            except NoDataRoot:
                self._confirmed = None  # the zeros of an empty data root are right only while there is one
                raise
            return NOTHING_PUBLISHED
        if known and self._confirmed is not None and self._confirmed.publication.version == self._table.version():
            return self._confirmed.publication
        return publication_of(self._table)

    def _is_replaced(self, table: DeltaTable, log: LogState) -> bool:
        """Whether the entry of the handle's version is another than when it was read: lost, and committed anew.

        There is none when it was lost and not replaced, or cut off behind a checkpoint.
        """
        entry = log.entry_of(table.version())
        return entry is not None and entry != self._entry
