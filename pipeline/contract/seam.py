"""The seam at which tests cut a run off: every step that touches the disk is named here just before it is done."""

from __future__ import annotations

from collections.abc import Callable

at_step: Callable[[str], None] | None = None  # set by tests alone


def step(name: str) -> None:
    """The step `name` is about to be done."""
    if at_step is not None:
        at_step(name)
