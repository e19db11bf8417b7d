"""Finished answers are built once, and take no more memory than they may."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path

from pipeline.contract.layout import Layout
from serving.answer import Answer
from serving.answers import Answers
from serving.reader import Reader
from tests.serving.conftest import NOW
from tests.serving.publishing import publish_days

NOVEMBER = date(2025, 11, 1)


def answers_over(data: Path, limit: int) -> Answers:
    publish_days(data, NOVEMBER, [(f"org_{n}", NOVEMBER, n + 1, "1", "1", "1") for n in range(10)])
    reader = Reader(Layout(data))
    reader.refresh()
    return Answers(reader, limit)


def test_an_answer_is_built_once_however_many_ask_at_once(data: Path) -> None:
    async def ask(answers: Answers) -> list[Answer]:
        together = await asyncio.gather(*(answers.of("org_1", NOVEMBER, NOW) for _ in range(50)))
        await asyncio.sleep(0)
        return [*together, await answers.of("org_1", NOVEMBER, NOW)]

    assert len({id(answer) for answer in asyncio.run(ask(answers_over(data, 2**20)))}) == 1


def test_what_was_not_asked_for_the_longest_time_makes_room(data: Path) -> None:
    answers = answers_over(data, 3 * 2000)

    async def ask(*organizations: str) -> list[int]:
        found = []
        for organization in organizations:
            found.append(id(await answers.of(organization, NOVEMBER, NOW)))
            await asyncio.sleep(0)
        return found

    first, second, third = asyncio.run(ask("org_1", "org_2", "org_3"))
    again, *_ = asyncio.run(ask("org_1", "org_4"))
    assert again == first
    assert answers._size <= 3 * 2000
    kept = {organization for organization, *_ in answers._finished}
    assert kept == {"org_3", "org_1", "org_4"}
    assert len({first, second, third}) == 3


def test_a_failed_reading_is_tried_again(data: Path) -> None:
    answers = answers_over(data, 2**20)
    path = next((data / "rollups").rglob("*.parquet"))

    async def ask() -> object:
        try:
            return await answers.of("org_1", NOVEMBER, NOW)
        except Exception as error:
            return type(error).__name__

    path.rename(data / "aside")
    assert asyncio.run(ask()) == "UsageUnavailable"
    (data / "aside").rename(path)
    assert isinstance(asyncio.run(ask()), Answer)
