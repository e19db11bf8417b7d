"""What an operator is shown: every day, every file, what waits and for how long; and nothing that is not so."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import re
import shutil
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli
from pipeline.contract.last_run import read_last_run
from pipeline.contract.published import Publication, PublishedFile
from pipeline.contract.wording import instant_text
from pipeline.errors import BadPrices
from pipeline.intake import EventFile, TakeIn, rule_of
from pipeline.ledger import DayEntry, FileEntry, Ledger
from pipeline.rollup import fingerprint_of
from pipeline.run import start_run
from pipeline.status import status_of
from serving.coverage import Basis, cover
from tests.conftest import Place, lines, request


def status(place: Place, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)
    done = CliRunner().invoke(cli.main, ["status", *arguments], env={"KEYTALLY_DATA": str(place.layout.root)})
    assert done.exit_code == 0, done.output
    return done.stdout


def as_json(place: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(status(place, monkeypatch, "--json"))
    return shown


def on(day: int, number: int = 1, **fields: Any) -> dict[str, Any]:
    return request(number, timestamp=f"2025-11-{day:02d}T08:00:00Z", **fields)


def test_every_day_has_its_state_and_its_counts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", on(10), on(10), on(10, 2, api_key_id=None), on(12, 3), on(15, 4), "bad", "worse")
    place.write_raw("b.jsonl.gz", gzip.compress(lines(on(13, 5), "bad")))
    place.roll_up()
    (place.layout.raw / "b.jsonl.gz").write_bytes(b"cut")
    place.now += timedelta(hours=1)
    place.roll_up()
    shown = as_json(place, monkeypatch)
    assert [(day["day"], day["state"]) for day in shown["by_day"]] == [
        ("2025-11-10", "loaded"),
        ("2025-11-11", "not_loaded"),
        ("2025-11-12", "loaded"),
        ("2025-11-13", "loaded_with_findings"),
        ("2025-11-14", "not_loaded"),
        ("2025-11-15", "open"),
    ]
    names = ("accepted", "counted", "duplicate", "conflicting", "session", "files", "quarantined", "not_counted")
    counts = [[day[name] for name in names] for day in shown["by_day"]]
    assert counts[0] == [3, 1, 1, 0, 1, 1, 2, 0]
    assert counts[1] == [0, 0, 0, 0, 0, 0, 0, 0]
    assert counts[2] == [1, 1, 0, 0, 0, 1, 2, 0]
    assert counts[3] == [1, 1, 0, 0, 0, 1, 1, 0]
    assert shown["by_day"][3]["finding"] == "held back: b.jsonl.gz"
    assert sum(day["counted"] for day in shown["by_day"]) == shown["counted"]
    text = status(place, monkeypatch)
    assert "Days        4, from 2025-11-10 to 2025-11-15; 2 not loaded; 1 open; 1 with findings" in text
    assert "FINDING     2025-11-13: held back: b.jsonl.gz" in text


def test_the_states_are_those_that_customers_are_told(place: Place) -> None:
    place.write_raw("a.jsonl", on(10), on(15, 4))
    place.write_raw("b.jsonl.gz", gzip.compress(lines(on(13, 5))))
    place.roll_up()
    (place.layout.raw / "b.jsonl.gz").write_bytes(b"cut")
    place.roll_up()
    run = read_last_run(place.store)
    assert run
    basis = Basis.of(date(2025, 11, 1), None, run.started, run.findings)
    told = {day.day: day.state for day in cover(basis, {date(2025, 11, day) for day in (10, 13, 15)}, [])}
    found = status_of(place.store, place.now, place.settings).days
    assert len(found) == 6
    assert {day.day: day.state for day in found} == {day.day: told[day.day] for day in found}


def test_every_file_has_its_lines_and_where_it_stands(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", on(10), "bad")
    place.write_raw("again.jsonl", on(10), "bad")
    place.write_raw("gone.jsonl", on(10, 2))
    place.write_raw("held.jsonl.gz", gzip.compress(lines(on(10, 3)))[:-3])
    place.roll_up()
    (place.layout.raw / "gone.jsonl").unlink()
    place.write_raw("a.jsonl", on(10), on(10, 9))
    place.write_raw("new.jsonl", on(10, 4))
    files = {file.pop("file"): file for file in as_json(place, monkeypatch)["by_file"]}
    assert list(files) == ["a.jsonl", "again.jsonl", "gone.jsonl", "held.jsonl.gz", "new.jsonl"]
    names = ("lines", "accepted", "quarantined", "same_as", "taken_at", "in_raw", "waiting")
    rows = {file: tuple(row[name] for name in names) for file, row in files.items()}
    taken_at = "2025-11-15T10:30:00Z"
    assert rows == {
        "a.jsonl": (2, 1, 1, None, taken_at, True, "changed"),
        "again.jsonl": (2, 0, 0, "a.jsonl", taken_at, True, None),
        "gone.jsonl": (1, 1, 0, None, taken_at, False, None),
        "held.jsonl.gz": (None, None, None, None, None, True, None),
        "new.jsonl": (None, None, None, None, None, True, "new"),
    }
    assert files["held.jsonl.gz"]["held_back"].startswith("truncated")
    text = status(place, monkeypatch)
    for words in ("same as a.jsonl", "gone from raw/", "HELD BACK   held.jsonl.gz: truncated", "new.jsonl (new"):
        assert words in text


def test_how_long_a_file_has_been_waiting_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = place.now + timedelta(days=1)
    place.write_raw("soon.jsonl", request(1, timestamp=f"{moment:%Y-%m-%dT%H:%M:%SZ}"))
    place.write_raw("held.jsonl.gz", b"\x1f")
    place.roll_up()
    new = place.write_raw("new.jsonl", request(2))
    os.utime(new, (0, 0))  # as a copy that kept its times
    place.now = datetime.now(UTC) + timedelta(days=3, minutes=1)
    shown = as_json(place, monkeypatch)
    waiting = {each["file"]: each for each in shown["waiting"]}
    assert [(file, each["why"]) for file, each in waiting.items()] == [
        ("new.jsonl", "new"),
        ("soon.jsonl", "moment has come"),
    ]
    assert waiting["new.jsonl"]["seconds"] // 60 == 3 * 24 * 60 + 1
    assert waiting["soon.jsonl"]["since"] == f"{moment - timedelta(minutes=5):%Y-%m-%dT%H:%M:%SZ}"
    assert shown["held_back"][0]["since"] == "2025-11-15T10:30:00Z"  # the first run that could not take it
    text = status(place, monkeypatch)
    assert "new.jsonl (new for 3 days)" in text
    assert "HELD BACK   held.jsonl.gz: truncated: the compressed data ends early, or has something behind it" in text
    assert f"(for {(place.now - datetime(2025, 11, 15, 10, 30, tzinfo=UTC)).days} days)" in text


def test_what_was_only_touched_does_not_wait_and_is_not_said_to_have_changed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = place.now + timedelta(days=1)
    path = place.write_raw("a.jsonl", request(1, timestamp=f"{moment:%Y-%m-%dT%H:%M:%SZ}"))
    place.roll_up()
    os.utime(path)
    assert "a.jsonl (changed" in status(place, monkeypatch)
    place.roll_up()
    assert "Waiting     nothing" in status(place, monkeypatch)
    place.now = moment
    assert "a.jsonl (moment has come" in status(place, monkeypatch)


def test_a_version_of_rejected_lines_alone_is_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Nothing is published yet" in status(place, monkeypatch)
    place.write_raw("a.jsonl", "bad", "bad")
    place.roll_up()
    text = status(place, monkeypatch)
    assert "Nothing is published yet" not in text
    assert "Version     1, published" in text
    assert "Days        0" in text
    assert "Files       1, with 2 lines in quarantine" in text
    assert as_json(place, monkeypatch)["by_day"] == []


def test_accepted_lines_of_a_day_beyond_repair_are_said_not_to_count(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = place.write_raw("old.jsonl", on(10))
    place.roll_up()
    old.rename(place.layout.root / "kept")
    for events in place.layout.events.rglob("*.parquet"):
        events.unlink()
    place.write_raw("late.jsonl", on(10, 2), on(11, 3))
    place.roll_up()
    day = as_json(place, monkeypatch)["by_day"][0]
    assert (day["state"], day["accepted"], day["files"], day["not_counted"]) == ("loaded_with_findings", 1, 2, 1)
    text = status(place, monkeypatch)
    assert "NOT COUNTED 1 accepted line of 2025-11-10" in text
    assert "FINDING     2025-11-10: it is not what its files say" in text
    assert "keytally backfill --from 2025-11-10 --to 2025-11-10" in text
    (place.layout.root / "kept").rename(old)
    place.backfill("2025-11-10", "2025-11-10")
    assert "NOT COUNTED" not in status(place, monkeypatch)
    assert as_json(place, monkeypatch)["not_counted"] == 0


def test_days_of_a_rule_that_changed_are_said_to_need_a_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", on(10))
    place.roll_up()
    monkeypatch.setattr("pipeline.rollup._rule", lambda: "another")
    assert "FINDING     2025-11-10: " in status(place, monkeypatch)
    place.roll_up()
    assert "FINDING" not in status(place, monkeypatch)


def large_ledger(files: int, days: int) -> Ledger:
    """A year of many files, each with lines on each day; and one day long before, as a wrong clock would leave it."""
    moment = datetime(2025, 11, 15, tzinfo=UTC)
    known = [date(2024, 11, 15) + timedelta(days=number) for number in range(days)] + [date(2020, 1, 1)]
    artifact = EventFile(date(2020, 1, 1), 1, "x.parquet")
    rule = rule_of("native.jsonl")
    entries = [
        FileEntry(
            f"{number:04d}.jsonl",
            "1:1:1:1",
            None,
            TakeIn(
                name=f"{number}",
                content=f"{number}",
                format="native.jsonl",
                rule=rule,
                taken_at=moment - timedelta(minutes=number),
                lines=days + 1,
                accepted=days + 1,
                quarantined=0,
                heals_at=None,
                rejected=None,
                events=tuple(EventFile(day, 1, artifact.artifact) for day in known),
            ),
        )
        for number in range(files)
    ]
    fingerprint = fingerprint_of({f"{number}" for number in range(files)})
    return Ledger(
        Publication(1, 1, {("file", None): PublishedFile("file", None, "x", 1, moment)}),
        {entry.file: entry for entry in entries},
        {day: DayEntry(day, fingerprint, "x", moment, files, files, 0, 0, 0) for day in known},
    )


def test_a_year_of_many_files_stays_readable_and_every_one_can_be_listed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = large_ledger(1_000, 365)
    monkeypatch.setattr("pipeline.status.read_ledger", lambda _: ledger)
    begun = time.monotonic()
    text = status(place, monkeypatch)
    assert time.monotonic() - begun < 10
    assert len(text.splitlines()) < 60
    assert "and 2,131 earlier days (--days lists all)" in text
    assert "and 990 files taken in before (--files lists all)" in text
    assert "0000.jsonl" in text, "the file taken in last"
    every_day = status(place, monkeypatch, "--days")
    assert "2020-01-02 to 2024-11-14 " in every_day, "days in a row without anything are one line"
    assert sum(line.strip().startswith("202") for line in every_day.splitlines()) == 365 + 2
    assert sum(".jsonl" in line for line in status(place, monkeypatch, "--files").splitlines()) == 1_000
    shown = as_json(place, monkeypatch)
    assert (len(shown["by_day"]), len(shown["by_file"])) == (2_145, 1_000)


def test_without_a_note_the_commit_says_through_which_moment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", on(10))
    place.roll_up()
    place.layout.last_run.unlink()
    shown = as_json(place, monkeypatch)
    assert shown["as_of"] == "2025-11-15T10:30:00Z"
    assert shown["by_day"][0]["state"] == "loaded"


def test_nothing_is_written_to_look(place: Place) -> None:
    def everything() -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in place.layout.root.rglob("*")}

    place.write_raw("a.jsonl", on(10))
    place.roll_up()
    before = everything()
    status_of(place.store, place.now, place.settings)
    assert everything() == before


def exit_code_of(place: Place, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)
    return CliRunner().invoke(cli.main, arguments, env={"KEYTALLY_DATA": str(place.layout.root)}).exit_code


def bad_morning(place: Place, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], str]:
    """What status says of runs that did not do their work, and its next step."""
    told = status(place, monkeypatch).splitlines()
    of_runs = [line for line in told if re.match("FAILED|KILLED|Under way", line)]
    return of_runs, told[-1].removeprefix("Next").strip()


def test_a_failed_run_is_told_with_its_sentence_until_another_does_its_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_raw("a.jsonl", on(14))
    place.roll_up()
    assert bad_morning(place, monkeypatch)[0] == []
    place.now += timedelta(hours=14)
    (place.layout.root / "prices.csv").write_text("model,valid_from\n*,2025-11-01\n")
    with pytest.raises(BadPrices) as refused:
        place.roll_up()
    failed_at = place.now
    place.now += timedelta(hours=8)
    told, next_step = bad_morning(place, monkeypatch)
    assert told == [f"FAILED      the newest run, 8 hours ago: {refused.value}"]
    assert next_step == "put right what the failed run says, then keytally rollup"
    told_json = as_json(place, monkeypatch)["failed"]
    assert told_json == {
        "started": instant_text(failed_at),
        "failed": instant_text(failed_at),
        "why": str(refused.value),
    }
    (place.layout.root / "prices.csv").unlink()
    place.roll_up()
    assert bad_morning(place, monkeypatch)[0] == []
    assert as_json(place, monkeypatch)["failed"] is None


def test_the_first_run_of_all_may_fail_and_an_accident_says_what_to_do(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place.write_raw("a.jsonl", on(14))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there")

    monkeypatch.setattr("pipeline.update.read_ledger", fail)
    with pytest.raises(OSError, match="No space left"):
        place.roll_up()
    sentence = "/there: No space left on device; make room on that disk, then run the command again"
    assert bad_morning(place, monkeypatch)[0] == [f"FAILED      the newest run, less than a minute ago: {sentence}"]
    for note in ("{", "{}", "[]", '{"started": 1}', '{"started": "2025-11-15", "failed": "", "why": ""}'):
        place.layout.failed_run.write_text(note)
        assert bad_morning(place, monkeypatch)[0] == [], note
    place.layout.failed_run.unlink()
    place.layout.failed_run.mkdir()  # where no note can be written
    with pytest.raises(OSError, match="No space left"):
        place.roll_up()
    assert "failed_run.json cannot be written" in caplog.text
    assert bad_morning(place, monkeypatch)[0] == []


def test_a_run_that_began_later_and_was_done_before_makes_a_failed_one_past(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = place.now
    failed = {"started": begun, "failed": begun + timedelta(minutes=9), "why": "why"}
    place.layout.root.mkdir(exist_ok=True)
    place.layout.failed_run.write_text(json.dumps(failed, default=str))
    place.write_raw("a.jsonl", on(14))
    place.now = begun - timedelta(minutes=1)
    place.roll_up()
    assert len(bad_morning(place, monkeypatch)[0]) == 1
    place.now = begun + timedelta(minutes=1)
    place.roll_up()
    assert bad_morning(place, monkeypatch)[0] == []


def test_a_run_that_filled_the_disk_makes_room_for_its_note(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    with (
        pytest.raises(OSError, match="No space left"),
        start_run(place.settings, lambda: place.now, publishes=True) as run,
    ):
        (run.scratch / "spilled").mkdir()
        (run.scratch / "spilled" / "much").write_bytes(bytes(4_096))
        (run.scratch / "half.parquet").write_bytes(bytes(4_096))
        monkeypatch.setattr("pipeline.failure.step", lambda _: left.extend(run.scratch.iterdir()))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert left == []
    (told,) = bad_morning(place, monkeypatch)[0]
    assert told.endswith("No space left on device; make room on the disk of the data root, then run the command again")


def test_each_command_that_publishes_leaves_a_note_and_one_that_compares_leaves_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_raw("a.jsonl", on(14))
    place.roll_up()
    place.now += timedelta(hours=14)
    (place.layout.root / "prices.csv").write_text("model\n")
    days = ("--from", "2025-11-14", "--to", "2025-11-14")
    for command in (("rollup",), ("backfill", *days)):
        assert exit_code_of(place, monkeypatch, *command) == 1
        assert len(bad_morning(place, monkeypatch)[0]) == 1, command
        place.layout.failed_run.unlink()
    (place.layout.root / "prices.csv").unlink()
    shutil.rmtree(place.layout.rollups / "_delta_log")
    (place.layout.rollups / "_delta_log").write_text("no folder")
    assert exit_code_of(place, monkeypatch, "reconcile", *days) == 1
    assert not place.layout.failed_run.exists()


def test_a_killed_run_is_told_until_the_next_and_so_is_one_under_way(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_raw("a.jsonl", on(14))
    place.roll_up()
    place.now += timedelta(hours=10)
    dead = place.layout.scratch / "0123"
    dead.mkdir()
    os.utime(dead, (0, (place.now - timedelta(hours=9)).timestamp()))
    told, next_step = bad_morning(place, monkeypatch)
    assert told == ["KILLED      a run, 9 hours ago, before it was done; what it finished is kept"]
    assert next_step.startswith("see what killed the run")
    assert as_json(place, monkeypatch)["killed_at"] == "2025-11-15T11:30:00Z"
    looking = os.open(dead, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as whoever looks at the same time does
    assert bad_morning(place, monkeypatch) == (told, next_step)
    os.close(looking)
    os.utime(dead, (0, (place.now - timedelta(hours=10)).timestamp()))
    assert bad_morning(place, monkeypatch) == ([], "nothing to do")  # a run on another machine began behind it
    with start_run(place.settings, lambda: place.now):
        place.now += timedelta(hours=3)
        with start_run(place.settings, lambda: place.now):
            told, next_step = bad_morning(place, monkeypatch)
            assert as_json(place, monkeypatch)["under_way_since"] == "2025-11-15T20:30:00Z"
    assert told == ["Under way   a run on this machine, begun 3 hours ago"]
    assert next_step.startswith("wait for the run that is under way, then look again")
    assert as_json(place, monkeypatch)["under_way"] is False
    assert bad_morning(place, monkeypatch) == ([], "nothing to do")
