"""Lines of mapped formats that are nearly JSON, made into JSON: what nobody reads must not cost a request.

A producer copies bytes of its clients into its log as they are, and writes numbers that JSON does not have. Such a
value is replaced by text that the rule of its field can judge, if any field reads it at all.
"""

from __future__ import annotations

import re

import msgspec

from pipeline.line import Reason

_STRING_OR_CONSTANT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?Infinity|NaN', re.DOTALL)
# What a text of JSON may hold: characters, escapes, and escapes of two halves that make a character.
_SOUND = re.compile(
    r'(?:[^\\\x00-\x1f]++|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+"
)
_HALF = re.compile(r"\\u[0-9a-fA-F]{4}")
REPLACEMENT = "\ufffd"

_ANYTHING = msgspec.json.Decoder(msgspec.Raw)


def as_json(line: bytes) -> str | Reason:
    """Make a line (its line end cut off) into the text of a JSON object.

    Bytes that are not UTF-8 and halves of characters become U+FFFD, NaN and Infinity become texts, control characters
    are escaped. Memory is a small multiple of the line, whatever it holds.

    Returns:
        The text, or why the line holds no object.
    """
    text = _STRING_OR_CONSTANT.sub(_repaired, line.decode("utf-8", "replace"))
    try:
        found = _ANYTHING.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return Reason.NOT_JSON
    return text if bytes(memoryview(found)[:1]) == b"{" else Reason.NOT_AN_OBJECT


def _repaired(match: re.Match[str]) -> str:
    token = match[0]
    return _sound(token) if token[0] == '"' else f'"{token}"'


def _sound(token: str) -> str:
    """The same text of JSON without what JSON does not allow in it."""
    pieces = []
    position = 0
    while (end := _SOUND.match(token, position).end()) < len(token):  # type: ignore[union-attr]  # it matches nothing, too
        pieces.append(token[position:end])
        if token[end] != "\\":
            pieces.append(f"\\u{ord(token[end]):04x}")
            position = end + 1
        else:
            pieces.append(REPLACEMENT)
            position = end + (6 if _HALF.match(token, end) else 1)
    return "".join((*pieces, token[position:])) if pieces else token
