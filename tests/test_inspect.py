"""The first five minutes: which format a log is in, what would come of it, and a draft where no format knows it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from pipeline import first_look
from pipeline.errors import KeytallyError
from pipeline.first_look import FirstLook, look_at
from pipeline.format import formats_of
from tests.conftest import Place, Record, lines, request
from tests.test_cli import data, keytally  # noqa: F401  # fixtures

CASES = Path(__file__).parent / "cases"
NOW = datetime(2026, 12, 1, tzinfo=UTC)

Keytally = Callable[..., Result]


@pytest.fixture
def look(place: Place) -> Callable[[Path], FirstLook]:
    return lambda path: look_at(path, formats_of(place.store), NOW)


Look = Callable[[Path], FirstLook]


@pytest.mark.parametrize(
    ("case", "format", "accepted", "count"),
    [
        ("litellm/log.jsonl", "litellm", 12, 14),
        ("nginx/access.jsonl", "nginx", 8, 10),
        ("otel_genai/gateway.jsonl", "otel-genai", 7, None),
        ("month_end/a.jsonl", "native", None, None),
        ("csv/crlf.csv", "csv", 2, 2),
    ],
)
def test_a_format_is_recognized_by_what_it_accepts(
    look: Look, case: str, format: str, accepted: int | None, count: int | None
) -> None:
    found = look(CASES / case)
    assert (found.format, found.whole) == (format, True)
    if accepted:
        assert found.accepted == accepted
    if count:
        assert found.lines == count
    rejected = sum(rejects.lines for rejects in found.rejected)
    assert found.accepted + rejected + sum(found.skipped.values()) == found.lines
    assert len(found.samples) == min(3, found.accepted)


def test_the_first_of_the_rejected_is_told_with_what_was_made_of_it(look: Look) -> None:
    (rejects,) = look(CASES / "litellm/log.jsonl").rejected
    assert (rejects.reason, rejects.field, rejects.lines) == ("missing_field", "organization_id", 2)
    assert rejects.first_line == 11
    assert rejects.made
    assert rejects.made["status"] == "401"
    assert "organization_id" not in rejects.made
    (refused,) = look(CASES / "litellm_rejected_key/log.jsonl").rejected
    assert "bad-key" not in json.dumps(vars(refused))


def test_the_mapping_tells_where_each_field_is_from(look: Look) -> None:
    fields = look(CASES / "litellm/log.jsonl").fields
    assert "metadata.user_api_key_org_id" in fields["organization_id"]
    assert "response_cost" in fields["cost"]
    assert "sha256(" in fields["api_key_id"]
    assert "metadata.user_api_key_hash" in fields["api_key_id"]
    spans = look(CASES / "otel_genai/gateway.jsonl").fields
    assert "gen_ai.request.model" in spans["model"]
    assert "list_position(names, 'keytally.organization_id')" in spans["organization_id"]
    assert "http_x_org_id" in look(CASES / "nginx/access.jsonl").fields["organization_id"]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
def test_a_log_that_no_format_knows_gets_a_draft_that_works(look: Look, tmp_path: Path, kind: str) -> None:
    records = [
        {
            "eventId": f"e{number}",
            "createdAt": 1_762_776_000_123 + number,
            "tenant": "acme",
            "apiKey": "sk-in-clear",
            "modelName": "mini",
            "statusCode": 200,
            "promptTokens": 3,
            "completionTokens": 4,
            "costUsd": 2.1000000000000002e-05,
        }
        for number in range(5)
    ]
    path = tmp_path / f"calls.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        rows = [",".join(records[0]), *(",".join(map(str, record.values())) for record in records)]
        content = lines(*records) if "jsonl" in kind else ("\n".join(rows) + "\n").encode()
        path.write_bytes(gzip.compress(content, mtime=0) if kind.endswith("gz") else content)
    found = look(path)
    assert (found.format, found.accepted, found.lines) == (None, 5, 5)
    assert f"-- reads: {kind.removesuffix('.gz')}\n" in found.text
    assert "-- currency: USD" in found.text
    sample = found.samples[0]
    assert (sample["timestamp"], sample["cost"], sample["status"]) == ("2025-11-10T12:00:00.123000Z", "0.000021", 200)
    assert sample["api_key_id"].startswith("sha256:"), "what may be a key in clear is hashed"
    assert "sk-in-clear" not in json.dumps(found.as_json())


def test_a_draft_names_the_candidates_in_order_and_what_it_has_not_found(look: Look, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines({"id": "1", "call_id": "2", "date": "2025-11-10 12:00:00", "meta": {"user": {"org": "o"}}}))
    text = look(path).text
    assert "-- request_id: or id\n    record->>'call_id' as request_id" in text
    assert "record->>'$.meta.user.org' as organization_id" in text
    assert "-- timestamp: says no time zone and is taken as UTC" in text
    assert "-- api_key_id: no field looks like it; null is an interactive session" in text


def test_a_draft_knows_what_is_named_by_its_object(look: Look, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    call = {
        **{"key": {"id": "k"}, "org": {"id": "acme", "name": "Acme Corp"}, "request": {"id": "1"}, "id": "no"},
        **{"start": {"time": "2025-11-10T12:00:00Z"}, "model": {"name": "m"}, "total": {"cost": 2}},
        **{"currency": {"code": "EUR"}, "response": {"status": 200}, "usage": {"input_tokens": 3, "output_tokens": 4}},
    }
    path.write_bytes(lines(call))
    found = look(path)
    assert found.accepted == 1
    (sample,) = found.samples
    assert {name: value for name, value in sample.items() if value is not None} == {
        **{"request_id": "1", "timestamp": "2025-11-10T12:00:00Z", "organization_id": "acme", "api_key_id": "k"},
        **{"cost": "2", "model": "m", "status": 200, "input_tokens": 3, "output_tokens": 4, "currency": "EUR"},
    }


@pytest.mark.parametrize("name", ["api_key", "user_api_key_hash", "key_hash", "token", "accessKey"])
def test_a_draft_hashes_what_may_be_a_key_in_clear(look: Look, tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines({"id": "1", "ts": "2025-11-10T12:00:00Z", "org": "acme", name: "in-clear"}))
    found = look(path)
    assert (found.format, found.accepted) == (None, 1)
    assert found.samples[0]["api_key_id"].startswith("sha256:")
    assert "in-clear" not in json.dumps(found.as_json())


@pytest.mark.parametrize("name", ["it's", 'a "quoted" name', "a.b", "$", "naïve", "line\nend", "--", "select", " "])
def test_a_draft_is_sound_whatever_the_fields_are_called(look: Look, tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines({name: {"request_id": "1", "model": "m", name: 1}, "prompt_tokens": 3}))
    found = look(path)
    assert found.format is None
    assert [(rejects.reason, rejects.lines, rejects.first_line) for rejects in found.rejected] == [
        ("missing_field", 1, 1)
    ]
    assert f"{name}" in found.text or name in ("it's", 'a "quoted" name', "line\nend")


def test_a_large_file_is_looked_at_from_its_beginning(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(*(request(number) for number in range(6_000))))
    found = look(path)
    assert (found.lines, found.whole, found.accepted) == (5_000, False, 5_000)
    monkeypatch.setattr(first_look, "MOST_BYTES", 2**20)
    path.write_bytes(b"x" * 2**24)
    with pytest.raises(KeytallyError, match="no end of a line in its first 1 MiB"):
        look(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("log.txt", b"x", r"does not end in one of \.jsonl"),
        ("log.jsonl", b"", "is empty: it holds no line"),
        ("log.csv", b"", "is empty: it holds no line"),
        ("log.jsonl", b" \n\t\n\r\n", "is empty: it holds no line"),
        ("log.jsonl.gz", gzip.compress(b"\n", mtime=0), "is empty: it holds no line"),
        ("log.jsonl", '{"request_id": "1"}\n'.encode("utf-16"), "the file is UTF-16; convert it to UTF-8"),
        ("log.jsonl.gz", gzip.compress('{"id": "1"}\n'.encode("utf-16-le"), mtime=0), "is UTF-16; convert it"),
        ("log.csv", "id;org\n1;acme\n".encode("utf-16"), "the file is UTF-16; convert it to UTF-8"),
        ("log.jsonl", b"x" * (2**26 + 1) + b"\n", "has no end of a line in its first 64 MiB: no line may be that long"),
        ("log.jsonl", b"x" * 2**20 + b"\n" + b"y\n" * 2, "these lines are not JSON"),
        ("log.jsonl", b'[{"id": "1"}]\n', "has an array: 'jq -c ...' writes each of its objects on a line"),
        ("log.jsonl", b'{"resourceLogs": []}\n', "holds OpenTelemetry logs .resourceLogs., and keytally reads spans"),
        ("log.jsonl", b'{"resourceMetrics": []}\n', "holds OpenTelemetry metrics"),
        ("log.jsonl.gz", b"x", "not gzip"),
        ("log.parquet", b"x", "is held back: unreadable"),
        ("log.csv", b",,\n1,2,3\n", "names no columns"),
        ("log.csv", b"id,org\n", "is empty: it holds a header and no row"),
        ("log.csv", b"id,org\n1,2,3\n", "no record in its first 1 line: a log has as many cells in each row as"),
        (
            "log.jsonl",
            b"10.0.0.1 - - GET /\n",
            "in its first 1 line: a log has one JSON object on each line; this line is",
        ),
        ("log.jsonl", b'{\n "id": 1\n}\n', "in its first 3 lines: a log has one JSON object on each line; this one"),
    ],
)
def test_what_is_no_log_is_told_in_a_sentence(look: Look, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KeytallyError, match=says):
        look(tmp_path / name)


def test_a_line_that_is_no_record_costs_no_draft(look: Look, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    odd = b'{}\n{"id": "1"} {"id": "2"}\n{"huge": %s, "created": 1e400}\n[\n' % (b"9" * 5_000)
    path.write_bytes(odd + lines({**CALL, "huge": 1}))
    found = look(path)
    assert (found.format, found.accepted) == (None, 1)
    assert [(rejects.reason, rejects.lines) for rejects in found.rejected] == [("not_this_format", 2), ("not_json", 2)]


LITELLM = {
    **{"id": "1", "litellm_call_id": "c", "startTime": 1762776000.5, "model": "m", "prompt_tokens": 1},
    **{"completion_tokens": 1, "response_cost": 0.1, "status": "success"},
}


@pytest.mark.parametrize(
    ("records", "says", "says_not"),
    [
        ([{"id": "1", "ts": "2025-11-10T12:00:00Z", "model": "m"}], "and inspect the file again.", "below raw/"),
        ([LITELLM], "no line would count. See first why 1 of them are missing_field", "put such files"),
    ],
)
def test_a_log_of_which_nothing_counts_is_not_sent_below_raw(
    keytally: Keytally,  # noqa: F811
    tmp_path: Path,
    records: list[Record],
    says: str,
    says_not: str,
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(lines(*({name: value for name, value in record.items() if value is not ...} for record in records)))
    said = keytally("inspect", str(log)).stdout
    assert "0 of 1 line would be accepted" in said
    assert says in said
    assert says_not not in said.partition("Next:")[2]


def test_what_comes_after_writing_is_not_to_write_again(
    keytally: Keytally,  # noqa: F811
    tmp_path: Path,
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(lines(CALL))
    written = keytally("inspect", str(log), "--write", "mine")
    assert "--write" not in written.output
    assert "Check it, put such files below raw/mine/, and run 'keytally rollup'" in written.output
    log.write_bytes(lines({"id": "1", "model": "m"}))
    written = keytally("inspect", str(log), "--write", "other")
    assert "No line counts yet: put it right, and inspect the file again" in written.output


def test_ids_that_repeat_are_a_warning(
    keytally: Keytally,  # noqa: F811
    tmp_path: Path,
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(lines(request(1), request(2), request(1, cost="0.5"), request(2)))
    said = " ".join(keytally("inspect", str(log)).stdout.split())
    assert (
        "WARNING: 2 of 4 requests repeat the organization, id and day of an earlier one, as line 3 repeats line 1"
        in said
    )
    assert "1 of them differs from the one that counts in cost." in said
    found = json.loads(keytally("inspect", str(log), "--json").stdout)[0]["repeats"]
    assert found == {"requests": 2, "disagreeing": 1, "lines": [1, 3], "fields": ["cost"]}


def test_what_a_format_leaves_out_is_counted(
    keytally: Keytally,  # noqa: F811
) -> None:
    found = json.loads(keytally("inspect", str(CASES / "otel_genai/gateway.jsonl"), "--json").stdout)[0]
    rejected = sum(rejects["lines"] for rejects in found["rejected"])
    assert found["skipped"]
    assert found["lines"] == found["accepted"] + rejected + sum(found["skipped"].values())
    said = keytally("inspect", str(CASES / "otel_genai/gateway.jsonl")).stdout
    for reason, records in found["skipped"].items():
        assert f"  {records} left out: {reason}" in said


def test_nothing_is_written_unless_asked_and_nothing_is_written_over(
    data: Path,  # noqa: F811
    keytally: Keytally,  # noqa: F811
    tmp_path: Path,
) -> None:
    log = tmp_path / "calls.jsonl"
    log.write_bytes(lines({"id": "1", "ts": "2025-11-10T12:00:00Z", "org": "acme", "key_id": "k", "model": "m"}))
    before = sorted(data.rglob("*"))
    shown = keytally("inspect", str(log))
    assert shown.exit_code == 0
    assert "1 of 1 line would be accepted, 100.0 %." in shown.output
    assert sorted(data.rglob("*")) == before
    written = keytally("inspect", str(log), "--write", "calls", "--json")
    assert json.loads(written.stdout)[0]["draft"] == (data / "formats/calls.sql").read_text()
    assert keytally("inspect", str(log), "--write", "calls").exit_code == 1
    assert keytally("inspect", str(log), "--write", "no/such").exit_code == 1
    assert sorted((data / "formats").iterdir()) == [data / "formats/calls.sql"]
    (data / "raw/calls").mkdir()
    log.rename(data / "raw/calls/a.jsonl")
    report: dict[str, Any] = json.loads(keytally("rollup", "--json").stdout)
    assert report["ingested"] == [{"file": "calls/a.jsonl", "lines": 1, "accepted": 1, "quarantined": 0}]


CALL = {"id": "1", "ts": "2025-11-10T12:00:00Z", "org": "acme", "key_id": "k", "model": "m"}


@pytest.mark.parametrize(
    ("costs", "currency", "accepted"),
    [
        ([{"cost_eur": 1}, {"cost_eur": 2}], "EUR", 2),
        ([{"totalCostUSD": 1, "currency": "EUR"}], "USD", 1),
        ([{"cost": 1, "Currency": "usd"}, {"cost": 2, "Currency": "CHF"}, {"cost": 3, "Currency": "USD"}], "USD", 2),
        ([{"price": 1, "currency": "Swiss francs"}], None, 1),
    ],
)
def test_a_draft_takes_no_cost_for_one_in_another_currency(
    look: Look, tmp_path: Path, costs: list[Record], currency: str | None, accepted: int
) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_bytes(lines(*({**CALL, **cost} for cost in costs)))
    found = look(path)
    assert (found.format, found.accepted, found.lines) == (None, accepted, len(costs))
    assert {sample["currency"] for sample in found.samples} == {currency}
    assert (f"\n-- currency: {currency}\n" in found.text) == (currency is not None)
    rejected = {rejects.reason: rejects.lines for rejects in found.rejected}
    assert rejected == ({"missing_field": len(costs) - accepted} if accepted < len(costs) else {})


def test_a_record_without_a_cost_counts_by_a_draft_too(look: Look, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_bytes(lines({**CALL, "cost": 1}, {**CALL, "status": 500}))
    found = look(path)
    assert (found.accepted, [sample["cost"] for sample in found.samples]) == (2, ["1", None])
    assert "\n-- prices: book\n" in found.text
    assert "-- Some records have no cost: with '-- prices: record' they would not count." in found.text
    path.write_bytes(lines({**CALL, "cost": 1}, {**CALL, "cost": 0}))
    assert "\n-- prices: record\n" in look(path).text


def test_what_costs_are_in_is_asked_where_no_field_says_it(
    keytally: Keytally,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    log = tmp_path / "calls.jsonl"
    log.write_bytes(lines({**CALL, "cost": 1}))
    said = keytally("inspect", str(log), "--write", "calls").stdout
    assert "No field says what the costs are in: they count as CHF, unless you say it in the draft" in said
    decided = (data / "formats/calls.sql").read_text().replace("\n-- -- currency: USD\n", "\n-- currency: USD\n")
    (data / "formats/calls.sql").write_text(decided)
    said = keytally("inspect", str(log)).stdout
    assert "No field says" not in said
    assert "Costs are in USD, and what is published in CHF" in said


def test_in_which_currency_costs_are_and_who_prices_the_rest_is_said(
    keytally: Callable[..., Result],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = keytally("inspect", str(CASES / "litellm/log.jsonl")).stdout
    assert "Costs are in USD, and what is published in CHF: set KEYTALLY_CURRENCY, or keep" in said
    assert "prices.csv" not in said
    said = keytally("inspect", str(CASES / "nginx/access.jsonl")).stdout
    assert "Requests without a cost are priced by prices.csv" in said
    monkeypatch.setenv("KEYTALLY_CURRENCY", "USD")
    assert "Costs are in" not in keytally("inspect", str(CASES / "litellm/log.jsonl")).stdout


def test_cached_tokens_beside_the_input_are_named_as_the_cause(keytally: Keytally) -> None:  # noqa: F811
    log = CASES / "otel_more_cached_than_input/log.jsonl"
    assert "add the line '-- cached: beside input'" in keytally("inspect", str(log)).output


def said_of(result: Result) -> str:
    return " ".join(result.output.split())


def test_requests_that_no_price_book_can_price_are_a_warning(keytally: Keytally, tmp_path: Path) -> None:  # noqa: F811
    log = tmp_path / "calls.jsonl"
    failed = {**CALL, "id": "3", "status": 500}
    log.write_bytes(lines({**CALL, "input_tokens": 5}, {**CALL, "id": "2"}, failed, {**CALL, "id": "4", "model": ""}))
    said = said_of(keytally("inspect", str(log)))
    assert "WARNING: 1 of 4 accepted lines used a model, did not fail and carry no token count" in said
    assert "Requests without a cost are priced by prices.csv" in said
    found = json.loads(keytally("inspect", str(log), "--json").stdout)[0]
    assert (found["without_cost"], found["without_tokens"]) == (4, 1)
    log.write_bytes(lines({**CALL, "id": "2"}))
    said = said_of(keytally("inspect", str(log)))
    assert "WARNING: 1 of 1 accepted line used a model" in said
    assert "priced by prices.csv" not in said


def test_a_stream_of_spans_without_usage_is_told(look: Look) -> None:
    found = look(CASES / "otel_stream_without_usage/log.jsonl")
    assert (found.accepted, found.of_accepted.without_tokens) == (2, 1)


def test_spans_that_merge_are_told_with_the_requests_that_they_are(keytally: Keytally) -> None:  # noqa: F811
    (log,) = (CASES / "genuine_otel_two_instrumentations").glob("*.jsonl")
    said = said_of(keytally("inspect", str(log)))
    assert "6 spans merge into calls that other spans tell of: the 12 accepted lines are 6 requests" in said
    found = json.loads(keytally("inspect", str(log), "--json").stdout)[0]
    assert (found["accepted"], found["merged_spans"], found["requests"]) == (12, 6, 6)
    assert "merge into" not in keytally("inspect", str(CASES / "otel_genai/gateway.jsonl")).output


def spans_of(path: Path, name: str) -> None:
    """Write an export of two spans of this name that call no model."""
    span = {"traceId": "0af7651916cd43dd8448eb211c80319c", "name": name, "startTimeUnixNano": "1762776000000000000"}
    spans = [{**span, "spanId": f"00f067aa0ba902b{number}"} for number in range(2)]
    path.write_bytes(lines({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}))


def test_a_log_that_its_format_leaves_out_is_told_why_and_what_to_do(
    keytally: Keytally,  # noqa: F811
    tmp_path: Path,
) -> None:
    log = tmp_path / "traces.jsonl"
    spans_of(log, "GET /")
    said = said_of(keytally("inspect", str(log)))
    assert "the format otel-genai" in said
    _, _, then = said.partition("Next: ")
    assert then == (
        "no line would count. The format leaves out all 2 lines as 'no model call'. If some of these lines are"
        " requests, a format of your own, formats/otel-genai.sql in the data folder, can read them; if none is one,"
        " this log needs no place below raw/."
    )


def test_a_log_without_keys_is_not_sent_below_raw(keytally: Keytally, tmp_path: Path) -> None:  # noqa: F811
    log = tmp_path / "calls.jsonl"
    without_key = {name: value for name, value in CALL.items() if name != "key_id"}
    log.write_bytes(lines(without_key))
    said = said_of(keytally("inspect", str(log)))
    assert "WARNING: every request is a session: no field was found that names the key (api_key_id)." in said
    _, _, then = said.partition("Next: ")
    assert "put formats/NAME.sql right (api_key_id first), and inspect the file again: no request counts yet." in then
    assert "such files" not in then
    written = said_of(keytally("inspect", str(log), "--write", "mine"))
    assert "No request counts yet: put it right" in written
    assert "put such files" not in written
    # The format that was written is known now, and still finds no key.
    then = said_of(keytally("inspect", str(log))).partition("Next: ")[2]
    assert "no request would count. Let the producer write the key" in then
    assert "put such files" not in then


def test_a_log_with_some_keys_counts_its_sessions(keytally: Keytally, tmp_path: Path) -> None:  # noqa: F811
    log = tmp_path / "calls.jsonl"
    log.write_bytes(lines(CALL, {**CALL, "id": "2", "key_id": ""}, {**CALL, "id": "3", "key_id": ""}))
    said = said_of(keytally("inspect", str(log)))
    assert "2 lines without a key: sessions, which are kept and not counted" in said
    assert "every request is a session" not in said
    assert "such files below raw/NAME/." in said
    log.write_bytes(lines({**CALL, "key_id": ""}))
    assert "every request is a session: " in said_of(keytally("inspect", str(log)))


def test_sessions_of_the_native_format_are_meant(keytally: Keytally, tmp_path: Path) -> None:  # noqa: F811
    log = tmp_path / "calls.jsonl"
    log.write_bytes(lines(request(1, api_key_id=None)))
    said = said_of(keytally("inspect", str(log)))
    assert "1 line without a key: sessions" in said
    assert "put such files anywhere below raw/" in said
