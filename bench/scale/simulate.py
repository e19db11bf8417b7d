"""What a day takes at every power of ten of its requests, reckoned from what was measured at the small end.

    .venv/bin/python -m bench.scale.simulate [--core-hour 0.04] [--write]

Reads measured.json (bench.py), measures what the ledger takes (ledger.py), and reckons on in straight lines; --write
puts both tables into docs/scaling.md. Prices are given, not known: put your own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bench.rollup.measured import ROOT, must, run, tell
from bench.scale.bench import noted
from pipeline.buckets import LINES_A_BUCKET, LINES_IN_ONE_STEP
from pipeline.contract.tables import USAGE
from pipeline.rollup import FILES_AT_ONCE

PAGE = ROOT / "docs" / "scaling.md"
MIB, DAYS_A_MONTH, DAYS_KEPT, RAW_DAYS = 2**20, 30, 365, 35
SHARD_REQUESTS, SHARD_ORGANIZATIONS = 10**8, 200_000  # the latter is what a published file may well have
POWERS = range(6, 12)


@dataclass(frozen=True)
class Prices:
    """What a cloud is paid. writes, reads: for 1,000 PUTs or listings, and 1,000 GETs. stored: a GB for a month."""

    core_hour: float
    writes: float
    reads: float
    stored: float


@dataclass(frozen=True)
class Shape:
    """What traffic and machines are supposed to be. usage: rows of key and model of an organization on a day. hours:
    that a night may take. cores: of a machine."""

    requests_an_organization: int
    most_organizations: int
    usage: int
    lines_a_file: int
    hours: float
    cores: int


@dataclass(frozen=True)
class Coefficients:
    """As measured. CPU seconds of a request, of a row that comes out and of a raw file; bytes of a request raw and as
    an event, of a row published in all rollups; of a raw file ever taken in: bytes, and CPU seconds and memory of each
    run."""

    request: float
    row: float
    file: float
    misses: float  # by how much a cell differs from what these two make of it, at most
    raw: float
    event: float
    published: float
    file_stored: float
    file_cpu: float
    file_memory: float
    share: float


def coefficients() -> Coefficients:
    """From the cells that were measured without Dask."""
    cells = [one for one in noted().values() if not one.cell.workers]
    taken = [
        (one.cell.requests, one.published["rows"], one.cell.days * math.ceil(one.cell.requests / one.cell.days / 10**6))
        for one in cells
    ]
    # Each cell counts alike, the small ones too. That a command which finds nothing takes a second is left out.
    per = np.array(taken, dtype=float) / np.array([[one.cpu] for one in cells])
    request, row, file = np.linalg.lstsq(per, np.ones(len(cells)), rcond=None)[0]
    misses = float(np.abs(per @ [request, row, file] - 1).max())
    ledger, shares = (
        json.loads(must(run([sys.executable, "-m", f"bench.scale.{name}"], {"PYTHONPATH": str(ROOT)})).said)
        for name in ("ledger", "shares")
    )
    largest = max(cells, key=lambda one: one.published["rows"])
    return Coefficients(
        request=float(request),
        row=float(row),
        file=float(file),
        misses=misses,
        raw=largest.published["raw"] * MIB / largest.cell.requests,
        event=largest.published["events"] * MIB / largest.cell.requests,
        published=largest.published["rollups"] * MIB / largest.published["rows"],
        file_stored=ledger["stored"],
        file_cpu=ledger["cpu"],
        file_memory=ledger["memory"],
        share=shares["share_cpu"],
    )


@dataclass(frozen=True)
class Day:
    """A day of so many requests."""

    requests: int
    shape: Shape
    costs: Coefficients

    @property
    def organizations(self) -> int:
        return min(self.shape.most_organizations, max(1, self.requests // self.shape.requests_an_organization))

    @property
    def rows(self) -> int:
        """Of organization, key and model."""
        return min(self.requests, self.organizations * self.shape.usage)

    @property
    def rows_of_month(self) -> float:
        """Rows that a night writes anew: those of all days of the month so far, in the mean."""
        return self.rows * (DAYS_A_MONTH + 1) / 2

    @property
    def files(self) -> int:
        return math.ceil(self.requests / self.shape.lines_a_file)

    @property
    def buckets(self) -> int:
        return math.ceil(self.requests / LINES_A_BUCKET) if self.requests > LINES_IN_ONE_STEP else 0

    @property
    def parts(self) -> int:
        """Of a day in buckets: steps, beside its buckets. Small files share one."""
        if not self.buckets:
            return 0
        in_a_part = min(FILES_AT_ONCE, max(1, LINES_A_BUCKET // self.shape.lines_a_file))
        return max(math.ceil(self.files / in_a_part), self.buckets)

    @property
    def between(self) -> int:
        """Files between the steps: sums, hashes and copies of each part, and two of each bucket."""
        return 3 * self.parts + 2 * self.buckets

    @property
    def fetched(self) -> int:
        """How often one of them is fetched: sums once; what every step looks into, once by each machine."""
        return self.parts + self.buckets + self.machines * (2 * self.parts + self.buckets)

    @property
    def machines(self) -> int:
        return math.ceil(self.core_hours / self.shape.hours / self.shape.cores)

    @property
    def core_hours(self) -> float:
        """At most: what was measured of a row is charged for each time that it is written anew."""
        seconds = self.requests * self.costs.request + self.rows_of_month * self.costs.row
        return (seconds + self.files * self.costs.file + self.sharing) / 3600

    @property
    def sharing(self) -> float:
        """CPU seconds that go into opening files: each bucket looks into all parts' hashes and copies, and each part
        into all buckets' repeated hashes."""
        return 3 * self.parts * self.buckets * self.costs.share

    @property
    def alone_hours(self) -> float:
        """What no worker takes off the coordinator: the month's tables, and the ledger."""
        return (self.rows_of_month * self.costs.row + self.known_files * self.costs.file_cpu) / 3600

    @property
    def known_files(self) -> int:
        """Raw files that the ledger has after a year."""
        return self.files * DAYS_KEPT

    # --- split by organization, each part a day of its own ---

    @property
    def shards(self) -> int:
        return max(math.ceil(self.requests / SHARD_REQUESTS), math.ceil(self.organizations / SHARD_ORGANIZATIONS))

    @property
    def shard(self) -> Day:
        """One of them."""
        shape = replace(self.shape, most_organizations=math.ceil(self.organizations / self.shards))
        return replace(self, requests=math.ceil(self.requests / self.shards), shape=shape)

    @property
    def events_of_shards(self) -> int:
        """Event files of a day: one of each raw file and shard, for every raw file has requests of all."""
        return self.files * self.shards

    @property
    def live_files(self) -> int:
        """Files that the newest version names after three years."""
        return 36 * (len(USAGE) * self.shards + 2)

    def billion(self, prices: Prices) -> dict[str, float]:
        """What a billion requests cost in a bucket, when there has been such traffic for a year: events stay."""
        share = 10**9 / self.requests
        one = self.shard
        writes = self.events_of_shards + self.shards * one.between
        reads = self.files + self.events_of_shards + self.shards * one.fetched
        stored = self.requests * (self.costs.raw * RAW_DAYS + self.costs.event * DAYS_KEPT)
        stored += self.rows * self.costs.published * DAYS_KEPT
        return {
            "CPU": (self.core_hours - self.sharing / 3600 + self.shards * one.sharing / 3600)
            * prices.core_hour
            * share,
            "requests to the store": (writes * prices.writes + reads * prices.reads) / 1000 * share,
            "keeping": stored / 1e9 * prices.stored / DAYS_A_MONTH * share,
        }


def built(days: list[Day]) -> str:
    """What today's steps come to."""
    return _table(
        days,
        {
            "requests a day": lambda day: f"10^{round(math.log10(day.requests))}",
            "raw, GB": lambda day: _short(day.requests * day.costs.raw / 1e9),
            "events, GB": lambda day: _short(day.requests * day.costs.event / 1e9),
            "organizations": lambda day: f"{day.organizations:,}",
            "rows a day": lambda day: f"{day.rows:,}",
            "core hours": lambda day: _short(day.core_hours),
            "of these the coordinator's, one after another": lambda day: _short(day.alone_hours),
            "buckets": lambda day: f"{day.buckets:,}" if day.buckets else "none",
            "files between steps": lambda day: f"{day.between:,}",
            "core hours to open them": lambda day: _short(day.sharing / 3600),
            "raw files a year": lambda day: f"{day.known_files:,}",
            "the ledger's memory, GB": lambda day: _short(day.known_files * day.costs.file_memory / 1e9),
            "its CPU, s a run": lambda day: _short(day.known_files * day.costs.file_cpu),
        },
    )


def sharded(days: list[Day], prices: Prices) -> str:
    """What they come to where a day is split by organization first."""

    def priced(what: str) -> Callable[[Day], str]:
        return lambda day: _short(day.billion(prices)[what])

    return _table(
        days,
        {
            "requests a day": lambda day: f"10^{round(math.log10(day.requests))}",
            "shards": lambda day: f"{day.shards:,}",
            "buckets of each": lambda day: f"{day.shard.buckets:,}" if day.shard.buckets else "none",
            "files between steps": lambda day: f"{day.shards * day.shard.between:,}",
            "of events": lambda day: f"{day.events_of_shards:,}",
            "a month's files of a shard, MB": lambda day: _short(
                day.rows * DAYS_A_MONTH * day.costs.published / day.shards / 2 / 1e6
            ),
            "live files after 3 years": lambda day: f"{day.live_files:,}",
            "log actions a night": lambda day: f"{2 * len(USAGE) * day.shards:,}",
            "listings of raw/ a run": lambda day: f"{math.ceil(day.files * RAW_DAYS / 1000):,}",
            "CPU of 10^9": priced("CPU"),
            "the store's requests": priced("requests to the store"),
            "keeping a year of it": priced("keeping"),
        },
    )


def _table(days: list[Day], columns: dict[str, Callable[[Day], str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "--:|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(text(day) for text in columns.values()) + " |" for day in days])


def _short(value: float) -> str:
    """Two digits that count, and no more than a reckoning is worth."""
    return f"{float(f'{value:.2g}'):,.12f}".rstrip("0").rstrip(".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core-hour", type=float, default=0.04)
    parser.add_argument("--writes", type=float, default=0.005, help="price of 1,000 PUTs or LISTs")
    parser.add_argument("--reads", type=float, default=0.0004, help="price of 1,000 GETs")
    parser.add_argument("--stored", type=float, default=0.023, help="price of a GB for a month")
    parser.add_argument("--requests-an-organization", type=int, default=100)
    parser.add_argument("--most-organizations", type=int, default=10_000_000)
    parser.add_argument("--usage", type=int, default=5, help="rows of key and model of an organization on a day")
    parser.add_argument("--lines-a-file", type=int, default=1_000_000)
    parser.add_argument("--hours", type=float, default=2, help="that a night may take")
    parser.add_argument("--cores", type=int, default=16, help="of a machine")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    prices = Prices(given.core_hour, given.writes, given.reads, given.stored)
    shape = Shape(
        given.requests_an_organization,
        given.most_organizations,
        given.usage,
        given.lines_a_file,
        given.hours,
        given.cores,
    )
    costs = coefficients()
    days = [Day(10**power, shape, costs) for power in POWERS]
    told = (
        f"Measured: {costs.request * 1e6:.1f} µs of CPU a request and {costs.row * 1e6:.1f} µs a row that comes out,"
        f" {costs.file * 1000:.0f} ms a raw file (no cell is more than {costs.misses:.0%} off"
        f" this); {costs.raw:.0f} bytes a raw request, {costs.event:.0f} as an event, {costs.published:.0f} a row in"
        " all rollups; of each raw file that was ever taken in,"
        f" {costs.file_cpu * 1e6:.0f} µs of CPU and {costs.file_memory / 1000:.1f} KB of memory in every run, and"
        f" {costs.file_stored:.0f} bytes in every version; {costs.share * 1000:.1f} ms for a bucket's share in a part"
        " of a day.\n\n"
        f"Supposed: {shape.requests_an_organization} requests a day of an organization, at most"
        f" {shape.most_organizations:,} organizations, {shape.usage} rows of each on a day; raw files of"
        f" {shape.lines_a_file:,} requests, kept for {RAW_DAYS} days; one run a night, of {shape.hours:g} hours on"
        f" machines of {shape.cores} cores."
    )
    tell("built", f"{told}\n\n{built(days)}", write=given.write, of="scaling", page=PAGE)
    paid = (
        f"Prices put in: {prices.core_hour} for a core hour, {prices.writes} for 1,000 writes or listings,"
        f" {prices.reads} for 1,000 reads, {prices.stored} for a GB a month. A shard has at most {SHARD_REQUESTS:,}"
        f" requests a day and {SHARD_ORGANIZATIONS:,} organizations."
    )
    tell("sharded", f"{paid}\n\n{sharded(days, prices)}", write=given.write, of="scaling", page=PAGE)


if __name__ == "__main__":
    main()
