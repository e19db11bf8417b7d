"""The published table is everybody's: other engines read it as it lies there, and find the same totals."""

from __future__ import annotations

import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from deltalake import DeltaTable

from tests.conftest import Place, request

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
    if shutil.which("java") is None:
        pytest.skip("PySpark needs Java, which is not here; the test is run by hand, see docs/guarantees.md")
    sql = pytest.importorskip(
        "pyspark.sql", reason="PySpark is 500 MB and not in the lock: pip install pyspark, see docs/guarantees.md"
    )
    session = (
        sql.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.shuffle.partitions", "1")
        .config("spark.sql.warehouse.dir", str(tmp_path))
        .getOrCreate()
    )
    try:
        files = DeltaTable(place.layout.rollups).file_uris()
        reader = session.read.option("basePath", str(place.layout.rollups)).option("mergeSchema", "true")
        reader.parquet(*files).createOrReplaceTempView("published")
        rows = [tuple(row) for row in session.sql(SUMS.format("published").replace("::bigint", "")).collect()]
    finally:
        session.stop()
    assert as_totals(rows) == expected(place)
