"""Requests of a sample that repeat the id of another: of such copies one counts, whatever the others say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.contract.tables import EVENT
from pipeline.line import Request

NAMES = tuple(EVENT.arrow_schema.names[:-1])  # of the values of a Request
_AMOUNTS = ("cost", "synapses", "neurons", *(name for name in NAMES if name.endswith("_tokens")))
_BILLED = ("api_key_id", "currency", "model", *_AMOUNTS)


@dataclass(frozen=True)
class Repeats:
    """Accepted requests that repeat the organization, id and day of an earlier one.

    requests: How many repeat another. disagreeing: How many of them disagree with the one before in a billed value.
    lines: Two lines, of which the second repeats the first, and disagrees with it if any does. fields: The billed
    values in which some disagree.
    """

    requests: int
    disagreeing: int
    lines: tuple[int, int]
    fields: Sequence[str]


def repeats_of(requests: Iterable[tuple[int, Request, str | None]], *, most_complete: bool) -> Repeats | None:
    """Find the requests that repeat another. None: each has an id of its own.

    Args:
        requests: The number of the line of each request, its values, and the id of its record if it is one of a trace.
            Two records of a trace may tell of one call: they are no copies.
        most_complete: Whether the most complete copy counts. Then an earlier state of a copy does not disagree with it.
    """
    last: dict[tuple[Any, ...], tuple[int, Mapping[str, Any], str | None]] = {}
    pairs: list[tuple[int, int]] = []
    disagreeing: list[tuple[int, int]] = []
    fields: set[str] = set()
    for line, values, record in requests:
        request = dict(zip(NAMES, values, strict=True))
        key = request["organization_id"], request["request_id"], request["timestamp"].date()
        before_line, before, before_record = last.get(key, (0, None, None))
        last[key] = line, request, record
        if before is None or before_record != record:
            continue
        pairs.append((before_line, line))
        differing = {name for name in _BILLED if before[name] != request[name]}
        if differing and not (most_complete and _is_another_state(before, request)):
            disagreeing.append((before_line, line))
            fields |= differing
    if not pairs:
        return None
    return Repeats(len(pairs), len(disagreeing), (disagreeing or pairs)[0], [name for name in NAMES if name in fields])


def _is_another_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one of two copies has no more of any amount than the other, and the same key, currency and model."""
    if any(one[name] != other[name] for name in _BILLED if name not in _AMOUNTS):
        return False
    pairs = [(one[name] or 0, other[name] or 0) for name in _AMOUNTS]
    return all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)
