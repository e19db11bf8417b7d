"""One finished answer: its bytes, plain and compressed, and what HTTP says of keeping and comparing them (RFC 9110)."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator, Sequence
from copy import copy
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple

from isal import igzip, isal_zlib
from starlette.types import Scope, Send

from serving.errors import PreconditionFailed

Header = tuple[bytes, bytes]

VARY = b"X-API-Key, Api-Key, Accept, Accept-Encoding"
SMALLEST_COMPRESSED = 1000  # bytes; a shorter body fits one packet either way
LARGEST_PLAIN = 8 * 2**20  # bytes; of a longer body the compressed one alone is kept
PIECE = 2**18  # bytes of a body that are sent at once
PACKED_PIECE = 2**15  # bytes of a packed body that are looked at at once
_ETAG = re.compile(rb'(W/)?("[^"]*")')
_QUALITY = re.compile(r"q=(0(\.[0-9]{0,3})?|1(\.0{0,3})?)", re.IGNORECASE)
_LOOKED_AT = frozenset(
    {b"accept-encoding", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"}
)


class _Representation:
    """A body as it is sent, with its headers. packed: gzip of it, where that is kept in its place."""

    __slots__ = ("body", "etag", "headers", "headers_304", "packed")

    def __init__(self, body: bytes, shared: Sequence[Header], content: Sequence[Header], *, lasting: bool) -> None:
        self.body = body
        self.packed = b""
        self.etag = b""
        self.headers_304 = [*shared]
        if lasting:
            # Of the very bytes that are sent: whatever compressed them, equal tags mean equal bytes.
            self.etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode("ascii")
            self.headers_304.append((b"etag", self.etag))
        self.headers = [*self.headers_304, *content, (b"content-length", b"%d" % len(body))]

    def without_body(self) -> _Representation:
        """The headers alone."""
        bare = copy(self)
        bare.body = bare.packed = b""
        return bare

    def inflated(self) -> Iterator[bytes]:
        """The body, from what is packed, some of it at a time."""
        inflating = isal_zlib.decompressobj(wbits=31)
        for start in range(0, len(self.packed), PACKED_PIECE):
            packed = self.packed[start : start + PACKED_PIECE]
            while packed:
                yield inflating.decompress(packed, PIECE)
                packed = inflating.unconsumed_tail
        yield inflating.flush()


class Body(NamedTuple):
    """What is answered.

    lasting: it stays as it is until the next publication, so that a client may keep and revalidate it.
    modified: when a lasting body last changed, if one instant says so. unpriced: requests of the organization's month
    of which no cost is known.
    """

    content: bytes
    lasting: bool
    modified: datetime | None = None
    content_type: bytes = b"application/json"
    unpriced: int = 0


class Answer:
    """A body with its headers, ready to be sent."""

    __slots__ = ("__weakref__", "_compressed", "_modified", "_plain")

    def __init__(self, answered: Body, max_age: int = 0) -> None:
        """max_age: seconds a client may keep a lasting body without asking.

        A body of some length has a compressed twin, made here, once: call it off the event loop. A very long one is
        kept as that alone, and inflated for whoever does not take gzip.
        """
        body, lasting, modified, content_type, unpriced = answered
        control = b"private, max-age=%d, must-revalidate" % max_age if lasting else b"no-store"
        shared = [(b"cache-control", control), (b"vary", VARY)]
        if unpriced:
            shared.append((b"x-usage-unpriced", b"%d" % unpriced))
        content: list[Header] = [(b"content-type", content_type)]
        self._modified = modified.astimezone(UTC).replace(microsecond=0) if lasting and modified else None
        if self._modified is not None:
            content.append((b"last-modified", format_datetime(self._modified, usegmt=True).encode("ascii")))
        self._plain = _Representation(body, shared, content, lasting=lasting)
        self._compressed: _Representation | None = None
        if lasting and len(body) >= SMALLEST_COMPRESSED:
            content.append((b"content-encoding", b"gzip"))
            if len(body) <= LARGEST_PLAIN:
                smaller = gzip.compress(body, 6, mtime=0)  # 1: half as small for little time; 9: no smaller
            else:
                smaller = igzip.compress(body, 1, mtime=0)  # a fifth of zlib's time
                self._plain.body, self._plain.packed = b"", smaller
            self._compressed = _Representation(smaller, shared, content, lasting=lasting)

    @property
    def body(self) -> bytes:
        """The body, not compressed."""
        return b"".join(self._plain.inflated()) if self._plain.packed else self._plain.body

    @property
    def size(self) -> int:
        """Bytes of memory, about: the bodies, and the objects around them."""
        return len(self._plain.body) + (len(self._compressed.body) + 700 if self._compressed else 0) + 1400

    @property
    def is_lasting(self) -> bool:
        """Whether a client may keep and revalidate it."""
        return bool(self._plain.etag)

    def without_bodies(self) -> Answer:
        """One that can be sent to whoever needs no body."""
        bare = copy(self)
        bare._plain = self._plain.without_body()
        bare._compressed = self._compressed.without_body() if self._compressed else None
        return bare

    def needs_body(self, scope: Scope) -> bool:
        """Whether the body has to be sent: it is asked for, and the client does not have it."""
        try:
            return bool(scope["method"] != "HEAD" and self._chosen(scope)[1] == 200)
        except PreconditionFailed:
            return False

    async def send(self, scope: Scope, send: Send) -> None:
        """Sends it: 200, or 304 when the client has it. HEAD gets the headers alone. Raises PreconditionFailed.

        scope: a request by GET or HEAD.
        """
        chosen, status = self._chosen(scope)
        headers, body = (chosen.headers, chosen.body) if status == 200 else (chosen.headers_304, b"")
        if scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if chosen.packed and status == 200 and scope["method"] != "HEAD":
            for piece in chosen.inflated():  # as the client takes it
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        sent = 0
        while len(body) - sent > PIECE:  # as the client takes it: the server would copy the whole of it
            await send({"type": "http.response.body", "body": body[sent : sent + PIECE], "more_body": True})
            sent += PIECE
        await send({"type": "http.response.body", "body": body[sent:] if sent else body})

    def _chosen(self, scope: Scope) -> tuple[_Representation, int]:
        """What is sent, and its status. Raises PreconditionFailed."""
        asked: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _LOOKED_AT:
                asked[name] = asked[name] + b", " + value if name in asked else value
        chosen = self._plain
        if asked:
            compressed = self._compressed
            if compressed is not None and b"accept-encoding" in asked and takes_gzip(asked.pop(b"accept-encoding")):
                chosen = compressed
            if asked:
                return self._conditional(asked, chosen)
        return chosen, 200

    def _conditional(self, asked: dict[bytes, bytes], chosen: _Representation) -> tuple[_Representation, int]:
        """What is sent, and its status, in the order of RFC 9110, 13.2.2."""
        # Whoever takes gzip takes the plain body too: its tag is as good.
        choices = (chosen,) if chosen is self._plain else (chosen, self._plain)
        if (tags := asked.get(b"if-match")) is not None:
            if not any(_matches(tags, choice, strongly=True) for choice in choices):
                raise PreconditionFailed
        elif (moment := _instant(asked.get(b"if-unmodified-since"))) and self._modified and self._modified > moment:
            raise PreconditionFailed
        if (tags := asked.get(b"if-none-match")) is not None:
            for choice in choices:
                if choice.etag and _matches(tags, choice):
                    return choice, 304
        elif (moment := _instant(asked.get(b"if-modified-since"))) and self._modified and self._modified <= moment:
            return chosen, 304
        return chosen, 200


def _matches(tags: bytes, representation: _Representation, *, strongly: bool = False) -> bool:
    """Whether the list of entity tags in a header names the representation. strongly: W/ makes a tag another one."""
    if (tags and tags == representation.etag) or tags.strip() == b"*":  # most clients send the one they were given
        return True
    return any(tag == representation.etag and not (strongly and weak) for weak, tag in _ETAG.findall(tags))


@lru_cache(maxsize=256)
def takes_gzip(accepted: bytes) -> bool:
    """Whether a client that sends this `Accept-Encoding` takes gzip: named, or by `*`, and not with q=0."""
    named: dict[str, bool] = {}
    for part in accepted.decode("latin-1").lower().split(","):
        coding, *parameters = (word.strip() for word in part.split(";"))
        quality = _QUALITY.fullmatch(parameters[0]) if parameters else None
        named[coding] = not parameters or (quality is not None and float(quality[1]) > 0)
    return named.get("gzip", named.get("x-gzip", named.get("*", False)))


@lru_cache(maxsize=256)
def _instant(stated: bytes | None) -> datetime | None:
    """The instant that a header states; None when there is none, or none that can be read: then it asks for nothing."""
    if stated is None:
        return None
    try:
        instant = parsedate_to_datetime(stated.decode("latin-1"))
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
