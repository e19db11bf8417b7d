"""Rolling up a day and a month: who counts, and how exactly."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.rollup
from pipeline.contract.tables import API_KEY_DAY, EVENT, USAGE, Table
from pipeline.engine import Engine, statement
from pipeline.rollup import fingerprint_of, roll_up_day
from pipeline.run import start_run
from tests.conftest import Place, Record, request

DAY = date(2025, 11, 10)


def test_a_day_is_named_by_what_it_is_made_from_in_whatever_order() -> None:
    assert fingerprint_of(["a", "b"]) == fingerprint_of(["b", "a"])
    assert len({fingerprint_of(names) for names in ([], ["a"], ["a", "b"], ["ab"], ["a", "a"])}) == 5


def test_a_day_of_no_events_is_a_day_of_no_usage(place: Place) -> None:
    with start_run(place.settings, lambda: place.now) as run:
        entry = roll_up_day(run, DAY, "f" * 32, [], 0)
    assert (entry.accepted, entry.counted, entry.duplicate, entry.conflicting, entry.session) == (0, 0, 0, 0, 0)
    daily = pq.read_table(place.layout.daily_of(DAY) / entry.artifact, partitioning=None)
    assert (daily.num_rows, daily.schema.names) == (0, API_KEY_DAY.arrow_schema.names)


def test_a_request_without_a_price_counts_with_a_cost_of_nothing(place: Place) -> None:
    row: Record = {**dict.fromkeys(EVENT.arrow_schema.names), **request(1), "timestamp": place.now, "cost": None}
    row.update(synapses=Decimal(1), neurons=Decimal(2), input_tokens=3, output_tokens=4)
    other = {**row, "request_id": "req_2", "cost": Decimal("0.5")}
    twice = {**row, "cost": Decimal("0.1")}  # a copy: the null cost comes before any value
    path = place.layout.root / "events.parquet"
    pq.write_table(pa.Table.from_pylist([row, other, twice], schema=EVENT.arrow_schema), path)
    with start_run(place.settings, lambda: place.now) as run:
        entry = roll_up_day(run, DAY, "f" * 32, [path], 3)
    (usage,) = pq.read_table(place.layout.daily_of(DAY) / entry.artifact, partitioning=None).to_pylist()
    assert (usage["requests"], usage["cost"], usage["synapses"]) == (2, Decimal("0.5"), Decimal(2))
    assert (entry.duplicate, entry.conflicting) == (1, 1)


def test_events_from_before_a_column_came_count_beside_those_that_have_it(place: Place) -> None:
    columns = EVENT.arrow_schema.names
    row: Record = {**dict.fromkeys(columns), **request(1), "timestamp": place.now, "cost": Decimal("0.5")}
    row.update(input_tokens=3, output_tokens=4, cached_input_tokens=1, currency="USD")
    events = pa.Table.from_pylist([row], schema=EVENT.arrow_schema)
    paths = [place.layout.root / f"{name}.parquet" for name in ("before", "after")]
    pq.write_table(events.select(columns[:-2]), paths[0])
    pq.write_table(events, paths[1])
    for files in ([paths[0]], paths, paths[::-1]):
        with start_run(place.settings, lambda: place.now) as run:
            entry = roll_up_day(run, DAY, "f" * 32, files, len(files))
        assert (entry.counted, entry.duplicate, entry.conflicting) == (1, len(files) - 1, len(files) - 1)


def test_a_day_of_many_files_is_rolled_up_as_one_of_few(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        place.write_raw(f"{number}.jsonl", request(number), request(number, organization_id="org_b"), request(7))
    place.roll_up()
    few = place.usage()
    assert few[("org_a", "2025-11-10")] == (6, Decimal("1.5"))
    monkeypatch.setattr("pipeline.rollup.FILES_AT_ONCE", 2)
    monkeypatch.setattr("pipeline.rollup.ROLL_UP_RULE", 99)
    pipeline.rollup._rule.cache_clear()
    gathered: list[str] = []
    honest = Engine.copy

    def watched(engine: Engine, name: str, *arguments: Any, **parameters: Any) -> None:
        gathered.append(name)
        honest(engine, name, *arguments, **parameters)

    monkeypatch.setattr(Engine, "copy", watched)
    try:
        assert [entry.duplicate for entry in place.roll_up().days] == [4]
    finally:
        pipeline.rollup._rule.cache_clear()
    assert place.usage() == few
    assert gathered.count("some_events") == 3


def test_requests_that_share_a_hash_are_told_apart(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request hashes alike here: only what identifies them may decide."""
    honest = Engine.run

    def with_one_hash(engine: Engine, name: str, **parameters: object) -> None:
        engine._connection.execute("create or replace temp macro hash(organization, request) as 7::ubigint")
        honest(engine, name, **parameters)

    monkeypatch.setattr(Engine, "run", with_one_hash)
    place.write_raw("a.jsonl", request(1), request(2), request(2), request(2, organization_id="org_b"), request(3))
    place.roll_up()
    assert place.usage() == {
        ("org_a", "2025-11-10"): (3, Decimal("0.75")),
        ("org_b", "2025-11-10"): (1, Decimal("0.25")),
    }


def test_organizations_never_mix(place: Place) -> None:
    names = ["a", "A", "a-", "a_", "aa", "-", "0"]
    place.write_raw("a.jsonl", *(request(1, organization_id=name, cost=str(n)) for n, name in enumerate(names, 1)))
    place.roll_up()
    assert {org: row for (org, _), row in place.usage().items()} == {
        name: (1, Decimal(n)) for n, name in enumerate(names, 1)
    }


@pytest.mark.parametrize("table", USAGE, ids=lambda table: table.name)
def test_the_sql_of_a_rollup_has_the_grain_and_the_merges_its_table_declares(table: Table) -> None:
    text = statement(table.name)
    grouped = table is not API_KEY_DAY  # whose rows are the days' own, one day a file
    for column in table.columns:
        if column.merge == "sum" and grouped:
            assert f"cast(sum({column.name}) as " in text
    in_order = text.rpartition("order by")[2].replace("nulls first", "").replace(",", " ").split()
    assert in_order == [column.name for column in table.columns if column.name in table.grain]
    grain = ", ".join(table.grain)
    assert f"(select distinct {grain} from {table.name})" in statement("repeated_rows")
