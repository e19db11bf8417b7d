"""What may be asked of the daily endpoint beside the month: all days, one key, groups, rows of CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from serving.key_usage import MOST_GROUPS
from serving.keys import CreatedKey
from serving.parameters import prefers_csv
from tests.conftest import Place, Record
from tests.serving.conftest import LiveServer, settings_for
from tests.serving.traffic import KEYS, MEASURES, day_of, publish, sums, traffic, used

NOVEMBER = "year=2025&month=11"
RECORDS = traffic()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    place = Place(tmp_path_factory.mktemp("traffic") / "data")
    publish(place, RECORDS)
    with LiveServer(settings_for(place.layout.root)) as running:
        yield running


@pytest.fixture(scope="module")
def key(server: LiveServer) -> CreatedKey:
    return server.create_key("org_a")


def exact(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return json.loads(answer.content, parse_float=Decimal)


def rows_of(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    return list(csv.DictReader(io.StringIO(answer.content.decode("utf-8"), newline=""), strict=True))


def amounts(row: dict[str, str]) -> tuple[Any, ...]:
    return tuple(Decimal(row[name]) for name in MEASURES)


def test_fill_lists_every_day_and_changes_nothing_else(server: LiveServer, key: CreatedKey) -> None:
    plain, filled = exact(server.daily(key, NOVEMBER)), exact(server.daily(key, f"{NOVEMBER}&fill=zero"))
    assert [day["date"] for day in filled["dailyUsage"]] == [f"2025-11-{day:02d}" for day in range(30, 0, -1)]
    assert [day for day in filled["dailyUsage"] if day["requests"]] == plain["dailyUsage"]
    assert {used(day) for day in filled["dailyUsage"] if not day["requests"]} == {(0, 0, 0, 0)}
    assert {**filled, "dailyUsage": plain["dailyUsage"]} == plain
    assert '"date":"2025-11-30","requests":0,"cost":0.0,"synapses":0.0,"neurons":0.0}' in (
        server.daily(key, f"{NOVEMBER}&fill=zero").text
    )


def test_fill_lists_every_day_of_a_month_never_published(server: LiveServer, key: CreatedKey) -> None:
    answer = server.daily(key, "year=2024&month=2&fill=zero&group_by=model")
    assert [day["date"] for day in answer.json()["dailyUsage"]] == [f"2024-02-{day:02d}" for day in range(29, 0, -1)]
    assert {json.dumps(day["groups"]) for day in answer.json()["dailyUsage"]} == {"[]"}
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("api_key_id", KEYS)
def test_one_key_s_days_and_summary_are_its_own(server: LiveServer, key: CreatedKey, api_key_id: str) -> None:
    body = exact(server.daily(key, f"{NOVEMBER}&api_key_id={api_key_id}"))
    expected = sums(RECORDS, day_of, api_key_id=api_key_id)
    assert {day["date"]: used(day) for day in body["dailyUsage"]} == expected
    assert body["period"]["daysWithApiUsage"] == len(expected)
    (total,) = sums(RECORDS, lambda _: None, api_key_id=api_key_id).values()
    summary = body["summary"]
    assert (summary["totalApiKeyRequests"], summary["totalApiKeyCost"]) == total[:2]
    assert (summary["total_synapses"], summary["totalNeurons"]) == total[2:]


@pytest.mark.parametrize("api_key_id", ["key_old", "key_of_b", "nobody", "." * 128])
def test_a_key_without_usage_is_an_empty_list_and_zeros(server: LiveServer, key: CreatedKey, api_key_id: str) -> None:
    answer = server.daily(key, f"{NOVEMBER}&api_key_id={api_key_id}")
    assert answer.json()["dailyUsage"] == []
    assert answer.json()["summary"]["totalApiKeyRequests"] == 0
    assert "etag" in answer.headers


@pytest.mark.parametrize(("group_by", "field"), [("api_key", "api_key_id"), ("model", "model")])
@pytest.mark.parametrize("api_key_id", [None, "key_a"])
def test_groups_are_what_each_used_and_sum_to_the_day(
    server: LiveServer, key: CreatedKey, group_by: str, field: str, api_key_id: str | None
) -> None:
    query = NOVEMBER + (f"&api_key_id={api_key_id}" if api_key_id else "")
    only = {"api_key_id": api_key_id} if api_key_id else {}
    plain, grouped = exact(server.daily(key, query)), exact(server.daily(key, f"{query}&group_by={group_by}"))
    expected = sums(RECORDS, lambda record: (day_of(record), record[field]), **only)
    found = {(day["date"], group[field]): used(group) for day in grouped["dailyUsage"] for group in day["groups"]}
    assert found == expected
    for day in grouped["dailyUsage"]:
        assert used(day) == tuple(map(sum, zip(*map(used, day["groups"]), strict=True)))
        names = [group[field] for group in day["groups"]]
        assert names == sorted(names, key=lambda name: (name is not None, (name or "").encode()))
        assert list(day["groups"][0]) == [field, *MEASURES]
    for day in grouped["dailyUsage"]:
        del day["groups"]
    assert grouped == plain


def test_an_amount_in_a_group_is_written_as_everywhere(server: LiveServer, key: CreatedKey) -> None:
    text = server.daily(key, f"{NOVEMBER}&group_by=api_key&api_key_id=key_a").text
    for day in exact(server.daily(key, f"{NOVEMBER}&api_key_id=key_a"))["dailyUsage"]:
        written = text.split(f'"date":"{day["date"]}",')[1]
        measures, _, behind = written.partition(',"groups":[{"api_key_id":"key_a",')
        assert behind.startswith(measures + "}]}")


@pytest.mark.parametrize("group_by", [None, "api_key", "model"])
@pytest.mark.parametrize(
    "options", ["", "&fill=zero", "&include=coverage", "&api_key_id=key_a", "&fill=zero&include=coverage"]
)
def test_csv_has_the_rows_of_the_json(server: LiveServer, key: CreatedKey, group_by: str | None, options: str) -> None:
    query = NOVEMBER + options + (f"&group_by={group_by}" if group_by else "")
    body, answer = exact(server.daily(key, query)), server.daily(key, query, Accept="text/csv")
    rows = rows_of(answer)
    columns = ["date", *(["group"] if group_by else []), *MEASURES, *(["state"] if "coverage" in options else [])]
    assert answer.content.split(b"\r\n")[0].decode() == ",".join(columns)
    assert answer.content.endswith(b"\r\n")
    states = {day["date"]: day["state"] for day in body.get("coverage", [])}
    field = "api_key_id" if group_by == "api_key" else "model"
    expected = [
        (day["date"], (group.get(field) or "") if group_by else None, used(group), states.get(day["date"]))
        for day in body["dailyUsage"]
        for group in (day.get("groups") or [day])
    ]
    assert [(row["date"], row.get("group"), amounts(row), row.get("state")) for row in rows] == expected


def test_csv_tells_a_model_without_a_name_from_one_of_no_letters(server: LiveServer, key: CreatedKey) -> None:
    text = server.daily(key, f"{NOVEMBER}&group_by=model", Accept="text/csv").text
    assert "\r\n2025-11-14,," in text
    assert '\r\n2025-11-14,"",' in text
    assert '\r\n2025-11-14,"a ""quoted"", one",' in text
    assert '\r\n2025-11-14,"zwei\nZeilen",' in text


def test_both_forms_have_their_own_tag_and_name_what_they_vary_by(server: LiveServer, key: CreatedKey) -> None:
    plain, rows = server.daily(key, NOVEMBER), server.daily(key, NOVEMBER, Accept="text/csv")
    assert plain.headers["etag"] != rows.headers["etag"]
    for answer in (plain, rows):
        assert {name.strip().lower() for name in answer.headers["vary"].split(",")} >= {
            "accept",
            "x-api-key",
            "api-key",
        }
    unchanged = server.daily(key, NOVEMBER, Accept="text/csv", If_None_Match=rows.headers["etag"])
    assert (unchanged.status_code, "Accept" in unchanged.headers["vary"]) == (304, True)
    assert server.daily(key, NOVEMBER, Accept="text/csv", If_None_Match=plain.headers["etag"]).status_code == 200
    head = server.daily(key, NOVEMBER, method="HEAD", Accept="text/csv")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(rows.content)))


@pytest.mark.parametrize(
    ("accept", "csv"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/csv", True),
        ("TEXT/CSV", True),
        ("text/csv;header=present", True),
        ("text/csv, */*", True),
        ("text/csv, application/json", False),
        ("application/json;q=0.9, text/csv", True),
        ("application/json, text/csv;q=0.9", False),
        ("text/csv;q=0", False),
        ("text/csv;q=0.000, application/json;q=0", False),
        ("text/*", True),
        ("text/*, text/csv;q=0", False),
        ("text/html, */*;q=0.8", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", False),
        ("text/csv ; Q=0.5 , */* ; q=0.1", True),
        ("text/csv;q=2", False),
        ("text/csv;q=", False),
        ("text/csvx", False),
        ("image/png", False),
        (",;,text/csv", True),
    ],
)
def test_accept_chooses_as_its_qualities_say(accept: str, csv: bool) -> None:
    assert prefers_csv(accept.encode()) is csv


def test_several_accept_headers_are_one(server: LiveServer, key: CreatedKey) -> None:
    headers = [("X-API-Key", key.key), ("Accept", "application/json;q=0.5"), ("Accept", "text/csv")]
    answer = server.client.get(f"/v1/analytics/api-keys/daily/org_a?{NOVEMBER}", headers=headers)
    assert answer.headers["content-type"].startswith("text/csv")


@pytest.mark.parametrize(
    ("parameter", "bad", "words"),
    [
        ("fill", ("", "zeros", "Zero", "0"), "zero"),
        ("group_by", ("", "key", "api_key,model", "Model"), "api_key or model"),
        (
            "api_key_id",
            ("", "a b", "%C3%A4", "a" * 129, "a/b", "a%0a"),
            "1 to 128 letters, digits, '_', '.', ':' or '-'",
        ),
    ],
)
def test_a_bad_option_is_named_with_what_it_may_be(
    server: LiveServer, key: CreatedKey, parameter: str, bad: tuple[str, ...], words: str
) -> None:
    told = [(server.daily(key, f"{parameter}={value}"), f"{parameter} must be {words}") for value in bad]
    twice = f"{parameter}=model&{parameter}=model"
    told.append((server.daily(key, twice), f"{parameter} is given more than once; it must be {words}"))
    for answer, sentence in told:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["system_message"]) == (400, "INVALID_REQUEST", sentence)


def test_more_groups_than_fit_are_refused(server: LiveServer, key: CreatedKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.key_usage.MOST_GROUPS", 3)
    answer = server.daily(key, "year=2025&month=10&group_by=model")
    assert answer.status_code == 400
    assert answer.json()["error"]["system_message"].startswith("group_by makes more than 3 groups of this month")
    assert MOST_GROUPS == 500_000


def test_an_answer_is_dated_by_what_of_it_was_published_last(place: Place) -> None:
    record: Record = {**RECORDS[10], "organization_id": "org_a", "timestamp": "2025-11-01T00:00:00Z", "model": "mini"}
    publish(place, [record])
    place.now = place.now.replace(hour=12)
    publish(place, [{**record, "model": "maxi"}])  # the organization's numbers stay
    with LiveServer(settings_for(place.layout.root)) as server:
        key = server.create_key("org_a")
        plain, grouped = (exact(server.daily(key, NOVEMBER + by)) for by in ("", "&group_by=model"))
    assert plain["summary"]["generatedAt"] == "2025-11-15T10:30:00Z"
    assert grouped["summary"]["generatedAt"] == "2025-11-15T12:30:00Z"
    assert grouped["dailyUsage"][0]["groups"][0]["model"] == "maxi"
