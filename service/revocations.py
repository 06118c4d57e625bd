"""Tokens that are good for nothing although they have not expired (contract, section 4).

Each process holds all revocations in memory; there are few, as each is forgotten once no token
that it could be about is alive. What other processes took is read when a token is looked at and
the last look is half a second old: so one stops everywhere within that time, at once in the
process that took it, and a process that nobody asks asks nobody.

A running upload goes on: its address is no token, and it lives by its own expiry. To end one is
to terminate it, or to erase its owner.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from service.clock import Clock
from service.metadata.control import ControlStore, Named, Revocation
from service.model import FileId

#: how old what is held may be when a token is looked at
LOOK_SECONDS: Final = 0.5


class Revocations:
    """The revocations that one process knows.

    Args:
        life_seconds: no token lives longer; so long a revocation is kept.
    """

    def __init__(self, store: ControlStore, clock: Clock, *, life_seconds: float) -> None:
        self._store = store
        self._clock = clock
        self._life_seconds = life_seconds
        self._held: dict[tuple[str, Named, str], Revocation] = {}
        self._last = 0
        self._looked_at = -math.inf
        self._looking = asyncio.Lock()

    async def revoked(
        self, issuer: str, *, jti: str | None, owner: str | None, file_id: FileId | None, issued_at: float
    ) -> bool:
        """Whether a token with these claims is.

        Raises:
            MetadataError: worth a retry; nobody knows.
        """
        await self._look()
        if not self._held:
            return False
        if jti is not None and (issuer, "jti", jti) in self._held:
            return True
        return issued_at <= self._before(issuer, owner, file_id)

    async def revoke(
        self, issuer: str, named: Named, value: str, *, at: float, issued_before: float | None = None
    ) -> Revocation:
        """Such tokens are, here from now on and everywhere within `LOOK_SECONDS`; for the arguments see `of`."""
        revocation = self.of(issuer, named, value, at=at, issued_before=issued_before)
        await self._store.revoke(revocation)
        self.hold(revocation)
        return revocation

    def of(self, issuer: str, named: Named, value: str, *, at: float, issued_before: float | None = None) -> Revocation:
        """The revocation as it is to be recorded.

        Args:
            at: the instant of the request.
            issued_before: None: that instant too.
        """
        before = at if issued_before is None else issued_before
        return Revocation(issuer, named, value, before, max(at, before) + self._life_seconds)

    def hold(self, revocation: Revocation) -> None:
        """It counts here, ahead of the next look."""
        key = (revocation.issuer, revocation.named, revocation.value)
        held = self._held.get(key)
        if held is None or (held.issued_before, held.until) < (revocation.issued_before, revocation.until):
            self._held[key] = revocation

    async def issue_at(self, issuer: str, owner: str | None, file_id: FileId | None) -> float:
        """The `iat` of a token that is made now: `iat` has whole seconds, and one of a second in which
        others were revoked would be among these.
        """
        await self._look()
        now = self._clock.now()
        before = self._before(issuer, owner, file_id)
        return math.floor(before) + 1 if math.floor(now) <= before <= now else now

    def _before(self, issuer: str, owner: str | None, file_id: FileId | None) -> float:
        held = (
            self._held.get((issuer, "owner", owner)) if owner is not None else None,
            self._held.get((issuer, "file", file_id)) if file_id is not None else None,
        )
        return max((each.issued_before for each in held if each is not None), default=-math.inf)

    async def _look(self) -> None:
        if self._clock.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        async with self._looking:
            began = self._clock.monotonic()
            if began - self._looked_at < LOOK_SECONDS:
                return
            found = await self._store.revocations(after=self._last)
            self._looked_at = began
            if found:
                self._last = found[-1][0]
                now = self._clock.now()
                self._held = {key: each for key, each in self._held.items() if each.until > now}
                for _, revocation in found:
                    self.hold(revocation)
