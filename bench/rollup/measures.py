"""What it costs to keep a book of rollups up to date, each beside its yardstick, as whole commands in fresh processes.

    python bench/rollup/measures.py reroll|late|known|growth [--requests N] [--rounds 5] [--folder FOLDER] [--write]
                                    [--peers-python PYTHON] [--peer duckdb] [--format gz] [--files 5010]

reroll  a month rolled up anew from its events (`keytally backfill`), beside the same dedupe and sums by hand in DuckDB
late    one late file of 1,000 requests in a year's book, beside rolling its whole month up
known   nothing new with 5,000 known files, beside `python -c "import duckdb, pyarrow"`
growth  the first take-in of 0.5 million requests up to --requests: seconds and memory, and how they grow, beside a peer

--requests: of the month (reroll), of the year (late), at most (growth). --files: known ones; a book with a tenth of
them is measured too. The two sides of a ratio take turns.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import tempfile
from calendar import monthrange
from pathlib import Path

from measured import HERE, Cost, generate, keytally, link, machine, median, must, run, tell

FIRST_TURN = ["| what | CPU, s | least | wall, s | peak, MiB | turns |", "|---|--:|--:|--:|--:|--:|"]


def rows(measured: dict[str, list[Cost]]) -> str:
    """A table with the medians of what was measured."""
    lines = [
        f"| {name} | {median(costs, 'cpu'):.2f} | {min(cost.cpu for cost in costs):.2f} | {median(costs, 'wall'):.2f}"
        f" | {median(costs, 'peak'):.0f} | {len(costs)} |"
        for name, costs in measured.items()
    ]
    return "\n".join([*FIRST_TURN, *lines])


def ratio(measured: dict[str, list[Cost]], of: str, to: str) -> str:
    """How the one compares with the other, CPU first."""
    parts = [
        f"{median(measured[of], name) / median(measured[to], name):.2g} × the {label}"
        for name, label in (("cpu", "CPU"), ("wall", "wall time"), ("peak", "peak memory"))
    ]
    return f"{of} takes {', '.join(parts)} of {to}."


def reroll(options: argparse.Namespace, folder: Path, scratch: Path) -> str:
    traffic = folder / f"traffic-{options.requests}"
    generate(traffic, "--requests", str(options.requests))
    data = scratch / "book"
    link(traffic / options.format, data / "raw")
    keytally(data, "rollup")
    out = scratch / "by_hand.parquet"
    measured: dict[str, list[Cost]] = {"keytally backfill": [], "by hand in DuckDB": []}
    for _ in range(options.rounds):
        measured["keytally backfill"].append(keytally(data, "backfill", "--from", "2025-11-01", "--to", "2025-11-30"))
        by_hand = must(run([options.peers_python, str(HERE / "by_hand.py"), str(data / "events"), str(out)]))
        measured["by hand in DuckDB"].append(by_hand)
        for answer in ([out], sorted((data / "rollups").glob("rollup=api_key_day/*/*.parquet"))):
            must(run([sys.executable, str(HERE / "check.py"), str(traffic / "truth.parquet"), *map(str, answer)]))
    said = f"A month of {options.requests:,} requests, rolled up anew from its events. Every answer was right."
    return f"{said}\n\n{rows(measured)}\n\n{ratio(measured, *measured)}"


def late(options: argparse.Namespace, folder: Path, scratch: Path) -> str:
    data = scratch / "book"
    for month in range(1, 13):
        traffic = folder / f"year-{options.requests}-{options.format}" / f"{month:02}"
        days = min(30, monthrange(2025, month)[1])
        share = ("--requests", str(options.requests // 12), "--seed", str(100 + month), "--formats", options.format)
        generate(traffic, *share, "--first-day", f"2025-{month:02}-01", "--days", str(days))
        link(traffic / options.format, data / "raw" / f"{month:02}")
    keytally(data, "rollup")
    measured: dict[str, list[Cost]] = {"a late file": [], "the month anew": []}
    for number in range(options.rounds):
        traffic = folder / f"late-{options.format}-{number}"
        arguments = ("--requests", "1000", "--seed", str(200 + number), "--formats", options.format)
        generate(traffic, *arguments, "--first-day", "2025-06-15", "--days", "1", "--files-a-day", "1")
        link(traffic / options.format, data / "raw" / f"late-{number}")
        measured["a late file"].append(keytally(data, "rollup"))
        measured["the month anew"].append(keytally(data, "backfill", "--from", "2025-06-01", "--to", "2025-06-30"))
    measured["importing DuckDB and pyarrow"] = [imports() for _ in range(options.rounds)]
    said = (
        f"A book of 12 months of 30 days (February has 28), {options.requests // 12:,} requests each; a file of 1,000"
        " requests of 15 June arrives, and `keytally rollup` publishes it. The month anew is `keytally backfill`."
    )
    return f"{said}\n\n{rows(measured)}\n\n{ratio(measured, 'a late file', 'the month anew')}"


def imports() -> Cost:
    return must(run([sys.executable, "-c", "import duckdb, pyarrow"]))


def known(options: argparse.Namespace, folder: Path, scratch: Path) -> str:
    books = {}
    for files_a_day in (options.files // 300, options.files // 30):
        traffic = folder / f"files-{files_a_day}-{options.format}"
        arguments = ("--requests", str(files_a_day * 300), "--formats", options.format)
        generate(traffic, *arguments, "--files-a-day", str(files_a_day))
        data = scratch / f"book-{files_a_day}"
        link(traffic / options.format, data / "raw")
        keytally(data, "rollup")
        books[files_a_day * 30] = data
    few, many = books
    measured: dict[str, list[Cost]] = {f"nothing new, {count:,} known files": [] for count in books}
    measured["importing DuckDB and pyarrow"] = []
    for _ in range(options.rounds):
        for (_, data), costs in zip(books.items(), measured.values(), strict=False):
            costs.append(keytally(data, "rollup"))
        measured["importing DuckDB and pyarrow"].append(imports())
    least, most, _ = measured.values()
    each = [(b.cpu - a.cpu) / (many - few) * 1e6 for a, b in zip(least, most, strict=True)]
    said = f"`keytally rollup` when nothing is new. A known file costs {statistics.median(each):.0f} µs of CPU."
    names = list(measured)
    return f"{said}\n\n{rows(measured)}\n\n{ratio(measured, names[1], names[2])}"


def growth(options: argparse.Namespace, folder: Path, scratch: Path) -> str:
    sizes = [size for size in (500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000) if size <= options.requests]
    if len(sizes) < 2:
        sizes = [options.requests // 4, options.requests // 2, options.requests]
    measured: dict[str, dict[int, list[Cost]]] = {"keytally": {}, options.peer: {}}
    for size in sizes:
        traffic = folder / f"traffic-{size}"
        generate(traffic, "--requests", str(size))
        for _ in range(options.rounds):
            data, out = scratch / "book", scratch / "out.parquet"
            link(traffic / options.format, data / "raw")
            measured["keytally"].setdefault(size, []).append(keytally(data, "rollup"))
            shutil.rmtree(data)
            script = HERE / "peers" / f"in_{options.peer}.py"
            peer = must(run([options.peers_python, str(script), str(traffic / options.format), str(out)]))
            measured[options.peer].setdefault(size, []).append(peer)
            out.unlink()
    lines = [
        "| requests | " + " | ".join(f"{who}: CPU, s | peak, MiB" for who in measured) + " |",
        "|--:|" + "--:|" * 2 * len(measured),
    ]
    for size in sizes:
        cells = [f"{median(of[size], 'cpu'):.1f} | {median(of[size], 'peak'):.0f}" for of in measured.values()]
        lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
    fits = [
        f"{who}: CPU grows with the {exponent(of, 'cpu'):.2f}th power of the requests, peak memory with the"
        f" {exponent(of, 'peak'):.2f}th"
        for who, of in measured.items()
    ]
    return "\n".join(lines) + "\n\n" + "; ".join(fits) + "."


def exponent(costs: dict[int, list[Cost]], name: str) -> float:
    """The exponent of the power that fits best: the slope of a line through the logarithms."""
    sizes = [math.log(size) for size in costs]
    return statistics.linear_regression(sizes, [math.log(median(of, name)) for of in costs.values()]).slope


MEASURES = {"reroll": reroll, "late": late, "known": known, "growth": growth}
REQUESTS = {"reroll": 2_000_000, "late": 1_200_000, "known": 0, "growth": 10_000_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=5_010)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--format", default="gz", choices=("gz", "zst", "parquet"))
    parser.add_argument("--peer", default="duckdb")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.requests = options.requests or REQUESTS[options.measure]
    begun = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="keytally-bench-", dir=options.folder) as made_here:
        text = MEASURES[options.measure](options, options.folder or Path(made_here), Path(made_here))
    load = f"load average {begun:.1f} before and {os.getloadavg()[0]:.1f} after"
    tell(options.measure, f"{machine()}; {load}; logs as {options.format}.\n\n{text}", write=options.write)


if __name__ == "__main__":
    main()
