"""What every command owes whoever types it: an example, a sentence when it fails, completion; and `keytally usage`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import cli
from tests.conftest import Place, request
from tests.pricing import PricedPlace, priced
from tests.serving.traffic import publish, sums, traffic

ROOT = Path(__file__).parent.parent
MEASURES = ("requests", "cost", "synapses", "neurons")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("terminal") / "data")
    publish(place, traffic())
    return place


@pytest.fixture(autouse=True)
def in_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))


def commands(group: click.Group = cli.main) -> Iterator[click.Command]:
    """Every command, those of groups too."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield command


@pytest.mark.parametrize("by", ["day", "key", "model"])
def test_usage_has_the_sums_of_the_requests(by: str) -> None:
    field = {"day": "timestamp", "key": "api_key_id", "model": "model"}[by]
    expected = sums(traffic(), lambda record: record[field][:10] if by == "day" else record.get(field))
    done = CliRunner().invoke(cli.main, ["usage", "--org", "org_a", "--month", "2025-11", "--by", by, "--json"])
    shown = json.loads(done.stdout)
    name = {"day": "day", "key": "api_key_id", "model": "model"}[by]
    found = {row[name]: tuple(Decimal(row[measure]) for measure in MEASURES) for row in shown["rows"]}
    assert found == expected
    assert shown["total"]["cost"] == f"{sum(used[1] for used in expected.values()):f}".rstrip("0")
    assert (shown["version"], shown["as_of"]) == (1, "2025-11-15T10:30:00Z")
    text = CliRunner().invoke(cli.main, ["usage", "--org", "org_a", "--month", "2025-11", "--by", by]).stdout
    assert "█" * cli.BAR in text
    assert re.search(r"^ ?sum +171 ", text, re.MULTILINE)
    assert "Version 1, through 2025-11-15T10:30:00Z." in text


def test_usage_is_labelled_with_the_currency_that_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTALLY_CURRENCY", "USD")
    shown = CliRunner().invoke(cli.main, ["usage", "--org", "org_a", "--month", "2025-11"]).stdout
    assert ("cost, CHF" in shown, "USD" in shown) == (True, False)


def test_usage_says_of_how_many_requests_no_cost_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = PricedPlace(tmp_path / "data")
    shop.write_raw("a.jsonl", priced(1), priced(2, "llama"), priced(3, organization_id="org_b"), request(4))
    shop.roll_up()
    monkeypatch.setenv("KEYTALLY_DATA", str(shop.layout.root))
    for by in ("day", "key", "model"):
        asked = ["usage", "--org", "org_a", "--month", "2025-11", "--by", by]
        assert json.loads(CliRunner().invoke(cli.main, [*asked, "--json"]).stdout)["unpriced"] == 2
        assert "UNPRICED    2 requests of these without a cost" in CliRunner().invoke(cli.main, asked).stdout
    asked[-3] = "2025-10"
    assert "UNPRICED" not in CliRunner().invoke(cli.main, asked).stdout


def test_usage_of_nobody_is_told_from_a_data_root_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(cli.main, ["usage", "--org", "org_nobody", "--month", "2025-11"])
    assert done.exit_code == 0
    assert "made no request with an API key in 2025-11, or none is loaded" in done.stdout
    monkeypatch.setenv("KEYTALLY_DATA", str(tmp_path))
    done = CliRunner().invoke(cli.main, ["usage", "--org", "org_nobody"])
    assert (done.exit_code, "nothing is published yet" in done.stderr) == (1, True)


def test_a_bar_of_something_is_seen_and_one_of_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "data")
    costs = {"large": "999999", "tiny": "0.000000000001", "free": "0"}
    place.write_raw("a.jsonl", *(request(n, model=model, cost=cost) for n, (model, cost) in enumerate(costs.items())))
    place.roll_up()
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    shown = CliRunner().invoke(cli.main, ["usage", "--org", "org_a", "--month", "2025-11", "--by", "model"]).stdout
    bars = {line.split()[0]: line.split()[-1] for line in shown.splitlines() if line.strip().startswith(tuple(costs))}
    assert (bars["large"], bars["tiny"]) == ("█" * cli.BAR, "▏")
    assert bars["free"].isdigit()  # neurons, the last number


@pytest.mark.parametrize("month", ["2025-13", "2019-12", "November", "2025-11-01", ""])
def test_a_month_that_is_none_is_wrong_usage(month: str) -> None:
    done = CliRunner().invoke(cli.main, ["usage", "--org", "org_a", "--month", month])
    assert (done.exit_code, "--month" in done.stderr) == (2, True)


def test_a_model_cannot_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "data")
    place.write_raw("a.jsonl", request(1, model="\x1b[31mred\u202e\n"), request(2, model="sum"))
    place.roll_up()
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    done = CliRunner().invoke(cli.main, ["usage", "--org", "org_a", "--month", "2025-11", "--by", "model"])
    assert "\\x1b[31mred\\u202e\\n" in done.stdout
    assert "\x1b[31m" not in done.stdout


def test_every_command_shows_an_example_that_it_takes_and_the_readme_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new.csv").touch()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in commands():
        (example,) = re.findall(r"Example:\n +(.*)", command.epilog or "") or [""]
        assert example, command.name
        words = shlex.split(example)
        if words[0] == "eval":
            words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
        assert words.pop(0) == "keytally"
        group: click.Command = cli.main
        while isinstance(group, click.Group):
            group = group.commands[words.pop(0)]
        assert group is command
        command.make_context(command.name, words)
        parent = "keys create\\|list\\|revoke" if command in cli.keys.commands.values() else command.name
        assert f"| `keytally {parent}" in readme, command.name
        assert f"  {example}" in CliRunner().invoke(command, ["--help"]).stdout


def test_what_each_command_is_for_is_said_in_a_line_of_80_characters() -> None:
    for group in (cli.main, cli.keys):
        shown = CliRunner().invoke(group, ["--help"], terminal_width=80).stdout.partition("Commands:")[2]
        assert len(shown.strip().splitlines()) == len(group.commands)
        assert "..." not in shown


def test_a_fault_is_one_sentence_and_a_traceback_only_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault\nof ours")

    monkeypatch.setattr("pipeline.status.status_of", fail)
    done = CliRunner().invoke(cli.main, ["status"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "keytally: a fault in keytally (ZeroDivisionError: a fault of ours); report what 'keytally --debug ...' says of"
        " the same command\n"
    )
    done = CliRunner().invoke(cli.main, ["status", "--json"])
    assert "a fault in keytally" in json.loads(done.stdout)["error"]
    assert isinstance(CliRunner().invoke(cli.main, ["--debug", "status"]).exception, ZeroDivisionError)


def in_a_terminal(columns: int, *words: str, data: Path) -> str:
    """What a command writes into a terminal so wide. What moves its cursor is left out."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"KEYTALLY_DATA": str(data), "TERM": "xterm"}
    code = "import cli; cli.main(prog_name='keytally')"
    with subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, env=environment, stdout=its, stderr=its):
        os.close(its)
        written = b""
        with suppress(OSError):  # what Linux says of a terminal that nobody has open any more
            while more := os.read(ours, 2**16):
                written += more
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_a_narrow_terminal_cuts_no_number_and_no_name(tmp_path: Path, columns: int) -> None:
    place = Place(tmp_path / "data")
    place.write_raw("a/rather_long_name_of_a_file.jsonl", *(request(n, cost="1234.5") for n in range(9)), "x" * 99)
    place.roll_up()
    usage = in_a_terminal(columns, "usage", "--org", "org_a", "--month", "2025-11", data=place.layout.root)
    status = in_a_terminal(columns, "status", data=place.layout.root)
    rejected = in_a_terminal(columns, "quarantine", data=place.layout.root)
    assert re.search(r"2025-11-10 +9 +0 +11,110\.5 +0 +0", usage)
    assert len(re.findall("█+", usage)) == (columns >= 80)
    assert re.search(r"a/rather_long_name_of_a_file.jsonl +10 +9 +1", status)
    assert "".join(re.findall(r"x{5,}", rejected)) == "x" * 99
    assert "…" not in usage + status + rejected


def test_a_run_shows_how_fast_it_is_and_how_long_it_takes_yet(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    place.write_raw("a.jsonl", *(request(number) for number in range(1000)))
    written = in_a_terminal(80, "rollup", data=place.layout.root)
    written += in_a_terminal(80, "reconcile", "--from", "2025-11-10", "--to", "2025-11-10", data=place.layout.root)
    for stage in ("taking in", "rolling up days", "recounting"):
        *_, line = (line for line in re.split(r"[\r\n]", written) if line.startswith(stage))
        assert re.fullmatch(rf"{stage} .*100 % [\d,]+ rows/s +\d:\d\d:\d\d left", line)
        assert len(line) <= 80


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    assert "_KEYTALLY_COMPLETE" in CliRunner().invoke(cli.main, ["completion", shell]).stdout
    environment = {**os.environ, "_KEYTALLY_COMPLETE": "bash_complete", "COMP_WORDS": "keytally us", "COMP_CWORD": "1"}
    code = "import cli; cli.main(prog_name='keytally')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "plain,usage\n"


def test_status_ends_in_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "data")
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))

    monkeypatch.setattr(cli, "utc_now", lambda: place.now)

    def next_step() -> str:
        last = CliRunner().invoke(cli.main, ["status"]).stdout.splitlines()[-1]
        return last.removeprefix("Next").strip()

    assert next_step() == "put request logs below raw/, then keytally rollup"
    place.write_raw("a.jsonl", request(1))
    assert next_step() == "keytally rollup"
    place.roll_up()
    assert next_step().startswith("see whether logs of 2025-11-14 were delivered, or did not count")
    place.write_raw("a2.jsonl", request(10, timestamp="2025-11-14T23:59:59Z"))
    place.roll_up()
    assert next_step() == "nothing to do"
    place.write_raw("b.jsonl", request(2), "nonsense")
    place.roll_up()
    assert next_step() == "keytally quarantine shows the lines that did not count"
    place.write_raw("c.jsonl.gz", b"no gzip")
    place.roll_up()
    assert next_step().startswith("put right what the files held back need")


def test_status_sees_a_night_without_a_run_and_a_folder_without_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path / "data")
    raw = place.layout.raw
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    monkeypatch.setattr(cli, "utc_now", lambda: place.now)
    place.write_raw("a.jsonl", request(1, timestamp="2025-11-14T23:59:59Z"))
    place.roll_up()

    def told() -> tuple[str, str]:
        shown = CliRunner().invoke(cli.main, ["status"]).stdout
        missing = re.search("^NO LOGS +(.*)", shown, re.MULTILINE)
        return shown.splitlines()[-1].removeprefix("Next").strip(), missing[1] if missing else ""

    place.now += timedelta(hours=26)
    assert told() == ("nothing to do", "")
    place.now += timedelta(hours=1)
    assert told()[0].startswith("keytally rollup; and see why no run has done its work since")
    assert "As of       2025-11-15T10:30:00Z, 1 day ago" in CliRunner().invoke(cli.main, ["status"]).stdout
    raw.rename(raw.with_name("elsewhere"))  # not mounted
    raw.mkdir()
    mount = "mount raw/, then keytally rollup; nothing, if its logs were deleted on purpose"
    assert told() == (mount, f"{raw} is empty, out of which 1 file came")
    assert not place.roll_up().published
    assert f"{raw} is empty, out of which 1 file came: mount what belongs there" in caplog.text
    raw.rmdir()
    assert told() == (mount, f"{raw} is not there, out of which 1 file came")
