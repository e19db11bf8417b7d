"""Make a genuine access log with nginx, the log_format of docs/formats.md and a mock API behind it.

Needs nginx on the path (Debian: nginx-light), and nothing else:

    python -m tests.producers.make_nginx FOLDER
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.producers.count import Call, cost_of, write_sample
from tests.producers.upstream import Answer, free_port

DOCS = Path(__file__).parents[2] / "docs/formats.md"
NGINX_BLOCK = re.compile(r"^```nginx\n(log_format .*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"access_log (\S+) keytally;")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


def documented_lines(log: Path) -> str:
    """Return the lines of docs/formats.md that make nginx write its log, with the name of the log changed."""
    (block,) = NGINX_BLOCK.findall(DOCS.read_text(encoding="utf-8"))
    text, changed = NAMED.subn(f"access_log {log} keytally;", block)
    assert changed == 1
    return text


class Api(BaseHTTPRequestHandler):
    """A metered API: the path says what it answers, its headers how many tokens that took."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        _, _, status, input, output, kind = self.path.partition("?")[0].split("/")[:6]
        self.send_response(int(status))
        if kind in ("counted", "cacheable"):
            self.send_header("x-prompt-tokens", input)
            self.send_header("x-completion-tokens", output)
        if kind == "streamed":  # the head is sent before anybody knows how many tokens it will be
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for word in (b"Hello", b" there", b""):
                self.wfile.write(f"{len(word):x}\r\n".encode() + word + b"\r\n")
            return
        body = b"{}"
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def api() -> Iterator[str]:
    """Serve the mock API on a free port; give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Nginx:
    """An nginx of its own, in a folder of its own, on a port of its own."""

    def __init__(self, folder: Path, upstream: str, log: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.pid = folder / "nginx.pid"
        dead = free_port()
        temporary = "\n".join(
            f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""  # its workers must get into a folder that is only ours
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nginx.conf").write_text(
            f"""
{user}
daemon off;
master_process on;
worker_processes 1;
pid {self.pid};
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
{temporary}
    proxy_cache_path {folder}/cache keys_zone=answers:1m;
    limit_req_zone $http_x_org_id zone=slow:1m rate=1r/m;
{documented_lines(log)}
    server {{
        listen 127.0.0.1:{self.port};
        location /v1/ {{ proxy_pass http://{upstream}; }}
        location /cached/ {{
            proxy_pass http://{upstream};
            proxy_cache answers;
            proxy_cache_valid 200 1h;
        }}
        location /slow/ {{ limit_req zone=slow; limit_req_status 429; proxy_pass http://{upstream}; }}
        location /dead/ {{ proxy_pass http://127.0.0.1:{dead}; }}
        location /health {{ return 200 "well"; }}
    }}
}}
""",
            encoding="utf-8",
        )

    def __enter__(self) -> Nginx:
        assert NGINX
        self.process = subprocess.Popen([NGINX, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")])
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("nginx did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def call(self, path: str, **headers: str) -> int:
        """Send one request; return the status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=named)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.read()
            return error.code

    def leave(self, path: str, **headers: str) -> None:
        """Send one request and go away before the answer."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: api\r\n{lines}\r\n".encode("latin-1"))


def make_calls(nginx: Nginx, *, again: bool = False) -> list[Call]:
    """Make every kind of call once, and write down what each was.

    Args:
        again: True: the same nginx was called so before, so its cache has the answers and its limit is reached.
    """
    calls: list[Call] = []

    def once(
        name: str,
        answer: Answer,
        *,
        place: str = "v1",
        kind: str = "counted",
        model: str = "gpt-4o",
        expected: int | None = None,
        cost: str | None = None,
        **more: str,
    ) -> None:
        told = {"x_org_id": "acme", "x_api_key_id": "key_a", "x_model": model, **more}
        headers = {header: value for header, value in told.items() if value}
        path = f"/{place}/{answer.status}/{answer.input}/{answer.output}/{kind}"
        status = expected or answer.status
        assert nginx.call(path, **headers) == status, (name, status)
        made = Call(name, told["x_org_id"] or None, told["x_api_key_id"] or None, model or None, status)
        if kind in ("counted", "cacheable") and expected is None:
            made.input_tokens, made.output_tokens = answer.input, answer.output
        if status >= 400:
            made.cost = "0"
        elif made.input_tokens is not None:
            made.cost = cost or cost_of(model, answer.input, answer.output)
        calls.append(made)

    once("plain", Answer(1000, 100))
    once("mini", Answer(2051, 103), model="gpt-4o-mini")
    once("free", Answer(400, 40), model="llama-free")
    once("other-key", Answer(59, 88), x_api_key_id="key_b")
    once("other-organization", Answer(64, 16), x_org_id="beta")
    once("session", Answer(10, 1), x_api_key_id="")
    once("strange-agent", Answer(70, 7), user_agent='caf\xe9 "quoted" \\ \x01')
    # The head of a streamed answer is sent before its tokens are counted.
    once("stream", Answer(), kind="streamed")
    for status in (400, 429, 500):
        once(f"fails-{status}", Answer(status=status), kind="uncounted")
    once("nobody-there", Answer(), place="dead", expected=502)
    if not again:
        once("within-the-limit", Answer(30, 3), place="slow")
    once("over-the-limit", Answer(30, 3), place="slow", expected=429)
    # nginx answers the second of two equal calls from its own cache.
    if not again:
        once("cache-miss", Answer(100, 10), place="cached", kind="cacheable")
    once("cache-hit", Answer(100, 10), place="cached", kind="cacheable", cost="0")
    # A health check names nobody.
    assert nginx.call("/health") == 200
    calls.append(Call("health", None, None, None, 200))
    return calls


def main(folder: Path) -> None:
    work = folder / "nginx"
    work.mkdir(parents=True)
    log = work / "access.jsonl"
    with api() as upstream, Nginx(work, upstream, log) as nginx:
        calls = make_calls(nginx)
    lines = log.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    assert NGINX
    told = subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True).stderr
    version = told.strip().rpartition("/")[2].split()[0]
    facts = {
        "producer": f"nginx {version} (Debian)",
        "format": "nginx",
        "currency": "USD",
        "now": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    write_sample(folder, f"nginx-{version}", lines, calls, facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
