"""What is superseded goes after its grace; what is needed, or not finished by a living run, never."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import pipeline.sweep
from pipeline.prices import read_prices
from pipeline.run import start_run
from pipeline.sweep import GRACE
from tests.conftest import Place, request
from tests.pricing import PricedPlace, book_of, priced

KINDS = ("events", "daily", "rejected", "rollups")


@pytest.fixture
def now_place(place: Place) -> Place:
    """At the real moment: the files a run leaves behind are dated by the machine's clock."""
    place.now = datetime.now(UTC)
    return place


def files_of(place: Place) -> dict[str, set[str]]:
    return {kind: {name for name in place.artifacts() if name.startswith(kind)} for kind in KINDS}


def supersede_everything(place: Place) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """All files before and those that came with a new content of the only raw file."""
    place.write_raw("a.jsonl", request(1), "bad")
    place.roll_up()
    old = files_of(place)
    place.write_raw("a.jsonl", request(1), "bad", request(2), "bad")
    place.roll_up()
    return old, {kind: files - old[kind] for kind, files in files_of(place).items()}


def test_superseded_files_stay_for_their_grace_and_then_go(now_place: Place) -> None:
    place = now_place
    old, new = supersede_everything(place)
    assert all(old[kind] and new[kind] for kind in KINDS)
    superseded_at = place.now

    place.now = superseded_at + GRACE - timedelta(minutes=1)
    place.write_raw("b.jsonl", request(3, timestamp="2024-01-01T00:00:00Z"))
    place.roll_up()
    assert all(old[kind] <= files_of(place)[kind] for kind in KINDS)

    place.now = superseded_at + GRACE + timedelta(minutes=1)
    place.write_raw("c.jsonl", request(4, timestamp="2024-02-01T00:00:00Z"))
    place.roll_up()
    left = files_of(place)
    assert not any(old[kind] & left[kind] for kind in KINDS)
    for kind in ("events", "daily", "rejected"):
        assert new[kind] <= left[kind]
    assert place.published("organization_day").requests.sum() == 4


def test_what_is_needed_stays_however_old_it_is(now_place: Place) -> None:
    place = now_place
    place.write_raw("a.jsonl", request(1), "bad")
    gone = place.write_raw("gone.jsonl", request(2))
    place.roll_up()
    gone.unlink()
    for week in range(1, 4):
        place.now += GRACE + timedelta(days=1)
        place.write_raw(f"{week}.jsonl", request(week, timestamp=f"2024-01-0{week}T00:00:00Z"))
        place.roll_up()
    place.write_raw("late.jsonl", request(3))
    place.roll_up()
    assert place.published("organization_day").requests.sum() == 6
    assert place.rejected("a.jsonl") == [(2, "not_json")]
    report = place.backfill("2024-01-01", "2025-12-31")
    assert (report.held_back, len(report.days)) == ([], 4)


def test_books_and_rates_go_after_their_grace_once_no_day_names_them(tmp_path: Path) -> None:
    place = PricedPlace(tmp_path / "data")
    place.now = datetime.now(UTC)
    later = iter(range(1, 9))

    def books_after(grace: timedelta) -> set[str]:
        place.now += grace
        place.write_raw(f"{len(place.artifacts())}.jsonl", request(9, timestamp=f"2024-01-0{next(later)}T00:00:00Z"))
        place.roll_up()
        return {path.name for path in place.layout.books.iterdir()}

    def named() -> set[str | None]:
        pricings = [entry.pricing for entry in place.ledger().days.values() if entry.pricing]
        return {name for pricing in pricings for name in (pricing.book, pricing.rates)}

    place.write_book("gpt,2025-01-01,1,1,USD")
    place.write_rates("2025-11-10,USD,CHF,0.8", "2025-11-11,USD,CHF,0.8")
    place.write_raw("a.jsonl", priced(1), priced(2, at="2025-11-11T12:00:00Z"))
    place.roll_up()
    old = named()
    place.write_book("gpt,2025-01-01,2,1,USD")
    place.write_rates("2025-11-10,USD,CHF,0.9", "2025-11-11,USD,CHF,0.8")
    place.roll_up()
    of_both_days = named()
    place.write_book("gpt,2025-01-01,2,1,USD", "gpt,2025-11-11,3,1,USD")
    place.roll_up()
    newest = named()
    assert len(of_both_days & newest) == 2, "one day is as it was"
    with start_run(place.settings, lambda: place.now) as run:
        tried = read_prices(run.store, "CHF", book_of("gpt,2025-01-01,5,1,CHF").encode())
        tried.keep(run.store, run.scratch)
        place.write_book("gpt,2025-01-01,2,1,USD", "gpt,2025-11-11,3,1,USD", "nobody-asks-for-it,2025-01-01,1,1,CHF")
        in_force = read_prices(run.store, "CHF")
        in_force.keep(run.store, run.scratch)
    assert books_after(GRACE - timedelta(minutes=1)) == old | newest | {tried.kept["prices"], in_force.kept["prices"]}
    assert books_after(timedelta(minutes=2)) == newest | {in_force.kept["prices"]}
    assert books_after(3 * GRACE) == newest | {in_force.kept["prices"]}


def test_a_book_that_is_named_again_is_not_taken_by_a_sweep_that_found_it_named_by_nobody(tmp_path: Path) -> None:
    place = PricedPlace(tmp_path / "data")
    place.write_book("gpt,2025-01-01,1,1,CHF")
    place.write_raw("a.jsonl", priced(1))
    place.roll_up()
    (found,) = place.store.list(place.layout.books)
    place.write_raw("b.jsonl", priced(2))
    place.roll_up()
    place.store.delete_found(found)
    assert found.path.exists()


def test_sweeping_writes_no_version(now_place: Place) -> None:
    place = now_place
    supersede_everything(place)
    place.now += GRACE + timedelta(days=1)
    place.write_raw("b.jsonl", request(3))
    version = place.roll_up().version
    assert (version, place.publication().version, place.roll_up().version) == (3, 3, 3)


def test_a_file_of_a_refused_commit_goes_after_its_grace(now_place: Place) -> None:
    place = now_place
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    (published,) = (f.path for (r, _), f in place.publication().files.items() if r == "organization_day")
    orphan = (place.layout.rollups / published).with_name("part-orphan.parquet")
    orphan.write_bytes(b"never committed")
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    assert orphan.exists()
    place.now += GRACE + timedelta(days=1)
    place.write_raw("c.jsonl", request(3))
    place.roll_up()
    assert not orphan.exists()


def test_what_cannot_be_swept_is_no_failure_of_a_published_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pipeline.sweep, "_sweep", refuse)
    place.write_raw("a.jsonl", request(1))
    assert place.roll_up().version == 1
    assert "Permission denied" in caplog.text


# --- scratch ---------------------------------------------------------------------------------------------------------

STAY_IN_A_RUN = """
import sys, time
from datetime import UTC, datetime
sys.path.insert(0, sys.argv[1])
from pipeline.contract.settings import Settings
from pipeline.run import start_run

settings = Settings.from_environment({"KEYTALLY_DATA": sys.argv[2], "KEYTALLY_MEMORY_LIMIT": "128MB"})
with start_run(settings, lambda: datetime(2025, 11, 15, tzinfo=UTC)) as run:
    (run.scratch / "half.parquet").write_bytes(b"half")
    print(run.scratch, flush=True)
    time.sleep(60)
"""


def test_the_scratch_of_a_killed_run_is_removed_and_that_of_a_living_one_is_not(place: Place) -> None:
    command = [sys.executable, "-c", STAY_IN_A_RUN, str(Path(__file__).parent.parent), str(place.layout.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        scratch = Path(process.stdout.readline().strip())
        try:
            place.roll_up()
            assert (scratch / "half.parquet").exists(), "its run is alive"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert scratch.exists()
    place.roll_up()
    assert list(place.layout.scratch.iterdir()) == []


def test_runs_side_by_side_in_one_process_keep_their_scratch(place: Place) -> None:
    with start_run(place.settings, lambda: place.now) as one, start_run(place.settings, lambda: place.now) as other:
        assert one.scratch != other.scratch
        assert one.scratch.exists()
        assert other.scratch.exists()
    assert list(place.layout.scratch.iterdir()) == []


def test_a_scratch_taken_for_abandoned_before_it_was_locked_is_made_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.mkdir
    taken: list[Path] = []

    def mkdir_and_lose_it_once(path: Path, *args: object, **kwargs: object) -> None:
        honest(path, *args, **kwargs)  # type: ignore[arg-type]
        if path.parent == place.layout.scratch and not taken:
            taken.append(path)
            path.rmdir()  # as another run does that starts at this moment

    monkeypatch.setattr(Path, "mkdir", mkdir_and_lose_it_once)
    with start_run(place.settings, lambda: place.now) as run:
        assert run.scratch.exists()
        assert [run.scratch] != taken
    assert taken
