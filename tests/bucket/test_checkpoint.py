"""In a bucket too a checkpoint stands for a long log, and whoever reads or writes goes on behind it."""

from __future__ import annotations

import duckdb
import obstore
import polars as pl
import pytest
from deltalake import DeltaTable

from pipeline import checkpoint
from serving.reader import Reader
from tests.bucket.conftest import BucketPlace
from tests.conftest import request
from tests.crashing import Crash, stepping


@pytest.fixture(autouse=True)
def every_fourth_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 4)


@pytest.fixture
def due(place: BucketPlace) -> BucketPlace:
    """A data root whose next publication writes a checkpoint, and whose log may be cut at once: objects have the
    server's time, which cannot be set."""
    place.write_raw("0.jsonl", request(0))
    place.roll_up()
    uri, options = place.store.table
    table = DeltaTable(uri, storage_options=dict(options))
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 seconds"})
    place.write_raw("1.jsonl", request(1))
    assert place.roll_up().version == 3
    place.write_raw("2.jsonl", request(2))
    return place


def log_of(place: BucketPlace) -> list[str]:
    """What is in the log, but the note of the run."""
    return sorted(
        key.rpartition("/")[2] for key in place.objects("rollups/_delta_log") if not key.endswith("_last_run")
    )


def requests_of(place: BucketPlace) -> int:
    return place.usage()["org_a", "2025-11-10"][0]


def test_the_log_is_cut_behind_a_checkpoint_and_everybody_goes_on(due: BucketPlace) -> None:
    reader = Reader(due.elsewhere("a server").store)
    reader.refresh()
    assert reader.publication.version == 3
    place = due
    for version in range(4, 14):
        place.write_raw(f"{version}.jsonl", request(version))
        assert place.roll_up().version == version
        reader.refresh()
        assert (reader.failure, reader.publication.version) == (None, version)
        place = place.elsewhere(f"machine {version}")
    log = log_of(place)
    assert f"{12:020d}.checkpoint.parquet" in log
    assert f"{0:020d}.json" not in log
    assert len([name for name in log if name.endswith(".json")]) <= 3
    assert requests_of(place) == 13  # 0 to 2, and 4 to 13
    late = Reader(place.elsewhere("a late server").store)
    late.refresh()
    assert (late.failure, late.publication) == (None, reader.publication)


def test_other_engines_read_what_a_checkpoint_stands_for(due: BucketPlace) -> None:
    assert due.roll_up().version == 4
    log = log_of(due)
    assert f"{4:020d}.checkpoint.parquet" in log
    assert f"{1:020d}.json" not in log
    uri, options = due.store.table
    table = DeltaTable(uri, storage_options=dict(options))
    published = table.to_pyarrow_dataset()
    (counted,) = duckdb.sql("select sum(requests)::int from published where rollup = 'organization_day'").fetchall()
    reach = {name: value for name, value in options.items() if name.startswith("aws_") or name == "allow_http"}
    rows = pl.scan_delta(uri, storage_options=reach).filter(pl.col("rollup") == "organization_day")
    assert published.schema
    assert counted == (3,)
    assert rows.select("requests").collect().sum().item() == 3


@pytest.mark.parametrize("name", ["write a checkpoint", "cut the log"])
def test_a_run_cut_off_at_its_checkpoint_is_published_and_another_machine_goes_on(due: BucketPlace, name: str) -> None:
    def crash(step: str) -> None:
        if step == name:
            raise Crash

    with stepping(crash), pytest.raises(Crash):
        due.roll_up()
    assert (due.publication().version, requests_of(due)) == (4, 3)
    assert f"{0:020d}.json" in log_of(due)
    place = due.elsewhere("another")
    for version in range(5, 9):
        place.write_raw(f"{version}.jsonl", request(version))
        assert place.roll_up().version == version
    assert f"{0:020d}.json" not in log_of(place), "what was left undone is made up for"
    assert requests_of(place) == 7


def test_a_damaged_checkpoint_is_an_error_and_no_older_number(due: BucketPlace) -> None:
    due.roll_up()
    reader = Reader(due.elsewhere("a server").store)
    reader.refresh()
    before = reader.publication
    obstore.put(due.client, f"rollups/_delta_log/{4:020d}.checkpoint.parquet", b"other bytes")
    late = Reader(due.elsewhere("a late server").store)
    late.refresh()
    assert late.failure is not None
    assert late.last_confirmed is None
    reader.refresh()
    assert reader.publication == before
