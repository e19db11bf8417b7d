"""Whether the server is alive, and whether it has something true to say. Neither asks for a key."""

from __future__ import annotations

import msgspec
from starlette.types import Receive, Scope, Send

from pipeline.contract.tables import ORGANIZATION_DAY
from pipeline.contract.wording import age_of
from serving.answer import Answer, Body
from serving.clock import Clock
from serving.errors import KeysUnavailable, UsageUnavailable
from serving.keys import KeyRegistry, RegistryUnavailable
from serving.reader import Confirmed, Reader


class Healthz:
    """`GET /healthz`: alive. Whoever gets no answer should start the server anew."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answers."""
        await Answer(Body(b'{"status":"ok"}', lasting=False)).send(scope, send)


class Readyz:
    """`GET /readyz`: published data and reading keys can be read, this very moment, and how old it is. Else 503.

    It looks at one block of the newest month's file each time, and at all of it when it is not open yet.
    Nothing published yet is ready, too: the zeros are right, and are kept by nobody.
    """

    def __init__(self, reader: Reader, registry: KeyRegistry, clock: Clock) -> None:
        self._reader = reader
        self._registry = registry
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answers. Raises UsageUnavailable."""
        confirmed = await self._reader.files.read_in(None, self._readable)
        as_of, text = confirmed.as_of, confirmed.as_of_text
        age = age_of(as_of, self._clock())
        ready = {
            "status": "ready",
            "version": confirmed.publication.version,
            "data_as_of": text.decode("ascii") if text else None,
            "age_seconds": None if age is None else round(age.total_seconds(), 3),
        }
        await Answer(Body(msgspec.json.encode(ready), lasting=False)).send(scope, send)

    def _readable(self) -> Confirmed:
        try:
            self._registry.poll()
        except RegistryUnavailable as error:
            raise KeysUnavailable(str(error)) from error
        confirmed = self._reader.confirmed
        if self._reader.failure is not None:
            raise UsageUnavailable(f"the published table cannot be read: {self._reader.failure}")
        months = [month for rollup, month in confirmed.publication.files if rollup == ORGANIZATION_DAY.name and month]
        newest = confirmed.usage_of(max(months)) if months else None
        if newest is not None:
            self._reader.check(newest)
        return confirmed
