"""The state of a day: what its number means, to a customer and to the operator alike."""

from __future__ import annotations

from typing import Literal

DayState = Literal["not_loaded", "open", "loaded_with_findings", "loaded"]


def state_of(*, is_loaded: bool, is_open: bool, has_finding: bool) -> DayState:
    """The first that applies.

    is_loaded: there are accepted records of anyone. is_open: the day was not over at data-as-of. has_finding: something
    of it is held back.
    """
    if not is_loaded:
        return "not_loaded"
    if is_open:
        return "open"
    return "loaded_with_findings" if has_finding else "loaded"
