"""What it takes to find a bucket's share in the file of hashes that each part of a day has: one line of JSON.

.venv/bin/python -m bench.scale.shares [PARTS]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipeline.buckets import LINES_A_BUCKET, SHARE_ROWS, _buckets, _find_repeated
from pipeline.contract.settings import Settings
from pipeline.run import Run, start_run

PARTS = 50


@dataclass(frozen=True)
class Costs:
    """share_cpu: seconds to find a bucket's share in a part, where there are a thousand of either. hash_stored: bytes
    of a line's hash."""

    share_cpu: float
    hash_stored: float


def measure(run: Run, parts: int) -> Costs:
    run.layout.buckets.mkdir(exist_ok=True)
    files = [f"part-{part}.parquet" for part in range(parts)]
    for part, file in enumerate(files):
        lines = pa.array(range(part * LINES_A_BUCKET, (part + 1) * LINES_A_BUCKET))
        organization = pa.array(["org"] * LINES_A_BUCKET)
        run.engine.name_arrow(
            "events", pa.table({"organization_id": organization, "request_id": lines.cast(pa.string())})
        )
        run.engine.copy("identity_hashes", run.layout.buckets / file, SHARE_ROWS, part=part)
    stored = sum(file.stat().st_size for file in run.layout.buckets.iterdir())
    bucket = _buckets(1_000 * LINES_A_BUCKET)[500]
    begun = time.process_time()
    _find_repeated("measured", files, run, bucket)
    return Costs((time.process_time() - begun) / parts, stored / parts / LINES_A_BUCKET)


def main() -> None:
    parts = int(sys.argv[1]) if len(sys.argv) > 1 else PARTS
    with tempfile.TemporaryDirectory(prefix="keytally-shares-") as folder:
        settings = Settings.from_environment({"KEYTALLY_DATA": str(Path(folder)), "KEYTALLY_THREADS": "1"})
        with start_run(settings, lambda: datetime.now(UTC)) as run:
            print(json.dumps(asdict(measure(run, parts))))


if __name__ == "__main__":
    main()
