"""The published table is everybody's: other engines read it as it lies there, and find the same totals.

One of them rolls days up, too, by our own statements.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline.contract.tables import API_KEY_DAY
from tests.conftest import Place, request
from tests.spark import in_spark, spark
from tests.test_buckets import traffic

Totals = dict[tuple[str, str], tuple[int, Decimal]]  # requests and cost by rollup and month


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two months, published in three versions, so that the folder holds files that count no more."""
    place = Place(tmp_path_factory.mktemp("engines") / "data")
    for night, cost in enumerate(("0.000000000001", "123456.123456789012", "0.5")):
        for month in (10, 11):
            records = (
                request(100 * night + number, cost=cost, timestamp=f"2025-{month}-0{night + 1}T00:00:00Z", model="m")
                for number in range(20 + night + month)
            )
            place.write_raw(f"{month}-{night}.jsonl", *records)
        place.roll_up()
    return place


def expected(place: Place) -> Totals:
    """As keytally itself reads them."""
    totals: dict[tuple[str, str], Any] = {}
    for rollup in ("organization_day", "organization_month", "api_key_day", "api_key_month"):
        for file in place.publication().files.values():
            if file.rollup == rollup and file.month:
                table = pl.read_parquet(place.layout.rollups / file.path, hive_partitioning=False)
                totals[rollup, f"{file.month:%Y-%m}"] = (table["requests"].sum(), table["cost"].sum())
    assert len(totals) == 8
    assert {requests for (_, month), (requests, _) in totals.items() if month == "2025-10"} == {93}
    assert {cost for (_, month), (_, cost) in totals.items() if month == "2025-11"} == {
        31 * Decimal("0.000000000001") + 32 * Decimal("123456.123456789012") + 33 * Decimal("0.5")
    }
    return totals


SUMS = """
select rollup, month, sum(requests)::bigint, sum(cost)
from {}
where rollup in ('organization_day', 'organization_month', 'api_key_day', 'api_key_month')
group by rollup, month
"""


def as_totals(rows: list[Any]) -> Totals:
    return {(rollup, month): (requests, cost) for rollup, month, requests, cost in rows}


def test_duckdb_reads_the_files_that_the_log_names(place: Place) -> None:
    files = DeltaTable(place.layout.rollups).file_uris()
    assert len(files) < len(list(place.layout.rollups.rglob("part-*.parquet"))), "there are others, which do not count"
    relation = duckdb.read_parquet(files, hive_partitioning=True, union_by_name=True)
    assert relation.columns
    assert as_totals(duckdb.sql(SUMS.format("relation")).fetchall()) == expected(place)


def test_polars_reads_it_as_delta(place: Place) -> None:
    table = pl.scan_delta(str(place.layout.rollups))
    sums = table.group_by("rollup", "month").agg(pl.col("requests").sum(), pl.col("cost").sum())
    rows = sums.filter(pl.col("rollup").str.contains("^(organization|api_key)_")).collect().rows()
    assert as_totals(rows) == expected(place)


def test_pyspark_reads_the_files_that_the_log_names(place: Place, tmp_path: Path) -> None:
    """Without the Delta extension, which is a download of its own: the files of the newest version, as Parquet."""
    with spark(tmp_path) as session:
        files = DeltaTable(place.layout.rollups).file_uris()
        reader = session.read.option("basePath", str(place.layout.rollups)).option("mergeSchema", "true")
        reader.parquet(*files).createOrReplaceTempView("published")
        rows = [tuple(row) for row in session.sql(SUMS.format("published").replace("::bigint", "")).collect()]
    assert as_totals(rows) == expected(place)


def test_pyspark_rolls_days_up_from_the_same_events_to_the_same_rows(tmp_path: Path) -> None:
    """By our own two statements, in Spark's words: nothing else would change if another engine took over."""
    days = Place(tmp_path / "data")
    for file in range(4):
        days.write_raw(f"{file}.jsonl", *traffic(file))
    report = days.roll_up()
    assert all(day.duplicate and day.conflicting and day.session for day in report.days)
    with spark(tmp_path) as session:
        session.read.parquet(*map(str, days.layout.events.rglob("*.parquet"))).createOrReplaceTempView("events")
        session.sql(in_spark("copies"))
        copies = {row.day: (row.duplicate, row.conflicting) for row in session.sql(in_spark("count_copies")).collect()}
        rows = [row.asDict() for row in session.sql(in_spark("roll_up_days")).collect()]
    assert copies == {day.day: (day.duplicate, day.conflicting) for day in report.days}
    assert sum(row["lines"] for row in rows) == sum(day.accepted for day in report.days)
    usage = [row for row in rows if row["api_key_id"] is not None and row["requests"]]
    schema, order = API_KEY_DAY.arrow_schema, [(column, "ascending") for column in API_KEY_DAY.grain]
    published = pa.Table.from_pandas(days.published("api_key_day"), schema, preserve_index=False)
    assert pa.Table.from_pylist(usage, schema).sort_by(order).equals(published.sort_by(order))
