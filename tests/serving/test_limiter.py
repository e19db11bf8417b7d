"""How many requests an organization may make."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.contract.settings import RateLimit
from serving.limiter import Limiter, MovingWindow
from tests.serving.conftest import LiveServer, settings_for


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), max_size=60),
)
def test_no_window_ever_holds_more_than_the_amount_and_none_is_refused_in_vain(
    amount: int, steps: list[tuple[str, int]]
) -> None:
    window = MovingWindow(RateLimit(amount, 10))
    granted: dict[str, list[int]] = {"a": [], "b": []}
    now = 1000
    for organization, pause in steps:
        now += pause
        remaining, wait = window.take(organization, now)
        in_window = [then for then in granted[organization] if then > now - 10]
        if remaining < 0:
            assert len(in_window) == amount
            assert wait == in_window[0] + 10 - now
        else:
            assert len(in_window) < amount
            granted[organization].append(now)
            assert remaining == amount - len(in_window) - 1
            assert wait == (in_window or [now])[0] + 10 - now


def test_a_large_amount_is_counted_in_bounded_memory() -> None:
    window = MovingWindow(RateLimit(100_000, 60))
    granted = sum(window.take("a", number * 60 / 1_000_000)[0] >= 0 for number in range(200_000))
    assert granted == 100_000
    for number in range(1000):
        window.take("b", number * 60 / 1000)
    slots = window._windows["b"].slots
    assert len(slots) * slots.itemsize < 2000
    remaining, wait = window.take("a", 59.99)
    assert remaining < 0 < wait <= 0.7
    assert window.take("a", 60.7)[0] >= 0


@given(st.lists(st.sampled_from((0, 0, 0, 0, 1, 9, 200, 991)), max_size=400))
@example([0, 9, *[0] * 148, 991, *[0] * 150])
def test_a_large_amount_is_never_exceeded_and_room_comes_back_within_a_hundredth_of_the_window(
    pauses: list[int],
) -> None:
    amount, seconds = MovingWindow.EXACT + 50, 1000
    window = MovingWindow(RateLimit(amount, seconds))
    granted: list[int] = []
    now = 10_000
    for pause in pauses:
        now += pause
        remaining, wait = window.take("a", now)
        if remaining >= 0:
            granted.append(now)
            assert sum(then > now - seconds for then in granted) <= amount
        else:
            assert sum(then > now - seconds - seconds / MovingWindow.EXACT for then in granted) == amount
            assert 0 < wait <= seconds + seconds / MovingWindow.EXACT


def test_idle_organizations_are_forgotten() -> None:
    window = MovingWindow(RateLimit(2, 1))
    for number in range(1000):
        window.take(f"org_{number}", number / 100)
    assert len(window._windows) <= 101


def test_a_refused_client_that_waits_as_told_is_granted(data: Path) -> None:
    with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT="3/second")) as server:
        key = server.create_key("org_abc123")
        answers = [server.daily(key) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[-1].headers["retry-after"] == "1"
        time.sleep(1)
        assert server.daily(key).status_code == 200


def test_each_of_several_workers_grants_its_part_and_at_least_one(data: Path) -> None:
    for limit, workers, part in (("7/hour", 2, 3), ("1/hour", 4, 1)):
        with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT=limit), workers=workers) as server:
            key = server.create_key("org_abc123")
            assert [server.daily(key).status_code for _ in range(part + 1)] == [200] * part + [429]


def test_while_the_shared_store_is_away_each_worker_grants_its_part(data: Path) -> None:
    settings = settings_for(data, KEYTALLY_RATE_LIMIT="4/hour", KEYTALLY_RATE_LIMIT_STORE="redis://127.0.0.1:1/0")
    with LiveServer(settings, workers=2) as server:
        key = server.create_key("org_abc123")
        assert [server.daily(key).status_code for _ in range(3)] == [200, 200, 429]


def test_a_shared_store_that_hangs_is_asked_once_a_second(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limiter, "PATIENCE", 2.0)  # longer than a busy machine takes for some answers
    with socket.create_server(("127.0.0.1", 0)) as store:  # accepts, and never says a word
        url = f"redis://127.0.0.1:{store.getsockname()[1]}/0"
        with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT="100/hour", KEYTALLY_RATE_LIMIT_STORE=url)) as server:
            key = server.create_key("org_abc123")

            def seconds() -> float:
                begun = time.monotonic()
                assert server.daily(key).status_code == 200
                return time.monotonic() - begun

            assert seconds() >= Limiter.PATIENCE
            assert sum(seconds() for _ in range(2)) < Limiter.PATIENCE
            time.sleep(Limiter.RETRY)
            with ThreadPoolExecutor(10) as clients:  # one asks for all of them
                waited = sorted(clients.map(lambda _: seconds(), range(10)))
            assert waited[-1] >= Limiter.PATIENCE
            assert waited[-2] < Limiter.PATIENCE
