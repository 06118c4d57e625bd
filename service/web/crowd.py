"""How many connections one process keeps, and which of them go when there are more.

A connection costs a descriptor and some memory before it has asked for anything. What is asked
for has bounds of its own (transfers, held answers); here is the one for those that ask for
nothing, or never come to the end of asking. When all places are taken, a newcomer gets the place
of whoever has waited longest without a request under way. So a crowd that only sits there, or
sends heads drop by drop, keeps nobody out, and whoever sends or fetches a file does not notice it.

The places leave descriptors for the files of those transfers. Without any left nothing can be
stored, and uvloop closes its listening socket, for good and without a word, once an `accept` fails
(`UVStreamServer._fatal_error`).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from functools import cache
from typing import Final, Protocol

import structlog

log = structlog.get_logger(__name__)

#: bytes of heads under way in all connections together; one head may have 256 KiB
HEADS_BYTES: Final = 64 * 2**20
#: more descriptors than this are not used, however many there may be: a connection costs memory too
_MOST_DESCRIPTORS: Final = 30_000
#: a download has its connection, a second name of that, and the file
_DESCRIPTORS_EACH: Final = 3
_SAY_SECONDS: Final = 60.0


class Member(Protocol):
    """A connection, as the crowd sees it."""

    def drop(self) -> None:
        """Ends at once."""
        ...


class Crowd:
    """The connections of a process, in the order in which they began to wait for a request."""

    def __init__(self, places: int, heads_bytes: int = HEADS_BYTES, now: Callable[[], float] = time.monotonic) -> None:
        self.places = places
        self._most_heads_bytes = heads_bytes
        self._now = now
        self._members: set[Member] = set()
        self._waiting: dict[Member, None] = {}
        #: of those who wait, the ones of whose next head something has come: how many bytes
        self._heads: dict[Member, int] = {}
        self._heads_bytes = 0
        self._dropped = 0
        self._say_from = float("-inf")

    def __len__(self) -> int:
        return len(self._members)

    def enter(self, member: Member) -> None:
        """It waits. Somebody may have to go for it: itself, if all others have a request under way."""
        self._members.add(member)
        self._waiting[member] = None
        if len(self._members) > self.places:
            self._drop(next(iter(self._waiting)))

    def wait(self, member: Member) -> None:
        """It has no request under way any more."""
        if member in self._members:
            self._waiting[member] = None

    def begin_head(self, member: Member, size: int) -> None:
        """Of the head that it waits for, `size` bytes have come so far."""
        if member not in self._waiting:
            return
        self._heads_bytes += size - self._heads.get(member, 0)
        self._heads[member] = size
        while self._heads_bytes > self._most_heads_bytes:
            self._drop(next(iter(self._heads)))

    def work(self, member: Member) -> None:
        """Its head is complete."""
        self._waiting.pop(member, None)
        self._heads_bytes -= self._heads.pop(member, 0)

    def leave(self, member: Member) -> None:
        """It is no more."""
        self.work(member)
        self._members.discard(member)

    def _drop(self, member: Member) -> None:
        self.leave(member)
        self._dropped += 1
        if self._now() >= self._say_from:
            # a flood must not be one of the log as well
            log.warning("connections_dropped", places=self.places, count=self._dropped)
            self._dropped, self._say_from = 0, self._now() + _SAY_SECONDS
        member.drop()


@cache
def everybody() -> Crowd:
    """The crowd of this process, as large as its descriptors allow when the first connection comes."""
    return Crowd(max(1, descriptors() // _DESCRIPTORS_EACH))


def descriptors() -> int:
    """How many descriptors this process may use."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, _MOST_DESCRIPTORS)


def raise_descriptors() -> None:
    """The process may use as many descriptors as it can allow itself; the usual 1024 are a shell's measure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
