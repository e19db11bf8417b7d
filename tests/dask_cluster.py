"""A Dask scheduler and workers, as processes of a test."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Cluster:
    """A scheduler on a port of its own, and workers."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        return self.scheduler

    def start_worker(
        self, *options: str, code: Path = ROOT, memory: str = "2GB", threads: int = 1, **environment: str
    ) -> subprocess.Popen[bytes]:
        preload = ROOT / "tests" / "dask_worker.py"
        return self._start(
            *("worker", self.address, "--nthreads", str(threads), "--memory-limit", memory, "--no-dashboard"),
            *("--local-directory", str(self._folder / "dask"), "--preload", str(preload), *options),
            code=code,
            **environment,
        )

    def _start(self, *command: str, code: Path = ROOT, **environment: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{command[0]}-{len(self._processes)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
            cwd=self._folder,
            env={
                **os.environ,
                "PYTHONPATH": str(code),
                "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
                **environment,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self._processes.append(process)
        return process

    def end(self) -> None:
        for process in self._processes:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """With all its children: a worker's nanny would start it again."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()
