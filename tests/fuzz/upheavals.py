"""Lives through upheavals of raw/ and holds what is published against the model after each run.

    nice -n 19 python -m tests.fuzz.upheavals [SECONDS] [SEED]

Between runs, files are added, appended to, replaced, put back, emptied, deleted, renamed, misnamed, copied, cut, touched,
swapped and rotated, with copies and conflicting copies of few requests all over them. Runs are nightly ones and backfills; some
crash at a random step, and what comes after may find raw/ changed again. Prints the seed and the story of what differs;
then it ends with 1.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

from pipeline.reconcile import Reconciliation, reconcile
from pipeline.run import start_run
from tests.conftest import Place, Record, request
from tests.crashing import Crash, assert_nothing_unfinished, failing_at, stepping
from tests.model import Model, recount
from tests.test_laws import BAD, assert_right, content, rows

ENDINGS = (".jsonl", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
NAMES = tuple(f"{number}" for number in range(6))
MOMENTS = (
    "2025-10-31T23:59:59.999999Z",
    "2025-11-01T00:00:00.000000Z",
    "2025-11-01T12:00:00.123456Z",
    "2025-11-14T00:00:00.000000Z",
    "2025-11-16T06:00:00.000000Z",  # in the future of the first runs
)
FIRST, LAST = date(2025, 10, 30), date(2025, 11, 20)
FUTURE = timedelta(minutes=5)
STEPS = 90  # more than most runs take

Lines = list[Record | str]
Content = tuple[bytes, str]  # and the ending it is read by: the same bytes under another are another content


class Upheavals:
    """A data root, and beside it what it is to publish.

    written: the lines of every content there ever was; None where it cannot be read whole. counts: the content of each
    file that counts. taken_at: the newest run that saw a content, which decides what is from the future.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.place = Place(folder / "data")
        self.story: list[str] = []
        self.written: dict[Content, Lines | None] = {}
        self.counts: dict[str, Content] = {}
        self.taken_at: dict[Content, datetime] = {}

    # --- raw/ ---

    def files(self) -> list[str]:
        return sorted(path.name for path in self.place.layout.raw.iterdir())

    def path(self, file: str) -> Path:
        return self.place.layout.raw / file

    def content_of(self, file: str) -> Content:
        return self.path(file).read_bytes(), file[file.index(".") :]

    def put(self, file: str, made: bytes, lines: Lines | None) -> None:
        ending = file[file.index(".") :]
        self.written.setdefault((made, ending), lines)
        self.path(file).write_bytes(made)

    def some_file(self, ending: str | None = None) -> str:
        return self.chance.choice(NAMES) + (ending or self.chance.choice(ENDINGS))

    def some_lines(self, file: str) -> Lines:
        lines: Lines = [self.some_record() for _ in range(self.chance.randint(1, 5))]
        if not file.endswith(".parquet") and self.chance.random() < 0.4:
            lines.insert(self.chance.randint(0, len(lines)), self.chance.choice(BAD))
        return lines

    def some_record(self) -> Record:
        return request(
            self.chance.randrange(10),
            timestamp=self.chance.choice(MOMENTS),
            organization_id=self.chance.choice(["org_a", "org_b"]),
            api_key_id=self.chance.choice(["k", "K", None]),
            cost=self.chance.choice(["0.1", "0.2", "10", "9", "0.000000000001", "999999.999999999999"]),
            synapses=self.chance.choice(["0", "0.1", "999999999999.999999"]),
            model=self.chance.choice([None, "m", "é"]),
            input_tokens=self.chance.choice([0, 1, 2**63 - 1]),
        )

    def spelled(self, lines: Lines) -> Lines:
        """The same lines as another writer may put them: an offset, a number instead of a string, fields in any order."""
        found: Lines = []
        for line in lines:
            if isinstance(line, str):
                found.append(line)
                continue
            fields = list(line.items())
            self.chance.shuffle(fields)
            record = dict(fields)
            if self.chance.random() < 0.3:
                moment = datetime.fromisoformat(record["timestamp"]) + timedelta(hours=2)
                record["timestamp"] = f"{moment:%Y-%m-%dT%H:%M:%S.%f}999+02:00"
            if self.chance.random() < 0.3 and record["cost"] in ("0.1", "0.2", "9", "10"):
                record["cost"] = float(record["cost"])
            found.append(record)
        return found

    def made(self, file: str, lines: Lines) -> bytes:
        return content(file, lines if file.endswith(".parquet") else self.spelled(lines))

    def change(self) -> None:
        """Do something to raw/."""
        files = self.files()
        change = self.chance.choice(list(CHANGES) if files else ["add"])
        self.story.append(f"{change} {CHANGES[change](self)}")

    def add(self) -> str:
        file = self.some_file()
        lines = self.some_lines(file)
        self.put(file, self.made(file, lines), lines)
        return file

    def put_back(self) -> str:
        """A content that was there before, by whatever name of its ending."""
        made, ending = self.chance.choice(list(self.written))
        file = self.some_file(ending)
        self.path(file).write_bytes(made)
        return file

    def append(self) -> str:
        file = self.chance.choice(self.files())
        before, ending = self.content_of(file)
        known = self.written[before, ending]
        if file.endswith(".parquet") or known is None or (before and not known) or "rubbish" in known:
            return f"nothing to {file}"
        more = self.some_lines(file)
        made = self.made(file, more)
        if not file.endswith((".gz", ".zst")) and before and not before.endswith(b"\n"):
            made = b"\n" + made
        self.put(file, before + made, [*known, *more])
        return file

    def replace(self) -> str:
        file = self.chance.choice(self.files())
        lines = self.some_lines(file)
        self.put(file, self.made(file, lines), lines)
        return file

    def empty(self) -> str:
        file = self.chance.choice(self.files())
        blank = (
            b"" if file.endswith(".parquet") else self.chance.choice([b"", content(file, []), content(file, [" \t"])])
        )
        self.put(file, blank, [])
        return file

    def delete(self) -> str:
        file = self.chance.choice(self.files())
        self.path(file).unlink()
        return file

    def rename(self) -> str:
        file = self.chance.choice(self.files())
        to = self.some_file(file[file.index(".") :])
        self.path(file).rename(self.path(to))
        return f"{file} to {to}"

    def copy(self) -> str:
        file = self.chance.choice(self.files())
        to = self.some_file(file[file.index(".") :])
        if to != file:
            shutil.copy(self.path(file), self.path(to))
        return f"{file} to {to}"

    def misname(self) -> str:
        """Compressed bytes under the name of plain lines, which are rubbish; plain ones under a compressed one's."""
        file = self.chance.choice(self.files())
        before, ending = self.content_of(file)
        to = self.some_file(".jsonl" if ending != ".jsonl" else ".jsonl.gz")
        pieces = [piece.removesuffix(b"\r") for piece in before.split(b"\n")]
        rubbish: Lines = ["rubbish" for piece in pieces if piece.strip(b" \t")]
        self.put(to, before, rubbish if ending != ".jsonl" else None if before else [])
        return f"{file} as {to}"

    def cut(self) -> str:
        """The end is lost: of lines the last one, of anything else the whole."""
        file = self.chance.choice(self.files())
        before, ending = self.content_of(file)
        known = self.written[before, ending]
        if not known or len(before) < 8 or "rubbish" in known:
            return f"nothing of {file}"
        plain = file.endswith(".jsonl")
        self.put(file, before[: -2 if plain else -4], [*known[:-1], "cut"] if plain else None)
        return file

    def touch(self) -> str:
        file = self.chance.choice(self.files())
        os.utime(self.path(file))
        return file

    def swap(self) -> str:
        file = self.chance.choice(self.files())
        others = [other for other in self.files() if other[1:] == file[1:]]
        other = self.chance.choice(others)
        if other != file:
            aside = self.place.layout.root / "aside"
            self.path(file).rename(aside)
            self.path(other).rename(self.path(file))
            aside.rename(self.path(other))
        return f"{file} and {other}"

    def rotate(self) -> str:
        ending = self.chance.choice(ENDINGS)
        for number in reversed(range(len(NAMES) - 1)):
            if self.path(f"{number}{ending}").exists():
                self.path(f"{number}{ending}").rename(self.path(f"{number + 1}{ending}"))
        return f"*{ending}"

    # --- runs ---

    def run(self) -> None:
        """A run, or one that crashes; what is published is then that of before or of after."""
        self.place.now += timedelta(hours=self.chance.randint(1, 8))
        backfill = self.chance.random() < 0.25
        crash_at = self.chance.randrange(STEPS) if self.chance.random() < 0.4 else None
        self.story.append(f"{'backfill' if backfill else 'roll up'} at {self.place.now}, crash at {crash_at}")
        before = self.version()
        if crash_at is None:
            self.carry_out(backfill)
            ended = True
        else:
            with stepping(failing_at(crash_at)):
                try:
                    self.carry_out(backfill)
                    ended = True
                except Crash:
                    ended = False
                    self.story.append("crashed")
        if ended or self.version() != before:
            self.expect()
        if self.version():
            assert_right(self.place, self.model())
        if ended and self.version():
            assert_nothing_unfinished(self.place)

    def carry_out(self, backfill: bool) -> None:
        if backfill:
            self.place.backfill(str(FIRST), str(LAST))
        else:
            self.place.roll_up()

    def version(self) -> int:
        return self.place.ledger().publication.version

    def expect(self) -> None:
        """What counts after a run over raw/ as it is now."""
        for file in self.files():
            found = self.content_of(file)
            lines = self.written[found]
            if lines is None:
                continue  # held back: what it held before goes on counting
            if not lines and file in self.counts and self.written[self.counts[file]]:
                continue  # emptied: takes nothing back
            self.counts[file] = found
        for file in self.files():
            if self.counts.get(file) == self.content_of(file):
                self.taken_at[self.counts[file]] = self.place.now

    def lines_of(self, content: Content) -> Lines:
        """A content's lines; those from the future as what they were then: no requests."""
        latest = self.taken_at[content] + FUTURE
        return [
            "from the future" if isinstance(line, dict) and datetime.fromisoformat(line["timestamp"]) > latest else line
            for line in self.written[content] or []
        ]

    def model(self) -> Model:
        """Each content once, whatever files hold it."""
        model = recount(
            {file: self.lines_of(content) for content, file in {c: f for f, c in self.counts.items()}.items()}
        )
        by_file = {file: self.lines_of(content) for file, content in self.counts.items()}
        return replace(
            model,
            lines={file: len(lines) for file, lines in by_file.items()},
            accepted={file: sum(isinstance(line, dict) for line in lines) for file, lines in by_file.items()},
        )

    def look_again(self) -> None:
        """With nothing new a run publishes nothing, nor does a backfill; and a recount from raw/ agrees."""
        self.story.append("look again")
        self.place.roll_up()
        self.expect()
        if not self.version():
            return
        assert_right(self.place, self.model())
        version, before = self.version(), rows(self.place)
        self.place.roll_up()
        self.place.backfill(str(FIRST), str(LAST))
        assert self.version() == version, "nothing was new"
        assert rows(self.place) == before
        found = self.reconciled()
        assert found.equal, found.as_json()["differences"]
        there = {self.content_of(file) for file in self.files()}
        if there.issuperset(self.counts.values()):
            assert found.unverifiable == ()

    def reconciled(self) -> Reconciliation:
        with start_run(self.place.settings, lambda: self.place.now) as run:
            return reconcile(run, FIRST, LAST)

    def live_through(self, rounds: int) -> None:
        """So many runs, with changes before each."""
        for _ in range(rounds):
            for _ in range(self.chance.randint(1, 4)):
                self.change()
            if self.chance.random() < 0.2 and self.version():
                self.story.append("reconcile")
                assert self.reconciled().equal, "what came since is no difference"
            self.run()
        self.look_again()


CHANGES: dict[str, Callable[[Upheavals], str]] = {
    "add": Upheavals.add,
    "put back": Upheavals.put_back,
    "append to": Upheavals.append,
    "replace": Upheavals.replace,
    "empty": Upheavals.empty,
    "delete": Upheavals.delete,
    "rename": Upheavals.rename,
    "copy": Upheavals.copy,
    "misname": Upheavals.misname,
    "cut": Upheavals.cut,
    "touch": Upheavals.touch,
    "swap": Upheavals.swap,
    "rotate": Upheavals.rotate,
}


def live_for(seconds: float, seed: int, rounds: int = 5) -> int:
    """Live through one seed after the other for so long, and at least the first; how many. Raises AssertionError."""
    begun, lived = time.monotonic(), 0
    while not lived or time.monotonic() - begun < seconds:
        with tempfile.TemporaryDirectory() as folder:
            upheavals = Upheavals(seed + lived, Path(folder))
            try:
                upheavals.live_through(rounds)
            except Exception as error:
                story = "\n  ".join(upheavals.story)
                again = f"python -m tests.fuzz.upheavals 0 {seed + lived}"
                raise AssertionError(f"seed {seed + lived} ({again}):\n  {story}\n{error!r}") from error
        lived += 1
    return lived


if __name__ == "__main__":
    seconds, seed = (*map(int, sys.argv[1:]), *(600, 0)[len(sys.argv) - 1 :])
    print(f"{live_for(seconds, seed)} stories of five runs each, as the model tells them")
