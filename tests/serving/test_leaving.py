"""Who goes before his answer is there leaves no work behind that others wait for."""

from __future__ import annotations

import json
import logging
import socket
from collections import Counter

import pytest

from serving import key_usage, questions
from serving.groups import Groups
from tests.conftest import Place
from tests.serving.conftest import LiveServer, Openings, eventually, settings_for
from tests.serving.traffic import publish, traffic

TEMPLATE = "/v1/analytics/api-keys/daily/{org_id}"


def test_questions_of_clients_that_left_are_not_read(
    place: Place, openings: Openings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built: list[object] = []

    def groups_of(*asked: object, **also: object) -> Groups:
        built.append(asked)
        return key_usage.groups_of(*asked, **also)  # type: ignore[arg-type]

    monkeypatch.setattr(questions, "groups_of", groups_of)
    caplog.set_level(logging.INFO, "keytally.access")
    publish(place, traffic())
    with LiveServer(settings_for(place.layout.root)) as server:
        key = server.create_key("org_a")
        assert server.daily(key).status_code == 200
        openings.held = "rollup=api_key_day"

        def ask(query: str, times: int = 1, headers: str = "") -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            head = f"GET /v1/analytics/api-keys/daily/org_a?year=2025&month=11&{query} HTTP/1.1\r\nHost: x\r\n"
            connection.sendall(f"{head}X-API-Key: {key.key}\r\n{headers}\r\n".encode() * times)
            return connection

        def statuses() -> Counter[int | None]:
            lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "keytally.access"]
            return Counter(line["status"] for line in lines if line["route"] == TEMPLATE)

        first = ask("group_by=model")
        assert openings.begun.wait(10)
        with_keys = [f"group_by={by}&api_key_id={name}" for by in ("model", "api_key") for name in ("a", "b", "c")]
        left = [ask(query) for query in with_keys]
        left += [ask("group_by=api_key", times=2), ask("group_by=model&fill=zero")]  # one asks twice on one connection
        looked_up = 'keytally_answer_lookups_total{result="miss"} 10.0'  # the plain month, the first, these eight
        eventually(lambda: looked_up in server.client.get("/metrics").text)
        refused = ask("group_by=model&include=coverage")
        answer = b""
        while b"still waiting; try again" not in answer:
            answer += refused.recv(2000)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        for connection in (refused, *left):
            connection.close()
        eventually(lambda: statuses()[None] == 8)
        expecting = ask("group_by=model&fill=zero&include=coverage", headers="Expect: 100-continue\r\n")
        assert len(built) == 1
        openings.go.set()
        for connection in (first, expecting):
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
            connection.close()
        assert len(built) == 2
        eventually(lambda: statuses() == {200: 3, 503: 1, None: 8})
        figures = server.client.get("/metrics").text
        assert f'keytally_requests_total{{route="{TEMPLATE}",status="none"}} 8.0' in figures
