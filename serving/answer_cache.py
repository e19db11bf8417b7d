"""The cache of finished answers: bytes built once for each organization, question and publication."""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from starlette.types import Receive, Scope

from serving.answer import Answer, Body
from serving.errors import TooManyLargeAnswers, TooManyWideQuestions
from serving.names import Names, NamesFile
from serving.reader import Confirmed, Reader

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


class _Known(NamedTuple):
    """What is kept of a large answer when nobody takes it any more."""

    size: int
    bare: Answer | None  # its headers, for whoever needs no more; None when it is not lasting


class ClientGone(Exception):
    """Whoever asked has closed the connection: there is nobody to answer."""


class _Making:
    """An answer to a wide question that is being made, for all who wait for it. None when at its turn nobody did."""

    __slots__ = ("begun", "made", "waiting")

    made: asyncio.Task[Answer | None]

    def __init__(self) -> None:
        self.waiting = 0  # clients
        self.begun = False  # whether it is being read

    async def wait(self, receive: Receive | None) -> Answer | None:
        """The answer, for one more client. Raises ClientGone, and what the making of it does."""
        self.waiting += 1
        gone = asyncio.create_task(_gone(receive)) if receive is not None else None
        try:
            await asyncio.wait((self.made, gone) if gone else (self.made,), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.waiting -= 1
            if gone is not None:
                gone.cancel()
        if not self.made.done():
            raise ClientGone
        return self.made.result()


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed the connection. Who sends a body is not watched: nobody reads it."""
    while (message := await receive())["type"] != "http.disconnect":
        if message.get("more_body"):
            await asyncio.get_running_loop().create_future()


class AnswerCache:
    """The answer to each organization's questions. Not for several event loops.

    Wide questions wait for their turn: of an organization one is read at a time, only so many wait, and one for which
    nobody waits any more is not begun.

    A large one that is not kept, or no longer, is there as long as a client takes it: whoever asks the same meanwhile
    takes the same bytes, and there is a limit to what all of them hold.
    """

    LARGEST = 8 * 2**20  # bytes of an answer that is kept; one larger would make many others be built anew
    LARGE = 2**18  # bytes; of a smaller one no more is held for a slow client than the kernel holds for him anyway
    ROOM_FOR_LARGE = 128 * 2**20  # bytes of larger ones there at once, beside the kept: an organization has half of it
    KNOWN = 1000  # large answers of which size and headers are kept, some 2 KB each
    READERS = 4  # threads that read published files
    WIDE_READERS = 2  # threads for questions that take long, so that the others do not wait for them
    WIDE_WAITING = 8  # such questions of one organization that wait for one

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
        self._making: dict[_Key, _Making] = {}
        self._large: WeakValueDictionary[_Key, Answer] = WeakValueDictionary()
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._readers = ThreadPoolExecutor(self.READERS, thread_name_prefix="reader")
        self._wide_readers = ThreadPoolExecutor(self.WIDE_READERS, thread_name_prefix="wide-reader")

    async def of(
        self,
        organization_id: str,
        question: Question,
        now: datetime,
        scope: Scope | None = None,
        receive: Receive | None = None,
    ) -> Answer:
        """The answer to the question about `organization_id`.

        Raises UsageUnavailable, TooManyLargeAnswers, TooManyWideQuestions, ClientGone, and what the question does.
        scope: the request, by GET or HEAD; the answer may be without a body when it needs none. receive: where the
        request comes from, which tells when a client goes that waits for the answer to a wide question.
        """
        published, names = self._reader.confirmed, self._names.names  # one look: all of an answer is from one version
        basis = question.basis(published, names)
        if basis is None:
            return self._built(organization_id, question, published, names, now)
        key = (type(question), organization_id, question, basis)
        answer = self._finished.get(key)
        if answer is not None:
            self._on_lookup(True)
            self._finished.move_to_end(key)
            return answer
        answer = self._large_one(key, scope)
        self._on_lookup(answer is not None)
        if answer is not None:
            return answer
        build = functools.partial(self._built, organization_id, question, published, names, now)
        if question.is_wide:
            return await self._wide(key, build, receive)
        coming = self._coming.get(key)
        if coming is None:  # else another request is having it read: wait for that one
            coming = asyncio.create_task(self._reader.files.read_in(self._readers, build))
            self._coming[key] = coming
            coming.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(coming)

    def close(self) -> None:
        """Stops the reading threads."""
        for readers in (self._readers, self._wide_readers):
            readers.shutdown(wait=False, cancel_futures=True)

    def _built(
        self, organization_id: str, question: Question, published: Confirmed, names: Names, now: datetime
    ) -> Answer:
        return Answer(question.answer(organization_id, published, names, self._reader, now), self._max_age)

    async def _wide(self, key: _Key, build: Callable[[], Answer], receive: Receive | None) -> Answer:
        """The answer to a wide question, as soon as it is made."""
        while True:
            making = self._making.get(key)
            if making is None or not making.waiting:
                waiting = [other for asked, other in self._making.items() if asked[1] == key[1] and other.waiting]
                if sum(not other.begun for other in waiting) >= self.WIDE_WAITING:
                    raise TooManyWideQuestions
            if making is None:
                making = self._making[key] = _Making()
                making.made = asyncio.create_task(self._in_turn(key, build, making))
                making.made.add_done_callback(lambda done: self._keep(key, done))
            answer = await making.wait(receive)
            if answer is not None:  # else it was left at the very moment when we came
                return answer

    async def _in_turn(self, key: _Key, build: Callable[[], Answer], making: _Making) -> Answer | None:
        """The answer to a wide question: of each organization one at a time, so that others find a thread too.

        None when nobody waits for it any more.
        """
        organization_id = key[1]

        def build_if_wanted() -> Answer | None:
            if not making.waiting:
                return None
            making.begun = True
            return build()

        turn = self._turns.get(organization_id)
        if turn is None:
            turn = self._turns[organization_id] = asyncio.Lock()  # it goes with the last one that waits for it
        async with turn:
            if not making.waiting:
                return None
            known = self._known.get(key)
            if known is not None and not self._has_room(organization_id, known.size):  # then do not even build it
                raise TooManyLargeAnswers
            answer = await self._reader.files.read_in(self._wide_readers, build_if_wanted)
            if answer is None:
                return None
            size = answer.size
            if size > self.LARGE:
                self._known[key] = _Known(size, answer.without_bodies() if answer.is_lasting else None)
                self._known.move_to_end(key)
                if len(self._known) > self.KNOWN:
                    self._known.popitem(last=False)
                if not self._has_room(organization_id, size):
                    del answer  # the exception's traceback would hold it
                    raise TooManyLargeAnswers
                self._large[key] = answer
            return answer

    def _large_one(self, key: _Key, scope: Scope | None) -> Answer | None:
        """A large answer: one that a client takes at this moment, or its headers when the request needs no more."""
        answer = self._large.get(key)
        if answer is None and scope is not None and (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            if known.bare is not None and not known.bare.needs_body(scope):
                return known.bare
        return answer

    def _has_room(self, organization_id: str, size: int) -> bool:
        """Whether another large answer may be there. The only one may, however large: else nobody ever got it."""
        sizes = [(key[1], answer.size) for key, answer in self._large.items() if key not in self._finished]
        every = sum(held for _, held in sizes)
        own = sum(held for asked_of, held in sizes if asked_of == organization_id)
        return (not every or every + size <= self.ROOM_FOR_LARGE) and (
            not own or own + size <= self.ROOM_FOR_LARGE // 2
        )

    def _keep(self, key: _Key, done: asyncio.Future[Answer] | asyncio.Future[Answer | None]) -> None:
        self._coming.pop(key, None)
        self._making.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        answer = done.result()
        if answer is None or answer.size > self.LARGEST:
            return
        self._finished[key] = answer
        self._size += answer.size
        while self._size > self._limit:
            _, dropped = self._finished.popitem(last=False)
            self._size -= dropped.size
