"""Finished answers are built once, and take no more memory than they may."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path

import pytest
from starlette.types import Message

from pipeline.contract.layout import Layout
from serving.answer import Answer
from serving.answers import Answers
from serving.names import NamesFile
from serving.questions import Daily
from serving.reader import Reader
from tests.serving.conftest import NOW, Openings
from tests.serving.publishing import publish_days

NOVEMBER = date(2025, 11, 1)


def answers_over(data: Path, limit: int) -> Answers:
    publish_days(data, NOVEMBER, [(f"org_{n}", NOVEMBER, n + 1, "1", "1", "1") for n in range(10)])
    reader = Reader(Layout(data))
    reader.refresh()
    return Answers(reader, NamesFile(data / "key_names.csv"), limit)


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
