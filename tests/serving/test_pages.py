"""The pages over real HTTP: who gets in, what they show, what leaves them. In a browser: test_pages_in_a_browser."""

from __future__ import annotations

import json
import logging
import re
import stat
import threading
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.keys import CreatedKey, RegistryUnavailable
from serving.pages.charts import HEIGHT, LOW, axis_to, small, stacked
from serving.pages.drawn import ASSETS, STYLE
from serving.pages.figures import Places, figure, percent, places_of, short, visible
from serving.pages.sessions import SESSION_SECONDS, Sessions
from tests.conftest import Place, request
from tests.serving.conftest import NOW, LiveServer, eventually, settings_for
from tests.serving.traffic import publish, traffic

LARGEST_PAGE = 60_000  # bytes, with its style
MONTH = "/usage/org_a/2025-11"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg></title><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "<" * 256,
    "\U000e0001" * 256,
    "x" * 256,
    "مرحبا بالعالم",
    "\u202eevil",
    "",
    None,
)


class Visitor:
    """A browser's requests, without the browser: forms with their origin, cookies kept, redirects followed by hand."""

    def __init__(self, server: LiveServer, key: CreatedKey | None = None) -> None:
        self.client = httpx.Client(base_url=server.url, timeout=20)
        self.headers = {"Accept": "text/html,*/*;q=0.8", "Origin": server.url}
        if key is not None:
            assert self.sign_in(key.key).status_code == 303

    def sign_in(self, key: str, **fields: str) -> httpx.Response:
        return self.client.post("/", data={"key": key, **fields}, headers=self.headers)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers={**self.headers, **headers})


class Rows(HTMLParser):
    """The texts of the cells of every table of a page, and every element and attribute in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data


def number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Traffic of org_a and org_b; org_h has hostile models, and a day without requests that is loaded."""
    place = Place(tmp_path_factory.mktemp("pages") / "data")
    hostile = [
        request(n, organization_id="org_h", model=model, cost=f"{n}.5", timestamp="2025-11-02T08:00:00Z")
        for n, model in enumerate(HOSTILE, 2000)
    ]
    place.now = NOW
    publish(place, [*traffic(), *hostile])
    return place


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[LiveServer]:
    with LiveServer(settings_for(place.layout.root)) as running:
        yield running


@pytest.fixture
def visitor(server: LiveServer) -> Visitor:
    return Visitor(server, server.create_key("org_a"))


# --- signing in and out ----------------------------------------------------------------------------------------------


def test_a_session_is_a_cookie_that_no_script_and_no_other_site_has(server: LiveServer) -> None:
    answer = Visitor(server).sign_in(server.create_key("org_a").key)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    note, *attributes = answer.headers["set-cookie"].split("; ")
    assert set(attributes) == {"Path=/", f"Max-Age={SESSION_SECONDS}", "HttpOnly", "SameSite=Strict"}
    assert re.fullmatch(r"keytally_session=key_[0-9a-f]{16}\.\d+\.[A-Za-z0-9_-]{43}", note)


@pytest.mark.parametrize("header", [{"X-Forwarded-Proto": "https"}, {"Origin": "https://{host}"}])
def test_behind_tls_the_cookie_is_sent_over_tls_alone(server: LiveServer, header: dict[str, str]) -> None:
    visitor = Visitor(server)
    visitor.headers |= {name: value.format(host=server.url[7:]) for name, value in header.items()}
    assert visitor.sign_in(server.create_key("org_a").key).headers["set-cookie"].endswith("; Secure")


def test_the_key_is_in_no_url_no_log_and_no_page(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    key = server.create_key("org_a")
    with caplog.at_level(logging.DEBUG):
        visitor = Visitor(server)
        answers = [visitor.sign_in(key.key, next=f"/{key.key}"), visitor.sign_in(f"{key.key}x")]
        answers += [visitor.get("/"), visitor.get(MONTH), visitor.get("/usage/org_b/2025-11")]
    secret = key.key.removeprefix("kt_")
    for answer in answers:
        assert secret not in answer.text + str(answer.headers) + str(answer.url)
    assert '"route":"/usage/{org_id}/{period}"' in caplog.text
    assert secret not in caplog.text
    assert "org_a" not in "".join(record.message for record in caplog.records if record.name.startswith("keytally"))


def test_a_session_ends_within_a_second_of_its_key(server: LiveServer) -> None:
    key = server.create_key("org_a")
    visitor = Visitor(server, key)
    assert visitor.get(MONTH).status_code == 200
    server.keys.revoke(key.id, now=NOW)
    assert eventually(lambda: visitor.get(MONTH).status_code == 401) < 1
    assert "has been revoked" in visitor.get(MONTH).text
    assert "has been revoked" in visitor.sign_in(key.key).text


def test_a_session_ends_by_itself_and_when_its_key_expires(place: Place) -> None:
    begun = NOW.replace(microsecond=0)
    now = [begun]
    with LiveServer(settings_for(place.layout.root), clock=lambda: now[0]) as server:
        long = Visitor(server, server.create_key("org_a"))
        short = Visitor(server, server.create_key("org_a", begun + timedelta(hours=1)))
        now[0] += timedelta(hours=1)
        assert (long.get(MONTH).status_code, short.get(MONTH).status_code) == (200, 401)
        assert "has expired" in short.get(MONTH).text
        now[0] = begun + timedelta(seconds=SESSION_SECONDS - 1)
        assert long.get(MONTH).status_code == 200
        now[0] += timedelta(seconds=1)
        assert long.get(MONTH).status_code == 401
        assert "Sign in to see this page" in long.get(MONTH).text


def test_signing_out_forgets_the_session(visitor: Visitor) -> None:
    assert "Sign out" in visitor.get("/").text
    answer = visitor.client.post("/", data={"sign_out": "yes"}, headers=visitor.headers)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert not visitor.client.cookies
    assert "Reading key" in visitor.get("/").text
    assert "Whoever runs this service makes you a key" in visitor.get("/").text


def test_a_session_outlives_a_restart_and_is_good_with_every_worker(place: Place) -> None:
    settings = settings_for(place.layout.root)
    with LiveServer(settings) as first, LiveServer(settings, workers=2) as second:
        visitor = Visitor(first, first.create_key("org_a"))
        note = {"Cookie": f"keytally_session={visitor.client.cookies['keytally_session']}"}
        assert second.client.get(MONTH, headers=note).status_code == 200
    with LiveServer(settings) as later:
        assert later.client.get(MONTH, headers=note).status_code == 200


def test_a_note_that_is_not_ours_is_none(server: LiveServer, tmp_path: Path) -> None:
    key = server.create_key("org_a")
    other = server.create_key("org_b")
    visitor = Visitor(server, key)
    note = visitor.client.cookies["keytally_session"]
    sessions = Sessions(tmp_path / "keys.sqlite")
    sessions.open()
    id, end, signature = note.split(".")
    for forged in (
        sessions.issue(key.id, NOW),
        f"{other.id}.{end}.{signature}",
        f"{id}.{int(end) + 1}.{signature}",
        f"{id}.{end}.{signature[:-2]}AA",
        f"{id}.{end}.",
        "",
        "é",
        key.key,
    ):
        headers = {b"Cookie": f"keytally_session={forged}".encode("latin-1")}
        assert server.client.get(MONTH, headers=headers).status_code == 401, forged
    assert server.client.get(MONTH, headers={"Cookie": f"a=b; keytally_session={note}; c"}).status_code == 200


@pytest.mark.parametrize("secret", [b"", bytes(31)])
def test_a_secret_that_anybody_could_guess_signs_nothing(tmp_path: Path, secret: bytes) -> None:
    sessions = Sessions(tmp_path / "keys.sqlite")
    sessions.path.write_bytes(secret)
    with pytest.raises(RegistryUnavailable, match="no secret of 32 bytes; delete it"):
        sessions.open()


def test_workers_that_start_together_have_one_secret_which_only_the_owner_reads(tmp_path: Path) -> None:
    sessions = [Sessions(tmp_path / "keys.sqlite") for _ in range(20)]
    threads = [threading.Thread(target=each.open) for each in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.issue("key_0123456789abcdef", NOW) for each in sessions}) == 1
    (secret,) = tmp_path.iterdir()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "://"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "{own}"},
        {"Sec-Fetch-Site": "same-site", "Origin": "{own}"},
        {"Sec-Fetch-Site": "none"},
    ],
)
@pytest.mark.parametrize("form", [{"key": "{key}"}, {"sign_out": "yes"}])
def test_a_form_of_another_site_does_nothing(
    server: LiveServer, visitor: Visitor, headers: dict[str, str], form: dict[str, str]
) -> None:
    sent = {name: value.format(own=server.url) for name, value in headers.items()} | {"Accept": "text/html"}
    filled = {name: value.format(key=server.create_key("org_b").key) for name, value in form.items()}
    answer = visitor.client.post("/", data=filled, headers=sent)
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert "org_a" in visitor.get("/").text


def test_a_browser_that_says_where_a_form_is_from_need_not_know_the_proxy_s_name_for_us(server: LiveServer) -> None:
    visitor = Visitor(server)
    visitor.headers |= {"Sec-Fetch-Site": "same-origin", "Origin": "https://usage.example.com"}
    assert visitor.sign_in(server.create_key("org_a").key).status_code == 303


def test_only_a_browser_signs_in(server: LiveServer) -> None:
    answer = server.client.post("/", data={"key": server.create_key("org_a").key}, headers={"Origin": server.url})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FOREIGN_FORM")


@pytest.mark.parametrize(
    ("asked", "led_to"),
    [
        ("/usage/org_a/2025-10?group_by=model", "/usage/org_a/2025-10?group_by=model"),
        ("/overview/2025-11", "/overview/2025-11"),
        *(
            (foreign, "/")
            for foreign in (
                "//evil.example",
                "https://evil.example",
                "/docs",
                "/usage/../x",
                "/\r\nX: y",
                "/usage/org_a/2025-10\r\nX: y",
                "/usage/org_a/2025-10\n",
                "/usage/org_a/2025-10/../../../docs",
                "/usage/org_a/2025-10?group_by=model#x",
            )
        ),
    ],
)
def test_signing_in_leads_to_the_page_that_was_asked_for_and_to_no_other_site(
    server: LiveServer, asked: str, led_to: str
) -> None:
    answer = Visitor(server).sign_in(f"  {server.create_key('org_a').key}\n", next=asked)
    assert (answer.status_code, answer.headers["location"]) == (303, led_to)


def test_a_page_that_wants_a_session_asks_for_one_and_remembers_itself(server: LiveServer) -> None:
    answer = Visitor(server).get(f"{MONTH}?group_by=model&measure=requests")
    assert answer.status_code == 401
    assert f'name="next" value="{MONTH}?group_by=model&amp;measure=requests"' in answer.text
    assert 'value="/"' in Visitor(server).get(f"{MONTH}?%22%3E%3Cscript%3E").text


def test_wrong_keys_are_slowed_down_and_a_good_one_gets_in(place: Place) -> None:
    with LiveServer(settings_for(place.layout.root)) as server:
        visitor = Visitor(server)
        tries = [visitor.sign_in("kt_" + "A" * 43).status_code for _ in range(25)]
        assert tries == [401] * 20 + [429] * 5
        assert 1 <= int(visitor.sign_in("x").headers["retry-after"]) <= 60
        assert visitor.sign_in(server.create_key("org_a").key).status_code == 303


def test_a_form_that_is_none_is_refused(server: LiveServer) -> None:
    visitor = Visitor(server)
    assert visitor.sign_in("").status_code == 401
    assert visitor.sign_in("x" * 5000).status_code == 400
    answer = visitor.client.post("/", content=b"\xff%%&&==", headers=visitor.headers)
    assert answer.status_code == 401


def test_pages_are_counted_against_the_organization_s_limit(place: Place) -> None:
    with LiveServer(settings_for(place.layout.root, KEYTALLY_RATE_LIMIT="3/hour")) as server:
        key = server.create_key("org_a")
        visitor = Visitor(server, key)
        assert [visitor.get(MONTH).status_code for _ in range(3)] == [200] * 3
        assert visitor.get(MONTH).status_code == 429
        assert server.daily(key).status_code == 429


# --- who sees what ---------------------------------------------------------------------------------------------------


def test_another_organization_s_page_is_not_told_from_nobody_s(visitor: Visitor) -> None:
    pages = [visitor.get(f"/usage/{name}/2025-11", **{"X-Request-Id": "t"}) for name in ("org_b", "org_nobody", "ä b")]
    assert {page.status_code for page in pages} == {403}
    assert len({page.content for page in pages}) == 1
    for path in ("/usage/org_b/2025", "/usage/org_b/2025-11.csv", "/overview/2025-11"):
        assert visitor.get(path).status_code == 403


def test_nobody_is_shown_a_page_that_was_made_for_another(server: LiveServer) -> None:
    a, b, operator = (Visitor(server, key) for key in (server.create_key("org_a"), server.create_key("org_b"), None))
    operator.sign_in(server.keys.create_operator(now=NOW).key)
    for _ in range(2):  # the second time from what is kept
        for visitor, own in ((a, "org_a"), (b, "org_b")):
            home = visitor.get("/").text
            assert f"<bdi>{own}</bdi>" in home
            assert not {"org_a", "org_b", "All organizations"} - {own} & {
                *re.findall(r"org_\w|All organizations", home)
            }
        assert "All organizations" in operator.get("/").text
        assert "All organizations" in operator.get(MONTH).text
        assert "All organizations" not in a.get(MONTH).text


@pytest.mark.parametrize(
    ("page", "before", "behind"),
    [
        ("/usage/org_a/2020-01", None, "2020-02"),
        ("/usage/org_a/2025-01", "2024-12", "2025-02"),
        ("/usage/org_a/2025-10", "2025-09", "2025-11"),
        ("/usage/org_a/2025-11", "2025-10", None),
        ("/usage/org_a/2030-12", "2030-11", None),
        ("/usage/org_a/2020", None, "2021"),
        ("/usage/org_a/2025", "2024", None),
        ("/usage/org_a/2030", "2029", None),
    ],
)
def test_one_goes_back_to_the_first_month_and_forward_to_the_newest(
    visitor: Visitor, page: str, before: str | None, behind: str | None
) -> None:
    steps = re.findall(r'href="/usage/org_a/([0-9-]+)[^"]*" rel="(prev|next)"', visitor.get(page).text)
    assert {rel: period for period, rel in steps} == {
        rel: period for rel, period in (("prev", before), ("next", behind)) if period
    }


def test_an_operator_sees_every_organization_and_how_the_data_stands(server: LiveServer) -> None:
    visitor = Visitor(server, server.keys.create_operator(now=NOW))
    page = visitor.get("/").text
    assert "All organizations" in page
    by_cost, changes = Rows(page).tables[-2:]
    costs = {row[0]: number(row[2]) for row in by_cost[1:]}
    assert costs == {name: _cost(server, name) for name in ("org_a", "org_b", "org_h")}
    assert [row[0] for row in by_cost[1:]] == sorted(costs, key=lambda name: -costs[name])
    assert {row[0] for row in changes[1:]} <= set(costs)
    assert "empty: every line of 1 file counts" in page
    assert visitor.get("/usage/org_b/2025-11").status_code == 200
    assert visitor.get("/usage/org%20b/2025-11").status_code == 400


def test_an_operator_sees_no_zero_for_a_month_that_is_not_loaded(server: LiveServer) -> None:
    page = Visitor(server, server.keys.create_operator(now=NOW)).get("/overview/2025-09").text
    assert "Nothing of this month is loaded: there are no numbers to show." in page
    assert "0.00" not in page
    assert "Nobody used anything" not in page
    assert "30 days: 1, 2, 3" in page


def test_an_operator_sees_that_a_night_went_by_without_a_run(place: Place) -> None:
    now = [place.now + timedelta(hours=26)]
    with LiveServer(settings_for(place.layout.root), clock=lambda: now[0]) as server:
        visitor = Visitor(server, server.keys.create_operator(now=now[0]))
        for path in ("/", "/overview/2025-10"):
            assert "No run has done its work" not in visitor.get(path).text
        now[0] += timedelta(seconds=1)
        for path in ("/", "/overview/2025-10"):
            assert "No run has done its work for more than a day" in visitor.get(path).text


def test_the_changes_of_an_overview_stand_in_line(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    costs = (("org_a", 10, "1.5"), ("org_a", 11, "0.00025"), ("org_b", 11, "7"))
    records = [
        request(number, organization_id=name, cost=cost, timestamp=f"2025-{month}-10T08:00:00Z")
        for number, (name, month, cost) in enumerate(costs)
    ]
    publish(place, records)
    with LiveServer(settings_for(place.layout.root)) as server:
        changes = Rows(Visitor(server, server.keys.create_operator(now=NOW)).get("/").text).tables[-1]
    assert changes[1:] == [["org_b", "0.00000", "7.00000", "new"], ["org_a", "1.50000", "0.00025", "−100.0 %"]]


def test_an_operator_sees_the_files_with_most_quarantined_lines_and_each_content_once(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    place.write_raw("a.jsonl", request(1), "bad")
    place.write_raw("b.jsonl", request(2), "bad", "worse")
    place.write_raw("c.jsonl", request(1), "bad")  # the same again
    place.write_raw("d.jsonl", request(4))
    place.roll_up()
    with LiveServer(settings_for(place.layout.root)) as server:
        page = Visitor(server, server.keys.create_operator(now=NOW)).get("/").text
    assert "3 lines in 2 files of 3; 3 of them by the newest run" in page
    assert Rows(page).tables[0][1:] == [["b.jsonl", "2", "3"], ["a.jsonl", "1", "2"]]


def test_an_overview_begins_with_the_dearest_and_with_the_biggest_change(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    costs = {"org_a": ("9", "1"), "org_b": ("4", "5"), "org_c": ("3.5", "3")}
    records = [
        request(month, organization_id=name, cost=cost, timestamp=f"2025-{month}-10T08:00:00Z")
        for name, both in costs.items()
        for month, cost in zip((10, 11), both, strict=True)
    ]
    publish(place, records)
    with LiveServer(settings_for(place.layout.root)) as server:
        *_, by_cost, changes = Rows(Visitor(server, server.keys.create_operator(now=NOW)).get("/").text).tables
    assert [row[0] for row in by_cost[1:]] == ["org_b", "org_c", "org_a"]
    assert [row[0] for row in changes[1:]] == ["org_a", "org_b", "org_c"]


def _cost(server: LiveServer, organization: str) -> Decimal:
    answer = server.daily(server.create_key(organization))
    return Decimal(json.loads(answer.text, parse_float=Decimal)["summary"]["totalApiKeyCost"])


# --- what they show --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("organization", ["org_a", "org_b", "org_h"])
def test_the_numbers_of_a_page_are_those_of_the_api_to_the_last_digit(server: LiveServer, organization: str) -> None:
    key = server.create_key(organization)
    page = Visitor(server, key).get(f"/usage/{organization}/2025-11?group_by=model").text
    api = json.loads(server.daily(key, "year=2025&month=11&group_by=model").text, parse_float=Decimal)
    groups, days = Rows(page).tables
    shown = {row[0].split()[1]: [number(cell) for cell in row[1:]] for row in days[1:-1] if len(row) == 5}
    asked = {
        str(int(day["date"][8:])): [day["requests"], day["cost"], day["synapses"], day["neurons"]]
        for day in api["dailyUsage"]
    }
    assert {day: row for day, row in shown.items() if any(row)} == asked
    summary = api["summary"]
    assert [number(cell) for cell in days[-1][1:]] == [
        summary["totalApiKeyRequests"],
        summary["totalApiKeyCost"],
        summary["total_synapses"],
        summary["totalNeurons"],
    ]
    sums: dict[str | None, Decimal] = {}
    for day in api["dailyUsage"]:
        for group in day["groups"]:
            sums[group["model"]] = sums.get(group["model"], Decimal(0)) + group["cost"]
    names = {"no model named": None, "a name without characters": ""}
    found = [(row[0].strip(), number(row[2])) for row in groups[1:]]
    assert [cost for _, cost in found] == sorted(sums.values(), reverse=True)
    assert {name: cost for name, cost in found if name in names} == {
        name: sums[value] for name, value in names.items() if value in sums
    }


def test_the_csv_of_a_page_is_the_api_s(server: LiveServer) -> None:
    key = server.create_key("org_a")
    visitor = Visitor(server, key)
    for query, grouped in (("", ""), ("group_by=model", "-by-model"), ("group_by=api_key", "-by-api_key")):
        page = visitor.get(f"{MONTH}.csv?{query}")
        api = server.daily(key, f"year=2025&month=11&{query}", Accept="text/csv")
        assert page.content == api.content
        assert page.headers["content-type"] == api.headers["content-type"]
        assert page.headers["content-disposition"] == f'attachment; filename="usage-org_a-2025-11{grouped}.csv"'


def test_a_day_that_is_not_loaded_is_no_zero(server: LiveServer, visitor: Visitor) -> None:
    page = visitor.get(MONTH).text
    *_, days = Rows(page).tables
    words = {row[0].split()[1]: row[1:] for row in days[1:-1]}
    assert words["4"] == ["not loaded"]
    assert [number(cell) for cell in words["3"]] == [0, 0, 0, 0]  # a session, no key
    assert "16" not in words  # it is still to come
    assert page.count('class="zero"') == sum(row[0] == "0" for row in words.values())
    assert page.count('%" height="232" fill="url(#hatch)"') == sum(row == ["not loaded"] for row in words.values())
    assert "are not loaded (4," in page
    assert "their logs have not come in. What was used then is not in these sums, and is added when they do." in page
    assert "17 of these days are not loaded" in page  # of the 28 that are compared


def test_today_without_a_record_is_not_loaded_and_tomorrow_is_to_come(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    publish(place, [request(1, timestamp="2025-11-14T08:00:00Z")])
    with LiveServer(settings_for(place.layout.root)) as server:
        days = Rows(Visitor(server, server.create_key("org_a")).get(MONTH).text).tables[1]
    assert [row[0].split() for row in days[-3:]] == [["Fri", "14"], ["Sat", "15"], ["Sum"]]
    assert days[-2][1:] == ["not loaded"]


def test_a_month_is_compared_with_as_many_days_of_the_one_before(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    records = [
        request(day * 10 + month, timestamp=f"2025-{month}-{day:02}T08:00:00Z", cost="2" if month == 10 else "3")
        for month, last in ((10, 31), (11, 15))
        for day in range(1, last + 1)
    ]
    publish(place, records)
    with LiveServer(settings_for(place.layout.root)) as server:
        visitor = Visitor(server, server.create_key("org_a"))
        running = " ".join(re.sub("<[^>]*>", "", visitor.get(MONTH).text).split())
        assert "Days 1–14: 50.0 % more than the same days of October 2025 (28.00 CHF)" in running
        whole = " ".join(re.sub("<[^>]*>", "", visitor.get("/usage/org_a/2025-10").text).split())
        assert "Nothing to compare with: September 2025 is not loaded" in whole
        assert "not loaded" not in running.partition("Requests")[0]
        page = visitor.get("/usage/org_a/2025").text
        assert "logs have not come in" not in page
        year = Rows(page).tables[0]
        assert [row for row in year if row[0].startswith(("October", "November"))] == [
            ["October", "31", "62.00", "0", "0"],
            ["November not over yet", "15", "45.00", "0", "0"],
        ]


def test_a_year_says_of_which_months_not_every_day_is_loaded(server: LiveServer, visitor: Visitor) -> None:
    page = visitor.get("/usage/org_a/2025").text
    months = {row[0].partition(" ")[0]: row for row in Rows(page).tables[0][1:-1]}
    assert months["September"] == ["September", "not loaded"]
    assert months["October"][0] == "October 26 days not loaded"
    assert months["November"][0] == "November not over yet 8 days not loaded"
    assert "34 days of published months are not loaded: their logs have not come in." in page


def test_what_is_not_loaded_has_no_sums(visitor: Visitor) -> None:
    for path, notice in (
        ("2025-09", "Nothing of this month is loaded: there"),
        ("2025-12", "Nothing of this month is loaded yet: there"),
        ("2024", "Nothing of this year is loaded: there"),
        ("2026", "Nothing of this year is loaded yet: there"),
    ):
        page = visitor.get(f"/usage/org_a/{path}").text
        assert notice in page
        assert "0.00<" not in page
        assert ("<figure" in page) == (path == "2025-09")  # whose days are drawn as what they are


def test_a_bar_of_nothing_is_a_zero_of_what_the_bars_show(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    publish(place, [request(day, timestamp=f"2025-11-{day:02}T08:00:00Z", cost="0") for day in range(1, 15)])
    with LiveServer(settings_for(place.layout.root)) as server:
        visitor = Visitor(server, server.create_key("org_a"))
        cost, requests, before = (
            visitor.get(f"/usage/org_a/{asked}").text for asked in ("2025-11", "2025-11?measure=requests", "2025-10")
        )
    assert (cost.count('class="zero"'), requests.count('class="zero"')) == (14, 0)
    assert "All that is known is zero." in cost
    assert "The most was 1 requests, on 1 November 2025." in requests
    assert "Nothing is known of it." in before


def test_a_longer_month_is_compared_with_all_of_a_shorter_one(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    place.now = NOW.replace(month=3, day=31)
    publish(
        place,
        [
            request(number, timestamp=f"2025-{number // 31 + 2:02}-{number % 31 + 1:02}T08:00:00Z")
            for number in range(61)
            if number not in (10, 28, 29, 30, 40)
        ],
    )
    with LiveServer(settings_for(place.layout.root)) as server:
        page = Visitor(server, server.create_key("org_a")).get("/usage/org_a/2025-03").text
        words = " ".join(re.sub("<[^>]*>", "", page).split())
        assert "Days 1–30: 7.4 % more than all of February 2025 (6.75 CHF); 2 of these days are not loaded" in words


def test_a_key_is_called_by_its_name_wherever_it_is_told_from_others(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    publish(place, [request(number, api_key_id=f"key_{number}", cost=f"{number}.5") for number in (1, 2)])
    names = "organization_id,api_key_id,name\norg_a,key_1,<b>Production</b>\norg_b,key_2,Of another\n"
    (place.layout.root / "key_names.csv").write_text(names)
    with LiveServer(settings_for(place.layout.root)) as server:
        page = Visitor(server, server.create_key("org_a")).get(MONTH).text
        assert re.findall("<bdi>(.*?)</bdi></li>", page) == ["key_2", "&lt;b&gt;Production&lt;/b&gt;"]
        assert [row[0].split() for row in Rows(page).tables[0][1:]] == [["key_2"], ["<b>Production</b>", "key_1"]]


def test_a_page_that_was_shown_before_has_the_names_that_came_since(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    publish(place, [request(1)])
    with LiveServer(settings_for(place.layout.root, KEYTALLY_REFRESH_SECONDS="0.1")) as server:
        visitor = Visitor(server, server.create_key("org_a"))
        assert "Production" not in visitor.get(MONTH).text
        names = f"organization_id,api_key_id,name\norg_a,{request(1)['api_key_id']},Production\n"
        (place.layout.root / "key_names.csv").write_text(names)
        eventually(lambda: "Production" in visitor.get(MONTH).text)


def test_hostile_names_are_text(server: LiveServer) -> None:
    page = Visitor(server, server.create_key("org_h")).get("/usage/org_h/2025-11?group_by=model").text
    rows = Rows(page)
    assert not rows.elements & {"script", "img", "iframe", "object"}
    assert not {name for name in rows.attributes if name.startswith("on")} | (rows.attributes & {"style", "srcdoc"})
    names = {row[0].strip() for row in rows.tables[0][1:]}
    assert "<script>alert(1)</script>" in names
    assert "{{ 7 * 7 }}" in names
    assert "\\u202eevil" in names  # spelled out: it would turn the rest of its line
    assert "x" * 119 + "…" in names
    assert "no model named" in names


def test_no_page_is_larger_than_60_kb(place: Place, server: LiveServer) -> None:
    key, operator = server.create_key("org_h"), server.keys.create_operator(now=NOW)
    for who, paths in ((key, ("/", "/usage/org_h/2025-11?group_by=model", "/usage/org_h/2025")), (operator, ("/",))):
        visitor = Visitor(server, who)
        for path in paths:
            assert len(visitor.get(path).content) + STYLE.stat().st_size <= LARGEST_PAGE, path


def test_a_page_of_many_keys_shows_the_largest_and_says_how_many_more(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    long = "k" * 124
    publish(
        place,
        [
            request(
                n,
                api_key_id=f"{long}_{n % 100:03}",
                model="\U000e0001" * 256,
                timestamp=f"2025-11-{1 + n % 14:02}T08:00:00Z",
            )
            for n in range(1400)
        ],
    )
    with LiveServer(settings_for(place.layout.root)) as server:
        answer = Visitor(server, server.create_key("org_a")).get("/")
        assert "And 80 more" in answer.text
        assert "93 others" in answer.text  # seven and the others: eight colours
        assert len(Rows(answer.text).tables[0]) == 1 + 20
        assert len(answer.content) + STYLE.stat().st_size <= LARGEST_PAGE


# --- errors ----------------------------------------------------------------------------------------------------------


NO_PAGES = ("/usage/org_a/2025-13", "/usage/org_a/2019-01", "/overview/2025", "/overview/2025-11.csv")


@pytest.mark.parametrize("path", [MONTH, "/overview/2025-11", *NO_PAGES])
def test_who_asks_for_no_page_gets_every_error_in_the_one_shape(server: LiveServer, path: str) -> None:
    for accept in ("*/*", "application/json"):
        answer = server.client.get(path, headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"]["status"] == answer.status_code
        assert answer.status_code == (404 if path in NO_PAGES else 401)


@pytest.mark.parametrize(
    "path",
    ["/v1/analytics/api-keys/daily/org_a", "/nowhere", "/v1", "/usage/org_a", "/usage/org_a/2025-11/x", "/static"],
)
def test_a_browser_gets_errors_of_every_other_path_in_the_one_shape_too(server: LiveServer, path: str) -> None:
    answer = Visitor(server).get(path)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["success"] is False


def test_a_browser_gets_errors_of_pages_as_pages(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, status, words in (
        ("/usage/org_b/2025-11", 403, "This page is not yours to see"),
        ("/usage/org_a/2025-13", 404, "There is no such page"),
        (f"{MONTH}?group_by=x", 400, "group_by must be api_key or model"),
        ("/overview/2025-11", 403, "for operators"),
    ):
        answer = visitor.get(path)
        assert (answer.status_code, words in answer.text) == (status, True), path
        assert answer.headers["x-request-id"] in answer.text
        assert ('name="sign_out"' in answer.text) == (status == 403), path

    def fail(*_: object) -> None:
        raise RuntimeError("select * from /secret/path")

    monkeypatch.setattr("serving.pages.questions.MonthPage.basis", fail)
    answer = visitor.get(MONTH)
    assert (answer.status_code, "Something went wrong" in answer.text) == (500, True)
    assert "secret" not in answer.text


def test_every_page_allows_nothing_but_itself_and_is_kept_by_nobody(server: LiveServer, visitor: Visitor) -> None:
    style = next(iter(ASSETS))
    for path in (
        "/",
        MONTH,
        "/usage/org_b/2025-11",
        "/usage/org_a/2025-13",
        f"{MONTH}.csv",
        "/usage/org_a/2025",
        style,
    ):
        answer = visitor.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        if path == style:
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        else:
            assert answer.headers["cache-control"] == "no-store"
            assert "etag" not in answer.headers
            assert visitor.client.head(path, headers=visitor.headers).status_code == answer.status_code
    assert "style=" not in visitor.get(MONTH).text
    assert "<script" not in visitor.get(MONTH).text


def test_the_pages_are_not_in_the_document_of_the_api(server: LiveServer) -> None:
    assert all(path.startswith("/v1/") for path in server.client.get("/openapi.json").json()["paths"])


def test_damaged_usage_is_an_error_page_and_never_a_wrong_number(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    publish(place, traffic())
    (file,) = place.layout.rollups.rglob("rollup=api_key_day/month=2025-11/*.parquet")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with LiveServer(settings_for(place.layout.root)) as server:
        answer = Visitor(server, server.create_key("org_a")).get(MONTH)
        assert (answer.status_code, "cannot be read just now" in answer.text) == (503, True)


# --- numbers and colours ---------------------------------------------------------------------------------------------

AMOUNTS = st.decimals(0, 10**26 - 1, allow_nan=False, allow_infinity=False, places=12)


@given(AMOUNTS, st.integers(0, 12))
def test_a_number_is_shown_with_every_digit_it_has(amount: Decimal, least: int) -> None:
    shown = str(figure(amount, least=least))
    assert number(shown) == amount
    assert len(shown.partition(".")[2]) >= least
    assert re.fullmatch(r"\d{1,3}(,\d{3})*(\.\d+)?", shown)


@given(st.lists(AMOUNTS, min_size=1, max_size=5))
def test_the_points_of_a_column_stand_in_line(amounts: list[Decimal]) -> None:
    places = places_of(amounts, 2)
    shown = [figure(amount, places) for amount in amounts]
    assert len({(len(str(one).partition(".")[2]), len(one.rest)) for one in shown}) == 1
    assert [number(str(one)) for one in shown] == amounts


def test_what_is_read_first_of_a_tiny_amount_is_its_first_digits() -> None:
    assert figure(Decimal("0.000531234")) == ("0.00053", "1234")
    assert figure(Decimal("1234.5"), Places(4, 2)) == ("1,234.50", "00")
    assert figure(Decimal("0"), least=2) == ("0.00", "")
    assert [short(Decimal(text)) for text in ("2500000", "10000", "2500", "0.05", "3E+12")] == [
        *("2.5 M", "10 k", "2,500", "0.05", "3 tn")
    ]


def test_something_is_not_shown_as_no_percent() -> None:
    shares = [percent(Decimal(part), Decimal(200)) for part in ("0", "0.0001", "0.1", "0.3", "25.1", "199.99", "12345")]
    assert shares == ["0.0 %", "<0.1 %", "<0.1 %", "0.2 %", "12.6 %", "100.0 %", "6,172.5 %"]


@given(st.decimals(min_value="1E-12", max_value=10**26, places=12), st.booleans())
@example(Decimal(9), True)  # 2.5 would be a round step
@example(Decimal(1), True)
def test_an_axis_has_few_round_ticks_and_holds_every_bar(most: Decimal, whole: bool) -> None:
    axis = axis_to(most, whole=whole)
    assert axis.top >= most
    assert 2 <= len(axis.ticks) <= 6
    step = axis.ticks[1]
    assert step.normalize().as_tuple().digits in ((1,), (2,), (2, 5), (5,), (3,))
    assert not whole or step == step.to_integral_value()
    assert axis.top - step < most or len(axis.ticks) == 2


@given(st.lists(st.lists(st.integers(0, 10**9), min_size=3, max_size=3), min_size=1, max_size=8))
def test_the_parts_of_a_bar_stand_on_each_other(series: list[list[int]]) -> None:
    values = [[Decimal(value) for value in row] for row in series]
    most = max(sum(column) for column in zip(*values, strict=True))
    if not most:
        return
    ends = [0, 0, 0]
    for path in stacked(values, axis_to(Decimal(most))):
        for position, start, end in re.findall(r"M(\d+)1\.5 (\d+)h7V(\d+)", path.replace("M1.5", "M01.5")):
            assert HEIGHT - int(start) == ends[int(position)]
            ends[int(position)] = HEIGHT - int(end)
    assert all(end <= HEIGHT for end in ends)


def test_a_small_bar_of_something_is_seen_and_one_of_nothing_is_none() -> None:
    assert small([Decimal(1_000), Decimal("0.001"), Decimal(0)]) == f"M0 {LOW}v-{LOW}h3V{LOW}zM4 {LOW}v-1h3V{LOW}z"
    assert small([Decimal(0)]) == small([]) == ""


def test_a_name_is_shown_as_it_is_unless_it_could_not_be_seen() -> None:
    assert visible("größer مرحبا") == "größer مرحبا"
    assert visible("a\u202eb\n\x1b[31m") == "a\\u202eb\\n\\x1b[31m"
    assert len(visible("y" * 256)) == 120


def _luminance(colour: str) -> float:
    full = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    parts = (int(full[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_bars_can_be_told_from_what_they_stand_on(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", block))
    for ground in ("page", "card"):
        for text in ("text", "dim", "link"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert _contrast(colours["notice-text"], colours["notice"]) >= 4.5
    for number in (*(f"c{each}" for each in range(8)), "others"):
        assert _contrast(colours[number], colours["card"]) >= 3, number
