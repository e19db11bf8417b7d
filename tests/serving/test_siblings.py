"""The endpoints beside the daily one: the sums of a month, one key, the keys that cost most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import httpx
import pytest

from serving.routes import SUMMARY, TOP, USAGE
from tests.conftest import Place, request
from tests.serving.conftest import LiveServer, eventually, settings_for
from tests.serving.test_errors import DENIED, INVALID, NO_KEY, words_of
from tests.serving.traffic import KEYS, MEASURES, day_of, publish, sums, traffic, used

RECORDS = traffic()
NOVEMBER = "year=2025&month=11"
PATHS = {
    "summary": "/v1/analytics/api-keys/summary/org_a",
    "usage": "/v1/analytics/api-keys/usage/org_a/key_a",
    "top": "/v1/analytics/org_a/api-keys/top/11/2025",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    place = Place(tmp_path_factory.mktemp("traffic") / "data")
    publish(place, RECORDS)
    (place.layout.root / "key_names.csv").write_text("organization_id,api_key_id,name\norg_a,key_a,Prod\n")
    with LiveServer(settings_for(place.layout.root)) as running:
        running.headers = {"X-API-Key": running.create_key("org_a").key}  # type: ignore[attr-defined]
        yield running


def get(server: LiveServer, path: str, query: str = "", **headers: str) -> httpx.Response:
    """Asks with a key of org_a."""
    sent = {**server.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}  # type: ignore[attr-defined]
    return server.client.get(f"{path}?{query}", headers=sent)


def exact(answer: httpx.Response) -> Any:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), answer.text
    return json.loads(answer.content, parse_float=Decimal)


@pytest.mark.parametrize("query", [NOVEMBER, "year=2025&month=10", "year=2024&month=1", ""])
def test_the_summary_is_that_of_the_days_to_the_byte(server: LiveServer, query: str) -> None:
    daily = get(server, "/v1/analytics/api-keys/daily/org_a", query)
    summary = get(server, PATHS["summary"], query)
    assert daily.content.endswith(b',"summary":' + summary.content + b"}")
    assert summary.headers["cache-control"] == daily.headers["cache-control"]
    assert ("etag" in summary.headers) == ("etag" in daily.headers)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_s_usage_is_a_recount_of_its_requests(server: LiveServer, key: str) -> None:
    body = exact(get(server, f"/v1/analytics/api-keys/usage/org_a/{key}", NOVEMBER))
    assert list(body) == ["apiKeyId", "apiKeyName", "organizationId", "month", "year", "usage", "dailyUsage"]
    assert (body["apiKeyId"], body["organizationId"], body["month"], body["year"]) == (key, "org_a", 11, 2025)
    assert body["apiKeyName"] == ("Prod" if key == "key_a" else None)
    days = sums(RECORDS, day_of, api_key_id=key)
    assert {day["date"]: used(day) for day in body["dailyUsage"]} == days
    assert [day["date"] for day in body["dailyUsage"]] == sorted(days, reverse=True)
    assert list(body["dailyUsage"][0]) == ["date", *MEASURES]
    ((requests, cost, synapses, neurons),) = sums(RECORDS, lambda _: None, api_key_id=key).values()
    assert body["usage"] == {
        "totalRequests": requests,
        "totalCost": cost,
        "totalSynapses": synapses,
        "totalNeurons": neurons,
        "averageCostPerRequest": (cost / requests).quantize(Decimal("1e-12"), ROUND_HALF_EVEN),
    }


def test_a_key_used_in_another_month_only_has_zeros(server: LiveServer) -> None:
    path = "/v1/analytics/api-keys/usage/org_a/key_old"
    assert exact(get(server, path, "year=2025&month=10"))["usage"]["totalRequests"] == 5
    published, never = get(server, path, NOVEMBER), get(server, path, "year=2024&month=2")
    for answer in (published, never):
        assert answer.json()["dailyUsage"] == []
        assert b'"usage":{"totalRequests":0,"totalCost":0.0,"totalSynapses":0.0,"totalNeurons":0.0,' in answer.content
    assert "etag" in published.headers
    assert ("etag" in never.headers, never.headers["cache-control"]) == (False, "no-store")


@pytest.mark.parametrize("query", [NOVEMBER, "year=2024&month=2"])
def test_a_key_never_used_by_the_organization_is_not_found_whoever_has_it(server: LiveServer, query: str) -> None:
    told = {
        words_of(get(server, f"/v1/analytics/api-keys/usage/org_a/{key}", query))
        for key in ("key_of_b", "nobody", "%00", "%ff", "a%20b", "key_A", "a" * 9000, "%2e%2e")
    }
    assert told == {
        (
            404,
            "API_KEY_NOT_FOUND",
            "client_error",
            "API key not found",
            "The organization has no usage with this API key in any published month",
        )
    }


def test_a_key_is_found_as_soon_as_it_is_published_and_not_before(place: Place) -> None:
    publish(place, RECORDS)
    with LiveServer(settings_for(place.layout.root, KEYTALLY_REFRESH_SECONDS="0.2")) as server:
        server.headers = {"X-API-Key": server.create_key("org_a").key}  # type: ignore[attr-defined]
        path = "/v1/analytics/api-keys/usage/org_a/new"
        assert get(server, path, "year=2025&month=10").status_code == 404
        place.write_raw("late.jsonl", request(1, timestamp="2025-11-09T00:00:00Z", api_key_id="new"))
        place.roll_up()
        eventually(lambda: get(server, path, "year=2025&month=10").status_code == 200)
        assert get(server, path, NOVEMBER).json()["usage"]["totalRequests"] == 1


def test_a_key_whose_last_request_was_taken_back_is_not_found_any_more(place: Place) -> None:
    place.write_raw("november.jsonl", request(1))
    place.write_raw("october.jsonl", request(2, timestamp="2025-10-09T00:00:00Z", api_key_id="old"))
    place.roll_up()
    with LiveServer(settings_for(place.layout.root, KEYTALLY_REFRESH_SECONDS="0.2")) as server:
        server.headers = {"X-API-Key": server.create_key("org_a").key}  # type: ignore[attr-defined]
        path = "/v1/analytics/api-keys/usage/org_a/old"
        assert get(server, path, NOVEMBER).json()["usage"]["totalRequests"] == 0
        place.write_raw("october.jsonl", request(2, timestamp="2025-10-09T00:00:00Z", api_key_id="other"))
        place.roll_up()
        eventually(lambda: get(server, path, NOVEMBER).status_code == 404)


def test_the_top_keys_are_those_of_a_recount(server: LiveServer) -> None:
    expected = sums(RECORDS, lambda record: record["api_key_id"])
    order = sorted(expected, key=lambda key: (-expected[key][1], -expected[key][0], key))
    for limit in (1, 2, 10, 100):
        body = exact(get(server, PATHS["top"], f"limit={limit}"))
        assert list(body) == ["organization_id", "period", "top_keys", "total_keys", "limit"]
        assert body["period"] == {
            "type": "monthly",
            "month": 11,
            "year": 2025,
            "start_date": "2025-11-01",
            "end_date": "2025-11-30",
        }
        assert [key["api_key_id"] for key in body["top_keys"]] == order[:limit]
        assert (body["total_keys"], body["limit"]) == (len(expected), limit)
        for key in body["top_keys"]:
            assert list(key)[:2] == ["api_key_id", "key_name"]
            assert key["key_name"] == ("Prod" if key["api_key_id"] == "key_a" else None)
            assert tuple(key[f"total_{name}"] for name in MEASURES) == expected[key["api_key_id"]]
    assert exact(get(server, PATHS["top"]))["limit"] == 10
    assert exact(get(server, PATHS["top"], "period=monthly&colour=red&year=1"))["limit"] == 10


def test_equal_costs_are_ranked_by_requests_and_then_by_id(place: Place) -> None:
    keys = [("b", "1"), ("c", "0.5"), ("c", "0.5"), ("a", "1"), ("Z", "1"), ("d", "1.000000000001")]
    publish(place, [request(n, api_key_id=key, cost=cost) for n, (key, cost) in enumerate(keys)])
    with LiveServer(settings_for(place.layout.root)) as server:
        server.headers = {"X-API-Key": server.create_key("org_a").key}  # type: ignore[attr-defined]
        body = get(server, PATHS["top"]).json()
    assert [key["api_key_id"] for key in body["top_keys"]] == ["d", "c", "Z", "a", "b"]


def test_a_month_without_usage_has_no_top_keys(server: LiveServer) -> None:
    never = get(server, "/v1/analytics/org_a/api-keys/top/2/2024")
    assert (never.json()["top_keys"], never.json()["total_keys"]) == ([], 0)
    assert never.json()["period"]["end_date"] == "2024-02-29"
    assert ("etag" in never.headers, never.headers["cache-control"]) == (False, "no-store")
    other = server.client.get(
        "/v1/analytics/org_z/api-keys/top/11/2025", headers={"X-API-Key": server.create_key("org_z").key}
    )
    assert (other.json()["top_keys"], "etag" in other.headers) == ([], True)


@pytest.mark.parametrize(
    ("path", "query", "sentence"),
    [
        (PATHS["summary"], "month=13", "month must be one or two digits from 1 to 12"),
        (PATHS["summary"], "year=2025&year=2025", "year is given more than once"),
        (PATHS["usage"], "year=2031", "year must be four digits from 2020 to 2030"),
        ("/v1/analytics/api-keys/usage/org_a/nobody", "month=", "month must be one or two digits from 1 to 12"),
        ("/v1/analytics/org_a/api-keys/top/13/2025", "", "month must be one or two digits from 1 to 12"),
        ("/v1/analytics/org_a/api-keys/top/011/2025", "", "month must be one or two digits from 1 to 12"),
        ("/v1/analytics/org_a/api-keys/top/2025/11", "", "year must be four digits from 2020 to 2030"),
        ("/v1/analytics/org_a/api-keys/top/%D9%A1/2025", "", "month must be one or two digits from 1 to 12"),
        ("/v1/analytics/org_a/api-keys/top/11/25", "", "year must be four digits from 2020 to 2030"),
        *(
            (PATHS["top"], f"limit={bad}", "limit must be one to three digits from 1 to 100")
            for bad in ("", "0", "101", "-1", "1.0", "1e1")
        ),
        (PATHS["top"], "limit=5&limit=5", "limit is given more than once"),
        *((PATHS["top"], f"period={bad}", "period must be monthly") for bad in ("", "daily", "Monthly")),
        (PATHS["top"], "period=monthly&period=monthly", "period is given more than once"),
    ],
)  # fmt: skip
def test_a_bad_parameter_is_named_with_its_range(server: LiveServer, path: str, query: str, sentence: str) -> None:
    words = words_of(get(server, path, query))
    assert words[:4] == (400, "INVALID_REQUEST", "validation_error", "Invalid query parameters")
    assert words[4].startswith(sentence)


@pytest.mark.parametrize("path", PATHS.values())
def test_errors_come_in_the_one_order(server: LiveServer, path: str, place: Place) -> None:
    assert words_of(server.client.get(f"{path}?month=13")) == NO_KEY
    assert words_of(server.client.get(path, headers={"X-API-Key": "x"})) == INVALID
    other = path.replace("org_a", "org_b")
    assert words_of(get(server, f"{other}", "month=13&limit=0")) == DENIED
    assert words_of(server.client.post(path))[:2] == (405, "METHOD_NOT_ALLOWED")
    assert words_of(get(server, f"{path}/"))[:2] == (404, "NOT_FOUND")
    with LiveServer(settings_for(place.layout.root, KEYTALLY_RATE_LIMIT="1/hour")) as limited:
        headers = {"X-API-Key": limited.create_key("org_a").key}
        assert limited.client.get(path, headers=headers).status_code in (200, 404)
        assert limited.client.get(f"{other}?month=13", headers=headers).status_code == 429


@pytest.mark.parametrize("path", PATHS.values())
def test_a_client_that_has_the_body_gets_304_and_head_no_body(server: LiveServer, path: str) -> None:
    answer = get(server, path, NOVEMBER)
    again = get(server, path, NOVEMBER, If_None_Match=answer.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")
    head = server.client.head(f"{path}?{NOVEMBER}", headers=server.headers)  # type: ignore[attr-defined]
    assert (head.content, head.headers["content-length"]) == (b"", str(len(answer.content)))


def test_the_log_names_the_route_and_not_who_or_what_is_asked_for(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "keytally.access")
    traces = [get(server, path, NOVEMBER).headers["x-request-id"] for path in PATHS.values()]

    def logged() -> dict[str, dict[str, object]]:
        """By trace: the line of what was asked before this test may be late."""
        lines = [json.loads(record.message) for record in caplog.records if record.name == "keytally.access"]
        return {line["trace_id"]: line for line in lines}

    eventually(lambda: logged().keys() >= set(traces))  # a line is written when its answer is sent
    lines = [logged()[trace] for trace in traces]
    assert [line["route"] for line in lines] == [SUMMARY, USAGE, TOP]
    assert not any("org_a" in str(line) or "key_a" in str({**line, "key_id": ""}) for line in lines)
