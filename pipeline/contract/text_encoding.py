"""The encodings that a text file should not have."""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE

BEGINNING_BYTES = 1_024  # enough of a text to tell its encoding
UTF16_ADVICE = "the file is UTF-16; convert it to UTF-8"  # the cause of the trouble, and what to do

_LEAST_BYTES = 8  # of a text without a byte-order mark


def is_utf16(beginning: bytes) -> bool:
    """Return True if a text that begins with these bytes is UTF-16.

    Such a text has a byte-order mark, or nearly every second byte is NUL and nearly no other one: UTF-16 writes each
    ASCII character as the character and a NUL. The text may begin inside a character, as a line does that follows a
    line end.

    Args:
        beginning: The first bytes of a file or of a line. BEGINNING_BYTES are enough.
    """
    if beginning.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return True
    looked_at = beginning[:BEGINNING_BYTES]
    if len(looked_at) < _LEAST_BYTES:
        return False
    few, many = sorted(_share_of_nul(looked_at[first::2]) for first in (0, 1))
    return few < 0.25 and many > 0.75


def _share_of_nul(some: bytes) -> float:
    return some.count(0) / len(some)
