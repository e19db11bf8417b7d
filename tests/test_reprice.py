"""A price book from its first day to its next: through the command, over a format that carries tokens alone."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import main
from pipeline.fan_out import fan_out
from pipeline.run import Run
from tests.conftest import Place
from tests.pricing import book_of

FORMAT = """-- Tokens of a gateway of our own.
-- producer: our own
-- reads: jsonl
-- prices: book
-- units: tokens
-- rounds: nothing
select
    line,
    json_extract_string(record, '$.id') as request_id,
    json_extract_string(record, '$.at') as timestamp,
    json_extract_string(record, '$.org') as organization_id,
    json_extract_string(record, '$.key') as api_key_id,
    null as cost,
    null as synapses,
    null as neurons,
    json_extract_string(record, '$.model') as model,
    null as endpoint,
    null as status,
    json_extract_string(record, '$.in') as input_tokens,
    json_extract_string(record, '$.out') as output_tokens,
    json_extract_string(record, '$.cached') as cached_input_tokens
from records
"""


class Shop:
    """A data root with the logs of three days in that format, and the command on it."""

    def __init__(self, root: Path) -> None:
        self.place = Place(root)
        self.book = root.parent / "new.csv"
        (root / "formats").mkdir()
        (root / "formats/ours.sql").write_text(FORMAT)
        records = [
            {
                **{"id": str(number), "at": f"2025-11-{10 + number % 3}T12:00:00Z"},
                **{"org": f"org_{number % 2}", "key": "key_1", "model": ("gpt", "llama")[number % 2]},
                **{"in": 1_000 + number, "out": 10, "cached": 333},
            }
            for number in range(12)
        ]
        self.place.write_raw("ours/a.jsonl", *records)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def files(self) -> dict[Path, int]:
        """Every file below the data root, with the moment it was written."""
        return {path: path.stat().st_mtime_ns for path in self.place.layout.root.rglob("*") if path.is_file()}

    def write_book(self, *rows: str) -> None:
        self.place.layout.prices.write_text(book_of(*rows))

    def reprice(
        self, *rows: str, first_day: str = "2025-11-01", last_day: str = "2025-11-30", more: str = "--json"
    ) -> Result:
        self.book.write_text(book_of(*rows))
        return self.run("reprice", "--prices", str(self.book), "--from", first_day, "--to", last_day, *more.split())


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    for name in list(os.environ):
        if name.startswith("KEYTALLY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KEYTALLY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KEYTALLY_THREADS", "1")
    return Shop(tmp_path / "data")


OLD = ("gpt,2025-01-01,2.5,10,1.25,,100,,CHF", "llama,2025-01-01,1,1,CHF")
NEW = (*OLD, "gpt,2025-11-11,5,20,2.5,0.1,100,,CHF")


def test_what_is_unpriced_is_told_until_the_book_knows_it(shop: Shop) -> None:
    told = shop.run("rollup")
    assert told.exit_code == 3
    assert "UNPRICED    12 requests of 2025-11-10 and 2 other days count without a cost" in told.stderr
    assert "a price of gpt, a price of llama" in told.stderr
    assert shop.json("rollup")["unpriced"][0] == {
        "day": "2025-11-10",
        "requests": 4,
        "missing": ["a price of gpt", "a price of llama"],
    }
    assert shop.run("rollup").exit_code == 3, "as long as it lasts"
    assert "UNPRICED    12 requests" in shop.run("status").stdout
    shop.write_book(*OLD)
    assert "rules and prices" in shop.run("status").stdout
    assert shop.run("rollup").exit_code == 0
    assert "UNPRICED" not in shop.run("status").stdout
    assert "unpriced" not in shop.json("rollup")


def test_one_request_that_is_unpriced_counts(shop: Shop) -> None:
    shop.place.write_raw("ours/a.jsonl", {"id": "1", "at": "2025-11-10T12:00:00Z", "org": "org_0", "key": "key_1"})
    told = shop.run("rollup").stderr
    assert "UNPRICED    1 request of 2025-11-10 counts without a cost" in told


def test_repricing_shows_what_would_change_and_changes_nothing(shop: Shop) -> None:
    shop.write_book(*OLD)
    assert shop.run("rollup").exit_code == 0
    before = shop.place.artifacts(), shop.place.layout.prices.read_bytes(), shop.place.publication().version
    shown = json.loads(shop.reprice(*NEW).stdout)
    assert shown["days"] == ["2025-11-11", "2025-11-12"]
    assert shown["applied"] is None
    (change,) = shown["changes"]
    assert [change[name] for name in ("organization_id", "api_key_id", "model", "requests")] == [
        "org_0",
        "key_1",
        "gpt",
        4,
    ]
    old = sum(
        (Decimal(1_000 + number - 333) * Decimal("2.5") + 333 * Decimal("1.25") + 100) / 10**6
        for number in (4, 10, 2, 8)
    )
    assert Decimal(change["cost_before"]) == old
    assert Decimal(change["cost_after"]) == 2 * old + 4 * Decimal("0.1")
    (header, row) = csv.reader(io.StringIO(shop.reprice(*NEW, more="--csv").stdout))
    assert dict(zip(header, row, strict=True)) == {name: str(value) for name, value in change.items()}
    table = shop.reprice(*NEW, more="")
    assert "1 organization on 2 days" in table.stdout
    assert "The book changes nothing" in shop.reprice(*OLD, more="").stdout
    assert (shop.place.artifacts(), shop.place.layout.prices.read_bytes(), shop.place.publication().version) == before
    assert not list(shop.place.layout.scratch.iterdir())


@pytest.mark.parametrize(
    ("llama", "changed"),
    [
        ("llama,2025-01-01,1,1,,,20,,CHF", ("neurons", "201.200000", "100.600000")),
        ("llama,2025-01-01,1,1,,,,5,CHF", ("synapses", "2.000000", "4.000000")),
        ("llama,2025-11-12,1,1,CHF", ("unpriced", 0, 2)),
    ],
)
def test_what_changes_units_alone_or_what_is_known_is_shown(
    shop: Shop, llama: str, changed: tuple[str, str | int, str | int]
) -> None:
    """On one day, of which the range is: both its ends are included."""
    shop.write_book(OLD[0], "llama,2025-01-01,0,0,CHF" if "11-12" in llama else OLD[1])
    shop.run("rollup")
    found = json.loads(shop.reprice(OLD[0], llama, first_day="2025-11-10", last_day="2025-11-10").stdout)
    assert found["days"] == ["2025-11-10"]
    (change,) = found["changes"]
    measure, before, after = changed
    assert (change["model"], change[f"{measure}_before"], change[f"{measure}_after"]) == ("llama", before, after)


@pytest.mark.parametrize("kind", ["events", "daily"])
def test_a_book_is_not_shown_by_what_is_damaged(shop: Shop, kind: str) -> None:
    shop.write_book(*OLD)
    shop.run("rollup")
    for path in (shop.place.layout.root / kind).rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    refused = shop.reprice(*NEW)
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"].startswith(f"{kind}/day=2025-11-11/")


def test_a_book_that_is_applied_makes_what_was_shown(shop: Shop) -> None:
    shop.write_book(*OLD)
    shop.run("rollup")
    shown = json.loads(shop.reprice(*NEW).stdout)["changes"]
    applied = json.loads(shop.reprice(*NEW, more="--apply --json").stdout)
    assert applied["changes"] == shown
    assert applied["applied"]["version"] == shop.place.publication().version == 2
    assert [day["day"] for day in applied["applied"]["days"]] == ["2025-11-11", "2025-11-12"]
    assert shop.place.layout.prices.read_bytes() == shop.book.read_bytes()
    rows = shop.place.published("api_key_day")
    assert sum(rows[rows.model == "gpt"][2:].cost) < sum(rows[rows.model == "gpt"].cost)
    assert Decimal(shown[0]["cost_after"]) == sum(
        rows[(rows.model == "gpt") & (rows.day.astype(str) > "2025-11-10")].cost
    )
    assert json.loads(shop.reprice(*NEW).stdout)["changes"] == []


def test_a_large_day_is_repriced_in_buckets_of_which_nothing_stays(
    shop: Shop, in_buckets: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.write_book(*OLD)
    shop.run("rollup")
    shown = shop.reprice(*NEW).stdout
    before = shop.files()
    done: list[str] = []

    def noting(run: Run, step: Any, items: list[object]) -> object:
        done.append(getattr(step, "func", step).__name__)
        return fan_out(run, step, items)

    in_buckets(2)
    monkeypatch.setattr("pipeline.fan_out.fan_out", noting)
    assert shop.reprice(*NEW).stdout == shown
    assert done == ["_sum", "_find_repeated"] * 2
    assert shop.files() == before
    applied = json.loads(shop.reprice(*NEW, more="--apply --json").stdout)
    assert applied["changes"] == json.loads(shown)["changes"]
    assert done[-3:] == ["_sum", "_find_repeated", "_merge"], "as a run does it"
    assert json.loads(shop.reprice(*NEW).stdout)["changes"] == []


def test_the_book_that_is_replaced_stays_whatever_it_said(shop: Shop) -> None:
    shop.write_book(*OLD)
    shop.run("rollup")
    shop.write_book(*OLD, "nobody-asks-for-it,2025-01-01,1,1,CHF")
    before = shop.place.layout.prices.read_bytes()
    assert shop.reprice(*NEW, more="--apply").exit_code == 0
    assert before in {path.read_bytes() for path in shop.place.layout.books.iterdir()}


def test_what_was_not_shown_is_not_changed(shop: Shop) -> None:
    shop.write_book(*OLD)
    shop.run("rollup")
    before = shop.place.publication(), shop.place.layout.prices.read_bytes()
    refused = shop.reprice(*NEW, last_day="2025-11-11", more="--apply")
    assert refused.exit_code == 1
    assert "outside of the range, from 2025-11-12 to 2025-11-12" in refused.stderr
    assert (shop.place.publication(), shop.place.layout.prices.read_bytes()) == before
    assert json.loads(shop.reprice(*NEW, last_day="2025-11-11").stdout)["beyond"] == ["2025-11-12"]


def test_a_bad_book_is_not_put_in_force(shop: Shop) -> None:
    shop.write_book(*OLD)
    shop.run("rollup")
    before = shop.place.layout.prices.read_bytes()
    refused = shop.reprice("gpt,2025-01-01,1e5,1,CHF", more="--apply")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "new.csv, row 2, column input_per_million: '1e5' must be a number" in refused.stderr
    assert shop.place.layout.prices.read_bytes() == before
    shop.place.layout.prices.write_text("nonsense")
    told = shop.run("rollup")
    assert (told.exit_code, told.stderr.count("\n")) == (1, 1)
    assert "BAD PRICES" in shop.run("status").stdout
    assert shop.reprice(*NEW, more="--apply").exit_code == 0, "and takes the place of one that cannot be used"


@pytest.mark.parametrize("more", ["--json", "--apply"])
def test_a_book_is_not_looked_at_in_another_currency(shop: Shop, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    shop.write_book(*OLD)
    shop.run("rollup")
    before = shop.place.artifacts(), shop.place.layout.prices.read_bytes(), shop.place.publication().version
    monkeypatch.setenv("KEYTALLY_CURRENCY", "USD")
    refused = shop.reprice(*NEW, more=more)
    assert refused.exit_code == 1
    assert "what is published is in CHF, and KEYTALLY_CURRENCY is USD" in refused.output
    assert (shop.place.artifacts(), shop.place.layout.prices.read_bytes(), shop.place.publication().version) == before


def test_a_recount_by_other_code_finds_the_same_costs_and_units(shop: Shop) -> None:
    shop.write_book(*NEW, "llama,2025-11-11T12:00:00Z,0.333333333333,1,,,7,3,USD")
    shop.place.layout.rates.write_text("day,from,to,rate\n,,,\n2025-11-11,USD,CHF,0.88451\n")
    with shop.place.layout.prices.open("a") as book:
        book.write(",,,,,,,,\n")
    assert shop.run("rollup").exit_code == 3, "of the third day there is no rate"
    found = shop.json("reconcile", "--from", "2025-11-01", "--to", "2025-11-30")
    assert (found["equal"], found["differences"]) == (True, [])
    assert set(shop.place.published("organization_day").unpriced) == {0, 2}
    shop.write_book("*,2025-01-01,1,1,CHF")
    assert shop.json("reconcile", "--from", "2025-11-01", "--to", "2025-11-30")["equal"], "by the book that priced them"
    entry = next(iter(shop.place.ledger().days.values()))
    assert entry.pricing
    assert entry.pricing.book
    (shop.place.layout.books / entry.pricing.book).unlink()
    told = shop.run("reconcile", "--from", "2025-11-01", "--to", "2025-11-30")
    assert (told.exit_code, "put it back from a copy" in told.stderr) == (1, True)


def test_a_recount_finds_a_cost_that_is_wrong(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.write_book(*OLD)
    with monkeypatch.context() as wrong:
        wrong.setattr("pipeline.prices._PRICE_UNITS", 10**18 + 10**12)
        shop.run("rollup")
    found = shop.json("reconcile", "--from", "2025-11-01", "--to", "2025-11-30")
    assert {difference["field"] for difference in found["differences"]} == {"cost"}
