"""Lines of mapped formats that are nearly JSON, made into JSON: what nobody reads must not cost a request.

A producer copies bytes of its clients into its log as they are, and writes numbers that JSON does not have. Such a
value is replaced by text that the rule of its field can judge, if any field reads it at all.
"""

from __future__ import annotations

import re

import msgspec

from pipeline.line import Reason

# What a text of JSON may hold: characters, escapes, and escapes of two halves that make a character.
_IN_STRING = (
    r'(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+"
)
_SOUND_IN_STRING = re.compile(_IN_STRING)
_SOUND = re.compile(rf'(?:[^"NI\-]++|"{_IN_STRING}"|-(?!Infinity))*+')
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_CONSTANT = re.compile(r"-?Infinity|NaN")
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
    text = line.decode("utf-8", "replace")
    reason = _why_none(text)
    if reason is Reason.NOT_JSON and (repaired := _repaired(text)):
        text, reason = repaired, _why_none(repaired)
    return reason or text


def _why_none(text: str) -> Reason | None:
    try:
        found = _ANYTHING.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return Reason.NOT_JSON
    return None if bytes(memoryview(found)[:1]) == b"{" else Reason.NOT_AN_OBJECT


def _repaired(text: str) -> str | None:
    """The same text with what JSON does not allow replaced; None where that cannot make it JSON."""
    pieces = []
    position = 0
    while (end := _end_of(_SOUND, text, position)) < len(text):
        pieces.append(text[position:end])
        if string := _STRING.match(text, end):
            pieces.append(_repaired_string(string[0]))
            position = string.end()
        elif constant := _CONSTANT.match(text, end):
            pieces.append(f'"{constant[0]}"')
            position = constant.end()
        else:
            return None
    return "".join((*pieces, text[position:])) if pieces else None


def _repaired_string(string: str) -> str:
    pieces = ['"']
    position = 1
    while (end := _end_of(_SOUND_IN_STRING, string, position)) < len(string) - 1:
        pieces.append(string[position:end])
        if string[end] != "\\":
            pieces.append(f"\\u{ord(string[end]):04x}")
            position = end + 1
        else:
            pieces.append(REPLACEMENT)
            position = end + (6 if _HALF.match(string, end) else 1)
    return "".join((*pieces, string[position:]))


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where a pattern ends that matches nothing, too."""
    found = pattern.match(text, position)
    assert found
    return found.end()
