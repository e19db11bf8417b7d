"""Compare what a version publishes with what a recount of its raw contents gives: rollups, day reports, line counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import verify
from pipeline.contract.layout import days_between, last_day_of, month_name, month_of
from pipeline.contract.tables import DAY_LEDGER, FILE_LEDGER, USAGE, Table
from pipeline.ledger import FileEntry, Ledger
from pipeline.recount_usage import MEASURES, Number
from pipeline.run import Run

USAGE_BYTES = 2_000  # of memory that comparing takes for each row, about
TABLES = [*(table.name for table in USAGE), DAY_LEDGER.name, FILE_LEDGER.name]


@dataclass(frozen=True)
class Difference:
    """A number that is published, and what the raw contents make it.

    rollup: the published table. day is None for a month's number, month for a file's. file: of the ledger of files.
    field "rows": how many rows the table holds for this organization, key and model, where every sum is right.
    """

    rollup: str
    field: str
    published: Number
    recounted: Number
    organization_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    day: date | None = None
    month: date | None = None
    file: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "rollup": self.rollup,
            "organization_id": self.organization_id,
            "api_key_id": self.api_key_id,
            "model": self.model,
            "month": self.month and month_name(self.month),
            "day": self.day and str(self.day),
            "file": self.file,
            "field": self.field,
            "published": _as_written(self.field, self.published),
            "recounted": _as_written(self.field, self.recounted),
        }


@dataclass
class Lines:
    """How many lines of a content are requests on each day, rejected, or left out by their format.

    merged: spans of traces that tell of a call of which another span tells too. undecided: spans that may do so.
    whole: all of the content was there to be read.
    """

    accepted: Counter[date] = field(default_factory=Counter)
    quarantined: int = 0
    skipped: int = 0
    merged: int = 0
    undecided: int = 0
    whole: bool = False

    @property
    def total(self) -> int:
        """All lines of the content that are not blank."""
        return self.accepted.total() + self.quarantined + self.skipped


Published = dict[date, dict[Table, list[Path]]]


def published_usage(run: Run, ledger: Ledger, days: Iterable[date]) -> Published:
    """The usage that the version publishes of the months of these days, each file's checksum found right.

    Raises ArtifactDamaged.
    """
    files: Published = {month: {table: [] for table in USAGE} for month in sorted({month_of(day) for day in days})}
    for month, tables in files.items():
        for table, paths in tables.items():
            if file := ledger.publication.files.get((table.name, month)):
                paths.append(run.layout.rollups / file.path)
                verify(run.store, paths[0])
    return files


def differing_usage(
    run: Run, published: Published, compared: frozenset[date], recounted_months: set[date]
) -> Iterator[Difference]:
    """Where the published usage of the compared days, and of months that consist of them, is not the recounted."""
    run.engine.name_arrow("compared_day", pa.table({"day": pa.array(sorted(compared), pa.date32())}))
    for month, tables in published.items():
        if month not in recounted_months and not any(tables.values()):
            continue  # nothing on either side
        for table, paths in tables.items():
            run.engine.name_files(table.name, paths, table)
        whole = compared.issuperset(days_between(month, last_day_of(month)))
        rows = sum(pq.read_metadata(path).num_rows for paths in tables.values() for path in paths)
        parts = 1 + rows * USAGE_BYTES // run.settings.memory_limit
        for part in range(parts):
            for row in run.engine.query("differing_usage", month=month, whole=whole, parts=parts, part=part):
                yield from _differing_numbers(month, *row)


def _differing_numbers(
    month: date,
    rollup: str,
    organization: str,
    api_key: str | None,
    model: str | None,
    day: date | None,
    *numbers: Number,
) -> Iterator[Difference]:
    """What differs in a row of differing_usage: numbers are the published and the recounted in turn."""
    pairs = zip(("rows", *MEASURES), numbers[::2], numbers[1::2], strict=True)
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    for name, published, recounted in differing:
        # That a row is there or not says nothing more than its numbers do.
        if name != "rows" or len(differing) == 1 or published > 1:
            yield Difference(rollup, name, published, recounted, organization, api_key, model, day, month)


def differing_days(ledger: Ledger, compared: Iterable[date], counts: dict[date, Counter[str]]) -> Iterator[Difference]:
    """Where a day's report does not say how its lines were counted."""
    for day in sorted(compared):
        published, recounted = ledger.days.get(day), counts.get(day, Counter())
        for name in _OF_DAY:
            number = getattr(published, name) if published else 0
            if number != recounted[name]:
                yield Difference(DAY_LEDGER.name, name, number, recounted[name], day=day, month=month_of(day))


def differing_lines(entry: FileEntry, recounted: Lines) -> Iterator[Difference]:
    """Where the ledger does not say how many lines of a file are requests, on which days, and how many are none."""
    taken = entry.take_in
    for name, number, right in (
        ("lines", taken.lines, recounted.total),
        ("accepted", taken.accepted, recounted.accepted.total()),
        ("quarantined", taken.quarantined, recounted.quarantined),
        ("skipped", taken.skipped, recounted.skipped),
        ("merged", taken.lines_of("merged"), recounted.merged),
        ("undecided", taken.lines_of("undecided"), recounted.undecided),
    ):
        if number != right:
            yield Difference(FILE_LEDGER.name, name, number, right, file=entry.file)
    published = {event.day: event.accepted for event in taken.events}
    for day in sorted({*published, *recounted.accepted}):
        if (number := published.get(day, 0)) != recounted.accepted[day]:
            yield Difference(
                FILE_LEDGER.name,
                "accepted",
                number,
                recounted.accepted[day],
                day=day,
                file=entry.file,
            )


_OF_DAY = (
    *("accepted", "counted", "duplicate", "conflicting", "disagreeing"),
    *("session", "unpriced", "without_tokens"),
)
_AMOUNTS = ("cost", "synapses", "neurons")


def _as_written(name: str, number: Number) -> int | str:
    """A number for JSON: counts as integers, amounts as strings of their exact decimal."""
    if name not in _AMOUNTS:
        return int(number)
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
