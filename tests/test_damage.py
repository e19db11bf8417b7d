"""Whatever happens to the disk: the last good version or a 503, never a wrong number; and the message heals it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from pipeline.errors import KeytallyError
from tests.conftest import Place, request
from tests.crashing import (
    Scene,
    assert_nothing_unfinished,
    assert_one_version,
    failing_at,
    later_scene,
    shown,
    stepping,
)
from tests.serving.conftest import LiveServer, eventually, settings_for

NOVEMBER = ("2025-11-01", "2025-11-30")


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return later_scene(tmp_path_factory.mktemp("later"))


def keytally(place: Place, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Exit code of a command and what it says on stderr."""
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)
    done = CliRunner().invoke(cli.main, arguments)
    return done.exit_code, done.stderr


# --- a disk that is full, or cannot be written -----------------------------------------------------------------------


def test_a_disk_that_fails_at_any_kind_of_step_costs_nothing_published(
    later: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A raw file that cannot be read is held back, which is another promise.
    numbered = [(number, name) for number, name in enumerate(later.steps) if "raw" not in name]
    unharmed = set()
    for number in sorted({name: number for number, name in reversed(numbered)}.values()):
        place = later.copy(tmp_path / "data")
        with stepping(failing_at(number, lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))):
            try:
                place.roll_up()
            except Exception as error:
                assert os.strerror(errno.ENOSPC) in str(error), later.steps[number]
            else:
                unharmed.add(later.steps[number])
                assert os.strerror(errno.ENOSPC) in caplog.text, f"nobody is told of it: {later.steps[number]}"
            caplog.clear()
        assert_one_version(place, later)
        place.roll_up()
        assert shown(place) == later.after
        assert_nothing_unfinished(place)
        shutil.rmtree(place.layout.root)
    # What comes behind the commit and is no part of what is published. Any other run must not call itself well.
    assert unharmed == {
        "delete a superseded file",
        "delete an unfinished log entry",
        "write the note of the run",
        "replace a document",
    }


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    if subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nothing be mounted")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run_with_one_line_and_room_heals_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less and less room, so that it is full at one step after the other."""
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "none"):
        place = Place(tmp_path / "disk" / "data")
        place.write_raw("a.jsonl", request(1))
        place.roll_up()
        usage = place.usage()
        place.write_raw("b.jsonl", *(request(number) for number in range(2, 200)))
        filling = tmp_path / "disk" / "filling"
        refused, noted = 0, []
        for room in (0, 4_096, 16_384, 32_768, 49_152, 65_536):
            free = os.statvfs(filling.parent).f_bavail * os.statvfs(filling.parent).f_bsize
            filling.write_bytes(bytes(max(free - room, 0)))
            code, said = keytally(place, monkeypatch, "rollup")
            filling.unlink()
            if code == 0:
                break
            refused += 1
            noted.append(place.layout.failed_run.exists())
            place.layout.failed_run.unlink(missing_ok=True)
            last = said.strip().splitlines()[-1]
            assert (code, "No space left" in last or "could not" in last.lower()) == (1, True), said
            assert "Traceback" not in said
            assert place.usage() == usage
        assert refused
        assert noted[0] is False
        assert noted[-1], "what the run left unfinished took the room of its note"
        assert keytally(place, monkeypatch, "rollup")[0] == 0
        assert place.usage()["org_a", "2025-11-10"][0] == 199
        assert list(place.layout.scratch.iterdir()) == []


def test_a_folder_that_cannot_be_written_stops_the_run_and_not_the_server(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only mount: it binds root, whom permissions do not."""
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("b.jsonl", request(2))
    server = LiveServer(settings_for(place.layout.root, KEYTALLY_KEYS=str(place.layout.root.parent / "keys.sqlite")))
    root = place.layout.root
    with mounted(root, "--bind", str(root)):
        remounted = subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=False, capture_output=True)
        if remounted.returncode:
            pytest.skip("this machine lets nothing be mounted read-only")
        code, said = keytally(place, monkeypatch, "rollup")
        assert code == 1
        assert len(said.splitlines()) == 1
        assert "Read-only file system" in said
        with server:
            assert _requests(server) == 1
    assert keytally(place, monkeypatch, "rollup")[0] == 0


# --- damaged files ---------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _requests(server: LiveServer) -> int | None:
    """What org_a used in November, as answered; None for a 503. Nothing else is an answer."""
    answer = server.daily(server.create_key("org_a"))
    if answer.status_code == 503:
        return None
    assert answer.status_code == 200
    return int(answer.json()["summary"]["totalApiKeyRequests"])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("kind", ["events", "daily", "rejected", "organization_day", "api_key_month", "restatement"])
def test_a_backfill_heals_every_kind_of_file_and_no_answer_is_wrong(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    harm: Callable[[Path], None],
) -> None:
    place.write_raw("a.jsonl", request(1), "bad")
    place.roll_up()
    place.now += timedelta(days=1)
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    before = shown(place)
    folder = place.layout.root / kind
    if not folder.exists():
        folder = place.layout.rollups / f"rollup={kind}"
    needed = {path.name for path in _needed(place)}
    harmed = [path for path in folder.rglob("*.parquet") if path.name in needed]
    assert harmed
    for path in harmed:
        harm(path)
    with LiveServer(settings_for(place.layout.root)) as server:
        assert _requests(server) in ((None,) if kind == "organization_day" else (2,))
        code, said = keytally(place, monkeypatch, "backfill", "--from", NOVEMBER[0], "--to", NOVEMBER[1])
        if kind == "restatement":  # a record of the past, of which raw/ knows nothing
            assert code == 3, said
            assert "LOST what was restated of 2025-11" in said
            assert "is lost" in caplog.text
            assert place.published("restatement").empty
        else:
            assert code == 0, said
            assert shown(place) == before
        assert _requests(server) == 2
    assert keytally(place, monkeypatch, "quarantine")[0] == 0


@pytest.mark.parametrize(
    ("kind", "noticed_by", "exit_code"),
    [
        ("organization_day", ("reconcile", "--from", *NOVEMBER[:1], "--to", *NOVEMBER[1:]), 1),
        ("rejected", ("quarantine",), 3),
    ],
)
def test_the_command_that_a_message_names_heals(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    noticed_by: tuple[str, ...],
    exit_code: int,
) -> None:
    place.write_raw("a.jsonl", request(1), "bad")
    place.roll_up()
    (harmed,) = (path for path in place.layout.root.rglob("*.parquet") if kind in path.parts[-2] + path.parts[-3])
    flip(harmed)
    code, said = keytally(place, monkeypatch, *noticed_by)
    assert code == exit_code
    assert f"{harmed.relative_to(place.layout.root)} is damaged" in said
    named = said.split("run '")[1].split("'")[0].split()[1:]
    days = () if "--from" in named else ("--from", NOVEMBER[1], "--to", NOVEMBER[1])  # "over any day"
    code, said = keytally(place, monkeypatch, *named, *days)
    assert code == 0
    assert "rebuilding it" in caplog.text
    assert keytally(place, monkeypatch, *noticed_by)[0] == 0


def _needed(place: Place) -> Iterator[Path]:
    ledger = place.ledger()
    yield from (place.layout.rollups / file.path for file in ledger.publication.files.values())
    yield from (place.layout.daily_of(day.day) / day.artifact for day in ledger.days.values())
    for entry in ledger.files.values():
        yield from (place.layout.events_of(event.day) / event.artifact for event in entry.take_in.events)
        if entry.take_in.rejected:
            yield place.layout.rejected / entry.take_in.rejected


def test_a_backfill_heals_a_month_that_lost_all_its_requests(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("a.jsonl", request(1, timestamp="2025-10-01T00:00:00Z"))
    place.roll_up()
    file = place.publication().files["organization_day", date(2025, 11, 1)]
    flip(place.layout.rollups / file.path)
    with LiveServer(settings_for(place.layout.root)) as server:
        assert _requests(server) is None
        report = place.backfill(*NOVEMBER)
        assert (report.days, report.version) == ([], 2)
        assert _requests(server) == 0


def test_rejected_lines_that_cannot_be_rebuilt_are_a_finding_and_nothing_else(place: Place) -> None:
    raw = place.write_raw("a.jsonl", request(1), "bad")
    place.roll_up()
    raw.unlink()
    for path in place.layout.rejected.iterdir():
        flip(path)
    report = place.backfill(*NOVEMBER)
    assert [held.file for held in report.held_back] == ["a.jsonl"]
    assert "quarantined lines" in report.held_back[0].reason
    assert place.usage()["org_a", "2025-11-10"][0] == 1


@pytest.mark.parametrize("ledger", ["file", "day"])
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_a_damaged_ledger_says_what_helps_and_that_helps(
    place: Place, monkeypatch: pytest.MonkeyPatch, ledger: str, harm: Callable[[Path], None]
) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    for path in (place.layout.rollups / f"rollup={ledger}").rglob("*.parquet"):
        harm(path)
    with LiveServer(settings_for(place.layout.root)) as server:
        assert _requests(server) == 1
        _follow_the_message(place, monkeypatch)
        eventually(lambda: _requests(server) == 1)


def _follow_the_message(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = keytally(place, monkeypatch, "rollup")
    assert code == 1
    assert len(said.splitlines()) == 1
    assert "move the folder rollups/ away and run 'keytally rollup'" in said
    place.layout.rollups.rename(place.layout.root / "rollups.away")
    assert keytally(place, monkeypatch, "rollup")[0] == 0


def test_a_log_entry_cut_anywhere_is_an_older_version_or_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at the end of a line it is still a log entry to Delta: one that took files away and brought none."""
    place.write_raw("a.jsonl", request(1), request(2, timestamp="2025-10-31T00:00:00Z"))
    place.roll_up()
    before = shown(place)
    place.write_raw("b.jsonl", request(3))
    place.roll_up()
    after = shown(place)
    for version, right in ((1, [after]), (2, [before, after])):
        entry = place.layout.rollups / "_delta_log" / f"{version:020d}.json"
        whole = entry.read_bytes()
        ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
        for end in (0, 1, len(whole) // 2, *(end for end in ends if end < len(whole))):
            entry.write_bytes(whole[:end])
            try:
                seen = shown(place)
            except Exception as error:
                assert "move the folder rollups/ away" in str(error)
            else:
                assert {**seen, "version": 0} in [{**other, "version": 0} for other in right]
        entry.write_bytes(whole)
    entry.write_bytes(whole[: ends[4]])
    with LiveServer(settings_for(place.layout.root)) as server:
        assert _requests(server) is None
        _follow_the_message(place, monkeypatch)
        eventually(lambda: _requests(server) == 2)


def test_a_lost_log_entry_stops_no_running_server_and_heals(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    with LiveServer(settings_for(place.layout.root)) as server:
        assert _requests(server) == 2
        (place.layout.rollups / "_delta_log" / f"{0:020d}.json").write_bytes(b"{")
        assert _requests(server) == 2, "the last good version"
        _follow_the_message(place, monkeypatch)
        eventually(lambda: _requests(server) == 2)


@pytest.mark.parametrize("lost", ["", "_delta_log", f"_delta_log/{1:020d}.json"])
def test_a_table_that_was_lost_is_an_error_and_never_zeros(
    place: Place, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    (place.layout.rollups / lost).rename(place.layout.root / "lost")
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    assert "version 1 was" in CliRunner().invoke(cli.main, ["status"]).output
    with LiveServer(settings_for(place.layout.root)) as server:
        key = server.create_key(str(request()["organization_id"]))
        assert server.daily(key).status_code == 503
        place.roll_up()
        eventually(lambda: server.daily(key).status_code == 200)
        assert _requests(server) == 1


def test_a_log_that_cannot_be_listed_is_an_error_and_not_an_empty_one(place: Place) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    log = place.layout.rollups / "_delta_log"
    log.rename(place.layout.root / "aside")
    log.write_bytes(b"")  # whoever may look into every folder can be kept out of none
    with pytest.raises(KeytallyError, match="the published table cannot be read"):
        place.ledger()
    with LiveServer(settings_for(place.layout.root)) as server:
        assert server.daily(server.create_key("org_b")).status_code == 503


def test_a_file_damaged_while_it_is_open_is_an_error(place: Place) -> None:
    place.write_raw("a.jsonl", request(1), request(2, organization_id="org_b"))
    place.roll_up()
    file = place.layout.rollups / place.publication().files["organization_day", date(2025, 11, 1)].path
    whole = file.read_bytes()
    with LiveServer(settings_for(place.layout.root)) as server:
        assert _requests(server) == 1
        flip(file)
        assert server.daily(server.create_key("org_b")).status_code == 503
        file.write_bytes(whole)
        assert server.daily(server.create_key("org_b")).status_code == 200
