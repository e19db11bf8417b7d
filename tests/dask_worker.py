"""Loaded by a Dask worker of a test (`--preload`): it dies, or waits, where the environment says so."""

from __future__ import annotations

import os
import platform
import signal
import time
import traceback
from pathlib import Path

from pipeline.contract import seam

DIES_WHILE = os.environ.get("TEST_DIES_WHILE")  # a file: who takes it away is the one that dies
WAITS_WHILE = os.environ.get("TEST_WAITS_WHILE")  # a file: who is at the step waits until it is gone
HAS_BEGUN = os.environ.get("TEST_HAS_BEGUN")  # a file: made by who is at the step
STEP = os.environ.get("TEST_STEP", "read a raw file")
WITHIN = os.environ.get("TEST_WITHIN")  # a function: it is the step only where this one does it
DONE = os.environ.get("TEST_DONE")  # a file: a line for each time the step was done, with who did it


def at_step(name: str) -> None:
    if name != STEP or (WITHIN and WITHIN not in [frame.name for frame in traceback.extract_stack()]):
        return
    if DONE:
        with Path(DONE).open("a") as done:
            done.write(f"{os.getpid()}\n")
    if HAS_BEGUN:
        Path(HAS_BEGUN).touch()
    if DIES_WHILE == "always":
        os.kill(os.getpid(), signal.SIGKILL)
    if DIES_WHILE:
        try:
            Path(DIES_WHILE).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
    while WAITS_WHILE and Path(WAITS_WHILE).exists():
        time.sleep(0.05)


seam.at_step = at_step
if python := os.environ.get("TEST_PYTHON"):
    platform.python_version_tuple = lambda: (*python.split("."), "0")
