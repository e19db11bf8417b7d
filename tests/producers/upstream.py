"""Serve mock models over HTTP, in the shapes of OpenAI's and Anthropic's APIs. Standard library only.

A producer's environment has no keytally in it, and keytally's has no producer: this file runs in both.
A call names itself in its text ("call: NAME"), and the server answers with what the caller planned for that name.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = re.compile(r"call: ([a-z0-9-]+)")


@dataclass
class Answer:
    """What the server says to one attempt of a call.

    Args:
        input: All tokens of the input, those read from and written to the cache included.
        output: All tokens of the output, reasoning included.
        usage: False: the answer says nothing about tokens.
        breaks: True: the stream ends after its first chunk, without a usage and without an end.
        id: The response's id; by default the call's name and the number of the attempt.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    written: int = 0
    reasoning: int = 0
    status: int = 200
    usage: bool = True
    breaks: bool = False
    id: str = ""


@dataclass
class Upstream:
    """A server of mock models on a free port of this machine."""

    planned: dict[str, list[Answer]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Upstream:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"upstream": self}))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that left
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.server
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        assert self.server
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, text: str) -> tuple[str, Answer]:
        """Return the call's name and the planned answer of its next attempt (the last one repeats)."""
        found = NAME.search(text)
        name = found[1] if found else "unnamed"
        answers = self.planned.get(name, [Answer(status=404)])
        answer = answers[min(self.attempts[name], len(answers) - 1)]
        self.attempts[name] += 1
        return name, answer


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: Upstream

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        """Give a response once more, as OpenAI's GET /responses/{id} does."""
        body = self.upstream.bodies.get(self.path.rpartition("/")[2])
        self._send(200 if body else 404, body or _error(404))

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        asked = json.loads(text)
        name, answer = self.upstream.answer(text)
        identity = answer.id or f"{name}-{self.upstream.attempts[name]}"
        if answer.status >= 400:
            self._send(answer.status, _error(answer.status))
            return
        kind = self.path.partition("?")[0].rstrip("/").rpartition("/")[2]
        make = {"completions": _chat, "responses": _response, "embeddings": _embedding, "messages": _message}[kind]
        body, chunks = make(asked, answer, identity)
        if kind == "responses":
            self.upstream.bodies[identity] = body
        if asked.get("stream"):
            self._stream(chunks[:1] if answer.breaks else chunks, ends=not answer.breaks)
        else:
            self._send(200, body)

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, chunks: list[tuple[str, dict[str, Any] | str]], *, ends: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event, data in chunks:
            text = data if isinstance(data, str) else json.dumps(data)
            part = (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.flush()
        if ends:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True


def _error(status: int) -> dict[str, Any]:
    kind = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error"}.get(status, "api_error")
    return {
        "type": "error",
        "error": {"message": f"The mock server says {status}", "type": kind, "param": None, "code": None},
    }


def _chat(asked: dict[str, Any], answer: Answer, identity: str) -> tuple[dict[str, Any], list[Any]]:
    usage = {
        "prompt_tokens": answer.input,
        "completion_tokens": answer.output,
        "total_tokens": answer.input + answer.output,
        "prompt_tokens_details": {"cached_tokens": answer.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning, "audio_tokens": 0},
    }
    head = {"id": identity, "created": 1_790_000_000, "model": asked["model"]}
    body: dict[str, Any] = {
        **head,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there."}, "finish_reason": "stop"}],
    }
    if answer.usage:
        body["usage"] = usage
    chunk = {**head, "object": "chat.completion.chunk"}
    chunks: list[Any] = [
        ("", {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello"}}]}),
        ("", {**chunk, "choices": [{"index": 0, "delta": {"content": " there."}, "finish_reason": None}]}),
        ("", {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    ]
    if answer.usage and (asked.get("stream_options") or {}).get("include_usage"):
        chunks.append(("", {**chunk, "choices": [], "usage": usage}))
    return body, [*chunks, ("", "[DONE]")]


def _response(asked: dict[str, Any], answer: Answer, identity: str) -> tuple[dict[str, Any], list[Any]]:
    body = {
        "id": identity,
        "object": "response",
        "created_at": 1_790_000_000,
        "status": "completed",
        "model": asked["model"],
        "output": [
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hello there.", "annotations": []}],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": answer.input,
            "input_tokens_details": {"cached_tokens": answer.cached},
            "output_tokens": answer.output,
            "output_tokens_details": {"reasoning_tokens": answer.reasoning},
            "total_tokens": answer.input + answer.output,
        },
    }
    started = {**body, "status": "in_progress", "output": [], "usage": None}
    chunks = [
        ("response.created", {"type": "response.created", "sequence_number": 0, "response": started}),
        (
            "response.output_text.delta",
            {
                "type": "response.output_text.delta",
                "sequence_number": 1,
                "item_id": "msg_1",
                "output_index": 0,
                "content_index": 0,
                "delta": "Hello there.",
                "logprobs": [],
            },
        ),
        ("response.completed", {"type": "response.completed", "sequence_number": 2, "response": body}),
    ]
    return body, chunks


def _embedding(asked: dict[str, Any], answer: Answer, identity: str) -> tuple[dict[str, Any], list[Any]]:
    body = {
        "object": "list",
        "model": asked["model"],
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
        "usage": {"prompt_tokens": answer.input, "total_tokens": answer.input},
    }
    return body, []


def _message(asked: dict[str, Any], answer: Answer, identity: str) -> tuple[dict[str, Any], list[Any]]:
    """Answer as Anthropic does: its cached tokens are beside the input."""
    usage = {
        "input_tokens": answer.input - answer.cached - answer.written,
        "cache_read_input_tokens": answer.cached,
        "cache_creation_input_tokens": answer.written,
        "output_tokens": answer.output,
    }
    body = {
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "model": asked["model"],
        "content": [{"type": "text", "text": "Hello there."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    started = {**body, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": started},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello there."}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": answer.output},
        },
        {"type": "message_stop"},
    ]
    return body, [(event["type"], event) for event in events]
