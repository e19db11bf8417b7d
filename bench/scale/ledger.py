"""What the ledger of files takes, of which every run reads all and writes all: one line of JSON.

.venv/bin/python -m bench.scale.ledger [FILES]
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.contract.tables import FILE_LEDGER
from pipeline.intake import EventFile, TakeIn
from pipeline.ledger import FileEntry, _file_entry, write_file_ledger
from tests.peak import kilobytes

FILES = 100_000


@dataclass(frozen=True)
class Costs:
    """Of each raw file that was ever taken in: bytes stored, CPU seconds to read and write them, bytes of memory."""

    files: int
    stored: float
    cpu: float
    memory: float


def entry(number: int) -> FileEntry:
    """A raw file of a million lines of one day."""
    content = hashlib.sha256(str(number).encode()).hexdigest()
    day = date(2025, 1, 1) + timedelta(number % 365)
    events = (EventFile(day, 999_900, f"{content[:32]}-{content[32:]}.parquet"),)
    started = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(number % 365)
    signature = f"{40_000_000 + number} {number} {1_735_689_600_000_000_000 + number}"
    take_in = TakeIn(
        content[:32], content, "native.jsonl.zst", "0123456789abcdef", started, 10**6, 999_900, 100, None, None, events
    )
    return FileEntry(f"gateway-{number % 50}/{day}-{number:08}.jsonl.zst", signature, None, take_in)


def measure(files: int) -> Costs:
    before = kilobytes()
    with tempfile.TemporaryDirectory(prefix="keytally-ledger-") as folder:
        path = Path(folder) / "file.parquet"
        write_file_ledger(map(entry, range(files)), path)
        begun = time.process_time()
        kept = [_file_entry(row) for row in pq.read_table(path, schema=FILE_LEDGER.arrow_schema).to_pylist()]
        write_file_ledger(kept, path)
        took = time.process_time() - begun
        return Costs(files, path.stat().st_size / files, took / files, (kilobytes() - before) * 1024 / files)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1]) if len(sys.argv) > 1 else FILES))))
