"""The laws of the numbers, on generated files, orders, splits, kinds, copies, conflicts, bad lines and failures.

Derandomized: the same examples at every run of one Python and one hypothesis. Each is held against tests/model.py.
"""

from __future__ import annotations

import gzip
import io
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.run import start_run
from pipeline.update import PLAIN_STEPS, roll_up
from tests.conftest import Place, Record, lines, request
from tests.model import Model, Usage, recount

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

LAWS = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
ORGANIZATIONS = ["org_a", "org_b"]
MOMENTS = ["2025-10-31T23:59:59.999999Z", "2025-11-01T00:00:00.000000Z", "2025-11-01T12:00:00.000000Z"]
BAD = ["bad", "[]", "{}", '{"request_id": "r"}', '{"cost": NaN}']

records = st.builds(
    lambda number, moment, organization, key, cost, synapses, model, tokens: request(
        number,
        timestamp=moment,
        organization_id=organization,
        api_key_id=key,
        cost=cost,
        synapses=synapses,
        model=model,
        input_tokens=tokens,
    ),
    st.integers(1, 6),
    st.sampled_from(MOMENTS),
    st.sampled_from(ORGANIZATIONS),
    st.sampled_from([None, "k", "K", "k.1"]),
    st.sampled_from(["0", "0.000000000001", "999999.999999999999", "10", "9", "0.1", "0.2"]),
    st.sampled_from(["0", "0.1", "999999999999.999999"]),
    st.sampled_from([..., None, "m", "é", "z"]),
    st.sampled_from([0, 1, 2**63 - 1]),
)
logs = st.lists(st.one_of(records, records, records, st.sampled_from(BAD)), min_size=1, max_size=25)
chances = st.randoms(use_true_random=False)


def split(log: Sequence[Record | str], parts: int, chance: random.Random) -> dict[str, list[Record | str]]:
    """The lines in some order, in files of some kind under some names."""
    shuffled = list(log)
    chance.shuffle(shuffled)
    files: dict[str, list[Record | str]] = {}
    for number in range(parts):
        if part := shuffled[number::parts]:
            # A file's own line keeps its content its own: two files of one content count once, by another rule.
            kinds = [".jsonl", ".jsonl.gz", ".jsonl.zst"] + [".parquet"] * all(isinstance(line, dict) for line in part)
            files[f"{chance.randrange(10**6)}/{number}{chance.choice(kinds)}"] = [*part, mark(chance)]
    return files


def mark(chance: random.Random) -> Record:
    """A session's request that no other file holds."""
    return request(chance.randrange(10**9), timestamp=MOMENTS[0], organization_id="org_marks", api_key_id=None)


def content(file: str, log: Sequence[Record | str]) -> bytes:
    text = lines(*log)
    if file.endswith(".gz"):
        return gzip.compress(text)
    if file.endswith(".zst"):
        compressed: bytes = zstd.compress(text)
        return compressed
    if file.endswith(".parquet"):
        names = list(request(synapses="0", model=None, input_tokens=0))
        found = [{"synapses": "0", "input_tokens": 0, **record} for record in log if isinstance(record, dict)]
        columns = {
            name: pa.array([record.get(name) for record in found], pa.int64() if "tokens" in name else pa.string())
            for name in names
        }
        written = io.BytesIO()
        pq.write_table(pa.table(columns), written, row_group_size=3)
        return written.getvalue()
    return text


def put(place: Place, files: Mapping[str, Sequence[Record | str]]) -> None:
    for file, log in files.items():
        place.write_raw(file, content(file, log))


def place_in(folder: str) -> Place:
    return Place(Path(folder) / "data")


def published(place: Place, rollup: str, *grain: str, month: bool = False) -> dict[tuple[Any, ...], Usage]:
    """The rows of a rollup by their grain, months in front of it when asked for."""
    found: dict[tuple[Any, ...], Usage] = {}
    for (name, first_day), file in place.publication().files.items():
        if name == rollup:
            for row in pq.read_table(place.layout.rollups / file.path, partitioning=None).to_pylist():
                key = tuple(str(row[column]) if column == "day" else row[column] for column in grain)
                key = (f"{first_day:%Y-%m}", *key) if month else key
                assert key not in found, "a row of the grain is repeated"
                found[key] = (row["requests"], row["cost"], row["synapses"], int(row["input_tokens"]))
    return found


def rows(place: Place) -> dict[str, dict[tuple[Any, ...], Usage]]:
    """All that customers are answered from."""
    return {
        "api_key_day": published(place, "api_key_day", "organization_id", "day", "api_key_id", "model"),
        "organization_day": published(place, "organization_day", "organization_id", "day"),
        "api_key_month": published(place, "api_key_month", "organization_id", "api_key_id", "model", month=True),
        "organization_month": published(place, "organization_month", "organization_id", month=True),
    }


def assert_right(place: Place, model: Model) -> None:
    """Conservation of lines and days; keys sum to the organization, days to the month: all as in the model."""
    ledger = place.ledger()
    assert {file: entry.take_in.lines for file, entry in ledger.files.items()} == model.lines
    assert {file: entry.take_in.accepted for file, entry in ledger.files.items()} == model.accepted
    for entry in ledger.files.values():
        assert entry.take_in.lines == entry.take_in.accepted + entry.take_in.quarantined
        assert len(place.rejected(entry.file)) == entry.take_in.quarantined
    counts = {
        str(day): {
            name: getattr(entry, name) for name in ("accepted", "counted", "duplicate", "conflicting", "session")
        }
        for day, entry in ledger.days.items()
        if entry.accepted  # a day that lost all its requests stays published, with none
    }
    assert counts == {day: asdict(entry) for day, entry in model.days.items()}
    for day in model.days.values():
        assert day.accepted == day.counted + day.duplicate + day.session
    assert rows(place) == {
        "api_key_day": model.usage,
        "organization_day": model.summed(0, 1),
        "api_key_month": model.summed(0, 2, 3, month=True),
        "organization_month": model.summed(0, month=True),
    }


@LAWS
@given(logs, st.integers(1, 4), st.integers(1, 3), st.integers(0, 1), chances)
def test_whatever_the_order_the_split_the_kinds_and_the_runs_the_numbers_are_a_plain_recount(
    log: list[Record | str], parts: int, runs: int, bulk: int, chance: random.Random
) -> None:
    files = split(log, parts, chance)
    with tempfile.TemporaryDirectory() as folder, patch("pipeline.judge.FEW_BYTES", 0 if bulk else 8_192):
        place = place_in(folder)
        for run in range(runs):
            put(place, {file: part for number, (file, part) in enumerate(files.items()) if number % runs == run})
            place.roll_up()
        assert_right(place, recount(files))
        before, version = rows(place), place.publication().version
        assert place.roll_up().version == version, "a rerun publishes nothing"
        assert place.backfill("2025-10-01", "2025-11-30").version == version, "nor does a backfill of the whole"
        assert rows(place) == before


@LAWS
@given(logs, st.integers(1, 3), st.sampled_from(["take_in", "roll_up_days", "roll_up_month", "publish"]), chances)
def test_a_run_that_fails_anywhere_is_made_good_by_the_next(
    log: list[Record | str], parts: int, step: str, chance: random.Random
) -> None:
    files = split(log, parts, chance)
    calls_before_failure = chance.randrange(3)
    after_the_work = chance.random() < 0.5

    class Failed(Exception):
        pass

    original = getattr(PLAIN_STEPS, step)
    calls = Counter[str]()

    def failing(*arguments: Any) -> Any:
        calls["made"] += 1
        if calls["made"] <= calls_before_failure:
            return original(*arguments)
        if after_the_work:
            original(*arguments)
        raise Failed

    with tempfile.TemporaryDirectory() as folder:
        place = place_in(folder)
        put(place, files)
        try:
            with start_run(place.settings, lambda: place.now) as run:
                roll_up(run, PLAIN_STEPS._replace(**{step: failing}))
        except Failed:
            pass
        place.roll_up()
        assert_right(place, recount(files))
        assert list(place.layout.scratch.iterdir()) == []


@LAWS
@given(logs, logs, chances)
def test_another_organizations_traffic_never_changes_mine(
    mine: list[Record | str], theirs: list[Record | str], chance: random.Random
) -> None:
    def of(log: list[Record | str], organization: str) -> list[Record | str]:
        return [{**line, "organization_id": organization} if isinstance(line, dict) else line for line in log]

    def my_rows(place: Place) -> dict[str, dict[tuple[Any, ...], Usage]]:
        return {rollup: {k: v for k, v in found.items() if "org_a" in k} for rollup, found in rows(place).items()}

    with tempfile.TemporaryDirectory() as alone, tempfile.TemporaryDirectory() as together:
        mine, theirs = of(mine, "org_a"), of(theirs, "org_b")
        one, other = place_in(alone), place_in(together)
        put(one, split(mine, 2, chance))
        put(other, split([*mine, *theirs], 3, chance))
        one.roll_up()
        other.roll_up()
        assert my_rows(one) == my_rows(other)


def test_the_model_can_be_read_by_hand() -> None:
    model = recount({"a": [request(1), request(1, cost="1"), request(2, api_key_id=None), "bad"], "b": [request(1)]})
    assert [asdict(day) for day in model.days.values()] == [
        {"accepted": 4, "counted": 1, "duplicate": 2, "conflicting": 1, "session": 1}
    ]
    assert {key: str(row[1]) for key, row in model.usage.items()} == {("org_a", "2025-11-10", "key_1", None): "0.25"}
    assert model.lines == {"a": 4, "b": 1}
