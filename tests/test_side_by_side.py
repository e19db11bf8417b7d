"""Two runs at once end as if they had run one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli
import pipeline.contract.seam
import pipeline.update
from tests.conftest import Place, request
from tests.crashing import assert_nothing_unfinished, shown, stepping

COMMAND = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import cli, pipeline.contract.seam, pipeline.update
meeting, me, both = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def meet(name):
    if name == "commit":  # of the first attempt: both are about to commit after the same version
        pipeline.contract.seam.at_step = None
        (meeting / me).touch()
        until = time.monotonic() + 30
        while len(list(meeting.iterdir())) < both and time.monotonic() < until:
            time.sleep(0.005)

pipeline.contract.seam.at_step = meet
cli.main(sys.argv[5:])
"""

ROLLUP = ("rollup", "--json")
BACKFILL = ("backfill", "--from", "2025-10-01", "--to", "2025-11-30", "--json")


def command(place: Place, meeting: Path, me: str, *arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", COMMAND, str(Path(__file__).parent.parent), str(meeting), me, "2", *arguments]
    environment = {
        **os.environ,
        "KEYTALLY_DATA": str(place.layout.root),
        "KEYTALLY_THREADS": "1",
        "KEYTALLY_MEMORY_LIMIT": "128MB",
    }
    return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows_of(place: Place) -> dict[str, Any]:
    """Every published row but the restatements, whose versions depend on the order; and the ledger."""
    seen = shown(place)
    rows = {key: rows for key, rows in seen["rows"].items() if key[0] != "restatement"}
    return {"rows": rows, "days": seen["days"], "files": {file[:1] + file[2:] for file in seen["files"]}}


@pytest.mark.parametrize(
    ("published", "late_day", "commands"),
    [
        pytest.param(False, "2025-11-10", (ROLLUP, ROLLUP), id="first publication, same day"),
        pytest.param(False, "2025-09-10", (ROLLUP, BACKFILL), id="first publication, another month"),
        pytest.param(True, "2025-10-10", (ROLLUP, ROLLUP), id="another day"),
        pytest.param(True, "2025-11-10", (ROLLUP, BACKFILL), id="same day"),
        pytest.param(True, "2025-09-10", (ROLLUP, ROLLUP), id="a month not there yet"),
    ],
)
def test_two_commands_at_once_end_as_one_after_the_other(
    tmp_path: Path, commands: tuple[tuple[str, ...], ...], late_day: str, published: bool
) -> None:
    """Both reach their commit after the same version, having seen different files."""
    place = Place(tmp_path / "data")
    if published:
        place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-10-10T00:00:00Z"))
        place.roll_up()
    place.write_raw("b.jsonl", request(3), request(4))
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    first = command(place, meeting, "first", *commands[0])
    while not (meeting / "first").exists():  # it has read raw/, and waits at its commit
        assert first.poll() is None, first.communicate()
    place.write_raw("c.jsonl", request(4), request(5, timestamp=f"{late_day}T00:00:00Z"))
    second = command(place, meeting, "second", *commands[1])
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    refused = [errors for _, errors in outputs if "another run published first; recomputing" in errors]
    assert len(refused) == 1, "one of the two was refused, and recomputed"
    assert {json.loads(output)["version"] for output, _ in outputs} <= {1, 2, 3}
    place.now = datetime.now(UTC)  # as the commands' clock
    place.roll_up()

    alone = Place(tmp_path / "alone")
    for path in sorted(place.layout.raw.iterdir()):
        alone.write_raw(path.name, path.read_bytes())
    alone.roll_up()
    assert rows_of(place) == rows_of(alone)
    assert_nothing_unfinished(place)


def test_a_run_that_always_comes_second_gives_up_in_one_line_and_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(pipeline.update, "COMMIT_ATTEMPTS", 3)
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)
    monkeypatch.setattr("pipeline.update.time.sleep", lambda _: None)
    place.write_raw("a.jsonl", request(1))
    others = 0

    def come_first(name: str) -> None:
        nonlocal others
        if name == "commit":
            others += 1
            pipeline.contract.seam.at_step = None
            place.write_raw(f"other{others}.jsonl", request(100 + others))
            place.roll_up()
            place.write_raw(f"more{others}.jsonl", request(200 + others))  # so that there is something left to do
            pipeline.contract.seam.at_step = come_first

    place.write_raw("mine.jsonl", request(2))
    with stepping(come_first):
        done = CliRunner().invoke(cli.main, ["rollup"])
    assert done.exit_code == 1
    assert [record.getMessage()[-11:] for record in caplog.records if "another run" in record.getMessage()] == [
        "(attempt 2)",
        "(attempt 3)",
    ]
    assert (
        done.stderr.strip().splitlines()[-1] == "keytally: another run published after version 2; run the command again"
    )
    place.roll_up()
    assert place.usage()["org_a", "2025-11-10"][0] == 2 + 2 * others
    assert_nothing_unfinished(place)
