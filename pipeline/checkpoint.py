"""Checkpoints: one file that stands for a long log, so that the log may be cut."""

from __future__ import annotations

import logging
from pathlib import Path

from deltalake.exceptions import DeltaError

from pipeline.contract.published import open_published, panics_as_errors
from pipeline.contract.seam import step
from pipeline.contract.store import Store, StoreError

log = logging.getLogger(__name__)

EVERY = 100  # versions


def shorten_log(store: Store, version: int) -> None:
    """Write a checkpoint when the newest is long ago, and delete the log entries that no version of the last
    month needs.

    Not left to deltalake, which deletes what a checkpoint replaces before that has reached the disk. `version` is
    published: what fails here is logged, and the next run tries again.
    """
    try:
        if version - _newest_checkpoint(store) >= EVERY:
            _write_checkpoint(store)
    except (OSError, DeltaError, StoreError) as error:
        log.warning("the log of published versions could not be shortened: %s; the next run tries again", error)


def _newest_checkpoint(store: Store) -> int:
    """The version of the newest checkpoint, 0 when there is none."""
    versions = [path.name[:20] for path in _checkpoints(store) if path.suffix == ".parquet"]
    return max((int(version) for version in versions if version.isdigit()), default=0)


def _checkpoints(store: Store) -> list[Path]:
    return [found.path for found in store.list(store.layout.log) if ".checkpoint" in found.path.name]


def _write_checkpoint(store: Store) -> None:
    table = open_published(store)
    if table is None:
        return
    step("write a checkpoint")
    folder = store.layout.log
    with panics_as_errors():
        store.tried("writing a checkpoint", folder, table.create_checkpoint)
    for path in _checkpoints(store):
        if path.name.startswith(f"{table.version():020d}"):
            store.sync(path)
    store.sync(folder / "_last_checkpoint")
    store.sync(folder)
    step("cut the log")
    with panics_as_errors():
        store.tried("cutting the log", folder, table.cleanup_metadata)
