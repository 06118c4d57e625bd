"""A request's body becomes committed bytes: read, hash, hold, commit, in that order.

Nothing is acknowledged here: the caller answers from the upload that comes back, which is what
the metadata store committed. A body that ends early, for whatever reason, keeps what arrived; one
that carries a checksum counts only when whole and right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol

import structlog

from service import hashing
from service.carrying import Carried
from service.clock import Clock
from service.metadata.base import Advance, Conflict, Lease, MetadataStore
from service.metrics import Metrics
from service.model import Block, Part, State, Upload
from service.protocol.decide import Intake, expiry, length_problem, problem_of, settle_checksum
from service.protocol.intents import ChecksumClaim, Ending, Policy
from service.protocol.problems import Problem, Refusal
from service.sniffing import SNIFF_BYTES
from service.storage.base import (
    Appender,
    Receipt,
    Storage,
    StorageError,
    StorageFull,
    StorageShort,
    StorageStale,
    StorageUnavailable,
)

log = structlog.get_logger(__name__)

#: a running body is committed at least this often while bytes come
COMMIT_SECONDS: Final = 1.0
COMMIT_BYTES: Final = 64 * 2**20
#: the largest body that `Body.whole` may hand out
WHOLE_BYTES: Final = 2**20


class Body(Protocol):
    """A request body as the use-cases see it. The web layer provides it."""

    #: bytes that came so far, stored or not
    received: int

    async def read(self) -> memoryview | None:
        """The next bytes, valid until the next call; None at the end, whatever the reason."""
        ...

    def keep(self) -> Callable[[], None] | None:
        """See `storage.base.Keep`, for the bytes that `read` handed out last."""
        ...

    #: whether `whole` waited, and in vain
    waited: bool

    @property
    def over(self) -> bool:
        """Whether `read` has handed out the last byte there is."""
        ...

    async def whole(self) -> memoryview | None:
        """All of it, valid until `read`, if it comes within a moment and one buffer holds it; else None.

        To be asked before the first `read`, which hands out the same bytes.
        """
        ...

    @property
    def ending(self) -> Ending:
        """How the body ended; only after `read` returned None."""
        ...

    def stop(self, ending: Ending) -> None:
        """The body ends so, as soon as what has arrived is handed out."""
        ...

    def silent_seconds(self) -> float:
        """How long ago the last byte came."""
        ...

    def trailer(self, name: str) -> str | None:
        """A trailer field after a whole chunked body."""
        ...


@dataclass(slots=True)
class Progress:
    """What one request has brought so far."""

    upload: Upload
    lease: Lease
    intake: Intake
    #: as committed
    ledger: tuple[Part, ...]
    #: made when the first byte comes, or the last block is wanted
    hasher: hashing.BlockHasher | None
    checksums: hashing.Checksums | None
    #: the offset this request began at, and the bytes written since
    start: int
    written: int = 0
    #: finished blocks not committed yet: storage may hold fewer bytes than were hashed
    blocks: list[Block] = field(default_factory=list)
    #: keys of storage's that nothing needs any more, and that are gone
    dropped: set[str] = field(default_factory=set)
    #: the first bytes of the file, if this request brought them
    head: bytes = b""
    #: of an upload that was committed at once
    all_blocks: tuple[Block, ...] | None = None
    committed_at: float = 0.0
    overrun: bool = False
    #: whether the last commit gave the lease back
    released: bool = False

    @property
    def end(self) -> int:
        return self.start + self.written

    @property
    def length(self) -> int | None:
        return self.intake.length

    @property
    def light(self) -> bool:
        """Whether XXH3-128 is all that is computed.

        A mebibyte of it takes some 50 microseconds, less than to let a thread have it, whose processor
        has the bytes in no cache; the other algorithms take as long as a write.
        """
        return self.checksums is None and not self.upload.strong_hash

    def observe(self, run: memoryview) -> None:
        """Sees every byte: in storage's thread as it is written, or before that where it is light work."""
        if self.hasher is not None:
            self.hasher.update(run)
        if self.checksums is not None:
            self.checksums.update(run)


@dataclass(frozen=True, slots=True)
class Claims:
    """The checksums that came with a body: in the header, or to come as a trailer."""

    header: ChecksumClaim | None = None
    #: parses the trailer once the body is whole
    trailer: Callable[[str | None], ChecksumClaim | None] | None = None

    def computed(self) -> hashing.Checksums | None:
        """What to compute while the bytes pass: what is not committed yet need not be readable."""
        if self.header is not None:
            return hashing.Checksums([self.header.algorithm])
        return None if self.trailer is None else hashing.Checksums()


NO_CLAIMS: Final = Claims()


@dataclass(frozen=True, slots=True)
class Received:
    """The upload as committed after a body ended, and why that did not end well, if so."""

    upload: Upload
    problem: Problem | None
    #: the first SNIFF_BYTES of the upload, or all of a shorter one, if the body began at byte 0
    head: bytes | None = None
    #: what is committed of it, where that is known from the commit
    ledger: tuple[Part, ...] | None = None
    blocks: tuple[Block, ...] | None = None
    #: whether the lease was given back by the last commit
    released: bool = False


class Receiver:
    """Takes bodies into storage."""

    def __init__(
        self,
        metadata: MetadataStore,
        storage: Storage,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
        changed: Callable[[str], None],
        carried: Carried,
    ) -> None:
        self._metadata = metadata
        self._storage = storage
        self._policy = policy
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._carried = carried

    async def receive(
        self, upload: Upload, lease: Lease, intake: Intake, body: Body, claims: Claims = NO_CLAIMS
    ) -> Received:
        """What became of the body.

        The upload is `finishing` afterwards if its last byte came. Trouble with storage is a
        problem too, worth a retry: what was held before is committed.

        Raises:
            StorageShort: permanent; bytes that were committed are gone.
        """
        if upload.complete:
            return Received(upload, await self._nothing_more(upload, body))
        ledger = lease.ledger
        if ledger is None or (ledger[-1].end if ledger else 0) != upload.offset:
            ledger = await self._metadata.ledger(upload.id)
        progress = Progress(
            upload,
            lease,
            intake,
            ledger,
            None,
            claims.computed(),
            start=upload.offset,
            committed_at=self._clock.monotonic(),
        )
        try:
            async with self._storage.append(
                upload.id,
                ledger,
                epoch=lease.epoch,
                align=upload.block_size,
                observe=None if progress.light else progress.observe,
                fence=partial(self._check_fence, lease),
                # of a piece that was cut at the limit the buffer is larger than what counts for it
                keep=lambda: None if progress.overrun else body.keep(),
            ) as appender:
                problem = await self._take(progress, appender, body, claims)
        except StorageShort:
            raise
        except StorageError as error:
            problem = storage_problem(error, progress.upload.offset)
            log.warning("storage_failed", upload_id=upload.id, reason=problem.slug, error=str(error))
        except Conflict:
            problem = problem_of(Ending.TAKEN_OVER, overrun=False, offset=progress.upload.offset)
        return Received(
            progress.upload,
            problem,
            progress.head if progress.start == 0 else None,
            tuple(progress.ledger),
            progress.all_blocks,
            progress.released,
        )

    @staticmethod
    async def _nothing_more(upload: Upload, body: Body) -> Problem | None:
        """A chunked body tells only by its end that it is empty, and nothing else fits (T-039)."""
        more = await body.read() is not None
        return problem_of(body.ending, overrun=more, offset=upload.offset)

    async def _hasher(self, progress: Progress) -> hashing.BlockHasher:
        """Hashing goes on where the last request left it, or where the last whole block ended.

        What follows on that is read back, at most one block.
        """
        if progress.hasher is None:
            carried = self._carried.take(progress.upload, progress.lease.tail)
            progress.hasher = carried or await self._begin_hashing(progress.upload, progress.ledger)
        return progress.hasher

    async def _begin_hashing(self, upload: Upload, ledger: Sequence[Part]) -> hashing.BlockHasher:
        number, rest = divmod(upload.offset, upload.block_size)
        hasher = hashing.BlockHasher(upload.block_size, strong=upload.strong_hash, first_block=number)
        if rest:
            async for piece in self._storage.read_upload(ledger, upload.offset - rest, upload.offset):
                if upload.strong_hash:
                    await asyncio.to_thread(hasher.update, memoryview(piece))
                else:
                    hasher.update(memoryview(piece))
        return hasher

    async def _check_fence(self, lease: Lease) -> None:
        """Raises StorageStale if the lease has passed to a newer writer."""
        current = await self._metadata.lease(lease.upload_id)
        if current is None or current.epoch != lease.epoch:
            raise StorageStale("the lease was lost before the first write")

    async def _take(self, progress: Progress, appender: Appender, body: Body, claims: Claims) -> Problem | None:
        await self._pump(progress, appender, body)
        problem = problem_of(body.ending, overrun=progress.overrun, offset=progress.end)
        if problem is None and progress.intake.closes:
            problem = length_problem(progress.end, progress.upload.terms, self._policy)
            if problem is None:
                progress.intake = replace(progress.intake, length=progress.end)
        if progress.intake.whole:
            # a body with a checksum counts only when verified, which overrides "a cut keeps its bytes" (T-0A4)
            problem = problem or self._verify(progress, body, claims)
            if problem is not None:
                return problem_at(problem, progress.upload.offset)
        try:
            receipt = await appender.flush(last=progress.end == progress.length)
        except (StorageFull, StorageUnavailable):
            if not progress.intake.whole:
                await self._commit_prefix(progress, await appender.held())
            raise
        await self._commit(progress, receipt, whole=problem is None)
        return problem

    async def _pump(self, progress: Progress, appender: Appender, body: Body) -> None:
        while (piece := await body.read()) is not None:
            self._metrics.upload_received(progress.upload.protocol, len(piece))
            room = progress.intake.limit - progress.written
            if len(piece) > room:
                piece = piece[:room]
                progress.overrun = True
            if piece:
                # what is not verified yet may have to be taken back
                last = body.over and not progress.intake.whole
                await self._write(progress, appender, piece, last=last)
            if progress.overrun:
                return
            if not progress.intake.whole and not body.over:
                await self._commit_sometimes(progress, appender)

    async def _write(self, progress: Progress, appender: Appender, piece: memoryview, *, last: bool) -> None:
        hasher = await self._hasher(progress)
        if progress.light:
            progress.observe(piece)
        # storage may keep the piece, and what it has kept may be over with when it returns
        head = bytes(piece[: SNIFF_BYTES - len(progress.head)]) if progress.start == 0 else b""
        size = len(piece)
        try:
            await appender.write(piece, last=last)
        except (StorageFull, StorageUnavailable):
            if not progress.intake.whole:
                # what fitted before the failure stays; blocks that reach beyond it are not committed
                progress.blocks += hasher.take_finished()
                await self._commit_prefix(progress, await appender.held())
            raise
        progress.written += size
        progress.head += head
        self._metrics.hashed("xxh128", size)
        if progress.upload.strong_hash:
            self._metrics.hashed("sha256", size)
        progress.blocks += hasher.take_finished()

    async def _commit_sometimes(self, progress: Progress, appender: Appender) -> None:
        since = self._clock.monotonic() - progress.committed_at
        if since >= COMMIT_SECONDS or progress.end - progress.upload.offset >= COMMIT_BYTES:
            await self._commit_prefix(progress, await appender.held())

    async def _commit_prefix(self, progress: Progress, receipt: Receipt) -> None:
        # the last byte is committed once, with the state that says so: offset = length is never `receiving`
        if receipt.offset > progress.upload.offset and receipt.offset != progress.length:
            await self._advance(progress, receipt, State.RECEIVING)

    async def _commit(self, progress: Progress, receipt: Receipt, *, whole: bool) -> None:
        """The end of the request: everything held counts, and the last byte makes it `finishing`."""
        ends = progress.length is not None and receipt.offset == progress.length
        if not ends and receipt.offset == progress.upload.offset and progress.length == progress.upload.length:
            return
        if ends and (last := (await self._hasher(progress)).finish()) is not None:
            progress.blocks.append(last)
        await self._advance(progress, receipt, State.FINISHING if ends else State.RECEIVING, releases=not ends)
        if not ends and progress.hasher is not None:
            self._carried.keep(progress.upload, progress.hasher, progress.ledger if whole else None)

    async def _advance(self, progress: Progress, receipt: Receipt, state: State, *, releases: bool = False) -> None:
        before, now = progress.upload, self._clock.now()
        size = before.block_size
        ends = state is State.FINISHING
        ready = [block for block in progress.blocks if ends or (block.number + 1) * size <= receipt.offset]
        moved = receipt.offset > before.offset
        parts = _changed(progress.ledger, receipt.parts)
        step = Advance(
            to_offset=receipt.offset,
            expires_at=expiry(before, self._policy, now) if moved else before.expires_at,
            parts=parts,
            blocks=ready,
            length=progress.length,
            state=state,
            tail=progress.hasher.tail(receipt.offset) if progress.hasher is not None else None,
            releases=releases,
        )
        superfluous = [key for key in receipt.drop if key not in progress.dropped]
        # A crash of the machine may take back a commit that was not synced. What the ledger names
        # then must still be there: it is dropped, or used up by completion, only after one that was.
        for_good = bool(superfluous) or (ends and before.offset > 0)
        progress.upload = await self._metadata.advance(
            before.id, epoch=progress.lease.epoch, from_offset=before.offset, step=step, now=now, durable=for_good
        )
        progress.released = releases
        if parts:
            kept = [part for part in progress.ledger if part.number < parts[0].number]
            progress.ledger = (*kept, *parts)
        progress.blocks = progress.blocks[len(ready) :]
        if ends and not before.offset:
            progress.all_blocks = tuple(ready)
        progress.committed_at = self._clock.monotonic()
        self._metrics.upload_committed(before.protocol, receipt.offset - before.offset)
        self._changed(before.id)
        await self._drop(progress, superfluous)

    async def _drop(self, progress: Progress, keys: Sequence[str]) -> None:
        """What the committed receipt made superfluous is gone, or is found at the upload's end."""
        if not keys:
            return
        try:
            await self._storage.drop(progress.upload.id, keys)
        except StorageError as error:
            log.warning("drop_postponed", upload_id=progress.upload.id, reason=str(error))
        else:
            progress.dropped.update(keys)

    def _verify(self, progress: Progress, body: Body, claims: Claims) -> Problem | None:
        try:
            trailer = claims.trailer(body.trailer("Upload-Checksum")) if claims.trailer else None
        except Refusal as malformed:
            return malformed.problem
        claim = claims.header or trailer
        computed = progress.checksums.digest(claim.algorithm) if progress.checksums and claim else None
        problem = settle_checksum(claims.header, trailer, computed, expect_trailer=claims.trailer is not None)
        if claim is not None:
            self._metrics.checksum_verified(claim.algorithm, "ok" if problem is None else "mismatch")
        return problem


def _changed(ledger: Sequence[Part], parts: Sequence[Part]) -> Sequence[Part]:
    """The end of a receipt's parts, from the first that is not in the committed ledger on.

    A receipt tells all parts since its append began, and a long request has hundreds: they need
    not be written again with each commit. Whether a part ends behind the committed offset does
    not tell the new ones: an adapter may replace entries by one that ends where they did.
    """
    known = {part.number: part for part in ledger}
    for at, part in enumerate(parts):
        if known.get(part.number) != part:
            return parts[at:]
    return ()


def problem_at(problem: Problem, offset: int) -> Problem:
    """The problem with the offset that holds now."""
    others = tuple(pair for pair in problem.headers if pair[0] != "Upload-Offset")
    return replace(problem, headers=(("Upload-Offset", str(offset)), *others))


def storage_problem(error: StorageError, offset: int | None = None) -> Problem:
    """What a client hears of trouble with storage: nothing of the inside (contract, section 11)."""
    headers: tuple[tuple[str, str], ...] = (("Retry-After", "5"),)
    if offset is not None:
        headers += (("Upload-Offset", str(offset)),)
    if isinstance(error, StorageFull):
        return Problem("storage-full", "no space is left; stored bytes are kept, resume later", headers, close=True)
    if isinstance(error, StorageStale):
        return Problem("locked", "a newer request took the upload over", headers, close=True)
    return Problem("storage-unavailable", "stored bytes are kept, resume later", headers, close=True)
