"""A real S3 server on loopback, which checks secrets, and a line to it that can be made a bad one."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import obstore
from obstore.store import S3Store

BUCKET, REGION = "keytally-data", "eu-central-1"
KEY, SECRET = "AKIAKEYTALLY", "a-secret-of-the-tests"
READER, READER_SECRET = "AKIAREADER", "a-third-secret-of-the-tests"  # may not write
MAKER, MAKER_SECRET = "AKIAMAKER", "another-secret-of-the-tests"  # may make buckets; ours may not
WEED = shutil.which("weed") or str(Path(sys.executable).parent / "weed")


class Server(NamedTuple):
    """A running server."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """SeaweedFS with one bucket. Some six seconds to start."""
    identities = [
        {"name": "maker", "credentials": [{"accessKey": MAKER, "secretKey": MAKER_SECRET}], "actions": ["Admin"]},
        {
            "name": "keytally",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER, "secretKey": READER_SECRET}],
            "actions": [f"{action}:{BUCKET}" for action in ("Read", "List")],
        },
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [WEED, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]
    command += ["-volume.max=20", "-master.volumeSizeLimitMB=256", "-volume.preStopSeconds=0"]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        server = Server(ports["s3.port"])
        maker = client(server.url, key=MAKER, secret=MAKER_SECRET)
        until = time.monotonic() + 60
        while True:
            try:
                obstore.put(maker, "made", b"")  # makes the bucket
                obstore.list(client(server.url)).collect()
                break
            except Exception:
                assert process.poll() is None, (folder / "weed.log").read_text()[-2000:]
                assert time.monotonic() < until, (folder / "weed.log").read_text()[-2000:]
                time.sleep(0.1)
        yield server
    finally:
        process.kill()  # it holds nothing that anybody needs
        process.wait()


def client(url: str, prefix: str | None = None, key: str = KEY, secret: str = SECRET) -> S3Store:
    """A client that the tests look with; none of keytally's."""
    return S3Store(
        BUCKET,
        prefix=prefix,
        endpoint=url,
        access_key_id=key,
        secret_access_key=secret,
        region=REGION,
        client_options={"allow_http": True},
    )


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Call(NamedTuple):
    """A request that came by. path: without the bucket, with the query."""

    number: int
    method: str
    path: str


Answer = tuple[int, bytes]  # status and body, in the server's stead

CUT = "cut"  # the request arrives; half of its answer's body comes back, or nothing where it has none
AWAY = "away"  # the connection is closed, and the server never hears of the request
SLOW = "slow"  # no answer at all
TRICKLE = "trickle"  # bodies go either way in pieces, with pauses between them
PIECE, PAUSE = 2**17, 0.1  # bytes and seconds of these


class Line:
    """A line to the server: what happens to each call is decided by `fate`, None for nothing. A context manager.

    calls: all that came by.
    """

    def __init__(self, server: Server, fate: Callable[[Call], Answer | str | None] = lambda _: None) -> None:
        self.calls: list[Call] = []
        self.fate = fate
        self.change: Callable[[dict[str, str]], dict[str, str]] = lambda headers: headers  # of the server's answers
        self._server = server
        self._lock = threading.Lock()
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._listener.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        self._thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Line:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def asked(self, method: str, part: str = "") -> int:
        """How many calls of a method had `part` in their path."""
        return sum(call.method == method and part in call.path for call in self.calls)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        line = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with suppress(BrokenPipeError, ConnectionResetError):  # nobody waits for the answer any more
                    line._pass_on(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            path = handler.path.removeprefix(f"/{BUCKET}").removeprefix("/")
            call = Call(len(self.calls) + 1, handler.command, path)
            self.calls.append(call)
        fate = self.fate(call)
        length = int(handler.headers.get("Content-Length") or 0)
        body = b"".join(handler.rfile.read(min(PIECE, length - at)) for at in self._pieces(length, fate))
        if fate == SLOW:
            time.sleep(5)
        if fate in (SLOW, AWAY):
            handler.close_connection = True
            return
        if isinstance(fate, tuple):
            self._answer(handler, fate[0], {"Content-Type": "application/xml", "ETag": '"0"'}, fate[1], len(fate[1]))
            return
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():  # Host too: it is signed
            connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        content = answer.read()
        headers = {
            name: value for name, value in answer.getheaders() if name not in ("Connection", "Transfer-Encoding")
        }
        connection.close()
        if fate == CUT and (handler.command == "HEAD" or not content):
            handler.close_connection = True
            return
        length = int(headers.pop("Content-Length", len(content)))
        headers = self.change(headers)
        self._answer(handler, answer.status, headers, b"", length)
        if handler.command != "HEAD":
            content = content[: len(content) // 2] if fate == CUT else content
            for at in self._pieces(len(content), fate):
                handler.wfile.write(content[at : at + PIECE])
                handler.wfile.flush()
        if fate == CUT:
            handler.close_connection = True

    def _pieces(self, length: int, fate: Answer | str | None) -> Iterator[int]:
        """Where each piece of a body begins, when it is its turn."""
        for at in range(0, length, PIECE):
            if at and fate == TRICKLE:
                time.sleep(PAUSE)
            yield at

    def _answer(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes, length: int
    ) -> None:
        handler.send_response_only(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)


def every(failing: int, cut: int) -> Callable[[Call], Answer | str | None]:
    """500 to every so manieth call, and every so manieth cut, which goes before."""

    def fate(call: Call) -> Answer | str | None:
        if call.number % cut == 0:
            return CUT
        return error(500, "InternalError") if call.number % failing == 0 else None

    return fate


def error(status: int, code: str, more: str = "") -> Answer:
    """An error as S3 writes it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>no</Message>{more}</Error>'
    return status, body.encode()
