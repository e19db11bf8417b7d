"""What HTTP says of keeping, comparing and shrinking an answer (RFC 9110)."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import httpx
import pytest

from serving.answer import takes_gzip
from serving.keys import CreatedKey
from tests.serving.conftest import LiveServer, settings_for
from tests.serving.publishing import Row, publish_days
from tests.serving.test_daily import COMMITTED, EXAMPLE, NOVEMBER
from tests.serving.test_errors import error_of, words_of

PUBLISHED = "Sat, 15 Nov 2025 10:30:00 GMT"
MONTH: list[Row] = [("org_long", date(2025, 11, day), day, f"{day}.25", "1000", "20") for day in range(1, 31)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("data")
    publish_days(folder, NOVEMBER, EXAMPLE + MONTH, published_at=COMMITTED)
    with LiveServer(settings_for(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def key(server: LiveServer) -> CreatedKey:
    """Of an organization whose month is long enough to be compressed."""
    return server.create_key("org_long")


def sent(server: LiveServer, key: CreatedKey, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body just as they are sent: nothing unpacked, no header added."""
    path = f"/v1/analytics/api-keys/daily/{key.organization_id}?year=2025&month=11"
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"X-API-Key: {key.key}", "Connection: close", *headers]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), {line.partition(": ")[0]: line.partition(": ")[2] for line in rest}, body


def test_a_published_month_says_how_long_it_may_be_kept_and_since_when_it_is_so(
    server: LiveServer, key: CreatedKey
) -> None:
    status, headers, body = sent(server, key)
    assert status == 200
    assert headers["etag"] == f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    assert headers["last-modified"] == PUBLISHED
    assert headers["cache-control"] == "private, max-age=1, must-revalidate"
    assert headers["vary"] == "X-API-Key, Api-Key, Accept, Accept-Encoding"
    assert datetime.strptime(headers["date"], "%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize(("seconds", "kept"), [("0.1", 0), ("90", 90)])
def test_a_client_may_keep_it_as_long_as_the_server_may_miss_a_publication(data: Path, seconds: str, kept: int) -> None:
    publish_days(data, NOVEMBER, EXAMPLE)
    with LiveServer(settings_for(data, KEYTALLY_REFRESH_SECONDS=seconds)) as server:
        answer = server.daily(server.create_key("org_abc123"))
    assert answer.headers["cache-control"] == f"private, max-age={kept}, must-revalidate"


def test_a_long_body_is_compressed_for_those_who_take_it(server: LiveServer, key: CreatedKey) -> None:
    _, plain, body = sent(server, key)
    status, headers, smaller = sent(server, key, "Accept-Encoding: br, gzip")
    assert (status, headers["content-encoding"], headers["vary"]) == (200, "gzip", plain["vary"])
    assert gzip.decompress(smaller) == body
    assert int(headers["content-length"]) == len(smaller) < len(body) / 3
    assert "content-encoding" not in plain
    assert headers["etag"] != plain["etag"]
    assert headers["etag"] == f'"{hashlib.sha256(smaller).hexdigest()[:32]}"'
    assert server.daily(key).json() == json.loads(body)  # a library unpacks it


def test_a_short_body_is_not_compressed(server: LiveServer) -> None:
    _, headers, body = sent(server, server.create_key("org_abc123"), "Accept-Encoding: gzip")
    assert len(body) < 1000
    assert "content-encoding" not in headers
    assert "Accept-Encoding" in headers["vary"]


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        ("gzip", True),
        ("GZip", True),
        ("deflate, gzip;q=0.5", True),
        ("gzip ; q=1.000", True),
        ("x-gzip", True),
        ("*", True),
        ("br, *;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, identity", False),
        ("*, gzip;q=0", False),
        ("*;q=0", False),
        ("br", False),
        ("", False),
        ("identity", False),
        ("gzip;q=1.5", False),
        ("gzip;quality=1", False),
        ("notgzip, gzipped", False),
        (";;,,=;q", False),
    ],
)
def test_gzip_is_sent_only_to_those_who_say_so(server: LiveServer, key: CreatedKey, accepted: str, taken: bool) -> None:
    assert takes_gzip(accepted.encode()) is taken
    status, headers, _ = sent(server, key, f"Accept-Encoding: {accepted}")
    assert (status, headers.get("content-encoding") == "gzip") == (200, taken)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_head_has_every_header_of_get(server: LiveServer, key: CreatedKey, encoding: str) -> None:
    _, get, body = sent(server, key, f"Accept-Encoding: {encoding}", "X-Request-Id: same")
    status, head, nothing = sent(server, key, f"Accept-Encoding: {encoding}", "X-Request-Id: same", method="HEAD")
    assert (status, nothing) == (200, b"")
    del get["date"], head["date"]
    assert head == get
    assert int(get["content-length"]) == len(body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_whoever_has_either_body_gets_304_with_its_tag(server: LiveServer, key: CreatedKey, method: str) -> None:
    plain = sent(server, key)[1]["etag"]
    smaller = sent(server, key, "Accept-Encoding: gzip")[1]["etag"]
    for has, takes, expected in (
        (plain, "identity", 304),
        (smaller, "gzip", 304),
        (plain, "gzip", 304),  # it takes the plain body too, and has it
        (smaller, "identity", 200),  # what it has it does not take any more
        (f'"x", W/{smaller}', "gzip", 304),
        ("*", "gzip", 304),
    ):
        status, headers, body = sent(server, key, f"If-None-Match: {has}", f"Accept-Encoding: {takes}", method=method)
        assert status == expected, (has, takes)
        if status == 304:
            assert body == b""
            assert has == "*" or headers["etag"] in has
            assert headers["vary"] == "X-API-Key, Api-Key, Accept, Accept-Encoding"
            assert headers["cache-control"] == "private, max-age=1, must-revalidate"
            assert not {"content-length", "content-type", "content-encoding", "last-modified"} & set(headers)


def test_tags_in_several_headers_are_one_list(server: LiveServer, key: CreatedKey) -> None:
    etag = sent(server, key)[1]["etag"]
    assert sent(server, key, 'If-None-Match: "x"', f"If-None-Match: {etag}", 'If-None-Match: "y"')[0] == 304


@pytest.mark.parametrize(
    ("moment", "status"),
    [
        (PUBLISHED, 304),
        ("Sat, 15 Nov 2025 10:30:01 GMT", 304),
        ("Saturday, 15-Nov-25 10:30:00 GMT", 304),
        ("Sat Nov 15 10:30:00 2025", 304),
        ("Sat, 15 Nov 2025 10:29:59 GMT", 200),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 200),
        ("yesterday", 200),
        ("", 200),
        ("2025-11-15T10:30:00Z", 200),
        ("Sat, 99 Nov 99999 10:30:00 GMT", 200),
    ],
)
def test_a_client_that_knows_only_the_moment_gets_304(
    server: LiveServer, key: CreatedKey, moment: str, status: int
) -> None:
    assert sent(server, key, f"If-Modified-Since: {moment}")[0] == status
    # Only where there are no tags, whatever these are worth.
    assert sent(server, key, f"If-Modified-Since: {moment}", 'If-None-Match: "other"')[0] == 200
    assert sent(server, key, f"If-Modified-Since: {moment}", "If-None-Match:")[0] == 200


def test_a_month_never_published_has_no_moment(server: LiveServer, key: CreatedKey) -> None:
    zeros = server.daily(key, "year=2025&month=10", If_Modified_Since=PUBLISHED)
    assert (zeros.status_code, zeros.headers["cache-control"]) == (200, "no-store")
    assert "last-modified" not in zeros.headers


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("If-Match: {}", 200),
        ('If-Match: "other", {}', 200),
        ("If-Match: *", 200),
        ('If-Match: "other"', 412),
        ("If-Match: W/{}", 412),
        ("If-Match:", 412),
        (f"If-Unmodified-Since: {PUBLISHED}", 200),
        ("If-Unmodified-Since: Sat, 15 Nov 2025 10:29:59 GMT", 412),
        ("If-Unmodified-Since: yesterday", 200),
    ],
)
def test_a_month_that_changed_is_not_sent_to_those_who_want_the_old_one(
    server: LiveServer, key: CreatedKey, condition: str, status: int
) -> None:
    etag = sent(server, key)[1]["etag"]
    answered, headers, body = sent(server, key, condition.format(etag))
    assert answered == status
    if status == 412:
        assert json.loads(body)["error"]["code"] == "PRECONDITION_FAILED"
        assert headers["cache-control"] == "no-store"
    # Of tags and moments the tags count, and every condition before the last that says "not modified".
    assert sent(server, key, condition.format(etag), f"If-None-Match: {etag}")[0] == (304 if status == 200 else 412)


def test_conditions_change_no_refusal(server: LiveServer) -> None:
    for headers in ({"If-None-Match": "*"}, {"If-Match": '"x"'}, {"If-Modified-Since": PUBLISHED}):
        answer = server.client.get("/v1/analytics/api-keys/daily/org_long", headers=headers)
        assert words_of(answer)[:2] == (401, "AUTHENTICATION_REQUIRED")


def test_every_counted_answer_says_where_the_organization_stands(data: Path) -> None:
    publish_days(data, NOVEMBER, EXAMPLE)
    with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT="5/hour")) as server:
        key = server.create_key("org_abc123")

        def standing(answer: httpx.Response) -> tuple[int, int, int]:
            assert 3590 < int(answer.headers["ratelimit-reset"]) <= 3600
            return (
                answer.status_code,
                int(answer.headers["ratelimit-limit"]),
                int(answer.headers["ratelimit-remaining"]),
            )

        first = server.daily(key)
        assert standing(first) == (200, 5, 4)
        assert standing(server.daily(key, If_None_Match=first.headers["etag"])) == (304, 5, 3)
        assert standing(server.daily(key, "month=13")) == (400, 5, 2)
        assert standing(server.daily(key, organization="org_other")) == (403, 5, 1)
        assert standing(server.daily(key, method="HEAD")) == (200, 5, 0)
        refused = server.daily(key)
        assert standing(refused) == (429, 5, 0)
        assert refused.headers["retry-after"] == refused.headers["ratelimit-reset"]
        assert "ratelimit-limit" not in server.daily(None).headers
    with LiveServer(settings_for(data)) as server:
        assert "ratelimit-limit" not in server.daily(server.create_key("org_abc123")).headers


def test_absolute_form_asks_for_the_same(server: LiveServer, key: CreatedKey) -> None:
    path = "/v1/analytics/api-keys/daily/org_long?year=2025&month=11"
    for target, status in (
        (f"http://somewhere:80{path}", 200),
        (f"HTTPS://x{path}", 200),
        ("http://x", 200),  # the page to sign in on
        ("http://x?month=11", 200),
        (f"ftp://x{path}", 400),
        (f"x{path}", 400),
        ("*", 404),
    ):
        request = f"GET {target} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key.key}\r\nConnection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(request.encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert int(answer.split()[1]) == status, target


def test_an_error_has_the_shape_of_all_errors_whatever_is_accepted(server: LiveServer) -> None:
    answer = server.client.get("/nowhere", headers={"Accept-Encoding": "identity;q=0", "Accept": "image/png"})
    assert error_of(answer)["status"] == 404
