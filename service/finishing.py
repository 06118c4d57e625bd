"""From the last byte to a file: complete, check, publish. Idempotent, and driven by anyone.

`finishing` is a recorded state. Whoever holds the upload's lease and finds it there does all of
this again from the start; each step gives the same result however often it ran (lesson C1).
Nothing becomes readable before the one transaction that makes it `ready`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from service import hashing
from service.clock import Clock
from service.events import EventMaker
from service.files import discard_all
from service.hooks import Hooks
from service.metadata.base import Advance, Conflict, Ending, Lease, MetadataStore
from service.metrics import Metrics
from service.model import Block, ConcatKind, File, Manifest, Part, State, Upload
from service.protocol.decide import length_problem
from service.protocol.intents import Policy
from service.protocol.media import content_allowed
from service.protocol.problems import Problem, Refusal
from service.scanning import Scanning, ScanPostponed
from service.sniffing import SNIFF_BYTES, sniff
from service.storage.base import Storage, StorageShort, Stored

log = structlog.get_logger(__name__)

LOST: Final = Problem("internal", "the stored bytes were lost; create a new upload")


class Finisher:
    """Drives uploads from `finishing` to `ready` or `failed`. The caller holds the lease."""

    def __init__(
        self,
        metadata: MetadataStore,
        storage: Storage,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
        events: EventMaker,
        changed: Callable[[str], None],
        hooks: Hooks,
        scanning: Scanning | None = None,
    ) -> None:
        """`scanning`: None where files are not scanned."""
        self._metadata = metadata
        self._storage = storage
        self._policy = policy
        self._clock = clock
        self._metrics = metrics
        self._events = events
        self._changed = changed
        self._hooks = hooks
        self._scanning = scanning

    async def finish(
        self,
        upload: Upload,
        lease: Lease,
        head: bytes | None = None,
        *,
        ledger: Sequence[Part] | None = None,
        blocks: Sequence[Block] | None = None,
    ) -> Upload:
        """The upload, `ready` or `failed`; any other state comes back as it is, and so does a suspect.

        Args:
            head: its first SNIFF_BYTES, or all if it is shorter; None: they are read from the file.
            ledger: its committed parts; None: they are looked up. So are its blocks.

        Raises:
            StorageError, MetadataError: worth a retry; the upload stays `finishing`.
            Refusal: hook-unavailable, worth a retry; the upload stays `finishing`.
            Conflict: the lease was lost meanwhile.
        """
        if upload.state is not State.FINISHING or upload.suspect:
            return upload
        try:
            if upload.concat_kind is ConcatKind.PARTIAL:
                await self._storage.sync(await self._metadata.ledger(upload.id) if ledger is None else ledger)
                return await self._publish(upload, lease, None)
            stored = await self._complete(upload, lease, ledger)
            manifest = await self._manifest(upload, stored, blocks)
        except StorageShort:
            log.exception("upload_lost", upload_id=upload.id)
            return await self.fail(upload, LOST, epoch=lease.epoch, free_link=True)
        file, problem = await self._file(upload, stored, manifest, head)
        if problem is not None:
            return await self.fail(upload, problem, epoch=lease.epoch)
        # first, because it costs nothing: while a backend is down no file is scanned again and again
        refused = await self._refused(upload, lease, file)
        if refused is not None:
            return refused
        if self._scanning is not None:
            return await self._scan(self._scanning, upload, lease, file, stored)
        return await self._publish(upload, lease, file)

    async def _refused(self, upload: Upload, lease: Lease, file: File) -> Upload | None:
        """The upload, `failed` because the backend does not want its file; None: it does not mind.

        A backend that has not answered for as long as an upload may lie idle is asked no more.

        Raises:
            Refusal: hook-unavailable, worth a retry.
        """
        try:
            problem = await self._hooks.before_file(file, upload)
        except Refusal:
            if self._clock.now() < upload.expires_at:
                raise
            problem = Problem("hook-refused", "the backend did not answer in time; create a new upload")
            return await self.fail(upload, problem, epoch=lease.epoch, free_link=True)
        return None if problem is None else await self.fail(upload, problem, epoch=lease.epoch)

    async def _scan(self, scanning: Scanning, upload: Upload, lease: Lease, file: File, stored: Stored) -> Upload:
        """The upload, `ready` if the file may be had, else `failed`; an infected file is held all the same.

        What cannot be scanned for as long as an upload may lie idle is given up, with its bytes.

        Raises:
            StorageError: worth a retry; ScanPostponed among them.
        """
        try:
            scanned = await scanning.judge(stored)
        except ScanPostponed:
            if self._clock.now() < upload.expires_at:
                raise
            problem = Problem("scan-failed", "the file could not be scanned in time; create a new upload")
            return await self.fail(upload, problem, epoch=lease.epoch, free_link=True)
        file = replace(file, verdict=scanned.verdict)
        if scanned.problem is None:
            return await self._publish(upload, lease, file)
        if scanned.signature is None:
            return await self.fail(upload, scanned.problem, epoch=lease.epoch)
        return await self._quarantine(upload, lease, file, scanned.problem, scanned.signature)

    async def _quarantine(self, upload: Upload, lease: Lease, file: File, problem: Problem, signature: str) -> Upload:
        """The upload failed, and its file is held for whoever looks into it; nobody can fetch it."""
        now = self._clock.now()
        told = [
            self._events.of_upload("failed", upload, now, reason=problem.slug),
            self._events.of_file("infected", file, upload, now, signature=signature),
        ]
        ending = Ending(State.FAILED, now, problem.slug, problem.detail, events=told, quarantined=file)
        failed = await self._metadata.end_upload(upload.id, epoch=lease.epoch, ending=ending)
        self._metrics.upload_failed(upload.protocol, problem.slug)
        log.warning("file_infected", upload_id=upload.id, file_id=file.id, signature=signature)
        self._tell(upload)
        return failed

    async def _complete(self, upload: Upload, lease: Lease, ledger: Sequence[Part] | None) -> Stored:
        if upload.concat_kind is ConcatKind.FINAL:
            sources = [await self._metadata.ledger(partial) for partial in upload.partials]
            await self._check_whole(upload, lease, sources)
            receipt = await self._storage.concatenate(upload.id, sources, epoch=lease.epoch)
            ledger = receipt.parts
        else:
            if ledger is None:
                ledger = await self._metadata.ledger(upload.id)
            await self._check_whole(upload, lease, [ledger])
        stored = await self._storage.complete(upload.id, ledger, epoch=lease.epoch)
        if stored.size != upload.length:
            raise StorageShort(f"{stored.size} bytes are stored of {upload.length}")
        return stored

    async def _check_whole(self, upload: Upload, lease: Lease, ledgers: Sequence[Sequence[Part]]) -> None:
        """The ledgers are all of the upload. They are gone once it is published or ended, by whoever has the lease.

        Raises:
            Conflict: the lease was lost; storage must not hear of it, for there is a file now (lesson L2).
            StorageShort: permanent; the record itself is not whole.
        """
        if sum(ledger[-1].end for ledger in ledgers if ledger) == upload.length:
            return
        now_is = await self._metadata.upload(upload.id)
        if now_is is None or now_is.epoch != lease.epoch or now_is.state is not State.FINISHING:
            raise Conflict("the upload was finished by another")
        raise StorageShort("the ledger does not reach to the upload's end")

    async def _manifest(self, upload: Upload, stored: Stored, blocks: Sequence[Block] | None) -> Manifest:
        if upload.concat_kind is ConcatKind.FINAL:
            blocks = await self._hash_all(upload, stored)
        elif blocks is None:
            blocks = await self._metadata.blocks(upload.id)
        return hashing.manifest(blocks, stored.size, upload.block_size)

    async def _hash_all(self, upload: Upload, stored: Stored) -> list[Block]:
        """The blocks of joined partials, whose own blocks lie elsewhere."""
        hasher = hashing.BlockHasher(upload.block_size, strong=upload.strong_hash)
        async with self._storage.open_file(stored.key) as opened:
            async for piece in opened.read(0, stored.size):
                await asyncio.to_thread(hasher.update, memoryview(piece))
                self._metrics.hashed("xxh128", len(piece))
                if upload.strong_hash:
                    self._metrics.hashed("sha256", len(piece))
        blocks = hasher.take_finished()
        last = hasher.finish()
        return blocks if last is None else [*blocks, last]

    async def _file(
        self, upload: Upload, stored: Stored, manifest: Manifest, head: bytes | None
    ) -> tuple[File, Problem | None]:
        """The file row to be, or why there must be none (lesson C6)."""
        terms, now = upload.terms, self._clock.now()
        sha256 = None
        if head is None or terms.sha256 is not None:
            head, sha256 = await self._read_whole(stored, whole=terms.sha256 is not None)
        sniffed = sniff(head)
        file = new_file(upload, stored.key, manifest, sniffed, now, sha256=sha256)
        if terms.sha256 is not None:
            self._metrics.checksum_verified("sha256", "ok" if sha256 == terms.sha256 else "mismatch")
        if terms.sha256 is not None and sha256 != terms.sha256:
            return file, Problem("checksum-mismatch", "the file does not have the SHA-256 that the link names")
        if not content_allowed(sniffed, upload.media_type, terms.types):
            return file, Problem("type-refused", "the content is of a media type that the link does not allow")
        return file, None

    async def _read_whole(self, stored: Stored, *, whole: bool) -> tuple[bytes, str | None]:
        """The first bytes, and the SHA-256 of all if it is wanted: no hash state survives a request."""
        end = stored.size if whole else min(stored.size, SNIFF_BYTES)
        digest = hashlib.sha256()
        head = b""
        async with self._storage.open_file(stored.key) as opened:
            async for piece in opened.read(0, end):
                if len(head) < SNIFF_BYTES:
                    head += piece[: SNIFF_BYTES - len(head)]
                if whole:
                    await asyncio.to_thread(digest.update, piece)
                    self._metrics.hashed("sha256", len(piece))
        return head, digest.hexdigest() if whole else None

    async def _publish(self, upload: Upload, lease: Lease, file: File | None) -> Upload:
        now = self._clock.now()
        events = [self._events.of_file("ready", file, upload, now)] if file is not None else []
        ready = await self._metadata.publish(
            upload.id, epoch=lease.epoch, file=file, events=events, now=now, durable=True
        )
        self._metrics.upload_finished(upload.protocol, size=upload.length or 0, seconds=now - upload.created_at)
        log.info("upload_ready", upload_id=upload.id, file_id=file.id if file else None, size=upload.length)
        self._tell(upload)
        return ready

    async def fail(self, upload: Upload, problem: Problem, *, epoch: int | None, free_link: bool = False) -> Upload:
        """The upload is `failed` for good; what storage held of it is gone, a file nobody could read too."""
        now = self._clock.now()
        ending = Ending(
            State.FAILED,
            now,
            problem.slug,
            problem.detail,
            free_link=free_link,
            events=[self._events.of_upload("failed", upload, now, reason=problem.slug)],
        )
        failed = await self._metadata.end_upload(upload.id, epoch=epoch, ending=ending)
        await discard_all(self._storage, upload.id)
        self._metrics.upload_failed(upload.protocol, problem.slug)
        log.info("upload_failed", upload_id=upload.id, reason=problem.slug)
        self._tell(upload)
        return failed

    async def waits(self, final: Upload) -> bool:
        """Whether a pending final has to wait for bytes of its partials."""
        partials = await self._metadata.uploads(final.partials)
        return all(partial in partials and partials[partial].state.live for partial in final.partials) and any(
            not partial.complete for partial in partials.values()
        )

    async def ready(self, final: Upload, lease: Lease) -> Upload:
        """A pending final whose partials are all complete is `finishing`, as is an empty upload; else nothing changes.

        A partial that was lost fails the final (T-0C9).
        """
        if final.state is not State.RECEIVING:
            return final
        if final.concat_kind is not ConcatKind.FINAL:
            return await self._ready_empty(final, lease)
        partials = await self._metadata.uploads(final.partials)
        found = [partials.get(partial) for partial in final.partials]
        if any(partial is None or not partial.state.live for partial in found):
            problem = Problem("gone", "a partial upload of this final upload is gone")
            return await self.fail(final, problem, epoch=lease.epoch, free_link=True)
        if not all(partial is not None and partial.complete for partial in found):
            return final
        length = sum(partial.offset for partial in found if partial is not None)
        refused = length_problem(length, final.terms, self._policy)
        if refused is not None:
            return await self.fail(final, refused, epoch=lease.epoch)
        now = self._clock.now()
        step = Advance(to_offset=length, expires_at=final.expires_at, length=length, state=State.FINISHING)
        return await self._metadata.advance(final.id, epoch=lease.epoch, from_offset=final.offset, step=step, now=now)

    async def _ready_empty(self, upload: Upload, lease: Lease) -> Upload:
        """An upload of length 0 waits for no byte, though a crash may have come before its body was looked at."""
        if upload.length != 0:
            return upload
        step = Advance(to_offset=0, expires_at=upload.expires_at, length=0, state=State.FINISHING)
        return await self._metadata.advance(
            upload.id, epoch=lease.epoch, from_offset=0, step=step, now=self._clock.now()
        )

    def _tell(self, upload: Upload) -> None:
        self._changed(upload.id)
        self._changed(upload.file_id)


def new_file(
    upload: Upload, key: str, manifest: Manifest, sniffed: str | None, now: float, *, sha256: str | None = None
) -> File:
    """The row of the file that the upload becomes."""
    terms = upload.terms
    lives_until = now + terms.ttl_seconds if terms.ttl_seconds else None
    # a file with a reference is claimed, and nothing holds it (lesson E4)
    held_until = now + terms.hold_seconds if terms.hold_seconds and terms.ref is None else None
    return File(
        id=upload.file_id,
        upload_id=upload.id,
        key=key,
        manifest=manifest,
        created_at=now,
        issuer=terms.issuer,
        owner=terms.owner,
        sha256=sha256,
        media_type=upload.media_type,
        sniffed_type=sniffed,
        filename=upload.filename,
        ref=terms.ref,
        expires_at=min((instant for instant in (lives_until, held_until) if instant is not None), default=None),
        lives_until=lives_until,
    )
