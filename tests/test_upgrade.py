"""A data root that an older keytally published, without the columns that came since, is brought up to date."""

from __future__ import annotations

import json
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipeline.contract.layout import checksum_of
from pipeline.contract.published import digest_of
from pipeline.contract.tables import published_schema
from pipeline.usage import read_usage
from tests.conftest import Place, request

SINCE = {"unpriced", "pricing", "currency", "cached_input_tokens", "unpriced_before", "unpriced_after"}


def make_older(place: Place) -> None:
    """Takes the columns that came since out of every file, and out of the table's log."""
    renamed: dict[str, str] = {}
    for folder in (place.layout.events, place.layout.daily, place.layout.rollups):
        for path in [path for path in folder.rglob("*.parquet") if path.parent != place.layout.log]:
            table = pq.read_table(path, partitioning=None)
            pq.write_table(table.drop_columns([name for name in table.column_names if name in SINCE]), path)
            made_from = path.stem.rpartition("-")[0]
            renamed[path.name] = f"{made_from}-{checksum_of(path)}.parquet"
            path.rename(path.with_name(renamed[path.name]))
    for path in place.layout.rollups.rglob("part-*.parquet"):  # the ledgers name the daily files, and those of events
        table = pq.read_table(path, partitioning=None)
        rows = table.to_pylist()
        named = [one for row in rows for one in (row, *row.get("events", ())) if "artifact" in one]
        if named:
            for one in named:
                one["artifact"] = renamed[one["artifact"]]
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
            new = path.rename(path.with_name(f"part-{checksum_of(path)}.parquet"))
            renamed.update({old: new.name for old, name in renamed.items() if name == path.name})
    log = place.layout.log_entry(1)
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    added = [action["add"] for action in actions if "add" in action]
    for add in added:
        folder, _, name = add["path"].rpartition("/")
        add["path"] = f"{folder}/{renamed[name]}"
        add["size"] = (place.layout.rollups / add["path"]).stat().st_size
    for action in actions:
        if action.get("txn", {}).get("appId") == "keytally.contents":
            action["txn"]["version"] = digest_of(add["path"] for add in added)
    log.write_text("\n".join(map(json.dumps, actions)))
    created = place.layout.log_entry(0)
    actions = [json.loads(line) for line in created.read_text().splitlines()]
    for action in actions:
        if "metaData" in action:
            schema = json.loads(action["metaData"]["schemaString"])
            schema["fields"] = [field for field in schema["fields"] if field["name"] not in SINCE]
            action["metaData"]["schemaString"] = json.dumps(schema)
    created.write_text("\n".join(map(json.dumps, actions)))


def test_what_an_older_keytally_published_is_read_and_added_to(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw(
        "a.jsonl",
        request(1),
        request(2, timestamp="2025-11-11T12:00:00Z"),
        request(3, timestamp="2025-10-31T12:00:00Z"),
    )
    with monkeypatch.context() as older:
        older.setattr("pipeline.rollup.ROLL_UP_RULE", 0)
        place.roll_up()
    before = place.usage()
    make_older(place)
    assert [set(event) & SINCE for event in place.events("a.jsonl")] == [set()] * 3
    assert place.usage() == before
    assert read_usage(place.layout.root, by="key")["unpriced"].tolist() == [0, 0, 0]
    assert "unpriced" not in {field.name for field in DeltaTable(place.layout.rollups).schema().fields}
    (place.layout.raw / "a.jsonl").unlink()  # the events alone tell of it now

    place.write_raw("b.jsonl", request(4))
    report = place.roll_up()
    assert (report.published, report.has_findings) == (True, False)
    assert place.usage() == {**before, ("org_a", "2025-11-10"): (2, 2 * before["org_a", "2025-11-10"][1])}
    assert {field.name for field in DeltaTable(place.layout.rollups).schema().fields} == {*published_schema().names}
    october = place.publication().files["organization_day", date(2025, 10, 1)]
    assert "unpriced" not in pq.read_schema(place.layout.rollups / october.path).names, "its rows are the same"
    assert set(place.published("restatement").cause) == {"late file"}
    assert not place.roll_up().published
    assert not place.backfill("2025-10-01", "2025-11-30").published
