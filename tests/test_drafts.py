"""Drafts of logs that no format knows, put to work as they are. The numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
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


@pytest.mark.parametrize(
    "name",
    [
        *("x-api-key-id", "X-Api-Key-Id", "http_x_api_key_id", "xApiKeyId", "request.headers.x-api-key-id"),
        *("x-key-id", "api_key_uuid", "x-api-key-name", "token_id", "key_alias"),
    ],
)
def test_a_key_that_a_header_names_is_known_as_it_is(usd: Place, drafted: Drafted, name: str) -> None:
    record = {**envoy(1, "500", "100"), "x-org-id": "acme", name: "key_7"}
    del record["key_id"], record["organization_id"]
    drafted(lines(record))
    (event,) = usd.events("mine/log.jsonl")
    assert (event["organization_id"], event["api_key_id"]) == ("acme", "key_7")


@pytest.mark.parametrize("name", ["x-api-key", "http_x_api_key", "hashed_token"])
def test_a_header_that_holds_a_key_is_hashed(usd: Place, drafted: Drafted, name: str) -> None:
    record = {**envoy(1, "500", "100"), name: "sk-in-clear"}
    del record["key_id"]
    drafted(lines(record))
    (event,) = usd.events("mine/log.jsonl")
    assert event["api_key_id"] == "sha256:" + sha256(b"sk-in-clear").hexdigest()


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


@pytest.mark.parametrize(
    ("body", "currency"),
    [
        ({"id": "01A", "usage": {"cost": 0.0021, "is_byok": False}}, "USD"),
        ({"id": "gen-1794268810-aB3", "usage": {"cost": 0.0021}}, "USD"),
        ({"id": "chatcmpl-1", "usage": {"cost": 0.0021}}, None),
    ],
)
def test_openrouter_s_response_bodies(usd: Place, drafted: Drafted, body: Record, currency: str | None) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 60, **body["usage"]}
    record = {"object": "chat.completion", "created": 1794268810, "model": "openai/gpt-4o", "provider": "OpenAI"}
    look = drafted(lines({**record, **body, "usage": usage, "organization_id": "acme", "key_id": "k"}))
    assert ("-- OpenRouter writes its costs in US dollars." in look.text) == (currency is not None)
    (event,) = usd.events("mine/log.jsonl")
    assert (event["cost"], event["currency"], event["input_tokens"]) == (Decimal("0.0021"), currency, 1000)


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
