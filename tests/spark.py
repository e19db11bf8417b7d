"""PySpark on this machine, and the statements of pipeline/sql in its words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import statement

# All that differs between the two in the statements that roll a day up.
IN_SPARK = {
    "create or replace table copies as": "create or replace temporary view copies as",
    "epoch_us(timestamp) // 86400000000": "unix_micros(timestamp) div 86400000000",
    # Its sum of such integers is one, and overflows; DuckDB's has 128 bits.
    "sum(input_tokens)": "sum(cast(input_tokens as decimal(19, 0)))",
    "sum(output_tokens)": "sum(cast(output_tokens as decimal(19, 0)))",
}


@contextmanager
def spark(folder: Path) -> Iterator[Any]:
    """A session in one thread; skips the test where there is none to be had."""
    if shutil.which("java") is None:
        pytest.skip("PySpark needs Java")
    sql = pytest.importorskip("pyspark.sql", reason="PySpark is not installed: pip install pyspark")
    session = (
        sql.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.shuffle.partitions", "1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.warehouse.dir", str(folder))
        .getOrCreate()
    )
    try:
        yield session
    finally:
        session.stop()


def in_spark(name: str) -> str:
    """The text of `name`.sql, in Spark's words."""
    text = statement(name)
    for ours, theirs in IN_SPARK.items():
        text = text.replace(ours, theirs)
    return text
