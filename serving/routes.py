"""The endpoint: `GET /v1/analytics/api-keys/daily/{org_id}`."""

from __future__ import annotations

import re
from collections.abc import Container
from datetime import date
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl

from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from pipeline.contract.layout import FIRST_DAY, LAST_DAY
from serving.answers import Answers
from serving.auth import Clock, Gate
from serving.errors import InvalidRequest, OrganizationAccessDenied

DAILY = "/v1/analytics/api-keys/daily/{org_id}"
YEARS = range(FIRST_DAY.year, LAST_DAY.year + 1)


class Daily:
    """The endpoint as a plain ASGI application: nothing stands between the route and the finished bytes."""

    def __init__(self, gate: Gate, answers: Answers, clock: Clock) -> None:
        self._gate = gate
        self._answers = answers
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answers, or raises the Refusal that comes first: key, limit, organization, parameters, usage."""
        key = await self._gate.identify(scope["headers"])
        scope["keytally.key_id"] = key.id  # for the log line
        await self._gate.limit(key.organization_id, scope)
        if scope["path_params"]["org_id"] != key.organization_id:
            raise OrganizationAccessDenied
        now = self._clock()
        month, coverage = asked(scope["query_string"], now.date())
        answer = await self._answers.of(key.organization_id, month, now, coverage=coverage)
        await answer.send(scope, send)


class TracedRoute(Route):
    """A route that is named in the log line. FastAPI's own routes leave themselves in the scope; Starlette's do not."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette's."""
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self} if child_scope else child_scope


class Asked(NamedTuple):
    """What a query string asks for: a month, by its first day, and whether with its coverage."""

    month: date
    coverage: bool


@lru_cache(maxsize=256)  # clients ask for few months; parsing takes as long as the rest of the route
def asked(query: bytes, today: date) -> Asked:
    """What the query string asks for; `today` (UTC) fills in what it leaves out. Raises InvalidRequest."""
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else []
    year, month = _YEAR.of(given), _MONTH.of(given)
    return Asked(date(int(year or today.year), int(month or today.month), 1), _INCLUDE.of(given) is not None)


class _Parameter(NamedTuple):
    """A parameter in the query string."""

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
        value = values[0]
        if not re.fullmatch(self.pattern, value) or (self.allowed is not None and int(value) not in self.allowed):
            raise InvalidRequest(f"{self.name} must be {self.words}")
        return value


# [0-9], not \d or int() alone: those take the digits of every script.
_YEAR = _Parameter("year", "[0-9]{4}", YEARS, f"four digits from {YEARS[0]} to {YEARS[-1]}")
_MONTH = _Parameter("month", "[0-9]{1,2}", range(1, 13), "one or two digits from 1 to 12")
_INCLUDE = _Parameter("include", "coverage", None, "coverage")
