"""Bringing the published rollups up to date with the raw logs: what the nightly run and a backfill do.

Everything is derived anew from what lies in raw/ and in the ledger of the newest version. A crash, a missed night, a
late file and a changed rule all look the same from here: something is named that does not exist yet.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.arrivals import Arrivals
from pipeline.artifacts import keep
from pipeline.buckets import is_large, roll_up_in_buckets
from pipeline.contents import days_touched, events_by_day, quarantined_by_day
from pipeline.contract.data_root import check_raw
from pipeline.contract.last_run import Outcome, read_last_run
from pipeline.contract.layout import checksum_of, day_of, days_between, month_name, month_of, stated_checksum
from pipeline.contract.published import FINDINGS
from pipeline.contract.store import StoreError
from pipeline.contract.tables import API_KEY_DAY, DAY_LEDGER, FILE_LEDGER, RESTATEMENT, Table
from pipeline.contract.wording import count_of, instant_text
from pipeline.disagreements import disagreements
from pipeline.errors import CommitRefused, HeldBack, KeytallyError
from pipeline.falls import LOWERED, lowered_days, note_of, unreported
from pipeline.fan_out import FanOut, fan_out
from pipeline.healing import Healing, Inspection
from pipeline.ignored import ignored_logs
from pipeline.intake import EventFile, TakeIn, take_in
from pipeline.ledger import DayEntry, FileEntry, Ledger, read_ledger, write_day_ledger, write_file_ledger
from pipeline.odd_logs import odd_logs
from pipeline.outcome import outcome_of
from pipeline.prices import Prices, read_prices
from pipeline.publish import Partition, make_durable, publish
from pipeline.raw import RawFile, RawListing, list_raw
from pipeline.report import Pace, Report, unpriced_days
from pipeline.restate import restate
from pipeline.rollup import DayInputs, RolledMonth, fingerprint_of, grouped, roll_up_days, roll_up_month, same_rows
from pipeline.run import Run
from pipeline.status import lost_versions, missing_raw, newest_run, write_last_run
from pipeline.sweep import start_grace, start_grace_of_all, sweep, sweep_log

log = logging.getLogger(__name__)

COMMIT_ATTEMPTS = 8
MOST_BEHIND = timedelta(days=1)  # a run may begin before the newest one by this, by its own clock


class Steps(NamedTuple):
    """The steps of a run, each a plain function. Whoever wants them retried, named or sent elsewhere wraps them.

    roll_up_days: for a group of days. fan_out: does the first two, and what else is done for many, on several cores.
    """

    take_in: Callable[[Run, RawFile], TakeIn] = take_in
    roll_up_days: Callable[[Run, list[DayInputs]], list[DayEntry]] = roll_up_days
    roll_up_month: Callable[[Run, date, list[DayEntry]], RolledMonth] = roll_up_month
    publish: Callable[[Run, Any, list[Partition], Mapping[str, str]], int] = publish
    fan_out: FanOut = fan_out


PLAIN_STEPS = Steps()


def roll_up(
    run: Run, steps: Steps = PLAIN_STEPS, *, new_currency: bool = False, clock_is_right: bool = False
) -> Report:
    """Take in what is new in raw/, roll up the days and months it touches, and publish them together.

    With nothing new, nothing is published. new_currency: publish in another currency than before, all days of it.
    clock_is_right: work although the newest run began long after this one, because the clock of that run was wrong.
    Raises KeytallyError when nothing could be published.
    """
    update = _Update(run, steps, frozenset(), new_currency=new_currency, clock_is_right=clock_is_right)
    return _until_committed(update)


def backfill(run: Run, first_day: date, last_day: date, steps: Steps = PLAIN_STEPS) -> Report:
    """As `roll_up`; and check everything that the days from `first_day` to `last_day` (both included) are made from,
    rebuild from raw/ what is missing or damaged, and roll these days and their months up anew.

    Equal results publish nothing.
    """
    return _until_committed(_Update(run, steps, frozenset(days_between(first_day, last_day))))


def _until_committed(update: _Update) -> Report:
    """Try until no other run publishes meanwhile. What was taken in and rolled up is kept between the attempts."""
    begun = time.monotonic()
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        try:
            report = update.attempt()
        except CommitRefused:
            if attempt == COMMIT_ATTEMPTS:
                raise
            log.info("another run published first; recomputing from what it published (attempt %d)", attempt + 1)
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
        else:
            report.seconds = time.monotonic() - begun
            return report
    raise AssertionError("unreachable")


class _Update:
    """One update under way, over as many attempts as it takes."""

    def __init__(
        self,
        run: Run,
        steps: Steps,
        redo: frozenset[date],
        *,
        new_currency: bool = False,
        clock_is_right: bool = False,
    ) -> None:
        """redo: days to roll up even if nothing about them changed. new_currency, clock_is_right: as in `roll_up`."""
        self.run = run
        self.steps = steps
        self.redo = redo
        self.new_currency = new_currency
        self.clock_is_right = clock_is_right
        self.last_run = read_last_run(run.store)  # the newest before this one
        # By a clock that is a little behind, what counted already is from the future; it counts all the same.
        latest = run.started if clock_is_right or not self.last_run else max(run.started, self.last_run.started)
        self.arrivals = Arrivals(
            replace(run, started=latest),
            steps.take_in,
            steps.fan_out,
            dict(self.last_run.confirmed) if self.last_run else {},
        )
        self.inspection = Inspection(run.store, thorough=bool(redo))
        self.healing = Healing(run, steps.take_in, self.inspection, thorough=bool(redo))
        self.rolled: dict[tuple[date, str], DayEntry] = {}  # by day and fingerprint
        self.paces: dict[date, Pace] = {}
        self.findings: frozenset[date] = frozenset()  # days of which something waits or is held back
        self.lowered_note: str | None = None  # what the commit says of the days that it lowers

    @property
    def confirmed_at(self) -> datetime | None:
        """Start of the newest run before this one."""
        return self.last_run.started if self.last_run else None

    def attempt(self) -> Report:
        """Bring everything up to date with the newest version's ledger, and commit. Raises CommitRefused."""
        ledger = read_ledger(self.run.store)
        # With each attempt: who published meanwhile may have done so by another book.
        self.run = replace(self.run, prices=read_prices(self.run.store, self.run.settings.currency))
        refuse_what_would_reprice_all(ledger, self.run.prices, new_currency=self.new_currency)
        self._refuse_a_clock_that_is_behind(ledger)
        self._put_back_books(ledger)
        self.healing.begin_attempt()
        report = Report(version=ledger.publication.version)
        listing = self._list_raw(ledger)
        report.held_back.extend(listing.held_back)
        report.ignored = ignored_logs(listing)
        files = self.arrivals.added_to(ledger, listing.files, report)
        self.inspection.trust(self.arrivals.made)
        self.findings = days_touched(files, {held_back.file for held_back in report.held_back})
        self.findings |= self.arrivals.waiting_days
        files, days = self._roll_up_days(ledger, listing.files, files, report)
        self._look_for_lowered(ledger, Ledger(ledger.publication, files, days), listing, report)
        report.unpriced = unpriced_days(days, self.run.prices)
        report.odd = odd_logs(report.ingested, self.run.settings.rejected_limit)
        report.disagreeing = disagreements(self.run, report.days, files)
        partitions = self._roll_up_months(ledger, files, days, report)
        partitions += self._ledger_partitions(ledger, files, days, alone=not partitions)
        self._look_for_lost(ledger, files, days, bool(partitions), report)
        if partitions:
            self._publish(ledger, files, days, partitions, report)
        elif report.version:
            # The run that published it may have died before it did so itself.
            make_durable(self.run.store, report.version)
            sweep_log(self.run.store, report.version)
        outcome = outcome_of(report, files, days, self.run.started, self.last_run)
        in_ledger = files if any(partition.table is FILE_LEDGER for partition in partitions) else ledger.files
        self._note(report, self.arrivals.still_confirmed(in_ledger, listing.files), outcome)
        return report

    def _refuse_a_clock_that_is_behind(self, ledger: Ledger) -> None:
        """Raise KeytallyError if the newest run began more than a day after this one.

        To such a clock, the lines of published days are lines from the future, which do not count.
        """
        newest = newest_run(self.run.store, self.last_run, ledger.publication.version)
        if newest is None or self.clock_is_right or newest.started - self.run.started <= MOST_BEHIND:
            return
        raise KeytallyError(
            f"the clock says {instant_text(self.run.started)}, but the newest run began at"
            f" {instant_text(newest.started)}: set the clock right, then run again; if that run's clock was wrong, run"
            " 'keytally rollup --clock-is-right'. Nothing was changed"
        )

    def _put_back_books(self, ledger: Ledger) -> None:
        """Put a copy of a price book or of rates back below books/ that is missing, if exactly its content is in force.

        The recount prices each day by the copy that the ledger names.
        """
        pricings = [entry.pricing for entry in ledger.days.values() if entry.pricing]
        named = {file for pricing in pricings for file in (pricing.book, pricing.rates)}
        store, folder = self.run.store, self.run.layout.books
        missing = {
            made_from: file
            for made_from, file in self.run.prices.files.items()
            if file.name in named and not store.signature(folder / file.name)
        }
        if missing:
            replace(self.run.prices, files=missing).keep(store, self.run.scratch)
            names = " and ".join(file.name for file in missing.values())
            log.warning("%s was missing below books/, and is put back: its content is in force", names)

    def _list_raw(self, ledger: Ledger) -> RawListing:
        store = self.run.store
        listing = list_raw(store)
        if missing := missing_raw(store, ledger, listing):
            check_raw(store)  # which may have been unmounted since the run began
            log.warning("%s: mount what belongs there, unless its logs were deleted on purpose", missing)
        return listing

    def _look_for_lost(
        self,
        ledger: Ledger,
        files: Mapping[str, FileEntry],
        days: Mapping[date, DayEntry],
        anything_to_publish: bool,
        report: Report,
    ) -> None:
        """See whether a version was published that is there no more: the log was cut, put back or moved away.

        Events that nobody names any more then tell on which days something is missing, unless they were superseded.
        """
        layout = self.run.layout
        newest = ledger.publication.version
        if self.last_run and self.last_run.version > newest:
            if not newest and not anything_to_publish:
                held_back = "".join(f"; {held}" for held in report.held_back[:3])
                raise KeytallyError(
                    f"{lost_versions(newest, self.last_run)}, and nothing in raw/ can be taken in{held_back}; put"
                    f" rollups/ back, or remove {self.run.store.name_of(layout.last_run)} to begin with nothing"
                )
            report.lost = lost_versions(newest, self.last_run)
            named = {event.path_in(layout) for entry in files.values() for event in entry.take_in.events}
            report.lost_days = sorted({day for day, path in self._event_files() if path not in named})
            if not report.lost_days:
                log.warning("%s; everything it counted is published anew from raw/", report.lost)
        elif not ledger.publication.generation:
            report.lost_days = sorted({day for day, _ in self._event_files()} - days.keys())

    def _look_for_lowered(self, ledger: Ledger, after: Ledger, listing: RawListing, report: Report) -> None:
        """See which published days lose requests by this run, or lost some by a run that could not report it."""
        lowered = lowered_days(self.run, ledger, after, listing.ignored, is_sound=self.inspection.is_sound)
        self.lowered_note = note_of(lowered) if lowered else None
        newest = ledger.publication.version
        noted = self.last_run.version if self.last_run else newest - 1
        found = {day.day: day for day in unreported(self.run.store, noted, newest)}
        found |= {day.day: day for day in lowered}
        report.lowered = [found[day] for day in sorted(found)]

    def _event_files(self) -> Iterator[tuple[date, Path]]:
        """Every file of events there is, with its day."""
        for found in self.run.store.list(self.run.layout.events):
            if day := day_of(found.path):
                yield day, found.path

    def _publish(
        self,
        ledger: Ledger,
        files: Mapping[str, FileEntry],
        days: Mapping[date, DayEntry],
        partitions: list[Partition],
        report: Report,
    ) -> None:
        notes = {
            "keytally.days": str(len(report.days)),
            "keytally.files": str(len(report.ingested)),
            FINDINGS: " ".join(str(day) for day in sorted(self.findings)),
        }
        if self.lowered_note:
            notes[LOWERED] = self.lowered_note
        if any(entry.pricing for entry in report.days):
            self.run.prices.keep(self.run.store, self.run.scratch)  # the ledger is about to name them
        start_grace(self.run, ledger, files, days, partitions)
        if report.lost or report.lost_days:
            start_grace_of_all(self.run, files, days)
        report.version = self.steps.publish(self.run, ledger.publication, partitions, notes)
        report.published = True
        sweep(self.run, files, days)

    def _note(self, report: Report, confirmed: Mapping[tuple[str, str], str], outcome: Outcome) -> None:
        """Note that everything is published in the report's version, but for the files held back."""
        held_back = self.arrivals.held_back
        try:
            write_last_run(self.run, report.version, held_back, self.findings, confirmed, report.quarantined, outcome)
        except (OSError, StoreError) as error:  # what is published stays published
            name = self.run.store.name_of(self.run.layout.last_run)
            log.warning("%s cannot be written: %s", name, getattr(error, "strerror", error))

    def _roll_up_days(
        self, ledger: Ledger, raw_files: Sequence[RawFile], files: dict[str, FileEntry], report: Report
    ) -> tuple[dict[str, FileEntry], dict[date, DayEntry]]:
        """The ledger's days, those rolled up anew whose inputs changed; and the files, healed where a day needed it."""
        while True:
            inputs = events_by_day(files)
            fingerprints = {day: fingerprint_of(inputs.get(day, {})) for day in {*inputs, *ledger.days}}
            dirty = self._dirty(ledger, fingerprints)
            healed = self.healing.healed(dirty, raw_files, files, report)
            if healed is files:
                break
            files = healed  # a file taken in anew may have another name, and with it other days are dirty

        self._refuse_two_currencies(ledger)
        days = dict(ledger.days)
        self.findings |= self.healing.beyond_repair
        self._restore(dirty, days, ledger, report)
        self.run.watch.begin("rolling up days", len(dirty))
        to_roll = [self._inputs_of(day, fingerprints[day], inputs.get(day, {})) for day in sorted(dirty)]
        for entry in self._rolled(to_roll):
            day, before = entry.day, ledger.days.get(entry.day)
            days[day] = before if before and self._is_same(entry, before) else entry
            if days[day].accepted or days[day] != before:
                report.days.append(days[day])
        quarantined = quarantined_by_day(files)
        report.quarantined_on = {entry.day: quarantined.get(entry.day, 0) for entry in report.days}
        report.paces = {entry.day: self.paces[entry.day] for entry in report.days if entry.day in self.paces}
        report.months = sorted({month_of(day) for day in dirty})
        return files, days

    def _refuse_two_currencies(self, ledger: Ledger) -> None:
        """Raises KeytallyError where a new currency is meant, and a day cannot be rolled up anew: a month is a sum."""
        currency = self.run.settings.currency
        for day in sorted(self.healing.beyond_repair & ledger.days.keys()):
            if ledger.days[day].currency not in (None, currency):
                raise KeytallyError(
                    f"{day} is published in {ledger.days[day].currency} and cannot be in {currency}: what it is"
                    " made of is gone or damaged; put its raw files back into raw/. Nothing was changed"
                )

    def _dirty(self, ledger: Ledger, fingerprints: Mapping[date, str]) -> set[date]:
        """The days to roll up: changed ones, those asked for, and those of their months whose file is damaged."""
        dirty = {
            day for day, name in fingerprints.items() if day not in ledger.days or ledger.days[day].fingerprint != name
        }
        dirty |= {day for day, entry in ledger.days.items() if not self.run.prices.is_current(day, entry.pricing)}
        dirty |= {day for day, entry in ledger.days.items() if entry.currency not in (None, self.run.settings.currency)}
        dirty |= self.redo & ledger.days.keys()
        months = {month_of(day) for day in dirty}
        layout, is_sound = self.run.layout, self.inspection.is_sound
        for day, entry in ledger.days.items():
            if day not in dirty and month_of(day) in months and not is_sound(entry.path_in(layout)):
                dirty.add(day)
        return dirty - self.healing.beyond_repair

    def _restore(self, dirty: set[date], days: dict[date, DayEntry], ledger: Ledger, report: Report) -> None:
        """See to the days beyond repair whose own file is gone too: a month is made of all of its days.

        Where a day cannot be had from what is published of it either, its month stays as it is.
        """
        for day in sorted(self.healing.beyond_repair & ledger.days.keys()):
            month = month_of(day)
            in_month = {other for other in dirty if month_of(other) == month}
            damaged = ledger.days[day].path_in(self.run.layout)
            if not in_month or self.inspection.is_sound(damaged):
                continue
            restored = self.healing.restored(ledger.days[day], ledger)
            if restored:
                days[day] = restored
            else:
                dirty -= in_month
                self.findings |= in_month
                report.held_back.append(
                    HeldBack(
                        damaged.relative_to(self.run.layout.root).as_posix(),
                        f"damaged, and so is what is published of {month_name(month)}, which stays as it is: put the"
                        f" raw files of {day} back into raw/, or these files back from a copy",
                    )
                )

    def _inputs_of(self, day: date, fingerprint: str, events: Mapping[str, EventFile]) -> DayInputs:
        files = [events[name] for name in sorted(events)]
        return DayInputs(day, fingerprint, files, sum(event.accepted for event in files))

    def _rolled(self, days: Sequence[DayInputs]) -> list[DayEntry]:
        """The days rolled up, now or in an earlier attempt."""
        current = {
            (day, fingerprint)
            for (day, fingerprint), entry in self.rolled.items()
            if self.run.prices.is_current(day, entry.pricing)
        }
        waiting = [day for day in days if (day.day, day.fingerprint) not in current]
        groups = grouped(day for day in waiting if not is_large(day))
        for entries, seconds in self.steps.fan_out(self.run, partial(_timed, self.steps.roll_up_days), groups):
            self._note_rolled(entries, seconds)
        for day in waiting:
            if is_large(day):
                begun = time.monotonic()
                entry = roll_up_in_buckets(self.run, day, self.steps.fan_out)
                self._note_rolled([entry], time.monotonic() - begun)
        return [self.rolled[day.day, day.fingerprint] for day in days]

    def _note_rolled(self, entries: Sequence[DayEntry], seconds: float) -> None:
        self.rolled.update(((entry.day, entry.fingerprint), entry) for entry in entries)
        self.paces.update((entry.day, Pace(seconds, len(entries))) for entry in entries)
        self.run.watch.advance(len(entries))
        self.run.watch.count(sum(entry.accepted for entry in entries))

    def _is_same(self, entry: DayEntry, before: DayEntry) -> bool:
        """Whether it is the same rows from the same inputs; in other bytes, as another DuckDB may write them."""
        currency = before.currency and entry.currency  # an older entry does not say it, which is no difference
        if replace(entry, artifact=before.artifact, as_of=before.as_of, currency=currency) != before:
            return False
        kept, rolled = before.path_in(self.run.layout), entry.path_in(self.run.layout)
        return kept == rolled or (self.inspection.is_sound(kept) and same_rows(self.run, API_KEY_DAY, kept, rolled))

    def _roll_up_months(
        self, ledger: Ledger, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry], report: Report
    ) -> list[Partition]:
        """The new files of every month of which a day was rolled up; only those whose rows are not published yet."""
        partitions = []
        self.run.watch.begin("rolling up months", len(report.months))
        for month in report.months:
            entries = [days[day] for day in sorted(days) if month_of(day) == month]
            rolled = self.steps.roll_up_month(self.run, month, entries)
            for table, path in rolled.files.items():
                published = ledger.publication.files.get((table.name, month))
                if published is None or not self._is_published(self.run.layout.rollups / published.path, table, path):
                    partitions.append(Partition(table, month, path))
            after = Ledger(ledger.publication, files, days)
            is_sound, check = self.inspection.is_sound, bool(self.redo)
            restated = restate(self.run, month, ledger, after, self.confirmed_at, is_sound=is_sound, check=check)
            if restated.path:
                partitions.append(Partition(RESTATEMENT, month, restated.path))
            if restated.lost:
                report.records_lost.append(month)
            self.run.watch.advance(1)
        return partitions

    def _is_published(self, published: Path, table: Table, rolled: Path) -> bool:
        """Whether readers have these very rows already. A damaged file is put right if its bytes are known."""
        same_bytes = checksum_of(rolled) == stated_checksum(published)
        if not self.inspection.is_sound(published):
            if same_bytes:
                keep(self.run.store, rolled, published.parent, "part")
            return same_bytes
        return same_bytes or same_rows(self.run, table, published, rolled)

    def _ledger_partitions(
        self, ledger: Ledger, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry], *, alone: bool
    ) -> list[Partition]:
        """The ledger's new files. A file touched but not changed is no reason to publish; its entry goes along."""
        scratch = self.run.scratch
        partitions = []
        for month in sorted({month_of(day) for day, entry in days.items() if ledger.days.get(day) != entry}):
            path = scratch / f"{DAY_LEDGER.name}-{month_name(month)}.parquet"
            write_day_ledger(days.values(), month, path)
            partitions.append(Partition(DAY_LEDGER, month, path))
        differing = [entry for file, entry in files.items() if ledger.files.get(file) != entry]
        material = [entry for entry in differing if not _differs_in_signature_only(entry, ledger.files.get(entry.file))]
        if material or (differing and (partitions or not alone)):
            path = scratch / f"{FILE_LEDGER.name}.parquet"
            write_file_ledger(files.values(), path)
            partitions.append(Partition(FILE_LEDGER, None, path))
        return partitions


def refuse_what_would_reprice_all(ledger: Ledger, prices: Prices, *, new_currency: bool = False) -> None:
    """Raises KeytallyError where a setting or a missing file would make other amounts of all that was published.

    A shell without the variable, a folder that is not mounted: none of them is a wish for other numbers.
    """
    currencies = {entry.currency for entry in ledger.days.values() if entry.currency and entry.accepted}
    if (others := currencies - {prices.currency}) and not new_currency:
        raise KeytallyError(
            f"what is published is in {', '.join(sorted(others))}, and KEYTALLY_CURRENCY is {prices.currency}: set it"
            f" to {min(others)}, or run 'keytally rollup --new-currency' to publish all days in {prices.currency};"
            f" costs whose log names no currency then count as {prices.currency}. Nothing was changed"
        )
    pricings = [entry.pricing for entry in ledger.days.values() if entry.pricing]
    for name, made_from, by in (
        ("prices.csv", "prices", [pricing.book for pricing in pricings]),
        ("fx.csv", "fx", [pricing.rates for pricing in pricings]),
    ):
        kept = [file for file in by if file]
        if kept and made_from not in prices.kept:
            raise KeytallyError(
                f"{name} is gone, by which {count_of(len(kept), 'day')} had prices; put it back in the data root (the"
                f" last one is books/{kept[-1]}), or a file of its header alone to do without. Nothing was changed"
            )


def _timed(
    roll_up_days: Callable[[Run, list[DayInputs]], list[DayEntry]], run: Run, days: list[DayInputs]
) -> tuple[list[DayEntry], float]:
    """The days rolled up, and the seconds it took where it was done."""
    begun = time.monotonic()
    return roll_up_days(run, days), time.monotonic() - begun


def _differs_in_signature_only(entry: FileEntry, before: FileEntry | None) -> bool:
    return before is not None and replace(entry, signature=before.signature) == before
