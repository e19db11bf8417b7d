"""The job in pandas: python in_pandas.py FOLDER_OF_RAW OUT.parquet"""

import json
import sys
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TEXTS = ["request_id", "timestamp", "organization_id", "api_key_id", "cost", "synapses", "neurons", "model", "endpoint"]
COUNTS = ["status", "input_tokens", "output_tokens"]
TYPES = {name: pd.ArrowDtype(pa.string()) for name in TEXTS} | {name: pd.ArrowDtype(pa.int64()) for name in COUNTS}
DECIMALS = {"cost": 12, "synapses": 6, "neurons": 6}
REQUEST = ["organization_id", "request_id", "day"]
ORDER = ["instant", "api_key_id", "cost", "synapses", "neurons", "model", "endpoint", *COUNTS]


def parsed(path: Path) -> pd.DataFrame:
    """The lines of a file that are JSON objects. read_json has no mercy with a broken line, and reads floats."""
    rows = []
    decode = json.JSONDecoder(parse_float=str).decode
    with pa.input_stream(str(path), compression="detect") as lines:
        for line in lines.read().splitlines():
            try:
                row = decode(line.decode())
                if isinstance(row, dict):
                    rows.append([*map(row.get, TEXTS), *map(row.get, COUNTS)])
            except ValueError:
                pass
    frame = pd.DataFrame(rows, columns=[*TEXTS, *COUNTS])
    for name in DECIMALS:
        # A whole number is an int here, which the text column does not take.
        frame[name] = frame[name].map(lambda amount: str(amount) if isinstance(amount, int) else amount)
    frame = frame.astype(TYPES)
    frame = frame[frame["cost"].str.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,12})?([eE]-[0-9]+)?").fillna(False)]
    zoned = frame["timestamp"].str.fullmatch(r"\d{4}-\d\d-\d\dT.*(Z|[+-]\d\d:\d\d)").fillna(False)
    frame["instant"] = pd.to_datetime(frame["timestamp"].where(zoned), format="ISO8601", utc=True, errors="coerce")
    frame["instant"] = frame["instant"].dt.floor("us")
    return frame


def read(path: Path) -> pd.DataFrame:
    """The valid requests of a file, amounts as integers of their last digit."""
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path, dtype_backend="pyarrow").rename(columns={"timestamp": "instant"})
    else:
        frame = parsed(path).drop(columns="timestamp")
    frame["instant"] = frame["instant"].astype(pd.ArrowDtype(pa.timestamp("us", "UTC")))
    for name, scale in DECIMALS.items():
        exact = pc.cast(pa.array(frame[name]), pa.decimal128(18, scale))
        units = pc.cast(pc.multiply(exact, pa.scalar(10**scale, pa.decimal128(13, 0))), pa.int64())
        frame[name] = pd.Series(units, index=frame.index, dtype=pd.ArrowDtype(pa.int64()))
    optional = ["synapses", "neurons", "input_tokens", "output_tokens"]
    frame[optional] = frame[optional].fillna(0)
    frame["day"] = frame["instant"].dt.floor("D")
    return frame[
        frame["request_id"].str.len().between(1, 128).fillna(False)
        & frame["organization_id"].str.fullmatch("[A-Za-z0-9_-]{1,128}").fillna(False)
        & (frame["api_key_id"].isna() | frame["api_key_id"].str.fullmatch("[A-Za-z0-9_.:-]{1,128}").fillna(False))
        & (frame["instant"] >= pd.Timestamp("2020-01-01", tz="UTC")).fillna(False)
        & (frame["instant"] < pd.Timestamp("2031-01-01", tz="UTC")).fillna(False)
        & (frame["cost"].between(0, 10**18 - 1)).fillna(False)
    ]


raw, out = Path(sys.argv[1]), sys.argv[2]
files = sorted(path for path in raw.rglob("*") if path.suffix in (".gz", ".zst", ".jsonl", ".parquet"))
requests = pd.concat([read(path) for path in files], ignore_index=True)

# Only requests that stand more than once are sorted: which of the copies counts, their content decides.
repeated = requests.duplicated(REQUEST, keep=False)
copies = requests[repeated].sort_values(ORDER, na_position="first", kind="stable").drop_duplicates(REQUEST)
counted = pd.concat([requests[~repeated], copies])
counted = counted[counted["api_key_id"].notna()]
counted["failed_requests"] = (counted["status"] >= 400).fillna(False).astype("int64")
grain = ["organization_id", "day", "api_key_id", "model"]
groups = counted.groupby(grain, dropna=False, sort=False)
sums = groups[["failed_requests", *DECIMALS, "input_tokens", "output_tokens"]].sum()
sums.insert(0, "requests", groups.size())
# The engine would wrap around: 9.2 million of the currency is the most that one row can hold.
about = counted["cost"].astype("float64").groupby([counted[name] for name in grain], dropna=False).sum()
assert about.max() < 2**63
rows = pa.Table.from_pandas(sums.reset_index(), preserve_index=False)
for name in ("cost", "synapses", "neurons", "input_tokens", "output_tokens"):
    scale = DECIMALS.get(name, 0)
    unit = pa.scalar(Decimal(1).scaleb(-scale), pa.decimal128(max(scale, 1), scale))
    exact = pc.cast(pc.multiply(pc.cast(rows[name], pa.decimal128(19, 0)), unit), pa.decimal128(38, scale))
    rows = rows.set_column(rows.schema.get_field_index(name), name, exact)
rows = rows.set_column(rows.schema.get_field_index("day"), "day", pc.cast(rows["day"], pa.date32()))
pq.write_table(rows, out)
