"""How long a connection waits: for the head of a request, and for a client to take its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

#: from the first byte of a head, or from the start of the connection, until a handler begins
HEAD_SECONDS: Final = 30.0
#: how long an answer may lie there of which the client takes nothing; downloads see to that themselves
ANSWER_SECONDS: Final = 30.0


class Deadlines:
    """Of one connection, all looked at by one timer. Idling after an answer is aiohttp's.

    Args:
        unsent: bytes of answers that the client has not taken.
        late: called when a deadline has passed.
    """

    def __init__(self, now: Callable[[], float], unsent: Callable[[], int], late: Callable[[], None]) -> None:
        self._now = now
        self._unsent = unsent
        self._late = late
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        #: since when a request has been due, None while none is
        self._due_since: float | None = None
        #: whether a handler has begun and has no answer yet
        self._handling = False
        #: bytes of answers that had not left when that number last got smaller, and when that was
        self._untaken: tuple[int, float] | None = None

    def expect_head(self) -> None:
        """The connection was made, or something of a head has come."""
        if self._due_since is None:
            self._due_since = self._now()
            self._watch(HEAD_SECONDS)

    def begin(self) -> None:
        """A handler has begun."""
        self._due_since = None
        self._handling, self._untaken = True, None

    def end(self) -> None:
        """It has its answer."""
        self._handling = False
        self._watch(ANSWER_SECONDS)

    def close(self) -> None:
        """The connection is no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Tells if no handler has begun a request in time, or the client does not take an answer."""
        self._timer = None
        now = self._now()
        head_left = None if self._due_since is None else self._due_since + HEAD_SECONDS - now
        answer_left = self._answer_left(now)
        left = [seconds for seconds in (head_left, answer_left) if seconds is not None]
        if not left:
            return
        if min(left) > 0:
            self._watch(min(left))
        else:
            self._late()

    def _watch(self, seconds: float) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.look)

    def _answer_left(self, now: float) -> float | None:
        """For how long the client may still take nothing; None: it has taken everything, or a handler sends."""
        size = 0 if self._handling else self._unsent()
        if not size:
            self._untaken = None
            return None
        if self._untaken is None or size < self._untaken[0]:
            self._untaken = size, now
        return self._untaken[1] + ANSWER_SECONDS - now
