"""An open rollup: one organization's rows of it, found by the statistics of its row groups."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contract.tables import ORGANIZATION_DAY, ORGANIZATION_MONTH, Table
from serving.arrow_text import text_scalar
from serving.checked_file import CheckedFile
from serving.usage import MEASURES, UNPRICED

GROUPS_AT_ONCE = 8  # row groups that are decoded together, each of 8,192 rows


@dataclass(frozen=True)
class _RowGroup:
    """Where it stands in the file, and the first and the last of the organizations and keys in it.

    Without keys, or where it does not tell them, every key may be in it.
    """

    number: int
    first: str
    last: str
    first_key: str | None
    last_key: str | None

    def may_hold(self, api_key_id: str | None) -> bool:
        """Whether rows of the key can be in it; of any key when it is None."""
        if api_key_id is None or self.first_key is None or self.last_key is None:
            return True
        return self.first_key <= api_key_id <= self.last_key


@dataclass(frozen=True)
class SortedFile:
    """An open file of a rollup, sorted by organization. Safe to share between threads."""

    file: CheckedFile
    parquet: pq.ParquetFile
    columns: Sequence[str]  # those that are read: what identifies a row, and the measures of usage
    groups: Sequence[_RowGroup]  # those with rows
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, file: CheckedFile, table: Table) -> SortedFile:
        """The file as one of `table`. Raises ValueError when it is none, or is not sorted."""
        parquet = pq.ParquetFile(file, pre_buffer=False)
        columns = (*table.grain, *MEASURES)
        if table in (ORGANIZATION_DAY, ORGANIZATION_MONTH) and UNPRICED in parquet.schema_arrow.names:
            columns += (UNPRICED,)
        for column in (table.arrow_schema.field(name) for name in columns):
            index = parquet.schema_arrow.get_field_index(column.name)
            if index < 0 or parquet.schema_arrow.field(index).type != column.type:
                raise ValueError(f"its column {column.name} is missing, or is not {column.type}")
        names = parquet.metadata.schema.names
        groups = []
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            if not group.num_rows:
                continue
            statistics = group.column(names.index("organization_id")).statistics
            if statistics is None or not statistics.has_min_max:
                raise ValueError(f"its row group {number} does not say which organizations it holds")
            keys = group.column(names.index("api_key_id")).statistics if "api_key_id" in columns else None
            first_key, last_key = (keys.min, keys.max) if keys is not None and keys.has_min_max else (None, None)
            groups.append(_RowGroup(number, statistics.min, statistics.max, first_key, last_key))
        if any(before.last > behind.first for before, behind in pairwise(groups)):
            raise ValueError("it is not sorted by organization")
        return cls(file, parquet, columns, groups)

    def check(self) -> None:
        """Reads the last block of the file again. Raises OSError, or ValueError when it is no longer what it was."""
        with self.lock:
            self.file.seek(-1, os.SEEK_END)
            self.file.read()

    def rows_of(self, organization_id: str, api_key_id: str | None = None) -> Iterator[pa.Table]:
        """The organization's rows, or those of one of its keys, as they stand: some row groups of it at a time."""
        start = bisect_left(self.groups, organization_id, key=lambda group: group.last)
        end = bisect_right(self.groups, organization_id, key=lambda group: group.first)
        numbers = [group.number for group in self.groups[start:end] if group.may_hold(api_key_id)]
        for rows in self._parts(numbers):
            wanted = pc.equal(rows["organization_id"], text_scalar(organization_id))
            if api_key_id is not None:
                wanted = pc.and_(wanted, pc.equal(rows["api_key_id"], text_scalar(api_key_id)))
            yield rows.filter(wanted).drop_columns(["organization_id"])

    def rows(self) -> Iterator[pa.Table]:
        """The rows of all organizations, as they stand: some row groups of them at a time."""
        return self._parts([group.number for group in self.groups])

    def _parts(self, numbers: Sequence[int]) -> Iterator[pa.Table]:
        for position in range(0, len(numbers) or 1, GROUPS_AT_ONCE):  # without any an empty part, to tell the columns
            with self.lock:  # a ParquetFile is not made for several threads at once
                rows = self.parquet.read_row_groups(
                    numbers[position : position + GROUPS_AT_ONCE], columns=list(self.columns), use_threads=False
                )
            yield rows
