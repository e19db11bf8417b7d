"""What a run finds out before it begins to work, and what it says of files that others made unreadable."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pwd
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from pipeline.contract.store import StoreError
from pipeline.errors import KeytallyError
from pipeline.reconcile import reconcile
from pipeline.run import start_run
from tests.conftest import Place, lines, request

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def reason(place: Place) -> str:
    (held,) = place.roll_up().held_back
    return held.reason


def test_a_zstd_window_that_is_too_large_is_not_called_corrupt(place: Place) -> None:
    path = place.layout.raw / "a.jsonl.zst"
    with zstd.ZstdFile(path, "w", options={zstd.CompressionParameter.window_log: 28}) as file:
        file.write(lines(request(1)))
    assert "window" in reason(place) and "--long=27" in reason(place) and "corrupt" not in reason(place)
    with zstd.ZstdFile(path, "w", options={zstd.CompressionParameter.window_log: 27}) as file:
        file.write(lines(request(1)))
    assert place.roll_up().held_back == []


def test_text_behind_the_end_of_a_gzip_file_is_said_to_stand_there(place: Place) -> None:
    place.write_raw("a.jsonl.gz", gzip.compress(lines(request(1))) + lines(request(2)))
    assert "behind the end of the gzip data" in reason(place)
    place.write_raw("a.jsonl.gz", b"no gzip at all")
    assert reason(place) == "corrupt: not gzip"


def test_a_foreign_commit_is_named_and_to_move_its_entry_away_loses_nothing(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    published = place.publication()
    table = DeltaTable(str(place.layout.rollups))
    row = dict.fromkeys(field.name for field in table.schema().fields)
    arrow = pa.Table.from_pylist(
        [{**row, "rollup": "organization_day", "month": "2025-11"}], schema=pa.schema(table.schema().to_arrow())
    )
    for _ in range(2):
        write_deltalake(str(place.layout.rollups), arrow, mode="append")
    with pytest.raises(KeytallyError, match=r"another program .* version 3 \(WRITE.*\), 2 \(WRITE") as raised:
        place.roll_up()
    for version in (2, 3):
        assert str(place.layout.log_entry(version)) in str(raised.value)
        place.layout.log_entry(version).unlink()
    place.roll_up()
    assert place.publication() == published


def test_a_damaged_entry_of_our_own_is_not_called_another_program_s(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    entry = place.layout.log_entry(1)
    entry.write_text("".join(line for line in entry.open() if '"remove"' not in line and '"month=' not in line))
    kept = [line for line in entry.read_text().splitlines(keepends=True) if '"add"' not in line]
    entry.write_text("".join(kept))
    with pytest.raises(KeytallyError) as raised:
        place.roll_up()
    assert "another program" not in str(raised.value)


def test_a_file_system_without_hard_links_is_found_before_the_work_begins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    place.write_raw("a.jsonl", request(1))
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match=r"has no hard links .* Nothing was changed"):
        place.roll_up()
    assert not place.layout.events.exists()
    assert list(place.layout.scratch.iterdir()) == []


@pytest.mark.parametrize("folder", ["events/day=2025-11-10", "rollups/_delta_log", "scratch", "."])
def test_a_folder_that_a_run_as_root_made_is_named_with_the_owner_it_needs(
    place: Place, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("b.jsonl", request(2))
    closed = place.layout.root / folder
    honest = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and honest(path, mode))
    owner, user = pwd.getpwuid(closed.stat().st_uid).pw_name, pwd.getpwuid(os.geteuid()).pw_name
    with pytest.raises(StoreError) as raised:
        place.roll_up()
    assert str(raised.value).startswith(f"{closed} belongs to {owner}, and {user} may not write into it")
    assert f"chown -R {user} {closed}" in str(raised.value)
    with start_run(place.settings, lambda: place.now) as run:  # what only reads goes on
        assert reconcile(run, place.now.date(), place.now.date()).equal


def test_the_sentence_of_a_foreign_commit_is_one_line(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    add = next(line for line in place.layout.log_entry(1).read_text().splitlines() if '"add"' in line)
    info = json.dumps({"commitInfo": {"operation": "A\nB\x1b[31m"}})
    place.layout.log_entry(2).write_text(f"{info}\n{add}\n".replace("part-", "other-"))
    with pytest.raises(KeytallyError, match="another program") as raised:
        place.roll_up()
    assert str(raised.value).isprintable()
