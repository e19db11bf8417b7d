"""Read raw files a second time: records out of lines of JSON and rows of Parquet.

Independent of the intake: this module uses the standard library's decompressors and JSON, and pyarrow for Parquet.
Memory depends on the longest line, not on the file.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LINE_BYTES = 1_048_576
MAPPED_LINE_BYTES = 64 * 2**20
FIELDS = (
    *("request_id", "timestamp", "organization_id", "api_key_id", "model", "endpoint"),
    *("cost", "synapses", "neurons", "status"),
    *("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
)

Record = Mapping[str, Any]


# --- lines of JSON ---------------------------------------------------------------------------------------------------


def objects(raw: io.RawIOBase, ending: str, size: int) -> Iterator[Record | None]:
    """Yield the object on each line of a native file; None for a line without one. Blank lines are left out."""
    with opened(raw, ending, size) as text:
        for line in _lines(text, LINE_BYTES):
            try:
                value = None if line is None else _STRICT.decode(line.decode("utf-8"))
            except (ValueError, RecursionError):
                value = None
            yield value if isinstance(value, dict) else None


def mapped_objects(raw: io.RawIOBase, ending: str, size: int, *, numbers_as_text: bool) -> Iterator[Record | None]:
    """Yield the object on each line of a mapped format's file; None for a line without one.

    Bytes that are not UTF-8 and escapes that JSON does not know become U+FFFD, NaN and Infinity become strings, control
    characters stay: a field that nobody reads may hold any of them.

    Args:
        raw: the open raw file.
        ending: the extension the file is read by.
        size: how many bytes of the file are read, from its beginning.
        numbers_as_text: numbers become the text that stands in the line, so that no digit is lost.
    """
    decoder = AS_TEXT if numbers_as_text else _LENIENT
    with opened(raw, ending, size) as text:
        for line in _lines(text, MAPPED_LINE_BYTES):
            value = None if line is None else _leniently(decoder, line.decode("utf-8", "replace"))
            yield value if isinstance(value, dict) else None


def _leniently(decoder: json.JSONDecoder, text: str) -> Any:
    """Return what a text holds; None where no repair makes JSON of it."""
    try:
        return _decoded(decoder, text)
    except ValueError:
        pass
    try:
        return _decoded(decoder, _ESCAPE.sub(lambda escape: escape[0] if escape[1] else "\ufffd", text))
    except ValueError:
        return None


def _decoded(decoder: json.JSONDecoder, text: str) -> Any:
    """Return what a JSON text holds, without its deepest values where it is nested too deeply for Python.

    Raises:
        ValueError: the text is no JSON.
    """
    try:
        return decoder.decode(text)
    except RecursionError:
        pass
    kept: list[str] = []
    begins: list[int] = []  # for each open value at a depth of 100, 200, ... levels: its first piece in `kept`
    copied = depth = 0
    for token in _TOKEN.finditer(text):
        depth += token[0] in ("{", "[")
        if depth % LEVELS == 0 and token[0] in ("{", "["):
            kept.append(text[copied : token.start()])
            copied = token.start()
            begins.append(len(kept))
        elif depth % LEVELS == 0 and token[0] in ("}", "]") and begins:
            begin = begins.pop()
            decoder.decode("".join((*kept[begin:], text[copied : token.end()])))
            kept[begin:] = ["null"]
            copied = token.end()
        depth -= token[0] in ("}", "]")
    if begins:
        raise ValueError("a bracket is not closed")
    return decoder.decode("".join((*kept, text[copied:])))


LEVELS = 100
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[][{}]', re.DOTALL)


def without_depths(value: Any) -> Any:
    """Empty, in place, each object and list that lies 100 levels deep, and return the value."""
    layer = [value]
    for _ in range(LEVELS):
        insides = (outer.values() if isinstance(outer, dict) else outer for outer in layer)
        layer = [inner for inside in insides for inner in inside if isinstance(inner, (dict, list))]
    for inner in layer:
        inner.clear()
    return value


_ESCAPE = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})?')


def opened(raw: io.RawIOBase, ending: str, size: int) -> io.BufferedReader:
    """Open the first `size` bytes of a raw file for reading, decompressed as its extension says."""
    source: Any = io.BufferedReader(_Beginning(raw, size), 2**18)
    if size == 0:
        return source  # type: ignore[no-any-return]  # nothing, whatever its name says
    if ending.endswith(".gz"):
        source = gzip.GzipFile(fileobj=source)
    elif ending.endswith(".zst"):
        source = zstd.ZstdFile(source)
    plain = io.BufferedReader(source, 2**18)
    return _one_record_a_line(plain) if ".json" in (ending, ending.rpartition(".")[0]) else plain


def _one_record_a_line(text: io.BufferedReader) -> io.BufferedReader:
    """Return a `.json` file as lines: as they are, or a single one where the whole file is one JSON object or array."""
    read = b""
    while not read.strip() and (line := text.readline(MAPPED_LINE_BYTES + 1)):
        read += line
    if not _is_balanced(read):
        read += text.read(MAPPED_LINE_BYTES + 1 - len(read)) if len(read) <= MAPPED_LINE_BYTES else b""
        if len(read) <= MAPPED_LINE_BYTES and _is_balanced(read):
            read = read.replace(b"\r", b" ").replace(b"\n", b" ").lstrip(b" \t")
    return io.BufferedReader(_Behind(read, text), 2**18)


def _is_balanced(text: bytes) -> bool:
    """Return True if a text is one pair of brackets with what is in it. Strings hold any bracket, but no line end."""
    bare = _STRING.sub(b"", text.removeprefix(b"\xef\xbb\xbf").strip())
    if bare[:1] not in (b"{", b"[") or b'"' in bare:
        return False
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in b"{[" else -1
        if depth <= 0:
            return depth == 0 and bracket.end() == len(bare)
    return False


_STRING = re.compile(rb'"(?:[^"\\\r\n]|\\[^\r\n])*+"')
_BRACKET = re.compile(rb"[][{}]")


class _Behind(io.RawIOBase):
    """Bytes that were read from a file already, and the rest of the file."""

    def __init__(self, read: bytes, rest: io.BufferedReader) -> None:
        self._read = io.BytesIO(read)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._read.readinto(buffer) or self._rest.readinto(buffer)


class _Beginning(io.RawIOBase):
    """The first `size` bytes of a file: what was written behind them since is not there."""

    def __init__(self, file: io.RawIOBase, size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left]) or 0
        self._left -= count
        return count


def _lines(text: io.BufferedReader, longest: int) -> Iterator[bytes | None]:
    """Yield each line that is not blank, without its end; None for a line of more than `longest` bytes."""
    most = longest + 5  # with a byte-order mark and a line end
    mark = b"\xef\xbb\xbf"
    while piece := text.readline(most):
        line = piece.removeprefix(mark)
        mark = b""
        if line.endswith(b"\n"):
            line = line[:-1].removesuffix(b"\r")
        blank = not line.strip(b" \t")
        while len(piece) == most and not piece.endswith(b"\n"):  # too long, and not kept
            piece = text.readline(most)
            blank = blank and not piece.strip(b" \t\r\n")
        if not blank:
            yield line if len(line) <= longest else None


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        record.setdefault(name, value)
    return record


def _no_json(_: str) -> NoReturn:
    raise ValueError


def _short_integer(digits: str) -> int:
    return int(digits[:400])  # a longer one is out of every range at any length


def _finite(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) else digits


_STRICT = json.JSONDecoder(object_pairs_hook=_first_of_each, parse_int=_short_integer, parse_constant=_no_json)
_LENIENT = json.JSONDecoder(
    object_pairs_hook=_first_of_each, parse_int=_short_integer, parse_float=_finite, parse_constant=str, strict=False
)


class Digits(str):
    """A number as it stands in a line."""

    __slots__ = ()


AS_TEXT = json.JSONDecoder(
    object_pairs_hook=_first_of_each, parse_int=Digits, parse_float=Digits, parse_constant=str, strict=False
)


def without_halves(text: str) -> str:
    """Replace each lone surrogate (half a character) by U+FFFD."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def at(value: Any, *path: str) -> Any:
    """Return what stands in an object below these names, one inside of the other; None where there is nothing."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def is_other_json(text: str) -> bool:
    """Return True for a text that stands for a JSON object or array, true or false, as `text_of` gives it."""
    if text in ("true", "false", "{}", "[]"):
        return True
    inside = text[1:-1]
    if text[:1] == "{":
        return text[-1] == "}" and inside[:1] == '"'
    if text[:1] == "[" and text[-1] == "]":
        return inside[:1] in ('"', "[", "{") or _SCALAR.fullmatch(inside.partition(",")[0]) is not None
    return False


_SCALAR = re.compile("true|false|null|-?[0-9][0-9.eE+-]*")


def text_of(value: Any) -> str | None:
    """Return the text of a value that AS_TEXT decoded: what is no text or number as JSON, null as None."""
    if isinstance(value, Digits):
        return _number(value)
    if value is None or isinstance(value, str):
        return value and without_halves(value)
    try:
        return without_halves(_json(value))
    except RecursionError:
        return without_halves(_json(without_depths(value)))


def _number(digits: str) -> str:
    """Return a number as a text: an integer in full, any other as the shortest decimal of its double.

    An exponent is written where JavaScript writes one: 1e21, 1e-7.
    """
    if not set(digits) & set(".eE"):
        return "0" if digits == "-0" else str(digits)
    shortest = repr(float(digits))
    if "inf" in shortest or "e" not in shortest:
        return str(digits) if "inf" in shortest else shortest
    number = Decimal(shortest)
    if -6 <= number.adjusted() <= 20:
        text = format(number, "f")
        return text if "." in text else f"{text}.0"
    mantissa, _, exponent = shortest.partition("e")
    return f"{mantissa}e{int(exponent)}"


def _json(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(name)}:{_json(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return _number(value) if isinstance(value, Digits) else json.dumps(value, ensure_ascii=False)


# --- rows of Parquet -------------------------------------------------------------------------------------------------


class Moment(int):
    """Microseconds since 1970 that Parquet gave as a timestamp: no number in a log is one."""


def rows(raw: Any) -> Iterator[Record | None]:
    """Yield each row of a native Parquet file as a record; None where one of its texts is not UTF-8."""
    with pq.ParquetFile(raw, buffer_size=2**20, pre_buffer=False) as parquet:
        names = parquet.schema_arrow.names
        present = [name for name in FIELDS if name in names]
        for batch in parquet.iter_batches(batch_size=4096, columns=present, use_threads=False):
            columns = [_values(batch.column(batch.schema.names.index(name))) for name in present]
            for row in zip(*columns, strict=True):
                yield None if _BROKEN in row else dict(zip(present, row, strict=True))


class _Strange:
    """A value of a type that no rule knows."""


_STRANGE, _BROKEN = _Strange(), _Strange()
_TEXT = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values in Python's types, and moments where the column holds timestamps."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary_decode())
    if str(kind) in _TEXT:
        return [None if value is None else _text(value) for value in column.cast(pa.binary()).to_pylist()]
    if pa.types.is_timestamp(kind):
        per_second = _PER_SECOND[kind.unit]
        counts = column.cast(pa.int64()).to_pylist()  # Python's integers: no instant is too far away
        return [None if count is None else Moment(count * 10**6 // per_second) for count in counts]
    if any(known(kind) for known in _PLAIN):
        return list(column.to_pylist())
    return [None if missing else _STRANGE for missing in column.is_null().to_pylist()]


_PLAIN = (pa.types.is_null, pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_decimal)


def _text(value: bytes) -> str | _Strange:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return _BROKEN
