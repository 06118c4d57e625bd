"""`Idempotency-Key`: a request that is sent again does what the first one did, and nothing more.

What is random or depends on the moment is drawn first, as a plan, and recorded; only then is it
carried out, which gives the same however often it is done. So there is no first and no second:
doubles at the same time, in whatever process, and one after a kill in between all carry out the
plan that was recorded first, and give the same answer. No token is part of a plan: those are
signed anew from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from service.clock import Clock
from service.metadata.control import ControlStore, Repeatable
from service.protocol.problems import refuse

#: how long a key stands for its first request
KEPT_SECONDS: Final = 24 * 3600.0


class Once:
    """The plans of requests."""

    def __init__(self, store: ControlStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def plan(
        self, issuer: str, key: str | None, asked: str, make: Callable[[], Awaitable[Mapping[str, Any]]]
    ) -> Mapping[str, Any]:
        """The plan to carry out: the one that `make` makes, or the one that an earlier request with the key made.

        Args:
            key: None: the request is only itself.
            asked: all that a request asks for, in one spelling.

        Raises:
            Refusal: key-reused; what `make` raises, of which nothing is kept.
        """
        made = await make()
        if key is None:
            return made
        now, digest = self._clock.now(), hashlib.sha256(asked.encode()).hexdigest()
        kept = await self._store.remember(Repeatable(issuer, key, digest, now, made), forget_before=now - KEPT_SECONDS)
        if kept.digest != digest:
            raise refuse("key-reused", "Send another Idempotency-Key with another request.")
        return kept.plan
