"""Reading what keys used: right rows wherever row groups end, and an error where the rollups do not agree."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contract.published import PublishedFile
from pipeline.contract.tables import API_KEY_DAY, API_KEY_MONTH
from serving.amounts import amount_text, amount_texts
from tests.conftest import Place
from tests.serving.conftest import LiveServer, eventually, settings_for
from tests.serving.publishing import republish
from tests.serving.traffic import KEYS, day_of, publish, sums, traffic, used

NOVEMBER = "year=2025&month=11"
RECORDS = traffic()
QUESTIONS = {
    "daily": ("api-keys/daily/org_a", ""),
    "one key": ("api-keys/daily/org_a", "&api_key_id=key_a"),
    "by key": ("api-keys/daily/org_a", "&group_by=api_key"),
    "by model": ("api-keys/daily/org_a", "&group_by=model"),
    "summary": ("api-keys/summary/org_a", ""),
    "usage": ("api-keys/usage/org_a/key_a", ""),
    "top": ("org_a/api-keys/top/11/2025", ""),
}


def statuses(place: Place) -> dict[str, int]:
    """Of each question about org_a."""
    with LiveServer(settings_for(place.layout.root)) as server:
        headers = {"X-API-Key": server.create_key("org_a").key}
        return {
            name: server.client.get(f"/v1/analytics/{path}?{NOVEMBER}{options}", headers=headers).status_code
            for name, (path, options) in QUESTIONS.items()
        }


def november(place: Place, rollup: str) -> tuple[PublishedFile, pa.Table]:
    file = place.publication().files[rollup, date(2025, 11, 1)]
    return file, pq.read_table(place.layout.rollups / file.path, partitioning=None)


@pytest.mark.parametrize("row_group_size", [1, 3, 50])
def test_every_key_gets_its_own_days_wherever_row_groups_end(place: Place, row_group_size: int) -> None:
    publish(place, RECORDS)
    for table in (API_KEY_DAY, API_KEY_MONTH):
        republish(place, *november(place, table.name), row_group_size)
    with LiveServer(settings_for(place.layout.root)) as server:
        for organization in ("org_a", "org_b"):
            headers = {"X-API-Key": server.create_key(organization).key}
            for key in (*KEYS, "key_old", "key_of_b"):
                path = f"/v1/analytics/api-keys/usage/{organization}/{key}?{NOVEMBER}"
                days = server.client.get(path, headers=headers).json().get("dailyUsage", [])
                expected = sums(RECORDS, day_of, organization_id=organization, api_key_id=key)
                assert {day["date"]: day["requests"] for day in days} == {day: s[0] for day, s in expected.items()}
            path = f"/v1/analytics/api-keys/daily/{organization}?{NOVEMBER}&group_by=api_key"
            days = server.client.get(path, headers=headers).json()["dailyUsage"]
            expected = sums(RECORDS, lambda r: (day_of(r), r["api_key_id"]), organization_id=organization)
            found = {(day["date"], group["api_key_id"]): used(group)[0] for day in days for group in day["groups"]}
            assert found == {group: s[0] for group, s in expected.items()}


def one_request_more(rows: pa.Table) -> pa.Table:
    mine = pc.and_(pc.equal(rows["organization_id"], "org_a"), pc.equal(rows["api_key_id"], "key_a"))
    more = pc.add(rows["requests"], pc.cast(mine, pa.int64()))
    return rows.set_column(rows.column_names.index("requests"), "requests", more)


def one_key_less(rows: pa.Table) -> pa.Table:
    mine = pc.and_(pc.equal(rows["organization_id"], "org_a"), pc.equal(rows["api_key_id"], "key_a"))
    return rows.filter(pc.invert(mine))


def no_cost(rows: pa.Table) -> pa.Table:
    nothing = pa.nulls(rows.num_rows, rows.schema.field("cost").type)
    return rows.set_column(rows.column_names.index("cost"), "cost", nothing)


def another_month(rows: pa.Table) -> pa.Table:
    if "day" not in rows.column_names:
        return no_cost(rows)
    later = pc.cast(pc.cast(pc.add(pc.cast(rows["day"], pa.int32()), 60), pa.int32()), pa.date32())
    return rows.set_column(rows.column_names.index("day"), "day", later)


def unsorted(rows: pa.Table) -> pa.Table:
    return rows.sort_by([("organization_id", "descending")])


def without_neurons(rows: pa.Table) -> pa.Table:
    return rows.drop_columns(["neurons"])


@pytest.mark.parametrize("damage", [one_request_more, one_key_less, no_cost, another_month, unsorted, without_neurons])
@pytest.mark.parametrize(
    ("rollup", "concerned"),
    [("api_key_day", {"one key", "by key", "by model", "usage"}), ("api_key_month", {"one key", "usage", "top"})],
)
def test_rollups_that_do_not_agree_are_an_error_and_never_a_wrong_number(
    place: Place, rollup: str, concerned: set[str], damage: Any
) -> None:
    publish(place, RECORDS)
    file, rows = november(place, rollup)
    republish(place, file, damage(rows), row_group_size=20)
    found = statuses(place)
    assert {name for name, status in found.items() if status == 503} == concerned
    assert {status for name, status in found.items() if name not in concerned} == {200}


def test_why_is_in_the_log_and_not_in_the_answer(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    publish(place, RECORDS)
    file, rows = november(place, "api_key_day")
    republish(place, file, one_request_more(rows), row_group_size=20)
    caplog.set_level("INFO", "keytally.access")
    with LiveServer(settings_for(place.layout.root)) as server:
        answer = server.daily(server.create_key("org_a"), f"{NOVEMBER}&group_by=model")
    assert answer.json()["error"]["system_message"] == "Published usage data cannot be read"
    eventually(lambda: "its groups do not sum to the days of the organization" in caplog.text)


@pytest.mark.parametrize("rollup", ["api_key_day", "api_key_month"])
def test_a_damaged_file_of_keys_stops_only_those_who_ask_for_keys(place: Place, rollup: str) -> None:
    publish(place, RECORDS)
    file, _ = november(place, rollup)
    path: Path = place.layout.rollups / file.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = statuses(place)
    assert (found["daily"], found["summary"]) == (200, 200)
    assert found["usage"] == found["one key"] == 503


amounts = st.decimals(0, Decimal(10) ** 26 - 1, places=12, allow_nan=False)


@given(st.lists(amounts, min_size=1))
def test_amounts_column_by_column_are_written_as_one_by_one(values: list[Decimal]) -> None:
    column = pa.chunked_array([pa.array(values, pa.decimal128(38, 12)), pa.array([], pa.decimal128(38, 12))])
    assert amount_texts(column).to_pylist() == [amount_text(value) for value in values]


def test_reading_keys_loads_no_data_frames(place: Place) -> None:
    publish(place, RECORDS)
    script = (
        "import sys; from datetime import UTC, date, datetime; from pathlib import Path;"
        "from pipeline.contract.store import FolderStore; from serving.names import Names;"
        "from serving.questions import Daily, KeyMonth, Top; from serving.reader import Reader;"
        "reader = Reader(FolderStore(Path(sys.argv[1]))); reader.refresh(); month = date(2025, 11, 1);"
        "asked = [Daily(month, group_by=by, csv=csv) for by in ('api_key', 'model') for csv in (False, True)];"
        "asked += [KeyMonth(month, 'key_a'), Top(month, 10)];"
        "[question.answer('org_a', reader.confirmed, Names(), reader, datetime.now(UTC)) for question in asked];"
        "print(sorted({'pandas', 'pyarrow.dataset', 'duckdb'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(place.layout.root)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
