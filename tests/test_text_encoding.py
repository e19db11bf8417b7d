"""UTF-16 is told from the texts and bytes that only look a little like it."""

from __future__ import annotations

import pytest

from pipeline.contract.text_encoding import is_utf16

RECORD = '{"request_id": "r1", "model": "naïve-größe", "cost": "0.1"}\r\n'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_recognized_with_and_without_a_mark_and_in_a_later_line(encoding: str) -> None:
    content = (RECORD * 40).encode(encoding)
    assert is_utf16(content)
    second_line = content.split(b"\n")[1]  # of little endian, it begins with the NUL of the line end
    assert is_utf16(second_line)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{\0",  # too little to tell
        RECORD.encode(),
        b"\xef\xbb\xbf" + RECORD.encode(),
        RECORD.encode("latin-1"),
        bytes(4_096),  # the hole that a truncated log leaves
        bytes(500) + RECORD.encode(),
        RECORD.encode("utf-32-le"),
        bytes(range(256)) * 4,
    ],
)
def test_nothing_else_is(content: bytes) -> None:
    assert not is_utf16(content)


def test_a_mark_alone_is_enough() -> None:
    assert is_utf16(b"\xff\xfe")
    assert is_utf16(b"\xfe\xff")
    assert is_utf16("\ufeff日本語".encode("utf-16-le"))
