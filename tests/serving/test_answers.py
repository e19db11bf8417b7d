"""Finished answers are built once, and take no more memory than they may."""

from __future__ import annotations

import asyncio
import gc
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
from serving.answers import Answers
from serving.errors import PreconditionFailed, TooManyLargeAnswers
from serving.names import Names, NamesFile
from serving.questions import Daily
from serving.reader import Confirmed, Reader
from tests.serving.conftest import NOW, Openings
from tests.serving.publishing import publish_days

NOVEMBER = date(2025, 11, 1)


def answers_over(data: Path, limit: int) -> Answers:
    publish_days(data, NOVEMBER, [(f"org_{n}", NOVEMBER, n + 1, "1", "1", "1") for n in range(10)])
    reader = Reader(FolderStore(data))
    reader.refresh()
    return Answers(reader, NamesFile(FolderStore(data)), limit)


def test_an_answer_is_built_once_however_many_ask_at_once(data: Path) -> None:
    async def ask(answers: Answers) -> list[Answer]:
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
    monkeypatch.setattr(Answers, "LARGEST", 1000)
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

    async def ask() -> list[Answer]:
        asked = [asyncio.create_task(answers.of(f"org_{n}", Daily(NOVEMBER), NOW)) for n in range(Answers.READERS + 4)]
        try:
            assert await asyncio.to_thread(openings.begun.wait, 10)
            await asyncio.wait_for(answers.of("org_1", Daily(october), NOW), 10)
            assert not any(answer.done() for answer in asked)
        finally:
            openings.go.set()
        return await asyncio.gather(*asked)

    assert len({id(answer) for answer in asyncio.run(ask())}) == Answers.READERS + 4
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
def small(data: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Answers of which those beyond 10,000 bytes are large, with room for 100,000, of each organization 50,000."""
    monkeypatch.setattr(Answers, "LARGE", 10_000)
    monkeypatch.setattr(Answers, "LARGEST", 10_000)
    monkeypatch.setattr(Answers, "ROOM_FOR_LARGE", 100_000)
    return answers_over(data, 2**20)


def test_a_large_answer_is_shared_while_anyone_takes_it_and_then_gone(small: Answers) -> None:
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


def test_large_answers_have_only_so_much_room(small: Answers) -> None:
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
    small: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "LARGEST", 30_000)
    small._limit = 50_000  # room for two of those below

    async def kept(organization: str, number: int) -> Answer:
        answer = await small.of(organization, wide(number, 20_000), NOW)
        await asyncio.sleep(0)
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
        assert len(small._large) == len(small._finished) == 2

    with no_collection():
        asyncio.run(ask())


def test_who_has_a_large_answer_is_told_so_without_its_being_built_again(small: Answers) -> None:
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


def test_of_an_organization_one_wide_question_is_read_at_a_time(small: Answers) -> None:
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
