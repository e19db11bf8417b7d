"""What formats leave out is counted, and a log of which something may be wrong is a finding of the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.settings import Settings, SettingsError
from pipeline.line import MAX_MAPPED_LINE_BYTES
from pipeline.status import status_of
from tests.conftest import Place, request

WITH_REASONS = """-- reads: jsonl
-- prices: record
-- units: record
-- skips: health checks and looks at the list of models
select
    line,
    record->>'id' as request_id,
    record->>'timestamp' as timestamp,
    record->>'organization_id' as organization_id,
    'key_1' as api_key_id,
    '1' as cost,
    null as synapses,
    null as neurons,
    record->>'model' as model,
    null as endpoint,
    null as status,
    record->>'input_tokens' as input_tokens,
    null as output_tokens,
    case record->>'path' when '/health' then 'a health check' when '/models' then 'a look at the models' end as skipped
from records
where record->>'kind' = 'access'
"""
FILTERED = re.sub(r",\n    case .* as skipped", "", WITH_REASONS)


def entry(number: int, **fields: Any) -> dict[str, Any]:
    kept = {"kind": "access", "id": f"req_{number}", "organization_id": "org_a", "timestamp": "2025-11-10T12:00:00Z"}
    return {**kept, **fields}


def write(place: Place, text: str, *records: Any) -> None:
    place.layout.formats.mkdir(exist_ok=True)
    (place.layout.formats / "house.sql").write_text(text)
    place.write_raw("house/a.jsonl", *records)


def tally(place: Place, file: str = "house/a.jsonl") -> dict[tuple[str, str], int]:
    taken = place.ledger().files[file].take_in
    assert taken.lines == taken.accepted + taken.quarantined + taken.skipped
    return {(each.kind, each.reason): each.lines for each in taken.tally}


def test_what_a_format_leaves_out_is_counted_by_its_reason(place: Place) -> None:
    health, models = entry(8, path="/health"), entry(9, path="/models")
    entries = [entry(10 + number) for number in range(9)]
    write(place, WITH_REASONS, *entries, health, health, models, entry(2, organization_id="no id"))
    report = place.roll_up()
    assert not report.has_findings
    assert tally(place) == {
        ("skipped", "a health check"): 2,
        ("skipped", "a look at the models"): 1,
        ("quarantined", "bad_id"): 1,
    }
    (ingested,) = report.as_json()["ingested"]
    assert (ingested["lines"], ingested["accepted"], ingested["quarantined"], ingested["skipped"]) == (13, 9, 1, 3)


def test_a_record_of_which_such_a_format_says_nothing_is_not_of_it(place: Place) -> None:
    write(place, WITH_REASONS, entry(1), {"kind": "metric", "id": "x"}, {"resourceLogs": []})
    report = place.roll_up()
    assert report.has_findings
    assert tally(place) == {("quarantined", "not_this_format"): 2}
    (odd,) = report.odd
    assert (odd.file, odd.what) == ("house/a.jsonl", "2 of 3 records not of the format house")


def test_a_format_that_only_says_what_it_skips_has_its_lines_counted_under_that(place: Place) -> None:
    write(place, FILTERED, entry(1), {"kind": "metric"}, {"kind": "metric"})
    assert not place.roll_up().has_findings
    assert tally(place) == {("skipped", "health checks and looks at the list of models"): 2}


def test_a_record_without_id_moment_and_organization_is_of_another_producer(place: Place) -> None:
    write(place, FILTERED.replace("where record->>'kind' = 'access'", ""), entry(1), {"msec": 1, "uri": "/"})
    (odd,) = place.roll_up().odd
    assert odd.what == "1 of 2 records not of the format house"
    assert tally(place) == {("quarantined", "not_this_format"): 1}


@pytest.mark.parametrize("file", ["a.jsonl", "litellm/a.jsonl"])
def test_a_log_of_which_no_line_counts_is_a_finding(place: Place, file: str) -> None:
    rejected = {"startTime": 1762776000, "id": "x", "litellm_call_id": "y", "status": "success", "response_cost": 1}
    place.write_raw(file, *[json.dumps(rejected)] * 2)
    report = place.roll_up()
    assert report.has_findings
    assert [(odd.file, odd.what) for odd in report.odd] == [(file, "of 2 lines none counts")]


@pytest.mark.parametrize(
    ("limit", "rejected", "what"),
    [
        ("", 9, None),
        ("", 10, "10 of 99 lines do not count: more than 10 %"),
        ("10.2%", 10, None),
        ("10.1%", 10, "10 of 99 lines do not count: more than 10.1 %"),
        ("1%", 9, None),
        ("0%", 1, "1 of 90 lines does not count: more than 0 %"),
        ("100%", 40, None),
    ],
)
def test_a_log_of_which_too_many_lines_do_not_count_is_a_finding(
    tmp_path: Path, limit: str, rejected: int, what: str | None
) -> None:
    place = Place(tmp_path / "data", KEYTALLY_REJECTED_LIMIT=limit)
    # Neither what the format leaves out nor a line of tomorrow makes the share another.
    others = [*[entry(500, path="/health")] * 30, entry(600, timestamp="2025-11-16T12:00:00Z")]
    bad = [entry(100 + number, organization_id="no id") for number in range(rejected)]
    write(place, WITH_REASONS, *[entry(number) for number in range(89)], *others, *bad)
    report = place.roll_up()
    assert [odd.what for odd in report.odd] == ([what] if what else [])
    assert report.has_findings is bool(what)
    status = status_of(place.store, place.now, place.settings)
    assert [odd.what for odd in status.odd] == ([what] if what else [])
    assert not place.roll_up().has_findings, "a run that does not read the log has nothing to say of it"


@pytest.mark.parametrize("value", ["10", "101%", "-1%", "a tenth", "0.1", "%"])
def test_a_wrong_share_is_named(value: str) -> None:
    with pytest.raises(SettingsError, match=r"KEYTALLY_REJECTED_LIMIT is .*, but must be a share of a log's lines"):
        Settings.from_environment({"KEYTALLY_REJECTED_LIMIT": value})


@pytest.mark.parametrize("counted", [0, 1])
def test_a_log_of_which_nothing_counts_although_skipped_records_have_tokens_is_a_finding(
    place: Place, counted: int
) -> None:
    text = WITH_REASONS.replace("'a look at the models'", "'rerank with tokens'")
    records = [entry(9, path="/models"), entry(10, path="/health"), *(entry(number) for number in range(counted))]
    write(place, text, *records)
    report = place.roll_up()
    what = "no span counts, although 1 skipped span has tokens"
    assert [odd.what for odd in report.odd] == ([] if counted else [what])
    assert report.has_findings is not bool(counted)


def test_a_log_of_which_nothing_counts_and_nothing_has_tokens_is_no_finding(place: Place) -> None:
    write(place, WITH_REASONS, entry(8, path="/health"), entry(9, path="/models"))
    assert not place.roll_up().has_findings


def test_a_log_of_tomorrow_is_no_finding(place: Place) -> None:
    place.write_raw("a.jsonl", request(1, timestamp="2025-11-16T12:00:00Z"))
    report = place.roll_up()
    assert not report.has_findings
    assert tally(place, "a.jsonl") == {("quarantined", "future_timestamp"): 1}


def test_a_line_of_a_mapped_format_may_be_long_and_one_of_the_native_format_may_not(place: Place) -> None:
    long = {**entry(2), "prompt": "x" * 5 * 2**20}
    write(place, FILTERED, entry(1), long, entry(3))
    place.write_raw("a.jsonl", request(5), {**request(6), "prompt": "x" * 2**20})
    place.roll_up()
    assert tally(place) == {}
    assert tally(place, "a.jsonl") == {("quarantined", "line_too_long"): 1}


def test_a_line_beyond_its_limit_costs_itself_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_MAPPED_LINE_BYTES == 64 * 2**20
    monkeypatch.setattr("pipeline.rows.MAX_MAPPED_LINE_BYTES", 2**20)
    write(place, FILTERED, entry(1), {**entry(2), "prompt": "x" * 2**20}, entry(3))
    place.roll_up()
    assert tally(place) == {("quarantined", "line_too_long"): 1}


def test_bytes_that_nobody_reads_cost_nothing(place: Place) -> None:
    texts = (
        json.dumps(entry(1)).encode()[:-1] + b', "agent": "caf\xe9"}',
        json.dumps(entry(2)).encode()[:-1] + b', "agent": -Infinity}',
        json.dumps(entry(3)).encode()[:-1] + rb', "agent": "\ud83d"}',
        json.dumps(entry(4)).encode()[:-1] + b', "model": "m\xff"}',
        json.dumps(entry(5)).encode()[:-1] + b', "input_tokens": NaN}',
    )
    write(place, FILTERED, *texts, b"{")
    place.roll_up()
    assert tally(place) == {("quarantined", "bad_type"): 1, ("quarantined", "not_json"): 1}
    assert [row["model"] for row in place.events("house/a.jsonl")] == [None, None, None, "m\ufffd"]
