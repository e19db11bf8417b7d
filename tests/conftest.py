"""A data root with a clock that stands still until it is moved, and looks at what was published there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.published import Publication, open_published, publication_of
from pipeline.contract.settings import Settings
from pipeline.contract.store import open_store
from pipeline.contract.tables import PUBLISHED
from pipeline.ledger import Ledger, read_ledger
from pipeline.report import Report
from pipeline.run import start_run
from pipeline.update import backfill, roll_up
from tests.dask_cluster import Cluster

Record = dict[str, Any]


def request(number: int = 1, **fields: Any) -> Record:
    """A request like many others; `number` names it. A field given as ... is left out."""
    record: Record = {
        "request_id": f"req_{number}",
        "timestamp": "2025-11-10T12:00:00Z",
        "organization_id": "org_a",
        "api_key_id": "key_1",
        "cost": "0.25",
        **fields,
    }
    return {name: value for name, value in record.items() if value is not ...}


def lines(*records: Record | str | bytes) -> bytes:
    """A text of one line each."""
    texts = [json.dumps(record) if isinstance(record, dict) else record for record in records]
    return b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in texts)


class Place:
    """A data root of its own, rolled up at the moment `now`."""

    def __init__(self, root: Path | str, **environment: str) -> None:
        self.settings = Settings.from_environment(
            {"KEYTALLY_DATA": str(root), "KEYTALLY_THREADS": "2", "KEYTALLY_MEMORY_LIMIT": "512MB", **environment}
        )
        self.store = open_store(self.settings)
        self.layout = self.store.layout
        self.now = datetime(2025, 11, 15, 10, 30, tzinfo=UTC)
        self.layout.raw.mkdir(parents=True, exist_ok=True)

    def write_raw(self, file: str, *content: bytes | Record | str) -> Path:
        """Put a raw file in place: bytes as they are, or one line for each record or text."""
        path = self.layout.raw / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[0] if len(content) == 1 and isinstance(content[0], bytes) else lines(*content))
        return path

    def roll_up(self) -> Report:
        with start_run(self.settings, lambda: self.now, publishes=True) as run:
            return roll_up(run)

    def backfill(self, first_day: str, last_day: str) -> Report:
        with start_run(self.settings, lambda: self.now, publishes=True) as run:
            return backfill(run, date.fromisoformat(first_day), date.fromisoformat(last_day))

    def publication(self) -> Publication:
        table = open_published(self.store)
        assert table is not None, "nothing was published"
        return publication_of(table)

    def published(self, rollup: str) -> pd.DataFrame:
        """All rows of a rollup, every month of it, with amounts as Decimal."""
        schema = PUBLISHED[rollup].arrow_schema
        files = sorted(
            (file for file in self.publication().files.values() if file.rollup == rollup), key=lambda file: file.path
        )
        parts = [
            pq.read_table(self.store.fetch(self.layout.rollups / file.path), schema=schema, partitioning=None)
            for file in files
        ] or [schema.empty_table()]
        return pa.concat_tables(parts).to_pandas()

    def ledger(self) -> Ledger:
        return read_ledger(self.store)

    def rejected(self, file: str) -> list[tuple[int, str]]:
        """Line and reason of a file's quarantined lines."""
        artifact = self.ledger().files[file].take_in.rejected
        if artifact is None:
            return []
        rows = pq.read_table(self.store.fetch(self.layout.rejected / artifact)).to_pylist()
        return [(row["line"], row["reason"]) for row in rows]

    def events(self, file: str) -> list[Record]:
        """The accepted requests of a file, in no particular order."""
        return [
            row
            for event in self.ledger().files[file].take_in.events
            for row in pq.read_table(self.layout.events_of(event.day) / event.artifact, partitioning=None).to_pylist()
        ]

    def usage(self) -> dict[tuple[str, str], tuple[int, Decimal]]:
        """Requests and cost by organization and day, as published."""
        return {
            (row.organization_id, str(row.day)): (row.requests, row.cost.normalize())
            for row in self.published("organization_day").itertuples()
        }

    def artifacts(self) -> dict[str, int]:
        """Every file of ours but the log, with the moment it was written: to see what a run touched."""
        folders = (self.layout.events, self.layout.daily, self.layout.rejected, self.layout.rollups)
        return {
            str(path.relative_to(self.layout.root)): path.stat().st_ino
            for folder in folders
            for path in folder.rglob("*.parquet")
        }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty data root at 2025-11-15T10:30:00Z."""
    return Place(tmp_path / "data")


@pytest.fixture
def in_buckets(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has days of more than so many lines rolled up in parts and buckets of so many."""

    def of(lines: int) -> None:
        monkeypatch.setattr("pipeline.buckets.LINES_A_BUCKET", lines)
        monkeypatch.setattr("pipeline.buckets.LINES_IN_ONE_STEP", lines)

    return of


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Dask scheduler with no workers yet."""
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    started.end()
