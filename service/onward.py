"""The next bytes of an upload in one step: received whole, written behind the last ones, committed.

A client that sends an upload in small pieces sends them over one connection, so the process that
gets a piece is the one that committed the last. It knows how the upload stands, and that nobody
else may write it unless the lease changed hands, by which the epoch rises. So a piece whose body is
there as a whole needs no lease: its commit is compared with all that such a one would have changed.
Whatever is not as plain as that goes the long way (`receiving`), which also judges it: nothing is
refused here, and a commit that came too late changed nothing.

A kill before the commit leaves bytes behind the ledger's end, which the next writer writes over,
as after any write that was not committed.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from service.carrying import Carried, Left
from service.clock import Clock
from service.metadata.base import Advance, Conflict, MetadataStore
from service.metrics import Metrics
from service.model import ConcatKind, Upload
from service.protocol.decide import decide_append, expiry
from service.protocol.intents import Append, Policy
from service.protocol.problems import Refusal
from service.receiving import WHOLE_BYTES, Body
from service.storage.base import Storage, StorageError
from service.tasks import Tasks

log = structlog.get_logger(__name__)


class Onward:
    """The short way of an append."""

    def __init__(
        self,
        metadata: MetadataStore,
        storage: Storage,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
        tasks: Tasks,
        changed: Callable[[str], None],
        carried: Carried,
    ) -> None:
        self._metadata = metadata
        self._storage = storage
        self._policy = policy
        self._clock = clock
        self._metrics = metrics
        self._tasks = tasks
        self._changed = changed
        self._carried = carried

    async def append(self, intent: Append, body: Body) -> Upload | None:
        """The upload with the body at its end; None: it has to go the long way, and nothing has happened.

        What a client wrote about it is not told.

        Raises:
            MetadataError: worth a retry, which finds what was committed.
        """
        if not self._storage.extends or not _plain(intent):
            return None
        left = self._carried.left(intent.upload_id)
        if left is None or not self._fits(intent, left.upload):
            return None
        data = await body.whole()
        if data is None or len(data) != intent.framing.length or not self._carried.take_left(left):
            return None
        return await self._tasks.drive(self._make(left, data))

    def _fits(self, intent: Append, upload: Upload) -> bool:
        """Whether it may be taken, and the upload goes on after it."""
        if upload.strong_hash or upload.concat_kind is ConcatKind.FINAL:
            return False
        try:
            intake = decide_append(intent, upload, self._policy, self._clock.now())
        except Refusal:
            return False
        size = intent.framing.length or 0
        return intake is not None and (intake.length is None or upload.offset + size < intake.length)

    async def _make(self, left: Left, data: memoryview) -> Upload | None:
        before, hasher, end = left.upload, left.hasher, left.upload.offset + len(data)
        # some 50 microseconds, less than to let a thread have it
        hasher.update(data)
        try:
            receipt = await self._storage.extend(before.id, left.ledger or (), data, epoch=before.epoch)
        except StorageError as error:
            log.info("extend_failed", upload_id=before.id, error=str(error))
            return None
        if receipt is None:
            return None
        self._metrics.upload_received(before.protocol, len(data))
        self._metrics.hashed("xxh128", len(data))
        now = self._clock.now()
        step = Advance(
            to_offset=end,
            expires_at=expiry(before, self._policy, now),
            parts=receipt.parts,
            blocks=hasher.take_finished(),
            tail=hasher.tail(end),
        )
        try:
            upload = await self._metadata.go_on(before, step, now=now)
        except Conflict:
            return None
        self._carried.keep(upload, hasher, (*(left.ledger or ())[:-1], *receipt.parts))
        self._metrics.upload_committed(upload.protocol, len(data))
        self._changed(upload.id)
        return upload


def _plain(intent: Append) -> bool:
    size = intent.framing.length
    if size is None or not 0 < size <= WHOLE_BYTES:
        return False
    return intent.length is None and intent.checksum is None and not intent.checksum_trailer
