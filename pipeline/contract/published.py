"""What the current version publishes: which file holds which rollup of which month."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipeline.contract.last_run import LastRun, instant
from pipeline.contract.layout import is_in_partition
from pipeline.contract.store import Store

APPLICATION = "keytally"  # names our transactions in the Delta log
CONTENTS = "keytally.contents"  # names the transaction that carries digest_of a version's files
RUN_STARTED = "keytally.run_started"  # in a commit: when its run started
CURRENCY = "keytally.currency"  # in a commit: what all costs are in
FINDINGS = "keytally.findings"  # in a commit: the days of which its run held something back


@dataclass(frozen=True)
class PublishedFile:
    """One published Parquet file. Its name ends in its checksum, and its bytes never change."""

    rollup: str
    month: date | None
    path: str  # relative to the Delta table
    size: int  # bytes
    published_at: datetime  # UTC; when the publication that brought it was committed


@dataclass(frozen=True)
class Publication:
    """One version of everything published. Version 0 is a table in which nothing has been published yet."""

    version: int
    generation: int  # counts our commits; two commits cannot both follow one generation
    files: Mapping[tuple[str, date | None], PublishedFile]


NOTHING_PUBLISHED = Publication(version=0, generation=0, files={})


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises DeltaError where deltalake panics over a log that is damaged, as over a changed bit in a checkpoint.

    A panic is no Exception: it would end a command without a word, and a server's look for a newer version for good.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # nothing exports it
            raise
        raise DeltaError(f"the log is damaged: {error}") from error


def open_published(store: Store, version: int | None = None) -> DeltaTable | None:
    """A handle on the published table at its newest version, or at another; None where nothing was ever published.

    Raises deltalake.exceptions.DeltaError or OSError when there is a table but it cannot be read, StoreError.
    """
    if not any(found.path.suffix == ".json" for found in store.list(store.layout.log)):
        return None
    uri, options = store.table
    with panics_as_errors():
        return store.tried(
            "opening the table",
            store.layout.log,
            lambda: DeltaTable(uri, version=version, storage_options=dict(options)),
        )


def update_published(store: Store, table: DeltaTable) -> None:
    """Move a handle to the newest version. Raises as `open_published`; the handle is of no use then."""
    with panics_as_errors():
        store.tried("reading the log", store.layout.log, table.update_incremental)


def publication_of(table: DeltaTable) -> Publication:
    """What the handle's version publishes.

    Raises ValueError when a rollup's month would be held by two files, for no reader may sum them; and when the files
    are not those that were committed: a log entry that is cut at the end of a line still reads as a log entry.
    """
    files: dict[tuple[str, date | None], PublishedFile] = {}
    with panics_as_errors():
        # Not pa.table(): it imports pandas, only to rule out that it was given a data frame.
        actions = pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=True)).read_all().to_pylist()
        generation = table.transaction_version(APPLICATION) or 0
        contents = table.transaction_version(CONTENTS)
    for added in actions:
        month = added.get("partition.month")
        file = PublishedFile(
            rollup=added["partition.rollup"],
            month=date.fromisoformat(f"{month}-01") if month else None,
            path=added["path"],
            size=added["size_bytes"],
            published_at=datetime.fromtimestamp(added["modification_time"] / 1000, UTC),
        )
        if not is_in_partition(file.path, file.rollup, file.month):
            raise ValueError(f"the log is damaged: it names {file.path} as {file.rollup} of {month}")
        if (file.rollup, file.month) in files:
            raise ValueError(f"two published files hold {file.rollup} of {month}")
        files[file.rollup, file.month] = file
    if (files and not generation) or contents not in (None, digest_of(file.path for file in files.values())):
        raise ValueError(
            f"the log of version {table.version()} is damaged: its files are not those that were committed"
        )
    return Publication(table.version(), generation, files)


def digest_of(paths: Iterable[str]) -> int:
    """A number that stands for a set of published files: 63 bits of the SHA-256 of their paths."""
    return int.from_bytes(hashlib.sha256("\0".join(sorted(paths)).encode()).digest()[:8]) >> 1


def notes_of(store: Store, version: int) -> Mapping[str, str]:
    """What the run that committed `version` wrote into its commit; empty where the log does not say.

    Raises StoreError.
    """
    # Not DeltaTable.history(): it lists the newest commits there are, and numbers them from the handle's version.
    try:
        with store.open(store.layout.log_entry(version)) as entry:
            actions = [json.loads(line) for line in entry]
        return next(dict(action["commitInfo"]) for action in actions if "commitInfo" in action)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration):
        return {}


@dataclass(frozen=True)
class ForeignCommit:
    """An entry of the log that is not keytally's. by: what the entry says of who made it."""

    version: int
    by: str


def foreign_commits(store: Store) -> list[ForeignCommit]:
    """Return the newest entries of the log that keytally did not write, the newest first.

    Raises OSError, StoreError.
    """
    versions = {
        int(found.path.stem)
        for found in store.list(store.layout.log)
        if found.path.suffix == ".json" and found.path.stem.isdigit()
    }
    foreign = []
    for version in sorted(versions - {0}, reverse=True):  # the first makes the table
        try:
            with store.open(store.layout.log_entry(version)) as entry:
                actions = [json.loads(line) for line in entry]
            if any(action.get("txn", {}).get("appId") == APPLICATION for action in actions):
                break
            info: dict[str, object] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
        except (ValueError, AttributeError, RecursionError):  # it is damaged, whoever wrote it
            break
        if not info or any(name.startswith("keytally.") for name in info):  # ours, and cut at the end of a line
            break
        said = [str(info[name]) for name in ("operation", "engineInfo", "clientVersion") if info.get(name)]
        by = " by ".join(said[:2]) or "it does not say by whom"
        foreign.append(ForeignCommit(version, "".join(letter if letter.isprintable() else " " for letter in by)[:100]))
    return foreign


def run_of(store: Store, version: int) -> LastRun | None:
    """The run that committed `version`, as the commit tells of it: not which files it held back, but their days.

    None where the log does not say. Raises StoreError.
    """
    said = notes_of(store, version)
    try:
        findings = frozenset(date.fromisoformat(day) for day in said[FINDINGS].split())
        return LastRun(instant(said[RUN_STARTED]), version, {}, findings, currency=said.get(CURRENCY))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None
