"""Rolling up: a day's events into what each key used of each model; a month's days into the published rollups."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import artifacts
from pipeline.checks import check_day, check_month, check_schema
from pipeline.contract.layout import month_name
from pipeline.contract.seam import step
from pipeline.contract.tables import API_KEY_DAY, EVENT, USAGE, Table
from pipeline.engine import POINT_READ_ROWS, SCAN_ROWS, statement
from pipeline.intake import EventFile
from pipeline.ledger import DayEntry, RequestName
from pipeline.prices import Demand, Largest, Pricing, table_of_factors, tables_of
from pipeline.run import Run

LINES_AT_ONCE = 1_000_000  # of more, what is hashed no longer lies in the caches: 2 million took 5 % more
FILES_AT_ONCE = 1_000  # DuckDB holds some 10 KB of each file a statement reads, and every statement opens all anew
_REPEATED = ["organization_id", "day", "api_key_id", "model"]  # a dictionary of anything else is thrown away again
STREAM_ROWS = (
    16_384  # that are handed over at once: what is made of them on the way to a file takes memory several times
)
ROLL_UP_RULE = 2  # counts changes outside that SQL after which a day must be rolled up anew; tests/test_rules.py


class DayInputs(NamedTuple):
    """What a day is made from: the event files of every content that has requests on it, `accepted` lines in all."""

    day: date
    fingerprint: str
    events: Sequence[EventFile]
    accepted: int


class Copies(NamedTuple):
    """How many copies of a day's requests do not count; how many of them differ from the one that counts, and how many
    do in a billed value; and the name of one such request."""

    duplicate: int = 0
    conflicting: int = 0
    disagreeing: int = 0
    disagreement: RequestName | None = None

    def and_those_of(self, others: Iterable[Copies]) -> Copies:
        """The copies of all parts of a day."""
        parts = (self, *others)
        return Copies(
            sum(part.duplicate for part in parts),
            sum(part.conflicting for part in parts),
            sum(part.disagreeing for part in parts),
            min((part.disagreement for part in parts if part.disagreement), default=None),
        )


CopiesFound = Mapping[date, Copies]


@dataclass(frozen=True)
class RolledMonth:
    """A month's finished rollups, one file a table, not yet where readers look."""

    month: date
    files: Mapping[Table, Path]


class Summation(NamedTuple):
    """How some events are summed up: by which statement; their copies that do not count, by day; what each day asks
    of a price book."""

    statement: str
    copies: CopiesFound
    demands: Mapping[date, Demand]


class Usage(NamedTuple):
    """A day's finished file, not yet where it stays, and how many lines and requests were summed up for it."""

    path: Path
    in_events: int
    counted: int
    session: int
    unpriced: int
    without_tokens: int


class DayUsage(NamedTuple):
    """What a day sums to; its copies that do not count; by what it was priced."""

    usage: Usage
    copies: Copies
    pricing: Pricing | None


def fingerprint_of(take_ins: Iterable[str]) -> str:
    """Names a day by what it is made from: the taken-in contents, in whatever order, and the rule."""
    return hashlib.sha256("\0".join((_rule(), *sorted(take_ins))).encode()).hexdigest()[:32]


@cache
def _rule() -> str:
    texts = map(
        statement,
        (
            "copies",
            "demand",
            "roll_up_days",
            "roll_up_priced_days",
            "roll_up_rounded_days",
            "half_even",
            "in_64_bits",
            "in_128_bits",
            "tokens_in_units",
        ),
    )
    return hashlib.sha256("\0".join((str(ROLL_UP_RULE), *texts)).encode()).hexdigest()


def grouped(days: Iterable[DayInputs]) -> list[list[DayInputs]]:
    """The days in groups, in order; none of more lines or files than are rolled up at once, but for one day alone."""
    groups: list[list[DayInputs]] = []
    lines = files = 0
    for day in days:
        lines, files = lines + day.accepted, files + len(day.events)
        if not groups or lines > LINES_AT_ONCE or files > FILES_AT_ONCE:
            groups.append([])
            lines, files = day.accepted, len(day.events)
        groups[-1].append(day)
    return groups


def roll_up_days(run: Run, days: Sequence[DayInputs]) -> list[DayEntry]:
    """Roll days up, each of them whole, in one go.

    Raises CheckFailed when the lines of a day do not add up; then none of them is kept.
    """
    return [keep_day(run, day, usage) for day, usage in zip(days, use_of(run, days), strict=True)]


def use_of(run: Run, days: Sequence[DayInputs]) -> list[DayUsage]:
    """What was used on days, each in a finished file in scratch. Raises CheckFailed."""
    found = look_at(run, [event.path_in(run.layout) for day in days for event in day.events])
    return finish_days(run, days, found)


def look_at(run: Run, events: Sequence[Path]) -> Summation:
    """Name the event files `events`, and all else that the statement reads that sums them up."""
    run.engine.name_files("events", _gathered(run, events), EVENT)
    copies = find_copies(run)
    statement, demands = statement_for(run)
    return Summation(statement, copies, demands)


def find_copies(run: Run) -> CopiesFound:
    """Find the copies among the named events, for the statements that read them."""
    run.engine.run("copies")
    return {
        day: Copies(duplicate, conflicting, disagreeing, RequestName(*name) if name else None)
        for day, duplicate, conflicting, disagreeing, name in run.engine.query("count_copies")
    }


def statement_for(run: Run) -> tuple[str, Mapping[date, Demand]]:
    """The statement that sums up the named events, with what it reads named; what each day asks of a price book."""
    asked = _asked(run)
    if not asked.demands:
        return "roll_up_days", {}
    answers = [run.prices.answer(day, demand) for day, demand in asked.demands.items()]
    in_64_bits = all(answer.fits_64_bits(asked.largest) for answer in answers)
    for name, rows in tables_of(answers, in_64_bits=in_64_bits).items():
        run.engine.name_arrow(name, rows)
    run.engine.run("half_even")
    run.engine.run("in_64_bits" if in_64_bits else "in_128_bits")
    stated = any(demand.currencies - {run.prices.currency} for demand in asked.demands.values())
    of_sums = all(answer.is_of_sums(asked.largest) for answer in answers)
    return "roll_up_priced_days" if of_sums and not stated else "roll_up_rounded_days", asked.demands


def finish_days(run: Run, days: Sequence[DayInputs], found: Summation) -> list[DayUsage]:
    """What the rows of a statement make of days, checked. Raises CheckFailed."""
    used = _written(run, days, _in_units(run, found))
    accepted = {day.day: day.accepted for day in days}
    for day, usage in used.items():
        duplicate = found.copies.get(day, Copies()).duplicate
        check_day(
            day,
            accepted=accepted.get(day, 0),
            in_events=usage.in_events,
            counted=usage.counted,
            duplicate=duplicate,
            session=usage.session,
        )
    return [
        DayUsage(
            used[day.day],
            found.copies.get(day.day, Copies()),
            run.prices.pricing(day.day, found.demands.get(day.day, Demand())),
        )
        for day in days
    ]


def keep_day(run: Run, day: DayInputs, of_day: DayUsage) -> DayEntry:
    """The day's file where it stays."""
    usage, copies, pricing = of_day
    made_from = f"{day.fingerprint}-{pricing.answer}" if pricing else day.fingerprint
    artifact = artifacts.keep(run.store, usage.path, run.layout.daily_of(day.day), made_from)
    return DayEntry(
        day.day,
        day.fingerprint,
        artifact,
        as_of=run.started,
        accepted=day.accepted,
        counted=usage.counted,
        session=usage.session,
        unpriced=usage.unpriced,
        without_tokens=usage.without_tokens,
        **copies._asdict(),
        pricing=pricing,
        currency=run.settings.currency,
    )


class _Asked(NamedTuple):
    """What days ask of a price book and of rates, and the largest numbers that are to be reckoned with."""

    demands: Mapping[date, Demand]
    largest: Largest


def _asked(run: Run) -> _Asked:
    """What the named events ask; nothing where they say all themselves."""
    asked: dict[date, tuple[set[str | None], set[str | None], set[str]]] = defaultdict(lambda: (set(), set(), set()))
    largest = Largest(0, 0, 0)
    for day, model, currency, without_cost, without_units, *most, cost in run.engine.query("demand"):
        models, units, currencies = asked[day]
        if without_cost:
            models.add(model)
        if without_units:
            units.add(model)
        if currency is not None:
            currencies.add(currency)
        largest = Largest(*map(max, largest, (*most, int(cost.scaleb(12)))))
    demands = {
        day: Demand(frozenset(models), frozenset(units), frozenset(currencies))
        for day, (models, units, currencies) in asked.items()
    }
    return _Asked(demands, largest)


def _in_units(run: Run, found: Summation) -> str:
    """The statement whose rows are the usage, tokens made into units; with what it reads named."""
    if not any(demand.units for demand in found.demands.values()):
        return found.statement
    factors = (factor for day, demand in found.demands.items() for factor in run.prices.factors(day, demand))
    run.engine.name_arrow("factor", table_of_factors(factors))
    run.engine.run("half_even")
    run.engine.name_statement("sums", found.statement)
    return "tokens_in_units"


def _written(run: Run, days: Sequence[DayInputs], rows: str) -> dict[date, Usage]:
    """What a statement makes of each of the days, and of any other that its rows are dated on."""
    used = {
        day: _write_day((part for _, part in parts), run.scratch / f"daily-{day}.parquet")
        for day, parts in groupby(_by_day(run.engine.rows(rows, STREAM_ROWS)), itemgetter(0))
    }
    for day in (day.day for day in days if day.day not in used):
        used[day] = _write_day((), run.scratch / f"daily-{day}.parquet")
    return used


def _by_day(rows: Iterable[pa.RecordBatch]) -> Iterator[tuple[date, pa.RecordBatch]]:
    """Rows in order of day, cut where one day ends and the next begins."""
    for batch in rows:
        start = 0
        days = pc.run_end_encode(batch.column("day"))
        for day, end in zip(days.values.to_pylist(), days.run_ends.to_pylist(), strict=True):
            yield day, batch.slice(start, end - start)
            start = end


def _write_day(parts: Iterable[pa.RecordBatch], path: Path) -> Usage:
    """Write what API keys used as one Parquet file, whose bytes do not depend on how the rows come in parts."""
    in_events = counted = session = unpriced = without_tokens = 0
    schema = API_KEY_DAY.arrow_schema

    def usage() -> Iterator[pa.Table]:
        nonlocal in_events, counted, session, unpriced, without_tokens
        for part in parts:
            has_key = pc.is_valid(part.column("api_key_id"))
            used = part.filter(pc.and_(has_key, pc.greater(part.column("requests"), 0)))
            in_events += pc.sum(part.column("lines")).as_py()
            session += pc.sum(part.filter(pc.invert(has_key)).column("requests")).as_py() or 0
            counted += pc.sum(used.column("requests")).as_py() or 0
            unpriced += pc.sum(used.column("unpriced")).as_py() or 0
            without_tokens += pc.sum(used.column("without_tokens")).as_py() or 0
            yield pa.Table.from_batches([used.select(schema.names)])

    step("write a file in scratch")
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=_REPEATED) as file:
        for rows in _in_parts(usage(), schema):
            file.write_table(rows.combine_chunks())
    return Usage(path, in_events, counted, session, unpriced, without_tokens)


def _gathered(run: Run, events: Sequence[Path]) -> Sequence[Path]:
    """The events of a day in files that are not too many: a gateway may have written a file for each request."""
    if len(events) <= FILES_AT_ONCE:
        return events
    gathered = []
    for start in range(0, len(events), FILES_AT_ONCE):
        run.engine.name_files("some_event_files", events[start : start + FILES_AT_ONCE], EVENT)
        gathered.append(run.scratch / f"events-{start}.parquet")
        run.engine.copy("some_events", gathered[-1], SCAN_ROWS)
    return gathered


def roll_up_month(run: Run, month: date, days: Sequence[DayEntry]) -> RolledMonth:
    """Roll a month up from its days.

    Raises CheckFailed when a rollup repeats a row of its grain, or does not sum to its days.
    """
    engine = run.engine
    engine.name_files("day_files", [entry.path_in(run.layout) for entry in days], API_KEY_DAY)
    engine.run("daily")
    files = {}
    for table in USAGE:
        path = run.scratch / f"{table.name}-{month_name(month)}.parquet"
        engine.copy(table.name, path, POINT_READ_ROWS)
        check_schema(path, table)
        engine.name_files(table.name, [path], table)
        files[table] = path
    check_month(engine, month, counted=sum(entry.counted for entry in days))
    return RolledMonth(month, files)


def same_rows(run: Run, table: Table, published: Path, rolled: Path) -> bool:
    """Whether two files of a table hold the same rows in the same order, however they are written."""
    held = run.scratch / "compared"
    shutil.rmtree(held, ignore_errors=True)
    files = run.store.fetch_all([published, rolled], held)
    with pq.ParquetFile(files[0]) as one, pq.ParquetFile(files[1]) as other:
        if one.metadata.num_rows != other.metadata.num_rows:
            return False
        parts = (_in_parts(_rows_of(file, table), table.arrow_schema) for file in (one, other))
        return all(mine.equals(others) for mine, others in zip(*parts, strict=True))


def _rows_of(file: pq.ParquetFile, table: Table) -> Iterator[pa.Table]:
    for batch in file.iter_batches(SCAN_ROWS):
        yield table.rows_of(pa.Table.from_batches([batch]))


def _in_parts(rows: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of SCAN_ROWS each, and one of those that remain."""
    waiting = schema.empty_table()
    for some in rows:
        waiting = pa.concat_tables([waiting, some])
        while waiting.num_rows >= SCAN_ROWS:
            yield waiting.slice(0, SCAN_ROWS)
            waiting = waiting.slice(SCAN_ROWS)
    yield waiting
