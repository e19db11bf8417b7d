"""The laws of a run: what it may do again, what it must leave alone, and what the numbers always are."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import pipeline.engine
import pipeline.raw
from pipeline.contract.published import open_published
from pipeline.errors import CheckFailed, CommitRefused, KeytallyError
from pipeline.publish import publish
from pipeline.run import Run, start_run
from pipeline.spool import Spool
from pipeline.update import Steps, roll_up
from tests.conftest import Place, Record, lines, request


def dated(day: int | str, number: int = 1, **fields: Any) -> Record:
    moment = f"2025-11-{day:02}" if isinstance(day, int) else day
    return request(number, timestamp=f"{moment}T12:00:00Z", **fields)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, raw_file: Any) -> None:
        raise AssertionError(f"{raw_file.file} was opened")

    monkeypatch.setattr(pipeline.raw.RawPass, "__init__", refuse)


# --- doing nothing ---------------------------------------------------------------------------------------------------


def test_a_rerun_opens_no_raw_file_and_publishes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", request(1), "bad", request(2, api_key_id=None))
    place.write_raw("same.jsonl", request(1), "bad", request(2, api_key_id=None))
    place.write_raw("empty.jsonl", b"")
    version = place.roll_up().version
    before = place.artifacts()
    forbid_reading(monkeypatch)
    report = place.roll_up()
    assert report.as_json() | {"seconds": 0} == {
        **{"ingested": [], "replaced": [], "held_back": [], "days": [], "months": [], "version": version, "seconds": 0}
    }
    assert place.artifacts() == before


def test_with_nothing_at_all_nothing_is_published(place: Place) -> None:
    assert place.roll_up().version == 0
    assert not place.layout.rollups.exists()


def test_a_file_touched_but_not_changed_publishes_nothing(place: Place) -> None:
    path = place.write_raw("a.jsonl", request(1))
    place.roll_up()
    before = place.artifacts()
    os.utime(path)
    assert (report := place.roll_up()).version == 1
    assert (report.ingested, report.replaced, report.days) == ([], [], [])
    assert place.artifacts() == before


def test_the_signature_of_a_touched_file_goes_along_with_the_next_publication(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.write_raw("a.jsonl", request(1))
    place.roll_up()
    os.utime(path)
    place.write_raw("b.jsonl", request(2))
    assert [entry.file for entry in place.roll_up().ingested] == ["b.jsonl"]
    forbid_reading(monkeypatch)
    place.roll_up()


def test_a_line_from_the_future_is_not_looked_for_before_its_moment(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_raw("a.jsonl", dated(20))
    place.roll_up()
    place.now += timedelta(days=4)
    forbid_reading(monkeypatch)
    assert place.roll_up().version == 1


# --- doing only what is new ------------------------------------------------------------------------------------------


def test_a_late_file_rolls_up_its_days_and_touches_nothing_else(place: Place) -> None:
    for day in (1, 2, 3):
        place.write_raw(f"{day}.jsonl", dated(day, day))
    place.write_raw("october.jsonl", dated("2025-10-05"))
    place.roll_up()
    before = place.artifacts()
    place.write_raw("late.jsonl", dated(2, 9))
    report = place.roll_up()
    assert [(str(entry.day), entry.counted) for entry in report.days] == [("2025-11-02", 2)]
    assert report.as_json()["months"] == ["2025-11"]
    after = place.artifacts()
    assert before.items() <= after.items(), "something old was written again"
    new = sorted(path.rpartition("/")[0] for path in after.keys() - before.keys())
    usage = ("api_key_day", "api_key_month", "day", "organization_day", "organization_month", "restatement")
    assert new == sorted(
        ["daily/day=2025-11-02", "events/day=2025-11-02", "rollups/rollup=file/month=__HIVE_DEFAULT_PARTITION__"]
        + [f"rollups/rollup={rollup}/month=2025-11" for rollup in usage]
    )


def test_a_file_of_bad_lines_alone_is_published_in_the_ledger_alone(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("bad.jsonl", "bad")
    report = place.roll_up()
    assert (report.version, report.days, report.months) == (2, [], [])
    assert place.rejected("bad.jsonl") == [(1, "not_json")]


def test_replacing_a_file_reports_both_counts(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2))
    place.roll_up()
    place.write_raw("a.jsonl", request(1))
    report = place.roll_up()
    assert report.replaced == [("a.jsonl", 2, 1)]
    assert report.has_findings, "a published day lost a request"
    place.write_raw("a.jsonl", request(1), request(2), request(3))
    report = place.roll_up()
    assert report.replaced == [("a.jsonl", 1, 3)]
    assert not report.has_findings


def test_a_file_of_fewer_lines_is_no_finding_where_every_request_is_still_counted(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2), request(2))
    place.write_raw("b.jsonl", request(2), request(3))
    place.roll_up()
    place.write_raw("a.jsonl", request(1))
    report = place.roll_up()
    assert report.replaced == [("a.jsonl", 3, 1)]
    assert (report.lowered, report.has_findings) == ([], False)


def test_when_the_file_that_counts_a_content_changes_its_copy_counts_it(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2))
    place.write_raw("b.jsonl", request(1), request(2))
    place.roll_up()
    place.write_raw("a.jsonl", request(3))
    report = place.roll_up()
    assert not report.has_findings
    assert place.usage() == {("org_a", "2025-11-10"): (3, Decimal("0.75"))}
    assert {file: entry.same_as for file, entry in place.ledger().files.items()} == {"a.jsonl": None, "b.jsonl": None}
    assert [day.duplicate for day in place.ledger().days.values()] == [0]


def test_a_content_that_returns_is_published_as_it_was(place: Place) -> None:
    texts = (lines(request(1)), lines(request(2), request(3)))
    for version, content in enumerate((*texts, *texts), 1):
        place.write_raw("a.jsonl", content)
        assert place.roll_up().version == version
        assert place.published("organization_day").requests.sum() == content.count(b"\n")
    assert_each_month_is_held_once(place)


def test_a_day_that_lost_all_its_requests_is_published_as_none(place: Place) -> None:
    place.write_raw("a.jsonl", dated("2025-10-31"), dated(1))
    place.roll_up()
    place.write_raw("a.jsonl", dated(1))
    assert [(str(day.day), day.accepted) for day in place.roll_up().days] == [("2025-10-31", 0), ("2025-11-01", 1)]
    assert place.usage() == {("org_a", "2025-11-01"): (1, Decimal("0.25"))}
    report = place.backfill("2025-10-01", "2025-11-30")
    assert [str(day.day) for day in report.days] == ["2025-11-01"], "days without accepted records are not listed"
    assert report.version == 2


def test_bad_files_stay_as_they_were_and_are_tried_again(place: Place) -> None:
    place.write_raw("a.jsonl.gz", b"")
    place.write_raw("a.jsonl.gz", b"no gzip at all")
    place.write_raw("b.jsonl", request(1))
    for _ in range(2):
        report = place.roll_up()
        assert [held.file for held in report.held_back] == ["a.jsonl.gz"]
        assert report.version == 1


# --- a check that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("roll_up_days", "where place > 1", "where place > 2"),
        ("roll_up_days", "sum(requests) as bigint", "sum(requests) + 1 as bigint"),
        ("roll_up_days", "    from events\n", "    from events\n    where cost > 1\n"),
        ("organization_day", "sum(requests)", "sum(requests) + 1"),
        ("organization_month", "sum(cost)", "max(cost)"),
        ("api_key_month", "sum(input_tokens)", "0"),
        ("api_key_day", "from daily", "from (select * from daily union all select * from daily)"),
        ("organization_day", "decimal(38, 12)", "double"),
    ],
)
def test_a_check_that_fails_publishes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str
) -> None:
    honest = pipeline.engine.statement
    assert right in honest(name)
    place.write_raw("a.jsonl", request(9, input_tokens=3))
    place.roll_up()
    second_look = request(1, input_tokens=5, cost="1e1")  # not certain enough for the bulk read
    place.write_raw("b.jsonl", second_look, second_look, request(2, model="m"))
    published = place.publication()

    def broken(asked: str) -> str:
        return honest(asked).replace(right, wrong) if asked == name else honest(asked)

    monkeypatch.setattr(pipeline.engine, "statement", broken)
    monkeypatch.setattr("pipeline.judge.FEW_BYTES", 0)  # the bulk read takes these few lines too
    with pytest.raises(CheckFailed):
        place.roll_up()
    assert place.publication() == published
    monkeypatch.undo()
    assert place.roll_up().version == published.version + 1
    assert place.published("organization_day").requests.sum() == 3


@pytest.mark.parametrize("lost", [0, 1], ids=["of the bulk read", "of the second look"])
def test_events_that_are_lost_on_their_way_publish_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr("pipeline.judge.FEW_BYTES", 0)
    read = Spool.read
    monkeypatch.setattr(
        Spool, "read", lambda spool, numbers=None: read(spool, numbers and [n for n in numbers if n != lost])
    )
    place.write_raw("a.jsonl", request(1), request(2, cost="1e1"))
    with pytest.raises(CheckFailed):
        place.roll_up()
    monkeypatch.undo()
    assert place.roll_up().version == 1, "nothing was published before"


# --- side by side ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others_day", ["2025-11-10", "2025-10-10"])
def test_of_two_first_publications_the_second_is_refused_and_then_right(place: Place, others_day: str) -> None:
    place.write_raw("mine.jsonl", request(1), request(2))
    attempts: list[bool] = []

    def publish_after_another(run: Run, *inputs: Any) -> int:
        if not attempts:
            place.write_raw("theirs.jsonl", request(2), dated(others_day, 3))
            place.roll_up()
        try:
            version = publish(run, *inputs)
        except CommitRefused:
            attempts.append(False)
            raise
        attempts.append(True)
        return version

    with start_run(place.settings, lambda: place.now) as run:
        report = roll_up(run, Steps(publish=publish_after_another))
    # The other run saw both files, so the second attempt finds nothing left to do.
    assert attempts == [False]
    assert (report.version, report.days) == (1, [])
    assert place.published("organization_day").requests.sum() == 3
    assert_each_month_is_held_once(place)


@pytest.mark.parametrize("others_day", ["2025-11-10", "2025-10-10"])
def test_two_runs_that_saw_different_files_of_a_new_month_count_both(place: Place, others_day: str) -> None:
    place.write_raw("mine.jsonl", request(1), request(2))
    refused = 0

    def publish_after_another(run: Run, *inputs: Any) -> int:
        nonlocal refused
        if not refused:
            (place.layout.raw / "mine.jsonl").rename(place.layout.raw / "_mine")
            place.write_raw("theirs.jsonl", request(2), dated(others_day, 3))
            place.roll_up()
            (place.layout.raw / "_mine").rename(place.layout.raw / "mine.jsonl")
        try:
            return publish(run, *inputs)
        except CommitRefused:
            refused += 1
            raise

    with start_run(place.settings, lambda: place.now) as run:
        report = roll_up(run, Steps(publish=publish_after_another))
    assert (refused, report.version) == (1, 2)
    expected = {("org_a", "2025-11-10"): (3, Decimal("0.75"))}
    if others_day != "2025-11-10":
        expected = {("org_a", "2025-11-10"): (2, Decimal("0.5")), ("org_a", others_day): (1, Decimal("0.25"))}
    assert place.usage() == expected
    assert_each_month_is_held_once(place)


def assert_each_month_is_held_once(place: Place) -> None:
    table = open_published(place.store)
    assert table is not None
    rows = table.get_add_actions(flatten=True)
    held = Counter(zip(rows["partition.rollup"].to_pylist(), rows["partition.month"].to_pylist(), strict=True))
    assert set(held.values()) == {1}


RUN_APART = """
import sys
from datetime import UTC, datetime
sys.path.insert(0, sys.argv[1])
from pipeline.contract.settings import Settings
from pipeline.run import start_run
from pipeline.update import roll_up
from pathlib import Path

settings = Settings.from_environment(
    {"KEYTALLY_DATA": sys.argv[2], "KEYTALLY_THREADS": "1", "KEYTALLY_MEMORY_LIMIT": "128MB"}
)
print("ready", flush=True)
sys.stdin.readline()
for own in sys.argv[3:]:
    hidden = Path(sys.argv[2], "raw", "_" + own)
    hidden.rename(hidden.with_name(own))
    with start_run(settings, lambda: datetime(2025, 11, 15, tzinfo=UTC)) as run:
        roll_up(run)
"""


def run_apart(place: Place, *files: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", RUN_APART, root, str(place.layout.root), *files]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def test_processes_side_by_side_lose_and_double_nothing(place: Place) -> None:
    files = [[f"{process}-{number}.jsonl" for number in range(3)] for process in range(3)]
    for number, file in enumerate(itertools.chain(*files)):
        place.write_raw(f"_{file}", request(number), request(100 + number % 2), dated("2025-10-10", number))
    running = [run_apart(place, *own) for own in files]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    place.roll_up()
    assert place.usage() == {
        ("org_a", "2025-11-10"): (11, Decimal("2.75")),
        ("org_a", "2025-10-10"): (9, Decimal("2.25")),
    }
    assert_each_month_is_held_once(place)
    assert len(place.ledger().files) == 9
    assert list(place.layout.scratch.iterdir()) == []


# --- damage ----------------------------------------------------------------------------------------------------------


def artifact_paths(place: Place, kind: str) -> list[Path]:
    if kind == "published":
        return [
            place.layout.rollups / file.path
            for file in place.publication().files.values()
            if file.rollup not in ("file", "day") and file.month
        ]
    return sorted((place.layout.root / kind).rglob("*.parquet"))


def bytes_of(place: Place) -> dict[str, bytes]:
    kinds = [path for kind in ("events", "daily", "published") for path in artifact_paths(place, kind)]
    return {str(path): path.read_bytes() for path in kinds}


@pytest.mark.parametrize("kind", ["events", "daily", "published"])
@pytest.mark.parametrize("damage", ["delete", "truncate", "alter"])
def test_a_backfill_rebuilds_what_is_missing_or_damaged(place: Place, kind: str, damage: str) -> None:
    place.write_raw("a.jsonl", dated(1), dated(2), dated(2, 2))
    place.write_raw("b.jsonl", dated(2, 2), dated("2025-10-31"))
    place.roll_up()
    whole = bytes_of(place)
    paths = artifact_paths(place, kind)
    assert paths
    for path in paths:
        content = path.read_bytes()
        if damage == "delete":
            path.unlink()
        else:
            path.write_bytes(content[:-20] if damage == "truncate" else content[:30] + b"\xff" + content[31:])
    report = place.backfill("2025-10-31", "2025-11-02")
    assert [(str(day.day), day.accepted) for day in report.days] == [
        ("2025-10-31", 1),
        ("2025-11-01", 1),
        ("2025-11-02", 3),
    ]
    assert not report.has_findings
    assert report.version == 1, "equal results publish nothing"
    assert bytes_of(place) == whole


def test_a_backfill_of_what_is_whole_changes_nothing(place: Place) -> None:
    place.write_raw("a.jsonl", dated(1), dated(2), dated("2025-10-31"), "bad")
    place.roll_up()
    before = set(place.artifacts())
    report = place.backfill("2025-11-01", "2025-11-30")
    assert ([str(day.day) for day in report.days], report.version) == (["2025-11-01", "2025-11-02"], 1)
    assert set(place.artifacts()) == before


def test_without_raw_and_events_a_backfill_leaves_the_published_day_and_says_so(place: Place) -> None:
    raw = place.write_raw("a.jsonl", dated(1), dated(2))
    place.roll_up()
    published = place.usage()
    raw.unlink()
    for path in (place.layout.events / "day=2025-11-01").iterdir():
        path.unlink()
    for _ in range(2):
        report = place.backfill("2025-11-01", "2025-11-02")
        assert [held.file for held in report.held_back] == ["a.jsonl"]
        assert [str(day.day) for day in report.days] == ["2025-11-02"]
        assert (report.version, place.usage()) == (1, published)


def test_without_raw_and_events_a_day_stays_as_published_and_all_else_goes_on(place: Place) -> None:
    raw = place.write_raw("a.jsonl", dated(1), dated(2))
    raw_text = raw.read_text()
    place.roll_up()
    raw.unlink()
    for path in (place.layout.events / "day=2025-11-01").iterdir():
        path.unlink()
    place.write_raw("late.jsonl", dated(1, 5), dated(2, 5), dated(3, 5))
    for attempt in ("the first", "and every later one"):
        report = place.roll_up()
        assert report.has_findings, attempt
        assert [(held.file, "2025-11-01" in held.reason) for held in report.held_back] == [("a.jsonl", True)]
    assert {str(row.day): row.requests for row in place.published("organization_day").itertuples()} == {
        "2025-11-01": 1,
        "2025-11-02": 2,
        "2025-11-03": 1,
    }
    raw.write_text(raw_text)
    assert not place.roll_up().has_findings
    assert {str(row.day): row.requests for row in place.published("organization_day").itertuples()}["2025-11-01"] == 2


def test_a_late_file_finds_the_damaged_events_of_its_day_rebuilt(place: Place) -> None:
    place.write_raw("a.jsonl", dated(1), dated(2))
    place.roll_up()
    for path in (
        *(place.layout.events / "day=2025-11-01").iterdir(),
        *(place.layout.daily / "day=2025-11-02").iterdir(),
    ):
        path.write_bytes(b"PAR1 no more")
    place.write_raw("late.jsonl", dated(1, 5))
    report = place.roll_up()
    assert not report.has_findings
    assert place.usage() == {
        ("org_a", "2025-11-01"): (2, Decimal("0.5")),
        ("org_a", "2025-11-02"): (1, Decimal("0.25")),
    }


def test_a_raw_file_that_the_disk_changed_is_not_taken_for_what_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.contract.store._raw_signature", lambda found: f"{found.st_size}:{found.st_ino}")
    raw = place.write_raw("a.jsonl", dated(1))
    place.roll_up()
    raw.write_bytes(raw.read_bytes().replace(b"0.25", b"9.25"))
    for path in (place.layout.events / "day=2025-11-01").iterdir():
        path.unlink()
    report = place.backfill("2025-11-01", "2025-11-01")
    assert [held.file for held in report.held_back] == ["a.jsonl"]
    assert place.usage() == {("org_a", "2025-11-01"): (1, Decimal("0.25"))}


def test_a_damaged_ledger_stops_the_run_with_what_helps(place: Place) -> None:
    place.write_raw("a.jsonl", dated(1))
    place.roll_up()
    (path,) = (place.layout.rollups / f.path for f in place.publication().files.values() if f.rollup == "file")
    path.write_bytes(b"gone")
    with pytest.raises(KeytallyError, match="move the folder rollups/ away") as stopped:
        place.roll_up()
    assert "\n" not in str(stopped.value)


def test_a_lost_table_is_published_anew_from_raw(place: Place) -> None:
    place.write_raw("a.jsonl", dated(1), dated(2))
    place.roll_up()
    usage = place.usage()
    place.layout.rollups.rename(place.layout.root / "rollups.away")
    assert place.roll_up().version == 1
    assert place.usage() == usage


def test_a_changed_rule_takes_every_file_in_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", dated(1), dated(2))
    gone = place.write_raw("gone.jsonl", dated(3))
    place.roll_up()
    gone.unlink()
    pipeline.intake.rule_of.cache_clear()
    monkeypatch.setattr(pipeline.intake, "TAKE_IN_RULE", 99)
    try:
        report = place.roll_up()
    finally:
        pipeline.intake.rule_of.cache_clear()
    assert [entry.file for entry in report.ingested] == ["a.jsonl"]
    assert place.published("organization_day").requests.sum() == 3


def test_the_clock_is_asked_once_for_what_counts_as_now(place: Place) -> None:
    moments = iter([datetime(2025, 11, 15, 10, tzinfo=UTC), *[datetime(2025, 12, 1, tzinfo=UTC)] * 9])
    place.write_raw("a.jsonl", dated(16))
    with start_run(place.settings, lambda: next(moments)) as run:
        assert roll_up(run).ingested[0].take_in.quarantined == 1


def test_the_report_is_a_json_document(place: Place) -> None:
    place.settings = replace(place.settings, rejected_limit=Decimal(50))
    place.write_raw("a.jsonl", request(1), "bad")
    document = json.loads(json.dumps(place.roll_up().as_json()))
    assert document.pop("seconds") >= 0
    assert document == {
        "ingested": [{"file": "a.jsonl", "lines": 2, "accepted": 1, "quarantined": 1}],
        "replaced": [],
        "held_back": [],
        "days": [
            {"day": "2025-11-10", "accepted": 1, "counted": 1, "duplicate": 0, "conflicting": 0, "session": 0},
        ],
        "months": ["2025-11"],
        "version": 1,
    }
