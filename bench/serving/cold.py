"""How long an organization waits that nobody has asked about before, and what remembering it takes.

    python bench/serving/cold.py [--organizations 200000] [--touched 5000]

Publishes a month of so many organizations × 31 days by the pipeline's own writer (a minute or two), starts the real
server, and asks over HTTP for organizations at random, each with a key of its own that was never used. In turn with
each, another organization with a fresh key asks for a month that was never published: an empty answer. All are checked.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import re
import statistics
import tempfile
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
from month import is_right, name_of, publish_month

from bench import Server, served
from serving.keys import KeyRegistry


def resident(process: int) -> float:
    """MiB of memory."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


class Asking:
    """A client of a server, and how long it waited, in ms."""

    def __init__(self, server: Server, keys: dict[int, str]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port)
        self.keys = keys

    def ask(self, organization: int, month: int) -> tuple[bytes, float]:
        """The plain answer about an organization, and the time it took."""
        path = f"/v1/analytics/api-keys/daily/{name_of(organization)}?year=2025&month={month}"
        begun = time.perf_counter()
        self.connection.request("GET", path, headers={"X-API-Key": self.keys[organization]})
        answer = self.connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - begun) * 1e3
        assert answer.status == 200, body
        return body, took


def measure(folder: Path, cache: str, touched: list[int], empty: list[int], keys: dict[int, str]) -> list[str]:
    """A row of the table: one server with so much of a cache, asked once for each organization."""
    environment = {
        **os.environ,
        "KEYTALLY_DATA": str(folder),
        "KEYTALLY_RATE_LIMIT": "off",
        "KEYTALLY_ANSWER_CACHE": cache,
    }
    cold, nothing = [], []
    with served("keytally", environment, folder / "unused") as server:
        asking = Asking(server, keys)
        for organization in empty[-20:]:
            asking.ask(organization, 11)
        fresh = resident(server.pid)
        _, first = asking.ask(touched[0], 12)  # reads and hashes the whole file
        opened, cpu = resident(server.pid), server.cpu_seconds()
        for organization, other in zip(touched[1:], empty, strict=False):
            nothing.append(asking.ask(other, 11)[1])
            body, took = asking.ask(organization, 12)
            cold.append(took)
            assert is_right(json.loads(body, parse_float=Decimal), organization), body
        cpu = (server.cpu_seconds() - cpu) / len(cold) * 1e3
        grown = resident(server.pid)
    figures = []
    for times in (cold, nothing):
        cuts = statistics.quantiles(times, n=100)
        figures += [cuts[49], cuts[98]]
    p50, p99, empty50, empty99 = figures
    return [
        *(cache, f"{first / 1e3:.1f}", f"{p50:.1f}", f"{p99:.1f}", f"{empty50:.1f}", f"{empty99:.1f}"),
        *(f"{p50 - empty50:.1f}", f"{p99 - empty99:.1f}", f"{cpu:.1f}"),
        *(f"{fresh:.0f}", f"{opened - fresh:+.0f}", f"{grown - opened:+.0f}", f"{grown - fresh:+.0f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organizations", type=int, default=200_000)
    parser.add_argument("--touched", type=int, default=5_000)
    parser.add_argument("--caches", nargs="+", default=["64MiB", "8MiB"], help="values of KEYTALLY_ANSWER_CACHE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keytally-cold-") as path:
        folder = Path(path)
        begun = time.perf_counter()
        file = publish_month(folder, options.organizations)
        took = time.perf_counter() - begun
        asked = random.Random(1).sample(range(options.organizations), 2 * options.touched)
        registry = KeyRegistry(folder / "keys.sqlite")
        made = registry.create_many([name_of(number) for number in asked], now=datetime.now(UTC))
        keys = {number: key.key for number, key in zip(asked, made, strict=True)}
        groups = pq.read_metadata(file).num_row_groups
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}; ", end="")
        print(
            f"{options.organizations:,} organizations × 31 days: {file.stat().st_size / 1e6:.0f} MB, {groups} row ",
            end="",
        )
        print(f"groups, written in {took:.0f} s; {options.touched:,} touched; load average {os.getloadavg()[0]:.1f}\n")
        print(
            "| cache | first of all, s | first touch p50, ms | p99 | empty p50 | p99 | above it p50 | p99 "
            "| CPU of both, ms | fresh, MiB | file opened | touched | both |\n"
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        )
        for cache in options.caches:
            row = measure(folder, cache, asked[: options.touched], asked[options.touched :], keys)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
