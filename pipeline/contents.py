"""Which contents count: every content once, whatever files hold it.

Pure decisions over the ledger; no file is opened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import PurePosixPath

from pipeline.intake import EventFile, TakeIn, rule_of
from pipeline.ledger import FileEntry
from pipeline.raw import RawFile


def needs_reading(
    raw_file: RawFile, files: Mapping[str, FileEntry], confirmed: Mapping[tuple[str, str], str], now: datetime
) -> bool:
    """Whether a raw file is new, changed, read by rules that changed since, or has a line whose moment has come.

    files: the ledger's. confirmed: contents that files still hold under another signature; see LastRun.
    """
    entry = files.get(raw_file.file)
    if entry is None:
        return True
    is_confirmed = is_still(entry, raw_file, confirmed)
    if is_confirmed and raw_file.size == 0:  # emptied: what it held before stays
        return False
    if not is_confirmed and entry.signature != raw_file.signature:
        return True
    heals_at = entry.take_in.heals_at
    return entry.take_in.rule != rule_of(raw_file.read_as, raw_file.format) or (
        heals_at is not None and heals_at <= now
    )


def is_still(entry: FileEntry, raw_file: RawFile, confirmed: Mapping[tuple[str, str], str]) -> bool:
    """Whether a run saw that the raw file is the entry's, under a signature that the ledger does not know."""
    return confirmed.get((raw_file.file, raw_file.signature)) == entry.take_in.content


def size_of(entry: FileEntry) -> int:
    """Size in bytes of the file that an entry was taken in from."""
    return int(entry.signature.partition(":")[0])


def count_each_content_once(files: Mapping[str, FileEntry], before: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """The files, with `same_as` set for all but one file of each content.

    The one is the file that counted it before, while it still holds it, else the first in order of path. All files of
    a content share its newest take-in.
    """
    holders: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in sorted(files):
        holders[content_of(files[file].take_in)].append(file)
    counted: dict[str, FileEntry] = {}
    for content, names in holders.items():
        kept = [name for name in names if _counted(before.get(name), content)]
        holder = (kept or names)[0]
        changed = [
            files[name].take_in for name in names if name not in before or files[name].take_in != before[name].take_in
        ]
        newest = (changed or [files[holder].take_in])[-1]
        for name in names:
            counted[name] = replace(files[name], same_as=None if name == holder else holder, take_in=newest)
    return counted


def content_of(take_in: TakeIn) -> tuple[str, str]:
    """What two files have in common that hold the same: their bytes, their format and their ending."""
    return take_in.content, take_in.format


def _counted(entry: FileEntry | None, content: tuple[str, str]) -> bool:
    return entry is not None and entry.same_as is None and content_of(entry.take_in) == content


def held_contents(files: Mapping[str, FileEntry]) -> set[tuple[str, str]]:
    """Every content that some file holds, with its format."""
    return {content_of(entry.take_in) for entry in files.values()}


def with_take_ins(files: Mapping[str, FileEntry], take_ins: Mapping[tuple[str, str], TakeIn]) -> dict[str, FileEntry]:
    """The files, with another take-in for all that hold the content of one of `take_ins`, which are by content."""
    return {
        file: replace(entry, take_in=take_ins.get(content_of(entry.take_in), entry.take_in))
        for file, entry in files.items()
    }


def events_by_day(files: Mapping[str, FileEntry]) -> dict[date, dict[str, EventFile]]:
    """For each day, the event files that count on it, by the name of their take-in."""
    days: dict[date, dict[str, EventFile]] = defaultdict(dict)
    for entry in files.values():
        if entry.same_as is None:
            for event in entry.take_in.events:
                days[event.day][entry.take_in.name] = event
    return dict(days)


def quarantined_by_day(files: Mapping[str, FileEntry]) -> dict[date, int]:
    """For each day, the rejected lines of the contents that count on it: such a line has no day of its own, and is
    said of each day that its content has.
    """
    quarantined: dict[date, int] = defaultdict(int)
    for entry in files.values():
        if entry.same_as is None:
            for day in {event.day for event in entry.take_in.events}:
                quarantined[day] += entry.take_in.quarantined
    return dict(quarantined)


def days_touched(files: Mapping[str, FileEntry], held_back: Collection[str]) -> frozenset[date]:
    """The days of what held-back files, and files below held-back folders, were made into when they last could be read.

    A file that never could be read touches no day that anybody knows of. A link to nothing may have been a folder.
    """
    return frozenset(held_back_by_day(files, held_back))


def held_back_by_day(files: Mapping[str, FileEntry], held_back: Collection[str]) -> dict[date, set[str]]:
    """For each of these days, which of `held_back` touch it."""
    names = {name.rstrip("/"): name for name in held_back}
    touched: dict[date, set[str]] = defaultdict(set)
    for file, entry in files.items() if names else ():
        for name in (file, *(str(folder) for folder in PurePosixPath(file).parents)):  # the last is ".", all of raw/
            if name in names:
                for event in entry.take_in.events:
                    touched[event.day].add(names[name])
    return touched
