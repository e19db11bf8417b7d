"""What single keys used: sums of the rollups that tell keys and models apart, held against those that do not.

Raises UsageUnavailable where two rollups of one publication do not agree, and for what the reader raises it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

# Not pyarrow.acero nor Table.group_by: they import pandas, half a second and 35 MB.
from pyarrow._acero import AggregateNodeOptions, Declaration, TableSourceNodeOptions

from pipeline.contract.layout import month_of
from pipeline.contract.published import PublishedFile
from serving.arrow_text import day_scalar, text_scalar
from serving.errors import InvalidRequest
from serving.groups import GROUP_COLUMN, GroupBy, Groups
from serving.reader import MonthFiles, Reader
from serving.usage import MEASURES, UNPRICED, Total, Usage, total_of

MOST_GROUPS = 500_000  # in one answer, some 65 MB of JSON


def days_of_key(reader: Reader, organization_id: str, api_key_id: str, files: MonthFiles) -> Sequence[Usage]:
    """The days on which the key was used, newest first."""
    key_days, key_months = files.of_keys()
    with reader.reading(key_days) as opened:
        rows = _summed(_checked(opened.rows_of(organization_id, api_key_id), key_days), ["day"])
        days = _days(rows)
        _must_be_equal(total_of(days), _total_of_key(reader, organization_id, api_key_id, key_months))
    return days


def groups_of(
    reader: Reader,
    organization_id: str,
    files: MonthFiles,
    by: GroupBy,
    days: Sequence[Usage],
    api_key_id: str | None = None,
) -> Groups:
    """What the organization's keys, or the models it asked for, used on each day; of one key only, if it is given.

    days: what the groups must sum to. Raises InvalidRequest when there are more than MOST_GROUPS.
    """
    key_days, _ = files.of_keys()
    with reader.reading(key_days) as opened:
        rows = _summed(_checked(opened.rows_of(organization_id, api_key_id), key_days), ["day", GROUP_COLUMN[by]])
        if rows.num_rows > MOST_GROUPS:
            raise InvalidRequest(
                f"group_by makes more than {MOST_GROUPS:,} groups of this month; with api_key_id, or of the other kind,"
                " there are fewer"
            )
        if _days(_sum(rows, ["day"])) != [usage for usage in days if usage.requests]:
            raise ValueError("its groups do not sum to the days of the organization")
        order = pc.sort_indices(
            rows, sort_keys=[("day", "descending", "at_end"), (GROUP_COLUMN[by], "ascending", "at_start")]
        )
        rows = rows.take(order)
    return Groups(by, rows.rename_columns(["day", "group", *MEASURES]).combine_chunks())


class Leader(NamedTuple):
    """A key or a model of which much was used in a month. days: how much of one measure on each day that has some."""

    name: str | None
    total: Total
    days: Mapping[date, Decimal]


def leaders_of(groups: Groups, measure: str, most: int) -> tuple[Sequence[Leader], int]:
    """The `most` groups of which most was used in the month, by one of the measures, and how many groups there are.

    Of equal ones the smaller name comes first, and no name before any.
    """
    totals = _sum(groups.rows, ["group"])
    order = [(measure, "descending", "at_end"), ("group", "ascending", "at_start")]
    leaders = []
    for name, *used in _tuples(totals.take(pc.sort_indices(totals, sort_keys=order)[:most]), "group", *MEASURES):
        column = groups.rows["group"]
        own = groups.rows.filter(pc.is_null(column) if name is None else pc.equal(column, text_scalar(name)))
        leaders.append(Leader(name, Total(*used), dict(_tuples(own, "day", measure))))
    return leaders, totals.num_rows


def used_by_organization(reader: Reader, file: PublishedFile, through: date | None = None) -> pa.Table:
    """What each organization used in the month, or through one of its days: `organization_id`, and the measures.

    file: of the organizations' months, or of their days, of which only those through a day can be summed.
    """
    with reader.reading(file) as opened:
        parts = _checked(opened.rows(), file)
        if through is not None:
            parts = (rows.filter(pc.less_equal(rows["day"], day_scalar(through))) for rows in parts)
        return _summed(parts, ["organization_id"])


def month_of_organization(reader: Reader, organization_id: str, file: PublishedFile) -> tuple[Total, int]:
    """What the organization used in a month, and how many of its requests have no known cost.

    file: of the organizations' months.
    """
    with reader.reading(file) as opened:
        parts = list(_checked(opened.rows_of(organization_id), file))
        return _total(parts), sum(map(unpriced_in, parts))


def unpriced_in(rows: pa.Table) -> int:
    """How many requests have no known cost. A file from before there were prices does not say."""
    return pc.sum(rows[UNPRICED], min_count=0).as_py() if UNPRICED in rows.column_names else 0


def keys_by_cost(
    reader: Reader, organization_id: str, files: MonthFiles, limit: int, total: Total
) -> tuple[Sequence[tuple[str, Total]], int]:
    """The `limit` keys that cost most, the dearest first, and how many keys were used.

    Of equal cost that with more requests comes first, of equal requests that with the smaller id. total: what all of
    them must sum to.
    """
    _, key_months = files.of_keys()
    with reader.reading(key_months) as opened:
        rows = _summed(_checked(opened.rows_of(organization_id), key_months), ["api_key_id"])
        _must_be_equal(_total([rows]), total)
        order = [
            ("cost", "descending", "at_end"),
            ("requests", "descending", "at_end"),
            ("api_key_id", "ascending", "at_end"),
        ]
        top = rows.take(pc.sort_indices(rows, sort_keys=order)[:limit])
    keys = [(key, Total(*used)) for key, *used in _tuples(top, "api_key_id", *MEASURES)]
    return keys, rows.num_rows


def was_ever_used(reader: Reader, organization_id: str, api_key_id: str, key_months: Iterable[PublishedFile]) -> bool:
    """Whether the organization ever used the key, by the files of all published months."""
    return any(_total_of_key(reader, organization_id, api_key_id, file).requests for file in key_months)


def _total_of_key(reader: Reader, organization_id: str, api_key_id: str, file: PublishedFile) -> Total:
    with reader.reading(file) as opened:
        return _total(_checked(opened.rows_of(organization_id, api_key_id), file))


def _checked(parts: Iterable[pa.Table], file: PublishedFile) -> Iterator[pa.Table]:
    for rows in parts:
        if any(rows[name].null_count for name in rows.column_names if name != "model"):
            raise ValueError("a value is missing")
        if "day" in rows.column_names and rows.num_rows:
            ends = pc.min_max(rows["day"]).as_py()
            if any(month_of(day) != file.month for day in ends.values()):
                raise ValueError("a day is not of this month")
        yield rows


def _summed(parts: Iterable[pa.Table], by: Sequence[str]) -> pa.Table:
    """A row for each of what is found in the columns `by`, with the sums of the measures. Each part is let go of."""
    sums = [_sum(rows, by) for rows in parts]
    return sums[0] if len(sums) == 1 else _sum(pa.concat_tables(sums), by)


def _sum(rows: pa.Table, by: Sequence[str]) -> pa.Table:
    measures = [(name, "hash_sum", None, name) for name in MEASURES]
    plan = Declaration.from_sequence(
        [
            Declaration("table_source", TableSourceNodeOptions(rows)),
            Declaration("aggregate", AggregateNodeOptions(measures, list(by))),
        ]
    )
    return plan.to_table(use_threads=False)


def _total(parts: Iterable[pa.Table]) -> Total:
    """The sums of all rows."""
    rows = pa.concat_tables(parts)
    sums = (pc.sum(rows[name], min_count=0).as_py() for name in MEASURES)
    return Total(*sums)


def _days(rows: pa.Table) -> list[Usage]:
    """The rows, one a day, newest first."""
    return sorted((Usage(*row) for row in _tuples(rows, *Usage._fields)), reverse=True)


def _tuples(rows: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(rows[name].to_pylist() for name in columns), strict=True)


def _must_be_equal(found: Total, expected: Total) -> None:
    if found != expected:
        raise ValueError("it does not sum to what another rollup of the same publication says")
