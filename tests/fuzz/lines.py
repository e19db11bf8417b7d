"""Fuzzes the line reader: what the bulk read and its second look make of a file is what the rule book makes of its lines.

    nice -n 19 python -m tests.fuzz.lines [SECONDS] [SEED]

Each round writes one file of mutated lines, read in blocks of a random size, compressed or not, and compares line
numbers, verdicts and values with a plain loop over the lines. Prints and keeps what differs; then it ends with 1.
"""

from __future__ import annotations

import gzip
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pipeline.intake
import pipeline.judge
import pipeline.line
import pipeline.rows
from pipeline.intake import take_in
from pipeline.line import is_blank, read_line
from pipeline.raw import list_raw
from pipeline.run import Run, start_run
from tests.conftest import Place
from tests.test_intake import LATEST, NOW, by_the_book, kept_values, rejected_lines

MARK = b"\xef\xbb\xbf"
SEEDS = (
    b'{"request_id":"req_1","timestamp":"2025-11-10T12:00:00Z","organization_id":"org_a","api_key_id":"key_1","cost":"0.25"}',
    b'{"request_id":"\\u00e9\\"\\\\","timestamp":"2025-11-10T13:00:00.123456789+01:00","organization_id":"o-_9","api_key_id":'
    b'null,"cost":1.5e-7,"synapses":0.1,"neurons":"999999999999.999999","model":"m\xc3\xa9","endpoint":"/v1","status":200,'
    b'"input_tokens":9223372036854775807,"output_tokens":0}',
    b'{"cost":12,"cost":"x","api_key_id":"k","organization_id":"o","timestamp":"2020-01-01T00:00:00-23:59","request_id":"r",'
    b'"extra":{"a":[1,2,{"request_id":"no"}],"b":"\\ud83e\\uddfe"},"status":null}',
    b"[]",
    b"",
    b" \t",
)
PIECES = (
    b"\n", b"\r", b"\r\n", b"\t", b" ", b"\0", b"\x0b", b"\x1f", b"\x7f", b"\x85", b"\xc2\x85", b"\xe2\x80\xa8", MARK, b"\xff",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\\ud800", b"\\udc00", b"\\u0000", b"\\u000a", b"\\/", b"\\x", b'"',
    b"'", b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"NaN", b"Infinity", b"-", b"+", b".", b"e", b"E", b"0",
    b"00", b"1", b"9" * 20, b"0." + b"0" * 13 + b"1", b"1e308", b"1e309", b"1e-400", b"-0", b"1_0", b"0x1", b"//", b"/*",
    b'{"request_id":', b'"cost":', b'"timestamp":', b'"Cost":', b'"cost ":', b'"$.cost":', b'"co\\u0073t":', b"T24:00:00",
    b"2025-11-15T10:35:00Z", b"2025-11-15T10:35:00.000001Z", b"2030-12-31T23:59:59.999999999-00:01", b"0000-01-01T00:00:00Z",
    b"infinity", b"epoch", b"BC", b"\xd9\xa3", b"\xef\xbc\x91", b"[" * 600, b'{"a":' * 1100, b"x" * 300, "é".encode() * 129,
)  # fmt: skip


def mutated(chance: random.Random, line: bytes) -> bytes:
    """A line with none to six changes: pieces put in, cut out, doubled or exchanged, bits flipped."""
    text = bytearray(line)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 6))):
        start = chance.randint(0, len(text))
        end = min(len(text), start + chance.choice((0, 0, 1, 1, 2, 5, 20)))
        how = chance.randrange(5)
        if how == 0:
            text[start:end] = chance.choice(PIECES)
        elif how == 1:
            del text[start:end]
        elif how == 2:
            text[start:start] = text[start:end]
        elif how == 3 and text:
            text[min(start, len(text) - 1)] ^= 1 << chance.randrange(8)
        else:
            other = chance.choice(SEEDS)
            cut = chance.randint(0, len(other))
            text[start:end] = other[cut : cut + chance.choice((1, 4, 30, 200))]
    return bytes(text)


def plain_lines(content: bytes) -> list[bytes]:
    """The lines of a text, from 1: the definition, not the reader."""
    *whole, last = content.removeprefix(MARK).split(b"\n")
    return [line.removesuffix(b"\r") for line in whole] + ([last] if last else [])


def difference(run: Run, place: Place, content: bytes, packed: bool) -> str | None:
    """What is read otherwise than by the rule book; None when nothing is."""
    for old in list_raw(place.store).files:
        (place.layout.raw / old.file).unlink()
    place.write_raw("a.jsonl.gz" if packed else "a.jsonl", gzip.compress(content, 1) if packed else content)
    taken = take_in(run, list_raw(place.store).files[0])
    expected = {
        number: by_the_book(read_line(line, LATEST))
        for number, line in enumerate(plain_lines(content), 1)
        if not is_blank(line)
    }
    rejected = {number: reason for number, reason in expected.items() if isinstance(reason, str)}
    accepted = Counter(values for values in expected.values() if not isinstance(values, str))
    got_rejected, got_accepted = rejected_lines(place, taken), Counter(kept_values(place, taken))
    if (got_rejected, got_accepted, taken.lines) == (rejected, accepted, len(expected)):
        return None
    wrong = [n for n in sorted({*got_rejected, *rejected}) if got_rejected.get(n) != rejected.get(n)]
    return "\n".join(
        [
            f"{taken.lines} lines of {len(expected)}",
            *(f"line {n}: {got_rejected.get(n)!r} is not {expected.get(n)!r}" for n in wrong[:3]),
            *(f"accepted and should not be: {values}" for values in list(got_accepted - accepted)[:3]),
            *(f"should be accepted and is not: {values}" for values in list(accepted - got_accepted)[:3]),
        ]
    )


def shortest(content: bytes, differs: Callable[[bytes], bool]) -> bytes:
    """As few of its lines as still differ."""
    lines = content.split(b"\n")
    size = len(lines) // 2
    while size:
        for start in range(0, len(lines), size):
            fewer = lines[:start] + lines[start + size :]
            if differs(b"\n".join(fewer)):
                lines = fewer
                break
        else:
            size //= 2
    return b"\n".join(lines)


def main(seconds: float = 600, seed: int = 0) -> int:
    """Rounds until the time is over or something differs; the exit code."""
    chance = random.Random(seed)
    begun = time.monotonic()
    rounds = lines = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "data")
        with start_run(place.settings, lambda: datetime.astimezone(NOW, UTC)) as run:
            while time.monotonic() - begun < seconds:
                # A small limit brings the end of a block and of the longest line into every round.
                small = chance.random() < 0.5
                pipeline.rows.BLOCK_BYTES = chance.randint(40, 5_000) if small else 4 * 2**20
                limit = chance.randint(60, 600) if small else 2**20
                pipeline.rows.MAX_LINE_BYTES = pipeline.line.MAX_LINE_BYTES = limit
                pipeline.judge.FEW_BYTES = chance.choice((0, 0, 8_192))
                end = chance.choice((b"\n", b"\r\n"))
                content = end.join(mutated(chance, chance.choice(SEEDS)) for _ in range(chance.randint(1, 800)))
                if chance.random() < 0.2:
                    content = MARK + content
                packed = chance.random() < 0.3
                found = difference(run, place, content, packed)
                rounds, lines = rounds + 1, lines + content.count(b"\n") + 1
                if found:
                    less = shortest(content, lambda text: difference(run, place, text, packed) is not None)  # noqa: B023
                    print(
                        f"seed {seed}, round {rounds}, block {pipeline.rows.BLOCK_BYTES}, limit {limit}\n{found}\n{less!r}"
                    )
                    return 1
    print(f"seed {seed}: {rounds:,} files with {lines:,} lines in {time.monotonic() - begun:.0f} s, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:3])))
