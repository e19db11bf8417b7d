"""Make a genuine log with LiteLLM's proxy, mock models and the callback of docs/formats.md.

Run it in an environment that has LiteLLM and needs no keytally (`pip install 'litellm[proxy]'`):

    python -m tests.producers.make_litellm FOLDER

The caller knows what it asked for and what the mock server answered, and counts both. An attempt is a request: where
the proxy tries again or falls back, the mock server counts the attempts that reached it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.producers.count import Call, cost_of, write_sample
from tests.producers.upstream import Answer, Upstream, free_port

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/formats.md"
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# Keys of the proxy: which organization and team they belong to.
KEYS: dict[str, dict[str, str]] = {
    "sk-acme": {"org_id": "acme", "team_id": "team_red"},
    "sk-acme-2": {"org_id": "acme"},
    "sk-team": {"team_id": "team_blue"},
    "sk-nobody": {},
}
AUTHENTICATION = f"""
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

KEYS = {KEYS!r}


async def authenticate(request, api_key):
    if api_key not in KEYS:
        raise ProxyException(message="This key is unknown", type="auth_error", param="key", code=401)
    return UserAPIKeyAuth(api_key=api_key, **KEYS[api_key])
"""


def config(url: str) -> dict[str, Any]:
    """Return the proxy's configuration: models at the mock server, a cache in memory, one fallback."""
    openai = {"api_base": f"{url}/v1", "api_key": "none"}
    anthropic = {"api_base": url, "api_key": "none"}
    free = {"input_cost_per_token": 0, "output_cost_per_token": 0}
    models = {
        "gpt-4o": {"model": "openai/gpt-4o-2024-08-06", **openai},
        "gpt-4o-mini": {"model": "openai/gpt-4o-mini", **openai},
        "claude-sonnet-4-5": {"model": "anthropic/claude-sonnet-4-5", **anthropic},
        "text-embedding-3-small": {"model": "openai/text-embedding-3-small", **openai},
        "llama-free": {"model": "openai/llama-free", **openai, **free},
        "llama-without-price": {"model": "openai/llama-without-price", **openai},
        "falls": {"model": "openai/gpt-4o", **openai},
    }
    return {
        "model_list": [{"model_name": name, "litellm_params": params} for name, params in models.items()],
        "litellm_settings": {
            "callbacks": "keytally_log.log",
            "num_retries": 0,
            "cache": True,
            "cache_params": {"type": "local", "mode": "default_off"},
        },
        "router_settings": {"fallbacks": [{"falls": ["gpt-4o-mini"]}], "num_retries": 0, "disable_cooldowns": True},
        "general_settings": {"custom_auth": "keytally_auth.authenticate"},
    }


class Caller:
    """Calls the proxy and writes down what each call was."""

    def __init__(self, proxy: str, upstream: Upstream) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.calls: list[Call] = []
        self.heard = ""

    def call(
        self,
        name: str,
        model: str,
        *answers: Answer,
        path: str = "/v1/chat/completions",
        key: str = "sk-acme",
        **body: Any,
    ) -> int:
        """Send one call; return the status the proxy answered with. What it said is in `heard`."""
        self.upstream.planned[name] = list(answers)
        text = f"call: {name}"
        if path.endswith(("completions", "messages")):
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 100, **body}
        else:
            body = {"input": text, **body}
        request = urllib.request.Request(
            f"{self.proxy}{path}",
            json.dumps({"model": model, **body}).encode(),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.heard = answer.read().decode()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            self.heard = error.read().decode()
            return error.code

    def get(self, path: str, key: str = "sk-acme") -> int:
        """Fetch something that exists already."""
        request = urllib.request.Request(f"{self.proxy}{path}", headers={"authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)

    def expect(self, name: str, model: str, answer: Answer, key: str = "sk-acme", **other: Any) -> None:
        """Write down one attempt that the mock server answered so, by the name of the model that was asked for."""
        teams = KEYS.get(key, {})
        found = Call(
            name, teams.get("org_id") or teams.get("team_id"), hashlib.sha256(key.encode()).hexdigest(), model, 200
        )
        if answer.status >= 400:
            found.status = answer.status
            found.cost = "0"
        else:
            found.input_tokens, found.output_tokens = answer.input, answer.output
            found.cached_input_tokens, found.cache_write_tokens = answer.cached, answer.written
            found.reasoning_tokens = answer.reasoning
            found.cost = cost_of(model, answer.input, answer.output, answer.cached, answer.written)
        for field, value in other.items():
            setattr(found, field, value)
        self.calls.append(found)


def make_calls(caller: Caller) -> None:
    """Make every kind of call once."""

    def once(name: str, model: str, answer: Answer, key: str = "sk-acme", **body: Any) -> None:
        status = caller.call(name, model, answer, key=key, **body)
        assert status == answer.status, (name, status)
        caller.expect(name, model, answer, key)

    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    once("plain", "gpt-4o", Answer(121, 37))
    once("cached", "gpt-4o", Answer(2051, 103, cached=1920))
    once("reasoning", "gpt-4o-mini", Answer(333, 901, reasoning=832))
    once("stream", "gpt-4o", Answer(1301, 45), **streamed)
    once("stream-cached", "gpt-4o-mini", Answer(1500, 80, cached=1024), **streamed)
    once("other-key", "gpt-4o", Answer(59, 88), key="sk-acme-2")
    once("team-only", "gpt-4o", Answer(207, 19), key="sk-team")
    once("free", "llama-free", Answer(400, 40))
    once("repeats-id", "gpt-4o", Answer(10, 1, id="chatcmpl-static"))
    once("repeats-id-2", "gpt-4o", Answer(20, 2, id="chatcmpl-static"))

    # LiteLLM knows no price of this model and writes a cost of 0.
    answer = Answer(70, 7)
    assert caller.call("no-price", "llama-without-price", answer) == 200
    caller.expect("no-price", "llama-without-price", answer)

    # The proxy answers the second of two equal calls from its cache: the mock server sees one.
    answer = Answer(100, 10)
    for name in ("cache-miss", "cache-hit"):
        assert caller.call("twice", "gpt-4o", answer, cache={"use-cache": True}) == 200
        caller.expect(name, "gpt-4o", answer, **({"cost": "0"} if name == "cache-hit" else {}))
        time.sleep(0.5)
    assert caller.upstream.attempts["twice"] == 1

    for status in (400, 429, 500):
        once(f"fails-{status}", "gpt-4o", Answer(status=status))
    once("stream-refused", "gpt-4o", Answer(status=429), **streamed)

    # A fallback: the failed attempt is one request, the answered one another.
    assert caller.call("fallback", "falls", Answer(status=500), Answer(64, 16)) == 200
    assert caller.upstream.attempts["fallback"] == 2
    caller.expect("fallback-failed", "falls", Answer(status=500))
    caller.expect("fallback-answered", "gpt-4o-mini", Answer(64, 16))

    # Tried again after a failure.
    assert caller.call("retried", "gpt-4o", Answer(status=500), Answer(90, 12), num_retries=1) == 200
    assert caller.upstream.attempts["retried"] == 2
    caller.expect("retried-failed", "gpt-4o", Answer(status=500))
    caller.expect("retried-answered", "gpt-4o", Answer(90, 12))

    # The model's server counts no tokens: the proxy counts them, and tells the caller.
    assert caller.call("stream-uncounted", "gpt-4o", Answer(usage=False), **streamed) == 200
    (told,) = re.findall(r'"usage":\{"completion_tokens":(\d+),"prompt_tokens":(\d+),', caller.heard)
    caller.expect("stream-uncounted", "gpt-4o", Answer(int(told[1]), int(told[0])))
    # The stream breaks after its first word: the proxy estimates the tokens until then (12 and 1) and bills them.
    assert caller.call("stream-breaks", "gpt-4o", Answer(1000, 50, breaks=True), **streamed) == 200
    assert '"error"' in caller.heard
    caller.expect("stream-breaks", "gpt-4o", Answer(12, 1), status=500)

    once("responses", "gpt-4o", Answer(410, 71, cached=128, reasoning=20, id="resp_1"), path="/v1/responses")
    # The same response, fetched once more: a request without tokens and without a cost. It names no model.
    assert caller.get("/v1/responses/" + json.loads(caller.heard)["id"]) == 200
    caller.expect("responses-again", "gpt-4o", Answer(0, 0))
    caller.calls[-1].model = None
    once("responses-stream", "gpt-4o-mini", Answer(515, 23, id="resp_2"), path="/v1/responses", stream=True)
    once("embedding", "text-embedding-3-small", Answer(11, 0), path="/v1/embeddings")

    claude = "claude-sonnet-4-5"
    once("claude", claude, Answer(53, 21))
    once("claude-writes", claude, Answer(1523, 40, written=1500))
    once("claude-reads", claude, Answer(1527, 44, cached=1500))
    once("claude-stream", claude, Answer(1015, 33, cached=800, written=200), **streamed)
    once("messages", claude, Answer(90, 12), path="/v1/messages")
    once("messages-cached", claude, Answer(1290, 18, cached=1000, written=200), path="/v1/messages")
    once("messages-stream", claude, Answer(1188, 9, cached=1100), path="/v1/messages", stream=True)

    # No organization and no team: keytally cannot say whose these are.
    assert caller.call("nobody", "gpt-4o", Answer(10, 10), key="sk-nobody") == 200
    caller.expect("nobody", "gpt-4o", Answer(10, 10), key="sk-nobody")
    assert caller.call("refused-key", "gpt-4o", Answer(10, 10), key="sk-unknown") == 401
    assert caller.upstream.attempts["refused-key"] == 0
    caller.expect("refused-key", "gpt-4o", Answer(status=401), key="sk-unknown")


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the proxy answers."""
    for _ in range(240):
        assert process.poll() is None, "the proxy ended"
        try:
            urllib.request.urlopen(f"{url}/health/liveliness", timeout=2).read()
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError("the proxy did not start")


def shorn(record: dict[str, Any]) -> dict[str, Any]:
    """Take out what says something about this machine and nothing about the call: tracebacks."""
    error = record.get("error_information") or {}
    if error.get("traceback"):
        error["traceback"] = ""
    return record


def main(folder: Path) -> None:
    work = folder / "proxy"
    work.mkdir(parents=True)
    (callback,) = [block for block in PYTHON_BLOCK.findall(DOCS.read_text(encoding="utf-8")) if "CustomLogger" in block]
    (work / "keytally_log.py").write_text(callback, encoding="utf-8")
    (work / "keytally_auth.py").write_text(AUTHENTICATION, encoding="utf-8")
    port = free_port()
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_PROXY": "*"}
    quiet["LITELLM_MASTER_KEY"] = f"sk-{secrets.token_hex(32)}"  # the proxy starts with none but a strong one
    with Upstream() as upstream, (work / "proxy.out").open("wb") as out:
        (work / "config.yaml").write_text(json.dumps(config(upstream.url)), encoding="utf-8")
        command = [str(Path(sys.executable).parent / "litellm"), "--config", "config.yaml", "--port", str(port)]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], cwd=work, env={**os.environ, **quiet}, stdout=out, stderr=out
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process)
            caller = Caller(url, upstream)
            make_calls(caller)
            time.sleep(3)  # the callbacks run after the answers
        finally:
            process.terminate()
            process.wait(30)
    log = (work / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.dumps(shorn(json.loads(line))) for line in log.splitlines()]
    version = importlib.metadata.version("litellm")
    facts = {
        "producer": f"LiteLLM's proxy {version}",
        "format": "litellm",
        "currency": "USD",
        "now": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    write_sample(folder, f"litellm-proxy-{version}", lines, caller.calls, facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
