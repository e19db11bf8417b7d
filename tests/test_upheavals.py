"""Whatever happens to raw/ between runs, and wherever runs crash: other stories each time this is run."""

from __future__ import annotations

import random

from tests.fuzz.upheavals import live_for


def test_whatever_happens_to_raw_between_runs_and_wherever_they_crash_the_numbers_are_a_plain_recount() -> None:
    assert live_for(seconds=15, seed=random.SystemRandom().randrange(10**9))
