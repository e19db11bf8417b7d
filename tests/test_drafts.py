"""Drafts of logs that no format knows, put to work as they are. The numbers are worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.first_look import FirstLook, look_at
from pipeline.format import formats_of, write_format
from tests.conftest import Place, Record, lines

NOW = datetime(2026, 12, 1, tzinfo=UTC)
BOOK = "model,valid_from,input_per_million,output_per_million,currency\ngpt-4o,2026-01-01,2.5,10,USD\n"

Drafted = Callable[..., FirstLook]


@pytest.fixture
def usd(tmp_path: Path) -> Place:
    place = Place(tmp_path / "root", KEYTALLY_CURRENCY="USD")
    place.now = NOW
    place.layout.prices.write_text(BOOK)
    return place


@pytest.fixture
def drafted(usd: Place, tmp_path: Path) -> Drafted:
    """Inspect a log, write its draft, put the log below raw/mine/ and roll up."""

    def draft(content: bytes, name: str = "log.jsonl") -> FirstLook:
        (tmp_path / name).write_bytes(content)
        look = look_at(tmp_path / name, formats_of(usd.store), NOW)
        assert look.format is None, look.format
        write_format(usd.store, "mine", look.text)
        usd.write_raw(f"mine/{name}", content)
        report = usd.roll_up()
        assert not report.held_back
        return look

    return draft


def day_of(place: Place, day: str = "2026-11-10") -> dict[str, Any]:
    """What is published of the organization acme on a day."""
    (row,) = (row for row in place.published("organization_day").to_dict("records") if str(row["day"]) == day)
    assert row["organization_id"] == "acme"
    names = ("requests", "failed_requests", "unpriced", "cost", "input_tokens", "output_tokens")
    return {name: Decimal(row[name]) if name == "cost" else row[name] for name in names}


# --- logs as producers write them ------------------------------------------------------------------------------------


def test_of_two_units_of_time_the_more_frequent_counts_and_the_other_is_refused(usd: Place, drafted: Drafted) -> None:
    call = {"tenant_id": "acme", "key_id": "k1", "model": "m"}
    look = drafted(
        lines(
            {"id": "a", "created": 1794268810, **call, "cost_usd": 0.01, "input_tokens": 10, "output_tokens": 1},
            {"id": "b", "created": 1794268820000000000, **call, "cost_usd": 0.05, "input_tokens": 10},
            {"id": "c", "created": 1794268830, **call, "cost_usd": 0.02, "input_tokens": 20, "output_tokens": 2},
        )
    )
    assert "timestamp: seconds since 1970; of 3 samples, 1 in nanoseconds: refused (bad_timestamp)" in look.text
    assert day_of(usd) == {
        **{
            "requests": 2,
            "failed_requests": 0,
            "unpriced": 0,
            "cost": Decimal("0.03"),
            "input_tokens": 30,
            "output_tokens": 3,
        }
    }
    assert usd.rejected("mine/log.jsonl") == [(2, "bad_timestamp")]


def envoy(number: int, tokens_in: str, tokens_out: str, **fields: Any) -> Record:
    return {
        "start_time": f"2026-11-10T23:59:0{number}.960Z",
        "x-request-id": f"91ddd4b4-0000-4000-8000-00000000000{number}",
        "method": "POST",
        "response_code": 200,
        "path": "/v1/chat/completions",
        "organization_id": "acme",
        "key_id": "key_1",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": tokens_in,
        "gen_ai.usage.output_tokens": tokens_out,
        **fields,
    }


def test_the_flat_names_of_envoy_are_known_and_its_dash_is_a_missing_value(usd: Place, drafted: Drafted) -> None:
    # 500 + 1000 in, 100 + 200 out: (1500 * 2.5 + 300 * 10) / 1e6
    look = drafted(lines(envoy(1, "500", "100"), envoy(2, "-", "-"), envoy(3, "1000", "200")))
    assert "-- '-' stands for a missing value, as Envoy and nginx write it." in look.text
    assert day_of(usd) == {
        **{
            "requests": 3,
            "failed_requests": 0,
            "unpriced": 1,
            "cost": Decimal("0.00675"),
            "input_tokens": 1500,
            "output_tokens": 300,
        }
    }
    assert usd.rejected("mine/log.jsonl") == []


def test_a_dash_for_a_key_or_a_model_is_none(usd: Place, drafted: Drafted) -> None:
    no_model = {"gen_ai.request.model": "-", "gen_ai.response.model": "-"}
    deployed = {"gen_ai.request.model": "-"}
    drafted(lines(envoy(1, "500", "100", key_id="-"), envoy(2, "1", "1", **no_model), envoy(3, "1", "1", **deployed)))
    events = usd.events("mine/log.jsonl")
    shown = {(event["api_key_id"], event["model"], event["deployed_model"], event["provider"]) for event in events}
    dated = "gpt-4o-2024-08-06"
    assert shown == {
        *((None, "gpt-4o", dated, "openai"), ("key_1", None, None, "openai"), ("key_1", dated, dated, "openai"))
    }


def call(number: int, **fields: Any) -> Record:
    return {
        "id": f"r{number}",
        "started_at": f"2026-11-10T10:00:0{number}Z",
        "tenant_id": "acme",
        "key_id": "k1",
        "model": "gpt-4o",
        "status_code": 200,
        "prompt_tokens": 500,
        "completion_tokens": 100,
        **fields,
    }


def test_one_dash_among_the_tokens_drops_no_column(usd: Place, drafted: Drafted) -> None:
    # 2 * (500 * 2.5 + 100 * 10) / 1e6
    drafted(lines(call(1), call(2, prompt_tokens="-", completion_tokens="-"), call(3)))
    assert day_of(usd) == {
        **{
            "requests": 3,
            "failed_requests": 0,
            "unpriced": 1,
            "cost": Decimal("0.0045"),
            "input_tokens": 1000,
            "output_tokens": 200,
        }
    }


@pytest.mark.parametrize(
    ("name", "odd", "reason"),
    [
        ("prompt_tokens", "n/a", "bad_type"),
        ("prompt_tokens", 1.5, "bad_type"),
        ("completion_tokens", "12 tokens", "bad_type"),
        ("status_code", "teapot", "bad_type"),
        ("started_at", "yesterday", "bad_timestamp"),
        ("started_at", 1794268810, "bad_timestamp"),
        ("started_at", "2026-11-10 10:00", "bad_timestamp"),
    ],
)
def test_one_odd_value_costs_its_own_record_and_no_column(
    usd: Place, drafted: Drafted, name: str, odd: Any, reason: str
) -> None:
    look = drafted(lines(call(1), call(2), call(3, **{name: odd}), call(4)))
    assert usd.rejected("mine/log.jsonl") == [(3, reason)]
    assert day_of(usd)["requests"] == 3
    assert day_of(usd)["cost"] == Decimal("0.00675")
    if odd != 1794268810:
        assert any(f"of 4 samples of {name}, 1 not a" in note and reason in note for note in look.notes)


def test_an_odd_cost_costs_its_own_record(usd: Place, drafted: Drafted) -> None:
    drafted(lines(call(1, cost="0.5"), call(2, cost="free"), call(3, cost="0.25")))
    assert (usd.rejected("mine/log.jsonl"), day_of(usd)["cost"]) == ([(2, "bad_type")], Decimal("0.75"))


def test_a_draft_says_when_no_field_or_no_value_looks_like_tokens_model_or_cost(drafted: Drafted) -> None:
    record = {"id": "1", "ts": "2026-11-10T10:00:00Z", "org": "acme", "key_id": "k", "prompt_tokens": "many"}
    look = drafted(lines(*({**record, "id": str(number)} for number in range(20))))
    assert "input_tokens: prompt_tokens is named like it, but of 20 samples none is a whole number" in look.text
    assert any(note.startswith("input_tokens: prompt_tokens is named like it") for note in look.notes)
    for name in ("output_tokens", "model", "cost"):
        assert f"-- {name}: no field looks like it" in look.text
        assert any(note.startswith(f"{name}: no field looks like it") for note in look.notes)


def test_half_of_the_samples_may_disagree(usd: Place, drafted: Drafted) -> None:
    look = drafted(lines(*(call(number, prompt_tokens=500 if number % 2 else "unknown") for number in range(10))))
    assert "-- input_tokens: of 10 samples of prompt_tokens, 5 not a whole number: refused (bad_type)" in look.text
    assert day_of(usd)["requests"] == 5


def test_openrouter_s_activity_csv(usd: Place, drafted: Drafted) -> None:
    look = drafted(
        b"generation_id,created_at,cost_total,cost_cache,tokens_prompt,tokens_completion,tokens_reasoning,tokens_cached,"
        b"model_permaslug,provider_name,user,api_key_name,organization\n"
        b"gen-1,2026-11-10 10:00:00.123,0.0030,-0.0010,1000,100,20,800,openai/gpt-4.1,OpenAI,,prod,acme\n"
        b"gen-2,2026-11-10 10:00:01,0.0015,0,500,50,0,0,openai/gpt-4.1,OpenAI,,prod,acme\n",
        "activity.csv",
    )
    assert "-- OpenRouter writes its costs in US dollars." in look.text
    assert day_of(usd) == {
        **{
            "requests": 2,
            "failed_requests": 0,
            "unpriced": 0,
            "cost": Decimal("0.0045"),
            "input_tokens": 1500,
            "output_tokens": 150,
        }
    }
    names = ("cached_input_tokens", "reasoning_tokens", "provider")
    events = usd.events("mine/activity.csv")
    assert [tuple(event[name] for name in names) for event in events] == [(800, 20, "OpenAI"), (0, 0, "OpenAI")]


SPEND = {
    "call_type": "acompletion",
    "api_key": "a" * 64,
    "total_tokens": 521,
    "model": "openai/gpt-4o",
    "model_group": "gpt-4o",
    "organization_id": "acme",
    "team_id": "t",
}


def test_litellm_s_spend_logs(usd: Place, drafted: Drafted) -> None:
    look = drafted(
        lines(
            {**SPEND, "request_id": "chatcmpl-1", "spend": 0.0023, "prompt_tokens": 121, "completion_tokens": 400}
            | {"startTime": "2026-11-10 12:47:35.248", "status": "success"},
            {**SPEND, "request_id": "chatcmpl-2", "spend": 0.0001, "prompt_tokens": 9, "completion_tokens": 10}
            | {"startTime": "2026-11-10 23:59:59.999", "status": "failure", "model_group": ""},
        )
    )
    assert "-- LiteLLM writes its costs in US dollars." in look.text
    assert day_of(usd) == {
        **{
            "requests": 2,
            "failed_requests": 1,
            "unpriced": 0,
            "cost": Decimal("0.0024"),
            "input_tokens": 130,
            "output_tokens": 410,
        }
    }
    events = usd.events("mine/log.jsonl")
    assert {event["api_key_id"] for event in events} == {"a" * 64}, "it is a SHA-256 already"
    models = [(event["model"], event["deployed_model"]) for event in events]
    assert models == [("gpt-4o", "openai/gpt-4o"), ("openai/gpt-4o", "openai/gpt-4o")]


def test_cloudflare_s_ai_gateway(usd: Place, drafted: Drafted) -> None:
    common = {"model": "gpt-4o", "path": "chat/completions", "provider": "openai", "status_code": 200, "success": True}
    common |= {"tokens_in": 1000, "tokens_out": 60, "account_id": "acme", "key_id": "k1"}
    drafted(
        lines(
            {"id": "01A", "created_at": "2026-11-10T10:00:00Z", "cached": False, "cost": 0.0021, **common},
            {"id": "01B", "created_at": "2026-11-10T10:00:01Z", "cached": True, "cost": 0, **common},
            {"id": "01C", "created_at": "2026-11-10T10:00:02Z", "cached": False, "cost": 0.001, **common}
            | {"tokens_in": 200, "tokens_out": 10},
        )
    )
    assert day_of(usd) == {
        **{
            "requests": 3,
            "failed_requests": 0,
            "unpriced": 0,
            "cost": Decimal("0.0031"),
            "input_tokens": 2200,
            "output_tokens": 130,
        }
    }


def test_portkey_s_cents(usd: Place, drafted: Drafted) -> None:
    portkey = {
        **{"trace_id": "t", "created_at": "2026-11-10T10:00:00.000Z", "is_success": 1, "ai_org": "openai"},
        **{"ai_model": "gpt-4o", "req_units": 500, "res_units": 100, "total_units": 600, "cost": 0.225},
        **{"cost_currency": "USD", "request_url": "https://api.openai.com/v1/chat/completions"},
        **{"response_status_code": 200, "virtual_key": "vk", "metadata": {"organization_id": "acme"}},
    }
    look = drafted(lines({"id": "1", **portkey}, {"id": "2", **portkey, "cost": 0.1234567891234}))
    assert "-- cost: is in cents" in look.text
    costs = [event["cost"] for event in usd.events("mine/log.jsonl")]
    assert costs == [Decimal("0.00225"), Decimal("0.001234567891")]
    assert day_of(usd)["input_tokens"] == 1000


def test_helicone_s_requests(usd: Place, drafted: Drafted) -> None:
    helicone = {
        **{"request_id": "h1", "response_id": "x", "request_created_at": "2026-11-10T10:00:00+00:00"},
        **{"response_status": 200, "request_model": "gpt-4o", "response_model": "gpt-4o-2024", "provider": "OPENAI"},
        **{"prompt_tokens": 500, "completion_tokens": 100, "prompt_cache_read_tokens": 300, "reasoning_tokens": 20},
        **{"cost": 0.00225, "request_path": "/v1/chat/completions", "request_properties": {"org": "acme"}},
    }
    drafted(lines(helicone))
    (event,) = usd.events("mine/log.jsonl")
    shown = {name: event[name] for name in ("request_id", "model", "status", "endpoint", "cached_input_tokens")}
    assert shown == {
        **{"request_id": "h1", "model": "gpt-4o", "status": 200, "endpoint": "/v1/chat/completions"},
        "cached_input_tokens": 300,
    }
    assert event["currency"] == "USD"


# --- cached tokens, and responses that grow ---------------------------------------------------------------------------


def anthropic(number: int, **usage: int) -> Record:
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
    assert "-- 3 of 3 samples with cached tokens have more of them than input tokens." in look.text
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


KONG = {
    "started_at": 1794276000123,
    "service": {"id": "167290ee", "host": "api.openai.com", "created_at": 1614232642},
    "route": {"id": "78f79740", "created_at": 1614232648},
    "workspace": "b4a1e9a2",
    "request": {"uri": "/v1/chat/completions", "size": 323},
    "response": {"status": 200, "size": 827},
    "authenticated_entity": {"id": "c62c1455"},
    "ai": {
        "proxy": {
            "usage": {"prompt_tokens": 500, "completion_tokens": 100, "cost": 0.00225},
            "meta": {"request_model": "gpt-4o", "provider_name": "openai", "plugin_id": "p"},
        }
    },
}


def test_kong_s_consumer_is_an_organization_or_a_key_and_never_a_request(usd: Place, drafted: Drafted) -> None:
    consumer = {"id": "c1", "custom_id": "acme", "username": "acme-prod"}
    look = drafted(lines({**KONG, "consumer": consumer, "request": {**KONG["request"], "id": "9ec9264a"}}))  # type: ignore[dict-item]
    (event,) = usd.events("mine/log.jsonl")
    assert (event["request_id"], event["organization_id"], event["api_key_id"]) == ("9ec9264a", "acme", "c62c1455")
    assert (event["endpoint"], event["status"], event["model"]) == ("/v1/chat/completions", 200, "gpt-4o")
    assert "custom_id" not in look.fields["request_id"]


def test_without_an_id_of_its_own_kong_s_request_has_none(drafted: Drafted) -> None:
    look = drafted(lines({**KONG, "consumer": {"id": "c1", "custom_id": "acme"}}))
    assert look.fields["request_id"] == "null"
    assert "request_id: no field looks like it" in look.text


def test_of_a_log_with_several_organizations_in_columns_the_fuller_column_is_taken(drafted: Drafted) -> None:
    look = drafted(lines(call(1, organization_id="x"), *(call(number) for number in range(2, 9))))
    assert "record->>'tenant_id' as organization_id" in look.text


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
