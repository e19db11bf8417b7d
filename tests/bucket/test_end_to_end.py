"""The end-to-end test of real traces, once more with the data root in a bucket."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket import s3
from tests.bucket.conftest import BucketPlace
from tests.test_end_to_end import (
    Record,
    Served,
    assert_every_organization_month_equals_a_recount,
    read_traces,
    rolled_up_and_served,
    with_copies,
)


@pytest.fixture(scope="module")
def lines() -> list[Record]:
    return with_copies(read_traces(), random.Random(2023))


@pytest.fixture(scope="module")
def served(lines: list[Record], server: s3.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # As the documents of other tools ask for.
    place = BucketPlace(server, tmp_path_factory.mktemp("machine"), "traces", AWS_ALLOW_HTTP="true")

    def deliver(folder: Path, to: str) -> None:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            place.write_raw(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    yield from rolled_up_and_served(lines, deliver, place.environment, tmp_path_factory.mktemp("traces"))


def test_every_organization_month_equals_an_independent_recount(lines: list[Record], served: Served) -> None:
    assert_every_organization_month_equals_a_recount(lines, served)
