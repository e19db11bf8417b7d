"""Splitting a text into numbered lines, wherever a block of it ends."""

from __future__ import annotations

import io
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import rows
from pipeline.line import Reason, parse

MARK = b"\xef\xbb\xbf"
LONGEST = 12
PIECES = (b"\n", b"\r\n", b"\r", b" ", b"\t", b"{}", b'{"a":1}', b"x", b"\xff", "é".encode(), MARK, b"123456", b"NaN")


def split(text: bytes, block_bytes: int, longest: int = LONGEST) -> dict[int, bytes | str]:
    """Text or reason of each line by its number, as the bulk read gets them."""
    got: dict[int, bytes | str] = {}
    with patch.object(rows, "BLOCK_BYTES", block_bytes), patch.object(rows, "MAX_LINE_BYTES", longest):
        for batch in rows.line_batches(io.BytesIO(text)):
            for row in batch.to_pylist():
                assert row["line"] not in got
                bare = rows.without_line_end((row["text"] or "").encode())
                if row["reason"]:
                    got[row["line"]] = row["reason"]
                else:
                    record = parse(bare.decode())  # the second look, where the bulk read did not say it
                    got[row["line"]] = record if isinstance(record, Reason) else bare
                    assert row["sound"] is False or b"NaN" not in bare
    return got


def split_naively(text: bytes, longest: int = LONGEST) -> dict[int, bytes | str]:
    expected: dict[int, bytes | str] = {}
    for number, line in enumerate(text.removeprefix(MARK).split(b"\n"), 1):
        last = number == text.count(b"\n") + 1
        bare = line if last else line.removesuffix(b"\r")
        # A carriage return inside a megabyte of blanks does not make it a line.
        if not bare.strip(b" \t" if len(bare) <= longest else b" \t\r"):
            continue
        if len(bare) > longest:
            expected[number] = Reason.LINE_TOO_LONG
            continue
        try:
            record = parse(bare.decode())
            expected[number] = record if isinstance(record, Reason) else bare
        except UnicodeDecodeError:
            expected[number] = Reason.INVALID_UTF8
    return expected


@settings(max_examples=600, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join), block_bytes=st.integers(3, 40))
@example(text=b"x" * (LONGEST) + b"\r\n{}\n", block_bytes=LONGEST + 1)
@example(text=b"x" * (LONGEST + 1) + b"\r\n{}\n", block_bytes=LONGEST + 2)
@example(text=b" " * 100 + b"\n" + b"\t" * 100, block_bytes=5)
@example(text=MARK, block_bytes=3)
def test_lines_are_the_same_wherever_a_block_ends(text: bytes, block_bytes: int) -> None:
    assert split(text, block_bytes) == split_naively(text)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("excess", [-1, 0, 1, 2])
def test_the_longest_line_is_as_long_at_every_block_boundary(excess: int, end: bytes) -> None:
    line = b"{" + b" " * (LONGEST + excess - 2) + b"}"
    text = b"{}" + end + line + end + b"{}" + end
    expected = {1: b"{}", 2: Reason.LINE_TOO_LONG if excess > 0 else line, 3: b"{}"}
    for block_bytes in range(3, len(text) + 2):
        assert split(text, block_bytes) == expected


def test_soundness_is_found_line_by_line_in_a_block_with_a_bad_line() -> None:
    (batch,) = rows.line_batches(io.BytesIO(b'{"a":1}\n{"a":NaN}\n[1]\n{"a":2}\n'))
    assert batch.column("sound").to_pylist() == [True, False, False, True]


def test_a_block_of_good_lines_is_handed_over_whole() -> None:
    (batch,) = rows.line_batches(io.BytesIO(b'{"a":1}\r\n{"a":2}\n'))
    assert batch.column("sound").to_pylist() == [True, True]
    assert batch.column("text").to_pylist() == ['{"a":1}\r\n', '{"a":2}\n']
