"""The Outbox port: which events wait for which endpoint, and how far each endpoint is.

Events themselves are written by `MetadataStore`, in the transaction of the change they tell of.
The contract of what is said here, which `tests/contract/metadata_outbox.py` holds against every
adapter:

- Numbers of events become visible in their order: where transactions may commit in another, the
  adapter sees to it, for whatever comes to lie before a place would be passed by.
- An endpoint has a place in the order of events. What lies behind the place is not on its way yet;
  what lies before it was delivered, is pending, was given up, or was not wanted.
- Of the pending events of one file, the first alone is due at some instant; the next becomes due in
  the transaction in which the first is delivered or given up. So whoever sends what is due keeps the
  order per file (contract, section 9), whatever process it is in.
- `take_in` is durable: of what was handed out once, no crash takes the change back that it tells of.
- `settle` is a compare-and-set on the number of attempts: what another has settled stays so.
- An endpoint that is not configured, or disabled, keeps its place; what waits for it alone is kept
  as long as other events are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.model import Event


@dataclass(frozen=True, slots=True)
class Due:
    """An event that is to be sent now."""

    seq: int
    file_id: str
    #: tries so far
    attempts: int
    event: Event


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an endpoint has before it."""

    #: configured, and not disabled
    active: bool
    #: whether events lie behind its place
    news: bool = False
    #: due first, first
    due: tuple[Due, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a try came to. Neither delivered nor to be tried again: given up."""

    result: str
    delivered: bool = False
    again_at: float | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is pending for an endpoint."""

    pending: int
    #: when the oldest of it happened
    oldest_at: float | None


@dataclass(frozen=True, slots=True)
class Which:
    """A choice of events; instants are half-open [since, until)."""

    id: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How an event stands with an endpoint that has not got it."""

    endpoint: str
    #: given up; else pending
    failed: bool
    attempts: int
    #: None: an earlier event of the file comes first, or it was given up
    due_at: float | None
    result: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """An event with its place in the order of all, and where it is not yet."""

    seq: int
    event: Event
    missing: tuple[Standing, ...] = ()


class Outbox(Protocol):
    """See the module for the contract. Every method raises MetadataError as the store's own do."""

    async def register(self, endpoints: Mapping[str, str]) -> None:
        """These are configured, by id with their URL, and no others.

        A new one begins with what happens from now on. One whose URL changed is enabled again.
        """
        ...

    async def outlook(self, endpoint: str, *, now: float, limit: int) -> Outlook:
        """At most `limit` due events. Of an endpoint that is not active: none."""
        ...

    async def take_in(self, endpoint: str, wants: Callable[[str], bool], *, now: float, limit: int) -> int:
        """How many events the place moved by, `limit` at most; those of a type that it wants are pending. Durable."""
        ...

    async def settle(self, endpoint: str, due: Due, verdict: Verdict, *, now: float) -> bool:
        """Whether it was for this try to say; the event is over, or due again."""
        ...

    async def disable(self, endpoint: str, *, now: float) -> None:
        """Nothing is handed out for it until it is enabled; what is pending stays so."""
        ...

    async def enable(self, endpoint: str) -> bool:
        """It goes on where it was. False: there is no such endpoint, or it was enabled."""
        ...

    async def disabled(self) -> frozenset[str]:
        """The endpoints that are disabled."""
        ...

    async def backlog(self, endpoint: str) -> Backlog:
        """What is pending, whether or not the endpoint is active."""
        ...

    async def listed(self, which: Which, *, after: int = 0, limit: int) -> tuple[Listed, ...]:
        """Events with a place above `after`, oldest first."""
        ...

    async def replay(self, endpoint: str, seqs: Sequence[int], *, now: float) -> int:
        """How many of them are pending as if for the first time: those up to its place. 0: no such endpoint."""
        ...

    async def forget(self, *, before: float, limit: int) -> int:
        """How many events went that happened before the instant.

        What is pending for an active endpoint stays, and so does what lies behind its place.
        """
        ...
