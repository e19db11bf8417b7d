"""Every promise of docs/guarantees.md names a test that pytest runs, or says what that test needs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LIMITS = re.compile(r"(Known limits?|Limits?):")
COLLECT = """
import json, sys
import pytest

class Collected:
    def pytest_collection_finish(self, session):
        found = [
            (str(item.path), item.originalname, sorted({mark.name for mark in item.iter_markers()}))
            for item in session.items
        ]
        print("COLLECTED" + json.dumps(found))

sys.exit(pytest.main(["--collect-only", "-qq", "-m", "", *sys.argv[1:]], plugins=[Collected()]))
"""


class Promise(NamedTuple):
    """A row of a table of promises, or an item of a list of them."""

    section: str
    text: str

    @property
    def tests(self) -> list[tuple[str, str]]:
        """The tests that it names: file and function."""
        return NAMED.findall(self.text)


def promises_of(page: str) -> Iterator[Promise]:
    """What a page promises: all rows under `| promise | test |`, and all items of lists that list no limits."""
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        name, _, text = section.partition("\n")
        kind = ""
        for block in re.split(r"\n{2,}", text.strip()):
            first = block.partition("\n")[0]
            if LIMITS.match(first):
                kind = "limits"
            elif first == "| promise | test |":
                yield from (Promise(name, row) for row in block.splitlines()[2:])
            elif first.startswith("- ") and kind != "limits":
                yield from (Promise(name, item) for item in re.split(r"\n(?=- )", block))
            elif not first.startswith(("|", "- ")):
                kind = ""


PROMISES = list(promises_of(PAGE))


@cache
def collected() -> dict[tuple[str, str], list[set[str]]]:
    """The marks of every test of the files that the page names, one set for each of its parameters."""
    files = sorted({file for promise in PROMISES for file, _ in promise.tests})
    done = subprocess.run([sys.executable, "-c", COLLECT, *files], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("COLLECTED"))
    found: dict[tuple[str, str], list[set[str]]] = {}
    for path, name, marks in json.loads(line.removeprefix("COLLECTED")):
        found.setdefault((str(Path(path).relative_to(ROOT)), name), []).append(set(marks))
    return found


@cache
def skipping(file: str) -> frozenset[str]:
    """The functions of a file that may skip the test they are called from, directly or by way of others."""
    functions = {
        node.name: ast.unparse(node)
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    found = {name for name, source in functions.items() if re.search(r"pytest\.(skip|importorskip|xfail)\(", source)}
    while (
        more := {name for name, source in functions.items() if any(f"{other}(" in source for other in found - {name})}
        - found
    ):
        found |= more
    return frozenset(found)


def test_every_section_promises_something_and_every_promise_names_a_test() -> None:
    sections = set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE))
    assert {promise.section for promise in PROMISES} == sections
    assert len(PROMISES) > 60
    for promise in PROMISES:
        assert promise.tests, promise


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.text[:60])
def test_the_tests_of_a_promise_are_run_or_it_says_what_they_need(promise: Promise) -> None:
    for file, name in promise.tests:
        marks = collected().get((file, name))
        assert marks, f"pytest collects no {name} in {file}"
        assert not any({"skip", "xfail"} & of_one for of_one in marks), f"{name} is switched off"
        if all("slow" in of_one for of_one in marks):
            assert "`pytest -m slow`" in promise.text, (
                f"{name} runs with pytest -m slow alone, and the page says nothing"
            )
        if name in skipping(file) or all("skipif" in of_one for of_one in marks):
            assert re.search(r"\bneeds? ", promise.text), f"{name} may be skipped, and the page does not say when"


def test_a_list_is_read_as_promises_and_its_limits_are_not() -> None:
    page = """# A page

## One

| promise | test |
|---|---|
| a | `tests/a.py::test_a` |
| b | |

Limits:

- c

## Two

Words.

- d
  `tests/d.py::test_d`
- e

| input | time |
|---|---|
| f | 1 s |

Known limit: g
"""
    assert [(promise.section, promise.text[:3], promise.tests) for promise in promises_of(page)] == [
        ("One", "| a", [("tests/a.py", "test_a")]),
        ("One", "| b", []),
        ("Two", "- d", [("tests/d.py", "test_d")]),
        ("Two", "- e", []),
    ]
