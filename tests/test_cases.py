"""Every folder below cases/ is a promise: raw files in, published rows and quarantined lines out.

A case reads without Python:

- `case.toml`: `risk`, what could go wrong, in a sentence; then one `[[run]]` after another. A run has its moment `now`
  (default 2025-11-15T10:30:00Z) and first changes raw/: `put` (a file of the case under its own or another name, or
  made from it: `from`, `compress`, `as`, `types`, `row_group_size`, `crlf`, `byte_order_mark`, `empty`,
  `truncate` = bytes cut off the end, `flip_bit` = number of the bit), `rename`, `delete`. What it must say:
  `findings` (default false: exit 0), `held_back` (file = first word of the reason), `days` (the days it rolled up),
  `publishes` (default true).
- raw files, in which `<hex c3 28>` stands for these bytes and `<pad to 1048576>` for x until the line is that long.
- `formats` in a run: SQL files of the case that are put into formats/ of the data root; `prices`: of its price book and
  rates, those that are put into the data root.
- `expected_rows.csv`, `expected_quarantine.csv`, `expected_days.csv`, and where they say more, `expected_keys.csv`,
  `expected_files.csv` and `expected_events.csv` (the accepted requests): what the newest version holds after the last
  run.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tomllib
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Place

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

CASES = sorted(path.parent for path in (Path(__file__).parent / "cases").glob("*/case.toml"))
OPTIONAL = ("expected_keys.csv", "expected_files.csv", "expected_events.csv")
UTC_TIMESTAMP = re.compile(r"timestamp (ms|us|ns)( UTC)?")
DECIMAL = re.compile(r"decimal\((\d+), (\d+)\)")
SIMPLE_TYPES = {
    "string": pa.string(),
    "binary": pa.binary(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "double": pa.float64(),
    "float": pa.float32(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "boolean": pa.bool_(),
    "list": pa.list_(pa.string()),
    "date": pa.date32(),
}


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder: Path, place: Place) -> None:
    case = tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))
    assert case["risk"].strip()
    # The logs are short, and made of what is odd.
    place.settings = replace(place.settings, rejected_limit=Decimal(100))
    version = 0
    for step in case["run"]:
        _change_raw(folder, place, step)
        place.now = step.get("now", place.now)
        report = place.roll_up()
        assert report.has_findings is step.get("findings", False), report.as_json()
        held_back = {held.file: held.reason.partition(":")[0] for held in report.held_back}
        assert held_back == step.get("held_back", {})
        if "days" in step:
            assert [str(entry.day) for entry in report.days] == step["days"]
        assert (report.version > version) is step.get("publishes", True)
        version = report.version
        _assert_conserved(place, version)

    for rollup, expected in (
        ("organization_day", "expected_rows.csv"),
        ("api_key_day", "expected_keys.csv"),
        ("day", "expected_days.csv"),
    ):
        _assert_rows(folder / expected, place.published(rollup).to_dict("records") if version else [])
    files = place.ledger().files if version else {}
    quarantined = [
        {"file": file, "line": line, "reason": reason}
        for file in sorted(files)
        if files[file].same_as is None
        for line, reason in place.rejected(file)
    ]
    _assert_rows(folder / "expected_quarantine.csv", quarantined)
    _assert_rows(folder / "expected_files.csv", place.published("file").to_dict("records") if version else [])
    events = [row for file in files if files[file].same_as is None for row in place.events(file)]
    _assert_rows(folder / "expected_events.csv", events)

    again = place.roll_up()
    assert (again.version, again.ingested, again.days) == (version, [], []), "a rerun changed something"


def _change_raw(folder: Path, place: Place, step: dict[str, Any]) -> None:
    for old, new in step.get("rename", {}).items():
        (place.layout.raw / new).parent.mkdir(parents=True, exist_ok=True)
        (place.layout.raw / old).rename(place.layout.raw / new)
    for file in step.get("delete", ()):
        (place.layout.raw / file).unlink()
    for name in step.get("formats", ()):
        place.layout.formats.mkdir(exist_ok=True)
        (place.layout.formats / name).write_bytes((folder / name).read_bytes())
    for name in step.get("prices", ()):
        (place.layout.root / name).write_bytes((folder / name).read_bytes())
    for put in step.get("put", ()):
        source = folder / put.get("from", put["file"])
        place.write_raw(put["file"], _made_from(b"" if put.get("empty") else source.read_bytes(), put))


def _made_from(text: bytes, put: dict[str, Any]) -> bytes:
    content = b"".join(_expanded(line) for line in text.splitlines(keepends=True))
    if put.get("crlf"):
        content = content.replace(b"\n", b"\r\n")
    if put.get("byte_order_mark"):
        content = b"\xef\xbb\xbf" + content
    if put.get("no_last_line_end"):
        content = content.removesuffix(b"\n")
    if put.get("as") == "parquet":
        content = _as_parquet(content, put.get("types", {}), put.get("row_group_size", 1000))
    if put.get("compress") == "gz":
        content = gzip.compress(content, mtime=0)
    if put.get("compress") == "zst":
        content = zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})
    if "truncate" in put:
        content = content[: -put["truncate"]]
    if "flip_bit" in put:
        position, bit = divmod(put["flip_bit"], 8)
        content = content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
    return content


def _expanded(line: bytes) -> bytes:
    line = re.sub(rb"<hex ([0-9a-f ]+)>", lambda match: bytes.fromhex(match[1].decode()), line)
    if pad := re.search(rb"<pad to (\d+)>", line):
        missing = int(pad[1]) - len(line.rstrip(b"\n")) + len(pad[0])
        line = line.replace(pad[0], b"x" * missing)
    return line


def _as_parquet(text: bytes, types: dict[str, str], row_group_size: int) -> bytes:
    records = [json.loads(line) for line in text.splitlines()]
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: _column([record.get(name) for record in records], types.get(name, "")) for name in names}
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written, row_group_size=row_group_size)
    return written.getvalue()


def _column(values: list[Any], kind: str) -> pa.Array:
    if not kind:
        return pa.array(values)
    if match := UTC_TIMESTAMP.fullmatch(kind):  # the values are counts of the unit since 1970
        return pa.array(values, pa.timestamp(match[1], "UTC" if match[2] else None))
    if match := DECIMAL.fullmatch(kind):
        exact = [None if value is None else Decimal(value) for value in values]
        return pa.array(exact, pa.decimal128(int(match[1]), int(match[2])))
    if kind in ("double", "float"):
        return pa.array([None if value is None else float(value) for value in values], SIMPLE_TYPES[kind])
    if kind == "binary":
        return pa.array([None if value is None else value.encode("latin-1") for value in values], pa.binary())
    return pa.array(values, SIMPLE_TYPES[kind])


def _assert_rows(expected: Path, got: list[dict[str, Any]]) -> None:
    """Each row of the expected file, and no other; columns it does not name are not compared."""
    if not expected.exists():
        assert not (got and expected.name not in OPTIONAL), got
        return
    with expected.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        rows = sorted(tuple(row[name] for name in names) for row in reader)
    assert sorted(tuple(_text(row[name]) for name in names) for row in got) == rows, expected.name


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"
    return str(value)


def _assert_conserved(place: Place, version: int) -> None:
    if not version:
        return
    ledger = place.ledger()
    for entry in ledger.files.values():
        assert entry.take_in.lines == entry.take_in.accepted + entry.take_in.quarantined + entry.take_in.skipped
        assert entry.take_in.accepted == sum(event.accepted for event in entry.take_in.events)
    for day in ledger.days.values():
        assert day.accepted == day.counted + day.duplicate + day.session
        assert 0 <= day.conflicting <= day.duplicate
    daily, monthly = place.published("organization_day"), place.published("organization_month")
    assert daily.requests.sum() == monthly.requests.sum() == sum(day.counted for day in ledger.days.values())
    assert sum(daily.cost, Decimal(0)) == sum(monthly.cost, Decimal(0))


def test_every_case_says_what_is_expected() -> None:
    assert len(CASES) > 25
    for folder in CASES:
        assert (folder / "expected_days.csv").exists() or (folder / "expected_quarantine.csv").exists(), folder.name
        case = tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))
        assert all(isinstance(step.get("now", datetime.min), datetime) for step in case["run"])
