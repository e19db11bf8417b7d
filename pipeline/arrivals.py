"""What arrived in raw/ since the newest version, taken in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path

from pipeline.contents import content_of, count_each_content_once, held_contents, is_still, needs_reading, size_of
from pipeline.errors import HeldBack
from pipeline.fan_out import FanOut
from pipeline.format import NATIVE, folder_of
from pipeline.intake import TakeIn, days_in, days_of_rest, rule_of
from pipeline.ledger import FileEntry, Ledger
from pipeline.raw import HalfLineError, RawFile, hash_raw, size_now
from pipeline.report import Report
from pipeline.run import Run


@dataclass
class Arrivals:
    """Takes in what is new or changed. What was taken in is kept over the attempts of an update.

    confirmed: as in LastRun; from the newest run's note, and for the next one. made: the event files that were made.
    """

    run: Run
    take_in: Callable[[Run, RawFile], TakeIn]
    fan_out: FanOut
    confirmed: dict[tuple[str, str], str]
    held_back: dict[tuple[str, str], str] = field(default_factory=dict)  # reasons by file and signature
    waiting_days: set[date] = field(default_factory=set)  # of lines that wait: behind a part, or in a file held back
    made: set[Path] = field(default_factory=set)
    _taken: dict[RawFile, TakeIn] = field(default_factory=dict)
    _days: dict[RawFile, frozenset[date]] = field(default_factory=dict)  # of the lines of a file that wait

    def added_to(self, ledger: Ledger, raw_files: Sequence[RawFile], report: Report) -> dict[str, FileEntry]:
        """The ledger's files and those that arrived; what cannot be taken in is reported and left."""
        self.held_back.clear()
        self.waiting_days.clear()
        files = dict(ledger.files)
        known = {(entry.take_in.content, entry.take_in.rule): entry.take_in for entry in files.values()}
        sizes = {size_of(entry) for entry in files.values()}
        waiting = [file for file in raw_files if needs_reading(file, files, self.confirmed, self.run.started)]
        without_format = _without_format(waiting, ledger)
        for raw_file, held_back in without_format.items():
            self._hold_back(raw_file, held_back, report)
        waiting = [raw_file for raw_file in waiting if raw_file not in without_format]
        self.run.watch.begin("taking in", sum(raw_file.size for raw_file in waiting))
        read: list[str] = []
        for raw_file, taken in self._taken_in(waiting, known, sizes):
            self.waiting_days |= self._days.get(raw_file, frozenset())
            if isinstance(taken, HeldBack):
                self._hold_back(raw_file, taken, report)
                continue
            before = ledger.files.get(raw_file.file)
            is_whole = taken.size == raw_file.size
            if before and before.take_in.lines and not taken.lines:
                # Emptied: as good as deleted, and a deleted file takes nothing back.
                if is_whole:
                    self.confirmed[raw_file.file, raw_file.signature] = before.take_in.content
                continue
            if before and is_whole and content_of(before.take_in) == content_of(taken):
                self.confirmed[raw_file.file, raw_file.signature] = taken.content
            files[raw_file.file] = FileEntry(raw_file.file, raw_file.signature_of(taken.size), None, taken)
            read.append(raw_file.file)
        for raw_file in raw_files:
            entry = files.get(raw_file.file)
            if entry and raw_file.size and is_still(entry, raw_file, self.confirmed):
                # No reason to publish; when there is one, the signature goes along.
                files[raw_file.file] = replace(entry, signature=raw_file.signature)

        if files == ledger.files:
            return files
        files = count_each_content_once(files, ledger.files)
        contents = held_contents(files)
        for file in read:
            _report(files[file], ledger.files.get(file), contents, report)
        return files

    def _hold_back(self, raw_file: RawFile, held_back: HeldBack, report: Report) -> None:
        report.held_back.append(held_back)
        self.held_back[raw_file.file, raw_file.signature] = held_back.reason

    def still_confirmed(
        self, files: Mapping[str, FileEntry], raw_files: Sequence[RawFile]
    ) -> dict[tuple[str, str], str]:
        """What of `confirmed` the next run needs to know, when `files` is the ledger it will find."""
        return {
            (raw_file.file, raw_file.signature): entry.take_in.content
            for raw_file in raw_files
            if (entry := files.get(raw_file.file)) is not None
            and entry.signature != raw_file.signature
            and is_still(entry, raw_file, self.confirmed)
        }

    def _taken_in(
        self, waiting: Sequence[RawFile], known: dict[tuple[str, str], TakeIn], sizes: set[int]
    ) -> Iterator[tuple[RawFile, TakeIn | HeldBack]]:
        """What each file's content is made into, or why it is held back.

        A content that is known is not parsed again. To be known it must have one of the `sizes`, so that of files of
        one size the first goes before the others.
        """
        verdicts: dict[RawFile, TakeIn | HeldBack] = {
            raw_file: self._taken[raw_file] for raw_file in waiting if raw_file in self._taken
        }
        known |= {(taken.content, taken.rule): taken for taken in self._taken.values()}
        first: list[RawFile] = []
        others: list[RawFile] = []
        for raw_file in (raw_file for raw_file in waiting if raw_file not in verdicts):
            (others if raw_file.size in sizes else first).append(raw_file)
            sizes.add(raw_file.size)
        verdicts |= self._take_in(first, known)
        contents = dict(zip(others, self.fan_out(self.run, _content_or_none, others), strict=True))
        verdicts |= self._take_in([raw_file for raw_file in others if contents[raw_file] is None], known)
        others = [raw_file for raw_file in others if contents[raw_file] is not None]
        while others:
            unknown: dict[tuple[str, str], RawFile] = {}
            again: list[RawFile] = []
            for raw_file in others:
                key = (contents[raw_file] or "", rule_of(raw_file.read_as, raw_file.format))
                if key in unknown:
                    again.append(raw_file)
                elif key in known and not self._heals(known[key]):
                    verdicts[raw_file] = known[key]
                else:
                    unknown[key] = raw_file
            verdicts |= self._take_in(list(unknown.values()), known)
            others = again
        self._taken |= {raw_file: taken for raw_file, taken in verdicts.items() if isinstance(taken, TakeIn)}
        return ((raw_file, verdicts[raw_file]) for raw_file in waiting)

    def _heals(self, known: TakeIn) -> bool:
        return known.heals_at is not None and known.heals_at <= self.run.started

    def _take_in(
        self, raw_files: Sequence[RawFile], known: dict[tuple[str, str], TakeIn]
    ) -> dict[RawFile, TakeIn | HeldBack]:
        """What the files are made into, which is known from now on."""
        step = partial(_take_in_or_why_not, self.take_in)
        verdicts: dict[RawFile, TakeIn | HeldBack] = {}
        for raw_file, (verdict, days) in zip(raw_files, self.fan_out(self.run, step, raw_files), strict=True):
            verdicts[raw_file], self._days[raw_file] = verdict, days
        made = [taken for taken in verdicts.values() if isinstance(taken, TakeIn)]
        known |= {(taken.content, taken.rule): taken for taken in made}
        self.made |= {event.path_in(self.run.layout) for taken in made for event in taken.events}
        return verdicts


def _without_format(waiting: Sequence[RawFile], ledger: Ledger) -> dict[RawFile, HeldBack]:
    """The files below the folder of a format that is gone, by which some of it were taken in: why each is held back.

    In the native format hardly a line of them would count, and what they held before would count no more.
    """
    mapped = {
        folder
        for file, entry in ledger.files.items()
        if (folder := folder_of(file)) and folder != NATIVE.name and entry.take_in.format.startswith(f"{folder}.")
    }
    return {
        raw_file: HeldBack(
            raw_file.file,
            f"format: formats/{folder}.sql is gone, by which files of this folder were taken in: put it back, or move"
            " the file to another folder below raw/",
        )
        for raw_file in waiting
        if not raw_file.format.is_mapped and (folder := folder_of(raw_file.file)) in mapped
    }


def _take_in_or_why_not(
    take_in: Callable[[Run, RawFile], TakeIn], run: Run, raw_file: RawFile
) -> tuple[TakeIn | HeldBack, frozenset[date]]:
    """What the file is made into, or why it is held back; and the days of its lines that wait for the next run."""
    try:
        taken = take_in(run, raw_file)
    except HeldBack as held_back:
        return held_back, days_in(run, raw_file)
    return taken, days_of_rest(run, raw_file, taken)


def _content_or_none(_: Run, raw_file: RawFile) -> str | None:
    """The content of a file; None where it is held back, or has grown: taking it in says more of it."""
    with suppress(HeldBack, HalfLineError, OSError):
        content = hash_raw(raw_file)
        return content if size_now(raw_file) <= raw_file.size else None
    return None


def _report(entry: FileEntry, before: FileEntry | None, contents: set[tuple[str, str]], report: Report) -> None:
    if before is None or before.take_in.name != entry.take_in.name:
        report.ingested.append(entry)
    if before is None:
        return
    if before.take_in.content == entry.take_in.content:
        if entry.counted_lines < before.counted_lines:  # by a changed rule
            report.replaced.append((entry.file, before.counted_lines, entry.counted_lines))
    elif content_of(before.take_in) not in contents:
        # Else a log was rotated by rename: it counts under its new name, and nothing was replaced. Whether a request
        # that was published counts no more, falls.py finds out of the days.
        report.replaced.append((entry.file, before.counted_lines, entry.counted_lines))
