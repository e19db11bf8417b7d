"""Count what a caller called, by the caller's own knowledge. keytally has no part in these numbers.

Runs in a producer's environment as well as in keytally's: standard library only.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

MILLION = Decimal(1_000_000)


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens."""

    input: str
    output: str
    cached: str
    written: str


# The list prices, typed in here by hand: the same ones stand in samples/prices.csv and in LiteLLM's own list.
PRICES = {
    "gpt-4o": Price("2.5", "10", "1.25", "2.5"),
    "gpt-4o-mini": Price("0.15", "0.6", "0.075", "0.15"),
    "claude-sonnet-4-5": Price("3", "15", "0.3", "3.75"),
    "text-embedding-3-small": Price("0.02", "0", "0.02", "0.02"),
    "llama-free": Price("0", "0", "0", "0"),
    "llama-without-price": Price("0", "0", "0", "0"),  # LiteLLM knows none, and writes a cost of 0
    "falls": Price("2.5", "10", "1.25", "2.5"),
}
TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")


@dataclass
class Call:
    """One attempt of a call, as its caller knows it.

    Args:
        organization: None: nothing in the call names one, so that keytally must refuse the record and say so.
        key: None: a call without an API key.
        model: The model the caller asked for; None: the caller named none.
        cost: None: not known to the caller, because the answer said no tokens. Failed calls cost 0.
    """

    call: str
    organization: str | None
    key: str | None
    model: str | None
    status: int = 200
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost: str | None = None

    @property
    def failed(self) -> bool:
        return self.status >= 400


def cost_of(model: str, input: int, output: int, cached: int = 0, written: int = 0) -> str:
    """Work out what an answered call costs, exactly."""
    price = PRICES[model]
    cost = (
        (input - cached - written) * Decimal(price.input)
        + cached * Decimal(price.cached)
        + written * Decimal(price.written)
        + output * Decimal(price.output)
    ) / MILLION
    return f"{cost.normalize():f}"


def totals(calls: Iterable[Call]) -> dict[str, dict[str, Any]]:
    """Sum up the calls of each organization that were made with a key."""
    sums: dict[str, dict[str, Any]] = {}
    for call in calls:
        if call.organization is None or call.key is None:
            continue
        mine = sums.setdefault(
            call.organization,
            {"requests": 0, "failed": 0, **dict.fromkeys(TOKENS, 0), "cost": "0", "unpriced": 0},
        )
        mine["requests"] += 1
        mine["failed"] += call.failed
        for name in TOKENS:
            mine[name] += getattr(call, name) or 0
        mine["cost"] = f"{Decimal(mine['cost']) + Decimal(call.cost or '0'):f}"
        mine["unpriced"] += call.cost is None and not call.failed
    return sums


def write_sample(folder: Path, name: str, lines: list[str], calls: list[Call], facts: dict[str, Any]) -> None:
    """Write a log and, beside it, what its caller counted."""
    log = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
    if len(log) > 50_000:
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(log, mtime=0))
    else:
        (folder / f"{name}.jsonl").write_bytes(log)
    shown = [
        json.dumps({key: value for key, value in asdict(call).items() if value is not None or key == "organization"})
        for call in calls
    ]
    head = json.dumps({**facts, "totals": totals(calls)}, indent=1)
    text = head.removesuffix("\n}") + ',\n "calls": [\n  ' + ",\n  ".join(shown) + "\n ]\n}\n"
    (folder / f"{name}.expected.json").write_text(text, encoding="utf-8")
