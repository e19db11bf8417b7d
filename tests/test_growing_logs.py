"""A log that never rests: each run ingests the whole lines that were there when the run began."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

import pipeline.raw
from pipeline.contract.coverage import state_of
from pipeline.contract.last_run import read_last_run
from pipeline.quarantine import Quarantine
from pipeline.reconcile import reconcile
from pipeline.run import start_run
from pipeline.status import Status, status_of
from tests.conftest import Place, lines, request

ROOT = Path(__file__).parent.parent
DAY = date(2025, 11, 10)
# Writes numbered requests, ten a second, half a line at a time as a writer with a buffer does, until it is told to end.
WRITER = """
import json, signal, sys, time
path, ending = sys.argv[1], []
signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
file = open(path, "ab", buffering=0)
number = 0
while not ending:
    number += 1
    line = json.dumps({"request_id": f"live_{number}", "timestamp": "2025-11-10T12:00:00Z",
                       "organization_id": "org_a", "api_key_id": "key_1", "cost": "0.25"}).encode() + b"\\n"
    file.write(line[:20])
    time.sleep(0.05)
    file.write(line[20:])
    time.sleep(0.05)
print(number)
"""


def while_reading(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Have `change` happen each time that a raw file is read."""
    honest = pipeline.raw.step

    def step(name: str) -> None:
        honest(name)
        if name == "read a raw file":
            change()

    monkeypatch.setattr(pipeline.raw, "step", step)


def appending(monkeypatch: pytest.MonkeyPatch, path: Path, *content: bytes) -> None:
    """Append some bytes whenever a raw file is read, as long as there are any."""
    left = list(content)
    lock = threading.Lock()  # a file that is read on another thread waits until the bytes are there

    def change() -> None:
        with lock:
            if left:
                with path.open("ab") as file:
                    file.write(left.pop(0))

    while_reading(monkeypatch, change)


def counted(place: Place) -> int:
    return sum(requests for requests, _ in place.usage().values())


def states(place: Place) -> dict[str, str]:
    return {str(day.day): day.state for day in status(place).days}


def status(place: Place) -> Status:
    return status_of(place.store, place.now, place.settings)


def equal(place: Place) -> bool:
    with start_run(place.settings, lambda: place.now) as run:
        result = reconcile(run, DAY, DAY)
    assert not result.unverifiable
    return result.equal and result.days == 1


def test_what_was_there_when_the_run_began_counts_and_the_next_run_reads_the_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.write_raw("a.jsonl", request(1), request(2))
    size = path.stat().st_size
    appending(monkeypatch, path, lines(request(3), request(4, timestamp="2025-11-11T00:00:00Z")))
    report = place.roll_up()
    assert not report.has_findings
    assert counted(place) == 2
    assert place.ledger().files["a.jsonl"].signature.startswith(f"{size}:")
    assert equal(place)
    place.roll_up()
    assert counted(place) == 4
    assert equal(place)
    version = place.ledger().publication.version
    assert place.roll_up().version == version  # at rest: nothing new


def test_half_a_line_waits_until_it_is_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lines(request(1), request(2))
    third = lines(request(3))
    path = place.write_raw("a.jsonl", whole + third[:30])
    appending(monkeypatch, path, third[30:40])
    report = place.roll_up()
    assert (report.ingested[0].take_in.lines, report.ingested[0].take_in.quarantined) == (2, 0)
    assert place.ledger().files["a.jsonl"].signature.startswith(f"{len(whole)}:")
    assert equal(place)
    with path.open("ab") as file:
        file.write(third[40:])
    place.roll_up()
    assert counted(place) == 3


def test_a_last_line_without_an_end_counts_once_the_log_rests(place: Place) -> None:
    place.write_raw("a.jsonl", lines(request(1), request(2))[:-1])
    place.roll_up()
    assert counted(place) == 2


def test_the_days_of_lines_that_wait_are_not_loaded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of which only lines that were read are known is loaded, also of a log that never rests."""
    path = place.write_raw(
        "a.jsonl",
        *(request(day, timestamp=f"2025-11-{day}T12:00:00Z") for day in (10, 11, 12)),
    )
    place.write_raw("b.jsonl", request(20, timestamp="2025-11-13T12:00:00Z"))
    appending(monkeypatch, path, lines(*(request(day + 5, timestamp=f"2025-11-{day}T13:00:00Z") for day in (11, 13))))
    place.roll_up()
    assert states(place) == {
        "2025-11-10": "loaded",
        "2025-11-11": "loaded_with_findings",
        "2025-11-12": "loaded",
        "2025-11-13": "loaded_with_findings",
        "2025-11-14": "not_loaded",
    }
    findings = {str(day.day): day.finding or "" for day in status(place).days}
    assert "a.jsonl" in findings["2025-11-11"] and "next run" in findings["2025-11-11"]
    note = read_last_run(place.store)
    assert note and {str(day) for day in note.findings} == {"2025-11-11", "2025-11-13"}
    assert state_of(is_loaded=True, is_open=False, has_finding=date(2025, 11, 13) in note.findings) != "loaded"
    place.roll_up()
    assert {state for day, state in states(place).items() if day < "2025-11-14"} == {"loaded"}


@pytest.mark.parametrize("damage", ["truncated", "changing"])
def test_the_days_of_a_file_held_back_are_not_loaded_when_another_file_has_them(
    place: Place, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Also of a file that could never be ingested: what can be read of it says which days it is about."""
    place.write_raw("host1.jsonl", request(1), request(2, timestamp="2025-11-11T12:00:00Z"))
    content = lines(*(request(number) for number in range(10, 400)))
    if damage == "truncated":
        place.write_raw("host2.jsonl.gz", gzip.compress(content)[:-20])
    else:
        path = place.write_raw("host2.jsonl", content)
        moments = iter(range(10**6))

        def overwrite() -> None:
            with path.open("r+b") as file:
                file.write(lines(request(next(moments) + 10**6)))

        while_reading(monkeypatch, overwrite)
    report = place.roll_up()
    assert [held.reason.partition(":")[0] for held in report.held_back] == [damage]
    assert states(place)["2025-11-10"] == "loaded_with_findings"
    assert states(place)["2025-11-11"] == "loaded"
    note = read_last_run(place.store)
    assert note and note.findings == {DAY}


def test_a_file_held_back_keeps_the_time_since_when(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.write_raw("a.jsonl", *(request(number) for number in range(9)))
    moments = iter(range(10**6))

    def overwrite() -> None:
        with path.open("r+b") as file:
            file.write(lines(request(next(moments) + 10**6)))

    while_reading(monkeypatch, overwrite)
    first = place.now
    for _ in range(3):
        assert [held.file for held in place.roll_up().held_back] == ["a.jsonl"]
        overwrite()  # it has another signature when somebody looks
        shown = status(place).as_json()
        assert shown["waiting"] == []
        assert [(held["file"], held["since"]) for held in shown["held_back"]] == [
            ("a.jsonl", f"{first:%Y-%m-%dT%H:%M:%SZ}")
        ]
        assert shown["held_back"][0]["seconds"] == (place.now - first).total_seconds()
        place.now += timedelta(days=1)
    monkeypatch.undo()
    place.roll_up()
    assert status(place).as_json()["held_back"] == []


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_a_compressed_file_that_grows_is_held_back(place: Place, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    path = place.write_raw(f"a.{ending}", gzip.compress(lines(request(1))))
    appending(monkeypatch, path, b"more")
    assert [held.file for held in place.roll_up().held_back] == [path.name]


def test_a_record_over_many_lines_is_not_taken_in_halves(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(request(1), indent=1).encode() + b"\n"
    path = place.write_raw("a.json", text[:60])
    appending(monkeypatch, path, text[60:])
    assert [held.reason.partition(":")[0] for held in place.roll_up().held_back] == ["changing"]
    place.roll_up()
    assert counted(place) == 1


def test_rejected_lines_of_a_log_that_has_grown_since_are_shown(place: Place) -> None:
    path = place.write_raw("a.jsonl", request(1), "bad", request(2))
    place.roll_up()
    with path.open("ab") as file:
        file.write(lines(request(3)))
    shown = [line.text for line in Quarantine(place.store).lines()]
    assert shown == ["bad"]


def test_events_of_a_log_that_has_grown_since_are_rebuilt(place: Place) -> None:
    path = place.write_raw("a.jsonl", request(1), request(2))
    place.roll_up()
    (event,) = place.ledger().files["a.jsonl"].take_in.events
    event.path_in(place.layout).unlink()
    appended = lines(request(3, timestamp="2025-11-11T12:00:00Z"))
    with path.open("ab") as file:
        file.write(appended)
    report = place.backfill("2025-11-10", "2025-11-10")
    assert report.held_back == []
    assert counted(place) == 3


def test_a_process_that_never_rests_loses_nothing_over_runs_kills_and_copytruncate(
    place: Place, tmp_path: Path
) -> None:
    path = place.layout.raw / "live.jsonl"
    place.now = datetime.now(UTC)
    environment = {**os.environ, "KEYTALLY_DATA": str(place.layout.root), "PYTHONPATH": str(ROOT)}
    rollup = [sys.executable, "-m", "cli", "rollup", "--json"]
    if not (ROOT / "cli" / "__main__.py").exists():
        rollup = [sys.executable, "-c", "from cli import main; main()", "rollup", "--json"]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    seen: list[int] = []
    try:
        while not path.exists() or path.stat().st_size < 500:
            time.sleep(0.05)
        for turn in range(4):
            if turn == 1:
                killed = subprocess.Popen(rollup, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(0.7)
                killed.kill()
                killed.wait()
            if turn == 3:
                # logrotate's copytruncate, with the writer halted: what it writes between the copy and the truncation
                # is lost by logrotate, whoever reads the log.
                # Halted in the middle of a line, the copy would have one half of it and the log the other.
                writer.send_signal(signal.SIGSTOP)
                while not path.read_bytes().endswith(b"\n"):
                    writer.send_signal(signal.SIGCONT)
                    time.sleep(0.03)
                    writer.send_signal(signal.SIGSTOP)
                (path.parent / "live-1.jsonl").write_bytes(path.read_bytes())
                os.truncate(path, 0)
                writer.send_signal(signal.SIGCONT)
                time.sleep(0.5)
            done = subprocess.run(rollup, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert json.loads(done.stdout)["held_back"] == []
            seen.append(counted(place))
    finally:
        writer.send_signal(signal.SIGTERM)
        written = int(writer.communicate()[0])
    assert seen[0] > 0 and seen == sorted(seen) and seen[2] > seen[0]
    done = subprocess.run(rollup, env=environment, capture_output=True, text=True, check=False)
    report: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert place.usage() == {("org_a", str(DAY)): (written, place.usage()["org_a", str(DAY)][1])}
    assert place.usage()["org_a", str(DAY)][1] == written * 25 / 100
    assert [entry["quarantined"] for entry in report["ingested"]] == [0]  # type: ignore[attr-defined]
    assert equal(place)
