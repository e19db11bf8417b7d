"""What a page of a month costs: made for the first time, and when it is in memory; beside an empty answer.

    PYTHONPATH=. .venv/bin/python bench/serving/pages.py

Publishes the demo's traffic and an organization with many keys by the pipeline itself, starts `keytally serve`, signs
in, and asks over one connection. Times are what a client waits; the server's own are in its log, and stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx

from pipeline.contract.settings import Settings
from pipeline.demo import ORGANIZATIONS, write_traffic
from pipeline.run import start_run
from pipeline.update import roll_up
from serving.keys import KeyRegistry

NOW = datetime(2025, 11, 20, 10, 30, tzinfo=UTC)
WIDE = "org_wide"
MEASURES = ("cost", "requests", "synapses", "neurons")


def write_wide(path: Path, keys: int) -> None:
    """A request of each key on each of five days of November, of one of five models."""
    chance = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(keys * 5):
            record = {
                "request_id": f"wide_{number}",
                "timestamp": f"2025-11-{1 + number % 5:02}T08:00:00Z",
                "organization_id": WIDE,
                "api_key_id": f"key_{number // 5:05}",
                "cost": f"{chance.randrange(10**9)}.{chance.randrange(10**9):09}"[-12:],
                "model": f"model_{chance.randrange(5)}",
            }
            file.write(json.dumps(record) + "\n")


def published(data: Path, keys: int) -> Settings:
    """A data root with both, rolled up."""
    settings = Settings.from_environment({"KEYTALLY_DATA": str(data)})
    traffic = write_traffic(data / "raw", NOW)
    traffic.deliver_late_file()
    write_wide(data / "raw" / "wide.jsonl", keys)
    with start_run(settings, lambda: NOW) as run:
        roll_up(run)
    return settings


def signed_in(url: str, settings: Settings, organization: str) -> httpx.Client:
    """A client with a session."""
    key = KeyRegistry(settings.keys).create(organization, now=NOW).key
    client = httpx.Client(base_url=url, headers={"Accept": "text/html", "Origin": url}, timeout=60)
    assert client.post("/", data={"key": key}).status_code == 303
    return client


def asked(client: httpx.Client, path: str) -> float:
    """Milliseconds that a client waits for it."""
    begun = time.perf_counter()
    answer = client.get(path)
    waited = (time.perf_counter() - begun) * 1000
    assert answer.status_code == 200, answer.text
    return waited


def row(what: str, waited: Sequence[float], served: Sequence[float]) -> str:
    """A line of the table."""
    ordered, own = sorted(waited), sorted(served)
    last = min(len(ordered) - 1, int(len(ordered) * 0.99))
    return (
        f"| {what} | {len(waited)} | {statistics.median(ordered):.1f} | {ordered[last]:.1f} |"
        f" {statistics.median(own):.2f} | {own[last]:.1f} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keys", type=int, default=10_000, help="of the organization with many")
    parser.add_argument("--rounds", type=int, default=200, help="requests of each hot row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keytally-bench-") as folder:
        settings = published(Path(folder), options.keys)
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            serving = subprocess.Popen(
                [sys.executable, "cli.py", "serve", "--port", "0", "--json"],
                env={**os.environ, "KEYTALLY_DATA": folder, "KEYTALLY_RATE_LIMIT": "off"},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
            assert serving.stdout is not None
            try:
                url = json.loads(serving.stdout.readline())["url"]
                waited = measure(url, settings, options.rounds)
            finally:
                serving.terminate()
                serving.wait()
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    # Requests stand in the log in the order in which they were asked, signing in by POST aside.
    served = iter(line["milliseconds"] for line in lines if line.get("method") == "GET")
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores; load average {load:.1f}\n")
    print("| what | n | a client waits, median ms | p99 | the server takes, median ms | p99 |")
    print("|---|--:|--:|--:|--:|--:|")
    times = [(what, one, next(served)) for what, one in waited]
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for what, one, own in times:
        kinds[what].append((one, own))
    for what, pairs in kinds.items():
        print(row(what, [one for one, _ in pairs], [own for _, own in pairs]))


def measure(url: str, settings: Settings, rounds: int) -> list[tuple[str, float]]:
    """What was asked, and how long the client waited, in order."""
    found: list[tuple[str, float]] = []
    clients = {name: signed_in(url, settings, name) for name in (*ORGANIZATIONS, WIDE)}
    first, *others = ORGANIZATIONS
    month = "/usage/{}/2025-{}?group_by={}&measure={}"
    for number in (11, 10):
        found.append(
            ("the first page of a month after a start", asked(clients[first], f"/usage/{first}/2025-{number}"))
        )
    cold = [
        (name, month.format(name, number, by, measure))
        for name in others
        for number in (10, 11)
        for by in ("api_key", "model")
        for measure in MEASURES
    ]
    random.Random(1).shuffle(cold)
    found += [("a page that nobody asked for before", asked(clients[name], path)) for name, path in cold]
    hot = month.format(first, 11, "api_key", "cost")
    asked_first = asked(clients[first], hot)
    found.append(("a page that nobody asked for before", asked_first))
    for _ in range(rounds):
        found.append(("a page that is in memory", asked(clients[first], hot)))
        found.append(("an empty answer (`/healthz`)", asked(clients[first], "/healthz")))
    for by in ("api_key", "model"):
        for measure in MEASURES:
            path = month.format(WIDE, 11, by, measure)
            found.append((f"a page of an organization of many keys, by {by}", asked(clients[WIDE], path)))
    return found


if __name__ == "__main__":
    main()
