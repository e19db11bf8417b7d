"""The groups of a month's days as text: made column by column beside other threads, since there may be very many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Literal, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from serving.amounts import amount_texts
from serving.arrow_text import text_array, text_scalar

GroupBy = Literal["api_key", "model"]
GROUP_COLUMN: Mapping[GroupBy, str] = {"api_key": "api_key_id", "model": "model"}


class Groups(NamedTuple):
    """What was used on each day by each key or of each model.

    rows: day, group, and the measures; the newest day first, then by group, null first.
    """

    by: GroupBy
    rows: pa.Table

    def json_of_days(self) -> dict[date, msgspec.Raw]:
        """The groups of each day that has some, as a JSON list."""
        names = _texts(self.rows["group"], lambda name: msgspec.json.encode(name).decode("utf-8"), "null")
        requests, cost, synapses, neurons = self._measures()
        field = GROUP_COLUMN[self.by]
        parts = (
            *(f'{{"{field}":', names, ',"requests":', requests, ',"cost":', cost),
            *(',"synapses":', synapses, ',"neurons":', neurons, "}", ""),
        )
        objects = pc.binary_join_element_wise(*(text_scalar(part) if isinstance(part, str) else part for part in parts))
        return {day: msgspec.Raw(f"[{','.join(texts)}]".encode()) for day, texts in self._of_days(objects)}

    def csv_of_days(self) -> dict[date, list[str]]:
        """A row for each group of each day, without the day in front and the line's end behind."""
        names = _texts(self.rows["group"], csv_field, "")
        return dict(self._of_days(pc.binary_join_element_wise(names, *self._measures(), text_scalar(","))))

    def _measures(self) -> list[pa.ChunkedArray]:
        amounts = (amount_texts(self.rows[name]) for name in ("cost", "synapses", "neurons"))
        return [self.rows["requests"].cast(pa.string()), *amounts]

    def _of_days(self, texts: pa.ChunkedArray) -> Iterator[tuple[date, list[str]]]:
        start = 0
        for run in pc.value_counts(self.rows["day"]).to_pylist():  # in order of appearance
            yield run["values"], texts.slice(start, run["counts"]).to_pylist()
            start += run["counts"]


def csv_field(text: str) -> str:
    """`text` as a field of RFC 4180. The empty text is quoted: what stands there without quotes is null."""
    if text and not any(character in text for character in ',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'


def _texts(column: pa.ChunkedArray, text_of: Callable[[str], str], null: str) -> pa.ChunkedArray:
    """`text_of` each value, asked once for each distinct one."""
    distinct = pc.unique(column.drop_null())
    texts = text_array(text_of(value) for value in distinct.to_pylist())
    return pc.fill_null(pc.take(texts, pc.index_in(column, distinct)), text_scalar(null))
