"""The job in Polars: python in_polars.py FOLDER_OF_RAW OUT.parquet"""

import sys
from pathlib import Path

import polars as pl

TEXTS = ["request_id", "timestamp", "organization_id", "api_key_id", "cost", "synapses", "neurons", "model", "endpoint"]
FIELDS = dict.fromkeys(TEXTS, pl.String) | {"status": pl.Int64, "input_tokens": pl.Int64, "output_tokens": pl.Int64}
MOMENT = "%Y-%m-%dT%H:%M:%S%.f%#z"
REQUEST = ["organization_id", "request_id", "day"]
ORDER = ["instant", "api_key_id", "cost", "synapses", "neurons", "model", "endpoint", "status", "input_tokens"]
ORDER += ["output_tokens"]


def requests_in_lines(files: list[Path]) -> pl.LazyFrame:
    """JSON lines, typed. scan_ndjson and json_decode end at the first broken line: what is no JSON goes before."""
    lines = pl.scan_csv(
        files, has_header=False, schema={"line": pl.String}, separator="\x01", quote_char=None, encoding="utf8-lossy"
    )
    line = pl.col("line")
    sound = line.str.json_path_match("$.cost").is_not_null() & ~line.str.contains("\ufffd", literal=True)
    return (
        lines.filter(sound)
        .select(line.str.json_decode(pl.Struct(FIELDS)))
        .unnest("line")
        .filter(pl.col("cost").str.contains(r"^[0-9]+(\.[0-9]{1,12})?([eE]-?[0-9]+)?$"))
        .with_columns(
            pl.col("timestamp").str.to_datetime(MOMENT, time_unit="us", strict=False).alias("instant"),
            pl.col("cost").cast(pl.Decimal(38, 12), strict=False),
            pl.col("synapses", "neurons").cast(pl.Decimal(38, 6), strict=False).fill_null(0),
            pl.col("input_tokens", "output_tokens").fill_null(0),
        )
    )


def requests_in_rows(files: list[Path]) -> pl.LazyFrame:
    """Rows of Parquet, whose values are typed already."""
    return pl.scan_parquet(files).with_columns(
        pl.col("timestamp").alias("instant"),
        pl.col("cost").cast(pl.Decimal(38, 12)),
        pl.col("synapses", "neurons").cast(pl.Decimal(38, 6)),
    )


raw, out = Path(sys.argv[1]), sys.argv[2]
files = sorted(path for path in raw.rglob("*") if path.suffix in (".gz", ".zst", ".jsonl", ".parquet"))
read = requests_in_rows if files[0].suffix == ".parquet" else requests_in_lines

requests = (
    read(files)
    .filter(
        pl.col("request_id").str.len_chars().is_between(1, 128),
        pl.col("instant") >= pl.datetime(2020, 1, 1, time_zone="UTC"),
        pl.col("instant") < pl.datetime(2031, 1, 1, time_zone="UTC"),
        pl.col("organization_id").str.contains("^[A-Za-z0-9_-]{1,128}$"),
        pl.col("api_key_id").is_null() | pl.col("api_key_id").str.contains("^[A-Za-z0-9_.:-]{1,128}$"),
        pl.col("cost") >= 0,
        pl.col("cost") < 1_000_000,
    )
    .with_columns(pl.col("instant").dt.date().alias("day"))
    .drop("timestamp")
    .collect(engine="streaming")
)

# Only requests that stand more than once are sorted: which of the copies counts, their content decides.
repeated = requests.select(REQUEST).is_duplicated()
copies = requests.filter(repeated).sort(ORDER, nulls_last=False)
counted = pl.concat([requests.filter(~repeated), copies.unique(REQUEST, keep="first", maintain_order=True)])
(
    counted.lazy()
    .filter(pl.col("api_key_id").is_not_null())
    .group_by("organization_id", "day", "api_key_id", "model")
    .agg(
        pl.len().cast(pl.Int64).alias("requests"),
        (pl.col("status") >= 400).sum().cast(pl.Int64).alias("failed_requests"),
        pl.col("cost", "synapses", "neurons").sum(),
        pl.col("input_tokens", "output_tokens").cast(pl.Decimal(38, 0)).sum(),
    )
    .sink_parquet(out)
)
