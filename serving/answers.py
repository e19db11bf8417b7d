"""Finished answers: bytes built once for each organization, question and publication."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol

from starlette.types import Scope, Send

from serving.names import Names, NamesFile
from serving.reader import Confirmed, Reader

Header = tuple[bytes, bytes]
_Key = tuple[type, str, Hashable, Hashable]

PIECE = 2**18  # bytes of a body that are sent at once
_ETAG = re.compile(rb'(?:W/)?("[^"]*")')


class Answer:
    """A body with its headers, ready to be sent."""

    __slots__ = ("body", "etag", "headers", "headers_304")

    def __init__(self, body: bytes, *, lasting: bool, content_type: bytes = b"application/json") -> None:
        """lasting: the body stays as it is until the next publication, so that a client may keep and revalidate it."""
        self.body = body
        self.etag: bytes | None = None
        headers: list[Header] = [(b"vary", b"X-API-Key, Api-Key, Accept")]
        if lasting:
            self.etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode("ascii")
            headers += [(b"cache-control", b"private, max-age=0, must-revalidate"), (b"etag", self.etag)]
        else:
            headers += [(b"cache-control", b"no-store")]
        self.headers_304 = headers
        self.headers = [
            *headers,
            (b"content-type", content_type),
            (b"content-length", str(len(body)).encode("ascii")),
        ]

    @property
    def size(self) -> int:
        """Bytes of memory, about: the body, and the objects around it."""
        return len(self.body) + 1500

    async def send(self, scope: Scope, send: Send) -> None:
        """Sends it: 200, or 304 when the client has it. HEAD gets the headers alone."""
        if self.etag is not None and _has(scope["headers"], self.etag):
            status, headers, body = 304, self.headers_304, b""
        else:
            status, headers, body = 200, self.headers, b"" if scope["method"] == "HEAD" else self.body
        await send({"type": "http.response.start", "status": status, "headers": headers})
        sent = 0
        while len(body) - sent > PIECE:  # as the client takes it: the server would copy the whole of it
            await send({"type": "http.response.body", "body": body[sent : sent + PIECE], "more_body": True})
            sent += PIECE
        await send({"type": "http.response.body", "body": body[sent:] if sent else body})


class Question(Hashable, Protocol):
    """What is asked of an organization's usage: a value, equal to another one of its type that asks the same."""

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:
        """What the answer depends on, beside the question and the organization; None when on the time of asking.

        Then there is nothing to read for it.
        """

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Answer:
        """The answer. Raises a Refusal."""


class Answers:
    """The answer to each organization's questions. Not for several event loops."""

    LIMIT = 64 * 2**20  # bytes of finished answers to keep
    LARGEST = 8 * 2**20  # bytes of an answer that is kept; one larger would make many others be built anew
    READERS = 4  # threads that read published files
    WIDE_READERS = 2  # threads for questions that take long, so that the others do not wait for them

    def __init__(self, reader: Reader, names: NamesFile, limit: int = LIMIT) -> None:
        self._reader = reader
        self._names = names
        self._limit = limit
        self._size = 0
        self._finished: OrderedDict[_Key, Answer] = OrderedDict()
        self._coming: dict[_Key, asyncio.Future[Answer]] = {}
        self._readers = ThreadPoolExecutor(self.READERS, thread_name_prefix="reader")
        self._wide_readers = ThreadPoolExecutor(self.WIDE_READERS, thread_name_prefix="wide-reader")

    async def of(self, organization_id: str, question: Question, now: datetime) -> Answer:
        """The answer to the question about `organization_id`. Raises UsageUnavailable, and what the question does."""
        published, names = self._reader.confirmed, self._names.names  # one look: all of an answer is from one version
        basis = question.basis(published, names)
        if basis is None:
            return question.answer(organization_id, published, names, self._reader, now)
        key = (type(question), organization_id, question, basis)
        answer = self._finished.get(key)
        if answer is not None:
            self._finished.move_to_end(key)
            return answer
        coming = self._coming.get(key)
        if coming is None:  # else another request is having it read: wait for that one
            coming = asyncio.get_running_loop().run_in_executor(
                self._wide_readers if question.is_wide else self._readers,
                question.answer,
                *(organization_id, published, names, self._reader, now),
            )
            self._coming[key] = coming
            coming.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(coming)

    def close(self) -> None:
        """Stops the reading threads."""
        for readers in (self._readers, self._wide_readers):
            readers.shutdown(wait=False, cancel_futures=True)

    def _keep(self, key: _Key, done: asyncio.Future[Answer]) -> None:
        del self._coming[key]
        if done.cancelled() or done.exception() is not None or done.result().size > self.LARGEST:
            return
        self._finished[key] = done.result()
        self._size += done.result().size
        while self._size > self._limit:
            _, dropped = self._finished.popitem(last=False)
            self._size -= dropped.size


def _has(headers: Iterable[Header], etag: bytes) -> bool:
    """Whether `If-None-Match` names the tag. Weak comparison: W/ makes no difference."""
    for name, value in headers:
        if name == b"if-none-match" and (value.strip() == b"*" or etag in _ETAG.findall(value)):
            return True
    return False
