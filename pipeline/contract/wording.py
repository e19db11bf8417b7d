"""How counts and instants are said, the same everywhere."""

from __future__ import annotations

from datetime import UTC, datetime


def count_of(number: int, noun: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def instant_text(moment: datetime | None) -> str | None:
    """`2025-11-15T10:30:00Z`: UTC, whole seconds; None for none."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
