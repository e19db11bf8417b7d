"""What a query string, a path and an Accept header ask for: the parameters, each with its rule."""

from __future__ import annotations

import re
from collections.abc import Container
from datetime import date
from functools import lru_cache
from typing import NamedTuple, cast
from urllib.parse import parse_qsl

from pipeline.contract.layout import FIRST_DAY, LAST_DAY
from serving.errors import InvalidRequest
from serving.groups import GroupBy
from serving.questions import Daily, KeyMonth, Sums, Top
from serving.usage import MEASURES, Measure

YEARS = range(FIRST_DAY.year, LAST_DAY.year + 1)
LIMITS = range(1, 101)
API_KEY_ID = "[A-Za-z0-9_.:-]{1,128}"
ORGANIZATION_ID = "[A-Za-z0-9_-]{1,128}"


class _Parameter(NamedTuple):
    """A parameter in the query string, or in the path."""

    name: str
    pattern: str
    allowed: Container[int] | None  # for a whole number
    words: str

    def of(self, given: list[tuple[str, str]]) -> str | None:
        """Its value, None when it is not given. Raises InvalidRequest."""
        values = [value for name, value in given if name == self.name]
        if not values:
            return None
        if len(values) > 1:
            raise InvalidRequest(f"{self.name} is given more than once; it must be {self.words}")
        return self.checked(values[0])

    def checked(self, value: str) -> str:
        """The value. Raises InvalidRequest when it is not allowed."""
        if not re.fullmatch(self.pattern, value) or (self.allowed is not None and int(value) not in self.allowed):
            raise InvalidRequest(f"{self.name} must be {self.words}")
        return value


# [0-9], not \d or int() alone: those take the digits of every script.
_YEAR = _Parameter("year", "[0-9]{4}", YEARS, f"four digits from {YEARS[0]} to {YEARS[-1]}")
_MONTH = _Parameter("month", "[0-9]{1,2}", range(1, 13), "one or two digits from 1 to 12")
_INCLUDE = _Parameter("include", "coverage", None, "coverage")
_FILL = _Parameter("fill", "zero", None, "zero")
_GROUP_BY = _Parameter("group_by", "api_key|model", None, "api_key or model")
_API_KEY_ID = _Parameter("api_key_id", API_KEY_ID, None, "1 to 128 letters, digits, '_', '.', ':' or '-'")
_MEASURE = _Parameter("measure", "|".join(MEASURES), None, ", ".join(MEASURES[:-1]) + f" or {MEASURES[-1]}")
_LIMIT = _Parameter("limit", "[0-9]{1,3}", LIMITS, f"one to three digits from {LIMITS[0]} to {LIMITS[-1]}")
_PERIOD = _Parameter("period", "monthly", None, "monthly")
_ORGANIZATION = _Parameter("org_id", ORGANIZATION_ID, None, "1 to 128 letters, digits, '_' or '-'")

# Clients ask for few months; parsing takes as long as the rest of a route. A request's head is 16 KB at most.
_remembered = lru_cache(maxsize=256)


@_remembered
def daily_asked(query: bytes, accept: bytes, today: date) -> Daily:
    """What is asked of the daily endpoint; `today` (UTC) fills in what is left out. Raises InvalidRequest."""
    given = _given(query)
    return Daily(
        month=_month(given, today),
        coverage=_INCLUDE.of(given) is not None,
        fill=_FILL.of(given) is not None,
        api_key_id=_API_KEY_ID.of(given),
        group_by=cast(GroupBy | None, _GROUP_BY.of(given)),
        csv=prefers_csv(accept),
    )


@_remembered
def summary_asked(query: bytes, today: date) -> Sums:
    """What is asked of the summary endpoint. Raises InvalidRequest."""
    return Sums(_month(_given(query), today))


@_remembered
def usage_asked(api_key_id: str, query: bytes, today: date) -> KeyMonth:
    """What is asked of the endpoint of a single key, whatever text its id is. Raises InvalidRequest."""
    return KeyMonth(_month(_given(query), today), api_key_id)


@_remembered
def top_asked(month: str, year: str, query: bytes) -> Top:
    """What is asked of the endpoint of top keys. Raises InvalidRequest."""
    first_day = date(int(_YEAR.checked(year)), int(_MONTH.checked(month)), 1)
    given = _given(query)
    _PERIOD.of(given)
    return Top(first_day, int(_LIMIT.of(given) or 10))


@_remembered
def page_asked(query: bytes) -> tuple[GroupBy | None, Measure]:
    """By what a page is to tell usage apart, and what of it its bars are to show. Raises InvalidRequest."""
    given = _given(query)
    return cast(GroupBy | None, _GROUP_BY.of(given)), cast(Measure, _MEASURE.of(given) or "cost")


def check_organization(organization_id: str) -> None:
    """Raises InvalidRequest for what no organization can be called."""
    _ORGANIZATION.checked(organization_id)


def prefers_csv(accept: bytes) -> bool:
    """Whether the Accept header would rather have text/csv than application/json. Nothing is not acceptable to it.

    Of two equal qualities the one that is named more exactly wins, and JSON of two that are named alike.
    """
    ranges: dict[str, float] = {}
    for part in accept.decode("latin-1").lower().split(","):
        kind, *parameters = (text.strip() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        if re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", quality):  # else what it says is not known
            ranges.setdefault(kind, float(quality))
    csv, json = (_acceptance(kind, ranges) for kind in ("text/csv", "application/json"))
    return csv > json and csv[0] > 0


def _acceptance(kind: str, ranges: dict[str, float]) -> tuple[float, int]:
    """Quality, and how exactly the kind is named: 2, 1 for `text/*`, 0 for `*/*`."""
    for exactness, named in ((2, kind), (1, f"{kind.partition('/')[0]}/*"), (0, "*/*")):
        if named in ranges:
            return ranges[named], exactness
    return 0.0, 0


def _given(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else []


def _month(given: list[tuple[str, str]], today: date) -> date:
    year, month = _YEAR.of(given), _MONTH.of(given)
    return date(int(year or today.year), int(month or today.month), 1)
