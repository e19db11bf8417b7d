"""Publishes given days of organizations, as a run of the pipeline would: one checksummed file a month, one commit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.transaction import AddAction, RemoveAction

from pipeline.contract.layout import Layout, checksum_of, month_name, month_of, rollup_folder
from pipeline.contract.published import APPLICATION, CONTENTS, PublishedFile, digest_of, publication_of
from pipeline.contract.tables import ORGANIZATION_DAY, published_schema
from tests.conftest import Place

Row = tuple[str, date, int, str, str, str]
"""organization, day, requests, cost, synapses, neurons."""


def rollup_rows(rows: Iterable[Row]) -> pa.Table:
    """`rows` as `organization_day` stores them, sorted by its grain."""
    columns: list[dict[str, Any]] = [
        {
            "organization_id": organization,
            "day": day,
            "requests": requests,
            "failed_requests": 0,
            "cost": Decimal(cost),
            "synapses": Decimal(synapses),
            "neurons": Decimal(neurons),
            "input_tokens": Decimal(0),
            "output_tokens": Decimal(0),
            "unpriced": 0,
        }
        for organization, day, requests, cost, synapses, neurons in sorted(rows)
    ]
    return pa.Table.from_pylist(columns, schema=ORGANIZATION_DAY.arrow_schema)


def republish(place: Place, file: PublishedFile, rows: pa.Table, row_group_size: int) -> Path:
    """Makes `rows` what is published in the place of `file`; returns the file that holds them."""
    rollups = place.layout.rollups
    unnamed = (rollups / file.path).with_name("unnamed")
    pq.write_table(rows, unnamed, row_group_size=row_group_size, compression="zstd")
    path = unnamed.rename(unnamed.with_name(f"part-{checksum_of(unnamed)}.parquet"))
    added = str(path.relative_to(rollups))
    if added == file.path:
        return path  # the very same bytes
    before = place.publication()
    contents = digest_of([added, *(other.path for other in before.files.values() if other != file)])
    partition: dict[str, str | None] = {"rollup": file.rollup, "month": file.month and month_name(file.month)}
    milliseconds = int(file.published_at.timestamp() * 1000)
    DeltaTable(rollups).create_write_transaction(
        [
            AddAction(added, path.stat().st_size, partition, milliseconds, True, "{}"),
            RemoveAction(file.path, True, milliseconds, file.size, partition),
        ],
        mode="append",
        schema=published_schema(),
        partition_by=["rollup", "month"],
        commit_properties=CommitProperties(
            max_commit_retries=0,
            app_transactions=[Transaction(APPLICATION, before.generation + 1), Transaction(CONTENTS, contents)],
        ),
    )
    return path


def publish_days(
    data: Path,
    month: date,
    rows: Sequence[Row] | pa.Table,
    *,
    published_at: float | None = None,
    row_group_size: int = 16_384,
) -> Path:
    """Makes `rows` what is published of `month`, in place of what was; returns the file that holds them.

    published_at: seconds since 1970, default now.
    """
    milliseconds = int((time.time() if published_at is None else published_at) * 1000)
    rollups = Layout(data).rollups
    folder = rollups / rollup_folder(ORGANIZATION_DAY.name, month_of(month))
    folder.mkdir(parents=True, exist_ok=True)
    unnamed = folder / "unnamed"
    content = rows if isinstance(rows, pa.Table) else rollup_rows(rows)
    pq.write_table(content, unnamed, row_group_size=row_group_size, compression="zstd")
    path = unnamed.rename(folder / f"part-{checksum_of(unnamed)}.parquet")

    if (rollups / "_delta_log").is_dir():
        table = DeltaTable(rollups)
    else:
        table = DeltaTable.create(rollups, schema=published_schema(), partition_by=["rollup", "month"])
    publication = publication_of(table)
    partition: dict[str, str | None] = {"rollup": ORGANIZATION_DAY.name, "month": month_name(month)}
    stats = json.dumps({"numRecords": content.num_rows})
    actions: list[AddAction | RemoveAction] = [
        AddAction(str(path.relative_to(rollups)), path.stat().st_size, partition, milliseconds, True, stats)
    ]
    replaced = publication.files.get((ORGANIZATION_DAY.name, month_of(month)))
    if replaced is not None:
        actions.append(RemoveAction(replaced.path, True, milliseconds, replaced.size, partition))
    table.create_write_transaction(
        actions,
        mode="append",
        schema=published_schema(),
        partition_by=["rollup", "month"],
        commit_properties=CommitProperties(
            max_commit_retries=0, app_transactions=[Transaction(APPLICATION, publication.generation + 1)]
        ),
    )
    return path
