"""A run whose output is closed, full or read by nobody still does its work; a run that is stopped says so."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from pipeline.contract import seam
from pipeline.contract.last_run import read_failure
from pipeline.terminal import json_text, keep_logs_visible
from tests.conftest import Place, request

ROOT = Path(__file__).parent.parent
KEYTALLY = [sys.executable, "-m", "cli"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "data")
    place.write_raw("a.jsonl", request())
    return place


def environment(place: Place) -> dict[str, str]:
    return {**os.environ, "KEYTALLY_DATA": str(place.layout.root), "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("with_finding", [False, True])
def test_a_run_onto_a_full_disk_keeps_its_exit_code(place: Place, form: tuple[str, ...], with_finding: bool) -> None:
    if with_finding:
        place.write_raw("b.parquet", b"no Parquet")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*KEYTALLY, "rollup", *form],
            env=environment(place),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == (3 if with_finding else 0)
    told = "keytally: the output could not be written (No space left on device); what the command did is done"
    assert done.stderr.splitlines()[-1] == told
    if form:
        assert done.stderr.splitlines() == [told]
    assert place.publication().version == 1


@pytest.mark.parametrize(("command", "lines"), [("rollup", 1), ("status", 0)])
def test_a_command_whose_reader_has_gone_does_its_work(place: Place, command: str, lines: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*KEYTALLY, command, "--json"],
        env=environment(place),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, len(done.stderr.splitlines())) == (0, lines)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_run_without_its_streams_does_its_work(place: Place, closed: str) -> None:
    place.write_raw("b.jsonl", request(2), "not JSON")
    done = subprocess.run(
        ["sh", "-c", f"exec {' '.join(KEYTALLY)} rollup {closed}"], env=environment(place), check=False
    )
    assert done.returncode == 0
    assert place.usage()["org_a", "2025-11-10"][0] == 2
    assert place.rejected("b.jsonl") == [(2, "not_json")]


def test_a_run_that_a_person_stops_is_interrupted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))

    def stop(at: str) -> None:
        if at == "commit":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(seam, "at_step", stop)
    done = CliRunner().invoke(cli.main, ["rollup"])
    assert done.exit_code == 1
    assert done.stderr.startswith("keytally: interrupted; ")
    noted = read_failure(place.store)
    assert noted is not None
    assert noted.why.startswith("interrupted; ")
    monkeypatch.undo()
    assert not place.roll_up().has_findings


def test_a_statement_of_duckdb_that_a_signal_ends_is_interrupted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))

    def end(*_: object, **__: object) -> None:
        raise RuntimeError("Query interrupted")  # as DuckDB says it

    monkeypatch.setattr("pipeline.update.roll_up", end)
    done = CliRunner().invoke(cli.main, ["rollup", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"].startswith("interrupted; ")


def test_json_of_odd_names_holds_no_character_that_steers_a_terminal() -> None:
    name = "\x1b[2J\x9b\u202e\x7f\udc80\U000e0001é\n"
    text = json_text({"file": name})
    assert text.isprintable()
    assert "é" in text
    assert json.loads(text) == {"file": name}


def test_a_log_message_with_an_odd_name_is_one_visible_line(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogRecordFactory()
    keep_logs_visible()
    handler = logging.StreamHandler()
    logger = logging.getLogger("pipeline.odd")
    logger.addHandler(handler)
    try:
        logger.warning("raw/%s is ignored", "x\x1b[2J\nVersion 99 is published.")
    finally:
        logger.removeHandler(handler)
        logging.setLogRecordFactory(before)
    assert capfd.readouterr().err == "raw/x\\x1b[2J\\nVersion 99 is published. is ignored\n"
