"""Rolling up a day and a month: who counts, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.rollup
from pipeline.contract.tables import API_KEY_DAY, EVENT, ORGANIZATION_DAY, USAGE, Table
from pipeline.engine import Engine, statement
from pipeline.errors import CheckFailed
from pipeline.intake import EventFile
from pipeline.ledger import DayEntry
from pipeline.rollup import DayInputs, fingerprint_of, grouped, roll_up_days, same_rows
from pipeline.run import Run, start_run
from pipeline.update import PLAIN_STEPS, backfill, roll_up
from tests.conftest import Place, Record, request

DAY = date(2025, 11, 10)
NOON = datetime(2025, 11, 10, 12, tzinfo=UTC)


def test_a_day_is_named_by_what_it_is_made_from_in_whatever_order() -> None:
    assert fingerprint_of(["a", "b"]) == fingerprint_of(["b", "a"])
    assert len({fingerprint_of(names) for names in ([], ["a"], ["a", "b"], ["ab"], ["a", "a"])}) == 5


def test_a_day_of_no_events_is_a_day_of_no_usage(place: Place) -> None:
    with start_run(place.settings, lambda: place.now) as run:
        (entry,) = roll_up_days(run, [DayInputs(DAY, "f" * 32, [], 0)])
    assert (entry.accepted, entry.counted, entry.duplicate, entry.conflicting, entry.session) == (0, 0, 0, 0, 0)
    daily = pq.read_table(place.layout.daily_of(DAY) / entry.artifact, partitioning=None)
    assert (daily.num_rows, daily.schema.names) == (0, API_KEY_DAY.arrow_schema.names)


def test_a_request_without_a_price_counts_with_a_cost_of_nothing(place: Place) -> None:
    row: Record = {**dict.fromkeys(EVENT.arrow_schema.names), **request(1), "timestamp": NOON, "cost": None}
    row.update(synapses=Decimal(1), neurons=Decimal(2), input_tokens=3, output_tokens=4)
    other = {**row, "request_id": "req_2", "cost": Decimal("0.5")}
    twice = {**row, "cost": Decimal("0.1")}  # a copy: the null cost comes before any value
    event = EventFile(DAY, 1, "events.parquet")
    path = event.path_in(place.layout)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row, other, twice], schema=EVENT.arrow_schema), path)
    with start_run(place.settings, lambda: place.now) as run:
        (entry,) = roll_up_days(run, [DayInputs(DAY, "f" * 32, [event], 3)])
    (usage,) = pq.read_table(place.layout.daily_of(DAY) / entry.artifact, partitioning=None).to_pylist()
    assert (usage["requests"], usage["cost"], usage["synapses"]) == (2, Decimal("0.5"), Decimal(2))
    assert (entry.duplicate, entry.conflicting) == (1, 1)


def test_days_are_rolled_up_in_groups_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rollup.LINES_AT_ONCE", 10)
    monkeypatch.setattr("pipeline.rollup.FILES_AT_ONCE", 3)

    def sizes(*days: tuple[int, int]) -> list[int]:
        inputs = [
            DayInputs(DAY + timedelta(n), "f", [EventFile(DAY, 1, "a")] * files, lines)
            for n, (lines, files) in enumerate(days)
        ]
        groups = grouped(inputs)
        assert [day for group in groups for day in group] == inputs
        return [len(group) for group in groups]

    assert sizes() == []
    assert sizes((10, 1)) == [1]
    assert sizes((4, 1), (6, 1), (1, 1)) == [2, 1]
    assert sizes((99, 1), (1, 1), (99, 1)) == [1, 1, 1]  # a day is never cut
    assert sizes((1, 1), (1, 2), (1, 1)) == [2, 1]
    assert sizes((0, 0), (1, 99), (0, 0), (0, 0)) == [1, 1, 2]


def test_days_are_rolled_up_together_as_one_by_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte; copies of a request on two days count on each."""
    monkeypatch.setattr("pipeline.rollup.SCAN_ROWS", 2)
    for file in range(3):
        stamps = [f"2025-11-{1 + number % 5:02}T0{file}:00:00Z" for number in range(20)]
        requests = [
            request(number % 7, timestamp=stamp, model="m" * (number % 3)) for number, stamp in enumerate(stamps)
        ]
        place.write_raw(
            f"{file}.jsonl", *requests, request(99, timestamp="2025-11-06T23:59:59.999999Z", api_key_id=None)
        )
    together = place.roll_up()
    assert [(day.accepted, day.counted, day.duplicate, day.session) for day in together.days] == [
        *[(12, 4, 8, 0)] * 5,
        (3, 0, 2, 1),
    ]
    files = place.artifacts()
    monkeypatch.setattr("pipeline.rollup.LINES_AT_ONCE", 1)
    groups: list[int] = []
    honest = Engine.rows

    def in_small_parts(engine: Engine, name: str, rows: int) -> Iterator[pa.RecordBatch]:
        for batch in honest(engine, name, rows):
            yield from (batch.slice(start, 3) for start in range(0, batch.num_rows, 3))

    def roll_up(run: Run, days: list[DayInputs]) -> list[DayEntry]:
        groups.append(len(days))
        monkeypatch.setattr(Engine, "rows", in_small_parts if len(groups) % 2 else honest)
        return roll_up_days(run, days)

    with start_run(place.settings, lambda: place.now) as run:
        alone = backfill(run, date(2025, 11, 1), date(2025, 11, 30), PLAIN_STEPS._replace(roll_up_days=roll_up))
    assert groups == [1] * 6
    assert not alone.published
    assert alone.days == together.days
    assert place.artifacts().keys() == files.keys()


def test_an_event_of_another_day_than_its_file_s_is_found_out(place: Place) -> None:
    row: Record = {**dict.fromkeys(EVENT.arrow_schema.names), **request(1), "timestamp": NOON + timedelta(days=1)}
    row.update(cost=Decimal(1), synapses=Decimal(1), neurons=Decimal(2), input_tokens=3, output_tokens=4)
    event = EventFile(DAY, 1, "events.parquet")
    path = event.path_in(place.layout)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row], schema=EVENT.arrow_schema), path)
    with start_run(place.settings, lambda: place.now) as run, pytest.raises(CheckFailed):
        roll_up_days(run, [DayInputs(DAY, "f" * 32, [event], 1)])
    with start_run(place.settings, lambda: place.now) as run, pytest.raises(CheckFailed, match="2025-11-11"):
        roll_up_days(run, [DayInputs(DAY, "f" * 32, [event], 0)])
    assert not place.layout.daily.exists()


def test_no_day_is_kept_of_a_group_in_which_one_does_not_add_up(place: Place) -> None:
    for day in (10, 11, 12):
        place.write_raw(f"{day}.jsonl", request(day, timestamp=f"2025-11-{day}T12:00:00Z"))

    def losing_a_line(run: Run, days: list[DayInputs]) -> list[DayEntry]:
        return roll_up_days(run, [day._replace(accepted=day.accepted + (day.day.day == 12)) for day in days])

    steps = PLAIN_STEPS._replace(roll_up_days=losing_a_line)
    with start_run(place.settings, lambda: place.now) as run, pytest.raises(CheckFailed, match="2025-11-12"):
        roll_up(run, steps)
    assert not place.layout.daily.exists()


def test_events_from_before_a_column_came_count_beside_those_that_have_it(place: Place) -> None:
    columns = EVENT.arrow_schema.names
    row: Record = {**dict.fromkeys(columns), **request(1), "timestamp": place.now, "cost": Decimal("0.5")}
    row.update(input_tokens=3, output_tokens=4, cached_input_tokens=1, currency="USD")
    events = pa.Table.from_pylist([row], schema=EVENT.arrow_schema)
    day = place.now.date()
    before, after = (EventFile(day, 1, f"{name}.parquet") for name in ("before", "after"))
    before.path_in(place.layout).parent.mkdir(parents=True)
    pq.write_table(events.select(columns[:12]), before.path_in(place.layout))
    pq.write_table(events, after.path_in(place.layout))
    for files in ([before], [before, after], [after, before]):
        with start_run(place.settings, lambda: place.now) as run:
            (entry,) = roll_up_days(run, [DayInputs(day, "f" * 32, files, len(files))])
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


def test_the_same_rows_are_known_however_they_are_written(place: Place) -> None:
    place.write_raw("a.jsonl", *(request(number, organization_id=f"org_{number}") for number in range(5)))
    place.roll_up()
    (published,) = (file for file in place.publication().files.values() if file.rollup == "organization_day")
    path = place.layout.rollups / published.path
    rows = pq.read_table(path, partitioning=None)
    more = rows.set_column(2, "requests", pa.array([1, 1, 1, 1, 2]))
    with start_run(place.settings, lambda: place.now) as run:
        other = run.scratch / "other.parquet"
        for written, same in ((rows, True), (rows[:4], False), (more, False), (rows.take([1, 0, 2, 3, 4]), False)):
            pq.write_table(written, other, row_group_size=2, compression="none")
            assert same_rows(run, ORGANIZATION_DAY, path, other) is same


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
