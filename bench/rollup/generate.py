"""Made-up request logs of an API with very unequal customers, and the right answer to them.

    python bench/rollup/generate.py FOLDER [--requests 2000000] [--first-day 2025-11-01] [--days 30] [--files-a-day 2]

Writes the same valid requests as FOLDER/gz, FOLDER/zst and FOLDER/parquet, one folder of raw logs each, and
FOLDER/truth.parquet: what each API key used of each model on each day. The truth is summed in Python integers while the
lines are written, and owes nothing to any library that is measured. The same arguments make the same lines.

Of all lines 3 % are copies of another, mostly byte for byte; of 50 copies one disagrees with the line it copies, and
docs/formats.md says which of the two counts. 0.02 % are no requests, for a reason that whoever reads the logs has to
see. 0.1 % are requests and look unusual: reordered, escaped, spaced, with offsets, exponents, twelve decimals or
fifteen digits, or next to midnight.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ORGANIZATIONS = 10_000
COPIES, CONFLICTING, BAD, NASTY = 0.03, 0.02, 0.0002, 0.001  # CONFLICTING is a share of the copies
SESSIONS, WITHOUT_MODEL, FAILED = 0.08, 0.01, 0.04
MODELS = [f"{family}-{size}" for family in ("aria", "boreal", "cobalt", "delta") for size in ("mini", "base", "large")]
ENDPOINTS = ["/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/images"]
FORMATS = ("gz", "zst", "parquet")
FORMAT_VERSION = 1  # raise it when the same arguments make other lines

DAY = 86_400_000_000  # microseconds
OVERHANG = 300_000_000  # a log is rotated some minutes after midnight

AMOUNT_COLUMNS = {"cost": 12, "synapses": 6, "neurons": 6, "input_tokens": 0, "output_tokens": 0}
ANSWER = pa.schema(
    [
        ("organization_id", pa.string()),
        ("day", pa.date32()),
        ("api_key_id", pa.string()),
        ("model", pa.string()),
        ("requests", pa.int64()),
        ("failed_requests", pa.int64()),
        *((name, pa.decimal128(38, decimals)) for name, decimals in AMOUNT_COLUMNS.items()),
    ]
)
Usage = dict[tuple[int, str, str, str | None], list[int]]  # by day, organization, key and model: ANSWER's measures


@dataclass(frozen=True)
class Traffic:
    """What is to be made. requests: lines that are not bad, copies included."""

    requests: int
    first_day: date = date(2025, 11, 1)
    days: int = 30
    files_a_day: int = 2
    seed: int = 1
    formats: tuple[str, ...] = FORMATS


@dataclass(slots=True)
class Request:
    """One request. at: microseconds since 1970. cost in 10^-12, synapses and neurons in 10^-6."""

    request_id: str
    at: int
    organization: str
    key: str | None
    cost: int
    synapses: int
    neurons: int
    model: str | None
    endpoint: str | None
    status: int | None
    input_tokens: int
    output_tokens: int


def plain(units: int, decimals: int) -> str:
    """An amount in so many decimals, without trailing zeros."""
    whole, fraction = divmod(units, 10**decimals)
    return f"{whole}.{fraction:0{decimals}}".rstrip("0").rstrip(".")


def timestamp(at: int, offset_minutes: int | None = None) -> str:
    """As most gateways write it, with milliseconds and Z, or at an offset."""
    instant = datetime.fromtimestamp(at // 1_000_000, UTC).replace(microsecond=at % 1_000_000)
    if offset_minutes is None:
        return instant.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at % 1_000_000 // 1000:03}Z"
    local = instant + timedelta(minutes=offset_minutes)
    sign, minutes = "-" if offset_minutes < 0 else "+", abs(offset_minutes)
    return f"{local:%Y-%m-%dT%H:%M:%S.%f}{sign}{minutes // 60:02}:{minutes % 60:02}"


def fields_of(request: Request, text_amounts: bool) -> dict[str, str]:
    """A request's fields as JSON texts. text_amounts: the cost is a string of 9 decimals, else a number."""
    cost = f'"{request.cost // 10**12}.{request.cost // 1000 % 10**9:09}"' if text_amounts else plain(request.cost, 12)
    return {
        "request_id": json.dumps(request.request_id),
        "timestamp": f'"{timestamp(request.at)}"',
        "organization_id": f'"{request.organization}"',
        "api_key_id": json.dumps(request.key),
        "cost": cost,
        "synapses": plain(request.synapses, 6),
        "neurons": plain(request.neurons, 6),
        "model": json.dumps(request.model),
        "endpoint": json.dumps(request.endpoint),
        "status": json.dumps(request.status),
        "input_tokens": str(request.input_tokens),
        "output_tokens": str(request.output_tokens),
    }


def line_of(fields: dict[str, str]) -> bytes:
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}").encode()


# --- valid, and yet --------------------------------------------------------------------------------------------------


def nasty(request: Request, kind: int, text_amounts: bool, midnight: int) -> bytes:  # noqa: PLR0912, a branch a kind
    """The line of a request that looks unusual, and counts all the same; may change the request.

    midnight: the end of its day.
    """
    if kind == 0:
        request.cost += request.cost // 7 % 999 + 1  # all twelve decimals
    elif kind in (1, 2):
        request.request_id = f"anfrage-ü-请求-🛰-{request.request_id}"
        request.model = "ärger-北-1" if request.model else None
    elif kind in (3, 4):
        # A reader that rounds the ninth digit, or the seventh, finds the next day.
        request.at = midnight - 1
    elif kind == 5:
        request.cost = (request.cost % 900 + 1) * 10**6
    elif kind == 6:
        request.synapses = request.neurons = request.input_tokens = request.output_tokens = 0
        request.model = request.endpoint = request.status = None
    elif kind == 7:
        request.cost = request.cost // 10**9 % 3 * 10**12
    elif kind == 15:
        # All the 15 digits that a double keeps: times a power of ten it keeps them no more.
        request.cost = 12_345 * 10**12 + request.cost % 10**10 * 100 + 700
        request.synapses = 123_456_789 * 10**6 + request.synapses % 10**6
    fields = fields_of(request, text_amounts)
    if kind == 0:
        fields["cost"] = f'"{request.cost // 10**12}.{request.cost % 10**12:012}"'
    elif kind == 1:
        fields["request_id"] = json.dumps(request.request_id, ensure_ascii=False)
        fields["model"] = json.dumps(request.model, ensure_ascii=False)
    elif kind in (3, 4):
        day = datetime.fromtimestamp(request.at // 1_000_000, UTC)
        fields["timestamp"] = f'"{day:%Y-%m-%d}T23:59:59.999999{"9" if kind == 3 else "999"}Z"'
    elif kind == 5:
        fields["cost"] = f"{request.cost // 10**6}e-06"
    elif kind == 6:
        optional = ("synapses", "neurons", "model", "endpoint", "status", "input_tokens", "output_tokens")
        for number, name in enumerate(optional):
            if number % 2:
                del fields[name]
            else:
                fields[name] = "null"
    elif kind == 7:
        fields["cost"] = str(request.cost // 10**12)
    elif kind == 8:
        fields = dict(sorted(fields.items(), reverse=True))
    elif kind == 9:
        return b"  { " + b" ,\t".join(f'"{n}" : {t}'.encode() for n, t in fields.items()) + b" } \r"
    elif kind in (10, 11):
        fields["timestamp"] = f'"{timestamp(request.at, 345 if kind == 10 else -600)}"'
    elif kind == 12:
        fields = {"tags": '{"a":[1,{"b":"}\\""}],"cost":"-1"}', **fields, "latency_ms": "12.5"}
    elif kind == 15:
        fields["cost"] = plain(request.cost, 12)
    elif kind == 13:
        fields["synapses"], fields["neurons"] = f'"{fields["synapses"]}"', f'"{fields["neurons"]}"'
    elif kind == 14:
        fields["endpoint"] = fields["endpoint"].replace("/", "\\/")
    return line_of(fields)


NASTY_KINDS = 16

# --- bad -------------------------------------------------------------------------------------------------------------

# Each names what it replaces, and by which JSON text; None leaves the field out.
BAD_FIELDS: list[tuple[str, str | None]] = [
    ("request_id", None),
    ("timestamp", None),
    ("organization_id", None),
    ("cost", None),
    ("request_id", "null"),
    ("organization_id", "null"),
    ("cost", "null"),
    ("request_id", '""'),
    ("organization_id", '""'),
    ("organization_id", '"org 17/../x"'),
    ("api_key_id", '"key with blanks"'),
    ("timestamp", '"yesterday"'),
    ("timestamp", '"2025-11-31T10:00:00Z"'),
    ("timestamp", '"2025-11-15T25:10:00Z"'),
    ("timestamp", '"2025-11-15T10:00:00"'),
    ("timestamp", '"2019-12-31T23:59:59Z"'),
    ("timestamp", '"2031-01-01T00:00:00Z"'),
    ("cost", "-0.01"),
    ("cost", '"-0.000000000001"'),
    ("cost", '"n/a"'),
    ("cost", '""'),
    ("cost", "true"),
    ("cost", "1000000"),
    ("cost", '"0.0000000000001"'),
]
BROKEN: list[Callable[[bytes], bytes]] = [
    lambda line: line[: len(line) * 2 // 3],
    lambda line: line[:-1],
    lambda _: b"2025/11/15 10:00:00 [warn] upstream timed out",
    lambda line: b"[" + line + b"]",
    lambda line: line.replace(b'"cost":', b'"cost":,', 1),
    lambda line: line.replace(b'"endpoint":"', b'"endpoint":"\xff', 1),
]
BAD_KINDS = len(BAD_FIELDS) + len(BROKEN)
BAD_VALUES: list[dict[str, Any]] = [  # the same for a row of Parquet, where a value has its type already
    {"request_id": None},
    {"at": None},
    {"organization": None},
    {"cost": None},
    {"request_id": ""},
    {"organization": ""},
    {"organization": "org 17/../x"},
    {"key": "key with blanks"},
    {"at": -1},
    {"cost": -10_000_000_000},
    {"cost": -1},
]


def bad_line(request: Request, kind: int) -> bytes:
    fields = fields_of(request, text_amounts=False)
    if kind >= len(BAD_FIELDS):
        return BROKEN[kind - len(BAD_FIELDS)](line_of({**fields, "endpoint": '"/v1/x"'}))
    name, text = BAD_FIELDS[kind]
    if text is None:
        del fields[name]
    else:
        fields[name] = text
    return line_of(fields)


# --- copies ----------------------------------------------------------------------------------------------------------


def losing_copy(request: Request, kind: int) -> Request:
    """A copy that disagrees and does not count: it is larger in the first field in which it differs."""
    if kind == 0 and (request.at + 7000) // DAY == request.at // DAY:
        return replace(request, at=request.at + 7000, cost=request.cost // 2)
    if kind == 1:  # null before any value: the session counts
        return (
            replace(request, key="key_zzz", cost=0) if request.key is None else replace(request, key=request.key + "z")
        )
    if kind == 2:
        return replace(request, cost=request.cost + 1_000_000, synapses=0)
    if kind == 3:
        return replace(request, model="aria-mini" if request.model is None else request.model + "é", endpoint=None)
    if kind == 4 and (request.status is None or request.status < 500):
        return replace(request, status=500, output_tokens=0)
    return replace(request, output_tokens=request.output_tokens + 1)


LOSING_KINDS = 6

# --- a day -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Logged:
    """A line in a file. request is None where the line is bad; `row` is what stands in Parquet for it."""

    arrival: float
    file: int
    line: bytes
    row: Request


def requests_of(rng: np.random.Generator, count: int, start: int, end: int, name: str) -> list[Request]:
    """So many requests from `start` to `end`, in order of time. `name` keeps their ids apart from others'."""
    rank = np.arange(1, ORGANIZATIONS + 1)
    weight = rank**-1.1
    organization = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(count)).clip(max=ORGANIZATIONS - 1)
    keys_of = 1 + np.floor(20 * rank**-0.4).astype(int)  # the largest has 21, most have one
    key = np.floor(keys_of[organization] * rng.random(count) ** 2).astype(int)
    model = (organization + np.minimum(rng.geometric(0.6, count), len(MODELS))) % len(MODELS)
    at = np.sort(rng.integers(start // 1000, end // 1000, count)) * 1000
    cost = np.minimum(rng.lognormal(14.5, 1.3, count), 1e14).astype(np.int64) * 1000  # median 0.002
    tokens = np.minimum(rng.lognormal(6.5, 1.2, count), 1e6).astype(np.int64)
    answered = np.minimum(rng.lognormal(5, 1.2, count), 1e6).astype(np.int64)
    chance = rng.random((3, count))
    status = np.where(chance[2] < FAILED, rng.choice([400, 429, 500], count), 200)
    ids = rng.bytes(8 * count).hex()
    session, no_model = chance[0] < SESSIONS, chance[1] < WITHOUT_MODEL
    columns = (organization, key, model, at, cost, tokens, answered, status, session, no_model)
    return [
        Request(
            request_id=f"req_{name}{ids[16 * number : 16 * number + 16]}",
            at=when,
            organization=f"org_{one:05}",
            key=None if by_session else f"key_{one:05}_{its_key:02}",
            cost=price,
            synapses=price // 10**6 * 13,
            neurons=sent * 1000 + 500 * reply,
            model=None if unnamed else MODELS[which],
            endpoint=ENDPOINTS[which % len(ENDPOINTS)],
            status=code,
            input_tokens=sent,
            output_tokens=reply,
        )
        for number, (one, its_key, which, when, price, sent, reply, code, by_session, unnamed) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    ]


def count_in(usage: Usage, request: Request) -> None:
    """Add a request to the truth, once for all its copies."""
    if request.key is None:
        return
    sums = usage.setdefault((request.at // DAY, request.organization, request.key, request.model), [0] * 7)
    sums[0] += 1
    sums[1] += request.status is not None and request.status >= 400
    sums[2] += request.cost
    sums[3] += request.synapses
    sums[4] += request.neurons
    sums[5] += request.input_tokens
    sums[6] += request.output_tokens


def share(total: int, part: int, parts: int) -> int:
    """How much of `total` falls to one of so many parts."""
    return total * (part + 1) // parts - total * part // parts


def logged_on(traffic: Traffic, number: int) -> tuple[list[Logged], Usage]:
    """What is logged on the traffic's day of this number, in order of arrival, and what of it counts."""
    rng = np.random.default_rng([traffic.seed, number])
    lines = share(traffic.requests, number, traffic.days)
    copies = share(round(traffic.requests * COPIES), number, traffic.days)
    start = (traffic.first_day - date(1970, 1, 1) + timedelta(days=number)).days * DAY
    end = start + DAY + (OVERHANG if number + 1 < traffic.days else 0)
    requests = requests_of(rng, lines - copies, start, end, f"{traffic.seed:02x}{number:02x}")
    odd = set(rng.choice(len(requests), round(len(requests) * NASTY), replace=False).tolist())
    usage: Usage = {}
    logged = []
    for order, request in enumerate(requests):
        file = order % traffic.files_a_day
        if order in odd:
            kind = (order + number) % NASTY_KINDS
            line = nasty(request, kind, file % 2 == 0, (request.at // DAY + 1) * DAY)
        else:
            line = line_of(fields_of(request, file % 2 == 0))
        logged.append(Logged(order, file, line, request))
        count_in(usage, request)
    for turn, order in enumerate(rng.choice(len(requests), copies, replace=False).tolist()):
        one = logged[order]
        file = one.file if turn % 3 else (one.file + 1) % traffic.files_a_day
        arrival = one.arrival + float(rng.random()) * 2000 - 20  # a copy may come first
        if rng.random() < CONFLICTING and order not in odd:
            loser = losing_copy(one.row, turn % LOSING_KINDS)
            logged.append(Logged(arrival, file, line_of(fields_of(loser, turn % 2 == 0)), loser))
        else:
            logged.append(Logged(arrival, file, one.line, one.row))
    total = round(traffic.requests * BAD)
    before = total * number // traffic.days
    for turn in range(share(total, number, traffic.days)):
        order = int(rng.integers(len(requests)))
        model = replace(requests[order], request_id=f"bad_{number}_{turn}")
        row = replace(model, **BAD_VALUES[(before + turn) % len(BAD_VALUES)])
        line = bad_line(model, (before + turn) % BAD_KINDS)
        logged.append(Logged(order + 0.5, turn % traffic.files_a_day, line, row))
    logged.sort(key=lambda one: one.arrival)
    return logged, usage


# --- writing ---------------------------------------------------------------------------------------------------------


def decimals(units: list[int | None], digits: int, scale: int) -> pa.Array:
    """Exact decimals from integers of the last digit."""
    words = np.zeros((len(units), 2), dtype="<i8")
    words[:, 0] = [0 if unit is None else unit for unit in units]
    words[:, 1] = np.where(words[:, 0] < 0, -1, 0)
    values = pa.Array.from_buffers(pa.decimal128(digits, scale), len(units), [None, pa.py_buffer(words.tobytes())])
    missing = pa.array([unit is None for unit in units])
    return pa.compute.if_else(missing, pa.scalar(None, values.type), values)


def as_parquet(rows: list[Request]) -> pa.Table:
    """Rows as a gateway with a Parquet writer types them."""
    text = pa.string()
    return pa.table(
        {
            "request_id": pa.array([row.request_id for row in rows], text),
            "timestamp": pa.array([row.at for row in rows], pa.timestamp("us", "UTC")),
            "organization_id": pa.array([row.organization for row in rows], text),
            "api_key_id": pa.array([row.key for row in rows], text),
            "cost": decimals([row.cost for row in rows], 18, 12),
            "synapses": decimals([row.synapses for row in rows], 18, 6),
            "neurons": decimals([row.neurons for row in rows], 18, 6),
            "model": pa.array([row.model for row in rows], text),
            "endpoint": pa.array([row.endpoint for row in rows], text),
            "status": pa.array([row.status for row in rows], pa.int16()),
            "input_tokens": pa.array([row.input_tokens for row in rows], pa.int64()),
            "output_tokens": pa.array([row.output_tokens for row in rows], pa.int64()),
        }
    )


def write_day(folder: Path, traffic: Traffic, number: int) -> tuple[Usage, int]:
    """Write a day's files in every format. What counts, and the bytes of its lines before compression."""
    logged, usage = logged_on(traffic, number)
    day = traffic.first_day + timedelta(days=number)
    size = 0
    for file in range(traffic.files_a_day):
        own = [one for one in logged if one.file == file]
        lines = b"".join(one.line + b"\n" for one in own)
        size += len(lines)
        name = f"gateway-{file + 1}/{day}"
        for kind in traffic.formats:
            path = folder / kind / f"{name}{'.parquet' if kind == 'parquet' else f'.jsonl.{kind}'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "gz":
                path.write_bytes(gzip.compress(lines, 6, mtime=0))
            elif kind == "zst":
                path.write_bytes(zstd.compress(lines, options={zstd.CompressionParameter.checksum_flag: 1}))
            else:
                pq.write_table(as_parquet([one.row for one in own]), path)
    return usage, size


def answer_of(usage: Usage, day: int) -> pa.Table:
    """A day's truth as a table."""
    keys = [key for key in usage if key[0] == day]
    sums = [usage[key] for key in keys]
    columns = [
        pa.array([key[1] for key in keys]),
        pa.array([day] * len(keys), pa.int32()).cast(pa.date32()),
        pa.array([key[2] for key in keys]),
        pa.array([key[3] for key in keys], pa.string()),
        pa.array([one[0] for one in sums], pa.int64()),
        pa.array([one[1] for one in sums], pa.int64()),
    ]
    for place, scale in enumerate(AMOUNT_COLUMNS.values(), 2):
        columns.append(decimals([one[place] for one in sums], 38, scale))
    return pa.Table.from_arrays(columns, schema=ANSWER)


def _write_day(arguments: tuple[Path, Traffic, int]) -> tuple[Usage, int]:
    return write_day(*arguments)


def write_traffic(folder: Path, traffic: Traffic) -> dict[str, Any]:
    """Write the logs and the truth below `folder`, unless they lie there. Facts about them, by name."""
    facts_path = folder / "facts.json"
    wanted = json.loads(json.dumps({**asdict(traffic), "format_version": FORMAT_VERSION}, default=str))
    if facts_path.exists():
        facts: dict[str, Any] = json.loads(facts_path.read_text(encoding="utf-8"))
        if facts["traffic"] == wanted:
            return facts
        sys.exit(f"{folder} holds other traffic: {facts['traffic']}; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    rows = size = 0
    lines = traffic.requests + round(traffic.requests * BAD)
    overhang: Usage = {}
    with multiprocessing.Pool() as pool, pq.ParquetWriter(folder / "truth.parquet", ANSWER) as truth:
        days: Iterable[tuple[Usage, int]] = pool.imap(_write_day, [(folder, traffic, n) for n in range(traffic.days)])
        for number, (usage, day_size) in enumerate(days):
            day = (traffic.first_day - date(1970, 1, 1)).days + number
            for key, sums in overhang.items():
                before = usage.setdefault(key, [0] * len(sums))
                usage[key] = [a + b for a, b in zip(before, sums, strict=True)]
            overhang = {key: sums for key, sums in usage.items() if key[0] != day}
            table = answer_of(usage, day)
            truth.write_table(table)
            rows += table.num_rows
            size += day_size
    assert not overhang, "the last day has no overhang"
    facts = {"traffic": wanted, "lines": lines, "groups": rows, "bytes": size}
    facts_path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--first-day", type=date.fromisoformat, default=date(2025, 11, 1))
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--files-a-day", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--formats", default=",".join(FORMATS))
    options = parser.parse_args()
    formats = tuple(options.formats.split(","))
    traffic = Traffic(options.requests, options.first_day, options.days, options.files_a_day, options.seed, formats)
    print(json.dumps(write_traffic(options.folder, traffic), indent=1))


if __name__ == "__main__":
    main()
