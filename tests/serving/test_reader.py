"""Reading one organization's days from what is published: right rows, or an error."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.store import FolderStore
from serving.checked_file import CheckedFile
from serving.errors import UsageUnavailable
from serving.reader import Reader
from serving.usage import Usage
from tests.conftest import Place, request
from tests.serving.conftest import LiveServer, eventually, settings_for
from tests.serving.publishing import Row, publish_days, rollup_rows

NOVEMBER = date(2025, 11, 1)
ROW: Row = ("org_b", date(2025, 11, 3), 5, "1.5", "2", "3")


def usage(data: Path, organization: str, month: date = NOVEMBER) -> list[Usage]:
    reader = Reader(FolderStore(data))
    reader.refresh()
    file = reader.confirmed.usage_of(month)
    assert file is not None
    return list(reader.usage_of(organization, file).days)


@pytest.mark.parametrize("row_group_size", [1, 2, 3, 7, 30, 31, 16_384])
def test_every_organization_gets_its_own_days_wherever_row_groups_end(data: Path, row_group_size: int) -> None:
    rows: list[Row] = [
        (f"org_{n:02d}", date(2025, 11, day), n * 100 + day, f"{n}.5", "0", "0")
        for n in range(0, 20, 2)
        for day in range(1, 1 + (n * 7) % 30 + 1)
    ]
    publish_days(data, NOVEMBER, rows, row_group_size=row_group_size)
    reader = Reader(FolderStore(data))
    reader.refresh()
    file = reader.confirmed.usage_of(NOVEMBER)
    assert file is not None
    for organization in ("", "a", "z", *(f"org_{n:02d}" for n in range(20))):
        assert [(organization, *day) for day in reader.usage_of(organization, file).days] == [
            (name, day, requests, Decimal(cost), Decimal(synapses), Decimal(neurons))
            for name, day, requests, cost, synapses, neurons in rows
            if name == organization
        ]


@pytest.mark.parametrize("lost", ["the newest entry", "the log", "the table"])
def test_a_version_that_is_gone_is_an_error_and_not_an_older_one(place: Place, lost: str) -> None:
    for number in (1, 2):
        place.write_raw(f"{number}.jsonl", request(number))
        place.roll_up()
    running = Reader(place.store)
    running.refresh()
    log = place.layout.rollups / "_delta_log"
    if lost == "the newest entry":
        (log / f"{2:020d}.json").unlink()
    else:
        shutil.rmtree(log if lost == "the log" else place.layout.rollups)
    started = Reader(place.store)
    started.refresh()
    with pytest.raises(UsageUnavailable):
        started.confirmed.usage_of(NOVEMBER)
    assert "version 2 was published, and the log ends at" in (started.failure or "")
    running.refresh()
    assert running.publication.version == 2, "the last good version"
    place.roll_up()
    for reader in (started, running):
        reader.refresh()
        file = reader.confirmed.usage_of(NOVEMBER)
        assert reader.failure is None and file
        assert [day.requests for day in reader.usage_of("org_a", file).days] == [2]


def test_a_version_that_was_lost_and_committed_anew_is_another_one(place: Place) -> None:
    for number in (1, 2):
        place.write_raw(f"{number}.jsonl", request(number))
        place.roll_up()
    reader = Reader(place.store)
    reader.refresh()
    (place.layout.rollups / "_delta_log" / f"{2:020d}.json").unlink()
    place.write_raw("3.jsonl", *(request(number) for number in (3, 4, 5)))
    assert place.roll_up().version == 2
    reader.refresh()
    file = reader.confirmed.usage_of(NOVEMBER)
    assert file and [day.requests for day in reader.usage_of("org_a", file).days] == [5]


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_exchange(path: Path) -> None:
    other = rollup_rows([("org_b", date(2025, 11, 3), 6, "1.5", "2", "3")])
    pq.write_table(other, path)


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_exchange, Path.unlink])
def test_a_damaged_file_is_an_error_until_it_is_restored(data: Path, damage: object) -> None:
    path = publish_days(data, NOVEMBER, [ROW])
    shutil.copy2(path, data / "good")
    assert callable(damage)
    damage(path)
    with LiveServer(settings_for(data)) as server:
        key = server.create_key("org_b")
        assert [server.daily(key).status_code for _ in range(3)] == [503, 503, 503]
        assert server.daily(key, "year=2025&month=10").status_code == 200
        shutil.copy2(data / "good", path)
        assert server.daily(key).json()["summary"]["totalApiKeyRequests"] == 5


def damage_cost(path: Path) -> None:
    other = publish_days(path.parent / "other", NOVEMBER, [("org_b", date(2025, 11, 3), 5, "2.5", "2", "3")])
    assert other.stat().st_size == path.stat().st_size
    path.write_bytes(other.read_bytes())


def damage_cut(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize("block", [16, CheckedFile.BLOCK])
@pytest.mark.parametrize("damage", [damage_cost, damage_cut])
def test_a_file_that_is_damaged_in_place_while_it_is_open_is_an_error_until_it_is_restored(
    data: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], block: int
) -> None:
    monkeypatch.setattr(CheckedFile, "BLOCK", block)
    path = publish_days(data, NOVEMBER, [ROW])
    good, status = path.read_bytes(), path.stat()
    reader = Reader(FolderStore(data))
    reader.refresh()
    file = reader.confirmed.usage_of(NOVEMBER)
    assert file is not None
    days = reader.usage_of("org_b", file).days
    assert [day.cost for day in days] == [Decimal("1.5")]
    damage(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(3):
        with pytest.raises(UsageUnavailable, match="cannot be read") as refusal:
            reader.usage_of("org_b", file)
        assert "not those that were published" in str(refusal.value.reason)
    path.write_bytes(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_ino == status.st_ino
    assert reader.usage_of("org_b", file).days == days


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (rollup_rows([ROW]).drop(["neurons"]), "neurons is missing"),
        (rollup_rows([ROW]).set_column(4, "cost", pa.array([1.5])), "cost is missing, or is not decimal128"),
        (
            pa.concat_tables([rollup_rows([("z", date(2025, 11, 1), 1, "1", "1", "1")]), rollup_rows([ROW])]),
            "not sorted",
        ),
        (rollup_rows([ROW, ROW]), "listed twice"),
        (rollup_rows([("org_b", date(2025, 12, 3), 5, "1.5", "2", "3")]), "not of this month"),
        (rollup_rows([("org_b", date(2025, 11, 3), None, "1", "2", "3")]), "a value is missing"),  # type: ignore[list-item]
    ],
)
def test_a_file_that_is_not_what_we_write_is_an_error(data: Path, content: pa.Table, why: str) -> None:
    publish_days(data, NOVEMBER, content, row_group_size=1)
    with pytest.raises(UsageUnavailable) as refusal:
        usage(data, "org_b")
    assert why in str(refusal.value.reason)
    assert refusal.value.system_message == "Published usage data cannot be read"


def test_more_than_31_days_of_an_organization_are_an_error(data: Path) -> None:
    rows: list[Row] = [("org_b", date(2025, 12, 1 + day % 31), 1, "1", "1", "1") for day in range(32)]
    publish_days(data, date(2025, 12, 1), rows)
    with pytest.raises(UsageUnavailable) as refusal:
        usage(data, "org_b", date(2025, 12, 1))
    assert refusal.value.status == 503
    assert "more than 31 days" in str(refusal.value.reason)


def test_a_table_that_cannot_be_read_at_the_start_is_an_error_and_never_zeros(data: Path) -> None:
    publish_days(data, NOVEMBER, [ROW])
    log = next((data / "rollups" / "_delta_log").glob("*1.json"))
    good = log.read_bytes()
    log.write_bytes(b"{rubbish")
    with LiveServer(settings_for(data)) as server:
        key = server.create_key("org_b")
        assert server.daily(key).status_code == 503
        assert server.daily(key, "year=2025&month=10").status_code == 503
        log.write_bytes(good)
        assert eventually(lambda: server.daily(key).status_code == 200) < 1


def test_the_last_good_version_stays_when_the_table_goes_away(data: Path) -> None:
    publish_days(data, NOVEMBER, [ROW])
    reader = Reader(FolderStore(data))
    reader.refresh()
    before = reader.publication
    (data / "rollups" / "_delta_log").rename(data / "aside")
    reader.refresh()
    reader.refresh()
    assert reader.publication == before
    assert reader.failure is not None
    (data / "aside").rename(data / "rollups" / "_delta_log")
    publish_days(data, NOVEMBER, [ROW, ("org_c", date(2025, 11, 3), 5, "1.5", "2", "3")])
    reader.refresh()
    assert reader.failure is None
    assert reader.publication.version == before.version + 1


def test_another_table_at_the_same_place_is_seen(data: Path, tmp_path: Path) -> None:
    for _ in range(3):
        publish_days(data, NOVEMBER, [ROW])
        publish_days(data, NOVEMBER, [])
    reader = Reader(FolderStore(data))
    reader.refresh()
    assert reader.publication.version == 6
    publish_days(tmp_path / "restored", NOVEMBER, [ROW])
    shutil.rmtree(data / "rollups")
    (tmp_path / "restored" / "rollups").rename(data / "rollups")
    reader.refresh()
    assert reader.publication.version == 1
    file = reader.confirmed.usage_of(NOVEMBER)
    assert file is not None
    assert [day.requests for day in reader.usage_of("org_b", file).days] == [5]


def test_the_log_says_once_which_version_is_served(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "keytally.reader")
    reader = Reader(FolderStore(data))
    for _ in range(2):
        reader.refresh()
    for requests in (1, 2):
        publish_days(data, NOVEMBER, [("org_b", NOVEMBER, requests, "1", "1", "1")])
        for _ in range(2):
            reader.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        "nothing is published yet: every answer is a zero that is not loaded",
        "serving version 1",
        "serving version 2",
    ]
