"""The scheduled face of keytally: the same runs as the commands, as Prefect flows.

`python flows.py` serves the flows. Prefect decides when a run starts, repeats a step that met with an accident, and
shows what was done. It keeps nothing that a run relies on: each derives everything anew from raw/ and the ledger, so
a missed night is made up for by the next one, and two runs at once lose nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar, cast
from uuid import UUID

# Prefect reads these when it is imported; the runs that `serve` starts inherit them.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "pipeline")

import duckdb
import httpx
from prefect import State, Task, flow, serve
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType, TaskRun
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runtime import flow_run
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_PORT, temporary_settings
from prefect.states import Completed, Crashed, Failed
from pydantic import AfterValidator, Field, ValidationInfo

from pipeline.contract.layout import FIRST_DAY, LAST_DAY
from pipeline.contract.settings import Settings, SettingsError
from pipeline.contract.store import StoreError
from pipeline.contract.wording import count_of
from pipeline.errors import KeytallyError
from pipeline.fan_out import dask_extra, fan_out, fan_out_of
from pipeline.intake import take_in
from pipeline.progress import shown
from pipeline.publish import publish
from pipeline.raw import RawFile
from pipeline.reconcile import Reconciliation
from pipeline.reconcile import reconcile as recount
from pipeline.report import Report
from pipeline.rollup import DayInputs, roll_up_days, roll_up_month
from pipeline.run import Run, Watch, start_run
from pipeline.run_page import (
    ABOUT_DAYS,
    ABOUT_FINDINGS,
    days_table,
    failure_report,
    findings_of,
    findings_table,
    recount_of,
    report_of,
    what_failed,
)
from pipeline.terminal import keep_logs_visible
from pipeline.update import Steps, roll_up
from pipeline.update import backfill as roll_up_again

NAME = "keytally"  # of every deployment, and a tag of each
PUBLISHES, COMPARES = [NAME, "publishes"], [NAME, "compares"]
RECONCILE_SCHEDULE = "0 3 * * *"  # UTC; late enough for the night's run to be done with
RETRY_AFTER_SECONDS: list[float] = [5, 30, 120]
SERVER_START_SECONDS = 120
STAGES = ["taking in", "rolling up days", "rolling up months"]
STAGES_OF_A_BACKFILL = [STAGES[0], "checking files", *STAGES[1:]]
KILLED = (
    "Its process was killed, or the machine stopped. Nothing half-done is visible, and the next nightly run makes up"
    " for it; start a backfill again."
)
# What is told in a sentence. Anything else is a fault of ours, and Prefect shows where it comes from.
FAILURES = (KeytallyError, SettingsError, StoreError, OSError, duckdb.Error)

keep_logs_visible()
log = logging.getLogger("pipeline.flows")  # which Prefect shows with the run


def _nightly_name() -> str:
    return f"nightly {flow_run.scheduled_start_time:%Y-%m-%d}"


@flow(flow_run_name=_nightly_name, persist_result=False)
def nightly() -> State[None]:
    """Take in what is new in raw/, roll up the days and months it touches, and publish them together.

    With nothing new, nothing is published. A missed night needs no care: the next run takes in all there is.
    """
    return _carry_out(roll_up, STAGES, "prefect deployment run nightly/keytally")


def _not_before_first_day(last_day: date, given: ValidationInfo) -> date:
    first_day = given.data.get("first_day", last_day)
    if last_day < first_day:
        raise ValueError(f"last_day {last_day} is before first_day {first_day}; nothing was done: give them in order")
    return last_day


ABOUT_BACKFILL = """\
Check everything that these days are made from, rebuild from raw/ what is missing or damaged, and roll the days and
their months up anew. Equal results publish nothing.

For days whose published numbers are doubted, or that a message names as damaged. It may be run as often as one likes;
what is new in raw/ is taken in too.
"""

Day: TypeAlias = Annotated[date, Field(ge=FIRST_DAY, le=LAST_DAY)]


@flow(
    flow_run_name="backfill {first_day} to {last_day}",
    description=ABOUT_BACKFILL,
    persist_result=False,
)
def backfill(first_day: Day, last_day: Annotated[Day, AfterValidator(_not_before_first_day)]) -> State[None]:
    """Roll these days and their months up anew; ABOUT_BACKFILL says more. The form for a run has its words from here.

    Args:
        first_day: the first UTC day, from 2020-01-01 to 2030-12-31
        last_day: the last UTC day (included), not before the first
    """
    days = f"-p first_day={first_day} -p last_day={last_day}"
    again = f"prefect deployment run backfill/keytally {days}"
    return _carry_out(partial(_backfill, first_day=first_day, last_day=last_day), STAGES_OF_A_BACKFILL, again)


def _yesterday() -> date:
    due: datetime = flow_run.scheduled_start_time
    return due.astimezone(UTC).date() - timedelta(days=1)


@flow(flow_run_name=lambda: f"reconcile {_yesterday()}", persist_result=False)
def reconcile() -> State[None]:
    """Recount yesterday from the raw logs, by rules and code of their own, and compare with what is published.

    It changes nothing. A number that differs ends the run as CompletedWithFindings, and is in its table.
    """
    yesterday = _yesterday()
    try:
        settings = Settings.from_environment()
        with _show_progress(["recounting"]) as watch, start_run(settings, lambda: datetime.now(UTC), watch) as run:
            recounted = recount(run, yesterday, yesterday)
    except FAILURES as error:
        return _failed(error, f"keytally reconcile --from {yesterday} --to {yesterday}")
    return _compared(recounted, yesterday)


def deployments(schedule: Schedule | None = None) -> list[RunnerDeployment]:
    """`nightly` by KEYTALLY_SCHEDULE unless another `schedule` is given, `reconcile` at 03:00, `backfill` on request.

    Raises SettingsError for a setting that cannot be used.
    """
    schedule = schedule or _cron(Settings.from_environment().schedule)
    at_three = _cron(RECONCILE_SCHEDULE)
    return [
        RunnerDeployment.from_flow(nightly, NAME, schedule=schedule, concurrency_limit=1, tags=PUBLISHES),
        RunnerDeployment.from_flow(reconcile, NAME, schedule=at_three, concurrency_limit=1, tags=COMPARES),
        RunnerDeployment.from_flow(backfill, NAME, concurrency_limit=1, tags=PUBLISHES),
    ]


def serve_flows(schedule: Schedule | None = None) -> None:
    """Serve the deployments until stopped.

    Raises SettingsError for a setting that cannot be used, KeytallyError when the Prefect server does not answer.
    """
    served = deployments(schedule)
    with _prefect_server():
        _clear_up_after_dead_runs(served)
        # A service that was stopped must not leave a paused schedule behind, which nobody would start again.
        serve(*served, pause_on_shutdown=False)


@contextmanager
def _prefect_server() -> Iterator[None]:
    """The Prefect server that is set; where none is, one on this machine, for as long as the flows are served.

    The temporary server that Prefect itself would make up schedules nothing.
    """
    if PREFECT_API_URL.value():
        yield
        return
    url = f"http://127.0.0.1:{PREFECT_SERVER_API_PORT.value()}/api"
    with ExitStack() as stack:
        if not _answers(url):
            stack.enter_context(_started_server(url))
        os.environ["PREFECT_API_URL"] = url  # for the runs, which are processes of their own
        stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        yield


@contextmanager
def _started_server(url: str) -> Iterator[None]:
    logging.getLogger("prefect").info("Starting a Prefect server; its page is at %s", url.removesuffix("/api"))
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    # Until Prefect listens for it, a SIGTERM would end this process and leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        begun = time.monotonic()
        while not _answers(url):
            if server.poll() is not None or time.monotonic() - begun > SERVER_START_SECONDS:
                raise KeytallyError(
                    f"no Prefect server could be started for {url}; PREFECT_SERVER_API_PORT sets another port, and "
                    "PREFECT_API_URL names a server of your own"
                )
            time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def _clear_up_after_dead_runs(served: Iterable[RunnerDeployment]) -> None:
    """Give back the places of runs that died, and say that they did: no run is under way when its service starts.

    The Prefect server forgets who holds a place when it is restarted. The place of a run that was killed together
    with it, by a power cut say, would stay taken, and every later run wait for it without a word. The run itself
    would be shown as running for ever, and nobody be told.
    """
    try:
        with get_client(sync_client=True) as client:
            for deployment in served:
                with suppress(ObjectNotFound):
                    known = client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}")
                    of_known = FlowRunFilter(
                        deployment_id=FlowRunFilterDeploymentId(any_=[known.id]),
                        state=FlowRunFilterState(
                            type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
                        ),
                    )
                    for dead in client.read_flow_runs(flow_run_filter=of_known):
                        client.set_flow_run_state(dead.id, Crashed(message=KILLED), force=True)
                    if limit := known.global_concurrency_limit:
                        client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))
    except (httpx.TransportError, RuntimeError) as error:
        raise KeytallyError(
            f"the Prefect server at {PREFECT_API_URL.value()} does not answer; is it running?"
        ) from error


def _cron(line: str) -> Schedule:
    try:
        return Cron(line, timezone="UTC")
    except ValueError as error:
        raise SettingsError("KEYTALLY_SCHEDULE", line, "a cron line of five fields (UTC), as '30 0 * * *'") from error


def _is_accident(_task: Task[..., Any], _run: TaskRun, failed: State[Any]) -> bool:
    """Whether a step may go well when it is repeated. A KeytallyError is an answer: it would be the same again."""
    return isinstance(failed.data, (OSError, StoreError, duckdb.IOException))


_Inputs = ParamSpec("_Inputs")
_Result = TypeVar("_Result")


def _step(
    step: Callable[_Inputs, _Result], run_name: str | Callable[..., str], *, repeat: bool = True
) -> Task[_Inputs, _Result]:
    return Task(
        step,
        task_run_name=run_name,
        retries=len(RETRY_AFTER_SECONDS) if repeat else 0,
        retry_delay_seconds=RETRY_AFTER_SECONDS,
        retry_condition_fn=_is_accident,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _days_rolled_up(parameters: dict[str, Any]) -> str:
    """`roll up 2025-11-01`, or `roll up 2025-11-01 to 2025-11-14 (12 days)`."""
    days: list[DayInputs] = parameters["days"]
    first, last = days[0].day, days[-1].day
    return f"roll up {first}" if first == last else f"roll up {first} to {last} ({count_of(len(days), 'day')})"


STEPS = Steps(
    take_in=_step(take_in, "take in {raw_file.file}"),
    roll_up_days=_step(roll_up_days, _days_rolled_up),
    roll_up_month=_step(roll_up_month, "roll up {month:%Y-%m}"),
    # Not by itself: it moves the finished files to where they are published. The next run is its retry.
    publish=_step(publish, "publish after version {before.version}", repeat=False),
)


@contextmanager
def _steps_for(settings: Settings) -> Iterator[Steps]:
    """The steps, each a task run: on this machine or, where the settings name a cluster that is there, on its workers.

    Raises KeytallyError when it cannot be used.
    """
    if settings.dask is None:
        yield STEPS
        return
    with dask_extra():
        from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415  # an extra

    @contextmanager
    def connect(address: str, seconds: float) -> Iterator[Any]:
        with DaskTaskRunner(address=address, client_kwargs={"timeout": seconds}) as runner:
            yield runner.client

    def task_of(carry_out: Callable[..., Any], step: Callable[..., Any], item: object) -> Task[..., Any]:
        return _step(carry_out, _what_is_done(step, item))

    with fan_out_of(settings, connect, task_of) as over_the_cluster:
        if over_the_cluster is fan_out:
            yield STEPS
        else:
            yield STEPS._replace(take_in=take_in, roll_up_days=roll_up_days, fan_out=over_the_cluster)


def _what_is_done(step: Callable[..., Any], item: object) -> str:
    """What a task run is called, as `take in a.jsonl`."""
    if isinstance(item, RawFile):
        return f"take in {item.file}"
    if isinstance(item, list) and item and isinstance(item[0], DayInputs):
        return _days_rolled_up({"days": item})
    return getattr(step, "func", step).__name__.strip("_").replace("_", " ")


def _backfill(run: Run, steps: Steps, *, first_day: date, last_day: date) -> Report:
    return roll_up_again(run, first_day, last_day, steps)


def _carry_out(update: Callable[[Run, Steps], Report], stages: Sequence[str], run_again: str) -> State[None]:
    """The state that a flow ends in. What can be said in one sentence fails with that sentence."""
    try:
        settings = Settings.from_environment()
        with (
            _show_progress(stages) as watch,
            start_run(settings, lambda: datetime.now(UTC), watch, publishes=True) as run,
            _steps_for(settings) as steps,
        ):
            report = update(run, steps)
    except FAILURES as error:
        return _failed(error, run_again)
    _show(report)
    return _finished(report)


def _finished(report: Report) -> State[None]:
    """Completed either way: everything that could be published is. Findings show in the state's name, which is also
    the name of its event, so that an automation can tell somebody; a failed state would say that the night is lost.
    """
    findings = [f"{finding.file} is {finding.finding}" for finding in findings_of(report)]
    if not findings:
        return Completed(message=_summary(report))
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return Completed(name="CompletedWithFindings", message=f"{findings[0]}{more}. {_summary(report)}")


def _compared(recounted: Reconciliation, day: date) -> State[None]:
    """Completed whatever was found; under another name, which is the event to alert on, when a number differs, and
    under yet another when the day could not be compared.
    """
    with _best_effort():
        _show_recount(recounted, day)
    if recounted.differences:
        return Completed(
            name="CompletedWithFindings",
            message=f"{day}: {count_of(len(recounted.differences), 'number')} not as in the raw logs. Run 'keytally "
            f"backfill' over the day, then 'keytally reconcile --from {day} --to {day}'.",
        )
    if recounted.unverifiable:
        return Completed(
            name="CompletedUnverified",
            message=f"{day} was not compared: what {count_of(len(recounted.missing), 'raw file')} held is gone from "
            f"raw/ or was changed there. Put it back, then run 'keytally reconcile --from {day} --to {day}'.",
        )
    return Completed(message=f"{day} equals its raw logs.")


def _show_recount(recounted: Reconciliation, day: date) -> None:
    create_markdown_artifact(recount_of(recounted, day), key="recount", description=f"{day}, recounted from raw/.")
    if recounted.missing:
        missing = [{"file": content.file, "days": ", ".join(map(str, content.days))} for content in recounted.missing]
        create_table_artifact(
            missing,
            key="unverifiable",
            description=f"{day}: these no longer hold in raw/ what they held when taken in.",
        )
    if recounted.differences:
        listed = recounted.as_json()["differences"]
        told = [name for name in listed[0] if any(row[name] is not None for row in listed)]
        differences = [{name: row[name] for name in told} for row in listed]  # Prefect folds no table
        create_table_artifact(differences, key="differences", description=f"{day}: published, and recounted from raw/.")


def _summary(report: Report) -> str:
    if not report.ingested and not report.days:
        return f"Nothing new: version {report.version} stands."
    return (
        f"Version {report.version}: {count_of(len(report.ingested), 'file')} taken in, "
        f"{count_of(report.quarantined, 'line')} quarantined, {count_of(len(report.days), 'day')} rolled up."
    )


@contextmanager
def _best_effort() -> Iterator[None]:
    """What a page about a run lacks is no reason for the run to fail: what it published is published."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        log.warning("the run's page could not be written whole: %s", error)


def _show(report: Report) -> None:
    """Leave what was done, the days, and what somebody should look at, as artifacts of the flow run."""
    with _best_effort():
        create_markdown_artifact(report_of(report), key="report", description=_summary(report))
        if report.days:
            create_table_artifact(days_table(report), key="days", description=ABOUT_DAYS)
        if report.has_findings:
            create_table_artifact(findings_table(report), key="findings", description=ABOUT_FINDINGS)


def _show_progress(stages: Sequence[str]) -> AbstractContextManager[Watch]:
    """A watch whose progress is an artifact of the flow run."""
    made: list[UUID] = []

    def show(percent: float, text: str) -> None:
        if made:
            update_progress_artifact(made[0], percent, text)
        else:
            made.append(cast(UUID, create_progress_artifact(percent, key="progress", description=text)))

    return shown(stages, show)


def _failed(error: Exception, run_again: str) -> State[None]:
    """What can be said in one sentence, which ends in what to do."""
    with _best_effort():
        create_markdown_artifact(failure_report(error, run_again), key="report", description="The run failed.")
    # An answer goes without its frames: in the log they would push the sentence out of sight.
    is_answer = isinstance(error, (KeytallyError, SettingsError, StoreError))
    return Failed(message=what_failed(error), data=error.with_traceback(None) if is_answer else error)


if __name__ == "__main__":
    try:
        serve_flows()
    except (KeytallyError, SettingsError) as error:
        sys.exit(str(error))
