"""Finished answers are built once, and take no more memory than they may."""

from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

import pytest
from starlette.types import Message, Scope

from pipeline.contract.store import FolderStore
from serving.answer import Answer, Body
from serving.answer_cache import AnswerCache, ClientGone, _Making
from serving.errors import PreconditionFailed, TooManyLargeAnswers, TooManyWideQuestions
from serving.names import Names, NamesFile
from serving.questions import Daily
from serving.reader import Confirmed, Reader
from tests.serving.conftest import NOW, Openings
from tests.serving.publishing import publish_days

NOVEMBER = date(2025, 11, 1)


def answers_over(data: Path, limit: int) -> AnswerCache:
    publish_days(data, NOVEMBER, [(f"org_{n}", NOVEMBER, n + 1, "1", "1", "1") for n in range(10)])
    reader = Reader(FolderStore(data))
    reader.refresh()
    return AnswerCache(reader, NamesFile(FolderStore(data)), limit)


def test_an_answer_is_built_once_however_many_ask_at_once(data: Path) -> None:
    async def ask(answers: AnswerCache) -> list[Answer]:
        together = await asyncio.gather(*(answers.of("org_1", Daily(NOVEMBER), NOW) for _ in range(50)))
        await asyncio.sleep(0)
        return [*together, await answers.of("org_1", Daily(NOVEMBER), NOW)]

    assert len({id(answer) for answer in asyncio.run(ask(answers_over(data, 2**20)))}) == 1


def test_what_was_not_asked_for_the_longest_time_makes_room(data: Path) -> None:
    answers = answers_over(data, 3 * 2000)

    async def ask(*organizations: str) -> list[int]:
        found = []
        for organization in organizations:
            found.append(id(await answers.of(organization, Daily(NOVEMBER), NOW)))
            await asyncio.sleep(0)
        return found

    first, second, third = asyncio.run(ask("org_1", "org_2", "org_3"))
    again, *_ = asyncio.run(ask("org_1", "org_4"))
    assert again == first
    assert answers._size <= 3 * 2500
    kept = {organization for _, organization, *_ in answers._finished}
    assert kept == {"org_3", "org_1", "org_4"}
    assert len({first, second, third}) == 3


def test_a_failed_reading_is_tried_again(data: Path) -> None:
    answers = answers_over(data, 2**20)
    path = next((data / "rollups").rglob("*.parquet"))

    async def ask() -> object:
        try:
            return await answers.of("org_1", Daily(NOVEMBER), NOW)
        except Exception as error:
            return type(error).__name__

    path.rename(data / "aside")
    assert asyncio.run(ask()) == "UsageUnavailable"
    (data / "aside").rename(path)
    assert isinstance(asyncio.run(ask()), Answer)


def test_an_answer_too_large_to_keep_is_sent_in_pieces_and_built_anew(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnswerCache, "LARGEST", 1000)
    monkeypatch.setattr("serving.answer.PIECE", 100)
    answers = answers_over(data, 2**20)
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def ask() -> list[Answer]:
        found = [await answers.of("org_1", Daily(NOVEMBER, fill=True), NOW) for _ in range(2)]
        await found[0].send({"method": "GET", "headers": []}, send)
        return found

    first, second = asyncio.run(ask())
    assert first is not second
    assert first.body == second.body
    assert answers._size == 0
    bodies = messages[1:]
    assert b"".join(message["body"] for message in bodies) == first.body
    assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [False]
    assert {len(message["body"]) for message in bodies[:-1]} == {100}


def test_a_month_that_is_being_opened_does_not_take_the_threads_from_others(data: Path, openings: Openings) -> None:
    october = date(2025, 10, 1)
    publish_days(data, october, [("org_1", october, 1, "1", "1", "1")])
    answers = answers_over(data, 2**20)
    openings.held = "2025-11"
    asking = AnswerCache.READERS + 4

    async def ask() -> list[Answer]:
        asked = [
            asyncio.create_task(answers.of(f"org_{n}", Daily(NOVEMBER), NOW)) for n in range(AnswerCache.READERS + 4)
        ]
        try:
            assert await asyncio.to_thread(openings.begun.wait, 10)
            await asyncio.wait_for(answers.of("org_1", Daily(october), NOW), 10)
            assert not any(answer.done() for answer in asked)
        finally:
            openings.go.set()
        return await asyncio.gather(*asked)

    assert len({id(answer) for answer in asyncio.run(ask())}) == asking
    assert len([path for path, _ in openings.opened if "2025-11" in str(path)]) == 1


@dataclass(frozen=True)
class Wide:
    """A question with an answer of some size, which is given when `go` is set."""

    number: int = 0
    size: int = 1000
    go: threading.Event = field(default_factory=threading.Event, compare=False)
    begun: threading.Event = field(default_factory=threading.Event, compare=False)
    is_wide: bool = True

    def basis(self, published: Confirmed, names: Names) -> Hashable:
        return 1

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:
        self.begun.set()
        assert self.go.wait(10)
        return Body(bytes(self.size), lasting=True)


def wide(number: int = 0, size: int = 1000) -> Wide:
    """One that is answered at once."""
    question = Wide(number, size)
    question.go.set()
    return question


@contextmanager
def no_collection() -> Iterator[None]:
    """An answer that nobody takes any more has to go at once."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def small(data: Path, monkeypatch: pytest.MonkeyPatch) -> AnswerCache:
    """One with room for 100,000 bytes of large answers, those beyond 10,000; half of it for an organization."""
    monkeypatch.setattr(AnswerCache, "LARGE", 10_000)
    monkeypatch.setattr(AnswerCache, "LARGEST", 10_000)
    monkeypatch.setattr(AnswerCache, "ROOM_FOR_LARGE", 100_000)
    return answers_over(data, 2**20)


def test_a_very_large_answer_is_kept_compressed_and_inflated_for_who_does_not_take_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.answer.LARGEST_PLAIN", 50_000)
    monkeypatch.setattr("serving.answer.PIECE", 10_000)
    monkeypatch.setattr("serving.answer.PACKED_PIECE", 1000)
    body = b"".join(b"%d,%d\n" % (number, number**5 % 1009) for number in range(20_000)) + bytes(1_000_000)
    answer = Answer(Body(body, lasting=True))
    assert answer.size < len(body) / 10
    assert answer.body == body
    assert answer.without_bodies().size < 5000

    def sent(method: str, *headers: tuple[bytes, bytes]) -> tuple[int, dict[bytes, bytes], list[bytes]]:
        messages: list[Message] = []

        async def send(message: Message) -> None:
            messages.append(message)

        asyncio.run(answer.send({"method": method, "headers": headers}, send))
        pieces = [message["body"] for message in messages[1:]]
        assert [message.get("more_body", False) for message in messages[1:]] == [True] * (len(pieces) - 1) + [False]
        assert max(map(len, pieces)) <= 10_000
        return messages[0]["status"], dict(messages[0]["headers"]), pieces

    for accepted, encoding in ((b"gzip", b"gzip"), (b"identity", None)):
        status, headers, pieces = sent("GET", (b"accept-encoding", accepted))
        received = b"".join(pieces)
        assert (status, headers.get(b"content-encoding")) == (200, encoding)
        assert headers[b"content-length"] == b"%d" % len(received)
        assert headers[b"etag"] == f'"{hashlib.sha256(received).hexdigest()[:32]}"'.encode()
        assert (gzip.decompress(received) if encoding else received) == body
        for method, condition in (("HEAD", ()), ("GET", ((b"if-none-match", headers[b"etag"]),))):
            assert sent(method, (b"accept-encoding", accepted), *condition)[2] == [b""]
    assert Answer(Body(body, lasting=True))._compressed.etag == answer._compressed.etag  # type: ignore[union-attr]


def test_a_large_answer_is_shared_while_anyone_takes_it_and_then_gone(small: AnswerCache) -> None:
    async def ask() -> None:
        first, second = await asyncio.gather(*(small.of("org_1", wide(size=20_000), NOW) for _ in range(2)))
        await asyncio.sleep(0.05)
        third = wide(size=20_000)
        assert await small.of("org_1", third, NOW) is first is second
        assert not third.begun.is_set()
        del first, second
        await asyncio.sleep(0.05)  # the thread that built it lets go of it as well
        assert not small._large
        fourth = wide(size=20_000)
        await small.of("org_1", fourth, NOW)
        assert fourth.begun.is_set()

    with no_collection():
        asyncio.run(ask())


def test_large_answers_have_only_so_much_room(small: AnswerCache) -> None:
    async def ask() -> None:
        held = [await small.of("org_1", wide(n, 20_000), NOW) for n in range(2)]
        for _ in range(3):
            with pytest.raises(TooManyLargeAnswers) as refused:
                await small.of("org_1", wide(2, 20_000), NOW)
            assert refused.value.headers == {"Retry-After": "1"}
        again = wide(2, 20_000)
        with pytest.raises(TooManyLargeAnswers):
            await small.of("org_1", again, NOW)
        assert not again.begun.is_set()  # how large it is was known
        await small.of("org_1", wide(3, 5000), NOW)  # not a large one
        held += [await small.of("org_2", wide(n, 20_000), NOW) for n in range(2)]  # the others' half
        with pytest.raises(TooManyLargeAnswers):
            await small.of("org_3", wide(0, 20_000), NOW)
        del refused, held
        await asyncio.sleep(0.05)
        assert (await small.of("org_3", wide(0, 200_000), NOW)).size > 100_000  # alone it may be of any size

    with no_collection():
        asyncio.run(ask())


def test_answers_that_made_room_have_only_so_much_room_while_clients_take_them(
    small: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnswerCache, "LARGEST", 30_000)
    small._limit = 50_000  # room for two of those below

    async def kept(organization: str, number: int) -> Answer:
        answer = await small.of(organization, wide(number, 20_000), NOW)
        await asyncio.sleep(0.01)  # the thread that made it lets go of it behind its answer
        return answer

    async def ask() -> None:
        held = [await kept("org_1", n) for n in range(4)]
        assert len(small._finished) == 2
        with pytest.raises(TooManyLargeAnswers):
            await kept("org_1", 4)
        assert (await kept("org_1", 0)) is held[0]  # though it is not kept any more
        assert (await kept("org_1", 3)) is held[3]
        held += [await kept("org_2", n) for n in range(2)]
        assert len(small._large) == 6
        with pytest.raises(TooManyLargeAnswers) as refused:
            await kept("org_3", 0)
        del refused, held
        await asyncio.sleep(0.05)
        for n in range(6):  # nobody takes them: they make room for each other
            await kept("org_3", n)
        for _ in range(500):
            if len(small._large) == 2:
                break
            await asyncio.sleep(0.01)
        assert len(small._large) == len(small._finished) == 2

    with no_collection():
        asyncio.run(ask())


def test_who_has_a_large_answer_is_told_so_without_its_being_built_again(small: AnswerCache) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def status(method: str, *headers: tuple[bytes, bytes]) -> tuple[int | None, bool]:
        """The status, and whether the answer was built for it."""
        await asyncio.sleep(0.02)  # the thread that built the one before lets go of it
        sent.clear()
        question = wide(size=20_000)
        scope: Scope = {"method": method, "headers": headers}
        try:
            await (await small.of("org_1", question, NOW, scope)).send(scope, send)
        except PreconditionFailed:
            return 412, question.begun.is_set()
        return sent[0]["status"], question.begun.is_set()

    async def ask() -> None:
        assert await status("GET") == (200, True)
        headers = sent[0]["headers"]
        tag = dict(headers)[b"etag"]
        assert await status("GET", (b"if-none-match", tag)) == (304, False)
        assert await status("HEAD") == (200, False)
        assert sent[0]["headers"] == headers
        assert await status("GET", (b"if-match", b'"other"')) == (412, False)
        assert await status("GET", (b"if-none-match", b'"other"')) == (200, True)
        assert sum(len(message["body"]) for message in sent[1:]) == 20_000
        assert await status("GET", (b"if-none-match", b'"other"'), (b"if-match", tag)) == (200, True)
        small.KNOWN = 1
        await small.of("org_1", wide(1, 20_000), NOW)
        assert await status("GET", (b"if-none-match", tag)) == (304, True)  # forgotten

    asyncio.run(ask())


def test_of_an_organization_one_wide_question_is_read_at_a_time(small: AnswerCache) -> None:
    async def ask() -> None:
        first, second, other = Wide(0), Wide(1), wide(0)
        asked = [asyncio.create_task(small.of("org_1", question, NOW)) for question in (first, second)]
        await asyncio.sleep(0.05)
        assert first.begun.is_set()
        assert not second.begun.is_set()
        await asyncio.wait_for(small.of("org_2", other, NOW), 5)  # finds a thread
        first.go.set()
        second.go.set()
        await asyncio.gather(*asked)
        assert second.begun.is_set()
        del asked
        await asyncio.sleep(0.05)
        assert not small._turns

    with no_collection():
        asyncio.run(ask())


class Client:
    """A connection, as ASGI sees it, that is open until `go`."""

    def __init__(self) -> None:
        self._left = asyncio.Event()
        self._begun = False

    async def receive(self) -> Message:
        if not self._begun:
            self._begun = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    def go(self) -> None:
        self._left.set()


def test_a_wide_question_is_begun_only_while_a_client_waits_for_it(small: AnswerCache) -> None:
    async def ask() -> None:
        running, shared, left = Wide(0), Wide(1), Wide(2)
        clients = [Client() for _ in range(4)]
        asked = [
            asyncio.create_task(small.of("org_1", question, NOW, None, client.receive))
            for question, client in zip((running, shared, shared, left), clients, strict=True)
        ]
        assert await asyncio.to_thread(running.begun.wait, 10)
        for client in (clients[0], clients[1], clients[3]):
            client.go()
        for number in (0, 1, 3):
            with pytest.raises(ClientGone):
                await asyncio.wait_for(asked[number], 5)
        assert not asked[2].done()
        for question in (running, shared, left):
            question.go.set()
        assert (await asked[2]).size > 0
        assert not left.begun.is_set()
        again = Wide(0)
        await small.of("org_1", again, NOW)
        assert not again.begun.is_set(), "what was running when its client went is kept"
        await asyncio.sleep(0)
        assert not small._making
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(ask())


def test_a_question_that_has_its_turn_and_no_thread_is_not_begun_for_nobody(small: AnswerCache) -> None:
    async def ask() -> None:
        running, left = [Wide(n) for n in range(AnswerCache.WIDE_READERS)], wide(9)
        asked = [asyncio.create_task(small.of(f"org_{n}", question, NOW)) for n, question in enumerate(running)]
        for question in running:
            assert await asyncio.to_thread(question.begun.wait, 10)
        client = Client()
        gone = asyncio.create_task(small.of("org_9", left, NOW, None, client.receive))
        await asyncio.sleep(0.02)
        client.go()
        with pytest.raises(ClientGone):
            await gone
        for question in running:
            question.go.set()
        await asyncio.wait_for(asyncio.gather(*asked), 5)
        await asyncio.wait_for(small.of("org_9", wide(8), NOW), 5)
        assert not left.begun.is_set()

    asyncio.run(ask())


def test_who_asks_what_was_just_abandoned_gets_it(small: AnswerCache) -> None:
    async def ask() -> None:
        running, left, again = Wide(0), Wide(1), wide(1)
        client = Client()
        first = asyncio.create_task(small.of("org_1", running, NOW))
        gone = asyncio.create_task(small.of("org_1", left, NOW, None, client.receive))
        assert await asyncio.to_thread(running.begun.wait, 10)
        client.go()
        with pytest.raises(ClientGone):
            await gone
        second = asyncio.create_task(small.of("org_1", again, NOW))
        await asyncio.sleep(0.02)
        left.go.set()  # it is the one that stands there still
        running.go.set()
        await asyncio.wait_for(asyncio.gather(first, second), 5)

        # And between its turn and the end of it: nobody waited then.
        making = _Making()
        key = next(key for key in small._finished if key[2] == again)
        small._size -= small._finished.pop(key).size
        making.made = asyncio.create_task(small._in_turn(key, lambda: pytest.fail("built for nobody"), making))
        small._making[key] = making
        making.made.add_done_callback(lambda done: small._keep(key, done))
        assert (await asyncio.wait_for(small.of("org_1", wide(1), NOW), 5)).size > 0

    asyncio.run(ask())


def test_who_sends_a_body_is_waited_for(small: AnswerCache) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def ask() -> None:
        question = Wide(0)
        asked = asyncio.create_task(small.of("org_1", question, NOW, None, receive))
        await asyncio.sleep(0.05)
        question.go.set()
        assert (await asyncio.wait_for(asked, 5)).size > 0

    asyncio.run(ask())


def test_of_an_organization_only_so_many_wide_questions_wait(small: AnswerCache) -> None:
    async def ask() -> None:
        questions = [Wide(n) for n in range(AnswerCache.WIDE_WAITING + 1)]
        clients = [Client() for _ in questions]
        asked = [asyncio.create_task(small.of("org_1", questions[0], NOW, None, clients[0].receive))]
        assert await asyncio.to_thread(questions[0].begun.wait, 10)
        for question, client in zip(questions[1:], clients[1:], strict=True):
            asked.append(asyncio.create_task(small.of("org_1", question, NOW, None, client.receive)))
        await asyncio.sleep(0.02)
        with pytest.raises(TooManyWideQuestions) as refused:
            await small.of("org_1", Wide(100), NOW)
        assert refused.value.headers == {"Retry-After": "1"}
        await asyncio.wait_for(small.of("org_2", wide(100), NOW), 5)
        asked.append(asyncio.create_task(small.of("org_1", questions[1], NOW)))  # waits for the same
        clients[2].go()
        await asyncio.wait((asked[2],), timeout=5)
        asked.append(asyncio.create_task(small.of("org_1", wide(100), NOW)))
        await asyncio.sleep(0.02)
        with pytest.raises(TooManyWideQuestions):
            await small.of("org_1", Wide(2), NOW)  # he who left has given his place away
        for question in questions:
            question.go.set()
        found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        assert [number for number, answer in enumerate(found) if not isinstance(answer, Answer)] == [2]
        assert isinstance(found[2], ClientGone)
        assert not questions[2].begun.is_set()

    asyncio.run(ask())


def test_a_cache_that_is_closed_begins_nothing_more_and_lets_its_threads_end(small: AnswerCache) -> None:
    async def ask() -> None:
        running = Wide(0)
        waiting = [Wide(0, is_wide=False) for _ in range(2)]
        asked = [asyncio.create_task(small.of("org_1", running, NOW))]
        asked += [asyncio.create_task(small.of(f"org_{n}", waiting[0], NOW)) for n in range(AnswerCache.READERS)]
        assert await asyncio.to_thread(running.begun.wait, 10)
        assert await asyncio.to_thread(waiting[0].begun.wait, 10)
        asked.append(asyncio.create_task(small.of("org_5", waiting[1], NOW)))  # for which there is no thread
        await asyncio.sleep(0.02)
        threads = [*small._readers._threads, *small._wide_readers._threads]
        small.close()
        with pytest.raises(RuntimeError):
            await small.of("org_6", wide(0), NOW)
        running.go.set()
        waiting[0].go.set()
        found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        assert [isinstance(answer, Answer) for answer in found] == [True] * (len(asked) - 1) + [False]
        assert not waiting[1].begun.is_set()
        for thread in threads:
            await asyncio.to_thread(thread.join, 5)
        assert not any(thread.is_alive() for thread in threads)

    asyncio.run(ask())
