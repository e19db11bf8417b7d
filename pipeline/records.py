"""Records of a mapped format: what its SQL makes of the lines of a file, each line accounted for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import FormatRefused, HeldBack
from pipeline.format import Format
from pipeline.line import Number, Reason, first_of_each_name, parse
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
    ]
)
NOT_SHOWN = "(not shown: a line that is no record may hold a key in clear)"

_INTEGERS = frozenset({"status", "input_tokens", "output_tokens", "cached_input_tokens"})


def mapped(batch: pa.RecordBatch, mapping: MappedRecords, format: Format) -> pa.Table:
    """What some lines (schema rows.LINES) hold: MAPPED, in order of line. Raises FormatRefused.

    A line may hold several requests. One that holds none is rejected, unless the format says that it skips some.
    """
    lines, texts, rejected = _records(batch, check=False)
    try:
        requests = mapping.requests_of(lines, texts)
    except FormatRefused:
        # What one parser takes for JSON another may not: half a character, an object that goes on in the next line.
        lines, texts, rejected = _records(batch, check=True)
        requests = mapping.requests_of(lines, texts)
    if not format.skips:
        without = lines.filter(pc.invert(pc.is_in(lines, requests["line"].combine_chunks())))
        rejected += [(line, Reason.MISSING_FIELD) for line in without.to_pylist()]
    table = requests.append_column("reason", pa.nulls(len(requests), pa.string()))
    if rejected:
        rows = [{"line": line, "reason": reason.value} for line, reason in rejected]
        table = pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)]).sort_by("line")
    terms = format.terms
    values = {"currency": terms.currency, "book_prices": terms.book_prices, "tokens_as_units": terms.tokens_as_units}
    for name, value in values.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value, MAPPED.field(name).type), len(table)))
    return table


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
        whole = Reason(reason) if reason else text if is_sound and not check else _clean(text)
        if isinstance(whole, Reason):
            rejected.append((line, whole))
        else:
            lines.append(line)
            texts.append(whole)
    return pa.array(lines, pa.int64()), pa.array(texts, pa.string()), rejected


def _clean(text: str) -> str | Reason:
    """The same object as JSON that every parser takes: `?` stands for half a character."""
    record = parse(text)
    if isinstance(record, Reason):
        return record
    # Not what `parse` gave: its numbers are texts. An integer of more digits than Python reads is out of every range.
    record = json.loads(text, object_pairs_hook=first_of_each_name, parse_int=lambda digits: int(digits[:400]))
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace").decode()


def as_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of MAPPED as a parsed record: text that is an integer stands for one."""
    return {name: _as_value(name, row[name]) for name in FIELDS}


def _as_value(name: str, value: str | None) -> str | None:
    return Number(value) if name in _INTEGERS and value and re.fullmatch("-?[0-9]+", value, re.ASCII) else value


def read_records(raw_file: RawFile, lines: Iterable[int], characters: int) -> Iterator[tuple[int, str]]:
    """What the SQL made of some of a file's lines, by their numbers in order, as JSON cut at `characters`.

    Not the lines themselves: a log may name keys in clear that its format hashes. Raises HeldBack, FormatRefused.
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
                        yield int(line), _shown(list(of_line))[:characters]
    finally:
        mapping.close()


def _shown(rows: list[Mapping[str, Any]]) -> str:
    if all(row["reason"] for row in rows) and rows[0]["reason"] != Reason.MISSING_FIELD:
        return NOT_SHOWN
    shown = [{name: row[name] for name in FIELDS if row[name] is not None} for row in rows]
    return json.dumps(shown[0] if len(shown) == 1 else shown, ensure_ascii=False)


def held_back(raw_file: RawFile, refused: FormatRefused) -> HeldBack:
    """A file that waits for its format to be put right."""
    return HeldBack(raw_file.file, f"format: {refused}")
