"""What a run reads and does is what was asked of it: counted, so that no busy machine makes a difference.

How fast it is stands in docs/performance.md; the last test here only sees whether that has changed beyond doubt.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import healing
from pipeline.contract import seam
from pipeline.engine import Engine
from pipeline.raw import RawPass
from tests.conftest import Place, lines, request

ROOT = Path(__file__).parent.parent
STATEMENTS = ("run", "query", "arrow", "stream", "copy", "name_statement")


@dataclass
class Work:
    """What runs did: raw files opened and bytes read of them, statements, and the files that those were given."""

    raw_files: int = 0
    raw_bytes: int = 0
    statements: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def days_of(self, folder: str) -> set[str]:
        """The days whose files below a folder of the data root were read."""
        return {path.parent.name.removeprefix("day=") for path in self.files if folder in path.parts}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Counts what is done meanwhile."""
    work = Work()

    def told(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Engine, *arguments: Any, **parameters: Any) -> Any:
            work.statements.append(str(arguments[0]))
            return method(self, *arguments, **parameters)

        return call

    def name_files(self: Engine, table: str, files: Any, schema: Any, **how: Any) -> None:
        work.files.extend(files)
        named(self, table, files, schema, **how)

    def open_raw(self: RawPass, raw_file: Any, *arguments: Any, **how: Any) -> None:
        opened(self, raw_file, *arguments, **how)
        work.raw_files += 1
        on_read = self._on_read

        def read(count: int) -> None:
            work.raw_bytes += count
            on_read(count)

        self._on_read = read

    named, opened = Engine.name_files, RawPass.__init__
    with monkeypatch.context() as patched:
        for name in STATEMENTS:
            patched.setattr(Engine, name, told(getattr(Engine, name)))
        patched.setattr(Engine, "name_files", name_files)
        patched.setattr(RawPass, "__init__", open_raw)
        yield work


def a_request(number: int) -> dict[str, Any]:
    day = f"2025-{10 + number % 2}-{1 + number % 14:02}"
    return request(number, timestamp=f"{day}T12:00:00Z", organization_id=f"org_{number % 5}")


@pytest.fixture
def known(place: Place) -> Place:
    """Forty known files, with requests on the first fourteen days of October and of November."""
    for file in range(40):
        place.write_raw(f"{file:02}.jsonl", *(a_request(10 * file + number) for number in range(10)))
    place.roll_up()
    return place


def test_a_run_with_nothing_new_opens_no_file(known: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as work:
        assert not known.roll_up().published
    assert (work.raw_files, work.raw_bytes, work.statements, work.files) == (0, 0, [], [])


def test_what_a_run_has_just_made_it_does_not_read_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    honest = healing.verify
    monkeypatch.setattr(
        "pipeline.healing.verify",
        lambda store, artifact, **how: (read.append(artifact), honest(store, artifact, **how)),
    )
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    assert not read
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    of_a, of_b = (place.ledger().files[file].take_in.events[0].path_in(place.layout) for file in ("a.jsonl", "b.jsonl"))
    assert of_a in read
    assert of_b not in read


def test_a_late_file_has_its_own_bytes_and_its_own_days_read(known: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    late = known.write_raw("late.jsonl", request(9_001, timestamp="2025-10-05T12:00:00Z"))
    with counted(monkeypatch) as work:
        assert known.roll_up().published
    assert (work.raw_files, work.raw_bytes) == (1, late.stat().st_size)
    assert work.days_of("events") == {"2025-10-05"}
    assert {day[:7] for day in work.days_of("daily")} == {"2025-10"}


def test_a_late_file_takes_as_many_statements_however_many_files_are_known(
    known: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for number in range(2):
        for file in range(20 * number):
            known.write_raw(f"more-{file}.jsonl", a_request(50_000 + file))
        known.roll_up()
        known.write_raw(f"late-{number}.jsonl", request(9_001 + number, timestamp="2025-10-05T12:00:00Z"))
        with counted(monkeypatch) as work:
            assert known.roll_up().published
        taken.append(work.statements)
    assert taken[0] == taken[1]
    assert len(taken[0]) < 40


def test_a_backfill_of_a_day_reads_that_day_alone(known: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as work:
        assert not known.backfill("2025-11-04", "2025-11-04").published
    assert work.raw_files == 0
    assert work.days_of("events") == {"2025-11-04"}
    assert {day[:7] for day in work.days_of("daily")} == {"2025-11"}


def test_a_first_take_in_reads_each_byte_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # None as long as another: such a one is hashed first, since it may be a copy.
    files = [place.write_raw(f"{n}.jsonl", *(a_request(100 * n + m) for m in range(50 + n))) for n in range(3)]
    with counted(monkeypatch) as work:
        place.roll_up()
    assert (work.raw_files, work.raw_bytes) == (3, sum(file.stat().st_size for file in files))


def test_a_hundred_times_the_requests_are_synced_as_often(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for number, many in enumerate((10, 1_000)):
        place.write_raw(f"{number}.jsonl", *(request(10_000 * number + n) for n in range(many)))
        steps: list[str] = []
        monkeypatch.setattr(seam, "at_step", steps.append)
        place.roll_up()
        monkeypatch.setattr(seam, "at_step", None)
        counts.append(steps.count("sync a file or folder"))
    assert counts[1] <= counts[0]  # the first also made the folders


def cpu_of(*command: str, **environment: str) -> float:
    """CPU seconds of a command, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_first_take_in_costs_no_multiple_of_what_it_did(place: Place, tmp_path: Path) -> None:
    """Beside the same job by hand in DuckDB, which takes a quarter of it or more: see docs/performance.md."""
    random.seed(7)
    for day in range(1, 4):
        records = (
            request(
                100_000 * day + number,
                timestamp=f"2025-11-{day:02}T12:00:00Z",
                organization_id=f"org_{number % 1_000:04}",
                api_key_id=f"key_{number % 3_000:05}",
                cost=f"{random.random():.12f}",
                synapses=number,
                neurons=number / 10,
                model=f"model-{number % 7}",
                endpoint="/v1/chat/completions",
                status=200,
                input_tokens=number,
                output_tokens=number,
            )
            for number in range(50_000)
        )
        place.write_raw(f"{day}.jsonl", lines(*records, "{"))
    by_hand = (sys.executable, str(ROOT / "bench/rollup/peers/in_duckdb.py"))
    theirs = cpu_of(*by_hand, str(place.layout.raw), str(tmp_path / "by_hand.parquet"))
    ours = cpu_of(sys.executable, str(ROOT / "cli.py"), "rollup", KEYTALLY_DATA=str(place.layout.root))
    assert ours < 8 * theirs
