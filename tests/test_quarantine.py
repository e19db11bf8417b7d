"""The quarantine: what is in it, how it is shown, and how it empties."""

from __future__ import annotations

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
