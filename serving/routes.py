"""The endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.answer_cache import AnswerCache, ClientGone, Question
from serving.auth import Gate
from serving.clock import Clock
from serving.errors import OrganizationAccessDenied
from serving.parameters import check_organization, daily_asked, summary_asked, top_asked, usage_asked

DAILY = "/v1/analytics/api-keys/daily/{org_id}"
SUMMARY = "/v1/analytics/api-keys/summary/{org_id}"
USAGE = "/v1/analytics/api-keys/usage/{org_id}/{api_key_id}"
TOP = "/v1/analytics/{org_id}/api-keys/top/{month}/{year}"


class Endpoint:
    """An endpoint as a plain ASGI application: nothing stands between the route and the finished bytes."""

    def __init__(self, gate: Gate, answers: AnswerCache, clock: Clock) -> None:
        self._gate = gate
        self._answers = answers
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or raises the Refusal that comes first: key, limit, organization, parameters, usage."""
        key = await self._gate.identify(scope["headers"])
        scope["keytally.key_id"] = key.id  # for the log line
        await self._gate.limit(key, scope)
        organization_id = scope["path_params"]["org_id"]
        if organization_id != key.organization_id:
            if not key.operator:
                raise OrganizationAccessDenied
            check_organization(organization_id)
        now = self._clock()
        try:
            answer = await self._answers.of(organization_id, self.asked(scope, now), now, scope, receive)
        except ClientGone:
            return
        await answer.send(scope, send)

    def asked(self, scope: Scope, now: datetime) -> Question:
        """What is asked. Raises InvalidRequest."""
        raise NotImplementedError


class DailyEndpoint(Endpoint):
    """The days of a month."""

    def asked(self, scope: Scope, now: datetime) -> Question:
        """As `Endpoint.asked`."""
        accept = b""
        for name, value in scope["headers"]:
            if name == b"accept":
                accept = accept + b"," + value if accept else value
        return daily_asked(scope["query_string"], accept, now.date())


class SummaryEndpoint(Endpoint):
    """The sums of a month."""

    def asked(self, scope: Scope, now: datetime) -> Question:
        """As `Endpoint.asked`."""
        return summary_asked(scope["query_string"], now.date())


class UsageEndpoint(Endpoint):
    """The days of a month of a single key."""

    def asked(self, scope: Scope, now: datetime) -> Question:
        """As `Endpoint.asked`."""
        return usage_asked(scope["path_params"]["api_key_id"], scope["query_string"], now.date())


class TopEndpoint(Endpoint):
    """The keys that cost most in a month."""

    def asked(self, scope: Scope, now: datetime) -> Question:  # noqa: ARG002
        """As `Endpoint.asked`."""
        path = scope["path_params"]
        return top_asked(path["month"], path["year"], scope["query_string"])


ENDPOINTS: dict[str, type[Endpoint]] = {
    DAILY: DailyEndpoint,
    SUMMARY: SummaryEndpoint,
    USAGE: UsageEndpoint,
    TOP: TopEndpoint,
}


def routes(gate: Gate, answers: AnswerCache, clock: Clock) -> list[TracedRoute]:
    """A route for each endpoint."""
    return [TracedRoute(path, endpoint(gate, answers, clock), methods=["GET"]) for path, endpoint in ENDPOINTS.items()]


class Direct:
    """ASGI middleware that answers on some routes by itself: what FastAPI does for its own takes longer than they do.

    The routes stand in the application too, which has them for every method that they do not know.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[TracedRoute]) -> None:
        self.app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes the request on."""
        if scope["type"] == "http":
            for route in self._routes:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    await route.app(scope, receive, send)
                    return
        await self.app(scope, receive, send)


class TracedRoute(Route):
    """A route that is named in the log line. FastAPI's own routes leave themselves in the scope; Starlette's do not."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette's."""
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            child_scope["route"] = self  # the scope of this one request: Starlette's matches() has just made it
        return match, child_scope
