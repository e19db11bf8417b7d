"""How counts and instants are said, the same everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def count_of(number: int, noun: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def instant_text(moment: datetime | None) -> str | None:
    """`2025-11-15T10:30:00Z`: UTC, whole seconds; None for none."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration_text(duration: timedelta) -> str:
    """`3 days`, `1 hour`, `5 minutes`: the largest unit of which there is one, rounded down."""
    minutes = max(duration // timedelta(minutes=1), 0)
    for noun, length in (("day", 1_440), ("hour", 60), ("minute", 1)):
        if minutes >= length:
            return count_of(minutes // length, noun)
    return "less than a minute"
