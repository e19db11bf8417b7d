"""Two runs worth interrupting, cut off at any of their steps; and everything to be seen of what they published."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import pipeline.contract.seam
from pipeline.ledger import read_ledger
from serving.reader import Reader
from tests.conftest import Place, request

Shown = dict[Any, Any]
ORGANIZATIONS = ("org_a", "org_b")


@dataclass(frozen=True)
class Scene:
    """A data root just before a run: what is published, what the run publishes, and the steps it takes."""

    root: Path
    now: datetime
    before: Shown
    after: Shown
    steps: tuple[str, ...]

    def copy(self, to: Path) -> Place:
        """The same once more. raw/ is shared: its files keep their inodes and times."""
        shutil.copytree(self.root, to, symlinks=True)
        return place_at(to, self.now)


def place_at(root: Path, now: datetime) -> Place:
    place = Place(root, KEYTALLY_THREADS="1")  # one step after the other, so that their numbers stay
    place.now = now
    return place


def first_scene(folder: Path) -> Scene:
    """Nothing published yet."""
    place = _place(folder)
    place.write_raw("a.jsonl", *_requests(1), "bad")
    place.write_raw("eu/b.jsonl", request(2, timestamp="2025-10-31T23:00:00Z", organization_id="org_b"))
    return _scene(folder, place)


def later_scene(folder: Path) -> Scene:
    """A late file, a replaced one, a month not there yet; and what is to be swept, or was left by killed runs."""
    place = _place(folder)
    place.write_raw("a.jsonl", *_requests(1), "bad")
    place.write_raw("eu/b.jsonl", request(2, timestamp="2025-10-31T23:00:00Z", organization_id="org_b"))
    place.roll_up()
    place.now += timedelta(hours=1)
    place.write_raw("a.jsonl", *_requests(1, cost="0.75"), request(3), "worse")
    place.write_raw("late.jsonl", request(4, timestamp="2025-10-31T01:00:00Z"))
    place.write_raw("september.jsonl", request(5, timestamp="2025-09-01T00:00:00Z", organization_id="org_b"))
    long_ago = (place.now - timedelta(days=30)).timestamp()
    orphan = place.layout.daily / "day=2025-10-31" / f"{'0' * 32}-{'0' * 32}.parquet"
    orphan.write_bytes(b"of a run that was refused")
    os.utime(orphan, (long_ago, long_ago))
    (place.layout.rollups / "_delta_log" / f"{2:020d}.json#1").write_bytes(b"of a killed commit")
    (place.layout.scratch / "killed").mkdir()
    (place.layout.scratch / "killed" / "half.parquet").write_bytes(b"half")
    return _scene(folder, place)


def large_scene(folder: Path) -> Scene:
    """A day of 18 lines, to be rolled up in buckets; copies of its requests in several files."""
    place = _place(folder)
    for file in range(3):
        place.write_raw(f"{file}.jsonl", *(request(number, model=f"m{number % 2}") for number in range(file, file + 6)))
    return _scene(folder, place)


def _place(folder: Path) -> Place:
    (folder / "raw").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "raw").symlink_to(folder / "raw")
    return place_at(folder / "data", datetime.now(UTC).replace(microsecond=0))


def _requests(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        request(number, **fields),
        request(number + 100, api_key_id="key_2", model="m", **fields),
        request(number + 200, api_key_id=None, **fields),
        request(number + 300, timestamp="2025-11-11T00:00:00Z", organization_id="org_b", **fields),
    ]


def _scene(folder: Path, place: Place) -> Scene:
    scene = Scene(place.layout.root, place.now, shown(place), {}, ())
    undisturbed = scene.copy(folder / "undisturbed")
    steps: list[str] = []
    with stepping(steps.append):
        undisturbed.roll_up()
    return replace(scene, after=shown(undisturbed), steps=tuple(steps))


# --- cutting off -----------------------------------------------------------------------------------------------------


class Crash(Exception):
    """The run ends here."""


@contextmanager
def stepping(on_step: Callable[[str], None]) -> Iterator[None]:
    """Has each step told to `on_step` before it is done."""
    pipeline.contract.seam.at_step = on_step
    try:
        yield
    finally:
        pipeline.contract.seam.at_step = None


def failing_at(number: int, failure: Callable[[], Exception] = Crash) -> Callable[[str], None]:
    """Raises `failure` at step `number`, counted from 0, and at no other."""
    count = iter(range(sys.maxsize))

    def fail(_: str) -> None:
        if next(count) == number:
            raise failure()

    return fail


class Killer:
    """A process that runs `keytally rollup` in children of its own, each killed at a step. A context manager.

    It has imported everything already and started no thread, so a child costs what its run costs. bucket: as many lines
    as a run may roll up in one step, and as are in a bucket; else as it is.
    """

    PROGRAM = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import pipeline.buckets, pipeline.contract.seam
from tests.conftest import Place
if sys.argv[2:]:
    pipeline.buckets.LINES_A_BUCKET = pipeline.buckets.LINES_IN_ONE_STEP = int(sys.argv[2])
for line in sys.stdin:
    root, now, number = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        left = int(number) if number.isdigit() else -1
        def kill(name):
            global left
            if left == 0 or name == number:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        pipeline.contract.seam.at_step = kill
        place = Place(Path(root), KEYTALLY_THREADS="1")
        place.now = datetime.fromisoformat(now)
        place.roll_up()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

    def __init__(self, bucket: int | None = None) -> None:
        self._arguments = [str(bucket)] if bucket else []

    def __enter__(self) -> Killer:
        command = [sys.executable, "-c", self.PROGRAM, str(Path(__file__).parent.parent), *self._arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def kill(self, place: Place, step: int | str) -> bool:
        """Rolls up, killed at a step by its number, or the first of a name; False when the run did not come to it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{place.layout.root}\t{place.now.isoformat()}\t{step}\n")
        status = int(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL)
        return status != 0


# --- looking ---------------------------------------------------------------------------------------------------------


def shown(place: Place) -> Shown:
    """Everything published: the version, every row of every rollup, and what the ledger says of files and days."""
    ledger = read_ledger(place.store)
    publication = ledger.publication
    rows = {
        (rollup, month): pq.read_table(
            place.store.fetch(place.layout.rollups / file.path), partitioning=None
        ).to_pylist()
        for (rollup, month), file in publication.files.items()
        if rollup not in ("file", "day")
    }
    files = {
        (name, entry.same_as, entry.take_in.content, entry.take_in.lines, entry.take_in.accepted)
        for name, entry in ledger.files.items()
    }
    days = {
        (day, entry.fingerprint, entry.accepted, entry.counted, entry.duplicate, entry.session)
        for day, entry in ledger.days.items()
    }
    return {"version": publication.version, "rows": rows, "files": files, "days": days}


def answers_of(place: Place) -> Shown:
    """What a server that starts now answers, for every organization and published month."""
    reader = Reader(place.store)
    reader.refresh()
    answers = {}
    for rollup, month in reader.publication.files:
        if rollup == "organization_day" and month:
            file = reader.confirmed.usage_of(month)
            assert file is not None
            for organization in ORGANIZATIONS:
                answers[organization, month] = [
                    (usage.day, usage.requests, usage.cost) for usage in reader.usage_of(organization, file).days
                ]
    return answers


def expected_answers(published: Shown) -> Shown:
    """The same from the published rows, after asking that every month is the sum of its days."""
    answers: Shown = {}
    for (rollup, month), rows in published["rows"].items():
        if rollup == "organization_day":
            totals = {row["organization_id"]: row for row in published["rows"]["organization_month", month]}
            for organization in ORGANIZATIONS:
                days = [row for row in rows if row["organization_id"] == organization]
                answers[organization, month] = [(row["day"], row["requests"], row["cost"]) for row in days]
                if days:
                    assert sum(row["requests"] for row in days) == totals[organization]["requests"]
                    assert sum(row["cost"] for row in days) == totals[organization]["cost"]
    return answers


def assert_one_version(place: Place, scene: Scene) -> None:
    """What is published is the version before or the version after, and a reader says the same."""
    seen = shown(place)
    assert seen in (scene.before, scene.after)
    assert answers_of(place) == expected_answers(seen)


def assert_nothing_unfinished(place: Place) -> None:
    """No scratch, no half-written log entry, and below our folders nothing but files named by their checksum."""
    assert list(place.layout.scratch.iterdir()) == []
    assert list((place.layout.rollups / "_delta_log").glob("*#*")) == []
    ours = {path.name for path in place.layout.root.iterdir()}
    assert ours <= {
        "raw",
        "events",
        "daily",
        "rejected",
        "buckets",
        "rollups",
        "scratch",
        "last_run.json",
        "failed_run.json",
    }
    for folder in (place.layout.events, place.layout.daily, place.layout.rejected, place.layout.rollups):
        for path in folder.rglob("*"):
            if path.is_file() and "_delta_log" not in path.parts:
                assert path.suffix == ".parquet"
                assert len(path.stem.rpartition("-")[2]) == 32
