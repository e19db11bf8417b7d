"""Healing: what is missing or damaged of our own files, made anew from raw/ or from what is published."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import verify
from pipeline.contents import content_of, size_of, with_take_ins
from pipeline.contract.layout import month_of
from pipeline.contract.store import Store
from pipeline.contract.tables import API_KEY_DAY
from pipeline.engine import SCAN_ROWS
from pipeline.errors import ArtifactDamaged, HeldBack
from pipeline.intake import TakeIn
from pipeline.ledger import DayEntry, FileEntry, Ledger
from pipeline.raw import RawFile
from pipeline.report import Report
from pipeline.run import Run, Watch

log = logging.getLogger(__name__)


class Inspection:
    """Which files of ours hold the bytes that their names were given for; each is read once a run.

    thorough: as they lie in the store, whatever copies there are.
    """

    def __init__(self, store: Store, *, thorough: bool) -> None:
        self._store = store
        self._thorough = thorough
        self._sound: set[Path] = set()

    def trust(self, artifacts: Collection[Path]) -> None:
        """Take files for sound that this run has just made: they need not be read back, nor fetched from far away."""
        self._sound |= set(artifacts)

    def is_sound(self, artifact: Path) -> bool:
        """Whether it does. What is wrong with it is logged."""
        if artifact not in self._sound:
            try:
                verify(self._store, artifact, anew=self._thorough)
            except ArtifactDamaged as damage:
                log.warning("%s %s; rebuilding it", damage.artifact, damage.what)
                return False
            self._sound.add(artifact)
        return True


@dataclass
class Healing:
    """Makes anew what a run needs and finds damaged, and knows what cannot be.

    thorough: look at the lists of quarantined lines too, as a backfill does. beyond_repair: days that stay as they are
    published, because their events are gone and no raw file has their content.
    """

    run: Run
    take_in: Callable[[Run, RawFile], TakeIn]
    inspection: Inspection
    thorough: bool
    beyond_repair: set[date] = field(default_factory=set)
    _rejected_beyond_repair: set[str] = field(default_factory=set)  # take-ins whose rejected lines are gone likewise
    _rebuilt: set[str] = field(default_factory=set)  # take-ins that were made anew

    def begin_attempt(self) -> None:
        """Forget what cannot be healed: the raw file may be there again, and another report is to say it."""
        self.beyond_repair.clear()
        self._rejected_beyond_repair.clear()
        self._rebuilt.clear()

    def healed(
        self, dirty: set[date], raw_files: Sequence[RawFile], files: dict[str, FileEntry], report: Report
    ) -> dict[str, FileEntry]:
        """The files, those taken in anew whose events are missing or damaged on a dirty day.

        The very files when there are none. What cannot be healed is reported, and its days are no longer dirty. Raises
        ArtifactDamaged when what was just made anew is damaged again.
        """
        sources = _sources(raw_files, files)
        anew: dict[tuple[str, str], TakeIn] = {}
        if self.thorough:
            self.run.watch.begin("checking files", len(files))
        for entry in list(files.values()):
            if self.thorough:
                self.run.watch.advance(1)
            damaged = [
                event
                for event in entry.take_in.events
                if entry.same_as is None
                and event.day in dirty
                and not self.inspection.is_sound(event.path_in(self.run.layout))
            ]
            has_its_rejected = self._has_its_rejected(entry)
            if not damaged and has_its_rejected:
                continue
            if damaged and entry.take_in.name in self._rebuilt:
                verify(self.run.store, damaged[0].path_in(self.run.layout))
            taken = self._taken_anew(entry, sources.get(content_of(entry.take_in), ()))
            if taken:
                self._rebuilt.add(taken.name)
                anew[content_of(taken)] = taken
                continue
            if not has_its_rejected:
                self._rejected_beyond_repair.add(entry.take_in.name)
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
        return with_take_ins(files, anew) if anew else files

    def restored(self, entry: DayEntry, ledger: Ledger) -> DayEntry | None:
        """A day whose file is damaged and cannot be rolled up anew, with its rows out of what is published of it.

        None when that is damaged too.
        """
        published = ledger.publication.files.get((API_KEY_DAY.name, month_of(entry.day)))
        if published is None or not self.inspection.is_sound(self.run.layout.rollups / published.path):
            return None
        engine = self.run.engine
        engine.name_files("published", [self.run.layout.rollups / published.path], API_KEY_DAY)
        path = self.run.scratch / "daily.parquet"
        engine.copy("published_day", path, SCAN_ROWS, day=entry.day)
        log.warning("the rows of %s are taken from what is published of it", entry.day)
        name = artifacts.keep(self.run.store, path, self.run.layout.daily_of(entry.day), entry.fingerprint)
        return replace(entry, artifact=name)

    def _has_its_rejected(self, entry: FileEntry) -> bool:
        """Whether a file's list of quarantined lines is sound, as far as that is looked at."""
        rejected = entry.take_in.rejected
        if not self.thorough or rejected is None or entry.same_as or entry.take_in.name in self._rejected_beyond_repair:
            return True
        return self.inspection.is_sound(self.run.layout.rejected / rejected)

    def _taken_anew(self, entry: FileEntry, sources: Sequence[RawFile]) -> TakeIn | None:
        """What an entry's content is made into now; None when no raw file has it any more."""
        for source in sources:
            try:
                # No earlier than it was taken in: a request that was accepted is not from the future.
                # Told to nobody: how much there is to rebuild is not known before it is.
                run = replace(self.run, started=max(self.run.started, entry.take_in.taken_at), watch=Watch())
                taken = self.take_in(run, source)
            except HeldBack as held_back:  # a disk may have changed its bytes and not its times, or lost some
                log.warning("%s", held_back)
                continue
            if content_of(taken) != content_of(entry.take_in):
                continue
            if taken.name == entry.take_in.name:  # the same again: rebuilt, not taken in anew
                return replace(taken, taken_at=entry.take_in.taken_at)
            return taken
        return None


def _sources(raw_files: Sequence[RawFile], files: Mapping[str, FileEntry]) -> dict[tuple[str, str], list[RawFile]]:
    """The raw files that lie there as they were ingested, by their content; of a log that has grown since, the part."""
    sources: dict[tuple[str, str], list[RawFile]] = defaultdict(list)
    for raw_file in raw_files:
        entry = files.get(raw_file.file)
        if entry and raw_file.has_grown_since(entry.signature):
            sources[content_of(entry.take_in)].append(raw_file.part(size_of(entry)))
    return sources
