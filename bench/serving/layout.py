"""How a month's file grows with its organizations: size, footer, first look, point read, memory.

    python bench/serving/layout.py [--sizes 3]

Writes files as the pipeline's writer does, of synthetic rows in order, and opens each as the server does, in a process
of its own. 200,000 and 1,000,000 organizations are written with all 31 days; 10,000,000 with 8 days, in row groups of
2,048 rows instead of 8,192: about as many row groups as 31 days have, in a quarter of the bytes.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb
from deltalake import DeltaTable
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction
from month import MEASURES

from pipeline.contract.layout import checksum_of
from pipeline.contract.published import APPLICATION, open_published, publication_of
from pipeline.contract.store import FolderStore
from pipeline.contract.tables import ORGANIZATION_DAY, published_schema
from serving.checked_file import CheckedFile
from serving.sorted_file import SortedFile

SIZES = [(200_000, 31, 8_192), (1_000_000, 31, 8_192), (10_000_000, 8, 2_048)]  # organizations, days, rows a group
READS = 1_000
_ROWS = """
copy (
    with organizations as (select range as organization from range($organizations)),
    days as (select organization, unnest(range(1, $days + 1)) as day from organizations),
    used as (select *, (organization * 1000003 + day * 7919) * 48271 % 1000000000000 as used from days)
    select
        {name} as organization_id,
        make_date(2025, 12, day::int) as day,
        {measures}
    from used
) to '{path}' (format parquet, compression zstd, parquet_version v2, row_group_size {rows})
"""
# In order of the numbers, and as hard to compress as what is random.
_NAME = "'org_' || lpad(organization::varchar, 8, '0') || left(md5(organization::varchar), 8)"


def resident() -> float:
    """MiB of memory of this process."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[0]) / 1024


def look(path: Path, organizations: int, days: int) -> list[str]:
    """Opens the file as the server does, and reads organizations at random: cells of the table."""
    asked = random.Random(1).choices(range(organizations), k=READS)
    names = duckdb.execute(f"select {_NAME} from (select unnest($asked) as organization)", {"asked": asked}).fetchall()
    before, begun, cpu = resident(), time.perf_counter(), time.process_time()
    checked = CheckedFile(io.FileIO(path), path)
    hashed = time.process_time() - cpu
    opened = SortedFile.of(checked, ORGANIZATION_DAY)
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    grown = resident() - before
    reads = []
    for (name,) in names:
        start = time.thread_time()
        assert sum(rows.num_rows for rows in opened.rows_of(name)) == days
        reads.append((time.thread_time() - start) * 1e3)
    footer = opened.parquet.metadata.serialized_size / 1e6
    return [
        *(f"{path.stat().st_size / 1e6:,.0f}", f"{len(opened.groups):,}", f"{footer:.1f}"),
        *(f"{took:.1f}", f"{hashed:.1f}", f"{cpu - hashed:.2f}", f"{grown:+.0f}"),
        *(f"{statistics.median(reads):.2f}", f"{statistics.quantiles(reads, n=100)[98]:.2f}"),
    ]


def log_of(folder: Path, files: int) -> float:
    """Seconds of CPU to learn what is published from a Delta log that names so many files."""
    table = DeltaTable.create(folder, published_schema(), partition_by=["rollup", "month"])
    added: list[AddAction | RemoveAction] = []
    for number in range(files):
        month, part = f"2025-{number % 12 + 1:02}", number // 12
        path = f"rollup=organization_day_{part}/month={month}/part-{number:032x}.parquet"
        stats = f'{{"numRecords":6200000,"minValues":{{"organization_id":"{number:020}"}}}}'
        values: dict[str, str | None] = {"rollup": f"organization_day_{part}", "month": month}
        added.append(AddAction(path, 155_000_000, values, int(datetime.now(UTC).timestamp() * 1000), True, stats))
    table.create_write_transaction(
        added,
        mode="append",
        schema=published_schema(),
        partition_by=["rollup", "month"],
        commit_properties=CommitProperties(app_transactions=[Transaction(APPLICATION, 1)]),
    )
    begun = time.process_time()
    opened = open_published(FolderStore(folder.parent))
    assert opened is not None
    assert len(publication_of(opened).files) == files
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes")
    parser.add_argument("--look", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        path, organizations, days = options.look
        print(f"| {' | '.join(look(Path(path), int(organizations), int(days)))} |")
        return
    print(
        "| organizations × days, rows a group | MB | row groups | footer, MB | first look, s | CPU to hash, s", end=" "
    )
    print("| CPU for the footer, s | MiB | point read p50, ms CPU | p99 |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(prefix="keytally-layout-") as folder:
        for organizations, days, rows in SIZES[: options.sizes]:
            path = Path(folder) / "unnamed.parquet"
            statement = _ROWS.format(path=path, rows=rows, name=_NAME, measures=MEASURES)
            duckdb.execute(statement, {"organizations": organizations, "days": days})
            path = path.rename(path.with_name(f"part-{checksum_of(path)}.parquet"))
            print(f"| {organizations:,} × {days}, {rows:,} ", end="", flush=True)
            looked = [sys.executable, __file__, "--look", str(path), str(organizations), str(days)]
            print(subprocess.run(looked, capture_output=True, text=True, check=True).stdout, end="", flush=True)
            path.unlink()
        for files in (50, 600, 1_800):
            print(
                f"\nCPU to read a log of {files:,} files: {log_of(Path(folder) / str(files) / 'rollups', files):.3f} s",
                end="",
            )
        print()


if __name__ == "__main__":
    main()
