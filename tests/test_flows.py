"""The flows, really started: with an ephemeral server as `flows.nightly()` would, with a server of their own, and by
the scheduler. Every server, and everything a run leaves, is in a scratch PREFECT_HOME.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pyarrow.parquet as pq
import pytest
from prefect import Task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, State, TaskRun
from prefect.events.worker import EventsWorker
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_RESULTS_LOCAL_STORAGE_PATH,
    temporary_settings,
)
from prefect.states import Running

import flows
from pipeline.contract.layout import Layout
from pipeline.contract.published import open_published, publication_of
from pipeline.contract.store import FolderStore
from pipeline.contract.tables import ORGANIZATION_DAY
from pipeline.engine import statement
from pipeline.errors import CheckFailed, HeldBack, KeytallyError
from pipeline.falls import Lowered, LoweredDay
from pipeline.ignored import IgnoredLog
from pipeline.ledger import DayEntry
from pipeline.report import Report, Unpriced
from pipeline.rollup import DayInputs, roll_up_days
from pipeline.run import Run
from pipeline.run_page import findings_of, findings_table, report_of
from tests.dask_cluster import Cluster, kill

# One Prefect server for the whole file: with `pytest -n`, keep it on one worker (--dist loadgroup or loadfile).
pytestmark = pytest.mark.xdist_group("prefect")

ROOT = Path(flows.__file__).parent
PATIENCE = 110  # seconds; what takes 10 on an idle machine takes long on a busy one
SECRET = "redis://:a-password-nobody-may-see@localhost:6379/0"

_T = TypeVar("_T")


# The raw lines, and what was published of them


def write_raw(data: Path, file: str, day: str, requests: int, *, organization: str = "acme", **fields: object) -> None:
    """`requests` requests of 0.25 each; ids repeat between files of one organization and day."""
    path = data / "raw" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "request_id": f"request-{number}",
            "timestamp": f"{day}T10:00:00Z",
            "organization_id": organization,
            "api_key_id": "key-1",
            "cost": "0.25",
            **fields,
        }
        for number in range(requests)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if file.endswith(".gz") else text)


def published(data: Path) -> dict[tuple[str, str], tuple[int, Decimal]]:
    """Requests and cost by organization and day, from the newest version of the Delta table; {} where there is none."""
    rollups = Layout(data).rollups
    table = open_published(FolderStore(data))
    if table is None:
        return {}
    return {
        (row["organization_id"], str(row["day"])): (row["requests"], row["cost"])
        for (rollup, _), file in publication_of(table).files.items()
        if rollup == ORGANIZATION_DAY.name
        for row in pq.read_table(rollups / file.path, partitioning=None).to_pylist()
    }


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.startswith("KEYTALLY_")]:
        monkeypatch.delenv(variable)
    data = tmp_path / "data"
    monkeypatch.setenv("KEYTALLY_DATA", str(data))
    monkeypatch.setenv("KEYTALLY_MEMORY_LIMIT", "256MB")
    return data


# Prefect, and processes that leave nothing behind


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment without any Prefect setting of its own, with a PREFECT_HOME below `home`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **inherited,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(PATIENCE),
        "PYTHONPATH": str(ROOT),
        **more,
    }


def until(find: Callable[[], _T | None], what: str, seconds: float = PATIENCE) -> _T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = find()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


@contextlib.contextmanager
def process(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, stopped at the end together with all that it started, and with what those left behind."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            command, env=dict(env), cwd=log.parent, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(20)
        deadline = time.monotonic() + 20
        while (left := processes_below(env["PREFECT_HOME"], started.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.wait(20)


def completed(command: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE + 60, check=False)


def processes_below(home: str, session: int) -> list[int]:
    """Processes of this session that were started with this PREFECT_HOME."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            of_session = os.getsid(int(folder.name)) == session
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if of_session and state != "Z" and f"PREFECT_HOME={home}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@dataclass(frozen=True)
class Server:
    url: str
    home: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server on a free port, with nothing in it."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
    # A run that has to wait for another one asks again after this time; 30 s otherwise.
    env = environment(home, PREFECT_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS="1")
    url = f"http://127.0.0.1:{port}/api"

    def is_up() -> bool:
        assert started.poll() is None, (home / "server.log").read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health", timeout=5).is_success
        return False

    with process(command, env, home / "server.log") as started:
        until(is_up, "the Prefect server answers")
        yield Server(url, home)


@pytest.fixture
def client(server: Server) -> Iterator[SyncPrefectClient]:
    """Flows that are called in this process run against the server, as long as the client is open."""
    settings = {
        PREFECT_API_URL: server.url,
        PREFECT_HOME: server.home,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH: server.home / "storage",
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client
        EventsWorker.drain_all()  # or this process would wait at its end for a server that is gone


def run_of(client: SyncPrefectClient, state: State[Any]) -> FlowRun:
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    return client.read_flow_run(flow_run_id)


def task_runs_of(client: SyncPrefectClient, state: State[Any], count: int) -> dict[str, TaskRun]:
    """The run's task runs by name, once all `count` of them have arrived at the server and ended."""
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None

    def ended() -> dict[str, TaskRun] | None:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
        ended = {run.name: run for run in runs if run.state and run.state.is_final()}
        return ended if len(ended) == len(runs) == count else None

    return until(ended, f"{count} task runs have ended")


def artifacts_of(client: SyncPrefectClient, flow_run_id: UUID | None) -> dict[str, Artifact]:
    """The run's artifacts by key."""
    assert flow_run_id is not None
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    found = client.read_artifacts(artifact_filter=of_run)
    return {artifact.key: artifact for artifact in found if artifact.key}


def tables_of(client: SyncPrefectClient, flow_run_id: UUID | None) -> dict[str, list[dict[str, Any]]]:
    """The run's tables by key."""
    found = artifacts_of(client, flow_run_id)
    return {key: json.loads(str(artifact.data)) for key, artifact in found.items() if artifact.type == "table"}


# A run, started as anybody would


EPHEMERAL_RUN = """
import json, time
import flows
from prefect.client.orchestration import get_client

state = flows.nightly(return_state=True)
with get_client(sync_client=True) as client:
    for _ in range(300):
        tasks = client.read_task_runs()
        if len(tasks) == 8 and all(task.state and task.state.is_final() for task in tasks):
            break
        time.sleep(0.2)
    print(json.dumps({
        "run": client.read_flow_run(state.state_details.flow_run_id).name,
        "state": [state.type.value, state.name, state.message],
        "tasks": sorted(task.name for task in tasks),
        "artifacts": {artifact.key: artifact.data for artifact in client.read_artifacts()},
    }))
"""


def test_a_nightly_run_publishes_and_shows_what_it_did(data: Path, tmp_path: Path) -> None:
    write_raw(data, "eu/2025-11-30.jsonl.gz", "2025-11-30", 5)
    write_raw(data, "eu/2025-12-01.jsonl", "2025-12-01", 3)
    write_raw(data, "us/again.jsonl", "2025-11-30", 2, status=500)  # conflicting copies: no status counts first
    with (data / "raw/us/again.jsonl").open("a") as again:
        again.write("no request\n")
    home = tmp_path / "prefect"
    env = environment(home, KEYTALLY_RATE_LIMIT_STORE=SECRET, PREFECT_LOGGING_LEVEL="DEBUG")
    env["KEYTALLY_REJECTED_LIMIT"] = "50%"  # the logs are short
    before = date.today()
    ran = completed([sys.executable, "-c", EPHEMERAL_RUN], env)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])

    assert published(data) == {
        ("acme", "2025-11-30"): (5, Decimal("1.25")),
        ("acme", "2025-12-01"): (3, Decimal("0.75")),
    }
    assert seen["run"] in {f"nightly {day}" for day in (before, before + timedelta(days=1), before - timedelta(days=1))}
    assert seen["tasks"] == sorted(
        [
            "take in eu/2025-11-30.jsonl.gz",
            "take in eu/2025-12-01.jsonl",
            "take in us/again.jsonl",
            "roll up 2025-11-30 to 2025-12-01 (2 days)",
            "roll up 2025-11",
            "roll up 2025-12",
            "publish after version 0",
        ]
    )
    assert seen["state"] == [
        "COMPLETED",
        "Completed",
        "Version 1: 3 files taken in, 1 line quarantined, 2 days rolled up.",
    ]
    assert seen["artifacts"].keys() == {"days", "progress", "report"}
    days = json.loads(seen["artifacts"]["days"])
    assert all(row.pop("seconds").endswith(" (2)") for row in days)  # both in one step
    assert days == [
        {"day": "2025-11-30", "accepted": 7, "counted": 5, "duplicate": 2, "conflicting": 2, "session": 0}
        | {"quarantined": 1},
        {"day": "2025-12-01", "accepted": 3, "counted": 3, "duplicate": 0, "conflicting": 0, "session": 0}
        | {"quarantined": 0},
    ]
    # The engine, the settings and their secrets pass through Prefect with every step; nothing of them stays there.
    assert "DEBUG" in ran.stderr + ran.stdout
    assert "a-password" not in ran.stderr + ran.stdout
    assert not [file for file in home.rglob("*") if file.is_file() and b"a-password" in file.read_bytes()]


# The schedule


def test_scheduled_runs_appear_complete_and_do_not_overlap(
    client: SyncPrefectClient, server: Server, data: Path, tmp_path: Path
) -> None:
    write_raw(data, "eu/2025-11-30.jsonl", "2025-11-30", 5)
    every_two_seconds = (
        "from datetime import timedelta\nfrom flows import serve_flows\nfrom prefect.schedules import Interval\n"
        "serve_flows(Interval(timedelta(seconds=2)))"
    )
    env = environment(server.home, PREFECT_API_URL=server.url, PREFECT_RUNNER_POLL_FREQUENCY="1")
    log = tmp_path / "serve.log"

    def two_runs() -> list[FlowRun] | None:
        assert served.poll() is None, log.read_text()
        runs = [run for run in client.read_flow_runs() if run.auto_scheduled and run.deployment_id]
        failed = [run for run in runs if run.state and (run.state.is_failed() or run.state.is_crashed())]
        assert not failed, log.read_text()
        completed = [run for run in runs if run.state and run.state.is_completed()]
        return completed if len(completed) >= 2 else None

    # What a power cut leaves behind: a run that no longer lives, and its place.
    deployment_id = flows.deployments()[0].apply()
    assert isinstance(deployment_id, UUID)
    killed = client.create_flow_run_from_deployment(deployment_id)
    client.set_flow_run_state(killed.id, Running(), force=True)
    client.update_global_concurrency_limit(f"deployment:{deployment_id}", GlobalConcurrencyLimitUpdate(active_slots=1))
    with process([sys.executable, "-c", every_two_seconds], env, log) as served:
        completed = until(two_runs, "two scheduled runs have completed")
        deployment = client.read_deployment_by_name("nightly/keytally")
    dead = client.read_flow_run(killed.id).state
    client.delete_deployment(deployment.id)
    assert dead is not None
    assert (dead.name, dead.message) == ("Crashed", flows.KILLED)

    assert published(data) == {("acme", "2025-11-30"): (5, Decimal("1.25"))}
    spans = sorted((run.start_time, run.end_time) for run in completed if run.start_time and run.end_time)
    assert len(spans) >= 2
    assert all(end <= next_start for (_, end), (next_start, _) in pairwise(spans))
    assert not deployment.paused  # a stopped service goes on where it stopped
    assert not processes_below(str(server.home), served.pid)


def test_serving_needs_no_server_and_leaves_none_behind(data: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "prefect"
    home.mkdir()
    url = f"http://127.0.0.1:{port}/api"

    def served_deployments() -> set[str] | None:
        assert serving.poll() is None, (home / "serve.log").read_text()
        with contextlib.suppress(httpx.TransportError):
            found = httpx.post(f"{url}/deployments/filter", json={}, timeout=5)
            return {deployment["name"] for deployment in found.json()} if found.is_success else None
        return None

    env = environment(home, PREFECT_SERVER_API_PORT=str(port))
    with process([sys.executable, str(ROOT / "flows.py")], env, home / "serve.log") as serving:
        assert until(served_deployments, "the deployments are served") == {"keytally"}
        serving.terminate()
        serving.wait(PATIENCE)
        until(lambda: not processes_below(str(home), serving.pid), "the server has stopped too")


def test_nightly_follows_the_schedule_setting_in_utc_one_run_at_a_time(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTALLY_SCHEDULE", "*/15 3 * * *")
    nightly, _, backfill = flows.deployments()
    ((cron, timezone),) = [(given.schedule.cron, given.schedule.timezone) for given in nightly.schedules or []]
    assert (cron, timezone) == ("*/15 3 * * *", "UTC")
    assert nightly.concurrency_limit == backfill.concurrency_limit == 1
    assert not backfill.schedules
    assert not nightly.paused


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"KEYTALLY_SCHEDULE": "99 0 * * *"},
            "KEYTALLY_SCHEDULE is '99 0 * * *', but must be a cron line",
        ),
        ({"KEYTALLY_THREADS": "none"}, "KEYTALLY_THREADS is 'none', but must be"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "the Prefect server at http://127.0.0.1:9/api does not answer"),
    ],
)
def test_serving_refuses_with_one_sentence(
    data: Path, tmp_path: Path, variables: dict[str, str], sentence: str
) -> None:
    ran = completed([sys.executable, str(ROOT / "flows.py")], environment(tmp_path, **variables))
    assert ran.returncode == 1
    assert ran.stderr.startswith(sentence)
    assert len(ran.stderr.splitlines()) == 1


# The recount of yesterday


def test_yesterday_is_recounted_and_a_difference_leaves_an_artifact(
    client: SyncPrefectClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yesterday = str((datetime.now(UTC) - timedelta(days=1)).date())
    write_raw(data, "eu/yesterday.jsonl", yesterday, 5)
    flows.nightly(return_state=True)
    assert flows.reconcile(return_state=True).name == "Completed"

    text = statement("roll_up_days")
    doubled = text.replace("sum(cost) as", "2 * sum(cost) as")
    assert doubled != text
    monkeypatch.setattr(
        "pipeline.engine.statement", lambda name: doubled if name == "roll_up_days" else statement(name)
    )
    flows.backfill(date.fromisoformat(yesterday), date.fromisoformat(yesterday), return_state=True)
    state = flows.reconcile(return_state=True)
    assert (state.name, state.is_completed()) == ("CompletedWithFindings", True)
    assert f"keytally reconcile --from {yesterday}" in (state.message or "")
    (artifact,) = client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["differences"])), limit=1
    )
    assert "2.5" in str(artifact.data)


def test_a_yesterday_that_cannot_be_recounted_ends_under_a_name_of_its_own(
    client: SyncPrefectClient, data: Path
) -> None:
    yesterday = str((datetime.now(UTC) - timedelta(days=1)).date())
    write_raw(data, "eu/app.jsonl", yesterday, 5)
    write_raw(data, "eu/gone.jsonl", yesterday, 7)
    flows.nightly(return_state=True)
    with (data / "raw/eu/app.jsonl").open("ab") as log:
        log.write(b"more\n")
    assert flows.reconcile(return_state=True).name == "Completed", "an appended log still holds what it held"
    (data / "raw/eu/gone.jsonl").unlink()
    state = flows.reconcile(return_state=True)
    assert (state.name, state.is_completed()) == ("CompletedUnverified", True)
    assert f"keytally reconcile --from {yesterday}" in (state.message or "")
    (artifact,) = client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["unverifiable"])), limit=1
    )
    assert "eu/gone.jsonl" in str(artifact.data)


# A backfill's days


@pytest.mark.parametrize(
    ("first_day", "last_day", "sentence"),
    [
        ("2025-11-30", "2025-11-01", "last_day 2025-11-01 is before first_day 2025-11-30"),
        ("2019-12-31", "2025-11-01", "first_day: Input should be greater than or equal to 2020-01-01"),
        ("2025-11-01", "2031-01-01", "last_day: Input should be less than or equal to 2030-12-31"),
        ("2025-11-01", "2025-11-31", "last_day: Input should be a valid date"),
    ],
)
def test_a_backfill_of_impossible_days_fails_and_says_so(
    client: SyncPrefectClient, data: Path, first_day: str, last_day: str, sentence: str
) -> None:
    write_raw(data, "eu/2025-11-30.jsonl", "2025-11-30", 5)
    with pytest.raises(ParameterTypeError, match=sentence):
        flows.backfill.validate_parameters({"first_day": first_day, "last_day": last_day})
    state = flows.backfill(first_day, last_day, return_state=True)  # type: ignore[arg-type]
    assert state.is_failed()
    assert not artifacts_of(client, state.state_details.flow_run_id)  # before anything ran
    assert sentence in str(state.message)
    assert published(data) == {}


def test_the_bounds_of_a_backfill_are_days_one_may_ask_for() -> None:
    first, last = date(2020, 1, 1), date(2030, 12, 31)
    for days in ((first, last), (first, first), (last, last)):
        given = {"first_day": str(days[0]), "last_day": str(days[1])}
        assert tuple(flows.backfill.validate_parameters(given).values()) == days


def test_a_backfill_is_requested_by_a_form_of_two_days(client: SyncPrefectClient, data: Path) -> None:
    _, _, backfill = flows.deployments()
    deployment_id = backfill.apply()
    assert isinstance(deployment_id, UUID)
    try:
        form = client.read_deployment(deployment_id).parameter_openapi_schema
        assert form is not None
        assert form["required"] == ["first_day", "last_day"]
        assert client.read_deployment(deployment_id).tags == ["keytally", "publishes"]
        for name in form["required"]:
            assert form["properties"][name]["format"] == "date"
            assert "UTC day" in form["properties"][name]["description"]
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            client.create_flow_run_from_deployment(deployment_id, parameters={"first_day": "2025-11-01"})
    finally:
        client.delete_deployment(deployment_id)


def test_a_backfill_is_named_by_its_days_and_rebuilds_them(client: SyncPrefectClient, data: Path) -> None:
    for day in ("2025-11-29", "2025-11-30", "2025-12-01"):
        write_raw(data, f"eu/{day}.jsonl", day, 5)
    assert flows.nightly(return_state=True).is_completed()
    everything = published(data)
    for artifact in (data / "events" / "day=2025-11-30").iterdir():
        artifact.write_bytes(b"damaged")

    state = flows.backfill(date(2025, 11, 29), date(2025, 11, 30), return_state=True)
    assert (state.name, run_of(client, state).name) == ("Completed", "backfill 2025-11-29 to 2025-11-30")
    days = tables_of(client, state.state_details.flow_run_id)["days"]
    assert [row["day"] for row in days] == ["2025-11-29", "2025-11-30"]
    progress = artifacts_of(client, state.state_details.flow_run_id)["progress"]
    assert (progress.data, progress.description) == (100, "Done.")
    assert published(data) == everything
    assert all(file.read_bytes() != b"damaged" for file in (data / "events" / "day=2025-11-30").iterdir())


# Nights that go wrong


def test_a_missed_night_heals_on_the_next(client: SyncPrefectClient, data: Path) -> None:
    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 1)
    assert flows.nightly(return_state=True).name == "Completed"
    write_raw(data, "eu/2025-11-02.jsonl", "2025-11-02", 2)  # and no run that night
    write_raw(data, "eu/2025-11-03.jsonl", "2025-11-03", 3)
    assert flows.nightly(return_state=True).name == "Completed"
    assert {day: requests for (_, day), (requests, _) in published(data).items()} == {
        "2025-11-01": 1,
        "2025-11-02": 2,
        "2025-11-03": 3,
    }
    state = flows.nightly(return_state=True)
    assert (state.name, state.message) == ("Completed", "Nothing new: version 2 stands.")


def test_a_night_over_a_cluster_shows_each_step_as_a_task_run(
    client: SyncPrefectClient, data: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prefect_dask", reason="the extra keytally[dask] is not installed")
    monkeypatch.setenv("KEYTALLY_DASK", cluster.address)
    cluster.start_worker()
    write_raw(data, "a.jsonl.gz", "2025-11-30", 5)
    write_raw(data, "b.jsonl", "2025-12-01", 3)
    state = flows.nightly(return_state=True)
    assert state.is_completed(), state.message
    assert set(task_runs_of(client, state, 6)) == {
        "take in a.jsonl.gz",
        "take in b.jsonl",
        "roll up 2025-11-30 to 2025-12-01 (2 days)",
        "roll up 2025-11",
        "roll up 2025-12",
        "publish after version 0",
    }
    assert published(data) == {
        ("acme", "2025-11-30"): (5, Decimal("1.25")),
        ("acme", "2025-12-01"): (3, Decimal("0.75")),
    }


def test_a_night_whose_cluster_is_gone_fails_with_a_sentence_or_is_done_on_this_machine(
    client: SyncPrefectClient, data: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prefect_dask", reason="the extra keytally[dask] is not installed")
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 1)
    monkeypatch.setenv("KEYTALLY_DASK", cluster.address)
    cluster.end()
    write_raw(data, "a.jsonl", "2025-11-30", 5)
    state = flows.nightly(return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith(f"the Dask scheduler at {cluster.address} does not answer")
    assert "nothing was published. Start it and run" in str(state.message)
    assert json.loads((data / "failed_run.json").read_text())["why"] in str(state.message)  # which status tells
    assert published(data) == {}
    monkeypatch.setenv("KEYTALLY_DASK_LOST", "local")
    state = flows.nightly(return_state=True)
    assert state.is_completed(), state.message
    assert "take in a.jsonl" in task_runs_of(client, state, 4)  # as in any night on this machine
    assert published(data) == {("acme", "2025-11-30"): (5, Decimal("1.25"))}


def test_a_night_whose_workers_die_over_a_step_fails_with_a_sentence(
    client: SyncPrefectClient, data: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prefect_dask", reason="the extra keytally[dask] is not installed")
    monkeypatch.setenv("KEYTALLY_DASK", cluster.address)
    kill(cluster.scheduler)
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    cluster.start_scheduler()
    cluster.start_worker(TEST_DIES_WHILE="always")
    write_raw(data, "a.jsonl", "2025-11-30", 5)
    state = flows.nightly(return_state=True)
    assert state.is_failed()
    assert "1 workers died over one step" in str(state.message)
    assert published(data) == {}


def test_a_night_over_a_cluster_without_the_extra_says_what_to_install(
    client: SyncPrefectClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client
    monkeypatch.setenv("KEYTALLY_DASK", "tcp://127.0.0.1:1")
    for module in ("prefect_dask.task_runners", "pipeline.cluster"):
        monkeypatch.setitem(sys.modules, module, None)
    write_raw(data, "a.jsonl", "2025-11-30", 5)
    state = flows.nightly(return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith(
        "KEYTALLY_DASK is set, and prefect_dask.task_runners is not installed; pip install 'keytally[dask]'"
    )


def test_a_night_with_findings_completes_and_names_them(client: SyncPrefectClient, data: Path) -> None:
    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 9)
    assert flows.nightly(return_state=True).is_completed()
    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 4)
    write_raw(data, "eu/2025-11-02.jsonl", "2025-11-02", 2)
    write_raw(data, "eu/2025-11-03.jsonl.gz", "2025-11-03", 30)
    truncated = data / "raw" / "eu" / "2025-11-03.jsonl.gz"
    truncated.write_bytes(truncated.read_bytes()[:-9])

    state = flows.nightly(return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "CompletedWithFindings")
    assert run_of(client, state).state_name == "CompletedWithFindings"
    assert str(state.message).startswith("eu/2025-11-03.jsonl.gz is held back: truncated")
    assert "(and 1 more)" in str(state.message)
    artifacts = artifacts_of(client, state.state_details.flow_run_id)
    report = str(artifacts["report"].data)
    assert report.startswith("## Version 2 is published.")
    assert "- **Taken in:** 2 files, 6 lines: 6 accepted, 0 quarantined." in report
    assert "`eu/2025-11-03.jsonl.gz`: deliver it again under the same name" in report.partition("What to do next")[2]
    findings = tables_of(client, state.state_details.flow_run_id)["findings"]
    assert [finding["file"] for finding in findings] == ["eu/2025-11-03.jsonl.gz", "eu/2025-11-01.jsonl"]
    assert findings[1]["finding"] == "2025-11-01: 9 before, 4 now"
    assert published(data) == {
        ("acme", "2025-11-01"): (4, Decimal("1.00")),
        ("acme", "2025-11-02"): (2, Decimal("0.50")),
    }
    tasks = task_runs_of(client, state, 6)
    held_back = tasks["take in eu/2025-11-03.jsonl.gz"]
    assert held_back.state is not None
    assert held_back.state.is_failed()
    assert held_back.run_count == 1  # an answer, not an accident: reading it again would say the same
    assert sum(not run.state.is_completed() for run in tasks.values() if run.state) == 1


def step_as(name: str, function: Callable[..., Any]) -> flows.Steps:
    """The steps with another function in the place of one, and everything else about it the same."""
    step: Task[..., Any] = getattr(flows.STEPS, name)
    other = step.with_options()
    other.fn = function
    return flows.STEPS._replace(**{name: other})


def test_a_night_that_fails_a_check_publishes_nothing_and_says_so(
    client: SyncPrefectClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 3)
    assert flows.nightly(return_state=True).is_completed()
    before = published(data)

    def losing_a_line(run: Run, days: list[DayInputs]) -> list[DayEntry]:
        third = date(2025, 11, 3)
        return roll_up_days(run, [day._replace(accepted=day.accepted + (day.day == third)) for day in days])

    write_raw(data, "eu/2025-11-02.jsonl", "2025-11-02", 2)
    write_raw(data, "eu/2025-11-03.jsonl", "2025-11-03", 3)
    with monkeypatch.context() as broken:
        broken.setattr(flows, "STEPS", step_as("roll_up_days", losing_a_line))
        state = flows.nightly(return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Failed")
    assert str(state.message).startswith(
        "check 'accepted lines are in the day's events' failed for 2025-11-03: expected 4, got 3; nothing was"
        " published. Start the run again; if it says the same, keep the raw files"
    )
    artifacts = artifacts_of(client, state.state_details.flow_run_id)
    assert "prefect deployment run nightly/keytally" in str(artifacts["report"].data)
    assert str(artifacts["progress"].description).startswith("Stopped here; the run's message says why. Rolling up")
    assert artifacts["progress"].data < 100  # type: ignore[operator]
    assert isinstance(state.result(raise_on_failure=False), CheckFailed)
    tasks = task_runs_of(client, state, 3)
    assert tasks["roll up 2025-11-02 to 2025-11-03 (2 days)"].run_count == 1
    assert published(data) == before

    assert flows.nightly(return_state=True).is_completed()  # nothing of the failed night is in the way
    assert [requests for requests, _ in published(data).values()] == [3, 2, 3]


def test_a_night_without_what_it_needs_fails_with_a_next_step(
    client: SyncPrefectClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 3)
    assert flows.nightly(return_state=True).is_completed()
    newest = max((data / "rollups" / "_delta_log").glob("*.json"))
    log_entry = newest.read_bytes()
    newest.write_bytes(b"damaged")
    write_raw(data, "eu/2025-11-02.jsonl", "2025-11-02", 1)
    state = flows.nightly(return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("the published table cannot be read")
    assert "restore rollups/_delta_log from a copy" in str(state.message)
    assert isinstance(state.result(raise_on_failure=False), KeytallyError)
    newest.write_bytes(log_entry)
    assert published(data) == {("acme", "2025-11-01"): (3, Decimal("0.75"))}

    monkeypatch.setenv("KEYTALLY_THREADS", "0")
    state = flows.nightly(return_state=True)
    assert state.is_failed()
    assert state.message == (
        "KEYTALLY_THREADS is '0', but must be a whole number from 1 to 1024. Set it right where the flows are served,"
        " and start 'python flows.py' again."
    )


def test_a_step_that_meets_with_an_accident_is_repeated(
    client: SyncPrefectClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 3)
    in_the_way = data / "daily"
    in_the_way.write_text("a file where a folder belongs: an OSError for whoever wants to write below it")
    failed = threading.Event()

    def rolled(run: Run, days: list[DayInputs]) -> list[DayEntry]:
        if failed.is_set():
            in_the_way.unlink()
        failed.set()
        return roll_up_days(run, days)

    steps = step_as("roll_up_days", rolled)
    steps.roll_up_days.retry_delay_seconds = [0.1]  # type: ignore[attr-defined]
    monkeypatch.setattr(flows, "STEPS", steps)
    state = flows.nightly(return_state=True)
    assert state.name == "Completed", state.message
    assert task_runs_of(client, state, 4)["roll up 2025-11-01"].run_count == 2
    assert published(data) == {("acme", "2025-11-01"): (3, Decimal("0.75"))}


def test_an_accident_that_stays_fails_the_night_after_the_last_attempt(
    client: SyncPrefectClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 3)
    (data / "daily").write_text("in the way for good")
    steps = step_as("roll_up_days", roll_up_days)
    steps.roll_up_days.retry_delay_seconds = [0.1]  # type: ignore[attr-defined]
    monkeypatch.setattr(flows, "STEPS", steps)
    state = flows.nightly(return_state=True)
    assert state.is_failed()
    assert "File exists" in str(state.message)
    assert str(state.message).endswith("See to the disk (room, rights, what is in the way), then start the run again.")
    assert task_runs_of(client, state, 2)["roll up 2025-11-01"].run_count == 1 + len(flows.RETRY_AFTER_SECONDS)
    assert published(data) == {}


def test_steps_are_given_the_run_itself_in_its_own_thread(
    client: SyncPrefectClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy would have another engine; another thread would share a connection that must not be shared."""
    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 3)
    write_raw(data, "eu/2025-11-02.jsonl", "2025-11-02", 3)
    given: list[tuple[Run, threading.Thread]] = []

    def rolled(run: Run, days: list[DayInputs]) -> list[DayEntry]:
        given.append((run, threading.current_thread()))
        return roll_up_days(run, days)

    monkeypatch.setattr(flows, "STEPS", step_as("roll_up_days", rolled))
    monkeypatch.setattr("pipeline.rollup.LINES_AT_ONCE", 3)  # a group for each day
    assert flows.nightly(return_state=True).is_completed()
    assert len(given) == 2
    assert given[0][0] is given[1][0]
    assert {thread for _, thread in given} == {threading.current_thread()}


LOWERED = LoweredDay(
    date(2025, 11, 1),
    1,
    2,
    1,
    ("a.jsonl",),
    True,
    (),
    (Lowered("a.jsonl", "org_a", requests_before=2, requests_after=1),),
)


@pytest.mark.parametrize(
    "report",
    [
        Report(held_back=[HeldBack("a.jsonl", "truncated")]),
        Report(lowered=[LOWERED]),
        Report(lowered=[replace(LOWERED, files=(), replaced=False, rows=())]),
        Report(ignored=[IgnoredLog("a.jsonl.1", "what is read is .jsonl", "rename it")]),
        Report(lost_days=[date(2025, 11, 1)]),
        Report(records_lost=[date(2025, 11, 1)]),
        Report(unpriced=(Unpriced(date(2025, 11, 1), 3, ["a price of gpt"]),)),
    ],
)
def test_whatever_is_a_finding_of_a_run_is_one_of_its_flow(report: Report) -> None:
    assert report.has_findings
    assert all(finding.what_to_do for finding in findings_of(report))
    assert "### What to do next" in report_of(report)
    state = flows._finished(report)
    assert state.name == "CompletedWithFindings"


def test_the_table_of_findings_is_as_narrow_as_a_page(data: Path) -> None:
    file = "/".join(["a_rather_long_name"] * 12)
    held_back = [HeldBack(file, f"unreadable: {'no ' * 99}"), HeldBack("b.jsonl", "x" * 99)]
    report = Report(held_back=held_back, unpriced=(Unpriced(date(2025, 11, 1), 3, ["a price of gpt"] * 20),))
    rows = findings_table(report)
    assert [list(row) for row in rows] == [["file", "finding"]] * 3
    assert max(len(cell) for row in rows for cell in row.values()) == 60
    assert rows[0] == {"file": f"…{file[-59:]}", "finding": "held back: unreadable"}
    assert f"`{file}`" in report_of(report)


def test_the_page_of_a_flow_says_what_it_does_and_keeps_the_words_of_its_form_for_the_form() -> None:
    for flow in (flows.nightly, flows.reconcile, flows.backfill):
        assert len(str(flow.description)) > 100
        assert "Args:" not in str(flow.description)
    assert [deployment.description for deployment in flows.deployments()] == [
        flow.description for flow in (flows.nightly, flows.reconcile, flows.backfill)
    ]


def test_a_page_that_cannot_be_written_fails_no_run(
    client: SyncPrefectClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> UUID:
        raise httpx.ConnectError("the server is being restarted")

    write_raw(data, "eu/2025-11-01.jsonl", "2025-11-01", 3)
    for artifact in ("markdown", "progress", "table"):
        monkeypatch.setattr(flows, f"create_{artifact}_artifact", unreachable)
    state = flows.nightly(return_state=True)
    assert state.name == "Completed", state.message
    assert published(data) == {("acme", "2025-11-01"): (3, Decimal("0.75"))}
