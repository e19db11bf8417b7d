"""Bringing the published rollups up to date with the raw logs: what the nightly run and a backfill do.

Everything is derived anew from what lies in raw/ and in the ledger of the newest version. A crash, a missed night, a
late file and a changed rule all look the same from here: something is named that does not exist yet.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from pipeline.artifacts import keep, verify
from pipeline.contents import (
    content_of,
    count_each_content_once,
    days_touched,
    events_by_day,
    held_contents,
    needs_reading,
    size_of,
    with_take_in,
)
from pipeline.contract.last_run import read_last_run
from pipeline.contract.layout import checksum_of, days_between, month_name, month_of, stated_checksum
from pipeline.contract.published import FINDINGS
from pipeline.contract.tables import API_KEY_DAY, DAY_LEDGER, FILE_LEDGER, ORGANIZATION_DAY, RESTATEMENT, Table
from pipeline.errors import ArtifactDamaged, CommitRefused, HeldBack
from pipeline.history import cause_of, restate, was_over
from pipeline.intake import EventFile, TakeIn, rule_of, take_in
from pipeline.ledger import DayEntry, FileEntry, Ledger, read_ledger, write_day_ledger, write_file_ledger
from pipeline.publish import Partition, make_durable, publish
from pipeline.raw import RawFile, hash_raw, list_raw
from pipeline.report import Report
from pipeline.rollup import RolledMonth, fingerprint_of, roll_up_day, roll_up_month, same_rows
from pipeline.run import Run
from pipeline.status import write_last_run
from pipeline.sweep import start_grace, sweep, sweep_log

log = logging.getLogger(__name__)

COMMIT_ATTEMPTS = 8


class Steps(NamedTuple):
    """The steps of a run, each a plain function. Whoever wants them retried, named or sent elsewhere wraps them."""

    take_in: Callable[[Run, RawFile], TakeIn] = take_in
    roll_up_day: Callable[[Run, date, str, list[Path], int], DayEntry] = roll_up_day
    roll_up_month: Callable[[Run, date, list[DayEntry]], RolledMonth] = roll_up_month
    publish: Callable[[Run, Any, list[Partition], Mapping[str, str]], int] = publish


PLAIN_STEPS = Steps()


def roll_up(run: Run, steps: Steps = PLAIN_STEPS) -> Report:
    """Take in what is new in raw/, roll up the days and months it touches, and publish them together.

    With nothing new, nothing is published. Raises KeytallyError when nothing could be published.
    """
    return _until_committed(_Update(run, steps, frozenset()))


def backfill(run: Run, first_day: date, last_day: date, steps: Steps = PLAIN_STEPS) -> Report:
    """As `roll_up`; and check everything that the days from `first_day` to `last_day` (both included) are made from,
    rebuild from raw/ what is missing or damaged, and roll these days and their months up anew.

    Equal results publish nothing.
    """
    return _until_committed(_Update(run, steps, frozenset(days_between(first_day, last_day))))


def _until_committed(update: _Update) -> Report:
    """Try until no other run publishes meanwhile. What was taken in and rolled up is kept between the attempts."""
    begun = time.monotonic()
    last_run = read_last_run(update.run.layout)
    update.confirmed_at = last_run.started if last_run else None
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        try:
            report = update.attempt()
            update.note(report)
            report.seconds = time.monotonic() - begun
            return report
        except CommitRefused:
            if attempt == COMMIT_ATTEMPTS:
                raise
            log.info("another run published first; recomputing from what it published (attempt %d)", attempt + 1)
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
    raise AssertionError("unreachable")


@dataclass
class _Update:
    """One update under way, over as many attempts as it takes."""

    run: Run
    steps: Steps
    redo: frozenset[date]  # days to roll up even if nothing about them changed
    taken: dict[tuple[str, str], TakeIn] = field(default_factory=dict)  # by file and signature
    rolled: dict[tuple[date, str], DayEntry] = field(default_factory=dict)  # by day and fingerprint
    held_back: dict[tuple[str, str], str] = field(default_factory=dict)  # reasons by file and signature
    findings: frozenset[date] = frozenset()  # days of which something is held back
    sound: set[Path] = field(default_factory=set)  # artifacts whose checksum was found right
    confirmed_at: datetime | None = None  # start of the newest run before this one
    beyond_repair: set[date] = field(default_factory=set)  # days whose events are gone, and their raw file too
    rejected_beyond_repair: set[str] = field(default_factory=set)  # take-ins whose rejected lines are gone likewise

    def attempt(self) -> Report:
        """Bring everything up to date with the newest version's ledger, and commit. Raises CommitRefused."""
        ledger = read_ledger(self.run.layout)
        self.held_back.clear()
        self.beyond_repair.clear()
        report = Report(version=ledger.publication.version)
        listing = list_raw(self.run.layout.raw)
        report.held_back.extend(listing.held_back)
        files = self._take_in(ledger, listing.files, report)
        self.findings = days_touched(files, {held_back.file for held_back in report.held_back})
        files, days = self._roll_up_days(ledger, listing.files, files, report)
        self.findings |= self.beyond_repair
        partitions = self._roll_up_months(ledger, files, days, report)
        partitions += self._ledger_partitions(ledger, files, days, alone=not partitions)
        if partitions:
            notes = {
                "keytally.days": str(len(report.days)),
                "keytally.files": str(len(report.ingested)),
                FINDINGS: " ".join(str(day) for day in sorted(self.findings)),
            }
            start_grace(self.run, ledger, files, days, partitions)
            report.version = self.steps.publish(self.run, ledger.publication, partitions, notes)
            report.published = True
            sweep(self.run, files, days)
        elif report.version:
            # The run that published it may have died before it did so itself.
            make_durable(self.run.layout.rollups, report.version)
            sweep_log(self.run.layout, report.version)
        return report

    def note(self, report: Report) -> None:
        """Note that everything is published in the report's version, but for the files held back."""
        try:
            write_last_run(self.run, report.version, self.held_back, self.findings, report.quarantined)
        except OSError as error:  # what is published stays published
            log.warning("%s cannot be written: %s", self.run.layout.last_run, error.strerror)

    def _take_in(self, ledger: Ledger, raw_files: Sequence[RawFile], report: Report) -> dict[str, FileEntry]:
        """The ledger's files with what is new or changed in raw/ taken in; what cannot be is reported and left."""
        files = dict(ledger.files)
        known = {(entry.take_in.content, entry.take_in.rule): entry.take_in for entry in files.values()}
        sizes = {size_of(entry) for entry in files.values()}
        waiting = [raw_file for raw_file in raw_files if needs_reading(raw_file, files, self.run.started)]
        self.run.watch.begin("taking in", sum(raw_file.size for raw_file in waiting))
        read: list[str] = []
        for raw_file in waiting:
            try:
                taken = self._taken(raw_file, known if raw_file.size in sizes else {})
            except HeldBack as held_back:
                report.held_back.append(held_back)
                self.held_back[raw_file.file, raw_file.signature] = held_back.reason
                continue
            known[taken.content, taken.rule] = taken
            sizes.add(raw_file.size)
            before = ledger.files.get(raw_file.file)
            if before and before.take_in.lines and not taken.lines:
                # Emptied: as good as deleted, and a deleted file takes nothing back.
                files[raw_file.file] = replace(before, signature=raw_file.signature)
                continue
            files[raw_file.file] = FileEntry(raw_file.file, raw_file.signature, None, taken)
            read.append(raw_file.file)

        files = count_each_content_once(files, ledger.files)
        contents = held_contents(files)
        for file in read:
            self._report_file(files[file], ledger.files.get(file), contents, report)
        return files

    def _taken(self, raw_file: RawFile, same_size: Mapping[tuple[str, str], TakeIn]) -> TakeIn:
        """What a file's content is made into; known contents, of which some have its size, are not parsed again."""
        key = (raw_file.file, raw_file.signature)
        if key not in self.taken:
            known = same_size.get((hash_raw(raw_file), rule_of(raw_file.read_as))) if same_size else None
            heals = known and known.heals_at and known.heals_at <= self.run.started
            self.taken[key] = known if known and not heals else self.steps.take_in(self.run, raw_file)
        return self.taken[key]

    def _report_file(
        self, entry: FileEntry, before: FileEntry | None, contents: set[tuple[str, str]], report: Report
    ) -> None:
        if before is None or before.take_in.name != entry.take_in.name:
            report.ingested.append(entry)
        if before is None:
            return
        if before.take_in.content == entry.take_in.content:
            replaced = entry.counted_lines < before.counted_lines  # by a changed rule
        else:
            # A log rotated by rename counts under its new name: nothing was replaced.
            replaced = content_of(before.take_in) not in contents
        if replaced:
            report.replaced.append((entry.file, before.counted_lines, entry.counted_lines))

    def _roll_up_days(
        self, ledger: Ledger, raw_files: Sequence[RawFile], files: dict[str, FileEntry], report: Report
    ) -> tuple[dict[str, FileEntry], dict[date, DayEntry]]:
        """The ledger's days, those rolled up anew whose inputs changed; and the files, healed where a day needed it."""
        while True:
            inputs = events_by_day(files)
            fingerprints = {day: fingerprint_of(inputs.get(day, {})) for day in {*inputs, *ledger.days}}
            dirty = self._dirty(ledger, fingerprints)
            healed = self._heal(dirty, raw_files, files, report)
            if healed is files:
                break
            files = healed  # a file taken in anew may have another name, and with it other days are dirty

        days = dict(ledger.days)
        months: set[date] = set()
        self.run.watch.begin("rolling up days", len(dirty))
        for day in sorted(dirty):
            days[day] = self._rolled_day(day, fingerprints[day], inputs.get(day, {}), ledger.days.get(day))
            months.add(month_of(day))
            if days[day].accepted or days[day] != ledger.days.get(day):
                report.days.append(days[day])
            self.run.watch.advance(1)
        report.months = sorted(months)
        return files, days

    def _dirty(self, ledger: Ledger, fingerprints: Mapping[date, str]) -> set[date]:
        """The days to roll up: changed ones, those asked for, and those of their months whose file is damaged."""
        dirty = {
            day for day, name in fingerprints.items() if day not in ledger.days or ledger.days[day].fingerprint != name
        }
        dirty |= self.redo & ledger.days.keys()
        months = {month_of(day) for day in dirty}
        for day, entry in ledger.days.items():
            if day not in dirty and month_of(day) in months and not self._is_sound(self._daily_path(entry)):
                dirty.add(day)
        return dirty - self.beyond_repair

    def _heal(
        self,
        dirty: set[date],
        raw_files: Sequence[RawFile],
        files: dict[str, FileEntry],
        report: Report,
    ) -> dict[str, FileEntry]:
        """The files, those taken in anew from raw/ whose events are missing or damaged on a dirty day."""
        present = {raw_file.file: raw_file for raw_file in raw_files}
        for entry in list(files.values()):
            damaged = [
                event
                for event in entry.take_in.events
                if entry.same_as is None and event.day in dirty and not self._is_sound(self._event_path(event))
            ]
            if not damaged and self._has_its_rejected(entry):
                continue
            source = next(
                (
                    present[other.file]
                    for other in files.values()
                    if content_of(other.take_in) == content_of(entry.take_in)
                    and other.file in present
                    and present[other.file].signature == other.signature
                ),
                None,
            )
            taken = source and self._taken_anew(source)
            if taken and content_of(taken) == content_of(entry.take_in):
                if taken.name == entry.take_in.name:  # the same again: rebuilt, not taken in anew
                    taken = replace(taken, taken_at=entry.take_in.taken_at)
                return with_take_in(files, taken)
            if not self._has_its_rejected(entry):
                self.rejected_beyond_repair.add(entry.take_in.name)
                report.held_back.append(
                    HeldBack(
                        entry.file,
                        "damaged: its list of quarantined lines cannot be rebuilt, because this content"
                        " is no longer in raw/; its requests count as they did",
                    )
                )
            for day in sorted({event.day for event in damaged}):
                dirty.discard(day)
                self.beyond_repair.add(day)
                report.held_back.append(
                    HeldBack(
                        entry.file,
                        f"damaged: its events of {day} cannot be rebuilt, because this content is no longer in raw/; "
                        "the published day stays as it is until it is there again",
                    )
                )
        return files

    def _has_its_rejected(self, entry: FileEntry) -> bool:
        """Whether a file's list of quarantined lines is sound; looked at by a backfill alone, whatever its days."""
        rejected = entry.take_in.rejected
        if not self.redo or rejected is None or entry.same_as or entry.take_in.name in self.rejected_beyond_repair:
            return True
        return self._is_sound(self.run.layout.rejected / rejected)

    def _taken_anew(self, source: RawFile) -> TakeIn | None:
        """What a raw file is made into now. A disk may have changed its bytes and not its times, or lost some."""
        try:
            return self.steps.take_in(self.run, source)
        except HeldBack as held_back:
            log.warning("%s", held_back)
            return None

    def _rolled_day(
        self, day: date, fingerprint: str, events: Mapping[str, EventFile], before: DayEntry | None
    ) -> DayEntry:
        key = (day, fingerprint)
        if key not in self.rolled:
            paths = [self._event_path(events[name]) for name in sorted(events)]
            accepted = sum(event.accepted for event in events.values())
            self.rolled[key] = self.steps.roll_up_day(self.run, day, fingerprint, paths, accepted)
        entry = self.rolled[key]
        # The same rows from the same inputs in other bytes, as another DuckDB may write them, are no change.
        if before is None or replace(entry, artifact=before.artifact, as_of=before.as_of) != before:
            return entry
        kept, rolled = self._daily_path(before), self._daily_path(entry)
        same = kept == rolled or (self._is_sound(kept) and same_rows(self.run, API_KEY_DAY, kept, rolled))
        return before if same else entry

    def _roll_up_months(
        self, ledger: Ledger, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry], report: Report
    ) -> list[Partition]:
        """The new files of every month of which a day was rolled up; only those whose rows are not published yet."""
        partitions = []
        self.run.watch.begin("rolling up months", len(report.months))
        for month in report.months:
            entries = [days[day] for day in sorted(days) if month_of(day) == month]
            for day in self.beyond_repair & {entry.day for entry in entries}:
                verify(self._daily_path(days[day]))  # raises: without this day the month cannot be right
            rolled = self.steps.roll_up_month(self.run, month, entries)
            for table, path in rolled.files.items():
                published = ledger.publication.files.get((table.name, month))
                if published is None or not self._is_published(self.run.layout.rollups / published.path, table, path):
                    partitions.append(Partition(table, month, path))
                    if table is ORGANIZATION_DAY:
                        partitions += self._restatements(ledger, files, month, path, report)
            if self.redo and not any(part.table is RESTATEMENT and part.month == month for part in partitions):
                partitions += self._begun_anew(ledger, month)
            self.run.watch.advance(1)
        return partitions

    def _restatements(
        self, ledger: Ledger, files: Mapping[str, FileEntry], month: date, rolled: Path, report: Report
    ) -> list[Partition]:
        """The month's restatements, when its days change that were published after they were over."""
        published = ledger.publication.files.get((ORGANIZATION_DAY.name, month))
        days = [entry.day for entry in report.days if month_of(entry.day) == month]
        over = [day for day in days if day in ledger.days and was_over(ledger.days[day], self.confirmed_at)]
        if published is None or not over or not self._is_sound(self.run.layout.rollups / published.path):
            return []
        causes = {day: cause_of(day, ledger.files, files) for day in over}
        version = ledger.publication.version + 1
        earlier = ledger.publication.files.get((RESTATEMENT.name, month))
        if earlier and self.redo and not self._is_sound(self.run.layout.rollups / earlier.path):
            earlier = None
        path = restate(self.run, self.run.layout.rollups / published.path, rolled, causes, version, earlier)
        return [Partition(RESTATEMENT, month, path)] if path else []

    def _begun_anew(self, ledger: Ledger, month: date) -> list[Partition]:
        """No restatements in the place of a damaged file of them: raw/ knows nothing of what was published once."""
        recorded = ledger.publication.files.get((RESTATEMENT.name, month))
        if recorded is None or self._is_sound(self.run.layout.rollups / recorded.path):
            return []
        log.warning("what was restated of %s before now is lost; its record begins anew", month_name(month))
        path = self.run.scratch / f"{RESTATEMENT.name}-{month_name(month)}.parquet"
        pq.write_table(RESTATEMENT.arrow_schema.empty_table(), path)
        return [Partition(RESTATEMENT, month, path)]

    def _is_published(self, published: Path, table: Table, rolled: Path) -> bool:
        """Whether readers have these very rows already. A damaged file is put right if its bytes are known."""
        same_bytes = checksum_of(rolled) == stated_checksum(published)
        if not self._is_sound(published):
            if same_bytes:
                keep(rolled, published.parent, "part")
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

    def _event_path(self, event: EventFile) -> Path:
        return self.run.layout.events_of(event.day) / event.artifact

    def _daily_path(self, entry: DayEntry) -> Path:
        return self.run.layout.daily_of(entry.day) / entry.artifact

    def _is_sound(self, artifact: Path) -> bool:
        """Whether an artifact holds the bytes its name was given for; read once a run."""
        if artifact not in self.sound:
            try:
                verify(artifact)
            except ArtifactDamaged as damage:
                log.warning("%s %s", damage.artifact, damage.what)
                return False
            self.sound.add(artifact)
        return True


def _differs_in_signature_only(entry: FileEntry, before: FileEntry | None) -> bool:
    return before is not None and replace(entry, signature=before.signature) == before
