"""Several spans of a trace may tell of one call: it counts once, wherever in the file they stand."""

from __future__ import annotations

import json
from datetime import date
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from pipeline.reconcile import reconcile
from pipeline.run import start_run
from tests.conftest import Place

Span = dict[str, Any]
START = 1_762_776_000_000_000_000  # 2025-11-10T12:00:00Z


def span(number: int, parent: int | None = None, operation: str | None = "chat", /, **attributes: Any) -> Span:
    """A span of the trace `a…a`. failed: its status is ERROR. Others are attributes; `__` stands for a point."""
    failed, trace, scope = (
        attributes.pop(name, default) for name, default in (("failed", 0), ("trace", "a"), ("scope", "s"))
    )
    named = {"keytally.organization_id": "org_a", "keytally.api_key_id": "key_1", "gen_ai.request.model": "gpt"}
    if operation:
        named["gen_ai.operation.name"] = operation
    named |= {f"gen_ai.{name.replace('__', '.')}": value for name, value in attributes.items()}
    return {
        "scope": scope,
        "span": {
            "traceId": trace * 32,
            "spanId": f"{number:016x}",
            **({"parentSpanId": f"{parent:016x}"} if parent is not None else {}),
            "startTimeUnixNano": str(START + number * 10**9),
            "attributes": [
                {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
                for key, value in named.items()
            ],
            "status": {"code": 2} if failed else {},
        },
    }


def export(*spans: Span) -> str:
    """A line as the SDK's exporter writes it."""
    scopes = [{"scope": {"name": each["scope"]}, "spans": [each["span"]]} for each in spans]
    return json.dumps({"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": scopes}]})


TOKENS = {"usage__input_tokens": 500, "usage__output_tokens": 150}
ZERO = {"usage__input_tokens": 0, "usage__output_tokens": 0}
CACHED = {"usage__cache_read__input_tokens": 100}


@pytest.fixture
def traced(place: Place) -> Place:
    place.layout.prices.write_text(
        "model,valid_from,input_per_million,output_per_million,currency\ngpt,2025-01-01,2.5,10,CHF\n"
    )
    return place


def published(place: Place, *lines: str) -> tuple[int, int, str, int]:
    """Requests, failed requests, cost and input tokens of a log of these lines."""
    place.write_raw("otel-genai/a.jsonl", *lines)
    place.roll_up()
    (row,) = place.published("organization_day").itertuples()
    return row.requests, row.failed_requests, f"{row.cost.normalize():f}", int(row.input_tokens or 0)


def tally(place: Place) -> dict[tuple[str, str], int]:
    taken = place.ledger().files["otel-genai/a.jsonl"].take_in
    return {(each.kind, each.reason): each.lines for each in taken.tally}


def lines_of(place: Place, kind: str) -> int:
    return place.ledger().files["otel-genai/a.jsonl"].take_in.lines_of(kind)


def assert_recounted(place: Place) -> None:
    """The plain reading of the log agrees."""
    with start_run(place.settings, lambda: place.now) as run:
        assert reconcile(run, date(2025, 11, 10), date(2025, 11, 10)).as_json()["differences"] == []


@pytest.mark.parametrize("together", [True, False], ids=["one export", "an export a span"])
@pytest.mark.parametrize("order", list(permutations(range(3)))[::2])
def test_an_agent_is_left_out_where_its_calls_are_in_the_log(
    traced: Place, together: bool, order: tuple[int, ...]
) -> None:
    """The call is the agent's grandchild, below a span of another kind."""
    spans = [
        span(1, None, "invoke_agent", usage__input_tokens=1000, usage__output_tokens=300),
        span(2, 1, "execute_tool"),
        span(3, 2, **TOKENS),
    ]
    ordered = [spans[number] for number in order]
    lines = [export(*ordered)] if together else [export(each) for each in ordered]
    assert published(traced, *lines) == (1, 0, "0.00275", 500)
    assert tally(traced)["skipped", "an agent whose model calls are in the log too"] == 1
    assert lines_of(traced, "skipped") == 2


def test_an_agent_counts_where_no_call_of_it_is_in_the_log(traced: Place) -> None:
    agent = span(1, None, "invoke_agent", usage__input_tokens=1000, usage__output_tokens=300)
    sibling, elsewhere = span(2, None, **TOKENS), span(3, 1, trace="b", **TOKENS)
    assert published(traced, export(agent), export(sibling, elsewhere)) == (3, 0, "0.011", 2000)
    assert tally(traced) == {}


def test_of_agents_one_below_the_other_the_innermost_counts(traced: Place) -> None:
    agents = [span(n, n - 1 or None, "invoke_agent", usage__input_tokens=10, usage__output_tokens=1) for n in (1, 2, 3)]
    assert published(traced, export(*agents)) == (1, 0, "0.000035", 10)


def test_an_agent_across_blocks_of_the_file_is_left_out_too(traced: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rows.BLOCK_BYTES", 4_096)
    monkeypatch.setattr("pipeline.judge.BLOCK_BYTES", 1)
    agent = span(1, None, "invoke_agent", usage__input_tokens=1000, usage__output_tokens=300)
    calls = [export(span(number, 1, **TOKENS)) for number in range(2, 42)]
    assert published(traced, *calls, export(agent)) == (40, 0, "0.11", 20_000)


@pytest.mark.parametrize("parent", [1, None], ids=["parent and child", "siblings"])
def test_two_spans_of_one_call_count_once(traced: Place, parent: int | None) -> None:
    """The response id says that they tell of one call, though one of them says less than the other."""
    outer = span(1, None, response__id="msg_1", usage__input_tokens=500)
    inner = span(2, parent, response__id="msg_1", usage__cache_read__input_tokens=0, **TOKENS, scope="other")
    assert published(traced, export(inner), export(outer)) == (1, 0, "0.00275", 500)
    assert lines_of(traced, "merged") == 1
    (day,) = traced.ledger().days.values()
    assert (day.duplicate, day.disagreeing) == (1, 0)


def test_two_spans_of_one_call_that_bill_other_tokens_are_told_of(traced: Place) -> None:
    calls = [span(n, None, response__id="msg_1", usage__input_tokens=500, **more) for n, more in ((1, {}), (2, CACHED))]
    traced.write_raw("otel-genai/a.jsonl", export(*calls))
    report = traced.roll_up()
    assert [day.lines for day in report.disagreeing] == [1]


def test_the_same_response_id_in_another_trace_is_another_call(traced: Place) -> None:
    calls = [span(n, None, trace=trace, response__id="static", **TOKENS) for n, trace in ((1, "a"), (2, "b"))]
    assert published(traced, export(*calls)) == (2, 0, "0.0055", 1000)
    assert lines_of(traced, "merged") == 0


def test_two_spans_of_a_failed_call_count_once(traced: Place) -> None:
    lines = export(span(2, 1, failed=True, scope="sdk")), export(span(1, 9, failed=True)), export(span(9, None, None))
    assert published(traced, *lines) == (1, 1, "0", 0)
    assert tally(traced) == {("skipped", "no model call"): 1, ("merged", "a second span of the same call"): 1}


@pytest.mark.parametrize("named", [{"response__id": "msg_1"}, {}], ids=["with a response id", "without"])
def test_a_failed_attempt_below_a_call_that_succeeded_is_a_request(traced: Place, named: dict[str, str]) -> None:
    call, attempt = span(1, None, **named, **TOKENS), span(2, 1, failed=True)
    assert published(traced, export(attempt, call)) == (2, 1, "0.00275", 500)
    assert tally(traced) == {}


@pytest.mark.parametrize(
    "spans",
    [
        [span(1, None, **TOKENS), span(2, 1, response__id="msg_1", **TOKENS)],
        [span(1, None, "embeddings", **TOKENS), span(2, 1, "embeddings", **TOKENS)],
        [span(1, None, failed=True), span(2, 1, response__id="msg_1", **TOKENS)],
        [span(1, None, failed=True), span(2, 1, **TOKENS)],
        [span(1, 9, failed=True, scope="openai_v2"), span(2, 9, failed=True, scope="openllmetry")],
        [
            span(1, 9, failed=True, scope="x", request__model="openai/gpt-4o"),
            span(2, 9, failed=True, scope="y", request__model="gpt-4o-2024-08-06"),
        ],
        [
            span(1, 9, failed=True, scope="x", response__id="msg_1"),
            span(2, 9, failed=True, scope="y"),
        ],
        [span(1, 9, scope="x", response__id="msg_1", **TOKENS), span(2, 9, scope="y", **TOKENS, **CACHED)],
        [span(1, 9, scope="x", **TOKENS), span(2, 9, scope="y", **TOKENS)],
        [span(1, 9, scope="x"), span(2, 9, scope="y")],
        [span(1, None, **TOKENS), span(3, 1, None), span(4, 3, None), span(2, 4, response__id="msg_1", **TOKENS)],
        [span(1, None, response__id="msg_1", **TOKENS), span(3, 1, None), span(2, 3, **TOKENS)],
    ],
    ids=[
        "one has no response id",
        "neither has",
        "the outer one failed",
        "the outer one failed, no ids",
        "failed side by side",
        "failed side by side, one with the dated model",
        "failed side by side, one with a response id",
        "side by side, one has no response id",
        "side by side, neither has",
        "side by side, no tokens",
        "two spans in between",
        "a span in between, the inner one has no response id",
    ],
)
def test_what_cannot_be_decided_is_a_finding(traced: Place, spans: list[Span]) -> None:
    traced.write_raw("otel-genai/a.jsonl", export(*spans))
    report = traced.roll_up()
    assert report.has_findings
    assert [odd.what for odd in report.odd] == ["1 span may tell of a call that counts already: no response id says so"]
    assert sum(day.counted for day in report.days) == 2
    assert_recounted(traced)


@pytest.mark.parametrize(
    "spans",
    [
        [span(1, 9, failed=True), span(2, 9, failed=True)],
        [span(1, 9, failed=True, scope="x"), span(2, 9, failed=True, request__model="claude", scope="y")],
        [span(1, None, response__id="msg_1", **TOKENS), span(2, 1, response__id="msg_2", **TOKENS)],
        [span(1, 9, **TOKENS), span(2, 9, **TOKENS)],
        [span(1, 9, scope="x", **TOKENS), span(2, 9, scope="y", usage__input_tokens=501, usage__output_tokens=150)],
        [span(1, 9, scope="x", **TOKENS), span(2, 9, scope="y", request__model="claude", **TOKENS)],
        [span(n, 9, scope=f"s{n}", response__id=f"msg_{n}", **TOKENS) for n in (1, 2)],
        [span(1, 8, scope="x", **TOKENS), span(2, 9, scope="y", **TOKENS)],
        [span(1, None, **TOKENS), span(3, 1, None), span(2, 3, failed=True)],
        [span(1, None, response__id="msg_1", **TOKENS), span(3, 1, None), span(2, 3, response__id="msg_2", **TOKENS)],
    ],
    ids=[
        "attempts of one instrumentation",
        "attempts with two models",
        "two response ids",
        "side by side, one instrumentation",
        "side by side, other tokens",
        "side by side, other models",
        "side by side, two response ids",
        "side by side, other parents",
        "a failed attempt further below",
        "two response ids, a span in between",
    ],
)
def test_what_can_be_decided_is_none(traced: Place, spans: list[Span]) -> None:
    assert published(traced, export(*spans))[0] == 2
    assert lines_of(traced, "undecided") == 0
    assert_recounted(traced)


def test_a_failed_span_that_is_exported_twice_is_merged_once(traced: Place) -> None:
    inner = export(span(2, 1, failed=True))
    assert published(traced, inner, inner, export(span(1, None, failed=True))) == (1, 1, "0", 0)
    assert (lines_of(traced, "merged"), lines_of(traced, "skipped")) == (1, 0)


# --- failed spans one below the other ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(range(3)))[::2])
def test_the_tokens_of_a_failed_call_count_whichever_of_its_spans_carries_them(
    traced: Place, order: tuple[int, ...]
) -> None:
    """Three instrumentations, one below the other: only the innermost writes tokens."""
    spans = [span(1, 9, failed=True), span(2, 1, failed=True), span(3, 2, failed=True, **TOKENS)]
    assert published(traced, *(export(spans[number]) for number in order)) == (1, 1, "0.00275", 500)
    assert tally(traced) == {("merged", "a second span of the same call"): 2}
    (event,) = {event["request_id"] for event in traced.events("otel-genai/a.jsonl")}
    assert event == f"{'a' * 32}-{1:016x}"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1)])
def test_of_several_failed_spans_below_one_only_the_first_is_merged(traced: Place, order: tuple[int, ...]) -> None:
    """Attempts 2, 3 and 4 below call 1: 2 merges with 1; 3 and 4 count, and nobody can say whether they should."""
    tokens = {"usage__output_tokens": 0}
    spans = [span(1, None, failed=True)]
    spans += [span(n, 1, failed=True, **tokens, usage__input_tokens=10**n) for n in (2, 3, 4)]
    assert published(traced, *(export(spans[number]) for number in order)) == (3, 3, "0.02775", 11_100)
    assert (lines_of(traced, "merged"), lines_of(traced, "undecided"), lines_of(traced, "skipped")) == (1, 2, 0)


def test_a_failed_span_below_one_that_is_merged_no_further_is_merged_with_that_one(traced: Place) -> None:
    """1 above 2 and 3, and 3 above 4: 2 merges with 1, 4 with 3."""
    spans = [span(n, above, failed=True, usage__input_tokens=10**n) for n, above in ((1, None), (2, 1), (3, 1), (4, 3))]
    assert published(traced, export(*spans)) == (2, 2, "0.02525", 10_100)
    assert (lines_of(traced, "merged"), lines_of(traced, "undecided")) == (2, 1)


@pytest.mark.parametrize("named", [1, 2, 3])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_failed_spans_of_which_one_has_a_response_id_are_one_request(
    traced: Place, named: int, order: tuple[int, ...]
) -> None:
    """Three instrumentations of one broken stream; only one of them saw the id of the response."""
    spans = [span(n, n - 1 or None, failed=True, **({"response__id": "msg_1"} if n == named else {})) for n in (1, 2)]
    spans.append(span(3, 2, failed=True, **({"response__id": "msg_1"} if named == 3 else {}), **TOKENS))
    assert published(traced, *(export(spans[number]) for number in order)) == (1, 1, "0.00275", 500)
    assert tally(traced) == {("merged", "a second span of the same call"): 2}
    assert {event["request_id"] for event in traced.events("otel-genai/a.jsonl")} == {f"{'a' * 32}-msg_1"}
    assert_recounted(traced)


def test_failed_spans_with_two_response_ids_are_two_requests_with_an_unnamed_one_between(traced: Place) -> None:
    """The one between them belongs to the one above it."""
    ids = {1: {"response__id": "msg_1"}, 2: {}, 3: {"response__id": "msg_3"}}
    spans = [span(n, n - 1 or None, failed=True, usage__input_tokens=10**n, **ids[n]) for n in (1, 2, 3)]
    assert published(traced, export(*spans)) == (2, 2, "0.00275", 1_100)
    assert tally(traced) == {("merged", "a second span of the same call"): 1}


def test_of_several_failed_spans_with_response_ids_below_one_without_the_first_names_it(traced: Place) -> None:
    """2 names the request of 1; whether 3 is that request nobody can say."""
    spans = [span(1, None, failed=True), *(span(n, 1, failed=True, response__id=f"msg_{n}", **TOKENS) for n in (3, 2))]
    assert published(traced, export(*spans)) == (2, 2, "0.0055", 1000)
    assert (lines_of(traced, "merged"), lines_of(traced, "undecided")) == (1, 1)
    events = traced.events("otel-genai/a.jsonl")
    assert sorted(event["request_id"][-5:] for event in events) == ["msg_2", "msg_2", "msg_3"]


def test_failed_embeddings_one_below_the_other_are_one_request(traced: Place) -> None:
    spans = [span(n, n - 1 or None, "embeddings", failed=True) for n in (1, 2)]
    assert published(traced, export(*spans)) == (1, 1, "0", 0)
    assert tally(traced) == {("merged", "a second span of the same call"): 1}


def test_a_failed_span_counts_though_the_one_above_it_is_refused(traced: Place) -> None:
    outer = span(1, None, failed=True, usage__input_tokens="many")
    inner = span(2, 1, failed=True, **TOKENS)
    assert published(traced, export(outer, inner)) == (1, 1, "0.00275", 500)
    assert traced.ledger().files["otel-genai/a.jsonl"].take_in.quarantined == 1


@pytest.mark.parametrize(
    "parents",
    [{1: 1}, {1: 2, 2: 1}, {1: 2, 2: 3, 3: 1}, {1: 2, 2: 1, 3: 1}],
    ids=["itself", "two", "three", "and one below"],
)
@pytest.mark.parametrize("operation", ["chat", "invoke_agent"])
def test_a_circle_of_parents_loses_nothing(traced: Place, parents: dict[int, int], operation: str) -> None:
    spans = [span(n, above, operation, failed=operation == "chat", **TOKENS) for n, above in parents.items()]
    assert published(traced, export(*spans))[0] == len(parents)
    assert lines_of(traced, "skipped") == lines_of(traced, "merged") == 0


def test_spans_of_two_organizations_are_two_requests(traced: Place) -> None:
    inner = span(2, 1, failed=True)
    inner["span"]["attributes"][0] = {"key": "keytally.organization_id", "value": {"stringValue": "org_b"}}
    traced.write_raw("otel-genai/a.jsonl", export(span(1, None, failed=True), inner))
    traced.roll_up()
    assert [row.requests for row in traced.published("organization_day").itertuples()] == [1, 1]
    assert lines_of(traced, "merged") == 0


# --- agents and embeddings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["embeddings", "Embedding"])
def test_embeddings_do_not_hide_an_agent(traced: Place, operation: str) -> None:
    """The agent's tokens are those of its chats, which are in no log: 500 of the embedding come on top."""
    agent = span(1, None, "invoke_agent", usage__input_tokens=1000, usage__output_tokens=300)
    assert published(traced, export(agent, span(2, 1, operation, usage__input_tokens=500))) == (2, 0, "0.00675", 1500)
    assert tally(traced) == {}


# --- agents whose calls have no tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "lost"),
    [
        ([span(1, None, "invoke_agent", **TOKENS), span(2, 1)], 1),
        ([span(1, None, "invoke_agent", **TOKENS), span(2, 1), span(3, 1, **TOKENS)], 0),
        ([span(1, None, "invoke_agent", **TOKENS), span(2, 1, "invoke_agent", **TOKENS), span(3, 2)], 1),
        ([span(1, None, "invoke_agent", **TOKENS), span(2, 1, "invoke_agent", **TOKENS)], 0),
        ([span(1, None, "invoke_agent", **TOKENS), span(2, 1, "invoke_agent", usage__cost="1")], 1),
        ([span(1, None, "invoke_agent", **TOKENS), span(2, 1, **ZERO)], 1),
        ([span(1, None, "invoke_agent", **ZERO), span(2, 1)], 0),
        ([span(1, None, "invoke_agent", **TOKENS), span(2, 1, "embeddings", **TOKENS), span(3, 1)], 1),
    ],
    ids=[
        "no tokens",
        "one with tokens",
        "two agents",
        "an inner agent has them",
        "a cost is no token count",
        "zero is no token",
        "zero is no token of an agent",
        "an embedding's are not an agent's",
    ],
)
def test_an_agent_whose_tokens_count_nowhere_is_a_finding(traced: Place, spans: list[Span], lost: int) -> None:
    traced.write_raw("otel-genai/a.jsonl", export(*spans))
    report = traced.roll_up()
    assert lines_of(traced, "undecided") == lost
    agents = f"{lost} skipped agents" if lost > 1 else "1 skipped agent"
    what = f"the tokens of {agents} count nowhere: no model call below has any"
    assert [odd.what for odd in report.odd] == ([what] if lost else [])
    assert lines_of(traced, "skipped") == sum(
        each["span"]["attributes"][3]["value"]["stringValue"] == "invoke_agent" for each in spans[:-1]
    )
    assert_recounted(traced)


def test_a_span_that_is_exported_twice_counts_once_and_is_not_merged(traced: Place, tmp_path: Path) -> None:
    agent = span(1, None, "invoke_agent", usage__input_tokens=10, usage__output_tokens=1)
    lines = [export(span(2, None, **TOKENS)), export(agent)] * 2
    assert published(traced, *lines) == (2, 0, "0.002785", 510)
    assert lines_of(traced, "merged") == 0
