"""Who is asking, and may they: the 401s and the 429."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import Scope

from serving.clock import Clock
from serving.errors import (
    ApiKeyDeactivated,
    ApiKeyExpired,
    AuthenticationRequired,
    InvalidApiKey,
    KeysUnavailable,
    RateLimitExceeded,
)
from serving.keys import KeyRegistry, ReadingKey, RegistryUnavailable
from serving.limiter import Limiter


class Gate:
    """Lets a request in with a good key, as often as its organization, or an operator's key, may."""

    def __init__(self, registry: KeyRegistry, limiter: Limiter, clock: Clock) -> None:
        self._registry = registry
        self._limiter = limiter
        self._clock = clock

    async def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> ReadingKey:
        """The key that the request came with. Raises Unauthenticated.

        headers: as ASGI gives them, names in lower case.
        """
        return await self.admit(sent_key(headers))

    async def admit(self, sent: str) -> ReadingKey:
        """The key with this text. Raises Unauthenticated."""
        if not sent:
            raise AuthenticationRequired
        # Seldom not remembered; then SQLite is asked in a thread, since a disk may take its time.
        try:
            key = self._registry.remembered(sent) or await asyncio.to_thread(self._registry.find, sent)
        except RegistryUnavailable as error:
            raise KeysUnavailable(str(error)) from error
        return self._good(key)

    async def readmit(self, id: str) -> ReadingKey:
        """The key with this id, which was admitted before. Raises Unauthenticated."""
        try:
            key = self._registry.remembered_by_id(id) or await asyncio.to_thread(self._registry.find_by_id, id)
        except RegistryUnavailable as error:
            raise KeysUnavailable(str(error)) from error
        return self._good(key)

    def _good(self, key: ReadingKey | None) -> ReadingKey:
        if key is None:
            raise InvalidApiKey
        if key.revoked_at is not None:
            raise ApiKeyDeactivated
        if key.expires_at is not None and key.expires_at <= self._clock():
            raise ApiKeyExpired
        return key

    async def limit(self, key: ReadingKey, scope: Scope) -> None:
        """Counts a request of the key's organization, or of an operator's key, and notes in the scope where it stands.

        Raises RateLimitExceeded.
        """
        standing = await self._limiter.take(key.counted_as)
        if standing is not None:
            scope["keytally.standing"] = standing  # for the answer's headers, whatever the answer will be
            if not standing.granted:
                raise RateLimitExceeded(standing.reset)


def sent_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The key in `X-API-Key`, or where there is no such header in `Api-Key`; empty when there is none."""
    fallback = b""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip(b" \t").decode("latin-1")
        if name == b"api-key" and not fallback:
            fallback = value
    return fallback.strip(b" \t").decode("latin-1")
