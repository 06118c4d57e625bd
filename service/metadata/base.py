"""The MetadataStore port: the only truth about the state of uploads, links and files.

The contract, which `tests/contract/metadata.py` holds against every adapter:

- Each method is one short transaction: all of it or nothing, also under `kill -9`. Events are
  written in the transaction of the change they tell of.
- A change names what it expects (offset and epoch of an upload, version of a link). If that no
  longer holds, nothing changes and Conflict is raised: look again, decide again.
- `epoch` rises with each lease on an upload; a change that carries an older epoch is a Conflict.
- Instants are arguments; the store has no clock of its own that a caller could notice.
- `durable=True`: on return the change survives a crash of the machine, as do `end_upload` and
  `delete_file`, after which bytes are removed for good. All others survive a crash of every process;
  one of the machine takes the newest of them away, never one without those after it.
- An offset never falls, with one exception: `fall_back`, of a suspect. Until it has been found
  right or has fallen back, a suspect is neither advanced nor published.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, Protocol

from service.metadata.outbox import Outbox
from service.model import UNLIMITED, Block, Event, File, FileId, LinkUse, Part, Quota, State, Upload, UploadId


class MetadataError(Exception):
    """The store could not do what was asked."""


class MetadataUnavailable(MetadataError):
    """Worth a retry: the database is locked, full or out of reach. Nothing changed."""


class MetadataDamaged(MetadataError):
    """Permanent: the database is broken, or is none; somebody must put a good copy in its place."""


class SchemaMismatch(MetadataError):
    """Permanent: the schema is older or newer than this version; says which command helps."""


class Conflict(MetadataError):
    """What the caller expected no longer holds. Nothing changed; look again and decide again."""


class FileIdTaken(MetadataError):
    """Permanent: another live upload or a file has the file id that the link fixes."""


class QuotaExceeded(MetadataError):
    """The owner may not have so much. Nothing changed."""


class Asked(IntEnum):
    """Whether the holder of a lease is asked to let go."""

    NOT = 0
    #: if no byte has come for a while
    IF_SILENT = 1
    ANYHOW = 2


@dataclass(frozen=True, slots=True)
class Lease:
    """The timed right to write one upload. `epoch` fences every older holder."""

    upload_id: UploadId
    owner: str
    epoch: int
    until: float
    asked: Asked = Asked.NOT
    #: of one just acquired: the upload's ledger, and its `Advance.tail`
    ledger: tuple[Part, ...] | None = field(default=None, compare=False)
    tail: bytes | None = field(default=None, compare=False)


class LeaseHeld(Exception):
    """Another owner holds the lease, until the instant given."""

    def __init__(self, owner: str, until: float) -> None:
        super().__init__("the lease is held")
        self.owner = owner
        self.until = until


@dataclass(frozen=True, slots=True)
class Advance:
    """One step of an upload: what becomes true together."""

    to_offset: int
    expires_at: float
    #: the part ledger from `parts[0].number` on: entries above its last number go; none: it stays
    parts: Sequence[Part] = ()
    #: newly finished hashing blocks
    blocks: Sequence[Block] = ()
    #: set when a deferred length becomes known
    length: int | None = None
    state: State = State.RECEIVING
    #: XXH3-128 of the bytes behind the last whole block, up to `to_offset`; None: not known
    tail: bytes | None = None
    #: the lease is given back with it
    releases: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How a live upload ends without (or after) a file. All become true together."""

    state: State
    at: float
    problem: str | None = None
    detail: str | None = None
    #: give the use of the link back, so that it can make a new upload (T-05E)
    free_link: bool = False
    events: Sequence[Event] = ()
    #: its file, kept though nobody gets it
    quarantined: File | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """What a run finds when it begins."""

    #: whether bytes may have been taken that have not reached the disk yet
    unsynced: bool
    #: how many uploads became suspect
    suspects: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What the gauges show, counted in the store."""

    uploads_open: int
    files: int
    #: of `stored_bytes`, what files have; the rest is of uploads that are no file yet
    file_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, order=True)
class Tombstone:
    """A row that is only kept to remember an end; `purge` forgets it. A link's id is its `jti`."""

    kind: Literal["file", "link", "upload"]
    id: str
    issuer: str = ""


class MetadataStore(Protocol):
    """See the module for the contract."""

    @property
    def outbox(self) -> Outbox:
        """Which events wait for whom."""
        ...

    async def open(self) -> None:
        """Ready to be used. Raises SchemaMismatch, MetadataUnavailable."""
        ...

    async def close(self) -> None: ...

    async def probe(self) -> None:
        """Returns if the store can read and write now; raises MetadataUnavailable. For /readyz."""
        ...

    async def identity(self) -> str:
        """Which database this is: random, made with its schema, and never another; a copy has the same."""
        ...

    # uploads and links
    async def create_upload(
        self,
        upload: Upload,
        use: LinkUse,
        *,
        events: Sequence[Event] = (),
        quota: Quota = UNLIMITED,
        durable: bool = False,
    ) -> None:
        """The upload exists, counts for its owner, and its link use is as given with `version` one higher.

        `use.version` is the version that was read, 0 for a link never used.

        Raises:
            Conflict: the link's version is another.
            FileIdTaken: a live upload or a file (also a deleted one) has `upload.file_id`;
                partials do not count.
            QuotaExceeded: of the owner, if the upload has one.
        """
        ...

    async def create_ready(
        self, upload: Upload, use: LinkUse, file: File, *, events: Sequence[Event] = (), quota: Quota = UNLIMITED
    ) -> None:
        """An upload in `ready` exists, with its file, and its link is used for the first time; durable.

        Raises:
            Conflict: the link was used before.
            FileIdTaken, QuotaExceeded: as `create_upload`.
        """
        ...

    async def link_use(self, issuer: str, jti: str) -> LinkUse | None: ...

    async def upload(self, upload_id: UploadId) -> Upload | None: ...

    async def uploads(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, Upload]:
        """Those that exist."""
        ...

    async def uploads_named(self, names: Collection[str]) -> dict[str, Upload]:
        """Those that exist, by a prefix of their id of at least 15 characters."""
        ...

    async def upload_of_file(self, file_id: FileId) -> Upload | None:
        """The newest upload, partials left out, that makes or made or failed to make the file."""
        ...

    async def ledger(self, upload_id: UploadId) -> tuple[Part, ...]:
        """The committed parts by number; contiguous from byte 0."""
        ...

    async def blocks(self, upload_id: UploadId) -> tuple[Block, ...]:
        """The finished hashing blocks by number, from 0 without gaps."""
        ...

    async def tail(self, upload_id: UploadId) -> bytes | None:
        """The digest of the committed bytes behind the last whole block, where it is known."""
        ...

    async def pending_finals(self, partial_id: UploadId) -> tuple[UploadId, ...]:
        """The final uploads in `receiving` that name the partial."""
        ...

    async def advance(
        self,
        upload_id: UploadId,
        *,
        epoch: int,
        from_offset: int,
        step: Advance,
        now: float,
        durable: bool = False,
    ) -> Upload:
        """Compare-and-set on (receiving, offset, epoch); returns the upload as it is then.

        A tail that was told stays for as long as the offset does.

        Raises:
            Conflict: the state, offset or epoch is another, or the upload is suspect.
            ValueError: the offset would fall, or pass the length.
        """
        ...

    async def go_on(self, upload: Upload, step: Advance, *, now: float) -> Upload:
        """As `advance`, by a writer that needs no lease as it has all it brings, and stays `receiving`.

        Compare-and-set on all that `upload` says of who wrote it: nobody has, or had, the lease
        since it was committed so. Not durable. Of the step, the state, the length and the lease
        are not looked at.

        Raises:
            Conflict: somebody was there meanwhile, or the last byte would be.
            ValueError: the offset would not rise.
        """
        ...

    async def publish(
        self,
        upload_id: UploadId,
        *,
        epoch: int,
        file: File | None,
        events: Sequence[Event],
        now: float,
        durable: bool = False,
    ) -> Upload:
        """`finishing` becomes `ready`; the file row, its manifest and the events exist.

        The lease is given back with it. `file` is None for a partial, which keeps its ledger and its
        blocks; with a file both are dropped from the upload (the manifest has the digests).
        Publishing what is `ready` already changes nothing and returns it.

        Raises:
            Conflict: neither finishing nor ready, or another epoch, or suspect.
        """
        ...

    async def end_upload(
        self,
        upload_id: UploadId,
        *,
        epoch: int | None,
        ending: Ending,
        expected: Sequence[State] = (),
        unexpired_before: float | None = None,
    ) -> Upload:
        """The upload ends; its ledger and blocks are gone, the lease too. Epoch rises by one.

        The row stays as tombstone until `purge`. A file that is quarantined is there from now on.

        Args:
            epoch: compare-and-set; None: whatever it is.
            expected: states it may be in; empty: any live one (receiving, finishing, ready).
            unexpired_before: only if `expires_at` is at or before this instant (the sweeper's
                compare-and-set against a step that moved the expiry) and no lease is valid then.

        Raises:
            Conflict: not in such a state, or another epoch, or not expired.
        """
        ...

    # crashes of the machine
    async def begin_run(self, run: str, boot: str, *, unsynced: bool) -> Begun:
        """A run of the one process (tree) that uses the store begins; durable.

        If the run before left bytes that may not have reached the disk, and was under another
        boot of the machine, they may be lost: every upload that is receiving or finishing is
        suspect from now on. Finals are not: they have no bytes of their own.

        Args:
            run: random; tells this run from every other.
            boot: which boot of the machine this is.
            unsynced: whether the run will take bytes that may not reach the disk before a crash.
        """
        ...

    async def end_run(self, run: str) -> None:
        """All bytes that were taken have reached the disk; durable. Nothing happens if a newer run began."""
        ...

    async def suspect_uploads(self, *, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
        """Live uploads that are suspect, oldest first, in pages as those of the janitor."""
        ...

    async def acquit(self, upload_id: UploadId, *, epoch: int) -> Upload:
        """A suspect is suspect no more: all that is recorded of it is there.

        Raises:
            Conflict: no live suspect, or another epoch.
        """
        ...

    async def fall_back(
        self, upload_id: UploadId, *, epoch: int, to_offset: int, parts: Sequence[Part], now: float
    ) -> Upload:
        """A suspect is receiving, at an offset that may be lower, and suspect no more.

        Blocks that end behind the offset are gone; the length stays as it is known.

        Args:
            parts: the whole ledger from now on; ends at the offset.

        Raises:
            Conflict: no suspect that is receiving or finishing, or another epoch.
            ValueError: the offset would rise, or a receiving upload have its whole length.
        """
        ...

    # leases
    async def acquire_lease(
        self,
        upload_id: UploadId,
        owner: str,
        *,
        now: float,
        until: float,
        judge: Callable[[Upload], object] | None = None,
    ) -> tuple[Lease, Upload]:
        """The lease, with the epoch raised by one, and the upload as it is then.

        An expired lease, or one of the same owner string, is free. Works in every live state.

        Args:
            judge: sees the upload before, in a thread; what it raises is raised, and nothing has changed.

        Raises:
            LeaseHeld: by another owner, whose term has not run out.
            Conflict: no such live upload.
        """
        ...

    async def ask_lease(self, upload_id: UploadId, how: Asked) -> None:
        """The holder, if any, is asked to let go; it learns so from `asked_leases`. What was asked anyhow stays so."""
        ...

    async def asked_leases(self, owner_prefix: str) -> tuple[tuple[UploadId, Asked], ...]:
        """Uploads whose lease somebody asks of an owner that starts with the prefix, and how."""
        ...

    async def keep_lease(self, upload_id: UploadId, owner_prefix: str) -> None:
        """Such an owner that was asked if it is silent says that it is not: it is not asked any more."""
        ...

    async def renew_leases(self, owner_prefix: str, *, until: float) -> None:
        """All leases of owners that start with the prefix run until then."""
        ...

    async def lease(self, upload_id: UploadId) -> Lease | None:
        """Who holds the upload, whether or not the term has run out."""
        ...

    async def release_lease(self, lease: Lease) -> None:
        """Free, if owner and epoch still match; else nothing happens (L5)."""
        ...

    async def drop_leases(self, owner_prefix: str = "") -> None:
        """No owner that starts with the prefix holds a lease or a duty: those processes have ended, or all have."""
        ...

    # duties: what one process at a time does for all that share the store
    async def take_duty(self, name: str, owner: str, *, now: float, until: float) -> bool:
        """Whether the duty is the owner's, until then: it was free, had run out, or was the owner's own."""
        ...

    async def give_back_duty(self, name: str, owner: str) -> None:
        """Free, if it is the owner's; else nothing happens."""
        ...

    # files
    async def file(self, file_id: FileId) -> File | None:
        """Also a deleted one, with `deleted_at`, while its row is kept."""
        ...

    async def delete_file(
        self, file_id: FileId, *, now: float, events: Sequence[Event] = (), expired_before: float | None = None
    ) -> File:
        """`deleted_at` is set; a second call changes nothing. What the events tell as `refs` are those it had.

        Args:
            expired_before: only if `expires_at` is at or before this instant.

        Raises:
            Conflict: no such file, or not expired.
        """
        ...

    async def tell_of_file(self, file_id: FileId, *, events: Sequence[Event]) -> None:
        """The events are in the outbox, with the `refs` of then. Raises Conflict: no such file, or it is deleted."""
        ...

    # janitor: lists in pages, `after` is the last of the page before, whatever became of it
    async def expired_uploads(self, *, now: float, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
        """Uploads in `receiving` past `expires_at`, and ready partials past it, oldest first.

        A partial that a pending final names is left out (T-096).
        """
        ...

    async def finishing_uploads(self, *, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
        """Uploads in `finishing`, oldest first."""
        ...

    async def waiting_finals(self, *, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
        """Final uploads in `receiving`, oldest first."""
        ...

    async def expired_files(self, *, now: float, limit: int, after: File | None = None) -> tuple[File, ...]:
        """Files not deleted, past their `expires_at`, oldest first."""
        ...

    async def file_keys(self, *, limit: int, after: FileId | None = None) -> tuple[tuple[FileId, str, bool], ...]:
        """Ids and storage keys of all files, by id, and whether each is deleted."""
        ...

    async def unfinished_uploads(self, *, limit: int, after: UploadId | None = None) -> tuple[Upload, ...]:
        """Uploads whose bytes their ledgers name, by id: in `receiving`, in `finishing`, and ready partials."""
        ...

    async def tombstones(
        self, *, before: float, link_before: float, limit: int, after: Tombstone | None = None
    ) -> tuple[Tombstone, ...]:
        """What `purge` would forget by the same instants, called until it forgets nothing, in order."""
        ...

    async def purge(self, *, before: float, link_before: float, limit: int) -> int:
        """Tombstones that ended before an instant are forgotten; how many.

        That is: uploads in failed, expired, terminated, or ready, last updated before `before`
        (a ready upload only if its file, if any, is deleted or it was updated before too: its
        status is kept as long as a tombstone), files deleted before it, and link uses whose
        token expired before `link_before` and whose uploads are all forgotten.
        """
        ...

    async def promised_bytes(self) -> int:
        """Bytes that receiving uploads of known length may still bring."""
        ...

    async def totals(self) -> Totals: ...

    async def events(self, *, after: int = 0, limit: int = 100) -> tuple[tuple[int, Event], ...]:
        """Outbox rows with a sequence number above `after`, oldest first."""
        ...
