"""The server process: how it starts, what it logs, how it stops."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO

import httpx
import pytest

from pipeline.contract.settings import SettingsError
from serving.app import create_app_from_environment
from serving.keys import CreatedKey, KeyRegistry
from serving.server import ServeError, serve
from tests.serving.conftest import LiveServer, eventually, settings_for
from tests.serving.publishing import publish_days

SCRIPT = """
import sys
from pipeline.contract.settings import Settings
from serving.server import serve
serve(Settings.from_environment(), port=0, workers=int(sys.argv[1]), on_started=lambda url: print(url, flush=True))
print("stopped")
"""


class Served:
    """`serve` in a process of its own."""

    def __init__(self, data: Path, process: subprocess.Popen[str], log: IO[str], url: str) -> None:
        self.process = process
        self.log = log
        self.url = url
        self.key: CreatedKey = KeyRegistry(data / "keys.sqlite").create("org_abc123", now=datetime.now(UTC))
        self.headers = {"X-API-Key": self.key.key}
        self.path = "/v1/analytics/api-keys/daily/org_abc123?year=2025&month=11"

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)

    def status(self, connection: http.client.HTTPConnection) -> int:
        """Asks over `connection`, which stays open."""
        connection.request("GET", self.path, headers=self.headers)
        with connection.getresponse() as answer:
            answer.read()
            return answer.status

    def stop(self) -> list[str]:
        """Ends it with SIGTERM, checks that it returned in good order; what it wrote to stderr, line by line."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=20)
        self.log.seek(0)
        lines = self.log.read().splitlines()
        assert (out, self.process.returncode) == ("stopped\n", 0), lines
        return lines


@contextmanager
def served(data: Path, workers: int = 1, **variables: str) -> Iterator[Served]:
    # It is killed in the end: what it has in its temporary folder stays there.
    own = {"KEYTALLY_DATA": str(data), "KEYTALLY_RATE_LIMIT": "off", "TMPDIR": str(data.parent)}
    environment = {**os.environ, **own, **variables}
    command = [sys.executable, "-c", SCRIPT, str(workers)]
    # Not a pipe: nobody reads it until the end, and a server whose log is full waits.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), process.communicate()
            yield Served(data, process, log, url)
        finally:
            process.kill()


def test_importing_the_application_imports_no_engine() -> None:
    script = "import sys, serving.app, serving.server; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["prefect", "pandas", "dask", "distributed", "duckdb"]
    result = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_without_its_folder_or_its_port_it_does_not_start(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"the data folder .*nowhere does not exist; KEYTALLY_DATA"):
        serve(settings_for(tmp_path / "nowhere"))
    with pytest.raises(ServeError, match=r"the key registry .* cannot be used: .*KEYTALLY_KEYS"):
        serve(settings_for(data, KEYTALLY_KEYS=str(tmp_path / "nowhere" / "keys.sqlite")))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServeError, match="Address already in use"):
        serve(settings_for(data), port=taken.getsockname()[1])
    with pytest.raises(ServeError, match=r"cannot listen on no\.such\.host\.invalid"):
        serve(settings_for(data), host="no.such.host.invalid")


def test_each_request_has_one_json_line_that_names_no_secret(data: Path) -> None:
    with served(data) as server:
        before = time.time()
        for path, headers in (
            (server.path, {**server.headers, "X-Request-Id": "first"}),
            ("/nowhere%0a%22secret", {"X-API-Key": "kt_secret"}),
            (server.path, {"X-API-Key": "kt_" + "s" * 43}),
        ):
            httpx.get(server.url + path, headers=headers)
        lines = server.stop()
    assert not any("secret" in line or "sss" in line or server.key.key in line for line in lines)
    access = [line for line in map(json.loads, lines) if line["logger"] == "keytally.access"]
    route = "/v1/analytics/api-keys/daily/{org_id}"
    assert [(line["method"], line["route"], line["status"], line["key_id"]) for line in access[:3]] == [
        ("GET", route, 200, server.key.id),
        ("GET", None, 404, None),
        ("GET", route, 401, None),
    ]
    assert access[0]["trace_id"] == "first"
    assert 0 < access[0]["milliseconds"] < 5000
    assert abs(datetime.fromisoformat(access[0]["time"]).timestamp() - before) < 10


def test_answers_on_one_connection_do_not_wait_for_each_other(data: Path) -> None:
    publish_days(data, date(2025, 11, 1), [("org_abc123", date(2025, 11, 1), 1, "1", "1", "1")])
    with served(data) as server, httpx.Client() as client:
        client.get(server.url + server.path, headers=server.headers)
        begun = time.monotonic()
        for _ in range(25):
            client.get(server.url + server.path, headers=server.headers)
        assert time.monotonic() - begun < 0.7  # with Nagle's algorithm on: 40 ms each


def test_sigterm_lets_a_running_request_finish(data: Path) -> None:
    path = publish_days(data, date(2025, 11, 1), [("org_abc123", date(2025, 11, 1), 5, "1", "1", "1")])
    good = data / "good"
    shutil.move(path, good)
    os.mkfifo(path)  # the server reads until we have written: a request as slow as we like
    answers: list[httpx.Response] = []
    with served(data) as server:
        request = threading.Thread(
            target=lambda: answers.append(httpx.get(server.url + server.path, headers=server.headers, timeout=20))
        )
        request.start()
        with path.open("wb") as pipe:  # opens when the server has opened it
            server.process.send_signal(signal.SIGTERM)
            host, port = server.url.removeprefix("http://").split(":")

            def refuses() -> bool:
                try:
                    socket.create_connection((host, int(port)), timeout=1).close()
                except OSError:
                    return True
                return False

            eventually(refuses)
            assert server.process.poll() is None
            assert not answers
            good.replace(path)
            pipe.write(b"other bytes")  # it reads once more what is there then
        request.join()
        assert server.process.wait(20) == 0
    assert answers[0].status_code == 200
    assert answers[0].json()["summary"]["totalApiKeyRequests"] == 5


def test_several_workers_share_the_port_and_the_limit(data: Path) -> None:
    with served(data, workers=2, KEYTALLY_RATE_LIMIT="6/hour") as server:
        connection = server.connect()  # one connection, hence one worker
        assert [server.status(connection) for _ in range(4)] == [200, 200, 200, 429]
        statuses = []
        for _ in range(100):
            other = server.connect()
            statuses.append(server.status(other))
            other.close()
        assert statuses.count(200) <= 3  # what the other worker grants, if it was asked at all
        connection.close()
        server.stop()


@pytest.mark.parametrize(("limit", "warned"), [("1/hour", 1), ("2/hour", 0), ("off", 0)])
def test_a_limit_that_workers_cannot_share_is_warned_of_once(data: Path, limit: str, warned: int) -> None:
    with served(data, workers=2, KEYTALLY_RATE_LIMIT=limit) as server:
        connection = server.connect()
        assert server.status(connection) == 200
        connection.close()
        lines = [json.loads(line) for line in server.stop()]
    warnings = [line["message"] for line in lines if "KEYTALLY_RATE_LIMIT" in line.get("message", "")]
    assert len(warnings) == warned
    assert all("2 workers" in message for message in warnings)


def test_a_server_without_keys_or_data_says_so_when_it_starts(data: Path) -> None:
    with served(data) as server:
        said = " ".join(server.stop())
        assert "holds no reading key" in said
        assert "nothing is published yet" in said
    with served(data) as server:  # the first one was given a key
        assert "holds no reading key" not in " ".join(server.stop())


def test_the_factory_for_uvicorn_reads_the_environment(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTALLY_DATA", str(data))
    monkeypatch.setenv("KEYTALLY_CURRENCY", "EUR")
    assert "Costs are in EUR" in json.dumps(create_app_from_environment().openapi())
    monkeypatch.setenv("KEYTALLY_RATE_LIMIT", "often")
    with pytest.raises(SettingsError, match="KEYTALLY_RATE_LIMIT"):
        create_app_from_environment()


def test_an_idle_connection_stays_open_for_as_long_as_the_setting_says(data: Path) -> None:
    assert settings_for(data).keep_alive == 75, "longer than the proxies' own: nginx keeps one for 60 seconds"
    with LiveServer(settings_for(data, KEYTALLY_KEEP_ALIVE="1")) as server:
        assert server.client.get("/healthz").status_code == 200
        assert server.connections
        begun = time.monotonic()
        eventually(lambda: not server.connections, 5)
        assert 0.8 < time.monotonic() - begun < 3
    with LiveServer(settings_for(data, KEYTALLY_KEEP_ALIVE="3")) as server:
        server.client.get("/healthz")
        time.sleep(2)
        assert server.connections
    with pytest.raises(SettingsError, match="KEYTALLY_KEEP_ALIVE is '0', but must be a whole number of seconds"):
        settings_for(data, KEYTALLY_KEEP_ALIVE="0")
