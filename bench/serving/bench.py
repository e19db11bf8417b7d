"""How fast a hot read is, beside the least that FastAPI and Starlette need to send the same bytes.

    python bench/serving/bench.py [--rounds 5] [--seconds 3] [--connections 16]

One worker each, on this machine, with keytally's authentication, rate limit, metrics and log lines on. The servers take
turns within each round; medians over the rounds are printed as a Markdown table. Every answer is compared with what the
pipeline published. CPU is the server's alone; throughput also depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent.parent
ORGANIZATIONS = 1_000
SERVERS = ("keytally", "fastapi", "starlette")
CASES = ("one organization", "1,000 in turn", "304")


@dataclass
class Measured:
    """One server's turn: requests a second, CPU microseconds of the server a request, and the 99th percentile in ms."""

    throughput: float
    cpu: float
    p99: float


@dataclass
class Server:
    """A server under measurement: the process that answers, and where."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """User and system time that it took so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_logs(data: Path) -> None:
    """A month of requests: every organization on every day."""
    raw = data / "raw"
    raw.mkdir(parents=True)
    with (raw / "november.jsonl").open("w", encoding="utf-8") as log:
        for number in range(ORGANIZATIONS * 30):
            record = {
                "request_id": f"req_{number}",
                "timestamp": f"2025-11-{number % 30 + 1:02}T12:00:00Z",
                "organization_id": f"org_{number // 30:04}",
                "api_key_id": "key_1",
                "cost": f"0.{number:012}",
                "synapses": number,
                "neurons": number / 10,
            }
            log.write(json.dumps(record) + "\n")


def keytally(environment: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """What a command of keytally printed as JSON, one document a line."""
    command = [sys.executable, str(ROOT / "cli.py"), *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def served(name: str, environment: dict[str, str], answers: Path) -> Iterator[Server]:
    """One of the servers, answering."""
    port = free_port()
    if name == "keytally":
        command = [sys.executable, str(ROOT / "cli.py"), "serve", "--port", str(port)]
    else:
        command = [sys.executable, str(Path(__file__).parent / "peers.py"), name, str(port), str(answers)]
    with (
        (answers.parent / f"{name}.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            for _ in range(400):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield Server(process.pid, port)
        finally:
            process.terminate()


class Connection:
    """A kept-alive connection with one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.expected = (0, b"")
        self.begun = 0.0

    def ask(self, request: bytes, expected: tuple[int, bytes]) -> None:
        """Send a request; `expected` is its status and body."""
        self.expected = expected
        self.received = b""
        self.begun = time.perf_counter()
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Whether the answer is there now, whole. Raises AssertionError when it is another than expected."""
        self.received += self.socket.recv(262_144)
        head, found, body = self.received.partition(b"\r\n\r\n")
        status, expected = self.expected
        if not found or (status == 200 and len(body) < len(expected)):
            return False
        assert head.startswith(b"HTTP/1.1 %d" % status), head
        assert body == expected, "another answer than the published one"
        return True


def load(server: Server, requests: list[tuple[bytes, tuple[int, bytes]]], seconds: float, connections: int) -> Measured:
    """Ask in turn, over so many connections at once, for so long, and until everything was asked."""
    selector = selectors.DefaultSelector()
    turn = cycle(requests)
    opened = [Connection(server.port) for _ in range(connections)]
    for connection in opened:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.ask(*next(turn))
    latencies: list[float] = []
    cpu, begun = server.cpu_seconds(), time.perf_counter()
    while (now := time.perf_counter()) < begun + seconds or len(latencies) < len(requests):
        for key, _ in selector.select():
            if key.data.answered():
                latencies.append(time.perf_counter() - key.data.begun)
                key.data.ask(*next(turn))
    cpu = server.cpu_seconds() - cpu
    for connection in opened:
        connection.socket.close()
    return Measured(
        throughput=len(latencies) / (now - begun),
        cpu=cpu / len(latencies) * 1e6,
        p99=statistics.quantiles(latencies, n=100)[98] * 1e3,
    )


def requests_of(known: dict[str, dict[str, str]], case: str) -> list[tuple[bytes, tuple[int, bytes]]]:
    """What is asked in a case, each with the status and the body that are right."""
    organizations = sorted(known) if case == "1,000 in turn" else sorted(known)[:1]
    asked = []
    for organization in organizations:
        one = known[organization]
        condition = f"If-None-Match: {one['etag']}\r\n" if case == "304" else ""
        head = (
            f"GET /v1/analytics/api-keys/daily/{organization}?year=2025&month=11 HTTP/1.1\r\n"
            f"Host: localhost\r\nX-API-Key: {one['key']}\r\nAccept: */*\r\n{condition}\r\n"
        )
        asked.append((head.encode(), (304, b"") if condition else (200, one["body"].encode())))
    return asked


def published(environment: dict[str, str], data: Path) -> dict[str, dict[str, str]]:
    """For each organization its key, and the body and tag that keytally answers with."""
    (data / "organizations").write_text("".join(f"org_{n:04}\n" for n in range(ORGANIZATIONS)), encoding="utf-8")
    keys = {
        key["organization_id"]: key["key"]
        for key in keytally(environment, "keys", "create", "--orgs", str(data / "organizations"))
    }
    known = {}
    with served("keytally", environment, data / "answers.json") as server, httpx.Client() as client:
        for organization, key in keys.items():
            url = f"http://127.0.0.1:{server.port}/v1/analytics/api-keys/daily/{organization}?year=2025&month=11"
            answer = client.get(url, headers={"X-API-Key": key, "Accept-Encoding": "identity"})
            assert answer.status_code == 200 and answer.json()["summary"]["totalApiKeyRequests"] == 30
            known[organization] = {"key": key, "body": answer.text, "etag": answer.headers["ETag"]}
    return known


def median(turns: list[Measured], name: str) -> float:
    return float(statistics.median(getattr(turn, name) for turn in turns))


def table(measured: dict[tuple[str, str], list[Measured]]) -> str:
    """The medians, and how they compare with FastAPI and Starlette in the same run."""
    lines = [
        "| case | server | requests/s | × FastAPI | × Starlette | server CPU, µs a request | p99, ms | × FastAPI |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for case in CASES:
        base = "one organization" if case == "304" else case  # the peers know no conditions
        fastapi, starlette = (median(measured[base, name], "throughput") for name in ("fastapi", "starlette"))
        fastapi_p99 = median(measured[base, "fastapi"], "p99")
        for server in SERVERS:
            turns = measured.get((case, server))
            if turns:
                rate, p99 = median(turns, "throughput"), median(turns, "p99")
                lines.append(
                    f"| {case} | {server} | {rate:,.0f} | {rate / fastapi:.2f} | {rate / starlette:.2f}"
                    f" | {median(turns, 'cpu'):.0f} | {p99:.1f} | {p99 / fastapi_p99:.2f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keytally-bench-") as folder:
        data = Path(folder)
        # A limit that is counted and never reached.
        environment = {**os.environ, "KEYTALLY_DATA": folder, "KEYTALLY_RATE_LIMIT": "1000000/second"}
        write_logs(data)
        keytally(environment, "rollup")
        known = published(environment, data)
        answers = data / "answers.json"
        answers.write_text(json.dumps(known), encoding="utf-8")
        measured: dict[tuple[str, str], list[Measured]] = {}
        with (
            served("keytally", environment, answers) as own,
            served("fastapi", environment, answers) as fastapi,
            served("starlette", environment, answers) as starlette,
        ):
            servers = dict(zip(SERVERS, (own, fastapi, starlette), strict=True))
            for number in range(options.rounds + 1):
                for case in CASES:
                    for name, server in servers.items():
                        if case == "304" and name != "keytally":
                            continue
                        turn = load(server, requests_of(known, case), options.seconds, options.connections)
                        if number:  # in the first round keytally reads what it has not read yet
                            measured.setdefault((case, name), []).append(turn)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}; ", end="")
    print(f"{options.rounds} rounds of {options.seconds:g} s, {options.connections} connections\n")
    print(table(measured))


if __name__ == "__main__":
    main()
