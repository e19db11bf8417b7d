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

_STRING_OR_BRACKET = re.compile(rf"{_STRING.pattern}|[{{}}\[\]]", re.DOTALL)
_LEVELS = 100  # of objects and lists, one inside of the other, that every parser takes
_ANYTHING = msgspec.json.Decoder(msgspec.Raw)


def as_json(line: bytes) -> str | Reason:
    """Make a line (its line end cut off) into the text of a JSON object.

    Bytes that are not UTF-8 and halves of characters become U+FFFD, NaN and Infinity become texts, control characters
    are escaped. In a line that is nested too deeply for a parser, null stands for what lies 100 levels deep. Memory is
    a small multiple of the line, whatever it holds.

    Returns:
        The text, or why the line holds no object.
    """
    text = line.decode("utf-8", "replace")
    found = _as_object(text)
    if found is Reason.NOT_JSON and (repaired := _repaired(text)):
        found = _as_object(repaired)
    return found


def _as_object(text: str) -> str | Reason:
    """A text that is a JSON object, if need be without its deepest values; or why the text is none."""
    try:
        found = _ANYTHING.decode(text)
    except msgspec.MsgspecError:
        return Reason.NOT_JSON
    except RecursionError:
        return _as_object(shallow) if (shallow := _shallow(text)) else Reason.NOT_JSON
    return text if bytes(memoryview(found)[:1]) == b"{" else Reason.NOT_AN_OBJECT


def _shallow(text: str) -> str | None:
    """The same JSON with null for each value that lies 100 levels deep; None where such a value is no JSON.

    From the inside to the outside, 100 levels at a time become null, so that each of them is looked at once.
    """
    open_values: list[list[str]] = [[]]  # the pieces of the line, and those of each open value that becomes null
    position = depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        kind = text[token.start()]
        if kind in "{[":
            depth += 1
            if depth % _LEVELS == 0:
                open_values[-1].append(text[position : token.start()])
                open_values.append([])
                position = token.start()
        elif kind in "}]":
            if depth % _LEVELS == 0 and len(open_values) > 1:
                value = "".join((*open_values.pop(), text[position : token.end()]))
                try:
                    _ANYTHING.decode(value)
                except msgspec.MsgspecError:
                    return None
                open_values[-1].append("null")
                position = token.end()
            depth -= 1
    return "".join((*open_values[0], text[position:])) if len(open_values) == 1 else None


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
    """Return where the match of a pattern ends that begins at a position. The pattern matches an empty text as well."""
    found = pattern.match(text, position)
    assert found
    return found.end()
