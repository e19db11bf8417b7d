"""Made-up request logs in any number, some hundred thousand lines a CPU second, and what of them counts.

    python bench/scale/generate.py FOLDER [--requests 1000000] [--days 30] [--organizations 100000] [--kind zst]

Writes FOLDER/<day>-<number>.jsonl.zst, each of at most a million lines (--lines-a-file), and prints as JSON how many
requests count and what they cost in 10^-9. The same arguments make the same lines. bench/rollup/generate.py makes
nastier ones, at a tenth of the pace.
"""

from __future__ import annotations

import argparse
import json
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import duckdb

HERE = Path(__file__).resolve().parent
FIRST_DAY = date(2025, 1, 1)
LINES_A_FILE = 1_000_000
_AS_LINES = "format csv, header false, quote '', escape '', delimiter '\x01'"
_COMPRESSIONS = {"zst": "zstd", "gz": "gzip"}


class Traffic(NamedTuple):
    """What is to be made: so many lines over so many days."""

    requests: int
    days: int
    organizations: int


class Truth(NamedTuple):
    """What counts of it. cost: in 10^-9. plain_bytes: before compression, as sampled from the first file."""

    requests: int
    cost: int


def write(folder: Path, traffic: Traffic, lines_a_file: int = LINES_A_FILE, kind: str = "zst") -> Truth:
    """Write raw logs; what of them counts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, counted = ((HERE / name).read_text(encoding="utf-8") for name in ("traffic.sql", "counted.sql"))
    requests = cost = 0
    with duckdb.connect(config={"memory_limit": "2GB", "preserve_insertion_order": True}) as connection:
        for number in range(traffic.days):
            day = str(FIRST_DAY + timedelta(number))
            on_day = traffic.requests * (number + 1) // traffic.days - traffic.requests * number // traffic.days
            for part, first in enumerate(range(0, on_day, lines_a_file)):
                connection.execute(
                    f"copy ({lines}) to $path ({_AS_LINES}, compression {_COMPRESSIONS[kind]})",
                    {
                        "day": day,
                        "first": first,
                        "end": min(first + lines_a_file, on_day),
                        "on_day": on_day,
                        "organizations": traffic.organizations,
                        "path": str(folder / f"{day}-{part:03}.jsonl.{kind}"),
                    },
                )
            (of_day,) = connection.execute(counted, {"day": day, "on_day": on_day}).fetchall()
            requests, cost = requests + of_day[0], cost + of_day[1]
    return Truth(requests, cost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--organizations", type=int, default=100_000)
    parser.add_argument("--lines-a-file", type=int, default=LINES_A_FILE)
    parser.add_argument("--kind", choices=_COMPRESSIONS, default="zst")
    options = parser.parse_args()
    traffic = Traffic(options.requests, options.days, options.organizations)
    print(json.dumps(write(options.folder, traffic, options.lines_a_file, options.kind)._asdict()))


if __name__ == "__main__":
    main()
