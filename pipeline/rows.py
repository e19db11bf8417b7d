"""Plain bytes or a Parquet file, as Arrow batches of numbered lines or rows.

Memory depends on the sizes below, not on the size of a file, a line or a row group.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contract.tables import EVENT
from pipeline.lenient_json import as_json
from pipeline.line import (
    END_INSTANT,
    FIRST_INSTANT,
    MAX_LINE_BYTES,
    MAX_MAPPED_LINE_BYTES,
    NATIVE_FIELDS,
    Number,
    Reason,
    is_blank,
    parse,
    short_amount,
)

BLOCK_BYTES = 4 * 2**20  # of plain text a batch; a batch or two a thread are under way at once
BATCH_ROWS = 16_384  # of Parquet; fewer where rows are wide
LONGEST_TEXT = 2_048  # bytes: 300 characters, of whatever script, are fewer

# `reason`: rejected already, so there is no text. Not `sound`: only the second look may judge the line.
# `plain`: the text is ASCII without escapes and delete characters, so nobody need look at its characters.
LINES = pa.schema(
    [
        ("line", pa.int64()),
        ("text", pa.string()),
        ("sound", pa.bool_()),
        ("plain", pa.bool_()),
        ("reason", pa.string()),
    ]
)


class Plain(Protocol):
    """What plain bytes are read from."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Read the next bytes into a buffer; how many they are. None are there behind the end only."""

    def readline(self, size: int, /) -> bytes:
        """The next bytes to the end of the line, `size` at most; none at the end."""


Block = bytes | bytearray
Numbers = npt.NDArray[np.int64]

_LOOKED_AT_ONCE = 1_024  # lines
_JUDGED_AT_ONCE = 16  # lines of which some are not sound
_WHITE = np.zeros(256, np.bool_)
_WHITE[list(b" \t\r\n")] = True
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _AnyObject(msgspec.Struct):
    """A JSON object whose fields nobody looks at."""


# DuckDB's JSON reader takes NaN, Infinity and trailing commas; this one takes strict JSON only, at 2 GB/s.
_STRICT_JSON = msgspec.json.Decoder(_AnyObject)


def line_batches(plain: Plain, *, is_mapped: bool = False) -> Iterator[pa.RecordBatch]:
    """The lines of a text (schema LINES), numbered from 1, line ends and a byte-order mark cut off.

    Blank lines are left out. Lines that are not UTF-8, too long, or no JSON object are rejected; what only one of two
    parsers takes for JSON is left to the second look. Of a mapped format a line may be longer, and what is nearly JSON
    is made into JSON (lenient_json.py).
    """
    longest = MAX_MAPPED_LINE_BYTES if is_mapped else MAX_LINE_BYTES
    number = 0  # of lines before the rest
    rest = b""
    overlong = False  # inside a line whose beginning was let go
    blank = False  # and nothing but white space so far
    first = True
    while True:
        block = bytearray(len(rest) + BLOCK_BYTES)  # read into it, and handed to Arrow as it is: copies cost as much
        block[: len(rest)] = rest
        count = plain.readinto(memoryview(block)[len(rest) :])
        if not count:
            break
        del block[len(rest) + count :]
        if first:
            block = block.removeprefix(BYTE_ORDER_MARK)
            first = False
        if overlong:
            end = block.find(b"\n")
            blank = blank and not block[: end if end >= 0 else None].strip(b" \t\r")
            if end < 0:
                continue
            overlong = False
            number += 1
            if not blank:
                yield _rejected(number, Reason.LINE_TOO_LONG)
            del block[: end + 1]
        end = block.rfind(b"\n") + 1
        rest = bytes(memoryview(block)[end:])
        if end:
            del block[end:]
            number += yield from _batches(block, number, is_mapped)
        if len(rest) > longest + 1:  # one more than a line: a carriage return may be its last byte
            overlong, blank, rest = True, not rest.strip(b" \t\r"), b""
    if overlong and not blank:
        yield _rejected(number + 1, Reason.LINE_TOO_LONG)
    elif rest:
        yield from _batches(rest, number, is_mapped)


def _rejected(number: int, reason: Reason) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"line": number, "reason": reason.value}], schema=LINES)


def _batches(block: Block, before: int, is_mapped: bool) -> Generator[pa.RecordBatch, None, int]:
    """The lines of `block` but the blank ones; how many there are with them. It ends with a line; `before` lines came
    before it."""
    if not block.strip(b" \t\n"):
        # Thirty times as fast as line by line, and a bomb of line ends is as large as anything.
        return block.count(b"\n")
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n")) + 1
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    bounds = np.append(0, ends)
    lines = _lines(block, bounds, before, is_mapped)
    perhaps_blank = np.flatnonzero(_WHITE[data[bounds[:-1]]]).tolist()
    blank = [line for line in perhaps_blank if is_blank(without_line_end(_line(block, bounds, line)))]
    if blank:
        kept = np.ones(len(ends), np.bool_)
        kept[blank] = False
        lines = lines.filter(pa.array(kept))
    if lines.num_rows:
        yield lines
    return len(ends)


def _lines(block: Block, bounds: Numbers, before: int, is_mapped: bool) -> pa.RecordBatch:
    """The lines of `block`, between its `bounds`: as they are where they are sound, which is nearly always."""
    count = len(bounds) - 1
    sound = np.ones(count, np.bool_)
    reasons = np.full(count, None)
    repaired: dict[int, str] = {}
    longest = MAX_MAPPED_LINE_BYTES if is_mapped else MAX_LINE_BYTES
    for line in _suspects(memoryview(block), bounds, 0, count, longest):
        if is_mapped:
            sound[line], reasons[line], text = _judge_mapped(_line(block, bounds, line))
            if text is not None:
                repaired[line] = text
        else:
            sound[line], reasons[line] = _judge(_line(block, bounds, line))
    # Every text keeps its line end: white space to JSON, so the block's own bytes serve as Arrow's. What is rejected or
    # repaired has none of them: the bytes may be no UTF-8.
    is_whole = reasons == None  # noqa: E711
    is_whole[list(repaired)] = False
    has_text = None if is_whole.all() else pa.array(is_whole).buffers()[1]
    texts = pa.StringArray.from_buffers(count, pa.py_buffer(bounds.astype(np.int32)), pa.py_buffer(block), has_text)
    if repaired:
        is_repaired = np.zeros(count, np.bool_)
        is_repaired[list(repaired)] = True
        texts = pc.replace_with_mask(texts, pa.array(is_repaired), pa.array(repaired.values(), pa.string()))
    return pa.RecordBatch.from_arrays(
        [
            pa.array(np.arange(before + 1, before + count + 1)),
            texts,
            pa.array(sound),
            pa.array(np.full(count, _is_plain(block))),
            pa.array(reasons, pa.string()),
        ],
        schema=LINES,
    )


def _suspects(block: memoryview, bounds: Numbers, start: int, end: int, longest_line: int) -> Iterator[int]:
    """Those of the lines from `start` to before `end` that are to be judged one by one, and a few of their neighbours.

    They are found by halves, from a thousand lines at once: then a bad line costs as much as some hundred good ones.
    """
    if end - start <= _LOOKED_AT_ONCE:
        lines = block[bounds[start] : bounds[end]]
        longest = int(np.diff(bounds[start : end + 1]).max())
        if longest <= longest_line and is_utf8(lines) and _is_strict_json(lines):
            return
    if end - start <= _JUDGED_AT_ONCE:
        yield from range(start, end)
    else:
        half = (start + end) // 2
        yield from _suspects(block, bounds, start, half, longest_line)
        yield from _suspects(block, bounds, half, end, longest_line)


def _line(block: Block, bounds: Numbers, line: int) -> bytes:
    return bytes(memoryview(block)[bounds[line] : bounds[line + 1]])


def _judge(line: bytes) -> tuple[bool, str | None]:
    """Whether a line, which is not blank, is sound; and the reason if it is rejected."""
    bare = without_line_end(line)
    if len(bare) > MAX_LINE_BYTES:
        return False, Reason.LINE_TOO_LONG
    if not is_utf8(bare):
        return False, Reason.INVALID_UTF8
    if _is_strict_json(bare):
        return True, None
    record = parse(bare.decode())
    return False, record if isinstance(record, Reason) else None


def _judge_mapped(line: bytes) -> tuple[bool, str | None, str | None]:
    """As `_judge` for a line of a mapped format; and the text that stands for it, where its own will not do."""
    bare = without_line_end(line)
    if len(bare) > MAX_MAPPED_LINE_BYTES:
        return False, Reason.LINE_TOO_LONG, None
    if is_utf8(bare) and _is_strict_json(bare):
        return True, None, None
    text = as_json(bare)
    return (False, text, None) if isinstance(text, Reason) else (True, None, text)


def without_line_end(line: bytes) -> bytes:
    """A line without the `\\n` or `\\r\\n` it ends with."""
    return line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line


def is_utf8(block: Block | memoryview) -> bool:
    try:
        str(block, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_plain(block: Block) -> bool:
    return block.isascii() and b"\\" not in block and b"\x7f" not in block


def _is_strict_json(block: Block | memoryview) -> bool:
    """Whether `block` is nothing but JSON objects. Which lines they stand on, the bulk read finds out."""
    try:
        _STRICT_JSON.decode_lines(block)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def line_texts(plain: Plain, lines: Iterable[int], characters: int) -> Iterator[tuple[int, str]]:
    """Some lines, by their numbers in order, each cut at `characters`; U+FFFD stands for what is no UTF-8."""
    wanted = iter(lines)
    next_wanted = next(wanted, None)
    number = 0
    at_start = True
    while next_wanted is not None and (
        piece := plain.readline(64 * 2**10)
    ):  # of a longer line, its first piece will do
        number += at_start
        if at_start and number == next_wanted:
            bare = without_line_end(piece.removeprefix(BYTE_ORDER_MARK) if number == 1 else piece)
            yield number, bare.decode("utf-8", "replace")[:characters]
            next_wanted = next(wanted, None)
        at_start = piece.endswith(b"\n")


def row_texts(source: Any, lines: Iterable[int], characters: int) -> Iterator[tuple[int, str]]:
    """Some rows of a Parquet file, by their numbers in order, as JSON cut at `characters`."""
    wanted = iter(lines)
    next_wanted = next(wanted, None)
    for batch in ParquetRows(source).batches():
        first = batch.column("line")[0].as_py()
        while next_wanted is not None and next_wanted < first + batch.num_rows:
            row = batch.slice(next_wanted - first, 1).drop_columns(["line", "reason"]).to_pylist()[0]
            yield next_wanted, json.dumps(row, ensure_ascii=False)[:characters]
            next_wanted = next(wanted, None)


def as_json_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ParquetRows as a parsed record: its numbers as they would stand in JSON.

    A double that is no number is refused by its type, one that is infinite as what is beyond the largest double.
    """
    return {name: _as_json_value(value) for name, value in row.items()}


def _as_json_value(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return True if math.isnan(value) else Number("-1e999" if value < 0 else "1e999")
    return Number(repr(value))


class UnusableParquet(Exception):
    """A Parquet file whose columns cannot be read as requests. `str()` of it says which and why."""


class ParquetRows:
    """The rows of a Parquet file in the native format, `line` counted from 1.

    Amounts and identifiers come as strings, integers, doubles or booleans: what JSON can say. A DECIMAL becomes a
    string, which is exact; a TIMESTAMP becomes the text of its UTC instant; what JSON cannot say becomes `true`, which
    every rule refuses by its type.
    """

    def __init__(self, source: Any) -> None:
        """source: a path, or an open file that no other reads from."""
        # Buffered: pages are read as they are needed, not whole column chunks.
        how: dict[str, Any] = {"buffer_size": 2**20, "pre_buffer": False, "page_checksum_verification": True}
        self._file = pq.ParquetFile(source, **how)
        self._batch_rows, repeated = _row_sizes(self._file)
        if repeated:
            try:
                self._file = pq.ParquetFile(source, read_dictionary=repeated, **how)
            except KeyError as error:
                raise UnusableParquet(f"unreadable: its columns are not the same all over ({error})") from error
        given = self._file.schema_arrow
        self._positions = {name: index for index, name in reversed(list(enumerate(given.names)))}
        self._check(given)
        columns = [pa.field(name, _plain_type(given, self._positions, name)) for name in NATIVE_FIELDS]
        self.schema = pa.schema([pa.field("line", pa.int64()), pa.field("reason", pa.string()), *columns])

    def _check(self, given: pa.Schema) -> None:
        for name in ("request_id", "timestamp", "organization_id", "api_key_id", "cost"):
            if name not in self._positions:
                raise UnusableParquet(f"unreadable: it has no column {name}; add it and put the file in place anew")
        timestamp = given.field(self._positions["timestamp"]).type
        if pa.types.is_timestamp(timestamp) and timestamp.tz is None:
            raise UnusableParquet("unreadable: column timestamp carries no time zone; write it as a UTC timestamp")

    def batches(self) -> Iterator[pa.RecordBatch]:
        number = 0
        wanted = [self._positions[name] for name in NATIVE_FIELDS if name in self._positions]
        top_level = [self._file.schema_arrow.names[index] for index in wanted]
        for batch in self._file.iter_batches(batch_size=self._batch_rows, columns=top_level, use_threads=False):
            count = batch.num_rows
            columns = []
            undecodable = pa.repeat(pa.scalar(False), count)
            for field in list(self.schema)[2:]:
                if field.name not in batch.schema.names:
                    columns.append(pa.nulls(count, field.type))
                    continue
                column, broken = _plain(batch.column(batch.schema.names.index(field.name)), field.name)
                columns.append(column)
                undecodable = undecodable if broken is None else pc.or_(undecodable, broken)
            reason = pc.if_else(undecodable, pa.scalar(Reason.INVALID_UTF8.value), pa.scalar(None, pa.string()))
            numbers = pa.array(np.arange(number + 1, number + count + 1))
            number += count
            yield pa.RecordBatch.from_arrays([numbers, reason, *columns], schema=self.schema)


def _row_sizes(parquet: pq.ParquetFile) -> tuple[int, list[str]]:
    """How many rows may be read at once, and which columns hold long texts that they name by a number.

    A text of a megabyte in the dictionary of a column takes a few bytes a row in the file, and a megabyte once read.
    """
    largest = 1.0
    repeated = set()
    metadata = parquet.metadata
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        chunks = [group.column(position) for position in range(group.num_columns)]
        chunks = [chunk for chunk in chunks if chunk.path_in_schema in _NAMES]
        largest = max(largest, sum(chunk.total_uncompressed_size for chunk in chunks) / max(group.num_rows, 1))
        repeated |= {
            chunk.path_in_schema
            for chunk in chunks
            if chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in encoding for encoding in chunk.encodings)
        }
    return int(min(BATCH_ROWS, max(1, BLOCK_BYTES * 4 // largest))), sorted(repeated & set(parquet.schema.names))


_NAMES = frozenset(NATIVE_FIELDS)


def _plain_type(given: pa.Schema, positions: dict[str, int], name: str) -> pa.DataType:
    if name not in positions:
        return pa.string()
    empty = pa.nulls(0, given.field(positions[name]).type)
    return _plain(empty, name)[0].type


def _plain(column: pa.Array, name: str) -> tuple[pa.Array, pa.Array | None]:
    """A column as strings, integers, doubles or booleans; and which of its rows hold text that is not UTF-8."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        values, broken = _plain(column.dictionary, name)
        # Each text once, and not longer than it takes to see that it is too long.
        return values.take(column.indices), None if broken is None else pc.fill_null(broken.take(column.indices), False)
    if any(is_kind(kind) for is_kind in _TEXT_KINDS):
        text, broken = _text(column)
        return _short(text, name), broken
    plain: pa.Array
    if pa.types.is_null(kind):
        plain = pa.nulls(len(column), pa.string())
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        plain = column
    elif pa.types.is_floating(kind) and name in _AMOUNTS:  # no other field may be a fraction, least of all NaN
        plain = column.cast(pa.float64())
    elif pa.types.is_decimal(kind) and name in _AMOUNTS:
        plain = _amount(column, EVENT.arrow_schema.field(name).type.scale)
    elif pa.types.is_timestamp(kind) and name == "timestamp":
        plain = _instant(column)
    else:
        plain = pc.if_else(column.is_null(), pa.scalar(None, pa.bool_()), pa.scalar(True))
    return plain, None


def _short(texts: pa.Array, name: str) -> pa.Array:
    """The texts, those too long for any rule but an amount's cut to a length that is too long still."""
    lengths = pc.binary_length(texts)
    if (pc.max(lengths).as_py() or 0) <= LONGEST_TEXT:
        return texts
    if name not in _AMOUNTS:
        return pc.if_else(pc.less_equal(lengths, LONGEST_TEXT), texts, pc.utf8_slice_codeunits(texts, 0, 300))
    return pa.array([None if text is None else short_amount(text) for text in texts.to_pylist()], pa.string())


_AMOUNTS = frozenset(column.name for column in EVENT.columns if pa.types.is_decimal(column.type))

# Writers that do not mark their strings as such leave binary columns.
_TEXT_KINDS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


def _instant(column: pa.Array) -> pa.Array:
    """Timestamps as text. One out of range becomes another that is: microseconds or four digits may not hold it."""
    start, end = (pa.scalar(instant, column.type) for instant in (FIRST_INSTANT, END_INSTANT))
    in_range = pc.and_(pc.greater_equal(column, start), pc.less(column, end))
    held = pc.if_else(in_range, column, end)
    # Cutting to microseconds is the format's own rule, so an unsafe cast is the right one. Without a zone: with one,
    # Arrow takes eighteen times as long, UTC or not.
    utc = held.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.timestamp("us"))
    text = pc.binary_replace_slice(utc.cast(pa.string()), start=10, stop=11, replacement="T")
    return pc.binary_join_element_wise(text, pa.scalar("Z"), pa.scalar(""))


def _amount(column: pa.Array, places: int) -> pa.Array:
    """Decimals as text. Zeros behind the `places` of the amount, of which a larger scale is full, are left out."""
    text = pc.if_else(pc.equal(column, pa.scalar(0, column.type)), pa.scalar("0"), column.cast(pa.string()))
    if column.type.scale > places:
        for pattern, shorter in ((r"^(-?[0-9]+\.[0-9]*?)0+$", r"\1"), (r"\.$", "")):
            text = pc.replace_substring_regex(text, pattern, shorter)
    return text


def _text(column: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    raw = column.cast(pa.binary())
    try:
        text = raw.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        values = raw.to_pylist()
        broken = [value is not None and not is_utf8(value) for value in values]
        texts = [None if bad or value is None else value.decode() for value, bad in zip(values, broken, strict=True)]
        return pa.array(texts, pa.string()), pa.array(broken)
    return text, None
