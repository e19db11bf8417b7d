"""Costs are labelled with the currency that they are published in, whatever the server's own setting says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from pipeline.run import start_run
from pipeline.update import roll_up
from tests.conftest import Place, request
from tests.serving.conftest import NOW, LiveServer, eventually, settings_for
from tests.serving.test_pages import Visitor

PATHS = ("/usage/org_a/2025-11", "/usage/org_a/2025", "/overview/2025-11", "/openapi.json")


@pytest.fixture
def server(place: Place) -> Iterator[LiveServer]:
    with LiveServer(settings_for(place.layout.root, KEYTALLY_CURRENCY="EUR")) as server:
        yield server


def currencies(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 200
    return set(re.findall(r"\b(CHF|EUR|USD)\b", answer.text))


def test_costs_are_labelled_with_the_currency_that_is_published(place: Place, server: LiveServer) -> None:
    visitor = Visitor(server, server.keys.create_operator("platform", now=NOW))
    for path in PATHS:  # nothing is published: no costs, or what they are going to be in
        assert currencies(visitor.get(path)) <= {"EUR"}
    assert currencies(visitor.get("/openapi.json")) == {"EUR"}
    place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-10-10T12:00:00Z"))
    place.roll_up()
    eventually(lambda: currencies(visitor.get(PATHS[0])) == {"CHF"})
    for path in PATHS:
        assert currencies(visitor.get(path)) == {"CHF"}
    months = {name for name in place.artifacts() if "rollup=organization" in name}
    other = Place(place.layout.root, KEYTALLY_CURRENCY="USD")
    with start_run(other.settings, lambda: other.now) as run:
        roll_up(run, new_currency=True)
    assert months == {name for name in place.artifacts() if "rollup=organization" in name}, "no number is another"
    eventually(lambda: currencies(visitor.get(PATHS[0])) == {"USD"})
    for path in PATHS:
        assert currencies(visitor.get(path)) == {"USD"}


def test_a_version_whose_note_is_lost_still_says_its_currency(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.layout.last_run.unlink()
    with LiveServer(settings_for(place.layout.root, KEYTALLY_CURRENCY="EUR")) as server:
        assert currencies(server.client.get("/openapi.json")) == {"CHF"}
