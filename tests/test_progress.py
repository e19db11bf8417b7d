"""Progress that is shown elsewhere: seldom, in order, and never in the way of what it is about."""

from __future__ import annotations

import errno
import os
import threading
import time
from datetime import date

import pytest

from pipeline import progress
from pipeline.contract.wording import in_a_line
from pipeline.errors import HeldBack, KeytallyError
from pipeline.progress import shown
from pipeline.report import Report
from pipeline.run_page import MOST_LISTED, failure_report, report_of

STAGES = ["taking in", "rolling up days"]
FEW = 100


def test_each_stage_is_an_equal_part_and_none_goes_beyond_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(STAGES, lambda percent, text: None) as watch:
        watch.begin("taking in", 4_000_000)
        watch.advance(1_000_000)
        assert watch.so_far() == (12.5, "Taking in: 1.0 MB of 4.0 MB (part 1 of 2)")
        watch.advance(9_000_000)
        assert watch.so_far() == (50.0, "Taking in: 4.0 MB of 4.0 MB (part 1 of 2)")
        watch.begin("rolling up days", 31)
        watch.advance(12)
        assert watch.so_far() == (69.4, "Rolling up days: 12 of 31 (part 2 of 2)")


def test_a_million_steps_are_shown_a_few_times_and_the_end_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.05)
    told: list[tuple[float, str]] = []
    first = threading.Event()

    def show(percent: float, text: str) -> None:
        told.append((percent, text))
        first.set()

    begun = time.monotonic()
    with shown(STAGES, show) as watch:
        watch.begin("rolling up days", 10**6)
        for _ in range(20_000):
            watch.advance(1)
        assert first.wait(10)
    seconds = time.monotonic() - begun
    assert 2 <= len(told) <= seconds / 0.05 + 2
    assert told[-1] == (100.0, "Done.")
    assert [percent for percent, _ in told] == sorted(percent for percent, _ in told)


def test_a_run_in_which_there_is_nothing_to_do_shows_nothing() -> None:
    told: list[str] = []
    with shown(STAGES, lambda percent, text: told.append(text)) as watch:
        watch.begin("taking in", 0)
        watch.begin("rolling up days", 0)
    assert told == []


def test_a_run_that_fails_is_shown_where_it_stopped() -> None:
    told: list[tuple[float, str]] = []
    with pytest.raises(ZeroDivisionError), shown(STAGES, lambda *so_far: told.append(so_far)) as watch:
        watch.begin("rolling up days", 4)
        watch.advance(1)
        raise ZeroDivisionError
    assert told == [(62.5, "Stopped here; the run's message says why. Rolling up days: 1 of 4 (part 2 of 2)")]


def test_what_hangs_or_fails_while_it_shows_holds_no_run_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LAST_WORD_SECONDS", 0.1)
    let_go = threading.Event()

    def hang(percent: float, text: str) -> None:
        let_go.wait(30)
        raise ConnectionError

    begun = time.monotonic()
    with shown(STAGES, hang) as watch:
        watch.begin("rolling up days", 1)
    assert time.monotonic() - begun < 10
    let_go.set()


def test_a_report_takes_names_of_files_for_what_they_are_and_stays_short() -> None:
    hostile = "a`b`<img src=x>|*\n# c.jsonl"
    files = [HeldBack(hostile, "corrupt: <b>"), *(HeldBack(f"{n}.jsonl", "truncated") for n in range(FEW))]
    text = report_of(Report(held_back=files, lost_days=[date(2025, 11, 1)], version=3))
    assert "- `` a`b`<img src=x>|*\N{REPLACEMENT CHARACTER}# c.jsonl `` is held back: corrupt: \\<b\\>" in text
    assert f"- and {FEW + 2 - MOST_LISTED} more" in text
    assert len(text.splitlines()) < 4 * MOST_LISTED


@pytest.mark.parametrize(
    ("error", "first_step"),
    [
        (KeytallyError("raw/ is not there; mount it"), "- Do what this says."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "- See to the disk (room, rights, what is in the way)"),
    ],
)
def test_what_to_do_after_a_failure_begins_with_what_comes_first(error: Exception, first_step: str) -> None:
    failed, steps = failure_report(error, "keytally rollup").split("### What to do next\n\n")
    assert in_a_line(str(error)) in failed
    assert steps.startswith(first_step)
    assert "- Run it again: `keytally rollup`" in steps
