"""The command as its user meets it: what it prints, what it returns, what it says when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result

from cli import main
from pipeline.run_page import what_failed

ROOT = Path(__file__).parent.parent
Keytally = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root that the command is pointed at."""
    for name in list(os.environ):
        if name.startswith("KEYTALLY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KEYTALLY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KEYTALLY_THREADS", "2")
    (tmp_path / "data/raw").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def keytally(data: Path) -> Keytally:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    return run


def line(number: int = 1, **changes: Any) -> str:
    record = {
        "request_id": f"req_{number}",
        "timestamp": "2025-11-15T10:00:00Z",
        "organization_id": "org_a",
        "api_key_id": "key_1",
        "cost": "0.25",
    }
    return json.dumps({**record, **changes}) + "\n"


def test_rollup_says_in_json_what_it_did(data: Path, keytally: Keytally) -> None:
    (data / "raw/a.jsonl").write_text(line(1) + line(1, cost="0.5") + line(2, api_key_id=None) + "{\n")
    (data / "raw/b.jsonl").write_text((data / "raw/a.jsonl").read_text())
    (data / "raw/c.jsonl.gz").write_bytes(b"no gzip")
    result = keytally("rollup", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 3
    assert list(report) == ["ingested", "replaced", "held_back", "days", "months", "disagreeing", "version", "seconds"]
    assert report["ingested"] == [
        {"file": "a.jsonl", "lines": 4, "accepted": 3, "quarantined": 1},
        {"file": "b.jsonl", "lines": 4, "accepted": 0, "quarantined": 0, "same_as": "a.jsonl"},
    ]
    assert [held["file"] for held in report["held_back"]] == ["c.jsonl.gz"]
    day = {"day": "2025-11-15", "accepted": 3, "counted": 1, "duplicate": 1, "conflicting": 1, "session": 1}
    assert (report["days"], report["months"], report["replaced"]) == ([day], ["2025-11"], [])
    assert report["version"] == 1


def test_rollup_with_nothing_new_says_so_and_changes_nothing(data: Path, keytally: Keytally) -> None:
    (data / "raw/a.jsonl").write_text(line())
    keytally("rollup")
    again = json.loads(keytally("rollup", "--json").stdout)
    assert again.pop("version") == 1
    assert again.pop("seconds") < 60
    assert list(again.values()) == [[], [], [], [], []]
    assert "Nothing new. Version 1 is up to date." in keytally("rollup").output


def test_an_engine_that_runs_out_of_memory_says_which_limit_to_raise(
    keytally: Keytally, monkeypatch: pytest.MonkeyPatch
) -> None:
    with duckdb.connect() as small:
        small.execute("set memory_limit = '2MB'; set temp_directory = ''")
        with pytest.raises(duckdb.OutOfMemoryException) as refused:
            small.execute("select count(distinct range) from range(10000000)").fetchall()

    def run_out(*_: object, **__: object) -> None:
        raise refused.value

    monkeypatch.setattr("pipeline.update.roll_up", run_out)
    (sentence,) = keytally("rollup").stderr.splitlines()
    assert "raise KEYTALLY_MEMORY_LIMIT" in sentence


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room on that disk"),
        (errno.EROFS, "rights"),
        (errno.ENOENT, "should be there"),
        (errno.EIO, "again is safe"),
    ],
)
def test_an_accident_says_what_to_do_about_it(
    keytally: Keytally, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "from", None, "where it goes")

    monkeypatch.setattr("pipeline.update.roll_up", fail)
    (sentence,) = keytally("rollup").stderr.splitlines()
    assert f"from to where it goes: {os.strerror(number)}" in sentence
    assert advice in sentence


def test_what_the_table_says_of_a_full_disk_is_a_sentence(keytally: Keytally, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "Generic LocalFileSystem error\n\x1b[31m↳\x1b[0m Unable to copy data to file\n"
        "\x1b[31m↳\x1b[0m No space left on device (os error 28)"
    )

    def fail(*_: object, **__: object) -> None:
        raise OSError(said)

    monkeypatch.setattr("pipeline.update.roll_up", fail)
    sentence = "Generic LocalFileSystem error: Unable to copy data to file: No space left on device (os error 28)"
    assert keytally("rollup").stderr == (
        f"keytally: {sentence}; make room on the disk of the data root, then run the command again\n"
    )
    assert what_failed(OSError(said)).startswith(f"OSError: {sentence}. See to the disk")


def test_where_nothing_is_published_nothing_is_said_to_be(data: Path, keytally: Keytally) -> None:
    assert keytally("rollup").output == f"Nothing is published yet. Put request logs below {data / 'raw'}.\n"
    (data / "raw/a.jsonl.gz").write_bytes(b"no gzip")
    result = keytally("rollup")
    assert result.stdout == "Nothing is published yet.\n"
    assert result.stderr == (
        "HELD BACK a.jsonl.gz: corrupt: not gzip\n"
        "Put right what the reason names, or deliver the file again under its name: the next run tries it again.\n"
    )
    (data / "raw/b.jsonl").write_text(line())
    assert "Everything else is published" in keytally("rollup").stderr
    assert keytally("rollup").stdout == "Nothing else is new: version 1 stands.\n"


def test_what_no_run_can_mend_alone_is_said_so(data: Path, keytally: Keytally) -> None:
    raw = data / "raw/a.jsonl"
    raw.write_text(line())
    keytally("rollup")
    raw.rename(data / "kept")
    for events in (data / "events").rglob("*.parquet"):
        events.unlink()
    result = keytally("backfill", "--from", "2025-11-01", "--to", "2025-11-30")
    assert "HELD BACK a.jsonl: damaged: " in result.stderr
    assert "tries again" not in result.stderr
    assert "put its raw file back below raw/ as it was, then run 'keytally backfill'" in result.stderr
    (data / "kept").rename(raw)
    assert keytally("backfill", "--from", "2025-11-01", "--to", "2025-11-30").exit_code == 0


def test_quarantined_lines_alone_are_no_failure(data: Path, keytally: Keytally) -> None:
    (data / "raw/a.jsonl").write_text("rubbish\n" + "".join(line(number) for number in range(9)))
    assert keytally("rollup").exit_code == 0
    (data / "raw/b.jsonl").write_text("rubbish\n")
    nothing = keytally("rollup")
    assert nothing.exit_code == 3, "but a log of which nothing counts is a finding"
    assert "ODD LOG b.jsonl: of 1 line none counts.\nNext: 'keytally quarantine' says why" in nothing.stderr
    (data / "raw/c.jsonl").write_text("rubbish\n" * 10 + "".join(line(number) for number in range(10, 18)))
    many = keytally("rollup")
    assert many.exit_code == 3, "and one of which more than a tenth does not count"
    assert "ODD LOG c.jsonl: 10 of 18 lines do not count: more than 10 %.\nNext: 'keytally quarantine'" in many.stderr


def test_a_file_that_lost_requests_is_a_finding(data: Path, keytally: Keytally) -> None:
    (data / "raw/a.jsonl").write_text(line(1) + line(2))
    assert keytally("rollup").exit_code == 0
    (data / "raw/a.jsonl").write_text(line(1))
    result = keytally("rollup", "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert report["replaced"] == [{"file": "a.jsonl", "accepted_before": 2, "accepted_after": 1}]
    assert report["lowered"] == [
        {
            "file": "a.jsonl",
            "day": "2025-11-15",
            "organization_id": "org_a",
            "requests_before": 2,
            "requests_after": 1,
        }
    ]


def test_a_log_rotated_by_rename_is_no_finding_and_loses_nothing(data: Path, keytally: Keytally) -> None:
    log = data / "raw/app.jsonl"
    log.write_text(line(1) + line(2))
    keytally("rollup")
    log.rename(data / "raw/app-2025-11-15.jsonl")
    log.write_text(line(3))
    result = keytally("rollup", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0, report
    assert report["days"][0]["counted"] == 3
    assert report["replaced"] == []


def test_backfill_lists_every_day_of_the_range_and_publishes_nothing_new(data: Path, keytally: Keytally) -> None:
    days = [f"2025-11-{day:02d}" for day in (10, 12, 20)]
    (data / "raw/a.jsonl").write_text("".join(line(1, timestamp=f"{day}T10:00:00Z") for day in days))
    keytally("rollup")
    report = json.loads(keytally("backfill", "--from", "2025-11-01", "--to", "2025-11-15", "--json").stdout)
    assert [day["day"] for day in report["days"]] == days[:2]
    assert (report["months"], report["version"]) == (["2025-11"], 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("backfill",),
        ("backfill", "--from", "2025-11-02", "--to", "2025-11-01"),
        ("backfill", "--from", "2025-02-30", "--to", "2025-03-01"),
        ("backfill", "--from", "2019-12-31", "--to", "2020-01-01"),
        ("serve", "--port", "99999"),
        ("keys", "create"),
        ("keys", "create", "--org", "a", "--expires", "tomorrow"),
        ("keys", "create", "--org", "a", "--expires", "2026-01-01T00:00:00"),
        ("nonsense",),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_right(keytally: Keytally, arguments: tuple[str, ...]) -> None:
    result = keytally(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KEYTALLY_DATA", "s3://"),
        ("KEYTALLY_DATA", "s3://Bucket/prefix"),
        ("KEYTALLY_DATA", "s3://bucket/../prefix"),
        ("KEYTALLY_DATA", "gs://bucket/prefix"),
        ("KEYTALLY_CACHE", "s3://bucket/prefix"),
        ("KEYTALLY_CACHE_SIZE", "999KB"),
        ("KEYTALLY_DASK", "127.0.0.1:8786"),
        ("KEYTALLY_DASK_LOST", "wait"),
        ("KEYTALLY_CURRENCY", "Franken"),
        ("KEYTALLY_SCHEDULE", "daily"),
        ("KEYTALLY_RATE_LIMIT", "100"),
        ("KEYTALLY_RATE_LIMIT_STORE", "localhost"),
        ("KEYTALLY_REFRESH_SECONDS", "-1"),
        ("KEYTALLY_MEMORY_LIMIT", "lots"),
        ("KEYTALLY_MEMORY_LIMIT", "63MB"),
        ("KEYTALLY_ANSWER_CACHE", "999KB"),
        ("KEYTALLY_METRICS", "9100"),
        ("KEYTALLY_METRICS", "localhost:65536"),
        ("KEYTALLY_METRICS", "http://localhost:9100"),
        ("KEYTALLY_THREADS", "0"),
    ],
)
def test_a_wrong_setting_stops_at_once_with_one_line_that_names_it(
    keytally: Keytally, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    for command in (("rollup",), ("status",), ("serve", "--port", "0"), ("keys", "list")):
        result = keytally(*command)
        assert result.exit_code == 2
        (sentence,) = result.stderr.splitlines()
        assert variable in sentence
        assert value in sentence


def test_a_failure_is_one_document_in_json_too(data: Path, keytally: Keytally) -> None:
    (data / "raw/a.jsonl").write_text(line())
    keytally("rollup")
    next((data / "rollups/_delta_log").glob("*1.json")).write_text("{")
    result = keytally("rollup", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout).keys() == {"error"}
    assert "rollups/_delta_log" in result.stderr


def test_a_key_is_shown_once_and_stored_as_its_hash(data: Path, keytally: Keytally) -> None:
    created = json.loads(keytally("keys", "create", "--org", "org_a", "--name", "bill", "--json").stdout)
    assert list(created) == ["id", "key", "organization_id", "name", "created_at", "expires_at", "operator"]
    assert created["key"].startswith("kt_")
    listed = keytally("keys", "list", "--json").stdout
    assert json.loads(listed)[0]["id"] == created["id"]
    for file in data.iterdir():
        assert not file.is_file() or created["key"].encode() not in file.read_bytes()
    assert created["key"] not in listed
    assert (data / "keys.sqlite").stat().st_mode & 0o777 == 0o600


def test_many_keys_come_as_one_json_line_each(data: Path, keytally: Keytally) -> None:
    (data / "orgs").write_text("org_a\norg_b\n\n")
    lines = keytally("keys", "create", "--orgs", str(data / "orgs"), "--json").stdout.splitlines()
    assert [json.loads(key)["organization_id"] for key in lines] == ["org_a", "org_b"]


def test_organizations_may_begin_with_a_byte_order_mark(data: Path, keytally: Keytally) -> None:
    (data / "orgs").write_bytes(b"\xef\xbb\xbforg_a\r\norg_b\r\n")
    lines = keytally("keys", "create", "--orgs", str(data / "orgs"), "--json").stdout.splitlines()
    assert [json.loads(key)["organization_id"] for key in lines] == ["org_a", "org_b"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("org_a\norg_b\n".encode("utf-16"), "the file is UTF-16; convert it to UTF-8."),
        ("org_a\norg_b\n".encode("utf-16-be"), "the file is UTF-16; convert it to UTF-8."),
        (b"org_a\norg_\xe4\n", "line 2 is not UTF-8; save the file as UTF-8."),
    ],
)
def test_organizations_in_another_encoding_are_refused_in_a_sentence(
    data: Path, keytally: Keytally, content: bytes, sentence: str
) -> None:
    (data / "orgs").write_bytes(content)
    result = keytally("keys", "create", "--orgs", str(data / "orgs"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Invalid value for --orgs: {sentence}" in result.stderr
    assert not (data / "keys.sqlite").exists()


def test_a_bad_organization_creates_no_key_at_all(data: Path, keytally: Keytally) -> None:
    (data / "orgs").write_text("org_a\nno good\n")
    result = keytally("keys", "create", "--orgs", str(data / "orgs"))
    assert result.exit_code == 1
    assert "no good" in result.stderr
    assert not (data / "keys.sqlite").exists()


def test_revoking_an_unknown_key_fails_in_one_sentence(keytally: Keytally) -> None:
    keytally("keys", "create", "--org", "org_a")
    result = keytally("keys", "revoke", "key_none")
    assert result.exit_code == 1
    assert "key_none" in result.stderr


def test_the_quarantine_shows_file_line_reason_and_text(data: Path, keytally: Keytally) -> None:
    (data / "raw/b.jsonl").write_bytes(
        b"\xef\xbb\xbf" + line(1).encode() + b"\n" + b'{"a":\xff}\n' + b"x" * 3_000 + b"\n"
    )
    (data / "raw/gone.jsonl").write_text("gone\n")
    keytally("rollup")
    (data / "raw/gone.jsonl").unlink()
    assert json.loads(keytally("quarantine", "--json").stdout) == [
        {"file": "b.jsonl", "line": 3, "reason": "invalid_utf8", "text": '{"a":\ufffd}'},
        {"file": "b.jsonl", "line": 4, "reason": "not_json", "text": "x" * 2_000},
        {"file": "gone.jsonl", "line": 1, "reason": "not_json", "text": None},
    ]
    assert "2 not_json; 1 invalid_utf8." in keytally("quarantine").output


def test_nothing_in_a_log_can_steer_the_terminal(data: Path, keytally: Keytally) -> None:
    (data / "raw/a\x1b[2J\nHELD BACK x.jsonl").write_text("\x1b]0;owned\x07\n")
    keytally("rollup")
    for command in ("quarantine", "status"):
        output = keytally(command).output
        assert "\x1b" not in output
        assert "\nHELD BACK x" not in output


def test_status_shows_what_waits_what_is_held_back_and_what_is_ignored(data: Path, keytally: Keytally) -> None:
    (data / "raw/a.jsonl").write_text(line())
    (data / "raw/bad.jsonl.gz").write_bytes(b"\x1f\x8b")
    (data / "raw/notes.txt").write_text("?")
    keytally("rollup")
    (data / "raw/new.jsonl").write_text(line(2))
    shown = json.loads(keytally("status", "--json").stdout)
    assert (shown["version"], shown["counted"], shown["first_day"]) == (1, 1, "2025-11-15")
    assert [waiting["file"] for waiting in shown["waiting"]] == ["new.jsonl"]
    assert [held["file"] for held in shown["held_back"]] == ["bad.jsonl.gz"]
    assert shown["ignored"] == ["notes.txt"]
    text = keytally("status").output
    for word in ("new.jsonl", "bad.jsonl.gz", "notes.txt", "2025-11-15"):
        assert word in text


def test_status_shows_the_days_that_have_findings(data: Path, keytally: Keytally) -> None:
    (data / "raw/a.jsonl").write_text(line())
    keytally("rollup")
    assert "FINDING" not in keytally("status").output
    (data / "raw/a.jsonl").unlink()
    (data / "raw/b.jsonl").write_text(line(2))
    for events in (data / "events").rglob("*.parquet"):
        events.unlink()
    assert keytally("rollup").exit_code == 3
    assert json.loads(keytally("status", "--json").stdout)["findings"] == ["2025-11-15"]
    assert "FINDING     2025-11-15" in keytally("status").output


def test_a_line_from_the_future_counts_once_its_moment_has_come(
    data: Path, keytally: Keytally, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime(2025, 11, 15, 10, tzinfo=UTC)
    (data / "raw/a.jsonl").write_text(line(1, timestamp="2025-11-15T10:05:00.000001Z"))
    monkeypatch.setattr("cli.utc_now", lambda: moment)
    assert json.loads(keytally("rollup", "--json").stdout)["days"] == []
    monkeypatch.setattr("cli.utc_now", lambda: moment + timedelta(microseconds=1))
    assert json.loads(keytally("rollup", "--json").stdout)["days"][0]["counted"] == 1


def test_help_shows_every_command() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for command in ("demo", "rollup", "backfill", "serve", "keys", "quarantine", "reconcile", "status"):
        assert f"  {command} " in text


def test_the_demo_prints_commands_that_can_be_copied_as_they_are(tmp_path: Path) -> None:
    keytally = tmp_path / "a folder" / "keytally"
    keytally.parent.mkdir()
    keytally.write_text(f"#!{sys.executable}\nimport cli\ncli.main()\n")
    keytally.chmod(0o755)
    code = (
        "import subprocess, sys, cli, serving.server\n"
        "def serve(*_, on_started):\n"
        "    on_started('http://127.0.0.1:8000')\n"
        "    sys.stdout.flush()\n"
        "    for line in open(sys.argv[1]).read().splitlines():\n"
        "        if line.startswith('  KEYTALLY_DATA='):\n"
        "            subprocess.run(line, shell=True, check=True)\n"
        "serving.server.serve = serve\n"
        f"sys.argv = [{str(keytally)!r}, {str(tmp_path / 'told')!r}]\n"
        "cli.main(['demo'])"
    )
    with (tmp_path / "told").open("w") as told:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=told, check=True)
    said = (tmp_path / "told").read_text().partition("Stop with Ctrl-C.")[2]
    assert "Version     2, published" in said
    assert "for every organization. It is not shown again" in said


def test_the_demo_answers_by_the_curl_line_it_prints_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "demo", "--port", "0", "--json"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "KEYTALLY_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    try:
        shown = json.loads(process.stdout.readline())
        curl, _, header, url = shlex.split(shown["curl"])
        name, _, value = header.partition(": ")
        with urllib.request.urlopen(urllib.request.Request(url, headers={name: value}), timeout=30) as response:
            body = json.loads(response.read(), parse_float=Decimal)
        assert curl == "curl"
        assert body["organization_id"] == shown["organization_id"]
        assert body["period"]["daysWithApiUsage"] == body["period"]["daysInMonth"]
        assert body["summary"]["totalApiKeyCost"] > 0
        assert body["summary"]["totalApiKeyCost"] == sum(day["cost"] for day in body["dailyUsage"])
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert list(tmp_path.iterdir()) == []
