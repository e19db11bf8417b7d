"""Reconciling: recount from the raw contents that a version's ledger names, and compare with what it publishes.

Independent of how it was published: its own reading of the raw files (recount.py), of price books and rates
(recount_prices.py), its own way to count each request once. Neither event files nor daily artifacts are opened, and
nothing of the intake is imported. From the ledger it takes which contents count, at which moment each was taken in and
by which book each day was priced, and holds the ledger's own counts against the recount.

Per organization and day, per API key, model and day, the month's two rollups where all its days are compared, the
day reports, and the line counts of every file that was read.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import verified, verify
from pipeline.contract.layout import days_between, last_day_of, month_name, month_of
from pipeline.contract.store import Store
from pipeline.contract.tables import API_KEY_DAY, DAY_LEDGER, FILE_LEDGER, USAGE, Table
from pipeline.engine import Engine
from pipeline.errors import ArtifactDamaged, KeytallyError
from pipeline.format import Format
from pipeline.ledger import FileEntry, Ledger, read_ledger
from pipeline.mapping import MappedRecords
from pipeline.raw import RawFile, list_raw
from pipeline.recount import (
    COST_DECIMALS,
    UNITS_DECIMALS,
    Mapped,
    Request,
    mapped_requests_in,
    requests_in,
)
from pipeline.recount_prices import PriceList
from pipeline.run import Run
from pipeline.tabular import csv_records, parquet_records

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

ROWS_AT_ONCE = 16_384
BLOCK_BYTES = 2**20
REQUEST_BYTES = 300  # of memory that sorting takes for each request, about
USAGE_BYTES = 2_000  # of memory that comparing takes for each row, about
MEASURES = ("requests", "failed_requests", "cost", "synapses", "neurons", "input_tokens", "output_tokens", "unpriced")
EPOCH = date(1970, 1, 1)

Number = int | Decimal


@dataclass(frozen=True)
class Difference:
    """A number that is published, and what the raw contents make it.

    rollup: the published table. day is None for a month's number, month for a file's. file: of the ledger of files.
    field "rows": how many rows the table holds for this organization, key and model, where every sum is right.
    """

    rollup: str
    field: str
    published: Number
    recounted: Number
    organization_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    day: date | None = None
    month: date | None = None
    file: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "rollup": self.rollup,
            "organization_id": self.organization_id,
            "api_key_id": self.api_key_id,
            "model": self.model,
            "month": self.month and month_name(self.month),
            "day": self.day and str(self.day),
            "file": self.file,
            "field": self.field,
            "published": _as_written(self.field, self.published),
            "recounted": _as_written(self.field, self.recounted),
        }


@dataclass(frozen=True)
class MissingContent:
    """A content that the version counts and raw/ no longer holds, and the days of the range it counts on."""

    file: str
    days: tuple[date, ...]


@dataclass(frozen=True)
class Reconciliation:
    """How a range of days of one version compares with the raw logs.

    days: how many of them were compared: all but the unverifiable ones; a day of which there is nothing anywhere is
    compared too, zero with zero. waiting: raw files that the version does not know as they are now. missing: contents
    that are gone from raw/ or were changed there.
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
    contents = _Contents(listing.files)
    days = frozenset(days_between(first_day, last_day))
    differences: list[Difference] = []
    missing: list[MissingContent] = []
    published = _published(run, ledger, days)
    for made in ("request", "usage"):
        run.engine.run(f"create_recounted_{made}")

    needed = _needed(ledger, days)
    run.watch.begin("recounting", sum(_size_of(entries[0]) for entries in needed))
    for entries in needed:
        lines = _recount(run.engine, entries, contents, days)
        if lines.whole:
            differences += _differing_lines(entries[0], lines)
        else:
            touched = {*(event.day for event in entries[0].take_in.events), *lines.accepted} & days
            missing.append(MissingContent(entries[0].file, tuple(sorted(touched))))
        run.watch.advance(_size_of(entries[0]))
        run.watch.count(lines.accepted.total() + lines.quarantined)

    compared = days - {day for content in missing for day in content.days}
    counts = _count_each_request_once(run, compared, _PriceLists(run.store, ledger))
    differences += _differing_days(ledger, compared, counts)
    differences += _differing_usage(run, published, compared, {month_of(day) for day in counts})
    differences.sort(key=lambda difference: _TABLES.index(difference.rollup))  # sums first, then what explains them
    waiting = [raw_file.file for raw_file in listing.files if contents.is_waiting(raw_file, ledger)]
    waiting += [held_back.file for held_back in listing.held_back]
    return Reconciliation(
        ledger.publication.version, len(compared), tuple(differences), tuple(sorted(waiting)), tuple(missing)
    )


_TABLES = [*(table.name for table in USAGE), DAY_LEDGER.name, FILE_LEDGER.name]


# --- which contents, and where they lie ------------------------------------------------------------------------------


def _needed(ledger: Ledger, days: frozenset[date]) -> list[list[FileEntry]]:
    """The entries of each content that counts on one of the days, or of which no line counts and some were rejected."""
    contents: dict[tuple[str, str], list[FileEntry]] = {}
    for _, entry in sorted(ledger.files.items()):
        contents.setdefault((entry.take_in.content, entry.take_in.format), []).append(entry)
    return [
        entries
        for entries in contents.values()
        if any(event.day in days for event in entries[0].take_in.events)
        or (not entries[0].take_in.events and entries[0].take_in.quarantined)
    ]


class _Found(NamedTuple):
    """A content where it lies now: the first `size` bytes of a raw file."""

    raw_file: RawFile
    size: int


class _Contents:
    """Which raw file holds which content now, by its hash alone.

    A log that was appended to holds what it held before in its beginning, compressed or not.
    """

    def __init__(self, raw_files: Sequence[RawFile]) -> None:
        self._by_name = {raw_file.file: raw_file for raw_file in raw_files}
        self._by_size: dict[int, list[RawFile]] = {}
        self._by_inode: dict[str, list[RawFile]] = {}
        for raw_file in raw_files:
            self._by_size.setdefault(raw_file.size, []).append(raw_file)
            self._by_inode.setdefault(_inode_of(raw_file), []).append(raw_file)
        self._hashes: dict[tuple[str, int], str | None] = {}

    def where(self, entries: Sequence[FileEntry]) -> _Found | None:
        """Where the content of these entries lies: under one of their names, or since then renamed."""
        wanted = entries[0].take_in
        # Of an emptied file, the signature tells the size of what it holds now.
        for size in sorted({_size_of(entry) for entry in entries}, reverse=True):
            named = [self._by_name[entry.file] for entry in entries if entry.file in self._by_name]
            renamed = [raw_file for entry in entries for raw_file in self._by_inode.get(_inode_of(entry), [])]
            for raw_file in (*named, *renamed, *self._by_size.get(size, [])):
                if raw_file.read_as == wanted.format and self._hash_of(raw_file, size) == wanted.content:
                    return _Found(raw_file, size)
        return None

    def is_waiting(self, raw_file: RawFile, ledger: Ledger) -> bool:
        """Whether the version does not know this file, or not with this content. Touched is not changed."""
        entry = ledger.files.get(raw_file.file)
        if entry is None:
            return True
        return entry.signature != raw_file.signature and self._hash_of(raw_file, raw_file.size) != entry.take_in.content

    def _hash_of(self, raw_file: RawFile, size: int) -> str | None:
        """SHA-256 (hex) of a raw file's first `size` bytes; None where they are no content of their own."""
        if raw_file.size < size or (raw_file.size > size and raw_file.file.endswith(".parquet")):
            return None
        key = (raw_file.file, size)
        if key not in self._hashes:
            self._hashes[key] = _hash_of_beginning(raw_file, size)
        return self._hashes[key]


def _hash_of_beginning(raw_file: RawFile, size: int) -> str | None:
    found = hashlib.sha256()
    try:
        with raw_file.open() as file:
            while size and (block := file.read(min(size, BLOCK_BYTES))):
                found.update(block)
                size -= len(block)
    except OSError:
        return None
    return None if size else found.hexdigest()


def _size_of(entry: FileEntry) -> int:
    """Size in bytes of an entry's file when it was looked at."""
    return int(entry.signature.partition(":")[0])


def _inode_of(file: FileEntry | RawFile) -> str:
    return file.signature.rpartition(":")[2]


# --- the recount -----------------------------------------------------------------------------------------------------


@dataclass
class _Lines:
    """How many lines of a content are requests on each day, and how many are none. whole: it was there to be read."""

    accepted: Counter[date] = field(default_factory=Counter)
    quarantined: int = 0
    whole: bool = False


def _recount(engine: Engine, entries: Sequence[FileEntry], contents: _Contents, days: frozenset[date]) -> _Lines:
    """Read a content, and those of its requests that are of these days into recounted_request."""
    lines = _Lines()
    found = contents.where(entries)
    if found is None:
        return lines
    raw_file, size = found
    ending = raw_file.read_as.removeprefix(raw_file.format.name)
    taken_at = entries[0].take_in.taken_at
    first, last = ((day - EPOCH).days for day in (min(days), max(days)))
    accepted: Counter[int] = Counter()
    batch: list[Request] = []
    try:
        with raw_file.open() as opened:
            if raw_file.format.is_mapped:
                requests = mapped_requests_in(opened, ending, taken_at, size, _mapped(engine, raw_file.format, ending))
            else:
                requests = requests_in(opened, ending, taken_at, size)
            for request in requests:
                if request is None:
                    lines.quarantined += 1
                    continue
                accepted[request.day] += 1
                if first <= request.day <= last:
                    batch.append(request)
                    if len(batch) == ROWS_AT_ONCE:
                        _add(engine, "request", _REQUEST, batch)
                        batch = []
    except (OSError, EOFError, zlib.error, ZstdError, pa.ArrowException) as error:
        if _is_still_there(found, entries[0]):
            raise KeytallyError(f"{raw_file.file} cannot be recounted, although it was taken in: {error}") from error
    _add(engine, "request", _REQUEST, batch)
    lines.accepted.update({EPOCH + timedelta(days=day): count for day, count in accepted.items()})
    lines.whole = _is_still_there(found, entries[0])
    return lines


def _mapped(engine: Engine, format: Format, ending: str) -> Mapped:
    """A mapped format as the recount takes it. Raises FormatRefused."""
    mapping = engine.lasting(format, partial(MappedRecords, format))
    rows_of = {".csv": csv_records, ".csv.gz": csv_records, ".parquet": parquet_records}.get(ending)

    def requests_of(texts: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        table = mapping.requests_of(range(len(texts)), pa.array(texts, pa.string()))
        return ((row.pop("line"), row) for row in table.to_pylist())

    def texts_of(opened: Any) -> Iterator[str | None]:
        for batch in rows_of(opened) if rows_of else ():
            yield from batch.column("text").to_pylist()

    terms = format.terms
    return Mapped(
        requests_of,
        texts_of if rows_of else None,
        format.skips is not None,
        terms.book_prices,
        terms.tokens_as_units,
        terms.currency,
    )


def _is_still_there(found: _Found, entry: FileEntry) -> bool:
    """Whether what was read is what was hashed before: nobody wrote to the file, or only behind it."""
    if _is_as_listed(found.raw_file):
        return True
    growing = not found.raw_file.file.endswith(".parquet")
    return growing and _hash_of_beginning(*found) == entry.take_in.content


def _is_as_listed(raw_file: RawFile) -> bool:
    """Whether a file lies there as it was listed: before it was hashed, and so before it was read."""
    try:
        with raw_file.open() as opened:
            return opened.is_still(raw_file.signature)
    except OSError:
        return False


_REQUEST = pa.schema(
    [
        ("day", pa.int32()),
        ("organization_id", pa.string()),
        ("request_id", pa.string()),
        ("timestamp", pa.int64()),
        ("api_key_id", pa.string()),
        ("cost", pa.int64()),
        ("synapses", pa.int64()),
        ("neurons", pa.int64()),
        ("model", pa.string()),
        ("endpoint", pa.string()),
        ("status", pa.int16()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cached_input_tokens", pa.int64()),
        ("currency", pa.string()),
    ]
)
_USAGE = pa.schema([API_KEY_DAY.arrow_schema.field(name) for name in (*API_KEY_DAY.grain, *MEASURES)])


def _add(engine: Engine, what: str, schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> None:
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    arrays = [pa.array(column, of.type) for column, of in zip(columns, schema, strict=True)]
    engine.name_arrow("recounted_batch", pa.table(arrays, schema=schema))
    engine.run(f"add_recounted_{what}")


class _PriceLists:
    """By what each day was priced, as the ledger says: the books and rates that it names, read a second time."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._days = ledger.days
        self._known: dict[tuple[str | None, str | None, str], PriceList] = {}

    def of(self, day: date) -> PriceList:
        """Raises KeytallyError when a book that the ledger names is gone or damaged."""
        entry = self._days.get(day)
        named = (entry.pricing.book, entry.pricing.rates, entry.pricing.currency) if entry and entry.pricing else None
        book, rates, currency = named or (None, None, "")
        if (book, rates, currency) not in self._known:
            self._known[book, rates, currency] = PriceList(self._text(book), self._text(rates), currency)
        return self._known[book, rates, currency]

    def _text(self, name: str | None) -> str:
        if name is None:
            return ""
        try:
            with verified(self._store, self._store.layout.books / name) as file:
                return file.readall().decode()
        except ArtifactDamaged as damage:
            raise KeytallyError(
                f"{damage.artifact} {damage.what}, by which days were priced; put it back from a copy to recount them"
            ) from damage


def _count_each_request_once(run: Run, compared: Iterable[date], prices: _PriceLists) -> dict[date, Counter[str]]:
    """Fill recounted_usage with the usage of the compared days; how each day's lines were counted.

    One walk along the sorted requests: of those of one name the first counts, and the others are its copies.
    """
    wanted = {(day - EPOCH).days for day in compared}
    counts: dict[date, Counter[str]] = {}
    rows: list[tuple[Any, ...]] = []
    for (day, organization), requests in groupby(_in_order(run), lambda request: request[:2]):
        if day not in wanted:
            continue
        of_day = counts.setdefault(EPOCH + timedelta(days=day), Counter())
        price_list = prices.of(EPOCH + timedelta(days=day))
        usage: dict[tuple[str, str | None], list[int]] = {}
        counted: Request | None = None
        for request in requests:
            of_day["accepted"] += 1
            if counted and request.request_id == counted.request_id:
                of_day["duplicate"] += 1
                of_day["conflicting"] += request != counted
                continue
            counted = request
            if request.api_key_id is None:
                of_day["session"] += 1
                continue
            of_day["counted"] += 1
            cost = price_list.cost_of(request)
            of_day["unpriced"] += cost is None
            sums = usage.setdefault((request.api_key_id, request.model), [0] * (len(MEASURES) + 2))
            for position, number in enumerate(_measures(request, cost)):
                sums[position] += number
        for (api_key, model), sums in usage.items():
            neuron_tokens, synapse_tokens = sums.pop(-2), sums.pop()
            sums[_NEURONS] += price_list.units_of(day, model, neuron_tokens, "tokens_per_neuron")
            sums[_SYNAPSES] += price_list.units_of(day, model, synapse_tokens, "tokens_per_synapse")
            rows.append((organization, EPOCH + timedelta(days=day), api_key, model, *_as_amounts(sums)))
        if len(rows) >= ROWS_AT_ONCE:
            _add(run.engine, "usage", _USAGE, rows)
            rows = []
    _add(run.engine, "usage", _USAGE, rows)
    return counts


def _in_order(run: Run) -> Iterator[Request]:
    """All recounted requests, copies of a request together and the one that counts first; by day and organization
    within each part that the memory holds."""
    ((requests,),) = run.engine.query("count_recounted_requests")
    parts = 1 + requests * REQUEST_BYTES // run.settings.memory_limit
    for part in range(parts):
        run.engine.run("choose_recounted_part", parts=parts, part=part)
        for batch in run.engine.stream("recounted_in_order", ROWS_AT_ONCE):
            yield from map(Request._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))


_NEURONS, _SYNAPSES = MEASURES.index("neurons"), MEASURES.index("synapses")


def _measures(request: Request, cost: int | None) -> tuple[int, ...]:
    """What a request adds to each of MEASURES, and to the tokens that become neurons and synapses."""
    return (
        1,
        request.status is not None and request.status >= 400,
        cost or 0,
        request.synapses or 0,
        request.neurons or 0,
        request.input_tokens,
        request.output_tokens,
        cost is None,
        request.input_tokens if request.neurons is None else 0,
        request.output_tokens if request.synapses is None else 0,
    )


def _as_amounts(sums: Sequence[int]) -> list[Number]:
    """The sums with those of amounts as decimals."""
    decimals = {"cost": COST_DECIMALS, "synapses": UNITS_DECIMALS, "neurons": UNITS_DECIMALS}
    return [
        Decimal(f"{number}e-{decimals[name]}") if name in decimals else number
        for name, number in zip(MEASURES, sums, strict=True)
    ]


# --- the comparison --------------------------------------------------------------------------------------------------


_Published = dict[date, dict[Table, list[Path]]]


def _published(run: Run, ledger: Ledger, days: Iterable[date]) -> _Published:
    """The usage that the version publishes of the months of these days, each file's checksum found right.

    Raises ArtifactDamaged.
    """
    files: _Published = {month: {table: [] for table in USAGE} for month in sorted({month_of(day) for day in days})}
    for month, tables in files.items():
        for table, paths in tables.items():
            if file := ledger.publication.files.get((table.name, month)):
                paths.append(run.layout.rollups / file.path)
                verify(run.store, paths[0])
    return files


def _differing_usage(
    run: Run, published: _Published, compared: frozenset[date], recounted_months: set[date]
) -> Iterator[Difference]:
    """Where the published usage of the compared days, and of months that consist of them, is not the recounted."""
    run.engine.name_arrow("compared_day", pa.table({"day": pa.array(sorted(compared), pa.date32())}))
    for month, tables in published.items():
        if month not in recounted_months and not any(tables.values()):
            continue  # nothing on either side
        for table, paths in tables.items():
            run.engine.name_files(table.name, paths, table)
        whole = compared.issuperset(days_between(month, last_day_of(month)))
        rows = sum(pq.read_metadata(path).num_rows for paths in tables.values() for path in paths)
        parts = 1 + rows * USAGE_BYTES // run.settings.memory_limit
        for part in range(parts):
            for row in run.engine.query("differing_usage", month=month, whole=whole, parts=parts, part=part):
                yield from _differing_numbers(month, *row)


def _differing_numbers(
    month: date,
    rollup: str,
    organization: str,
    api_key: str | None,
    model: str | None,
    day: date | None,
    *numbers: Number,
) -> Iterator[Difference]:
    """What differs in a row of differing_usage: numbers are the published and the recounted in turn."""
    pairs = zip(("rows", *MEASURES), numbers[::2], numbers[1::2], strict=True)
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    for name, published, recounted in differing:
        # That a row is there or not says nothing more than its numbers do.
        if name != "rows" or len(differing) == 1 or published > 1:
            yield Difference(rollup, name, published, recounted, organization, api_key, model, day, month)


def _differing_days(ledger: Ledger, compared: Iterable[date], counts: dict[date, Counter[str]]) -> Iterator[Difference]:
    """Where a day's report does not say how its lines were counted."""
    for day in sorted(compared):
        published, recounted = ledger.days.get(day), counts.get(day, Counter())
        for name in ("accepted", "counted", "duplicate", "conflicting", "session", "unpriced"):
            number = getattr(published, name) if published else 0
            if number != recounted[name]:
                yield Difference(DAY_LEDGER.name, name, number, recounted[name], day=day, month=month_of(day))


def _differing_lines(entry: FileEntry, recounted: _Lines) -> Iterator[Difference]:
    """Where the ledger does not say how many lines of a file are requests, on which days, and how many are none."""
    taken = entry.take_in
    accepted = recounted.accepted.total()
    for name, number, right in (
        ("lines", taken.lines, accepted + recounted.quarantined),
        ("accepted", taken.accepted, accepted),
        ("quarantined", taken.quarantined, recounted.quarantined),
    ):
        if number != right:
            yield Difference(FILE_LEDGER.name, name, number, right, file=entry.file)
    published = {event.day: event.accepted for event in taken.events}
    for day in sorted({*published, *recounted.accepted}):
        if (number := published.get(day, 0)) != recounted.accepted[day]:
            yield Difference(
                FILE_LEDGER.name,
                "accepted",
                number,
                recounted.accepted[day],
                day=day,
                file=entry.file,
            )


_AMOUNTS = ("cost", "synapses", "neurons")


def _as_written(name: str, number: Number) -> int | str:
    """A number for JSON: counts as integers, amounts as strings of their exact decimal."""
    if name not in _AMOUNTS:
        return int(number)
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
