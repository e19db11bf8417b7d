"""A restore from what docs/operations.md says to back up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Place, request
from tests.pricing import book_of
from tests.test_formats import COLUMNS, HEADER

ROOT = Path(__file__).parent.parent


def to_back_up() -> list[str]:
    """The paths that the docs list."""
    section = (ROOT / "docs/operations.md").read_text(encoding="utf-8").partition("## Backup\n")[2]
    listed = re.search(r"\n    (raw .*)\n", section)
    assert listed
    return listed[1].split()


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KEYTALLY_DATA": str(root), "KEYTALLY_THREADS": "1"}
    program = [sys.executable, "-c", "from cli import main; main()", *arguments]
    return subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def priced(place: Place) -> Place:
    """A data root with everything that a deployment may keep in it."""
    select = ", ".join(f"{expression} as {name}" for name, expression in COLUMNS.items())
    (place.layout.formats).mkdir()
    (place.layout.formats / "shop.sql").write_text(f"{HEADER}select {select} from records\n")
    place.layout.prices.write_text(book_of("gpt,2025-01-01,1,1,CHF", "eu,2025-01-01,1,1,EUR"))
    place.layout.rates.write_text("day,from,to,rate\n2025-11-10,EUR,CHF,0.9\n")
    place.layout.key_names.write_text("organization_id,api_key_id,name\norg_a,key_1,Production\n")
    for number, model in enumerate(("gpt", "eu")):
        record = {**request(number, cost=...), "model": model, "input_tokens": 1000, "output_tokens": 10}
        place.write_raw(f"shop/{model}.jsonl", record, "bad")
    place.write_raw("b.jsonl", request(3))
    done = command(place.layout.root, "rollup")
    assert done.returncode == 0, done.stdout + done.stderr
    assert command(place.layout.root, "keys", "create", "--org", "org_a").returncode == 0
    return place


def restored(place: Place, to: Path, *without: str) -> Place:
    to.mkdir()
    for name in to_back_up():
        found = place.layout.root / name
        if found.is_dir():
            shutil.copytree(found, to / name, dirs_exist_ok=True)
        elif found.exists():
            shutil.copyfile(found, to / name)
    for name in without:
        shutil.rmtree(to / name)
    return Place(to)


@pytest.mark.parametrize("without", [(), ("books",)], ids=["whole", "books lost"])
def test_what_the_list_of_a_backup_names_restores_in_one_go(
    priced: Place, tmp_path: Path, without: tuple[str, ...]
) -> None:
    place = restored(priced, tmp_path / "restored", *without)
    version = priced.publication().version
    for arguments in (
        ("rollup",),
        ("reconcile", "--from", "2025-11-01", "--to", "2025-11-30"),
        ("keys", "list"),
        ("quarantine",),
        ("backfill", "--from", "2025-11-01", "--to", "2025-11-30"),
        ("reconcile", "--from", "2025-11-01", "--to", "2025-11-30"),
    ):
        done = command(place.layout.root, *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    assert place.publication().version == version
    assert place.usage() == priced.usage()
    assert sorted(path.name for path in place.layout.books.iterdir()) == sorted(
        path.name for path in priced.layout.books.iterdir()
    )


def test_a_book_is_not_put_back_whose_content_is_not_in_force(priced: Place) -> None:
    shutil.rmtree(priced.layout.books)
    priced.layout.prices.write_text(
        book_of("gpt,2025-01-01,1,1,CHF", "eu,2025-01-01,1,1,EUR", "new,2025-01-01,1,1,CHF")
    )
    assert command(priced.layout.root, "rollup").returncode == 0
    names = [path.name.partition("-")[0] for path in priced.layout.books.iterdir()]
    assert names == ["fx"]
