"""Every promise of docs/guarantees.md names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_that_a_promise_names_exists() -> None:
    page = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert named
    for path, name in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{path} has no {name}"


def test_every_row_of_promises_names_a_test() -> None:
    page = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise \|.*?\n\|---.*?\n(.*?)\n\n", page, re.DOTALL | re.MULTILINE)
    assert len(tables) >= 7
    for row in "\n".join(tables).splitlines():
        assert "`tests/" in row, row
