"""The Storage port: what attachd needs from whatever holds the bytes.

The contract, which `tests/contract/storage.py` holds against every adapter:

- Storage knows bytes and nothing else. Which of them count is told by the ledger (`Part`) that
  the metadata store committed; storage never infers an offset or completion from what it finds.
- Bytes are held first, committed second, and only then may anything they replace be dropped.
- Every write carries the epoch of the lease. A writer that was overtaken, even one that was
  asleep meanwhile, changes nothing that can be read through a newer ledger.
- A call that was cut by a crash can be made again with the same result.
- Keys are made here from upload ids, never from anything a client sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from service.model import Part, UploadId

#: Asks whether the lease still holds; raises StorageStale if not.
Fence = Callable[[], Awaitable[object]]
#: Called in order with each run of bytes as it is written; may run in a thread of the adapter's.
Observer = Callable[[memoryview], None]
#: Makes the bytes that are being written stay as they are until what it returns is called, which is to be
#: done once, in the event loop, and by nobody who may still read them; not to be called at all where they are
#: lost sight of. None: they cannot be kept, and are to be copied.
Keep = Callable[[], Callable[[], None] | None]


class StorageError(Exception):
    """Storage could not do what was asked. `permanent`: the same call would fail again."""

    permanent = False


class StorageFull(StorageError):
    """Worth a retry once space is given back; bytes held before stay held."""


class StorageUnavailable(StorageError):
    """Worth a retry; nothing past what was held before is promised."""


class StorageShort(StorageError):
    """Permanent: fewer bytes are held than the ledger says."""

    permanent = True


class StorageStale(StorageError):
    """Permanent for this writer: another epoch owns the upload now."""

    permanent = True


@dataclass(frozen=True, slots=True)
class Receipt:
    """Storage's word that it holds the bytes [0, offset) of an upload once `parts` are committed.

    `parts` is the ledger from `parts[0].number` on: once it is committed, entries with higher
    numbers than its last one are gone. Without any the ledger stays as it is.
    `drop` are keys that nothing needs any more once they are committed.
    A later receipt of the same append holds all that an earlier one did, or what replaces it.
    """

    offset: int
    parts: tuple[Part, ...] = ()
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """A whole file at rest: where, and its true size in bytes as storage reports it."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Held:
    """What storage holds of an upload: its finished file, or, where `key` is None, what is unfinished.

    `name` is storage's name of the upload: a prefix of its id, at least 15 characters long.
    `size` is what goes with it, in bytes. `mark`: what is unfinished is the mark of a file that was
    `put` and is still there.
    """

    name: str
    key: str | None
    size: int
    mark: bool = False


@dataclass(frozen=True, slots=True)
class Staged:
    """A piece of an unfinished upload that storage holds and its ledger does not name."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Backing:
    """How what is held of an unfinished upload agrees with its ledger: bytes [0, backed) are there."""

    backed: int
    staged: tuple[Staged, ...] = ()


class Appender(Protocol):
    """One request's writes to one upload, from `Storage.append`."""

    async def write(self, data: memoryview, *, last: bool = False) -> None:
        """Take data as the next bytes. The buffer may be reused once this returns, if it was not kept.

        Args:
            last: of this append; an adapter may give up its place already.

        Raises:
            StorageFull, StorageUnavailable: worth a retry; what `held` said stays true.
            StorageShort: permanent; the ledger's bytes are not there.
            StorageStale: permanent; the fence said so, the upload is finished, or this writer was overtaken.
        """
        ...

    async def held(self) -> Receipt:
        """What is held so far, without waiting for writes under way; durable as the setting says."""
        ...

    async def flush(self, *, last: bool) -> Receipt:
        """Hold everything written and say so.

        Args:
            last: these bytes end the upload, so an adapter may store them for good at once.
        """
        ...


class StoredFile(Protocol):
    """A finished file, open for reading."""

    size: int

    @property
    def fd(self) -> int | None:
        """A file descriptor for the kernel's sendfile, or None where there is no local file."""
        ...

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes [start, end), in pieces, reading ahead of the consumer by a bounded amount."""
        ...


class Salvage(Protocol):
    """What storage can do from which a crash of the machine may take bytes that it held."""

    async def __call__(self, upload_id: UploadId, ledger: Sequence[Part], *, fence: Fence) -> tuple[Part, ...]:
        """The upload can be appended to, whatever came of it before the crash; a file that it made is no more.

        Only for an upload that no record calls complete, and by whoever has its lease.

        Args:
            fence: called before such a file is touched.

        Returns:
            The ledger of what is held of it from byte 0 on without a gap, which may be less. That
            these are the right bytes is for the caller to check.

        Raises:
            StorageStale: permanent; the fence said so, or somebody newer came between.
        """
        ...


class Storage(Protocol):
    """Holds bytes. See the module for the contract."""

    #: label of the storage metrics, e.g. "filesystem"
    name: str

    @property
    def puts(self) -> bool:
        """Whether `put` is offered. May turn out not to be."""
        ...

    @property
    def extends(self) -> bool:
        """Whether `extend` is offered."""
        ...

    async def open(self, *, look: bool = False) -> None:
        """Ready to be used; creates what is missing. Raises StorageError with a clear word.

        Args:
            look: ready to be looked at; nothing is created or tried out, and a store that is away
                is StorageUnavailable instead of waited for.
        """
        ...

    async def close(self) -> None:
        """Gives back threads and connections."""
        ...

    async def probe(self) -> None:
        """Returns if storage can take bytes now; raises StorageError if not. For /readyz."""
        ...

    async def free_bytes(self) -> int | None:
        """Bytes that can still be stored, None where that has no meaning. Never blocks the loop."""
        ...

    def append(
        self,
        upload_id: UploadId,
        ledger: Sequence[Part],
        *,
        epoch: int,
        align: int,
        observe: Observer | None = None,
        fence: Fence | None = None,
        keep: Keep | None = None,
    ) -> AbstractAsyncContextManager[Appender]:
        """An Appender whose first byte follows the last byte of the ledger.

        Uncommitted bytes of an earlier writer at the same place are replaced. On leaving the
        context nothing more is written, whatever happened inside.

        Args:
            ledger: the committed parts, in order, without gaps, from byte 0.
            epoch: of the lease.
            align: bytes, > 0. What was appended before the last multiple of it at or before the
                offset need not be readable through `read_upload` before the upload is complete:
                an adapter may store larger pieces than it can read back.
            observe: sees every byte once, in order, as it is written.
            fence: called once the adapter has the place to itself and before the first byte is written
                where others may have written, and perhaps again before later writes. If the lease holds
                then, nobody newer was here before, and bytes behind the ledger's end are nobody's.
            keep: for who would rather have the buffers that are written than copy them; called within a
                write, at most once in each, for all of its bytes. Whoever wrote them reads them no more.

        Raises:
            StorageShort, StorageStale: here or with the first write, see there.
        """
        ...

    def read_upload(self, ledger: Sequence[Part], start: int, end: int) -> AsyncIterator[bytes]:
        """Committed bytes [start, end) of an upload, in pieces.

        Of one that is not complete: only from the last multiple of the `align` of its appends at
        or before the ledger's end on.

        Raises:
            StorageShort: permanent; the ledger's bytes are not there.
        """
        ...

    async def examine(self, upload_id: UploadId, ledger: Sequence[Part], *, older_than: float) -> Backing:
        """How far the ledger of an upload that is no file yet is backed, told without reading its bytes.

        Args:
            older_than: seconds; of what no ledger names, what was changed since is left out.

        Raises:
            StorageUnavailable: worth a retry; it cannot be told.
        """
        ...

    async def extend(
        self, upload_id: UploadId, ledger: Sequence[Part], data: memoryview, *, epoch: int
    ) -> Receipt | None:
        """The data is held behind the ledger, as by one last write of an append, if nobody is there, or was.

        None: somebody is, or was; go by `append`. The writer holds no lease, so bytes that are held
        count only if what it commits is compared with all that such a one would have changed.

        Raises:
            StorageFull, StorageUnavailable: worth a retry; part of the data may be there, of no meaning.
            StorageShort: permanent; what the ledger names is not there.
        """
        ...

    async def put(self, upload_id: UploadId, data: memoryview) -> Stored:
        """The data is a file at rest, and as durable as set: all of an upload that nothing was stored of.

        Of an upload that is not recorded yet, which is why the file is marked until `recorded`: a crash
        leaves something unfinished of that name beside it.

        Raises:
            StorageFull, StorageUnavailable: worth a retry, with another id.
        """
        ...

    async def recorded(self, upload_ids: Sequence[UploadId]) -> None:
        """The files that `put` made of these are in the records: their marks are gone. Idempotent."""
        ...

    async def concatenate(self, upload_id: UploadId, sources: Sequence[Sequence[Part]], *, epoch: int) -> Receipt:
        """Hold the bytes of the sources, joined in order, as the upload. Idempotent.

        The sources' ledgers stay valid, for reading and for another `concatenate`. Nothing passes
        through Python where the kernel or the store can copy.
        """
        ...

    async def complete(self, upload_id: UploadId, ledger: Sequence[Part], *, epoch: int) -> Stored:
        """The upload's bytes [0, end of ledger) are one file at rest, and as durable as set.

        Idempotent, also after a crash at any point inside an earlier call. An empty ledger
        makes an empty file, and replaces none.

        Raises:
            StorageShort: permanent; neither the parts nor the finished file are whole.
            StorageStale: permanent; the ledger is empty, and there is a file with bytes: its own
                ledger went when it was published.
        """
        ...

    async def sync(self, ledger: Sequence[Part]) -> None:
        """The ledger's bytes are as durable as a finished file: for an upload that is complete without one, a partial.

        Raises:
            StorageShort: permanent; they are not there.
        """
        ...

    async def discard(self, upload_id: str, *, finished: bool = False) -> None:
        """Nothing unfinished of the upload is held any more. Idempotent.

        Args:
            upload_id: an upload id, or the name that `held` told.
            finished: nor a finished file, whether or not `complete` came to tell its key; else one stays.
        """
        ...

    async def drop(self, upload_id: UploadId, keys: Sequence[str]) -> None:
        """The keys of a committed Receipt's `drop` are gone. Idempotent."""
        ...

    async def delete(self, key: str) -> None:
        """The finished file is gone. Idempotent. A reader that has it open may read to its end."""
        ...

    def held(self, *, older_than: float) -> AsyncIterator[Held]:
        """All that is held, in no particular order, of uploads that are in a ledger or not.

        What is made or goes meanwhile may be among it or not.

        Args:
            older_than: seconds; what was changed since, by the store's clock, is left out.

        Raises:
            StorageUnavailable: worth a retry; raised at the end if only some could not be listed.
        """
        ...

    def proxy_path(self, key: str) -> str | None:
        """Where the finished file lies below the storage's root, `/` between names, for a proxy that sends it itself.

        None where no local file is.
        """
        ...

    async def signed_url(self, key: str, *, seconds: int, content_type: str, disposition: str) -> str | None:
        """A URL of the store itself from which anyone may fetch the file for so long.

        None where the store has none. Asks nothing of the store.

        Args:
            content_type: what the store shall answer as `Content-Type`.
            disposition: what it shall answer as `Content-Disposition`.

        Raises:
            StorageUnavailable: worth a retry; there is nothing to sign with now.
        """
        ...

    def open_file(self, key: str) -> AbstractAsyncContextManager[StoredFile]:
        """The finished file, open for reading until the context is left.

        Raises:
            StorageShort: permanent; it is not there.
            StorageUnavailable: worth a retry.
        """
        ...
