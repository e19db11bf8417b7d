"""/healthz, /readyz and /metrics: what an operator's machines ask, without a key."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path

import httpx
import pytest

from pipeline.contract.layout import Layout
from pipeline.errors import KeytallyError
from serving.checked_file import CheckedFile
from tests.conftest import Place, request
from tests.serving.conftest import NOW, LiveServer, Openings, eventually, settings_for
from tests.serving.publishing import publish_days
from tests.serving.test_errors import exchange, words_of
from tests.serving.test_pages import Visitor

NOVEMBER = date(2025, 11, 1)
UNREADABLE = (
    503,
    "SERVICE_UNAVAILABLE",
    "server_error",
    "Usage data is temporarily unavailable",
    "Published usage data cannot be read",
)


def figures(answer: httpx.Response) -> dict[str, float]:
    """Each sample by its name and labels."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def metrics(server: LiveServer) -> dict[str, float]:
    return figures(server.client.get("/metrics"))


def test_an_alive_server_says_so_whatever_the_data(data: Path) -> None:
    (data / "rollups" / "_delta_log").mkdir(parents=True)
    (data / "rollups" / "_delta_log" / f"{0:020d}.json").write_text("rubbish")
    with LiveServer(settings_for(data)) as server:
        answer = server.client.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert answer.headers["cache-control"] == "no-store"
        assert words_of(server.client.get("/readyz")) == UNREADABLE
        assert metrics(server)["keytally_published_readable"] == 0


def test_before_anything_is_published_it_is_ready_and_answers_zeros(live_server: LiveServer) -> None:
    answer = live_server.client.get("/readyz")
    assert answer.json() == {"status": "ready", "version": 0, "data_as_of": None, "age_seconds": None}
    assert answer.headers["cache-control"] == "no-store"


def test_ready_says_which_version_and_how_old_it_is(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    later = datetime(2025, 11, 16, 10, 30, tzinfo=UTC)
    with LiveServer(settings_for(place.layout.root), clock=lambda: later) as server:
        age = (later - place.now).total_seconds()
        assert server.client.get("/readyz").json() == {
            "status": "ready",
            "version": place.publication().version,
            "data_as_of": "2025-11-15T10:30:00Z",
            "age_seconds": pytest.approx(age),
        }
        assert metrics(server)["keytally_data_age_seconds"] == pytest.approx(age)
        assert metrics(server)["keytally_published_version"] == place.publication().version


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_newest_month_is_not_ready_until_it_is_restored(data: Path, damage: str) -> None:
    path = publish_days(data, NOVEMBER, [("org_abc123", NOVEMBER, 1, "1", "1", "1")])
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1])) if damage == "flip" else path.unlink()
    with LiveServer(settings_for(data)) as server:
        assert words_of(server.client.get("/readyz")) == UNREADABLE
        path.write_bytes(good)
        assert server.client.get("/readyz").status_code == 200


def test_a_newest_month_that_is_damaged_while_it_is_open_is_not_ready(data: Path) -> None:
    path = publish_days(data, NOVEMBER, [("org_abc123", NOVEMBER, 1, "1", "1", "1")])
    good = path.read_bytes()
    with LiveServer(settings_for(data)) as server:
        assert server.client.get("/readyz").status_code == 200
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert [words_of(server.client.get("/readyz")) for _ in range(2)] == [UNREADABLE] * 2
        path.write_bytes(good)
        assert server.client.get("/readyz").status_code == 200


def test_asking_for_readiness_while_a_month_is_opened_holds_up_nobody(data: Path, openings: Openings) -> None:
    publish_days(data, NOVEMBER, [("org_abc123", NOVEMBER, 1, "1", "1", "1")])
    with LiveServer(settings_for(data)) as server, ThreadPoolExecutor(40) as clients:
        revoked = server.create_key("org_abc123")
        october = "year=2025&month=10"
        assert server.daily(revoked, october).status_code == 200
        openings.held = "2025-11"
        asked = [clients.submit(httpx.get, f"{server.url}/readyz", timeout=30) for _ in range(40)]
        try:
            assert openings.begun.wait(10)
            time.sleep(0.2)  # all of them are there
            server.keys.revoke(revoked.id, now=NOW)
            assert server.daily(server.create_key("org_abc123"), october).status_code == 200
            eventually(lambda: server.daily(revoked, october).status_code == 401, 1)
            assert not any(answer.done() for answer in asked)
        finally:
            openings.go.set()
        assert {answer.result().status_code for answer in asked} == {200}
    assert len(openings.opened) == 1


def test_a_damage_that_a_request_finds_is_not_ready_until_another_file_stands_there(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckedFile, "BLOCK", 16)  # so that readiness looks elsewhere than where the damage is
    path = publish_days(data, NOVEMBER, [("org_abc123", NOVEMBER, 1, "1", "1", "1")])
    good = path.read_bytes()
    with LiveServer(settings_for(data)) as server:
        key = server.create_key("org_abc123")
        assert server.client.get("/readyz").status_code == 200
        path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
        assert server.client.get("/readyz").status_code == 200
        assert words_of(server.daily(key)) == UNREADABLE
        assert words_of(server.client.get("/readyz")) == UNREADABLE
        (data / "restored").write_bytes(good)
        (data / "restored").rename(path)
        assert server.daily(key).status_code == 200
        assert server.client.get("/readyz").status_code == 200


def test_a_table_that_cannot_be_read_any_more_is_not_ready_but_goes_on_answering(data: Path) -> None:
    publish_days(data, NOVEMBER, [("org_abc123", NOVEMBER, 1, "1", "1", "1")])
    with LiveServer(settings_for(data)) as server:
        key = server.create_key("org_abc123")
        assert server.client.get("/readyz").status_code == 200
        rollups = Layout(data).rollups
        rollups.rename(data / "aside")
        eventually(lambda: server.client.get("/readyz").status_code == 503)
        assert metrics(server)["keytally_published_readable"] == 0
        (data / "aside").rename(rollups)
        eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert server.daily(key).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_they_are_as_every_other_path(live_server: LiveServer, path: str) -> None:
    get, head = live_server.client.get(path), live_server.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert "content-length" in head.headers
    refused = live_server.client.post(path)
    assert words_of(refused)[:2] == (405, "METHOD_NOT_ALLOWED")
    assert refused.headers["allow"] == "GET, HEAD"
    assert words_of(live_server.client.get(f"{path}/"))[0] == 404


def test_requests_are_counted_by_route_and_status_and_by_nothing_else(data: Path) -> None:
    publish_days(data, NOVEMBER, [("org_abc123", NOVEMBER, 1, "1", "1", "1")])
    with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT="6/hour")) as server:
        key = server.create_key("org_abc123")
        etag = server.daily(key).headers["etag"]
        server.daily(key)
        server.daily(key, If_None_Match=etag)
        server.daily(key, method="HEAD")
        server.daily(key, organization="org_secret")
        server.daily(key, "month=13")
        server.daily(key)
        server.daily(None)
        for path in ("/org_secret", f"/{key.key}", "/docs"):
            server.client.get(path)
        shown = metrics(server)
        text = server.client.get("/metrics").text
    route = "/v1/analytics/api-keys/daily/{org_id}"
    counted = {name: count for name, count in shown.items() if name.startswith("keytally_requests_total")}
    assert counted == {
        f'keytally_requests_total{{route="{route}",status="{status}"}}': count
        for status, count in ((200, 3), (304, 1), (400, 1), (401, 1), (403, 1), (429, 1))
    } | {
        'keytally_requests_total{route="other",status="404"}': 2,
        'keytally_requests_total{route="/docs",status="200"}': 1,
    }
    assert shown[f'keytally_request_seconds_count{{route="{route}"}}'] == 8
    assert shown['keytally_answer_lookups_total{result="miss"}'] == 1
    assert shown['keytally_answer_lookups_total{result="hit"}'] == 3
    for secret in ("org_abc123", "org_secret", key.key, key.id, "kt_"):
        assert secret not in text


def test_what_is_no_request_is_counted_too(live_server: LiveServer) -> None:
    exchange(live_server.port, b"rubbish\r\n\r\n")
    assert metrics(live_server)['keytally_requests_total{route="other",status="400"}'] == 1


def test_the_lines_that_the_newest_run_quarantined_are_shown(place: Place) -> None:
    with LiveServer(settings_for(place.layout.root, KEYTALLY_REFRESH_SECONDS="0.1")) as server:
        assert "keytally_last_run_quarantined_lines" not in metrics(server)

        def quarantined() -> float:
            return metrics(server).get("keytally_last_run_quarantined_lines", -1)

        place.write_raw("a.jsonl", "rubbish", "more", request(1))
        place.roll_up()
        eventually(lambda: quarantined() == 2)
        place.roll_up()
        eventually(lambda: quarantined() == 0)  # it took in nothing


def test_every_figure_says_what_it_is(live_server: LiveServer) -> None:
    text = live_server.client.get("/metrics").text
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert names == set(re.findall(r"^# HELP (\S+) .{10,}", text, re.MULTILINE))
    assert all(name.startswith("keytally_") for name in names)


def test_finished_answers_take_no_more_memory_than_the_setting_says(data: Path) -> None:
    names = [f"org_{number}" for number in range(600)]  # some 1.8 KB each, by our own reckoning
    publish_days(data, NOVEMBER, [(name, NOVEMBER, 1, "1", "1", "1") for name in names])
    for cache, again in (("1MB", 601), ("64MB", 600)):
        with LiveServer(settings_for(data, KEYTALLY_ANSWER_CACHE=cache)) as server:
            keys = server.keys.create_many(names, now=NOW)
            for key in (*keys, keys[0]):
                assert server.daily(key).status_code == 200
            assert metrics(server)['keytally_answer_lookups_total{result="miss"}'] == again


def test_a_registry_of_keys_that_is_gone_is_not_ready_and_lets_nobody_in(data: Path) -> None:
    publish_days(data, date(2025, 11, 1), [("org_abc123", date(2025, 11, 1), 1, "1", "1", "1")])
    with LiveServer(settings_for(data)) as server:
        key = server.create_key("org_abc123")
        (data / "keys.sqlite").rename(data / "aside")
        eventually(lambda: server.client.get("/readyz").status_code == 503)
        refused = server.daily(key).json()["error"]
        assert (refused["code"], refused["system_message"]) == (
            "SERVICE_UNAVAILABLE",
            "Reading keys cannot be looked up",
        )
        (data / "aside").rename(data / "keys.sqlite")
        eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert server.daily(key).status_code == 200


def test_a_server_without_a_data_root_answers_nobody_with_zeros(tmp_path: Path) -> None:
    data, keys = tmp_path / "mount", tmp_path / "keys.sqlite"
    data.mkdir()
    with LiveServer(settings_for(data, KEYTALLY_KEYS=str(keys), KEYTALLY_REFRESH_SECONDS="0.2")) as server:
        key = server.create_key("org_abc123")
        assert words_of(server.client.get("/readyz")) == UNREADABLE
        assert words_of(server.daily(key)) == UNREADABLE
        assert server.daily(None).status_code == 401
        assert server.client.get("/healthz").status_code == 200
        assert metrics(server)["keytally_published_readable"] == 0
        (data / "raw").mkdir()
        eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert server.daily(key).status_code == 200
        (data / "raw").rmdir()
        eventually(lambda: server.client.get("/readyz").status_code == 503)
        assert words_of(server.daily(key)) == UNREADABLE
    assert list(data.iterdir()) == []


def test_no_registry_of_keys_is_made_below_a_mount_point(tmp_path: Path) -> None:
    data = tmp_path / "mount"
    data.mkdir()
    with LiveServer(settings_for(data, KEYTALLY_REFRESH_SECONDS="0.2")) as server:
        answer = server.client.get("/v1/analytics/api-keys/daily/org_abc123", headers={"X-API-Key": "kt_" + "x" * 43})
        assert answer.status_code == 503, "the key may be good"
        assert list(data.iterdir()) == []
        (data / "raw").mkdir()
        eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert server.daily(server.create_key("org_abc123")).status_code == 200


def test_the_age_of_what_a_clock_ahead_published_is_unknown(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    earlier = datetime(2025, 11, 15, 8, 30, tzinfo=UTC)
    with LiveServer(settings_for(place.layout.root), clock=lambda: earlier) as server:
        assert server.client.get("/readyz").json()["age_seconds"] is None
        shown = metrics(server)
        assert not [name for name in shown if name.endswith("age_seconds")]
        operator = server.keys.create_operator("ops", now=earlier)
        assert "The age of these numbers is unknown" in Visitor(server, operator).get("/").text


def test_the_figures_count_what_there_is_to_look_at(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2), request(1, cost="9"), "bad")
    place.write_raw("c.jsonl", request(3, cost=-1))
    place.roll_up()
    place.write_raw("a.jsonl", request(1), request(1, cost="9"), "bad")
    place.write_raw("b.jsonl.gz", b"no gzip")
    place.write_raw("access.log", request(4))
    place.roll_up()
    later = datetime(2025, 11, 15, 11, 30, tzinfo=UTC)
    with LiveServer(settings_for(place.layout.root), clock=lambda: later) as server:
        shown = metrics(server)
        assert {
            name: value for name, value in shown.items() if not name.startswith(("keytally_request", "keytally_answer"))
        } == {
            "keytally_published_readable": 1,
            "keytally_published_version": 2,
            "keytally_data_age_seconds": 3600,
            "keytally_last_run_quarantined_lines": 1,
            "keytally_last_run_exit_code": 3,
            "keytally_last_run_age_seconds": 3600,
            "keytally_held_back_files": 1,
            "keytally_ignored_logs": 1,
            "keytally_lowered_days": 1,
            "keytally_conflicting_copies": 1,
            "keytally_disagreeing_copies": 1,
            "keytally_unpriced_requests": 0,
            'keytally_quarantined_lines{reason="negative_amount"}': 1,
            'keytally_quarantined_lines{reason="not_json"}': 1,
        }
        place.now = datetime(2025, 11, 15, 11, 0, tzinfo=UTC)
        place.layout.prices.write_text("rubbish\n")
        with pytest.raises(KeytallyError):
            place.roll_up()
        failed = metrics(server)
        assert failed["keytally_last_run_exit_code"] == 1
        assert failed["keytally_last_run_age_seconds"] == 1800
        assert failed["keytally_data_age_seconds"] == 3600
        place.layout.prices.unlink()
        for path in place.layout.raw.iterdir():
            path.unlink()
        place.now = later
        place.write_raw("d.jsonl", request(9, timestamp="2025-11-12T12:00:00Z"))
        place.roll_up()
        eventually(lambda: metrics(server)["keytally_last_run_exit_code"] == 0)
        assert metrics(server)["keytally_held_back_files"] == 0
