"""Conservation laws and unique grain. They are asked on every run; one that fails publishes nothing."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.contract.layout import month_name
from pipeline.contract.tables import API_KEY_MONTH, Table
from pipeline.engine import Engine
from pipeline.errors import CheckFailed


def check_day(day: date, *, accepted: int, in_events: int, counted: int, duplicate: int, session: int) -> None:
    """Every accepted line of the day is in its events, and is counted, a duplicate or a session."""
    if in_events != accepted:
        raise CheckFailed("accepted lines are in the day's events", str(day), accepted, in_events)
    if accepted != counted + duplicate + session:
        raise CheckFailed("accepted = counted + duplicate + session", str(day), accepted, counted + duplicate + session)


def check_copies(day: date, *, accepted: int, in_buckets: int, repeated: int, handed_over: int, taken_up: int) -> None:
    """Every accepted line of a large day is in a bucket; each of which the hash repeats came to where copies are found.

    What got lost on the way would be counted once more, and as no duplicate: the day would still add up.
    """
    if in_buckets != accepted:
        raise CheckFailed("accepted lines are in the day's buckets", str(day), accepted, in_buckets)
    if not repeated == handed_over == taken_up:
        raise CheckFailed("lines that may be copies were looked at", str(day), repeated, (handed_over, taken_up))


def check_month(engine: Engine, month: date, *, counted: int) -> None:
    """No rollup repeats a row of its grain, and all of them sum to the same: the requests counted on the days."""
    for rollup, repeated in engine.query("repeated_rows"):
        if repeated:
            raise CheckFailed(f"{rollup} holds each row of its grain once", month_name(month), 0, repeated)
    totals = {rollup: sums for rollup, *sums in engine.query("month_totals")}
    expected = totals[API_KEY_MONTH.name]
    for rollup, sums in totals.items():
        if sums != expected:
            raise CheckFailed(f"{rollup} and api_key_month sum to the same", month_name(month), expected, sums)
    if expected[0] != counted:
        raise CheckFailed("the month is the sum of its days", month_name(month), counted, expected[0])


def check_schema(path: Path, table: Table) -> None:
    """A file about to be published has the columns its table declares, in their order and types."""
    got = pq.read_schema(path).remove_metadata()
    expected = table.arrow_schema
    if [(field.name, field.type) for field in got] != [(field.name, field.type) for field in expected]:
        raise CheckFailed("the file has the table's columns", table.name, expected.to_string(), got.to_string())
