"""Published files are opened once, ahead where that can be, and no more of them stay open than may."""

from __future__ import annotations

import io
import time
from datetime import date
from pathlib import Path

import pytest

from pipeline.contract.store import FolderStore
from serving.errors import UsageUnavailable
from serving.keys import CreatedKey
from serving.open_files import OpenFiles
from serving.reader import Reader
from tests.conftest import Place, request
from tests.serving.conftest import LiveServer, Openings, eventually, settings_for
from tests.serving.publishing import Row, publish_days
from tests.serving.test_reader import damage_flip

NOVEMBER = date(2025, 11, 1)


def days_of(reader: Reader, month: date = NOVEMBER, organization: str = "org_b") -> list[int]:
    file = reader.confirmed.usage_of(month)
    assert file is not None
    return [day.requests for day in reader.usage_of(organization, file).days]


def is_open(path: Path) -> bool:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return path.resolve() in [link.readlink() for link in links]


def test_superseded_files_are_closed_and_whoever_is_late_opens_one_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(FolderStore(data))
    published, files = [], []
    for requests in (1, 2, 3):
        published.append(publish_days(data, NOVEMBER, [("org_b", date(2025, 11, 3), requests, "1", "1", "1")]))
        reader.refresh()
        files.append(reader.confirmed.usage_of(NOVEMBER))
        reader.usage_of("org_b", files[-1])  # type: ignore[arg-type]
    reader.refresh()
    assert [is_open(path) for path in published] == [False, True, True], "the one before, for who began with it"
    monkeypatch.setattr(OpenFiles, "LATE_SECONDS", 0.1)
    time.sleep(0.1)
    reader.refresh()
    assert [is_open(path) for path in published] == [False, False, True]
    for file in (files[0], files[1]):
        assert file is not None
        assert [day.requests for day in reader.usage_of("org_b", file).days] == [1 if file is files[0] else 2]
    reader.refresh()
    assert [is_open(path) for path in published] == [True, True, True], "not before its time"
    time.sleep(0.1)
    reader.refresh()
    assert [is_open(path) for path in published] == [False, False, True]


def test_a_ledger_of_days_that_no_version_needs_is_let_go_of(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenFiles, "LATE_SECONDS", 0)
    reader = Reader(place.store)
    for number in (1, 2):
        place.write_raw(f"{number}.jsonl", request(number))
        place.roll_up()
        reader.refresh()
        ledger = reader.confirmed.coverage_of(NOVEMBER).ledger
        assert ledger is not None
        assert reader.loaded_days(ledger, ()) == {date(2025, 11, 10)}
    assert [path for path in reader.files._open if path.startswith("rollup=day/")] == [ledger.path]


def test_only_so_many_files_are_open_and_others_are_opened_again(
    data: Path, monkeypatch: pytest.MonkeyPatch, openings: Openings
) -> None:
    monkeypatch.setattr(OpenFiles, "MOST", 2)
    months = [date(2025, month, 1) for month in (1, 2, 3, 4)]
    for month in months:
        publish_days(data, month, [("org_b", month, month.month, "1", "1", "1")])
    reader = Reader(FolderStore(data))
    reader.refresh()
    for month in months * 2:
        file = reader.confirmed.usage_of(month)
        assert file is not None
        assert [day.requests for day in reader.usage_of("org_b", file).days] == [month.month]
    assert len(openings.opened) == 2 * len(months)


def test_open_files_hold_only_so_many_row_groups_and_the_one_not_used_for_the_longest_goes(
    data: Path, monkeypatch: pytest.MonkeyPatch, openings: Openings
) -> None:
    monkeypatch.setattr(OpenFiles, "ROW_GROUPS", 25)
    january, february, march, april = months = [date(2025, month, 1) for month in (1, 2, 3, 4)]
    for month in months:
        number = 40 if month == april else 10
        rows: list[Row] = [(f"org_{n:02d}", month, month.month, "1", "1", "1") for n in range(number)]
        publish_days(data, month, rows, row_group_size=1)
    reader = Reader(FolderStore(data))
    reader.refresh()

    def opened(*asked: date) -> int:
        """How many files were opened for it."""
        openings.opened.clear()
        for month in asked:
            assert days_of(reader, month, "org_05") == [month.month]
        return len(openings.opened)

    assert opened(january, february, january) == 2
    assert opened(march) == 1
    assert opened(january, march) == 0
    assert opened(february) == 1
    assert opened(april, april) == 1, "larger than all may be, and there nevertheless"
    assert opened(january, april) == 2
    assert reader.files._row_groups == 40


def test_what_is_opened_ahead_takes_no_place_from_what_was_opened_ahead_before(
    data: Path, monkeypatch: pytest.MonkeyPatch, openings: Openings
) -> None:
    monkeypatch.setattr(OpenFiles, "ROW_GROUPS", 30)
    months = [date(2025, month, 1) for month in (9, 10, 11)]
    reader = Reader(FolderStore(data))
    for requests in (1, 2):
        paths = []
        for month in months:
            rows: list[Row] = [(f"org_{n:02d}", month, requests, "1", "1", "1") for n in range(10)]
            paths.append(publish_days(data, month, rows, row_group_size=1))
        openings.opened.clear()
        reader.refresh()
        if requests == 1:
            assert [days_of(reader, month, "org_05") for month in months] == [[1]] * 3
    assert [path for path, _ in openings.opened] == [paths[2], paths[1]]
    assert [days_of(reader, month, "org_05") for month in months] == [[2]] * 3
    assert len(openings.opened) == 3


def test_while_a_publication_is_opened_nobody_waits_for_it(data: Path, openings: Openings) -> None:
    for month in (9, 10, 11):
        day = date(2025, month, 1)
        publish_days(data, day, [(name, day, 1, "1", "1", "1") for name in ("org_b", "org_c", "org_d")])
    with LiveServer(settings_for(data, KEYTALLY_REFRESH_SECONDS="0.1")) as server:
        b, c, d = (server.create_key(name) for name in ("org_b", "org_c", "org_d"))

        def requests(key: CreatedKey, month: int = 11) -> int:
            answer = server.daily(key, f"year=2025&month={month}").json()
            return int(answer["summary"]["totalApiKeyRequests"])

        assert requests(b) == 1
        openings.held = "2025-11"
        newest = publish_days(data, NOVEMBER, [(name, NOVEMBER, 2, "1", "1", "1") for name in ("org_b", "org_c")])
        assert openings.begun.wait(10)
        assert [requests(b), requests(c), requests(d)] == [1, 1, 1], "the version before"
        assert [requests(b, 10), requests(c, 9)] == [1, 1], "months that nobody had asked for"
        assert not openings.go.is_set()
        openings.go.set()
        eventually(lambda: requests(b) == 2)
        assert requests(c) == 2
    threads = [thread for path, thread in openings.opened if path == newest]
    assert len(threads) == 1
    assert "reader" not in threads[0]


def test_what_will_be_asked_for_first_is_open_when_a_publication_is_served(data: Path, openings: Openings) -> None:
    september, october, december = (date(2025, month, 1) for month in (9, 10, 12))
    for month in (september, october, NOVEMBER):
        publish_days(data, month, [("org_b", month, 1, "1", "1", "1")])
    reader = Reader(FolderStore(data))
    reader.refresh()
    publish_days(data, NOVEMBER, [("org_b", NOVEMBER, 2, "1", "1", "1")])
    reader.refresh()
    assert not openings.opened, "nobody has asked for anything"
    assert days_of(reader, october) == [1]
    openings.opened.clear()

    paths = {month: publish_days(data, month, [("org_b", month, 3, "1", "1", "1")]) for month in (october, december)}
    publish_days(data, september, [("org_b", september, 3, "1", "1", "1")])
    reader.refresh()
    assert [path for path, _ in openings.opened] == [paths[december], paths[october]]
    assert [days_of(reader, month) for month in (october, december)] == [[3], [3]]
    assert len(openings.opened) == 2
    assert days_of(reader, september) == [3]
    assert len(openings.opened) == 3


def test_a_file_that_cannot_be_opened_holds_up_no_publication(data: Path) -> None:
    october = date(2025, 10, 1)
    for month in (october, NOVEMBER):
        publish_days(data, month, [("org_b", month, 1, "1", "1", "1")])
    reader = Reader(FolderStore(data))
    reader.refresh()
    assert [days_of(reader), days_of(reader, october)] == [[1], [1]]
    publish_days(data, october, [("org_b", october, 2, "1", "1", "1")])
    path = publish_days(data, NOVEMBER, [("org_b", NOVEMBER, 2, "1", "1", "1")])
    good = path.read_bytes()
    damage_flip(path)
    reader.refresh()
    assert (reader.failure, reader.publication.version) == (None, 4)
    with pytest.raises(UsageUnavailable, match="cannot be read"):
        days_of(reader)
    assert days_of(reader, october) == [2]
    path.write_bytes(good)
    assert days_of(reader) == [2]


def test_a_publication_does_not_wait_for_its_files_without_end(
    data: Path, monkeypatch: pytest.MonkeyPatch, openings: Openings
) -> None:
    monkeypatch.setattr(OpenFiles, "AHEAD_SECONDS", -1)
    publish_days(data, NOVEMBER, [("org_b", NOVEMBER, 1, "1", "1", "1")])
    reader = Reader(FolderStore(data))
    reader.refresh()
    assert days_of(reader) == [1]
    publish_days(data, NOVEMBER, [("org_b", NOVEMBER, 2, "1", "1", "1")])
    reader.refresh()
    assert len(openings.opened) == 1
    assert days_of(reader) == [2]


def test_where_a_file_lies_is_asked_when_it_is_opened_and_holds_up_nobody_else(data: Path) -> None:
    october = date(2025, 10, 1)
    for month in (october, NOVEMBER):
        publish_days(data, month, [("org_b", month, 1, "1", "1", "1")])
    reader = Reader(FolderStore(data))
    reader.refresh()
    placed: list[str] = []

    class Away(FolderStore):
        def fetch(self, path: Path, *, anew: bool = False) -> io.FileIO:
            placed.append(str(path.relative_to(data / "rollups")))
            if len(placed) == 1:
                with files.reading(reader.confirmed.usage_of(october)) as opened:  # type: ignore[arg-type]
                    assert opened.groups
                raise OSError("it cannot be fetched")
            return super().fetch(path, anew=anew)

    files = OpenFiles(Away(data))
    november = reader.confirmed.usage_of(NOVEMBER)
    assert november is not None
    with pytest.raises(OSError, match="it cannot be fetched"), files.reading(november):
        pass
    for _ in range(2):
        with files.reading(november) as opened:
            assert opened.groups
    assert [path == november.path for path in placed] == [True, False, True]
