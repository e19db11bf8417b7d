"""Decide, a second time, which spans of a trace are requests: several spans may tell of one call of a model.

A row of a trace has four more fields: record_id (unique id of the span), parent_id (record_id of its parent), role
('call', 'agent' or None) and scope (the instrumentation that wrote it). The rules, over the whole file:

1. An agent is skipped if a call or another agent descends from it: its tokens are the sum of theirs. An agent that
   descends from itself, by a circle of parents, is not skipped.
2. A failed call without response id, directly below another such call, tells of the same request: its row gets the
   request id of the topmost such call. Of several below the same parent, only the one with the smallest id does.
3. All other calls and agents are requests. Calls with the same request id are copies of one request.

Of each span, a few numbers are kept until the end of the file. Of an agent and a failed call, the whole row is kept.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

_Other = TypeVar("_Other")
_TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")
_LONGEST_ID = 128  # characters; a longer request id is replaced by its hash, so that it is not the id of its record


class _Call(NamedTuple):
    """A call of a model. request, organization, model and scope are numbers that stand for their text."""

    request: int
    organization: int
    model: int
    scope: int
    parent: int | None
    failed: bool
    has_response: bool

    @property
    def may_be_second(self) -> bool:
        return self.failed and not self.has_response


class Traces:
    """The spans of one file.

    Attributes:
        merged: Spans of calls that share their request with another span.
        undecided: Spans of which these rules cannot say whether they are calls of their own, and agents that were
            skipped although nothing that counts below them has tokens.
    """

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}
        self._calls: dict[int, _Call] = {}
        self._agents: dict[int, bool] = {}  # and whether it has tokens
        self._with_tokens: set[int] = set()  # calls
        self._ids: dict[int, str] = {}  # of calls that may be a second span
        self._others: defaultdict[int, set[_Call]] = defaultdict(set)  # of spans that were written twice, differently
        self._disagreeing: set[int] = set()  # of these: the ones that may be second spans of two different calls
        self._tops: dict[int, int] = {}  # of calls that may be a second span: the call whose request they tell of
        self._is_below: set[int] = set()  # of these: the ones directly below another
        self._lost = 0

    def resolved(self, rows: Iterable[Mapping[str, Any] | _Other]) -> Iterator[Mapping[str, Any] | _Other]:
        """Yield all rows. An agent that is no request of its own gets a reason in its field `skipped`.

        A second span of a failed call gets the request id of the first one.
        """
        waiting: list[tuple[int, Mapping[str, Any]]] = []
        for row in rows:
            if isinstance(row, Mapping) and row.get("record_id") is not None:
                span = _number(row["record_id"])
                self._note(span, row)
                if row.get("role") == "agent" or (row.get("role") == "call" and self._calls[span].may_be_second):
                    waiting.append((span, row))
                    continue
            yield row
        self._find_tops()
        skipped = self._skipped_agents()
        self._lost = self._count_lost(skipped)
        for span, row in waiting:
            if row.get("role") == "agent":
                yield {**row, "skipped": "an agent whose model calls are in the log too"} if span in skipped else row
            else:
                top = self._tops.get(span, span)
                yield row if top == span else {**row, "request_id": self._ids[top]}

    def _note(self, span: int, row: Mapping[str, Any]) -> None:
        parent = None if row.get("parent_id") in (None, row["record_id"]) else _number(row["parent_id"])
        if parent is not None:
            self._parents[span] = parent
        has_tokens = any(row.get(name) is not None for name in _TOKENS)
        call = None
        if row.get("role") == "agent":
            self._agents[span] = has_tokens or self._agents.get(span, False)
        elif row.get("role") == "call":
            if has_tokens:
                self._with_tokens.add(span)
            call = _Call(
                request=_number(row.get("request_id")),
                organization=_number(row.get("organization_id")),
                model=_number(row.get("model")),
                scope=_number(row.get("scope")),
                parent=parent,
                failed=re.fullmatch("0*[45][0-9]{2}", row.get("status") or "") is not None,
                has_response=row.get("request_id") != row["record_id"] or len(row["record_id"]) > _LONGEST_ID,
            )
            if call.may_be_second:
                self._ids[span] = row["record_id"]
        if call is not None and (first := self._calls.setdefault(span, call)) != call:
            self._others[span].add(call)
            if _differ(first, call):
                self._disagreeing.add(span)

    # --- failed calls ----------------------------------------------------------------------------------------------

    def _find_tops(self) -> None:
        below: defaultdict[int, list[int]] = defaultdict(list)
        seconds = {span for span in self._ids if span not in self._disagreeing}
        tops = []
        for span in seconds:
            parent = self._calls[span].parent
            if parent is not None and parent in seconds:
                below[parent].append(span)
                self._is_below.add(span)
            else:
                tops.append(span)
        self._tops = {span: span for span in seconds}  # in a circle of parents, each stays its own
        while tops:
            span = tops.pop()
            children = sorted(below[span], key=lambda child: self._ids[child].encode("utf-8", "replace"))
            if children:
                self._tops[children[0]] = self._tops[span]
            tops.extend(children)

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
        above = self._above((*self._calls, *self._agents))
        return {agent for agent in self._agents if agent in above and agent not in self._above((agent,))}

    def _count_lost(self, skipped: set[int]) -> int:
        agents = (agent for agent, has_tokens in self._agents.items() if has_tokens and agent not in skipped)
        return len(skipped - self._above((*self._with_tokens, *agents)))

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
        top = self._tops.get(span)
        return call.organization, call.request if top is None else self._calls[top].request

    @property
    def undecided(self) -> int:
        """Count the spans that may be a second span of another one, and the agents whose tokens count nowhere."""
        below = sum(self._undecided_above(span, call) for span, call in self._all_calls())
        failed_below = sum(self._tops[span] == span for span in self._is_below)
        return below + failed_below + self._siblings() + self._lost

    def _undecided_above(self, span: int, call: _Call) -> int:
        """Count the calls directly above this one of which it may be a second span."""
        if call.parent is None or call.parent not in self._calls or call.failed:
            return 0
        request = self._request(span, call)
        return sum(
            self._request(call.parent, above) != request and not (above.has_response and call.has_response)
            for above in (self._calls[call.parent], *self._others.get(call.parent, ()))
        )

    def _siblings(self) -> int:
        """Count the failed calls without response that another instrumentation may have written down beside them."""
        scopes: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        for span, call in self._all_calls():
            if call.may_be_second and call.parent is not None and span not in self._is_below:
                scopes[call.parent, call.model][call.scope] += 1
        return sum(calls.total() - max(calls.values()) for calls in scopes.values())


def _differ(one: _Call, other: _Call) -> bool:
    """Return True unless both are calls that may be second spans, of one organization and with one parent."""
    if not (one.may_be_second and other.may_be_second):
        return True
    return (one.organization, one.parent) != (other.organization, other.parent)


def _number(text: str | None) -> int:
    """Return 64 bits that stand for a text: of millions of spans, the texts would take too much memory."""
    return int.from_bytes(blake2b((text or "").encode("utf-8", "replace"), digest_size=8).digest())
