"""Numbers and names as a person reads them: every digit there is, thousands apart, units said; nothing rounded."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import NamedTuple

LONGEST_NAME = 120  # characters of a name that are shown
_MULTIPLES = ((12, 12, " tn"), (9, 9, " bn"), (6, 6, " M"), (4, 3, " k"))  # from 10 to which, in what, and its sign


class Figure(NamedTuple):
    """A number in two parts: what is read first, and its further digits."""

    main: str
    rest: str = ""

    def __str__(self) -> str:
        return self.main + self.rest


class Places(NamedTuple):
    """The decimals of the numbers of a column: how many all have, and how many of them are read first."""

    shown: int
    read: int


def places_of(amounts: Collection[Decimal], least: int = 0) -> Places:
    """As many as the one with most has, but not fewer than `least`; two are read first, of tiny amounts more."""
    shown = max((len(_decimals(amount)) for amount in amounts), default=0)
    largest = max(amounts, default=Decimal(0))
    first = -largest.adjusted() if 0 < largest < 1 else 0  # of 0.000531 the 53 is what is read first
    return Places(max(shown, least), max(2, first + 1))


def figure(number: int | Decimal, places: Places | None = None, least: int = 0) -> Figure:
    """The number, exactly. places: of its column; None where it stands alone, with at least `least` decimals."""
    if isinstance(number, int):
        return Figure(f"{number:,}")
    places = places or places_of([number], least)
    digits = _decimals(number).ljust(places.shown, "0")
    return Figure(f"{int(number):,}{'.' if digits else ''}{digits[: places.read]}", digits[places.read :])


def short(number: Decimal) -> str:
    """A round number for an axis: `2.5 M`, `1,000`, `0.05`."""
    for least, multiple, sign in _MULTIPLES:
        if number >= 10**least:
            return f"{_plain(number.scaleb(-multiple))}{sign}"
    return _plain(number)


def percent(part: Decimal, whole: Decimal) -> str:
    """`12.3 %`, rounded half-even: the only kind of number that is rounded here; to nothing, it is `<0.1 %`.

    whole: not 0.
    """
    with localcontext(prec=100):
        rounded = (100 * part / whole).quantize(Decimal("0.1"), ROUND_HALF_EVEN)
    return f"{rounded:,} %" if rounded or not part else "<0.1 %"


def visible(text: str, longest: int = LONGEST_NAME) -> str:
    """A name from a log: what could not be seen, or would turn what stands around it, is spelled out; cut when long."""
    seen = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
    return seen if len(seen) <= longest else f"{seen[: longest - 1]}…"


def day_text(day: date) -> str:
    """`14 November 2025`."""
    return f"{day.day} {day:%B %Y}"


def month_text(month: date) -> str:
    """`November 2025`."""
    return f"{month:%B %Y}"


def moment_text(moment: datetime | None) -> str | None:
    """`15 November 2025, 10:30 UTC`."""
    return None if moment is None else f"{day_text(moment.date())}, {moment:%H:%M} UTC"


def _plain(number: Decimal) -> str:
    digits = _decimals(number)
    return f"{int(number):,}{'.' if digits else ''}{digits}"


def _decimals(number: Decimal) -> str:
    """Its decimals, without trailing zeros."""
    return f"{number:f}".partition(".")[2].rstrip("0")
