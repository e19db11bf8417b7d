"""The quarantine: what is in it, how it is shown, and how it empties."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import pipeline.intake
import pipeline.judge
import pipeline.line
from cli import main
from pipeline.quarantine import Quarantine
from tests.conftest import Place, request

CASES = Path(__file__).parent / "cases"


def command(place: Place, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["quarantine", *arguments], env={"KEYTALLY_DATA": str(place.layout.root)})


def quarantine(place: Place, *arguments: str) -> str:
    result = command(place, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def counted(place: Place) -> int:
    return sum(entry.counted for entry in place.ledger().days.values())


def test_it_is_summarized_by_reason_and_file_with_a_few_lines_of_each(place: Place) -> None:
    place.write_raw("a.jsonl", *["bad"] * 70, request(1))
    place.write_raw("b.jsonl", *["worse"] * 2, "{}", request(2))
    place.roll_up()
    found = Quarantine(place.store).summary(3)
    assert [(each.reason, each.file, each.lines, len(each.examples)) for each in found] == [
        ("not_json", "a.jsonl", 70, 3),
        ("not_json", "b.jsonl", 2, 0),
        ("missing_field", "b.jsonl", 1, 1),
    ]
    every = Counter((line.reason, line.file) for line in Quarantine(place.store).lines())
    assert {(each.reason, each.file): each.lines for each in found} == every
    text = quarantine(place)
    assert text.startswith("73 lines of 2 files did not count")
    assert re.search(r"^ *not_json +70 +a\.jsonl *$", text, re.MULTILINE)
    assert re.search(r"^ *missing_field +request_id +b\.jsonl +3 +\{\} *$", text, re.MULTILINE)
    assert re.search(r"^ *not_json +- +a\.jsonl +1 +bad *$", text, re.MULTILINE)
    assert "Correct the file below raw/ and run 'keytally rollup'" in text
    assert "need nothing" not in text


def test_an_example_names_the_field_that_breaks_the_rule(place: Place) -> None:
    future = request(9, timestamp="2026-12-02T00:00:00Z", cost="-1")
    bad = (request(1, cost="-1"), request(2, status="200"), request(3, organization_id=...), "bad", future)
    place.write_raw("a.jsonl", *bad)
    place.write_raw("b.jsonl", request(4, cost=..., model="x" * 3_000))  # its text is shown in part
    place.write_raw("litellm/calls.jsonl", (CASES / "litellm_rejected_key/log.jsonl").read_bytes())
    rows = [{**request(5, synapses="1"), "cost": None}, request(6, synapses="1.0000001")]
    pq.write_table(pa.Table.from_pylist(rows), place.layout.raw / "c.parquet")
    place.now = datetime(2026, 12, 1, tzinfo=UTC)  # the genuine log is of that November
    place.roll_up()
    told = {(line.file, line.line): line.field for each in Quarantine(place.store).summary(9) for line in each.examples}
    assert told == {
        ("a.jsonl", 1): "cost",
        ("a.jsonl", 2): "status",
        ("a.jsonl", 3): "organization_id",
        ("a.jsonl", 4): None,
        ("a.jsonl", 5): "timestamp",
        ("b.jsonl", 1): None,
        ("c.parquet", 1): "cost",
        ("c.parquet", 2): "synapses",
        ("litellm/calls.jsonl", 1): "organization_id",
    }


def test_a_corrected_file_empties_it_and_counts_once(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2, cost="-1"))
    place.roll_up()
    assert (counted(place), len(list(Quarantine(place.store).lines()))) == (1, 1)
    place.write_raw("a.jsonl", request(1), request(2))
    for _ in range(2):
        place.roll_up()
        assert (counted(place), list(Quarantine(place.store).lines())) == (2, [])
    assert "is empty" in quarantine(place)


@pytest.mark.parametrize("few_bytes", [0, 8_192])
def test_a_line_from_the_future_leaves_it_when_its_moment_has_come(
    place: Place, monkeypatch: pytest.MonkeyPatch, few_bytes: int
) -> None:
    monkeypatch.setattr(pipeline.judge, "FEW_BYTES", few_bytes)
    wide = {"other": "x" * 10_000}
    soon = f"{place.now + timedelta(minutes=5, microseconds=1):%Y-%m-%dT%H:%M:%S.%fZ}"
    place.write_raw("a.jsonl", request(1), request(2, timestamp=soon, **wide), request(3, timestamp=soon), "bad")
    place.roll_up()
    assert place.rejected("a.jsonl") == [(2, "future_timestamp"), (3, "future_timestamp"), (4, "not_json")]
    assert "need nothing" in quarantine(place)
    place.now += timedelta(microseconds=1)
    for _ in range(2):
        place.roll_up()
        assert (counted(place), place.rejected("a.jsonl")) == (3, [(4, "not_json")])


def test_a_rule_that_was_fixed_lets_out_what_it_held_and_counts_it_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write_raw("a.jsonl", request(1), request(2, organization_id="org.b"))
    place.write_raw("again.jsonl", request(1), "bad")
    place.roll_up()
    assert place.rejected("a.jsonl") == [(2, "bad_id")]
    monkeypatch.setattr(pipeline.line, "_ORGANIZATION_ID", re.compile(r"[A-Za-z0-9._-]{1,128}"))
    monkeypatch.setattr(pipeline.intake, "TAKE_IN_RULE", pipeline.intake.TAKE_IN_RULE + 1)
    pipeline.intake.rule_of.cache_clear()
    try:
        for _ in range(2):
            place.roll_up()
            assert (counted(place), place.rejected("a.jsonl")) == (2, [])
            assert place.rejected("again.jsonl") == [(2, "not_json")]
    finally:
        pipeline.intake.rule_of.cache_clear()


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_without_its_raw_file_a_line_is_shown_without_its_text(place: Place, what: str) -> None:
    path: Path = place.write_raw("a.jsonl", "bad")
    place.roll_up()
    if what == "gone":
        path.unlink()
    else:
        path.write_text("something else\n")
    shown: list[Any] = [line.text for each in Quarantine(place.store).summary(3) for line in each.examples]
    assert shown == [None]
    assert "(the raw file is gone or was changed)" in quarantine(place)


@pytest.mark.parametrize("raw", ["there", "gone"])
def test_a_lost_list_of_one_file_hides_no_other_and_says_what_helps(place: Place, raw: str) -> None:
    old = place.write_raw("old.jsonl", "rubbish", "rubbish", request(1))
    place.write_raw("b.jsonl", "worse", request(2))
    place.roll_up()
    damaged = place.ledger().files["old.jsonl"].take_in.rejected
    assert damaged
    (place.layout.rejected / damaged).unlink()
    kept = old.read_bytes()
    if raw == "gone":
        old.unlink()

    for arguments in ((), ("--json",)):
        result = command(place, *arguments)
        assert result.exit_code == 3
        assert "UNAVAILABLE old.jsonl: 2 lines did not count, and the list of them is lost: rejected/" in result.stderr
        assert "keytally backfill" in result.stderr
        assert ("put it back" in result.stderr) == (raw == "gone")
    assert [line["file"] for line in json.loads(command(place, "--json").stdout)] == ["b.jsonl"]
    assert command(place).stdout.startswith("1 line of 1 file did not count")

    if raw == "gone":
        assert place.backfill("2025-11-01", "2025-11-01").has_findings, "it cannot be made anew"
        assert command(place).exit_code == 3
        old.write_bytes(kept)
    place.backfill("2025-11-01", "2025-11-01")
    assert command(place).exit_code == 0
    assert len(json.loads(quarantine(place, "--json"))) == 3


def test_an_empty_quarantine_is_not_told_of_one_whose_only_list_is_lost(place: Place) -> None:
    place.write_raw("a.jsonl", "rubbish")
    place.roll_up()
    for path in place.layout.rejected.iterdir():
        path.write_bytes(b"")
    result = command(place)
    assert (result.exit_code, result.stdout) == (3, "")


# --- mapped formats --------------------------------------------------------------------------------------------------

# Requests in the native form: one a record, or several in its list `calls`. The key is hashed.
FORMAT = """\
-- reads: jsonl, csv, parquet
-- prices: record
-- units: record
with call as (
    select line, unnest(coalesce(cast(record->'calls' as json[]), [record])) as one from records
)
select
    line, one->>'id' as request_id, one->>'at' as timestamp, one->>'org' as organization_id,
    'sha256:' || sha256(one->>'key') as api_key_id, one->>'cost' as cost, null as synapses, null as neurons,
    null as model, null as endpoint, null as status, one->>'tokens' as input_tokens, null as output_tokens
from call
"""
# printf sk-clear-text | sha256sum
KEY, DIGEST = "sk-clear-text", "sha256:0ba5c2bc7d6770e0df6589ba4ea68b7f6a920e3516537a7cd4f58fbefd876d22"


def call(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"c{number}", "at": "2025-11-10T12:00:00Z", "org": "org_a", "key": KEY, "cost": "0.25", **fields}


def made(number: int, **fields: str) -> dict[str, str]:
    """What the SQL makes of a call."""
    return {
        "request_id": f"c{number}",
        "timestamp": "2025-11-10T12:00:00Z",
        "organization_id": "org_a",
        "api_key_id": DIGEST,
        "cost": "0.25",
        **fields,
    }


@pytest.fixture
def mapped(place: Place) -> Place:
    place.layout.formats.mkdir()
    (place.layout.formats / "house.sql").write_text(FORMAT)
    return place


def test_of_a_mapped_format_it_shows_the_raw_line_and_what_the_format_made_of_it(mapped: Place) -> None:
    mapped.write_raw("a.jsonl", "native")
    mapped.write_raw("house/a.jsonl", call(1), call(2, cost="-1", note="é"), "no JSON", call(3, cost="x" * 3_000))
    mapped.roll_up()
    entries = json.loads(quarantine(mapped, "--json"))
    assert entries[0] == {"file": "a.jsonl", "line": 1, "reason": "not_json", "text": "native"}
    assert [list(entry) for entry in entries[1:]] == [["file", "line", "reason", "text", "record"]] * 3
    refused, broken, long = entries[1:]
    assert (refused["file"], refused["line"], refused["reason"]) == ("house/a.jsonl", 2, "negative_amount")
    assert refused["text"] == json.dumps(call(2, cost="-1", note="é")).replace(KEY, "(masked)")
    assert refused["record"] == made(2, cost="-1")
    assert (broken["reason"], broken["text"], broken["record"]) == ("not_json", "no JSON", None)
    assert (len(long["text"]), long["text"][-1]) == (2_000, "x")
    assert long["record"] == made(3, cost="x" * 300)
    text = quarantine(mapped)
    assert re.search(r'cost +house/a\.jsonl +2 +\{"id": "c2", .*', text)
    assert re.search(r'read as: *\{"request_id": "c2", .*"cost": "-1"\}', re.sub(r"\s+", " ", text))
    assert "read as: nothing" in text
    assert KEY not in text + json.dumps(entries)


def test_of_several_requests_on_a_line_it_shows_the_rejected_one(mapped: Place) -> None:
    calls = [call(1), call(2, cost="-1"), call(3, org="a b"), call(4), call(5, cost="-2"), call(6, at="soon")]
    mapped.write_raw("house/a.jsonl", json.dumps({"calls": calls}))
    mapped.roll_up()
    entries = json.loads(quarantine(mapped, "--json"))
    assert {entry["line"] for entry in entries} == {1}
    rejected = {entry["record"]["request_id"]: (entry["reason"], entry["record"]) for entry in entries}
    assert rejected == {
        "c2": ("negative_amount", made(2, cost="-1")),
        "c3": ("bad_id", made(3, organization_id="a b")),
        "c5": ("negative_amount", made(5, cost="-2")),
        "c6": ("bad_timestamp", made(6, timestamp="soon")),
    }
    told = {
        (example.reason, example.field, example.record["request_id"])
        for each in Quarantine(mapped.store).summary(9)
        for example in each.examples
        if isinstance(example.record, dict)
    }
    assert told == {
        ("negative_amount", "cost", "c2"),
        ("bad_id", "organization_id", "c3"),
        ("negative_amount", "cost", "c5"),
        ("bad_timestamp", "timestamp", "c6"),
    }


def test_of_a_line_from_the_future_it_shows_the_request_that_was(mapped: Place) -> None:
    later = f"{mapped.now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    mapped.write_raw("house/a.jsonl", json.dumps({"calls": [call(1), call(2, at=later)]}))
    mapped.roll_up()
    (entry,) = json.loads(quarantine(mapped, "--json"))
    assert (entry["reason"], entry["record"]) == ("future_timestamp", made(2, timestamp=later))


def test_if_the_rejected_request_is_not_known_it_shows_the_first_ones(mapped: Place) -> None:
    mapped.write_raw("house/a.jsonl", json.dumps({"calls": [call(n, cost="-1") for n in range(12)]}))
    mapped.roll_up()
    # The rules, or the format, have changed since.
    (mapped.layout.formats / "house.sql").write_text(FORMAT.replace("one->>'cost' as", "'1' as"))
    entries = json.loads(quarantine(mapped, "--json"))
    assert [entry["record"] for entry in entries] == [[made(n, cost="1") for n in range(10)]] * 12


@pytest.mark.parametrize("what", ["gone", "format"])
def test_the_text_is_null_if_the_raw_file_is_gone_and_the_record_if_the_format_fails(mapped: Place, what: str) -> None:
    path = mapped.write_raw("house/a.jsonl", call(1, cost="-1"))
    mapped.roll_up()
    if what == "gone":
        path.unlink()
        expected = None
    else:
        (mapped.layout.formats / "house.sql").write_text(FORMAT.replace("unnest", "no_such_function"))
        expected = json.dumps(call(1, cost="-1"))
        for hidden in (KEY, "c1", "2025-11-10T12:00:00Z", "org_a", "0.25", "-1"):  # all that the SQL names
            expected = expected.replace(f'"{hidden}"', '"(masked)"')
    (entry,) = json.loads(quarantine(mapped, "--json"))
    assert (entry["text"], entry["record"]) == (expected, None)


def test_a_row_of_csv_is_shown_as_it_stands_and_one_of_parquet_as_json(mapped: Place) -> None:
    mapped.write_raw("house/a.csv", "id,at,org,key,cost", f"c1,2025-11-10T12:00:00Z,org_a,{KEY},-1", "c2,too,few")
    rows = [call(1), call(2, cost="-1")]
    (mapped.layout.raw / "house").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), mapped.layout.raw / "house/b.parquet")
    mapped.roll_up()
    shown = [(line.file, line.line, line.text, line.record) for line in Quarantine(mapped.store).lines()]
    in_json = json.dumps(call(2, cost="-1"), separators=(",", ":")).replace(KEY, "(masked)")
    assert shown == [
        ("house/a.csv", 2, "c1,2025-11-10T12:00:00Z,org_a,(masked),-1", made(1, cost="-1")),
        ("house/a.csv", 3, "(masked),(masked),(masked)", None),
        ("house/b.parquet", 2, in_json, made(2, cost="-1")),
    ]


# --- UTF-16 ----------------------------------------------------------------------------------------------------------


def test_utf16_is_named_as_the_cause_if_no_line_of_a_file_counts(mapped: Place) -> None:
    records = json.dumps(request(1)) + "\n" + json.dumps(request(2)) + "\n"
    mapped.write_raw("marked.jsonl", records.encode("utf-16"))
    mapped.write_raw("house/plain.jsonl.gz", gzip.compress(records.encode("utf-16-le")))
    mapped.write_raw("bad.jsonl", "rubbish")
    mapped.write_raw("good.jsonl", request(3), records.encode("utf-16-le"))
    mapped.roll_up()
    sentences = [
        f"No line of {file} counts: the file is UTF-16; convert it to UTF-8."
        for file in ("house/plain.jsonl.gz", "marked.jsonl")
    ]
    shown, listed = command(mapped), command(mapped, "--json")
    assert [line for line in shown.stdout.splitlines() if "UTF-16" in line] == sentences
    assert [line for line in listed.stderr.splitlines() if "UTF-16" in line] == sentences
    assert {entry["file"] for entry in json.loads(listed.stdout)} == {
        "bad.jsonl",
        "good.jsonl",
        "house/plain.jsonl.gz",
        "marked.jsonl",
    }
