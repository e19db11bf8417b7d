"""How many requests an organization may make."""

from __future__ import annotations

import logging
import math
import time
from array import array
from collections import OrderedDict
from typing import NamedTuple

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from pipeline.contract.settings import RateLimit

_LOG = logging.getLogger("keytally.limiter")


class Standing(NamedTuple):
    """Where an organization stands after a request.

    limit: requests in a window. remaining: how many more are granted now. reset: whole seconds until the oldest counted
    request leaves the window and makes room, at least 1. granted: whether this one was.
    """

    limit: int
    remaining: int
    reset: int
    granted: bool


class MovingWindow:
    """At most `limit.amount` requests of an organization in any `limit.seconds` seconds, counted in this process.

    Not the memory storage of `limits`: at 2,000 requests a second it costs 42 microseconds of CPU a request with 5,000
    organizations and 250 with 50,000, since a thread walks over all of them every hundredth of a second; this takes 1
    to 2 at any number.

    Up to EXACT requests a window, each leaves it on its own. Beyond, requests are counted in slots of a hundredth of
    the window and leave it with the end of their slot: never are more granted than the limit says, but room comes back
    up to a hundredth of the window later than it might (36 seconds of an hour). An organization takes at most 2 KB.
    """

    EXACT = 100

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._slot = 0.0 if limit.amount <= self.EXACT else limit.seconds / self.EXACT
        # The organization that was last granted a request is last.
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def take(self, organization_id: str, now: float) -> tuple[int, float]:
        """Takes one request at the instant `now` (seconds), if there is room.

        How many more there is room for, -1 when there was none for this one; and the seconds until there is more.
        """
        start = now - self.limit.seconds - self._slot
        self._forget_before(start)
        window = self._windows.setdefault(organization_id, _Window())
        slots = window.slots
        while slots and slots[0] <= start:
            window.count -= int(slots[1])
            del slots[:2]
        if window.count >= self.limit.amount:
            return -1, slots[0] - start
        if self._slot and slots and now - slots[-2] < self._slot:
            slots[-1] += 1
        else:
            slots.append(now)
            slots.append(1)
        window.count += 1
        self._windows.move_to_end(organization_id)
        return self.limit.amount - window.count, slots[0] - start

    def _forget_before(self, start: float) -> None:
        while self._windows:
            organization_id, window = next(iter(self._windows.items()))
            if window.slots and window.slots[-2] > start:
                return
            del self._windows[organization_id]


class _Window:
    """How many requests of an organization are in its window. slots: oldest first, begin, count, begin, count."""

    __slots__ = ("count", "slots")

    def __init__(self) -> None:
        self.count = 0
        self.slots = array("d")  # 16 bytes a slot, where a deque of pairs took 100


class Limiter:
    """Grants requests: from a Redis that workers share, or else its part of the limit from this process alone.

    workers: how many processes serve together. While the Redis does not answer, each grants its part, and one request
    at a time asks for all whether it does again.
    """

    PATIENCE = 0.25  # seconds a request waits for Redis
    RETRY = 1.0  # seconds until a Redis that did not answer is asked again

    def __init__(self, limit: RateLimit | None, store: str | None = None, workers: int = 1) -> None:
        self._own: MovingWindow | None = None
        if limit:
            self._own = MovingWindow(RateLimit(max(1, limit.amount // workers), limit.seconds))
        self._shared: MovingWindowRateLimiter | None = None
        self._storage: RedisStorage | None = None
        self._ask_again = 0.0  # when Redis may be asked again; 0 as long as it answers
        if limit and store:
            self._item: RateLimitItem = RateLimitItemPerSecond(limit.amount, limit.seconds, namespace="keytally")
            self._storage = RedisStorage(
                f"async+{store}",
                wrap_exceptions=True,
                implementation="redispy",
                socket_timeout=self.PATIENCE,
                socket_connect_timeout=self.PATIENCE,
            )
            self._shared = MovingWindowRateLimiter(self._storage)

    async def take(self, organization_id: str) -> Standing | None:
        """Takes one request; where the organization stands then. None when there is no limit."""
        if self._own is None:
            return None
        now = time.monotonic()
        if self._shared is not None and now >= self._ask_again:
            asks_for_all = bool(self._ask_again)
            if asks_for_all:  # the others need not wait until it is known
                self._ask_again = now + self.RETRY
            try:
                standing = await self._take_shared(self._shared, organization_id)
            except StorageError as error:
                if asks_for_all or not self._ask_again:  # else another request has just said so
                    _LOG.error("the rate limit store does not answer: %s", error.storage_error)
                self._ask_again = time.monotonic() + self.RETRY
            else:
                if asks_for_all:
                    self._ask_again = 0.0
                return standing
        remaining, seconds = self._own.take(organization_id, now)
        return Standing(self._own.limit.amount, max(0, remaining), max(1, math.ceil(seconds)), remaining >= 0)

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._storage is not None:
            await self._storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]  # redispy's has it

    async def _take_shared(self, shared: MovingWindowRateLimiter, organization_id: str) -> Standing:
        granted = await shared.hit(self._item, organization_id)
        window = await shared.get_window_stats(self._item, organization_id)
        seconds = math.ceil(window.reset_time - time.time())  # the store's own clock: a wall clock
        return Standing(self._item.amount, window.remaining if granted else 0, max(1, seconds), granted)
