"""Rows of CSV and of Parquet as the records of a mapped format: a JSON object each.

A row of CSV holds strings, named by the header, and has the number of the line it begins on. Quotes are those of RFC
4180: a quoted cell may hold line ends, and a doubled quote is one. What is wrong with a row costs that row alone: a
quote that is never closed takes its line with it, not the rest of the file.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.text_encoding import UTF16_ADVICE, is_utf16
from pipeline.format import SEPARATORS, Csv
from pipeline.line import MAX_MAPPED_LINE_BYTES, Reason
from pipeline.rows import BYTE_ORDER_MARK, LINES, Plain, is_utf8

BATCH_BYTES = 2**20  # of CSV
BATCH_ROWS = 8_192
PARQUET_BYTES = 4 * 2**20

csv.field_size_limit(2 * MAX_MAPPED_LINE_BYTES)  # rows are measured here


class UnusableCsv(Exception):
    """A CSV file that cannot be read as rows. `str()` of it says why, in a sentence."""


def csv_records(plain: Plain, how: Csv = Csv()) -> Iterator[pa.RecordBatch]:  # noqa: B008  # frozen
    """Read the rows below the header, in batches of schema LINES. Blank lines are left out.

    Bytes that are not UTF-8 become U+FFFD, so they cost no row.

    Args:
        plain: The bytes of the file.
        how: What the format says of its CSV files.

    Raises:
        UnusableCsv: The file has no header, is UTF-16, or has another separator than the format says.
    """
    lines = _Lines(plain)
    if lines.more() and is_utf16(lines.peek()):
        raise UnusableCsv(f"unreadable: {UTF16_ADVICE}")
    _skip_to_header(lines)
    beginning = lines.peek() if lines.more() else b""
    rows = _rows(lines, (how.separator or ",").encode())
    _, header = next(rows, (0, None))
    if header is None:
        return
    if isinstance(header, Reason) or not any(header):
        raise UnusableCsv("unreadable: its first line names no columns")
    if (found := separator_of(beginning)) != (how.name or "commas") and (how.name is None or len(header) == 1):
        declared = (
            f"its format says '-- csv: {how.entry}'" if how.name else f"its format does not say '-- csv: {found}'"
        )
        raise UnusableCsv(f"unreadable: its cells are separated by {found}, but {declared}")
    names = [name.decode("utf-8", "replace") for name in header]
    batch: list[tuple[int, str | None, str | None]] = []
    size = 0
    for number, row in rows:
        text, reason = (None, row) if isinstance(row, Reason) else _as_json(names, row, how.decimal_commas)
        batch.append((number, text, reason and reason.value))
        size += len(text or "")
        if size > BATCH_BYTES or len(batch) == BATCH_ROWS:
            yield _batch(batch)
            batch, size = [], 0
    if batch:
        yield _batch(batch)


def separator_of(header: bytes) -> str:
    """Return the name (a key of SEPARATORS) of the separator that makes the most cells of a header line."""
    cells = {name: len(_cells([header], character)) for name, character in SEPARATORS.items()}
    return max(cells, key=lambda name: cells[name])  # of two that make as many, the first


_SEPARATOR_LINE = re.compile(rb"\s*sep=.\s*", re.IGNORECASE)  # Excel's first line: it names the separator


def _skip_to_header(lines: _Lines) -> None:
    while lines.more() and (not lines.peek().strip() or _SEPARATOR_LINE.fullmatch(lines.peek())):
        lines.take()


def _batch(rows: list[tuple[int, str | None, str | None]]) -> pa.RecordBatch:
    numbers, texts, reasons = zip(*rows, strict=True)
    sound = [reason is None for reason in reasons]
    columns = (numbers, texts, sound, [False] * len(rows), reasons)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LINES, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=LINES)


# `0,0021`, `1.234,50` and `1.000`: the points stand between groups of three digits.
_DECIMAL_COMMA = re.compile(r"\s*(-?)(?:([0-9]+)|([1-9][0-9]{0,2}(?:\.[0-9]{3})+))(,[0-9]+)?\s*", re.ASCII)


def _with_decimal_point(text: str) -> str:
    """Return the cell of a file with decimal commas as JSON writes a number; another cell as it is."""
    number = _DECIMAL_COMMA.fullmatch(text)
    if not number or not (number[3] or number[4]):
        return text
    sign, digits, grouped, decimals = number.groups(default="")
    return sign + (digits or grouped.replace(".", "")) + decimals.replace(",", ".")


def _as_json(names: list[str], cells: list[bytes], decimal_commas: bool) -> tuple[str | None, Reason | None]:
    if len(cells) != len(names):
        return None, Reason.NOT_AN_OBJECT
    record: dict[str, str] = {}
    for name, cell in zip(names, cells, strict=True):
        text = cell.decode("utf-8", "replace")
        # Of a repeated name the first counts.
        record.setdefault(name, _with_decimal_point(text) if decimal_commas else text)
    return msgspec.json.encode(record).decode(), None


def _rows(lines: _Lines, separator: bytes) -> Iterator[tuple[int, list[bytes] | Reason]]:
    """Each row that is not blank, the header too: the number of its first line, and its cells or why it has none."""
    while lines.more():
        number = lines.number + 1
        first = lines.peek()
        if not first.strip(b" \t\r\n"):
            lines.take()
            continue
        if b'"' not in first and len(first) <= MAX_MAPPED_LINE_BYTES:  # nearly all rows
            lines.take()
            yield number, first.removesuffix(b"\n").removesuffix(b"\r").split(separator)
            continue
        row = _quoted_row(lines, separator.decode())
        yield number, row


def _cells(lines: Iterable[bytes], separator: str) -> list[bytes]:
    """The cells of the one row on these lines; none if the lines are not one row by RFC 4180."""
    try:
        # Latin-1 gives each byte a character and takes it back: the bytes need not be UTF-8 yet.
        rows = list(csv.reader((line.decode("latin-1") for line in lines), delimiter=separator, strict=True))
    except csv.Error:
        return []
    return [cell.encode("latin-1") for cell in rows[0]] if len(rows) == 1 else []


def _quoted_row(lines: _Lines, separator: str) -> list[bytes] | Reason:
    """The next row, however many lines it stands on; if it is none, its first line alone is passed."""
    first = lines.take()
    rest = io.BytesIO()  # as one text: a line of Python's own would take some more memory
    before = lines.number
    is_open = first.count(b'"') % 2 == 1
    while is_open and len(first) + rest.tell() <= MAX_MAPPED_LINE_BYTES and lines.more():
        line = lines.take()
        rest.write(line)
        is_open ^= line.count(b'"') % 2 == 1
    last = line if rest.tell() else first
    bare = len(first) + rest.tell() - len(last) + len(last.removesuffix(b"\n").removesuffix(b"\r"))
    rest.seek(0)
    if not is_open and bare <= MAX_MAPPED_LINE_BYTES and (cells := _cells(chain([first], rest), separator)):
        return cells
    rest.seek(0)
    lines.put_back(rest, lines.number - before)
    return Reason.NOT_AN_OBJECT if len(first) <= MAX_MAPPED_LINE_BYTES + 2 else Reason.LINE_TOO_LONG


class _Lines:
    """The lines of a text with their ends, without a byte-order mark. Of one too long there is the beginning."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._next = b""  # looked at, but not taken yet
        self._back: list[io.BytesIO] = []  # lines that were put back, the next ones last
        self.number = 0  # of lines taken
        self._mark = BYTE_ORDER_MARK

    def more(self) -> bool:
        self._next = self._next or self._read()
        return bool(self._next)

    def peek(self) -> bytes:
        return self._next

    def take(self) -> bytes:
        self.number += 1
        line, self._next = self._next, b""
        return line

    def put_back(self, lines: io.BytesIO, count: int) -> None:
        """Put the last lines that were taken back."""
        if count:
            self._back.append(lines)
            self.number -= count

    def _read(self) -> bytes:
        while self._back:
            if line := self._back[-1].readline():
                return line
            self._back.pop()
        line = self._plain.readline(MAX_MAPPED_LINE_BYTES + 8).removeprefix(self._mark)
        self._mark = b""
        if len(line) > MAX_MAPPED_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := self._plain.readline(MAX_MAPPED_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            line += b"\n"  # it is too long with it as it was without
        return line


# --- Parquet ----------------------------------------------------------------------------------------------------------


def parquet_records(source: Any) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file of any columns, each as a JSON object (schema LINES), numbered from 1.

    Decimals become strings, instants the text of ISO 8601, bytes Base64 unless they are UTF-8.
    """
    parquet = pq.ParquetFile(source, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True)
    number = 0
    for batch in parquet.iter_batches(batch_size=_rows_at_once(parquet), use_threads=False):
        texts = [msgspec.json.encode(row, enc_hook=str).decode() for row in _as_python(batch)]
        count = len(texts)
        columns = [
            pa.array(np.arange(number + 1, number + count + 1)),
            pa.array(texts, pa.string()),
            pa.repeat(pa.scalar(True), count),
            pa.repeat(pa.scalar(False), count),
            pa.nulls(count, pa.string()),
        ]
        number += count
        yield pa.RecordBatch.from_arrays(columns, schema=LINES)


def record_texts(source: Any, lines: Iterable[int], characters: int) -> Iterator[tuple[int, str]]:
    """Some records of a Parquet file, by their numbers in order, each cut at `characters`."""
    wanted = iter(lines)
    next_wanted = next(wanted, None)
    for batch in parquet_records(source):
        first = batch.column("line")[0].as_py()
        while next_wanted is not None and next_wanted < first + batch.num_rows:
            yield next_wanted, batch.column("text")[next_wanted - first].as_py()[:characters]
            next_wanted = next(wanted, None)
        if next_wanted is None:
            return


def _rows_at_once(parquet: pq.ParquetFile) -> int:
    metadata = parquet.metadata
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    widest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1)
    return int(min(4_096, max(1, PARQUET_BYTES // max(widest, 1))))


def _as_python(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows in Python's types, of which none is finer than a microsecond."""
    columns = [
        column.cast(pa.timestamp("us", column.type.tz), safe=False)
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns"
        else column
        for column in batch.columns
    ]
    names = batch.schema.names
    try:
        rows = pa.RecordBatch.from_arrays(columns, names=names).to_pylist()
    except _NO_VALUE_OF_PYTHON:
        values = zip(*(map(_value, column) for column in columns), strict=True)
        rows = [dict(zip(names, row, strict=True)) for row in values]
    return [{name: _as_text(value) for name, value in row.items()} for row in rows]


_NO_VALUE_OF_PYTHON = (OverflowError, KeyError)  # a day behind its last year; a time zone that it does not know


def _value(scalar: pa.Scalar) -> Any:
    """One value, as Arrow writes it where Python has none such. Raises ArrowException where that cannot be, either."""
    try:
        return scalar.as_py()
    except _NO_VALUE_OF_PYTHON:
        return scalar.cast(pa.string()).as_py()


def _as_text(value: Any) -> Any:
    if isinstance(value, bytes) and is_utf8(value):
        return value.decode()
    if isinstance(value, float) and not math.isfinite(value):  # JSON would have a null, as for a value that is missing
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    if isinstance(value, dict):
        return {name: _as_text(each) for name, each in value.items()}
    return value
