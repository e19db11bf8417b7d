"""Price books and tables of rates as people write them: what is read, and the sentence for what cannot be."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from pipeline.errors import BadPrices
from pipeline.price_book import read_price_book, read_rates
from tests.pricing import PricedPlace, priced

HEADER = "model,valid_from,input_per_million,output_per_million,currency"
ROW = "gpt,2025-11-01,2.5,10,USD"


def book(*rows: str, header: str = HEADER) -> bytes:
    return "\n".join((header, *rows)).encode()


def test_a_book_is_read_as_spreadsheets_write_it() -> None:
    plain = read_price_book(book(ROW), "prices.csv")
    (price,) = plain
    assert price[:4] == ("gpt", datetime(2025, 11, 1, tzinfo=UTC), 2_500_000_000_000, 10_000_000_000_000)
    assert (price.cached_input_per_million, price.per_request) == (price.input_per_million, 0)
    assert (price.tokens_per_neuron, price.tokens_per_synapse) == (10_000_000, 10_000_000)
    for written in (
        b"\xef\xbb\xbf" + book(ROW),
        book(ROW).replace(b"\n", b"\r\n") + b"\r\n\r\n",
        book('"gpt","2025-11-01","2.5","10","USD"'),
        book(",,,,", ROW, ",,,,,,", '"",,,,'),
        book("USD,10,2.50,2025-11-01,gpt", header=",".join(reversed(HEADER.split(",")))),
        book("gpt,2025-11-01T01:00:00+01:00,002.5000000000000000,10,USD", ""),
        book(
            ROW + ",,,,", header=f"{HEADER},per_request,cached_input_per_million,tokens_per_neuron,tokens_per_synapse"
        ),
    ):
        assert read_price_book(written, "prices.csv") == plain, written
    assert read_price_book(book('"a, ""b"", c*",2025-11-01,0,0,USD'), "prices.csv")[0].model == 'a, "b", c*'
    assert read_price_book(book(), "prices.csv") == []


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b"", "row 1, column model", "missing"),
        (b"\n\n", "row 1, column model", "missing"),
        (book(ROW, header=HEADER.replace(",currency", "")), "row 1, column currency", "missing"),
        (book(ROW, header=HEADER.replace("model", "Model")), "row 1, column Model", "no such column"),
        (book(ROW, header=HEADER + ",model"), "row 1, column model", "named twice"),
        (
            book(ROW).replace(b",", b";"),
            "prices.csv, row 1: its fields",
            "separated by semicolons; save it with commas",
        ),
        (book(ROW, header='"model";"valid_from"'), "row 1", "separated by semicolons"),
        (book(ROW).replace(b",", b"\t"), "row 1", "separated by tabs"),
        (book(ROW.replace(",", ";")), "row 2", "it has 1 fields, and the header 5"),
        (book(ROW, "", "gpt,2025-11-01T00:00:00Z,1,1,CHF"), "row 4, column valid_from", "row 2 has a price"),
        (book(ROW, "gpt,2025-11-02,1,USD"), "row 3", "it has 4 fields, and the header 5"),
        *[
            (book(f"gpt,2025-11-01,{amount},1,USD"), "row 2, column input_per_million", "must be a number")
            for amount in (
                *("1e5", "+1", '" 1"', "1 ", "-1", "", ".5", "5.", "1_000", "0x1", "NaN", "١", '"1,5"', "1000000"),
                "0.0000000000001",
            )
        ],
        *[
            (book(f"gpt,{day},1,1,USD"), "row 2, column valid_from", "must be a UTC day")
            for day in (
                *(
                    "",
                    "2025-13-01",
                    "2025-02-30",
                    "01.11.2025",
                    "2025-1-1",
                    "2025-11-01 00:00:00Z",
                    "0001-01-01T00:00:00+23:00",
                ),
                *("2025-11-01T00:00:00", "2025-11-01T25:00:00Z", "٢٠٢٥-11-01", "infinity"),
            )
        ],
        *[
            (book(f"gpt,2025-11-01,1,1,{code}"), "row 2, column currency", "three capital letters")
            for code in ("usd", "US", "USDT", "", " USD", "$")
        ],
        *[
            (book(f"{model},2025-11-01,1,1,USD"), "row 2, column model", "must be the name of a model")
            for model in ("", "gpt*mini", "**", "m" * 257, "a\x07", " gpt", "gpt ")
        ],
        (book(ROW + ",0", header=HEADER + ",tokens_per_neuron"), "row 2, column tokens_per_neuron", "greater than 0"),
        (
            book(ROW + ",1.0000001", header=HEADER + ",tokens_per_neuron"),
            "row 2, column tokens_per_neuron",
            "6 decimals",
        ),
        (book('gpt,"2025-11-01,1,1,USD'), "row 2", "no row of CSV"),
        (book("g\0pt,2025-11-01,1,1,USD"), "row 2, column model", "must be the name of a model"),
        (book(ROW) + b"\n\xff\xfe,2025-11-01,1,1,USD", "row 3", "UTF-8"),
        (book(ROW).decode().encode("utf-16"), "prices.csv: ", "the file is UTF-16; convert it to UTF-8"),
        (book(ROW).decode().encode("utf-16-le"), "prices.csv: ", "the file is UTF-16; convert it to UTF-8"),
        (book("x" * 200_000 + ",2025-11-01,1,1,USD"), "row 2", "prices.csv"),
        (b"a" * (32 * 2**20 + 1), "prices.csv", "larger than"),
        (book(f"gpt,2025-11-01,0.{'1' * 5_000},1,USD"), "row 2, column input_per_million", "12 decimals"),
    ],
)
def test_a_bad_book_gets_a_sentence_with_row_and_column(content: bytes, where: str, what: str) -> None:
    with pytest.raises(BadPrices) as refused:
        read_price_book(content, "prices.csv")
    sentence = str(refused.value)
    assert where in sentence
    assert what in sentence
    assert len(sentence.splitlines()) == 1
    assert len(sentence) < 400


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ("2025-11-10,USD,CHF,0", "row 2, column rate"),
        ("2025-11-10,USD,CHF,1e-3", "row 2, column rate"),
        ("2025-11-10,USD,USD,1", "row 2, column to"),
        ("2025-11-10T00:00:00Z,USD,CHF,1", "row 2, column day"),
        ("2025-11-10,usd,CHF,1", "row 2, column from"),
        ("2025-11-10,USD,CHF,1\n2025-11-10,USD,CHF,1", "row 3, column day"),
    ],
)
def test_a_bad_table_of_rates_gets_a_sentence_too(row: str, where: str) -> None:
    with pytest.raises(BadPrices, match=where):
        read_rates(f"day,from,to,rate\n{row}\n".encode(), "fx.csv")


def test_a_table_of_rates_in_utf16_is_named_as_such() -> None:
    with pytest.raises(BadPrices, match=r"^fx\.csv: the file is UTF-16; convert it to UTF-8"):
        read_rates("day,from,to,rate\n2025-11-10,USD,CHF,0.8\n".encode("utf-16"), "fx.csv")


def test_rates_are_of_a_day_and_a_direction() -> None:
    rates = read_rates(b"day,from,to,rate\n2025-11-10,USD,CHF,0.8\n2025-11-10,CHF,USD,1.25\n", "fx.csv")
    day = date(2025, 11, 10)
    assert rates == {(day, "USD", "CHF"): 800_000_000_000, (day, "CHF", "USD"): 1_250_000_000_000}


@pytest.mark.parametrize("file", ["prices.csv", "fx.csv"])
def test_a_bad_file_publishes_nothing_and_leaves_what_is(tmp_path: Path, file: str) -> None:
    shop = PricedPlace(tmp_path / "data")
    shop.write_book("gpt,2025-01-01,1,1,CHF")
    shop.write_raw("a.jsonl", priced(1, input_tokens=10))
    shop.roll_up()
    before = shop.publication(), shop.costs()
    good = (shop.layout.root / file).read_bytes() if (shop.layout.root / file).exists() else b"day,from,to,rate\n"
    (shop.layout.root / file).write_bytes(good + b"x,y\n")
    shop.write_raw("b.jsonl", priced(2, input_tokens=10))
    with pytest.raises(BadPrices, match=f"{file}, row .*until then what is published stays"):
        shop.roll_up()
    assert (shop.publication(), shop.costs()) == before
    (shop.layout.root / file).write_bytes(good)
    assert shop.roll_up().published


def test_a_book_of_a_hundred_thousand_rows_is_read(tmp_path: Path) -> None:
    rows = [f"model-{number},2025-11-01,0.075,0.3,USD" for number in range(100_000)]
    assert len(read_price_book(book(*rows), "prices.csv")) == 100_000
