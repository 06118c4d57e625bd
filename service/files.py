"""What happens to stored bytes afterwards: a file is deleted, and what nobody needs any more is found.

Bytes go after the record that says so. What storage cannot remove at that moment, or what a crash
leaves between the two, is an orphan: held, and needed by no record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from service.clock import Clock
from service.events import EventMaker
from service.metadata.base import Conflict, MetadataStore
from service.model import ConcatKind, File, FileId, State, Upload, UploadId
from service.storage.base import Held, Storage, StorageError

log = structlog.get_logger(__name__)

#: what was changed since is no orphan yet: whoever changed it may be about to remove it
ORPHAN_SECONDS: Final = 3600.0
#: rows looked at in one go
_BATCH: Final = 500
#: keys that are held against all files in one go; bounds memory
_KEYS: Final = 50_000
#: more things than these that no record names, and than any does, are another database's, not orphans
_STRANGERS: Final = 20


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something held that no record needs. `removable`: nor does one of another database, it seems.

    What is not is a stranger, of no upload and no file that is known; or `early`, the finished file of
    an upload that still receives by its record, which must be older than the file.
    """

    held: Held
    removable: bool = True
    early: bool = False


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

    @property
    def backend(self) -> str:
        """The name of the storage."""
        return self._storage.name

    async def free_bytes(self) -> int | None:
        """What may still be stored; None: there is no end. Raises StorageError."""
        return await self._storage.free_bytes()

    async def delete(self, file: File, *, expired_before: float | None = None) -> bool:
        """The file is gone for every link to it; its bytes go after the record says so.

        A download that has begun may run to its end. Idempotent.

        Args:
            expired_before: only if its time was over by then; whether it was is what comes back.

        Raises:
            StorageError: worth a retry; the file is deleted, its bytes are an orphan.
        """
        try:
            await self._forget(file, expired_before=expired_before)
        except Conflict:
            if expired_before is None:
                raise
            return False
        await self._storage.delete(file.key)
        return True

    async def forget_of(self, upload: Upload) -> None:
        """The file that the upload made, if any, is deleted, but for its bytes. A partial makes none."""
        if upload.complete and upload.concat_kind is not ConcatKind.PARTIAL:
            file = await self._metadata.file(upload.file_id)
            if file is not None and file.upload_id == upload.id:
                await self._forget(file)

    async def _forget(self, file: File, *, expired_before: float | None = None) -> None:
        if file.deleted_at is not None:
            return
        now = self._clock.now()
        event = self._events.of_file("deleted", file, await self._metadata.upload(file.upload_id), now)
        await self._metadata.delete_file(file.id, now=now, events=[event], expired_before=expired_before)
        log.info("file_deleted", file_id=file.id, size=file.manifest.size)
        self._changed(file.id)

    async def orphans(self, *, older_than: float = ORPHAN_SECONDS) -> AsyncIterator[Orphan]:
        """What storage holds although no record needs it, to be removed as it comes if removable.

        A finished file of no upload and no file that is known is not removable: it stays, and the log
        tells of it. Many passes lie between the end of an upload or file and the day its row goes,
        so such a file is another database's, or came after the copy that this one was restored from.
        But one that is marked (`Storage.put`) was never recorded, and goes.

        No record comes to need it again. An upload is recorded before storage hears of it, or within
        a moment after that if it is a small one. It never comes back once it ended, and is `ready` in
        the transaction that makes its file row: so when its row is gone, or says that it neither
        receives nor finishes, a file row that there ever was is there to be seen, and a deleted one
        stays deleted.

        Args:
            older_than: seconds; what was changed since is not told of. To remove what comes takes an hour.

        Raises:
            StorageError: at the end; some of what is held could not be listed.
        """
        census = _Census(self._metadata)
        failed: StorageError | None = None
        try:
            async for held in self._storage.held(older_than=older_than):
                for found in await census.take(held):
                    yield found
        except StorageError as error:
            failed = error
        for orphan in await census.rest():
            yield orphan
        if failed is not None:
            raise failed

    async def remove(self, held: Held) -> None:
        """The bytes of the orphan are gone. Idempotent. Raises StorageError: worth a retry."""
        if held.key is None:
            await self._storage.discard(held.name)
        else:
            await self._storage.delete(held.key)
        log.info("orphan_removed", upload_id=held.name, finished=held.key is not None, size=held.size)


class _Census:
    """Holds what storage lists against the records, many at a time."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._batch: list[Held] = []
        #: finished, and not to be by their upload: key -> what is held, whether the upload is known
        self._finished: dict[str, tuple[Held, bool]] = {}
        #: unfinished, of no upload that is known
        self._strangers: list[Held] = []
        self._strange_unfinished = 0
        #: the marks of small files that no record names, whose upload is not known either
        self._marks: list[Held] = []
        #: finished, of no upload and no file that is known
        self._strange_files: list[Held] = []
        self._strange_finished = 0
        self._known = 0

    async def take(self, held: Held) -> list[Orphan]:
        """The orphans among what was given since the last ones."""
        self._batch.append(held)
        if len(self._batch) < _BATCH:
            return []
        found = await self._judge()
        return found + await self._without_file() if len(self._finished) >= _KEYS else found

    async def rest(self) -> list[Orphan]:
        """The orphans among all that was given and not told of yet."""
        found = await self._judge() + await self._without_file()
        marks = {held.name for held in self._marks}
        marked = [held for held in self._strange_files if held.name in marks]
        finished = self._strange_finished - len(marked)
        many = finished + self._strange_unfinished > max(_STRANGERS, self._known)
        if many or finished:
            tell = log.error if many else log.warning
            tell(
                "strangers_kept",
                finished=finished,
                unfinished=self._strange_unfinished if many else 0,
                known=self._known,
            )
        found += [Orphan(held, removable=False) for held in self._strange_files if held.name not in marks]
        found += [Orphan(held, removable=not many) for held in self._strangers]
        # the mark goes last: without it the file would stay for ever
        return found + [Orphan(held) for held in marked + self._marks]

    async def _judge(self) -> list[Orphan]:
        batch, self._batch = self._batch, []
        uploads = await self._metadata.uploads_named({held.name for held in batch})
        found = []
        for held in batch:
            upload = uploads.get(held.name)
            self._known += upload is not None
            if upload is not None and _needs_all(upload):
                # `finishing` is recorded before storage makes a file; the row was read after the file was seen
                if held.key is not None and _only_receives(upload):
                    found.append(Orphan(held, removable=False, early=True))
                continue
            if held.key is not None:
                self._finished[held.key] = (held, upload is not None)
            elif upload is None and held.mark:
                self._marks.append(held)
            elif upload is None:
                self._strange_unfinished += 1
                if len(self._strangers) < _KEYS:
                    self._strangers.append(held)
            else:
                found.append(Orphan(held))
        return found

    async def _without_file(self) -> list[Orphan]:
        """Those of the finished files that no file row names, or a deleted one's.

        The rows are read after their uploads'.
        """
        orphans: list[Orphan] = []
        last: FileId | None = None
        while self._finished and (page := await self._metadata.file_keys(limit=_BATCH, after=last)):
            last = page[-1][0]
            for _, key, deleted in page:
                found = self._finished.pop(key, None)
                if found is not None:
                    held, known = found
                    self._known += not known
                    if deleted:
                        orphans.append(Orphan(held))
        left, self._finished = self._finished, {}
        strange = [held for held, known in left.values() if not known]
        self._strange_finished += len(strange)
        room = _KEYS - len(self._strange_files)
        self._strange_files += strange[:room]
        orphans += [Orphan(held, removable=False) for held in strange[room:]]
        return orphans + [Orphan(held) for held, known in left.values() if known]


def _needs_all(upload: Upload) -> bool:
    """Whether all that is held of the upload stays, finished or not.

    Storage may be working for it; and a partial is read through its ledger, which may name
    finished objects.
    """
    if upload.state is State.READY:
        return upload.concat_kind is ConcatKind.PARTIAL
    return upload.state in (State.RECEIVING, State.FINISHING)


def _only_receives(upload: Upload) -> bool:
    return upload.state is State.RECEIVING and upload.concat_kind is not ConcatKind.PARTIAL


async def discard_all(storage: Storage, upload_id: UploadId) -> None:
    """Nothing of the ended upload is held, nor a file that was not published; else the janitor's work.

    What is recorded stands: that storage is away now is no reason to answer with an error.
    """
    try:
        await storage.discard(upload_id, finished=True)
    except StorageError as error:
        log.warning("discard_postponed", upload_id=upload_id, reason=str(error))
