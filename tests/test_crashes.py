"""Wherever a run ends, readers see one version, and the next run ends as if nothing had happened.

A run fails at the first step of each kind, and is killed at the last of each; with KEYTALLY_EVERY_STEP=1, which takes
minutes, both at every step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import pipeline.contract.store
from pipeline.sweep import GRACE
from tests.conftest import Place, request
from tests.crashing import (
    Crash,
    Killer,
    Scene,
    assert_nothing_unfinished,
    assert_one_version,
    failing_at,
    first_scene,
    large_scene,
    later_scene,
    shown,
    stepping,
)

LINES = 8  # in a bucket


@pytest.fixture(scope="module", params=[first_scene, later_scene])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    make: Callable[[Path], Scene] = request.param
    return make(tmp_path_factory.mktemp(make.__name__))


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return later_scene(tmp_path_factory.mktemp("later"))


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as killer:
        yield killer


def steps_to_cut(scene: Scene, *, last: bool) -> list[int]:
    if os.environ.get("KEYTALLY_EVERY_STEP"):
        return list(range(len(scene.steps)))
    numbered = list(enumerate(scene.steps))
    return sorted({name: number for number, name in (numbered if last else reversed(numbered))}.values())


def assert_heals(place: Place, scene: Scene) -> None:
    assert_one_version(place, scene)
    place.roll_up()
    assert shown(place) == scene.after
    assert_nothing_unfinished(place)


def test_a_run_that_fails_at_any_step_is_made_up_for_by_the_next(scene: Scene, tmp_path: Path) -> None:
    for number in steps_to_cut(scene, last=False):
        place = scene.copy(tmp_path / "data")
        with stepping(failing_at(number)), pytest.raises(BaseException) as failed:
            place.roll_up()
        assert isinstance(failed.value, Crash) or "Crash" in str(failed.value), scene.steps[number]
        assert_heals(place, scene)
        shutil.rmtree(place.layout.root)


def test_a_run_killed_at_any_kind_of_step_is_made_up_for_by_the_next(
    later: Scene, tmp_path: Path, killer: Killer
) -> None:
    for number in steps_to_cut(later, last=True):
        place = later.copy(tmp_path / "data")
        assert killer.kill(place, number)
        assert_heals(place, later)
        shutil.rmtree(place.layout.root)


@pytest.mark.parametrize("again", ["rename a file to where it stays", "commit", "write the note of the run"])
def test_a_run_killed_twice_is_made_up_for_by_the_third(
    later: Scene, tmp_path: Path, killer: Killer, again: str
) -> None:
    place = later.copy(tmp_path / "data")
    assert killer.kill(place, later.steps.index("commit"))
    assert_one_version(place, later)
    assert killer.kill(place, again)
    assert_heals(place, later)


def test_a_run_killed_over_a_large_day_is_made_up_for_by_the_next(
    tmp_path: Path, in_buckets: Callable[[int], None]
) -> None:
    """Behind each file between the steps that comes or goes. What lies there is that run's, and nobody else's."""
    in_buckets(LINES)
    large = large_scene(tmp_path / "large")
    watched = large.copy(tmp_path / "watched")
    between: list[int] = []
    with stepping(lambda _: between.append(sum(1 for _ in watched.layout.buckets.glob("*")))):
        watched.roll_up()
    changes = [number for number in range(1, len(between)) if between[number] != between[number - 1]]
    assert max(between) > 6
    with Killer(LINES) as killer:
        for number in changes:
            place = large.copy(tmp_path / "data")
            assert killer.kill(place, number)
            left = {*place.layout.buckets.glob("*")}
            assert len(left) == between[number]
            assert_heals(place, large)
            assert {*place.layout.buckets.glob("*")} == left
            shutil.rmtree(place.layout.root)


def test_what_a_killed_run_superseded_keeps_its_grace(later: Scene, tmp_path: Path, killer: Killer) -> None:
    """It died behind its commit. A reader may hold the version before for a week from that moment, not from its own."""
    place = later.copy(tmp_path / "data")
    needed = [place.layout.rollups / file.path for file in place.publication().files.values()]
    long_ago = (place.now - 2 * GRACE).timestamp()
    for path in needed:
        os.utime(path, (long_ago, long_ago))
    behind_the_commit = later.steps.index("commit") + 1
    assert killer.kill(place, behind_the_commit)
    assert shown(place) == later.after
    place.write_raw("more.jsonl", request(9))
    place.roll_up()
    assert all(path.exists() for path in needed)


def test_what_killed_runs_left_is_swept_after_its_grace(later: Scene, tmp_path: Path, killer: Killer) -> None:
    place = later.copy(tmp_path / "data")
    place.layout.raw.unlink()  # a folder of its own, for its files change
    shutil.copytree(later.root / "raw", place.layout.raw)
    place.layout.buckets.mkdir()
    between = place.layout.buckets / f"{'0' * 32}-2025-11-10-part-0-sums-{'1' * 32}.parquet"
    between.touch()
    assert killer.kill(place, later.steps.index("commit"))
    (place.layout.raw / "late.jsonl").unlink()  # so that no later run needs what was made of it
    place.roll_up()
    place.now += GRACE + timedelta(days=1)
    place.write_raw("more.jsonl", request(9, timestamp="2025-09-02T00:00:00Z"))
    place.roll_up()
    ledger = place.ledger()
    needed = {place.layout.rollups / file.path for file in ledger.publication.files.values()}
    needed |= {place.layout.daily_of(day.day) / day.artifact for day in ledger.days.values()}
    for entry in ledger.files.values():
        needed |= {place.layout.events_of(event.day) / event.artifact for event in entry.take_in.events}
        needed |= {place.layout.rejected / entry.take_in.rejected} if entry.take_in.rejected else set()
    old = {place.layout.root / name for name in place.artifacts()} - needed
    # What the last two runs superseded is in its grace; nothing that a killed run left is there.
    assert not between.exists()
    assert not [path for path in old if path.stat().st_mtime < place.now.timestamp() - GRACE.total_seconds()]


def test_everything_a_version_needs_is_synced_before_its_commit_and_the_commit_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would otherwise take back: files, the folders that hold their names, and the log."""
    scene = first_scene(tmp_path)
    place = scene.copy(tmp_path / "data2")
    synced: list[Path | None] = []  # None stands for the commit
    inodes: set[int] = set()
    honest = pipeline.contract.store.os.fsync

    def fsync(handle: int) -> None:
        honest(handle)
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        inodes.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(pipeline.contract.store.os, "fsync", fsync)
    with stepping(lambda name: synced.append(None) if name == "commit" else None):
        place.roll_up()
    commit = synced.index(None)
    before, behind = set(synced[:commit]), set(synced[commit:])
    files = [path for path in place.layout.root.rglob("*.parquet") if "raw" not in path.parts]
    assert files
    for path in files:
        assert path.stat().st_ino in inodes
        assert path.parent in before
        assert path.parent.parent in before
    log = place.layout.rollups / "_delta_log"
    assert {log / f"{0:020d}.json", log / f"{1:020d}.json", log, log.parent, place.layout.root} <= behind
    synced.clear()
    place.roll_up()
    assert log / f"{1:020d}.json" in synced, "a run that finds nothing new answers for the version it confirms"
