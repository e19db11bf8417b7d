"""Reconciling: recount from the raw contents that a version's ledger names, and compare with what it publishes.

Independent of how it was published: its own reading of the raw files (recount.py), of price books and rates
(recount_prices.py), its own way to count each request once. Neither event files nor daily artifacts are opened, and
nothing of the intake is imported. From the ledger it takes which contents count, at which moment each was taken in and
by which book each day was priced, and holds the ledger's own counts against the recount.

Per organization and day, per API key, model and day, the month's two rollups where all its days are compared, the
day reports, and the line counts of every file that was read.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.compare import (
    TABLES,
    Difference,
    Lines,
    differing_days,
    differing_lines,
    differing_usage,
    published_usage,
)
from pipeline.contract.layout import days_between, month_of
from pipeline.engine import Engine
from pipeline.errors import KeytallyError
from pipeline.format import SHIPPED, Format
from pipeline.ledger import FileEntry, Ledger, read_ledger
from pipeline.mapping import MappedRecords
from pipeline.raw import list_raw
from pipeline.recount import Mapped, Request, Skipped, Verdict, mapped_requests_in, requests_in
from pipeline.recount_contents import Contents, is_still_there, size_of
from pipeline.recount_formats import PLAIN_FORMATS, PlainFormat
from pipeline.recount_traces import Traces
from pipeline.recount_usage import EPOCH, REQUEST, ROWS_AT_ONCE, PriceLists, add, count_each_request_once
from pipeline.run import Run
from pipeline.tabular import csv_records, parquet_records

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError


@dataclass(frozen=True)
class MissingContent:
    """A content that the version counts and raw/ no longer holds, and the days of the range it counts on."""

    file: str
    days: tuple[date, ...]


@dataclass(frozen=True)
class Reconciliation:
    """How a range of days of one version compares with the raw logs.

    days: how many days of the range were compared and hold anything, published or recounted. Unverifiable days are not
    compared; a day without anything is compared, zero with zero, but not counted.
    waiting: raw files that the version does not know as they are now.
    missing: contents that are gone from raw/ or were changed there.
    """

    version: int
    days: int
    differences: tuple[Difference, ...]
    waiting: tuple[str, ...]
    missing: tuple[MissingContent, ...]

    @property
    def equal(self) -> bool:
        """Whether every number that could be recounted is the published one."""
        return not self.differences

    @property
    def unverifiable(self) -> tuple[date, ...]:
        """The days that cannot be recounted whole, and so were not compared."""
        return tuple(sorted({day for content in self.missing for day in content.days}))

    def as_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "days": self.days,
            "differences": [difference.as_json() for difference in self.differences],
            "waiting": list(self.waiting),
            "unverifiable": [str(day) for day in self.unverifiable],
        }


def reconcile(run: Run, first_day: date, last_day: date) -> Reconciliation:
    """Recount the days from `first_day` to `last_day` (both included) and compare them with the newest version.

    Nothing is written but what the engine spills. The moment of the run is not asked for: what was from the future is
    decided by the moment the ledger recorded. Raises ArtifactDamaged when a published file is not what was written.
    """
    ledger = read_ledger(run.store)
    listing = list_raw(run.store)
    contents = Contents(listing.files)
    days = frozenset(days_between(first_day, last_day))
    differences: list[Difference] = []
    missing: list[MissingContent] = []
    published = published_usage(run, ledger, days)
    for made in ("request", "usage"):
        run.engine.run(f"create_recounted_{made}")

    needed = _needed(ledger, days)
    run.watch.begin("recounting", sum(size_of(entries[0]) for entries in needed))
    for entries in needed:
        lines = _recount(run.engine, entries, contents, days)
        if lines.whole:
            differences += differing_lines(entries[0], lines)
        else:
            touched = {*(event.day for event in entries[0].take_in.events), *lines.accepted} & days
            missing.append(MissingContent(entries[0].file, tuple(sorted(touched))))
        run.watch.advance(size_of(entries[0]))
        run.watch.count(lines.total)

    compared = days - {day for content in missing for day in content.days}
    counts = count_each_request_once(run, compared, PriceLists(run.store, ledger))
    differences += differing_days(ledger, compared, counts)
    differences += differing_usage(run, published, compared, {month_of(day) for day in counts})
    differences.sort(key=lambda difference: TABLES.index(difference.rollup))  # sums first, then what explains them
    waiting = [raw_file.file for raw_file in listing.files if contents.is_waiting(raw_file, ledger)]
    waiting += [held_back.file for held_back in listing.held_back]
    loaded = len(compared & {*ledger.days, *counts})
    return Reconciliation(
        ledger.publication.version, loaded, tuple(differences), tuple(sorted(waiting)), tuple(missing)
    )


# --- which contents, and where they lie ------------------------------------------------------------------------------


def _needed(ledger: Ledger, days: frozenset[date]) -> list[list[FileEntry]]:
    """Return the entries of each content that counts on one of the days, or of which no line counts anywhere."""
    contents: dict[tuple[str, str], list[FileEntry]] = {}
    for _, entry in sorted(ledger.files.items()):
        contents.setdefault((entry.take_in.content, entry.take_in.format), []).append(entry)
    return [
        entries
        for entries in contents.values()
        if any(event.day in days for event in entries[0].take_in.events)
        or (not entries[0].take_in.events and entries[0].take_in.lines)
    ]


# --- the recount -----------------------------------------------------------------------------------------------------


def _recount(engine: Engine, entries: Sequence[FileEntry], contents: Contents, days: frozenset[date]) -> Lines:
    """Read a content, and those of its requests that are of these days into recounted_request."""
    lines = Lines()
    found = contents.where(entries)
    if found is None:
        return lines
    raw_file, size = found
    ending = raw_file.read_as.removeprefix(raw_file.format.name)
    taken_at = entries[0].take_in.taken_at
    first, last = ((day - EPOCH).days for day in (min(days), max(days)))
    accepted: Counter[int] = Counter()
    batch: list[Request] = []
    traces = Traces()
    try:
        with raw_file.open() as opened:
            requests: Iterator[Verdict]
            if raw_file.format.is_mapped:
                requests = mapped_requests_in(
                    opened, ending, taken_at, size, _mapped(engine, raw_file.format, ending), traces
                )
            else:
                requests = requests_in(opened, ending, taken_at, size)
            for request in requests:
                if request is None:
                    lines.quarantined += 1
                    continue
                if isinstance(request, Skipped):
                    lines.skipped += 1
                    continue
                accepted[request.day] += 1
                if first <= request.day <= last:
                    batch.append(request)
                    if len(batch) == ROWS_AT_ONCE:
                        add(engine, "request", REQUEST, batch)
                        batch = []
    except (OSError, EOFError, zlib.error, ZstdError, pa.ArrowException) as error:
        if is_still_there(found, entries[0]):
            raise KeytallyError(f"{raw_file.file} cannot be recounted, although it was taken in: {error}") from error
    add(engine, "request", REQUEST, batch)
    lines.accepted.update({EPOCH + timedelta(days=day): count for day, count in accepted.items()})
    lines.merged, lines.undecided = traces.merged, traces.undecided
    lines.whole = is_still_there(found, entries[0])
    return lines


def _mapped(engine: Engine, format: Format, ending: str) -> Mapped:
    """Return a mapped format as the recount reads it. Raises FormatRefused."""
    csv_rows = partial(csv_records, how=format.csv)
    readers: dict[str, Callable[[Any], Iterator[pa.RecordBatch]]] = {
        ".csv": csv_rows,
        ".csv.gz": csv_rows,
        ".parquet": parquet_records,
    }
    rows_of = readers.get(ending)

    def texts_of(opened: Any) -> Iterator[str | None]:
        for batch in rows_of(opened) if rows_of else ():
            yield from batch.column("text").to_pylist()

    if plain := _plain(format):
        return Mapped(
            plain=plain.reader,
            requests_of=None,
            texts_of=texts_of if rows_of else None,
            skips=False,
            book_prices=plain.book_prices,
            tokens_as_units=True,
            currency=plain.currency,
            most_complete=plain.most_complete,
        )
    mapping = engine.lasting(format, partial(MappedRecords, format))

    def requests_of(texts: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        table = mapping.requests_of(range(len(texts)), pa.array(texts, pa.string()))
        return ((row.pop("line"), row) for row in table.to_pylist())

    return Mapped(
        plain=None,
        requests_of=requests_of,
        texts_of=texts_of if rows_of else None,
        skips=format.skips is not None and "skipped" not in mapping.given,
        book_prices=format.terms.book_prices,
        tokens_as_units=format.terms.tokens_as_units,
        currency=format.terms.currency,
        cached_beside_input=format.terms.cached_beside_input,
        most_complete=format.terms.most_complete,
    )


def _plain(format: Format) -> PlainFormat | None:
    """Return our own reader of a shipped format; None where the deployment put a format of its own in its place."""
    shipped = SHIPPED / f"{format.name}.sql"
    if format.name not in PLAIN_FORMATS or format.text != shipped.read_text(encoding="utf-8"):
        return None
    return PLAIN_FORMATS[format.name]
