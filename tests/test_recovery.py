"""What is gone for good, and what an operator does about it: nothing that was published goes without a word."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import pipeline.arrivals
import pipeline.update
from cli import main
from pipeline.contract.data_root import NoDataRoot
from pipeline.errors import CommitRefused, KeytallyError
from pipeline.publish import publish
from pipeline.reconcile import reconcile
from pipeline.run import start_run
from pipeline.status import status_of, write_last_run
from pipeline.update import PLAIN_STEPS, backfill, roll_up
from tests.conftest import Place, Record, request

NOVEMBER = date(2025, 11, 1)


def dated(number: int, day: int, **fields: object) -> Record:
    return request(number, timestamp=f"2025-11-{day:02}T12:00:00Z", **fields)


def requests(place: Place) -> dict[str, int]:
    return {day: count for (_, day), (count, _) in place.usage().items()}


def unlink(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


def aged(place: Place) -> None:
    """Every artifact is older than any grace."""
    long_ago = place.now.timestamp() - 30 * 86_400
    for path in place.layout.root.rglob("*.parquet"):
        os.utime(path, (long_ago, long_ago))


# --- raw files -------------------------------------------------------------------------------------------------------


def test_a_file_that_was_touched_is_read_once_more_and_waits_no_longer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.write_raw("a.jsonl", request(1), "bad")
    place.roll_up()
    os.utime(path)
    read: list[str] = []
    honest = pipeline.arrivals.hash_raw
    monkeypatch.setattr(pipeline.arrivals, "hash_raw", lambda raw_file: read.append(raw_file.file) or honest(raw_file))
    for _ in range(3):
        assert not place.roll_up().published
        assert status_of(place.store, place.now, place.settings).waiting == ()
    assert read == ["a.jsonl"]

    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    assert place.ledger().files["a.jsonl"].signature.startswith(f"{path.stat().st_size}:{path.stat().st_mtime_ns}:")
    place.write_raw("a.jsonl", request(3))
    assert [waiting.raw_file.file for waiting in status_of(place.store, place.now, place.settings).waiting] == [
        "a.jsonl"
    ]
    assert place.roll_up().replaced == [("a.jsonl", 1, 1)]


def test_what_was_confirmed_of_another_ledger_is_not_believed(place: Place, tmp_path: Path) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    shutil.copytree(place.layout.rollups, tmp_path / "backup")
    path = place.write_raw("a.jsonl", request(1), request(2))
    place.roll_up()
    os.utime(path)
    place.roll_up()
    shutil.rmtree(place.layout.rollups)
    (tmp_path / "backup").rename(place.layout.rollups)
    place.roll_up()
    assert requests(place) == {"2025-11-10": 2}


def test_a_file_that_was_emptied_takes_nothing_back_and_waits_for_nothing(place: Place) -> None:
    soon = f"{place.now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    path = place.write_raw("b.jsonl", dated(1, 1), dated(2, 1), request(3, timestamp=soon))
    shutil.copy(path, place.layout.raw / "_z.jsonl")
    place.roll_up()
    path.write_bytes(b"")
    for hours in (0, 2):
        place.now += timedelta(hours=hours)
        assert not place.roll_up().has_findings
        assert status_of(place.store, place.now, place.settings).waiting == ()
    assert requests(place) == {"2025-11-01": 2}
    (place.layout.raw / "_z.jsonl").rename(place.layout.raw / "z.jsonl")
    path.unlink()
    with start_run(place.settings, lambda: place.now) as run:
        comparison = reconcile(run, NOVEMBER, date(2025, 11, 10))
    assert not comparison.unverifiable, "the content is there under another name"


def test_a_raw_folder_that_is_gone_confirms_nothing(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    note = place.layout.last_run.read_bytes()
    place.now += timedelta(days=1)
    place.layout.raw.rename(place.layout.root / "unmounted")
    with pytest.raises(NoDataRoot, match=r"there is no .*raw, but .* has rollups/: bring it back"):
        place.roll_up()
    assert place.layout.last_run.read_bytes() == note


@pytest.mark.parametrize("name", ["east", "east.jsonl"])
def test_a_link_to_what_is_not_mounted_is_a_finding_on_the_days_it_held(
    place: Place, tmp_path: Path, name: str
) -> None:
    there = Place(tmp_path / "elsewhere").write_raw("a.jsonl", request(1))
    place.layout.raw.mkdir(parents=True, exist_ok=True)
    link = place.layout.raw / name
    link.symlink_to(there if name.endswith("l") else there.parent)
    assert not place.roll_up().has_findings
    there.parent.rename(tmp_path / "unmounted")
    (held_back,) = place.roll_up().held_back
    assert (held_back.file, held_back.reason) == (name, "unreadable: a link to nothing")
    assert '"2025-11-10"' in place.layout.last_run.read_text()
    assert requests(place) == {"2025-11-10": 1}


# --- artifacts that cannot be made from raw/ -------------------------------------------------------------------------


@pytest.fixture
def beyond_repair(place: Place) -> Place:
    """November 1 has lost its raw file, its events and its own file."""
    old = place.write_raw("old.jsonl", dated(1, 1), dated(1, 1), dated(9, 1, api_key_id=None), dated(2, 2))
    place.roll_up()
    old.unlink()
    unlink(place.layout.events_of(NOVEMBER).iterdir())
    unlink(place.layout.daily_of(NOVEMBER).iterdir())
    place.write_raw("late.jsonl", dated(3, 3))
    place.write_raw("december.jsonl", request(4, timestamp="2025-12-01T00:00:00Z"))
    place.now = datetime(2025, 12, 2, tzinfo=UTC)
    return place


def test_a_day_is_taken_from_what_is_published_of_it_when_nothing_else_is_left(beyond_repair: Place) -> None:
    place = beyond_repair
    before = place.ledger().days[NOVEMBER]
    (held_back,) = place.roll_up().held_back
    assert "its events of 2025-11-01 cannot be rebuilt" in held_back.reason
    assert place.backfill("2025-12-01", "2025-12-31").held_back == []
    assert requests(place) == {"2025-11-01": 1, "2025-11-02": 1, "2025-11-03": 1, "2025-12-01": 1}
    after = place.ledger().days[NOVEMBER]
    assert (after.accepted, after.duplicate, after.session) == (before.accepted, before.duplicate, before.session)
    report = place.backfill("2025-11-01", "2025-11-30")
    assert ["its events of 2025-11-01 cannot be rebuilt" in held.reason for held in report.held_back] == [True]
    assert requests(place)["2025-11-01"] == 1


def test_a_month_that_cannot_be_made_stays_as_it_is_and_holds_up_no_other(beyond_repair: Place) -> None:
    place = beyond_repair
    published = place.publication().files["api_key_day", NOVEMBER]
    (place.layout.rollups / published.path).write_bytes(b"PAR1")
    for _ in range(2):
        report = place.roll_up()
        assert [held.file.rpartition("/")[0] for held in report.held_back][-1] == "daily/day=2025-11-01"
        assert "put the raw files of 2025-11-01 back into raw/" in report.held_back[-1].reason
        assert requests(place) == {"2025-11-01": 1, "2025-11-02": 1, "2025-12-01": 1}
        assert '"2025-11-03"' in place.layout.last_run.read_text(), "a day that is not up to date is a finding"
    place.write_raw("old.jsonl", dated(1, 1), dated(1, 1), dated(9, 1, api_key_id=None), dated(2, 2))
    assert not place.backfill("2025-11-01", "2025-11-30").has_findings
    assert requests(place) == {"2025-11-01": 1, "2025-11-02": 1, "2025-11-03": 1, "2025-12-01": 1}


def test_many_files_are_healed_in_one_pass(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        place.write_raw(f"{number}.jsonl", dated(number, 1), dated(number, 2))
    place.roll_up()
    unlink(place.layout.events.rglob("*.parquet"))
    looks: list[int] = []
    honest = pipeline.update.events_by_day
    monkeypatch.setattr(pipeline.update, "events_by_day", lambda files: looks.append(1) or honest(files))
    assert not place.backfill("2025-11-01", "2025-11-30").has_findings
    assert requests(place) == {"2025-11-01": 20, "2025-11-02": 20}
    assert len(looks) == 2


def test_what_cannot_be_healed_is_said_by_the_attempt_that_is_published(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = place.write_raw("a.jsonl", request(1), "bad")
    place.roll_up()
    raw.unlink()
    unlink(place.layout.rejected.iterdir())
    place.write_raw("b.jsonl", request(2))
    refusals = iter([True])

    def refused_once(*arguments: Any) -> int:
        if next(refusals, False):
            raise CommitRefused(1)
        return publish(*arguments)

    with start_run(place.settings, lambda: place.now) as run:
        report = backfill(run, NOVEMBER, date(2025, 11, 30), PLAIN_STEPS._replace(publish=refused_once))
    assert report.published
    assert ["its list of quarantined lines cannot be rebuilt" in held.reason for held in report.held_back] == [True]


def test_a_run_that_ends_later_and_knew_less_leaves_the_note_alone(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    with start_run(place.settings, lambda: place.now) as slow:
        place.now += timedelta(minutes=1)
        place.write_raw("b.jsonl.gz", b"no gzip")
        place.write_raw("c.jsonl", request(2))
        place.roll_up()
        note = place.layout.last_run.read_bytes()
        write_last_run(slow, 1, {}, frozenset(), {}, 0)
        write_last_run(slow, 2, {}, frozenset(), {}, 0)
    assert place.layout.last_run.read_bytes() == note


def test_an_earlier_clock_takes_no_request_back_when_it_heals(place: Place) -> None:
    place.now = datetime(2025, 11, 15, 13, tzinfo=UTC)
    place.write_raw("a.jsonl", dated(1, 14), dated(2, 15))
    place.roll_up()
    place.now -= timedelta(hours=3)
    unlink(place.layout.events.rglob("*.parquet"))
    assert not place.backfill("2025-11-01", "2025-11-30").has_findings
    assert requests(place) == {"2025-11-14": 1, "2025-11-15": 1}


# --- the published table ---------------------------------------------------------------------------------------------


def test_a_table_that_was_moved_away_can_be_put_back(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = place.write_raw("old.jsonl", dated(1, 1))
    place.write_raw("new.jsonl", dated(2, 2))
    place.roll_up()
    old.unlink()
    aged(place)
    place.layout.rollups.rename(tmp_path / "away")
    report = place.roll_up()
    assert (report.lost_days, report.has_findings) == ([NOVEMBER], True)
    assert requests(place) == {"2025-11-02": 1}
    assert not place.roll_up().has_findings, "it is said once, by the run that publishes without them"

    shutil.rmtree(place.layout.rollups)
    (tmp_path / "away").rename(place.layout.rollups)
    unlink(place.layout.daily_of(date(2025, 11, 2)).iterdir())
    assert not place.backfill("2025-11-01", "2025-11-30").has_findings, "everything it names is there still"
    assert requests(place) == {"2025-11-01": 1, "2025-11-02": 1}

    shutil.rmtree(place.layout.rollups)
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    with pytest.raises(SystemExit, match="3"):
        main(["rollup"])
    assert "Something of 1 day (2025-11-01) counts no more" in capsys.readouterr().err


def test_nothing_is_published_in_the_place_of_a_lost_table_when_raw_is_empty(place: Place) -> None:
    raw = place.write_raw("a.jsonl", request(1))
    place.roll_up()
    raw.unlink()
    shutil.rmtree(place.layout.rollups)
    note = place.layout.last_run.read_bytes()
    with pytest.raises(
        KeytallyError, match=r"version 1 was published, but .* gone.*nothing in raw/ .*put rollups/ back"
    ):
        place.roll_up()
    assert place.layout.last_run.read_bytes() == note
    assert len(list(place.layout.events.rglob("*.parquet"))) == 1


def test_an_older_copy_of_the_table_is_a_finding_and_what_the_newer_needs_stays(place: Place, tmp_path: Path) -> None:
    place.write_raw("a.jsonl", dated(1, 1))
    place.roll_up()
    shutil.copytree(place.layout.rollups, tmp_path / "older")
    late = place.write_raw("late.jsonl", dated(2, 1), dated(3, 1))
    place.roll_up()
    late.unlink()
    aged(place)
    place.layout.rollups.rename(tmp_path / "newer")
    (tmp_path / "older").rename(place.layout.rollups)
    place.write_raw("b.jsonl", dated(4, 2))
    report = place.roll_up()
    assert (report.lost_days, report.has_findings) == ([NOVEMBER], True)
    assert requests(place) == {"2025-11-01": 1, "2025-11-02": 1}
    shutil.rmtree(place.layout.rollups)
    (tmp_path / "newer").rename(place.layout.rollups)
    assert not place.backfill("2025-11-01", "2025-11-30").has_findings, "everything it names is there still"
    assert requests(place) == {"2025-11-01": 3, "2025-11-02": 1}


def test_a_log_that_lost_its_newest_entry_is_published_anew(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    place.layout.log_entry(2).unlink()
    with start_run(place.settings, lambda: place.now) as run:
        report = roll_up(run, PLAIN_STEPS)
    assert report.lost == "version 2 was published, but the log ends at version 1"
    assert (report.version, report.lost_days, report.has_findings) == (2, [], False)
    assert place.usage() == {("org_a", "2025-11-10"): (2, Decimal("0.5"))}
