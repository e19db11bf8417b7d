"""Where deltalake panics, a run ends with a sentence, and a server keeps its last good version."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from deltalake import DeltaTable

from pipeline.errors import KeytallyError
from serving.reader import Reader
from tests.conftest import Place, request


class PanicException(BaseException):
    """As deltalake raises it: no Exception, and of a class that nothing exports."""


@pytest.fixture
def panicking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The calls of deltalake that panic; to be filled by the test."""
    calls: list[str] = []

    def panicking_at(name: str, honest: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **given: object) -> object:
            if name in calls:
                raise PanicException("range end index 4 out of range")
            return honest(*args, **given)

        return call

    for name in ("__init__", "update_incremental", "get_add_actions"):
        monkeypatch.setattr(DeltaTable, name, panicking_at(name, getattr(DeltaTable, name)))
    yield calls


@pytest.mark.parametrize("call", ["__init__", "get_add_actions"])
def test_a_panic_stops_a_run_with_a_sentence(place: Place, panicking: list[str], call: str) -> None:
    place.write_raw("a.jsonl", request())
    place.roll_up()
    panicking.append(call)
    with pytest.raises(KeytallyError, match="the log is damaged: range end index"):
        place.roll_up()


def test_a_server_survives_a_panic_and_recovers(place: Place, panicking: list[str]) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    reader = Reader(place.store)
    reader.refresh()
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    for call in ("update_incremental", "__init__", "get_add_actions"):
        panicking.append(call)
        reader.refresh()
        assert "the log is damaged" in str(reader.failure)
        assert reader.publication.version == 1, "the last good version"
        panicking.clear()
    reader.refresh()
    assert (reader.failure, reader.publication.version) == (None, 2)
