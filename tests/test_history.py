"""A published day that changed after it was over says so: for whom, from what to what, and why."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline import rollup
from pipeline.history import Restatement, restatements
from tests.conftest import Place, request

DAY = date(2025, 11, 10)


def dated(number: int, **fields: Any) -> dict[str, Any]:
    return request(number, **{"timestamp": "2025-11-10T12:00:00Z", "cost": "1", **fields})


def history(place: Place, organization_id: str | None = None) -> list[Restatement]:
    return restatements(place.layout, date(2025, 1, 1), date(2025, 12, 31), organization_id)


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
    monkeypatch.setattr(rollup, "ROLL_UP_RULE", 2)
    original = rollup.statement
    monkeypatch.setattr(
        "pipeline.engine.statement",
        lambda name: (
            original(name).replace("sum(cost), 0)", "sum(cost) * 2, 0)") if name == "roll_up_day" else original(name)
        ),
    )
    closed.roll_up()
    rollup._rule.cache_clear()
    assert {(row.organization_id, row.cause, row.cost_after) for row in history(closed)} == {
        (request()["organization_id"], "rule change", 2),
        ("org_b", "rule change", 2),
    }


def test_what_cannot_be_recorded_is_said(closed: Place, caplog: pytest.LogCaptureFixture) -> None:
    published = closed.publication().files["organization_day", date(2025, 11, 1)]
    (closed.layout.rollups / published.path).unlink()
    closed.now += timedelta(days=1)
    closed.write_raw("late.jsonl", dated(3))
    closed.roll_up()
    assert history(closed) == []
    assert "what changed of 2025-11-10 is not recorded" in caplog.text


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
