"""What is counted of the requests, and shown with the state of the data at /metrics: no organization, no key."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import Receive, Scope, Send

from pipeline.contract.wording import age_of
from serving.answer import Answer, Body
from serving.clock import Clock
from serving.reader import Confirmed, Reader

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # in the environment, where several workers serve: each keeps its counts in a file
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# What the note of the newest run counts, each a figure of its own.
COUNTED = {
    "held_back_files": "Raw files that the newest run held back.",
    "ignored_logs": "Files below raw/ that look like logs and are not read.",
    "lowered_days": "Published days that lost requests, by the runs of the last 26 hours.",
    "conflicting_copies": "Copies of requests that differ from the one that counts, of the published version.",
    "disagreeing_copies": "Those of them that differ in a billed value.",
    "unpriced_requests": "Requests of which no cost is known, of the published version.",
}
_Counted = tuple[Callable[[], None], Callable[[float], None]]

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The counts of this process. One request costs 1.5 microseconds, with several workers 4."""

    def __init__(self) -> None:
        self._requests = Counter(
            "keytally_requests",
            "Requests answered, by the route's template ('other': no route) and status ('none': cut off before it).",
            ["route", "status"],
            registry=None,
        )
        self._seconds = Histogram(
            "keytally_request_seconds",
            "Seconds from a request's head to the end of its answer, by the route's template.",
            ["route"],
            buckets=SECONDS,
            registry=None,
        )
        self._lookups = Counter(
            "keytally_answer_lookups",
            "Months asked for, by whether the finished answer was in memory ('hit') or had to be made ('miss').",
            ["result"],
            registry=None,
        )
        self._hit = self._lookups.labels("hit").inc
        self._miss = self._lookups.labels("miss").inc
        self._counted: dict[tuple[str | None, int], _Counted] = {}

    def count(self, route: str | None, status: int, seconds: float) -> None:
        """Counts an answer. route: its template, None where there is none. status: 0 when nothing was answered."""
        counted = self._counted.get((route, status))
        if counted is None:  # as many as there are routes and statuses
            name = route or "other"
            counted = (
                self._requests.labels(name, str(status or "none")).inc,
                self._seconds.labels(name).observe,
            )
            self._counted[route, status] = counted
        counted[0]()
        counted[1](seconds)

    def looked_up(self, found: bool) -> None:
        """Counts that a finished answer was looked for."""
        if found:
            self._hit()
        else:
            self._miss()

    def collectors(self) -> list[Collector]:
        """What there is to show: of all workers where there are several."""
        folder = os.environ.get(FOLDER)
        return counted_in(folder) if folder else [self._requests, self._seconds, self._lookups]


def counted_in(folder: str) -> list[Collector]:
    """What the workers that share `folder` counted, together, those that ended included."""
    return [MultiProcessCollector(None, folder)]  # type: ignore[no-untyped-call]


class State(Collector):
    """What is published, as `reader` last saw it."""

    def __init__(self, reader: Reader, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """One figure each. What nobody knows is not there."""
        yield GaugeMetricFamily(
            "keytally_published_readable",
            "1 when the newest version could be looked up, else 0.",
            0 if self._reader.failure else 1,
        )
        confirmed = self._reader.last_confirmed
        if confirmed is None:
            return
        yield GaugeMetricFamily(
            "keytally_published_version",
            "Version that is served; 0: nothing is published.",
            confirmed.publication.version,
        )
        if (age := age_of(confirmed.as_of, self._clock())) is not None:
            yield GaugeMetricFamily(
                "keytally_data_age_seconds",
                "Seconds since the start of the newest run that published or confirmed the data.",
                age.total_seconds(),
            )
        if confirmed.last_run is not None:
            yield GaugeMetricFamily(
                "keytally_last_run_quarantined_lines",
                "Lines that the newest run quarantined, of the files it took in.",
                confirmed.last_run.quarantined,
            )
        yield from self._of_runs(confirmed)

    def _of_runs(self, confirmed: Confirmed) -> Iterator[Metric]:
        """How the newest run ended, and what there is to look at by its note."""
        failed = self._reader.failed_run()
        outcome = confirmed.last_run.outcome if confirmed.last_run else None
        if failed or outcome:
            yield GaugeMetricFamily(
                "keytally_last_run_exit_code",
                "Exit code of the newest run: 0 done, 1 failed and published nothing, 3 done with findings.",
                1 if failed or outcome is None else outcome.exit_code,
            )
        if (age := age_of(failed.started if failed else confirmed.as_of, self._clock())) is not None:
            yield GaugeMetricFamily(
                "keytally_last_run_age_seconds",
                "Seconds since the start of the newest run, also of one that failed.",
                age.total_seconds(),
            )
        if outcome is None:
            return
        for name, about in COUNTED.items():
            if name in outcome.counts:
                yield GaugeMetricFamily(f"keytally_{name}", about, outcome.counts[name])
        quarantined = GaugeMetricFamily(
            "keytally_quarantined_lines", "Lines in quarantine of the published version, by reason.", labels=["reason"]
        )
        for reason, lines in outcome.quarantined_for.items():
            quarantined.add_metric([reason], lines)
        yield quarantined


class ShowMetrics:
    """`GET /metrics` as a plain ASGI application."""

    def __init__(
        self, collectors: Callable[[], list[Collector]], state: State, look: Callable[[], None] = lambda: None
    ) -> None:
        """look: called first, where nobody else keeps the state up to date."""
        self._collectors = collectors
        self._state = state
        self._look = look

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answers."""
        text = await asyncio.to_thread(self._text)
        body = Body(text, lasting=False, content_type=CONTENT_TYPE_LATEST.encode("ascii"))
        await Answer(body).send(scope, send)

    def _text(self) -> bytes:
        self._look()
        registry = CollectorRegistry(auto_describe=False)
        for collector in (*self._collectors(), self._state):
            registry.register(collector)
        return generate_latest(registry)
