"""What a run needs in memory does not grow with what lies in raw/: bombs, endless lines, many files.

Each run is a process of its own, and its most resident memory is measured. `pytest -m slow` has the large ones.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.scale.generate import Traffic, write
from tests.conftest import Place, lines, request

MB = 10**6
MIB = 2**20
LIMIT_MB = 256
SCRIPT = """
import sys
from cli import main
from tests.peak import kilobytes
try:
    main(["rollup", "--json"])
finally:
    print(kilobytes(), file=sys.stderr)
"""
FEW_FILES = """
import resource
from pipeline import buckets
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
buckets.LINES_A_BUCKET = buckets.LINES_IN_ONE_STEP = {lines_a_bucket}
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak of a process")


def rolled_up(place: Place, limit_mb: int = LIMIT_MB, first: str = "") -> dict[str, Any]:
    """What `keytally rollup` reported, having stayed within its memory. first: what its process does before."""
    environment = {
        **os.environ,
        "KEYTALLY_DATA": str(place.layout.root),
        "KEYTALLY_MEMORY_LIMIT": f"{limit_mb}MB",
        "KEYTALLY_THREADS": "2",
    }
    command = [sys.executable, "-c", first + SCRIPT]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr  # a log of which nothing counts is a finding
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["held_back"] == []
    assert int(done.stderr.splitlines()[-1]) * 1024 <= (limit_mb + 400) * MB
    return report


def counts(report: dict[str, Any]) -> tuple[int, int, int]:
    """Lines, accepted and quarantined of all files."""
    return tuple(sum(file[name] for file in report["ingested"]) for name in ("lines", "accepted", "quarantined"))  # type: ignore[return-value]


def bomb(place: Place, unit: bytes, count: int) -> None:
    """A gzip file of `count` times the unit, and a request."""
    member = gzip.compress(unit, 6)
    with (place.layout.raw / "a.jsonl.gz").open("wb") as file:
        for _ in range(count):
            file.write(member)
        file.write(gzip.compress(b"\n" + lines(request(1))))


def endless_line(place: Place, mebibytes: int) -> None:
    with (place.layout.raw / "a.jsonl").open("wb") as file:
        for _ in range(mebibytes):
            file.write(b"x" * MIB)


@pytest.mark.parametrize("size", [200, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_line_without_an_end_is_quarantined_within_the_limit(place: Place, size: int) -> None:
    endless_line(place, size)
    assert counts(rolled_up(place)) == (1, 0, 1)


WIDE = b'{"a":"' + b"x" * (MIB - 100) + b'"}\n'
WIDE_GOOD = json.dumps({**request(1), "other": "\N{LATIN SMALL LETTER E WITH ACUTE}" * 150_000}).encode() + b"\n"
BOMBS = {  # a unit of 16 MiB, and the lines in it
    "one line": (b"x" * 16 * MIB, 0),
    "blank lines": (b"\n" * 16 * MIB, 0),
    "white space": (b" \t \r\n" * MIB, 0),
    "lines of a megabyte": (WIDE * 16, 16),
    "requests of a megabyte": (WIDE_GOOD * 17, 17),
}


@pytest.mark.parametrize("size", [64, pytest.param(640, marks=pytest.mark.slow)], ids=["1 GB", "10 GB"])
@pytest.mark.parametrize("kind", ["one line", "blank lines"])
def test_a_gzip_bomb_is_read_to_its_end_within_the_limit(place: Place, kind: str, size: int) -> None:
    bomb(place, BOMBS[kind][0], size)
    assert counts(rolled_up(place))[1] == 1


@pytest.mark.parametrize("size", [8, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["white space", "lines of a megabyte", "requests of a megabyte"])
def test_a_bomb_of_many_lines_is_counted_within_the_limit(place: Place, kind: str, size: int) -> None:
    unit, in_unit = BOMBS[kind]
    bomb(place, unit, size)
    assert counts(rolled_up(place))[0] == in_unit * size + 1


@pytest.mark.slow
def test_a_bomb_of_forty_million_copies_counts_once_within_the_limit(place: Place) -> None:
    unit = lines(request(1)) * 100_000
    bomb(place, unit, 400)
    report = rolled_up(place)
    assert counts(report)[1] == 40_000_001
    assert report["days"][0]["counted"] == 1


@pytest.mark.parametrize("amount", ["0.25", "0." + "25" + "0" * 1_000_000])
def test_a_parquet_bomb_of_long_repeated_texts_stays_within_the_limit(place: Place, amount: str) -> None:
    rows = 50_000
    table = pa.table(
        {
            "request_id": [str(number) for number in range(rows)],
            "timestamp": ["2025-11-10T12:00:00Z"] * rows,
            "organization_id": ["org_a"] * rows,
            "api_key_id": ["key_1"] * rows,
            "cost": pa.DictionaryArray.from_arrays([0] * rows, [amount]),
            "model": pa.DictionaryArray.from_arrays([0, 1] * (rows // 2), ["m" * MIB, "m"]),
        }
    )
    written = io.BytesIO()
    pq.write_table(table, written, row_group_size=rows, dictionary_pagesize_limit=8 * MIB)
    place.write_raw("a.parquet", written.getvalue())
    assert counts(rolled_up(place)) == (rows, rows // 2, rows // 2)
    assert place.published("organization_day").cost.sum() == rows // 2 / 4


@pytest.mark.parametrize("files", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_tiny_files_are_taken_in_within_the_limit(place: Place, files: int) -> None:
    for number in range(files):
        place.write_raw(f"{number // 1000}/{number}.jsonl", request(number))
    assert counts(rolled_up(place)) == (files, files, 0)


@pytest.mark.parametrize("requests", [2_100_000, pytest.param(20_000_000, marks=pytest.mark.slow)])
def test_a_raw_file_larger_than_memory_with_a_day_larger_than_a_step_stays_within_the_limit(
    place: Place, requests: int
) -> None:
    """One file of one day: 600 MB of lines, or 5.9 GB, with 512 MB for DuckDB, and less than 1 GiB for everything."""
    made = Traffic(requests, days=1, organizations=100_000)
    truth = write(place.layout.raw, made, lines_a_file=requests)
    report = rolled_up(place, 512)
    assert counts(report)[0] == requests
    assert sum(day["counted"] for day in report["days"]) == truth.requests
    assert place.published("organization_month").cost.sum() * 10**9 == truth.cost


@pytest.mark.parametrize("lines_a_bucket", [1_000_000, 2])
def test_many_files_and_buckets_are_not_open_at_once(place: Place, lines_a_bucket: int) -> None:
    """Of 200 event files, or as many buckets, where the process may have 160 files open."""
    files = 200
    for number in range(files):
        place.write_raw(f"{number}.jsonl", request(2 * number), request(2 * number + 1))
    report = rolled_up(place, first=FEW_FILES.format(lines_a_bucket=lines_a_bucket))
    assert report["days"][0]["counted"] == 2 * files


def test_lines_of_40_mib_of_mapped_formats_are_read_within_the_limit(place: Place) -> None:
    """A prompt of such a length is one call; an export of 42,000 spans is one line."""
    call = json.loads(
        (Path(__file__).parent / "cases/litellm_server_repeats_an_id/log.jsonl").read_text().splitlines()[0]
    )
    prompt = '\\u00e9\\n"x' * (40 * MIB // 12)
    place.write_raw("litellm/a.jsonl", *({**call, "id": number, "messages": prompt} for number in range(3)))
    span = {
        "spanId": "0" * 16,
        "startTimeUnixNano": "1762776000000000000",
        "attributes": [
            {"key": key, "value": {"stringValue": value}}
            for key, value in (
                ("keytally.organization_id", "org_a"),
                ("keytally.api_key_id", "key_1"),
                ("gen_ai.operation.name", "chat"),
                ("gen_ai.request.model", "gpt"),
                ("gen_ai.prompt", "x" * 500),
                ("gen_ai.usage.input_tokens", "7"),
            )
        ],
    }
    spans = [{**span, "traceId": f"{number:032x}"} for number in range(42_000)]
    export = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}
    place.write_raw("otel-genai/a.jsonl", export, export)
    assert (place.layout.raw / "otel-genai/a.jsonl").stat().st_size > 2 * 38 * MIB
    assert counts(rolled_up(place, limit_mb=512)) == (3 + 2 * 42_000, 3 + 2 * 42_000, 0)


def keys_of_their_own(place: Place, days: int, keys: int) -> None:
    """As many requests a day, each of another key."""
    line = (
        '{"request_id":"r%d","timestamp":"2025-11-%02dT12:00:00Z","organization_id":"org_%d","api_key_id":"key_%d_%d",'
        '"cost":"0.25","model":"m","input_tokens":10,"output_tokens":5}\n'
    )
    for day in range(1, days + 1):
        with (place.layout.raw / f"{day}.jsonl").open("w") as file:
            file.writelines(
                line % (number, day, number % 1000, number * 7919 % keys, day % 2) for number in range(keys)
            )


@pytest.mark.slow
@pytest.mark.parametrize("limit_mb", [150, 256, 512])
def test_any_number_of_keys_stays_within_the_limit(place: Place, limit_mb: int) -> None:
    keys_of_their_own(place, days=5, keys=500_000)
    assert counts(rolled_up(place, limit_mb)) == (2_500_000, 2_500_000, 0)


def group_of(limit: int) -> Path | None:
    """A new control group that may use so many bytes; None where none can be made here."""
    for top, name in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", top, f"keytally-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        return group
    return None


@pytest.mark.slow
def test_a_run_with_the_default_limit_is_not_killed_in_a_group_of_600_mb(place: Place) -> None:
    group = group_of(600 * MB)
    if group is None:
        pytest.skip("no control group can be made here")
    keys_of_their_own(place, days=2, keys=500_000)
    join = f"open('{group}/cgroup.procs', 'w').write('0')\n"
    environment = {**os.environ, "KEYTALLY_DATA": str(place.layout.root), "KEYTALLY_THREADS": "2"}
    environment.pop("KEYTALLY_MEMORY_LIMIT", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", join + SCRIPT],
            env=environment,
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        group.rmdir()
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.splitlines()[-1]) * 1024 <= 600 * MB
