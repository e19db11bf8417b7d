"""Raw lines as they may be shown: without the keys in clear that their format hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

MASK = "(masked)"
LOOKED_AT = 64 * 2**10  # characters of a line in which keys are looked for, which is more than is shown

_HASH = re.compile(r"\b(sha256|sha1|md5\w*|hash)\s*\(", re.IGNORECASE)
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)(?:"|$)', re.DOTALL)
_NAMED_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"\s*:\s*"((?:[^"\\]|\\.)*+)(?:"|$)', re.DOTALL)
_WORD = re.compile(r'[^\s,;"]+')
_SHORT_WORD = re.compile(r'[^\s,;":{}\[\]]+')  # a number of JSON is one
_LEAST_CHARACTERS = 6  # of a key that is masked wherever it stands; a shorter one may be a part of something else


def masked(text: str, values: Iterable[str], sql: str, *, is_json: bool = True) -> str:
    """Return a line with each key masked that the format's SQL hashes.

    A string or word is such a key if its SHA-256 is in what the SQL made of the line. Where the SQL made nothing, or a
    hash of something that does not stand in the line as it is, every string is masked whose name the SQL mentions: any
    of them may be the key. Of a row of CSV, which has no names, every cell is masked then.

    Args:
        text: The line, not yet cut to what is shown: a key must not be cut in two.
        values: Everything that the SQL made of the line, apart from request ids; nothing if the line is no record.
        sql: The text of the format.
        is_json: False for a row of CSV.
    """
    functions = {name.lower() for name in _HASH.findall(sql)}
    if not functions:
        return text
    made = list(values)
    digests = {digest for value in made for digest in _DIGEST.findall(value)}
    secrets = {each: digest for each in _candidates(text) if (digest := _sha256(each)) in digests}
    # A digest that stands in the line was not made by the SQL: the producer hashes its keys itself.
    unexplained = digests - set(secrets.values()) - set(_DIGEST.findall(text.lower()))
    if not made or unexplained or functions != {"sha256"}:
        if not is_json:
            return _WORD.sub(MASK, text)
        secrets |= dict.fromkeys(_of_names_in(sql, text), "")
    in_order = sorted(secrets, key=len, reverse=True)
    return _without(in_order, _STRING.sub(lambda match: _without_in_string(in_order, match), text))


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
        if len(secret) >= _LEAST_CHARACTERS:
            text = text.replace(secret, MASK)
    return text


def _without_in_string(secrets: Sequence[str], match: re.Match[str]) -> str:
    """A string of JSON, as it is written unless a key is in it: a key may be written with escapes."""
    value = _decoded(match[1])
    shown = MASK if value in secrets else _without(secrets, value)
    if shown == value:
        return match[0]
    return json.dumps(shown, ensure_ascii=False) if match[0].endswith('"') else f'"{shown}'


def _candidates(text: str) -> Iterator[str]:
    """Every string of JSON and every word."""
    for match in _STRING.finditer(text):
        if value := _decoded(match[1]):
            yield value
            yield from value.split()
    yield from _WORD.findall(text)
    yield from _SHORT_WORD.findall(text)


def _of_names_in(sql: str, text: str) -> Iterator[str]:
    """The strings whose names the SQL mentions."""
    for name, value in _NAMED_STRING.findall(text):
        if value and _decoded(name) in sql:
            yield _decoded(value)


def _decoded(written: str) -> str:
    try:
        return str(json.loads(f'"{written}"', strict=False))
    except ValueError:  # it ends within an escape
        return written


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
