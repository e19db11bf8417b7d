"""The error table, row by row, over real HTTP; and that nothing makes the server answer in another shape."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from tests.serving.conftest import NOW, LiveServer, settings_for
from tests.serving.publishing import publish_days

PATH = "/v1/analytics/api-keys/daily/org_abc123"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    data = tmp_path_factory.mktemp("data")
    (data / "raw").mkdir()
    with LiveServer(settings_for(data)) as running:
        yield running


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, after checking everything that all errors have in common."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert list(answer.json()) == ["success", "error"]
    assert answer.json()["success"] is False
    error: dict[str, Any] = answer.json()["error"]
    assert list(error) == ["code", "message", "system_message", "type", "status", "trace_id", "timestamp"]
    assert error["status"] == answer.status_code
    assert error["trace_id"] == answer.headers["x-request-id"]
    assert error["timestamp"] == "2025-11-15T10:30:00Z"
    return error


def words_of(answer: httpx.Response) -> tuple[int, str, str, str, str]:
    """What tells one error from another."""
    error = error_of(answer)
    return answer.status_code, error["code"], error["type"], error["message"], error["system_message"]


NO_KEY = (401, "AUTHENTICATION_REQUIRED", "client_error", "Authentication required", "No API key provided")
INVALID = (401, "INVALID_API_KEY", "client_error", "Authentication required", "API key is not valid")
REVOKED = (401, "API_KEY_DEACTIVATED", "client_error", "Authentication required", "API key has been deactivated")
EXPIRED = (401, "API_KEY_EXPIRED", "client_error", "Authentication required", "API key has expired")
DENIED = (
    403,
    "ORGANIZATION_ACCESS_DENIED",
    "authorization_error",
    "Access denied to organization",
    "API key doesn't belong to organization",
)


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"Api-Key": ""}])
def test_without_a_key_authentication_is_required(server: LiveServer, headers: dict[str, str]) -> None:
    answer = server.client.get(PATH, headers=headers)
    assert words_of(answer) == NO_KEY
    assert answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "key", ["x", "kt_" + "A" * 43, "kt_" + "A" * 42, "kt_" + "A" * 44, "kt_" + "ä" * 43, "Bearer x"]
)
def test_unknown_and_malformed_keys_are_told_the_same(server: LiveServer, key: str) -> None:
    assert words_of(server.client.get(PATH, headers={b"X-API-Key": key.encode("latin-1")})) == INVALID


def test_an_empty_x_api_key_wins_over_a_good_api_key(server: LiveServer) -> None:
    good = server.create_key("org_abc123").key
    assert server.client.get(PATH, headers={"Api-Key": good}).status_code == 200
    assert server.client.get(PATH, headers={"Api-Key": "bad", "X-API-Key": good}).status_code == 200
    assert words_of(server.client.get(PATH, headers={"Api-Key": good, "X-API-Key": ""})) == NO_KEY
    assert words_of(server.client.get(PATH, headers={"Api-Key": good, "X-API-Key": "bad"})) == INVALID


def test_an_expired_key_is_told_so_and_a_revoked_one_first_of_all_that(server: LiveServer) -> None:
    later = server.create_key("org_abc123", expires_at=NOW + timedelta(microseconds=1))
    assert server.daily(later).status_code == 200
    expired = server.create_key("org_abc123", expires_at=NOW)
    assert words_of(server.daily(expired)) == EXPIRED
    both = server.create_key("org_abc123", expires_at=NOW)
    server.keys.revoke(both.id, now=NOW)
    assert words_of(server.daily(both)) == REVOKED


def test_too_many_requests_are_refused_with_the_time_to_wait(data: Path) -> None:
    with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT="2/hour")) as server:
        first, second, other = (server.create_key(name) for name in ("org_abc123", "org_abc123", "org_other"))
        assert server.daily(first).status_code == 200
        assert server.daily(second, organization="org_other").status_code == 403  # counted: by the key's organization
        refused = server.daily(first, organization="org_other", query="month=13")
        assert words_of(refused)[:4] == (429, "RATE_LIMIT_EXCEEDED", "client_error", "Too many requests")
        assert 3590 < int(refused.headers["retry-after"]) <= 3600
        assert server.daily(second).status_code == 429
        assert server.daily(other).status_code == 200
        unknown = server.client.get(PATH, headers={"X-API-Key": "kt_" + "A" * 43})
        assert words_of(unknown) == INVALID


@pytest.mark.parametrize(
    "organization",
    ["org_known", "org_unknown", "ORG_ABC123", "org_abc123%20", "org_abc123%0a", "%00", "%ff%fe", "%C3%A4", "a" * 9000],
)
def test_another_organization_is_denied_whether_or_not_it_exists(server: LiveServer, organization: str) -> None:
    server.create_key("org_known")
    key = server.create_key("org_abc123")
    assert words_of(server.daily(key, organization=organization)) == DENIED
    # before the parameters are looked at
    assert words_of(server.daily(key, "month=13", organization=organization)) == DENIED


def test_an_organization_id_may_be_percent_encoded(server: LiveServer) -> None:
    assert server.daily(server.create_key("org_abc123"), organization="%6frg_abc12%33").status_code == 200


@pytest.mark.parametrize(
    ("parameter", "query"),
    [
        *(
            ("year", f"year={value}")
            for value in ("", "2019", "2031", "25", "02025", "%202025", "2025.0", "-2025", "x")
        ),
        *(
            ("year", f"year={value}&month=13")
            for value in ("%D9%A2%D9%A0%D9%A2%D9%A5", "%ff", "%00", "2_25", "2025%0a")
        ),
        *(
            ("month", f"month={value}")
            for value in ("", "0", "00", "13", "011", "+1", "1.0", "1e0", "%D9%A1", "%C2%B2")
        ),
        ("year", "year"),
        ("year", "year=2025&year=2025"),
        ("month", "year=2025&month=1&month=11"),
    ],
)
def test_a_bad_parameter_is_named_with_its_range(server: LiveServer, parameter: str, query: str) -> None:
    words = words_of(server.daily(server.create_key("org_abc123"), query))
    assert words[:4] == (400, "INVALID_REQUEST", "validation_error", "Invalid query parameters")
    assert words[4].startswith(parameter)
    assert ("2020 to 2030" if parameter == "year" else "1 to 12") in words[4]


def test_unreadable_usage_is_an_error_and_names_no_file(data: Path) -> None:
    path = publish_days(data, date(2025, 11, 1), [("org_abc123", date(2025, 11, 1), 1, "1", "1", "1")])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with LiveServer(settings_for(data)) as server:
        answer = server.daily(server.create_key("org_abc123"))
    assert words_of(answer) == (
        503,
        "SERVICE_UNAVAILABLE",
        "server_error",
        "Usage data is temporarily unavailable",
        "Published usage data cannot be read",
    )


def test_the_unforeseen_is_an_internal_error_that_says_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"select * from {data}")

    monkeypatch.setattr("serving.questions.Daily.basis", fail)
    with LiveServer(settings_for(data)) as server:
        answer = server.daily(server.create_key("org_abc123"))
    assert words_of(answer) == (
        500,
        "INTERNAL_ERROR",
        "server_error",
        "An unexpected error occurred",
        "The request could not be answered",
    )


@pytest.mark.parametrize(
    "path",
    [
        *("/v1", "/docs/", "/redoc", "/%00", "/%ff", "/" + "a" * 9000),
        *("/v1/analytics/api-keys/daily", "/v1/analytics/api-keys/daily/", "/v1/analytics/api-keys/daily/a%2Fb"),
        *(f"{PATH}/", f"{PATH}/x", f"/{PATH}"),
        *("/static-offline-docs/%00", "/static-offline-docs/..%2Fa"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_path_is_not_found_before_anything_else(server: LiveServer, path: str, method: str) -> None:
    answer = server.client.request(method, server.url + path, headers={"X-API-Key": "bad"})
    if method == "POST" and path.startswith("/static"):
        assert words_of(answer)[:2] == (405, "METHOD_NOT_ALLOWED")
    else:
        assert words_of(answer)[:4] == (404, "NOT_FOUND", "client_error", "Not found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_another_method_is_not_allowed_before_anything_else(server: LiveServer, method: str) -> None:
    answer = server.client.request(method, f"{PATH}?month=13", content=b"x" * 100_000)
    assert words_of(answer)[:4] == (405, "METHOD_NOT_ALLOWED", "client_error", "Method not allowed")
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), (PATH, 401)])
def test_head_gets_an_error_without_its_body(server: LiveServer, path: str, status: int) -> None:
    answer = server.client.head(path)
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "path", ["/docs", "/docs/oauth2-redirect", "/openapi.json", "/static-offline-docs/favicon.png"]
)
def test_head_gets_a_page_without_its_body(server: LiveServer, path: str) -> None:
    answer, page = server.client.head(path), server.client.get(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == page.headers["content-type"]
    assert answer.headers["content-length"] == page.headers["content-length"]
    refused = server.client.post(path)
    assert words_of(refused)[:2] == (405, "METHOD_NOT_ALLOWED")
    assert refused.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("sent", ["a", "A-1", "0" * 64, "b1946ac9-2492-4d23-8a1f-3f2b0a6f1a11"])
@pytest.mark.parametrize("path", ["/nowhere", PATH, "/docs"])
def test_a_clients_request_id_is_taken_over(server: LiveServer, path: str, sent: str) -> None:
    answer = server.client.get(path, headers={"X-Request-Id": sent})
    assert answer.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", [b"", b"a b", b"0" * 65, b"a_b", b"\xff", b"a\tb"])
def test_an_unusable_request_id_is_replaced_by_a_uuid(server: LiveServer, sent: bytes) -> None:
    answer = server.client.get(PATH, headers={b"X-Request-Id": sent})
    assert UUID(error_of(answer)["trace_id"])


@pytest.mark.parametrize("sent", ["bytes=abc", "bytes=999999999-", "bytes=0-9", "bytes=9-0", "lines=1-2", ""])
@pytest.mark.parametrize("path", ["/static-offline-docs/swagger-ui.css", "/openapi.json", "/docs", "/nowhere", PATH])
def test_a_range_changes_nothing(server: LiveServer, path: str, sent: str) -> None:
    answer, whole = server.client.get(path, headers={"Range": sent}), server.client.get(path)
    assert answer.status_code == whole.status_code in (200, 401, 404)
    if answer.status_code == 200:
        assert answer.content == whole.content
    else:
        assert words_of(answer) == words_of(whole)


def exchange(port: int, request: bytes) -> bytes:
    """What comes back for these bytes, until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000, 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET " + PATH.encode() + b" HTTP/1.0\r\n\r\n", 401),
        (b"GET " + PATH.encode() + b" HTTP/1.1\r\nHost: \xff\r\nX-API-Key: \xff\xfe\r\nConnection: close\r\n\r\n", 401),
        (b"GET " + PATH.encode() + b"?year=%&%%%=\\ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 401),
        (b"get " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"GET " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nX-API-Key:  \t \r\nConnection: close\r\n\r\n", 401),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        (
            b"GET "
            + PATH.encode()
            + b" HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
            401,
        ),
    ],
)
def test_rubbish_gets_the_same_shape(server: LiveServer, request_bytes: bytes, status: int) -> None:
    head, _, body = exchange(server.port, request_bytes).partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].split()[1] == str(status).encode()
    answer = msgspec.json.decode(body)
    assert answer["success"] is False
    assert answer["error"]["status"] == status
    assert f"x-request-id: {answer['error']['trace_id']}".encode() in lines
    assert abs(
        datetime.fromisoformat(answer["error"]["timestamp"]) - (datetime.now(UTC) if status in (400, 405) else NOW)
    ) < (timedelta(minutes=1))


@pytest.mark.parametrize("path", ["/nowhere", "/v1/analytics/api-keys/daily/org_abc123", "/docs"])
def test_rubbish_behind_a_request_is_answered_once_and_leaves_no_traceback(
    server: LiveServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\nzz\r\n\r\n".encode()
    for _ in range(5):
        answer = exchange(server.port, request)
        assert answer.count(b"HTTP/1.1 ") >= 1
        assert b"Traceback" not in answer
    assert not [record for record in caplog.records if record.exc_info]


HEAD_REFUSED = b"HEAD " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [b"HEAD / HTTP/1.1\r\n\r\n"],
        [b"HEAD /\xff HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"HEAD / HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 20_000],
        [b"HE", b"AD / HTTP/1.1\r\n", b"rubbish\r\n\r\n"],
    ],
)
@pytest.mark.parametrize("before", [b"", HEAD_REFUSED])
def test_rubbish_with_head_gets_no_body(server: LiveServer, before: bytes, parts: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in (before + parts[0], *parts[1:]):
            connection.sendall(part)
            time.sleep(0.05)
        answered = b"".join(iter(lambda: connection.recv(65536), b""))
    *heads, body = answered.split(b"\r\n\r\n")
    assert [head.split()[1] for head in heads] == [b"401"] * bool(before) + [b"400"]
    assert b"\r\nx-request-id: " in heads[-1].lower()
    assert body == b""


def test_rubbish_behind_a_head_request_has_its_body(server: LiveServer) -> None:
    *_, body = exchange(server.port, HEAD_REFUSED + b"rubbish\r\n\r\n").split(b"\r\n\r\n")
    assert msgspec.json.decode(body)["error"]["status"] == 400
