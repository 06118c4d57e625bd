"""Metadata and storage held against each other, both ways, without changing either.

Rows without bytes: a file whose object is missing or of another size, an unfinished upload that
storage cannot back as far as its offset, or that storage has finished. Bytes without rows: what a
sweep would remove, and what it leaves alone because another database may know it. A restored copy
of the database shows as both (lesson C7). And within the database: what owners are counted to have.

A service may go on beside it: a difference counts only if the row is the same after the look as it
was before. Memory does not grow with the number of files: rows come in pages, and what is held is
judged a batch at a time (`files`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from service.files import Files, Orphan
from service.metadata.base import MetadataStore
from service.metadata.control import ControlStore, Usage
from service.model import ConcatKind, File, FileId, State, Upload
from service.storage.base import Backing, Storage, StorageError, StorageShort

T = TypeVar("T")

#: rows looked at in one go
_BATCH: Final = 500
#: objects asked for at once
_AT_ONCE: Final = 16
#: how often an upload is looked at that moves on meanwhile
_TRIES: Final = 3
#: after so many things that could not be looked at, storage itself is taken to be away
_MOST_UNCHECKED: Final = 20


class Word(StrEnum):
    """What a finding is, as the command prints it; never renamed."""

    FILE_MISSING = "file-missing"
    FILE_SIZE = "file-size"
    UPLOAD_SHORT = "upload-short"
    UPLOAD_FINISHED = "upload-finished"
    LEFTOVER = "leftover"
    ORPHAN = "orphan"
    STRANGER = "stranger"
    STAGED = "staged"
    MISCOUNTED = "miscounted"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: of what, and in words what was found."""

    word: Word
    id: str
    found: str


class Fsck:
    """One pass. The counts are right once it is over."""

    def __init__(
        self, metadata: MetadataStore, control: ControlStore, storage: Storage, files: Files, *, older_than: float
    ) -> None:
        """`older_than`: seconds; bytes that no record needs are not told of if they were changed since."""
        self._metadata = metadata
        self._control = control
        self._storage = storage
        self._files = files
        self._older_than = older_than
        #: looked at
        self.files = 0
        self.uploads = 0
        #: uploads that did not stand still for a look
        self.moving = 0
        self._unchecked = 0

    async def findings(self) -> AsyncIterator[Finding]:
        """Each difference once.

        Raises:
            StorageError, MetadataError: it cannot be gone on with.
        """
        last: FileId | None = None
        while page := await self._metadata.file_keys(limit=_BATCH, after=last):
            last = page[-1][0]
            for some in _some([file_id for file_id, _, deleted in page if not deleted]):
                for finding in await asyncio.gather(*map(self._file, some)):
                    if finding is not None:
                        yield finding
        after: Upload | None = None
        while uploads := await self._metadata.unfinished_uploads(limit=_BATCH, after=after.id if after else None):
            after = uploads[-1]
            for each in _some(uploads):
                for findings in await asyncio.gather(*map(self._upload, each)):
                    for finding in findings:
                        yield finding
        for (_, owner), (counted, right) in (await self._control.miscounted()).items():
            yield Finding(Word.MISCOUNTED, owner, f"{_counts(counted)} are counted, there are {_counts(right)}")
        try:
            async for orphan in self._files.orphans(older_than=self._older_than):
                yield _unneeded(orphan)
        except StorageError as error:
            yield self._could_not("storage", error)

    async def _file(self, file_id: FileId) -> Finding | None:
        file = await self._metadata.file(file_id)
        if file is None or file.deleted_at is not None:
            return None
        self.files += 1
        try:
            size = await self._size(file)
        except StorageError as error:
            return self._could_not(file_id, error)
        if size == file.manifest.size:
            return None
        # a delete is recorded before the bytes go
        file = await self._metadata.file(file_id)
        if file is None or file.deleted_at is not None:
            return None
        recorded = f"{file.manifest.size} bytes are recorded under {file.key}"
        if size is None:
            return Finding(Word.FILE_MISSING, file_id, f"{recorded}, none are held")
        return Finding(Word.FILE_SIZE, file_id, f"{recorded}, {size} are held")

    async def _size(self, file: File) -> int | None:
        try:
            async with self._storage.open_file(file.key) as opened:
                return opened.size
        except StorageShort:
            return None

    async def _upload(self, upload: Upload) -> Sequence[Finding]:
        # the bytes of a final are its partials', which have ledgers of their own
        if upload.concat_kind is ConcatKind.FINAL:
            return ()
        self.uploads += 1
        try:
            settled = await self._backing(upload)
        except StorageError as error:
            return (self._could_not(upload.id, error),)
        if settled is None:
            return ()
        upload, backing = settled
        findings = [
            Finding(Word.STAGED, upload.id, f"{staged.size} bytes in {staged.name}, which its ledger does not name")
            for staged in backing.staged
        ]
        if backing.backed < upload.offset:
            found = f"offset {upload.offset} is recorded, the first {backing.backed} bytes are held"
            findings.append(Finding(Word.UPLOAD_SHORT, upload.id, found))
        return findings

    async def _backing(self, upload: Upload) -> tuple[Upload, Backing] | None:
        """How far the upload is backed, and the upload as it was all that time; None: it ended or moved on."""
        for _ in range(_TRIES):
            ledger = await self._metadata.ledger(upload.id)
            backing = await self._storage.examine(upload.id, ledger, older_than=self._older_than)
            now_is = await self._metadata.upload(upload.id)
            if now_is is None or not _unfinished(now_is):
                return None
            if now_is == upload:
                return upload, backing
            upload = now_is
        self.moving += 1
        return None

    def _could_not(self, what: str, error: StorageError) -> Finding:
        """Raises the error: there were too many."""
        self._unchecked += 1
        if self._unchecked > _MOST_UNCHECKED:
            raise error
        return Finding(Word.UNCHECKED, what, str(error))


def _some(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[low : low + _AT_ONCE] for low in range(0, len(rows), _AT_ONCE))


def _unfinished(upload: Upload) -> bool:
    if upload.state is State.READY:
        return upload.concat_kind is ConcatKind.PARTIAL
    return upload.state in (State.RECEIVING, State.FINISHING)


def _counts(usage: Usage) -> str:
    return (
        f"{usage.files} files of {usage.file_bytes} bytes and {usage.pending} unfinished uploads"
        f" with {usage.reserved} bytes reserved"
    )


def _unneeded(orphan: Orphan) -> Finding:
    held = orphan.held
    # a store may not tell the size of what is unfinished
    size = f"{held.size} bytes" if held.size or held.key is not None else "bytes"
    what = f"unfinished {size}" if held.key is None else f"a finished file of {size}"
    if orphan.early:
        return Finding(Word.UPLOAD_FINISHED, held.name, f"{what} is held, which by its record still receives")
    if not orphan.removable:
        return Finding(Word.STRANGER, held.name, f"{what}, of no upload and no file that is known")
    word = Word.LEFTOVER if held.key is None else Word.ORPHAN
    return Finding(word, held.name, f"{what}, which no record needs")
