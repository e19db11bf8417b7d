"""Copies that disagree: several lines with the id of one request say different things of what it used or cost.

Only one of them counts. So either the others are earlier states of it, or requests of their own with a repeated id,
which are lost: somebody must look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.contents import events_by_day
from pipeline.contract.tables import EVENT
from pipeline.ledger import DayEntry, FileEntry
from pipeline.rollup import FILES_AT_ONCE
from pipeline.run import Run

MOST_EXAMPLES = 5  # days of which the copies of one request are looked up
MOST_COPIES = 3  # of a request that are shown
MOST_CHARACTERS = 40  # of a name in an example
_TOKENS = ("input", "output", "cached", "written", "reasoning")
_NAMES = (
    "key",
    "model",
    "cost",
    "currency",
    "synapses",
    "neurons",
    *_TOKENS,
)  # of what sql/copies_of_request.sql gives of each copy
WHAT_TO_DO = (
    "if they are different requests, have the producer write an id that does not repeat, or the format take another id;"
    " if a request is written again as it grows, give the format '-- copies: most complete'"
)


class Copy(NamedTuple):
    """A line that tells of a request. text: the billed values in which the copies of the request differ."""

    file: str
    line: int | None  # None where an older release took the file in
    text: str

    def __str__(self) -> str:
        return f"{self.file}{f' line {self.line}' if self.line else ''} ({self.text})"


class Disagreement(NamedTuple):
    """A day on which `lines` copies differ in a billed value from the one that counts; the copies of one request."""

    day: date
    lines: int
    organization_id: str
    request_id: str
    copies: tuple[Copy, ...]

    @property
    def what(self) -> str:
        """What was found, in words."""
        shown = [str(copy) for copy in self.copies[:MOST_COPIES]]
        if len(self.copies) > MOST_COPIES:
            shown.append(f"and {len(self.copies) - MOST_COPIES:,} more")
        example = f"request {self.request_id} of {self.organization_id}{': ' if shown else ''}{', '.join(shown)}"
        copies = "1 copy differs" if self.lines == 1 else f"{self.lines:,} copies differ"
        return f"{copies} in a billed value from the one that counts, as {example}"

    def as_json(self) -> dict[str, Any]:
        return {
            "day": str(self.day),
            "copies": self.lines,
            "organization_id": self.organization_id,
            "request_id": self.request_id,
            "example": [copy._asdict() for copy in self.copies],
        }


def disagreements(run: Run, days: Sequence[DayEntry], files: Mapping[str, FileEntry]) -> list[Disagreement]:
    """The days among these on which copies disagree; of the first few with the copies of one request."""
    found = [day for day in days if day.disagreement]
    events = events_by_day(files) if found else {}
    file_of = {entry.take_in.name: entry.file for entry in files.values() if entry.same_as is None}
    return [
        Disagreement(
            day.day,
            day.disagreeing,
            *day.disagreement,
            _copies(run, day, {event.path_in(run.layout): file_of[name] for name, event in events[day.day].items()})
            if position < MOST_EXAMPLES
            else (),
        )
        for position, day in enumerate(found)
        if day.disagreement
    ]


def _copies(run: Run, day: DayEntry, files: Mapping[Any, str]) -> tuple[Copy, ...]:
    by_artifact = {path.name: file for path, file in files.items()}
    assert day.disagreement
    paths = list(files)
    places: list[tuple[str, int | None]] = []
    values: list[Sequence[Any]] = []
    for start in range(0, len(paths), FILES_AT_ONCE):
        run.engine.name_files("named_events", paths[start : start + FILES_AT_ONCE], EVENT, with_names=True)
        for artifact, line, *said in run.engine.query("copies_of_request", **day.disagreement._asdict()):
            places.append((by_artifact[artifact], line))
            values.append(said)
    differing = [place for place, of_copies in enumerate(zip(*values, strict=True)) if _differ(place, of_copies)]
    texts = [", ".join(f"{_NAMES[place]} {_shown(said[place])}" for place in differing) for said in values]
    return tuple(Copy(*place, text) for place, text in zip(places, texts, strict=True))


def _differ(place: int, values: Sequence[Any]) -> bool:
    """Return True if copies differ in a value, as sql/copies.sql compares them: no count of tokens bills no tokens."""
    return len({value or 0 for value in values} if _NAMES[place] in _TOKENS else set(values)) > 1


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value[:MOST_CHARACTERS] if isinstance(value, str) else f"{Decimal(value).normalize():f}"
