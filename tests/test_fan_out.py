"""Steps that do not need each other, on several cores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from pipeline.fan_out import ENGINE_BYTES, fan_out
from pipeline.run import Run, start_run
from tests.conftest import Place, lines, request

TOGETHER = threading.Barrier(2, timeout=30)


@pytest.fixture
def run(place: Place) -> Iterator[Run]:
    with start_run(place.settings, lambda: place.now) as started:
        yield started


def test_results_come_in_the_order_of_the_items(run: Run) -> None:
    def slowest_first(_: Run, number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        return number

    assert list(fan_out(run, slowest_first, range(20))) == list(range(20))


def test_a_slow_step_holds_up_no_other(run: Run) -> None:
    others = threading.Semaphore(0)

    def waiting_for_all_others(_: Run, number: int) -> int:
        if number:
            others.release()
        else:
            assert all(others.acquire(timeout=30) for _ in range(49))
        return number

    assert list(fan_out(run, waiting_for_all_others, range(50))) == list(range(50))


def test_each_step_under_way_has_an_engine_and_a_scratch_of_its_own(run: Run) -> None:
    def meet(part: Run, _: int) -> tuple[int, str, int]:
        TOGETHER.wait()
        return id(part.engine), part.scratch.name, part.settings.memory_limit

    first, second = fan_out(run, meet, [1, 2])
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[2] + second[2] <= run.settings.memory_limit


def test_engines_share_the_memory_there_is(place: Place) -> None:
    small = Place(place.layout.root, KEYTALLY_MEMORY_LIMIT=f"{2 * ENGINE_BYTES // 10**6 - 1}MB")
    with start_run(small.settings, lambda: small.now) as run:
        assert list(fan_out(run, lambda part, _: part is run, [1, 2])) == [True, True]


def test_an_error_ends_what_is_under_way_and_what_has_not_begun(run: Run) -> None:
    begun: list[int] = []
    finished: list[int] = []

    def step(part: Run, number: int) -> None:
        begun.append(number)
        if number < 2:
            TOGETHER.wait()
        if number == 0:
            raise OSError("no space left")
        for _ in range(5_000):  # a large file, which tells how far it is
            part.watch.advance(1)
            part.watch.count(1)
            time.sleep(0.001)
        finished.append(number)

    with pytest.raises(OSError, match="no space left"):
        list(fan_out(run, step, range(20)))
    assert not finished
    assert sorted(begun) in ([0, 1], [0, 1, 2])  # the thread that raised may have taken one more


def test_a_step_sees_the_context_of_its_caller(run: Run) -> None:
    flow_run: ContextVar[str] = ContextVar("flow_run")
    flow_run.set("nightly")
    assert list(fan_out(run, lambda *_: flow_run.get(), [1, 2, 3])) == ["nightly"] * 3


def test_many_files_are_rolled_up_as_one_would_be(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    records = [
        request(number % 70, cost=f"0.{number % 7 + 1}", timestamp=f"2025-11-{number % 9 + 1:02}T10:00:00Z")
        for number in range(100)
    ]
    other = Place(tmp_path_factory.mktemp("alone"), KEYTALLY_THREADS="1")
    other.write_raw("all.jsonl", lines(*records))
    for number in range(10):
        place.write_raw(f"{number}.jsonl", lines(*records[number * 10 : number * 10 + 10]))
    place.write_raw("bad.jsonl.gz", b"\x1f\x8b no gzip")
    report = place.roll_up()
    assert [held.file for held in report.held_back] == ["bad.jsonl.gz"]
    assert [entry.file for entry in report.ingested] == [f"{number}.jsonl" for number in range(10)]
    other.roll_up()
    assert place.published("api_key_day").equals(other.published("api_key_day"))
