"""`?wait=`: answers that are held back until there is news.

A held answer costs a connection, a task and a look at the store each second, and asks for no
transfer slot. So there is a cap of its own, and nothing is held for a client that has gone, or has
closed its end of the connection and so is about to go, or by a service that stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aiohttp import web

from service.web.access import gone
from service.web.query import wait_of
from service.web.turns import half_closed

T = TypeVar("T")

#: answers held at once by one process; whoever comes above it is answered at once
MOST_WAITING: Final = 1000
_LOOK_SECONDS: Final = 0.5


class Waiting:
    """The answers that are held now."""

    def __init__(self, limit: int = MOST_WAITING) -> None:
        self.limit = limit
        self.held = 0

    async def ask(
        self, request: web.Request, ask: Callable[[float], Awaitable[T]], *, stopping: Callable[[], bool]
    ) -> T:
        """What `ask` returns when it may take as many seconds as the request's `wait` says.

        Args:
            ask: given the seconds; 0 means an answer now.
            stopping: once true, nothing is held any more.

        Raises:
            ConnectionError: the client has gone.
        """
        seconds = wait_of(request)
        if not seconds or self.held >= self.limit or stopping():
            return await ask(0)
        self.held += 1
        asking = asyncio.ensure_future(ask(seconds))
        try:
            while not (await asyncio.wait({asking}, timeout=_LOOK_SECONDS))[0]:
                if gone(request):
                    raise ConnectionResetError("the client is gone")
                if stopping() or half_closed(request):
                    return await ask(0)
            return asking.result()
        finally:
            self.held -= 1
            asking.cancel()
