"""Publishing: the only writer of rollups/. One commit for everything a run changed."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, CommitProperties, PostCommitHookProperties, RemoveAction, Transaction

from pipeline import artifacts
from pipeline.checkpoint import shorten_log
from pipeline.checks import check_schema
from pipeline.contract.layout import month_name, rollup_folder
from pipeline.contract.published import (
    APPLICATION,
    CONTENTS,
    CURRENCY,
    RUN_STARTED,
    Publication,
    PublishedFile,
    digest_of,
    open_published,
    panics_as_errors,
)
from pipeline.contract.seam import step
from pipeline.contract.store import Store
from pipeline.contract.tables import Table, published_schema
from pipeline.errors import CommitRefused, NotDurable
from pipeline.run import Run

log = logging.getLogger(__name__)

PARTITIONS = ["rollup", "month"]
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)  # see checkpoint.py


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
    store = run.store
    table, before = _widened(store, _open_or_create(store, before), before)
    # Delta keeps milliseconds. The files carry the moment too: it outlives the log, and answers are dated by it.
    committed_at = int(run.clock().timestamp() * 1000)
    superseded = [before.files.get((partition.table.name, partition.month)) for partition in partitions]
    removed = [_remove(file, committed_at) for file in superseded if file]
    added = [_add(store, partition, committed_at) for partition in partitions]
    kept = {file.path for file in before.files.values()} - {action.path for action in removed}
    contents = digest_of([*kept, *(action.path for action in added)])
    _sync_folders(store, added)
    version, commit_name = before.version + 1, uuid.uuid4().hex  # another one for each attempt of a run

    def commit() -> None:
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
                            CURRENCY: run.settings.currency,
                            **notes,
                        },
                        # Delta would rebase a commit that touches other files than the one it lost against. Two runs
                        # that first publish a month would both be taken, and every request of it count twice. A
                        # transaction of one application and one number is taken once; to retry would be to ask in vain.
                        max_commit_retries=0,
                        app_transactions=[
                            Transaction(APPLICATION, before.generation + 1),
                            Transaction(CONTENTS, contents),
                        ],
                    ),
                    post_commithook_properties=_NO_HOOKS,
                )
        except (DeltaError, OSError) as error:
            # The commit may stand although the answer to it was lost, or what deltalake did behind it failed.
            stands = _commit_of(store, version)
            if stands == commit_name:
                return
            if isinstance(error, CommitFailedError) or stands is not None:
                raise CommitRefused(before.version) from error
            raise

    store.check_commits()
    step("commit")
    store.tried("committing", store.layout.log_entry(version), commit)
    _check_that_it_stands(store, version, commit_name)
    make_durable(store, version)
    shorten_log(store, version)
    # Once more: another commit may have overwritten ours a moment later.
    _check_that_it_stands(store, version, commit_name)
    return version


def _check_that_it_stands(store: Store, version: int, commit_name: str) -> None:
    """Raise CommitRefused if the log holds the commit of another run in the place of ours.

    Some stores check the condition of a PUT before they write: of two commits at one moment both are told that they
    succeeded, and one of them is overwritten.
    """
    if (stands := _commit_of(store, version)) != commit_name:
        log.warning(
            "version %d is %s in the log, although the store said that our commit succeeded",
            version,
            "not there" if stands is None else "the commit of another run",
        )
        raise CommitRefused(version - 1)


def _open_or_create(store: Store, before: Publication) -> DeltaTable:
    """A handle at the version `before`: what others commit from now on collides with what it commits."""
    if open_published(store) is None:
        store.check_commits()
        store.make_folder(store.layout.log)
        step("make the table")
        store.tried("making the table", store.layout.log, lambda: _create(store, before))
    table = open_published(store, before.version)
    if table is None:
        raise CommitRefused(before.version)  # it was moved away at this moment
    return table


def _widened(store: Store, table: DeltaTable, before: Publication) -> tuple[DeltaTable, Publication]:
    """The table with every column that is published, in a version of its own where it lacked some; and that version.

    Its readers and ours go on as before: a file without a column holds nulls there. In one commit with what replaces
    files deltalake would not do it.
    """
    known = {field.name for field in table.schema().fields}
    lacking = [field for field in Schema.from_arrow(published_schema()).fields if field.name not in known]
    if not lacking:
        return table, before
    widened = replace(before, version=before.version + 1, generation=before.generation + 1)
    properties = CommitProperties(
        max_commit_retries=0, app_transactions=[Transaction(APPLICATION, widened.generation)]
    )  # as any other version: of two commits that follow one generation only one is taken

    def widen() -> None:
        table.alter.add_columns(lacking, commit_properties=properties, post_commithook_properties=_NO_HOOKS)

    step("widen the table")
    try:
        store.tried("widening the table", store.layout.log_entry(widened.version), widen)
    except (DeltaError, OSError) as error:
        if isinstance(error, CommitFailedError) or _commit_of(store, widened.version) is not None:
            raise CommitRefused(before.version) from error
        raise
    make_durable(store, widened.version)
    return _open_or_create(store, widened), widened


def _create(store: Store, before: Publication) -> None:
    uri, options = store.table
    try:
        DeltaTable.create(
            uri,
            published_schema(),
            partition_by=PARTITIONS,
            name=APPLICATION,
            description="Usage rollups and their ledger. Rows of different rollups repeat the same requests: "
            "always sum within one value of the column rollup.",
            storage_options=dict(options),
            commit_properties=CommitProperties(
                max_commit_retries=0
            ),  # or another's would be made anew, a version later
        )
    except (DeltaError, OSError) as error:
        if open_published(store) is None:
            raise
        raise CommitRefused(before.version) from error  # another run created it at this moment


def _add(store: Store, partition: Partition, committed_at: int) -> AddAction:
    folder = rollup_folder(partition.table.name, partition.month)
    size, statistics = partition.path.stat().st_size, _statistics(partition.path)
    name = artifacts.keep(store, partition.path, store.layout.rollups / folder, "part")
    return AddAction(
        path=f"{folder}/{name}",
        size=size,
        partition_values={
            "rollup": partition.table.name,
            "month": None if partition.month is None else month_name(partition.month),
        },
        modification_time=committed_at,
        data_change=True,
        stats=statistics,
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


def _commit_of(store: Store, version: int) -> str | None:
    """What the run that committed a version called its commit; None where there is no such version."""
    try:
        with store.open(store.layout.log_entry(version)) as entry:
            named = re.search(rb'"keytally\.commit":"([0-9a-f]*)"', entry.read())
    except FileNotFoundError:
        return None
    return named[1].decode() if named else ""


def _sync_folders(store: Store, added: Sequence[AddAction]) -> None:
    """Bring the names of the folders that hold the files to the disk, whoever made them."""
    rollups = store.layout.rollups
    paths = [rollups / action.path for action in added]
    folders = {folder for path in paths for folder in path.parents if folder.is_relative_to(rollups)}
    for folder in sorted(folders):
        store.sync(folder)


def make_durable(store: Store, version: int) -> None:
    """Bring a version to the disk; its files are there already. deltalake leaves that to the operating system.

    Also the version before it: the run that made it may have died before it did this itself. Raises NotDurable.
    """
    layout = store.layout
    try:
        for entry in (layout.log_entry(version - 1), layout.log_entry(version)):
            with suppress(FileNotFoundError):  # cleaned up, behind a checkpoint
                store.sync(entry)
        for folder in (layout.log, layout.rollups, layout.root):
            store.sync(folder)
    except OSError as error:
        raise NotDurable(version, error.strerror or str(error)) from error
