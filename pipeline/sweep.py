"""Sweeping: what no version needs any more is deleted, after a grace longer than any run and any reader."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

from deltalake.exceptions import DeltaError

from pipeline.contract.layout import Layout
from pipeline.contract.published import NOTHING_PUBLISHED, Publication, open_published, publication_of
from pipeline.contract.seam import step
from pipeline.contract.store import Found, Store, StoreError
from pipeline.ledger import DayEntry, FileEntry, Ledger
from pipeline.publish import Partition
from pipeline.run import Run

log = logging.getLogger(__name__)

# A run or a reader would have to hold on to a version for a week to miss a file.
GRACE = timedelta(days=7)


def start_grace(
    run: Run,
    before: Ledger,
    files: Mapping[str, FileEntry],
    days: Mapping[date, DayEntry],
    partitions: Sequence[Partition],
) -> None:
    """Start the grace of what a version made of `files`, `days` and `partitions` will supersede of the one before.

    Ahead of its commit: a run that dies right behind it must not leave files that look superseded for long.
    """
    now = run.clock().timestamp()
    layout = run.layout
    other_files = [entry for file, entry in before.files.items() if files.get(file) != entry]
    other_days = [entry for day, entry in before.days.items() if days.get(day) != entry]
    superseded = {*_artifacts(layout, other_files, other_days)}
    superseded -= {*_artifacts(layout, files.values(), days.values())}
    replaced = [before.publication.files.get((partition.table.name, partition.month)) for partition in partitions]
    superseded |= {layout.rollups / file.path for file in replaced if file}
    run.store.start_grace(sorted(superseded), now)


def start_grace_of_all(run: Run, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry]) -> None:
    """Start the grace of every artifact that a version made of `files` and `days` does not need.

    The version that named them was lost, so that nobody can say for how long they have not been needed; until the grace
    is over it may be put back.
    """
    layout = run.layout
    folders = (layout.events, layout.daily, layout.rejected, layout.books)
    there = {found.path for folder in folders for found in _ours(run.store, folder)}
    needed = {*_artifacts(layout, files.values(), days.values())}
    run.store.start_grace(sorted(there - needed), run.clock().timestamp())


def sweep(run: Run, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry]) -> None:
    """Delete superseded artifacts and published files whose grace is over, and what killed commits left in the log.

    The newest version, made of `files` and `days`, is published: what cannot be deleted now is no failure of its run.
    """
    try:
        _sweep(run, files, days)
    except (OSError, ValueError, DeltaError, StoreError) as error:
        log.warning("not everything superseded could be deleted: %s; the next run tries again", error)


def _sweep(run: Run, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry]) -> None:
    layout = run.layout
    in_grace = (run.clock() - GRACE).timestamp()
    newest = _newest(run.store)
    needed = {*_artifacts(layout, files.values(), days.values()), *_published(layout, newest)}
    needed |= {layout.books / name for name in run.prices.kept.values()}  # the next day is priced by them
    # Not Delta's vacuum: it writes two more versions to say what it deleted, although they publish nothing.
    for folder in (layout.events, layout.daily, layout.rejected, layout.buckets, layout.books, layout.rollups):
        for found in _ours(run.store, folder):
            if found.path in needed or found.path.parent == layout.log:
                continue
            if found.since < in_grace and run.store.grace_started(found.path) < in_grace:
                step("delete a superseded file")
                run.store.delete_found(found)
    run.store.forget_graces(in_grace)
    sweep_log(run.store, newest.version)


def sweep_log(store: Store, version: int) -> None:
    """Delete what killed commits left beside the log entries up to `version`, the newest."""
    # deltalake writes an entry beside its name, with a # and a number behind it. Of a version that is there already,
    # such a file is what a killed commit left, or that of a commit which is about to be refused.
    for found in store.list(store.layout.log):
        entry = found.path.name[:20]
        if "#" in found.path.name and (not entry.isdigit() or int(entry) <= version):
            step("delete an unfinished log entry")
            store.delete(found.path)


def _ours(store: Store, folder: Path) -> Iterable[Found]:
    """The files below a folder that are called as ours are."""
    suffix = ".csv" if folder == store.layout.books else ".parquet"
    return (found for found in store.list(folder) if found.path.suffix == suffix)


def _newest(store: Store) -> Publication:
    table = open_published(store)
    return publication_of(table) if table else NOTHING_PUBLISHED


def _published(layout: Layout, publication: Publication) -> Iterable[Path]:
    for file in publication.files.values():
        yield layout.rollups / file.path


def _artifacts(layout: Layout, files: Iterable[FileEntry], days: Iterable[DayEntry]) -> Iterable[Path]:
    for entry in files:
        for event in entry.take_in.events:
            yield event.path_in(layout)
        if entry.take_in.rejected:
            yield layout.rejected / entry.take_in.rejected
    for day in days:
        yield day.path_in(layout)
        if day.pricing:
            yield from (layout.books / name for name in (day.pricing.book, day.pricing.rates) if name)
