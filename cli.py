"""The `keytally` command. Every command answers what happened, whether it is right, and what to do next."""

from __future__ import annotations

import functools
import json
import logging
import shlex
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from pipeline.contract.data_root import check_data, check_raw, has_data
from pipeline.contract.layout import FIRST_DAY, LAST_DAY, Layout, last_day_of, month_name, month_of
from pipeline.contract.settings import Settings, SettingsError, misspelling_of
from pipeline.contract.store import Store, StoreError, open_store
from pipeline.contract.text_encoding import UTF16_ADVICE, is_utf16
from pipeline.contract.wording import age_of, ago_text, count_of, duration_text, instant_text, visible
from pipeline.errors import InterruptedRunError, KeytallyError
from pipeline.terminal import json_text, keep_logs_visible, output_error, prepare_streams

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pipeline.first_look import FirstLook
    from pipeline.history import Restatement
    from pipeline.intake import TakeIn
    from pipeline.quarantine import LostList, QuarantinedLine, Rejection
    from pipeline.reconcile import Reconciliation
    from pipeline.report import Report, Unpriced
    from pipeline.reprice import Change, Repricing
    from pipeline.run import Watch
    from pipeline.status import Status
    from serving.keys import CreatedKey, KeyRegistry, ReadingKey

# Imports that take long stand in the commands that need them.

_T = TypeVar("_T")

FAILED, WRONG_USAGE, FINDINGS = 1, 2, 3
SHOWN_LINES, SHOWN_FILES = 50, 10
EXAMPLES = 3  # of each reason
BAR, LEAST_BAR = 24, 4  # characters of the longest, and where there is no room for fewer there are none
NARROWEST_TEXT = 20
SHOWN_CHARACTERS, SHOWN_RECORD = 100, 600  # of a line; of what its format made of it


_EXAMPLES = {
    "rollup": "keytally rollup",
    "backfill": "keytally backfill --from 2025-11-01 --to 2025-11-30",
    "serve": "keytally serve --host 127.0.0.1 --port 8000 --workers 2",
    "demo": "keytally demo --port 8000",
    "quarantine": "keytally quarantine",
    "inspect": "keytally inspect some-log.jsonl.gz",
    "reconcile": "keytally reconcile --from 2025-11-01 --to 2025-11-30",
    "reprice": "keytally reprice --prices new.csv --from 2025-11-01 --to 2025-11-30",
    "history": "keytally history --org org_abc123 --from 2025-11-01 --to 2025-11-30",
    "usage": "keytally usage --org org_abc123 --month 2025-11 --by key",
    "status": "keytally status --days",
    "completion": 'eval "$(keytally completion bash)"',
}
_PUBLISHING = ("rollup", "backfill", "reprice")
_KEY_EXAMPLES = {
    "create": "keytally keys create --org org_abc123 --name dashboard --expires 2026-12-31T23:59:59Z",
    "list": "keytally keys list --org org_abc123",
    "revoke": "keytally keys revoke key_0123456789abcdef",
}


def utc_now() -> datetime:
    """The clock of every command."""
    return datetime.now(UTC)


class Day(click.ParamType[date]):
    """A UTC day that a log may hold, as 2025-11-30."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            day = datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).date()
        except ValueError:
            self.fail(f"{value!r} is not a day; write it as 2025-11-30", param, ctx)
        if not FIRST_DAY <= day <= LAST_DAY:
            self.fail(f"{value} is outside of {FIRST_DAY} to {LAST_DAY}", param, ctx)
        return day


class Month(click.ParamType[date]):
    """A month that a log may hold, as 2025-11: its first day."""

    name = "month"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        if isinstance(value, date):
            return value
        try:
            month = datetime.strptime(value, "%Y-%m").replace(tzinfo=UTC).date()
        except ValueError:
            self.fail(f"{value!r} is not a month; write it as 2025-11", param, ctx)
        if not FIRST_DAY <= month <= LAST_DAY:
            self.fail(f"{value} is outside of {FIRST_DAY:%Y-%m} to {LAST_DAY:%Y-%m}", param, ctx)
        return month


class Instant(click.ParamType[datetime]):
    """A moment as RFC 3339 writes it."""

    name = "RFC3339"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            instant = None
        if instant is None or instant.tzinfo is None:
            self.fail(f"{value!r} is not a moment with a time zone; write it as 2026-12-31T23:59:59Z", param, ctx)
        return instant.astimezone(UTC)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="keytally")
@click.option("--debug", is_flag=True, help="Show where an error comes from, not only what it is.")
def main(debug: bool) -> None:  # noqa: ARG001  # each command looks for it
    """Exact daily and monthly usage of every API key, rolled up from raw request logs.

    Put request logs below data/raw/ (KEYTALLY_DATA says where data/ is), run `keytally rollup`, then `keytally serve`.
    See it all at once with `keytally demo`.
    """
    prepare_streams()
    keep_logs_visible()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def command(group: click.Group, name: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command that takes --json, ends with the exit code its function returns, and fails in one sentence."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        @functools.wraps(function)
        def run(*arguments: Any, as_json: bool, **options: Any) -> None:
            if group is main:  # the keys of the registry need no pyarrow
                from pipeline.lean import leave_pandas_out

                leave_pandas_out()
            try:
                code = function(*arguments, as_json=as_json, **options)
            except SettingsError as error:
                code = _fail(error, as_json, WRONG_USAGE)
            except (KeytallyError, StoreError) as error:
                code = _fail(error, as_json, FAILED)
            except (click.ClickException, click.Abort, click.exceptions.Exit):
                raise
            except KeyboardInterrupt:
                code = _fail(InterruptedRunError(), as_json, FAILED)
            except Exception as error:
                if click.get_current_context().find_root().params.get("debug"):
                    raise
                code = _fail(error, as_json, FAILED)
            _note_lost_output(name)
            sys.exit(code or 0)

        with_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
        example = _EXAMPLES.get(name) if group is main else _KEY_EXAMPLES.get(name)
        return group.command(name, epilog=f"\b\nExample:\n  {example}" if example else None)(with_json(run))

    return decorate


def _fail(error: Exception, as_json: bool, code: int) -> int:
    from pipeline.failure import sentence_of

    sentence = visible(sentence_of(error))  # it may name a file, or repeat what one says of itself
    click.echo(f"keytally: {sentence}", err=True)
    if as_json:
        _print_json({"error": sentence})
    return code


def _note_lost_output(name: str) -> None:
    """Say on standard error that standard output could not be written. The exit code stays that of the command."""
    error = output_error()
    if error is None or (
        isinstance(error, BrokenPipeError) and name not in _PUBLISHING
    ):  # as for `keytally usage | head`
        return
    click.echo(f"keytally: the output could not be written ({error.strerror}); what the command did is done", err=True)


def _data_of(settings: Settings) -> Store:
    """The data root, for a command that only looks. Raises NoDataRoot where there is nothing to look at."""
    store = open_store(settings)
    store.check()
    check_data(store)
    return store


def _print_json(document: Any) -> None:
    click.echo(json_text(document))


# --- roll up ---------------------------------------------------------------------------------------------------------


@command(main, "rollup")
@click.option(
    "--new-currency", is_flag=True, help="Publish all days in KEYTALLY_CURRENCY, where it was another before."
)
@click.option("--clock-is-right", is_flag=True, help="Work although the newest run began later: its clock was wrong.")
def rollup(new_currency: bool, clock_is_right: bool, as_json: bool) -> int:
    """Take in what is new, roll up the days it touches, publish.

    The nightly job: it reads what lies below raw/. Run it as often as you like: it costs what changed, and with nothing
    new it changes nothing.
    """
    from pipeline.fan_out import fan_out_of
    from pipeline.run import start_run
    from pipeline.update import PLAIN_STEPS, roll_up

    settings = Settings.from_environment()
    with (
        _progress() as watch,
        start_run(settings, utc_now, watch, publishes=True) as run,
        fan_out_of(settings) as fan_out,
    ):
        report = roll_up(
            run,
            PLAIN_STEPS._replace(fan_out=fan_out),
            new_currency=new_currency,
            clock_is_right=clock_is_right,
        )
    return _tell(report, settings, as_json)


@command(main, "backfill")
@click.option("--from", "first_day", type=Day(), required=True, help="First day, as 2025-11-01.")
@click.option("--to", "last_day", type=Day(), required=True, help="Last day, included.")
def backfill(first_day: date, last_day: date, as_json: bool) -> int:
    """Check and rebuild what some days are made from, roll them up.

    All of it is checked, and what is missing or damaged rebuilt from raw/, before they are rolled up anew. What is new
    below raw/ is taken in as well. Equal results publish nothing.
    """
    if last_day < first_day:
        raise click.UsageError(f"--to {last_day} is before --from {first_day}")
    from pipeline.fan_out import fan_out_of
    from pipeline.run import start_run
    from pipeline.update import PLAIN_STEPS
    from pipeline.update import backfill as backfill_days

    settings = Settings.from_environment()
    with (
        _progress() as watch,
        start_run(settings, utc_now, watch, publishes=True) as run,
        fan_out_of(settings) as fan_out,
    ):
        report = backfill_days(run, first_day, last_day, PLAIN_STEPS._replace(fan_out=fan_out))
    return _tell(report, settings, as_json)


@command(main, "reprice")
@click.option(
    "--prices",
    "book",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The price book to try.",
)
@click.option("--from", "first_day", type=Day(), required=True, help="First day, as 2025-11-01.")
@click.option("--to", "last_day", type=Day(), required=True, help="Last day, included.")
@click.option("--csv", "as_csv", is_flag=True, help="The changes as CSV on stdout.")
@click.option("--apply", "applied", is_flag=True, help="Put the book in force, and roll up the days it touches.")
def reprice(book: Path, first_day: date, last_day: date, as_csv: bool, applied: bool, as_json: bool) -> int:
    """Show what another price book would change.

    Of published days, for each organization, key and model. Changes nothing without --apply.
    """
    if last_day < first_day:
        raise click.UsageError(f"--to {last_day} is before --from {first_day}")
    if as_csv and as_json:
        raise click.UsageError("give one of --csv and --json")
    from pipeline.fan_out import fan_out_of
    from pipeline.price_book import MOST_BYTES
    from pipeline.prices import read_prices
    from pipeline.reprice import put_in_force
    from pipeline.reprice import reprice as reprice_days
    from pipeline.run import start_run

    settings = Settings.from_environment()
    with book.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    with _progress() as watch, start_run(settings, utc_now, watch) as run, fan_out_of(settings) as fan_out:
        prices = read_prices(run.store, settings.currency, content, str(book))
        found = reprice_days(run, prices, first_day, last_day, fan_out)
        report = put_in_force(run, found, content, fan_out) if applied else None
    if as_json:
        _print_json({**found.as_json(), "applied": report.as_json() if report else None})
    elif as_csv:
        _print_csv(found.changes)
    else:
        _show_repricing(found, settings.currency, first_day, last_day)
    if report is None:
        return 0
    if not as_json:
        click.echo(f"The book is in force; version {report.version} is published.", err=as_csv)
        _show_findings(report)
    return FINDINGS if report.has_findings else 0


def _print_csv(changes: Sequence[Change]) -> None:
    import csv

    from pipeline.reprice import Change

    rows = csv.writer(sys.stdout)
    rows.writerow(Change._fields)
    rows.writerows(change.as_json().values() for change in changes)


def _show_repricing(found: Repricing, currency: str, first_day: date, last_day: date) -> None:
    if found.changes:
        units = [
            name
            for name in ("synapses", "neurons")
            if any(getattr(change, f"{name}_before") != getattr(change, f"{name}_after") for change in found.changes)
        ]
        table = _table("organization", "key", "model", "requests", "cost", "change", "unpriced", *units, numbers=False)
        for change in found.changes[:SHOWN_LINES]:
            _add(
                table,
                change.organization_id,
                change.api_key_id,
                visible(change.model or "-"),
                change.requests,
                f"{_amount(change.cost_before)} → {_amount(change.cost_after)}",
                f"{_exact(change.cost_after, -change.cost_before):+f}",
                f"{change.unpriced_before:,} → {change.unpriced_after:,}",
                *(
                    f"{_amount(getattr(change, f'{n}_before'))} → {_amount(getattr(change, f'{n}_after'))}"
                    for n in units
                ),
            )
        _print_table(table)
        if len(found.changes) > SHOWN_LINES:
            click.echo(f"The first {SHOWN_LINES} of {len(found.changes):,} rows (--json and --csv list all).")
        before = _exact(*(change.cost_before for change in found.changes))
        after = _exact(*(change.cost_after for change in found.changes))
        organizations = count_of(len({change.organization_id for change in found.changes}), "organization")
        click.echo(f"{organizations} on {count_of(len(found.days), 'day')}: {before:f} → {after:f} {currency} in all.")
        for name in units:
            sums = (
                _exact(*(getattr(change, f"{name}_{when}") for change in found.changes)) for when in ("before", "after")
            )
            click.echo(f"{name.capitalize()}: {' → '.join(f'{total:f}' for total in sums)}.")
    else:
        click.echo(f"The book changes nothing from {first_day} to {last_day}.")
    if found.beyond:
        click.echo(
            f"It also touches {count_of(len(found.beyond), 'day')} outside of the range, from {found.beyond[0]} to"
            f" {found.beyond[-1]}."
        )


def _exact(*amounts: Decimal) -> Decimal:
    """Their sum, short of trailing zeros."""
    with localcontext(prec=100):
        return sum(amounts, Decimal(0)).normalize()


@contextmanager
def _progress() -> Iterator[Watch]:
    """Shows how far a run has come, how fast, and for how long yet, when stderr is a terminal."""
    from pipeline.run import Watch

    if not sys.stderr.isatty():
        yield Watch()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bars(Watch):
        def __init__(self) -> None:
            self._lock = Lock()  # steps are done in several threads

        def begin(self, stage: str, total: int) -> None:
            for task in bar.tasks:
                bar.update(task.id, completed=task.total)
            if total:
                bar.add_task(stage, total=total, rows=0)

        def advance(self, amount: int) -> None:
            if bar.tasks:
                bar.advance(bar.tasks[-1].id, amount)

        def count(self, rows: int) -> None:
            with self._lock:
                if bar.tasks:
                    bar.update(bar.tasks[-1].id, rows=bar.tasks[-1].fields["rows"] + rows)

    class Pace(ProgressColumn):
        def render(self, task: Task) -> Text:
            rows, seconds = task.fields["rows"], task.finished_time or task.elapsed
            return Text(f"{rows / seconds:,.0f} rows/s" if rows and seconds else "")

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:18}"),
        BarColumn(bar_width=20),  # all of it fits 80 characters
        TextColumn("{task.percentage:>3.0f} %"),
        Pace(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Bars()


def _tell(report: Report, settings: Settings, as_json: bool) -> int:
    if as_json:
        _print_json(report.as_json())
    else:
        _show(report, settings)
    return FINDINGS if report.has_findings else 0


def _show(report: Report, settings: Settings, most_days: int = SHOWN_LINES) -> None:
    taken = [entry.take_in for entry in report.ingested if not entry.same_as]
    if report.days:
        table = _table("day", "accepted", "counted", "duplicate", "conflicting", "session")
        for day in report.days[-most_days:]:
            _add(table, str(day.day), day.accepted, day.counted, day.duplicate, day.conflicting, day.session)
        if len(report.days) > most_days:
            click.echo(f"The last {most_days} of {len(report.days)} days:")
        _print_table(table)
    if report.ingested:
        lines, quarantined = sum(one.lines for one in taken), sum(one.quarantined for one in taken)
        skipped = sum(one.skipped for one in taken)
        click.echo(
            f"Took in {count_of(len(report.ingested), 'file')} with {count_of(lines, 'line')}; "
            f"{quarantined:,} quarantined{' (keytally quarantine lists them)' if quarantined else ''}"
            f"{f', {skipped:,} skipped' if skipped else ''}."
        )
        _show_tallies(taken)
    for file, before, after in report.replaced:
        click.echo(f"{visible(file)} has a new content: {after:,} accepted lines, {before:,} before.")
    if report.days:
        months = ", ".join(report.as_json()["months"])
        click.echo(f"Rolled up {count_of(len(report.days), 'day')} of {months} in {report.seconds:.1f} s.")
    if report.published:
        click.echo(f"Version {report.version} is published.")
    elif report.days or report.ingested:
        click.echo(f"Version {report.version} stands: it holds all this already.")
    else:
        store = open_store(settings)
        if not report.version:
            raw = visible(store.name_of(store.layout.raw))
            click.echo(f"Nothing is published yet.{'' if report.held_back else f' Put request logs below {raw}.'}")
        elif report.held_back:
            click.echo(f"Nothing else is new: version {report.version} stands.")
        else:
            click.echo(f"Nothing new. Version {report.version} is up to date.")
    _show_findings(report)


def _show_tallies(taken: Sequence[TakeIn]) -> None:
    """What the formats left out of the files that were taken in, by reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for tally in (tally for one in taken for tally in one.tally):
        counts[tally.kind, tally.reason] += tally.lines
    for (kind, reason), count in counts.most_common():
        if kind == "skipped":
            click.echo(f"  skipped {count:,}: {visible(reason)}")
    if merged := sum(count for (kind, _), count in counts.items() if kind == "merged"):
        click.echo(f"  merged {count_of(merged, 'span')} into the calls that other spans tell of")


def _show_findings(report: Report) -> None:
    from pipeline.disagreements import WHAT_TO_DO

    damaged = [held for held in report.held_back if held.reason.startswith("damaged:")]
    of_a_format = Counter(held.reason for held in report.held_back if held.reason.startswith("format:"))
    for held in report.held_back:
        more = of_a_format.get(held.reason, 1) - 1  # what is wrong with a format is told once, of its first file
        if more >= 0:
            and_more = f" and {more:,} more" if more else ""
            click.echo(f"HELD BACK {visible(held.file)}{and_more}: {visible(held.reason)}", err=True)
        if held.reason in of_a_format:
            of_a_format[held.reason] = 0
    if report.held_back and report.version:
        click.echo("Everything else is published, and what these files held before still counts.", err=True)
    if len(damaged) < len(report.held_back):
        click.echo(
            "Put right what the reason names, or deliver the file again under its name: the next run tries it again.",
            err=True,
        )
    if damaged:
        click.echo(
            "What is damaged no run can mend alone: put its raw file back below raw/ as it was, then run 'keytally"
            " backfill' over its days.",
            err=True,
        )
    _show_each(
        "LOWERED",
        [f"{day.day}: {visible(day.what)}. {visible(_sentence(day.what_to_do))}" for day in report.lowered],
    )
    _show_each(
        "IGNORED",
        [
            f"{visible(log.file)} looks like a log, and is not read: {visible(log.reason)}."
            f" {visible(_sentence(log.what_to_do))}"
            for log in report.ignored
        ],
    )
    _show_each("ODD LOG", [f"{visible(log.file)}: {visible(log.what)}." for log in report.odd])
    for what_to_do in dict.fromkeys(log.what_to_do for log in report.odd):
        click.echo(f"Next: {visible(what_to_do)}.", err=True)
    _show_each("DISAGREEING", [f"{day.day}: {visible(day.what)}." for day in report.disagreeing])
    if report.disagreeing:
        click.echo(_sentence(WHAT_TO_DO), err=True)
    if report.lost_days:
        days = ", ".join(str(day) for day in report.lost_days[:5]) + (" ..." if len(report.lost_days) > 5 else "")
        click.echo(
            f"LOST {report.lost or 'what was published is gone'}; published anew from raw/. Something of"
            f" {count_of(len(report.lost_days), 'day')} ({days}) counts no more: its raw files are gone. Put them"
            " back into raw/, or rollups/ as it was. For a week nothing that needs is deleted.",
            err=True,
        )
    _show_unpriced(report.unpriced, err=True)
    for month in report.records_lost:
        click.echo(f"LOST what was restated of {month_name(month)} before now: its file was damaged.", err=True)


def _show_each(label: str, findings: Sequence[str]) -> None:
    for finding in findings[:SHOWN_LINES]:
        click.echo(f"{label} {finding}", err=True)
    if len(findings) > SHOWN_LINES:
        click.echo(f"{label} and {len(findings) - SHOWN_LINES:,} more (--json)", err=True)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _show_unpriced(unpriced: Sequence[Unpriced], *, err: bool = False) -> None:
    if tokenless := [day for day in unpriced if day.without_tokens]:
        count = sum(day.without_tokens for day in tokenless)
        carry = "1 request carries" if count == 1 else f"{count:,} requests carry"
        click.echo(
            f"NO TOKENS   {_days_of(tokenless)}: {carry} no token count, so the price book cannot price"
            f" {'it' if count == 1 else 'them'}. Have the producer log the usage of streams (OpenAI:"
            " stream_options.include_usage).",
            err=err,
        )
    unpriced = [day for day in unpriced if day.requests > day.without_tokens]
    if not unpriced:
        return
    requests = sum(day.requests - day.without_tokens for day in unpriced)
    days = _days_of(unpriced)
    missing = list(dict.fromkeys(what for day in unpriced for what in day.missing_prices))
    named = ", ".join(map(visible, missing[:EXAMPLES])) + (
        f" and {len(missing) - EXAMPLES:,} more" * (len(missing) > EXAMPLES)
    )
    converted = any(what.startswith("the rate from") for what in missing)
    click.echo(
        f"UNPRICED    {count_of(requests, 'request')} of {days} count{'s' if requests == 1 else ''} without a cost"
        f"{f'; missing: {named}' if named else ''}. Add what is missing to prices.csv or fx.csv in the data folder:"
        " the next run prices them."
        + " To publish in the logs' own currency, set KEYTALLY_CURRENCY and run rollup --new-currency."
        * converted,
        err=err,
    )


def _days_of(unpriced: Sequence[Unpriced]) -> str:
    others = f" and {count_of(len(unpriced) - 1, 'other day')}" if len(unpriced) > 1 else ""
    return f"{unpriced[0].day}{others}"


# --- serve -----------------------------------------------------------------------------------------------------------


@command(main, "serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Server processes.")
def serve(host: str, port: int, workers: int, as_json: bool) -> int:
    """Answer over HTTP from what is published, until stopped."""
    from serving.server import ServeError
    from serving.server import serve as run_server

    def started(url: str) -> None:
        if as_json:
            _print_json({"url": url})
        else:
            click.echo(f"Serving on {url} - stop with Ctrl-C.")

    try:
        run_server(Settings.from_environment(), host, port, workers, on_started=started)
    except ServeError as error:
        raise KeytallyError(str(error)) from error
    return 0


@command(main, "demo")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
def demo(port: int, as_json: bool) -> int:
    """Make two months of sample traffic, roll it up, serve it.

    Everything is written to a scratch folder that is removed when the server stops.
    """
    from dataclasses import replace

    from pipeline.demo import write_traffic
    from pipeline.run import start_run
    from pipeline.update import roll_up
    from serving.keys import KeyRegistry
    from serving.server import ServeError
    from serving.server import serve as run_server

    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, lambda *_: sys.exit(FAILED))  # by way of the clean-up; the server has its own way
    with tempfile.TemporaryDirectory(prefix="keytally-demo-") as folder:
        data = Path(folder)
        settings = replace(Settings.from_environment(), data=data, keys=data / "keys.sqlite")
        say = functools.partial(click.echo, err=as_json)
        say(f"Writing two months of sample traffic below {data / 'raw'} ...")
        traffic = write_traffic(Layout(data).raw, utc_now())
        for late in (False, True):
            if late:
                say(f"\nA file arrives late ({traffic.late_file}). Only its day is rolled up again:")
                traffic.deliver_late_file()
            with _progress() as watch, start_run(settings, utc_now, watch) as run:
                report = roll_up(run)
            if not as_json:
                _show(report, settings, most_days=5)
        key = KeyRegistry(settings.keys).create(traffic.organization, "demo", now=utc_now())
        month = traffic.months[0]

        def started(url: str) -> None:
            answer = f"{url}/v1/analytics/api-keys/daily/{traffic.organization}?year={month.year}&month={month.month}"
            curl = f"curl -H 'X-API-Key: {key.key}' '{answer}'"
            if as_json:
                _print_json({"url": url, "organization_id": traffic.organization, "key": key.key, "curl": curl})
            else:
                click.echo(f"\nServing on     {url}")
                click.echo(f"Organization   {traffic.organization}")
                click.echo(f"Reading key    {key.key}")
                click.echo(
                    f"\nOpen {url}/ in a browser and sign in with the key, or ask from another terminal:\n\n  {curl}\n"
                )
                here = f"KEYTALLY_DATA={data} {shlex.quote(str(Path(sys.argv[0]).absolute()))}"
                click.echo("Other commands see the same data; the second makes a key for all organizations:\n")
                click.echo(f"  {here} status\n  {here} keys create --operator\n\nStop with Ctrl-C.")

        try:
            run_server(settings, "127.0.0.1", _free_port(port), 1, on_started=started)
        except ServeError as error:
            raise KeytallyError(str(error)) from error
    return 0


def _free_port(preferred: int) -> int:
    """The preferred port, or 0 (any free one) when something listens there already."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            return 0
    return preferred


# --- reading keys ----------------------------------------------------------------------------------------------------


@main.group()
def keys() -> None:
    """Create, list and revoke reading keys.

    A reading key is what a customer sends as X-API-Key to read its organization's usage.
    """


@command(keys, "create")
@click.option("--org", "organization_id", metavar="ORG", help="Organization that the key may read.")
@click.option(
    "--orgs",
    "organizations",
    metavar="FILE",
    type=click.File("rb"),
    help="One organization a line; one key for each.",
)
@click.option("--operator", is_flag=True, help="A key that may read every organization.")
@click.option("--name", help="What the key is for.")
@click.option("--expires", type=Instant(), help="From when on it is refused, as 2026-12-31T23:59:59Z.")
def create_keys(
    organization_id: str | None,
    organizations: Any,
    operator: bool,
    name: str | None,
    expires: datetime | None,
    as_json: bool,
) -> int:
    """Create a key. It is shown once, and kept only as its SHA-256."""
    if (organization_id is not None) + (organizations is not None) + operator != 1:
        raise click.UsageError("give one of --org ORG, --orgs FILE and --operator")
    if organizations is not None:
        wanted = [line.strip() for line in _text_of(organizations).splitlines() if line.strip()]
    else:
        wanted = [organization_id] if organization_id is not None else []
    settings = Settings.from_environment()
    folder = settings.keys.parent
    if not folder.is_dir() and (wrong := misspelling_of(str(folder))):
        raise KeytallyError(f"there is no folder {str(folder)!r} for the registry of keys: {wrong}")
    if folder == settings.data:
        folder.mkdir(parents=True, exist_ok=True)
    created = _on_registry(
        settings,
        lambda registry: (
            (registry.create_operator(name, expires, now=utc_now()),)
            if operator
            else registry.create_many(wanted, name, expires, now=utc_now())
        ),
    )
    if expires and expires <= utc_now():
        click.echo(f"keytally: the key has expired already, at {instant_text(expires)}", err=True)
    for key in created:
        if as_json:
            _print_json(_key_as_json(key))
        elif len(created) == 1:
            click.echo(f"Key {key.id} for {_readable(key)}. It is not shown again:\n\n  {key.key}\n")
        else:
            click.echo(f"{key.organization_id}\t{key.id}\t{key.key}")
    click.echo(f"Wrote {count_of(len(created), 'key')} to {visible(str(settings.keys.absolute()))}.", err=True)
    if folder == settings.data and not has_data(open_store(settings)):
        click.echo(
            f"{visible(str(folder.absolute()))} has neither raw/ nor rollups/: if a disk belongs there, mount it and"
            " create the key again.",
            err=True,
        )
    return 0


def _text_of(file: Any) -> str:
    """The text of a file that a person wrote; a byte-order mark is no part of it."""
    content: bytes = file.read()
    if is_utf16(content):
        raise click.BadParameter(f"{UTF16_ADVICE}.", param_hint="--orgs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise click.BadParameter(f"line {line} is not UTF-8; save the file as UTF-8.", param_hint="--orgs") from None


@command(keys, "list")
@click.option("--org", "organization_id", metavar="ORG", help="Only this organization's keys.")
def list_keys(organization_id: str | None, as_json: bool) -> int:
    """List keys, without the keys themselves."""
    found = _on_registry(Settings.from_environment(), lambda registry: registry.list(organization_id))
    if as_json:
        _print_json([_key_as_json(key) for key in found])
        return 0
    if not found:
        click.echo("No keys. Create one with: keytally keys create --org ORG")
        return 0
    table = _table("id", "organization", "name", "created", "expires", "revoked", numbers=False)
    for key in found:
        moments = (instant_text(moment) or "-" for moment in (key.created_at, key.expires_at, key.revoked_at))
        _add(table, key.id, _readable(key), visible(key.name or "-"), *moments)
    _print_table(table)
    return 0


@command(keys, "revoke")
@click.argument("key_id", metavar="ID")
def revoke_key(key_id: str, as_json: bool) -> int:
    """Revoke a key for good. Servers refuse it within a second."""
    now = utc_now()
    newly = _on_registry(Settings.from_environment(), lambda registry: registry.revoke(key_id, now=now))
    if as_json:
        _print_json({"id": key_id, "revoked": True, "revoked_now": newly})
    else:
        click.echo(f"Key {key_id} is revoked." if newly else f"Key {key_id} was revoked before.")
    return 0


def _on_registry(settings: Settings, use: Callable[[KeyRegistry], _T]) -> _T:
    from serving.keys import KeyRegistry, RegistryError

    try:
        return use(KeyRegistry(settings.keys))
    except RegistryError as error:
        raise KeytallyError(str(error)) from error


def _readable(key: CreatedKey | ReadingKey) -> str:
    """Whose usage the key reads."""
    return key.organization_id or "every organization"


def _key_as_json(key: CreatedKey | ReadingKey) -> dict[str, Any]:
    return {name: instant_text(value) if isinstance(value, datetime) else value for name, value in asdict(key).items()}


# --- look ------------------------------------------------------------------------------------------------------------


@command(main, "quarantine")
def quarantine(as_json: bool) -> int:
    """Show the lines that are no requests, and why.

    How many, in which files, and a few of them read from raw/, with what their format made of them. --json lists every
    line. Exits 3 when the list of a
    file's lines is lost; the others are shown.
    """
    from pipeline.quarantine import Quarantine

    found = Quarantine(_data_of(Settings.from_environment()))
    if as_json:
        # Written as it is read: there may be more lines than fit into memory.
        click.echo("[", nl=False)
        for position, line in enumerate(found.lines()):
            click.echo((", " if position else "") + json.dumps(line.as_json(), ensure_ascii=True), nl=False)
        click.echo("]")
    else:
        _show_rejections(found.summary(EXAMPLES), bool(found.lost))
    _show_utf16(found.utf16, err=as_json)
    _show_lost_lists(found.lost)
    return FINDINGS if found.lost else 0


def _show_rejections(found: Sequence[Rejection], some_lost: bool) -> None:
    if not found:
        if not some_lost:
            click.echo("The quarantine is empty: every line that was read is a request.")
        return
    reasons: Counter[str] = Counter()
    for rejection in found:
        reasons[rejection.reason] += rejection.lines
    files = len({rejection.file for rejection in found})
    click.echo(
        f"{count_of(reasons.total(), 'line')} of {count_of(files, 'file')} did not count; all other lines did.\n"
    )
    table = _table("reason", "lines", "file", numbers=False)
    for rejection in found[:SHOWN_LINES]:
        _add(table, rejection.reason, rejection.lines, visible(rejection.file))
    _print_table(table)
    if len(found) > SHOWN_LINES:
        click.echo(f"The first {SHOWN_LINES} of {len(found):,} (--json lists every line).")
    table = _table("reason", "field", "file", "line", "text", numbers=False)
    for line in (line for rejection in found for line in rejection.examples):
        _add(table, line.reason, line.field or "-", visible(line.file), line.line, _shown_line(line))
    click.echo("For example:")
    _print_table(table)
    click.echo("; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()) + ".")
    if set(reasons) - {"future_timestamp"}:
        click.echo("Correct the file below raw/ and run 'keytally rollup': its new content replaces the old one.")
    if "future_timestamp" in reasons:
        click.echo("Lines from the future need nothing: the first run after their moment takes them in.")


def _shown_line(line: QuarantinedLine) -> str:
    """The raw line and, below it, what its format made of it."""
    if line.text is None:
        return "(the raw file is gone or was changed)"
    shown = visible(line.text)[:SHOWN_CHARACTERS]
    if line.is_mapped:
        record = json.dumps(line.record, ensure_ascii=False) if line.record else "nothing"
        shown += f"\nread as: {visible(record)[:SHOWN_RECORD]}"
    return shown


def _show_utf16(files: Sequence[str], *, err: bool) -> None:
    for file in files[:SHOWN_FILES]:
        click.echo(f"No line of {visible(file)} counts: {UTF16_ADVICE}.", err=err)
    if len(files) > SHOWN_FILES:
        click.echo(f"The same holds for {count_of(len(files) - SHOWN_FILES, 'more file')}.", err=err)


def _show_lost_lists(lost: Sequence[LostList]) -> None:
    for each in lost[:SHOWN_LINES]:
        click.echo(
            f"UNAVAILABLE {visible(each.file)}: {count_of(each.lines, 'line')} did not count, and the list of them"
            f" is lost: {each.what}",
            err=True,
        )
    if len(lost) > SHOWN_LINES:
        click.echo(f"UNAVAILABLE and {len(lost) - SHOWN_LINES:,} more", err=True)
    again = "run 'keytally backfill' over any day: it makes these lists anew"
    if any(each.in_raw for each in lost):
        click.echo(f"Next: {again} from raw/.", err=True)
    if not all(each.in_raw for each in lost):
        click.echo(
            f"What is no longer below raw/ as it was taken in: put it back, then {again}. Until then nothing else is"
            " amiss: its requests count as they did.",
            err=True,
        )


@command(main, "inspect")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--write", "name", metavar="NAME", help="Write the format into the data folder as formats/NAME.sql.")
def inspect(files: tuple[Path, ...], name: str | None, as_json: bool) -> int:
    """Say which format a log is in, or draft one.

    And how much of it would count, and why not the rest. Nothing is written unless asked. Large files are looked at
    from their beginning.
    """
    from pipeline.first_look import look_at
    from pipeline.format import formats_of, write_format

    if name and len(files) > 1:
        raise click.UsageError("--write takes one FILE: a format is made from one log")
    settings = Settings.from_environment()
    store = open_store(settings)
    if name:
        check_raw(store)
    looks = [look_at(file, formats_of(store), utc_now()) for file in files]
    if as_json:
        _print_json([look.as_json() for look in looks])
    else:
        for look in looks:
            _show_look(look, settings.currency, is_written=bool(name))
    if name:
        written = write_format(store, name, looks[0].text)
        if looks[0].accepted and not _is_all_sessions(looks[0]):
            then = f"Check it, put such files below raw/{name}/, and run 'keytally rollup'."
        else:
            none = "request" if looks[0].accepted else "line"
            then = f"No {none} counts yet: put it right, and inspect the file again before it goes below raw/{name}/."
        click.echo(f"Wrote {visible(written)}. {then} When it changes, its files are ingested again.", err=True)
    return 0


def _show_look(look: FirstLook, currency: str, *, is_written: bool) -> None:
    known = {"native": "the native format", None: "no format knows it; here is a draft of one"}
    click.echo(f"{visible(look.file)}: {known.get(look.format, f'the format {look.format}')}\n")
    if look.format is None:
        click.echo(look.text)
    else:
        table = _table("field", "is", numbers=False)
        for field, source in look.fields.items():
            _add(table, field, visible(source))
        _print_table(table)
    _show_counts(look)
    if look.samples:
        table = _table("field", *(f"request {number}" for number, _ in enumerate(look.samples, 1)), numbers=False)
        for field in look.samples[0]:
            _add(table, field, *(visible("-" if row[field] is None else str(row[field])) for row in look.samples))
        click.echo("For example, as they would be kept:")
        _print_table(table)
    if any(rejects.field in _OF_CACHE and rejects.reason == "bad_type" for rejects in look.rejected):
        click.echo(
            "Some records have more cached tokens than input tokens. If the producer counts cached tokens beside the"
            " input tokens, copy the format to formats/ in the data folder and add the line '-- cached: beside input'."
        )
    if others := {row["currency"] for row in look.samples if row.get("currency")} - {currency}:
        click.echo(
            f"Costs are in {', '.join(sorted(others))}, and what is published in {currency}: set KEYTALLY_CURRENCY, or"
            " keep a rate of each day in fx.csv in the data folder."
        )
    if look.format is None and any(row["cost"] is not None and row["currency"] is None for row in look.samples):
        click.echo(
            f"No field says what the costs are in: they count as {currency}, unless you say it in the draft"
            " (-- currency: ...)."
        )
    _show_price_book(look)
    if _is_all_sessions(look):
        _show_sessions(look)
    if look.repeats:
        _show_repeats(look)
    for note in look.notes:
        click.echo(visible(note if note.startswith("WARNING") else f"Note: {note}"))
    if not is_written:
        click.echo(f"Next: {_next_for_look(look)}")


def _show_counts(look: FirstLook) -> None:
    share = 100 * look.accepted / max(look.lines, 1)
    some = "" if look.whole else " (the beginning of the file)"
    click.echo(f"{look.accepted:,} of {count_of(look.lines, 'line')}{some} would be accepted, {share:.1f} %.")
    for rejects in look.rejected:
        made = f": {json.dumps(rejects.made, ensure_ascii=False)}" if rejects.made else ""
        of = f" ({rejects.field})" if rejects.field else ""
        click.echo(f"  {rejects.lines:,} {rejects.reason}{of}, the first at line {rejects.first_line}{visible(made)}")
    for reason, records in look.skipped.items():
        click.echo(f"  {records:,} left out: {visible(reason)}")
    found = look.of_accepted
    if found.merged_spans:
        click.echo(
            f"  {count_of(found.merged_spans, 'span')} merge into calls that other spans tell of: the"
            f" {look.accepted:,} accepted lines are {count_of(found.requests, 'request')}"
        )
    if found.sessions and not _is_all_sessions(look):
        click.echo(f"  {count_of(found.sessions, 'line')} without a key: sessions, which are kept and not counted")


def _is_all_sessions(look: FirstLook) -> bool:
    """Whether a log that is not in the native format would count nothing, because no request has a key."""
    return look.format != "native" and 0 < look.accepted == look.of_accepted.sessions


def _show_price_book(look: FirstLook) -> None:
    """Say which requests without a cost the price book prices, and which it cannot."""
    found = look.of_accepted
    if found.without_cost > found.without_tokens:
        click.echo("Requests without a cost are priced by prices.csv in the data folder.")
    if found.without_tokens:
        click.echo(
            f"WARNING: {found.without_tokens:,} of {count_of(look.accepted, 'accepted line')} used a model, did not"
            " fail and carry no token count: no price book can price them, and their cost stays unknown. Let the"
            " producer write the tokens (OpenAI writes those of a stream for stream_options.include_usage)."
        )


def _show_sessions(look: FirstLook) -> None:
    source = look.fields.get("api_key_id", "null")
    why = "no field was found that names the key" if source == "null" else "no record has a key where the format looks"
    click.echo(
        f"WARNING: every request is a session: {why} (api_key_id). Requests without a key are kept and not counted."
    )


def _show_repeats(look: FirstLook) -> None:
    repeats = look.repeats
    assert repeats
    first, second = repeats.lines
    click.echo(
        f"WARNING: {repeats.requests:,} of {count_of(look.accepted, 'request')} repeat the organization, id and day of"
        f" an earlier one, as line {second} repeats line {first}: of such copies one counts."
    )
    if repeats.disagreeing:
        differ = "differs" if repeats.disagreeing == 1 else "differ"
        click.echo(
            f"  {repeats.disagreeing:,} of them {differ} from the one that counts in {', '.join(repeats.fields)}."
            " If they are different requests, take another field as request_id. If they are states of one response,"
            " the header '-- copies: most complete' counts the last state."
        )


_OF_CACHE = ("cached_input_tokens", "cache_write_tokens")


def _next_for_look(look: FirstLook) -> str:
    folder = "anywhere below raw/" if look.format == "native" else f"below raw/{look.format or 'NAME'}/"
    if look.format is None:
        write = "run this again with --write NAME, put formats/NAME.sql right"
        if _is_all_sessions(look):
            return f"{write} (api_key_id first), and inspect the file again: no request counts yet."
        return f"{write}, and such files {folder}." if look.accepted else f"{write}, and inspect the file again."
    own = f"a format of your own, formats/{look.format}.sql in the data folder, can read"
    if _is_all_sessions(look):
        return (
            f"no request would count. Let the producer write the key where the format looks for api_key_id (see the"
            f" table above), or {own} it from another field. Then inspect the file again."
        )
    if look.accepted:
        return f"put such files {folder}, and run 'keytally rollup'."
    if not look.rejected:
        (reason, most), *_ = look.skipped.items()
        share = f"all {count_of(most, 'line')}" if most == look.lines else f"all {look.lines:,} lines, {most:,} of them"
        rest = "" if look.whole else " Only the beginning of the file was read: the rest may hold requests."
        return (
            f"no line would count. The format leaves out {share} as '{visible(reason)}'. If some of these lines are"
            f" requests, {own} them; if none is one, this log needs no place below raw/.{rest}"
        )
    first = look.rejected[0]
    of = f" ({first.field})" if first.field else ""
    why = f"{first.lines:,} of them are {first.reason}{of}"
    return f"no line would count. See first why {why}; {own} the fields otherwise."


@command(main, "reconcile")
@click.option("--from", "first_day", type=Day(), required=True, help="First day, as 2025-11-01.")
@click.option("--to", "last_day", type=Day(), required=True, help="Last day, included.")
def reconcile(first_day: date, last_day: date, as_json: bool) -> int:
    """Recount published days from the raw logs, and compare.

    By other code than a run's. Changes nothing. Exits 3 when a number differs; --json has every difference.
    """
    if last_day < first_day:
        raise click.UsageError(f"--to {last_day} is before --from {first_day}")
    from pipeline.reconcile import reconcile as reconcile_days
    from pipeline.run import start_run

    settings = Settings.from_environment()
    with _progress() as watch, start_run(settings, utc_now, watch) as run:
        found = reconcile_days(run, first_day, last_day)
    if as_json:
        _print_json(found.as_json())
    else:
        _show_reconciliation(found, first_day, last_day)
    return 0 if found.equal else FINDINGS


def _show_reconciliation(found: Reconciliation, first_day: date, last_day: date) -> None:
    if found.differences:
        table = _table(
            "table", "organization", "key", "model", "when", "field", "published", "recounted", numbers=False
        )
        for difference in found.differences[:SHOWN_LINES]:
            shown = difference.as_json()
            where = shown["organization_id"] or shown["file"] or "-"
            when = shown["day"] or shown["month"] or "-"
            names = (where, shown["api_key_id"] or "-", shown["model"] or "-", when, shown["field"])
            _add(table, shown["rollup"], *map(visible, names), str(shown["published"]), str(shown["recounted"]))
        _print_table(table)
        if len(found.differences) > SHOWN_LINES:
            click.echo(f"The first {SHOWN_LINES} of {len(found.differences):,} differences (--json lists all).")
    counted = f"version {found.version} on {count_of(found.days, 'day')} from {first_day} to {last_day}"
    if found.equal and found.days:
        click.echo(f"Equal: the raw logs, recounted, say what is published by {counted}.")
    elif found.equal:
        click.echo(f"Nothing could be compared from {first_day} to {last_day}.")
    else:
        click.echo(f"DIFFERENT: {count_of(len(found.differences), 'number')} published by {counted}.", err=True)
        click.echo(
            f"Next: keytally backfill --from {first_day} --to {last_day}, then reconcile again. What differs still is a"
            " fault in keytally: keep the raw files, and report it with this list.",
            err=True,
        )
    for content in found.missing[:SHOWN_LINES]:
        touched = ", ".join(map(str, content.days[:5])) + (" ..." if len(content.days) > 5 else "")
        click.echo(
            f"NOT COMPARED {touched or 'no day'}: what {visible(content.file)} held when it was taken in is no longer"
            " in raw/, or cannot be read there. Put it back to have it recounted.",
            err=True,
        )
    if found.waiting:
        waiting = count_of(len(found.waiting), "raw file")
        click.echo(f"{waiting} waiting: keytally rollup takes in what is new or changed, keytally status lists them.")


@command(main, "history")
@click.option("--org", "organization_id", metavar="ORG", help="Only this organization.")
@click.option("--from", "first_day", type=Day(), required=True, help="First day, as 2025-11-01.")
@click.option("--to", "last_day", type=Day(), required=True, help="Last day, included.")
def history(organization_id: str | None, first_day: date, last_day: date, as_json: bool) -> int:
    """Show which published days changed after they were over.

    For whom, from what to what, and why.
    """
    from pipeline.history import restatements

    found = restatements(_data_of(Settings.from_environment()), first_day, last_day, organization_id)
    if as_json:
        _print_json([restatement.as_json() for restatement in found])
        return 0
    if not found:
        click.echo(f"No published day from {first_day} to {last_day} changed after it was over.")
        return 0
    table = _table("day", "organization", "version", "run", "requests", "cost", "what", "cause", "text", numbers=False)
    for row in found[:SHOWN_LINES]:
        _add(
            table,
            str(row.day),
            row.organization_id,
            row.version,
            instant_text(row.run_started) or "",
            f"{'?' if row.requests_before is None else f'{row.requests_before:,}'} → {row.requests_after:,}",
            f"{'?' if row.cost_before is None else _amount(row.cost_before)} → {_amount(row.cost_after)}",
            _change(row),
            row.cause,
            visible(", ".join(row.files)),
        )
    table.columns[-1].header = "files"
    _print_table(table)
    if len(found) > SHOWN_LINES:
        click.echo(f"The first {SHOWN_LINES} of {len(found):,} changes (--json lists all).")
    return 0


def _change(row: Restatement) -> str:
    """What changed of an organization's day, and of how many keys."""
    if row.changed is None:
        return "what was before is not known"
    measures = ", ".join(row.changed).replace("_", " ") or "only between keys or models"
    keys = "" if row.keys_changed is None else f" ({count_of(row.keys_changed, 'key')})"
    return measures + keys


@command(main, "usage")
@click.option("--org", "organization_id", metavar="ORG", required=True, help="The organization.")
@click.option("--month", type=Month(), help="As 2025-11; left out: the current one, UTC.")
@click.option(
    "--by", type=click.Choice(["day", "key", "model"]), default="day", show_default=True, help="A row for each."
)
def usage(organization_id: str, month: date | None, by: Literal["day", "key", "model"], as_json: bool) -> int:
    """Show what an organization used in a month.

    By day, key or model, with bars of the cost. The numbers that the server gives. Keys and models are listed by cost,
    the largest first; --json has all.
    """
    from pipeline.usage import published_usage

    settings = Settings.from_environment()
    month = month or month_of(utc_now().date())
    store = open_store(settings)
    published = published_usage(store, organization_id, month, last_day_of(month), by)
    sums: dict[Any, list[Any]] = {}
    name_of_row = {"day": "day", "key": "api_key_id", "model": "model"}[by]
    measures = ("requests", "failed_requests", "cost", "synapses", "neurons")
    with localcontext(prec=100):
        for name, *used in zip(
            *(published.rows[column].to_pylist() for column in (name_of_row, *measures)), strict=True
        ):
            sums[name] = [before + more for before, more in zip(sums.get(name, (0,) * len(used)), used, strict=True)]
        total = [sum(column) for column in zip(*sums.values(), strict=True)] or [0] * len(measures)
    unpriced = sum(published.rows["unpriced"].to_pylist())
    rows = list(sums.items()) if by == "day" else sorted(sums.items(), key=lambda row: (-row[1][2], row[0] or ""))
    if as_json:
        texts = [
            {name_of_row: name if name is None else str(name), **_used_as_json(measures, used)} for name, used in rows
        ]
        _print_json(
            {
                "organization_id": organization_id,
                "month": month_name(month),
                "version": published.version,
                "as_of": instant_text(published.as_of),
                "rows": texts,
                "total": _used_as_json(measures, total),
                "unpriced": unpriced,
            }
        )
        return 0
    if not rows:
        click.echo(f"{organization_id} made no request with an API key in {month_name(month)}, or none is loaded.")
    else:
        _show_usage(by, rows, total, published.currency or settings.currency)
    if unpriced:
        click.echo(
            f"UNPRICED    {count_of(unpriced, 'request')} of these without a cost, which is not in these sums: keytally"
            " status says what price is missing"
        )
    click.echo(
        f"Version {published.version}, through {instant_text(published.as_of) or 'a moment nobody knows'}."
        f" {'Which days are loaded: keytally status --days.' if by == 'day' or not rows else ''}".rstrip()
    )
    return 0


def _used_as_json(measures: Sequence[str], used: Sequence[Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int) and name.endswith("requests") else _amount(Decimal(value))
        for name, value in zip(measures, used, strict=True)
    }


def _show_usage(by: str, rows: Sequence[tuple[Any, list[Any]]], total: Sequence[Any], currency: str) -> None:
    shown = rows if by == "day" else rows[:SHOWN_LINES]
    places = [max(_decimals(used[position]) for _, used in (*shown, ("", total))) for position in (2, 3, 4)]
    most = max(used[2] for _, used in rows)

    def drawn(longest: int) -> Table:
        """longest: characters of the longest bar; 0: there are none."""
        table = _table(by, "requests", "failed", f"cost, {currency}", "synapses", "neurons", "cost")
        table.columns[-1].justify = "left"
        if not longest:
            table.columns.pop()

        def add(label: str, used: Sequence[Any], bar: str) -> None:
            amounts = (f"{Decimal(used[at]):,.{digits}f}" for at, digits in zip((2, 3, 4), places, strict=True))
            _add(table, *(label, used[0], used[1], *amounts, bar)[: len(table.columns)])

        for name, used in shown:
            label = "(no model named)" if name is None else visible(str(name))[:SHOWN_CHARACTERS]
            add(label, used, _bar(used[2], most, longest))
        table.add_section()
        add("sum", total, "")
        return table

    room = _console().width - _least_width(drawn(LEAST_BAR)) + LEAST_BAR
    _print_table(drawn(min(room, BAR) if room >= LEAST_BAR else 0))
    if len(rows) > len(shown):
        click.echo(f"and {len(rows) - len(shown):,} more (--json lists all)")


def _decimals(amount: Decimal) -> int:
    return len(f"{Decimal(amount):f}".partition(".")[2].rstrip("0"))


def _bar(value: Decimal, most: Decimal, longest: int) -> str:
    """So long a bar, in eighths of a character; that of `most` is `longest` long, and something is seen to be there."""
    eighths = max(int(value * longest * 8 / most), 1) if value else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


@command(main, "status")
@click.option("--days", "all_days", is_flag=True, help="List every day.")
@click.option("--files", "all_files", is_flag=True, help="List every file.")
@click.option(
    "--check", "only_check", is_flag=True, help="One line for each thing to look at; exit 0 for none, 1 or 3 as a run."
)
def status(all_days: bool, all_files: bool, only_check: bool, as_json: bool) -> int:
    """Show where things stand, and what to do next.

    What is published, through which moment, and what is waiting, held back or ignored; with the days of the newest
    month and the files taken in last; --json has every day and file.
    """
    from pipeline.status import status_of

    settings = Settings.from_environment()
    found = status_of(_data_of(settings), utc_now(), settings)
    if only_check:
        return _check_up(found, as_json)
    if as_json:
        _print_json(found.as_json())
        return 0
    _show_runs(found)
    if not found.ledger.publication.files:
        click.echo(f"Nothing is published yet from {visible(str(settings.data))}.")
    else:
        _show_published(found)
    for each in found.reported[:SHOWN_FILES]:
        click.echo(f"{each.kind:<11} {visible(each.what)}. {visible(_sentence(each.what_to_do))}")
    _echo_rest("LOWERED    ", found.reported, SHOWN_FILES, "--json lists all")
    for odd in found.odd[:SHOWN_FILES]:
        click.echo(f"ODD LOG     {visible(odd.file)}: {visible(odd.what)}")
    _echo_rest("ODD LOG    ", found.odd, SHOWN_FILES, "--json lists all")
    for day in found.disagreeing[:SHOWN_FILES]:
        name = f", as of request {visible(' of '.join(day.disagreement[::-1]))}" if day.disagreement else ""
        click.echo(f"DISAGREEING {day.day}: {count_of(day.disagreeing, 'line')} with other billed values{name}")
    _echo_rest("DISAGREEING", found.disagreeing, SHOWN_FILES, "--json lists all")
    _show_unpriced(found.unpriced)
    if found.bad_prices:
        click.echo(f"BAD PRICES  {visible(found.bad_prices)}")
    if found.raw_missing:
        click.echo(f"NO LOGS     {visible(found.raw_missing)}")
    _show_waiting(found)
    _show_days(found, all_days)
    _show_files(found, all_files)
    click.echo(f"Next        {_next_step(found)}")
    return 0


def _show_runs(found: Status) -> None:
    if found.failed:
        ago = ago_text(found.failed.failed, found.now)
        click.echo(f"FAILED      the newest run, {ago}: {visible(found.failed.why)}")
    if found.killed_at:
        ago = ago_text(found.killed_at, found.now)
        click.echo(f"KILLED      a run, {ago}, before it was done; what it finished is kept")
    if found.under_way_since:
        click.echo(f"Under way   a run on this machine, begun {ago_text(found.under_way_since, found.now)}")
    if found.lost:
        click.echo(
            f"LOST        {found.lost}: restore rollups/ from a copy, or run 'keytally rollup' to publish anew what is"
            " in raw/"
        )


def _check_up(found: Status, as_json: bool) -> int:
    from pipeline.check_up import exit_code_of, matters_of

    matters = matters_of(found)
    code = exit_code_of(matters)
    if as_json:
        _print_json({"exit_code": code, "matters": [matter.as_json() for matter in matters]})
        return code
    for matter in matters:
        click.echo(f"{matter.kind:<11} {visible(matter.what)}. {visible(_sentence(matter.what_to_do))}")
    return code


def _next_step(found: Status) -> str:
    """What an operator should do, the most urgent first."""
    from pipeline.disagreements import WHAT_TO_DO as DISAGREEMENT_ADVICE

    counting = [file.entry.take_in for file in found.files if file.entry and not file.entry.same_as]
    steps = (
        (found.lost, "keytally rollup, once rollups/ is back or given up"),
        (
            found.under_way_since,
            "wait for the run that is under way, then look again; if it hangs, kill it: the next run makes up for it",
        ),
        (found.failed, "put right what the failed run says, then keytally rollup"),
        (
            found.killed_at,
            "see what killed the run (the system's log names who ran out of memory); then keytally rollup",
        ),
        (found.held_back, "put right what the files held back need, or deliver them again; then keytally rollup"),
        (found.bad_prices, "mend prices.csv or fx.csv, then keytally rollup"),
        (any(day.finding for day in found.days), "what the findings say"),
        (found.reported, found.reported[0].what_to_do if found.reported else ""),
        (found.raw_missing, "mount raw/, then keytally rollup; nothing, if its logs were deleted on purpose"),
        (found.is_late, "keytally rollup; and see why no run has done its work since: its schedule, and what it said"),
        (found.waiting, "keytally rollup"),
        (found.ignored_logs, "rename or move the ignored files that look like logs, then keytally rollup"),
        (
            found.absent_day,
            f"see whether logs of {found.absent_day} were delivered, or did not count (keytally quarantine); then"
            " keytally rollup",
        ),
        (not found.ledger.publication.files, "put request logs below raw/, then keytally rollup"),
        (found.odd, found.odd[0].what_to_do if found.odd else ""),
        (found.disagreeing, DISAGREEMENT_ADVICE),
        (
            any(day.requests > day.without_tokens for day in found.unpriced),
            "add what is unpriced to prices.csv or fx.csv, then keytally rollup",
        ),
        (any(taken.quarantined for taken in counting), "keytally quarantine shows the lines that did not count"),
    )
    return next((step for applies, step in steps if applies), "nothing to do")


def _show_published(found: Status) -> None:
    shown = found.as_json()
    states = Counter(day.state for day in found.days)
    behind = [day.day for day in found.days if day.not_counted]
    of_range = f", from {shown['first_day']} to {shown['last_day']}" if shown["days"] else " with a request"
    for number, words in (
        (states["not_loaded"], "not loaded"),
        (states["open"], "open"),
        (states["loaded_with_findings"], "with findings"),
    ):
        of_range += f"; {number:,} {words}" if number else ""
    click.echo(f"Version     {shown['version']}, published {shown['published_at']}")
    if found.confirmed_at:
        as_of = f"{shown['as_of']}, {ago_text(found.confirmed_at, found.now)}"
    else:
        as_of = "unknown: last_run.json is gone or cannot be read; the next run writes it anew"
    click.echo(f"As of       {as_of}")
    click.echo(f"Days        {shown['days']:,}{of_range}")
    click.echo(f"Requests    {shown['counted']:,} counted, {shown['session']:,} of sessions")
    click.echo(f"Copies      {shown['duplicate']:,}, of which {shown['conflicting']:,} differ")
    click.echo(f"Files       {shown['files']:,}, with {count_of(shown['quarantined'], 'line')} in quarantine")
    if behind:
        on = f"{behind[0]}" + (f" and {len(behind) - 1:,} more" if len(behind) > 1 else "")
        click.echo(f"NOT COUNTED {count_of(shown['not_counted'], 'accepted line')} of {on}: see the findings below")


def _show_waiting(found: Status) -> None:
    waiting = sorted(found.waiting, key=lambda each: each.since or found.now)
    size = sum(each.raw_file.size for each in waiting)
    click.echo(
        f"Waiting     {count_of(len(waiting), 'file')}, {size:,} bytes: keytally rollup takes them in"
        if waiting
        else "Waiting     nothing"
    )
    for each in waiting[:SHOWN_FILES]:
        age = age_of(each.since, found.now)
        how_long = "" if age is None else f" for {duration_text(age)}"
        click.echo(f"              {visible(each.raw_file.file)} ({each.why}{how_long})")
    _echo_rest("            ", waiting, SHOWN_FILES, "--files lists all")
    for held in found.held_back[:SHOWN_LINES]:
        age = age_of(found.held_since.get(held.file), found.now)
        told = "" if age is None else f" (for {duration_text(age)})"
        click.echo(f"HELD BACK   {visible(held.file)}: {visible(held.reason)}{told}")
    _echo_rest("HELD BACK  ", found.held_back, SHOWN_LINES, "--json lists all")
    for log in found.ignored_logs[:SHOWN_FILES]:
        click.echo(f"IGNORED LOG {visible(log.file)}: {visible(log.what_to_do)}")
    _echo_rest("IGNORED LOG", found.ignored_logs, SHOWN_FILES, "--json lists all")
    logs = {log.file for log in found.ignored_logs}
    others = [file for file in found.ignored if file not in logs]
    for file in others[:SHOWN_FILES]:
        click.echo(f"Ignored     {visible(file)} ({found.ignored[file]})")
    _echo_rest("Ignored    ", others, SHOWN_FILES, "--json lists all")


def _echo_rest(label: str, listed: Collection[object], shown: int, hint: str) -> None:
    if len(listed) > shown:
        click.echo(f"{label} and {len(listed) - shown:,} more ({hint})")


def _show_days(found: Status, all_days: bool) -> None:
    if not found.days:
        return
    newest = month_of(max(day.day for day in found.days if day.state != "not_loaded" or day.finding))
    earlier = [day for day in found.days if day.day < newest and (all_days or day.finding)]
    shown = earlier if all_days else earlier[-SHOWN_LINES:]
    shown += [day for day in found.days if day.day >= newest]
    table = _table("day", "state", "accepted", "counted", "session", "duplicate", "files", "quarantined")
    table.columns[1].justify = "left"
    # Days in a row of which there is nothing to say are one line.
    for _, days in groupby(shown, key=lambda day: day.day if day.entry or day.finding else None):
        first, *others = days
        row = [f"{first.day} to {others[-1].day}" if others else str(first.day), first.state]
        if entry := first.entry:
            counts = (entry.accepted, entry.counted, entry.session, entry.duplicate, first.files, first.quarantined)
            _add(table, *row, *counts)
        else:
            _add(table, *row)
    _print_table(table)
    if len(found.days) > len(shown):
        click.echo(f"and {count_of(len(found.days) - len(shown), 'earlier day')} (--days lists all)")
    findings = [day for day in found.days if day.finding]
    for day in findings[-SHOWN_LINES:]:
        click.echo(f"FINDING     {day.day}: {visible(day.finding or '')}")
    _echo_rest("FINDING    ", findings, SHOWN_LINES, "--json lists all")


def _show_files(found: Status, all_files: bool) -> None:
    counting = [(file, file.entry) for file in found.files if file.entry]
    shown = counting
    if not all_files:
        shown = sorted(counting, key=lambda each: each[1].take_in.taken_at, reverse=True)[:SHOWN_FILES]
    if not shown:
        return
    some_skipped = ["skipped"] if any(entry.take_in.skipped for _, entry in shown) else []
    table = _table("file", "lines", "accepted", "quarantined", *some_skipped, "taken in", "now")
    for column in table.columns[-2:]:
        column.justify = "left"
    for file, entry in shown:
        taken = entry.take_in
        same = entry.same_as is not None
        now = [f"same as {visible(entry.same_as)}"] if entry.same_as else []
        now += ["held back"] if file.held_back else [file.waiting] if file.waiting else []
        now += [] if file.in_raw else ["gone from raw/"]
        of_file = (taken.accepted, taken.quarantined, *([taken.skipped] if some_skipped else []))
        counts = (taken.lines, *(0 if same else count for count in of_file))
        _add(table, visible(file.file), *counts, instant_text(taken.taken_at) or "", ", ".join(now) or "as taken in")
    _print_table(table)
    if len(counting) > len(shown):
        click.echo(f"and {count_of(len(counting) - len(shown), 'file')} taken in before (--files lists all)")


@main.command("completion", epilog=f"\b\nExample:\n  {_EXAMPLES['completion']}")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands and options.

    Bash needs 4.4 or newer.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(main, {}, "keytally", "_KEYTALLY_COMPLETE").source())


# --- for the eye -----------------------------------------------------------------------------------------------------


def _table(*columns: str, numbers: bool = True) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        # An identifier is for copying: only free text may be folded.
        justify: Literal["left", "right"] = "right" if numbers and position else "left"
        table.add_column(column, justify=justify, no_wrap=column != "text", overflow="fold")
    return table


def _add(table: Table, *cells: str | int) -> None:
    from rich.text import Text

    table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else cell) for cell in cells))


def _print_table(table: Table) -> None:
    console = _console()
    # Half a number is another number: in a narrow terminal the lines are folded, and no cell is cut.
    console.width = max(console.width, _least_width(table))
    console.print(table)


def _console() -> Console:
    from rich.console import Console

    # In a file or a pipe there is no width to fold a table to.
    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def _least_width(table: Table) -> int:
    """How wide a table is with every cell whole, but free text folded as much as it may be."""
    from rich.measure import Measurement

    folded = [column for column in table.columns if not column.no_wrap]
    for column in folded:
        column.max_width = NARROWEST_TEXT
    console = _console()
    width = Measurement.get(console, console.options.update(width=10_000), table).maximum
    for column in folded:
        column.max_width = None
    return width


def _amount(amount: Decimal) -> str:
    digits = _decimals(amount)
    return f"{amount:.{digits}f}"


if __name__ == "__main__":
    main()
