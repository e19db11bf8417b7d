"""Arrow reads what Python opened in no thread of its own: such a thread, caught at it while a command ends, would take
the process down after everything was said (`terminate called without an active exception`)."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import recount_lines, rows, tabular
from pipeline.contract.store import FolderStore
from pipeline.history import restatements
from pipeline.ledger import read_ledger
from pipeline.quarantine import Quarantine
from pipeline.usage import read_usage
from tests.conftest import Place, request

FIRST, LAST = date(2025, 11, 1), date(2025, 11, 30)


class _Watched(io.FileIO):
    """A file that knows which threads read it."""

    threads: set[int]

    def readinto(self, buffer: Any, /) -> int | None:
        self.threads.add(threading.get_ident())
        return super().readinto(buffer)

    def read(self, size: int | None = -1, /) -> bytes:
        self.threads.add(threading.get_ident())
        return super().read(-1 if size is None else size)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Those that read a watched file, or one that a store fetched."""
    found: set[int] = set()
    monkeypatch.setattr(_Watched, "threads", found, raising=False)
    monkeypatch.setattr(FolderStore, "fetch", lambda _self, path, anew=False: _Watched(path))
    return found


@pytest.mark.parametrize(
    "read",
    [
        lambda place: restatements(place.store, FIRST, LAST, None),
        lambda place: read_ledger(place.store),
        lambda place: read_usage(place.layout.root, "org_a", FIRST, LAST),
        lambda place: list(Quarantine(place.store).lines()),
        lambda place: Quarantine(place.store).summary(3),
    ],
    ids=["history", "ledger", "usage", "quarantine", "summary of the quarantine"],
)
def test_what_was_published_is_read_in_this_thread(
    place: Place, threads: set[int], read: Callable[[Place], object]
) -> None:
    place.write_raw("a.jsonl", request(1), "no request")
    place.roll_up()
    place.now += timedelta(days=30)
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    threads.clear()
    assert read(place) is not None
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize(
    "read",
    [
        lambda source: rows.ParquetRows(source).batches(),
        tabular.parquet_records,
        recount_lines.rows,
    ],
    ids=["native", "mapped", "recount"],
)
def test_a_raw_file_is_read_in_this_thread(tmp_path: Path, threads: set[int], read: Callable[[io.FileIO], Any]) -> None:
    pq.write_table(pa.Table.from_pylist([request(number) for number in range(5_000)]), tmp_path / "a.parquet")
    assert list(read(_Watched(tmp_path / "a.parquet")))
    assert threads == {threading.get_ident()}
