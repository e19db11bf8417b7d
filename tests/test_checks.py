"""Each law by itself: what breaks it and no other is found out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from pipeline.checks import check_copies, check_day, check_month
from pipeline.contract.tables import USAGE
from pipeline.errors import CheckFailed
from pipeline.run import Run, start_run
from tests.conftest import Place

DAY = date(2025, 11, 10)
ROW = {
    "organization_id": "org_a",
    "day": DAY,
    "api_key_id": "key_1",
    "model": None,
    "requests": 2,
    "failed_requests": 1,
    **dict.fromkeys(("cost", "synapses", "neurons", "input_tokens", "output_tokens"), Decimal(3)),
    "unpriced": 0,
}
NOTHING = {**ROW, **dict.fromkeys(list(ROW)[4:], 0)}


@pytest.fixture
def run(place: Place) -> Iterator[Run]:
    with start_run(place.settings, lambda: place.now) as started:
        yield started


def name_month(run: Run, rollup: str = "", *other: dict[str, Any]) -> None:
    """Name the rollups of a month of one row each; one of them has these rows."""
    for table in USAGE:
        rows = other if table.name == rollup else (ROW,)
        run.engine.name_arrow(table.name, pa.Table.from_pylist(list(rows), schema=table.arrow_schema))


def test_a_month_that_adds_up_passes(run: Run) -> None:
    name_month(run)
    check_month(run.engine, DAY.replace(day=1), counted=2)


@pytest.mark.parametrize(("table", "column"), [(table.name, column) for table in USAGE for column in table.grain])
def test_rows_that_differ_in_one_column_of_the_grain_are_two(run: Run, table: str, column: str) -> None:
    other = {**NOTHING, column: DAY.replace(day=11) if column == "day" else "other"}
    name_month(run, table, ROW, other)
    check_month(run.engine, DAY.replace(day=1), counted=2)


@pytest.mark.parametrize("table", [table.name for table in USAGE])
def test_a_row_that_stands_twice_is_found_out_where_the_sums_are_right(run: Run, table: str) -> None:
    name_month(run, table, ROW, NOTHING)
    with pytest.raises(CheckFailed, match=f"{table} holds each row of its grain once"):
        check_month(run.engine, DAY.replace(day=1), counted=2)


@pytest.mark.parametrize("table", [table.name for table in USAGE if table.name != "api_key_month"])
@pytest.mark.parametrize("column", list(ROW)[4:])
def test_a_sum_that_another_rollup_does_not_have_is_found_out(run: Run, table: str, column: str) -> None:
    name_month(run, table, {**ROW, column: 4})
    with pytest.raises(CheckFailed, match=f"{table} and api_key_month sum to the same"):
        check_month(run.engine, DAY.replace(day=1), counted=2)


def test_a_month_of_other_requests_than_its_days_is_found_out(run: Run) -> None:
    name_month(run)
    with pytest.raises(CheckFailed, match="the month is the sum of its days"):
        check_month(run.engine, DAY.replace(day=1), counted=3)


def test_a_day_adds_up() -> None:
    right = {"accepted": 6, "in_events": 6, "counted": 3, "duplicate": 2, "session": 1}
    check_day(DAY, **right)
    with pytest.raises(CheckFailed, match="accepted lines are in the day's events"):
        check_day(DAY, **{**right, "in_events": 5})
    for count in ("counted", "duplicate", "session"):
        with pytest.raises(CheckFailed, match=r"accepted = counted \+ duplicate \+ session"):
            check_day(DAY, **{**right, count: 7})


def test_lines_that_may_be_copies_are_all_looked_at() -> None:
    right = {"accepted": 6, "in_buckets": 6, "repeated": 4, "handed_over": 4, "taken_up": 4}
    check_copies(DAY, **right)
    with pytest.raises(CheckFailed, match="accepted lines are in the day's buckets"):
        check_copies(DAY, **{**right, "in_buckets": 5})
    for count in ("repeated", "handed_over", "taken_up"):
        with pytest.raises(CheckFailed, match="lines that may be copies were looked at"):
            check_copies(DAY, **{**right, count: 3})
