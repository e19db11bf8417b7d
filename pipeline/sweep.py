"""Sweeping: what no version needs any more is deleted, after a grace longer than any run and any reader."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path

from deltalake.exceptions import DeltaError

from pipeline.contract.layout import Layout
from pipeline.contract.published import LOG, NOTHING_PUBLISHED, Publication, open_published, publication_of
from pipeline.ledger import DayEntry, FileEntry, Ledger
from pipeline.run import Run

log = logging.getLogger(__name__)

# A run or a reader would have to hold on to a version for a week to miss a file.
GRACE = timedelta(days=7)


def sweep(run: Run, before: Ledger, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry]) -> None:
    """Delete superseded artifacts and published files whose grace is over; start the grace of those superseded now.

    before: the ledger that the newest version, made of `files` and `days`, superseded. That version is published:
    what cannot be deleted now is no failure of its run.
    """
    try:
        _sweep(run, before, files, days)
    except (OSError, ValueError, DeltaError) as error:
        log.warning("not everything superseded could be deleted: %s; the next run tries again", error)


def _sweep(run: Run, before: Ledger, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry]) -> None:
    layout = run.layout
    now = run.clock().timestamp()
    needed = {*_artifacts(layout, files.values(), days.values()), *_published(layout, _newest(layout))}
    superseded = {*_artifacts(layout, before.files.values(), before.days.values())} - needed
    superseded |= {*_published(layout, before.publication)} - needed
    for path in superseded:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (now, now))
    # Not Delta's vacuum: it writes two more versions to say what it deleted, although they publish nothing.
    for folder in (layout.events, layout.daily, layout.rejected, layout.rollups):
        for path in folder.rglob("*.parquet"):
            with contextlib.suppress(FileNotFoundError):
                if path not in needed and LOG not in path.parts and now - path.stat().st_mtime > GRACE.total_seconds():
                    path.unlink()


def _newest(layout: Layout) -> Publication:
    table = open_published(layout.rollups)
    return publication_of(table) if table else NOTHING_PUBLISHED


def _published(layout: Layout, publication: Publication) -> Iterable[Path]:
    for file in publication.files.values():
        yield layout.rollups / file.path


def _artifacts(layout: Layout, files: Iterable[FileEntry], days: Iterable[DayEntry]) -> Iterable[Path]:
    for entry in files:
        for event in entry.take_in.events:
            yield layout.events_of(event.day) / event.artifact
        if entry.take_in.rejected:
            yield layout.rejected / entry.take_in.rejected
    for day in days:
        yield layout.daily_of(day.day) / day.artifact
