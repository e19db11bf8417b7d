"""Copies that disagree in a billed value are reported, and content alone decides which of them counts."""

from __future__ import annotations

from decimal import Decimal
from itertools import permutations
from random import Random
from typing import Any

import pytest

from pipeline.first_look import look_at
from pipeline.format import formats_of
from tests.conftest import Place, Record, request

MOMENT = "2025-11-10T12:00:00Z"
HOUSE = """-- reads: jsonl
-- prices: record
-- units: record
-- copies: {copies}
select
    line,
    record->>'request_id' as request_id,
    record->>'timestamp' as timestamp,
    record->>'organization_id' as organization_id,
    record->>'api_key_id' as api_key_id,
    record->>'cost' as cost,
    record->>'synapses' as synapses,
    record->>'neurons' as neurons,
    record->>'model' as model,
    null as endpoint,
    record->>'status' as status,
    record->>'input_tokens' as input_tokens,
    record->>'output_tokens' as output_tokens,
    record->>'cached_input_tokens' as cached_input_tokens,
    record->>'reasoning_tokens' as reasoning_tokens
from records
"""


def copy(second: int, **fields: Any) -> Record:
    """A line that tells of the request req_1."""
    return request(1, timestamp=f"2025-11-10T12:00:{second:02}Z", **{"model": "gpt", **fields})


def write_format(place: Place, copies: str, moment: str = "timestamp") -> None:
    place.layout.formats.mkdir(exist_ok=True)
    text = HOUSE.format(copies=copies).replace("record->>'timestamp'", f"record->>'{moment}'")
    (place.layout.formats / "house.sql").write_text(text)


def renamed(record: Record) -> Record:
    """The record with its moment under the name `at`."""
    return {"at" if name == "timestamp" else name: value for name, value in record.items()}


def test_a_copy_that_bills_something_else_is_a_finding_with_file_line_and_example(place: Place) -> None:
    place.write_raw("a.jsonl", request(7, timestamp=MOMENT), copy(1, cost="0.01", output_tokens=10))
    place.write_raw("b.jsonl", copy(1, cost="0.01", output_tokens=10), copy(2, cost="0.02", output_tokens=20))
    report = place.roll_up()
    assert report.has_findings
    (found,) = report.disagreeing
    assert (str(found.day), found.lines, found.organization_id, found.request_id) == ("2025-11-10", 1, "org_a", "req_1")
    assert sorted((each.file, each.line) for each in found.copies) == [("a.jsonl", 2), ("b.jsonl", 1), ("b.jsonl", 2)]
    assert "1 copy differs in a billed value" in found.what
    assert "a.jsonl line 2 (cost 0.01, output 10)" in found.what
    assert "b.jsonl line 2 (cost 0.02, output 20)" in found.what
    (day,) = place.ledger().days.values()
    assert (day.duplicate, day.conflicting, day.disagreeing) == (2, 1, 1)
    again = place.roll_up()
    assert not again.has_findings, "a run that does not roll the day up has nothing to say of it"


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key_id": "key_2"},
        {"cost": "0.3"},
        {"synapses": 1},
        {"neurons": 1},
        {"model": "other"},
        {"input_tokens": 2001},
        {"output_tokens": 2001},
        {"cached_input_tokens": 1},
        {"cache_write_tokens": 1},
        {"reasoning_tokens": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_billed_value_is_compared(place: Place, fields: Record) -> None:
    tokens = {"input_tokens": 2000, "output_tokens": 2000}
    place.write_raw("a.jsonl", copy(1, **tokens), copy(2, **{**tokens, **fields}))
    assert [day.lines for day in place.roll_up().disagreeing] == [1]


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"cached_input_tokens": 1}, "a.jsonl line 1 (cached none), a.jsonl line 2 (cached 1)"),
        ({"cache_write_tokens": 1000}, "a.jsonl line 1 (written none), a.jsonl line 2 (written 1000)"),
        ({"reasoning_tokens": 7}, "a.jsonl line 1 (reasoning none), a.jsonl line 2 (reasoning 7)"),
        ({"synapses": "0.5"}, "a.jsonl line 1 (synapses 0), a.jsonl line 2 (synapses 0.5)"),
        ({"neurons": 1, "model": None}, "line 1 (model gpt, neurons 0), a.jsonl line 2 (model none, neurons 1)"),
    ],
)
def test_an_example_names_what_differs(place: Place, fields: Record, shown: str) -> None:
    tokens = {"input_tokens": 2000, "output_tokens": 2000}
    place.write_raw("a.jsonl", copy(1, **tokens), copy(2, **{**tokens, **fields}))
    (found,) = place.roll_up().disagreeing
    assert shown in found.what


@pytest.mark.parametrize("fields", [{}, {"endpoint": "/v2"}, {"status": 500}, {"something": 1}])
def test_other_values_are_no_disagreement(place: Place, fields: Record) -> None:
    place.write_raw("a.jsonl", copy(1), copy(2, **fields))
    report = place.roll_up()
    assert not report.has_findings
    (day,) = report.days
    assert (day.conflicting, day.disagreeing) == (1, 0), "the moment differs, at least"


GROWING = [
    copy(1, cost="0", output_tokens=None, input_tokens=None),
    copy(2, cost="0.01", input_tokens=100, output_tokens=5),
    copy(3, cost="0.03", input_tokens=100, output_tokens=40, cached_input_tokens=10),
    copy(4, cost="0.03", input_tokens=100, output_tokens=40, cached_input_tokens=10),
]


@pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
def test_of_a_request_that_is_written_as_it_grows_the_last_state_counts(place: Place, order: tuple[int, ...]) -> None:
    write_format(place, "most complete")
    place.write_raw("house/a.jsonl", *(GROWING[number] for number in order[:2]))
    place.write_raw("house/b.jsonl", *(GROWING[number] for number in order[2:]))
    report = place.roll_up()
    assert not report.has_findings
    (row,) = place.published("api_key_day").itertuples()
    assert (row.requests, row.cost, row.input_tokens, row.output_tokens) == (1, Decimal("0.03"), 100, 40)


def test_without_that_header_the_earliest_counts_and_the_others_are_told_of(place: Place) -> None:
    write_format(place, "earliest")
    place.write_raw("house/a.jsonl", *GROWING)
    report = place.roll_up()
    assert [day.lines for day in report.disagreeing] == [3]
    (row,) = place.published("api_key_day").itertuples()
    assert (row.cost, row.output_tokens) == (Decimal(0), None), "the first state says nothing of tokens"


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        ({"output_tokens": 39, "cost": "0.04"}, 1),
        ({"output_tokens": 39, "input_tokens": 101}, 1),
        ({"output_tokens": 39, "cached_input_tokens": 11}, 1),
        ({"output_tokens": 39, "synapses": "0.5"}, 1),
        ({"output_tokens": 39, "model": "other"}, 1),
        ({"output_tokens": 39, "api_key_id": "key_2"}, 1),
        ({"output_tokens": 39}, 0),
        ({"output_tokens": 40, "cost": "0.02"}, 0),
        ({"output_tokens": 40, "input_tokens": 99}, 0),
    ],
)
def test_an_earlier_state_has_no_more_of_anything(place: Place, other: Record, lines: int) -> None:
    write_format(place, "most complete")
    counted: Record = {"cost": "0.03", "input_tokens": 100, "output_tokens": 40, "cached_input_tokens": 10}
    place.write_raw("house/a.jsonl", copy(9, **counted), copy(1, **{**counted, **other}))
    report = place.roll_up()
    assert sum(day.lines for day in report.disagreeing) == lines
    (row,) = place.published("organization_day").itertuples()
    assert (row.output_tokens, row.input_tokens, row.cost) == (40, 100, Decimal("0.03"))


def test_a_large_day_finds_the_same_disagreements(place: Place, in_buckets: Any) -> None:
    in_buckets(20)
    for number in range(4):
        own = [request(100 + 30 * number + n, timestamp=MOMENT) for n in range(20)]
        place.write_raw(f"{number}.jsonl", *own, copy(number, cost=f"0.0{number}"), request(9, timestamp=MOMENT))
    report = place.roll_up()
    (found,) = report.disagreeing
    assert (found.lines, found.request_id) == (3, "req_1")
    assert sorted((each.file, each.line) for each in found.copies) == [(f"{number}.jsonl", 21) for number in range(4)]
    (day,) = place.ledger().days.values()
    assert (day.counted, day.duplicate, day.conflicting, day.disagreeing) == (82, 6, 3, 3)


@pytest.mark.parametrize("copies", ["earliest", "most complete"])
def test_inspect_warns_of_the_copies_that_a_run_reports(place: Place, copies: str) -> None:
    """For 150 requests of two or three copies each, with values that differ in every way, nulls and zeros too."""
    chance = Random(11)
    choices: dict[str, list[Any]] = {
        "cost": ["0.01", "0.01", "0.02"],
        "input_tokens": [None, 0, 100, 100, 100],
        "output_tokens": [None, 0, 0, 40, 40],
        "cached_input_tokens": [None, 0],
        "reasoning_tokens": [None, 0],
        "api_key_id": ["key_1"] * 9 + [None],
        "model": ["gpt"] * 9 + [None],
        "status": [200, None],
    }
    records = []
    write_format(place, copies, moment="at")  # no native field, so that inspect takes the format
    for number in range(150):
        for _ in range(chance.choice([2, 2, 3])):
            moment = f"2025-11-10T12:00:0{chance.randrange(3)}Z"
            varied = chance.sample(sorted(choices), 3)
            usual = {"cost": "0.01", "input_tokens": 100, "output_tokens": 40, "model": "gpt", "timestamp": moment}
            fields = {**usual, **{name: chance.choice(choices[name]) for name in varied}}
            records.append(renamed(request(number, **fields)))
    path = place.write_raw("house/log.jsonl", *records)
    look = look_at(path, formats_of(place.store), place.now)
    place.roll_up()
    (day,) = place.ledger().days.values()
    assert look.repeats is not None
    assert (look.repeats.requests, look.repeats.disagreeing) == (day.duplicate, day.disagreeing)
    assert 20 < day.disagreeing < day.duplicate, "some disagree, and some do not"


def test_tokens_that_are_not_there_and_zero_tokens_are_no_disagreement(place: Place) -> None:
    write_format(place, "earliest", moment="at")
    records = [renamed(copy(1, input_tokens=tokens)) for tokens in (None, 0)]
    path = place.write_raw("house/log.jsonl", *records)
    look = look_at(path, formats_of(place.store), place.now)
    assert look.repeats is not None
    assert (look.repeats.requests, look.repeats.disagreeing, look.repeats.fields) == (1, 0, [])
    assert not place.roll_up().disagreeing
