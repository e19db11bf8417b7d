"""The pages in a real Chromium, at three widths, with scripts and without. Skips where there is none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path

import pytest

from serving.pages.sessions import SESSION_SECONDS
from tests.conftest import Place, request
from tests.serving.browser import Browser, Tab, browsing, chromium_or_skip
from tests.serving.conftest import NOW, LiveServer, settings_for
from tests.serving.test_pages import HOSTILE
from tests.serving.traffic import publish, traffic

WIDTHS = (375, 768, 1280)
PICTURES = os.environ.get("PICTURES")  # a folder, for whoever wants to look at the pages that were tested
AXE = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
MONTH = "/usage/org_a/2025-11"
PAGES = {
    "month": MONTH,
    "by model": "/usage/org_a/2025-11?group_by=model&measure=requests",
    "month before": "/usage/org_a/2025-10",
    "empty month": "/usage/org_a/2025-09",
    "year": "/usage/org_a/2025?measure=neurons",
    "hostile": "/usage/org_h/2025-11?group_by=model",
    "overview": "/overview/2025-11",
    "error": "/usage/org_a/2025-13",
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(chromium_or_skip(), tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def now() -> list[datetime]:
    """The server's clock: a test may move it, and puts it back."""
    return [NOW]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, now: list[datetime]) -> Iterator[LiveServer]:
    place = Place(tmp_path_factory.mktemp("browser") / "data")
    place.now = NOW
    hostile = [
        request(n, organization_id="org_h", model=model, api_key_id="k" * 128, cost=f"{n}.5")
        for n, model in enumerate(HOSTILE, 2000)
    ]
    amounts = {"cost": "34.31114319", "synapses": "44751.8", "neurons": "173811.5"}
    usual = [request(n, organization_id="org_u", api_key_id=f"key_prod_{n}", **amounts) for n in range(3000, 3004)]
    publish(place, [*traffic(), *hostile, *usual, "no request at all"])
    with LiveServer(settings_for(place.layout.root), clock=lambda: now[0]) as running:
        yield running


def visit(browser: Browser, server: LiveServer, key: str, *, scripts: bool = True) -> Tab:
    """A tab that has signed in as a person does: by typing the key, and Enter."""
    tab = browser.tab()
    tab.size(1280)
    if not scripts:
        tab.forbid_scripts()
    assert tab.go(server.url) == 200
    assert tab.enter("#key", key) == 200
    assert tab.url == f"{server.url}/"
    return tab


def operator(server: LiveServer) -> str:
    return server.keys.create_operator(now=NOW).key


def test_a_customer_signs_in_looks_around_and_signs_out(browser: Browser, server: LiveServer) -> None:
    for scripts in (True, False):
        tab = visit(browser, server, server.create_key("org_a").key, scripts=scripts)
        assert "November 2025" in tab.text
        assert tab.press('a[rel="prev"]') == 200
        assert tab.url.startswith(f"{server.url}/usage/org_a/2025-10")
        assert tab.press('a[href*="group_by=model"]') == 200
        assert "Cost by day and model" in tab.text
        assert tab.press('.doors a[href$="2025"]') == 200
        assert "Sum" in tab.text
        (cookie,) = tab.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["session"]) == (True, "Strict", False)
        assert tab.run("document.cookie") == ""
        assert tab.press("button[name=sign_out]") == 200
        assert "Reading key" in tab.text
        assert not tab.cookies()
        assert tab.go(server.url + MONTH) == 401
        tab.run("history.back()")
        time.sleep(0.5)
        assert "Sum" not in tab.text  # Back shows nobody what the one before saw


def test_a_wrong_key_is_told_so_and_typed_anew(browser: Browser, server: LiveServer) -> None:
    tab = browser.tab()
    assert tab.go(server.url + MONTH) == 401
    assert tab.enter("#key", "kt_nonsense") == 401
    assert "not a key that we know" in tab.text
    assert "nonsense" not in tab.text + tab.url
    assert tab.enter("#key", server.create_key("org_a").key) == 200


def test_a_page_that_asked_for_a_key_is_shown_after_it(browser: Browser, server: LiveServer) -> None:
    tab = browser.tab()
    assert tab.go(f"{server.url}{MONTH}?group_by=model") == 401
    assert tab.enter("#key", server.create_key("org_a").key) == 200
    assert tab.url == f"{server.url}{MONTH}?group_by=model"


def test_a_revoked_key_and_the_end_of_a_session_end_in_the_form(
    browser: Browser, server: LiveServer, now: list[datetime]
) -> None:
    key = server.create_key("org_a")
    tab = visit(browser, server, key.key)
    server.keys.revoke(key.id, now=NOW)
    time.sleep(1)
    assert tab.go(server.url + MONTH) == 401
    assert "has been revoked" in tab.text
    tab = visit(browser, server, server.create_key("org_a").key)
    now[0] += timedelta(seconds=SESSION_SECONDS)
    assert tab.go(server.url + MONTH) == 401
    now[0] = NOW


def test_another_organization_s_page_is_refused_in_the_same_style(browser: Browser, server: LiveServer) -> None:
    tab = visit(browser, server, server.create_key("org_a").key)
    assert tab.go(f"{server.url}/usage/org_b/2025-11") == 403
    assert "not yours to see" in tab.text
    assert "org_b" not in tab.text
    assert tab.press("a.button") == 200


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_its_width_and_breaks_no_rule_of_its_own(
    browser: Browser, server: LiveServer, width: int, scripts: bool
) -> None:
    tab = visit(browser, server, operator(server), scripts=scripts)
    tab.size(width)
    for name, path in PAGES.items():
        status = tab.go(server.url + path)
        complaints = [told for told in tab.complaints if "Failed to load resource" not in told]
        assert (status in (200, 404), complaints) == (True, []), name
        assert tab.run("document.documentElement.scrollWidth") <= width, name
        # No words over words: each card is as wide as what it says.
        assert not tab.run(
            "[...document.querySelectorAll('.card')].some(card => card.scrollWidth > card.clientWidth)"
        ), name
        if PICTURES:
            tab.picture(Path(PICTURES) / f"{name} {width}.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, server: LiveServer, scheme: str) -> None:
    tabs = {"operator": visit(browser, server, operator(server)), "stranger": browser.tab()}
    for who, path in [*(("operator", path) for path in PAGES.values()), ("stranger", "/"), ("stranger", MONTH)]:
        tab = tabs[who]
        tab.show_as(scheme=scheme)
        for width in WIDTHS if scheme == "light" else WIDTHS[:1]:  # dark has other colours, and nothing else
            tab.size(width)
            tab.go(server.url + path)
            tab.run(f"{AXE}; 0")
            found = tab.run("axe.run().then(found => found.violations.map(one => [one.id, one.nodes[0].html]))")
            assert found == [], (path, width)


def test_what_a_key_cost_is_seen_on_a_phone_without_scrolling(browser: Browser, server: LiveServer) -> None:
    tab = visit(browser, server, server.create_key("org_h").key)
    tab.size(375)
    tab.go(f"{server.url}/usage/org_h/2025-11?group_by=model")
    edge = "document.querySelector('#by-model + .scroll').getBoundingClientRect().right"
    assert "Cost, CHF" in tab.run("document.querySelector('#by-model + .scroll th:nth-child(3)').textContent")
    assert tab.run(
        f"document.querySelector('#by-model + .scroll th:nth-child(3)').getBoundingClientRect().right <= {edge}"
    )


def test_on_a_tablet_no_table_of_usual_amounts_scrolls(browser: Browser, server: LiveServer) -> None:
    tab = visit(browser, server, server.create_key("org_u").key)
    tab.size(768)
    for path in ("/usage/org_u/2025-11", "/usage/org_u/2025"):
        tab.go(server.url + path)
        tables = "[...document.querySelectorAll('.scroll')]"
        assert tab.run(f"{tables}.length"), path
        assert not tab.run(f"{tables}.some(table => table.scrollWidth > table.clientWidth)"), path


def test_every_chart_has_a_title_and_a_description(browser: Browser, server: LiveServer) -> None:
    tab = visit(browser, server, server.create_key("org_a").key)
    charts = "[...document.querySelectorAll('svg[role=img]')]"
    assert tab.run(f"{charts}.length") > 1
    assert tab.run(f"{charts}.every(chart => chart.querySelector('title') && chart.querySelector('desc').textContent)")
    assert "The most was" in tab.run("document.querySelector('.chart desc').textContent")
    assert tab.run("[...document.querySelectorAll('.chart .hit title')].map(one => one.textContent)[3]") == (
        "4 November 2025: not loaded"
    )


def test_it_is_used_with_the_keyboard_alone(browser: Browser, server: LiveServer) -> None:
    tab = visit(browser, server, server.create_key("org_a").key)
    seen = []
    while True:
        tab.key("Tab")
        if tab.run("document.activeElement === document.body"):  # behind the last one
            break
        seen.append(tab.run("document.activeElement.className || document.activeElement.textContent.trim()"))
        assert tab.run("getComputedStyle(document.activeElement).outlineStyle") != "none", seen
    assert seen[0] == "skip"
    assert {"plain", "All of 2025", "By model", "scroll"} <= set(seen)


def test_hostile_names_run_nothing_and_turn_nothing_around(browser: Browser, server: LiveServer) -> None:
    tab = visit(browser, server, server.create_key("org_h").key)
    assert tab.go(f"{server.url}/usage/org_h/2025-11?group_by=model") == 200
    assert tab.run("document.querySelectorAll('main script, main img, main iframe').length") == 0
    assert "<script>alert(1)</script>" in tab.text
    assert "مرحبا بالعالم" in tab.text
    right_to_left = "[...document.querySelectorAll('tbody bdi')].find(name => name.textContent.startsWith('مرحبا'))"
    assert tab.run(f"getComputedStyle({right_to_left}.closest('tr')).direction") == "ltr"


def test_on_paper_there_is_nothing_to_press(browser: Browser, server: LiveServer) -> None:
    tab = visit(browser, server, server.create_key("org_a").key)
    tab.show_as("print", "dark")
    shown = "[...document.querySelectorAll('button, .steps a, .doors a')].filter(one => one.offsetParent)"
    assert tab.run(f"{shown}.length") == 0
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.run("getComputedStyle(document.querySelector('.bar.c0')).fill") == "rgb(31, 95, 191)"  # made for white
    assert "Sum" in tab.text


def test_a_zero_and_a_day_that_is_not_loaded_look_different(browser: Browser, server: LiveServer) -> None:
    tab = visit(browser, server, server.create_key("org_a").key)
    drawn = "box => [Math.round(box.width), Math.round(box.height)]"
    zero, missing = (
        tab.run(f"({drawn})(document.querySelector({selector!r}).getBoundingClientRect())")
        for selector in (".zero", ".chart > svg > rect[fill]")
    )
    assert zero[1] < 5 < 200 < missing[1]
