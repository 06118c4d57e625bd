"""A small file in one step: received whole, stored, and recorded by the one commit that makes it `ready`.

Most attachments are small, and come in one request whose body is there as soon as its head. For
such a one no upload is recorded while it receives: nobody knows its address yet. Whatever is not
as plain as that goes the long way (`claiming`, `receiving`, `finishing`), which also judges it: so
nothing is refused here, and a body that is not whole at once loses nothing.

A crash before the commit leaves a file that no record names, and the mark by which the janitor
tells it from one whose record was lost (`Storage.put`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from service import hashing
from service.claiming import fresh_upload
from service.clock import Clock
from service.events import EventMaker
from service.files import discard_all
from service.finishing import new_file
from service.links import VerifiedUpload
from service.metadata.base import Conflict, FileIdTaken, MetadataStore, QuotaExceeded
from service.metrics import Metrics
from service.model import Block, ConcatKind, LinkTerms, LinkUse, State, Upload, UploadId
from service.protocol.decide import decide_create
from service.protocol.intents import Create, Policy
from service.protocol.media import content_allowed
from service.protocol.problems import Refusal
from service.receiving import WHOLE_BYTES, Body
from service.room import Room
from service.sniffing import SNIFF_BYTES, sniff
from service.storage.base import Storage, StorageError
from service.tasks import Tasks

log = structlog.get_logger(__name__)

#: how long marks wait for others, so that one call takes many
_MARKS_SECONDS: Final = 0.05
#: a file that took longer is not recorded; well below `files.ORPHAN_SECONDS`
_STALE_SECONDS: Final = 600.0


class AtOnce:
    """The short way of a creation."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        storage: Storage,
        room: Room,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
        events: EventMaker,
        tasks: Tasks,
        changed: Callable[[str], None],
        unrevoked: Callable[[VerifiedUpload], Awaitable[None]],
    ) -> None:
        """`unrevoked`: refuses a link that was revoked since it was verified."""
        self._metadata = metadata
        self._storage = storage
        self._room = room
        self._policy = policy
        self._clock = clock
        self._metrics = metrics
        self._events = events
        self._tasks = tasks
        self._changed = changed
        self._unrevoked = unrevoked
        #: files that are recorded and still have their mark
        self._marked: list[UploadId] = []

    async def create(self, intent: Create, verified: VerifiedUpload, body: Body) -> Upload | None:
        """The upload, `ready`; None: it has to go the long way, and nothing has happened.

        Raises:
            MetadataError: worth a retry, which finds the upload if it was recorded all the same.
        """
        if verified.expired or not self._storage.puts or not self._plain(intent, verified.terms):
            return None
        try:
            await self._room.check(intent.length)
        except Refusal:
            return None
        if await self._metadata.link_use(verified.terms.issuer, verified.terms.jti) is not None:
            return None
        data = await body.whole()
        if data is None or len(data) != intent.length:
            return None
        sniffed = sniff(bytes(data[:SNIFF_BYTES]))
        if not content_allowed(sniffed, intent.media_type, verified.terms.types):
            return None
        return await self._tasks.drive(self._make(intent, verified, data, sniffed))

    def _plain(self, intent: Create, terms: LinkTerms) -> bool:
        size = intent.length
        if size is None or size != intent.framing.length or not 0 < size <= WHOLE_BYTES:
            return False
        if intent.concat_kind is not ConcatKind.NONE or intent.checksum is not None or intent.checksum_trailer:
            return False
        if not terms.single_use or terms.sha256 is not None:
            return False
        try:
            decide_create(intent, terms, self._policy)
        except Refusal:
            return False
        return True

    async def _make(
        self, intent: Create, verified: VerifiedUpload, data: memoryview, sniffed: str | None
    ) -> Upload | None:
        terms, now = verified.terms, self._clock.now()
        fresh = fresh_upload(intent, terms, self._policy, now, len(data))
        upload = fresh.with_(offset=len(data), state=State.READY)
        try:
            blocks = await self._hashed(data)
            stored = await self._storage.put(upload.id, data)
        except StorageError:
            return None
        file = new_file(upload, stored.key, hashing.manifest(blocks, len(data), upload.block_size), sniffed, now)
        events = [self._events.of_upload("created", fresh, now), self._events.of_file("ready", file, upload, now)]
        use = LinkUse(terms.issuer, terms.jti, terms.expires_at, uploads=(upload.id,))
        if self._clock.now() - now > _STALE_SECONDS:
            # we slept, and a sweep may have taken the file for one that nobody will record
            await discard_all(self._storage, upload.id)
            return None
        try:
            # storage may have taken its time
            await self._unrevoked(verified)
            await self._metadata.create_ready(upload, use, file, events=events, quota=self._policy.quota)
        except (Conflict, FileIdTaken, QuotaExceeded, Refusal):
            # the link or the file id is not new, or the link is revoked, or the owner has no room: what that means
            # is decided on the long way
            await discard_all(self._storage, upload.id)
            return None
        self._changed(upload.id)
        self._changed(upload.file_id)
        self._unmark_soon(upload.id)
        self._count(upload, len(data))
        log.debug("upload_ready", upload_id=upload.id, file_id=file.id, size=len(data), kid=verified.kid)
        return upload

    async def _hashed(self, data: memoryview) -> list[Block]:
        hasher = hashing.BlockHasher(self._policy.block_size, strong=self._policy.strong_hash)
        if self._policy.strong_hash:
            await asyncio.to_thread(hasher.update, data)
        else:
            hasher.update(data)
        blocks, last = hasher.take_finished(), hasher.finish()
        return blocks if last is None else [*blocks, last]

    def _count(self, upload: Upload, size: int) -> None:
        self._metrics.upload_created(upload.protocol)
        self._metrics.upload_received(upload.protocol, size)
        self._metrics.hashed("xxh128", size)
        if self._policy.strong_hash:
            self._metrics.hashed("sha256", size)
        self._metrics.upload_committed(upload.protocol, size)
        self._metrics.upload_finished(upload.protocol, size=size, seconds=self._clock.now() - upload.created_at)

    def _unmark_soon(self, upload_id: UploadId) -> None:
        self._marked.append(upload_id)
        if len(self._marked) == 1:
            self._tasks.spawn(self._unmark())

    async def _unmark(self) -> None:
        """A mark that stays is the janitor's: that of a recorded file is a leftover to it."""
        await asyncio.sleep(_MARKS_SECONDS)
        marked, self._marked = self._marked, []
        try:
            await self._storage.recorded(marked)
        except StorageError as error:
            log.info("marks_left", count=len(marked), reason=str(error))
