"""Each shipped SQL with one wrong column: a recount that does not run that SQL must see it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

import pipeline.format
from cli import main
from pipeline.engine import statement
from pipeline.format import SHIPPED
from pipeline.reconcile import Reconciliation, reconcile
from pipeline.run import start_run
from tests.conftest import Place, Record

NOW = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)
PRICES = (
    "model,valid_from,input_per_million,output_per_million,cached_input_per_million,cache_write_per_million,currency\n"
    "gpt-4o,2026-01-01,2.5,10,1.25,5,CHF\n"
    "dated-gpt-4o,2026-01-01,3.5,11,1.75,6,CHF\n"
)
RATES = "day,from,to,rate\n2026-11-10,USD,CHF,0.8\n2026-11-11,USD,CHF,0.8\n"

# Columns that no published number depends on. They stand in the events, for people to look at.
SHOWN_ONLY = {"deployed_model", "provider"}


# --- small logs: each has copies, and records that break a rule for tokens ------------------------------------------


def litellm(number: int, **fields: Any) -> Record:
    """A record of LiteLLM's proxy. `usage`, `metadata`: more fields of these objects."""
    usage = {"prompt_tokens_details": {"cached_tokens": 30, "cache_creation_tokens": 20}}
    usage |= {"completion_tokens_details": {"reasoning_tokens": 5}, **fields.pop("usage", {})}
    metadata = {"user_api_key_hash": f"{number % 2}" * 64, "user_api_key_org_id": "acme", "usage_object": usage}
    metadata |= {"user_api_key_request_route": "/v1/chat/completions", **fields.pop("metadata", {})}
    return {
        "id": f"chatcmpl-{number}",
        "litellm_call_id": f"call-{number}",
        "call_type": "acompletion",
        "status": "success",
        "startTime": 1794272401.25 + number,  # 2026-11-10T01:00:01.25Z
        "model": "openai/gpt-4o",
        "model_group": "gpt-4o",
        "custom_llm_provider": "openai",
        "metadata": metadata,
        "response_cost": 0.001,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "error_information": None,
        **fields,
    }


def tokens_of(cached: int = 30, written: int = 20, reasoning: int = 5) -> Record:
    return {
        "prompt_tokens_details": {"cached_tokens": cached, "cache_creation_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


LITELLM = [
    litellm(1),
    litellm(1),  # the same record, sent twice
    litellm(2, id="chatcmpl-1"),  # a server that repeats its ids
    litellm(3, status="failure", error_information={"error_code": "429"}, response_cost=0),
    litellm(4, metadata={"user_api_key_hash": ""}),
    litellm(5, usage=tokens_of(cached=90)),  # refused: 90 + 20 of 100
    litellm(6, usage=tokens_of(written=80)),  # refused
    litellm(7, usage=tokens_of(reasoning=11)),  # refused: 11 of 10
    litellm(8, metadata={"user_api_key_request_route": "/a"}),
    litellm(8, metadata={"user_api_key_request_route": "/b"}),  # conflicts with the one before in its path alone
]


def nginx(number: int, **fields: Any) -> Record:
    """A line of the access log."""
    return {
        "msec": 1794301201.5 + number,  # 2026-11-10T09:00:01.5Z
        "request_id": f"{number:032}",
        "uri": "/v1/chat/completions",
        "status": 200,
        "request_time": 0.25,
        "http_x_org_id": "acme",
        "http_x_api_key_id": f"key_{number % 2}",
        "http_x_model": "gpt-4o",
        "upstream_status": "200",
        "upstream_x_prompt_tokens": "1000",
        "upstream_x_completion_tokens": "100",
        **fields,
    }


NGINX = [
    nginx(1),
    nginx(1),
    nginx(2, status=502, upstream_x_prompt_tokens="", upstream_x_completion_tokens="-"),
    nginx(3, http_x_api_key_id=""),
    nginx(4),
    nginx(4, uri="/other"),
    nginx(5, upstream_status=""),  # from nginx's own cache
    nginx(6, upstream_status="-"),
]


def span(number: int, **more: Any) -> Record:
    """A span of a trace of its own that calls a model. `attributes`, by name, are put in place of the usual ones."""
    attributes = {
        "keytally.organization_id": "acme",
        "keytally.api_key_id": f"key_{number % 2}",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "dated-gpt-4o",
        "gen_ai.response.id": f"resp_{number}",
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 100,
        "gen_ai.usage.cache_read.input_tokens": 300,
        "gen_ai.usage.cache_creation.input_tokens": 200,
        "gen_ai.usage.reasoning.output_tokens": 50,
        **more.pop("attributes", {}),
    }
    return {
        "traceId": f"{number:032}",
        "spanId": f"{number:016}",
        "parentSpanId": "",
        "startTimeUnixNano": str(1794276001123456789 + number * 10**9),  # 2026-11-10T02:00:01Z
        "attributes": [
            {"key": name, "value": {"intValue": str(value)} if type(value) is int else {"stringValue": value}}
            for name, value in attributes.items()
            if value is not None
        ],
        "status": {},
        **more,
    }


def export(*spans: Record, scope: str = "s") -> Record:
    """One line: a resource with spans of one instrumentation."""
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": scope}, "spans": spans}]}]}


FAILED = {"error.type": "timeout", "gen_ai.response.id": None}
NO_USAGE = dict.fromkeys(
    [
        *("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens"),
        *("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.reasoning.output_tokens"),
    ]
)
OTEL = [
    export(span(1)),
    export(span(1)),  # the same span, sent twice
    export(span(2), span(2, attributes={"gen_ai.operation.name": "text_completion"})),  # copies with two paths
    export(
        span(10, attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.response.id": None}),
        # A tool between the agent and its call: the agent is skipped all the same.
        span(
            10, spanId="a1", parentSpanId=f"{10:016}", attributes={"gen_ai.operation.name": "execute_tool", **NO_USAGE}
        ),
        span(10, spanId="a2", parentSpanId="a1", attributes={"gen_ai.response.id": "resp_a2"}),
    ),
    export(
        span(11, attributes={**FAILED, **NO_USAGE}),
        span(11, spanId="b1", parentSpanId=f"{11:016}", attributes={**FAILED, **NO_USAGE}),  # the same call once more
    ),
    # Two failed spans side by side, of two instrumentations: they may tell of one call.
    export(span(15, spanId="c1", parentSpanId="c0", attributes={**FAILED, **NO_USAGE}), scope="one"),
    export(span(15, spanId="c2", parentSpanId="c0", attributes={**FAILED, **NO_USAGE}), scope="two"),
    export(span(12, attributes={"keytally.api_key_id": None})),
    export(span(13, attributes={"gen_ai.usage.cache_read.input_tokens": 801})),  # refused: 801 + 200 of 1000
    export(span(14, attributes={"gen_ai.usage.reasoning.output_tokens": 101})),  # refused: 101 of 100
    export(),
]
LOGS = {"litellm": LITELLM, "nginx": NGINX, "otel-genai": OTEL}


# --- the mutants -----------------------------------------------------------------------------------------------------

PLUS_ONE = "cast(try_cast({0} as bigint) + 1 as varchar)"
PLUS_MANY = "cast(try_cast({0} as bigint) + 100 as varchar)"
WRONG = {
    "request_id": ["{0} || line", "left({0}, 4)"],
    "timestamp": ["replace({0}, '-10T', '-11T')"],
    "organization_id": ["upper({0})"],
    "api_key_id": ["'key'"],
    "synapses": ["'0.5'"],
    "neurons": ["'0.5'"],
    "model": ["'other'", "null"],
    "endpoint": ["null"],
    "status": ["'200'", "null"],
    "input_tokens": [PLUS_ONE, "null"],
    "output_tokens": [PLUS_ONE, "null"],
}
COST = {"cost": ["cast(try_cast({0} as decimal(18, 12)) * 2 as varchar)"]}
PARTS_OF_TOKENS = {
    name: [PLUS_MANY, "null"] for name in ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens")
}
TRACE = {
    "skipped": ["null", "'all'"],
    "record_id": ["{0} || 'x'"],
    "parent_id": ["null"],
    "role": ["null", "'call'"],
    "scope": ["null"],
}
WRONG_IN = {
    "litellm": {**WRONG, **COST, **PARTS_OF_TOKENS},
    "nginx": {**WRONG, "cost": ["null", "'0'"]},
    "otel-genai": {**WRONG, **PARTS_OF_TOKENS, **TRACE},
}
MUTANTS = [
    (name, column, wrong)
    for name, columns in WRONG_IN.items()
    for column, several in columns.items()
    for wrong in several
]


def columns_of(text: str) -> set[str]:
    """The columns that a format's SQL gives."""
    with duckdb.connect() as connection:
        connection.execute(statement("format_functions"))
        connection.execute("create table records (line bigint, record json)")
        return {name for name, *_ in connection.execute(f"describe {text.rstrip().rstrip(';')}").fetchall()}


def mutated(text: str, column: str, wrong: str) -> str:
    """A format's text with a wrong expression for one of its columns."""
    rows = text.splitlines()
    header = next(number for number, row in enumerate(rows) if not row.startswith("--"))
    body = "\n".join(rows[header:]).rstrip().rstrip(";")
    head = "\n".join(rows[:header])
    return f"{head}\nselect * replace ({wrong.format(column)} as {column}) from (\n{body}\n)\n"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands in for the shipped formats."""
    folder = tmp_path / "formats"
    shutil.copytree(SHIPPED, folder)
    monkeypatch.setattr("pipeline.format.SHIPPED", folder)
    monkeypatch.setattr("pipeline.reconcile.SHIPPED", folder)
    pipeline.format._shipped.cache_clear()
    yield folder
    monkeypatch.undo()
    pipeline.format._shipped.cache_clear()


def publish(place: Place, name: str) -> None:
    place.now = NOW
    place.layout.prices.write_text(PRICES, encoding="utf-8")
    place.layout.rates.write_text(RATES, encoding="utf-8")
    place.write_raw(f"{name}/log.jsonl", *(json.dumps(record) for record in LOGS[name]))
    report = place.roll_up()
    assert not report.held_back


def recounted(place: Place) -> Reconciliation:
    with start_run(place.settings, lambda: place.now) as run:
        return reconcile(run, date(2026, 11, 1), date(2026, 11, 30))


@pytest.mark.parametrize("name", LOGS)
def test_a_shipped_format_equals_a_plain_reading_of_its_log(place: Place, name: str) -> None:
    publish(place, name)
    assert recounted(place).as_json()["differences"] == []
    day = place.ledger().days[date(2026, 11, 10)]
    # Each log has what a mutant may spoil, by hand: copies of two requests, one of them in conflict, one without a key.
    # In the traces, the two spans of a failed call are copies as well.
    assert day.counted > 2
    assert day.duplicate == (3 if name == "otel-genai" else 2)
    assert day.session == 1
    assert day.conflicting == 1


@pytest.mark.parametrize(("name", "column", "wrong"), MUTANTS)
def test_a_wrong_column_of_a_shipped_format_is_a_difference(
    place: Place, shipped: Path, name: str, column: str, wrong: str
) -> None:
    path = shipped / f"{name}.sql"
    path.write_text(mutated(path.read_text(encoding="utf-8"), column, wrong), encoding="utf-8")
    publish(place, name)
    assert not recounted(place).equal


# --- the mutants are complete ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOGS)
def test_every_column_of_a_shipped_format_has_a_mutant(name: str) -> None:
    columns = columns_of((SHIPPED / f"{name}.sql").read_text(encoding="utf-8"))
    assert columns - {"line"} - SHOWN_ONLY == set(WRONG_IN[name])


def test_a_mutant_ends_the_command_with_3(place: Place, shipped: Path) -> None:
    path = shipped / "nginx.sql"
    path.write_text(mutated(path.read_text(encoding="utf-8"), "input_tokens", PLUS_ONE), encoding="utf-8")
    publish(place, "nginx")
    environment = {"KEYTALLY_DATA": str(place.layout.root), "KEYTALLY_MEMORY_LIMIT": "512MB", "KEYTALLY_THREADS": "2"}
    result = CliRunner().invoke(main, ["reconcile", "--from", "2026-11-01", "--to", "2026-11-30"], env=environment)
    assert (result.exit_code, "input_tokens" in result.stdout) == (3, True)


def test_a_format_of_the_deployment_s_own_is_recounted_by_its_own_sql(place: Place) -> None:
    text = (SHIPPED / "nginx.sql").read_text(encoding="utf-8")
    place.layout.formats.mkdir(parents=True)
    (place.layout.formats / "nginx.sql").write_text(mutated(text, "input_tokens", PLUS_ONE), encoding="utf-8")
    publish(place, "nginx")
    assert recounted(place).equal, "what this SQL says is right by definition"
