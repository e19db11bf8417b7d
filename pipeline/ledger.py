"""The ledger: which raw contents a version counts, and how each day's accepted lines were counted.

It is published together with the rollups, in the same commit, so a version says of itself what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from pipeline import artifacts
from pipeline.contract.layout import Layout, month_of
from pipeline.contract.published import (
    NOTHING_PUBLISHED,
    Publication,
    foreign_commits,
    open_published,
    publication_of,
)
from pipeline.contract.seam import step
from pipeline.contract.store import Store
from pipeline.contract.tables import DAY_LEDGER, FILE_LEDGER, Table
from pipeline.errors import ArtifactDamaged, KeytallyError
from pipeline.intake import EventFile, TakeIn, Tally
from pipeline.prices import Demand, Pricing, in_order

PUBLISH_ANEW = (
    "move the folder rollups/ away and run 'keytally rollup' to publish anew from raw/"
    " (without what is no longer there, and without the record of restatements)"
)


@dataclass(frozen=True)
class FileEntry:
    """A raw file as it was last taken in. same_as: the file that counts the same content in its stead."""

    file: str
    signature: str
    same_as: str | None
    take_in: TakeIn

    @property
    def counted_lines(self) -> int:
        """Accepted lines that this file, and not another of the same content, contributes."""
        return 0 if self.same_as else self.take_in.accepted


class RequestName(NamedTuple):
    """What identifies a request within its day."""

    organization_id: str
    request_id: str


@dataclass(frozen=True)
class DayEntry:
    """A published day: what it was made from, in a run started at `as_of`, and how its accepted lines were counted.

    unpriced: counted requests of which no cost is known; without_tokens: those of them whose log has no token count.
    disagreeing: copies that differ from the one that counts in a billed value. pricing: None where it asks for no
    prices. currency: the deployment's, None where that was not written down yet.
    """

    day: date
    fingerprint: str
    artifact: str
    as_of: datetime
    accepted: int
    counted: int
    duplicate: int
    conflicting: int
    session: int
    unpriced: int = 0
    without_tokens: int = 0
    disagreeing: int = 0
    disagreement: RequestName | None = None
    pricing: Pricing | None = None
    currency: str | None = None

    def path_in(self, layout: Layout) -> Path:
        return layout.daily_of(self.day) / self.artifact


@dataclass(frozen=True)
class Ledger:
    """What a version was made from, and the version."""

    publication: Publication
    files: Mapping[str, FileEntry]
    days: Mapping[date, DayEntry]


def newest_publication(store: Store) -> Publication:
    """What the newest version publishes; version 0 where nothing was published. Raises as `read_ledger`."""
    step("open the table")
    try:
        table = open_published(store)
        return publication_of(table) if table else NOTHING_PUBLISHED
    except (DeltaError, ValueError, OSError) as error:
        if foreign := _foreign(store):
            raise KeytallyError(foreign) from error
        raise KeytallyError(
            f"the published table cannot be read ({str(error).splitlines()[0]}); restore rollups/_delta_log from a"
            f" copy, or the rights to it, or {PUBLISH_ANEW}"
        ) from error


def _foreign(store: Store) -> str | None:
    """A sentence on the newest entries of the log, where another program wrote them; None where it is keytally's."""
    try:
        foreign = foreign_commits(store)
    except OSError:
        return None
    if not foreign:
        return None
    which = ", ".join(f"{commit.version} ({commit.by})" for commit in foreign)
    entries = " and ".join(store.name_of(store.layout.log_entry(commit.version)) for commit in foreign)
    return (
        f"the published table cannot be read: another program than keytally wrote to it, version {which};"
        f" move {entries} away, which loses nothing of what keytally published, and keep that program from writing here"
    )


def read_ledger(store: Store) -> Ledger:
    """The ledger of the newest version; an empty one where nothing was published.

    Raises KeytallyError when there is a published version that cannot be read, StoreError.
    """
    publication = newest_publication(store)
    files = [_file_entry(row) for row in _rows(store, publication, FILE_LEDGER)]
    days = [_day_entry(row) for row in _rows(store, publication, DAY_LEDGER)]
    return Ledger(publication, {entry.file: entry for entry in files}, {entry.day: entry for entry in days})


def _rows(store: Store, publication: Publication, table: Table) -> Iterable[dict[str, Any]]:
    for (rollup, _), published in sorted(publication.files.items(), key=lambda item: item[1].path):
        if rollup == table.name:
            try:
                opened = artifacts.verified_for_arrow(store, store.layout.rollups / published.path)
            except ArtifactDamaged as damage:
                raise KeytallyError(
                    f"the ledger cannot be read: {damage.artifact} {damage.what}; restore that file from a copy, or"
                    f" the rights to it, or {PUBLISH_ANEW}"
                ) from damage
            with opened as file:
                yield from pq.read_table(file, schema=table.arrow_schema, partitioning=None).to_pylist()


def _file_entry(row: dict[str, Any]) -> FileEntry:
    take_in = TakeIn(
        name=row["take_in"],
        content=row["content"],
        format=row["format"],
        rule=row["rule"],
        taken_at=row["taken_at"],
        lines=row["lines"],
        accepted=row["accepted"],
        quarantined=row["quarantined"],
        heals_at=row["heals_at"],
        rejected=row["rejected"],
        events=tuple(EventFile(**event) for event in row["events"]),
        skipped=row["skipped"] or 0,  # a ledger of an older release has neither
        tally=tuple(Tally(**tally) for tally in row["tally"] or ()),
        size=int(row["signature"].partition(":")[0]),
    )
    return FileEntry(row["file"], row["signature"], row["same_as"], take_in)


def _day_entry(row: dict[str, Any]) -> DayEntry:
    counts = {name: row[name] or 0 for name in ("unpriced", "without_tokens", "disagreeing")}  # added by later releases
    disagreement = row["disagreement"] and RequestName(**row["disagreement"])
    return DayEntry(**{**row, **counts, "disagreement": disagreement, "pricing": _pricing(row["pricing"])})


def _pricing(found: dict[str, Any] | None) -> Pricing | None:
    if found is None:
        return None
    asked = [found.pop(name) for name in ("models", "units", "currencies")]
    return Pricing(**found, demand=None if asked[0] is None else Demand(*map(frozenset, asked)))


def _pricing_row(pricing: Pricing | None) -> dict[str, Any] | None:
    if pricing is None:
        return None
    row = dict(vars(pricing))
    demand = row.pop("demand")
    return {**row, **({name: in_order(asked) for name, asked in vars(demand).items()} if demand else {})}


def write_file_ledger(files: Iterable[FileEntry], path: Path) -> None:
    """Write the ledger of files as one Parquet file, in order of path."""
    rows = [
        {
            "file": entry.file,
            "format": entry.take_in.format,
            "rule": entry.take_in.rule,
            "signature": entry.signature,
            "content": entry.take_in.content,
            "take_in": entry.take_in.name,
            "taken_at": entry.take_in.taken_at,
            "lines": entry.take_in.lines,
            "accepted": entry.take_in.accepted,
            "quarantined": entry.take_in.quarantined,
            "same_as": entry.same_as,
            "heals_at": entry.take_in.heals_at,
            "rejected": entry.take_in.rejected,
            "events": [vars(event) for event in entry.take_in.events],
            "skipped": entry.take_in.skipped,
            "tally": [tally._asdict() for tally in entry.take_in.tally],
        }
        for entry in sorted(files, key=lambda entry: entry.file)
    ]
    _write(rows, FILE_LEDGER, path)


def write_day_ledger(days: Iterable[DayEntry], month: date, path: Path) -> None:
    """Write the ledger of a month's days as one Parquet file, in order of day."""
    rows = [
        {
            **vars(entry),
            "disagreement": entry.disagreement and entry.disagreement._asdict(),
            "pricing": _pricing_row(entry.pricing),
        }
        for entry in sorted(days, key=lambda entry: entry.day)
        if month_of(entry.day) == month
    ]
    _write(rows, DAY_LEDGER, path)


def _write(rows: list[dict[str, Any]], table: Table, path: Path) -> None:
    step("write a file in scratch")
    pq.write_table(pa.Table.from_pylist(rows, schema=table.arrow_schema), path, compression="zstd")
