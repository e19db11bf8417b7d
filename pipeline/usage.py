"""What was used, as a data frame: for whoever asks the published numbers a question of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import verified_for_arrow
from pipeline.contract.last_run import read_last_run
from pipeline.contract.layout import FIRST_DAY, LAST_DAY, last_day_of, month_of
from pipeline.contract.published import Publication
from pipeline.contract.settings import Settings
from pipeline.contract.store import Store, open_store
from pipeline.contract.tables import API_KEY_DAY, ORGANIZATION_DAY, ORGANIZATION_MONTH, Table
from pipeline.errors import KeytallyError
from pipeline.ledger import newest_publication
from pipeline.status import lost_versions, newest_run

if TYPE_CHECKING:
    import pandas as pd

By = Literal["day", "month", "key", "model"]
_READ: Mapping[By, tuple[Table, Sequence[str]]] = {
    "day": (ORGANIZATION_DAY, ("organization_id", "day")),
    "month": (ORGANIZATION_MONTH, ("organization_id", "month")),
    "key": (API_KEY_DAY, ("organization_id", "day", "api_key_id")),
    "model": (API_KEY_DAY, ("organization_id", "day", "model")),
}
_MEASURES = tuple(column.name for column in ORGANIZATION_DAY.columns if column.merge)


class PublishedUsage(NamedTuple):
    """Rows of one version, in order. as_of: the moment through which its logs were looked at; currency: of the costs;
    None: nobody knows."""

    rows: pa.Table
    version: int
    as_of: datetime | None
    currency: str | None


class NothingPublished(KeytallyError):
    """A data root from which nothing was ever published: an empty answer would look like nobody used anything."""

    def __init__(self, data: str) -> None:
        super().__init__(f"nothing is published yet from {data}; run 'keytally rollup', or name another data root")
        self.data = data


def read_usage(
    data: str | Path,
    org: str | None = None,
    first_day: date | str | None = None,
    last_day: date | str | None = None,
    by: By = "day",
) -> pd.DataFrame:
    """The published usage with one row for each organization and day; month; day and key; or day and model.

    data: the data root, a folder or s3://bucket/prefix (reached as AWS_* say). org: one organization, else all.
    first_day, last_day: both included, else from the first to the last there is; by month, whole months. Columns: what
    the rows are by, then requests, failed_requests, cost, synapses, neurons, input_tokens, output_tokens; amounts and
    tokens are exact decimals (decimal.Decimal), days and months datetime64. Tokens are null where no log says how many
    there were. Without usage there is no row. All rows are of one version, which attrs["version"] names; attrs["as_of"]
    is the moment through which its logs were looked at.

    Raises KeytallyError where nothing is published, or what is published cannot be read or is not what was published;
    StoreError where there is no such data root; ValueError for arguments that make no sense.
    """
    if by not in _READ:
        raise ValueError(f"by is {by!r}, but must be one of {', '.join(_READ)}")
    first, last = _day(first_day, FIRST_DAY), _day(last_day, LAST_DAY)
    if last < first:
        raise ValueError(f"last_day {last} is before first_day {first}")
    if by == "month" and (first != month_of(first) or last != last_day_of(month_of(last))):
        raise ValueError("by='month' counts whole months: from the first day of one to the last day of one")
    usage = published_usage(_store(data), org, first, last, by)
    # Not Arrow's own decimals: of 38 digits they can be added up, but not be subtracted, multiplied or divided.
    frame: pd.DataFrame = usage.rows.to_pandas(date_as_object=False)
    frame.attrs = {"version": usage.version, "as_of": usage.as_of}
    return frame


def published_usage(store: Store, org: str | None, first_day: date, last_day: date, by: By) -> PublishedUsage:
    """The same as an Arrow table. Raises KeytallyError, StoreError."""
    store.check()
    publication = newest_publication(store)
    note = read_last_run(store)
    if note is not None and note.version > publication.version:
        raise KeytallyError(f"{lost_versions(publication.version, note)}; 'keytally status' says what to do")
    if not publication.files:
        raise NothingPublished(store.name_of(store.layout.root))
    table, grain = _READ[by]
    usage = pa.concat_tables(
        rows.select([*grain, *_MEASURES]) for rows in _parts(store, publication, table, grain, org, first_day, last_day)
    )
    run = newest_run(store, note, publication.version)
    in_order = usage.take(pc.sort_indices(usage, sort_keys=[(name, "ascending") for name in grain]))
    said = (run.started, run.currency) if run else (None, None)
    return PublishedUsage(in_order, publication.version, *said)


def _parts(
    store: Store,
    publication: Publication,
    table: Table,
    grain: Sequence[str],
    org: str | None,
    first: date,
    last: date,
) -> Iterator[pa.Table]:
    """The rows of each month, and an empty part in any case, to tell the columns."""
    empty = table.arrow_schema.empty_table()
    yield empty if "month" not in grain else _with_month(empty, FIRST_DAY)
    for (rollup, month), published in publication.files.items():
        if rollup != table.name or month is None or not month_of(first) <= month <= last:
            continue
        wanted: list[tuple[str, str, str | date]] = [("organization_id", "==", org)] if org is not None else []
        if "month" not in grain:
            wanted += [("day", ">=", first), ("day", "<=", last)]
        with verified_for_arrow(store, store.layout.rollups / published.path) as file:
            rows = table.rows_of(pq.read_table(file, partitioning=None, filters=wanted or None))
        if "month" in grain:
            yield _with_month(rows, month)
        elif tuple(grain) == table.grain:
            yield rows
        else:
            sums = rows.group_by(list(grain)).aggregate([(name, "sum") for name in _MEASURES])
            yield sums.rename_columns({f"{name}_sum": name for name in _MEASURES})


def _with_month(rows: pa.Table, month: date) -> pa.Table:
    months = pa.array([month] * rows.num_rows, pa.date32())
    return rows.append_column("month", months)


def _day(given: date | str | None, default: date) -> date:
    return default if given is None else date.fromisoformat(given) if isinstance(given, str) else given


def _store(data: str | Path) -> Store:
    """The store at `data`, whatever data root, keys and else the environment names."""
    given = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "KEYTALLY_CACHE"))}
    return open_store(Settings.from_environment({**given, "KEYTALLY_DATA": str(data), "KEYTALLY_KEYS": os.devnull}))
