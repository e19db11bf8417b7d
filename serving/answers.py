"""Finished answers: bytes built once for each organization, month and publication."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime

from pipeline.contract.published import PublishedFile
from serving.answer import Answer
from serving.coverage import Basis, cover
from serving.models import MonthOfDays, Usage
from serving.reader import Reader

_Key = tuple[str, str, datetime, Basis | None]


class Answers:
    """The answer for each organization and month. Not for several event loops."""

    READERS = 4  # threads that read published files

    def __init__(
        self, reader: Reader, limit: int, max_age: int = 0, on_lookup: Callable[[bool], None] = lambda _: None
    ) -> None:
        """limit: bytes of finished answers to keep. max_age: seconds a client may keep one without asking.

        on_lookup: is told of each published month asked for whether its answer was found among the finished ones.
        """
        self._reader = reader
        self._limit = limit
        self._max_age = max_age
        self._on_lookup = on_lookup
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
            return Answer(_body(organization_id, month, (), now, basis, ()), lasting=False)
        key = (organization_id, file.path, file.published_at, basis)
        answer = self._finished.get(key)
        self._on_lookup(answer is not None)
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
        body = _body(organization_id, month, usage, file.published_at, basis, loaded)
        # Coverage changes without a publication of this month, when a day is over or a run confirms.
        modified = file.published_at if basis is None else None
        return Answer(body, lasting=True, max_age=self._max_age, modified=modified)

    def _keep(self, key: _Key, done: asyncio.Future[Answer]) -> None:
        del self._coming[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._finished[key] = done.result()
        self._size += done.result().size
        while self._size > self._limit:
            _, dropped = self._finished.popitem(last=False)
            self._size -= dropped.size


def _body(
    organization_id: str,
    month: date,
    usage: Sequence[Usage],
    generated_at: datetime,
    basis: Basis | None,
    loaded: Collection[date],
) -> bytes:
    coverage = cover(basis, loaded, usage) if basis else None
    return MonthOfDays.of(organization_id, month, usage, generated_at.astimezone(UTC), coverage).json_bytes()
