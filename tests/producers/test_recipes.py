"""Everything in docs/formats.md that a reader copies runs here, against the zeros that its own producer writes.

Zeros: answers from a cache, free models, errors, and streams of which nobody counted the tokens.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import types
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline import format as formats
from tests.conftest import Place, Record
from tests.producers.count import cost_of
from tests.producers.make_litellm import PYTHON_BLOCK
from tests.producers.make_nginx import DOCS, documented_lines
from tests.producers.published import SAMPLES, assert_counted, calls_of, put_in_place, read_expected

SHIPPED = Path(formats.__file__).parent / "formats/litellm.sql"
WITH_PRICE_BOOK = DOCS.parent / "formats/litellm-with-price-book.sql"
# What the variant for the price book changes in the shipped format.
CHANGES = {
    "-- prices: record\n": "-- prices: book\n",
    """            '$.model_id'
        ])""": """            '$.model_id',
            '$.cache_hit'
        ])""",
    """value[23] as model_id
""": """value[23] as model_id,
        lower(value[24]) = 'true' as cache_hit
""",
    """    rounded_cost(response_cost) as cost,
""": """    case
        when outcome = 'success'
            and cache_hit is not true
            and not (is_look and coalesce(try_cast(input_tokens as hugeint), 0) = 0)
            and try_cast(number_text(response_cost) as decimal(38, 30)) = 0 then null
        else rounded_cost(response_cost)
    end as cost,
""",
}
LITELLM = next(SAMPLES.glob("litellm-proxy-*.expected.json"))


def blocks(language: str) -> list[str]:
    """Return the blocks of docs/formats.md in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_every_block_of_sql_in_the_docs_runs_in_a_test_of_this_file() -> None:
    own, cost = blocks("sql")
    assert "The log of our own gateway" in own
    assert cost.strip("\n") == list(CHANGES.values())[-1].strip("\n")
    assert len(blocks("python")) == len(blocks("nginx")) == 1


# --- LiteLLM -------------------------------------------------------------------------------------------------------


def test_the_variant_for_the_price_book_is_the_shipped_format_with_the_documented_changes() -> None:
    expected = SHIPPED.read_text(encoding="utf-8")
    for old, new in CHANGES.items():
        assert expected.count(old) == 1, old
        expected = expected.replace(old, new)
    if os.environ.get("KEYTALLY_WRITE_DOCS"):
        WITH_PRICE_BOOK.parent.mkdir(exist_ok=True)
        WITH_PRICE_BOOK.write_text(expected, encoding="utf-8")
        return
    assert WITH_PRICE_BOOK.read_text(encoding="utf-8") == expected, "the format changed: `make docs` writes it anew"


def with_price_book(place: Place) -> None:
    """Copy the variant as the docs say."""
    place.layout.formats.mkdir()
    (place.layout.formats / "litellm.sql").write_bytes(WITH_PRICE_BOOK.read_bytes())


def test_the_variant_prices_only_what_litellm_knows_no_price_of(tmp_path: Path) -> None:
    """One record of the genuine log differs: the model without a price. Cache hits, free models and errors stay 0."""
    expected = read_expected(LITELLM)
    (log,) = SAMPLES.glob("litellm-proxy-*.jsonl.gz")
    place = put_in_place(tmp_path / "data", log, expected)
    with_price_book(place)
    book = place.layout.root / "prices.csv"
    book.write_text(book.read_text(encoding="utf-8") + "llama-without-price,2026-01-01,1,2,,,USD\n")
    assert not place.roll_up().has_findings
    calls = [
        replace(call, cost="0.000084") if call.call == "no-price" else call  # 70 at 1 and 7 at 2 dollars a million
        for call in calls_of(expected)
    ]
    assert_counted(place, calls)


def test_the_variant_says_which_models_have_no_price_anywhere(tmp_path: Path) -> None:
    expected = read_expected(LITELLM)
    (log,) = SAMPLES.glob("litellm-proxy-*.jsonl.gz")
    place = put_in_place(tmp_path / "data", log, expected)
    with_price_book(place)
    (day,) = place.roll_up().unpriced
    assert (day.requests, day.missing) == (1, ["a price of llama-without-price"])


@pytest.mark.parametrize("hit", [True, "True", "true"])
def test_an_answer_of_the_proxys_cache_costs_nothing_with_the_variant(hit: object, place: Place) -> None:
    assert _published_with_the_variant(place, _answered(), _answered(number=2, cache_hit=hit, cost=0.0)) == (
        2,
        Decimal(cost_of("gpt-4o", 100, 10)),
    )


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({}, "0.00035"),  # LiteLLM knew no price
        ({"cache_hit": False}, "0.00035"),
        ({"cost": 0.002}, "0.002"),  # LiteLLM knew one: its word counts, not the book's
        ({"status": "failure"}, "0"),
        ({"call_type": "aget_responses", "prompt": 0, "completion": 0}, "0"),  # a response fetched again
        ({"call_type": "aretrieve_batch"}, "0.00035"),  # a batch that is done
        ({"call_type": "aretrieve_batch", "completion": 0}, "0.00025"),  # a batch of embeddings that is done
        ({"prompt": 2459, "completion": 23, "read": 2455}, "0.00330875"),  # 4 at 2.5, 2455 at 1.25, 23 at 10
    ],
)
def test_which_zeros_the_variant_leaves_to_the_book(fields: Record, cost: str, place: Place) -> None:
    assert _published_with_the_variant(place, _answered(**{"cost": 0.0, **fields})) == (1, Decimal(cost))


def test_a_cost_that_is_no_number_is_refused_with_the_variant(place: Place) -> None:
    place = Place(place.layout.root, KEYTALLY_CURRENCY="USD")
    place.now = datetime(2026, 11, 15, tzinfo=UTC)
    with_price_book(place)
    place.write_raw("litellm/log.jsonl", _answered(response_cost="dear"))
    place.roll_up()
    assert place.rejected("litellm/log.jsonl") == [(1, "bad_type")]


def _answered(
    number: int = 1,
    cost: float = 0.00035,
    prompt: int = 100,
    completion: int = 10,
    read: int = 0,
    **fields: object,
) -> Record:
    return {
        "id": f"chatcmpl-{number}",
        "litellm_call_id": f"call-{number}",
        "call_type": "acompletion",
        "cache_hit": None,
        "status": "success",
        "startTime": 1794500000.5 + number,
        "model": "gpt-4o-2024-08-06",
        "model_group": "gpt-4o",
        "response_cost": cost,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "metadata": {
            "user_api_key_org_id": "acme",
            "user_api_key_hash": "a" * 64,
            "usage_object": {
                "prompt_tokens_details": {"cached_tokens": 0},
                "cache_read_input_tokens": read,
            },
        },
        **fields,
    }


def _published_with_the_variant(place: Place, *records: Record) -> tuple[int, Decimal]:
    place = Place(place.layout.root, KEYTALLY_CURRENCY="USD")
    place.now = datetime(2026, 11, 15, tzinfo=UTC)
    with_price_book(place)
    (place.layout.root / "prices.csv").write_bytes((SAMPLES / "prices.csv").read_bytes())
    place.write_raw("litellm/log.jsonl", *records)
    place.roll_up()
    (row,) = place.published("organization_day").to_dict("records")
    return row["requests"], row["cost"].normalize()


def test_one_word_says_for_whom_a_key_without_an_organization_counts(tmp_path: Path) -> None:
    expected = read_expected(LITELLM)
    (log,) = SAMPLES.glob("litellm-proxy-*.jsonl.gz")
    place = put_in_place(tmp_path / "data", log, expected)
    shipped = SHIPPED.read_text(encoding="utf-8")
    first_block, _, rest = shipped.partition("from records")
    head, _, paths = first_block.partition("with field as")
    assert paths.count("user_api_key_team_id") == 1
    assert "user_api_key_team_id" in head  # the comment says which word
    place.layout.formats.mkdir()
    (place.layout.formats / "litellm.sql").write_text(
        head + "with field as" + paths.replace("user_api_key_team_id", "no_such_field") + "from records" + rest
    )
    place.roll_up()
    calls = calls_of(expected)
    assert any(call.organization == "team_blue" for call in calls)
    assert_counted(
        place, [replace(call, organization=None) if call.organization == "team_blue" else call for call in calls]
    )


def test_the_callback_writes_the_payload_of_each_call_as_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without LiteLLM: the proxy calls the documented class so. test_live.py runs it in the real proxy."""
    (module,) = PYTHON_BLOCK.findall(DOCS.read_text(encoding="utf-8"))
    custom_logger = types.ModuleType("litellm.integrations.custom_logger")
    custom_logger.CustomLogger = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "litellm", types.ModuleType("litellm"))
    monkeypatch.setitem(sys.modules, "litellm.integrations", types.ModuleType("litellm.integrations"))
    monkeypatch.setitem(sys.modules, "litellm.integrations.custom_logger", custom_logger)
    monkeypatch.chdir(tmp_path)
    made: dict[str, object] = {}
    exec(module, made)
    payload = {"id": "chatcmpl-1", "startTime": datetime(2026, 11, 1, tzinfo=UTC)}
    for name in ("async_log_success_event", "async_log_failure_event"):
        asyncio.run(getattr(made["log"], name)({"standard_logging_object": payload}, None, None, None))
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["chatcmpl-1"] * 2


# --- nginx ---------------------------------------------------------------------------------------------------------


def test_the_log_format_writes_the_fields_of_the_sample_in_their_order() -> None:
    """Without nginx: the sample was made by this very log_format. test_live.py runs it in the real nginx."""
    text = "".join(re.findall(r"'([^']*)'", documented_lines(Path("access.jsonl"))))
    documented = re.findall(r'"(\w+)":', text)
    (log,) = SAMPLES.glob("nginx-*.jsonl")
    for line in log.read_bytes().splitlines():
        assert list(json.loads(line.decode(errors="replace"))) == documented


# --- the format of one's own ---------------------------------------------------------------------------------------


def test_the_format_of_ones_own_is_read_as_it_stands(tmp_path: Path) -> None:
    """A free model, an error, a stream without tokens, an interactive request, and one without its cost."""
    own, _ = blocks("sql")
    place = Place(tmp_path / "data", KEYTALLY_CURRENCY="EUR")
    place.layout.formats.mkdir()
    (place.layout.formats / "own.sql").write_text(own, encoding="utf-8")

    def record(number: int, **fields: object) -> Record:
        return {
            "id": f"r{number}",
            "started": "2025-11-10T12:00:00Z",
            "caller": {"tenant": "acme", "key": "key_a"},
            "cents": 0.35,
            "model": "m",
            "status": 200,
            "tokens_in": 100,
            "tokens_out": 10,
            **fields,
        }

    place.write_raw(
        "own/log.jsonl",
        record(1),
        record(2, cents=0, model="free"),
        record(3, cents=0, status=429, tokens_in=None, tokens_out=None),
        record(4, cents=0.2, tokens_in=None, tokens_out=None),
        record(5, caller={"tenant": "acme", "key": None}),
        record(6, cents=None),
    )
    place.roll_up()
    (row,) = place.published("organization_day").to_dict("records")
    found = {name: row[name] for name in ("requests", "failed_requests", "input_tokens", "output_tokens", "unpriced")}
    assert found == {
        "requests": 4,
        "failed_requests": 1,
        "input_tokens": Decimal(200),
        "output_tokens": Decimal(20),
        "unpriced": 0,
    }
    assert row["cost"] == Decimal("0.0055")
    assert place.rejected("own/log.jsonl") == [(6, "missing_field")]
