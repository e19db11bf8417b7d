"""A day too large for one step is rolled up in buckets, to the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.buckets import LINES_A_BUCKET, HashRange, Repeats, _buckets, _parts
from pipeline.engine import Engine
from pipeline.errors import CheckFailed
from pipeline.intake import EventFile
from pipeline.rollup import FILES_AT_ONCE, DayInputs, statement_for
from pipeline.run import Run, start_run
from pipeline.update import PLAIN_STEPS, backfill, roll_up
from tests.conftest import Place, Record, request
from tests.pricing import PricedPlace, priced

DAY = date(2025, 11, 10)


def traffic(seed: int) -> list[Record]:
    """Requests of which many stand more than once, in the same words or in others."""
    pick = random.Random(seed)
    return [
        request(
            pick.randrange(120),
            organization_id=f"org_{pick.randrange(3)}",
            api_key_id=pick.choice(["key_1", "key_2", None]),
            model=pick.choice(["m", None]),
            cost=f"0.{pick.randrange(1, 99):012}",
            status=pick.choice([200, 500]),
            input_tokens=2**63 - 1 - pick.randrange(2),
            timestamp=f"2025-11-{pick.choice([9, 10, 10, 10])}T12:00:{pick.randrange(60):02}Z",
        )
        for _ in range(300)
    ]


@pytest.mark.parametrize("lines", [30, 100, 150])
def test_a_large_day_is_rolled_up_to_the_same_bytes(
    place: Place, in_buckets: Callable[[int], None], lines: int
) -> None:
    for file in range(5):
        place.write_raw(f"{file}.jsonl", *traffic(file))
    whole = place.roll_up()
    files = place.artifacts()
    in_buckets(lines)
    with start_run(place.settings, lambda: place.now) as run:
        again = backfill(run, date(2025, 11, 1), date(2025, 11, 30))
    assert again.days == whole.days
    assert whole.days[-1].conflicting > 0
    assert not again.published
    assert place.artifacts().keys() == files.keys()


def name_of(step: Callable[..., object]) -> str:
    return str(getattr(step, "func", step).__name__)


def test_what_lies_between_the_steps_goes_and_nobody_else_s_does(
    place: Place, in_buckets: Callable[[int], None]
) -> None:
    in_buckets(10)
    place.write_raw("a.jsonl", *traffic(1))
    another_run_s = place.layout.buckets / f"{'0' * 32}-{DAY}-part-3-sums-{'1' * 32}.parquet"
    another_run_s.parent.mkdir(parents=True)
    another_run_s.touch()
    place.roll_up()
    assert list(place.layout.buckets.iterdir()) == [another_run_s]


def test_two_runs_over_the_same_large_day_do_each_other_no_harm(
    place: Place, in_buckets: Callable[[int], None]
) -> None:
    in_buckets(150)
    honest = PLAIN_STEPS.fan_out
    meanwhile: list[bool] = []

    def with_another_run_behind_each_step(run: Run, step: Callable[..., object], items: list[object]) -> object:
        results = list(honest(run, step, items))
        meanwhile.append(place.backfill(str(DAY), str(DAY)).published)
        return iter(results)

    place.write_raw("a.jsonl", *traffic(1))
    place.roll_up()
    with start_run(place.settings, lambda: place.now) as run:
        steps = PLAIN_STEPS._replace(fan_out=with_another_run_behind_each_step)
        assert not backfill(run, DAY, DAY, steps).published
    assert len(meanwhile) >= 5
    assert not any(meanwhile)


@pytest.mark.parametrize("fails", ["_sum", "_find_repeated", "_hand_over", "_take_off", "_merge"])
def test_a_step_that_fails_leaves_nothing_between_the_steps(
    place: Place, in_buckets: Callable[[int], None], fails: str
) -> None:
    in_buckets(10)
    honest = PLAIN_STEPS.fan_out

    def failing_once_it_is_done(run: Run, step: Callable[..., object], items: list[object]) -> object:
        results = list(honest(run, step, items))
        if name_of(step) == fails:
            raise OSError("no space left")
        return iter(results)

    place.write_raw("a.jsonl", *traffic(1))
    with start_run(place.settings, lambda: place.now) as run, pytest.raises(OSError, match="no space left"):
        backfill(run, DAY, DAY, PLAIN_STEPS._replace(fan_out=failing_once_it_is_done))
    assert list(place.layout.buckets.iterdir()) == []


def test_a_day_of_one_organization_is_spread_evenly(place: Place, in_buckets: Callable[[int], None]) -> None:
    in_buckets(100)
    honest = PLAIN_STEPS.fan_out
    rows: list[int] = []

    def weighing(run: Run, step: Callable[..., object], items: list[HashRange]) -> object:
        if name_of(step) == "_find_repeated":
            files = run.layout.buckets.glob("*-hashes-*")
            hashes = [hashed for file in files for hashed in pq.read_table(file)["identity_hash"].to_pylist()]
            rows.extend(sum(one.first <= hashed <= one.last for hashed in hashes) for one in items)
        return honest(run, step, items)

    place.write_raw("a.jsonl", *(request(number) for number in range(800)))
    with start_run(place.settings, lambda: place.now) as run:
        backfill(run, DAY, DAY, PLAIN_STEPS._replace(fan_out=weighing))
    assert (len(rows), sum(rows)) == (8, 800)
    assert max(rows) <= 2 * 100


def test_what_is_read_by_shares_lies_in_their_order(place: Place, in_buckets: Callable[[int], None]) -> None:
    """Else each share would be the whole file: no number would change, and every step would read the day."""
    in_buckets(40)
    honest = PLAIN_STEPS.fan_out
    orders = {"hashes": ["identity_hash"], "repeated": ["part", "identity_hash"], "copies": ["identity_hash"]}
    seen: dict[str, bool] = {}  # a file's name, and whether it is in order

    def looking(run: Run, step: Callable[..., object], items: list[object]) -> object:
        results = list(honest(run, step, items))
        for what, by in orders.items():
            for file in run.layout.buckets.glob(f"*-{what}-*"):
                rows = pq.read_table(file, columns=by)
                seen[file.name] = rows.equals(rows.sort_by([(column, "ascending") for column in by]))
        return iter(results)

    for file in range(3):
        place.write_raw(f"{file}.jsonl", *traffic(file))
    with start_run(place.settings, lambda: place.now) as run:
        roll_up(run, PLAIN_STEPS._replace(fan_out=looking))
    assert all(any(f"-{what}-" in name for name in seen) for what in orders)
    assert all(seen.values()), seen


def test_a_part_of_a_day_is_neither_many_lines_nor_many_files() -> None:
    small = [EventFile(DAY, 1, f"{number}.parquet") for number in range(2 * FILES_AT_ONCE + 1)]
    large = [EventFile(DAY, lines, f"large-{lines}.parquet") for lines in (LINES_A_BUCKET - 1, 2 * LINES_A_BUCKET + 1)]
    events = [*small, *large, EventFile(DAY, 2, "last.parquet")]
    parts = _parts(DayInputs(DAY, "", events, sum(event.accepted for event in events)))
    assert {event for part in parts for event in part.events} == set(events)
    assert [part.number for part in parts] == list(range(3 + 1 + 3))
    for part in parts:
        assert len(part.events) <= FILES_AT_ONCE
        assert sum(min(event.accepted, part.end) - part.first for event in part.events) <= LINES_A_BUCKET
    cuts = [(part.first, part.end) for part in parts if part.events == [large[1]]]
    assert cuts == [(number * LINES_A_BUCKET, (number + 1) * LINES_A_BUCKET) for number in range(3)]


@pytest.mark.parametrize("lines", [1, LINES_A_BUCKET, LINES_A_BUCKET + 1, 10**11])
def test_each_hash_is_in_one_bucket(lines: int) -> None:
    buckets = _buckets(lines)
    assert (buckets[0].first, buckets[-1].last) == (0, 2**64 - 1)
    assert all(one.last + 1 == other.first for one, other in pairwise(buckets))
    assert len(buckets) == -(-lines // LINES_A_BUCKET)


@pytest.mark.parametrize(
    ("loses", "law"),
    [
        ("_sum", "accepted lines are in the day's (events|buckets)"),
        ("_find_repeated", "accepted lines are in the day's buckets"),
        ("_hand_over", "lines that may be copies were looked at"),
        ("_take_off", "lines that may be copies were looked at"),
    ],
)
def test_a_result_that_is_lost_is_found_out(
    place: Place, in_buckets: Callable[[int], None], loses: str, law: str
) -> None:
    in_buckets(40)
    honest = PLAIN_STEPS.fan_out

    def losing_one(run: Run, step: Callable[..., object], items: list[object]) -> object:
        results = list(honest(run, step, items[1:] if name_of(step) == loses else items))
        if loses == "_find_repeated" == name_of(step):
            results.insert(0, (Repeats(None, 0), 0))
        return iter(results)

    place.write_raw("a.jsonl", *traffic(1))
    with start_run(place.settings, lambda: place.now) as run, pytest.raises(CheckFailed, match=law):
        backfill(run, DAY, DAY, PLAIN_STEPS._replace(fan_out=losing_one))
    assert not place.layout.daily.exists()
    assert list(place.store.list(place.layout.buckets)) == []


def test_a_step_looks_at_its_own_share_alone(
    place: Place, in_buckets: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bucket or part has nothing to do with would change no number, and hold the whole day."""
    in_buckets(40)
    held: dict[str, list[int]] = {"identity_hashes": [], "repeated_hashes": [], "events": []}
    honest = Engine.name_files

    def counting(engine: Engine, table: str, *of: Any, **how: Any) -> None:
        honest(engine, table, *of, **how)
        if table in held:
            ((lines,),) = engine._connection.sql(f"select count(*) from {table}").fetchall()
            held[table].append(lines)

    place.write_raw("a.jsonl", *(request(number // 2) for number in range(400)))
    monkeypatch.setattr(Engine, "name_files", counting)
    place.roll_up()
    assert sum(held["identity_hashes"]) == 400
    assert 200 <= sum(held["repeated_hashes"]) <= 400
    assert max(max(lines) for lines in held.values()) <= 2 * 40


@pytest.mark.parametrize("statement", ["roll_up_priced_days", "roll_up_rounded_days"])
def test_parts_that_ask_for_other_models_are_priced_as_one(
    tmp_path: Path, in_buckets: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    place = PricedPlace(tmp_path / "data")
    price = "1" if statement == "roll_up_priced_days" else "0.0000007"
    place.write_book(f"a,2025-01-01,{price},{price},0.5,,0.7,0.9,CHF", f"b,2025-01-01,{price},2,0.5,,0.3,0.4,CHF")
    for file, model in enumerate(["a", "b", "unknown"]):
        records = [
            priced(number // 2, model, input_tokens=7 + number, output_tokens=number, cached=number)
            for number in range(40)
        ]
        place.write_raw(f"{file}.jsonl", *records)
    whole = place.roll_up()
    files = place.artifacts()
    by: set[str] = set()

    def noting(run: Run) -> Any:
        found = statement_for(run)
        by.add(found[0])
        return found

    monkeypatch.setattr("pipeline.buckets.statement_for", noting)
    in_buckets(40)
    again = place.backfill("2025-11-01", "2025-11-30")
    assert again.days == whole.days
    assert not again.published
    assert place.artifacts().keys() == files.keys()
    assert statement in by


def test_sessions_whose_copies_lie_beside_requests_that_ask_for_units_do_no_harm(
    tmp_path: Path, in_buckets: Callable[[int], None]
) -> None:
    """A part of sessions alone does not say how many of their tokens are to be made into units; a bucket does."""
    place = PricedPlace(tmp_path / "data")
    place.write_book("gpt,2025-01-01,1,1,,,0.000007,0.000007,CHF")
    for file, key in enumerate([None, None, "key_1", "key_1"]):
        records = [
            priced(
                number, api_key_id=key, organization_id=f"org_{key}", input_tokens=10**15, output_tokens=10**15 + file
            )
            for number in range(10)
        ]
        place.write_raw(f"{file}.jsonl", *records)
    in_buckets(10)
    (day,) = place.roll_up().days
    assert (day.counted, day.session, day.conflicting) == (10, 10, 20)
    files = place.artifacts()
    in_buckets(40)
    assert not place.backfill("2025-11-01", "2025-11-30").published
    assert place.artifacts().keys() == files.keys()


@pytest.mark.parametrize("price", ["1", "0.0000007"])
def test_a_large_day_is_priced_as_a_small_one_is(tmp_path: Path, in_buckets: Callable[[int], None], price: str) -> None:
    """A request is rounded for itself; tokens are made into units once a day, which no bucket may do by itself."""
    place = PricedPlace(tmp_path / "data")
    place.write_book(f"gpt,2025-01-01,{price},{price},,,0.7,0.9,CHF", f"gpt,2025-11-10T12:00:30Z,2,{price},CHF")
    pick = random.Random(8)
    for file in range(4):
        records = [
            priced(
                pick.randrange(150),
                pick.choice(["gpt", "gpt", "unknown"]),
                f"2025-11-10T12:00:{pick.randrange(60):02}Z",
                input_tokens=pick.randrange(10_000),
                output_tokens=pick.randrange(1_000),
                cached=pick.randrange(500),
            )
            for _ in range(100)
        ]
        place.write_raw(f"{file}.jsonl", *records, request(1_000 + file))
    whole = place.roll_up()
    files = place.artifacts()
    used = place.published("api_key_day")
    assert (used["neurons"] % 1).any()
    assert whole.days[0].unpriced > 0
    in_buckets(50)
    again = place.backfill("2025-11-01", "2025-11-30")
    assert again.days == whole.days
    assert not again.published
    assert place.artifacts().keys() == files.keys()
