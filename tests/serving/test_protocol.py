"""Clients that are slow, greedy or speak something else: they end, in the one shape, and nobody waits for them."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest

from serving import protocol
from tests.serving.conftest import LiveServer, eventually, settings_for
from tests.serving.publishing import publish_days

CONNECTIONS = 500
BUNDLE = "/static-offline-docs/swagger-ui-bundle.js"  # more than any socket takes at once


@pytest.fixture
def server(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """A server that gives a client two seconds for anything."""
    publish_days(data, date(2025, 11, 1), [("org_abc123", date(2025, 11, 1), 1, "1", "1", "1")])
    for limit in ("HEAD_SECONDS", "BODY_SECONDS", "TAKE_SECONDS"):
        monkeypatch.setattr(protocol, limit, 2)
    monkeypatch.setattr(protocol, "CLOSE_SECONDS", 1)
    monkeypatch.setattr(protocol, "TAKE_LEAST", 2**17)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # both ends of each connection are in this process
    with LiveServer(settings_for(data)) as running:
        yield running


def connect(server: LiveServer, room: int | None = None) -> socket.socket:
    """room: bytes that may wait to be read at this end."""
    connection = socket.socket()
    if room:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", server.port))
    return connection


def ended(connection: socket.socket) -> bytes:
    """What came until the server closed or cut the connection."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionError:
        pass
    return received


def dripped(connection: socket.socket, byte: bytes) -> bool:
    """Whether the server still takes a byte."""
    try:
        connection.sendall(byte)
    except OSError:
        return False
    return True


def served_meanwhile(server: LiveServer, slow: Callable[[], None], seconds: float) -> list[float]:
    """How long each request of an honest client took, one after the other, while `slow` is done all the time."""
    key = server.create_key("org_abc123")
    stop = threading.Event()

    def keep_on() -> None:
        while not stop.wait(0.1):
            slow()

    other = threading.Thread(target=keep_on)
    other.start()
    took = []
    begun = time.monotonic()
    try:
        while time.monotonic() - begun < seconds:
            asked = time.monotonic()
            assert server.daily(key).status_code == 200
            took.append(time.monotonic() - asked)
    finally:
        stop.set()
        other.join()
    return took


def test_500_clients_that_drip_a_head_hold_up_nobody_and_are_refused(server: LiveServer) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(CONNECTIONS)]
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        took = served_meanwhile(server, lambda: [dripped(connection, b"a") for connection in slow] and None, 4)
        assert len(took) > 100
        assert max(took) < 1
        assert sorted(took)[len(took) // 2] < 0.1
        answers = [ended(connection) for connection in slow]
    refused = [answer for answer in answers if answer]  # a byte sent after the end may cost the answer: TCP's way
    assert len(refused) > 0
    for answer in refused:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in head
        assert json.loads(body)["error"]["code"] == "REQUEST_TIMEOUT"


def test_500_clients_that_never_read_hold_up_nobody_and_are_cut_off(server: LiveServer) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server, 4096)) for _ in range(CONNECTIONS)]
        for connection in slow:
            connection.sendall(f"GET {BUNDLE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        took = served_meanwhile(server, lambda: None, 5)
        assert max(took) < 3  # while 500 files are begun
        assert sorted(took)[len(took) // 2] < 0.1
        eventually(lambda: len(server.connections) < 20)


def taken(server: LiveServer, size: int, room: int, rate: float) -> tuple[int, float]:
    """Bytes of an answer of `size` that a client got at `rate` bytes a second, and how long it took some of them."""
    with connect(server, room) as connection:
        connection.sendall(f"GET {BUNDLE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        begun = time.monotonic()
        got = 0
        try:
            while got < size and (part := connection.recv(room)):
                got += len(part)
                time.sleep(len(part) / rate)
        except ConnectionError:
            pass
        return got, time.monotonic() - begun


def test_a_client_that_goes_on_taking_a_long_answer_gets_all_of_it(server: LiveServer) -> None:
    size = len(server.client.get(BUNDLE).content)
    got, seconds = taken(server, size, 2**16, 250_000)
    assert got >= size
    assert seconds > 2 * protocol.TAKE_SECONDS


def test_a_client_that_takes_next_to_nothing_is_cut_off(server: LiveServer) -> None:
    size = len(server.client.get(BUNDLE).content)
    got, _ = taken(server, size, 4096, 20_000)
    assert got < size


def test_a_client_that_says_nothing_is_let_go(server: LiveServer) -> None:
    with connect(server) as connection:
        begun = time.monotonic()
        assert ended(connection) == b""
        assert 1.5 < time.monotonic() - begun < 5


def test_the_second_request_of_a_connection_may_not_drip_either(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        connection.sendall(b"HEAD /nowhere HTTP/1.1\r\nHos")
        heads = ended(connection).split(b"\r\n\r\n")
    assert [head[:12] for head in heads] == [b"HTTP/1.1 404", b"HTTP/1.1 408", b""]


def test_a_body_that_drips_ends_with_the_connection(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        begun = time.monotonic()
        while dripped(connection, b"a"):
            time.sleep(0.2)
            assert time.monotonic() - begun < 6


def test_an_answer_that_takes_us_long_is_waited_for(server: LiveServer, data: Path) -> None:
    key = server.create_key("org_abc123")
    path = publish_days(data, date(2025, 10, 1), [("org_abc123", date(2025, 10, 1), 5, "1", "1", "1")])
    good = path.rename(data / "good")
    os.mkfifo(path)  # the server reads until we have written, and then what is in its place
    time.sleep(2 * server.settings.refresh_seconds)  # it has seen the publication

    def fill() -> None:
        with path.open("wb") as pipe:
            time.sleep(4)
            good.replace(path)
            pipe.write(b"other bytes")

    filling = threading.Thread(target=fill)
    filling.start()
    answer = server.daily(key, "year=2025&month=10")
    filling.join()
    assert answer.json()["summary"]["totalApiKeyRequests"] == 5


def test_a_head_longer_than_its_limit_is_refused_however_it_comes(server: LiveServer) -> None:
    for size, status in ((15_000, 404), (17_000, 400), (60_000, 400)):
        for head in (
            b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"a" * size + b"\r\n\r\n",
            b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"X: a\r\n" * (size // 6) + b"\r\n",
        ):
            with connect(server) as connection:
                connection.sendall(head)
                assert int(ended(connection).split()[1]) == status, (size, head[:40])


def test_the_preface_of_http_2_is_refused_in_our_words(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        answer = ended(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b'{"success":false') == answer.count(b"HTTP/1.1 ") == 1


def answered(server: LiveServer, request: bytes) -> tuple[int, dict[str, object]]:
    with connect(server) as connection:
        connection.sendall(request)
        head, _, body = ended(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"] if body else {}


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n X: folded\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: no host\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"BREW /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400),
        (b"GET /nowhere HTTP/1.0\r\n\r\n", 404),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n", 404),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\nExpect: cake\r\nConnection: close\r\n\r\n", 404),
        (
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
            404,
        ),
        (
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            404,
        ),
        (b"CONNECT somewhere:443 HTTP/1.1\r\nHost: somewhere\r\nConnection: close\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    ],
)
def test_another_protocol_gets_the_same_shape(server: LiveServer, request_bytes: bytes, status: int) -> None:
    answer, error = answered(server, request_bytes)
    assert (answer, error["status"]) == (status, status)


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"5\r\nabc\r\n", b"f" * 30 + b"\r\n", b"1" * 20_000])
def test_bad_chunks_behind_a_head_are_answered_once(server: LiveServer, chunk: bytes) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head + chunk + b"\r\n0")
        answer = ended(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.split()[1] in (b"400", b"404")


def test_a_method_that_http_does_not_know_is_refused_while_its_body_still_comes(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"BREW /docs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        connection.sendall(b"a" * 1_000_000)
        answer = ended(connection)
    assert answer.startswith(b"HTTP/1.1 405 ") and b"\r\nallow: GET, HEAD\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "METHOD_NOT_ALLOWED"


def test_requests_sent_at_once_are_answered_in_order_and_what_is_none_behind_them_last(server: LiveServer) -> None:
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\nX-Request-Id: n%d\r\n\r\n" % (n, n) for n in range(200))
    with connect(server) as connection:
        connection.sendall(requests + b"GET / HTTP/3\r\n\r\n")
        answer = ended(connection)
    ids = re.findall(rb"\r\nx-request-id: (n\d+)\r\n", answer)
    assert ids == [b"n%d" % n for n in range(200)]
    assert answer.rpartition(b"HTTP/1.1 ")[2][:3] == b"400"


def test_a_connection_that_asks_for_another_protocol_gets_its_answer_and_ends(server: LiveServer) -> None:
    head = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = ended(connection)
    assert answer.count(b"HTTP/1.1 404 ") == answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("size", [1, 7, 4_000])
def test_a_head_that_comes_in_pieces_is_measured_as_one(server: LiveServer, size: int) -> None:
    head = b"GET /" + b"a" * 7_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"b" * 8_000 + b"\r\n\r\n"
    for request, status in ((head, b"404"), (head.replace(b"X: ", b"X: " + b"c" * 2_000), b"400")):
        with connect(server) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for start in range(0, len(request), size):
                    connection.sendall(request[start : start + size])
            except ConnectionError:
                pass
            assert ended(connection).split()[1] == status


def test_a_client_may_take_the_end_of_an_answer_slowly_though_the_connection_ends_with_it(server: LiveServer) -> None:
    with connect(server, 4096) as connection:
        connection.sendall(f"GET {BUNDLE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, begun = connection.recv(4096).partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        received = len(begun)
        while part := connection.recv(65_536):
            received += len(part)
            time.sleep(len(part) / 400_000)
    assert received == length
