"""From raw request logs to published rollups; and `read_usage`, which reads these into a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.usage import read_usage

__all__ = ["read_usage"]


def __getattr__(name: str) -> Any:
    """`read_usage`, looked up when it is asked for: who wants a setting of the contract needs no Arrow."""
    if name != "read_usage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.usage import read_usage  # noqa: PLC0415

    return read_usage
