"""Zero or missing: through which moment the data goes, and of each day whether its zero is one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.contract.published import PublishedFile, run_of
from pipeline.contract.tables import DAY_LEDGER
from pipeline.run import start_run
from pipeline.update import roll_up
from serving.errors import UsageUnavailable
from serving.keys import CreatedKey
from serving.reader import Reader
from serving.usage import Usage
from tests.conftest import Place, Record, lines, request
from tests.serving.conftest import LiveServer, eventually, settings_for

COVERAGE = "year=2025&month=11&include=coverage"
AS_OF = "x-data-as-of"


def at(moment: str) -> datetime:
    return datetime.fromisoformat(moment).astimezone(UTC)


def on(day: int, number: int = 1, **fields: object) -> Record:
    """A request of org_a on that day of November."""
    return request(number, timestamp=f"2025-11-{day:02d}T08:00:00Z", **fields)


def gz(*records: Record) -> bytes:
    return gzip.compress(lines(*records), mtime=0)


def states(server: LiveServer, key: CreatedKey, query: str = COVERAGE) -> dict[str, tuple[str, int]]:
    """State and requests of each day of the month, by the day's number."""
    answer = server.daily(key, query)
    assert answer.status_code == 200, answer.text
    return {day["date"][-2:]: (day["state"], day["requests"]) for day in answer.json()["coverage"]}


def loaded(server: LiveServer, key: CreatedKey) -> dict[str, tuple[str, int]]:
    """As `states`, but only the days that are loaded in some way."""
    return {day: covered for day, covered in states(server, key).items() if covered[0] != "not_loaded"}


def ledger_of(place: Place) -> PublishedFile:
    return next(file for file in place.publication().files.values() if file.rollup == DAY_LEDGER.name and file.month)


@pytest.fixture
def server(place: Place) -> Iterator[LiveServer]:
    """A server over `place`, at 2025-11-15T10:30:00Z as the first run there."""
    with LiveServer(settings_for(place.layout.root, KEYTALLY_REFRESH_SECONDS="0.2")) as running:
        yield running


def seen(server: LiveServer, as_of: str) -> None:
    """Waits until the server answers with this data-as-of."""
    eventually(lambda: server.client.get("/").headers.get(AS_OF) == as_of)


def test_a_zero_is_told_from_a_day_that_is_missing(place: Place, server: LiveServer) -> None:
    place.write_raw(
        "a.jsonl", on(12), on(12, 2), on(13, 3, organization_id="org_b"), on(15, 4, organization_id="org_b")
    )
    place.write_raw("b.jsonl", on(14, 5, api_key_id=None))
    place.roll_up()
    seen(server, "2025-11-15T10:30:00Z")
    covered = states(server, server.create_key("org_a"))
    assert list(covered) == [f"{day:02d}" for day in range(30, 0, -1)]
    expected = {"12": ("loaded", 2), "13": ("loaded", 0), "14": ("loaded", 0), "15": ("open", 0)}
    assert covered == {day: expected.get(day, ("not_loaded", 0)) for day in covered}


def test_a_day_is_open_until_a_run_starts_after_its_end(place: Place, server: LiveServer) -> None:
    key = server.create_key("org_a")
    place.write_raw("a.jsonl", on(14), request(2, timestamp="2025-11-16T00:01:00Z"))
    for now, expected in (
        ("2025-11-15T23:59:59.999+00:00", {"14": ("loaded", 1), "16": ("open", 1)}),
        ("2025-11-16T23:59:59.999+00:00", {"14": ("loaded", 1), "16": ("open", 1)}),
        ("2025-11-17T00:00:00+00:00", {"14": ("loaded", 1), "16": ("loaded", 1)}),
    ):
        place.now = at(now)
        place.roll_up()
        seen(server, f"{now[:19]}Z")
        assert loaded(server, key) == expected


def test_a_run_that_finds_nothing_new_moves_as_of_and_nothing_else(place: Place, server: LiveServer) -> None:
    key = server.create_key("org_a")
    place.write_raw("a.jsonl", on(12))
    place.roll_up()
    seen(server, "2025-11-15T10:30:00Z")
    before = {query: server.daily(key, query) for query in ("year=2025&month=11", COVERAGE)}
    version = place.publication().version
    place.now = at("2025-11-15T11:00:00.9+00:00")
    place.roll_up()
    assert place.publication().version == version
    seen(server, "2025-11-15T11:00:00Z")
    for query, old in before.items():
        new = server.daily(key, query)
        assert (new.content, new.headers["etag"]) == (old.content, old.headers["etag"])
        assert new.headers[AS_OF] == "2025-11-15T11:00:00Z"
        unchanged = server.daily(key, query, If_None_Match=old.headers["etag"])
        assert (unchanged.status_code, unchanged.headers[AS_OF]) == (304, "2025-11-15T11:00:00Z")


def test_every_answer_says_through_which_moment(place: Place, server: LiveServer) -> None:
    place.roll_up()  # of nothing: that there is nothing is confirmed too
    seen(server, "2025-11-15T10:30:00Z")
    key = server.create_key("org_a")
    answers = [
        server.daily(key),
        server.daily(key, method="HEAD"),
        server.daily(key, "year=1"),
        server.daily(key, organization="org_b"),
        server.daily(None),
        server.daily(key, method="POST"),
        server.client.get("/openapi.json"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 403, 401, 405, 200]
    assert {answer.headers[AS_OF] for answer in answers} == {"2025-11-15T10:30:00Z"}


def test_where_no_run_ever_was_nobody_says_through_which_moment(server: LiveServer) -> None:
    key = server.create_key("org_a")
    for answer in (server.daily(key), server.daily(key, COVERAGE), server.daily(None)):
        assert AS_OF not in answer.headers
    assert set(states(server, key).values()) == {("not_loaded", 0)}


def test_a_month_never_published_is_not_loaded_and_nobody_keeps_it(place: Place, server: LiveServer) -> None:
    place.write_raw("a.jsonl", on(12))
    place.roll_up()
    seen(server, "2025-11-15T10:30:00Z")
    key = server.create_key("org_a")
    for query, days in (("year=2025&month=10", 31), ("year=2024&month=2", 29), ("year=2025&month=12", 31)):
        answer = server.daily(key, f"{query}&include=coverage")
        assert answer.headers["cache-control"] == "no-store"
        assert "etag" not in answer.headers
        assert [day["state"] for day in answer.json()["coverage"]] == ["not_loaded"] * days


def test_coverage_stands_behind_the_summary_and_changes_nothing_before_it(place: Place, server: LiveServer) -> None:
    place.write_raw("a.jsonl", on(12, cost="0.000000000001"), on(13, 2))
    place.roll_up()
    seen(server, "2025-11-15T10:30:00Z")
    key = server.create_key("org_a")
    for query in ("year=2025&month=11", "year=2025&month=10"):
        plain, covered = server.daily(key, query), server.daily(key, f"{query}&include=coverage")
        assert covered.content.startswith(plain.content[:-1] + b',"coverage":[{"date":"2025-')
        assert list(covered.json()) == ["organization_id", "period", "dailyUsage", "summary", "coverage"]
        assert list(covered.json()["coverage"][0]) == ["date", "state", "requests"]
        assert (
            covered.headers["content-length"]
            == server.daily(key, f"{query}&include=coverage", "", "HEAD").headers["content-length"]
        )
    assert server.daily(key).headers["etag"] != server.daily(key, COVERAGE).headers["etag"]
    assert "last-modified" in server.daily(key).headers
    assert "last-modified" not in server.daily(key, COVERAGE).headers  # it changes without a publication of the month


@pytest.mark.parametrize("query", ["include=", "include", "include=all", "include=Coverage", "include=coverage,x"])
def test_include_may_only_be_coverage(server: LiveServer, query: str) -> None:
    answer = server.daily(server.create_key("org_a"), query)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"
    assert answer.json()["error"]["system_message"] == "include must be coverage"


def test_include_may_be_given_once(server: LiveServer) -> None:
    answer = server.daily(server.create_key("org_a"), "include=coverage&include=coverage")
    assert answer.status_code == 400
    assert answer.json()["error"]["system_message"] == "include is given more than once; it must be coverage"
    assert "coverage" in server.daily(server.create_key("org_a"), "%69nclude=coverag%65").json()
    assert "coverage" not in server.daily(server.create_key("org_a"), "Include=coverage").json()


def test_a_held_back_file_is_a_finding_on_the_days_it_had_until_it_can_be_read(
    place: Place, server: LiveServer
) -> None:
    key, other = server.create_key("org_a"), server.create_key("org_b")
    place.write_raw("a.jsonl.gz", gz(on(10), on(11, 2), on(15, 3)))
    place.write_raw("b.jsonl", on(11, 4, organization_id="org_b"), on(12, 5, organization_id="org_b"))
    place.roll_up()
    seen(server, "2025-11-15T10:30:00Z")
    good = {"10": ("loaded", 1), "11": ("loaded", 1), "12": ("loaded", 0), "15": ("open", 1)}
    assert loaded(server, key) == good

    appended = gz(on(10), on(11, 2), on(15, 3), on(12, 6))
    place.write_raw("a.jsonl.gz", appended[:-8])
    place.write_raw("new.jsonl.gz", gz(on(13, 7))[:-8])  # never could be read: touches no day that anybody knows of
    place.now = at("2025-11-15T11:00:00+00:00")
    assert [held_back.file for held_back in place.roll_up().held_back] == ["a.jsonl.gz", "new.jsonl.gz"]
    seen(server, "2025-11-15T11:00:00Z")
    # The 12th too: what can be read of the file has a line of this day, which waits.
    doubtful = good | {
        "10": ("loaded_with_findings", 1),
        "11": ("loaded_with_findings", 1),
        "12": ("loaded_with_findings", 0),
    }
    assert loaded(server, key) == doubtful
    assert loaded(server, other)["11"] == ("loaded_with_findings", 1)  # whose records the file holds nobody can tell

    place.now = at("2025-11-15T11:30:00+00:00")
    place.roll_up()
    seen(server, "2025-11-15T11:30:00Z")
    assert loaded(server, key) == doubtful

    place.write_raw("a.jsonl.gz", appended)
    (place.layout.raw / "new.jsonl.gz").unlink()
    place.now = at("2025-11-15T12:00:00+00:00")
    place.roll_up()
    seen(server, "2025-11-15T12:00:00Z")
    assert loaded(server, key) == good | {"12": ("loaded", 1)}


def test_a_day_that_cannot_be_rolled_up_anew_is_a_finding(place: Place, server: LiveServer) -> None:
    key = server.create_key("org_a")
    lost = place.write_raw("a.jsonl", on(11), on(12, 2))
    content = lost.read_bytes()
    place.roll_up()
    lost.unlink()
    for events in place.layout.events_of(date(2025, 11, 12)).iterdir():
        events.unlink()
    place.write_raw("late.jsonl", on(12, 3))
    place.now = at("2025-11-15T11:00:00+00:00")
    place.roll_up()
    seen(server, "2025-11-15T11:00:00Z")
    assert loaded(server, key) == {"11": ("loaded", 1), "12": ("loaded_with_findings", 1)}
    lost.write_bytes(content)
    place.now = at("2025-11-15T12:00:00+00:00")
    place.roll_up()
    seen(server, "2025-11-15T12:00:00Z")
    assert loaded(server, key) == {"11": ("loaded", 1), "12": ("loaded", 2)}


def test_the_traffic_of_others_makes_a_day_loaded_and_is_never_counted_out(place: Place, server: LiveServer) -> None:
    others = [on(10, n, organization_id=f"org_{n % 7}", cost="777.77") for n in range(4321)]
    place.write_raw("a.jsonl", *others, on(10, 1, organization_id="org_a"))
    place.roll_up()
    seen(server, "2025-11-15T10:30:00Z")
    own, stranger = (server.daily(server.create_key(name), COVERAGE) for name in ("org_a", "org_zzz"))
    assert {day["date"][-2:]: day["requests"] for day in own.json()["coverage"] if day["requests"]} == {"10": 1}
    assert {"date": "2025-11-10", "state": "loaded", "requests": 0} in stranger.json()["coverage"]
    assert {day["requests"] for day in stranger.json()["coverage"]} == {0}
    for answer in (own, stranger):
        assert not any(secret in answer.text for secret in ("4321", "4322", "617", "618", "777", "org_1", "a.jsonl"))
    assert server.daily(server.create_key("org_zzz"), COVERAGE, "org_a").status_code == 403


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{rubbish",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"started": "2025-11-15T11:00:00", "version": 1, "held_back": [], "findings": []}',
        b'{"started": "0001-01-01T00:00:00+14:00", "version": 1, "held_back": [], "findings": []}',
        b'{"started": "2025-11-15T11:00:00Z", "version": "one", "held_back": [], "findings": []}',
        b'{"started": "2025-11-15T11:00:00Z", "version": 1, "held_back": 7, "findings": [7]}',
        None,
    ],
    ids=range(11),
)
def test_without_a_usable_note_the_commit_says_through_which_moment(place: Place, note: bytes | None) -> None:
    place.write_raw("a.jsonl", on(12), on(15, 2))
    place.roll_up()
    if note is None:
        place.layout.last_run.unlink()
        place.layout.last_run.mkdir()
    else:
        place.layout.last_run.write_bytes(note)
    reader = Reader(place.store)
    reader.refresh()
    assert reader.failure is None
    assert reader.as_of() == b"2025-11-15T10:30:00Z"
    assert reader.confirmed.coverage_of(date(2025, 11, 1)).first_open == date(2025, 11, 15)


def test_while_the_table_cannot_be_read_no_later_moment_is_promised(place: Place) -> None:
    place.write_raw("a.jsonl", on(12))
    place.roll_up()
    reader = Reader(place.store)
    reader.refresh()
    place.now = at("2025-11-15T11:00:00+00:00")
    place.write_raw("b.jsonl", on(13, 2))
    place.roll_up()
    entry = place.layout.rollups / "_delta_log" / f"{place.publication().version:020d}.json"
    good = entry.read_bytes()
    entry.write_bytes(b"{rubbish")
    for _ in range(2):
        reader.refresh()
        assert reader.failure is not None
        assert (reader.publication.version, reader.as_of()) == (1, b"2025-11-15T10:30:00Z")
    entry.write_bytes(good)
    reader.refresh()
    assert (reader.publication.version, reader.as_of()) == (2, b"2025-11-15T11:00:00Z")


def test_each_version_tells_of_its_own_run(place: Place) -> None:
    place.write_raw("a.jsonl.gz", gz(on(11), on(12, 2)))
    place.roll_up()
    place.write_raw("a.jsonl.gz", gz(on(11), on(12, 2), on(13, 3))[:-8])
    place.write_raw("b.jsonl", on(14, 4))
    place.now = at("2025-11-15T11:00:00+00:00")
    place.roll_up()
    told = [run_of(place.store, version) for version in range(4)]
    assert [run and (run.started, run.version, len(run.findings)) for run in told] == [
        None,
        (at("2025-11-15T10:30:00+00:00"), 1, 0),
        (at("2025-11-15T11:00:00+00:00"), 2, 3),
        None,
    ]
    place.layout.last_run.unlink()
    reader = Reader(place.store)
    reader.refresh()
    assert reader.confirmed.coverage_of(date(2025, 11, 1)).findings == {date(2025, 11, day) for day in (11, 12, 13)}


def test_a_confirmation_is_seen_in_time(place: Place) -> None:
    place.roll_up()
    with LiveServer(settings_for(place.layout.root)) as server:
        place.now = at("2025-11-15T11:00:00+00:00")
        place.roll_up()
        waited = eventually(lambda: server.client.get("/").headers.get(AS_OF) == "2025-11-15T11:00:00Z")
        assert waited < server.settings.refresh_seconds == 1


def test_a_note_that_is_spoiled_and_written_anew_is_followed(place: Place, server: LiveServer) -> None:
    place.write_raw("a.jsonl", on(12))
    place.roll_up()
    place.now = at("2025-11-15T11:00:00+00:00")
    place.roll_up()
    seen(server, "2025-11-15T11:00:00Z")
    place.layout.last_run.write_bytes(b"{rubbish")
    seen(server, "2025-11-15T10:30:00Z")
    place.now = at("2025-11-15T12:00:00+00:00")
    place.roll_up()
    seen(server, "2025-11-15T12:00:00Z")


def test_a_note_that_cannot_be_written_does_not_take_back_what_was_published(place: Place, server: LiveServer) -> None:
    place.layout.last_run.mkdir()
    place.write_raw("a.jsonl", on(12))
    assert place.roll_up().version == place.publication().version
    seen(server, "2025-11-15T10:30:00Z")


def test_a_run_that_started_earlier_and_ends_later_takes_no_moment_back(place: Place) -> None:
    def started() -> str:
        return str(json.loads(place.layout.last_run.read_bytes())["started"])

    place.write_raw("a.jsonl", on(12))
    place.roll_up()
    place.write_raw("b.jsonl", on(13, 2))
    moments = iter([at("2025-11-15T10:00:00+00:00")])
    with start_run(place.settings, lambda: next(moments, at("2025-11-15T10:31:00+00:00"))) as earlier:
        roll_up(earlier)
    assert started() == "2025-11-15T10:30:00+00:00"
    # But a note from the future was written by a clock that was wrong, and is not kept until that moment has come.
    place.now = at("2025-11-15T10:00:00+00:00")
    place.roll_up()
    assert started() == "2025-11-15T10:00:00+00:00"


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_flip, Path.unlink])
def test_a_damaged_ledger_of_days_is_an_error_for_coverage_alone(place: Place, damage: object) -> None:
    place.write_raw("a.jsonl", on(12))
    place.roll_up()
    path = place.layout.rollups / ledger_of(place).path
    good = path.read_bytes()
    assert callable(damage)
    damage(path)
    with LiveServer(settings_for(place.layout.root)) as server:
        key = server.create_key("org_a")
        assert [server.daily(key, COVERAGE).status_code for _ in range(3)] == [503, 503, 503]
        assert server.daily(key).status_code == 200
        assert server.daily(key, "year=2025&month=10&include=coverage").status_code == 200
        path.write_bytes(good)
        assert loaded(server, key) == {"12": ("loaded", 1)}


def test_usage_and_coverage_are_of_one_version(place: Place, server: LiveServer) -> None:
    key = server.create_key("org_a")
    place.roll_up()
    for day in range(1, 8):
        place.write_raw(f"{day}.jsonl", on(day))
        place.now = place.now.replace(minute=30 + day)
        place.roll_up()

        def newest(day: int = day) -> bool:
            body = server.daily(key, COVERAGE).json()
            counted = {usage["date"]: usage["requests"] for usage in body["dailyUsage"]}
            covered = {entry["date"]: entry["requests"] for entry in body["coverage"] if entry["requests"]}
            assert counted == covered
            assert {entry["date"] for entry in body["coverage"] if entry["state"] == "loaded"} == set(counted)
            return len(counted) == day

        eventually(newest)


def test_a_day_with_usage_that_the_ledger_does_not_know_is_an_error(place: Place) -> None:
    place.write_raw("a.jsonl", on(12))
    place.roll_up()
    reader = Reader(place.store)
    reader.refresh()
    unknown = Usage(date(2025, 11, 13), 1, Decimal(1), Decimal(0), Decimal(0))
    assert reader.loaded_days(ledger_of(place), ()) == {date(2025, 11, 12)}
    for ledger in (ledger_of(place), None):
        with pytest.raises(UsageUnavailable):
            reader.loaded_days(ledger, [unknown])


def test_a_ledger_with_a_day_of_another_month_is_an_error(place: Place) -> None:
    place.write_raw("a.jsonl", on(12))
    place.roll_up()
    reader = Reader(place.store)
    reader.refresh()
    october = replace(ledger_of(place), month=date(2025, 10, 1))
    with pytest.raises(UsageUnavailable) as refusal:
        reader.loaded_days(october, ())
    assert "a day is not of this month" in str(refusal.value.reason)
