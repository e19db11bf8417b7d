"""Publishing: the only writer of rollups/. One commit for everything a run changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, CommitProperties, PostCommitHookProperties, RemoveAction, Transaction

from pipeline import artifacts
from pipeline.checkpoint import shorten_log
from pipeline.checks import check_schema
from pipeline.contract.layout import month_name, rollup_folder
from pipeline.contract.published import (
    APPLICATION,
    CONTENTS,
    LOG,
    RUN_STARTED,
    Publication,
    PublishedFile,
    digest_of,
    log_entry,
    open_published,
    panics_as_errors,
)
from pipeline.contract.tables import Table, published_schema
from pipeline.errors import CommitRefused, NotDurable
from pipeline.run import Run
from pipeline.seam import step

PARTITIONS = ["rollup", "month"]


@dataclass(frozen=True)
class Partition:
    """A partition's new file: what takes the place of what this rollup published for this month."""

    table: Table
    month: date | None
    path: Path


def publish(run: Run, before: Publication, partitions: Sequence[Partition], notes: Mapping[str, str]) -> int:
    """Put all the partitions in the place of those of version `before`, in one commit; the new version.

    Raises CheckFailed when a file has not its table's columns, CommitRefused when another run published since,
    NotDurable when it is published, but a power cut may still take it back.
    """
    for partition in partitions:
        check_schema(partition.path, partition.table)
    table = _open_or_create(run.layout.rollups, before)
    # Delta keeps milliseconds. The files carry the moment too: it outlives the log, and answers are dated by it.
    committed_at = int(run.clock().timestamp() * 1000)
    superseded = [before.files.get((partition.table.name, partition.month)) for partition in partitions]
    removed = [_remove(file, committed_at) for file in superseded if file]
    added = [_add(run.layout.rollups, partition, committed_at) for partition in partitions]
    kept = {file.path for file in before.files.values()} - {action.path for action in removed}
    contents = digest_of([*kept, *(action.path for action in added)])
    _sync_folders(run.layout.rollups, added)
    commit_name = run.scratch.name
    step("commit")
    try:
        with panics_as_errors():
            table.create_write_transaction(
                [*removed, *added],
                mode="append",
                schema=published_schema(),
                partition_by=PARTITIONS,
                commit_properties=CommitProperties(
                    custom_metadata={
                        "keytally.commit": commit_name,
                        RUN_STARTED: run.started.isoformat(),
                        **notes,
                    },
                    # Delta would rebase a commit that touches other files than the one it lost against. Two runs that
                    # first publish a month would both be taken, and every request of it count twice. A transaction of
                    # one application and one number is taken once; to retry would be to ask in vain.
                    max_commit_retries=0,
                    app_transactions=[Transaction(APPLICATION, before.generation + 1), Transaction(CONTENTS, contents)],
                ),
                post_commithook_properties=PostCommitHookProperties(
                    create_checkpoint=False, cleanup_expired_logs=False
                ),
            )
    except (DeltaError, OSError) as error:
        # The commit may stand although what deltalake did behind it failed.
        if not _is_ours(run.layout.rollups, before.version + 1, commit_name):
            if isinstance(error, CommitFailedError) or log_entry(run.layout.rollups, before.version + 1).exists():
                raise CommitRefused(before.version) from error
            raise
    make_durable(run.layout.rollups, before.version + 1)
    shorten_log(run.layout.rollups, before.version + 1)
    return before.version + 1


def _open_or_create(rollups: Path, before: Publication) -> DeltaTable:
    """A handle at the version `before`: what others commit from now on collides with what it commits."""
    if open_published(rollups) is None:
        artifacts.make_folder(rollups / LOG)
        step("make the table")
        try:
            DeltaTable.create(
                rollups,
                published_schema(),
                partition_by=PARTITIONS,
                name=APPLICATION,
                description="Usage rollups and their ledger. Rows of different rollups repeat the same requests: "
                "always sum within one value of the column rollup.",
            )
        except (DeltaError, OSError) as error:
            if open_published(rollups) is None:
                raise
            raise CommitRefused(before.version) from error  # another run created it at this moment
    table = open_published(rollups, before.version)
    if table is None:
        raise CommitRefused(before.version)  # it was moved away at this moment
    return table


def _add(rollups: Path, partition: Partition, committed_at: int) -> AddAction:
    name = artifacts.keep(partition.path, rollups / rollup_folder(partition.table.name, partition.month), "part")
    path = f"{rollup_folder(partition.table.name, partition.month)}/{name}"
    return AddAction(
        path=path,
        size=(rollups / path).stat().st_size,
        partition_values={
            "rollup": partition.table.name,
            "month": None if partition.month is None else month_name(partition.month),
        },
        modification_time=committed_at,
        data_change=True,
        stats=_statistics(rollups / path),
    )


def _statistics(path: Path) -> str:
    """Delta's statistics of a file, by which other engines skip it: its rows, and its first and last organization."""
    metadata = pq.read_metadata(path)
    statistics: dict[str, object] = {"numRecords": metadata.num_rows}
    names = metadata.schema.to_arrow_schema().names
    if "organization_id" in names and metadata.num_rows:
        position = names.index("organization_id")
        chunks = [metadata.row_group(group).column(position).statistics for group in range(metadata.num_row_groups)]
        statistics["minValues"] = {"organization_id": min(chunk.min for chunk in chunks)}
        statistics["maxValues"] = {"organization_id": max(chunk.max for chunk in chunks)}
    return json.dumps(statistics)


def _remove(file: PublishedFile, committed_at: int) -> RemoveAction:
    return RemoveAction(
        path=file.path,
        data_change=True,
        deletion_timestamp=committed_at,
        size=file.size,
        partition_values={"rollup": file.rollup, "month": None if file.month is None else month_name(file.month)},
    )


def _is_ours(rollups: Path, version: int, commit_name: str) -> bool:
    try:
        return f'"keytally.commit":"{commit_name}"' in log_entry(rollups, version).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def _sync_folders(rollups: Path, added: Sequence[AddAction]) -> None:
    """Bring the names of the folders that hold the files to the disk, whoever made them."""
    paths = [rollups / action.path for action in added]
    folders = {folder for path in paths for folder in path.parents if folder.is_relative_to(rollups)}
    for folder in sorted(folders):
        artifacts.sync(folder)


def make_durable(rollups: Path, version: int) -> None:
    """Bring a version to the disk; its files are there already. deltalake leaves that to the operating system.

    Also the version before it: the run that made it may have died before it did this itself. Raises NotDurable.
    """
    try:
        for entry in (log_entry(rollups, version - 1), log_entry(rollups, version)):
            with suppress(FileNotFoundError):  # cleaned up, behind a checkpoint
                artifacts.sync(entry)
        for folder in (rollups / LOG, rollups, rollups.parent):
            artifacts.sync(folder)
    except OSError as error:
        raise NotDurable(version, error.strerror or str(error)) from error
