"""Finished answers: bytes built once for each organization, month and publication."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime

from starlette.types import Scope, Send

from pipeline.contract.published import PublishedFile
from serving.coverage import Basis, cover
from serving.models import MonthOfDays, Usage
from serving.reader import Reader

Header = tuple[bytes, bytes]
_Key = tuple[str, str, datetime, Basis | None]

_ETAG = re.compile(rb'(?:W/)?("[^"]*")')


class Answer:
    """A body with its headers, ready to be sent."""

    __slots__ = ("body", "etag", "headers", "headers_304")

    def __init__(self, body: bytes, *, lasting: bool) -> None:
        """lasting: the body stays as it is until the next publication, so that a client may keep and revalidate it."""
        self.body = body
        self.etag: bytes | None = None
        headers: list[Header] = [(b"vary", b"X-API-Key, Api-Key")]
        if lasting:
            self.etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode("ascii")
            headers += [(b"cache-control", b"private, max-age=0, must-revalidate"), (b"etag", self.etag)]
        else:
            headers += [(b"cache-control", b"no-store")]
        self.headers_304 = headers
        self.headers = [
            *headers,
            (b"content-type", b"application/json"),
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
        await send({"type": "http.response.body", "body": body})


class Answers:
    """The answer for each organization and month. Not for several event loops."""

    LIMIT = 64 * 2**20  # bytes of finished answers to keep
    READERS = 4  # threads that read published files

    def __init__(self, reader: Reader, limit: int = LIMIT) -> None:
        self._reader = reader
        self._limit = limit
        self._size = 0
        self._finished: OrderedDict[_Key, Answer] = OrderedDict()
        self._coming: dict[_Key, asyncio.Future[Answer]] = {}
        self._readers = ThreadPoolExecutor(self.READERS, thread_name_prefix="reader")

    async def of(self, organization_id: str, month: date, now: datetime, *, coverage: bool = False) -> Answer:
        """What `organization_id` used in `month` (its first day), with coverage if asked. Raises UsageUnavailable."""
        confirmed = self._reader.confirmed  # one look: all of an answer is from one version
        file = confirmed.usage_of(month)
        basis = confirmed.coverage_of(month) if coverage else None
        if file is None:
            return _answer(organization_id, month, (), now, basis, (), lasting=False)
        key = (organization_id, file.path, file.published_at, basis)
        answer = self._finished.get(key)
        if answer is not None:
            self._finished.move_to_end(key)
            return answer
        coming = self._coming.get(key)
        if coming is None:  # else another request is having it read: wait for that one
            coming = asyncio.get_running_loop().run_in_executor(
                self._readers, self._read, organization_id, month, file, basis
            )
            self._coming[key] = coming
            coming.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(coming)

    def close(self) -> None:
        """Stops the reading threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, organization_id: str, month: date, file: PublishedFile, basis: Basis | None) -> Answer:
        usage = self._reader.usage_of(organization_id, file)
        loaded = self._reader.loaded_days(basis.ledger, usage) if basis else ()
        return _answer(organization_id, month, usage, file.published_at, basis, loaded, lasting=True)

    def _keep(self, key: _Key, done: asyncio.Future[Answer]) -> None:
        del self._coming[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._finished[key] = done.result()
        self._size += done.result().size
        while self._size > self._limit:
            _, dropped = self._finished.popitem(last=False)
            self._size -= dropped.size


def _answer(
    organization_id: str,
    month: date,
    usage: Sequence[Usage],
    generated_at: datetime,
    basis: Basis | None,
    loaded: Collection[date],
    *,
    lasting: bool,
) -> Answer:
    coverage = cover(basis, loaded, usage) if basis else None
    body = MonthOfDays.of(organization_id, month, usage, generated_at.astimezone(UTC), coverage)
    return Answer(body.json_bytes(), lasting=lasting)


def _has(headers: Iterable[Header], etag: bytes) -> bool:
    """Whether `If-None-Match` names the tag. Weak comparison: W/ makes no difference."""
    for name, value in headers:
        if name == b"if-none-match" and (value.strip() == b"*" or etag in _ETAG.findall(value)):
            return True
    return False
