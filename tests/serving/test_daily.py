"""The daily endpoint: what a client with a good key gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tests.serving.conftest import LiveServer, eventually, settings_for
from tests.serving.publishing import Row, publish_days

NOVEMBER = date(2025, 11, 1)
COMMITTED = datetime(2025, 11, 15, 10, 30, 0, 700_000, tzinfo=UTC).timestamp()
EXAMPLE: list[Row] = [
    ("org_abc123", date(2025, 11, 14), 820, "205", "410000", "8200"),
    ("org_abc123", date(2025, 11, 15), 850, "212.5", "425000", "8500"),
    ("org_abc124", date(2025, 11, 15), 7, "9", "9", "9"),
    ("org_abc12", date(2025, 11, 15), 7, "9", "9", "9"),
]
EXAMPLE_BODY = (
    b'{"organization_id":"org_abc123",'
    b'"period":{"year":2025,"month":11,"startDate":"2025-11-01","endDate":"2025-11-30",'
    b'"daysInMonth":30,"daysWithApiUsage":2},'
    b'"dailyUsage":['
    b'{"date":"2025-11-15","requests":850,"cost":212.5,"synapses":425000.0,"neurons":8500.0},'
    b'{"date":"2025-11-14","requests":820,"cost":205.0,"synapses":410000.0,"neurons":8200.0}],'
    b'"summary":{"organization_id":"org_abc123","month":11,"year":2025,'
    b'"totalApiKeyRequests":1670,"totalApiKeyCost":417.5,"averageCostPerRequest":0.25,'
    b'"total_synapses":835000.0,"totalNeurons":16700.0,"generatedAt":"2025-11-15T10:30:00Z"}}'
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that publishes the example, for the tests that change nothing."""
    folder = tmp_path_factory.mktemp("data")
    publish_days(folder, NOVEMBER, EXAMPLE, published_at=COMMITTED)
    with LiveServer(settings_for(folder)) as running:
        yield running


def zeros(organization: str, generated_at: str) -> dict[str, object]:
    return {
        "organization_id": organization,
        "period": {
            "year": 2025,
            "month": 11,
            "startDate": "2025-11-01",
            "endDate": "2025-11-30",
            "daysInMonth": 30,
            "daysWithApiUsage": 0,
        },
        "dailyUsage": [],
        "summary": {
            "organization_id": organization,
            "month": 11,
            "year": 2025,
            "totalApiKeyRequests": 0,
            "totalApiKeyCost": 0.0,
            "averageCostPerRequest": 0.0,
            "total_synapses": 0.0,
            "totalNeurons": 0.0,
            "generatedAt": generated_at,
        },
    }


def test_the_example_is_answered_to_the_byte(server: LiveServer) -> None:
    answer = server.daily(server.create_key("org_abc123"))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.content == EXAMPLE_BODY


def test_head_has_the_headers_of_get_and_no_body(server: LiveServer) -> None:
    key = server.create_key("org_abc123")
    get, head = server.daily(key), server.daily(key, method="HEAD")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "cache-control", "vary"):
        assert head.headers[name] == get.headers[name]


def test_a_month_never_published_is_zeros_that_nobody_keeps(live_server: LiveServer) -> None:
    answer = live_server.daily(live_server.create_key("org_abc123"))
    assert answer.json() == zeros("org_abc123", "2025-11-15T10:30:00Z")
    assert '"totalApiKeyCost":0.0,"averageCostPerRequest":0.0' in answer.text
    assert "etag" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert live_server.daily(live_server.create_key("org_abc123"), If_None_Match="*").status_code == 200


def test_a_published_month_without_usage_is_zeros_of_that_publication(data: Path) -> None:
    publish_days(data, NOVEMBER, [], published_at=COMMITTED - 3600)
    publish_days(data, date(2025, 10, 1), [("org_b", date(2025, 10, 3), 1, "1", "1", "1")], published_at=COMMITTED)
    with LiveServer(settings_for(data)) as server:
        empty = server.daily(server.create_key("org_abc123"))
        absent = server.daily(server.create_key("org_z"), "year=2025&month=10")
    assert empty.json() == zeros("org_abc123", "2025-11-15T09:30:00Z")
    assert absent.json()["dailyUsage"] == []
    assert "etag" in empty.headers
    assert "etag" in absent.headers


@pytest.mark.parametrize(
    ("query", "year", "month"),
    [
        ("", 2025, 11),
        ("year=2024", 2024, 11),
        ("month=2", 2025, 2),
        ("month=02&year=2024", 2024, 2),
        ("year=2030&month=12", 2030, 12),
        ("year=2020&month=1", 2020, 1),
        ("%79ear=2024&colour=red&colour=blue&=&&x", 2024, 11),
    ],
)
def test_year_and_month_default_on_their_own_and_other_parameters_are_ignored(
    server: LiveServer, query: str, year: int, month: int
) -> None:
    period = server.daily(server.create_key("org_abc123"), query).json()["period"]
    assert (period["year"], period["month"]) == (year, month)


def test_a_leap_february_has_29_days(server: LiveServer) -> None:
    period = server.daily(server.create_key("org_abc123"), "year=2024&month=2").json()["period"]
    assert (period["startDate"], period["endDate"], period["daysInMonth"]) == ("2024-02-01", "2024-02-29", 29)


def test_amounts_keep_every_digit(data: Path) -> None:
    most = "99999999999999999999999999.999999999999"
    rows: list[Row] = [
        ("big", date(2025, 11, 1), 1, most, "99999999999999999999999999999999.999999", "0"),
        ("big", date(2025, 11, 2), 2, most, "99999999999999999999999999999999.999999", "1000000"),
        ("small", date(2025, 11, 1), 3, "0.000000000001", "0.000001", "0.1"),
    ]
    publish_days(data, NOVEMBER, rows)
    with LiveServer(settings_for(data)) as server:
        big, small = server.daily(server.create_key("big")).text, server.daily(server.create_key("small")).text
    assert '"cost":99999999999999999999999999.999999999999,"synapses":99999999999999999999999999999999.999999' in big
    assert '"totalApiKeyCost":199999999999999999999999999.999999999998' in big
    assert '"total_synapses":199999999999999999999999999999999.999998,"totalNeurons":1000000.0' in big
    average = json.loads(big, parse_float=Decimal)["summary"]["averageCostPerRequest"]
    assert average == Decimal("66666666666666666666666666.666666666666")
    assert '"cost":0.000000000001,"synapses":0.000001,"neurons":0.1' in small
    assert '"averageCostPerRequest":0.0,' in small


@pytest.mark.parametrize("condition", ["{}", "W/{}", '"other", {}', '"a" , W/{} ,"b"', "*"])
def test_a_client_that_has_the_body_gets_304(server: LiveServer, condition: str) -> None:
    key = server.create_key("org_abc123")
    etag = server.daily(key).headers["etag"]
    for method in ("GET", "HEAD"):
        answer = server.daily(key, method=method, If_None_Match=condition.format(etag))
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert answer.headers["cache-control"] == "private, max-age=1, must-revalidate"
        assert answer.headers["x-request-id"]
    for other in ('"other"', etag.strip('"'), "", '"', etag[:-1]):
        assert server.daily(key, If_None_Match=other).status_code == 200


def test_a_new_publication_is_seen_in_time_and_changes_the_etag(data: Path, live_server: LiveServer) -> None:
    key = live_server.create_key("org_abc123")

    def requests() -> int:
        return int(live_server.daily(key).json()["summary"]["totalApiKeyRequests"])

    assert requests() == 0
    publish_days(data, NOVEMBER, EXAMPLE[:1])
    assert eventually(lambda: requests() == 820) < live_server.settings.refresh_seconds
    etag = live_server.daily(key).headers["etag"]
    publish_days(data, NOVEMBER, EXAMPLE)
    assert eventually(lambda: requests() == 1670) < live_server.settings.refresh_seconds
    assert live_server.daily(key, If_None_Match=etag).status_code == 200


def test_many_clients_at_once_all_get_the_right_month(data: Path) -> None:
    rows: list[Row] = [(f"org_{n:03d}", date(2025, 11, d), n + 1, "1", "1", "1") for n in range(50) for d in (1, 30)]
    publish_days(data, NOVEMBER, rows, row_group_size=7)
    with LiveServer(settings_for(data)) as server:
        keys = [server.create_key(f"org_{n:03d}") for n in range(50)]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(server.daily, keys * 4))
    for answer, key in zip(answers, keys * 4, strict=True):
        summary = answer.json()["summary"]
        assert summary["organization_id"] == key.organization_id
        assert summary["totalApiKeyRequests"] == 2 * (int(key.organization_id[-3:]) + 1)
