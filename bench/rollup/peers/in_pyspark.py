"""The job in Spark on this one machine: python in_pyspark.py FOLDER_OF_RAW OUT.parquet"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as f

FIELDS = """request_id string, timestamp string, organization_id string, api_key_id string, cost string,
    synapses string, neurons string, model string, endpoint string, status int,
    input_tokens bigint, output_tokens bigint, broken string"""
REQUEST = ["organization_id", "request_id", "day"]
ORDER = ["instant", "api_key_id", "cost", "synapses", "neurons", "model", "endpoint", "status", "input_tokens"]
ORDER += ["output_tokens"]

raw, out = Path(sys.argv[1]), Path(sys.argv[2])
scratch = Path(tempfile.mkdtemp(prefix="rollup-in-spark-"))
spark = (
    SparkSession.builder.master("local[*]")
    .config("spark.driver.memory", "4g")
    .config("spark.ui.enabled", "false")
    .config("spark.log.level", "ERROR")
    .config("spark.local.dir", str(scratch))
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.ansi.enabled", "false")
    .config("spark.sql.shuffle.partitions", os.cpu_count() * 4)
    .getOrCreate()
)


def requests_in_lines() -> DataFrame:
    """JSON lines, typed. Hadoop's zstd wants a native library that no package brings: the tool inflates before."""
    folder = raw
    if next(raw.rglob("*.jsonl.zst"), None):
        folder = scratch / "inflated"
        for number, path in enumerate(sorted(raw.rglob("*.jsonl.zst"))):
            inflated = folder / f"{number}.jsonl"
            inflated.parent.mkdir(exist_ok=True)
            subprocess.run(["zstd", "-dqf", str(path), "-o", str(inflated)], check=True)
    lines = spark.read.option("recursiveFileLookup", True).text(str(folder))
    fields = f.from_json("value", FIELDS, {"columnNameOfCorruptRecord": "broken"}).alias("line")
    zoned = f.col("timestamp").rlike(r"^\d{4}-\d\d-\d\dT.*(Z|[+-]\d\d:\d\d)$")
    return (
        lines.where(f.is_valid_utf8("value"))
        .select(fields)
        .select("line.*")
        .where(f.col("broken").isNull())  # a line may have broken off behind it
        .where(f.col("cost").rlike(r"^[0-9]+(\.[0-9]{1,12})?([eE]-?[0-9]+)?$"))
        .withColumn("instant", f.when(zoned, f.col("timestamp").try_cast("timestamp")))
        .withColumn("cost", f.col("cost").try_cast("decimal(18, 12)"))
        .withColumn("synapses", f.coalesce(f.col("synapses").try_cast("decimal(18, 6)"), f.lit(0)))
        .withColumn("neurons", f.coalesce(f.col("neurons").try_cast("decimal(18, 6)"), f.lit(0)))
        .fillna(0, ["input_tokens", "output_tokens"])
    )


def requests_in_rows() -> DataFrame:
    """Rows of Parquet, whose values are typed already."""
    rows = spark.read.option("recursiveFileLookup", True).parquet(str(raw))
    return rows.withColumn("instant", f.col("timestamp"))


requests = (
    (requests_in_rows() if next(raw.rglob("*.parquet"), None) else requests_in_lines())
    .withColumn("day", f.to_date("instant"))
    .where(
        f.length("request_id").between(1, 128)
        & (f.col("instant") >= "2020-01-01")
        & (f.col("instant") < "2031-01-01")
        & f.col("organization_id").rlike("^[A-Za-z0-9_-]{1,128}$")
        & (f.col("api_key_id").isNull() | f.col("api_key_id").rlike("^[A-Za-z0-9_.:-]{1,128}$"))
        & (f.col("cost") >= 0)
    )
)
first = Window.partitionBy(*REQUEST).orderBy(*(f.col(name).asc_nulls_first() for name in ORDER))
rollup = (
    requests.withColumn("place", f.row_number().over(first))
    .where((f.col("place") == 1) & f.col("api_key_id").isNotNull())
    .groupBy("organization_id", "day", "api_key_id", "model")
    .agg(
        f.count("*").alias("requests"),
        f.count(f.when(f.col("status") >= 400, 1)).alias("failed_requests"),
        f.sum(f.col("cost").cast("decimal(28, 12)")).alias("cost"),
        f.sum(f.col("synapses").cast("decimal(28, 6)")).alias("synapses"),
        f.sum(f.col("neurons").cast("decimal(28, 6)")).alias("neurons"),
        f.sum(f.col("input_tokens").cast("decimal(28, 0)")).alias("input_tokens"),
        f.sum(f.col("output_tokens").cast("decimal(28, 0)")).alias("output_tokens"),
    )
)
rollup.coalesce(1).write.parquet(str(scratch / "out"))
(written,) = (scratch / "out").glob("part-*.parquet")
shutil.move(written, out)
engine = spark.sparkContext._gateway.proc
spark.stop()
engine.stdin.close()
engine.wait()  # what it used is counted to whoever waited for it
shutil.rmtree(scratch)
