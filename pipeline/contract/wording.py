"""How counts, instants and what heals are said, the same everywhere."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta


def count_of(number: int, noun: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_a_line(text: str) -> str:
    """What another library says, in one line. Those of the table's paint arrows before theirs."""
    return " ".join(re.sub(r"\s*(\x1b\[[0-9;]*m)*↳(\x1b\[[0-9;]*m)*", ":", text).split())


def visible(text: str) -> str:
    """Return text with every character that cannot be printed as its escape.

    A file name or a value from a log may hold control characters: they would steer a terminal or forge a line.
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def instant_text(moment: datetime | None) -> str | None:
    """`2025-11-15T10:30:00Z`: UTC, whole seconds; None for none."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def backfill_of(artifact: str) -> str:
    """The command that rebuilds an artifact: over the days that its path names; over any where it names none."""
    named = re.search(r"(day|month)=(\d{4})-(\d{2})(?:-(\d{2}))?/", artifact)
    if named is None:
        return "'keytally backfill' over any day"
    span, year, month, day = named.groups()
    last = calendar.monthrange(int(year), int(month))[1] if span == "month" else day
    return f"'keytally backfill --from {year}-{month}-{day or '01'} --to {year}-{month}-{last}'"


CLOCK_SKEW = timedelta(minutes=5)  # two machines' clocks may differ by this


def age_of(moment: datetime | None, now: datetime) -> timedelta | None:
    """How long ago a moment was, never less than nothing.

    Returns:
        None if nobody knows: no moment is given, or it is still to come by this clock, so that one of two clocks is
        wrong.
    """
    if moment is None or moment - now > CLOCK_SKEW:
        return None
    return max(now - moment, timedelta(0))


def ago_text(moment: datetime, now: datetime) -> str:
    """`5 minutes ago`; or that the age is unknown."""
    age = age_of(moment, now)
    if age is None:
        return f"age unknown: by this clock, {instant_text(moment)} is still to come"
    return f"{duration_text(age)} ago"


def duration_text(duration: timedelta) -> str:
    """`3 days`, `1 hour`, `5 minutes`: the largest unit of which there is one, rounded down."""
    minutes = max(duration // timedelta(minutes=1), 0)
    for noun, length in (("day", 1_440), ("hour", 60), ("minute", 1)):
        if minutes >= length:
            return count_of(minutes // length, noun)
    return "less than a minute"
