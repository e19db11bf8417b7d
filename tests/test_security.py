"""What lies in a log reaches no file of ours, no path, no query, and forges no line; a reading key is only a hash."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.intake import take_in
from pipeline.raw import list_raw
from pipeline.run import start_run
from tests.conftest import Place, lines, request
from tests.crashing import stepping
from tests.serving.conftest import LiveServer

ROOT = Path(__file__).parent.parent
SECRET = "sk-live-PLANTED0123456789abcdef"
READING_SECRET = "kt_" + "PLANTED" * 6 + "x"


def keytally(place: Place, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    environment = {
        **os.environ,
        "KEYTALLY_DATA": str(place.layout.root),
        "KEYTALLY_THREADS": "2",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        check=False,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def texts_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, and for Parquet all that it holds once unpacked: values, names and statistics."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        parquet = pq.ParquetFile(path)
        yield repr((parquet.read().to_pylist(), parquet.schema_arrow, parquet.metadata.to_dict())).encode()


def ours(place: Place) -> list[Path]:
    """Every file below the data root but those in raw/."""
    return [
        path for path in place.layout.root.rglob("*") if path.is_file() and not path.is_relative_to(place.layout.raw)
    ]


PLANTED: list[dict[str, Any] | str] = [
    request(1, api_key=SECRET, Authorization=f"Bearer {SECRET}", headers={"x-api-key": READING_SECRET}),
    request(2, api_key=SECRET, cost="-1"),
    request(f"!{SECRET}\n", api_key_id="k"),
    {**request(3), "request_id": SECRET * 20},
    {**request(4), "organization_id": f"org {SECRET}"},
    {**request(5), "api_key_id": f"Bearer {SECRET}"},
    {**request(6), "timestamp": SECRET},
    {**request(7), "cost": SECRET},
    {**request(8), "model": SECRET * 20},
    {**request(9), "status": SECRET},
    {**request(10), "timestamp": "2030-01-01T00:00:00Z", "api_key": SECRET},
    f"not json {SECRET}",
    f'["{SECRET}"]',
    f'{{"{SECRET}": NaN}}',
]


def test_key_material_in_a_log_is_copied_nowhere(place: Place) -> None:
    text = lines(*PLANTED) + b"\xff" + SECRET.encode() + b"\n" + SECRET.encode() * 50_000 + b"\n"
    place.write_raw("a.jsonl", text)
    place.write_raw("b.jsonl.gz", gzip.compress(text + b"\n"))
    place.write_raw("many.jsonl", text + lines(*(request(100 + n, api_key=SECRET) for n in range(500))))
    place.write_raw("cut.jsonl.gz", gzip.compress(text)[:-20])
    place.write_raw("bad.parquet", SECRET.encode() * 100)
    rows = pa.table({**{name: [value] * 2 for name, value in request().items()}, "api_key": [SECRET] * 2})
    rows = rows.set_column(4, "cost", pa.array(["0.25", SECRET]))
    written = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({"key": SECRET}), written)
    place.write_raw("c.parquet", written.getvalue())

    said = []
    for arguments in (
        ("rollup",),
        ("rollup", "--json"),
        ("backfill", "--from", "2025-11-01", "--to", "2025-11-30"),
        ("backfill", "--from", "2025-11-01", "--to", "2025-11-30", "--json"),
        ("status",),
        ("status", "--json"),
        ("history", "--from", "2025-11-01", "--to", "2025-11-30"),
        ("reconcile", "--from", "2025-11-01", "--to", "2025-11-30"),
        ("keys", "list"),
    ):
        code, out, err = keytally(place, *arguments)
        said += [out, err]
        assert code in (0, 1, 3), err
    assert place.ledger().files["a.jsonl"].take_in.accepted == 1
    assert not [text for text in said if "PLANTED" in text]
    assert not [
        path for path in ours(place) for text in texts_of(path) if b"PLANTED" in text or b"PLANTED" in bytes(path)
    ]
    assert "PLANTED" in keytally(place, "quarantine")[1], "which shows the raw text on purpose"
    assert not [path for path in ours(place) for text in texts_of(path) if b"PLANTED" in text]


def test_key_material_is_not_even_in_what_lies_in_scratch(place: Place) -> None:
    """Looked at while the run is under way, with less memory than it takes: a killed run leaves its scratch behind."""
    place.settings = replace(place.settings, memory_limit=64 * 10**6, threads=1)
    refused = {"organization_id": f"org {SECRET}", "api_key_id": f"Bearer {SECRET}", "model": SECRET}
    records = [
        request(n, api_key=SECRET, **(refused if n % 4 == 0 else {"model": f"ACCEPTED{n}"})) for n in range(150_000)
    ]
    place.write_raw("a.jsonl", *records)
    waiting = 0
    modes: set[int] = set()

    def look(_: str) -> None:
        nonlocal waiting
        modes.update(scratch.stat().st_mode & 0o777 for scratch in place.layout.scratch.glob("*"))
        for path in place.layout.scratch.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert b"PLANTED" not in content, path
                waiting += content.count(b"ACCEPTED")

    with stepping(look):
        place.roll_up()
    assert place.ledger().files["a.jsonl"].take_in.quarantined == len(records) // 4
    assert modes == {0o700}
    assert waiting > 0


def test_what_the_engine_spills_is_encrypted(place: Place) -> None:
    with start_run(replace(place.settings, memory_limit=64 * 10**6, threads=1), lambda: place.now) as run:
        run.engine._connection.execute(
            "create table texts as select 'ACCEPTED' || repeat(md5(cast(range as varchar)), 4) from range(1000000)"
        )
        spilled = [path.read_bytes() for path in run.scratch.rglob("spilled/*")]
    assert sum(map(len, spilled)) > 10**6
    assert not any(b"ACCEPTED" in content for content in spilled)


def test_a_rejected_line_leaves_nothing_in_the_engine(place: Place) -> None:
    place.write_raw("a.jsonl", *PLANTED, *(request(100 + n) for n in range(100)))
    with start_run(place.settings, lambda: place.now) as run:
        (raw_file,) = list_raw(place.store).files
        assert take_in(run, raw_file).accepted == 101
        assert run.engine._connection.execute("from duckdb_tables()").fetchall() == []


def test_a_reading_key_is_kept_as_its_hash_in_a_file_for_its_owner(place: Place) -> None:
    place.write_raw("a.jsonl", request())
    umask = os.umask(0)
    try:
        created = json.loads(keytally(place, "keys", "create", "--org", "org_a", "--json")[1])
        keytally(place, "rollup")
        with LiveServer(place.settings) as server:
            path = "/v1/analytics/api-keys/daily/org_a"
            assert server.client.get(path, headers={"X-API-Key": created["key"]}).status_code == 200
            modes = [path.stat().st_mode & 0o777 for path in place.layout.root.glob("keys.sqlite*")]
        keytally(place, "keys", "revoke", created["id"])
    finally:
        os.umask(umask)
    assert set(modes) == {0o600}
    assert not [path for path in ours(place) if created["key"].encode() in path.read_bytes()]
    assert created["key"] not in "".join(keytally(place, "keys", "list")[1:])


HOSTILE_NAMES = (
    "it's.jsonl",
    'say "x".jsonl',
    "a'); drop table judged; --.jsonl",
    "new\nline.jsonl",
    "\x1b[31mred.jsonl",
    "*.jsonl",
    "{a,b}.jsonl",
    "[a-z].jsonl",
    "$path.jsonl",
    "%2e%2e%2fup.jsonl",
    "..up.jsonl..jsonl",
    "day=2020-01-01/organization_id=org_b/a.jsonl",
    "native/month=2020-01/a.jsonl",
    "events/a.jsonl",
    "\\..\\..\\up.jsonl",
    "\u202egnp.jsonl",
    "x?y#z.jsonl",
    "\u2028.jsonl",
)


def test_no_file_name_reaches_a_path_or_a_query(place: Place) -> None:
    taken = [name for name in HOSTILE_NAMES if not name.startswith((".", "_"))]
    for number, name in enumerate(taken):
        place.write_raw(name, *[request(number)] * 9, "bad")
        folder, _, last = name.rpartition("/")
        written = io.BytesIO()
        row = {key: [value] for key, value in request(1000 + number).items()}
        pq.write_table(pa.table(row), written)
        place.write_raw(f"{folder}/{last}.parquet".lstrip("/"), written.getvalue())
    before = {path for path in place.layout.root.parent.rglob("*") if not path.is_relative_to(place.layout.root)}
    assert not place.roll_up().has_findings
    assert place.usage().keys() == {("org_a", "2025-11-10")}
    assert place.published("organization_day").requests.sum() == 2 * len(taken)
    assert set(place.ledger().files) == {*taken, *(f"{name}.parquet" for name in taken)}
    name = re.compile(r"[A-Za-z0-9_=.-]+")
    assert all(name.fullmatch(part) for path in ours(place) for part in path.relative_to(place.layout.root).parts)
    after = {path for path in place.layout.root.parent.rglob("*") if not path.is_relative_to(place.layout.root)}
    assert after == before
    for arguments in (("status",), ("quarantine",), ("history", "--from", "2025-11-01", "--to", "2025-11-30")):
        code, out, err = keytally(place, *arguments)
        assert code == 0, err
        assert not set("\x1b\u202e\u2028") & set(out + err)
        assert not any(line.startswith("line.jsonl") for line in out.splitlines())


@pytest.mark.parametrize(
    "organization", ["../../up", "..", ".", "a'b", "a;drop table x", "a b", "a\0b", "a\nb", "", "é"]
)
def test_an_organization_that_could_be_anything_but_a_name_is_quarantined(place: Place, organization: str) -> None:
    place.write_raw("a.jsonl", {**request(1), "organization_id": organization}, request(2))
    place.roll_up()
    assert place.rejected("a.jsonl") == [(1, "bad_id")]
    assert place.usage().keys() == {("org_a", "2025-11-10")}


@pytest.mark.parametrize(
    "text", ["' or 1=1 --", "'); drop table judged; --", "$day", "{day}", "%s", "../../x", "\u202e"]
)
def test_what_a_request_is_named_is_a_value_and_nothing_else(place: Place, text: str) -> None:
    fields = {"request_id": text, "model": text, "endpoint": text}
    place.write_raw("a.jsonl", request(1, **fields), request(2))
    place.write_raw("b.jsonl", request(1, **fields, cost="9"))
    place.roll_up()
    assert {event["model"] for event in place.events("a.jsonl")} == {text, None}
    assert place.published("organization_day").requests.sum() == 2


def test_what_a_held_back_file_says_of_itself_is_one_visible_line(place: Place) -> None:
    table = pa.table({name: [value] for name, value in request().items() if name != "cost"})
    table = table.append_column("co\nst\x1b[2J", pa.array(["1"]))
    written = io.BytesIO()
    pq.write_table(table, written)
    place.write_raw("x\nHELD BACK y.parquet", written.getvalue())
    code, out, err = keytally(place, "rollup")
    assert code == 3
    assert [line.startswith("HELD BACK x") for line in err.splitlines() if "HELD BACK" in line] == [True]
    assert "\x1b" not in out + err


def test_what_a_command_fails_with_is_one_visible_line(tmp_path: Path) -> None:
    folder = tmp_path / "no folder\nkeytally: all is well\x1b[2J"
    place = Place(folder / "data")
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    for arguments in (("rollup",), ("rollup", "--json")):
        code, out, err = keytally(place, *arguments)
        assert code == 1
        assert [line for line in err.splitlines() if "all is well" in line] == err.splitlines()
        assert "\x1b" not in out + err


def test_a_data_root_of_odd_characters_works_and_is_told_in_one_line(tmp_path: Path) -> None:
    place = Place(tmp_path / "it's a [root]*; drop table x" / "data")
    place.write_raw("a.jsonl", request())
    assert not place.roll_up().has_findings
    assert place.usage().keys() == {("org_a", "2025-11-10")}
    with LiveServer(place.settings) as server:
        key = server.create_key("org_a")
        assert server.daily(key).json()["summary"]["totalApiKeyRequests"] == 1


def test_only_the_three_answers_to_a_path_exist_whatever_it_tries(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2, organization_id="org_b"))
    place.roll_up()
    with LiveServer(place.settings) as server:
        key = server.create_key("org_a")
        for tried in (
            "org_b",
            "..%2forg_b",
            "org_a%00",
            "org_a'",
            "org_a%0a",
            "%2e%2e",
            "org_a%20",
            "ORG_A",
            "org_a%2f..%2forg_b",
        ):
            answer = server.client.get(f"/v1/analytics/api-keys/daily/{tried}", headers={"X-API-Key": key.key})
            assert answer.status_code in (403, 404), tried
            assert tried not in answer.text
