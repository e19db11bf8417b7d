"""What keytally promises, as a plain recount in Decimal: small enough to be right by reading it.

No file, no engine, none of the pipeline's code. A line is a record, or a text that is none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Record = dict[str, Any]
Usage = tuple[int, Decimal, Decimal, int]  # requests, cost, synapses, input tokens
NOTHING: Usage = (0, Decimal(0), Decimal(0), 0)


@dataclass(frozen=True)
class DayCounts:
    """How a day's accepted lines were counted."""

    accepted: int
    counted: int
    duplicate: int
    conflicting: int
    session: int


@dataclass(frozen=True)
class Model:
    """usage: by organization, day, key and model. days: by day. lines, accepted: by file."""

    usage: Mapping[tuple[str, str, str, str | None], Usage]
    days: Mapping[str, DayCounts]
    lines: Mapping[str, int]
    accepted: Mapping[str, int]

    def summed(self, *kept: int, month: bool = False) -> dict[tuple[Any, ...], Usage]:
        """The usage by some of its grain (positions), and by month when asked for."""
        sums: dict[tuple[Any, ...], Usage] = {}
        for key, row in self.usage.items():
            group = (*((key[1][:7],) if month else ()), *(key[position] for position in kept))
            sums[group] = plus(sums.get(group, NOTHING), row)
        return sums


def plus(one: Usage, other: Usage) -> Usage:
    """Both together."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def winner(copies: Iterable[Record]) -> Record:
    """Of copies of a request the one that counts: by its content alone, null before any value, text by its bytes."""

    def text(value: str | None) -> tuple[bool, bytes]:
        return value is not None, (value or "").encode()

    return min(copies, key=lambda copy: (
        copy["timestamp"], text(copy["api_key_id"]), Decimal(copy["cost"]), Decimal(copy.get("synapses", "0")),
        text(copy.get("model")), copy.get("input_tokens", 0),
    ))  # fmt: skip


def recount(files: Mapping[str, Iterable[Record | str]]) -> Model:
    """What is to be published of these files, each of another content."""
    copies: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    records = {file: [line for line in lines if isinstance(line, dict)] for file, lines in files.items()}
    for record in (record for found in records.values() for record in found):
        copies[record["timestamp"][:10], record["organization_id"], record["request_id"]].append(record)
    usage: dict[tuple[str, str, str, str | None], Usage] = {}
    days: dict[str, DayCounts] = {}
    for (day, organization, _), same in copies.items():
        counts = winner(same)
        session = counts["api_key_id"] is None
        differing = [copy for copy in same if values(copy) != values(counts)]
        was = days.get(day, DayCounts(0, 0, 0, 0, 0))
        days[day] = DayCounts(
            accepted=was.accepted + len(same),
            counted=was.counted + (not session),
            duplicate=was.duplicate + len(same) - 1,
            conflicting=was.conflicting + len(differing),
            session=was.session + session,
        )
        if not session:
            key = (organization, day, counts["api_key_id"], counts.get("model"))
            usage[key] = plus(usage.get(key, NOTHING), (1, *values(counts)[2:4], values(counts)[5]))
    return Model(
        usage, days, {file: len(list(lines)) for file, lines in files.items()}, {f: len(r) for f, r in records.items()}
    )


def values(record: Record) -> tuple[Any, ...]:
    """What two copies of a request may differ in."""
    amounts = (Decimal(record["cost"]), Decimal(record.get("synapses", "0")))
    return (record["timestamp"], record["api_key_id"], *amounts, record.get("model"), record.get("input_tokens", 0))
