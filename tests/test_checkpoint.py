"""A checkpoint is on the disk before the log it replaces is deleted; one that is damaged is an error like others."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from deltalake import DeltaTable

import pipeline.contract.store
from pipeline import checkpoint
from pipeline.contract.published import open_published, publication_of
from pipeline.errors import KeytallyError
from tests.conftest import Place, request
from tests.crashing import Crash, stepping


@pytest.fixture(autouse=True)
def every_third_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 3)


@pytest.fixture
def due(place: Place) -> Place:
    """A place whose next publication writes a checkpoint, and whose log is old enough to be cut."""
    for cost in "12":
        place.write_raw("a.jsonl", request(1, cost=cost))
        place.roll_up()
    age(place)
    place.write_raw("a.jsonl", request(1, cost="3"))
    return place


def age(place: Place) -> None:
    """Make the log so old that all of it may be cut; deltalake keeps what leads to a version of the last month."""
    for entry in log_of(place).glob("*.json"):
        os.utime(entry, (0, 0))


def log_of(place: Place) -> Path:
    return place.layout.rollups / "_delta_log"


def entries(place: Place) -> list[int]:
    return sorted(int(path.stem) for path in log_of(place).glob("*.json"))


def cost_of(place: Place) -> int:
    return int(place.usage()["org_a", "2025-11-10"][1])


def test_the_log_is_cut_only_when_its_checkpoint_is_on_the_disk(due: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    honest = pipeline.contract.store.os.fsync
    at: dict[str, tuple[list[str], list[int]]] = {}

    def fsync(handle: int) -> None:
        honest(handle)
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    def on_step(name: str) -> None:
        if name in ("commit", "write a checkpoint", "cut the log"):
            at[name] = list(synced), entries(due)
            synced.clear()

    monkeypatch.setattr(pipeline.contract.store.os, "fsync", fsync)
    with stepping(on_step):
        assert due.roll_up().version == 3
    assert list(at) == ["commit", "write a checkpoint", "cut the log"]
    assert f"{3:020d}.json" in at["write a checkpoint"][0], "the version itself comes first"
    before_the_cut, still_there = at["cut the log"]
    assert {f"{3:020d}.checkpoint.parquet", "_last_checkpoint", "_delta_log"} <= set(before_the_cut)
    assert before_the_cut[-1] == "_delta_log"
    assert still_there == [0, 1, 2, 3]
    assert entries(due) == [3]
    assert cost_of(due) == 3


def test_nothing_is_left_to_deltalake(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write a checkpoint for each version here, and cut the log at once."""
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    DeltaTable(place.layout.rollups).alter.set_table_properties({"delta.checkpointInterval": "1"})
    for entry in log_of(place).glob("*checkpoint*"):
        entry.unlink()
    age(place)
    place.write_raw("b.jsonl", request(2))
    monkeypatch.setattr(checkpoint, "EVERY", 100)
    assert place.roll_up().version == 3
    assert list(log_of(place).glob("*checkpoint*")) == []
    assert entries(place) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["write a checkpoint", "cut the log"])
def test_a_run_cut_off_at_its_checkpoint_is_published_and_the_next_goes_on(due: Place, name: str) -> None:
    def crash(step: str) -> None:
        if step == name:
            raise Crash

    with stepping(crash), pytest.raises(Crash):
        due.roll_up()
    assert (due.publication().version, cost_of(due)) == (3, 3)
    assert entries(due) == [0, 1, 2, 3]
    for version in range(4, 8):
        age(due)
        due.write_raw("a.jsonl", request(1, cost=str(version)))
        assert due.roll_up().version == version
    assert entries(due)[0] >= 3, "what was left undone is made up for"
    assert cost_of(due) == 7


def test_a_checkpoint_that_cannot_be_written_is_no_failure_of_its_version(
    due: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(step: str) -> None:
        if step == "write a checkpoint":
            raise OSError(28, "No space left on device")

    with stepping(fail):
        assert due.roll_up().version == 3
    assert "could not be shortened" in caplog.text
    assert entries(due) == [0, 1, 2, 3]


# --- damage ----------------------------------------------------------------------------------------------------------


def test_whatever_bit_of_a_checkpoint_changes_is_an_error_or_harmless(due: Place) -> None:
    due.roll_up()
    right = due.publication()
    (path,) = log_of(due).glob("*.checkpoint.parquet")
    whole = path.read_bytes()
    dice = random.Random(1)
    refused = 0
    for _ in range(60):
        changed = bytearray(whole)
        changed[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        try:
            table = open_published(due.store)
            assert table is not None
            seen = publication_of(table)
        except Exception:
            refused += 1
        else:
            assert {file.path for file in seen.files.values()} == {file.path for file in right.files.values()}
    assert refused
    path.write_bytes(whole)
    assert due.publication() == right


def test_without_a_damaged_checkpoint_the_whole_log_says_the_same(place: Place) -> None:
    for cost in "123":
        place.write_raw("a.jsonl", request(1, cost=cost))
        place.roll_up()
    right = place.publication()
    (path,) = log_of(place).glob("*.checkpoint.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(KeytallyError, match="cannot be read"):
        place.roll_up()
    path.unlink()
    (log_of(place) / "_last_checkpoint").unlink()
    assert place.publication() == right
