"""A data root that is missing, unmounted or misspelt is an error, and nothing is written into it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import main
from pipeline.contract.settings import Settings, SettingsError
from tests.conftest import Place, request

Keytally = Callable[..., Result]
RANGE = ("--from", "2025-11-01", "--to", "2025-11-30")
RUNS = [("rollup",), ("backfill", *RANGE), ("reconcile", *RANGE)]
LOOKS = [("status",), ("quarantine",), ("history", *RANGE), ("usage", "--org", "org_a")]


@pytest.fixture
def keytally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keytally:
    """The command in a folder of its own, with `data` as its data root."""
    for name in list(os.environ):
        if name.startswith("KEYTALLY_"):
            monkeypatch.delenv(name)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(main, list(arguments), env=environment)

    return run


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("arguments", [*RUNS, *LOOKS], ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("there", [True, False], ids=["empty", "no folder"])
def test_a_root_without_anything_is_an_error_and_nothing_is_written(
    keytally: Keytally, there: bool, arguments: tuple[str, ...]
) -> None:
    if there:
        Path("data").mkdir()
    before = everything_in(Path())
    done = keytally(*arguments)
    assert done.exit_code == 1
    assert everything_in(Path()) == before
    (said,) = done.stderr.splitlines()
    if arguments[0] != "usage":
        for words in (f"if a disk belongs at {Path('data').absolute()}, mount it", "KEYTALLY_DATA", "create "):
            assert words in said


@pytest.mark.parametrize("arguments", RUNS, ids=lambda arguments: arguments[0])
def test_a_published_root_whose_raw_is_gone_is_an_error_and_stays_as_it_is(
    keytally: Keytally, place: Place, arguments: tuple[str, ...]
) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.layout.raw.rename(place.layout.root.parent / "unmounted")
    before = {path: path.stat().st_mtime_ns for path in everything_in(place.layout.root)}
    done = keytally(*arguments, KEYTALLY_DATA=str(place.layout.root))
    assert done.exit_code == 1
    assert f"there is no {place.layout.raw}, but {place.layout.root} has rollups/: bring it back" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in everything_in(place.layout.root)} == before
    assert keytally("status", KEYTALLY_DATA=str(place.layout.root)).exit_code == 0, "what is published can be looked at"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"/srv/x"', "the quotation marks are part of the value"),
        ("'/srv/x'", "the quotation marks are part of the value"),
        ("~/x", "nothing has expanded '~'"),
        ("$HOME/x", "nothing has expanded the variable in it"),
        ("/srv/${USER}/x", "nothing has expanded the variable in it"),
    ],
)
def test_a_value_that_no_shell_has_read_is_named_as_such(keytally: Keytally, value: str, words: str) -> None:
    for arguments in [*RUNS, *LOOKS[:3], ("keys", "create", "--org", "org_a"), ("serve",)]:
        done = keytally(*arguments, KEYTALLY_DATA=value)
        assert (done.exit_code, words in done.stderr) == (1, True), done.stderr
    assert everything_in(Path()) == []


def test_a_folder_that_is_really_named_like_that_is_used(keytally: Keytally) -> None:
    Path("~/raw").mkdir(parents=True)
    assert keytally("rollup", KEYTALLY_DATA="~").exit_code == 0


def test_quotation_marks_are_named_in_every_setting() -> None:
    for variable, value in (("KEYTALLY_DATA", '"s3://bucket/prefix"'), ("KEYTALLY_CURRENCY", "'EUR'")):
        with pytest.raises(SettingsError, match=f"{variable} is .*; the quotation marks are part of the value"):
            Settings.from_environment({variable: value})


def test_an_empty_raw_is_no_error(keytally: Keytally) -> None:
    Path("data/raw").mkdir(parents=True)
    done = keytally("rollup")
    assert (done.exit_code, done.output) == (0, "Nothing is published yet. Put request logs below data/raw.\n")


def test_a_file_is_inspected_without_a_root_and_a_format_is_not_written(keytally: Keytally) -> None:
    Path("a.jsonl").write_text(json.dumps({"when": "2025-11-10T12:00:00Z", "who": "org_a", "id": "1"}) + "\n")
    before = everything_in(Path())
    assert keytally("inspect", "a.jsonl").exit_code == 0
    done = keytally("inspect", "a.jsonl", "--write", "mine")
    assert (done.exit_code, "there is no data/raw" in done.stderr) == (1, True)
    assert everything_in(Path()) == before


def test_keys_create_says_where_it_wrote(keytally: Keytally, tmp_path: Path) -> None:
    Path("data/raw").mkdir(parents=True)
    done = keytally("keys", "create", "--org", "org_a", "--json")
    assert done.stderr == f"Wrote 1 key to {Path('data/keys.sqlite').absolute()}.\n"
    assert json.loads(done.stdout)["organization_id"] == "org_a"
    Path("orgs").write_text("org_a\norg_b\n")
    elsewhere = tmp_path / "keys.sqlite"
    done = keytally("keys", "create", "--orgs", "orgs", KEYTALLY_KEYS=str(elsewhere))
    assert done.stderr == f"Wrote 2 keys to {elsewhere}.\n"


def test_keys_created_below_a_mount_point_are_told_of(keytally: Keytally) -> None:
    Path("data").mkdir()
    said = keytally("keys", "create", "--org", "org_a").stderr
    assert f"{Path('data').absolute()} has neither raw/ nor rollups/: if a disk belongs there" in said


def test_the_sentence_of_a_failed_flow_is_the_command_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flows: Any = pytest.importorskip("flows")
    monkeypatch.setenv("KEYTALLY_DATA", str(tmp_path))
    monkeypatch.setattr(flows, "create_markdown_artifact", lambda *_, **__: None)
    monkeypatch.setattr(flows, "create_progress_artifact", lambda *_, **__: None)
    state = flows._carry_out(flows.roll_up, flows.STAGES, "again")
    assert state.is_failed()
    assert "to begin here, create " in state.message
    assert state.message.endswith("Then start the run again.")
    assert everything_in(tmp_path) == []
