"""Real request traces, from raw files to HTTP answers, against an independent recount with pandas.

Where the traces are not beside the project, as in CI, times and tokens are made up like theirs.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

ROOT = Path(__file__).parent.parent
TRACES = (
    ROOT.parent / "shared/data/azure-llm-2023"
)  # Azure LLM inference traces 2023, CC-BY 4.0 (Patel et al., ISCA 2024)
ORGANIZATIONS = 60
MONTHS = [(2023, 11), (2023, 12), (2024, 1)]

Record = dict[str, Any]
Served = tuple[str, dict[str, str]]  # the URL of a server, and a key for each organization


def requests_of(name: str, count: int) -> Iterator[tuple[str, int, int]]:
    """When each request of a trace came, as Azure wrote it, and how many tokens it had and was answered with."""
    if not TRACES.is_dir():
        chance = random.Random(name)
        begin = datetime.fromisoformat("2023-11-16T18:17:03")
        for _ in range(count):
            moment = begin + timedelta(seconds=chance.randrange(3_500))
            yield f"{moment}.{chance.randrange(10**7):07d}", chance.randrange(3, 7_438), chance.randrange(1, 1_899)
        return
    with (TRACES / f"AzureLLMInferenceTrace_{name}.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield row["TIMESTAMP"], int(row["ContextTokens"]), int(row["GeneratedTokens"])


def read_traces() -> list[Record]:
    """The 28,185 requests of both traces as records of the native format.

    Real: when each came, and how many tokens it had. Made up, the same each time: organization, key, model, status and
    price; and the hour is moved so that it lies over a month end.
    """
    records: list[Record] = []
    moved = timedelta(days=14, hours=5, minutes=15)
    for name, count, model in (("code", 8_819, "coder"), ("conv", 19_366, "chat")):
        for number, (came, sent, answered) in enumerate(requests_of(name, count)):
            whole, fraction = came.split(".")
            moment = datetime.fromisoformat(whole) + moved
            chance = random.Random(f"{name}-{number}")
            organization = min(int(chance.paretovariate(0.7)), ORGANIZATIONS)
            cost = Decimal(sent * 3 + answered * 15) / 1_000_000
            records.append(
                {
                    "request_id": f"{name}-{number}",
                    "timestamp": f"{moment.isoformat()}.{fraction}Z",  # seven decimals, as Azure wrote them
                    "organization_id": f"org_{organization:02d}",
                    "api_key_id": None if chance.random() < 0.05 else f"key_{organization}_{chance.randrange(4)}",
                    "cost": str(cost) if chance.random() < 0.5 else float(cost),
                    "synapses": answered / 10,
                    "neurons": str(Decimal(sent) / 10),
                    "model": model,
                    "status": 500 if chance.random() < 0.02 else 200,
                    "input_tokens": sent,
                    "output_tokens": answered,
                }
            )
    return records


def with_copies(records: list[Record], chance: random.Random) -> list[Record]:
    """The records, some out of order, some twice, and of some a second copy that disagrees."""
    lines = list(records)
    for record in chance.sample(records, 800):
        lines.insert(chance.randrange(len(lines)), record)
    for record in chance.sample(records, 60):
        lines.insert(chance.randrange(len(lines)), {**record, "cost": "0.5", "model": "other"})
    for _ in range(3_000):
        a, b = chance.randrange(len(lines)), chance.randrange(len(lines))
        lines[a], lines[b] = lines[b], lines[a]
    return lines


def write_raw(raw: Path, lines: list[Record], chance: random.Random) -> None:
    """The lines over nine very uneven files of four kinds, with some bad lines between them."""
    cuts = [*sorted(chance.sample(range(1, len(lines)), 6)), len(lines) - 7, len(lines) - 2, len(lines)]
    start = 0
    for number, end in enumerate(cuts):
        part = lines[start:end]
        start = end
        text = "".join(json.dumps(record) + "\n" for record in part).encode()
        text += b'{"request_id": "cut off he\n' if number % 2 else b""
        path = raw / f"region-{number % 3}" / f"part-{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 4 == 1:
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text))
        elif number % 4 == 2:
            path.with_suffix(".jsonl.zst").write_bytes(zstd.compress(text))
        elif number % 4 == 3:
            pq.write_table(as_parquet(part), path.with_suffix(".parquet"), row_group_size=1000)
        else:
            path.write_bytes(text)


def as_parquet(records: list[Record]) -> pa.Table:
    columns = {name: [record[name] for record in records] for name in records[0]}
    for name, scale in (("cost", 12), ("synapses", 6), ("neurons", 6)):
        columns[name] = pa.array([Decimal(str(value)) for value in columns[name]], pa.decimal128(18, scale))
    return pa.table(columns)


def recount(lines: list[Record]) -> pd.DataFrame:
    """Usage per organization and day, by the rules as the pages state them, in pandas."""
    frame = pd.DataFrame(
        {
            "request_id": record["request_id"],
            "timestamp": pd.Timestamp(record["timestamp"][:26] + "Z"),  # cut to microseconds
            "organization": record["organization_id"],
            "api_key_id": record["api_key_id"] or "",
            "cost": Decimal(str(record["cost"])),
            "synapses": Decimal(str(record["synapses"])),
            "neurons": Decimal(str(record["neurons"])),
            "model": record["model"],
        }
        for record in lines
    )
    frame["date"] = frame["timestamp"].dt.date
    ordered = ["timestamp", "api_key_id", "cost", "synapses", "neurons", "model"]
    once = frame.sort_values(ordered).drop_duplicates(["organization", "request_id", "date"], keep="first")
    counted = once[once["api_key_id"] != ""]
    return counted.groupby(["organization", "date"], as_index=False).agg(
        requests=("request_id", "size"), cost=("cost", "sum"), synapses=("synapses", "sum"), neurons=("neurons", "sum")
    )


def keytally(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr  # copies that disagree are a finding
    return done.stdout


def rolled_up_and_served(
    lines: list[Record], deliver: Callable[[Path, str], object], place: Mapping[str, str], folder: Path
) -> Iterator[Served]:
    """The URL of a server on these lines, rolled up in two runs, and a reading key for each organization.

    deliver: is told to put what lies below a folder into a folder below raw/. place: settings of the data root.
    """
    environment = {**os.environ, "KEYTALLY_RATE_LIMIT": "off", "KEYTALLY_THREADS": "2", **place}
    chance = random.Random(1)
    late = 1 + len(lines) // 7
    write_raw(folder / "first", lines[late:], chance)
    deliver(folder / "first", "first")
    first = json.loads(keytally(environment, "rollup", "--json"))
    assert first["months"] == ["2023-11", "2023-12"]
    write_raw(folder / "late", lines[:late], chance)
    deliver(folder / "late", "late")
    second = json.loads(keytally(environment, "rollup", "--json"))
    assert second["version"] == first["version"] + 1
    assert sum(day["accepted"] for day in second["days"]) == len(lines)

    organizations = folder / "organizations.txt"
    organizations.write_text("\n".join(sorted({record["organization_id"] for record in lines})), encoding="utf-8")
    created = keytally(environment, "keys", "create", "--orgs", str(organizations), "--json").splitlines()
    keys = {key["organization_id"]: key["key"] for key in map(json.loads, created)}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", "--port", "0", "--json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    yield json.loads(process.stdout.readline())["url"], keys
    process.terminate()
    assert process.wait(timeout=20) == 0


@pytest.fixture(scope="module")
def lines() -> list[Record]:
    return with_copies(read_traces(), random.Random(2023))


@pytest.fixture(scope="module")
def server(lines: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("azure")

    def deliver(folder: Path, to: str) -> None:
        shutil.move(folder, data / "raw" / to)

    (data / "raw").mkdir()
    yield from rolled_up_and_served(lines, deliver, {"KEYTALLY_DATA": str(data)}, tmp_path_factory.mktemp("traces"))


def test_every_organization_month_equals_an_independent_recount(lines: list[Record], server: Served) -> None:
    assert_every_organization_month_equals_a_recount(lines, server)


def assert_every_organization_month_equals_a_recount(lines: list[Record], server: Served) -> None:
    url, keys = server
    expected = recount(lines)
    assert len(read_traces()) == 28_185
    assert len(keys) > 50
    compared = 0
    for organization, key in keys.items():
        for year, month in MONTHS:
            request = urllib.request.Request(
                f"{url}/v1/analytics/api-keys/daily/{organization}?year={year}&month={month}",
                headers={"X-API-Key": key},
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                body = json.loads(response.read(), parse_float=Decimal)
            days = expected[
                (expected["organization"] == organization)
                & (pd.to_datetime(expected["date"]).dt.strftime("%Y-%m") == f"{year}-{month:02d}")
            ].sort_values("date", ascending=False)
            assert body["dailyUsage"] == [
                {
                    "date": str(d.date),
                    "requests": d.requests,
                    "cost": d.cost,
                    "synapses": d.synapses,
                    "neurons": d.neurons,
                }
                for d in days.itertuples()
            ], (organization, year, month)
            summary = body["summary"]
            requests, cost = int(days["requests"].sum()), sum(days["cost"], Decimal(0))
            assert summary["totalApiKeyRequests"] == requests
            assert summary["totalApiKeyCost"] == cost
            assert summary["total_synapses"] == sum(days["synapses"], Decimal(0))
            assert summary["totalNeurons"] == sum(days["neurons"], Decimal(0))
            assert summary["averageCostPerRequest"] == average(cost, requests)
            compared += len(days)
    assert compared == len(expected)
    assert {str(day) for day in expected["date"]} == {"2023-11-30", "2023-12-01"}


def average(cost: Decimal, requests: int) -> Decimal:
    with localcontext(prec=60):
        return (cost / requests).quantize(Decimal("1e-12"), ROUND_HALF_EVEN) if requests else Decimal(0)


def test_the_recount_itself_sees_copies_sessions_and_conflicts() -> None:
    base = {
        "timestamp": "2023-11-30T10:00:00.0000000Z",
        "organization_id": "o",
        "synapses": 0,
        "neurons": 0,
        "model": "m",
    }
    lines = [
        {**base, "request_id": "a", "api_key_id": "k", "cost": "2"},
        {**base, "request_id": "a", "api_key_id": "k", "cost": "1"},
        {**base, "request_id": "b", "api_key_id": None, "cost": "5"},
        {**base, "request_id": "c", "api_key_id": "k", "cost": "3", "timestamp": "2023-11-30T00:00:00.0000000Z"},
    ]
    (day,) = recount(lines).to_dict("records")
    assert (day["requests"], day["cost"]) == (2, Decimal(4))
