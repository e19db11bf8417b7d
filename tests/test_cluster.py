"""A run over a real Dask scheduler and worker processes publishes what one machine does, whatever happens to them."""

from __future__ import annotations

import gzip
import importlib
import logging
import os
import pickle
import pkgutil
import shutil
import signal
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline import errors
from pipeline.contract import seam
from pipeline.contract.data_root import NoDataRoot
from pipeline.contract.layout import FIRST_DAY, LAST_DAY
from pipeline.contract.settings import Settings, SettingsError
from pipeline.contract.store import StoreError
from pipeline.errors import KeytallyError
from pipeline.fan_out import FanOut, fan_out_of
from pipeline.intake import take_in
from pipeline.prices import Prices, read_prices
from pipeline.raw import list_raw
from pipeline.report import Report
from pipeline.reprice import reprice
from pipeline.run import Run, Watch, start_run
from pipeline.update import PLAIN_STEPS, backfill, roll_up
from pipeline.usage import NothingPublished
from tests.conftest import Place, lines, request
from tests.dask_cluster import Cluster, kill

distributed = pytest.importorskip("distributed", reason="the extra keytally[dask] is not installed")

from pipeline.cluster import LEAST_ENGINE, Unfit, _Cluster, _GoneError  # noqa: E402  # it needs that extra

ROOT = Path(__file__).parent.parent
CASE = ROOT / "tests/cases/otel_genai"


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that its tests leave as it is: one worker without a limit of memory, and with two threads."""
    started = Cluster(tmp_path_factory.mktemp("idle"))
    started.start_worker(memory="0", threads=2)
    yield started
    started.end()


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


@contextmanager
def fanned_out(place: Place, address: str, **environment: str) -> Iterator[tuple[Run, FanOut]]:
    """A run, and the cluster that its steps go to."""
    settings = Place(place.layout.root, KEYTALLY_DASK=address, **environment).settings
    with start_run(settings, lambda: place.now) as run, fan_out_of(settings) as fan_out:
        yield run, fan_out


def nothing_here(*_: object) -> None:
    pytest.fail("a step was done on this machine")


def with_another_release(folder: Path) -> Path:
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "pipeline" / "rollup.py").open("a") as source:
        source.write("# another release\n")
    return folder


def assert_equal(place: Place, alone: Place) -> None:
    """The same artifacts and the same rows are published; the ledger of files names inodes."""
    here, there = ({path for path in of.artifacts() if "rollup=file" not in path} for of in (place, alone))
    assert here == there
    for table in ("api_key_day", "api_key_month", "organization_day", "organization_month"):
        assert place.published(table).equals(alone.published(table)), table


def assert_fails_or_goes_on_alone(place: Place, alone: Place, cluster: Cluster, lost: str, says: str) -> None:
    """What a run does that loses the cluster: with `fail` it says so and publishes nothing; `local` finishes here."""
    if lost == "fail":
        with pytest.raises(KeytallyError, match=says):
            rolled_up(place, cluster.address)
        assert not place.layout.log.exists()
    else:
        rolled_up(place, cluster.address, KEYTALLY_DASK_LOST="local")
        assert_equal(place, alone)


def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_published_is_what_one_machine_publishes(
    place: Place,
    alone: Place,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_buckets: Callable[[int], None],
) -> None:
    """With a duplicate file, one that is held back, and days that are too large for one step."""
    done_by = tmp_path / "done by"
    workers = [cluster.start_worker("--no-nanny", TEST_DONE=str(done_by)) for _ in range(2)]
    write_traffic(place)
    write_traffic(alone)
    expected = alone.roll_up()
    in_buckets(100)
    done_here: list[str] = []
    monkeypatch.setattr(seam, "at_step", done_here.append)
    report = rolled_up(place, cluster.address)
    assert report.as_json() == {**expected.as_json(), "seconds": report.as_json()["seconds"]}
    assert [held.file for held in report.held_back] == ["bad.jsonl.gz"]
    assert_equal(place, alone)
    readings = done_by.read_text().split()
    assert len(readings) >= 8, "not every raw file was read by a worker"
    assert set(readings) <= {str(worker.pid) for worker in workers}
    assert "read a raw file" not in done_here
    settings = Place(place.layout.root, KEYTALLY_DASK=cluster.address).settings
    with start_run(settings, lambda: place.now) as run, fan_out_of(settings) as fan_out:
        again = backfill(run, date(2025, 11, 1), date(2025, 11, 30), PLAIN_STEPS._replace(fan_out=fan_out))
    assert not again.published


def test_progress_is_what_was_taken_in(place: Place, alone: Place, idle: Cluster) -> None:
    """To hash a file is not to take it in: of two files of one size, the second is read for its hash alone."""

    class Told(Watch):
        advanced = rows = 0

        def advance(self, amount: int) -> None:
            self.advanced += amount

        def count(self, rows: int) -> None:
            self.rows += rows

    for where in (place, alone):
        for file in "ab":
            where.write_raw(f"{file}.jsonl", *(request(number) for number in range(100)))
    told, told_alone = Told(), Told()
    settings = Place(place.layout.root, KEYTALLY_DASK=idle.address).settings
    with start_run(settings, lambda: place.now, told) as run, fan_out_of(settings) as fan_out:
        roll_up(run, PLAIN_STEPS._replace(fan_out=fan_out))
    with start_run(alone.settings, lambda: alone.now, told_alone) as run:
        roll_up(run)
    assert told.advanced == told_alone.advanced < 2 * (place.layout.raw / "a.jsonl").stat().st_size
    assert told.rows == told_alone.rows == 2 * 100  # taken in, and rolled up


def test_a_slow_step_holds_up_no_other_and_no_more_is_sent_than_workers_need(
    place: Place, idle: Cluster, tmp_path: Path
) -> None:
    others = 30

    def waiting_for_all_others(_: Run, number: int) -> int:
        with distributed.worker_client() as client:
            states = client.run_on_scheduler(
                lambda dask_scheduler: [task.state for task in dask_scheduler.tasks.values()]
            )
        unfinished = len(states) - sum(state in ("memory", "released", "forgotten") for state in states)
        assert unfinished <= 4 * 2, "more was sent than four steps a thread"
        (tmp_path / f"begun-{number}").touch()
        deadline = time.monotonic() + 30
        while not number and len(list(tmp_path.glob("begun-*"))) <= others:
            assert time.monotonic() < deadline, "it was waited for, and no more was sent"
            time.sleep(0.05)
        return number

    with fanned_out(place, idle.address) as (run, fan_out):
        assert list(fan_out(run, waiting_for_all_others, range(1 + others))) == list(range(1 + others))


def test_who_joins_gets_steps_unless_it_is_unfit(
    place: Place,
    cluster: Cluster,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run goes on without a worker that has another Python. What it was sent is sent to others, and no more."""
    caplog.set_level(logging.WARNING, "pipeline")
    done, sent_again = _Cluster._done, 0

    def counted(*of: Any) -> Any:
        nonlocal sent_again
        result = done(*of)
        sent_again += result is None
        return result

    monkeypatch.setattr("pipeline.cluster._Cluster._done", counted)
    waits = tmp_path / "wait"
    waits.touch()

    def waiting(_: Run, number: int) -> tuple[int, str]:
        while waits.exists():
            time.sleep(0.05)
        time.sleep(0.1)
        return number, str(distributed.get_worker().address)

    def join() -> None:
        with distributed.Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(3)
        soon(lambda: "has python 3.0" in caplog.text)
        waits.unlink()

    cluster.start_worker()
    joined = threading.Thread(target=join)
    with fanned_out(place, cluster.address) as (run, fan_out):
        cluster.start_worker(TEST_PYTHON="3.0")
        cluster.start_worker()
        joined.start()
        results = list(fan_out(run, waiting, range(24)))
    joined.join()
    assert [number for number, _ in results] == list(range(24))
    assert len({worker for _, worker in results}) == 2
    assert 0 < sent_again <= 3 * 4
    assert "results may differ; install the same there and start it anew; it gets no steps" in caplog.text


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


def test_workers_reprice_a_large_day_by_the_book_that_is_tried(
    place: Place, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, in_buckets: Callable[[int], None]
) -> None:
    cluster.start_worker()
    place.now = place.now.replace(year=2027)
    book = (CASE / "prices.csv").read_bytes()
    place.layout.prices.write_bytes(book.splitlines(keepends=True)[0])
    place.layout.rates.write_bytes((CASE / "fx.csv").read_bytes())
    place.write_raw("otel-genai/a.jsonl", (CASE / "gateway.jsonl").read_bytes())
    place.roll_up()
    with start_run(place.settings, lambda: place.now) as run:
        prices = read_prices(run.store, run.settings.currency, book)
        expected = reprice(run, prices, FIRST_DAY, LAST_DAY)
    assert expected.changes
    before = place.artifacts(), sorted(place.layout.books.iterdir())
    in_buckets(2)
    monkeypatch.setattr("pipeline.buckets.statement_for", nothing_here)
    with fanned_out(place, cluster.address) as (run, fan_out):
        assert reprice(run, prices, FIRST_DAY, LAST_DAY, fan_out) == expected
    assert place.artifacts() == before[0]
    assert {*place.layout.books.iterdir()} - {*before[1]} == {place.layout.books / prices.kept["prices"]}
    assert list(place.layout.buckets.iterdir()) == []


def test_a_book_is_kept_once_for_all_steps_of_a_run_and_once_before_a_commit(
    place: Place, idle: Cluster, monkeypatch: pytest.MonkeyPatch, in_buckets: Callable[[int], None]
) -> None:
    """Each time is a PUT in a bucket, and a large day is fanned out five times."""
    kept: list[str] = []
    keep = Prices.keep

    def noting(prices: Prices, *of: Any) -> None:
        kept.extend(prices.kept)
        keep(prices, *of)

    monkeypatch.setattr(Prices, "keep", noting)
    place.now = place.now.replace(year=2027)
    place.layout.prices.write_bytes((CASE / "prices.csv").read_bytes())
    place.layout.rates.write_bytes((CASE / "fx.csv").read_bytes())
    place.write_raw("otel-genai/a.jsonl", (CASE / "gateway.jsonl").read_bytes())
    in_buckets(2)
    with fanned_out(place, idle.address) as (run, fan_out):
        steps = PLAIN_STEPS._replace(fan_out=fan_out)
        days = [entry.day for entry in roll_up(run, steps).days]
        assert kept == ["prices", "fx"] * 2
        assert not backfill(run, days[0], days[-1], steps).published
        assert kept == ["prices", "fx"] * 2
        place.layout.prices.write_bytes((CASE / "prices.csv").read_bytes() + b"\n")
        assert not backfill(run, days[0], days[-1], steps).published
    assert kept == ["prices", "fx"] * 3, "workers were told to price by a book that was not kept"


@pytest.mark.parametrize(
    ("step", "within"),
    [
        ("read a raw file", "take_in"),
        ("rename a file to where it stays", "_sum"),
        ("write a file in scratch", "_take_off"),
        ("rename a file to where it stays", "_merge"),
        ("write a file in scratch", "roll_up_days"),
    ],
)
def test_a_worker_that_is_killed_over_a_step_changes_nothing(
    place: Place,
    alone: Place,
    cluster: Cluster,
    tmp_path: Path,
    in_buckets: Callable[[int], None],
    step: str,
    within: str,
) -> None:
    last = tmp_path / "one of you dies"
    last.touch()
    for _ in range(2):
        cluster.start_worker(TEST_STEP=step, TEST_WITHIN=within, TEST_DIES_WHILE=str(last))
    write_traffic(place, 3)
    write_traffic(alone, 3)
    alone.roll_up()
    if within.startswith("_"):
        in_buckets(100)
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
    place: Place,
    alone: Place,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_buckets: Callable[[int], None],
) -> None:
    """Over a day in buckets: what was summed is not summed again, and nothing is done here."""
    waits, has_begun = tmp_path / "wait", tmp_path / "begun"
    waits.touch()
    worker = cluster.start_worker(
        TEST_STEP="write a file in scratch",
        TEST_WITHIN="_find_repeated",
        TEST_WAITS_WHILE=str(waits),
        TEST_HAS_BEGUN=str(has_begun),
    )
    write_traffic(place)
    write_traffic(alone)
    alone.roll_up()
    in_buckets(100)
    monkeypatch.setattr("pipeline.cluster.fan_out", nothing_here)

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


def test_what_came_before_a_scheduler_was_restarted_is_not_done_again(
    place: Place, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.fan_out", nothing_here)
    done = tmp_path / "done"

    def noting(_: Run, number: int) -> int:
        with done.open("a") as file:
            file.write(f"{number}\n")
        return number

    worker = cluster.start_worker()
    with fanned_out(place, cluster.address) as (run, fan_out):
        results = fan_out(run, noting, range(12))
        came = [next(results) for _ in range(3)]
        kill(cluster.scheduler)
        kill(worker)
        cluster.start_scheduler()
        cluster.start_worker()
        assert [*came, *results] == list(range(12))
    times = Counter(done.read_text().split())
    assert [times[str(number)] for number in came] == [1, 1, 1]


def test_a_scheduler_that_goes_away_again_and_again_fails_the_run_or_is_done_without(
    place: Place,
    alone: Place,
    idle: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_traffic(place, 2)
    write_traffic(alone, 2)
    alone.roll_up()

    def gone(*_: object) -> Iterator[tuple[int, object]]:
        raise _GoneError
        yield

    monkeypatch.setattr("pipeline.cluster._Cluster._fan_out", gone)
    with pytest.raises(KeytallyError, match=r"went away 4 times; nothing was published\. See to it"):
        rolled_up(place, idle.address)
    assert not place.layout.log.exists()
    rolled_up(place, idle.address, KEYTALLY_DASK_LOST="local")
    assert "went away 4 times; going on with this machine alone" in caplog.text
    assert_equal(place, alone)


@pytest.mark.parametrize("lost", ["fail", "local"])
def test_workers_that_all_go_away_fail_the_run_or_are_done_without(
    place: Place, alone: Place, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """While the scheduler stays, which waits for others for ever."""
    waits, has_begun = tmp_path / "wait", tmp_path / "begun"
    waits.touch()
    worker = cluster.start_worker(TEST_WAITS_WHILE=str(waits), TEST_HAS_BEGUN=str(has_begun))
    write_traffic(place, 2)
    write_traffic(alone, 2)
    alone.roll_up()

    def go_away() -> None:
        soon(has_begun.exists)
        monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 1)
        kill(worker)

    meanwhile = threading.Thread(target=go_away)
    meanwhile.start()
    assert_fails_or_goes_on_alone(
        place, alone, cluster, lost, r"has no workers any more; nothing was published\. Start one with"
    )
    meanwhile.join()


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
    assert_fails_or_goes_on_alone(place, alone, cluster, lost, r"does not answer .*; nothing was published\. Start it")
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


@pytest.mark.parametrize(
    ("scheme", "says", "meets"),
    [
        ("tcp", b"", "somebody is there, and does not speak as a scheduler does"),
        ("tcp", b"HTTP/1.1 400 Bad Request\r\n\r\n", "somebody is there, and does not speak as a scheduler does"),
        ("tls", b"", "check your TLS configuration"),
    ],
)
def test_an_address_where_no_scheduler_listens_is_said_or_done_without(
    place: Place, monkeypatch: pytest.MonkeyPatch, scheme: str, says: bytes, meets: str
) -> None:
    """But the page of one, say, or one that hangs; and TLS, for which nothing is set up."""
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 1)
    monkeypatch.setattr("pipeline.cluster.HELLO_SECONDS", 1)
    place.write_raw("a.jsonl", request())

    class Somebody(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(says)
            while self.request.recv(1_000):
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Somebody) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        address = f"{scheme}://127.0.0.1:{listener.server_address[1]}"
        with pytest.raises(KeytallyError, match=f"at {address} does not answer .*{meets}.*; nothing was published"):
            rolled_up(place, address)
        assert rolled_up(place, address, KEYTALLY_DASK_LOST="local").published
        listener.shutdown()


def test_a_scheduler_without_workers_is_told_with_the_command_that_starts_one_or_done_without(
    place: Place, alone: Place, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon(lambda: answers(cluster))
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 2)
    write_traffic(place, 1)
    write_traffic(alone, 1)
    alone.roll_up()
    with pytest.raises(KeytallyError, match=f"no workers; .* Start one with: dask worker {cluster.address} and run"):
        rolled_up(place, cluster.address)
    assert not place.layout.log.exists()
    rolled_up(place, cluster.address, KEYTALLY_DASK_LOST="local")
    assert_equal(place, alone)


def answers(cluster: Cluster) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", cluster.port)) == 0


def test_a_worker_with_too_little_memory_for_each_thread_is_refused(place: Place, cluster: Cluster) -> None:
    cluster.start_worker(memory="1GB", threads=2)
    write_traffic(place, 1)
    with pytest.raises(KeytallyError, match=r"has 500 MB for each of its threads, and a step needs 660 MB; start it"):
        rolled_up(place, cluster.address)
    assert not place.layout.log.exists()


def test_threads_of_a_worker_without_a_limit_share_what_its_machine_has(place: Place, idle: Cluster) -> None:
    machine = distributed.system.MEMORY_LIMIT
    with fanned_out(place, idle.address, KEYTALLY_MEMORY_LIMIT=f"{machine}B") as (run, fan_out):
        (engine,) = fan_out(run, lambda run, _: run.settings.memory_limit, [1])
    assert LEAST_ENGINE <= engine <= 0.8 * machine / 2


def test_a_worker_with_other_code_is_refused(place: Place, cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_worker(code=with_another_release(tmp_path))
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


def family_of(kind: type[Any]) -> set[type[Any]]:
    return {kind}.union(*(family_of(below) for below in kind.__subclasses__()))


def test_what_a_step_may_raise_comes_back_as_it_was() -> None:
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        importlib.import_module(module.name)
    raised: list[Exception] = [
        KeytallyError("a sentence"),
        errors.InterruptedRunError(),
        errors.HeldBack("a.jsonl", "corrupt"),
        errors.BadPrices("prices.csv", None, "model", "is empty"),
        errors.FormatRefused("formats/a.sql: is empty"),
        errors.ArtifactDamaged("events/day=2025-11-01/a.parquet", "is missing"),
        errors.CheckFailed("a law", "2025-11", 1, 2),
        errors.NotDurable(3, "no space"),
        errors.CommitRefused(4),
        Unfit("tcp://10.0.0.5:1", "is not there"),
        NothingPublished("data"),
        StoreError("no answer"),
        NoDataRoot("there is no raw/"),
        SettingsError("KEYTALLY_THREADS", "0", "a whole number"),
    ]
    for kind in (KeytallyError, StoreError, SettingsError):
        assert {found for found in family_of(kind) if found.__module__.startswith("pipeline.")} <= set(
            map(type, raised)
        )
    for error in raised:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_worker_that_hangs_is_waited_for_and_not_told_to_install_what_it_has(
    place: Place, cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "1s")
    kill(cluster.scheduler)
    cluster.start_scheduler()
    hangs = cluster.start_worker("--no-nanny")
    cluster.start_worker()
    with distributed.Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(2)
    os.kill(hangs.pid, signal.SIGSTOP)
    with fanned_out(place, cluster.address) as (run, fan_out):
        assert list(fan_out(run, lambda _, number: number, range(20))) == list(range(20))
    assert "keytally" not in caplog.text


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
    there = settings.for_a_worker().on_this_machine(secrets)
    assert there.data == settings.data


def test_a_worker_has_the_cache_of_its_own_machine() -> None:
    bucket = {"KEYTALLY_DATA": "s3://bucket/prefix", "KEYTALLY_KEYS": "keys.sqlite"}
    here = Settings.from_environment({**bucket, "KEYTALLY_CACHE": "/here", "KEYTALLY_CACHE_SIZE": "1GB"})
    there = here.for_a_worker().on_this_machine({"KEYTALLY_CACHE": "/there", "KEYTALLY_CACHE_SIZE": "2GB"})
    assert (there.cache, there.cache_size) == (Path("/there"), 2 * 10**9)
    by_default = Settings.from_environment(bucket)
    there = here.for_a_worker().on_this_machine({})
    assert (there.cache, there.cache_size) == (by_default.cache, by_default.cache_size)
    with pytest.raises(SettingsError, match="KEYTALLY_CACHE_SIZE is 'much'"):
        here.for_a_worker().on_this_machine({"KEYTALLY_CACHE_SIZE": "much"})
