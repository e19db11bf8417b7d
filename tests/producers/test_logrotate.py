"""Nightly traffic, the stanzas of docs/formats.md and the real logrotate: no request is lost, and no run has a finding.

logrotate knows only today's date, so these tests play the calendar: after each rotation a log with today's date in its
name gets the date of the night that is played.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.report import Report
from tests.conftest import Place
from tests.producers.make_nginx import DOCS

LOGROTATE = shutil.which("logrotate", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
STANZA = re.compile(r"^```logrotate\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STANZAS = {
    "dateext": lambda text: " dateext" in text and "copytruncate" not in text,
    "number": lambda text: "nodateext" in text,
    "copytruncate": lambda text: "copytruncate" in text,
}
DOCUMENTED_LOG = "/srv/keytally/data/raw/nginx/access.jsonl"
DOCUMENTED_RUN = "runuser -u keytally -- env KEYTALLY_DATA=/srv/keytally/data keytally rollup"
ROOT = Path(__file__).parents[2]
FIRST_DAY = datetime(2026, 11, 1, tzinfo=UTC)
needs_logrotate = pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed (Debian: logrotate)")


def stanza(name: str) -> str:
    """Return the documented stanza of this kind."""
    (found,) = [text for text in STANZA.findall(DOCS.read_text(encoding="utf-8")) if STANZAS[name](text)]
    return found


# The command that logrotate runs, at the midnight that is played.
AT_THE_CLOCK = """import datetime, pathlib, cli
cli.utc_now = lambda: datetime.datetime.fromisoformat(pathlib.Path("{clock}").read_text())
cli.main(["rollup"])
"""


class Night:
    """A log that nginx writes and logrotate rotates, and the data root above it."""

    def __init__(self, root: Path, text: str) -> None:
        self.place = Place(root / "data", KEYTALLY_CURRENCY="USD")
        self.place.layout.root.chmod(0o700)  # logrotate refuses folders that others may write to
        (self.place.layout.root / "prices.csv").write_text(
            "model,valid_from,input_per_million,output_per_million,currency\ngpt-4o,2026-01-01,2.5,10,USD\n"
        )
        self.log = self.place.layout.raw / "nginx/access.jsonl"
        self.log.parent.mkdir(parents=True, mode=0o755)
        self.state = root / "state"
        self.config = root / "stanza"
        self.day = FIRST_DAY
        self.written = 0
        run = f"env PYTHONPATH={ROOT} KEYTALLY_DATA={self.place.layout.root} KEYTALLY_CURRENCY=USD"
        self.clock, command = root / "clock", root / "run.py"
        command.write_text(AT_THE_CLOCK.format(clock=self.clock), encoding="utf-8")
        text = text.replace(DOCUMENTED_RUN, f"{run} {sys.executable} {command} > {root}/run.out 2>&1")
        text = re.sub(r"create 0640 \S+ \S+", "create", text)
        self.config.write_text(
            text.replace("/srv/keytally/data/raw/nginx/access.jsonl", str(self.log)), encoding="utf-8"
        )
        self.config.chmod(0o600)

    def traffic(self, requests: int) -> None:
        """Append requests of this day, as nginx does: 0.0035 dollars each."""
        with self.log.open("a", encoding="utf-8") as log:
            for _ in range(requests):
                self.written += 1
                moment = self.day + timedelta(hours=12, seconds=self.written)
                record = {
                    "request_id": f"{self.written:032x}",
                    "msec": moment.timestamp(),
                    "request_time": 0.25,
                    "status": 200,
                    "uri": "/v1/chat/completions",
                    "upstream_addr": "127.0.0.1:9000",
                    "upstream_status": "200",
                    "http_x_org_id": "acme",
                    "http_x_api_key_id": "key_a",
                    "http_x_model": "gpt-4o",
                    "upstream_x_prompt_tokens": "1000",
                    "upstream_x_completion_tokens": "100",
                }
                log.write(json.dumps(record) + "\n")

    def rotate(self) -> None:
        """Run the real logrotate, and name its rotated log by the day that is played."""
        self.clock.write_text((self.day + timedelta(days=1)).isoformat(), encoding="utf-8")
        command = [LOGROTATE or "", "--force", "--state", str(self.state), str(self.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        today = f"{datetime.now().astimezone():%Y%m%d}"
        for path in self.log.parent.rglob(f"*-{today}.*"):
            path.rename(path.with_name(path.name.replace(today, f"{self.day:%Y%m%d}")))

    def report(self) -> Report:
        """Run keytally in the night after this day; return what the run reports."""
        self.place.now = self.day + timedelta(days=1, minutes=30)
        return self.place.roll_up()

    def roll_up(self) -> bool:
        """Run keytally in the night after this day; return whether the run had findings."""
        return self.report().has_findings


@needs_logrotate
@pytest.mark.parametrize(
    "more",
    ["", "compress\n", "compress\n    delaycompress\n", "olddir rotated\n    createolddir 0755\n"],
    ids=["plain", "compress", "delaycompress", "olddir"],
)
@pytest.mark.parametrize("name", list(STANZAS))
def test_seven_nights_lose_no_request_and_make_no_finding(name: str, more: str, tmp_path: Path) -> None:
    night = Night(tmp_path, stanza(name).replace("daily\n", f"daily\n    {more}"))
    expected = {}
    for number in range(7):
        night.day = FIRST_DAY + timedelta(days=number)
        night.traffic(3)
        if number % 2:  # keytally may have read a part of the log, or nothing, before it is rotated
            assert not night.roll_up()
        night.traffic(number + 1)
        night.rotate()
        assert not night.roll_up()
        expected["acme", str(night.day.date())] = (number + 4, (Decimal("0.0035") * (number + 4)).normalize())
        assert night.place.usage() == expected
    names = {path.name for path in night.log.parent.rglob("*") if path.is_file()}
    assert len(names) >= 7
    assert all(re.search(r"\.jsonl(\.gz)?$", name) for name in names), names


@needs_logrotate
def test_a_rotation_whose_run_of_keytally_fails_does_not_happen(tmp_path: Path) -> None:
    night = Night(tmp_path, stanza("copytruncate"))
    night.traffic(3)
    (night.place.layout.root / "prices.csv").write_text("no price book\n")
    command = [LOGROTATE or "", "--force", "--state", str(night.state), str(night.config)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert len(night.log.read_text(encoding="utf-8").splitlines()) == 3
    assert [path.name for path in night.log.parent.iterdir()] == ["access.jsonl"]


@needs_logrotate
@pytest.mark.parametrize(
    ("name", "word", "other", "nights", "file"),
    [
        ("dateext", "    extension .jsonl\n", "", 1, "nginx/access.jsonl"),
        ("number", "rotate -1", "rotate 2", 3, "nginx/access.2.jsonl"),
    ],
    ids=["rotated-log-without-its-ending", "chain-with-an-end"],
)
def test_a_stanza_without_its_words_is_a_finding(
    name: str, word: str, other: str, nights: int, file: str, tmp_path: Path
) -> None:
    """Each night's log is rotated before the next day's first request, and keytally runs before and after."""
    text = stanza(name)
    assert word in text
    night = Night(tmp_path, text.replace(word, other))
    for number in range(nights):
        night.day = FIRST_DAY + timedelta(days=number)
        night.traffic(3)
        assert not night.roll_up()
        night.rotate()
    night.day += timedelta(days=1)
    night.traffic(1)
    told = night.report()
    assert told.has_findings
    assert told.as_json()["lowered"] == [
        {
            "file": file,
            "day": "2026-11-01",
            "organization_id": "acme",
            "requests_before": 3,
            "requests_after": 0,
        }
    ]
    if not other:
        (day,) = told.lowered
        assert day.rotated == (("nginx/access.jsonl", f"nginx/access.jsonl-{datetime.now().astimezone():%Y%m%d}"),)


@pytest.mark.parametrize("was_read", [True, False])
def test_a_log_that_is_emptied_in_place_is_missed_if_keytally_had_read_it(was_read: bool, tmp_path: Path) -> None:
    night = Night(tmp_path, "")
    night.traffic(2)
    assert not night.roll_up()
    night.traffic(3)
    if was_read:
        assert not night.roll_up()
    night.log.write_text("")
    assert not night.roll_up(), "an empty log takes nothing back"
    night.day += timedelta(days=1)
    night.traffic(1)
    (lowered,) = night.report().as_json()["lowered"]
    assert (lowered["file"], lowered["day"]) == ("nginx/access.jsonl", "2026-11-01")
    assert (lowered["requests_before"], lowered["requests_after"]) == (5 if was_read else 2, 0)
