"""A `.json` file: one record a line, or one record in all of the file, over as many lines as its writer took."""

from __future__ import annotations

import io
import re
from typing import Protocol

LONGEST_RECORD = 64 * 2**20  # bytes: a file that is larger is read line by line

# What says where a JSON value ends: its strings, which may hold brackets, and the brackets. A quote that ends on no
# string of the same line is a token of its own.
_TOKENS = re.compile(rb'"(?:[^"\\\r\n]++|\\[^\r\n])*+"|[{}\[\]"]')
_VALUE_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*")  # behind a byte-order mark
_WHITE = b" \t\r\n"
_SPACES_FOR_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")
_PIECE = 2**20  # bytes


class Plain(Protocol):
    """What plain bytes are read from."""

    def read(self, size: int, /) -> bytes: ...

    def readinto(self, buffer: memoryview, /) -> int: ...

    def readline(self, size: int, /) -> bytes: ...


def lines_of(plain: Plain) -> io.BufferedReader:
    """The lines of a `.json` file: as they are; or a single one where the file as a whole is one object or one array.

    Decided by its first line: a line that is an object by itself begins a log of one record a line. An array is one
    line, too, so that it is rejected once and not line by line. Memory depends on the record, not on a log of many.
    """
    head = bytearray()
    while len(head) <= LONGEST_RECORD and (piece := plain.readline(LONGEST_RECORD + 1 - len(head))):
        head += piece
        if piece.strip(_WHITE):
            break
    if not _is_one_value(head):
        while len(head) <= LONGEST_RECORD and (piece := plain.read(_PIECE)):
            head += piece
        if len(head) <= LONGEST_RECORD and _is_one_value(head):
            _make_one_line(head)
    return io.BufferedReader(_Joined(head, plain), 256 * 2**10)


def begins_as_log(plain: Plain) -> bool:
    """Return True if the first line of a `.json` file is a record by itself, so that the file is read line by line."""
    while line := plain.readline(LONGEST_RECORD):
        if line.strip(_WHITE):
            return _is_one_value(bytearray(line))
    return False


def _make_one_line(value: bytearray) -> None:
    """Put spaces for the line ends of a value, in place: none of its strings has one, so they are white space."""
    for start in range(0, len(value), _PIECE):
        value[start : start + _PIECE] = value[start : start + _PIECE].translate(_SPACES_FOR_LINE_ENDS)
    del value[: _VALUE_BEGINS.match(value).end()]  # type: ignore[union-attr]


def _is_one_value(text: bytearray) -> bool:
    """Return True if a text is one JSON object or array, perhaps between white space.

    What stands between the brackets is not looked at: whoever reads the record judges it.
    """
    begins = _VALUE_BEGINS.match(text)
    if bytes(text[begins.end() : begins.end() + 1]) not in (b"{", b"["):  # type: ignore[union-attr]
        return False
    depth = 0
    for token in _TOKENS.finditer(text):
        kind = text[token.start()]
        if kind in b"{[":
            depth += 1
        elif kind in b"}]":
            depth -= 1
            if depth <= 0:
                return depth == 0 and not text[token.end() :].strip(_WHITE)
        elif token.end() - token.start() == 1:
            return False
    return False


class _Joined(io.RawIOBase):
    """Bytes that were read already, and the rest of the file behind them."""

    def __init__(self, head: bytearray, rest: Plain) -> None:
        self._head = memoryview(head)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        if not self._head:
            return self._rest.readinto(buffer)
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count
