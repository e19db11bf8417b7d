"""A published day that changed after it was over says so: for whom, from what to what, and why."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline import rollup
from pipeline.history import MEASURES, Restatement, restatements
from pipeline.run import start_run
from pipeline.update import roll_up
from tests.conftest import Place, request

DAY = date(2025, 11, 10)


def dated(number: int, **fields: Any) -> dict[str, Any]:
    return request(number, **{"timestamp": "2025-11-10T12:00:00Z", "cost": "1", **fields})


def history(place: Place, organization_id: str | None = None) -> list[Restatement]:
    return restatements(place.store, date(2025, 1, 1), date(2025, 12, 31), organization_id)


@pytest.fixture
def closed(place: Place) -> Place:
    """A place whose 10th of November was published on the 11th."""
    place.now = datetime(2025, 11, 11, 0, 30, tzinfo=UTC)
    place.write_raw("a.jsonl", dated(1), dated(2, organization_id="org_b"))
    place.roll_up()
    assert history(place) == []
    return place


def test_a_late_file_restates_only_whom_it_concerns(closed: Place) -> None:
    closed.now += timedelta(days=1)
    closed.write_raw("late.jsonl", dated(3, cost="0.000000000001"))
    closed.roll_up()
    (row,) = history(closed)
    assert (row.day, row.organization_id, row.version, row.cause) == (DAY, request()["organization_id"], 2, "late file")
    assert row.files == ["late.jsonl"]
    assert row.run_started == closed.now
    assert (row.requests_before, row.requests_after) == (1, 2)
    assert (row.cost_before, row.cost_after) == (Decimal(1), Decimal("1.000000000001"))
    assert history(closed, "org_b") == []


def test_a_replaced_file_says_which(closed: Place) -> None:
    closed.now += timedelta(days=1)
    closed.write_raw("a.jsonl", dated(1, cost="7"), dated(2, organization_id="org_b"))
    closed.roll_up()
    (row,) = history(closed)
    assert (row.cause, row.files, row.cost_before, row.cost_after) == ("replaced file", ["a.jsonl"], 1, 7)


def test_an_organization_that_left_a_day_is_restated_to_nothing(closed: Place) -> None:
    closed.now += timedelta(days=1)
    closed.write_raw("a.jsonl", dated(1))
    closed.roll_up()
    (row,) = history(closed)
    assert (row.organization_id, row.requests_before, row.requests_after) == ("org_b", 1, 0)


def test_a_day_that_is_not_over_just_grows(place: Place) -> None:
    place.now = datetime(2025, 11, 10, 13, tzinfo=UTC)
    place.write_raw("a.jsonl", dated(1))
    place.roll_up()
    place.now += timedelta(hours=10)
    place.write_raw("b.jsonl", dated(2))
    place.roll_up()
    assert history(place) == []


def test_a_day_that_was_confirmed_after_it_was_over_is_over(place: Place) -> None:
    place.now = datetime(2025, 11, 10, 13, tzinfo=UTC)
    place.write_raw("a.jsonl", dated(1))
    place.roll_up()
    place.now = datetime(2025, 11, 11, 0, 30, tzinfo=UTC)
    place.roll_up()
    place.now += timedelta(hours=1)
    place.write_raw("late.jsonl", dated(2))
    place.roll_up()
    assert [row.cause for row in history(place)] == ["late file"]


def test_copies_that_change_no_number_are_no_restatement(closed: Place) -> None:
    closed.now += timedelta(days=1)
    closed.write_raw("copy.jsonl", dated(1), "\n")
    closed.roll_up()
    assert history(closed) == []


def test_a_changed_rule_says_so(closed: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    closed.now += timedelta(days=1)
    rollup._rule.cache_clear()
    monkeypatch.setattr(rollup, "ROLL_UP_RULE", 99)
    original = rollup.statement
    monkeypatch.setattr(
        "pipeline.engine.statement",
        lambda name: (
            original(name).replace("sum(cost) as", "sum(cost) * 2 as") if name == "roll_up_days" else original(name)
        ),
    )
    closed.roll_up()
    rollup._rule.cache_clear()
    assert {(row.organization_id, row.cause, row.cost_after) for row in history(closed)} == {
        (request()["organization_id"], "rule change", 2),
        ("org_b", "rule change", 2),
    }


def test_a_backfill_that_counts_otherwise_says_so(closed: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same contents by the same rule: only a fault in the code, mended without a word, can do that."""
    closed.now += timedelta(days=1)
    original = rollup.statement
    monkeypatch.setattr(
        "pipeline.engine.statement",
        lambda name: (
            original(name).replace("sum(cost) as", "sum(cost) * 2 as") if name == "roll_up_days" else original(name)
        ),
    )
    closed.backfill("2025-11-10", "2025-11-10")
    assert {(row.cause, *row.files) for row in history(closed)} == {("backfill",)}


@pytest.mark.parametrize(
    ("before", "after", "changed", "keys"),
    [
        ({}, {"api_key_id": "key_9"}, [], 2),
        ({}, {"model": "m"}, [], 1),
        ({}, {"status": 500}, ["failed_requests"], 1),
        ({"input_tokens": 3}, {"input_tokens": 2**63 - 1}, ["input_tokens"], 1),
        ({}, {"output_tokens": 1, "synapses": "0.5"}, ["synapses", "output_tokens"], 1),
    ],
)
def test_whatever_changes_of_a_key_or_a_model_is_recorded(
    place: Place, before: dict[str, Any], after: dict[str, Any], changed: list[str], keys: int
) -> None:
    place.write_raw("a.jsonl", dated(1, **before), dated(2), dated(3, organization_id="org_b"))
    place.roll_up()
    place.now += timedelta(days=1)
    place.write_raw("a.jsonl", dated(1, **after), dated(2), dated(3, organization_id="org_b"))
    place.roll_up()
    (row,) = history(place)
    assert (row.organization_id, row.changed, row.keys_changed) == ("org_a", changed, keys)
    assert (row.requests_before, row.requests_after) == (2, 2)
    assert {name: row.as_json()[f"{name}_before"] == row.as_json()[f"{name}_after"] for name in MEASURES} == {
        name: name not in changed for name in MEASURES
    }


def test_each_organization_is_told_its_own_cause(closed: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them share a replaced file that changed for one alone, and a late file comes in many pieces."""
    monkeypatch.setattr("pipeline.restate.FILES_AT_ONCE", 2)
    closed.now += timedelta(days=1)
    closed.write_raw("a.jsonl", dated(1, cost="7"), dated(2, organization_id="org_b"))
    for piece in range(25):
        closed.write_raw(f"late-{piece:02}.jsonl", dated(100 + piece, organization_id="org_b"))
    closed.write_raw("both.jsonl", dated(200), dated(201, organization_id="org_c"))
    closed.roll_up()
    assert {row.organization_id: (row.cause, row.files) for row in history(closed)} == {
        "org_a": ("late file, replaced file", ["a.jsonl", "both.jsonl"]),
        "org_b": ("late file", [f"late-{piece:02}.jsonl" for piece in range(20)]),
        "org_c": ("late file", ["both.jsonl"]),
    }


def test_many_organizations_are_recorded_a_part_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.restate.ORGANIZATIONS_AT_ONCE", 7)
    names = {f"org_{number}" for number in range(50)}
    for cost in "12":
        place.write_raw("a.jsonl", *(dated(1, organization_id=name, cost=cost) for name in names))
        place.roll_up()
        place.now += timedelta(days=1)
    rows = history(place)
    assert len(rows) == len(names)
    assert {(row.organization_id, row.cause, *row.files, row.cost_after) for row in rows} == {
        (name, "replaced file", "a.jsonl", 2) for name in names
    }


def test_a_file_that_left_the_day_is_named_though_its_events_are_lost(closed: Place) -> None:
    for event in closed.ledger().files["a.jsonl"].take_in.events:
        (closed.layout.events_of(event.day) / event.artifact).unlink()
    closed.now += timedelta(days=1)
    closed.write_raw("a.jsonl", dated(2, organization_id="org_b"))
    closed.roll_up()
    assert {row.organization_id: (row.cause, row.files, row.requests_after) for row in history(closed)} == {
        "org_a": ("replaced file", ["a.jsonl"], 0)
    }


def test_a_day_that_could_not_be_rolled_up_says_that_it_is_repaired(closed: Place) -> None:
    raw = closed.layout.raw / "a.jsonl"
    away = raw.rename(closed.layout.root / "away")
    for event in closed.ledger().files["a.jsonl"].take_in.events:
        (closed.layout.events_of(event.day) / event.artifact).unlink()
    closed.now += timedelta(days=1)
    closed.write_raw("late.jsonl", dated(3))
    assert closed.roll_up().has_findings
    assert history(closed) == []
    away.rename(raw)
    closed.roll_up()
    assert [(row.organization_id, row.cause, row.requests_after) for row in history(closed)] == [
        ("org_a", "repaired damage", 2)
    ]


# --- damage ----------------------------------------------------------------------------------------------------------


def published(place: Place, rollup: str) -> Path:
    return place.layout.rollups / place.publication().files[rollup, date(2025, 11, 1)].path


def daily(place: Place) -> Path:
    return place.layout.daily_of(DAY) / place.ledger().days[DAY].artifact


def test_damage_to_what_was_published_hides_no_change(closed: Place) -> None:
    """A day's own file says what it was, and the month's file of all keys does where that is damaged."""
    for number, harmed in enumerate((["organization_day", "api_key_day"], ["organization_day", "daily"]), 3):
        for name in harmed:
            (daily(closed) if name == "daily" else published(closed, name)).write_bytes(b"damaged")
        closed.now += timedelta(days=1)
        closed.write_raw(f"late-{number}.jsonl", dated(number))
        closed.roll_up()
    assert [(row.cause, row.requests_before, row.requests_after) for row in history(closed)] == [
        ("late file", 1, 2),
        ("late file", 2, 3),
    ]


def test_what_nothing_tells_any_more_is_recorded_as_unknown(closed: Place, caplog: pytest.LogCaptureFixture) -> None:
    daily(closed).write_bytes(b"damaged")
    published(closed, "api_key_day").write_bytes(b"damaged")
    closed.now += timedelta(days=1)
    closed.write_raw("late.jsonl", dated(3))
    closed.roll_up()
    assert "what was published of 2025-11-10 cannot be read any more" in caplog.text
    rows = {row.organization_id: row for row in history(closed)}
    assert {name: (row.requests_before, row.cost_before, row.requests_after) for name, row in rows.items()} == {
        "org_a": (None, None, 2),
        "org_b": (None, None, 1),
    }
    assert rows["org_a"].changed is None


def test_damage_that_is_rebuilt_as_it_was_is_no_restatement(closed: Place) -> None:
    daily(closed).write_bytes(b"damaged")
    published(closed, "api_key_day").write_bytes(b"damaged")
    closed.now += timedelta(days=1)
    closed.write_raw("copy.jsonl", dated(1), "\n")
    closed.backfill("2025-11-01", "2025-11-30")
    assert history(closed) == []


@pytest.mark.parametrize("job", ["rollup", "backfill"])
def test_a_damaged_record_stops_no_usage_and_begins_anew(
    closed: Place, caplog: pytest.LogCaptureFixture, job: str
) -> None:
    closed.now += timedelta(days=1)
    closed.write_raw("late.jsonl", dated(3))
    closed.roll_up()
    published(closed, "restatement").write_bytes(b"damaged")
    closed.now += timedelta(days=1)
    closed.write_raw("later.jsonl", dated(4), dated(5, timestamp="2025-12-01T00:00:00Z"))
    report = closed.roll_up() if job == "rollup" else closed.backfill("2025-11-01", "2025-11-30")
    assert "what was restated of 2025-11 before now is lost" in caplog.text
    assert (report.has_findings, report.as_json()["records_lost"]) == (True, ["2025-11"])
    assert [(row.version, row.requests_before, row.requests_after) for row in history(closed)] == [(3, 2, 3)]
    assert not closed.roll_up().has_findings


def test_a_clock_that_was_ahead_ends_no_day(place: Place) -> None:
    place.now = datetime(2029, 1, 1, tzinfo=UTC)
    place.write_raw("a.jsonl", dated(1))
    place.roll_up()
    place.now = datetime(2025, 11, 10, 13, tzinfo=UTC)
    place.write_raw("b.jsonl", dated(2))
    with start_run(place.settings, lambda: place.now) as run:
        assert roll_up(run, clock_is_right=True).published
    assert history(place) == []


def test_history_outlives_every_later_version(closed: Place) -> None:
    for number in range(3, 6):
        closed.now += timedelta(days=1)
        closed.write_raw(f"late-{number}.jsonl", dated(number))
        closed.roll_up()
    closed.now += timedelta(days=30)
    closed.write_raw("another-month.jsonl", request(1, timestamp="2025-12-01T00:00:00Z"))
    closed.roll_up()
    assert [(row.version, row.requests_before, row.requests_after) for row in history(closed)] == [
        (2, 1, 2),
        (3, 2, 3),
        (4, 3, 4),
    ]
