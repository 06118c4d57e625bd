"""What a sweep would remove now, told without removing it.

It asks what the janitor asks, so the two agree as long as nothing else happens
between them. What a sweep brings to its end (uploads in `finishing`, finals) removes nothing that
anybody could miss, and is not told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from service.clock import Clock
from service.files import Files
from service.janitor import LEEWAY_SECONDS, Kind, pages
from service.metadata.base import MetadataStore, Tombstone
from service.model import ConcatKind, State, Upload
from service.protocol.intents import Policy

#: rows looked at in one go
_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that would be removed, and how many bytes go with it. `what`: of a tombstone, whose."""

    kind: Kind
    id: str
    size: int = 0
    what: str = ""


class Due:
    """Changes nothing."""

    def __init__(self, metadata: MetadataStore, files: Files, policy: Policy, clock: Clock) -> None:
        self._metadata = metadata
        self._files = files
        self._policy = policy
        self._clock = clock

    async def removals(self) -> AsyncIterator[Removal]:
        """Each once. Raises StorageError at the end: some of what is held could not be listed."""
        now = self._clock.now()
        async for upload in self._uploads(now):
            yield Removal("expired-upload", upload.id, upload.offset)
        async for file in pages(partial(self._metadata.expired_files, now=now)):
            yield Removal("expired-file", file.id, file.manifest.size)
        async for tombstone in self._tombstones(now):
            yield Removal("tombstone", tombstone.id, what=tombstone.kind)
        async for orphan in self._files.orphans():
            if orphan.removable:
                kind: Kind = "leftover" if orphan.held.key is None else "orphan"
                yield Removal(kind, orphan.held.name, orphan.held.size)

    async def _uploads(self, now: float) -> AsyncIterator[Upload]:
        told: set[str] = set()
        async for upload in pages(partial(self._metadata.expired_uploads, now=now)):
            if not await self._expires(upload, now):
                continue
            yield upload
            if upload.concat_kind is not ConcatKind.FINAL:
                continue
            # once the final that names them is gone, its partials expire in the same sweep (T-096)
            for part in (await self._metadata.uploads(upload.partials)).values():
                if part.id not in told and await self._expires(part, now) and not await self._wanted(part, now):
                    told.add(part.id)
                    yield part

    async def _expires(self, upload: Upload, now: float) -> bool:
        """Whether it is due, and no writer holds it."""
        partial_too = upload.state is State.READY and upload.concat_kind is ConcatKind.PARTIAL
        if upload.expires_at > now or not (upload.state is State.RECEIVING or partial_too):
            return False
        lease = await self._metadata.lease(upload.id)
        return lease is None or lease.until <= now

    async def _wanted(self, part: Upload, now: float) -> bool:
        """Whether a final names the partial that does not expire as well."""
        finals = await self._metadata.uploads(await self._metadata.pending_finals(part.id))
        for final in finals.values():
            if not await self._expires(final, now):
                return True
        async for finishing in pages(self._metadata.finishing_uploads):
            if part.id in finishing.partials:
                return True
        return False

    async def _tombstones(self, now: float) -> AsyncIterator[Tombstone]:
        ask = partial(
            self._metadata.tombstones,
            before=now - self._policy.tombstone_seconds,
            link_before=now - LEEWAY_SECONDS,
            limit=_BATCH,
        )
        last: Tombstone | None = None
        while page := await ask(after=last):
            for tombstone in page:
                yield tombstone
            last = page[-1]
