"""A published day never loses requests in silence, and a run that lost none has no finding."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cli
import pipeline.contract.seam
import pipeline.intake
from pipeline.falls import MOST_LISTED
from pipeline.report import Report
from pipeline.run import start_run
from pipeline.update import PLAIN_STEPS, roll_up
from tests.conftest import Place, Record, lines, request

CASES = Path(__file__).parent / "cases"


def rows(report: Report) -> list[tuple[str | None, str, str | None, int, int]]:
    """File, day, organization and both counts of each row of the finding."""
    return [
        (row.file, str(lowered.day), row.organization_id, row.requests_before, row.requests_after)
        for lowered in report.lowered
        for row in lowered.rows
    ]


def on(day: int, *numbers: int, organization: str = "org_a", **fields: Any) -> list[Record]:
    fields = {"timestamp": f"2025-11-{day:02d}T12:00:00Z", "organization_id": organization, **fields}
    return [request(number, **fields) for number in numbers]


# --- the stories -----------------------------------------------------------------------------------------------------


def test_a_day_that_another_file_holds_in_part_does_not_hide_what_it_lost(place: Place) -> None:
    """The file has as many requests as before, and the day still has some."""
    place.write_raw("host1.jsonl", *on(12, 1, 2, 3, 4, 5))
    place.write_raw("host2.jsonl", *on(12, 6, 7, 8, 9, 10))
    assert not place.roll_up().has_findings
    place.now += timedelta(days=1)
    place.write_raw("host1.jsonl", *on(13, 11, 12, 13, 14, 15))
    report = place.roll_up()
    assert report.has_findings
    assert rows(report) == [("host1.jsonl", "2025-11-12", "org_a", 10, 5)]
    (lowered,) = report.lowered
    assert lowered.what == (
        "5 requests of org_a are not counted any more: 10 before, 5 now; the content of host1.jsonl was replaced"
    )
    assert "put its old content back below raw/ under another name" in lowered.what_to_do
    place.write_raw("host1-old.jsonl", *on(12, 1, 2, 3, 4, 5))
    assert not place.roll_up().has_findings
    assert place.usage()["org_a", "2025-11-12"][0] == 10


def test_seven_nights_of_correct_rotation_have_no_finding(place: Place) -> None:
    """Renamed at 00:00, read at 00:30; the log went on being written between the last run and its renaming."""
    log, written = place.layout.raw / "app.jsonl", 0
    for night in range(1, 8):
        place.now = datetime(2025, 11, night, 0, 30, tzinfo=UTC) + timedelta(days=1)
        with log.open("ab") as appended:  # since the last run
            appended.write(
                lines(*on(night, *range(written, written + 10 - night), timestamp=f"2025-11-{night:02d}T20:00:00Z"))
            )
        written += 10 - night
        log.rename(place.layout.raw / f"app-2025-11-{night:02d}.jsonl")
        log.write_bytes(lines(*on(night + 1, written, timestamp=f"2025-11-{night + 1:02d}T00:05:00Z")))
        written += 1
        report = place.roll_up()
        assert not report.has_findings, (night, report.as_json())
    assert sum(requests for requests, _ in place.usage().values()) == written


def test_a_log_that_grew_was_renamed_and_compressed_between_two_runs_has_no_finding(place: Place) -> None:
    place.write_raw("app.jsonl", *on(12, 1, 2))
    place.roll_up()
    place.write_raw("app-12.jsonl.gz", gzip.compress(lines(*on(12, 1, 2, 3))))
    place.write_raw("app.jsonl", *on(13, 4))
    report = place.roll_up()
    assert (report.has_findings, report.lowered) == (False, [])
    assert place.usage()["org_a", "2025-11-12"][0] == 3


def test_every_organization_is_compared_by_itself(place: Place) -> None:
    place.write_raw("a.jsonl", *on(12, 1, 2), *on(12, 1, organization="org_b"))
    place.write_raw("b.jsonl", *on(12, 1, 2, organization="org_c"))
    place.roll_up()
    place.write_raw("a.jsonl", *on(12, 1), *on(12, 1, 2, 3, 4, organization="org_b"))
    place.write_raw("b.jsonl", *on(12, 1, organization="org_c"))
    report = place.roll_up()
    assert rows(report) == [
        ("a.jsonl", "2025-11-12", "org_a", 2, 1),
        ("b.jsonl", "2025-11-12", "org_c", 2, 1),
    ]
    assert report.as_json()["lowered"][0] == {
        "file": "a.jsonl",
        "day": "2025-11-12",
        "organization_id": "org_a",
        "requests_before": 2,
        "requests_after": 1,
    }


def test_of_all_files_that_changed_only_those_that_held_lost_requests_are_named(place: Place) -> None:
    place.write_raw("grew.jsonl", *on(12, 1, 2))
    place.write_raw("moved.jsonl", *on(12, 3, 4))
    place.write_raw("ended.jsonl", *on(12, 5), *on(12, 6, api_key_id=None))
    place.write_raw("session.jsonl", *on(12, 7, 8))
    place.write_raw("lost.jsonl", *on(12, 9))
    place.roll_up()
    place.write_raw("grew.jsonl", *on(12, 1, 2), *on(13, 1))
    place.write_raw("moved.jsonl", *on(13, 2))
    place.write_raw("moved-12.jsonl", *on(12, 3, 4), *on(13, 3))
    place.write_raw("ended.jsonl", *on(12, 5), *on(13, 4))  # the request that is gone was a session's
    place.write_raw("session.jsonl", *on(12, 7), *on(12, 8, api_key_id=None))
    place.write_raw("lost.jsonl", *on(13, 5))
    report = place.roll_up()
    assert rows(report) == [
        ("lost.jsonl", "2025-11-12", "org_a", 8, 6),
        ("session.jsonl", "2025-11-12", "org_a", 8, 6),
    ]
    assert report.lowered[0].files == ("lost.jsonl", "session.jsonl")


def test_the_file_that_falls_off_a_chain_is_named(place: Place) -> None:
    raw = place.layout.raw
    found = []
    for day in range(1, 5):
        if (raw / "app.1.jsonl").exists():
            (raw / "app.1.jsonl").replace(raw / "app.2.jsonl")
        if (raw / "app.jsonl").exists():
            (raw / "app.jsonl").rename(raw / "app.1.jsonl")
        place.write_raw("app.jsonl", *on(day, day, 10 + day))
        found.append(rows(place.roll_up()))
        place.now += timedelta(days=1)
    assert found == [[], [], [], [("app.2.jsonl", "2025-11-01", "org_a", 2, 0)]]


def test_a_copy_that_makes_a_request_a_session_lowers_its_day(place: Place) -> None:
    place.write_raw("a.jsonl", *on(12, 1, 2))
    place.roll_up()
    place.write_raw("b.jsonl", *on(12, 2, api_key_id=None))
    report = place.roll_up()
    assert rows(report) == [("b.jsonl", "2025-11-12", "org_a", 2, 1)]
    assert "ingested for this day: b.jsonl" in report.lowered[0].what
    assert "'keytally history'" in report.lowered[0].what_to_do


def test_a_changed_rule_that_accepts_fewer_lines_is_a_finding(place: Place) -> None:
    header = "-- reads: jsonl\n-- prices: record\n-- units: record\n"
    columns = ("request_id", "timestamp", "organization_id", "api_key_id", "cost", "synapses", "neurons", "model")
    more = ("endpoint", "status", "input_tokens", "output_tokens")
    fields = ", ".join(f"record->>'{name}' as {name}" for name in (*columns, *more))
    text = f"{header}select line, {fields} from records"
    place.layout.formats.mkdir(parents=True)
    (place.layout.formats / "mine.sql").write_text(text)
    place.write_raw("mine/a.jsonl", *on(12, 1, 2))
    place.roll_up()
    (place.layout.formats / "mine.sql").write_text(f"{text}\nwhere record->>'request_id' != 'req_2'")
    report = place.roll_up()
    assert rows(report) == [("mine/a.jsonl", "2025-11-12", "org_a", 2, 1)]
    assert "put its old content back" not in report.lowered[0].what_to_do


def test_a_log_that_is_emptied_or_deleted_takes_nothing_back_until_it_is_written_again(place: Place) -> None:
    path = place.write_raw("a.jsonl", *on(12, 1, 2))
    place.roll_up()
    path.write_bytes(b"")
    assert not place.roll_up().has_findings
    path.unlink()
    assert not place.roll_up().has_findings
    place.write_raw("a.jsonl", *on(13, 3))
    assert rows(place.roll_up()) == [("a.jsonl", "2025-11-12", "org_a", 2, 0)]
    assert not place.roll_up().has_findings, "it is reported once"


# --- when something else goes wrong at the same time -----------------------------------------------------------------


def test_a_damaged_daily_file_is_compared_by_the_month_that_is_published(place: Place) -> None:
    place.write_raw("a.jsonl", *on(12, 1, 2), *on(13, 3))
    place.roll_up()
    for path in place.layout.daily.rglob("*.parquet"):
        path.write_bytes(b"damaged")
    place.write_raw("a.jsonl", *on(12, 1), *on(13, 3, 4))
    assert rows(place.roll_up()) == [("a.jsonl", "2025-11-12", "org_a", 2, 1)]


def test_a_day_of_which_nothing_published_can_be_read_is_compared_by_its_total(place: Place) -> None:
    place.write_raw("a.jsonl", *on(12, 1, 2))
    place.roll_up()
    for path in (*place.layout.daily.rglob("*.parquet"), *place.layout.rollups.glob("rollup=api_key_day/*/*")):
        path.write_bytes(b"damaged")
    place.write_raw("a.jsonl", *on(12, 1))
    report = place.roll_up()
    assert rows(report) == [("a.jsonl", "2025-11-12", None, 2, 1)]
    assert report.lowered[0].what.startswith("1 request is not counted any more: 2 before, 1 now;")


def test_a_file_is_named_also_if_the_events_of_its_old_content_are_gone(place: Place) -> None:
    place.write_raw("a.jsonl", *on(12, 1, 2))
    place.write_raw("b.jsonl", *on(12, 3, 4))
    place.roll_up()
    for event in place.ledger().files["a.jsonl"].take_in.events:
        event.path_in(place.layout).unlink()
    place.write_raw("a.jsonl", *on(12, 1))
    place.write_raw("b.jsonl", *on(12, 3))
    report = place.roll_up()
    assert rows(report) == [("b.jsonl", "2025-11-12", "org_a", 4, 2)]
    assert report.lowered[0].files == ("b.jsonl", "a.jsonl")


def test_the_finding_survives_a_run_that_publishes_first(place: Place) -> None:
    place.write_raw("a.jsonl", *on(12, 1, 2))
    place.roll_up()
    place.write_raw("a.jsonl", *on(12, 1))
    refused: list[int] = []

    def publish(*arguments: Any) -> int:
        if not refused:
            refused.append(1)
            place.write_raw("b.jsonl", *on(13, 7))
            other = place.roll_up()  # it ingests a.jsonl as well
            assert other.lowered
        return PLAIN_STEPS.publish(*arguments)

    with start_run(place.settings, lambda: place.now, publishes=True) as run:
        report = roll_up(run, PLAIN_STEPS._replace(publish=publish))
    assert refused
    assert rows(report) == [("a.jsonl", "2025-11-12", "org_a", 2, 1)]


def test_what_a_killed_run_published_is_reported_by_the_next_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_raw("a.jsonl", *on(12, 1, 2), *on(13, 5, 6))
    place.roll_up()
    place.write_raw("a.jsonl", *on(12, 1), *on(13, 5))

    def killed(name: str) -> None:
        if name == "write the note of the run":
            raise SystemExit

    monkeypatch.setattr(pipeline.contract.seam, "at_step", killed)
    with pytest.raises(SystemExit):
        place.roll_up()
    monkeypatch.undo()
    report = place.roll_up()
    assert not report.published
    assert rows(report) == [("a.jsonl", "2025-11-12", "org_a", 2, 1), ("a.jsonl", "2025-11-13", "org_a", 2, 1)]
    assert report.has_findings
    assert not place.roll_up().has_findings


def test_many_organizations_are_counted_and_some_of_them_named(place: Place) -> None:
    names = [f"org_{number:03d}" for number in range(MOST_LISTED + 7)]
    place.write_raw("a.jsonl", *(record for name in names for record in on(12, 1, 2, organization=name)))
    place.roll_up()
    place.write_raw("a.jsonl", *(record for name in names for record in on(12, 1, organization=name)))
    report = place.roll_up()
    (lowered,) = report.lowered
    assert (lowered.organizations, lowered.requests_before, lowered.requests_after) == (107, 214, 107)
    assert "of org_000, org_001, org_002 and 104 more organizations are" in lowered.what
    shown = report.as_json()
    assert (len(shown["lowered"]), shown["lowered_more"]) == (MOST_LISTED, 7)


# --- a rotated log that is ignored -----------------------------------------------------------------------------------


Keytally = Any


@pytest.fixture
def keytally(place: Place, monkeypatch: pytest.MonkeyPatch) -> Keytally:
    monkeypatch.setenv("KEYTALLY_DATA", str(place.layout.root))
    monkeypatch.setattr(cli, "utc_now", lambda: datetime(2026, 11, 12, 0, 30, tzinfo=UTC))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.main, arguments)

    return run


def test_a_rotated_log_that_is_ignored_is_named(place: Place, keytally: Keytally) -> None:
    """logrotate's dateext puts the date behind the ending, where no ending is looked for."""
    case = CASES / "nginx_rotated_with_dateext"
    shutil.copy(case / "prices.csv", place.layout.root)
    log = place.write_raw("nginx/access.jsonl", (case / "day1.jsonl").read_bytes())
    assert keytally("rollup").exit_code == 0
    log.rename(log.with_name("access.jsonl-20261111"))
    place.write_raw("nginx/access.jsonl", (case / "day2.jsonl").read_bytes())
    result = keytally("rollup")
    assert result.exit_code == 3
    said = " ".join(result.stderr.split())
    assert "LOWERED 2026-11-10: 3 requests of acme are not counted any more: 3 before, 0 now" in said
    assert "Probably nginx/access.jsonl-20261111, which is ignored, is the rotated log of nginx/access.jsonl" in said
    assert "rename it to access-20261111.jsonl" in said
    assert "IGNORED nginx/access.jsonl-20261111 looks like a log" in said
    log.with_name("access.jsonl-20261111").rename(log.with_name("access-20261111.jsonl"))
    assert keytally("rollup").exit_code == 0
    assert {day: requests for (_, day), (requests, _) in place.usage().items()} == {"2026-11-10": 3, "2026-11-11": 4}


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (["a.jsonl-20251110", "a.jsonl-20251112", "a.jsonl-20251111"], "a.jsonl-20251112"),
        (["a.jsonl.1", "a.jsonl.2.gz", "a.jsonl.10.gz"], "a.jsonl.1"),
        (["deep/a.jsonl.1", "b.jsonl.1"], None),
    ],
)
def test_of_several_rotated_logs_the_newest_is_named(place: Place, beside: list[str], named: str | None) -> None:
    place.write_raw("a.jsonl", *on(12, 1))
    place.roll_up()
    for file in beside:
        place.write_raw(file, *on(12, 1))
    place.write_raw("a.jsonl", *on(13, 2))
    (lowered,) = place.roll_up().lowered
    assert lowered.rotated == ((("a.jsonl", named),) if named else ())


# --- whatever is done to the files -----------------------------------------------------------------------------------

DAYS = ("2025-11-12", "2025-11-13")
ORGANIZATIONS = ("org_a", "org_b")
FILES = ("a.jsonl", "b.jsonl", "a-1.jsonl", "a-2.jsonl", "b-1.jsonl.gz", "a-1.jsonl.gz", "a.jsonl-1")
READ = FILES[:-1]


class Request(NamedTuple):
    """A line of the small world. session: without an API key, so that it does not count."""

    day: str
    organization: str
    number: int
    session: bool = False

    @property
    def identity(self) -> tuple[str, str, int]:
        return self.day, self.organization, self.number


Logs = Mapping[str, Sequence[Request]]
requests_ = st.builds(
    Request,
    st.sampled_from(DAYS),
    st.sampled_from(ORGANIZATIONS),
    st.integers(1, 5),
    st.sampled_from([False] * 9 + [True]),
)
some_requests = st.lists(requests_, min_size=1, max_size=4)
changes = st.one_of(
    st.tuples(st.sampled_from(["grow", "grow", "rewrite", "rotate"]), st.sampled_from(READ), some_requests),
    st.tuples(st.sampled_from(["rename", "copy"]), st.sampled_from(READ), st.sampled_from(FILES)),
    st.tuples(st.just("truncate"), st.sampled_from(READ), st.integers(0, 3)),
    st.tuples(st.just("delete"), st.sampled_from(FILES), st.none()),
)
nights = st.lists(st.lists(changes, min_size=1, max_size=4), min_size=2, max_size=7)


def change(logs: dict[str, list[Request]], kind: str, file: str, what: Any) -> None:
    """One change to the files below raw/, by their names; a file that is not there is made by what writes."""
    if kind == "grow":
        logs[file] = logs.get(file, []) + what
    elif kind == "rewrite":
        logs[file] = list(what)
    elif file not in logs:
        return
    elif kind == "rotate":
        logs[FILES[2 + FILES.index(file) % 2]] = logs.pop(file)
        logs[file] = list(what)
    elif kind == "rename":
        logs[what] = logs.pop(file)
    elif kind == "copy":
        logs[what] = list(logs[file])
    elif kind == "truncate":
        logs[file] = logs[file][:what]
    else:
        del logs[file]


def counted(recorded: Logs) -> dict[tuple[str, str], set[int]]:
    """The requests that must count, by day and organization: each once, unless a copy of it is a session's."""
    found = [found for log in recorded.values() for found in log]
    sessions = {found.identity for found in found if found.session}
    counts: dict[tuple[str, str], set[int]] = defaultdict(set)
    for each in found:
        if each.identity not in sessions:
            counts[each.day, each.organization].add(each.number)
    return counts


def put(place: Place, logs: Logs, before: Logs) -> None:
    for file in before.keys() - logs.keys():
        (place.layout.raw / file).unlink()
    for file, log in logs.items():
        if before.get(file) != log:
            text = lines(*(on_day(each) for each in log)) if log else b""
            place.write_raw(file, gzip.compress(text, mtime=0) if file.endswith(".gz") and log else text)


def on_day(each: Request) -> Record:
    return request(
        each.number,
        timestamp=f"{each.day}T12:00:00Z",
        organization_id=each.organization,
        api_key_id=None if each.session else "key_1",
    )


def check_finding(report: Report, was: Logs, now: Logs) -> None:
    """The finding is that of the plain recount: each organization and day that lost requests, and the right files."""
    before, after = counted(was), counted(now)
    fell = {key: (len(before[key]), len(after[key])) for key in before if len(after[key]) < len(before[key])}
    found = {(day, organization): (had, has) for _, day, organization, had, has in rows(report)}
    assert found == fell
    for day, organization in fell:
        named = {file for file, *key, _, _ in rows(report) if key == [day, organization]}
        assert named
        still_there = {each.identity for log in now.values() for each in log if not each.session}
        gone = [number for number in before[day, organization] if (day, organization, number) not in still_there]
        held = {
            number: {file for file, log in was.items() if (day, organization, number, False) in set(log)}
            for number in gone
        }
        if gone:
            assert named <= set().union(*held.values())
            assert all(named & files for files in held.values()), "each lost request has its file"
    for lowered in report.lowered:
        for file in lowered.files:
            assert file in {*was, *now}


@settings(
    max_examples=int(os.environ.get("KEYTALLY_EXAMPLES", "14")), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(nights)
def test_a_published_day_never_loses_requests_in_silence(nights: list[list[tuple[str, str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "data")
        logs: dict[str, list[Request]] = {}
        recorded: dict[str, list[Request]] = {}
        for night in nights:
            there = {file: list(log) for file, log in logs.items()}
            for each in night:
                change(logs, *each)
            put(place, logs, there)
            was = dict(recorded)
            # A file that is gone or empty takes nothing back.
            recorded |= {file: list(log) for file, log in logs.items() if file in READ and log}
            report = place.roll_up()
            check_finding(report, was, recorded)
            ignored = [file for file in logs if file not in READ]
            assert [log.file for log in report.ignored] == ignored
            assert report.has_findings == bool(report.lowered or report.disagreeing or ignored)
            usage = (
                {(day, organization): requests for (organization, day), (requests, _) in place.usage().items()}
                if report.version
                else {}
            )
            assert usage == {key: len(numbers) for key, numbers in counted(recorded).items() if numbers}
            place.now += timedelta(days=1)
