"""A run over a real Dask scheduler and worker processes publishes what one machine does, whatever happens to them."""

from __future__ import annotations

import gzip
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from pipeline import errors
from pipeline.contract.settings import Settings
from pipeline.errors import KeytallyError
from pipeline.fan_out import fan_out_of
from pipeline.intake import take_in
from pipeline.raw import list_raw
from pipeline.report import Report
from pipeline.run import start_run
from pipeline.update import PLAIN_STEPS, backfill, roll_up
from tests.conftest import Place, lines, request
from tests.dask_cluster import Cluster, kill

pytest.importorskip("distributed", reason="the extra keytally[dask] is not installed")

ROOT = Path(__file__).parent.parent
CASE = ROOT / "tests/cases/otel_genai"


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("alone"))


def write_traffic(place: Place, files: int = 6) -> None:
    for file in range(files):
        records = [
            request(
                number % 50,
                cost=f"0.{file + 1}{number:03}",
                model=f"m{number % 3}",
                timestamp=f"2025-11-{1 + (number + file) % 4:02}T10:00:00Z",
            )
            for number in range(200)
        ]
        place.write_raw(f"{file}.jsonl.gz", gzip.compress(lines(*records, "no json"), mtime=0))
    place.write_raw("copy.jsonl.gz", (place.layout.raw / "0.jsonl.gz").read_bytes())
    place.write_raw("bad.jsonl.gz", b"\x1f\x8b no gzip")


def rolled_up(place: Place, address: str, **environment: str) -> Report:
    settings = Place(place.layout.root, KEYTALLY_DASK=address, **environment).settings
    with start_run(settings, lambda: place.now) as run, fan_out_of(settings) as fan_out:
        return roll_up(run, PLAIN_STEPS._replace(fan_out=fan_out))


def assert_equal(place: Place, alone: Place) -> None:
    """The same artifacts and the same rows are published; the ledger of files names inodes."""
    here, there = ({path for path in of.artifacts() if "rollup=file" not in path} for of in (place, alone))
    assert here == there
    for table in ("api_key_day", "api_key_month", "organization_day", "organization_month"):
        assert place.published(table).equals(alone.published(table)), table


def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_published_is_what_one_machine_publishes(
    place: Place, alone: Place, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a duplicate file, one that is held back, and days that are too large for one step."""
    cluster.start_worker()
    cluster.start_worker()
    write_traffic(place)
    write_traffic(alone)
    expected = alone.roll_up()
    monkeypatch.setattr("pipeline.buckets.LINES_A_BUCKET", 100)
    monkeypatch.setattr("pipeline.update.LINES_IN_ONE_STEP", 100)
    report = rolled_up(place, cluster.address)
    assert report.as_json() == {**expected.as_json(), "seconds": report.as_json()["seconds"]}
    assert [held.file for held in report.held_back] == ["bad.jsonl.gz"]
    assert_equal(place, alone)
    settings = Place(place.layout.root, KEYTALLY_DASK=cluster.address).settings
    with start_run(settings, lambda: place.now) as run, fan_out_of(settings) as fan_out:
        again = backfill(run, date(2025, 11, 1), date(2025, 11, 30), PLAIN_STEPS._replace(fan_out=fan_out))
    assert not again.published


def test_workers_price_by_the_book_that_the_run_found(place: Place, alone: Place, cluster: Cluster) -> None:
    cluster.start_worker()
    for where in (place, alone):
        where.now = where.now.replace(year=2027)
        where.layout.prices.write_bytes((CASE / "prices.csv").read_bytes())
        where.layout.rates.write_bytes((CASE / "fx.csv").read_bytes())
        where.write_raw("otel-genai/a.jsonl", (CASE / "gateway.jsonl").read_bytes())
    expected = alone.roll_up()
    report = rolled_up(place, cluster.address)
    assert report.as_json() == {**expected.as_json(), "seconds": report.as_json()["seconds"]}
    assert place.published("api_key_day")["cost"].sum() > 0
    assert_equal(place, alone)


@pytest.mark.parametrize("step", ["read a raw file", "rename a file to where it stays", "write a file in scratch"])
def test_a_worker_that_is_killed_over_a_step_changes_nothing(
    place: Place, alone: Place, cluster: Cluster, tmp_path: Path, step: str
) -> None:
    last = tmp_path / "one of you dies"
    last.touch()
    for _ in range(2):
        cluster.start_worker(TEST_STEP=step, TEST_DIES_WHILE=str(last))
    write_traffic(place)
    write_traffic(alone)
    alone.roll_up()
    rolled_up(place, cluster.address)
    assert not last.exists()
    assert_equal(place, alone)


def test_a_step_that_kills_every_worker_ends_the_run_with_a_sentence(place: Place, cluster: Cluster) -> None:
    cluster.start_worker(TEST_DIES_WHILE="always")
    write_traffic(place, 1)
    with pytest.raises(KeytallyError, match=r"4 workers died over one step.* too little memory"):
        rolled_up(place, cluster.address)
    assert not place.layout.log.exists()


def test_a_scheduler_that_is_restarted_is_asked_again(
    place: Place, alone: Place, cluster: Cluster, tmp_path: Path
) -> None:
    waits, has_begun = tmp_path / "wait", tmp_path / "begun"
    waits.touch()
    worker = cluster.start_worker(TEST_WAITS_WHILE=str(waits), TEST_HAS_BEGUN=str(has_begun))
    write_traffic(place)
    write_traffic(alone)
    alone.roll_up()

    def restart() -> None:
        soon(has_begun.exists)
        kill(cluster.scheduler)
        kill(worker)
        waits.unlink()
        cluster.start_scheduler()
        cluster.start_worker()

    meanwhile = threading.Thread(target=restart)
    meanwhile.start()
    rolled_up(place, cluster.address)
    meanwhile.join()
    assert_equal(place, alone)


@pytest.mark.parametrize("lost", ["fail", "local"])
def test_a_cluster_that_goes_away_fails_the_run_or_is_done_without(
    place: Place, alone: Place, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 5)
    waits, has_begun = tmp_path / "wait", tmp_path / "begun"
    waits.touch()
    cluster.start_worker(TEST_WAITS_WHILE=str(waits), TEST_HAS_BEGUN=str(has_begun))
    write_traffic(place)
    write_traffic(alone)
    alone.roll_up()
    meanwhile = threading.Thread(target=lambda: (soon(has_begun.exists), cluster.end()))
    meanwhile.start()
    if lost == "fail":
        with pytest.raises(KeytallyError, match=r"does not answer .*; nothing was published\. Start it"):
            rolled_up(place, cluster.address)
        assert not place.layout.log.exists()
    else:
        rolled_up(place, cluster.address, KEYTALLY_DASK_LOST="local")
        assert_equal(place, alone)
    meanwhile.join()


def test_a_cluster_that_is_not_there_is_said_or_done_without(
    place: Place, alone: Place, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 2)
    cluster.end()
    write_traffic(place)
    write_traffic(alone)
    alone.roll_up()
    with pytest.raises(KeytallyError, match=f"the Dask scheduler at {cluster.address} does not answer"):
        rolled_up(place, cluster.address)
    assert not place.layout.log.exists()
    rolled_up(place, cluster.address, KEYTALLY_DASK_LOST="local")
    assert_equal(place, alone)


def test_a_scheduler_without_workers_is_told_with_the_command_that_starts_one(
    place: Place, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 10)
    write_traffic(place, 1)
    with pytest.raises(KeytallyError, match=f"no workers; start one with: dask worker {cluster.address}"):
        rolled_up(place, cluster.address)


def test_a_worker_with_too_little_memory_is_refused(place: Place, cluster: Cluster) -> None:
    cluster.start_worker(memory="500MB")
    write_traffic(place, 1)
    with pytest.raises(KeytallyError, match=r"has 500 MB for each of its threads, and a step needs 660 MB; start it"):
        rolled_up(place, cluster.address)
    assert not place.layout.log.exists()


def test_a_worker_with_other_code_is_refused(place: Place, cluster: Cluster, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "pipeline" / "rollup.py").open("a") as source:
        source.write("# another release\n")
    cluster.start_worker(code=tmp_path)
    write_traffic(place, 1)
    with pytest.raises(
        KeytallyError, match=r"has keytally [0-9a-f]{12}, this machine [0-9a-f]{12}: results may differ"
    ):
        rolled_up(place, cluster.address)
    assert not place.layout.log.exists()


def test_a_worker_with_another_duckdb_is_refused(place: Place, cluster: Cluster, tmp_path: Path) -> None:
    info = tmp_path / "duckdb-1.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: duckdb\nVersion: 1.9.9\n")
    cluster.start_worker(PYTHONPATH=f"{tmp_path}:{ROOT}")
    write_traffic(place, 1)
    with pytest.raises(KeytallyError, match=r"has duckdb 1\.9\.9, this machine"):
        rolled_up(place, cluster.address)


def test_a_worker_that_has_no_keytally_is_refused(place: Place, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise ImportError('it is not installed')")
    cluster._start("worker", cluster.address, "--nthreads", "1", "--no-dashboard", code=tmp_path)
    write_traffic(place, 1)
    with pytest.raises(KeytallyError, match=r"cannot load keytally .*install the same keytally there"):
        rolled_up(place, cluster.address)


def test_what_a_step_may_raise_comes_back_as_it_was() -> None:
    for error in (
        KeytallyError("a sentence"),
        errors.HeldBack("a.jsonl", "corrupt"),
        errors.ArtifactDamaged("events/day=2025-11-01/a.parquet", "is missing"),
        errors.CheckFailed("a law", "2025-11", 1, 2),
        errors.NotDurable(3, "no space"),
        errors.CommitRefused(4),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_worker_that_does_not_share_the_data_root_is_refused(place: Place, cluster: Cluster) -> None:
    cluster.start_worker()
    place.write_raw("a.jsonl", request())
    settings = Place(place.layout.root, KEYTALLY_DASK=cluster.address).settings
    with start_run(settings, lambda: place.now) as run, fan_out_of(settings) as fan_out:
        elsewhere = replace(run, name="a run of a folder that is not here")
        with pytest.raises(KeytallyError, match=r"has another .* than this machine: the data root"):
            list(fan_out(elsewhere, take_in, list_raw(place.store).files))


def test_no_secret_is_sent_to_a_worker() -> None:
    secrets = {
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_SESSION_TOKEN": "a-token",
        "KEYTALLY_RATE_LIMIT_STORE": "redis://:a-password@localhost",
    }
    settings = Settings.from_environment(
        {
            "KEYTALLY_DATA": "s3://bucket/prefix",
            "KEYTALLY_KEYS": "keys.sqlite",
            "AWS_ENDPOINT_URL": "http://s3",
            **secrets,
        }
    )
    sent = pickle.dumps(settings.for_a_worker())
    assert b"prefix" in sent
    for secret in ("an-id", "a-secret", "a-token", "a-password"):
        assert secret.encode() not in sent
    there = settings.for_a_worker().with_keys_of(secrets)
    assert there.data == settings.data
