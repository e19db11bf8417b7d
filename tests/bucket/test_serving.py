"""A server over a bucket: what it costs to ask, and what it answers while the bucket is away."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

import pipeline.contract.bucket
from pipeline.contract.settings import Settings
from pipeline.contract.store import open_store
from serving.names import NamesFile
from serving.reader import Reader
from tests.bucket import s3
from tests.bucket.conftest import BucketPlace
from tests.conftest import request
from tests.serving.conftest import LiveServer, eventually

NOVEMBER = date(2025, 11, 1)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(pipeline.contract.bucket, name, 0.01)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.app.open_store", functools.partial(open_store, patience=2))


@pytest.fixture
def line(place: BucketPlace) -> Iterator[s3.Line]:
    with s3.Line(place.server) as line:
        yield line


@contextmanager
def serving(place: BucketPlace, line: s3.Line, machine: str = "a server") -> Iterator[LiveServer]:
    there = place.elsewhere(machine, AWS_ENDPOINT_URL=line.url)
    variables = {"KEYTALLY_RATE_LIMIT": "off", "KEYTALLY_REFRESH_SECONDS": "0.2", **there.environment}
    with LiveServer(Settings.from_environment(variables), clock=lambda: place.now) as server:
        yield server


def daily(server: LiveServer, organization: str = "org_a", month: int = 11) -> Any:
    key = server.create_key(organization)
    answer = server.daily(key, f"year=2025&month={month}")
    assert answer.status_code == 200, answer.text
    return [(day["date"], day["requests"]) for day in answer.json()["dailyUsage"]]


def test_a_server_answers_from_a_bucket_and_sees_what_is_published(place: BucketPlace, line: s3.Line) -> None:
    place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-10-31T00:00:00Z", organization_id="org_b"))
    place.roll_up()
    obstore.put(place.client, "key_names.csv", b"organization_id,api_key_id,name\norg_a,key_1,Production\n")
    with serving(place, line) as server:
        assert daily(server) == [("2025-11-10", 1)]
        assert daily(server, "org_b", 10) == [("2025-10-31", 1)]
        assert server.client.get("/readyz").json()["version"] == 1
        key = server.create_key("org_a")
        usage = server.client.get(
            "/v1/analytics/api-keys/usage/org_a/key_1?year=2025&month=11", headers={"X-API-Key": key.key}
        )
        assert '"Production"' in usage.text
        place.write_raw("b.jsonl", request(3))
        place.roll_up()
        eventually(lambda: daily(server) == [("2025-11-10", 2)])
        place.now += timedelta(hours=1)
        place.roll_up()
        eventually(lambda: server.client.get("/readyz").json()["data_as_of"] == "2025-11-15T11:30:00Z")


def test_a_server_needs_no_right_to_write(place: BucketPlace, line: s3.Line) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    reader = {"AWS_ACCESS_KEY_ID": s3.READER, "AWS_SECRET_ACCESS_KEY": s3.READER_SECRET}
    with LiveServer(Settings.from_environment({**place.elsewhere("a server").environment, **reader})) as server:
        assert daily(server) == [("2025-11-10", 1)]
    assert place.elsewhere("a desk", **reader).ledger().publication.version == 1


def test_the_first_touch_of_an_organization_takes_three_round_trips_at_most(place: BucketPlace, line: s3.Line) -> None:
    """Who comes first to a month has its file fetched, for everybody else."""
    organizations = [f"org_{number}" for number in range(20)]
    place.write_raw(
        "a.jsonl",
        *(
            request(number, organization_id=organization, timestamp=f"2025-{month:02d}-10T00:00:00Z")
            for month in (9, 10, 11)
            for number, organization in enumerate(organizations)
        ),
    )
    place.roll_up()
    reader = Reader(place.elsewhere("a server", AWS_ENDPOINT_URL=line.url).store)
    reader.refresh()
    trips = []
    for month in (9, 10, 11):
        file = reader.confirmed.usage_of(date(2025, month, 1))
        assert file is not None
        for organization in organizations:
            line.calls.clear()
            (day,) = reader.usage_of(organization, file).days
            assert day.requests == 1
            trips.append(len(line.calls))
    assert trips == [1, *[0] * 19] * 3


def test_a_look_for_something_new_costs_one_listing_of_the_log(place: BucketPlace, line: s3.Line) -> None:
    for number in range(5):
        place.write_raw(f"{number}.jsonl", request(number))
        place.roll_up()
    reader = Reader(place.elsewhere("a server", AWS_ENDPOINT_URL=line.url).store)
    reader.refresh()
    line.calls.clear()
    for _ in range(3):
        reader.refresh()
    assert [call.method for call in line.calls] == ["GET"] * 3
    assert all("list-type=2" in call.path and "start-after" in call.path for call in line.calls), "from the newest on"
    place.now += timedelta(hours=1)
    place.roll_up()
    reader.refresh()
    assert reader.confirmed.as_of == place.now, "a run that found nothing new is seen in that listing too"
    place.write_raw("more.jsonl", request(100))
    place.roll_up()
    reader.refresh()
    assert reader.publication.version == 6


def test_names_of_keys_are_looked_for_once_a_minute(
    place: BucketPlace, line: s3.Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no part of what a look for something new costs."""
    names = NamesFile(place.elsewhere("a server", AWS_ENDPOINT_URL=line.url).store)
    for _ in range(10):
        names.refresh()
    assert len(line.calls) == 1
    obstore.put(place.client, "key_names.csv", b"organization_id,api_key_id,name\norg_a,key_1,Production\n")
    later = time.monotonic() + 60
    monkeypatch.setattr("serving.names.time.monotonic", lambda: later)
    names.refresh()
    assert names.names.of("org_a", "key_1") == "Production"


def test_while_the_bucket_is_away_the_last_version_is_served_and_readyz_says_so(
    place: BucketPlace, line: s3.Line
) -> None:
    place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-10-31T00:00:00Z"))
    place.roll_up()
    with serving(place, line) as server:
        assert daily(server) == [("2025-11-10", 1)]
        line.fate = lambda _: s3.AWAY
        eventually(lambda: server.client.get("/readyz").status_code == 503)
        assert daily(server) == [("2025-11-10", 1)]
        unseen = server.daily(server.create_key("org_a"), "year=2025&month=10")
        assert (unseen.status_code, unseen.json()["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
        assert server.client.get("/healthz").status_code == 200
        line.fate = lambda _: None
        eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert daily(server, month=10) == [("2025-10-31", 1)]


def test_a_month_of_which_there_is_a_copy_is_served_while_the_bucket_is_away(place: BucketPlace, line: s3.Line) -> None:
    """Whoever fetched it: the server before, or a run on the same machine."""
    place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-10-31T00:00:00Z"))
    place.roll_up()
    with serving(place, line) as server:
        assert daily(server, month=10) == [("2025-10-31", 1)]
    with serving(place, line) as server:
        line.fate = lambda _: s3.AWAY
        eventually(lambda: server.client.get("/readyz").status_code == 503)
        begun = time.monotonic()
        assert daily(server, month=10) == [("2025-10-31", 1)]
        assert time.monotonic() - begun < 2, "and nobody was patient"


def test_all_who_wait_for_the_same_file_are_told_at_once_that_the_bucket_is_away(
    place: BucketPlace, line: s3.Line
) -> None:
    """Not one after the other, each after a patience of its own."""
    organizations = [f"org_{number}" for number in range(8)]
    place.write_raw(
        "a.jsonl",
        request(0),
        *(
            request(number, organization_id=each, timestamp="2025-10-31T00:00:00Z")
            for number, each in enumerate(organizations)
        ),
    )
    place.roll_up()
    with serving(place, line) as server:
        keys = [server.create_key(organization) for organization in organizations]
        assert daily(server) == [("2025-11-10", 1)]
        line.fate = lambda _: s3.AWAY
        eventually(lambda: server.client.get("/readyz").status_code == 503)
        begun = time.monotonic()
        with ThreadPoolExecutor(len(keys)) as clients:
            answers = list(clients.map(lambda key: server.daily(key, "year=2025&month=10"), keys))
        assert {answer.status_code for answer in answers} == {503}
        assert 2 <= time.monotonic() - begun < 8, "one patience for all of them"


def test_a_server_answers_right_over_a_line_that_fails_every_tenth_call_and_cuts_every_twentieth(
    place: BucketPlace, line: s3.Line
) -> None:
    line.fate = s3.every(10, 20)
    with serving(place, line) as server:
        for number in range(8):
            place.write_raw(f"{number}.jsonl", request(number, timestamp=f"2025-0{number + 1}-10T00:00:00Z"))
            place.roll_up()
            eventually(lambda number=number: daily(server, month=number + 1) == [(f"2025-0{number + 1}-10", 1)])
        eventually(lambda: len(line.calls) > 60)
        for month in range(1, 9):
            assert daily(server, month=month) == [(f"2025-0{month}-10", 1)]
        assert server.client.get("/readyz").status_code == 200


def test_a_damaged_copy_is_fetched_anew_and_a_damaged_object_is_an_error(place: BucketPlace, line: s3.Line) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    file = place.publication().files["organization_day", NOVEMBER]
    machine = place.elsewhere("a server", AWS_ENDPOINT_URL=line.url)
    copy = machine.layout.rollups / file.path
    machine.store.fetch(copy).close()
    copy.write_bytes(b"x" * file.size)
    with serving(place, line) as server:
        assert daily(server) == [("2025-11-10", 1)]
    obstore.put(place.client, f"rollups/{file.path}", b"x" * file.size)
    with serving(place, line, "another server") as server:
        assert server.daily(server.create_key("org_a")).status_code == 503


def test_an_older_copy_of_the_table_put_back_is_no_news(place: BucketPlace, line: s3.Line) -> None:
    for number in range(3):
        place.write_raw(f"{number}.jsonl", request(number))
        place.roll_up()
    reader = Reader(place.elsewhere("a server", AWS_ENDPOINT_URL=line.url).store)
    reader.refresh()
    for version in (2, 3):
        obstore.delete(place.client, f"rollups/_delta_log/{version:020d}.json")
    reader.refresh()
    assert reader.failure is not None
    assert "version 3 was published, and the log ends at 1" in reader.failure
    assert reader.publication.version == 3
    place.write_raw("more.jsonl", request(9))
    place.roll_up()
    reader.refresh()
    assert (reader.failure, reader.publication.version) == (None, 2)


def test_the_cache_is_nobody_else_s(place: BucketPlace) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    folder: Path = place.settings.cache
    assert folder.stat().st_mode & 0o077 == 0
