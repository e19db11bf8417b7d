"""`keytally status --check`: one line for each thing to look at, and the exit codes of a run."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cli
from pipeline.contract.last_run import read_last_run
from pipeline.errors import KeytallyError
from tests.conftest import Place, request


@pytest.fixture
def check(place: Place, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, at the moment of the place."""
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)

    def run(*arguments: str) -> Result:
        environment = {"KEYTALLY_DATA": str(place.layout.root)}
        return CliRunner().invoke(cli.main, ["status", "--check", *arguments], env=environment)

    return run


def kinds(done: Result) -> list[str]:
    return [line[:11].strip() for line in done.stdout.splitlines()]


def test_a_good_night_has_no_line_and_exit_code_0(place: Place, check: Any) -> None:
    assert (check().exit_code, check().output) == (0, "")
    place.write_raw("a.jsonl", *[request(number) for number in range(19)], "bad")
    place.roll_up()
    assert (check().exit_code, check().output) == (0, "")
    document = json.loads(check("--json").stdout)
    assert document == {"exit_code": 0, "matters": []}


def test_each_finding_has_a_line_and_exit_code_3(place: Place, check: Any) -> None:
    place.write_raw("a.jsonl", request(1), request(2), request(1, cost="9"))
    place.roll_up()
    place.now += timedelta(minutes=15)
    place.write_raw("a.jsonl", request(1))
    place.write_raw("b.jsonl.gz", b"no gzip")
    place.write_raw("access.jsonl-20251114", request(5))
    place.write_raw("c.jsonl", "rubbish")
    place.roll_up()
    done = check()
    assert done.exit_code == 3
    assert kinds(done) == ["LOWERED", "HELD BACK", "IGNORED LOG", "ODD LOG"]
    assert "2025-11-10: 1 request of org_a is not counted any more: 2 before, 1 now" in done.stdout
    document = json.loads(check("--json").stdout)
    assert document["exit_code"] == 3
    assert [matter["exit_code"] for matter in document["matters"]] == [3] * 4
    assert list(document["matters"][0]) == ["kind", "what", "what_to_do", "exit_code"]
    # A run that finds nothing new does not make the morning's check silent about the night.
    place.now += timedelta(minutes=15)
    place.roll_up()
    assert kinds(check()) == ["LOWERED", "HELD BACK", "IGNORED LOG", "ODD LOG"]
    place.now += timedelta(days=2)
    place.roll_up()
    assert kinds(check()) == ["HELD BACK", "IGNORED LOG"], "what can still be put right"


def test_copies_that_disagree_and_requests_without_a_price_have_a_line(place: Place, check: Any) -> None:
    place.write_raw("a.jsonl", request(1), request(1, cost="9"))
    place.roll_up()
    assert (kinds(check()), check().exit_code) == (["DISAGREEING"], 3)


def test_what_keeps_runs_from_publishing_is_exit_code_1(place: Place, check: Any) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.now += timedelta(hours=1)
    (place.layout.prices).write_text("rubbish\n")
    with pytest.raises(KeytallyError):
        place.roll_up()
    done = check()
    assert (done.exit_code, kinds(done)) == (1, ["FAILED", "BAD PRICES"])
    place.layout.prices.unlink()
    place.now += timedelta(hours=1)
    place.roll_up()
    assert check().exit_code == 0
    place.now += timedelta(hours=27)
    assert (check().exit_code, kinds(check())) == (1, ["LATE"])
    place.now -= timedelta(hours=40)
    assert (check().exit_code, kinds(check())) == (1, ["CLOCK"])


def test_a_root_that_is_missing_or_without_raw_is_exit_code_1(place: Place, check: Any) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.layout.raw.rename(place.layout.root.parent / "unmounted")
    assert (check().exit_code, kinds(check())) == (1, ["NO LOGS"])
    place.layout.rollups.rename(place.layout.root.parent / "rollups")
    done = check()
    assert (done.exit_code, done.stdout) == (1, "")
    assert "has neither raw/ nor rollups/" in done.stderr


def test_status_shows_what_a_run_lowered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", request(1), request(2))
    place.roll_up()
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)
    shown = CliRunner().invoke(cli.main, ["status"], env={"KEYTALLY_DATA": str(place.layout.root)}).stdout
    assert "LOWERED     2025-11-10: 1 request of org_a is not counted any more" in shown
    assert "Next        if a log was truncated or written over" in shown


def test_a_note_without_an_outcome_is_read(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    note = json.loads(place.layout.last_run.read_bytes())
    del note["outcome"]
    place.layout.last_run.write_text(json.dumps(note))
    read = read_last_run(place.store)
    assert read
    assert read.outcome is None
    place.roll_up()
    read = read_last_run(place.store)
    assert read
    assert read.outcome
    assert read.outcome.exit_code == 0
