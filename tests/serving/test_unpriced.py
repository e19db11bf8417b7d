"""Requests of which no cost is known: a client is told how many there are, in a header and nowhere else."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import request
from tests.pricing import PricedPlace, priced
from tests.serving.conftest import NOW, LiveServer, settings_for
from tests.serving.publishing import publish_days, rollup_rows
from tests.serving.test_pages import Visitor

PATHS = (
    "/v1/analytics/api-keys/daily/org_a?year=2025&month={month}",
    "/v1/analytics/api-keys/daily/org_a?year=2025&month={month}&api_key_id=key_2",
    "/v1/analytics/api-keys/daily/org_a?year=2025&month={month}&group_by=model",
    "/v1/analytics/api-keys/summary/org_a?year=2025&month={month}",
    "/v1/analytics/api-keys/usage/org_a/key_2?year=2025&month={month}",
    "/v1/analytics/org_a/api-keys/top/{month}/2025",
)


@pytest.fixture
def shop(tmp_path: Path) -> PricedPlace:
    """A data root with two requests without a price in November, one in October that has its own, and one of another
    organization."""
    shop = PricedPlace(tmp_path / "data")
    shop.write_raw("a.jsonl", priced(1), priced(2, "llama", "2025-11-11T12:00:00Z"), request(3, api_key_id="key_2"))
    shop.write_raw("b.jsonl", priced(4, organization_id="org_b"), request(5, timestamp="2025-10-10T12:00:00Z"))
    shop.write_raw("c.jsonl", request(6, timestamp="2025-10-10T12:00:00Z", api_key_id="key_2"))
    shop.roll_up()
    return shop


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_says_how_many_requests_of_its_month_have_no_price(shop: PricedPlace, path: str) -> None:
    with LiveServer(settings_for(shop.layout.root)) as server:
        key = {"X-API-Key": server.create_key("org_a").key}
        november, october = (server.client.get(path.format(month=month), headers=key) for month in (11, 10))
        assert (november.status_code, november.headers["X-Usage-Unpriced"]) == (200, "2")
        assert october.status_code == 200
        assert "X-Usage-Unpriced" not in october.headers
        again = server.client.get(path.format(month=11), headers={**key, "If-None-Match": november.headers["ETag"]})
        assert (again.status_code, again.headers["X-Usage-Unpriced"]) == (304, "2")
        assert "npriced" not in november.text


def test_the_body_stays_what_it_was(shop: PricedPlace) -> None:
    with LiveServer(settings_for(shop.layout.root)) as server:
        answer = server.daily(server.create_key("org_a"))
    body = json.loads(answer.content)
    assert body["dailyUsage"] == [
        {"date": "2025-11-11", "requests": 1, "cost": 0.0, "synapses": 0.0, "neurons": 0.0},
        {"date": "2025-11-10", "requests": 2, "cost": 0.25, "synapses": 0.0, "neurons": 0.0},
    ]
    assert list(body["summary"]) == [
        *("organization_id", "month", "year", "totalApiKeyRequests", "totalApiKeyCost", "averageCostPerRequest"),
        *("total_synapses", "totalNeurons", "generatedAt"),
    ]


def test_the_header_goes_when_the_book_knows_the_price(shop: PricedPlace) -> None:
    with LiveServer(settings_for(shop.layout.root)) as server:
        key = server.create_key("org_a")
        assert server.daily(key).headers["X-Usage-Unpriced"] == "2"
        shop.write_book("*,2025-01-01,1,1,CHF")
        shop.roll_up()
    with LiveServer(settings_for(shop.layout.root)) as server:
        assert "X-Usage-Unpriced" not in server.daily(server.create_key("org_a")).headers


def test_a_file_from_before_there_were_prices_is_served(tmp_path: Path) -> None:
    rows = rollup_rows([("org_a", date(2025, 11, 10), 1, "1", "1", "1")]).drop_columns(["unpriced"])
    path = publish_days(tmp_path, date(2025, 11, 1), rows, published_at=datetime(2025, 11, 15, tzinfo=UTC).timestamp())
    assert "unpriced" not in pq.read_schema(path).names
    with LiveServer(settings_for(tmp_path)) as server:
        answer = server.daily(server.create_key("org_a"))
    assert (answer.status_code, answer.json()["summary"]["totalApiKeyRequests"]) == (200, 1)
    assert "X-Usage-Unpriced" not in answer.headers


def test_the_page_of_a_month_says_that_its_cost_is_not_all(shop: PricedPlace) -> None:
    with LiveServer(settings_for(shop.layout.root)) as server:
        visitor = Visitor(server, server.create_key("org_a"))
        november, october = (visitor.get(f"/usage/org_a/2025-{month}").text for month in (11, 10))
    assert "No price is known yet of 2 requests: they count, and what they cost is not in these sums." in november
    assert "No price is known" not in october


def test_so_do_the_page_of_a_year_and_that_of_all_organizations(shop: PricedPlace) -> None:
    with LiveServer(settings_for(shop.layout.root)) as server:
        customer = Visitor(server, server.create_key("org_b"))
        operator = Visitor(server, server.keys.create_operator(now=NOW))
        year, before = (customer.get(f"/usage/org_b/{year}").text for year in (2025, 2024))
        november, october = (operator.get(f"/overview/2025-{month}").text for month in (11, 10))
    assert "No price is known yet of 1 request: it counts, and what it cost is not in these sums." in year
    assert "No price is known yet of 3 requests: they count, and what they cost is not in these sums." in november
    assert "No price is known" not in before + october
