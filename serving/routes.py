"""The endpoint: `GET /v1/analytics/api-keys/daily/{org_id}`."""

from __future__ import annotations

import re
from datetime import date
from typing import NamedTuple
from urllib.parse import parse_qsl

from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from serving.answers import Answers
from serving.auth import Clock, Gate
from serving.errors import InvalidRequest, OrganizationAccessDenied

DAILY = "/v1/analytics/api-keys/daily/{org_id}"
YEARS = range(2020, 2031)


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
        await self._gate.limit(key.organization_id)
        if scope["path_params"]["org_id"] != key.organization_id:
            raise OrganizationAccessDenied
        now = self._clock()
        month = asked_month(scope["query_string"], now.date())
        answer = await self._answers.of(key.organization_id, month, now)
        await answer.send(scope, send)


class TracedRoute(Route):
    """A route that is named in the log line. FastAPI's own routes leave themselves in the scope; Starlette's do not."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette's."""
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self} if child_scope else child_scope


def asked_month(query: bytes, today: date) -> date:
    """The first day of the month that the query string asks for; `today` (UTC) fills in what it leaves out.

    Raises InvalidRequest.
    """
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else []
    return date(_YEAR.of(given) or today.year, _MONTH.of(given) or today.month, 1)


class _Parameter(NamedTuple):
    """A whole number in the query string."""

    name: str
    pattern: str
    allowed: range
    words: str

    def of(self, given: list[tuple[str, str]]) -> int | None:
        """Its value, None when it is not given. Raises InvalidRequest."""
        values = [value for name, value in given if name == self.name]
        if not values:
            return None
        if len(values) > 1:
            raise InvalidRequest(f"{self.name} is given more than once; it must be {self.words}")
        if not re.fullmatch(self.pattern, values[0]) or int(values[0]) not in self.allowed:
            raise InvalidRequest(f"{self.name} must be {self.words}")
        return int(values[0])


# [0-9], not \d or int() alone: those take the digits of every script.
_YEAR = _Parameter("year", "[0-9]{4}", YEARS, f"four digits from {YEARS[0]} to {YEARS[-1]}")
_MONTH = _Parameter("month", "[0-9]{1,2}", range(1, 13), "one or two digits from 1 to 12")
