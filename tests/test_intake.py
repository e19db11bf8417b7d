"""Taking a file in: the bulk read and the second look must make of every line what the rule book makes of it."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline.judge
from pipeline.errors import HeldBack
from pipeline.intake import TakeIn, take_in
from pipeline.line import FUTURE_TOLERANCE, NATIVE_FIELDS, Rejected, is_blank, read_line
from pipeline.raw import RawPass, list_raw
from pipeline.run import Run, start_run
from tests.conftest import Place, lines, request

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

NOW = datetime(2025, 11, 15, 10, 30, tzinfo=UTC)
LATEST = NOW + FUTURE_TOLERANCE
ENOUGH = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
FIELDS = list(NATIVE_FIELDS)

# --- an adversarial grammar of lines ---------------------------------------------------------------------------------

digits = st.text("0123456789", min_size=1, max_size=20)
numbers = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e3, max_value=1e7).map(repr),
    st.decimals(0, 10**6, places=12).map(str),
    st.sampled_from(
        [
            "1E5",
            "1e-7",
            "1.5e-12",
            "1.5E-13",
            "0.00001",
            "123456789012345678",
            "0.1000000000000000055",
            "1e400",
            "-0",
            "0",
            "-0.0",
            "1e-400",
            "1.0",
            "100",
            "599",
            "18446744073709551615",
            "18446744073709551616",
            "9223372036854775807",
            "999999.999999999",
            "999999.9999999999",
            "600",
            "123456.789012345",
            "0.000000000001",
        ]
    ),
    st.integers(300, 5000).map(lambda zeros: "1" + "0" * zeros),
)
odd_text = st.text(
    st.one_of(
        st.sampled_from('aA0_-.:/ \\"\n\t\0\x7f\x85\u2028é🧾\u0301１٣\ufeff\ufffd'),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=12,
)
near_amounts = st.one_of(
    st.from_regex(r"[ +-]?[0-9_]{0,7}\.?[0-9]{0,14}([eE][+-]?[0-9]{0,4})?[ ]?", fullmatch=True),
    st.sampled_from(
        [" 1.5 ", "1_000", "+5", "5.", ".5", "NaN", "inf", "1e-13", "1.50000000000000000", "0e99999999999"]
    ),
    numbers,
)
timestamps = st.one_of(
    st.from_regex(
        r"20(2[0-9]|25)-(0[0-9]|1[0-3])-([0-2][0-9]|3[0-2])T([01][0-9]|2[0-5]):[0-5][0-9]:[0-6][0-9](\.[0-9]{1,10})?"
        r"(Z|[+-][0-2][0-9]:[0-6][0-9])",
        fullmatch=True,
    ),
    st.datetimes(datetime(2019, 12, 31), datetime(2025, 11, 16)).map(lambda moment: moment.isoformat() + "Z"),
    st.datetimes(datetime(2025, 10, 31), datetime(2025, 11, 2)).map(lambda moment: moment.isoformat() + "+23:59"),
    st.sampled_from(
        [
            "infinity",
            "-infinity",
            "epoch",
            "2025-11-01",
            "2025-11-01T24:00:00Z",
            "2025-11-01T00:00:00+25:00",
            "2025-11-01t00:00:00Z",
            "2025-11-01T00:00:00z",
            "2024-02-30T00:00:00Z",
            "2025-11-15T10:35:00Z",
            "2025-11-15T10:35:00.000001Z",
            "2025-11-15T10:35:00.0000009Z",
            "0000-02-29T00:00:00Z",
        ]
    ),
    st.just("2025-11-01 00:00:00Z"),
)
identifiers = st.one_of(
    st.text("abcXYZ019_-", min_size=1, max_size=8),
    st.text("abc.:-_/ é", max_size=4),
    st.integers(126, 130).map("x".__mul__),
    st.integers(127, 129).map("🧾".__mul__),
    odd_text,
)
long_texts = st.one_of(st.integers(254, 258).map("é".__mul__), odd_text, st.sampled_from(["", "null", "true", "0"]))


def escaped(text: str, how: int) -> str:
    """A JSON string, spelled in one of several ways."""
    if how == 0:
        return json.dumps(text)
    if how == 1:
        return json.dumps(text, ensure_ascii=False)
    if how == 2:
        return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else json.dumps(c)[1:-1] for c in text) + '"'
    return json.dumps(text).replace("/", "\\/")


def strings(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(escaped, values, st.integers(0, 3))


odd_values = st.one_of(
    numbers,
    strings(odd_text),
    st.sampled_from(["null", "true", "false", "{}", "[]", '{"cost": NaN}', '{"a": 1, "a": 2}', "[[[[[]]]]]"]),
    st.sampled_from(["NaN", "-Infinity", "nan", "[1,]", "01", "+1", "1.", ".5", "0x1", "1 2", "tru", "'a'", ""]),
    st.sampled_from(['"\\ud800"', '"\\ud83e\\uddfe"', '"\\x"']),
    st.just('"\t"'),
    st.integers(1, 400).map(lambda depth: "[" * depth + "]" * depth),
)
values_of: dict[str, st.SearchStrategy[str]] = {
    "request_id": strings(identifiers),
    "timestamp": strings(timestamps),
    "organization_id": strings(identifiers),
    "api_key_id": st.one_of(strings(identifiers), st.just("null")),
    "cost": st.one_of(numbers, strings(near_amounts)),
    "synapses": st.one_of(numbers, strings(near_amounts)),
    "neurons": st.one_of(numbers, strings(near_amounts)),
    "model": strings(long_texts),
    "endpoint": strings(long_texts),
    "status": st.one_of(st.integers(90, 610).map(str), numbers),
    "input_tokens": st.one_of(digits, numbers),
    "output_tokens": st.one_of(digits, numbers),
    **{name: st.one_of(digits, numbers, st.integers(0, 9).map(str)) for name in NATIVE_FIELDS[-3:]},
}
PLAIN = {name: json.dumps(value) for name, value in request(model="m", status=200, input_tokens=7).items()}


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    fields = list(PLAIN.items())
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        value = draw(values_of[name] if draw(st.integers(0, 4)) else odd_values)
        fields = [(known, text) for known, text in fields if known != name]
        if draw(st.integers(0, 9)):
            fields.append((name, value))
    if not draw(st.integers(0, 3)):
        fields.insert(draw(st.integers(0, len(fields))), (draw(st.sampled_from([*FIELDS, "u", ""])), draw(odd_values)))
    if draw(st.booleans()):
        fields = draw(st.permutations(fields))
    space = draw(st.sampled_from(["", " ", "\t", " \r "]))
    spelling = draw(st.sampled_from([0, 0, 0, 2]))
    text = ",".join(f"{space}{escaped(name, spelling)}{space}:{space}{value}" for name, value in fields)
    line = f"{space}{{{text}{space}}}{space}".encode()
    if not draw(st.integers(0, 7)) and line:  # a byte lost, changed or doubled
        position = draw(st.integers(0, len(line) - 1))
        byte = draw(
            st.sampled_from([b"", b"\xff", b",", b'"', b"}", b"0", b" ", b"\0", line[position : position + 1] * 2])
        )
        line = line[:position] + byte + line[position + 1 :]
    return line.replace(b"\n", b" ")


# --- what became of a file -------------------------------------------------------------------------------------------


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr("pipeline.judge.FEW_BYTES", 0)  # else the bulk read would see none of these small files
    with start_run(place.settings, lambda: NOW) as run:
        yield run


def taken(run: Run, place: Place, file: str, content: bytes) -> TakeIn:
    for old in list_raw(place.store).files:
        (place.layout.raw / old.file).unlink()
    place.write_raw(file, content)
    return take_in(run, list_raw(place.store).files[0])


def kept_values(place: Place, taken_in: TakeIn) -> list[tuple[str, ...]]:
    """The values of every event that a take-in kept, without the number of its line."""
    return [
        _values(list(row.values())[:-1])
        for event in taken_in.events
        for row in pq.read_table(event.path_in(place.layout), partitioning=None).to_pylist()
    ]


def rejected_lines(place: Place, taken_in: TakeIn) -> dict[int, str]:
    """Number and reason of every line that a take-in rejected."""
    if taken_in.rejected is None:
        return {}
    return {row["line"]: row["reason"] for row in pq.read_table(place.layout.rejected / taken_in.rejected).to_pylist()}


def _values(values: Any) -> tuple[str, ...]:
    return tuple(
        format(value.normalize() + 0, "f")
        if isinstance(value, Decimal)
        else value.replace(tzinfo=None).isoformat()
        if isinstance(value, datetime)
        else repr(value)
        for value in values
    )


def by_the_book(verdict: Any) -> Any:
    return verdict.reason.value if isinstance(verdict, Rejected) else _values(verdict)


@pytest.fixture
def second_looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the rule book was asked about, because the bulk read could not take it for certain."""
    asked: list[Any] = []
    for name in ("read_line", "read_record"):
        read = getattr(pipeline.judge, name)
        monkeypatch.setattr(pipeline.judge, name, lambda it, latest, read=read: asked.append(it) or read(it, latest))
    return asked


@ENOUGH
@given(st.lists(json_lines(), min_size=1, max_size=40), st.sampled_from([b"\n", b"\r\n"]))
def test_every_line_is_taken_in_as_the_rule_book_reads_it(
    run: Run, place: Place, texts: list[bytes], end: bytes
) -> None:
    taken_in = taken(run, place, "a.jsonl", b"".join(text + end for text in texts))
    expected = {
        number: by_the_book(read_line(text, LATEST)) for number, text in enumerate(texts, 1) if not is_blank(text)
    }
    assert taken_in.lines == len(expected)
    assert taken_in.accepted == sum(isinstance(verdict, tuple) for verdict in expected.values())
    assert sorted(kept_values(place, taken_in)) == sorted(
        verdict for verdict in expected.values() if isinstance(verdict, tuple)
    )
    assert rejected_lines(place, taken_in) == {
        number: verdict for number, verdict in expected.items() if isinstance(verdict, str)
    }


cells = [
    st.booleans(),
    st.integers(-1, 2**63 - 1),
    st.floats(),
    st.decimals(-10, 10**7, places=14),
    st.one_of(identifiers, timestamps, near_amounts, long_texts),
]


@settings(ENOUGH, max_examples=40)
@given(st.data())
def test_every_row_is_taken_in_as_the_line_it_stands_for(run: Run, place: Place, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    columns: dict[str, list[Any]] = {name: [json.loads(PLAIN[name])] * count for name in PLAIN}
    for name in data.draw(st.sets(st.sampled_from(FIELDS), max_size=3)):
        of_one_type = data.draw(st.sampled_from(cells))
        columns[name] = data.draw(st.lists(st.none() | of_one_type, min_size=count, max_size=count))
    table = pa.table({name: _arrow(column) for name, column in columns.items()})
    written = io.BytesIO()
    pq.write_table(table, written, row_group_size=5)

    taken_in = taken(run, place, "a.parquet", written.getvalue())
    expected = {}
    for row in range(count):
        text = ",".join(f"{json.dumps(name)}:{_as_json(column[row], name)}" for name, column in columns.items())
        expected[row + 1] = by_the_book(read_line(f"{{{text}}}".encode(), LATEST))
    assert sorted(kept_values(place, taken_in)) == sorted(
        verdict for verdict in expected.values() if isinstance(verdict, tuple)
    )
    assert rejected_lines(place, taken_in) == {
        number: verdict for number, verdict in expected.items() if isinstance(verdict, str)
    }


def _arrow(column: list[Any]) -> pa.Array:
    decimal = any(isinstance(value, Decimal) for value in column)
    return pa.array(column, pa.decimal128(38, 14) if decimal else None)


def _as_json(value: Any, name: str) -> str:
    if isinstance(value, float | Decimal) and name not in ("cost", "synapses", "neurons"):
        return "true"  # no other field may be a fraction
    if isinstance(value, float):
        return "true" if value != value else repr(value).replace("inf", "1e999")
    return json.dumps(str(value)) if isinstance(value, Decimal) else json.dumps(value)


# --- the bulk read ---------------------------------------------------------------------------------------------------


def ordinary(number: int) -> dict[str, Any]:
    chance = random.Random(number)
    return request(
        number,
        timestamp=f"2025-11-{1 + number % 14:02}T10:{number % 60:02}:07"
        + ("", ".5", ".123456", ".123456789")[number % 4]
        + ("Z", "+01:00", "-05:30")[number % 3],
        organization_id=f"org-{number % 7}",
        api_key_id=None if number % 5 == 0 else f"key_{number % 3}.a:b",
        cost=(f"{number}.000000000001", number / 100, 0, 2.1e-05, "0.000000150")[number % 5],
        synapses=(number / 2, number, "12.000001")[number % 3],
        neurons=number * 1000,
        model=(None, "sonnet", "modèle 🧾")[number % 3],
        endpoint="/v1/chat/completions",
        status=(200, None, 429)[number % 3],
        input_tokens=chance.randrange(10**9),
        output_tokens=number,
        unknown={"nested": [1, 2.5, "x", None, {"é": "\\"}]},
    )


def test_ordinary_lines_need_no_second_look(run: Run, place: Place, second_looks: list[Any]) -> None:
    texts = [json.dumps(ordinary(number), ensure_ascii=number % 2 == 0).encode() for number in range(3000)]
    taken_in = taken(run, place, "a.jsonl", b"\n".join(texts))
    assert not second_looks
    assert taken_in.accepted == 3000
    assert sorted(kept_values(place, taken_in)) == sorted(by_the_book(read_line(text, LATEST)) for text in texts)


def test_ordinary_rows_need_no_second_look(run: Run, place: Place, second_looks: list[Any]) -> None:
    records = [ordinary(number) for number in range(3000)]
    for record in records:
        del record["unknown"]
        record["cost"] = Decimal(str(record["cost"]))
        record["synapses"] = float(record["synapses"])
        record["timestamp"] = datetime.fromisoformat(record["timestamp"]).astimezone(UTC)
    table = pa.Table.from_pylist(records)
    table = table.set_column(4, "cost", [[record["cost"] for record in records]])
    written = io.BytesIO()
    pq.write_table(table, written, row_group_size=700)
    taken_in = taken(run, place, "a.parquet", written.getvalue())
    assert taken_in.accepted == 3000
    assert len(second_looks) <= 3000 / 5 + 1  # decimals below a millionth are written with an exponent
    costs = {values[0]: values[4] for values in kept_values(place, taken_in)}
    assert costs == {repr(record["request_id"]): _values([record["cost"]])[0] for record in records}


def test_one_bad_line_sends_no_other_to_the_second_look(run: Run, place: Place, second_looks: list[Any]) -> None:
    taken(run, place, "a.jsonl", lines(*map(ordinary, range(500)), '{"a": NaN}', *map(ordinary, range(500))))
    assert not second_looks, "and is rejected at the first"


# --- bad files -------------------------------------------------------------------------------------------------------

THREE = lines(*(request(number, cost=f"{number}.25") for number in (1, 2, 3)))


@pytest.mark.parametrize(
    ("file", "whole"),
    [
        ("a.jsonl.gz", gzip.compress(THREE, mtime=0)),
        ("a.jsonl.zst", zstd.compress(THREE, options={zstd.CompressionParameter.checksum_flag: 1})),
    ],
)
def test_no_flipped_bit_and_no_cut_ever_makes_another_number(place: Place, file: str, whole: bytes) -> None:
    """Every bit of a small file. One that says nothing of the content (a time, a system's name) may flip."""
    path = place.write_raw(file, whole)

    def text_of(content: bytes) -> str | None:
        path.write_bytes(content)
        try:
            with RawPass(list_raw(place.store).files[0]) as opened:
                text = "".join(text for batch in opened.batches() for text in batch.column("text").to_pylist())
                opened.content()
                return text
        except HeldBack:
            return None

    assert text_of(whole) == THREE.decode()
    unharmed = 0
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        text = text_of(bytes(flipped))
        assert text in (None, THREE.decode()), bit
        unharmed += text is not None
    assert unharmed < 80
    for size in range(1, len(whole)):
        assert text_of(whole[:size]) is None


def test_no_flipped_bit_of_a_parquet_file_stops_a_run(run: Run, place: Place) -> None:
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([request(n) for n in (1, 2)]), written, write_page_checksum=True)
    whole = written.getvalue()
    for bit in random.Random(7).sample(range(len(whole) * 8), 150):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            taken(run, place, "a.parquet", bytes(flipped))
        except HeldBack as held_back:
            assert held_back.reason.startswith("unreadable")


@pytest.mark.parametrize("tail", [b"garbage", b"\x1f", b"\x1f\x8b", b"{}\n"])
def test_something_behind_the_compressed_data_is_held_back(run: Run, place: Place, tail: bytes) -> None:
    for file, whole in (("a.jsonl.gz", gzip.compress(THREE)), ("a.jsonl.zst", zstd.compress(THREE))):
        with pytest.raises(HeldBack):
            taken(run, place, file, whole + tail)


def test_several_members_are_one_log(run: Run, place: Place) -> None:
    half = THREE.index(b"req_2")  # inside a line
    for file, compress in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd.compress)):
        assert taken(run, place, file, compress(THREE[:half]) + compress(THREE[half:])).accepted == 3
    assert taken(run, place, "a.jsonl.gz", gzip.compress(THREE) + b"\0" * 512).accepted == 3  # padded, as tapes are


# --- what a take-in is named by --------------------------------------------------------------------------------------


def test_the_same_content_makes_the_same_artifacts(run: Run, place: Place) -> None:
    content = lines(*map(ordinary, range(400)), "bad")
    first = taken(run, place, "a.jsonl", content)
    assert taken(run, place, "b/other name.jsonl", content) == first


def test_the_same_bytes_under_another_ending_are_another_take_in(run: Run, place: Place) -> None:
    packed = gzip.compress(THREE)
    assert taken(run, place, "a.jsonl", packed).name != taken(run, place, "a.jsonl.gz", packed).name


# --- memory ----------------------------------------------------------------------------------------------------------

TAKE_IN_APART = """
import sys
from datetime import UTC, datetime
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pipeline.contract.settings import Settings
from pipeline.run import start_run
from pipeline.update import roll_up
from tests.peak import kilobytes

settings = Settings.from_environment(
    {"KEYTALLY_DATA": sys.argv[2], "KEYTALLY_THREADS": "2", "KEYTALLY_MEMORY_LIMIT": "256MB"}
)
with start_run(settings, lambda: datetime(2025, 11, 15, tzinfo=UTC)) as run:
    report = roll_up(run)
print(report.ingested[0].take_in.accepted, report.ingested[0].take_in.lines)
print(kilobytes())
"""


def peak_of(root: Path) -> tuple[str, int]:
    """What a run took in, and the most memory it used, in MB."""
    command = [sys.executable, "-c", TAKE_IN_APART, str(Path(__file__).parent.parent), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counts, peak = done.stdout.split("\n")[:2]
    return counts, int(peak) // 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak of a process")
def test_memory_depends_neither_on_the_length_of_a_line_nor_on_the_size_of_a_file(tmp_path: Path) -> None:
    small, long_line, many = Place(tmp_path / "small"), Place(tmp_path / "long"), Place(tmp_path / "many")
    small.write_raw("a.jsonl", request(1))
    with gzip.open(long_line.layout.raw / "a.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(b"x" * 2**20)
        file.write(b"\n" + lines(request(1)))
    with gzip.open(many.layout.raw / "a.jsonl.gz", "wb", compresslevel=1) as file:
        for block in range(30):
            file.write(lines(*({**ordinary(n % 50), "request_id": f"{block}-{n}"} for n in range(5_000))))
    counts, baseline = peak_of(small.layout.root)
    assert counts == "1 1"
    counts, peak = peak_of(long_line.layout.root)
    assert counts == "1 2"
    assert peak < baseline + 100
    counts, peak = peak_of(many.layout.root)
    assert counts == "150000 150000"
    assert peak < baseline + 256 + 150
