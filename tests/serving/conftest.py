"""A data folder, and a real server over it."""

from __future__ import annotations

import functools
import io
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from pipeline.contract.settings import Settings
from serving.app import create_app
from serving.checked_file import CheckedFile
from serving.clock import Clock
from serving.keys import CreatedKey, KeyRegistry
from serving.server import _listen, configure

NOW = datetime(2025, 11, 15, 10, 30, 0, 999_999, tzinfo=UTC)


class LiveServer:
    """uvicorn in a thread, on a free port. A context manager."""

    def __init__(self, settings: Settings, clock: Clock = lambda: NOW, workers: int = 1) -> None:
        self.settings = settings
        self.keys = KeyRegistry(settings.keys)  # as the command uses it: not the server's own
        application = functools.partial(create_app, settings, clock=clock, workers=workers)
        self._server = uvicorn.Server(configure(application, settings.keep_alive, logging=False))
        self._listener = _listen("127.0.0.1", 0)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=10)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        eventually(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    @property
    def connections(self) -> set[Any]:
        """Those that are open."""
        return self._server.server_state.connections

    def create_key(self, organization: str, expires_at: datetime | None = None) -> CreatedKey:
        return self.keys.create(organization, expires_at=expires_at, now=NOW)

    def daily(
        self,
        key: CreatedKey | None,
        query: str = "year=2025&month=11",
        organization: str = "",
        method: str = "GET",
        **headers: str,
    ) -> httpx.Response:
        """Asks for the key's organization, or for `organization`. In a header's name, _ stands for -."""
        organization = organization or (key.organization_id if key else "org_abc123")
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["X-API-Key"] = key.key
        path = f"/v1/analytics/api-keys/daily/{organization}"
        return self.client.request(method, f"{path}?{query}" if query else path, headers=sent)


def eventually(happened: Callable[[], bool], seconds: float = 10) -> float:
    """Waits until it happened; how long that took. Fails after `seconds`."""
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < seconds, "it did not happen in time"
        time.sleep(0.005)
    return time.monotonic() - begun


def settings_for(data: Path, **variables: str) -> Settings:
    return Settings.from_environment({"KEYTALLY_DATA": str(data), "KEYTALLY_RATE_LIMIT": "off", **variables})


class Openings:
    """Which files were opened, and in which thread. Those in a folder that is held wait until they are let go."""

    def __init__(self) -> None:
        self.opened: list[tuple[Path, str]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.held = ""

    def open(self, file: io.FileIO, path: Path) -> CheckedFile:
        self.opened.append((path, threading.current_thread().name))
        if self.held and self.held in str(path):
            self.begun.set()
            assert self.go.wait(30)
        return CheckedFile(file, path)


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Openings]:
    """What the readers of published files open."""
    openings = Openings()
    monkeypatch.setattr("serving.open_files.CheckedFile", openings.open)
    yield openings
    openings.go.set()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An empty data root."""
    folder = tmp_path / "data"
    (folder / "raw").mkdir(parents=True)
    return folder


@pytest.fixture
def live_server(data: Path) -> Iterator[LiveServer]:
    """A server over `data`, without a rate limit, at 2025-11-15T10:30:00Z."""
    with LiveServer(settings_for(data)) as server:
        yield server
