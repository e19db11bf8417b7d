"""Formats: one SQL file maps a log; it can be wrong in many ways, and can read nothing but its records."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import mapping, tabular
from pipeline.errors import FormatRefused
from pipeline.format import formats_of, read_format
from pipeline.mapping import MappedRecords
from pipeline.quarantine import Quarantine
from pipeline.reconcile import reconcile
from pipeline.run import start_run
from pipeline.status import status_of
from tests.conftest import Place, lines, request

CASES = Path(__file__).parent / "cases"
FORMATS = Path(__file__).parent.parent / "pipeline" / "formats"
HEADER = "-- reads: jsonl, parquet, csv\n-- prices: book\n-- units: tokens\n"
COLUMNS = {
    "line": "line",
    "request_id": "record->>'request_id'",
    "timestamp": "record->>'timestamp'",
    "organization_id": "record->>'organization_id'",
    "api_key_id": "record->>'api_key_id'",
    "cost": "record->>'cost'",
    "synapses": "record->>'synapses'",
    "neurons": "record->>'neurons'",
    "model": "record->>'model'",
    "endpoint": "record->>'endpoint'",
    "status": "record->>'status'",
    "input_tokens": "record->>'input_tokens'",
    "output_tokens": "record->>'output_tokens'",
}


def sql(source: str = "records", header: str = HEADER, **columns: str | None) -> str:
    """A format that takes every field as it stands; a column given as None is left out."""
    given = {**COLUMNS, **columns}
    return (
        f"{header}select {', '.join(f'{what} as {name}' for name, what in given.items() if what is not None)}"
        f" from {source}"
    )


def write_format(place: Place, name: str, text: str) -> None:
    place.layout.formats.mkdir(exist_ok=True)
    (place.layout.formats / f"{name}.sql").write_text(text)


# --- the header ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("select 1", "does not say '-- reads: ...'"),
        ("-- reads: jsonl\n-- prices: book\nselect 1\n-- units: tokens", "does not say '-- units: ...'"),
        ("-- reads: xml\n-- prices: book\n-- units: tokens\n", "reads 'xml', but may read jsonl, parquet, csv"),
        ("-- reads: csv\n-- prices: free\n-- units: tokens\n", "'-- prices: free', but may say record or book"),
        ("-- reads: csv\n-- prices: book\n-- units: tokens\n-- currency: euro\n", "three capital letters"),
        ("-- reads: csv\n-- price: book\n-- units: tokens\n", "'-- price:', which is none of reads"),
        ("-- reads: csv\n-- prices: book\n-- prices: record\n-- units: tokens\n", "'-- prices:' twice"),
        (
            "-- reads: csv\n-- prices: book\n-- units: tokens\n-- csv: bars\n",
            "'-- csv: bars', but may say commas, semi",
        ),
        ("-- reads: csv\n-- prices: book\n-- units: tokens\n-- csv: tabs, x\n", "behind it ', decimal commas'"),
        ("-- reads: csv\n-- prices: book\n-- units:\n", "'-- units:' and nothing behind it"),
    ],
)
def test_a_header_is_read_strictly(place: Place, text: str, problem: str) -> None:
    write_format(place, "mine", text)
    place.write_raw("mine/a.jsonl", request(1))
    place.write_raw("b.jsonl", request(2))
    report = place.roll_up()
    (held,) = report.held_back
    assert held.file == "mine/a.jsonl"
    assert held.reason.startswith("format: formats/mine.sql ")
    assert problem in held.reason
    assert report.published, "everything else is published"
    assert report.has_findings


def test_every_shipped_format_says_what_it_reads_and_what_it_rounds(place: Place) -> None:
    shipped = formats_of(place.store)
    assert {"litellm", "nginx", "otel-genai", "csv"} == set(shipped)
    for format in shipped.values():
        assert format.problem is None
        assert "-- rounds: " in format.text
        assert format.name == "csv" or "-- producer: " in format.text
        MappedRecords(format).close()


def test_the_format_on_the_page_works() -> None:
    page = (Path(__file__).parent.parent / "docs/formats.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("```sql\n")
    text, _, _ = rest.partition("```")
    ready = MappedRecords(read_format("house", text))
    record = {"id": "1", "started": "2025-11-10T12:00:00Z", "caller": {"tenant": "org"}, "cents": 12.5, "tokens_in": 3}
    (made,) = ready.requests_of([1], pa.array([json.dumps(record)])).to_pylist()
    assert (made["organization_id"], made["cost"], made["input_tokens"]) == ("org", "0.125000000000", "3")
    cents = ("0", "100", "1000", "100.5", "0.01", "10")
    whole = pa.array([json.dumps({**record, "cents": json.loads(amount)}) for amount in cents])
    made = ready.requests_of(list(range(len(cents))), whole).to_pylist()
    assert [f"{Decimal(row['cost']).normalize():f}" for row in made] == ["0", "1", "10", "1.005", "0.0001", "0.1"]
    ready.close()


@pytest.mark.parametrize(
    ("outcome", "code", "status"),
    [
        ("success", "", "200"),
        ("failure", "429", "429"),
        ("failure", "context_length_exceeded", "500"),
        ("failure", "", "500"),
    ],
)
def test_a_failed_request_of_litellm_counts_as_one_whatever_its_code(outcome: str, code: str, status: str) -> None:
    ready = MappedRecords(read_format("litellm", (FORMATS / "litellm.sql").read_text(encoding="utf-8")))
    record = json.loads((CASES / "litellm/log.jsonl").read_text().splitlines()[0])
    record.update(status=outcome, error_information={"error_code": code})
    (made,) = ready.requests_of([1], pa.array([json.dumps(record)])).to_pylist()
    assert made["status"] == status
    ready.close()


# --- what its SQL may be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *(
            (sql(**{name: None}), f"no column {name}")
            for name in COLUMNS
            if name not in ("cost", "synapses", "neurons")
        ),
        (sql(header=HEADER.replace("book", "record"), cost=None), "no column cost"),
        (sql(header=HEADER.replace("tokens", "record"), neurons=None), "no column neurons"),
        (sql(modell="1"), "column modell, which no request has"),
        (sql(model="'a' as MODEL, 'b'"), "gives column model twice"),
        (sql(cost="record->'cost'"), "JSON as column cost: write ->>"),
        (sql(cost="1.5::double"), "DOUBLE as column cost"),
        (sql(cost="1.5::float"), "FLOAT as column cost: it is not exact"),
        (sql(status="true"), "BOOLEAN as column status: cast it to bigint"),
        (sql(input_tokens="1.5::double"), "DOUBLE as column input_tokens: cast it to bigint"),
        (sql(output_tokens="2 * 1.5"), "as column output_tokens: cast it to bigint"),
        (sql(status="record->'status'"), "JSON as column status: write ->>"),
        (sql(model="json_extract_text(record, 'model')"), "the function json_extract_text, which there is not, or"),
        (sql(timestamp="make_timestamp(0)"), "TIMESTAMP as column timestamp: it carries no time zone"),
        (sql(line="'1'"), "VARCHAR as column line"),
        (sql(model="nothing"), "is no SQL that works: Binder Error"),
        (HEADER + "selec 1", "is no select statement"),
        (HEADER, "must be one select statement"),
    ],
)
def test_sql_that_does_not_give_the_native_columns_is_refused_by_the_column(text: str, says: str) -> None:
    with pytest.raises(FormatRefused, match=r"^formats/mine\.sql ") as refused:
        MappedRecords(read_format("mine", text))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        sql("records, read_text('/etc/passwd')"),
        sql("'/etc/passwd' as records"),
        sql("read_json('/etc/passwd') as records"),
        sql("records, glob('/*')"),
        sql("records, duckdb_settings()"),
        sql("records, query('select 1')"),
        sql("records, query_table('records')"),
        sql("records, information_schema.tables"),
        sql("records, (describe records)"),
        sql("records, pg_catalog.pg_class"),
        sql(model="getenv('HOME')"),
        sql(model="current_setting('memory_limit')"),
        sql(model="(select value from duckdb_settings() limit 1)"),
        sql(model="cast(now() as varchar)"),
        sql(model="cast(current_timestamp as varchar)"),
        sql(model="cast(today() as varchar)"),
        sql(model="cast(random() as varchar)"),
        sql(model="cast(uuid() as varchar)"),
        sql(model="cast(ago(interval 1 day) as varchar)"),
        sql(model="current_user"),
        sql(model="getvariable('x')"),
        sql(model="current_query()"),
        sql(model="write_log('x')"),
        # Of these DuckDB's own catalog says that they depend on nothing else.
        sql(model="cast(current_localtime() as varchar)"),
        sql(model="cast(current_localtimestamp() as varchar)"),
        sql(model="cast(age(timestamp '2025-11-10') as varchar)"),
        sql(model="version()"),
        sql(model="(select cast(reservoir_quantile(x, 0.5, 1) as varchar) from range(9) t(x))"),
        sql("records tablesample 50%"),
        sql("records using sample 1"),
        sql("(select * from records tablesample reservoir(1 rows)) as records"),
        sql() + "; select 1",
        f"{HEADER}copy (select 1) to '/tmp/keytally-test-copied'",
        f"{HEADER}attach '/tmp/keytally-test-attached'",
        f"{HEADER}install httpfs",
        f"{HEADER}set memory_limit = '100GB'",
        f"{HEADER}create table t as select 1",
        f"{HEADER}pragma version",
        f"{HEADER}call pragma_version()",
    ],
)
def test_sql_can_read_nothing_but_its_records(text: str) -> None:
    with pytest.raises(FormatRefused) as refused:
        MappedRecords(read_format("mine", text))
    assert any(says in str(refused.value) for says in ("reads ", "is no select", "one select")), refused.value


@pytest.mark.parametrize(
    "text",
    [
        sql("records, read_text('{file}')"),
        sql("records, '{file}' as other"),
        sql(model="(select max(file) from glob('{file}'))"),
        sql("records, lines_of_python"),
    ],
)
def test_the_database_of_a_format_has_no_way_out_whatever_its_syntax(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    """What looks at the syntax might miss what the next release of DuckDB can say."""
    lines_of_python = pa.table({"line_of_python": [1]})
    assert len(lines_of_python) == 1
    file = tmp_path / "secret.csv"
    file.write_text("a,b\n1,2\n")
    monkeypatch.setattr(mapping, "_foreign", lambda *_: None)
    with pytest.raises(FormatRefused, match=r"is no SQL that works: (Permission|Catalog) Error"):
        MappedRecords(read_format("mine", text.replace("{file}", str(file))))


def test_python_s_own_tables_are_no_tables_of_a_format() -> None:
    lines_of_python = pa.table({"line": [1]})
    assert len(lines_of_python) == 1
    with pytest.raises(FormatRefused, match="the table lines_of_python"):
        MappedRecords(read_format("mine", sql("records, lines_of_python")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (sql("records, range(10000000)"), "makes more than"),
        (sql("records, (select count(*) from range(1000000000000))"), "takes longer than 1 s"),
        (sql(model="(select string_agg(x::varchar, ',') from range(100000000) t(x))"), "takes "),
        (sql(line="line + 7"), "gives other numbers as column line"),
        (sql(status="cast(record->>'status' as integer)"), "fails at line 3: Conversion Error"),
    ],
)
def test_sql_that_goes_wrong_at_work_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    if says.startswith("takes"):
        monkeypatch.setattr(mapping, "SECONDS", 1.0)
    records = [json.dumps(request(number, status="sk-secret" if number == 3 else "200")) for number in (1, 2, 3, 4)]
    ready = MappedRecords(read_format("mine", text))
    with pytest.raises(FormatRefused) as refused:
        ready.requests_of([1, 2, 3, 4], pa.array(records))
    assert says in str(refused.value)
    assert "sk-secret" not in str(refused.value), "an error repeats no value: it may be a key"
    ready.close()


def test_what_sql_makes_is_in_order_of_line_whatever_its_own_order() -> None:
    ready = MappedRecords(read_format("mine", sql("records order by line desc")))
    made = ready.requests_of([1, 2, 3], pa.array([json.dumps(request(number)) for number in (1, 2, 3)]))
    ready.close()
    assert list(zip(*made.select(["line", "request_id"]).to_pydict().values(), strict=True)) == [
        (1, "req_1"),
        (2, "req_2"),
        (3, "req_3"),
    ]


def test_what_sql_makes_is_the_same_in_every_time_zone() -> None:
    text = sql(timestamp="cast('2025-11-10 12:00:00Z' as timestamptz)")
    code = (
        "import pyarrow as pa; from pipeline.format import read_format; from pipeline.mapping import MappedRecords;"
        f"ready = MappedRecords(read_format('mine', {text!r}));"
        "print(ready.requests_of([1], pa.array(['{}']))['timestamp'][0]); ready.close()"
    )
    environment = {**os.environ, "TZ": "Asia/Tokyo"}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert made.stdout == "2025-11-10T12:00:00.000000Z\n"


def test_records_that_do_not_fit_together_are_mapped_a_few_at_a_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export of spans that was taken apart in the dearest way: each span carries all others along."""
    monkeypatch.setattr(mapping, "MEMORY_BYTES", 64 * 2**20)
    wide = "(select line, record, unnest(json_extract(record, '$.calls[*]')) as call from records)"
    columns = {name: f"coalesce(call->>'{name}', record->>'{name}')" for name in list(COLUMNS)[1:]}
    write_format(place, "mine", sql(wide, **columns))
    calls = [{"request_id": f"call {number}", "pad": "x" * 1_000} for number in range(400)]
    place.write_raw("mine/a.jsonl", *(request(organization_id=f"org_{line}", calls=calls) for line in range(8)))
    assert not place.roll_up().held_back
    assert place.ledger().files["mine/a.jsonl"].take_in.accepted == 8 * 400
    assert_reconciled(place)


def test_a_batch_of_very_short_records_is_mapped_like_any_other(place: Place) -> None:
    write_format(place, "mine", sql())
    place.write_raw("mine/a.jsonl", b"{}\n" * 250_000 + lines(request(1)))
    place.roll_up()
    taken = place.ledger().files["mine/a.jsonl"].take_in
    assert (taken.lines, taken.accepted) == (250_001, 1)
    assert place.rejected("mine/a.jsonl")[-1] == (250_000, "not_this_format")


# --- the same rules after the mapping --------------------------------------------------------------------------------

values = st.one_of(
    st.sampled_from(
        ["0.5", "1e-3", "-1", "1_000", "", "123456.123456789012", "0.1234567890123", "1e400", " 1", "org_a"]
    ),
    st.sampled_from(["200", "99", "600", "-5", "007", "9223372036854775808", "2e2", "1.0", "null", "true"]),
    st.sampled_from(["2025-11-10T12:00:00Z", "2025-11-10 12:00:00Z", "2031-01-01T00:00:00Z", "2025-12-01T00:00:00Z"]),
    st.sampled_from(["a\nb", "é🧾", "x" * 129, "x" * 257, '"', "\x7f"]),
    st.integers(-2, 700),
    st.none(),
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.dictionaries(st.sampled_from([*COLUMNS][1:]), values, max_size=2), min_size=20, max_size=80),
    st.sampled_from(["book", "record"]),
    st.sampled_from(["tokens", "record"]),
)
def test_the_bulk_read_the_second_look_and_the_recount_agree_on_mapped_records(
    tmp_path_factory: pytest.TempPathFactory, changes: list[dict[str, Any]], prices: str, units: str
) -> None:
    header = f"-- reads: jsonl\n-- prices: {prices}\n-- units: {units}\n-- currency: USD\n"
    taken = []
    records = [{**request(number), **change} for number, change in enumerate(changes)]
    for few_bytes in (0, 10**9):  # all in bulk first, or plain Python alone
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.judge.FEW_BYTES", few_bytes)
            place = Place(tmp_path_factory.mktemp("mapped") / "data")
            write_format(place, "mine", sql(header=header))
            place.write_raw("mine/a.jsonl", *records)
            place.roll_up()
        if not few_bytes:
            assert_reconciled(place)
        events = sorted(map(repr, place.events("mine/a.jsonl")))
        taken.append((events, place.rejected("mine/a.jsonl")))
    assert taken[0] == taken[1]
    assert len(taken[0][0]) + len(taken[0][1]) == len(records)


def assert_reconciled(place: Place) -> None:
    with start_run(place.settings, lambda: place.now) as run:
        found = reconcile(run, date(2020, 1, 1), date(2030, 12, 31))
    assert found.equal, [difference.as_json() for difference in found.differences]


@pytest.mark.parametrize("few_bytes", [0, 10**9])
def test_a_cost_may_be_absent_only_where_the_book_prices_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, few_bytes: int
) -> None:
    monkeypatch.setattr("pipeline.judge.FEW_BYTES", few_bytes)
    write_format(place, "book", sql())
    write_format(place, "record", sql(header=HEADER.replace("book", "record")))
    for format in ("book", "record"):
        place.write_raw(f"{format}/a.jsonl", request(f"{format} 1", cost=None), request(f"{format} 2", cost="0.1"))
    place.roll_up()
    assert sorted((row["cost"] is None, row["synapses"]) for row in place.events("book/a.jsonl")) == [
        (False, None),
        (True, None),
    ]
    assert place.rejected("record/a.jsonl") == [(1, "missing_field")]
    assert_reconciled(place)


def test_a_currency_is_that_of_the_cost(place: Place) -> None:
    write_format(place, "mine", sql(header=f"{HEADER}-- currency: USD\n"))
    place.write_raw("mine/a.jsonl", request(1, cost=None), request(2, cost="0.1"))
    place.roll_up()
    assert sorted((str(row["cost"]), row["currency"]) for row in place.events("mine/a.jsonl")) == [
        ("0.100000000000", "USD"),
        ("None", None),
    ]


def test_a_cost_is_rounded_half_even_by_the_format_of_litellm(place: Place) -> None:
    record = json.loads((CASES / "litellm/log.jsonl").read_text().splitlines()[0])
    costs = {
        "2.1000000000000002e-05": "0.000021",
        "0.0000000000005": "0",
        "0.0000000000015": "0.000000000002",
        "0.0000000000025": "0.000000000002",
        "1e-13": "0",
        "999999.9999999999": "999999.9999999999",
    }
    texts = [
        json.dumps({**record, "id": cost, "response_cost": 77.5}).replace("77.5", cost) for cost in (*costs, "-1e-13")
    ]
    place.now = place.now.replace(year=2027)
    place.write_raw("litellm/a.jsonl", *texts)
    place.roll_up()
    found = {row["request_id"].rpartition("/")[2]: row["cost"] for row in place.events("litellm/a.jsonl")}
    assert found == {cost: Decimal(exact) for cost, exact in costs.items()}
    assert place.rejected("litellm/a.jsonl") == [(7, "negative_amount")], "a tiny negative cost does not become 0"
    assert_reconciled(place)


# --- lines, and what they hold ---------------------------------------------------------------------------------------


def test_a_record_without_a_request_is_quarantined_unless_the_format_skips_some(place: Place) -> None:
    write_format(place, "strict", sql("records where record->>'kind' = 'call'"))
    write_format(place, "skips", sql("records where record->>'kind' = 'call'", header=f"{HEADER}-- skips: others\n"))
    for format in ("strict", "skips"):
        place.write_raw(f"{format}/a.jsonl", request(f"{format} 1", kind="call"), request(2, kind="ping"), "bad")
    place.roll_up()
    assert place.rejected("strict/a.jsonl") == [(2, "missing_field"), (3, "not_json")]
    assert place.rejected("skips/a.jsonl") == [(3, "not_json")]
    taken = place.ledger().files["skips/a.jsonl"].take_in
    assert (taken.lines, taken.accepted, taken.quarantined, taken.skipped) == (3, 1, 1, 1)
    assert_reconciled(place)


def test_what_one_parser_takes_for_json_and_another_does_not_costs_no_other_line(place: Place) -> None:
    write_format(place, "mine", sql())
    place.write_raw(
        "mine/a.jsonl",
        request(1),
        json.dumps(request(2, prompt="half \ud83e")),
        '{"request_id":',
        '"x"}',
        '{"a": NaN}',
        b"\xff",
        json.dumps(request(3))[:-1] + ', "deep": ' + "[" * 5_000 + "]" * 5_000 + "}",
        '{"request_id": "req_4"} {}',
        json.dumps(request(5)) + " ",
        json.dumps(request(6, prompt="half \ud83e"))[:-1] + ', "number": ' + "9" * 5_000 + ', "request_id": "again"}',
    )
    place.roll_up()
    ids = sorted(row["request_id"] for row in place.events("mine/a.jsonl"))
    assert ids == ["req_1", "req_2", "req_3", "req_5", "req_6"]
    assert place.rejected("mine/a.jsonl") == [
        (3, "not_json"),
        (4, "not_json"),
        (5, "not_this_format"),
        (6, "not_json"),
        (8, "not_json"),
    ]
    assert_reconciled(place)


def test_rows_of_parquet_are_records_of_a_format(place: Place) -> None:
    write_format(place, "mine", sql(organization_id="record->>'$.who.org'", input_tokens="record->>'tokens'"))
    moment = pa.array([1762776000 * 10**9 + 1], pa.timestamp("ns", "UTC"))
    table = pa.table(
        {
            "request_id": ["é"],
            "timestamp": moment,
            "who": [{"org": "org_p"}],
            "api_key_id": pa.array([b"key"], pa.binary()),
            "cost": pa.array([Decimal("0.123456789012")], pa.decimal128(18, 12)),
            "tokens": [7],
        }
    )
    (place.layout.raw / "mine").mkdir()
    pq.write_table(table, place.layout.raw / "mine/a.parquet")
    place.roll_up()
    (event,) = place.events("mine/a.parquet")
    assert (event["organization_id"], event["api_key_id"], event["cost"]) == ("org_p", "key", Decimal("0.123456789012"))
    assert (event["input_tokens"], event["timestamp"].timestamp()) == (7, 1762776000)
    assert_reconciled(place)


def test_a_moment_that_python_has_not_costs_no_other_row(place: Place) -> None:
    write_format(place, "mine", sql())
    far, near = 2**62, 1762776000 * 10**6
    columns = {name: [value] * 2 for name, value in request(1).items()} | {"request_id": ["1", "2"]}
    odd = {
        "timestamp": {"timestamp": pa.array([far, near], pa.timestamp("us", "UTC"))},
        "unused": {"expires": pa.array([2**30, 1], pa.date32())},
        "zone": {"expires": pa.array([1, 2], pa.timestamp("us", "Mars/Olympus"))},
    }
    (place.layout.raw / "mine").mkdir()
    for name, more in odd.items():
        ids = [f"{name} 1", f"{name} 2"]
        pq.write_table(pa.table({**columns, "request_id": ids, **more}), place.layout.raw / f"mine/{name}.parquet")
    (held,) = place.roll_up().held_back
    assert (held.file, "Mars/Olympus" in held.reason) == ("mine/zone.parquet", True)
    assert [row["request_id"] for row in place.events("mine/timestamp.parquet")] == ["timestamp 2"]
    assert place.rejected("mine/timestamp.parquet") == [(1, "bad_timestamp")]
    assert len(place.events("mine/unused.parquet")) == 2
    assert_reconciled(place)


@pytest.mark.parametrize("case", ["litellm", "litellm_rejected_key", "nginx", "otel_genai", "csv", "own_format"])
def test_what_a_format_made_is_what_the_recount_makes_of_it(place: Place, case: str) -> None:
    place.now = place.now.replace(year=2027)
    for path in (CASES / case).iterdir():
        folder = {"otel_genai": "otel-genai", "own_format": "house"}.get(case, case.partition("_")[0])
        if path.suffix == ".sql":
            write_format(place, path.stem, path.read_text())
        elif path.suffix == ".jsonl" or (case == "csv" and path.suffix == ".csv" and "expected" not in path.name):
            place.write_raw(f"{folder}/{path.name}.gz", gzip.compress(path.read_bytes()))
    place.layout.prices.write_bytes((CASES / "otel_genai/prices.csv").read_bytes())
    place.layout.rates.write_bytes((CASES / "otel_genai/fx.csv").read_bytes())
    report = place.roll_up()
    assert not report.held_back
    assert report.ingested
    assert_reconciled(place)


def test_a_pipeline_that_maps_wrong_is_found_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.now = place.now.replace(year=2027)
    monkeypatch.setattr("pipeline.judge.FEW_BYTES", 0)
    read = mapping.statement

    def wrongly(name: str) -> str:
        return read(name).replace("exact_cost as cost", "exact_cost * 2 as cost") if name == "accept" else read(name)

    monkeypatch.setattr("pipeline.engine.statement", wrongly)
    place.write_raw("litellm/a.jsonl", (CASES / "litellm/log.jsonl").read_bytes())
    place.layout.rates.write_text("day,from,to,rate\n2026-11-22,USD,CHF,0.8045\n", encoding="utf-8")
    place.roll_up()
    with start_run(place.settings, lambda: place.now) as run:
        assert not reconcile(run, date(2026, 11, 1), date(2026, 11, 30)).equal


# --- a format that changes -------------------------------------------------------------------------------------------


def test_a_changed_format_takes_its_files_in_anew_and_no_others(place: Place) -> None:
    write_format(place, "mine", sql())
    place.write_raw("mine/a.jsonl", request(1))
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    write_format(place, "mine", sql(organization_id="'org_other'"))
    (waiting,) = status_of(place.store, place.now, place.settings).waiting
    assert (waiting.raw_file.file, waiting.why) == ("mine/a.jsonl", "rules changed")
    report = place.roll_up()
    assert [entry.file for entry in report.ingested] == ["mine/a.jsonl"]
    assert place.usage() == {
        ("org_a", "2025-11-10"): (1, Decimal("0.25")),
        ("org_other", "2025-11-10"): (1, Decimal("0.25")),
    }
    assert place.roll_up().version == report.version
    assert_reconciled(place)


def test_a_format_that_breaks_leaves_what_its_files_were_made_into(place: Place) -> None:
    write_format(place, "mine", sql())
    place.write_raw("mine/a.jsonl", request(1))
    place.roll_up()
    write_format(place, "mine", sql(request_id=None))
    place.write_raw("b.jsonl", request(2, organization_id="org_b"))
    report = place.roll_up()
    assert "no column request_id" in report.held_back[0].reason
    assert {organization for organization, _ in place.usage()} == {"org_a", "org_b"}
    assert status_of(place.store, place.now, place.settings).held_back[0].file == "mine/a.jsonl"
    write_format(place, "mine", sql())
    assert not place.roll_up().held_back


def test_a_format_that_is_gone_leaves_what_its_files_were_made_into(place: Place) -> None:
    write_format(place, "mine", sql())
    kept = place.write_raw("mine/a.jsonl", request(1))
    place.write_raw("native/a.jsonl", request(9))
    place.roll_up()
    before = place.usage()
    (place.layout.formats / "mine.sql").unlink()
    place.write_raw("mine/b.jsonl", request(2))
    place.write_raw("native/b.jsonl", request(8))
    report = place.roll_up()
    both = ["mine/a.jsonl", "mine/b.jsonl"]
    assert [held.file for held in report.held_back] == both
    assert report.held_back[0].reason.startswith("format: formats/mine.sql is gone")
    assert (report.has_findings, report.replaced) == (True, [])
    assert place.usage()["org_a", "2025-11-10"] == (before["org_a", "2025-11-10"][0] + 1, Decimal("0.75"))
    assert [held.file for held in status_of(place.store, place.now, place.settings).held_back] == [
        "mine/a.jsonl",
        "mine/b.jsonl",
    ]
    assert_reconciled(place)
    (place.layout.raw / "elsewhere").mkdir()
    kept.rename(place.layout.raw / "elsewhere/a.jsonl")
    assert [held.file for held in place.roll_up().held_back] == ["mine/b.jsonl"]
    write_format(place, "mine", sql())
    report = place.roll_up()
    assert (report.held_back, [day.request_id for day in report.disagreeing]) == ([], ["req_1"]), "read in two formats"
    assert place.usage()["org_a", "2025-11-10"] == (4, Decimal("1.0"))


def test_files_below_a_folder_that_is_no_format_are_native_until_it_is_one(place: Place) -> None:
    place.write_raw("mine/a.jsonl", request(1))
    place.write_raw("deep/mine/a.jsonl", request(2))
    place.roll_up()
    assert place.usage() == {("org_a", "2025-11-10"): (2, Decimal("0.5"))}
    write_format(place, "mine", sql(organization_id="'org_mapped'"))
    place.roll_up()
    assert {organization for organization, _ in place.usage()} == {"org_a", "org_mapped"}


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_no_rejected_key_is_found_in_anything_of_ours(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.now = place.now.replace(year=2027)
    (line,) = (CASES / "litellm_rejected_key/log.jsonl").read_text().splitlines()
    counted = line.replace('"user_api_key_org_id": null', '"user_api_key_org_id": "org"')
    assert "bad-key" in counted
    assert counted != line
    place.write_raw("litellm/a.jsonl", line, counted, line[:-1], line + "\xff", line.replace("1795", '"x'))
    place.roll_up()
    shown = list(Quarantine(place.store).lines())
    assert [each.line for each in shown] == [1, 3, 4, 5]
    assert isinstance(shown[0].record, dict)
    assert shown[0].record["api_key_id"].startswith("sha256:8a891cac40cbb2b8")
    assert shown[0].text == line.replace("bad-key", "(masked)")[:2_000]
    for cut in shown[1:3]:  # no JSON: what the format reads is masked, for any of it may be the key
        assert cut.record is None
        assert '"user_api_key_hash": "(masked)", "user_api_key_alias": null' in (cut.text or "")
        assert '"model_group": "(masked)"' in (cut.text or "")
        assert '"user_agent": "acme-batch/1.2"' in (cut.text or "")
    (event,) = place.events("litellm/a.jsonl")
    assert event["api_key_id"] == "sha256:8a891cac40cbb2b854a9835e52fcff621814a6ab21efbf54fe7ddee49fc02793"
    written = [path.read_bytes() for path in place.layout.root.rglob("*") if path.is_file() and "raw" not in path.parts]
    assert not any(b"bad-key" in content for content in written)
    assert "bad-key" not in json.dumps([vars(each) for each in shown]) + caplog.text


def test_the_quarantine_shows_a_line_and_what_the_sql_made_of_it(place: Place) -> None:
    write_format(place, "mine", sql())
    place.write_raw("mine/a.jsonl", request(1), request(2, organization_id=None, model="m"))
    place.roll_up()
    (shown,) = Quarantine(place.store).lines()
    assert json.loads(shown.text or "") == request(2, organization_id=None, model="m")
    assert shown.record == {
        "request_id": "req_2",
        "timestamp": "2025-11-10T12:00:00Z",
        "api_key_id": "key_1",
        "cost": "0.25",
        "model": "m",
    }


def test_what_no_format_reads_is_ignored_and_status_says_why(place: Place) -> None:
    write_format(place, "table", sql(header=HEADER.replace("jsonl, parquet, csv", "csv")))
    for file in ("a.csv", "litellm/a.csv.gz", "table/a.jsonl", "notes.txt"):
        place.write_raw(file, b"x")
    ignored = status_of(place.store, place.now, place.settings).ignored
    assert list(ignored) == ["a.csv", "litellm/a.csv.gz", "notes.txt", "table/a.jsonl"]
    assert "below the folder of a format that says '-- reads: csv'" in ignored["a.csv"]
    assert ignored["litellm/a.csv.gz"] == (
        "the format litellm reads .jsonl, .ndjson and .json (also with .gz or .zst), .parquet"
    )
    assert ignored["table/a.jsonl"] == "the format table reads .csv, .csv.gz"


# --- csv -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(place: Place) -> Iterator[Place]:
    write_format(place, "table", sql(request_id="'line ' || line || ' ' || (record->>'a')", cost="'1'"))
    yield place


def taken_from(place: Place, content: bytes) -> tuple[list[str], list[tuple[int, str]]]:
    head = b"organization_id,timestamp,api_key_id,a\n"
    place.write_raw("table/a.csv", head + content)
    place.roll_up()
    found = place.ledger().files["table/a.csv"]
    return (
        sorted(row["request_id"] for row in place.events("table/a.csv")) if found.take_in.events else [],
        place.rejected("table/a.csv"),
    )


ROW = b"org,2025-11-10T12:00:00Z,key,"


@pytest.mark.parametrize(
    ("content", "accepted", "rejected"),
    [
        (ROW + b'"b\r\nb"\r\n' + ROW + b"c", ["line 4 c"], [(2, "bad_id")]),
        (ROW + b'"x, ""y"""\n', ['line 2 x, "y"'], []),
        (ROW + b'"open\n' + ROW + b"c\n", ["line 3 c"], [(2, "not_an_object")]),
        (ROW + b'5" pipe\n' + ROW + b"c\n", ["line 3 c"], [(2, "not_an_object")]),
        (ROW + b'"a" b\n' + ROW + b"c\n", ["line 3 c"], [(2, "not_an_object")]),
        (b"\n \t\n" + ROW + b"c\n", ["line 4 c"], []),
        (b"x" * 3 * 2**20 + b"\n" + ROW + b"c\n", ["line 3 c"], [(2, "line_too_long")]),
        (ROW + b'"' + b"y" * 3 * 2**20 + b"\n" + ROW + b"c\n", ["line 3 c"], [(2, "line_too_long")]),
        (ROW + b"\xff\n" + ROW + b"c", ["line 2 \ufffd", "line 3 c"], []),
        (b"", [], []),
    ],
)
def test_a_bad_row_of_csv_costs_itself_alone(
    table: Place,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    accepted: list[str],
    rejected: list[tuple[int, str]],
) -> None:
    monkeypatch.setattr(tabular, "MAX_MAPPED_LINE_BYTES", 2**20)
    assert taken_from(table, content) == (accepted, rejected)
    assert_reconciled(table)


def test_a_csv_file_without_a_header_is_held_back(table: Place) -> None:
    table.write_raw("table/a.csv", b",,\n1,2,3\n")
    (held,) = table.roll_up().held_back
    assert held.reason == "unreadable: its first line names no columns"


COLUMNS_OF_CSV = "request_id;timestamp;organization_id;api_key_id;cost;model\n"
PRICED = "2025-11-10T12:00:00Z;org_a;key_1;"


@pytest.mark.parametrize("first", ["", "sep=;\n", "\n \n", "\ufeff"])
def test_a_csv_with_semicolons_and_decimal_commas_is_read_as_its_format_says(place: Place, first: str) -> None:
    columns = {"synapses": "null", "neurons": "null", "endpoint": "null", "status": "null"}
    columns |= {"input_tokens": "null", "output_tokens": "null"}
    write_format(place, "table", sql(header=f"{HEADER}-- csv: semicolons, decimal commas\n", **columns))
    rows = [f"1;{PRICED}0,0021;a,b", f'2;{PRICED}"1,5";"x;y"', f"3;{PRICED}1.234,56;m", f"4;{PRICED}-;m"]
    rows += [f"5;{PRICED}1.000;1.000", f"6;{PRICED}1.00,5;m"]
    place.write_raw("table/a.csv", (first + COLUMNS_OF_CSV + "\n".join(rows)).encode())
    place.roll_up()
    assert [(row["request_id"], str(row["cost"]), row["model"]) for row in place.events("table/a.csv")] == [
        ("1", "0.002100000000", "a,b"),
        ("2", "1.500000000000", "x;y"),
        ("3", "1234.560000000000", "m"),
        ("5", "1000.000000000000", "1000"),
    ]
    header = 1 + first.count("\n")
    assert place.rejected("table/a.csv") == [(header + 4, "bad_type"), (header + 6, "bad_type")]
    assert_reconciled(place)


@pytest.mark.parametrize(
    ("entry", "content", "why"),
    [
        ("", COLUMNS_OF_CSV, "its cells are separated by semicolons, but its format does not say '-- csv: semicolons'"),
        ("", COLUMNS_OF_CSV.replace("cost", "cost, total"), "separated by semicolons, but its format does not say"),
        ("", COLUMNS_OF_CSV.replace(";", "\t"), "its cells are separated by tabs, but its format does not say"),
        (
            "semicolons",
            COLUMNS_OF_CSV.replace(";", ","),
            "separated by commas, but its format says '-- csv: semicolons'",
        ),
    ],
)
def test_a_csv_with_another_separator_than_its_format_says_is_held_back(
    place: Place, entry: str, content: str, why: str
) -> None:
    write_format(place, "table", sql(header=HEADER + (f"-- csv: {entry}\n" if entry else "")))
    place.write_raw("table/a.csv", (content + f"1;{PRICED}0,5;m\n").encode())
    (held,) = place.roll_up().held_back
    assert why in held.reason


def test_a_csv_of_utf16_is_held_back_by_that_name(table: Place) -> None:
    table.write_raw("table/a.csv", "organization_id,timestamp,api_key_id,a\n".encode("utf-16"))
    (held,) = table.roll_up().held_back
    assert held.reason == "unreadable: the file is UTF-16; convert it to UTF-8"


def test_commas_that_a_format_names_are_not_questioned(place: Place) -> None:
    write_format(place, "table", sql(header=f"{HEADER}-- csv: commas\n"))
    head = "request_id,timestamp,organization_id,api_key_id,cost,a;b;c;d;e;f;g;h;i"
    place.write_raw("table/a.csv", f"{head}\n1,2025-11-10T12:00:00Z,org_a,key_1,0.5,x\n".encode())
    report = place.roll_up()
    assert (report.held_back, place.rejected("table/a.csv")) == ([], [])


def test_lines_stand_where_they_are_counted_however_large_the_file(table: Place) -> None:
    rows = b"".join(ROW + b"%d\n" % number for number in range(30_000))
    found, lost = taken_from(table, rows[: len(rows) // 2] + b"broken\n" + rows[len(rows) // 2 :])
    assert len(found) == 30_000 - (len(lost) - 1)
    assert {reason for _, reason in lost} == {"not_an_object"}
