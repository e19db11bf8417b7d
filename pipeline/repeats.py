"""Requests of a sample that repeat the id of another: of such copies one counts, whatever the others say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.contract.tables import EVENT
from pipeline.line import Request

NAMES = tuple(EVENT.arrow_schema.names[:-1])  # of the values of a Request
_IN_ORDER = NAMES[1 : NAMES.index("currency") + 1]  # decides which copy counts; the organization is one
_TOKENS = tuple(name for name in NAMES if name.endswith("_tokens"))
_AMOUNTS = ("cost", "synapses", "neurons", *_TOKENS)

_Request = Mapping[str, Any]


@dataclass(frozen=True)
class Repeats:
    """Accepted requests that repeat the organization, id and day of an earlier one.

    requests: How many repeat another. disagreeing: How many copies disagree in a billed value with the one that counts.
    lines: Two copies; if any disagree, one that counts and one that disagrees with it. fields: The billed values in
    which some disagree.
    """

    requests: int
    disagreeing: int
    lines: tuple[int, int]
    fields: Sequence[str]


def repeats_of(requests: Iterable[tuple[int, Request, str | None]], *, most_complete: bool) -> Repeats | None:
    """Find the requests that repeat another, by the rules of sql/copies.sql. None: each has an id of its own.

    Args:
        requests: The number of the line of each request, its values, and the id of its record if it is one of a trace.
            Two records of a trace may tell of one call: they are no copies.
        most_complete: Whether the most complete copy counts. Then an earlier state of a copy does not disagree with it.
    """
    copies: dict[tuple[Any, ...], list[tuple[int, _Request]]] = {}
    for line, values, record in requests:
        request = dict(zip(NAMES, values, strict=True))
        key = request["organization_id"], request["request_id"], request["timestamp"].date(), record
        copies.setdefault(key, []).append((line, request))
    pairs: list[tuple[int, int]] = []
    disagreeing: list[tuple[int, int]] = []
    fields: set[str] = set()
    for of_request in copies.values():
        pairs += [(of_request[0][0], line) for line, _ in of_request[1:]]
        counted_line, counted = min(of_request, key=lambda copy: _rank(copy[1], most_complete))
        for line, each in of_request:
            if differing := _differing(each, counted, most_complete):
                disagreeing.append((min(line, counted_line), max(line, counted_line)))
                fields |= differing
    if not pairs:
        return None
    shown = min(disagreeing or pairs, key=lambda lines: lines[1])
    return Repeats(len(pairs), len(disagreeing), shown, [name for name in NAMES if name in fields])


def _rank(request: _Request, most_complete: bool) -> tuple[Any, ...]:
    """The place of a copy among those of its request: the one with the smallest counts."""
    largest = [request[name] for name in ("output_tokens", "input_tokens", "cost")] if most_complete else []
    smallest = [request[name] for name in _IN_ORDER]
    return (
        *((value is None, -(value or 0)) for value in largest),
        *((value is not None, value or 0) for value in smallest),
    )


def _differing(request: _Request, counted: _Request, most_complete: bool) -> set[str]:
    """The billed values in which a copy disagrees with the one that counts. No count of tokens bills no tokens."""
    another = {name for name in ("api_key_id", "model") if request[name] != counted[name]}
    if request["currency"] != counted["currency"] and request["cost"] is not None and counted["cost"] is not None:
        another.add("currency")
    amounts = {name for name in _AMOUNTS if request[name] != counted[name]}
    amounts -= {name for name in _TOKENS if not request[name] and not counted[name]}
    is_earlier_state = all((request[name] or 0) <= (counted[name] or 0) for name in _AMOUNTS)
    return another if not another and most_complete and is_earlier_state else another | amounts
