"""Make genuine traces with the OpenTelemetry Python SDK and its own exporter of OTLP as JSON.

Run it in an environment of its own (the anthropic parts are made where they are installed):

    pip install opentelemetry-sdk opentelemetry-exporter-otlp-json-file httpx openai anthropic \
        opentelemetry-instrumentation-genai-openai opentelemetry-instrumentation-genai-anthropic
    python -m tests.producers.make_otel FOLDER

The older opentelemetry-instrumentation-openai-v2 needs an environment without these two, and
opentelemetry-util-genai 0.4b0. What is not installed is left out.

The logs: spans made by hand of every kind that SDKs and gateways write, OpenAI's client under its instrumentation,
and Anthropic's client under an instrumentation while the client writes spans by itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from tests.producers.count import Call, cost_of, write_sample
from tests.producers.upstream import Answer, Upstream

STACKTRACE = "exception.stacktrace"
ORGANIZATION, KEY = "acme", "key_a"


class Log:
    """A tracer provider that writes to memory, and the calls that its caller made."""

    def __init__(self, *, batch: bool, **attributes: str) -> None:
        resource = {
            "service.name": "assistant",
            "keytally.organization_id": ORGANIZATION,
            "keytally.api_key_id": KEY,
            **attributes,
        }
        self.text = io.StringIO()
        self.provider = TracerProvider(resource=Resource.create(resource))
        exporter = FileSpanExporter(stream=self.text)
        self.provider.add_span_processor(BatchSpanProcessor(exporter) if batch else SimpleSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("assistant")
        self.calls: list[Call] = []

    def expect(self, name: str, model: str, answer: Answer | None, status: int = 200, **other: Any) -> None:
        """Write down one call. answer None: nobody said how many tokens."""
        found = Call(name, ORGANIZATION, KEY, model, status)
        if status >= 400:
            found.cost = "0"
        if answer:
            found.input_tokens, found.output_tokens = answer.input, answer.output
            found.cached_input_tokens, found.cache_write_tokens = answer.cached, answer.written
            found.reasoning_tokens = answer.reasoning
            if status < 400:
                found.cost = cost_of(model, answer.input, answer.output, answer.cached, answer.written)
        for field, value in other.items():
            setattr(found, field, value)
        self.calls.append(found)

    def write(self, folder: Path, name: str, producer: str) -> None:
        self.provider.shutdown()
        lines = [json.dumps(_shorn(json.loads(line))) for line in self.text.getvalue().splitlines()]
        facts = {
            "producer": producer,
            "format": "otel-genai",
            "currency": "USD",
            "now": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        write_sample(folder, name, lines, self.calls, facts)


def _shorn(export: dict[str, Any]) -> dict[str, Any]:
    """Take the stack traces out: they say something about this machine and nothing about the call."""
    for resource in export["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for event in span.get("events", ()):
                    event["attributes"] = [one for one in event.get("attributes", ()) if one["key"] != STACKTRACE]
    return export


def make_by_hand(log: Log) -> None:
    """Make spans as gateways and SDKs of several ages write them, one call each."""

    @contextmanager
    def span(name: str, kind: SpanKind = SpanKind.CLIENT, **attributes: Any) -> Iterator[Any]:
        named = {key.replace("__", "."): value for key, value in attributes.items()}
        with log.tracer.start_as_current_span(name, kind=kind, attributes=named) as made:
            yield made

    def chat(model: str, **attributes: Any) -> Any:
        head = {"gen_ai__operation__name": "chat", "gen_ai__request__model": model, "gen_ai__provider__name": "openai"}
        return span(f"chat {model}", **head, **attributes)

    server = SpanKind.SERVER
    # A request to the application: an agent that carries the sum of its two calls, with a tool between them.
    with (
        span("POST /ask", server, http__response__status_code=200),
        span(
            "invoke_agent helper",
            gen_ai__operation__name="invoke_agent",
            gen_ai__usage__input_tokens=330,
            gen_ai__usage__output_tokens=40,
        ),
    ):
        for number, (input, output) in enumerate([(100, 15), (230, 25)]):
            with chat(
                "gpt-4o",
                gen_ai__usage__input_tokens=input,
                gen_ai__usage__output_tokens=output,
                gen_ai__response__id=f"chatcmpl-agent-{number}",
                gen_ai__response__model="gpt-4o-2024-08-06",
                http__response__status_code=200,
            ):
                pass
            log.expect(f"agent-{number}", "gpt-4o", Answer(input, output))
            with span("execute_tool weather", gen_ai__operation__name="execute_tool", gen_ai__tool__name="weather"):
                pass
    # An agent whose own model calls are not in the log.
    with span(
        "invoke_agent alone",
        gen_ai__operation__name="invoke_agent",
        gen_ai__request__model="gpt-4o-mini",
        gen_ai__usage__input_tokens=500,
        gen_ai__usage__output_tokens=50,
    ):
        pass
    log.expect("agent-alone", "gpt-4o-mini", Answer(500, 50))

    def one(name: str, model: str, answer: Answer | None, **attributes: Any) -> None:
        with span("POST /ask", server), chat(model, gen_ai__response__id=f"resp-{name}", **attributes):
            pass
        log.expect(name, model, answer)

    one(
        "cache-reads-and-writes",
        "claude-sonnet-4-5",
        Answer(1015, 33, cached=800, written=200),
        gen_ai__usage__input_tokens=1015,
        gen_ai__usage__output_tokens=33,
        gen_ai__usage__cache_read__input_tokens=800,
        gen_ai__usage__cache_creation__input_tokens=200,
    )
    one(
        "newer-name-of-writes",
        "claude-sonnet-4-5",
        Answer(1523, 40, written=1500),
        gen_ai__usage__input_tokens=1523,
        gen_ai__usage__output_tokens=40,
        gen_ai__usage__cache_write__input_tokens=1500,
    )
    one(
        "older-names",
        "gpt-4o",
        Answer(700, 30),
        gen_ai__usage__prompt_tokens=700,
        gen_ai__usage__completion_tokens=30,
    )
    one(
        "older-names-of-the-cache",
        "claude-sonnet-4-5",
        Answer(900, 9, cached=600, written=100),
        gen_ai__usage__input_tokens=900,
        gen_ai__usage__output_tokens=9,
        gen_ai__usage__cache_read_input_tokens=600,
        gen_ai__usage__cache_creation_input_tokens=100,
    )
    one(
        "doubles",
        "gpt-4o",
        Answer(500, 20),
        gen_ai__usage__input_tokens=500.0,
        gen_ai__usage__output_tokens=20.0,
    )
    one(
        "texts",
        "gpt-4o",
        Answer(60, 6),
        gen_ai__usage__input_tokens="60",
        gen_ai__usage__output_tokens="6",
    )
    one(
        "reasoning",
        "gpt-4o-mini",
        Answer(333, 901, reasoning=832),
        gen_ai__usage__input_tokens=333,
        gen_ai__usage__output_tokens=901,
        gen_ai__usage__reasoning__output_tokens=832,
    )
    one("stream-without-usage", "gpt-4o", None)
    one("no-tokens-but-zero", "gpt-4o", Answer(0, 0), gen_ai__usage__input_tokens=0, gen_ai__usage__output_tokens=0)
    with span(
        "embeddings",
        gen_ai__operation__name="embeddings",
        gen_ai__request__model="text-embedding-3-small",
        gen_ai__usage__input_tokens=11,
    ):
        pass
    log.expect("embeddings", "text-embedding-3-small", Answer(11, 0), output_tokens=None)
    # An instrumentation from before there was an operation name.
    with span(
        "openai.chat",
        llm__request__type="chat",
        gen_ai__request__model="gpt-4o",
        gen_ai__usage__prompt_tokens=110,
        gen_ai__usage__completion_tokens=11,
    ):
        pass
    log.expect("no-operation-name", "gpt-4o", Answer(110, 11))
    # The request names no model, the answer does.
    with span(
        "chat",
        gen_ai__operation__name="chat",
        gen_ai__response__model="gpt-4o-mini",
        gen_ai__response__id="resp-dated",
        gen_ai__usage__input_tokens=40,
        gen_ai__usage__output_tokens=4,
    ):
        pass
    log.expect("model-of-the-answer", "gpt-4o-mini", Answer(40, 4))

    # Failures: a status of HTTP, an error's type alone, the status of the span alone, a stream that breaks after 200.
    with chat("gpt-4o", http__response__status_code=429, error__type="429"):
        pass
    log.expect("status-429", "gpt-4o", None, 429)
    with chat("gpt-4o", error__type="openai.APITimeoutError"):
        pass
    log.expect("error-type", "gpt-4o", None, 500)
    with chat("gpt-4o") as failed:
        failed.set_status(Status(StatusCode.ERROR, "The connection was reset"))
    log.expect("span-status", "gpt-4o", None, 500)
    with suppress(ConnectionError), chat("gpt-4o", http__response__status_code=200, gen_ai__response__id="resp-torn"):
        raise ConnectionError("The stream broke")
    log.expect("torn-stream", "gpt-4o", None, 500)

    # The span's own organization and key go before those of its resource. Without a key it is a session.
    with chat(
        "gpt-4o",
        keytally__organization_id="beta",
        keytally__api_key_id="key_b",
        gen_ai__usage__input_tokens=80,
        gen_ai__usage__output_tokens=8,
    ):
        pass
    log.expect("other-organization", "gpt-4o", Answer(80, 8), organization="beta", key="key_b")


def make_openai(log: Log, upstream: Upstream, instrumentation: str) -> None:
    """Call through OpenAI's client under an instrumentation in its default mode."""
    from openai import OpenAI, OpenAIError

    instrumentor = importlib.import_module(f"opentelemetry.instrumentation.{instrumentation}").OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=log.provider)
    client = OpenAI(base_url=f"{upstream.url}/v1", api_key="none", max_retries=0)

    def ask(name: str, model: str, *answers: Answer, retries: int = 0, **options: Any) -> None:
        upstream.planned[name] = list(answers)
        messages: Any = [{"role": "user", "content": f"call: {name}"}]
        with log.tracer.start_as_current_span("POST /ask", kind=SpanKind.SERVER), suppress(OpenAIError):
            asked = client.with_options(max_retries=retries).chat.completions
            made: Any = asked.create(model=model, messages=messages, **options)
            if options.get("stream"):
                for _ in made:
                    pass

    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    counted: list[tuple[str, str, Answer, dict[str, Any]]] = [
        ("plain", "gpt-4o", Answer(121, 37), {}),
        ("mini", "gpt-4o-mini", Answer(2051, 103), {}),
        ("two-choices", "gpt-4o", Answer(59, 88), {"n": 2}),
        ("stream-usage", "gpt-4o", Answer(1301, 45), with_usage),
    ]
    for name, model, answer, options in counted:
        ask(name, model, answer, **options)
        log.expect(name, model, Answer(answer.input, answer.output))
    ask("stream-silent", "gpt-4o", Answer(30, 3), stream=True)
    log.expect("stream-silent", "gpt-4o", None)
    for status in (400, 429, 500):
        ask(f"fails-{status}", "gpt-4o", Answer(status=status))
        log.expect(f"fails-{status}", "gpt-4o", None, 500)  # this instrumentation writes no status, but an error's type
    # The client tries again by itself: one call, and one span.
    ask("retried", "gpt-4o", Answer(status=500), Answer(64, 16), retries=1)
    assert upstream.attempts["retried"] == 2
    log.expect("retried", "gpt-4o", Answer(64, 16))
    upstream.planned["embedding"] = [Answer(11, 0)]
    with log.tracer.start_as_current_span("POST /ask", kind=SpanKind.SERVER):
        client.embeddings.create(model="text-embedding-3-small", input="call: embedding")
    log.expect("embedding", "text-embedding-3-small", Answer(11, 0), output_tokens=None)
    instrumentor.uninstrument()


def make_anthropic(log: Log, upstream: Upstream) -> None:
    """Call through Anthropic's client: it writes a span of each call, and so does the instrumentation."""
    from anthropic import Anthropic, AnthropicError
    from opentelemetry import trace
    from opentelemetry.instrumentation.genai.anthropic import AnthropicInstrumentor

    trace.set_tracer_provider(log.provider)
    AnthropicInstrumentor().instrument(tracer_provider=log.provider)
    client = Anthropic(base_url=upstream.url, api_key="none", max_retries=0)
    model = "claude-sonnet-4-5"

    def ask(name: str, *answers: Answer, retries: int = 0, **options: Any) -> None:
        upstream.planned[name] = list(answers)
        messages: Any = [{"role": "user", "content": f"call: {name}"}]
        with log.tracer.start_as_current_span("POST /ask", kind=SpanKind.SERVER), suppress(AnthropicError):
            asked = client.with_options(max_retries=retries).messages
            made: Any = asked.create(model=model, messages=messages, max_tokens=100, **options)
            if options.get("stream"):
                for _ in made:
                    pass
        last = answers[-1]
        log.expect(name, model, None if last.status >= 400 else last, last.status)

    ask("plain", Answer(53, 21))
    ask("writes", Answer(1523, 40, written=1500))
    ask("reads", Answer(1527, 44, cached=1500))
    ask("stream", Answer(1015, 33, cached=800, written=200), stream=True)
    ask("fails-429", Answer(status=429))
    ask("fails-400", Answer(status=400))
    ask("retried", Answer(status=500), Answer(90, 12), retries=1)
    AnthropicInstrumentor().uninstrument()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    version = importlib.metadata.version
    sdk = version("opentelemetry-sdk")
    log = Log(batch=True)
    make_by_hand(log)
    log.write(folder, f"otel-sdk-{sdk}-by-hand", f"OpenTelemetry SDK {sdk}, spans made by hand")

    made: list[tuple[str, bool, Callable[[Log, Upstream], None], tuple[str, str]]] = [
        (
            "otel-openai-v2",
            True,
            partial(make_openai, instrumentation="openai_v2"),
            ("opentelemetry-instrumentation-openai-v2", "openai"),
        ),
        (
            "otel-genai-openai",
            True,
            partial(make_openai, instrumentation="genai.openai"),
            ("opentelemetry-instrumentation-genai-openai", "openai"),
        ),
        (
            "otel-genai-anthropic",
            False,
            make_anthropic,
            ("opentelemetry-instrumentation-genai-anthropic", "anthropic"),
        ),
    ]
    for name, batch, make, (instrumentation, client) in made:
        try:
            versions = version(instrumentation), version(client)
        except importlib.metadata.PackageNotFoundError as missing:
            sys.stderr.write(f"{name} is left out: {missing.name} is not installed\n")
            continue
        log = Log(batch=batch)
        with Upstream() as upstream:
            make(log, upstream)
        producer = f"{instrumentation} {versions[0]} with {client} {versions[1]} and SDK {sdk}"
        log.write(folder, f"{name}-{versions[0]}-client-{versions[1]}", producer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
