"""Traffic of two organizations, rolled up by the pipeline itself; and what it sums to, counted another way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from tests.conftest import Place, Record, request

MODELS = ("mini", None, 'a "quoted", one', "zwei\nZeilen", "", "größer", "=1+1")
KEYS = ("key_b", "key_a", "key.c:1", "key-d")
MEASURES = ("requests", "cost", "synapses", "neurons")
Sums = tuple[int, Decimal, Decimal, Decimal]
NOTHING: Sums = (0, Decimal(0), Decimal(0), Decimal(0))


def traffic(seed: int = 1) -> list[Record]:
    """Requests of org_a and org_b in October and November 2025, on some of the days; key_old only in October."""
    chance = random.Random(seed)
    records = []
    for number in range(400):
        month, key = (10, "key_old") if number < 5 else (chance.choice((10, 11, 11)), chance.choice(KEYS))
        records.append(
            request(
                number,
                timestamp=f"2025-{month}-{chance.choice((1, 2, 5, 13, 14)):02d}T08:00:00Z",
                organization_id="org_a" if number < 5 else chance.choice(("org_a", "org_a", "org_b")),
                api_key_id=key,
                model=chance.choice(MODELS),
                cost=chance.choice(("0", "0.000000000001", "999999.999999999999", "0.1", "12.5")),
                synapses=chance.choice(("0", "0.000001", "100")),
                neurons=chance.choice(("0.5", "7")),
            )
        )
    records.append(request(998, timestamp="2025-11-03T08:00:00Z", api_key_id=None))
    records.append(request(999, timestamp="2025-11-01T08:00:00Z", organization_id="org_b", api_key_id="key_of_b"))
    return records


def publish(place: Place, records: Iterable[Record]) -> None:
    place.write_raw("a.jsonl", *records)
    assert not place.roll_up().held_back


def sums(
    records: Iterable[Record], by: Callable[[Record], Any], month: str = "2025-11", **fields: Any
) -> dict[Any, Sums]:
    """What the requests of the month that have these fields sum to, by what `by` says of them."""
    found: dict[Any, Sums] = {}
    for record in records:
        wanted = {"organization_id": "org_a", **fields}
        if record["timestamp"].startswith(month) and record["api_key_id"] and wanted.items() <= record.items():
            before = found.get(by(record), NOTHING)
            used = (1, *(Decimal(record.get(name, "0")) for name in MEASURES[1:]))
            found[by(record)] = tuple(map(sum, zip(before, used, strict=True)))  # type: ignore[assignment]
    return found


def used(item: dict[str, Any]) -> Sums:
    """The measures of a day, a group or a key in an answer."""
    return tuple(item[name] for name in MEASURES)  # type: ignore[return-value]


def day_of(record: Record) -> str:
    """The request's day."""
    return str(record["timestamp"][:10])
