"""Finished answers: bytes built once for each organization, question and publication."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol

from serving.answer import Answer, Body
from serving.names import Names, NamesFile
from serving.reader import BeingOpened, Confirmed, Reader

_Key = tuple[type, str, Hashable, Hashable]


class Question(Hashable, Protocol):
    """What is asked of an organization's usage: a value, equal to another one of its type that asks the same."""

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:
        """What the answer depends on, beside the question and the organization; None when on the time of asking.

        Then there is nothing to read for it.
        """

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:
        """The body of the answer. Raises a Refusal."""


class Answers:
    """The answer to each organization's questions. Not for several event loops."""

    LARGEST = 8 * 2**20  # bytes of an answer that is kept; one larger would make many others be built anew
    READERS = 4  # threads that read published files
    WIDE_READERS = 2  # threads for questions that take long, so that the others do not wait for them

    def __init__(
        self,
        reader: Reader,
        names: NamesFile,
        limit: int,
        max_age: int = 0,
        on_lookup: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """limit: bytes of finished answers to keep. max_age: seconds a client may keep one without asking.

        on_lookup: is told of each published month asked for whether its answer was found among the finished ones.
        """
        self._reader = reader
        self._names = names
        self._limit = limit
        self._max_age = max_age
        self._on_lookup = on_lookup
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
            return self._built(organization_id, question, published, names, now)
        key = (type(question), organization_id, question, basis)
        answer = self._finished.get(key)
        self._on_lookup(answer is not None)
        if answer is not None:
            self._finished.move_to_end(key)
            return answer
        coming = self._coming.get(key)
        if coming is None:  # else another request is having it read: wait for that one
            coming = asyncio.create_task(self._read(organization_id, question, published, names, now))
            self._coming[key] = coming
            coming.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(coming)

    def close(self) -> None:
        """Stops the reading threads."""
        for readers in (self._readers, self._wide_readers):
            readers.shutdown(wait=False, cancel_futures=True)

    async def _read(
        self, organization_id: str, question: Question, published: Confirmed, names: Names, now: datetime
    ) -> Answer:
        readers = self._wide_readers if question.is_wide else self._readers
        asked = (organization_id, question, published, names, now)
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(readers, self._built_without_waiting, *asked)
            except BeingOpened as being:  # wait here: were it in the threads, no other month could be read meanwhile
                await asyncio.wrap_future(being.opened)

    def _built_without_waiting(
        self, organization_id: str, question: Question, published: Confirmed, names: Names, now: datetime
    ) -> Answer:
        with self._reader.without_waiting():
            return self._built(organization_id, question, published, names, now)

    def _built(
        self, organization_id: str, question: Question, published: Confirmed, names: Names, now: datetime
    ) -> Answer:
        return Answer(question.answer(organization_id, published, names, self._reader, now), self._max_age)

    def _keep(self, key: _Key, done: asyncio.Future[Answer]) -> None:
        del self._coming[key]
        if done.cancelled() or done.exception() is not None or done.result().size > self.LARGEST:
            return
        self._finished[key] = done.result()
        self._size += done.result().size
        while self._size > self._limit:
            _, dropped = self._finished.popitem(last=False)
            self._size -= dropped.size
