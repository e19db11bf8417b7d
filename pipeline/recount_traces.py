"""Decide, a second time, which spans of a trace are requests: several spans may tell of one call of a model.

A row of a trace has four more fields: record_id (unique id of the span), parent_id (record_id of its parent), role
('call', 'agent' or None) and scope (the instrumentation that wrote it). The rules, over the whole file:

1. An agent is skipped if a call or another agent descends from it: its tokens are the sum of theirs.
2. A failed call without response id, directly below another such call, is a second span of the same call: skipped.
3. All other calls and agents are requests. Calls with the same request id are copies of one request.

Of each span, three numbers are kept until the end of the file. Of an agent and a failed call, the whole row is kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

_Other = TypeVar("_Other")


class _Call(NamedTuple):
    """A call of a model. request, organization, model and scope are numbers that stand for their text."""

    request: int
    organization: int
    model: int
    scope: int
    parent: int | None
    failed: bool
    has_response: bool


class Traces:
    """The spans of one file.

    merged: spans of calls that are told of by another span too. undecided: pairs of spans of which these rules cannot
    say whether they are one call.
    """

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}
        self._calls: dict[int, _Call] = {}
        self._agents: set[int] = set()

    def resolved(self, rows: Iterable[Mapping[str, Any] | _Other]) -> Iterator[Mapping[str, Any] | _Other]:
        """Yield all rows; those that are no request of their own have a reason in their field `skipped`."""
        waiting: list[tuple[int, Mapping[str, Any]]] = []
        for row in rows:
            if isinstance(row, Mapping) and row.get("record_id") is not None:
                span = _number(row["record_id"])
                self._note(span, row)
                role = row.get("role")
                if role == "agent" or (role == "call" and _may_be_second(self._calls[span])):
                    waiting.append((span, row))
                    continue
            yield row
        above = self._with_requests_below()
        for span, row in waiting:
            if row.get("role") == "agent":
                skipped = "an agent whose model calls are in the log too" if span in above else None
            else:
                skipped = "a second span of the same call" if self._is_second(span) else None
            yield {**row, "skipped": skipped} if skipped else row

    def _note(self, span: int, row: Mapping[str, Any]) -> None:
        parent = None if row.get("parent_id") is None else _number(row["parent_id"])
        if parent is not None:
            self._parents[span] = parent
        if row.get("role") == "agent":
            self._agents.add(span)
        elif row.get("role") == "call":
            status = row.get("status") or ""
            self._calls[span] = _Call(
                request=_number(row.get("request_id")),
                organization=_number(row.get("organization_id")),
                model=_number(row.get("model")),
                scope=_number(row.get("scope")),
                parent=parent,
                failed=status.isdecimal() and int(status[:400]) >= 400,
                has_response=row.get("request_id") != row["record_id"],
            )

    def _with_requests_below(self) -> set[int]:
        """Return all spans from which a call or an agent descends."""
        above: set[int] = set()
        for span in (*self._calls, *self._agents):
            parent = self._parents.get(span)
            while parent is not None and parent not in above:
                above.add(parent)
                parent = self._parents.get(parent)
        return above

    def _is_second(self, span: int) -> bool:
        parent = self._calls[span].parent
        return parent is not None and parent in self._calls and _may_be_second(self._calls[parent])

    # --- what a report says of them ------------------------------------------------------------------------------

    @property
    def merged(self) -> int:
        """Count the spans of calls that share their request with an earlier span, or with their parent."""
        requests: defaultdict[tuple[int, int], int] = defaultdict(int)
        seconds = 0
        for span, call in self._calls.items():
            if _may_be_second(call) and self._is_second(span):
                seconds += 1
            else:
                requests[call.organization, call.request] += 1
        return seconds + sum(count - 1 for count in requests.values())

    @property
    def undecided(self) -> int:
        """Count the spans of calls that may be a second span of another one."""
        return sum(self._is_undecided(call) for call in self._calls.values()) + self._siblings()

    def _is_undecided(self, call: _Call) -> bool:
        above = None if call.parent is None else self._calls.get(call.parent)
        if above is None or above.request == call.request or (above.has_response and call.has_response):
            return False
        return not call.failed

    def _siblings(self) -> int:
        """Count the failed calls without response that another instrumentation may have written down beside them."""
        scopes: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        for call in self._calls.values():
            if _may_be_second(call) and call.parent is not None:
                scopes[call.parent, call.model][call.scope] += 1
        return sum(calls.total() - max(calls.values()) for calls in scopes.values())


def _may_be_second(call: _Call) -> bool:
    return call.failed and not call.has_response


def _number(text: str | None) -> int:
    """Return 64 bits that stand for a text: of millions of spans, the texts would take too much memory."""
    return int.from_bytes(blake2b((text or "").encode("utf-8", "replace"), digest_size=8).digest())
