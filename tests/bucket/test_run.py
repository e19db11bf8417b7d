"""Runs on a bucket: the numbers of a folder, whoever dies, whatever the line does, from however many machines."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import obstore
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.contract.bucket
from pipeline import read_usage
from pipeline.contract.data_root import NoDataRoot, check_data
from pipeline.contract.last_run import read_last_run
from pipeline.contract.layout import stated_checksum
from pipeline.contract.store import StoreError
from pipeline.errors import CommitRefused
from pipeline.history import restatements
from pipeline.quarantine import Quarantine
from pipeline.reconcile import reconcile
from pipeline.run import start_run
from pipeline.status import status_of
from pipeline.sweep import GRACE
from pipeline.update import roll_up
from tests.bucket import s3
from tests.bucket.conftest import BucketPlace
from tests.conftest import Place, request
from tests.crashing import Crash, answers_of, expected_answers, failing_at, shown, stepping

ROOT = Path(__file__).parent.parent.parent


def rows_of(place: Place) -> dict[str, Any]:
    """Every published row but the restatements, whose versions depend on the order; and the ledger."""
    seen = shown(place)
    rows = {key: rows for key, rows in seen["rows"].items() if key[0] != "restatement"}
    return {"rows": rows, "days": seen["days"], "files": {file[:1] + file[2:] for file in seen["files"]}}


def write_traffic(place: Place) -> None:
    """A few requests of each kind: copies, sessions, bad lines, two months, every ending."""
    place.write_raw("a.jsonl", *(request(number) for number in range(50)), "bad", request(1, cost="0.5"))
    place.write_raw("eu/b.jsonl", *(request(number, api_key_id=None) for number in range(60, 70)))
    place.write_raw("eu/october.jsonl", request(100, timestamp="2025-10-31T23:59:59Z", organization_id="org_b"))
    rows = pa.Table.from_pylist([request(number, organization_id="org_b") for number in range(200, 2_200)])
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, row_group_size=300)
    place.write_raw("rows.parquet", sink.getvalue().to_pybytes())
    place.write_raw("empty.jsonl", b"")
    place.write_raw("_unfinished.jsonl", request(300))
    place.write_raw("notes.txt", b"hello")
    place.write_raw("same.jsonl", request(100, timestamp="2025-10-31T23:59:59Z", organization_id="org_b"))


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    """A data root in a folder, to compare with."""
    return Place(tmp_path / "folder")


def test_a_bucket_gives_what_a_folder_gives(place: BucketPlace, folder: Place) -> None:
    for each in (place, folder):
        write_traffic(each)
    reports = [each.roll_up() for each in (place, folder)]
    in_bucket, in_folder = ({**report.as_json(), "seconds": 0} for report in reports)
    assert in_bucket == in_folder
    assert shown(place) == shown(folder)
    assert answers_of(place) == answers_of(folder)
    assert answers_of(place.elsewhere("a server")) == answers_of(folder)
    assert list(Quarantine(place.store).lines()) == list(Quarantine(folder.store).lines())
    status = [status_of(each.store, each.now, each.settings).as_json() for each in (place, folder)]
    assert status[0] == status[1]


def test_polars_reads_the_table_in_the_bucket(place: BucketPlace) -> None:
    write_traffic(place)
    place.roll_up()
    uri, options = place.store.table
    reach = {name: value for name, value in options.items() if name.startswith("aws_") or name == "allow_http"}
    table = pl.scan_delta(uri, storage_options=reach).filter(pl.col("rollup") == "organization_day")
    rows = table.select("organization_id", "day", "requests", "cost").collect().rows()
    read = {(organization, str(day)): (requests, cost.normalize()) for organization, day, requests, cost in rows}
    assert read == place.usage()


def test_running_again_opens_no_raw_object_and_publishes_nothing(place: BucketPlace) -> None:
    write_traffic(place)
    place.roll_up()
    before = place.objects()
    with s3.Line(place.server) as line:
        again = place.elsewhere("another", AWS_ENDPOINT_URL=line.url)
        report = again.roll_up()
    assert (report.published, report.version) == (False, 1)
    assert line.asked("GET", "/raw/") == 0
    assert place.objects() == before


def test_another_etag_is_another_content_and_the_same_content_again_is_not(place: BucketPlace) -> None:
    place.write_raw("a.jsonl", request(1), request(2))
    place.roll_up()
    place.write_raw("a.jsonl", request(1), request(3))  # of the same size
    assert [entry.file for entry in place.roll_up().ingested] == ["a.jsonl"]
    place.write_raw("a.jsonl", request(1), request(3))
    place.write_raw("copy.jsonl", request(1), request(3))
    report = place.roll_up()
    assert [(entry.file, entry.same_as) for entry in report.ingested] == [("copy.jsonl", "a.jsonl")]
    obstore.delete(place.client, "raw/a.jsonl")
    assert place.roll_up().published is False, "what was deleted takes nothing back"


def test_a_raw_object_that_changes_while_it_is_read_is_held_back(place: BucketPlace) -> None:
    size = 2 * pipeline.contract.bucket.BLOCK_BYTES
    line = json.dumps(request(1, pad="x" * 100_000)).encode() + b"\n"
    place.write_raw("a.jsonl", line * (size // len(line) + 1))
    rows = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([request(3)]), rows)
    place.write_raw("rows.parquet", rows.getvalue().to_pybytes())
    reads = itertools.count()

    def change(name: str) -> None:
        if name == "read a raw file" and next(reads) == 1:
            place.write_raw("a.jsonl", request(2))

    def change_rows(file: str, signature: str) -> Any:
        place.write_raw("rows.parquet", b"other bytes")
        return parquet_source(file, signature)

    with start_run(place.settings, lambda: place.now) as run, stepping(change):
        parquet_source = run.store.parquet_source
        run.store.parquet_source = change_rows  # type: ignore[method-assign]
        report = roll_up(run)
    assert [(held.file, held.reason[:9]) for held in report.held_back] == [
        ("a.jsonl", "changing:"),
        ("rows.parquet", "changing:"),
    ]
    obstore.delete(place.client, "raw/rows.parquet")
    assert place.roll_up().version == 1
    assert place.usage()["org_a", "2025-11-10"][0] == 1


def test_a_backfill_heals_what_is_gone_or_damaged_in_the_bucket_whatever_copies_there_are(place: BucketPlace) -> None:
    write_traffic(place)
    place.roll_up()
    before = shown(place)
    events, daily = sorted(place.objects("events")), sorted(place.objects("daily"))
    obstore.delete(place.client, events[0])
    obstore.put(place.client, events[1], b"other bytes")
    obstore.put(place.client, events[2], b"")
    obstore.delete(place.client, daily)
    report = place.backfill("2025-10-01", "2025-11-30")
    assert report.held_back == []
    assert shown(place) == before
    for key in (*events, *daily):
        content = obstore.get(place.client, key).bytes().to_bytes()
        assert hashlib.sha256(content).hexdigest()[:32] == stated_checksum(key), key
    elsewhere = place.elsewhere("another")
    elsewhere.write_raw("late.jsonl", request(900))
    assert elsewhere.roll_up().held_back == []


def test_reconcile_recounts_from_the_bucket(place: BucketPlace) -> None:
    write_traffic(place)
    place.roll_up()
    with start_run(place.settings, lambda: place.now) as run:
        found = reconcile(run, date(2025, 10, 1), date(2025, 11, 30))
    assert (found.equal, found.days, found.waiting, found.missing) == (True, 2, (), ())


def test_a_restated_day_is_on_record(place: BucketPlace) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.now += timedelta(days=2)
    place.write_raw("late.jsonl", request(2))
    place.roll_up()
    (row,) = restatements(place.store, date(2025, 11, 1), date(2025, 11, 30), None)
    assert (row.cause, row.files, row.requests_before, row.requests_after) == ("late file", ["late.jsonl"], 1, 2)


# --- what is deleted, and when ---------------------------------------------------------------------------------------


def test_what_was_superseded_stays_for_a_week_from_then_and_goes(place: BucketPlace) -> None:
    """The server says when an object was written; when it was superseded, a note does."""
    start = place.now = real_now()
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    first = {key for key in place.objects() if key.endswith(".parquet")}
    place.now = start + timedelta(days=6)
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    place.now = start + timedelta(days=10)
    place.write_raw("c.jsonl", request(3, timestamp="2025-10-01T00:00:00Z"))
    place.elsewhere("another").roll_up()
    assert first <= place.objects(), "written more than a week ago, superseded less than a week ago"
    place.now = start + timedelta(days=6) + GRACE + timedelta(days=1)
    place.write_raw("d.jsonl", request(4, timestamp="2025-09-01T00:00:00Z"))
    place.elsewhere("another").roll_up()
    ledger = place.ledger()
    assert not {key for key in first & place.objects() if key.startswith(("rollups", "daily"))}
    assert {f"rollups/{file.path}" for file in ledger.publication.files.values()} <= place.objects()
    notes = [key for key in place.objects("superseded") if key.endswith(".txt")]
    assert len(notes) == 2, "of the run before, and of this one"


def test_a_note_of_what_was_superseded_is_read_once_a_machine(place: BucketPlace) -> None:
    """With a run every quarter of an hour there are hundreds of them."""
    place.now = real_now()
    for number in range(6):
        place.write_raw("a.jsonl", *(request(other) for other in range(number + 1)))
        place.roll_up()
    place.now += GRACE - timedelta(hours=1)
    sweeps = []
    with s3.Line(place.server) as line:
        other = place.elsewhere("other", AWS_ENDPOINT_URL=line.url)
        for number in range(2):
            # Objects are as old as the server says, so what is looked at lies an hour in the future.
            other.now = place.now + timedelta(hours=2, minutes=number)
            place.write_raw(f"late{number}.jsonl", request(100 + number, timestamp="2025-09-01T00:00:00Z"))
            line.calls.clear()
            other.roll_up()
            sweeps.append(line.asked("GET", "/superseded/"))
    assert sweeps[0] >= 5
    assert sweeps[1] <= 1, "the one that the run before wrote"


def test_a_file_that_was_put_again_is_not_swept(place: BucketPlace) -> None:
    """It is looked at once more just before: the very content may count again by now."""
    place.now = real_now()
    orphan = f"daily/day=2025-10-31/{'0' * 32}-{'0' * 32}.parquet"
    obstore.put(place.client, orphan, b"of a run that was refused")
    place.now += GRACE + timedelta(days=1)
    (found,) = place.store.list(place.layout.daily)
    time.sleep(1.1)  # the server tells whole seconds
    obstore.put(place.client, orphan, b"of a run that was refused")
    place.store.delete_found(found)
    assert orphan in place.objects()
    (found,) = place.store.list(place.layout.daily)
    place.store.delete_found(found)
    assert orphan not in place.objects()


def test_a_run_whose_file_was_swept_meanwhile_publishes_nothing(place: BucketPlace) -> None:
    """Another machine had found it superseded, and deleted it just after this one put it again."""
    place.write_raw("a.jsonl", request(1))

    def sweep(name: str) -> None:
        if name == "try whether an object is made once only":
            obstore.delete(place.client, sorted(place.objects("events")))

    with stepping(sweep), pytest.raises(StoreError, match=r"/events/.*.parquet was deleted meanwhile; nothing was pub"):
        place.roll_up()
    assert place.ledger().publication.version == 0
    assert place.elsewhere("another").roll_up().version == 1


def real_now() -> datetime:
    """As the server has it, which says when an object was written."""
    return datetime.now(UTC).replace(microsecond=0)


# --- runs that end in the middle -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(server: s3.Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[BucketPlace, Any, Any, list[str]]:
    """A data root just before a run that takes in, replaces, and publishes; what is published before and after; and
    the steps it takes."""
    place = BucketPlace(server, tmp_path_factory.mktemp("scene") / "first", "scenes/first")
    place.now = real_now()
    place.write_raw("a.jsonl", request(1), request(2, api_key_id=None), "bad")
    place.write_raw("eu/b.jsonl", request(3, timestamp="2025-10-31T23:00:00Z", organization_id="org_b"))
    place.roll_up()
    place.now += GRACE + timedelta(days=1)  # whatever nobody needs is old enough to go
    obstore.put(place.client, f"daily/day=2025-10-31/{'0' * 32}-{'0' * 32}.parquet", b"of a run that was refused")
    place.write_raw("a.jsonl", request(1, cost="0.75"), request(4), "worse")
    place.write_raw("september.jsonl", request(5, timestamp="2025-09-01T00:00:00Z", organization_id="org_b"))
    before = shown(place)
    steps: list[str] = []
    undisturbed = copy_of(place, "undisturbed")
    with stepping(steps.append):
        undisturbed.roll_up()
    return place, before, shown(undisturbed), steps


def copy_of(place: BucketPlace, name: str) -> BucketPlace:
    """The data root once more, seen from a machine that has no copies."""
    prefix = f"scenes/{name}"
    other = BucketPlace(place.server, place.machine.parent / name.replace("/", "-"), prefix)
    other.now = place.now
    for key in place.objects():
        obstore.put(other.client, key, obstore.get(place.client, key).bytes())
    return other


def assert_heals(place: BucketPlace, before: Any, after: Any) -> None:
    seen = shown(place)
    assert seen in (before, after)
    assert answers_of(place.elsewhere(f"{place.machine.name}-server")) == expected_answers(seen)
    healed = place.elsewhere(f"{place.machine.name}-next")
    healed.roll_up()
    assert shown(healed) == after
    assert list(healed.layout.scratch.iterdir()) == []
    assert not [key for key in place.objects("rollups/_delta_log") if "#" in key]


STEPS = (
    "list the raw objects",
    "open a raw file",
    "read a raw file",
    "put a file",
    "fetch a file",
    "fetch files",
    "verify a file",
    "note what is superseded",
    "try whether an object is made once only",
    "commit",
    "delete a superseded file",
    "replace a document",
)


def test_these_are_the_steps_that_reach_the_bucket(scene: tuple[BucketPlace, Any, Any, list[str]]) -> None:
    local = {
        "make the folder of scratches",
        "make a scratch",
        "lock the scratch",
        "remove the scratch",
        "open the table",
        "write a file in scratch",
        "write the note of the run",
    }
    assert set(scene[3]) == {*STEPS, *local}


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_fails_at_a_step_is_made_up_for_by_the_next(
    scene: tuple[BucketPlace, Any, Any, list[str]], step: str
) -> None:
    """By one on another machine, which has only what is in the bucket."""
    original, before, after, steps = scene
    place = copy_of(original, f"fails/{steps.index(step)}")
    with stepping(failing_at(steps.index(step))), pytest.raises(BaseException) as failed:
        place.roll_up()
    assert isinstance(failed.value, Crash) or "Crash" in str(failed.value)
    assert_heals(place, before, after)


KILLED = """
import os, signal, sys
from datetime import datetime
import cli, pipeline.contract.seam
number = int(sys.argv[1])
def kill(name):
    global number
    if not number:
        os.kill(os.getpid(), signal.SIGKILL)
    number -= 1
pipeline.contract.seam.at_step = kill
cli.utc_now = lambda: datetime.fromisoformat(sys.argv[2])
cli.main(["rollup"])
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_run_killed_at_a_step_is_made_up_for_by_the_next(
    scene: tuple[BucketPlace, Any, Any, list[str]], step: str
) -> None:
    original, before, after, steps = scene
    place = copy_of(original, f"killed/{steps.index(step)}")
    last = len(steps) - 1 - steps[::-1].index(step)
    command = [sys.executable, "-c", KILLED, str(last), place.now.isoformat()]
    done = subprocess.run(command, cwd=ROOT, env=place.command_environment(), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert_heals(place, before, after)


# --- several machines ------------------------------------------------------------------------------------------------


def test_two_machines_that_first_publish_a_month_cannot_both_win(place: BucketPlace) -> None:
    """Both are about to commit after the same version, having seen different files."""
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("mine.jsonl", request(2, timestamp="2025-09-10T00:00:00Z"))
    other = place.elsewhere("other")
    commits = itertools.count()

    def come_first(name: str) -> None:
        if name == "commit" and next(commits) == 0:
            pipeline.contract.seam.at_step = None
            place.write_raw("theirs.jsonl", request(3, timestamp="2025-09-11T00:00:00Z"))
            assert other.roll_up().version == 2
            place.write_raw("later.jsonl", request(4, timestamp="2025-09-12T00:00:00Z"))
            pipeline.contract.seam.at_step = come_first

    with stepping(come_first):
        assert place.roll_up().version == 3, "theirs is version 2, and ours was recomputed from it"
    assert next(commits) == 2
    assert {day: requests for (_, day), (requests, _) in place.usage().items()} == {
        "2025-11-10": 1,
        "2025-09-10": 1,
        "2025-09-11": 1,
        "2025-09-12": 1,
    }
    months = [month for rollup, month in place.publication().files if rollup == "organization_day"]
    assert sorted(months) == sorted(set(months))


def test_of_many_commits_at_once_one_wins_each_version(place: BucketPlace) -> None:
    """Four machines as fast as they can: each file counts once, and every version is somebody's."""
    for number in range(4):
        place.write_raw(f"{number}.jsonl", request(number, timestamp=f"2025-0{6 + number}-01T00:00:00Z"))
    machines = [place.elsewhere(f"machine {number}").command_environment() for number in range(4)]
    command = [sys.executable, "-m", "cli", "rollup", "--json"]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=machine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for machine in machines
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    assert {day: requests for (_, day), (requests, _) in place.usage().items()} == {
        f"2025-0{6 + number}-01": 1 for number in range(4)
    }
    reported = sorted(json.loads(output)["version"] for output, _ in outputs)
    entries = sorted(key for key in place.objects("rollups/_delta_log") if key.endswith(".json"))
    assert entries == [f"rollups/_delta_log/{version:020d}.json" for version in range(reported[-1] + 1)]
    commits = [obstore.get(place.client, entry).bytes().to_bytes() for entry in entries[1:]]
    names = [re.search(rb'"keytally\.commit":"(\w+)"', commit) for commit in commits]
    assert len({name[1] for name in names if name}) == len(commits) == len({*reported}), "each is somebody's"


def test_nothing_is_published_in_a_store_that_knows_no_conditions(place: BucketPlace) -> None:
    """There two machines could both win."""
    place.write_raw("a.jsonl", request(1))
    with s3.Line(place.server, lambda call: (200, b"") if "/made-once" in call.path else None) as line:
        behind = place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url)
        with pytest.raises(StoreError, match=r"it was made twice, although .* \(If-None-Match\)"):
            behind.roll_up()
        assert not [key for key in place.objects() if key.startswith(("rollups/_delta_log", "superseded"))]
        assert place.roll_up().version == 1
        place.write_raw("b.jsonl", request(2))
        with pytest.raises(StoreError, match="it was made twice"):  # nor where the table was copied to such a store
            behind.roll_up()
    assert place.publication().version == 1


def test_whether_a_store_knows_conditions_costs_one_request_a_run(place: BucketPlace) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("b.jsonl", request(2))
    with s3.Line(place.server) as line:
        assert place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url).roll_up().version == 2
    assert line.asked("PUT", "/made-once") == 1


def test_a_commit_whose_answer_is_lost_is_known_as_our_own(place: BucketPlace) -> None:
    """The server took it; what came back did not come through. It is neither made twice nor given up."""
    lost: list[s3.Call] = []

    def lose(call: s3.Call) -> Any:
        if call.method == "PUT" and call.path.endswith(f"_delta_log/{1:020d}.json"):
            lost.append(call)
            return s3.CUT
        return None

    place.write_raw("a.jsonl", request(1))
    with s3.Line(place.server, lose) as line:
        report = place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url).roll_up()
    assert lost
    assert (report.published, report.version) == (True, 1)
    assert [key for key in sorted(place.objects("rollups/_delta_log")) if key.endswith(".json")] == [
        f"rollups/_delta_log/{version:020d}.json" for version in (0, 1)
    ]
    assert place.usage()["org_a", "2025-11-10"][0] == 1


def test_a_commit_that_meets_another_at_the_very_moment_is_tried_again(place: BucketPlace) -> None:
    """As AWS answers: 409, and it may be that none of the two has won."""
    met: list[s3.Call] = []

    def meet(call: s3.Call) -> Any:
        if call.method == "PUT" and call.path.endswith(f"_delta_log/{1:020d}.json") and len(met) < 2:
            met.append(call)
            return s3.error(409, "ConditionalRequestConflict")
        return None

    place.write_raw("a.jsonl", request(1))
    with s3.Line(place.server, meet) as line:
        assert place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url).roll_up().version == 1
    assert len(met) == 2
    assert place.usage()["org_a", "2025-11-10"][0] == 1


def test_a_commit_of_another_is_never_taken_for_our_own(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine commits at the very moment at which ours is cut: ours is refused."""
    monkeypatch.setattr("pipeline.update.COMMIT_ATTEMPTS", 1)
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    other = place.elsewhere("other")
    came = []

    def come_between(call: s3.Call) -> Any:
        if call.method == "PUT" and call.path.endswith(f"_delta_log/{2:020d}.json") and not came:
            came.append(call)
            place.write_raw("theirs.jsonl", request(3))
            other.roll_up()
            return s3.AWAY
        return None

    place.write_raw("mine.jsonl", request(2))
    with s3.Line(place.server, come_between) as line, pytest.raises(CommitRefused):
        place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url).roll_up()
    assert place.publication().version == 2
    assert place.usage()["org_a", "2025-11-10"][0] == 3, "the other one had seen all three files"


@pytest.mark.parametrize("attempts", [8, 1])
def test_a_commit_that_another_overwrites_is_made_again_or_reported(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """As in a store that checks the condition of a PUT before it writes: both runs are told that they succeeded."""
    monkeypatch.setattr("pipeline.update.COMMIT_ATTEMPTS", attempts)
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    other = place.elsewhere("other")
    overwritten = []

    def overwrite(call: s3.Call) -> Any:
        if call.method == "PUT" and call.path.endswith(f"_delta_log/{2:020d}.json") and not overwritten:
            overwritten.append(call)
            other.roll_up()
            place.write_raw("mine.jsonl", request(2))  # the other run did not see it
            return 200, b""
        return None

    place.write_raw("theirs.jsonl", request(3))
    with s3.Line(place.server, overwrite) as line:
        behind = place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url)
        if attempts == 1:
            with pytest.raises(CommitRefused):
                behind.roll_up()
        else:
            assert behind.roll_up().version == 3
    assert overwritten
    if attempts == 1:
        assert place.publication().version == 2
        place.roll_up()
    assert place.usage()["org_a", "2025-11-10"][0] == 3


def test_a_commit_that_is_overwritten_a_moment_later_is_noticed(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("b.jsonl", request(2))

    def overwrite(*_: Any) -> None:
        entry = f"rollups/_delta_log/{2:020d}.json"
        ours = bytes(obstore.get(place.client, entry).bytes())
        obstore.put(place.client, entry, re.sub(rb'("keytally.commit":)"\w+"', rb'\1"00"', ours))

    monkeypatch.setattr("pipeline.publish.shorten_log", overwrite)
    report = place.roll_up()
    assert (report.version, report.published) == (2, False), "the other commit has everything already"
    assert "version 2 is the commit of another run" in caplog.text


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for a second, not for two minutes."""
    monkeypatch.setattr("pipeline.run.PATIENCE", 1)


# --- a bad line ------------------------------------------------------------------------------------------------------


def test_over_a_line_that_fails_every_tenth_call_and_cuts_every_twentieth_all_is_well(
    place: BucketPlace, folder: Place
) -> None:
    chance = random.Random(1)
    with s3.Line(place.server, s3.every(10, 20)) as line:
        behind = place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url)
        for each in (behind, folder):
            write_traffic(each) if each is folder else write_traffic(place)
        for night in range(3):
            late = [request(chance.randrange(10**6), timestamp=f"2025-1{night % 2}-0{night + 1}T00:00:00Z")]
            for each in (place, folder):
                each.write_raw(f"night{night}.jsonl", *late)
            for each in (behind, folder):
                each.now += timedelta(days=1)
                each.roll_up()
            assert rows_of(behind) == rows_of(folder)
        assert answers_of(behind) == answers_of(folder)
        assert len(line.calls) > 200


def test_a_store_that_goes_away_in_the_middle_fails_the_run_in_one_line(place: BucketPlace, impatient: None) -> None:
    place.write_raw("a.jsonl", request(1))
    gone = []

    def go_away(call: s3.Call) -> Any:
        gone.extend([call] if call.method == "PUT" and "/daily/" in call.path else [])
        return s3.error(503, "SlowDown") if gone else None

    with s3.Line(place.server, go_away) as line:
        behind = place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url)
        with pytest.raises(
            StoreError, match=r"^PUT s3://.*/daily/day=2025-11-10/.*: 503 SlowDown \(\d+ tries in \d s\)"
        ):
            behind.roll_up()
    assert not place.objects("rollups")
    assert read_last_run(place.store) is None
    assert place.roll_up().version == 1


# --- the command -----------------------------------------------------------------------------------------------------


def command(place: BucketPlace, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env={**place.command_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


WRONG = {
    "wrong secret": (
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        "403 SignatureDoesNotMatch; see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "another's bucket": (
        {"KEYTALLY_DATA": "s3://not-ours/x"},
        "403 AccessDenied; the key may not do this, or the bucket is another's: see to its rights",
    ),
    "missing bucket": (
        {
            "KEYTALLY_DATA": "s3://not-there/x",
            "AWS_ACCESS_KEY_ID": s3.MAKER,
            "AWS_SECRET_ACCESS_KEY": s3.MAKER_SECRET,
        },
        "404 NoSuchBucket; there is no bucket not-there at http://127.0.0.1:",
    ),
}
COMMANDS = [["rollup"], ["serve", "--port", "0"], ["status"]]


def assert_says_in_a_line(place: BucketPlace, arguments: list[str], sentence: str, **environment: str) -> None:
    done = command(place, *arguments, **environment)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (said,) = done.stderr.strip().splitlines()
    assert said.startswith("keytally: LIST s3://")
    assert sentence in said
    assert place.objects() == {"raw/a.jsonl"}, "nothing half-done"


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_work_ends_with_one_line_and_nothing_half_done(
    place: BucketPlace, wrong: str, arguments: list[str]
) -> None:
    place.write_raw("a.jsonl", request(1))
    environment, sentence = WRONG[wrong]
    assert_says_in_a_line(place, arguments, sentence, **environment)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    "answer",
    [
        s3.error(301, "PermanentRedirect", "<Endpoint>keytally-data.s3.eu-west-1.amazonaws.com</Endpoint>"),
        s3.error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
    ],
    ids=["301", "400"],
)
def test_a_wrong_region_ends_with_one_line_and_nothing_half_done(
    place: BucketPlace, answer: s3.Answer, arguments: list[str]
) -> None:
    """As AWS answers; the server of these tests takes every region."""
    place.write_raw("a.jsonl", request(1))
    with s3.Line(place.server, lambda _: answer) as line:
        sentence = f"the bucket is not in the region {s3.REGION}: see to AWS_REGION"
        assert_says_in_a_line(place, arguments, sentence, AWS_ENDPOINT_URL=line.url)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AWS_CONDITIONAL_PUT", "disabled"), ("KEYTALLY_CACHE", "/dev/null/cache"), ("AWS_ENDPOINT_URL", "http://a:b@c")],
)
def test_a_setting_that_cannot_be_used_is_one_line_that_names_it(place: BucketPlace, variable: str, value: str) -> None:
    done = command(place, "rollup", **{variable: value})
    (said,) = done.stderr.strip().splitlines()
    assert said.startswith(f"keytally: {variable} is ")
    assert "a:b" not in said
    assert done.returncode == (1 if variable == "KEYTALLY_CACHE" else 2)


def test_nobody_at_the_address_is_said_in_a_line(place: BucketPlace, impatient: None) -> None:
    nowhere = place.elsewhere("nowhere", AWS_ENDPOINT_URL=f"http://127.0.0.1:{s3.free_ports(1)[0]}")
    with pytest.raises(
        StoreError, match=r"^LIST s3://[^ ]+: no answer: error sending request \(\d+ tries in \d s\); [^\n]*$"
    ):
        nowhere.roll_up()


def test_the_registry_must_be_named_when_the_data_root_is_in_a_bucket(place: BucketPlace) -> None:
    done = command(place, "rollup", KEYTALLY_KEYS="")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "keytally: KEYTALLY_KEYS is '', but must be the path of a file on this machine, also where the data root is in"
        " a bucket"
    )


def test_a_notebook_reads_what_is_published_in_a_bucket(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", request(1, cost="0.000000000001"), request(2, organization_id="org_b"))
    place.roll_up()
    for name, value in place.elsewhere("a laptop").environment.items():
        if name != "KEYTALLY_DATA":
            monkeypatch.setenv(name, value)
    usage = read_usage(place.environment["KEYTALLY_DATA"], by="key")
    assert usage[["organization_id", "api_key_id", "cost"]].values.tolist() == [
        ["org_a", "key_1", Decimal("0.000000000001")],
        ["org_b", "key_1", Decimal("0.25")],
    ]


def test_a_prefix_without_raw_objects_is_no_data_root(place: BucketPlace) -> None:
    with pytest.raises(NoDataRoot, match=r"there is no s3://.*/raw: .*to begin here, put request logs below s3://"):
        place.roll_up()
    assert place.objects() == set()
    with pytest.raises(NoDataRoot, match=r"has neither raw/ nor rollups/"):
        check_data(place.store)
    place.write_raw("a.jsonl", request(1))
    assert place.roll_up().version == 1
    obstore.delete(place.client, "raw/a.jsonl")
    with pytest.raises(NoDataRoot, match=r"there is no .*raw, but s3://.* has rollups/: bring it back"):
        place.roll_up()
