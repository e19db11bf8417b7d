"""A second opinion on what is published: it agrees where all is well, and finds each way of going wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pipeline.engine
from cli import main
from pipeline.contract.tables import PUBLISHED
from pipeline.engine import statement
from pipeline.errors import ArtifactDamaged
from pipeline.intake import rule_of
from pipeline.line import Rejected, is_blank, read_line
from pipeline.publish import Partition, publish
from pipeline.raw import list_raw
from pipeline.reconcile import Reconciliation, reconcile
from pipeline.recount import DAY_MICROSECONDS, requests_in
from pipeline.recount_lines import LINE_BYTES
from pipeline.run import start_run
from tests.conftest import Place, lines, request
from tests.test_cases import CASES, _change_raw

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

FIRST, LAST = date(2025, 10, 1), date(2025, 11, 30)


def reconciled(place: Place, first_day: date = FIRST, last_day: date = LAST) -> Reconciliation:
    with start_run(place.settings, lambda: place.now) as run:
        return reconcile(run, first_day, last_day)


def fill(place: Place) -> None:
    """Two months of everything that the rules know, taken in by two runs."""
    copies = [request(7, cost="0.5"), request(7, cost="0.25"), request(7, cost="0.25"), request(8, api_key_id=None)]
    bad = ["{", "[]", request(9, cost="-1"), request(9, status=99), b"\xff\xfe", "", " \t", request(9, cost=...)]
    odd = request(10, cost=2.5e-7, synapses="1e3", neurons=0.000001, timestamp="2025-11-10T23:59:59.999999999-05:00")
    place.write_raw("mixed.jsonl", *copies, *bad, odd, request(11, model="mini", status=500, input_tokens=2**63 - 1))
    place.write_raw("same.jsonl", *copies, *bad, odd, request(11, model="mini", status=500, input_tokens=2**63 - 1))
    month_end = [request(n, timestamp=f"2025-10-31T23:59:5{n}Z", organization_id=f"org_{n % 3}") for n in range(10)]
    place.write_raw("a/zipped.jsonl.gz", gzip.compress(lines(*month_end)) + gzip.compress(lines(request(70))))
    place.write_raw("a/zstd.jsonl.zst", zstd.compress(b"\xef\xbb\xbf" + lines(request(71), request(7, cost="0.1"))))
    table = pa.table(
        {
            "request_id": pa.array(["p1", "p2", "p3"]).dictionary_encode(),
            "timestamp": pa.array([1762776000000000001, 1762776000123456789, 0], pa.timestamp("ns", "UTC")),
            "organization_id": ["org_a", "org_b", "org_b"],
            "api_key_id": pa.array(["key_2", None, None]),
            "cost": pa.array([Decimal("1.500000000001"), None, Decimal(2)], pa.decimal128(20, 12)),
            "neurons": [0.1, 0.2, 0.3],
        }
    )
    written = io.BytesIO()
    pq.write_table(table, written)
    place.write_raw("rows.parquet", written.getvalue())
    place.write_raw("replaced.jsonl", request(20), request(21, organization_id="org_gone"))
    place.write_raw("log.jsonl", request(30), request(31))
    place.write_raw("future.jsonl", request(40), request(41, timestamp="2025-11-15T10:35:00.000001Z"))
    place.roll_up()
    place.now += timedelta(seconds=1)
    place.write_raw("replaced.jsonl", request(20, cost="9.99"))
    (place.layout.raw / "log.jsonl").rename(place.layout.raw / "log.1.jsonl")
    place.write_raw("log.jsonl", request(32))
    place.write_raw("late.jsonl", request(7, timestamp="2025-11-10T11:00:00Z", cost="3"), request(50))
    place.roll_up()


@pytest.fixture
def filled(place: Place) -> Place:
    fill(place)
    return place


# --- where all is well -----------------------------------------------------------------------------------------------


def test_what_a_run_published_equals_its_raw_logs(filled: Place) -> None:
    found = reconciled(filled)
    # October 31, November 10, 11 and 15; the other days of the range hold nothing
    assert found.as_json() == {"equal": True, "days": 4, "differences": [], "waiting": [], "unverifiable": []}
    counted = sum(day.counted for day in filled.ledger().days.values())
    assert counted > 20, "there was something to compare"


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_every_case_equals_its_raw_logs_after_each_run(folder: Path, place: Place) -> None:
    for step in tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))["run"]:
        _change_raw(folder, place, step)
        place.now = step.get("now", place.now)
        place.roll_up()
        found = reconciled(place, date(2020, 1, 1), date(2030, 12, 31))
        assert found.differences == ()


ODD_COLUMNS: dict[str, pa.Array] = {
    "int8": pa.array([1, -1, None], pa.int8()),
    "uint64": pa.array([2**64 - 1, 200, None], pa.uint64()),
    "int64": pa.array([2**63 - 1, 599, 0], pa.int64()),
    "float": pa.array([0.5, 0.1, None], pa.float32()),
    "double": pa.array([float("nan"), float("inf"), 200.0]),
    "more doubles": pa.array([-0.0, 0.1 + 0.2, 1e-13]),
    "boolean": pa.array([True, False, None]),
    "decimal": pa.array([Decimal("200.000"), Decimal("-1"), None], pa.decimal128(30, 3)),
    "wide decimal": pa.array([Decimal("0"), Decimal("999999.0000000000000000001"), Decimal(1)], pa.decimal256(70, 40)),
    "text": pa.array(["200", "1e2", ""]),
    "more text": pa.array(["key_1", "\u0000", "x" * 257]),
    "large text": pa.array(["0.5", "2025-11-10T12:00:00Z", None], pa.large_string()),
    "bytes": pa.array([b"abc", b"\xff", None], pa.binary()),
    "dictionary": pa.array(["1", "b", "1"]).dictionary_encode(),
    "nothing": pa.nulls(3),
    "list": pa.array([["a"], None, []]),
    "struct": pa.array([{"a": 1}, None, {"a": 2}]),
    "day": pa.array([date(2025, 11, 10), None, date(2025, 11, 11)]),
    "time": pa.array([1, None, 2], pa.time64("us")),
    **{
        f"timestamp {unit}": pa.array(
            [1762776000 * per_second + 1, 2**62 // 10**9 * 10**9, -1], pa.timestamp(unit, "UTC")
        )
        for unit, per_second in {"ms": 10**3, "us": 10**6, "ns": 10**9}.items()
    },
    "timestamp elsewhere": pa.array([1762776000, None, 0], pa.timestamp("ms", "Europe/Zurich")),
}


def test_columns_of_every_type_in_parquet_are_read_as_the_pipeline_reads_them(place: Place) -> None:
    whole = {**request(), "synapses": 1, "neurons": 1, "model": "m", "endpoint": "e", "status": 200}
    whole |= {"input_tokens": 1, "output_tokens": 1}
    fields = whole.keys() - {"neurons", "endpoint", "output_tokens"}  # as synapses, model, input_tokens
    for field in fields:
        for kind, column in ODD_COLUMNS.items():
            columns = {name: pa.array([value] * 3) for name, value in whole.items() if name != field}
            columns["request_id"] = columns.get("request_id", column)
            written = io.BytesIO()
            pq.write_table(pa.table({**columns, field: column, "unread": pa.nulls(3)}), written)
            place.write_raw(f"{field}/{kind}.parquet", written.getvalue())
    place.roll_up()
    files = place.ledger().files
    assert len(files) == len(fields) * len(ODD_COLUMNS)
    assert any(entry.take_in.accepted for entry in files.values())
    assert reconciled(place, date(2020, 1, 1), date(2030, 12, 31)).differences == ()


def test_the_recorded_moment_decides_what_is_from_the_future(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-11-15T10:35:00.000001Z"))
    place.roll_up()
    place.now += timedelta(days=3)
    assert reconciled(place).equal, "the line is in quarantine, and the ledger says when it was put there"
    place.roll_up()
    assert place.ledger().days[date(2025, 11, 15)].counted == 1
    assert reconciled(place).equal


def test_days_without_anything_are_equal_zeros_and_not_counted(place: Place) -> None:
    assert reconciled(place, LAST, LAST).as_json() == {
        "equal": True,
        "days": 0,
        "differences": [],
        "waiting": [],
        "unverifiable": [],
    }


def test_it_reads_neither_events_nor_daily_artifacts_nor_quarantine(filled: Place) -> None:
    for folder in (filled.layout.events, filled.layout.daily, filled.layout.rejected):
        shutil.rmtree(folder)
    assert reconciled(filled).equal


def test_it_changes_nothing(filled: Place) -> None:
    before = filled.artifacts(), filled.publication().version
    reconciled(filled)
    assert (filled.artifacts(), filled.publication().version) == before


def test_a_file_larger_than_the_memory_bound_is_recounted(place: Place) -> None:
    object.__setattr__(place.settings, "memory_limit", 64 * 10**6)
    padding = "x" * 1000
    with gzip.open(place.write_raw("_unfinished", b""), "wb", compresslevel=1) as file:
        for part in range(90):
            records = (request(part * 1000 + n, unread=padding, model=padding[:200]) for n in range(1000))
            file.write(lines(*records))
    (place.layout.raw / "_unfinished").rename(place.layout.raw / "large.jsonl.gz")
    place.roll_up()
    assert reconciled(place).equal
    assert place.ledger().days[date(2025, 11, 10)].counted == 90_000


def test_in_however_many_parts_it_is_counted_the_result_is_the_same(
    filled: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.recount_usage.REQUEST_BYTES", filled.settings.memory_limit // 4)
    monkeypatch.setattr("pipeline.compare.USAGE_BYTES", filled.settings.memory_limit // 4)
    assert reconciled(filled).as_json() == {
        "equal": True,
        "days": 4,
        "differences": [],
        "waiting": [],
        "unverifiable": [],
    }
    tamper(filled, "organization_day", OCTOBER, with_number("requests", 0, 1))
    assert len(reconciled(filled).differences) == 1


# --- what is published is not what it should be ----------------------------------------------------------------------


def tamper(place: Place, rollup: str, month: date | None, change: Callable[[pa.Table], pa.Table]) -> None:
    """Publish another content of a file: with a right checksum, in a commit like any other."""
    with start_run(place.settings, lambda: place.now) as run:
        publication = place.publication()
        path = place.layout.rollups / publication.files[rollup, month].path
        table = PUBLISHED[rollup]
        changed = change(pq.read_table(path, schema=table.arrow_schema, partitioning=None)).cast(table.arrow_schema)
        pq.write_table(changed, run.scratch / "tampered.parquet")
        publish(run, publication, [Partition(table, month, run.scratch / "tampered.parquet")], {})


def with_number(name: str, row: int, add: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        numbers = table.column(name).to_pylist()
        numbers[row] += add
        position = table.schema.get_field_index(name)
        return table.set_column(position, name, pa.array(numbers, table.schema.field(name).type))

    return change


NOVEMBER, OCTOBER = date(2025, 11, 1), date(2025, 10, 1)


SMALLEST = {
    "requests": 1,
    "failed_requests": 1,
    "cost": Decimal("0.000000000001"),
    "synapses": Decimal("0.000001"),
    "neurons": Decimal("-0.000001"),
    "input_tokens": Decimal(1),
    "output_tokens": Decimal(1),
}


@pytest.mark.parametrize("rollup", ["organization_day", "api_key_day", "organization_month", "api_key_month"])
def test_one_changed_number_is_found_and_named(filled: Place, rollup: str) -> None:
    for row, (name, add) in enumerate(SMALLEST.items()):
        path = filled.layout.rollups / filled.publication().files[rollup, NOVEMBER].path
        rows = pq.read_table(path, schema=PUBLISHED[rollup].arrow_schema, partitioning=None).to_pylist()
        changed = rows[row % len(rows)]
        tamper(filled, rollup, NOVEMBER, with_number(name, row % len(rows), add))
        (difference,) = reconciled(filled).as_json()["differences"]
        tamper(filled, rollup, NOVEMBER, with_number(name, row % len(rows), -add))
        assert difference == {
            "rollup": rollup,
            "organization_id": changed["organization_id"],
            "api_key_id": changed.get("api_key_id"),
            "model": changed.get("model"),
            "month": "2025-11",
            "day": str(changed["day"]) if rollup.endswith("day") else None,
            "file": None,
            "field": name,
            "published": difference["published"],
            "recounted": difference["recounted"],
        }
        assert Decimal(difference["recounted"]) == changed[name]
        assert Decimal(difference["published"]) == changed[name] + add
    assert reconciled(filled).equal


@pytest.mark.parametrize("rollup", ["organization_day", "api_key_day", "organization_month", "api_key_month"])
def test_a_lost_organization_is_found(filled: Place, rollup: str) -> None:
    tamper(filled, rollup, OCTOBER, lambda table: table.filter(pc.not_equal(table["organization_id"], "org_1")))
    found = [difference for difference in reconciled(filled).differences if difference.field == "requests"]
    assert [(d.rollup, d.organization_id, d.published, d.recounted) for d in found] == [(rollup, "org_1", 0, 3)]


@pytest.mark.parametrize("rollup", ["organization_day", "api_key_day", "organization_month", "api_key_month"])
def test_an_organization_too_many_is_found_even_with_zeros(filled: Place, rollup: str) -> None:
    def change(table: pa.Table) -> pa.Table:
        row = dict.fromkeys(table.schema.names, 0) | {"organization_id": "org_x", "model": None}
        row |= {"day": OCTOBER, "api_key_id": "key_x"}
        extra = pa.Table.from_pylist([{name: row[name] for name in table.schema.names}], schema=table.schema)
        return pa.concat_tables([table, extra])

    tamper(filled, rollup, OCTOBER, change)
    (difference,) = reconciled(filled).differences
    assert (difference.organization_id, difference.field) == ("org_x", "rows")
    assert (difference.published, difference.recounted) == (1, 0)


def test_a_row_split_in_two_is_found_though_its_sum_is_right(filled: Place) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        halves = [{**rows[0], "requests": rows[0]["requests"] - 1}, {**rows[0], "requests": 1, "cost": Decimal(0)}]
        for name in ("failed_requests", "synapses", "neurons", "input_tokens", "output_tokens"):
            halves[1][name] = type(rows[0][name])(0)
        return pa.Table.from_pylist([*halves, *rows[1:]], schema=table.schema)

    tamper(filled, "organization_day", OCTOBER, change)
    (difference,) = reconciled(filled).differences
    assert (difference.field, difference.published, difference.recounted) == ("rows", 2, 1)


def test_a_row_on_a_day_of_another_month_is_found(filled: Place) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        return pa.Table.from_pylist([*rows, {**rows[0], "day": date(2025, 11, 10)}], schema=table.schema)

    tamper(filled, "organization_day", OCTOBER, change)
    assert {difference.day for difference in reconciled(filled, OCTOBER, date(2025, 10, 31)).differences} == {
        date(2025, 11, 10)
    }


def test_a_month_is_compared_only_when_all_its_days_are(filled: Place) -> None:
    tamper(filled, "organization_month", NOVEMBER, with_number("requests", 0, 1))
    assert reconciled(filled, NOVEMBER, date(2025, 11, 29)).equal
    assert not reconciled(filled, NOVEMBER, date(2025, 11, 30)).equal


def test_days_outside_of_the_range_are_not_compared(filled: Place) -> None:
    tamper(filled, "organization_day", OCTOBER, with_number("requests", 0, 1))
    assert reconciled(filled, NOVEMBER, LAST).equal
    assert not reconciled(filled, date(2025, 10, 31), LAST).equal


def test_a_wrong_day_report_is_found(filled: Place) -> None:
    for name in ("accepted", "counted", "duplicate", "conflicting", "session"):
        tamper(filled, "day", NOVEMBER, with_number(name, 0, 1))
        (difference,) = reconciled(filled).differences
        tamper(filled, "day", NOVEMBER, with_number(name, 0, -1))
        assert (difference.rollup, difference.field, difference.published - difference.recounted) == ("day", name, 1)


def test_a_wrong_count_of_a_file_s_lines_is_found(filled: Place) -> None:
    for name in ("lines", "accepted", "quarantined"):
        tamper(filled, "file", None, with_number(name, 0, 1))
        (difference,) = reconciled(filled).differences
        tamper(filled, "file", None, with_number(name, 0, -1))
        assert (difference.rollup, difference.file, difference.field) == ("file", "a/zipped.jsonl.gz", name)


def test_a_published_file_that_is_damaged_is_an_error_that_says_what_helps(filled: Place) -> None:
    path = filled.layout.rollups / filled.publication().files["api_key_day", NOVEMBER].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match="keytally backfill"):
        reconciled(filled)


# --- a pipeline that counts wrong ------------------------------------------------------------------------------------


def with_wrong_statement(monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str) -> None:
    assert right in statement(name)

    def wrongly(asked: str) -> str:
        return statement(asked).replace(right, wrong) if asked == name else statement(asked)

    monkeypatch.setattr(pipeline.engine, "statement", wrongly)
    monkeypatch.setattr("pipeline.intake.statement", wrongly)
    monkeypatch.setattr("pipeline.rollup.statement", wrongly)


@pytest.mark.parametrize(
    ("name", "right", "wrong", "field"),
    [
        (
            "accept",
            "exact_cost as cost",
            "cast(cast(exact_cost as decimal(18, 11)) as decimal(18, 12)) as cost",
            "cost",
        ),
        ("accept", "exact_cost as cost", "cast(cast(exact_cost as float) as decimal(18, 12)) as cost", "cost"),
        ("accept", "instant as timestamp", "instant + interval 12 hours as timestamp", "requests"),
        ("accept", "status_number as status", "cast(200 as smallint) as status", "failed_requests"),
        (
            "copies",
            " timestamp,\n            api_key_id nulls first",
            " timestamp desc, api_key_id nulls first",
            "cost",
        ),
        ("copies", "cost is distinct from counted_cost\n", "false\n", "disagreeing"),
        ("copies", "cost nulls first,", "cost desc,", "cost"),
        ("copies", "api_key_id nulls first", "api_key_id nulls last", "requests"),
        ("copies", "having count(*) > 1", "having count(*) > 2", "requests"),
        ("roll_up_days", "status >= 400", "status >= 501", "failed_requests"),
        ("copies", "row_number() over request as place", "3 - row_number() over request as place", "cost"),
        ("roll_up_days", "    from events\n", "    from events\n    where organization_id < 'org_z'\n", "cost"),
        ("organization_day", "sum(cost)", "sum(round(cost, 6))", "cost"),
        ("organization_month", "sum(synapses)", "sum(round(synapses, 3))", "synapses"),
    ],
)
def test_a_pipeline_that_counts_wrong_is_found_out(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str, field: str
) -> None:
    with_wrong_statement(monkeypatch, name, right, wrong)
    monkeypatch.setattr("pipeline.judge.FEW_BYTES", 0)  # however few the lines are, the bulk read takes them
    monkeypatch.setattr("pipeline.rollup.check_month", lambda *_, **__: None)
    monkeypatch.setattr("pipeline.rollup.check_day", lambda *_, **__: None)
    rule_of.cache_clear()
    place.write_raw(
        "a.jsonl",
        request(1, cost="0.000000000001", status=500, synapses="0.0001"),
        request(2, cost="0.123456789012"),
        request(3, cost="1", timestamp="2025-11-10T12:00:01Z"),
        request(3, cost="2", timestamp="2025-11-10T12:00:01Z"),
        request(4, cost="1", api_key_id=None),
        request(4, cost="1", api_key_id="key_1"),
        request(5, organization_id="org_zz"),
        request(6, timestamp="2025-11-10T10:00:00Z", cost="1"),
        request(6, timestamp="2025-11-10T11:00:00Z", cost="2"),
        request(7, timestamp="2025-11-10T12:00:00Z"),
    )
    place.write_raw("b.jsonl", request(7, timestamp="2025-11-10T07:00:00-05:00"))
    place.write_raw("c.jsonl", request(7, timestamp="2025-11-10T12:00:00+00:00", cost="7"))
    place.roll_up()
    rule_of.cache_clear()
    found = reconciled(place)
    assert field in {difference.field for difference in found.differences}


# --- what cannot be compared -----------------------------------------------------------------------------------------


def test_files_that_are_new_or_changed_are_waiting_and_no_difference(filled: Place) -> None:
    filled.write_raw("new/new.jsonl", request(90))
    filled.write_raw("broken.jsonl.gz", gzip.compress(lines(request(91)))[:-3])
    os.utime(filled.layout.raw / "late.jsonl", (0, 0))  # touched is not changed
    found = reconciled(filled)
    assert found.equal
    assert found.as_json()["waiting"] == ["broken.jsonl.gz", "new/new.jsonl"]


def test_the_days_of_a_changed_file_are_unverifiable_and_not_compared(filled: Place) -> None:
    tamper(filled, "organization_day", OCTOBER, with_number("requests", 0, 1))
    filled.write_raw("late.jsonl", request(50))
    found = reconciled(filled)
    assert found.as_json()["waiting"] == ["late.jsonl"]
    assert found.as_json()["unverifiable"] == ["2025-11-10"]
    assert found.days == 3
    assert {difference.month for difference in found.differences} == {OCTOBER}, "the other days are compared"


def test_the_days_of_a_deleted_or_emptied_file_are_unverifiable(filled: Place) -> None:
    (filled.layout.raw / "a/zipped.jsonl.gz").unlink()
    filled.write_raw("late.jsonl", b"")
    filled.roll_up()
    found = reconciled(filled)
    assert found.equal
    assert found.waiting == ("late.jsonl",), "it is not what the version knows"
    assert found.as_json()["unverifiable"] == ["2025-10-31", "2025-11-10"]


def test_a_content_is_found_by_its_hash_under_whatever_name(filled: Place) -> None:
    (filled.layout.raw / "late.jsonl").rename(filled.layout.raw / "renamed.jsonl")
    (filled.layout.raw / "mixed.jsonl").unlink()  # same.jsonl holds the same
    found = reconciled(filled)
    assert found.equal
    assert (found.waiting, found.unverifiable) == (("renamed.jsonl",), ())


def test_a_file_whose_bytes_rotted_is_noticed_although_its_times_are_as_they_were(
    filled: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled.layout.raw / "late.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"3"', b'"4"'))
    known = filled.ledger().files["late.jsonl"].signature
    listed = list_raw(filled.store)
    as_before = tuple(
        replace(raw_file, signature=known) if raw_file.file == "late.jsonl" else raw_file for raw_file in listed.files
    )
    monkeypatch.setattr("pipeline.reconcile.list_raw", lambda _: replace(listed, files=as_before))
    found = reconciled(filled)
    assert (found.waiting, found.unverifiable) == ((), (date(2025, 11, 10),))


@pytest.mark.parametrize(("change", "days"), [("append", []), ("rewrite", [date(2025, 11, 10)])])
def test_a_file_that_changes_while_it_is_read_leaves_its_days_unverifiable_unless_it_only_grows(
    filled: Place, monkeypatch: pytest.MonkeyPatch, change: str, days: list[date]
) -> None:
    def changing(raw: Any, ending: str, taken_at: datetime, size: int) -> Any:
        yield from requests_in(raw, ending, taken_at, size)
        path = Path(raw.name)
        if path.name == "late.jsonl":
            before = path.read_bytes() if change == "append" else b""
            path.write_bytes(before + lines(request(99, organization_id="org_new")))

    monkeypatch.setattr("pipeline.reconcile.requests_in", changing)
    found = reconciled(filled)
    assert found.equal
    assert list(found.unverifiable) == days


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "app.jsonl": bytes,
    "app.jsonl.gz": gzip.compress,
    "app.jsonl.zst": zstd.compress,
}


@pytest.mark.parametrize("file", COMPRESS)
@pytest.mark.parametrize("then", ["appended", "appended and renamed", "half a line appended", "no longer its own"])
def test_a_log_that_was_only_appended_to_is_recounted_as_it_was_taken_in(place: Place, file: str, then: str) -> None:
    compress = COMPRESS[file]
    # Its last line was cut when it was taken in: it is whole only in what the file holds now.
    path = place.write_raw(file, compress(lines(request(1), request(2)) + lines(request(3))[:20]))
    place.roll_up()
    assert place.ledger().files[file].take_in.quarantined == 1
    before = path.read_bytes()
    if then == "no longer its own":
        before = compress(lines(request(1, cost="9"), request(2)) + lines(request(3))[:20])
    path.write_bytes(before + compress(lines(request(3))[20:] if "half" not in then else b'{"half'))
    if then.endswith("renamed"):
        path.rename(path.with_name(f"yesterday-{file}"))
    found = reconciled(place)
    assert found.equal
    assert len(found.waiting) == 1
    assert found.as_json()["unverifiable"] == (["2025-11-10"] if then == "no longer its own" else [])
    tamper(place, "organization_day", NOVEMBER, with_number("requests", 0, 3))
    assert reconciled(place).equal == (then == "no longer its own")


def test_parquet_that_grew_is_another_content(place: Place) -> None:
    written = io.BytesIO()
    pq.write_table(pa.table({name: [value] for name, value in request(1).items()}), written)
    path = place.write_raw("a.parquet", written.getvalue())
    place.roll_up()
    path.write_bytes(written.getvalue() + b"more")
    assert reconciled(place).as_json()["unverifiable"] == ["2025-11-10"]


# --- the command -----------------------------------------------------------------------------------------------------


def run_command(place: Place, *arguments: str) -> Any:
    environment = {"KEYTALLY_DATA": str(place.layout.root), "KEYTALLY_MEMORY_LIMIT": "512MB", "KEYTALLY_THREADS": "2"}
    return CliRunner().invoke(main, ["reconcile", *arguments], env=environment)


RANGE = ("--from", "2025-10-01", "--to", "2025-11-30")


def test_the_command_exits_with_0_when_all_is_equal_and_3_when_not(filled: Place) -> None:
    result = run_command(filled, *RANGE, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == reconciled(filled).as_json()
    assert "Equal: " in run_command(filled, *RANGE).stdout
    tamper(filled, "organization_day", NOVEMBER, with_number("cost", 0, Decimal("0.01")))
    result = run_command(filled, *RANGE, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == reconciled(filled).as_json()
    result = run_command(filled, *RANGE)
    assert result.exit_code == 3
    assert "organization_day" in result.stdout
    assert "keytally backfill --from 2025-10-01 --to 2025-11-30" in result.stderr


def test_the_command_shows_the_first_differences_and_what_was_not_compared(filled: Place) -> None:
    many = [request(n, timestamp="2025-11-12T00:00:00Z", api_key_id=f"k{n}") for n in range(60)]
    filled.write_raw("many.jsonl", *many)
    filled.roll_up()
    tamper(filled, "api_key_day", NOVEMBER, lambda table: table.slice(0, 0))
    filled.write_raw("late.jsonl", request(50))
    result = run_command(filled, *RANGE)
    assert result.exit_code == 3
    assert "The first 50 of " in result.stdout
    assert "NOT COMPARED 2025-11-10: what late.jsonl held" in result.stderr
    assert "1 raw file waiting" in result.stdout
    assert "2025-11-12" in result.stdout


def test_the_command_refuses_a_range_that_ends_before_it_begins(place: Place) -> None:
    assert run_command(place, "--from", "2025-11-30", "--to", "2025-11-01").exit_code == 2


def test_the_command_fails_with_what_helps_when_a_published_file_is_damaged(filled: Place) -> None:
    path = filled.layout.rollups / filled.publication().files["organization_day", NOVEMBER].path
    path.write_bytes(path.read_bytes()[:-1])
    result = run_command(filled, *RANGE, "--json")
    assert result.exit_code == 1
    assert "keytally backfill" in json.loads(result.stdout)["error"]


# --- the two rule books ----------------------------------------------------------------------------------------------

NUMBER = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", fullmatch=True),
    st.sampled_from(["1e999", "-1e999", "-0", "-0.0", "1e-400", "-1e-400", "9" * 500, "NaN", "Infinity", "-Infinity"]),
    st.sampled_from(["999999.999999999999", "999999999999.999999", "1e6", "1e12", "9223372036854775807", "1e-12"]),
    st.sampled_from(["100", "599", "600", "99", "200.0", "2e2", "0.1234567890123456", "123456789.123456", "1" * 5000]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(0, 10**6, places=12).map(str),
)
AMOUNT_TEXT = st.one_of(
    NUMBER,
    st.sampled_from(
        ["", " 1", "1 ", "+1", "1_0", "1.", ".5", "0x1", "１", "1e", "1e+", "00.10", "0e99999999999999999999"]
    ),
    st.sampled_from(
        ["1e99999999999999999999", "1e-99999999999999999999", "1" + "0" * 400 + "e-400", "1e00000000000005"]
    ),
    st.sampled_from(["0." + "0" * 400 + "1e389", "1." + "0" * 400, "-0e5", "-0." + "0" * 300 + "1", "1e-0"]),
)
CHARACTER = st.one_of(
    st.characters(),
    st.sampled_from("\x00\x1f\x7f\x80\x9f\xa0\u2028\ud800\udfff\ufeff\U0001f600'\"\\/:"),
    st.sampled_from("abcXYZ019_.:-"),
)
TEXT = st.one_of(
    st.text(CHARACTER, max_size=12),
    st.text(st.sampled_from("azAZ09_-.:"), min_size=1, max_size=10),
    st.sampled_from(["x" * 128, "x" * 129, "é" * 128, "é" * 256, "x" * 256, "x" * 257, "😀" * 256, ""]),
)
PART = st.sampled_from(["00", "01", "02", "05", "12", "23", "24", "28", "29", "30", "31", "59", "60", "99", "1", "٣١"])
MOMENT = st.one_of(
    st.datetimes(datetime(2019, 12, 30), datetime(2031, 1, 3)).map(lambda moment: moment.isoformat() + "Z"),
    st.builds(
        "{}-{}-{}T{}:{}:{}{}{}".format,
        st.sampled_from(["2025", "2024", "2020", "2019", "2030", "2031", "0000", "0001", "9999", "25"]),
        *(PART for _ in range(5)),
        st.sampled_from(["", ".0", ".123456789", ".1234567890", ".9999999", ".", ",5", ".١"]),
        st.sampled_from(["Z", "z", "+00:00", "-00:00", "+23:59", "-23:59", "+24:00", "+05:60", "+0530", "+05", ""]),
    ),
    st.sampled_from(["2025-11-10 12:00:00Z", "2025-11-10T12:00Z", "2025-W46-1T12:00:00Z", "20251110T120000Z", "epoch"]),
    st.sampled_from(["2025-11-15T10:35:00Z", "2025-11-15T10:35:00.000000999Z", "2025-11-15T10:35:00.000001Z"]),
    st.sampled_from(["2025-11-10T12:00:00Z\n", "2020-01-01T00:00:00+00:01", "2031-01-01T00:00:00+00:01"]),
)
OTHER = st.sampled_from(["null", "true", "false", "[]", "{}", '[1, {"cost": 1}]', '""', '{"a": [NaN]}', "nul", ""])


def written(text: str) -> str:
    return json.dumps(text)


FIELD = st.one_of(
    st.tuples(st.sampled_from(["cost", "synapses", "neurons"]), st.one_of(NUMBER, AMOUNT_TEXT.map(written), OTHER)),
    st.tuples(
        st.sampled_from(
            ["status", "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"]
        ),
        st.one_of(NUMBER, NUMBER.map(written), OTHER, st.sampled_from(["0", "1", "2", "3"])),
    ),
    st.tuples(
        st.sampled_from(["request_id", "organization_id", "api_key_id", "model", "endpoint", "unknown"]),
        st.one_of(TEXT.map(written), TEXT.map(lambda text: json.dumps(text, ensure_ascii=False)), NUMBER, OTHER),
    ),
    st.tuples(st.just("timestamp"), st.one_of(MOMENT.map(written), NUMBER, OTHER)),
)
WHOLE = [(name, json.dumps(value)) for name, value in request().items()]


@st.composite
def adversarial_lines(draw: st.DrawFn) -> bytes:
    """A request with a few fields changed, repeated or left out; now and then with a byte changed."""
    fields = [pair for pair in WHOLE if draw(st.integers(0, 19))]
    for pair in draw(st.lists(FIELD, max_size=3)):
        if draw(st.booleans()):
            fields = [known for known in fields if known[0] != pair[0]]
        fields.insert(draw(st.integers(0, len(fields))), pair)
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in fields) + "}"
    line = text.encode("utf-8", "surrogatepass")
    if not draw(st.integers(0, 9)):
        position = draw(st.integers(0, len(line)))
        line = line[:position] + draw(st.binary(max_size=3)) + line[position + draw(st.integers(0, 1)) :]
    return (
        draw(st.sampled_from([b"", b"", b" ", b"\t"]))
        + line.replace(b"\n", b" ")
        + draw(st.sampled_from([b"", b"", b" ", b"\r"]))
    )


TAKEN_AT = datetime(2025, 11, 15, 10, 30, tzinfo=UTC)


def first_verdict(line: bytes) -> tuple[Any, ...] | None:
    """What the rule book says, in the units of the recount."""
    verdict = read_line(line, TAKEN_AT + timedelta(minutes=5))
    if isinstance(verdict, Rejected):
        return None
    name, moment, organization, key, cost, synapses, neurons, *others = verdict
    microseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    amounts = (int(cost.scaleb(12)), int(synapses.scaleb(6)), int(neurons.scaleb(6)))
    day = microseconds // DAY_MICROSECONDS
    of_mapped_formats = ("deployed_model", "provider", "most_complete")
    return day, organization, name, microseconds, key, *amounts, *others[: -len(of_mapped_formats)]


@pytest.fixture(scope="module")
def lonely_line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("line") / "a.jsonl"


@settings(max_examples=int(os.environ.get("KEYTALLY_EXAMPLES", "1000")), deadline=None)
@given(line=adversarial_lines())
@example(line=b'{"request_id": "a"}')
@example(line=b" \t")
@example(line=b"\r")
@example(line=b'"' + b"x" * LINE_BYTES + b'"')
@example(line=json.dumps(request(pad="x" * (LINE_BYTES - len(json.dumps(request(pad="")))))).encode())
@example(line=json.dumps(request(pad="x" * (LINE_BYTES - len(json.dumps(request(pad=""))) + 1))).encode())
def test_the_two_rule_books_agree_on_every_line(lonely_line: Path, line: bytes) -> None:
    lonely_line.write_bytes(line + b"\n")
    with lonely_line.open("rb", buffering=0) as raw:
        second = list(requests_in(raw, ".jsonl", TAKEN_AT, lonely_line.stat().st_size))
    bare = line.removesuffix(b"\r")
    expected = [] if is_blank(bare) else [first_verdict(bare)]
    assert [verdict if verdict is None else tuple(verdict[:-1]) for verdict in second] == expected
