"""The pages' paths: who may see which, signing in and out, and errors as a person reads them."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import date, datetime
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.contract.last_run import LATE
from pipeline.contract.layout import month_of
from pipeline.contract.settings import RateLimit
from pipeline.contract.wording import age_of
from serving.answer import Answer, Header
from serving.answer_cache import AnswerCache, ClientGone, Question
from serving.auth import Gate
from serving.clock import Clock
from serving.errors import (
    ForeignForm,
    InvalidRequest,
    NotFound,
    OperatorsOnly,
    OrganizationAccessDenied,
    Refusal,
    SignInRequired,
    TooManyTries,
    Unauthenticated,
)
from serving.keys import ReadingKey
from serving.limiter import MovingWindow
from serving.pages.drawn import ASSETS, HTML, page
from serving.pages.questions import MonthPage, Overview, Viewer, YearPage, newest_month
from serving.pages.sessions import Sessions, cookie_of
from serving.parameters import check_organization, page_asked
from serving.questions import Daily
from serving.reader import Reader
from serving.routes import TracedRoute

TRIES = RateLimit(20, 60)  # wrong keys of one address
LARGEST_FORM = 4096  # bytes
_PERIOD = re.compile(r"(?P<year>202[0-9]|2030)(-(?P<month>0[1-9]|1[0-2])(?P<csv>\.csv)?)?")
_ONE_OF_OURS = re.compile(r"/(usage/[A-Za-z0-9_-]{1,128}|overview)/[0-9-]{4,7}(\?[a-z_=&]{0,100})?")
HEADERS: tuple[Header, ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none';"
        b" frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer a browser names no origin with a form
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# Behind whoever signed out, Back must show nothing: no page is kept.
_NOT_KEPT: tuple[Header, ...] = ((b"cache-control", b"no-store"), (b"vary", b"Cookie, Accept, Accept-Encoding"))
_OTHERWISE = frozenset({b"cache-control", b"vary", b"etag", b"last-modified"})
Show = Callable[[Scope, Receive, Send], Awaitable[None]]


class Page:
    """A page as a plain ASGI application. A browser gets errors as pages too, everybody else in the one shape."""

    def __init__(self, show: Show) -> None:
        self._show = show

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Shows it. Raises the Refusal that comes first."""

        async def send_page(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [header for header in message["headers"] if header[0] not in _OTHERWISE]
                message["headers"] = [*kept, *_NOT_KEPT, *HEADERS]
            await send(message)

        if _wants_html(scope):
            scope["keytally.error_answer"] = functools.partial(_error_page, scope)
        await self._show(scope, receive, send_page)


class Pages:
    """What is shown on each path."""

    def __init__(
        self, gate: Gate, sessions: Sessions, answers: AnswerCache, reader: Reader, clock: Clock, currency: str
    ) -> None:
        self._gate = gate
        self._sessions = sessions
        self._answers = answers
        self._reader = reader
        self._clock = clock
        self._currency = currency
        self._tries = MovingWindow(TRIES)

    def routes(self) -> list[TracedRoute]:
        """A route for each path."""
        shown: list[tuple[str, Show, list[str]]] = [
            ("/", self._home, ["GET", "POST"]),
            ("/usage/{org_id}/{period}", self._usage, ["GET"]),
            ("/overview/{period}", self._overview, ["GET"]),
        ]
        assets: list[tuple[str, ASGIApp]] = [(path, _Asset(*asset)) for path, asset in ASSETS.items()]
        return [
            *(TracedRoute(path, Page(show), methods=methods) for path, show, methods in shown),
            *(TracedRoute(path, asset, methods=["GET"]) for path, asset in assets),
        ]

    async def _home(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The newest month, or all organizations to an operator; to whoever has not signed in, the form for that."""
        if scope["method"] == "POST":
            return await self._take_form(scope, receive, send)
        now = self._clock()
        if self._sessions.key_id(scope["headers"], now) is None:
            return await Answer(page("sign_in.html", notice=None, next="/")).send(scope, send)
        key = await self._key(scope, now)
        month = newest_month(self._reader.confirmed) or month_of(now.date())
        viewer = Viewer(self._currency, key.operator)
        if key.organization_id is None:
            return await self._answer("", self._overview_of(month, now), now, scope, receive, send)
        return await self._answer(key.organization_id, MonthPage(month, viewer), now, scope, receive, send)

    async def _usage(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A month of an organization, the same as CSV, or a year."""
        period = _PERIOD.fullmatch(scope["path_params"]["period"])
        if period is None:
            raise NotFound
        now = self._clock()
        key = await self._key(scope, now)
        organization_id = scope["path_params"]["org_id"]
        if organization_id != key.organization_id:
            if not key.operator:
                raise OrganizationAccessDenied
            check_organization(organization_id)
        by, measure = page_asked(scope["query_string"])
        first_day = date(int(period["year"]), int(period["month"] or 1), 1)
        viewer = Viewer(self._currency, key.operator)
        question: Question = MonthPage(first_day, viewer, by or "api_key", measure)
        if period["csv"]:
            question = Daily(first_day, group_by=by, csv=True)
            grouped = f"-by-{by}" if by else ""
            send = _as_file(f"usage-{organization_id}-{first_day:%Y-%m}{grouped}.csv", send)
        elif not period["month"]:
            question = YearPage(first_day, viewer, measure)
        await self._answer(organization_id, question, now, scope, receive, send)

    async def _overview(self, scope: Scope, receive: Receive, send: Send) -> None:
        """All organizations in a month, for operators."""
        period = _PERIOD.fullmatch(scope["path_params"]["period"])
        if period is None or not period["month"] or period["csv"]:
            raise NotFound
        now = self._clock()
        if not (await self._key(scope, now)).operator:
            raise OperatorsOnly
        question = self._overview_of(date(int(period["year"]), int(period["month"]), 1), now)
        await self._answer("", question, now, scope, receive, send)

    def _overview_of(self, month: date, now: datetime) -> Overview:
        as_of = self._reader.confirmed.as_of
        age = age_of(as_of, now)
        is_late, is_ahead = age is not None and age > LATE, as_of is not None and age is None
        return Overview(month, Viewer(self._currency, True), is_late, is_ahead)

    async def _answer(
        self, organization_id: str, question: Question, now: datetime, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            answer = await self._answers.of(organization_id, question, now, scope, receive)
        except ClientGone:
            return
        await answer.send(scope, send)

    async def _key(self, scope: Scope, now: datetime) -> ReadingKey:
        """The key that the session began with, good still. Raises Unauthenticated, RateLimitExceeded."""
        id = self._sessions.key_id(scope["headers"], now)
        if id is None:
            raise SignInRequired
        key = await self._gate.readmit(id)
        scope["keytally.key_id"] = key.id  # for the log line
        await self._gate.limit(key, scope)
        return key

    async def _take_form(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Signs in, or out. Raises ForeignForm, InvalidRequest, Unauthenticated, TooManyTries."""
        if not _is_own_form(scope):
            raise ForeignForm
        form = await _form(receive)
        note, next_page = "", "/"
        if "sign_out" not in form:
            key = await self._admit(form.get("key", "").strip(), scope)
            note = self._sessions.issue(key.id, self._clock())
            if _ONE_OF_OURS.fullmatch(form.get("next", "")):
                next_page = form["next"]
        headers = [
            (b"location", next_page.encode("ascii")),
            (b"set-cookie", cookie_of(note, secure=_is_tls(scope))),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _admit(self, sent: str, scope: Scope) -> ReadingKey:
        """The key that was typed. A good one is let in however many wrong ones came from its address."""
        try:
            key = await self._gate.admit(sent)
        except Unauthenticated as error:
            host = (scope.get("client") or ("",))[0]
            remaining, seconds = self._tries.take(host, time.monotonic())
            if remaining < 0:
                raise TooManyTries(max(1, round(seconds))) from error
            raise
        scope["keytally.key_id"] = key.id
        return key


class _Asset:
    """A file of the pages, kept for ever: its name changes with it."""

    def __init__(self, content: bytes, content_type: bytes) -> None:
        self._content = content
        self._headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(content)),
            (b"cache-control", b"public, max-age=31536000, immutable"),
            *HEADERS,
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answers."""
        await send({"type": "http.response.start", "status": 200, "headers": [*self._headers]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self._content})


def _error_page(scope: Scope, refusal: Refusal, trace_id: str, now: datetime) -> tuple[list[Header], bytes]:  # noqa: ARG001
    """The error as a page: its headers, all but `X-Request-Id`, and its body. Takes the place of `error_answer`."""
    where = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
    if isinstance(refusal, Unauthenticated | TooManyTries):
        next_page = where if _ONE_OF_OURS.fullmatch(where) else "/"
        body = page("sign_in.html", notice=refusal, next=next_page).content
    else:
        body = page("error.html", refusal=refusal, trace_id=trace_id).content
    headers = [
        (b"content-type", HTML),
        (b"content-length", b"%d" % len(body)),
        *((name.lower().encode("ascii"), value.encode("ascii")) for name, value in refusal.headers.items()),
        *_NOT_KEPT,
        *HEADERS,
    ]
    return headers, body


def _as_file(name: str, send: Send) -> Send:
    async def send_file(message: Message) -> None:
        if message["type"] == "http.response.start":
            disposition = (b"content-disposition", f'attachment; filename="{name}"'.encode("ascii"))
            message["headers"] = [*message["headers"], disposition]
        await send(message)

    return send_file


async def _form(receive: Receive) -> dict[str, str]:
    """What was typed. Raises InvalidRequest."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST_FORM or message["type"] == "http.disconnect":
            raise InvalidRequest(f"A form has at most {LARGEST_FORM} bytes")
        if not message.get("more_body"):
            return dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))


def _is_own_form(scope: Scope) -> bool:
    """Whether a browser sends a form of one of our pages.

    Browsers say so in `Sec-Fetch-Site`, over TLS and on this very machine; elsewhere `Origin` must be the asked host.
    """
    headers = dict(scope["headers"])
    site = headers.get(b"sec-fetch-site")
    if site is None:
        host = headers.get(b"origin", b"").partition(b"://")[2]
        own = bool(host) and host == headers.get(b"host")
    else:
        own = site == b"same-origin"
    return own and _wants_html(scope)


def _is_tls(scope: Scope) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy. What it is told wrong it tells itself alone."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    return (
        scope["scheme"] == "https"
        or headers.get(b"x-forwarded-proto", b"").rpartition(b",")[2].strip() == b"https"
        or headers.get(b"origin", b"").startswith(b"https://")
    )


def _wants_html(scope: Scope) -> bool:
    """Whether a page is asked for by that name, as browsers do."""
    return any(b"text/html" in value.lower() for value in _values(scope["headers"], b"accept"))


def _values(headers: Iterable[Header], wanted: bytes) -> Iterable[bytes]:
    return (value for name, value in headers if name == wanted)
