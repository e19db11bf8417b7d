"""Records of a mapped format: what its SQL makes of the lines of a file, each line accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import FormatRefused, HeldBack
from pipeline.format import Format
from pipeline.lenient_json import as_json
from pipeline.line import Number, Reason
from pipeline.mapping import FIELDS, REQUESTS, MappedRecords
from pipeline.raw import RawFile, RawPass

# As sql/mapped.sql reads them. `reason`: rejected already, so there are no fields.
MAPPED = pa.schema(
    [
        *REQUESTS,
        ("reason", pa.string()),
        ("currency", pa.string()),
        ("book_prices", pa.bool_()),
        ("tokens_as_units", pa.bool_()),
        ("cached_beside_input", pa.bool_()),
        ("most_complete", pa.bool_()),
    ]
)

_INTEGERS = frozenset({"status", *(name for name in FIELDS if name.endswith("_tokens"))})


def mapped(batch: pa.RecordBatch, mapping: MappedRecords, format: Format) -> pa.Table:
    """What some lines (schema rows.LINES) hold: MAPPED, in order of line. Raises FormatRefused.

    A line may hold several requests. A line of which the SQL makes no row is skipped where the format says so in its
    header; where the SQL says of every record what it is (column `skipped`), the line is not of this format; else a
    field is missing.
    """
    lines, texts, rejected = _records(batch, check=False)
    try:
        requests = mapping.requests_of(lines, texts)
    except FormatRefused:
        # What one parser takes for JSON another may not: half a character, an object that goes on in the next line.
        lines, texts, rejected = _records(batch, check=True)
        requests = mapping.requests_of(lines, texts)
    without = lines.filter(pc.invert(pc.is_in(lines, requests["line"].combine_chunks()))).to_pylist()
    rows: list[dict[str, Any]] = [{"line": line, "reason": reason.value} for line, reason in rejected]
    if "skipped" in mapping.given or not format.skips:
        reason = Reason.NOT_THIS_FORMAT if "skipped" in mapping.given else Reason.MISSING_FIELD
        rows += [{"line": line, "reason": reason.value} for line in without]
    else:
        rows += [{"line": line, "skipped": format.skips} for line in without]
    table = requests.append_column("reason", pa.nulls(len(requests), pa.string()))
    if rows:
        table = pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)]).sort_by("line")
    for name, value in vars(format.terms).items():
        table = table.append_column(name, pa.repeat(pa.scalar(value, MAPPED.field(name).type), len(table)))
    return table.select(MAPPED.names)


def _records(batch: pa.RecordBatch, *, check: bool) -> tuple[pa.Array, pa.Array, list[tuple[int, Reason]]]:
    """The lines that hold an object, by number and text, and those that do not, with the reason.

    check: whether lines that were found sound are looked at once more, one by one.
    """
    reasons, sound = batch.column("reason"), batch.column("sound")
    if not check and sound.true_count == len(sound):
        return batch.column("line"), batch.column("text"), []
    lines, texts, rejected = [], [], []
    columns = (batch.column(name).to_pylist() for name in ("line", "text"))
    for line, text, reason, is_sound in zip(*columns, reasons.to_pylist(), sound.to_pylist(), strict=True):
        whole = Reason(reason) if reason else text if is_sound and not check else as_json(text.encode())
        if isinstance(whole, Reason):
            rejected.append((line, whole))
        else:
            lines.append(line)
            texts.append(whole)
    return pa.array(lines, pa.int64()), pa.array(texts, pa.string()), rejected


def as_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of MAPPED as a parsed record: text that is an integer stands for one."""
    return {name: _as_value(name, row[name]) for name in FIELDS}


def _as_value(name: str, value: str | None) -> str | None:
    return Number(value) if name in _INTEGERS and value and re.fullmatch("-?[0-9]+", value, re.ASCII) else value


def read_records(raw_file: RawFile, lines: Iterable[int]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """What the SQL made of some of a file's lines, by their numbers in order: rows of MAPPED, the requests alone.

    A line that holds none comes with an empty list. Raises HeldBack, FormatRefused.
    """
    wanted = list(lines)
    mapping = MappedRecords(raw_file.format)
    try:
        with RawPass(raw_file) as opened:
            for batch in opened.batches():
                some = batch.filter(pc.is_in(batch.column("line"), pa.array(wanted, pa.int64())))
                if some.num_rows:
                    rows = mapped(some, mapping, raw_file.format).to_pylist()
                    for line, of_line in groupby(rows, lambda row: row["line"]):
                        yield int(line), [row for row in of_line if not (row["reason"] or row.get("skipped"))]
    finally:
        mapping.close()


def held_back(raw_file: RawFile, refused: FormatRefused) -> HeldBack:
    """A file that waits for its format to be put right."""
    return HeldBack(raw_file.file, f"format: {refused}")
