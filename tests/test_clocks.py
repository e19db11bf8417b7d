"""A clock that is wrong takes nothing back, and no age is less than nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli
from pipeline.contract.last_run import read_last_run
from pipeline.contract.wording import age_of, ago_text
from pipeline.errors import KeytallyError
from pipeline.run import start_run
from pipeline.status import status_of
from pipeline.update import roll_up
from tests.conftest import Place, request

NOW = datetime(2025, 11, 15, 10, 30, tzinfo=UTC)


def of_today(number: int, **fields: Any) -> dict[str, Any]:
    return request(number, **{"timestamp": "2025-11-15T10:00:00Z", **fields})


def test_a_run_whose_clock_is_a_year_behind_refuses_and_takes_nothing_back(place: Place) -> None:
    place.write_raw("a.jsonl", *[of_today(number) for number in range(60)])
    place.roll_up()
    note = place.layout.last_run.read_bytes()
    place.write_raw("a.jsonl", *[of_today(number) for number in range(61)])
    place.now = NOW - timedelta(days=365)
    both = r"the clock says 2024-11-15T10:30:00Z, but the newest run began at 2025-11-15T10:30:00Z"
    with pytest.raises(KeytallyError, match=both):
        place.roll_up()
    with pytest.raises(KeytallyError, match=both):
        place.backfill("2025-11-01", "2025-11-30")
    assert place.usage()["org_a", "2025-11-15"][0] == 60
    assert place.layout.last_run.read_bytes() == note


def test_a_clock_that_is_behind_is_found_without_the_note_too(place: Place) -> None:
    place.write_raw("a.jsonl", of_today(1))
    place.roll_up()
    place.layout.last_run.unlink()
    place.now = NOW - timedelta(days=2)
    with pytest.raises(KeytallyError, match="the newest run began at 2025-11-15T10:30:00Z"):
        place.roll_up()


def test_within_a_day_a_clock_that_is_behind_takes_nothing_back(place: Place) -> None:
    place.write_raw("a.jsonl", of_today(1), of_today(2))
    place.roll_up()
    place.now = NOW - timedelta(hours=23)
    place.write_raw("a.jsonl", of_today(1), of_today(2), of_today(3))
    report = place.roll_up()
    assert (report.lowered, report.quarantined) == ([], 0)
    assert place.usage()["org_a", "2025-11-15"][0] == 3


def test_a_run_whose_clock_was_ahead_is_overruled_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.now = NOW + timedelta(days=365)
    place.write_raw("a.jsonl", of_today(1))
    place.roll_up()
    place.now = NOW
    place.write_raw("b.jsonl", of_today(2), of_today(3, timestamp="2025-11-15T10:40:00Z"))
    with pytest.raises(KeytallyError, match="run 'keytally rollup --clock-is-right'"):
        place.roll_up()
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)
    environment = {"KEYTALLY_DATA": str(place.layout.root), "KEYTALLY_REJECTED_LIMIT": "100%"}
    done = CliRunner().invoke(cli.main, ["rollup", "--clock-is-right"], env=environment)
    assert done.exit_code == 0, done.output
    assert place.usage()["org_a", "2025-11-15"][0] == 2, "what is from the future by the right clock does not count"
    note = read_last_run(place.store)
    assert note
    assert note.started == NOW
    place.roll_up()


def test_an_age_is_never_negative_and_may_be_unknown() -> None:
    assert age_of(NOW - timedelta(hours=1), NOW) == timedelta(hours=1)
    assert age_of(NOW + timedelta(minutes=5), NOW) == timedelta(0), "the clocks of two machines"
    assert age_of(NOW + timedelta(minutes=6), NOW) is None
    assert age_of(None, NOW) is None
    assert ago_text(NOW + timedelta(days=1), NOW).startswith("age unknown: by this clock, 2025-11-16T10:30:00Z")


def test_status_says_that_an_age_is_unknown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", of_today(1))
    place.roll_up()
    place.write_raw("b.jsonl.gz", b"no gzip")
    place.now = NOW - timedelta(hours=2)
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)
    shown = CliRunner().invoke(cli.main, ["status"], env={"KEYTALLY_DATA": str(place.layout.root)}).stdout
    assert "As of       2025-11-15T10:30:00Z, age unknown: by this clock, 2025-11-15T10:30:00Z is still" in shown
    document = status_of(place.store, place.now, place.settings).as_json()
    assert [waiting["seconds"] for waiting in document["waiting"]] == [None], "it was written after that moment"
    assert json.dumps(document)


def test_a_clock_that_moves_while_a_run_is_under_way_is_no_matter(place: Place, tmp_path: Path) -> None:
    place.write_raw("a.jsonl", of_today(1))
    moments = iter([NOW])
    with start_run(place.settings, lambda: next(moments, NOW - timedelta(days=30)), publishes=True) as run:
        assert roll_up(run).published
