"""Two months of a made-up gateway's traffic: seeded, realistic, and with the flaws that real logs have."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.contract.layout import days_between, month_of

SEED = 20_251_115
REQUESTS_A_DAY = 900  # of all organizations together, on a working day
LARGEST_ORGANIZATION = "org_abc123"
ORGANIZATIONS = (
    LARGEST_ORGANIZATION,
    *("org_acme", "org_bluebird", "org_cobalt", "org_delta", "org_evergreen", "org_foxglove", "org_granite"),
    *("org_harbor", "org_indigo", "org_juniper", "org_kestrel", "org_lumen", "org_marble", "org_nimbus"),
    *("org_orchard", "org_pinecone", "org_quartz", "org_riverbend", "org_saffron"),
)
_ENDPOINTS = ("/v1/chat/completions", "/v1/chat/completions", "/v1/chat/completions", "/v1/embeddings")
_PRICES = {  # per million tokens, in and out
    "sonnet-large": (Decimal("3"), Decimal("15")),
    "mini": (Decimal("0.15"), Decimal("0.6")),
    "r1": (Decimal("0.55"), Decimal("2.19")),
}
_BAD_LINES = (
    '{"request_id": "req_cut_off", "timestamp": "%sT08:1',
    '{"request_id": "req_nobodys", "timestamp": "%sT08:15:00Z", "api_key_id": "key_1", "cost": "0.1"}',
    '{"request_id": "req_nan", "timestamp": "%sT08:16:00Z", "organization_id": "org_acme", "api_key_id": null, '
    '"cost": NaN}',
    '{"request_id": "req_refund", "timestamp": "%sT08:17:00Z", "organization_id": "org_acme", "api_key_id": null, '
    '"cost": -1.5}',
)


@dataclass(frozen=True)
class Traffic:
    """What was written. The late file is not there until `deliver_late_file` is called."""

    raw: Path
    months: tuple[date, date]
    organization: str
    late_file: str
    late_lines: tuple[str, ...]

    def deliver_late_file(self) -> None:
        """Write the file that a gateway in trouble delivers after the others were rolled up."""
        _write(self.raw / self.late_file, list(self.late_lines))


def write_traffic(raw: Path, now: datetime) -> Traffic:
    """Write the raw logs of the month before `now` and of the month so far below `raw`, one file a gateway and day.

    The same `now` writes the same traffic.
    """
    chance = random.Random(SEED)
    first_day = month_of(month_of(now.date()) - timedelta(days=1))
    late_day = first_day + timedelta(days=16)
    late_lines: list[str] = []
    redelivered: list[str] = []
    for day in days_between(first_day, now.date()):
        east, west = list(redelivered), list[str]()
        for record in _requests_of(day, now, chance):
            gateway = east if chance.random() < 0.6 else west
            gateway.append(json.dumps(record))
        # A gateway that got no receipt sends the end of its day again with the next one's file.
        redelivered = east[-3:] if chance.random() < 0.5 else []
        if chance.random() < 0.15:
            west.insert(len(west) // 2, chance.choice(_BAD_LINES) % day)
        _write(raw / "east" / f"{day}.jsonl.gz", east)
        if day == late_day:
            late_lines = west
        else:
            _write(raw / "west" / f"{day}.jsonl", west)
    return Traffic(
        raw, (first_day, month_of(now.date())), LARGEST_ORGANIZATION, f"west/{late_day}-late.jsonl", tuple(late_lines)
    )


def _requests_of(day: date, now: datetime, chance: random.Random) -> Iterator[dict[str, Any]]:
    weights = [1 / rank**1.3 for rank in range(1, len(ORGANIZATIONS) + 1)]
    weekend = day.weekday() >= 5
    for _ in range(int(REQUESTS_A_DAY * (0.35 if weekend else 1.0) * chance.uniform(0.85, 1.15))):
        (organization,) = chance.choices(ORGANIZATIONS, weights)
        # Office hours, with a tail into the night.
        second = int(86_399 * min(0.9999, max(0.0, chance.gauss(0.58, 0.17) % 1.0)))
        moment = datetime.combine(day, time(), UTC) + timedelta(seconds=second, milliseconds=chance.randrange(1000))
        record = _request(organization, moment, chance)
        if moment < now:
            yield record


def _request(organization: str, moment: datetime, chance: random.Random) -> dict[str, Any]:
    keys = 1 + len(organization) % 6
    model = chance.choices(list(_PRICES), (2, 6, 1))[0]
    failed = chance.random() < 0.03
    sent = int(math.exp(chance.gauss(6.3, 1.1)))
    answered = 0 if failed else int(math.exp(chance.gauss(5.2, 0.9)))
    price_in, price_out = _PRICES[model]
    cost = Decimal(0) if failed else (sent * price_in + answered * price_out) / 1_000_000
    session = chance.random() < 0.05  # somebody trying things out in the browser
    return {
        "request_id": f"req_{chance.getrandbits(96):024x}",
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "organization_id": organization,
        "api_key_id": None if session else f"key_{organization[4:]}_{1 + int(keys * chance.random() ** 2)}",
        "cost": f"{cost:.9f}",
        "synapses": answered / 10,
        "neurons": sent / 10,
        "model": model,
        "endpoint": chance.choice(_ENDPOINTS),
        "status": chance.choice((429, 500, 503)) if failed else 200,
        "input_tokens": sent,
        "output_tokens": answered,
    }


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
