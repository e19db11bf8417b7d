"""A raw object larger than a run may use of memory is streamed, whatever its ending."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from tests.bucket.conftest import BucketPlace
from tests.conftest import lines, request
from tests.test_memory import MB, SCRIPT

LIMIT_MB = 128
UNITS, LINES = 17, 16  # of some 16 MB and as many lines: 284 MB, more than twice the limit


def wide(number: int) -> dict[str, object]:
    """A request with a megabyte beside it that nobody reads, and that no compression makes small."""
    return request(number, pad=os.urandom(520_000).hex())


def write_lines(path: Path, units: int, packed: Callable[[bytes], bytes]) -> None:
    unit = packed(lines(*(wide(number) for number in range(LINES))))
    with path.open("wb") as file:
        for _ in range(units):
            file.write(unit)


def write_parquet(path: Path, units: int) -> None:
    rows = pa.Table.from_pylist([wide(number) for number in range(LINES)])
    with pq.ParquetWriter(path, rows.schema, compression="none", use_dictionary=False) as writer:
        for _ in range(units):
            writer.write_table(rows)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    ".jsonl": lambda path, units: write_lines(path, units, bytes),
    ".jsonl.gz": lambda path, units: write_lines(path, units, lambda plain: gzip.compress(plain, 0)),
    ".jsonl.zst": lambda path, units: write_lines(path, units * 2, zstd.compress),  # hex digits are half air
    ".parquet": write_parquet,
}


def rolled_up(place: BucketPlace) -> tuple[int, int]:
    """Lines taken in by a run of its own process, and the most bytes that were resident in it."""
    environment = {**place.command_environment(), "KEYTALLY_MEMORY_LIMIT": f"{LIMIT_MB}MB"}
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["held_back"] == []
    return sum(file["accepted"] for file in report["ingested"]), int(done.stderr.splitlines()[-1]) * 1024


@pytest.mark.parametrize(
    "ending",
    [".jsonl.gz", ".parquet", *(pytest.param(other, marks=pytest.mark.slow) for other in (".jsonl", ".jsonl.zst"))],
)
def test_a_raw_object_larger_than_memory_is_streamed(place: BucketPlace, tmp_path: Path, ending: str) -> None:
    peaks = {}
    for units in (2, UNITS):
        WRITERS[ending](tmp_path / "raw", units)
        obstore.put(place.client, f"raw/{units}{ending}", tmp_path / "raw")
        accepted, peaks[units] = rolled_up(place)
        assert accepted == LINES * units * (2 if ending == ".jsonl.zst" else 1)
    size = (tmp_path / "raw").stat().st_size
    assert size > 2 * LIMIT_MB * MB
    assert peaks[UNITS] <= (LIMIT_MB + 400) * MB
    assert peaks[UNITS] - peaks[2] < size / 2, "blocks of it, more of them at once than a small one has"
