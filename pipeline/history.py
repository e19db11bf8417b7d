"""Restatements: which published days changed after they were over, for whom, from what to what, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import verify
from pipeline.contents import events_by_day
from pipeline.contract.layout import Layout, month_of
from pipeline.contract.published import PublishedFile
from pipeline.contract.tables import ORGANIZATION_DAY, RESTATEMENT
from pipeline.contract.wording import instant_text
from pipeline.ledger import DayEntry, FileEntry, read_ledger
from pipeline.run import Run
from pipeline.seam import step

MOST_FILES = 20


@dataclass(frozen=True)
class Cause:
    """Why a day changed, and the raw files that brought it about."""

    cause: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Restatement:
    """One organization's day that changed after it was over. Amounts are exact."""

    day: date
    organization_id: str
    version: int
    run_started: datetime
    cause: str
    files: list[str]
    requests_before: int
    requests_after: int
    cost_before: Decimal
    cost_after: Decimal
    synapses_before: Decimal
    synapses_after: Decimal
    neurons_before: Decimal
    neurons_after: Decimal

    def as_json(self) -> dict[str, Any]:
        """Plain values; amounts as strings, which keep every digit."""
        return {
            name: str(value) if isinstance(value, (Decimal, date)) else value for name, value in vars(self).items()
        } | {"run_started": instant_text(self.run_started)}


def was_over(entry: DayEntry, confirmed_at: datetime | None) -> bool:
    """Whether the day had ended when the newest run began that published or confirmed it. Before, a day just grows.

    confirmed_at: start of the newest run on record.
    """
    newest = max(entry.as_of, confirmed_at or entry.as_of)
    return newest >= datetime.combine(entry.day + timedelta(days=1), time(), UTC)


def cause_of(day: date, before: Mapping[str, FileEntry], after: Mapping[str, FileEntry]) -> Cause:
    """Why the day's inputs are others in the files `after` than in those `before`."""
    was, now = events_by_day(before).get(day, {}), events_by_day(after).get(day, {})
    causes: dict[str, str] = {}  # by file
    for file, entry in after.items():
        if entry.same_as is None and entry.take_in.name in now.keys() - was.keys():
            known = before.get(file)
            if known is None:
                causes[file] = "late file"
            elif known.take_in.content != entry.take_in.content:
                causes[file] = "replaced file"
            else:
                causes[file] = "healed line" if known.take_in.rule == entry.take_in.rule else "rule change"
    for file, entry in before.items():
        if entry.same_as is None and entry.take_in.name in was.keys() - now.keys():
            causes.setdefault(file, "replaced file")
    if not causes:
        return Cause("rule change", ()) if was.keys() == now.keys() else Cause("backfill", ())
    return Cause(", ".join(sorted(set(causes.values()))), tuple(sorted(causes)[:MOST_FILES]))


def restate(
    run: Run, published: Path, rolled: Path, causes: Mapping[date, Cause], version: int, earlier: PublishedFile | None
) -> Path | None:
    """The month's restatements with those added that replacing `published` by `rolled` makes on the days of `causes`.

    published, rolled: files of organization_day. earlier: the month's restatements so far. None when nothing changed
    for anybody on these days.
    """
    engine = run.engine
    engine.name_files("published", [published], ORGANIZATION_DAY)
    engine.name_files("rolled", [rolled], ORGANIZATION_DAY)
    changed = engine.query("restated", days=sorted(causes))
    if not changed:
        return None
    rows = [
        (day, organization_id, version, run.started, causes[day].cause, list(causes[day].files), *numbers)
        for day, organization_id, *numbers in changed
    ]
    columns = zip(*rows, strict=True)
    added = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, RESTATEMENT.arrow_schema, strict=True)],
        schema=RESTATEMENT.arrow_schema,
    )
    if earlier:
        path = run.layout.rollups / earlier.path
        verify(path)
        added = pa.concat_tables([pq.read_table(path, schema=RESTATEMENT.arrow_schema, partitioning=None), added])
    path = run.scratch / f"{RESTATEMENT.name}-{month_of(rows[0][0])}.parquet"
    step("write a file in scratch")
    pq.write_table(
        added.sort_by([("organization_id", "ascending"), ("day", "ascending"), ("version", "ascending")]), path
    )
    return path


def restatements(layout: Layout, first_day: date, last_day: date, organization_id: str | None) -> list[Restatement]:
    """The restatements of the days from `first_day` to `last_day` (included), of one organization or all.

    In order of version, day and organization.
    """
    found: list[Restatement] = []
    for (rollup, month), file in read_ledger(layout).publication.files.items():
        if rollup != RESTATEMENT.name or month is None or not month_of(first_day) <= month <= last_day:
            continue
        path = layout.rollups / file.path
        verify(path)
        rows = pq.read_table(path, schema=RESTATEMENT.arrow_schema, partitioning=None)
        if organization_id is not None:
            rows = rows.filter(pc.equal(rows["organization_id"], organization_id))
        found += (Restatement(**row) for row in rows.to_pylist() if first_day <= row["day"] <= last_day)
    return sorted(found, key=lambda row: (row.version, row.day, row.organization_id))
