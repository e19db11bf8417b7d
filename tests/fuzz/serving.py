"""Fuzzes the server over raw sockets: whatever is sent, an answer has the one shape, and nothing sent reaches the log.

    nice -n 19 python -m tests.fuzz.serving [SECONDS] [SEED]

A server of its own, with usage of two organizations. Every answer must be whole HTTP/1.1: 200 with this organization's
own numbers or the error envelope; never a 500, never a 422, never the other organization, nothing of ours, no echo.
Every log line is one JSON object without a word of what was sent. Prints what breaks this, and ends with 1.
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import random
import re
import socket
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from serving.server import JsonLines
from tests.serving.conftest import LiveServer, settings_for
from tests.serving.publishing import publish_days

DAILY = b"/v1/analytics/api-keys/daily/"
WORD = b"forged_word"  # no character of a trace id, which may be taken over: "_"
PIECES = (
    b"/", b"//", b"..", b"%2e%2e%2f", b"%2F", b"%00", b"%0a", b"%0d%0a", b"%", b"%zz", b"%u0031", b"?", b"&", b"=", b";", b"#",
    b"year=2025", b"month=11", b"year=", b"month=", b"year=2020", b"month=12", b"month=0", b"month=13", b"month=011", b"month=%31",
    b"year=%D9%A2%D9%A0%D9%A2%D9%A5", b"year=+2025", b"year=2025%20", b"year=20_5", b"year=1e3", b"MONTH=1", b"month[]=1",
    b"year=9" + b"9" * 500, b"'", b"' or 1=1 --", b"%27;drop%20table%20x", b"\\", b"\xff", b"\xc3\xa9", b"\0", b"\t", b" ",
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b": ", b":", b"org_abc123", b"org_other", b"{org_id}", WORD, b"docs", b"openapi.json",
    b"fill=zero", b"fill=", b"group_by=model", b"group_by=api_key", b"api_key_id=key_1", b"include=coverage", b"limit=5", b"limit=0",
    b"static-offline-docs", b"-", b"*", b"[", b"]", b"{", b"}", b'"', b"\x1b[2J", b"\x7f", b"a" * 5000, b"a" * 17000,
)  # fmt: skip
METHODS = (
    b"GET",
    b"GET",
    b"GET",
    b"GET",
    b"HEAD",
    b"POST",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PUT",
    b"get",
    b"G\0T",
    WORD,
)


def mutated(chance: random.Random, text: bytes, most: int = 3) -> bytes:
    """The text with up to `most` pieces put in or in the place of something."""
    changed = bytearray(text)
    for _ in range(chance.randint(0, most)):
        start = chance.randint(0, len(changed))
        end = min(len(changed), start + chance.choice((0, 0, 0, 1, 3, 10)))
        changed[start:end] = chance.choice(PIECES)
    return bytes(changed)


def a_request(chance: random.Random, key: bytes) -> bytes:
    """A request as bytes: right, nearly right, or nothing like it."""
    organization = chance.choice(
        (b"org_abc123", b"org_abc123", b"org_abc123", b"org_other", WORD, b"", b"..", b"%6frg_abc123")
    )
    query = chance.choice((b"?year=2025&month=11", b"?month=11", b"?year=2025", b"", b"?year=2025&month=11&x=" + WORD))
    path = chance.choice(
        (
            *(DAILY + organization,) * 4,
            b"/v1/analytics/api-keys/summary/" + organization,
            b"/v1/analytics/api-keys/usage/" + organization + b"/" + chance.choice((b"key_1", WORD, b"%00", b"%ff")),
            b"/v1/analytics/"
            + organization
            + b"/api-keys/top/"
            + chance.choice((b"11/2025", b"13/2025", b"11/" + WORD)),
            *(b"/docs", b"/openapi.json", b"/", b"*"),
        )
    )
    target = path + query
    if chance.random() < 0.6:
        target = mutated(chance, target)
    sent = chance.choice(
        (key, key, key, key[:-1] + b"!", b"kt_" + b"s" * 43, WORD, b"", b"\xff\xfe", b" " + key + b" ")
    )
    headers = [
        chance.choice((b"X-API-Key", b"x-api-key", b"Api-Key", b"X-API-Key ", b"X_API_Key")) + b": " + sent,
        b"Host: " + chance.choice((b"localhost", WORD, b"a\tb", b"")),
    ]
    extra = (
        b"X-Request-Id: " + mutated(chance, b"abc-1", 1),
        b'If-None-Match: "' + WORD + b'"',
        b"If-None-Match: *",
        b"X-Forwarded-For: " + WORD,
        b"X-Forwarded-Prefix: /" + WORD,
        b"Content-Length: " + chance.choice((b"0", b"5", b"-1", b"+1", b"1, 1", b"99999999999999999999", b"x")),
        b"Transfer-Encoding: " + chance.choice((b"chunked", b"identity", b"chunked, chunked", WORD)),
        b"Expect: 100-continue",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13",
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        b"Accept-Encoding: gzip, br",
        b"Accept: " + mutated(chance, chance.choice((b"text/csv", b"text/csv;q=0.5, */*;q=0.1", b"*/*"))),
        b"Range: bytes=0-1",
        b"X-HTTP-Method-Override: DELETE",
        b"X-API-Key: " + WORD,
        b" folded",
        mutated(chance, b"X: y", 4),
        b"A: " + b"b" * chance.choice((10, 9_000, 20_000)),
    )
    headers += chance.sample(extra, chance.choice((0, 0, 1, 2, 4)))
    chance.shuffle(headers)
    version = chance.choice((b"HTTP/1.1",) * 8 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/9", b"", WORD))
    whole = chance.choice(METHODS) + b" " + target + b" " + version + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n"
    whole += chance.choice((b"", b"", b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n"))
    if chance.random() < 0.1:
        whole = mutated(chance, whole, 6)
    return whole


class _Answer(io.BytesIO):
    """Bytes that http.client takes for a socket."""

    def makefile(self, *_: object, **__: object) -> _Answer:
        return self


def sent_to(port: int, request: bytes) -> bytes:
    """All that the server says to these bytes, until it closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65_536):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # it closed before it had read everything
    return answer


def broken_promise(request: bytes, answer: bytes, own_body: bytes) -> str | None:
    """Which promise the answer breaks."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    if not answer or answer == b"HTTP/1.1 100 Continue\r\n\r\n":
        return None  # what never was a whole request
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
        head = answer.partition(b"\r\n\r\n")[0]
    if not head.startswith(b"HTTP/1.1 "):
        return "not HTTP/1.1"
    method = "HEAD" if request.lstrip(b"\r\n").startswith(b"HEAD ") else "GET"
    response = http.client.HTTPResponse(_Answer(answer), method=method)  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
    except http.client.HTTPException as error:
        return f"broken HTTP: {error!r}"
    if response.status in (422, 500) or response.status >= 504:
        return f"status {response.status}"
    if not re.fullmatch("[A-Za-z0-9-]{1,64}", response.getheader("x-request-id") or ""):
        return "no X-Request-Id"
    if WORD in answer or b"777777777" in body:
        return "an echo, or another organization's number"
    if re.search(rb"Traceback|/tmp/|\.py|sqlite|duckdb", body) and response.status != 200:
        return "something of ours"
    if response.status in (200, 304) or method == "HEAD":
        kind = response.getheader("content-type") or ""
        if response.status == 200 and method == "GET" and kind == "application/json" and b"dailyUsage" in body[:2000]:
            told = json.loads(body)
            if told.get("organization_id", told.get("organizationId")) != "org_abc123":
                return "another organization"
            optional = re.search(rb"fill|group_by|api_key_id|include|/usage/", request)
            if not optional and (told["period"]["year"], told["period"]["month"]) == (2025, 11) and body != own_body:
                return "another body for the same question"
        return None
    try:
        error = json.loads(body)
        assert list(error) == ["success", "error"]
        assert error["error"]["status"] == response.status
        assert error["error"]["trace_id"] == response.getheader("x-request-id")
    except (ValueError, KeyError, TypeError, AssertionError) as wrong:
        return f"not the envelope: {wrong!r} {body[:200]!r}"
    return None


def main(seconds: float = 600, seed: int = 0) -> int:
    """Requests until the time is over or a promise is broken; the exit code."""
    chance = random.Random(seed)
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    handler.setFormatter(JsonLines())
    for name in ("keytally", "uvicorn", "asyncio"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).propagate = False
    begun = time.monotonic()
    statuses: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        day = date(2025, 11, 3)
        publish_days(
            Path(folder),
            day,
            [("org_abc123", day, 5, "1", "1", "1"), ("org_other", day, 777_777_777, "777777777", "1", "1")],
        )
        with LiveServer(settings_for(Path(folder))) as server:
            created = server.create_key("org_abc123")
            own_body = server.daily(created).content
            key = created.key.encode()
            while time.monotonic() - begun < seconds:
                # One request a connection: the end of the first answer is then the end of all.
                request = a_request(chance, key)
                answer = sent_to(server.port, request)
                statuses[answer[9:12].decode("latin-1")] = statuses.get(answer[9:12].decode("latin-1"), 0) + 1
                broken = broken_promise(request, answer, own_body)
                lines = logged.getvalue()
                logged.seek(0)
                logged.truncate()
                if not broken and (WORD.decode() in lines or created.key in lines or '"traceback"' in lines):
                    broken = "the log repeats what was sent, or has a traceback"
                for line in lines.splitlines():
                    try:
                        json.loads(line)
                    except ValueError:
                        broken = broken or f"a log line that is no JSON: {line!r}"
                if broken:
                    print(f"seed {seed}: {broken}\n{request!r}\n{answer!r}\n{lines}")
                    return 1
    print(f"seed {seed}: {sum(statuses.values()):,} requests, {dict(sorted(statuses.items()))}, no promise broken")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:3])))
