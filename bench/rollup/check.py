"""Whether an answer is the truth: python check.py TRUTH.parquet ANSWER.parquet...

Prints nothing when every row is there with exactly these sums, else what is wrong.
"""

import sys

import duckdb

truth, *answer = sys.argv[1:]
GRAIN = ["organization_id", "day", "api_key_id", "model"]
AMOUNTS = ["cost", "synapses", "neurons", "input_tokens", "output_tokens"]
COLUMNS = ", ".join([*GRAIN, "requests", "failed_requests", *AMOUNTS])

engine = duckdb.connect()
engine.execute("set enable_progress_bar = false")
for name, files in (("truth", [truth]), ("answer", answer)):
    engine.read_parquet(files, hive_partitioning=False).create_view(name)
types = {name: str(kind) for name, kind, *_ in engine.execute("describe answer").fetchall()}
inexact = [name for name in AMOUNTS if not types.get(name, "").startswith(("DECIMAL", "BIGINT", "HUGEINT"))]
if inexact:
    sys.exit(f"not exact: {', '.join(inexact)}")


def only_in(one: str, other: str) -> int:
    """How many rows of `one` are not in `other`."""
    rows = f"select {COLUMNS} from {one} except all select {COLUMNS} from {other}"
    (count,) = engine.execute(f"select count(*) from ({rows})").fetchone()
    return count


missing, extra = only_in("truth", "answer"), only_in("answer", "truth")
if missing or extra:
    (rows,) = engine.execute("select count(*) from truth").fetchone()
    sys.exit(f"{missing:,} of {rows:,} rows are not in it, {extra:,} others are")
