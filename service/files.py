"""What happens to a file once it is there: it is deleted."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from service.clock import Clock
from service.events import EventMaker
from service.metadata.base import MetadataStore
from service.model import ConcatKind, File, Upload
from service.storage.base import Storage

log = structlog.get_logger(__name__)


class Files:
    """The use-cases of finished files."""

    def __init__(
        self,
        metadata: MetadataStore,
        storage: Storage,
        clock: Clock,
        events: EventMaker,
        changed: Callable[[str], None],
    ) -> None:
        self._metadata = metadata
        self._storage = storage
        self._clock = clock
        self._events = events
        self._changed = changed

    async def delete(self, file: File) -> None:
        """The file is gone for every link to it; its bytes go after the record says so.

        A download that has begun may run to its end. Idempotent.
        """
        if file.deleted_at is None:
            now = self._clock.now()
            upload = await self._metadata.upload(file.upload_id)
            await self._metadata.delete_file(
                file.id, now=now, events=[self._events.of_file("deleted", file, upload, now)]
            )
            log.info("file_deleted", file_id=file.id, size=file.manifest.size)
            self._changed(file.id)
        await self._storage.delete(file.key)

    async def delete_of(self, upload: Upload) -> None:
        """The file that the upload made, if any, is deleted. A partial makes none."""
        if upload.complete and upload.concat_kind is not ConcatKind.PARTIAL:
            file = await self._metadata.file(upload.file_id)
            if file is not None and file.upload_id == upload.id:
                await self.delete(file)
