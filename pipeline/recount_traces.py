"""Decide, a second time, which spans of a trace are requests: several spans may tell of one call of a model.

A row of a trace has four more fields: record_id (unique id of the span), parent_id (record_id of its parent), role
('call', 'embedding', 'agent' or None) and scope (the instrumentation that wrote it). An embedding is a call too. The
rules, over the whole file:

1. An agent is skipped if a call that is no embedding, or another agent, descends from it: its tokens are the sum of
   theirs. An agent that descends from itself, by a circle of parents, is not skipped.
2. A failed call directly below another failed call tells of the same request, unless both have response ids. Of several
   below the same parent, only the one with the smallest id does. A call without a response id gets the request id of
   the nearest call above with one, else of the first call below with one, else of the topmost call.
3. All other calls and agents are requests. Calls with the same request id are copies of one request.

Of each span, a few numbers are kept until the end of the file. Of an agent and a failed call, the whole row is kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

_Other = TypeVar("_Other")
_CALLS = ("call", "embedding")
_LONGEST_ID = 128  # characters; a longer request id is replaced by its hash, so that it is not the id of its record


class _Call(NamedTuple):
    """A call of a model. request, organization, model and scope are numbers that stand for their text.

    model: without a provider before it and a date behind it. tokens: input and output, None where there is no number.
    """

    request: int
    organization: int
    model: int
    scope: int
    parent: int | None
    failed: bool
    has_response: bool
    is_embedding: bool
    tokens: tuple[int | None, int | None]

    @property
    def may_be_second(self) -> bool:
        return self.failed and not self.has_response


class Traces:
    """The spans of one file.

    Attributes:
        merged: Spans of calls that share their request with another span.
        undecided: Spans of which these rules cannot say whether they are calls of their own, and agents that were
            skipped although they have tokens and nothing below them has any.
    """

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}
        self._calls: dict[int, _Call] = {}
        self._agents: dict[int, int] = {}  # and its tokens
        self._ids: dict[int, str] = {}  # of failed calls
        self._requests: dict[int, str] = {}  # of failed calls: the ids of their requests
        self._others: defaultdict[int, set[_Call]] = defaultdict(set)  # of spans that were written twice, differently
        self._disagreeing: set[int] = set()  # of these: the ones that may be second spans of two different calls
        self._resolved: dict[int, str] = {}  # of failed calls: the id of the request that they tell of
        self._is_below: set[int] = set()  # of these: the ones directly below another, and not both have response ids
        self._is_further: set[int] = set()  # of these: the ones that are not taken for the same call
        self._lost = 0

    def resolved(self, rows: Iterable[Mapping[str, Any] | _Other]) -> Iterator[Mapping[str, Any] | _Other]:
        """Yield all rows. An agent that is no request of its own gets a reason in its field `skipped`.

        All spans of a failed call get one request id.
        """
        waiting: list[tuple[int, Mapping[str, Any]]] = []
        for row in rows:
            if isinstance(row, Mapping) and row.get("record_id") is not None:
                span = _number(row["record_id"])
                self._note(span, row)
                if row.get("role") == "agent" or (row.get("role") in _CALLS and self._calls[span].may_be_second):
                    waiting.append((span, row))
                    continue
            yield row
        self._resolve_failed()
        skipped = self._skipped_agents()
        self._lost = self._count_lost(skipped)
        for span, row in waiting:
            if row.get("role") == "agent":
                yield {**row, "skipped": "an agent whose model calls are in the log too"} if span in skipped else row
            else:
                yield {**row, "request_id": self._resolved.get(span, row["request_id"])}

    def _note(self, span: int, row: Mapping[str, Any]) -> None:
        parent = None if row.get("parent_id") in (None, row["record_id"]) else _number(row["parent_id"])
        if parent is not None:
            self._parents[span] = parent
        tokens = _count(row.get("input_tokens")), _count(row.get("output_tokens"))
        if row.get("role") == "agent":
            self._agents[span] = max(_sum(tokens), self._agents.get(span, 0))
        if row.get("role") not in _CALLS:
            return
        call = _Call(
            request=_number(row.get("request_id")),
            organization=_number(row.get("organization_id")),
            model=_number(_undated(row.get("model") or "")),
            scope=_number(row.get("scope")),
            parent=parent,
            failed=re.fullmatch("0*[45][0-9]{2}", row.get("status") or "") is not None,
            has_response=row.get("request_id") != row["record_id"] or len(row["record_id"]) > _LONGEST_ID,
            is_embedding=row.get("role") == "embedding",
            tokens=tokens,
        )
        if call.failed:
            self._ids[span] = row["record_id"]
            self._requests[span] = row["request_id"]
        if (first := self._calls.setdefault(span, call)) != call:
            self._others[span].add(call)
            if _differ(first, call):
                self._disagreeing.add(span)

    # --- failed calls ----------------------------------------------------------------------------------------------

    def _resolve_failed(self) -> None:
        failed = {span for span in self._ids if span not in self._disagreeing}
        below: defaultdict[int, list[int]] = defaultdict(list)
        for span in failed:
            parent = self._calls[span].parent
            if parent in failed and not (self._calls[parent].has_response and self._calls[span].has_response):
                below[parent].append(span)
                self._is_below.add(span)
        following: dict[int, int] = {}  # of a call: the one directly below it that tells of the same request
        for parent, children in below.items():
            children.sort(key=lambda child: self._ids[child].encode("utf-8", "replace"))
            following[parent] = children[0]
            self._is_further.update(children[1:])
        self._resolved = {span: self._requests[span] for span in failed}  # in a circle of parents, each stays its own
        has_above = set(following.values())
        for top in failed:
            if self._calls[top].has_response or top not in has_above:
                self._resolve_chain(top, following)

    def _resolve_chain(self, top: int, following: Mapping[int, int]) -> None:
        """Give all calls without response ids, from the top of a chain downwards, the id of their request."""
        chain = [top]
        while (span := following.get(chain[-1])) is not None and not self._calls[span].has_response:
            chain.append(span)
        request = self._requests[top]
        if span is not None and not self._calls[top].has_response:
            request = self._requests[span]
        self._resolved.update(dict.fromkeys(chain, request))

    # --- agents ----------------------------------------------------------------------------------------------------

    def _above(self, spans: Iterable[int]) -> set[int]:
        """Return all spans from which one of these descends."""
        above: set[int] = set()
        for span in spans:
            parent = self._parents.get(span)
            while parent is not None and parent not in above:
                above.add(parent)
                parent = self._parents.get(parent)
        return above

    def _skipped_agents(self) -> set[int]:
        chats = [span for span, call in self._all_calls() if not call.is_embedding]
        above = self._above((*chats, *self._agents))
        return {agent for agent in self._agents if agent in above and agent not in self._above((agent,))}

    def _count_lost(self, skipped: set[int]) -> int:
        """Count the skipped agents that have tokens, although nothing that descends from them has any."""
        with_tokens = [span for span, call in self._all_calls() if not call.is_embedding and _sum(call.tokens)]
        with_tokens += [agent for agent, tokens in self._agents.items() if tokens]
        fed = self._above(with_tokens)
        return sum(bool(self._agents[agent]) and agent not in fed for agent in skipped)

    def _nearest(self, span: int | None, wanted: Container[int]) -> int | None:
        """Return the first of the wanted spans at this span or above it."""
        passed: set[int] = set()
        while span is not None and span not in wanted:
            if span in passed:
                return None
            passed.add(span)
            span = self._parents.get(span)
        return span

    # --- what a report says of them ------------------------------------------------------------------------------

    @property
    def merged(self) -> int:
        """Count the spans of calls that share their request with another span."""
        told = {(span, self._request(span, call)) for span, call in self._all_calls()}
        return len(told) - len({request for _, request in told})

    def _all_calls(self) -> Iterator[tuple[int, _Call]]:
        yield from self._calls.items()
        yield from ((span, call) for span, calls in self._others.items() for call in calls)

    def _request(self, span: int, call: _Call) -> tuple[int, int]:
        resolved = self._resolved.get(span)
        return call.organization, call.request if resolved is None else _number(resolved)

    @property
    def undecided(self) -> int:
        """Count the spans that may tell of another one's call, and the agents whose tokens do not all count."""
        below = sum(self._undecided_above(span, call) for span, call in self._all_calls())
        circles = sum(
            not self._calls[span].has_response and self._resolved[span] == self._ids[span]
            for span in self._is_below - self._is_further
        )
        return below + len(self._is_further) + circles + self._siblings() + self._lost

    def _undecided_above(self, span: int, call: _Call) -> int:
        """Count the calls that this one may tell of: those of the nearest span above that is a call."""
        nearest = self._nearest(call.parent, self._calls)
        if nearest is None or call.failed:
            return 0
        request = self._request(span, call)
        return sum(
            self._request(nearest, above) != request and not (above.has_response and call.has_response)
            for above in (self._calls[nearest], *self._others.get(nearest, ()))
        )

    def _siblings(self) -> int:
        """Count the calls without response id that another instrumentation may have written down beside them."""
        scopes: defaultdict[Any, defaultdict[int, set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))
        unnamed: defaultdict[Any, set[tuple[int, int]]] = defaultdict(set)
        for span, call in self._all_calls():
            if call.parent is None or span in self._is_below:
                continue
            same = call.parent, call.model, call.failed, None if call.failed else call.tokens
            request = self._request(span, call)
            scopes[same][call.scope].add(request)
            if not call.has_response:
                unnamed[same].add(request)
        undecided = 0
        for same, requests in scopes.items():
            calls = [len(of_scope) for of_scope in requests.values()]
            undecided += min(sum(calls) - max(calls), len(unnamed[same]))
        return undecided


def _differ(one: _Call, other: _Call) -> bool:
    """Return True unless both are failed calls of one request, of one organization and with one parent."""
    if not (one.failed and other.failed):
        return True
    return (one.organization, one.parent, one.request) != (other.organization, other.parent, other.request)


def _count(text: str | None) -> int | None:
    """Return a token count; None for a text that is no number."""
    return int(text) if text is not None and re.fullmatch("[0-9]{1,18}", text) else None


def _sum(tokens: tuple[int | None, int | None]) -> int:
    return (tokens[0] or 0) + (tokens[1] or 0)


def _undated(model: str) -> str:
    """Return the name of a model without a provider before it and without a date behind it."""
    return re.sub(r"[-@][0-9]{4}-?[0-9]{2}-?[0-9]{2}\Z", "", re.sub("^([^/]*/)+", "", model))


def _number(text: str | None) -> int:
    """Return 64 bits that stand for a text: of millions of spans, the texts would take too much memory."""
    return int.from_bytes(blake2b((text or "").encode("utf-8", "replace"), digest_size=8).digest())
