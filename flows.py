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
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar

# Prefect reads these when it is imported; the runs that `serve` starts inherit them.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "pipeline")

import duckdb
import httpx
from prefect import State, Task, flow, serve
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import TaskRun
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_PORT, temporary_settings
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner
from pydantic import AfterValidator, Field, ValidationInfo

from pipeline.contract.layout import FIRST_DAY, LAST_DAY, month_name
from pipeline.contract.settings import Settings, SettingsError
from pipeline.contract.store import StoreError
from pipeline.contract.wording import count_of
from pipeline.errors import KeytallyError
from pipeline.fan_out import Item, Result
from pipeline.intake import take_in
from pipeline.publish import publish
from pipeline.raw import RawFile
from pipeline.reconcile import Reconciliation
from pipeline.reconcile import reconcile as recount
from pipeline.report import Report
from pipeline.rollup import DayInputs, roll_up_days, roll_up_month
from pipeline.run import Run, start_run
from pipeline.update import Steps, roll_up
from pipeline.update import backfill as roll_up_again

NAME = "keytally"  # of every deployment, and their tag
RECONCILE_SCHEDULE = "0 3 * * *"  # UTC; late enough for the night's run to be done with
RETRY_AFTER_SECONDS: list[float] = [5, 30, 120]
SERVER_START_SECONDS = 120


def _task_runner() -> TaskRunner[Any] | None:
    """Prefect's own for a Dask cluster, where one is set; None: its usual one."""
    address = os.environ.get("KEYTALLY_DASK")
    if not address:
        return None
    from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415  # an extra

    runner: TaskRunner[Any] = DaskTaskRunner(address=address)
    return runner


def _nightly_name() -> str:
    return f"nightly {flow_run.scheduled_start_time:%Y-%m-%d}"


@flow(flow_run_name=_nightly_name, task_runner=_task_runner(), persist_result=False)
def nightly() -> State[None]:
    """Take in what is new in raw/, roll up the days and months it touches, and publish them together.

    With nothing new, nothing is published. A missed night needs no care: the next run takes in all there is.
    """
    return _carry_out(roll_up)


def _not_before_first_day(last_day: date, given: ValidationInfo) -> date:
    first_day = given.data.get("first_day", last_day)
    if last_day < first_day:
        raise ValueError(f"last_day {last_day} is before first_day {first_day}")
    return last_day


Day: TypeAlias = Annotated[date, Field(ge=FIRST_DAY, le=LAST_DAY)]


@flow(flow_run_name="backfill {first_day} to {last_day}", task_runner=_task_runner(), persist_result=False)
def backfill(first_day: Day, last_day: Annotated[Day, AfterValidator(_not_before_first_day)]) -> State[None]:
    """Check everything that these days are made from, rebuild from raw/ what is missing or damaged, and roll the days
    and their months up anew. Equal results publish nothing.

    Args:
        first_day: the first UTC day, from 2020-01-01 to 2030-12-31
        last_day: the last UTC day (included), not before the first
    """
    return _carry_out(partial(_backfill, first_day=first_day, last_day=last_day))


def _yesterday() -> date:
    due: datetime = flow_run.scheduled_start_time
    return due.astimezone(UTC).date() - timedelta(days=1)


@flow(flow_run_name=lambda: f"reconcile {_yesterday()}", persist_result=False)
def reconcile() -> State[None]:
    """Recount yesterday from the raw logs, by rules and code of their own, and compare with what is published."""
    yesterday = _yesterday()
    try:
        with start_run(Settings.from_environment(), clock=lambda: datetime.now(UTC)) as run:
            recounted = recount(run, yesterday, yesterday)
    except (KeytallyError, SettingsError, StoreError) as error:
        return Failed(message=str(error), data=error.with_traceback(None))
    return _compared(recounted, yesterday)


def deployments(schedule: Schedule | None = None) -> list[RunnerDeployment]:
    """`nightly` by KEYTALLY_SCHEDULE unless another `schedule` is given, `reconcile` at 03:00, `backfill` on request.

    Raises SettingsError for a setting that cannot be used.
    """
    schedule = schedule or _cron(Settings.from_environment().schedule)
    at_three = _cron(RECONCILE_SCHEDULE)
    return [
        RunnerDeployment.from_flow(nightly, NAME, schedule=schedule, concurrency_limit=1, tags=[NAME]),
        RunnerDeployment.from_flow(reconcile, NAME, schedule=at_three, concurrency_limit=1, tags=[NAME]),
        RunnerDeployment.from_flow(backfill, NAME, concurrency_limit=1, tags=[NAME]),
    ]


def serve_flows(schedule: Schedule | None = None) -> None:
    """Serve the deployments until stopped.

    Raises SettingsError for a setting that cannot be used, KeytallyError when the Prefect server does not answer.
    """
    served = deployments(schedule)
    with _prefect_server():
        _free_places(served)
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


def _free_places(served: Iterable[RunnerDeployment]) -> None:
    """Give back the places of runs that died: no run is under way when its service starts.

    The Prefect server forgets who holds a place when it is restarted. The place of a run that was killed together
    with it, by a power cut say, would stay taken, and every later run wait for it without a word.
    """
    try:
        with get_client(sync_client=True) as client:
            for deployment in served:
                with suppress(ObjectNotFound):
                    known = client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}")
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


def _over_the_cluster(run: Run, step: Callable[[Run, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What the workers of the flow's task runner make of each item, in their order: a task run each."""
    from pipeline.cluster import carry_out, order_of  # noqa: PLC0415  # an extra

    order = order_of(run)
    named = [_step(carry_out, _what_is_done(step, item)) for item in items]
    futures = [task.submit(order, step, item) for task, item in zip(named, items, strict=True)]
    return (future.result() for future in futures)


def _what_is_done(step: Callable[..., Any], item: object) -> str:
    """What a task run is called, as `take in a.jsonl`."""
    if isinstance(item, RawFile):
        return f"take in {item.file}"
    if step is roll_up_days:
        return _days_rolled_up({"days": item})
    return getattr(step, "func", step).__name__.strip("_").replace("_", " ")


STEPS_OVER_THE_CLUSTER = STEPS._replace(take_in=take_in, roll_up_days=roll_up_days, fan_out=_over_the_cluster)


def _backfill(run: Run, steps: Steps, *, first_day: date, last_day: date) -> Report:
    return roll_up_again(run, first_day, last_day, steps)


def _carry_out(update: Callable[[Run, Steps], Report]) -> State[None]:
    """The state that a flow ends in. What can be said in one sentence fails with that sentence."""
    try:
        settings = Settings.from_environment()
        with start_run(settings, clock=lambda: datetime.now(UTC)) as run:
            report = update(run, STEPS_OVER_THE_CLUSTER if settings.dask else STEPS)
    except (KeytallyError, SettingsError, StoreError) as error:
        # Without its frames: in the log they would push the sentence out of sight.
        return Failed(message=str(error), data=error.with_traceback(None))
    _show(report)
    return _finished(report)


def _finished(report: Report) -> State[None]:
    """Completed either way: everything that could be published is. Findings show in the state's name, which is also
    the name of its event, so that an automation can tell somebody; a failed state would say that the night is lost.
    """
    findings = [f"{finding['file']} is {finding['finding']}" for finding in _findings(report)]
    if not findings:
        return Completed(message=_summary(report))
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return Completed(name="CompletedWithFindings", message=f"{findings[0]}{more}. {_summary(report)}")


def _compared(recounted: Reconciliation, day: date) -> State[None]:
    """Completed whatever was found; under another name, which is the event to alert on, when a number differs, and
    under yet another when the day could not be compared.
    """
    if recounted.missing:
        missing = [{"file": content.file, "days": ", ".join(map(str, content.days))} for content in recounted.missing]
        create_table_artifact(
            missing,
            key="unverifiable",
            description=f"{day}: these no longer hold in raw/ what they held when taken in.",
        )
    if recounted.differences:
        differences = recounted.as_json()["differences"]
        create_table_artifact(differences, key="differences", description=f"{day}: published, and recounted from raw/.")
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


def _summary(report: Report) -> str:
    if not report.ingested and not report.days:
        return f"Nothing new: version {report.version} stands."
    return (
        f"Version {report.version}: {count_of(len(report.ingested), 'file')} taken in, "
        f"{count_of(report.quarantined, 'line')} quarantined, {count_of(len(report.days), 'day')} rolled up."
    )


def _show(report: Report) -> None:
    """Leave the days done, and what somebody should look at, as table artifacts of the flow run."""
    if report.days:
        create_table_artifact(report.as_json()["days"], key="days", description=_summary(report))
    if report.has_findings:
        create_table_artifact(_findings(report), key="findings", description="Files somebody should look at.")


def _findings(report: Report) -> list[dict[str, str]]:
    held_back = [{"file": held.file, "finding": f"held back: {held.reason}"} for held in report.held_back]
    lowered = [
        {"file": file, "finding": f"replaced by fewer requests: {before:,} lines accepted before, {after:,} now"}
        for file, before, after in report.replaced
        if after < before
    ]
    lost = [
        {"file": f"restatements of {month_name(month)}", "finding": "damaged: what they recorded before now is lost"}
        for month in report.records_lost
    ]
    gone = [
        {"file": f"raw files of {day}", "finding": "gone, and so is the version that counted them"}
        for day in report.lost_days
    ]
    return held_back + lowered + lost + gone


if __name__ == "__main__":
    try:
        serve_flows()
    except (KeytallyError, SettingsError) as error:
        sys.exit(str(error))
