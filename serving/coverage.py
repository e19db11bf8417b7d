"""Coverage: for each day of a month, whether a zero is a zero."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.coverage import state_of
from pipeline.contract.layout import days_between, last_day_of
from pipeline.contract.published import PublishedFile
from pipeline.contract.tables import DAY_LEDGER
from serving.checked_file import CheckedFile
from serving.models import DayCoverage
from serving.usage import Usage

_LEDGER_SCHEMA = pa.schema([DAY_LEDGER.arrow_schema.field(name) for name in ("day", "accepted")])


class Basis(NamedTuple):
    """All that the states of a month's days depend on.

    ledger: the month's ledger of days, None when the month was never published. first_open: the first day of the month
    that was not over at data-as-of; the day after the month when all were. findings: days of the month that a held-back
    file touches.
    """

    month: date
    ledger: PublishedFile | None
    first_open: date
    findings: frozenset[date]

    @classmethod
    def of(cls, month: date, ledger: PublishedFile | None, as_of: datetime | None, findings: Collection[date]) -> Basis:
        """The basis for `month` (its first day). as_of: UTC; None when nobody knows, and no day is known to be over."""
        last_day = last_day_of(month)
        first_open = min(max(as_of.date(), month), last_day + timedelta(days=1)) if as_of else month
        return cls(month, ledger, first_open, frozenset(day for day in findings if month <= day <= last_day))


def cover(basis: Basis, loaded: Collection[date], usage: Sequence[Usage]) -> Iterator[DayCoverage]:
    """Every day of the month, newest first.

    loaded: the days with accepted records of anyone. usage: the organization's own.
    """
    requests = {day.day: day.requests for day in usage}
    for day in sorted(days_between(basis.month, last_day_of(basis.month)), reverse=True):
        state = state_of(is_loaded=day in loaded, is_open=day >= basis.first_open, has_finding=day in basis.findings)
        yield DayCoverage(day=day, state=state, requests=requests.get(day, 0))


def loaded_days_of(file: CheckedFile) -> frozenset[date]:
    """The days of a month's ledger that have accepted records. Raises ValueError when it is no ledger of days."""
    with file, pq.ParquetFile(file, pre_buffer=False) as parquet:
        if parquet.metadata.num_rows > 31:
            raise ValueError("it has more than 31 days")
        table = parquet.read(columns=_LEDGER_SCHEMA.names, use_threads=False)
    for column in _LEDGER_SCHEMA:
        if column.name not in table.schema.names or table.schema.field(column.name).type != column.type:
            raise ValueError(f"its column {column.name} is missing, or is not {column.type}")
    days = dict(zip(table["day"].to_pylist(), table["accepted"].to_pylist(), strict=True))
    if len(days) != table.num_rows or None in days or None in days.values():
        raise ValueError("a day is listed twice, or a value is missing")
    return frozenset(day for day, accepted in days.items() if accepted)
