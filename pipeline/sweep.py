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
from pipeline.ledger import DayEntry, FileEntry, Ledger
from pipeline.publish import sweep_rollups
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
    except (OSError, DeltaError) as error:
        log.warning("not everything superseded could be deleted: %s; the next run tries again", error)


def _sweep(run: Run, before: Ledger, files: Mapping[str, FileEntry], days: Mapping[date, DayEntry]) -> None:
    needed = set(_artifacts(run.layout, files.values(), days.values()))
    now = run.clock().timestamp()
    for superseded in set(_artifacts(run.layout, before.files.values(), before.days.values())) - needed:
        with contextlib.suppress(FileNotFoundError):
            os.utime(superseded, (now, now))
    for folder in (run.layout.events, run.layout.daily, run.layout.rejected):
        for artifact in folder.rglob("*.parquet"):
            with contextlib.suppress(FileNotFoundError):
                if artifact not in needed and now - artifact.stat().st_mtime > GRACE.total_seconds():
                    artifact.unlink()
    sweep_rollups(run.layout.rollups, GRACE)


def _artifacts(layout: Layout, files: Iterable[FileEntry], days: Iterable[DayEntry]) -> Iterable[Path]:
    for entry in files:
        for event in entry.take_in.events:
            yield layout.events_of(event.day) / event.artifact
        if entry.take_in.rejected:
            yield layout.rejected / entry.take_in.rejected
    for day in days:
        yield layout.daily_of(day.day) / day.artifact
