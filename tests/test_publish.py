"""What a publication looks like from outside: files, order, schema, one commit."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipeline.contract.layout import checksum_of, rollup_folder, stated_checksum
from pipeline.contract.published import Publication
from pipeline.contract.tables import EVENT, ORGANIZATION_DAY, PUBLISHED
from pipeline.errors import CheckFailed, CommitRefused
from pipeline.ledger import read_ledger, write_file_ledger
from pipeline.publish import Partition, _create, publish
from pipeline.run import start_run
from tests.conftest import Place, request


def commit(place: Place, version: int) -> list[dict[str, Any]]:
    log = place.layout.rollups / "_delta_log" / f"{version:020d}.json"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_every_published_file_has_the_columns_its_table_declares(place: Place) -> None:
    place.write_raw("a.jsonl", request(1, model="m"), request(2, timestamp="2025-10-01T00:00:00Z"))
    place.roll_up()
    place.write_raw("late.jsonl", request(3))
    place.roll_up()
    files = place.publication().files
    assert {rollup for rollup, _ in files} == set(PUBLISHED)
    for (rollup, month), file in files.items():
        path = place.layout.rollups / file.path
        got = pq.read_schema(path)
        expected = PUBLISHED[rollup].arrow_schema
        assert [(field.name, field.type) for field in got] == [(field.name, field.type) for field in expected]
        assert checksum_of(path) == stated_checksum(path)
        assert path.stat().st_size == file.size
        assert (month is None) == (rollup == "file")


def test_of_many_who_make_the_table_at_once_one_does(tmp_path: Path) -> None:
    for number in range(10):
        place = Place(tmp_path / str(number))
        place.layout.log.mkdir(parents=True)
        before = read_ledger(place.store).publication
        all_there = threading.Barrier(4)

        def make(place: Place = place, before: Publication = before, all_there: threading.Barrier = all_there) -> bool:
            all_there.wait()
            try:
                _create(place.store, before)
            except CommitRefused:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            made = [pool.submit(make) for _ in range(4)]
            assert sorted(each.result() for each in made) == [False, False, False, True]
        assert [path.name for path in place.layout.log.glob("*.json")] == [f"{0:020d}.json"]


def test_a_run_is_one_commit_that_says_what_made_it(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-10-01T00:00:00Z"))
    place.roll_up()
    place.write_raw("b.jsonl", request(3))
    place.roll_up()
    assert [path.name for path in sorted((place.layout.rollups / "_delta_log").glob("*.json"))] == [
        f"{version:020d}.json" for version in (0, 1, 2)
    ]
    actions = commit(place, 2)
    added = [action["add"] for action in actions if "add" in action]
    removed = [action["remove"]["path"] for action in actions if "remove" in action]
    assert len(removed) == 6
    assert len(added) == 7  # and what was restated, for the first time
    (info,) = (action["commitInfo"] for action in actions if "commitInfo" in action)
    assert info["keytally.run_started"] == "2025-11-15T10:30:00+00:00"
    (usage,) = (a for a in added if a["partitionValues"]["rollup"] == "organization_day")
    assert json.loads(usage["stats"]) == {
        "numRecords": 1,
        "minValues": {"organization_id": "org_a"},
        "maxValues": {"organization_id": "org_a"},
    }
    assert usage["modificationTime"] == int(place.now.timestamp() * 1000)


def test_a_month_keeps_the_moment_it_was_last_changed(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-10-01T00:00:00Z"))
    place.roll_up()
    first = place.now
    place.now += timedelta(hours=1)
    place.write_raw("b.jsonl", request(3))
    place.roll_up()
    moments = {str(m)[:7]: f.published_at for (r, m), f in place.publication().files.items() if r == "organization_day"}
    assert moments == {"2025-10": first, "2025-11": place.now}


def test_files_are_sorted_by_organization_in_small_row_groups(place: Place) -> None:
    count = 40_000
    table = pa.table(
        {
            "request_id": [f"r{n}" for n in range(count)],
            "timestamp": ["2025-11-10T12:00:00Z"] * count,
            "organization_id": [f"{'x' * (100 if n % 100 == 0 else 1)}{n * 7919 % count:06}" for n in range(count)],
            "api_key_id": ["k"] * count,
            "cost": [Decimal(n) / 1000 for n in range(count)],
        }
    )
    written = io.BytesIO()
    pq.write_table(table, written)
    place.write_raw("a.parquet", written.getvalue())
    place.roll_up()
    for (rollup, _), file in place.publication().files.items():
        if rollup in ("organization_day", "organization_month", "api_key_day", "api_key_month"):
            parquet = pq.ParquetFile(place.layout.rollups / file.path)
            metadata = parquet.metadata
            assert metadata.num_rows == count
            assert max(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) <= 8_192
            organizations = parquet.read(["organization_id"])["organization_id"].to_pylist()
            assert organizations == sorted(organizations)
    (event,) = place.ledger().files["a.parquet"].take_in.events
    events = pq.read_table(place.layout.events_of(event.day) / event.artifact, partitioning=None)
    assert events["organization_id"].to_pylist() == sorted(organizations)
    assert [(f.name, f.type) for f in events.schema] == [(f.name, f.type) for f in EVENT.arrow_schema]


def test_other_engines_read_the_same_numbers(place: Place) -> None:
    place.write_raw(
        "a.jsonl",
        request(1, cost="0.000000000001"),
        request(2, cost="999999.999999999999", organization_id="org_b"),
        request(3, timestamp="2025-10-31T23:59:59.999999999Z", model="m"),
    )
    place.roll_up()
    expected = [("org_a", Decimal("0.250000000001")), ("org_b", Decimal("999999.999999999999"))]
    table = DeltaTable(place.layout.rollups)
    sql = "select organization_id, sum(cost) from t where rollup = 'organization_day' group by all order by all"
    with duckdb.connect() as connection:
        connection.register("t", table.to_pyarrow_table())
        assert connection.execute(sql).fetchall() == expected
        files = [str(place.layout.rollups / p) for (r, _), p in _paths(place) if r == "organization_day"]
        assert connection.from_parquet(files).aggregate("organization_id, sum(cost)").order("1").fetchall() == expected
    frame = place.published("api_key_month")
    assert frame.groupby("organization_id").cost.sum().to_dict() == dict(expected)


def _paths(place: Place) -> list[tuple[Any, str]]:
    return [(key, file.path) for key, file in place.publication().files.items()]


def test_a_file_with_other_columns_is_not_published(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    wrong = ORGANIZATION_DAY.arrow_schema.empty_table().drop_columns(["cost"])
    with start_run(place.settings, lambda: place.now) as run:
        path = run.scratch / "wrong.parquet"
        pq.write_table(wrong, path)
        with pytest.raises(CheckFailed, match="columns"):
            publish(run, place.publication(), [Partition(ORGANIZATION_DAY, place.now.date().replace(day=1), path)], {})
    assert place.publication().version == 1


def test_no_commit_follows_a_version_that_is_no_longer_the_newest(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    stale = place.ledger()
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    with start_run(place.settings, lambda: place.now) as run:
        path = run.scratch / "file.parquet"
        write_file_ledger([replace(stale.files["a.jsonl"], signature="another")], path)
        with pytest.raises(CommitRefused):
            publish(run, stale.publication, [Partition(PUBLISHED["file"], None, path)], {})
    assert set(place.ledger().files) == {"a.jsonl", "b.jsonl"}


def test_a_table_whose_ledger_of_files_lies_where_it_lay_before_is_read_and_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_raw("a.jsonl", request(1))
    with monkeypatch.context() as before:
        before.setattr(
            "pipeline.publish.rollup_folder",
            lambda rollup, month: rollup_folder(rollup, month) if month else f"rollup={rollup}",
        )
        place.roll_up()
    old = place.publication().files["file", None].path
    assert old.startswith("rollup=file/part-")
    place.write_raw("b.jsonl", request(2))
    assert place.roll_up().version == 2
    assert place.publication().files["file", None].path.startswith("rollup=file/month=__HIVE_DEFAULT_PARTITION__/")


def test_a_hundred_publications_later_the_table_reads_as_ever(place: Place) -> None:
    """A checkpoint stands for the log by then."""
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    with start_run(place.settings, lambda: place.now) as run:
        for number in range(105):
            ledger = read_ledger(place.store)
            path = run.scratch / "file.parquet"
            write_file_ledger([replace(ledger.files["a.jsonl"], signature=str(number))], path)
            assert publish(run, ledger.publication, [Partition(PUBLISHED["file"], None, path)], {}) == number + 2
    assert list((place.layout.rollups / "_delta_log").glob("*.checkpoint.parquet"))
    publication = place.publication()
    assert (publication.version, publication.generation) == (106, 106)
    place.write_raw("b.jsonl", request(2))
    assert place.roll_up().version == 107
    assert place.usage() == {("org_a", "2025-11-10"): (2, Decimal("0.5"))}
