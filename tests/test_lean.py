"""What a process of ours does without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.lean import leave_pandas_out
from tests.conftest import Place, request

SCRIPT = """
import sys
from cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
assert not sys.modules.get("pandas"), "pandas is loaded"
import pandas  # whoever asks for it has it
"""


@pytest.mark.parametrize(
    "command",
    [
        ("rollup",),
        ("status",),
        ("usage", "--org", "org_a", "--month", "2025-11", "--by", "model"),
        ("quarantine",),
        ("history", "--from", "2025-11-01", "--to", "2025-11-30"),
        ("reconcile", "--from", "2025-11-01", "--to", "2025-11-30"),
        ("backfill", "--from", "2025-11-01", "--to", "2025-11-30"),
    ],
    ids=lambda command: command[0],
)
def test_no_command_loads_pandas(place: Place, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    place.write_raw("a.jsonl", request(1), *(request(n, model="x" * 200) for n in range(3, 100)), "bad")
    place.write_raw("b.jsonl", request(1))
    place.roll_up()
    place.write_raw("c.jsonl", request(2, cost="9"))
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_run_with_nothing_new_does_not_load_duckdb(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    script = SCRIPT.replace(
        'sys.modules.get("pandas"), "pandas is loaded"', '"duckdb" in sys.modules, "DuckDB is loaded"'
    )
    for command in ("status", "rollup"):
        done = subprocess.run(
            [sys.executable, "-c", script, command],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_where_pandas_is_loaded_it_stays(place: Place) -> None:
    assert "pandas" in sys.modules
    leave_pandas_out()
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    assert len(place.published("organization_day")) == 1
