"""Files and uploads for the backend whose they are: looked at, claimed, released, removed (lesson E4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import structlog

from service.clock import Clock
from service.control_models import Digests, FileInfo, FilePage, Released, UploadInfo, UploadPage
from service.events import EventMaker
from service.files import Files
from service.found import Found
from service.metadata.base import Conflict, MetadataStore
from service.metadata.control import ControlStore, Refs, instant_of
from service.model import ConcatKind, File, FileId, State, Upload, UploadId, Verdict, parse_upload_id
from service.protocol.problems import refuse
from service.settling import Settling
from service.storage.base import Storage, StorageError

log = structlog.get_logger(__name__)


class ControlFiles:
    """Each method is given the issuer, and shows and changes only what is its."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        control: ControlStore,
        storage: Storage,
        found: Found,
        files: Files,
        settling: Settling,
        events: EventMaker,
        clock: Clock,
        changed: Callable[[str], None],
    ) -> None:
        self._metadata = metadata
        self._control = control
        self._storage = storage
        self._found = found
        self._files = files
        self._settling = settling
        self._events = events
        self._clock = clock
        self._changed = changed

    # --- files ------------------------------------------------------------------------------

    async def file(self, issuer: str, file_id: FileId) -> FileInfo:
        """Raises Refusal: not-found, gone, not-ready."""
        return await self._info(await self._found.file(issuer, file_id, infected=True))

    async def files(
        self, issuer: str, *, owner: str | None, ref: str | None, after: FileId | None, limit: int
    ) -> FilePage:
        """Those that are not deleted, by id."""
        found = await self._control.files_of(issuer, owner=owner, ref=ref, after=after, limit=limit)
        refs = await self._control.refs([file.id for file in found])
        return FilePage(
            files=[_file_info(file, refs[file.id]) for file in found],
            next=found[-1].id if len(found) == limit else None,
        )

    async def delete(self, issuer: str, file_id: FileId) -> None:
        """The file is gone, or never comes: an upload that is to be it ends. A second time changes nothing.

        Raises:
            Refusal: not-found; locked, worth a retry.
        """
        file, upload = await self._found.either(issuer, file_id)
        if file is None and upload is not None and upload.state.live:
            await self._settling.terminate(upload)
        elif file is not None and file.deleted_at is None:
            try:
                await self._files.delete(file)
            except StorageError as error:
                # what is recorded stands; the janitor finds the bytes
                log.warning("delete_postponed", file_id=file.id, reason=str(error))

    async def claim(self, issuer: str, file_id: FileId, ref: str) -> FileInfo:
        """The file has the reference, and no `hold` ends it any more.

        Raises:
            Refusal: not-found, gone, not-ready; infected.
        """
        file = await self._found.file(issuer, file_id)
        try:
            file = await self._control.claim_file(file.id, ref, now=self._clock.now())
        except Conflict:
            file = await self._found.file(issuer, file_id)
            raise refuse("locked", "The file is being changed; try again.", retry_after=1) from None
        return await self._info(file)

    async def release(self, issuer: str, file_id: FileId, ref: str) -> Released:
        """The file has the reference no more, and without any it is gone, at once. A second time changes nothing.

        Raises:
            Refusal: not-found; not-ready.
        """
        file, _ = await self._found.either(issuer, file_id)
        if file is None:
            file = await self._found.file(issuer, file_id, infected=True)
        if file.deleted_at is None:
            file = await self._release(file, ref)
        refs = (await self._control.refs([file.id]))[file.id]
        state: Any = _state(file) if file.deleted_at is None else "deleted"
        return Released(file_id=file.id, state=state, refs=list(refs.listed), ref_count=refs.count)

    async def _release(self, file: File, ref: str) -> File:
        now = self._clock.now()
        upload = await self._metadata.upload(file.upload_id)
        event = self._events.of_file("deleted", file, upload, now)
        file = await self._control.release_file(file.id, ref, now=now, events=[event])
        if file.deleted_at is not None:
            log.info("file_deleted", file_id=file.id, size=file.manifest.size)
            self._changed(file.id)
            try:
                await self._storage.delete(file.key)
            except StorageError as error:
                log.warning("delete_postponed", file_id=file.id, reason=str(error))
        return file

    async def _info(self, file: File) -> FileInfo:
        return _file_info(file, (await self._control.refs([file.id]))[file.id])

    # --- uploads ----------------------------------------------------------------------------

    async def upload(self, issuer: str, upload_id: UploadId) -> UploadInfo:
        """Also one that has ended, while it is remembered. Raises Refusal: not-found."""
        return _upload_info(await self._found.upload(issuer, upload_id))

    async def uploads(self, issuer: str, state: State, *, after: str | None, limit: int) -> UploadPage:
        """Those of a state: by when they expire, or by when they came into it.

        Args:
            after: what an earlier page said is `next`.

        Raises:
            Refusal: bad-request.
        """
        last = _read_cursor(after) if after is not None else None
        found = await self._control.uploads_in(issuer, state, after=last, limit=limit)
        return UploadPage(
            uploads=[_upload_info(upload) for upload in found],
            next=_cursor(found[-1]) if len(found) == limit else None,
        )

    async def terminate(self, issuer: str, upload_id: UploadId) -> None:
        """The upload, and the file that it made, are gone. A second time changes nothing.

        Raises:
            Refusal: not-found; locked, worth a retry.
        """
        upload = await self._found.upload(issuer, upload_id)
        if upload.state.live:
            await self._settling.terminate(upload)


def _state(file: File) -> Literal["ready", "infected"]:
    return "infected" if file.verdict is Verdict.INFECTED else "ready"


def _file_info(file: File, refs: Refs) -> FileInfo:
    manifest = file.manifest
    return FileInfo(
        file_id=file.id,
        upload_id=file.upload_id,
        state=_state(file),
        verdict=file.verdict.value,
        size=manifest.size,
        type=file.media_type,
        sniffed_type=file.sniffed_type,
        filename=file.filename,
        owner=file.owner,
        digests=Digests(
            root_algorithm=manifest.root_algorithm,
            root=manifest.root.hex(),
            sha256_root=manifest.sha256_root.hex() if manifest.sha256_root is not None else None,
            sha256=file.sha256,
        ),
        refs=list(refs.listed),
        ref_count=refs.count,
        created_at=int(file.created_at),
        expires_at=int(file.expires_at) if file.expires_at is not None else None,
    )


def _upload_info(upload: Upload) -> UploadInfo:
    return UploadInfo(
        upload_id=upload.id,
        file_id=upload.file_id if upload.concat_kind is not ConcatKind.PARTIAL else None,
        state=upload.state.value,
        offset=upload.offset,
        length=upload.length,
        type=upload.media_type,
        filename=upload.filename,
        owner=upload.terms.owner,
        protocol=upload.protocol.value,
        created_at=int(upload.created_at),
        updated_at=int(upload.updated_at),
        expires_at=int(upload.expires_at) if upload.state is State.RECEIVING else None,
        problem=upload.problem,
    )


def _cursor(upload: Upload) -> str:
    return f"{instant_of(upload)!r}~{upload.id}"


def _read_cursor(text: str) -> tuple[float, UploadId]:
    instant, _, name = text.partition("~")
    upload_id = parse_upload_id(name)
    try:
        at = float(instant)
    except ValueError:
        upload_id, at = None, 0.0
    if upload_id is None or not 0 <= at < 2**53:
        raise refuse("bad-request", "after: must be what an earlier page has as next")
    return at, upload_id
