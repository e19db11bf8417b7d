"""Drafts: how values are read, which tokens are cached, and which copy of a growing response counts."""

# ruff: noqa: F811  # the fixtures of the tests of drafts
from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.beginnings import csv_of
from pipeline.first_look import FirstLook, look_at
from pipeline.format import formats_of, write_format
from tests.conftest import Place, Record, lines
from tests.test_drafts import NOW, Drafted, call, day_of, drafted, usd  # noqa: F401  # fixtures
from tests.test_mutants import recounted

# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "stored"),
    [
        (["2026-11-10 10:00:00+00", "2026-11-10 10:00:01.5-05"], ["10:00:00", "15:00:01.500000"]),
        (["2026-11-10T10:00:00+0200"], ["08:00:00"]),
        (["2026-11-10 10:00:00 UTC", "2026-11-10 10:00:01"], ["10:00:00", "10:00:01"]),
        (["2026-11-10 10:00:00", "2026-11-10T12:00:00+02:00"], ["10:00:00", "10:00:00"]),
        ([1794268799999], ["23:59:59.999000"]),
        ([1794268799.25], ["23:59:59.250000"]),
        ([1794268799999999999], ["23:59:59.999999"]),  # not rounded into the next day
    ],
)
def test_a_moment_is_read_as_it_is_written(usd: Place, drafted: Drafted, times: list[Any], stored: list[str]) -> None:
    look = drafted(lines(*(call(number, started_at=time) for number, time in enumerate(times))))
    assert look.accepted == len(times)
    moments = [event["timestamp"].astimezone(UTC).time().isoformat() for event in usd.events("mine/log.jsonl")]
    assert moments == stored


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("0f" * 32, "0f" * 32),
        ("sha256:" + "0f" * 32, "sha256:" + "0f" * 32),
        ("sk-1", "sha256:2a3f3f5f28ed71a8bafed7b6a6a3a8e0cbd7b3bd5a4d9d7bd3d7d4d3f1a2c5e7"),
    ],
)
def test_a_sha256_is_not_hashed_again(usd: Place, drafted: Drafted, value: str, stored: str) -> None:
    record = call(1, token=value)
    del record["key_id"]
    drafted(lines(record))
    (event,) = usd.events("mine/log.jsonl")
    if value == "sk-1":
        assert event["api_key_id"].startswith("sha256:")
        assert event["api_key_id"] != value
    else:
        assert event["api_key_id"] == stored


def test_whole_numbers_that_a_table_wrote_as_floats_are_tokens(usd: Place, drafted: Drafted) -> None:
    drafted(
        b"id,ts,org,key_id,model,prompt_tokens,completion_tokens\n"
        b"1,2026-11-10T10:00:00Z,acme,k,gpt-4o,500.0,100.0\n"
        b"2,2026-11-10T10:00:00Z,acme,k,gpt-4o,1.5,\n",
        "a.csv",
    )
    assert (day_of(usd)["input_tokens"], usd.rejected("mine/a.csv")) == (500, [(3, "bad_type")])


LOOSE = ["5_00", "+7", " 7 ", ".7", "7.", "1_0.5", "\u0667", "0x10", "1e", "Infinity", "nan"]


@pytest.mark.parametrize("name", ["prompt_tokens", "status_code", "cost_usd", "cost_cents", "started_at"])
def test_only_json_s_numbers_are_numbers(usd: Place, drafted: Drafted, name: str) -> None:
    """DuckDB casts '5_00' to 500, '+7' to 7 and ' 7 ' to 7: a draft does not."""
    usual = 1794268800 if name == "started_at" else 200
    loose = [text.replace("7", "1794268800") for text in LOOSE] if name == "started_at" else LOOSE
    good = [{**call(number % 10), name: usual} for number in range(30)]
    drafted(lines(*good, *({**call(number % 10), name: text} for number, text in enumerate(loose))))
    reason = "bad_timestamp" if name == "started_at" else "bad_type"
    assert usd.rejected("mine/log.jsonl") == [(31 + number, reason) for number in range(len(loose))]
    assert recounted(usd).as_json()["differences"] == []


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("cost_usd", "-4e-13", "negative_amount"),
        ("cost_usd", -4e-13, "negative_amount"),
        ("cost_usd", "-0.0", "0"),
        ("cost_usd", "4e-13", "0"),
        ("cost_usd", "0.0000000000015", "0.000000000002"),  # half-even
        ("cost_usd", "1.5E+02", "150"),
        ("cost_usd", "1e-100", "0"),
        ("cost_cents", "-4e-11", "negative_amount"),
        ("cost_cents", "-0", "0"),
        ("cost_cents", "0.00000000015", "0.000000000002"),
        ("cost_cents", "1.5E+02", "1.5"),
        ("cost_cents", "123456789012e-9", "bad_type"),  # 123.46 cents, which the cast does not hold: no 123.46 dollars
        ("cost_cents", "123456789012", "bad_type"),
        ("cost_cents", "99999999", "999999.99"),
    ],
)
def test_a_cost_is_rounded_and_never_made_another(
    usd: Place, drafted: Drafted, name: str, value: Any, stored: str
) -> None:
    drafted(lines(*({**call(number), name: 1} for number in range(3)), {**call(9), name: value}))
    if stored[0].isdigit():
        assert [row["cost"] for row in usd.events("mine/log.jsonl") if row["line"] == 4] == [Decimal(stored)]
    else:
        assert usd.rejected("mine/log.jsonl") == [(4, stored)]
    assert recounted(usd).as_json()["differences"] == []


# --- CSV with semicolons ---------------------------------------------------------------------------------------------

GERMAN = (
    "Request ID;Timestamp;Organization;Key ID;Cost USD;Model;Prompt Tokens;Completion Tokens\n"
    "1;2026-11-10T10:00:00Z;acme;k;0,0021;gpt-4o, the large one;1000;60\n"
    "2;2026-11-10T10:00:01Z;acme;k;1,5;gpt-4o;200;10\n"
)


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
@pytest.mark.parametrize("decimals", [",", "."])
def test_a_csv_with_semicolons_or_tabs_is_read(
    usd: Place, drafted: Drafted, separator: str, name: str, decimals: str
) -> None:
    content = GERMAN.replace("0,0021", f"0{decimals}0021").replace("1,5", f"1{decimals}5").replace(";", separator)
    look = drafted(content.encode(), "a.csv")
    entry = f"-- csv: {name}, decimal commas\n" if decimals == "," else f"-- csv: {name}\n"
    assert entry in look.text
    assert day_of(usd) == {
        **{
            "requests": 2,
            "failed_requests": 0,
            "unpriced": 0,
            "cost": Decimal("1.5021"),
            "input_tokens": 1200,
            "output_tokens": 70,
        }
    }
    assert [event["model"] for event in usd.events("mine/a.csv")] == ["gpt-4o, the large one", "gpt-4o"]


THOUSANDS = (
    "Request ID;Timestamp;Organization;Key ID;Cost USD;Model;Prompt Tokens;Completion Tokens\n"
    "1;2026-11-10T10:00:00Z;acme;k;0,0021;gpt-4o;1.000;60\n"
    "2;2026-11-10T10:00:01Z;acme;k;1.234,50;gpt-4o;2.000;1.234.567\n"
)


def test_points_between_thousands_are_no_decimal_points(usd: Place, drafted: Drafted) -> None:
    # 0.0021 + 1234.5; 1000 + 2000; 60 + 1234567
    look = drafted(THOUSANDS.encode(), "a.csv")
    assert "-- csv: semicolons, decimal commas\n" in look.text
    day = day_of(usd)
    assert (day["cost"], day["input_tokens"], day["output_tokens"]) == (Decimal("1234.5021"), 3000, 1234627)
    assert recounted(usd).as_json()["differences"] == []


@pytest.mark.parametrize(
    ("cells", "decimal_commas"),
    [
        (["1.000", "2.000", "0,5"], True),
        (["1.234,50"], True),
        (["1.234.567,5", "1.5"], False),  # as many of either
        (["0,002"], True),
        (["1,000", "2,000", "12"], False),
        (["1,000", "2,000", "0.5"], False),
        (["1,234.50"], False),
        (["1.000", "2.000"], False),
        (["1.000", "0.5", "2,000"], False),
    ],
)
def test_a_number_that_may_be_a_thousand_does_not_say_which_sign_stands_before_decimals(
    cells: list[str], decimal_commas: bool
) -> None:
    assert csv_of("\n".join(["a;b", *(f"{cell};x" for cell in cells), ""]).encode()).decimal_commas == decimal_commas


@pytest.mark.parametrize(
    ("tokens", "separator", "cost"),
    [
        ("1.000", ";", "12"),
        ("1,000", ";", "12"),
        ("1,000", ";", "0.5"),
        ("1.000", ",", "0.5"),
        ('"1,000"', ",", "0.5"),
        ("1.000.000", ",", "0.5"),
        ("1000.000", ",", "0.5"),
    ],
)
def test_a_count_that_may_be_a_thousand_is_refused_and_never_one(
    usd: Place, drafted: Drafted, tokens: str, separator: str, cost: str
) -> None:
    row = "{0};2026-11-10T10:00:00Z;acme;k;{1};gpt-4o;{2};60\n"
    head = THOUSANDS.split("\n", 1)[0] + "\n" + row.format(1, cost, 500)
    content = head.replace(";", separator) + row.replace(";", separator).format(2, cost, tokens)
    drafted(content.encode(), "a.csv")
    assert usd.rejected("mine/a.csv") == [(3, "bad_type")]
    assert day_of(usd)["input_tokens"] == 500


def test_a_csv_of_semicolons_is_not_taken_for_the_shipped_format_csv(
    look: Callable[[Path], FirstLook], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("request_id;timestamp;organization_id;api_key_id;cost\n1;2026-11-10T10:00:00Z;acme;k;0,5\n")
    found = look(path)
    assert (found.format, found.accepted) == (None, 1)
    assert found.samples[0]["cost"] == "0.5"


@pytest.fixture
def look(place: Place) -> Callable[[Path], FirstLook]:
    return lambda path: look_at(path, formats_of(place.store), NOW)


def test_a_draft_says_no_more_of_a_record_than_names(look: Callable[[Path], FirstLook], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record = call(1, prompt_tokens="sk-secret-1", token="sk-secret-2", status_code="sk-secret-3")
    path.write_bytes(lines(record, call(2)))
    found = look(path)
    assert "sk-secret" not in found.text
    assert "sk-secret" not in json.dumps(found.notes)


# --- cached tokens, and responses that grow ---------------------------------------------------------------------------


def anthropic(number: int, **usage: Any) -> Record:
    return {
        **{"id": f"msg_{number}", "timestamp": f"2026-11-10T10:00:0{number}Z", "org": "acme", "key_id": "k"},
        **{"model": "claude", "usage": {"input_tokens": 100, "output_tokens": 10, **usage}},
    }


def test_the_cached_tokens_of_anthropic_s_usage_are_beside_the_input(usd: Place, drafted: Drafted) -> None:
    look = drafted(
        lines(
            anthropic(1, cache_read_input_tokens=900, cache_creation_input_tokens=50),
            anthropic(2, cache_read_input_tokens=0, cache_creation_input_tokens=0),
        )
    )
    assert "-- cached: beside input\n" in look.text
    events = usd.events("mine/log.jsonl")
    names = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
    assert [tuple(event[name] for name in names) for event in events] == [(1050, 900, 50), (100, 0, 0)]


FIVE_MINUTES, HOUR = "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"


def test_the_parts_of_anthropic_s_cache_writes_are_their_sum(usd: Place, drafted: Drafted) -> None:
    # 100 + 900 + 30 + 20; 100 + 40
    look = drafted(
        lines(
            anthropic(1, cache_read_input_tokens=900, cache_creation={FIVE_MINUTES: 30, HOUR: 20}),
            anthropic(2, cache_creation={FIVE_MINUTES: 40}),
            anthropic(3, cache_creation={FIVE_MINUTES: 40, HOUR: 1.5}),
            anthropic(4),
        )
    )
    assert "-- cached: beside input\n" in look.text
    names = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
    events = usd.events("mine/log.jsonl")
    assert [tuple(event[name] for name in names) for event in events] == [
        (1050, 900, 50),
        (140, None, 40),
        (100, None, None),
    ]
    assert usd.rejected("mine/log.jsonl") == [(3, "bad_type")]
    assert recounted(usd).as_json()["differences"] == []


def test_the_parts_of_cache_writes_are_not_added_to_their_sum(usd: Place, drafted: Drafted) -> None:
    look = drafted(lines(anthropic(1, cache_creation_input_tokens=50, cache_creation={FIVE_MINUTES: 30, HOUR: 20})))
    (event,) = usd.events("mine/log.jsonl")
    assert (event["input_tokens"], event["cache_write_tokens"]) == (150, 50)
    (warning,) = warnings(look)
    assert "ephemeral_1h_input_tokens are written for an hour, which Anthropic charges more for" in warning


def warnings(look: FirstLook) -> list[str]:
    """The warnings of a draft. Its text has them too."""
    found = [note for note in look.notes if note.startswith("WARNING: ")]
    assert all(f"-- WARNING (prices): {warning.removeprefix('WARNING: ')}\n" in look.text for warning in found)
    return found


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"cache_tokens": 900}, "cache_tokens"),
        ({"usage": {"cache": {"tokens_5m": 900}}}, "usage.cache.tokens_5m"),
        ({"cache_tokens": "a text"}, None),
        ({"cache_hit": 1}, None),
        ({"cached_tokens": 900, "cache_read_tokens": 900}, None),  # the same, twice
        ({"cache_tokens": 900, "cost_usd": 1}, None),  # the record has the cost
    ],
)
def test_a_field_that_looks_like_cached_tokens_and_is_not_used_is_a_warning(
    drafted: Drafted, fields: Record, named: str | None
) -> None:
    found = warnings(drafted(lines({**call(1, prompt_tokens=1000), **fields})))
    assert [warning.partition(" may hold tokens that were read from the cache")[0] for warning in found] == (
        [f"WARNING: {named}"] if named else []
    )


def test_envoy_s_cached_tokens_are_used(usd: Place, drafted: Drafted) -> None:
    record = {**call(1), "genai_tokens_input": 1000, "genai_tokens_cached_input": 900}
    del record["prompt_tokens"]
    assert warnings(drafted(lines(record))) == []
    (event,) = usd.events("mine/log.jsonl")
    assert (event["input_tokens"], event["cached_input_tokens"]) == (1000, 900)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 1000, "completion_tokens": 10, "cache_read_input_tokens": 900},
        {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 900}},
        {"gen_ai.usage.input_tokens": 1000, "gen_ai.usage.cache_read.input_tokens": 900},
        {"gen_ai.usage.input_tokens": 1000, "gen_ai.usage.cached_input_tokens": 900},
    ],
)
def test_other_cached_tokens_are_part_of_the_input(usd: Place, drafted: Drafted, usage: dict[str, Any]) -> None:
    record = {**anthropic(1), "usage": usage}
    look = drafted(lines(record))
    assert "cached: beside" not in look.text
    (event,) = usd.events("mine/log.jsonl")
    assert (event["input_tokens"], event["cached_input_tokens"]) == (1000, 900)


def test_cached_tokens_that_are_mostly_more_than_the_input_are_beside_it(usd: Place, drafted: Drafted) -> None:
    many = [{**call(number), "cached_tokens": 900} for number in range(3)]
    look = drafted(lines(*many))
    assert "-- 3 of 3 samples that have cached tokens have more of them than input tokens." in look.text
    assert {event["input_tokens"] for event in usd.events("mine/log.jsonl")} == {1400}


def test_one_contradiction_of_cached_tokens_is_refused_alone(usd: Place, drafted: Drafted) -> None:
    look = drafted(lines(*({**call(number), "cached_tokens": 900 if number == 2 else 100} for number in range(1, 5))))
    assert "cached: beside" not in look.text
    assert any("prompt_tokens is less than the cached tokens in 1 of 4 samples" in note for note in look.notes)
    assert usd.rejected("mine/log.jsonl") == [(2, "bad_type")]


def test_a_log_that_writes_a_response_while_it_grows_counts_its_last_state(usd: Place, drafted: Drafted) -> None:
    look = drafted(
        lines(call(1, completion_tokens=1), call(1, completion_tokens=40), call(1, completion_tokens=100), call(2))
    )
    assert "-- copies: most complete\n" in look.text
    assert day_of(usd)["cost"] == Decimal("0.0045")
    assert look.repeats is not None
    assert (look.repeats.requests, look.repeats.disagreeing) == (2, 0), "an earlier state is no disagreement"


def test_ids_that_repeat_in_other_requests_are_told(drafted: Drafted) -> None:
    look = drafted(lines(call(1, cost=3), call(1, cost=1), call(2, cost=1), call(2, cost=1)))
    assert "copies: most complete" not in look.text
    assert look.repeats is not None
    assert vars(look.repeats) == {"requests": 2, "disagreeing": 1, "lines": (1, 2), "fields": ["cost"]}


def transcript(request: str, tokens: int, **fields: Any) -> Record:
    """A line of the transcript that a coding agent keeps of its session."""
    usage = {"input_tokens": 3, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 20}
    message = {"id": "msg_1", "model": "claude", "role": "assistant", "usage": {**usage, "output_tokens": tokens}}
    return {
        **{"type": "assistant", "uuid": f"u-{request}-{tokens}", "sessionId": "s", "requestId": request},
        **{"timestamp": "2026-11-10T10:00:00.123Z", "message": message, **fields},
    }


def test_a_transcript_counts_each_response_once_and_tells_of_the_lines_that_are_none(
    usd: Place, tmp_path: Path
) -> None:
    user = {"type": "user", "uuid": "u", "timestamp": "2026-11-10T10:00:00Z", "message": {"role": "user"}}
    path = tmp_path / "session.jsonl"
    path.write_bytes(lines(user, transcript("req_1", 1), transcript("req_1", 500), transcript("req_2", 7)))
    look = look_at(path, {}, NOW)
    assert "organization_id: no field looks like it, and no line counts without one; if all lines are one" in look.text
    text = look.text.replace("null as organization_id", "'acme' as organization_id").replace(
        "null as api_key_id", "'agent' as api_key_id"
    )
    write_format(usd.store, "mine", text)
    usd.write_raw("mine/session.jsonl", path.read_bytes())
    usd.roll_up()
    ingested = usd.ledger().files["mine/session.jsonl"].take_in
    assert (ingested.lines, ingested.accepted, ingested.skipped) == (4, 3, 1)
    assert look_at(path, formats_of(usd.store), NOW).skipped == {"lines of the transcript without usage": 1}
    day = day_of(usd)
    assert (day["requests"], day["input_tokens"], day["output_tokens"]) == (2, 2 * 1023, 507)
