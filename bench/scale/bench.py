"""How the cost of a first roll-up grows: with requests, days, organizations, and over workers of a cluster.

    .venv/bin/python -m bench.scale.bench [--cells 1000000/30/100000 4000000/30/100000/2] [--folder FOLDER] [--write]

A cell is requests/days/organizations, and /workers where the steps are fanned out over so many Dask workers on this
machine; without, they are over its cores. Logs are made for each cell (generate.py), rolled up by one `keytally rollup`
under a memory limit of 512 MB, compared with what the generator knows, looked at as a server does (published.py), and
removed. Each is measured once, and noted in measured.json at once: what stands there of other cells stays.
--write: the table goes into docs/performance.md, of all that is noted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.rollup.measured import ROOT, Cost, machine, must, run, tell

NOTED = Path(__file__).resolve().parent / "measured.json"
MEMORY_LIMIT = "512MB"
CELLS = [
    *("1000000/30/100000", "4000000/30/100000", "16000000/30/100000", "64000000/30/100000"),
    *("1000000/1/100000", "1000000/365/100000", "20000000/1/100000"),
    *("4000000/30/1000", "4000000/30/1000000"),
    *("4000000/30/100000/1", "4000000/30/100000/2"),
]


class Cell(NamedTuple):
    """What is rolled up, and over how many Dask workers; 0: over the cores, without Dask."""

    requests: int
    days: int
    organizations: int
    workers: int = 0

    @classmethod
    def named(cls, name: str) -> Cell:
        return cls(*map(int, name.split("/")))


@dataclass(frozen=True)
class Measured:
    """A cell's cost: seconds, MiB, and what published.py says. load: the machine's average, before and after."""

    cell: Cell
    cpu: float
    wall: float
    peak: float
    written: float
    load: tuple[float, float]
    published: Mapping[str, Any]


def measure(cell: Cell, folder: Path) -> Measured:
    """Make the logs of a cell, roll them up, look at what came out, and remove it all."""
    shape = ("--requests", "--days", "--organizations")
    made = [text for name, number in zip(shape, cell[:3], strict=True) for text in (name, str(number))]
    truth = json.loads(must(_module("generate", str(folder / "raw"), *made)).said)
    load = os.getloadavg()[0]
    cost = must(_rolled_up(cell, folder))
    published = json.loads(must(_module("published", str(folder))).said)
    if {name: published[name] for name in truth} != truth:
        sys.exit(f"{cell}: {published} is published, and the truth is {truth}")
    return Measured(cell, cost.cpu, cost.wall, cost.peak, cost.written, (load, os.getloadavg()[0]), published)


def _rolled_up(cell: Cell, folder: Path) -> Cost:
    environment = {"KEYTALLY_DATA": str(folder), "KEYTALLY_MEMORY_LIMIT": MEMORY_LIMIT}
    if cell.workers:
        return _module("cluster", str(cell.workers), "rollup", "--json", **environment)
    return run([sys.executable, str(ROOT / "cli.py"), "rollup", "--json"], environment)


def _module(name: str, *arguments: str, **environment: str) -> Cost:
    """Run a module of this package. In a process of its own, for one begins with the peak memory of its parent."""
    return run([sys.executable, "-m", f"bench.scale.{name}", *arguments], {"PYTHONPATH": str(ROOT), **environment})


# --- what is told of it ----------------------------------------------------------------------------------------------

COLUMNS: dict[str, Callable[[Measured], str]] = {
    "requests, M": lambda one: f"{one.cell.requests / 1e6:g}",
    "days": lambda one: f"{one.cell.days}",
    "organizations": lambda one: f"{one.cell.organizations:,}",
    "over": lambda one: f"{one.cell.workers} worker{'s' * (one.cell.workers > 1)}" if one.cell.workers else "2 cores",
    "CPU, s": lambda one: f"{one.cpu:.1f}",
    "µs a request": lambda one: f"{one.cpu / one.cell.requests * 1e6:.1f}",
    "wall, s": lambda one: f"{one.wall:.0f}",
    "load": lambda one: f"{one.load[0]:.0f}–{one.load[1]:.0f}",
    "peak, MiB": lambda one: f"{one.peak:.0f}",
    "raw, MiB": lambda one: f"{one.published['raw']:,.0f}",
    "written": lambda one: f"{one.written:,.0f}",
    "events": lambda one: f"{one.published['events']:,.0f}",
    "published": lambda one: f"{one.published['rollups']:,.1f}",
    "rows, M": lambda one: f"{one.published['rows'] / 1e6:.2f}",
    "largest by day": lambda one: f"{one.published['largest_organization_day']:.1f}",
    "by key": lambda one: f"{one.published['largest_api_key_day']:.1f}",
    "first look, ms": lambda one: f"{one.published['first_look']:.0f}",
    "cold read, ms": lambda one: f"{one.published['cold_read']:.1f}",
}
GROWING = {"CPU": "cpu", "peak memory": "peak", "bytes written": "written"}


def noted() -> dict[Cell, Measured]:
    """What was measured, by cell."""
    if not NOTED.exists():
        return {}
    found = [Measured(**{**one, "cell": Cell(*one["cell"])}) for one in json.loads(NOTED.read_text(encoding="utf-8"))]
    return {one.cell: one for one in found}


def note(one: Measured) -> None:
    every = sorted((noted() | {one.cell: one}).values(), key=lambda of: of.cell)
    NOTED.write_text(json.dumps([asdict(of) for of in every], indent=1) + "\n", encoding="utf-8")


def table(found: Sequence[Measured]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "--:|" * len(COLUMNS)]
    lines += ["| " + " | ".join(text(one) for text in COLUMNS.values()) + " |" for one in found]
    return "\n".join(lines)


def fits(found: Sequence[Measured]) -> list[str]:
    """How what a run takes grows along each axis, where three or more cells differ in nothing else."""
    told = []
    for axis in ("requests", "days", "organizations"):
        alike: dict[Cell, list[Measured]] = {}
        for one in found:
            alike.setdefault(one.cell._replace(**{axis: 0}), []).append(one)
        for base, those in alike.items():
            if len(those) < 3:
                continue
            grown = ", ".join(f"{name} {exponent(those, axis, of):+.2f}" for name, of in GROWING.items())
            fixed = ", ".join(f"{value:,} {name}" for name, value in zip(Cell._fields, base, strict=True) if value)
            sizes = sorted(getattr(one.cell, axis) for one in those)
            told.append(f"- {axis} from {sizes[0]:,} to {sizes[-1]:,} ({fixed}): {grown}")
    return told


def exponent(those: Sequence[Measured], axis: str, of: str) -> float:
    """The exponent of the power that fits best: the slope of a line through the logarithms."""
    sizes = [math.log(getattr(one.cell, axis)) for one in those]
    return statistics.linear_regression(sizes, [math.log(getattr(one, of)) for one in those]).slope


def report() -> str:
    found = list(noted().values())
    missing = [name for name in CELLS if Cell.named(name) not in noted()]
    parts = [
        f"{machine()}. Memory limit {MEMORY_LIMIT}; one turn each. Sizes in MiB.",
        table(found),
        "Exponents that fit best:",
        "\n".join(fits(found)),
    ]
    if missing:
        parts.append(f"Not measured here: {', '.join(missing)} (requests/days/organizations/workers).")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", default=CELLS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for name in options.cells:
        with tempfile.TemporaryDirectory(prefix="keytally-scale-", dir=options.folder) as folder:
            one = measure(Cell.named(name), Path(folder))
        note(one)
        print(table([one]).splitlines()[-1], file=sys.stderr, flush=True)
    tell("growth", report(), write=options.write, of="scale")


if __name__ == "__main__":
    main()
