"""Checkpoints: one file that stands for a long log, so that the log may be cut."""

from __future__ import annotations

import logging
from pathlib import Path

from deltalake.exceptions import DeltaError

from pipeline import artifacts
from pipeline.contract.published import LOG, open_published, panics_as_errors
from pipeline.seam import step

log = logging.getLogger(__name__)

EVERY = 100  # versions


def shorten_log(rollups: Path, version: int) -> None:
    """Write a checkpoint when the newest is long ago, and delete the log entries that no version of the last
    month needs.

    Not left to deltalake, which deletes what a checkpoint replaces before that has reached the disk. `version` is
    published: what fails here is logged, and the next run tries again.
    """
    try:
        if version - _newest_checkpoint(rollups) >= EVERY:
            _write_checkpoint(rollups)
    except (OSError, DeltaError) as error:
        log.warning("the log of published versions could not be shortened: %s; the next run tries again", error)


def _newest_checkpoint(rollups: Path) -> int:
    """The version of the newest checkpoint, 0 when there is none."""
    versions = [path.name[:20] for path in (rollups / LOG).glob("*.checkpoint*.parquet")]
    return max((int(version) for version in versions if version.isdigit()), default=0)


def _write_checkpoint(rollups: Path) -> None:
    table = open_published(rollups)
    if table is None:
        return
    step("write a checkpoint")
    with panics_as_errors():
        table.create_checkpoint()
    for path in (rollups / LOG).glob(f"{table.version():020d}.checkpoint*"):
        artifacts.sync(path)
    artifacts.sync(rollups / LOG / "_last_checkpoint")
    artifacts.sync(rollups / LOG)
    step("cut the log")
    with panics_as_errors():
        table.cleanup_metadata()
