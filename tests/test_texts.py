"""Fields of text in mapped formats: JSON of another kind is refused, and never becomes a text."""

# ruff: noqa: F811  # the fixtures of the tests of drafts
from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner

from cli import main
from tests.conftest import Place, Record, lines
from tests.test_draft_values import call, day_of, drafted, usd  # noqa: F401  # fixtures
from tests.test_drafts import Drafted
from tests.test_mutants import NOW, PRICES, RATES, litellm, nginx, recounted

TEXTS = ("request_id", "organization_id", "api_key_id", "model", "endpoint", "deployed_model", "provider")
HOUSE = "-- reads: jsonl, csv\n-- prices: record\n-- units: record\nselect line, {} from records".format(
    ", ".join(
        f"record->>'{name}' as {name}"
        for name in (*TEXTS, "timestamp", "cost", "synapses", "neurons", "status", "input_tokens", "output_tokens")
    )
)
OTHER_JSON = [
    False,
    True,
    {},
    {"a": 1},
    {"": None},
    [],
    ["a"],
    [1],
    [-1.5, "a"],
    [None],
    [True, 1],
    [[]],
    [{}],
    ["x" * 300],
]
SOUND = [
    "{3F2504E0-4F89}",
    "claude[1m]",
    "[1m]",
    "[beta] gpt",
    "[nullable]",
    "truely",
    "True",
    "{",
    "[",
    "{x}",
    '{"',
    "5",
]


@pytest.fixture
def house(place: Place) -> Place:
    """A data root with a format of its own and what prices LiteLLM's and nginx's requests."""
    place.layout.formats.mkdir(exist_ok=True)
    (place.layout.formats / "house.sql").write_text(HOUSE)
    place.layout.prices.write_text(PRICES, encoding="utf-8")
    (place.layout.prices.parent / "fx.csv").write_text(RATES, encoding="utf-8")
    place.now = NOW
    return place


def record(number: int, **fields: Any) -> Record:
    return {
        **{"request_id": f"r{number}", "organization_id": "acme", "api_key_id": "key", "model": "gpt"},
        **{"endpoint": "/v1", "deployed_model": "gpt-1", "provider": "house", "timestamp": "2026-11-10T10:00:00Z"},
        **{"cost": "1", "status": 200},
        **fields,
    }


def refused(place: Place, file: str, *records: Record | str) -> list[tuple[int, str]]:
    """Roll a log up, see that the second reading agrees, and return the lines that are refused."""
    place.write_raw(file, *records)
    place.roll_up()
    assert recounted(place).as_json()["differences"] == []
    return place.rejected(file)


@pytest.mark.parametrize("sound", [1, 200], ids=["slow path", "fast path"])
@pytest.mark.parametrize("name", TEXTS)
def test_json_of_another_kind_is_no_text(house: Place, name: str, sound: int) -> None:
    """Of each field, in few lines (read by the rule book alone) and in many."""
    bad = [record(1000 + number, **{name: value}) for number, value in enumerate(OTHER_JSON)]
    good = [record(number) for number in range(sound)]
    expected = [(number, "bad_type") for number in range(1, len(bad) + 1)]
    assert refused(house, "house/log.jsonl", *bad, *good) == expected
    assert house.usage()["acme", "2026-11-10"] == (sound, Decimal(sound))


@pytest.mark.parametrize("sound", [1, 200], ids=["slow path", "fast path"])
@pytest.mark.parametrize("name", ["request_id", "model", "endpoint", "deployed_model", "provider"])
def test_a_text_that_only_looks_like_json_counts(house: Place, name: str, sound: int) -> None:
    records = [record(1000 + number, **{name: value}) for number, value in enumerate(SOUND)]
    assert refused(house, "house/log.jsonl", *records, *(record(number) for number in range(sound))) == []
    assert house.usage()["acme", "2026-11-10"][0] == sound + len(SOUND)
    assert {row[name] for row in house.events("house/log.jsonl")} >= set(SOUND)


def test_a_number_is_its_digits(house: Place) -> None:
    """Many logs number their customers."""
    records = [
        record(1, organization_id=4711),
        record(2, organization_id=-5, model=4.0, request_id=12345678901234567890),
    ]
    assert refused(house, "house/log.jsonl", *records) == []
    first, second = sorted(house.events("house/log.jsonl"), key=lambda row: row["line"])
    assert first["organization_id"] == "4711"
    assert (second["organization_id"], second["model"], second["request_id"]) == ("-5", "4.0", "12345678901234567890")


def test_a_cell_of_csv_is_held_to_the_same_rule(house: Place) -> None:
    rows = ["r1,acme,true", 'r2,acme,"[""a""]"', "r3,acme,{3F25}", "r4,false,gpt", "r5,acme,[1m]"]
    head = "request_id,organization_id,model,timestamp,cost,api_key_id\n"
    content = head + "".join(f"{row},2026-11-10T10:00:00Z,1,key\n" for row in rows)
    assert refused(house, "house/log.csv", content.encode()) == [(2, "bad_type"), (3, "bad_type"), (5, "bad_type")]


@pytest.mark.parametrize(
    "path",
    [
        *("id", "litellm_call_id", "model_group", "model", "custom_llm_provider", "metadata.user_api_key_hash"),
        *("metadata.user_api_key_org_id", "metadata.user_api_key_request_route"),
    ],
)
def test_no_field_of_litellm_takes_another_kind_for_text(house: Place, path: str) -> None:
    *outer, name = path.split(".")
    odd = [{name: value} for value in OTHER_JSON]
    records = [litellm(2, metadata=fields) if outer else litellm(2, **fields) for fields in odd]
    expected = [(number, "bad_type") for number in range(2, len(odd) + 2)]
    assert refused(house, "litellm/log.jsonl", litellm(1), *records) == expected
    assert house.usage()["acme", "2026-11-10"] == (1, Decimal("0.0008"))


def test_a_key_in_a_list_is_not_shown_in_what_the_sql_made(house: Place) -> None:
    keys = ["sk-secret-1", "sk-secret-2"]
    assert refused(house, "litellm/log.jsonl", litellm(1, metadata={"user_api_key_hash": keys})) == [(1, "bad_type")]
    root = str(house.layout.raw.parent)
    (shown,) = json.loads(CliRunner().invoke(main, ["quarantine", "--json"], env={"KEYTALLY_DATA": root}).stdout)
    assert shown["record"]["api_key_id"] == "[]"
    assert "secret" not in json.dumps(shown["record"])


@pytest.mark.parametrize("name", ["request_id", "http_x_org_id", "http_x_api_key_id", "http_x_model", "uri"])
def test_no_field_of_nginx_takes_another_kind_for_text(house: Place, name: str) -> None:
    records = [nginx(2, **{name: value}) for value in OTHER_JSON]
    expected = [(number, "bad_type") for number in range(2, len(records) + 2)]
    assert refused(house, "nginx/log.jsonl", nginx(1), *records) == expected


def test_a_key_that_a_draft_hashes_is_a_text(usd: Place, drafted: Drafted) -> None:
    records = [{**call(number), "token": "sk-1"} for number in range(1, 4)]
    records[1]["token"] = False
    records[2]["token"] = ["sk-1"]
    for each in records:
        del each["key_id"]
    drafted(lines(*records))
    (event,) = usd.events("mine/log.jsonl")
    assert event["api_key_id"] == "sha256:" + hashlib.sha256(b"sk-1").hexdigest()
    assert usd.rejected("mine/log.jsonl") == [(2, "bad_type"), (3, "bad_type")]
