"""The MetadataStore over SQL: SQLite in WAL mode by default, any number of processes on one file.

Two threads per store, one connection each: writes wait for each other anyway and share commits
(`worker`), reads run beside them on a snapshot taken after they were asked for, so that what a
caller was told is committed is always in it. Nothing blocks the event loop.

What is promised: `base`. What is not: that a machine's crash keeps more than the durability
setting says; that a caller who was cancelled knows whether its change was made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import URL, Connection, Engine, inspect, select, update

from service.metadata import crashes, damage, duties, leases, reads, writes
from service.metadata.base import (
    Advance,
    Asked,
    Begun,
    Ending,
    Lease,
    MetadataUnavailable,
    SchemaMismatch,
    Tombstone,
    Totals,
)
from service.metadata.control_sql import SqlControl
from service.metadata.delivering import SqlOutbox
from service.metadata.engine import Durability, make_engine, parse_url
from service.metadata.schema import REVISION, revision
from service.metadata.worker import Worker
from service.model import UNLIMITED, Block, Event, File, FileId, LinkUse, Part, Quota, State, Upload, UploadId

T = TypeVar("T")

#: how long a change waits for another process
BUSY_SECONDS: Final = 10.0
#: what a start spends on looking for damage: all of a hundred megabytes, some of what is larger
CHECK_SECONDS: Final = 3.0


class SqlMetadata(SqlControl):
    """See the module; the methods are those of MetadataStore, and of ControlStore.

    Args:
        url: `sqlite:///PATH`; the schema must be there (`migrate.migrate`).
        durability: `complete`: steps asked to be durable survive a crash of the machine;
            `always`: each change does; `none`: left to the kernel.
        busy_seconds: how long a change waits for another process before MetadataUnavailable.
        check_seconds: how long `open` looks for damage at most; 0: not at all.
        read_only: every change is MetadataUnavailable, and the file stays as it is to the byte.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Durability,
        busy_seconds: float = BUSY_SECONDS,
        check_seconds: float = CHECK_SECONDS,
        read_only: bool = False,
    ) -> None:
        self._url = parse_url(url)
        self._durability = durability
        self._busy_seconds = busy_seconds
        self._check_seconds = check_seconds
        self._read_only = read_only
        self._writer = Worker(partial(self._engine, writes=True), "metadata-writes", writes=True)
        self._reader = Worker(partial(self._engine, writes=False), "metadata-reads", writes=False)
        self.outbox = SqlOutbox(self._write, self._read)
        #: called after each change that events tell of
        self.told: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<SqlMetadata {self._url.render_as_string(hide_password=True)} {self._durability}>"

    def _engine(self, *, writes: bool) -> Engine:
        return make_engine(
            self._url,
            writes=writes,
            durability=self._durability,
            busy_seconds=self._busy_seconds,
            read_only=self._read_only,
        )

    async def _write(self, work: Callable[[Connection], T], *, durable: bool = False) -> T:
        return await self._writer.run(work, durable=durable)

    async def _tell(self, outbox: Sequence[Event], work: Callable[[Connection], T], *, durable: bool = False) -> T:
        """As `_write`, of a change that these events tell of."""
        done = await self._write(work, durable=durable)
        if outbox:
            self.told()
        return done

    async def _read(self, work: Callable[[Connection], T]) -> T:
        return await self._reader.run(work)

    async def open(self) -> None:
        self._writer.start()
        self._reader.start()
        try:
            await self._read(_check_schema)
            if self._check_seconds:
                await self._read(partial(damage.check, seconds=self._check_seconds))
        except MetadataUnavailable as error:
            await self.close()
            if self._url.get_backend_name() == "sqlite" and await asyncio.to_thread(_missing, self._url):
                raise SchemaMismatch("there is no database yet; `attachd migrate` makes it") from error
            raise
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._writer.stop()
        await self._reader.stop()

    async def probe(self) -> None:
        await self._write(_touch)

    async def identity(self) -> str:
        return await self._read(reads.identity)

    async def create_upload(
        self,
        upload: Upload,
        use: LinkUse,
        *,
        events: Sequence[Event] = (),
        quota: Quota = UNLIMITED,
        durable: bool = False,
    ) -> None:
        work = partial(writes.create_upload, upload=upload, use=use, outbox=events, quota=quota)
        await self._tell(events, work, durable=durable)

    async def create_ready(
        self, upload: Upload, use: LinkUse, file: File, *, events: Sequence[Event] = (), quota: Quota = UNLIMITED
    ) -> None:
        work = partial(writes.create_ready, upload=upload, use=use, file=file, outbox=events, quota=quota)
        await self._tell(events, work, durable=True)

    async def link_use(self, issuer: str, jti: str) -> LinkUse | None:
        return await self._read(partial(reads.link_use, issuer=issuer, jti=jti))

    async def upload(self, upload_id: UploadId) -> Upload | None:
        return await self._read(partial(reads.upload, upload_id=upload_id))

    async def uploads(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, Upload]:
        return await self._read(partial(reads.uploads_by_id, upload_ids=upload_ids))

    async def uploads_named(self, names: Collection[str]) -> dict[str, Upload]:
        return await self._read(partial(reads.uploads_named, names=names))

    async def upload_of_file(self, file_id: FileId) -> Upload | None:
        return await self._read(partial(reads.upload_of_file, file_id=file_id))

    async def ledger(self, upload_id: UploadId) -> tuple[Part, ...]:
        return await self._read(partial(reads.ledger, upload_id=upload_id))

    async def blocks(self, upload_id: UploadId) -> tuple[Block, ...]:
        return await self._read(partial(reads.finished_blocks, upload_id=upload_id))

    async def tail(self, upload_id: UploadId) -> bytes | None:
        return await self._read(partial(reads.tail, upload_id=upload_id))

    async def pending_finals(self, partial_id: UploadId) -> tuple[UploadId, ...]:
        return await self._read(partial(reads.pending_finals, partial_id=partial_id))

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
        work = partial(writes.advance, upload_id=upload_id, epoch=epoch, start=from_offset, step=step, now=now)
        return await self._write(work, durable=durable)

    async def go_on(self, upload: Upload, step: Advance, *, now: float) -> Upload:
        return await self._write(partial(writes.go_on, upload=upload, step=step, now=now))

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
        work = partial(writes.publish, upload_id=upload_id, epoch=epoch, file=file, outbox=events, now=now)
        return await self._tell(events, work, durable=durable)

    async def end_upload(
        self,
        upload_id: UploadId,
        *,
        epoch: int | None,
        ending: Ending,
        expected: Sequence[State] = (),
        unexpired_before: float | None = None,
    ) -> Upload:
        work = partial(
            writes.end_upload,
            upload_id=upload_id,
            epoch=epoch,
            ending=ending,
            expected=expected,
            unexpired_before=unexpired_before,
        )
        return await self._tell(ending.events, work, durable=True)

    async def begin_run(self, run: str, boot: str, *, unsynced: bool) -> Begun:
        return await self._write(partial(crashes.begin_run, run=run, boot=boot, unsynced=unsynced), durable=True)

    async def end_run(self, run: str) -> None:
        await self._write(partial(crashes.end_run, run=run), durable=True)

    async def suspect_uploads(self, *, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
        return await self._read(partial(crashes.suspect_uploads, limit=limit, after=after))

    async def acquit(self, upload_id: UploadId, *, epoch: int) -> Upload:
        return await self._write(partial(crashes.acquit, upload_id=upload_id, epoch=epoch))

    async def fall_back(
        self, upload_id: UploadId, *, epoch: int, to_offset: int, parts: Sequence[Part], now: float
    ) -> Upload:
        work = partial(crashes.fall_back, upload_id=upload_id, epoch=epoch, to_offset=to_offset, ledger=parts, now=now)
        return await self._write(work)

    async def acquire_lease(
        self,
        upload_id: UploadId,
        owner: str,
        *,
        now: float,
        until: float,
        judge: Callable[[Upload], object] | None = None,
    ) -> tuple[Lease, Upload]:
        work = partial(leases.acquire, upload_id=upload_id, owner=owner, now=now, until=until, judge=judge)
        taken = await self._write(work)
        if isinstance(taken, Exception):
            raise taken
        return taken

    async def ask_lease(self, upload_id: UploadId, how: Asked) -> None:
        await self._write(partial(leases.ask, upload_id=upload_id, how=how))

    async def keep_lease(self, upload_id: UploadId, owner_prefix: str) -> None:
        await self._write(partial(leases.keep, upload_id=upload_id, prefix=owner_prefix))

    async def asked_leases(self, owner_prefix: str) -> tuple[tuple[UploadId, Asked], ...]:
        return await self._read(partial(leases.asked, prefix=owner_prefix))

    async def renew_leases(self, owner_prefix: str, *, until: float) -> None:
        await self._write(partial(leases.renew, prefix=owner_prefix, until=until))

    async def lease(self, upload_id: UploadId) -> Lease | None:
        return await self._read(partial(leases.lease, upload_id=upload_id))

    async def release_lease(self, lease: Lease) -> None:
        await self._write(partial(leases.release, lease=lease))

    async def drop_leases(self, owner_prefix: str = "") -> None:
        await self._write(partial(_drop, prefix=owner_prefix))

    async def take_duty(self, name: str, owner: str, *, now: float, until: float) -> bool:
        return await self._write(partial(duties.take, name=name, owner=owner, now=now, until=until))

    async def give_back_duty(self, name: str, owner: str) -> None:
        await self._write(partial(duties.give_back, name=name, owner=owner))

    async def file(self, file_id: FileId) -> File | None:
        return await self._read(partial(reads.file, file_id=file_id))

    async def delete_file(
        self, file_id: FileId, *, now: float, events: Sequence[Event] = (), expired_before: float | None = None
    ) -> File:
        work = partial(writes.delete_file, file_id=file_id, now=now, outbox=events, expired_before=expired_before)
        return await self._tell(events, work, durable=True)

    async def tell_of_file(self, file_id: FileId, *, events: Sequence[Event]) -> None:
        await self._tell(events, partial(writes.tell_of_file, file_id=file_id, outbox=events))

    async def expired_uploads(self, *, now: float, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
        return await self._read(partial(reads.expired_uploads, now=now, limit=limit, after=after))

    async def finishing_uploads(self, *, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
        return await self._read(partial(reads.finishing_uploads, limit=limit, after=after))

    async def waiting_finals(self, *, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
        return await self._read(partial(reads.waiting_finals, limit=limit, after=after))

    async def expired_files(self, *, now: float, limit: int, after: File | None = None) -> tuple[File, ...]:
        return await self._read(partial(reads.expired_files, now=now, limit=limit, after=after))

    async def file_keys(self, *, limit: int, after: FileId | None = None) -> tuple[tuple[FileId, str, bool], ...]:
        return await self._read(partial(reads.file_keys, limit=limit, after=after))

    async def unfinished_uploads(self, *, limit: int, after: UploadId | None = None) -> tuple[Upload, ...]:
        return await self._read(partial(reads.unfinished_uploads, limit=limit, after=after))

    async def tombstones(
        self, *, before: float, link_before: float, limit: int, after: Tombstone | None = None
    ) -> tuple[Tombstone, ...]:
        work = partial(reads.tombstones, before=before, link_before=link_before, limit=limit, after=after)
        return await self._read(work)

    async def purge(self, *, before: float, link_before: float, limit: int) -> int:
        return await self._write(partial(writes.purge, before=before, link_before=link_before, limit=limit))

    async def promised_bytes(self) -> int:
        return await self._read(reads.promised_bytes)

    async def totals(self) -> Totals:
        return await self._read(reads.totals)

    async def events(self, *, after: int = 0, limit: int = 100) -> tuple[tuple[int, Event], ...]:
        return await self._read(partial(reads.outbox, after=after, limit=limit))


def _missing(url: URL) -> bool:
    """Whether there is a directory for the SQLite file, and no file."""
    path = Path(str(url.database))
    return path.parent.is_dir() and not path.exists()


def _check_schema(connection: Connection) -> None:
    """Raises SchemaMismatch."""
    found = None
    if inspect(connection).has_table(revision.name):
        found = connection.execute(select(revision.c.version_num)).scalar_one_or_none()
    if found is None:
        raise SchemaMismatch("the database has no schema yet; `attachd migrate` makes it")
    if found < REVISION:
        raise SchemaMismatch(
            f"the database has schema {found}, this version needs {REVISION}; `attachd migrate` brings it up to date"
        )
    if found > REVISION:
        raise SchemaMismatch(
            f"the database has schema {found} of a newer version, this one knows {REVISION}; run that newer version"
            " (`attachd migrate` does not go back)"
        )


def _drop(connection: Connection, prefix: str) -> None:
    leases.drop(connection, prefix)
    duties.drop(connection, prefix)


def _touch(connection: Connection) -> None:
    """A real write, which needs the lock and space in the log like any other."""
    statement = update(revision).values(version_num=revision.c.version_num)
    if connection.execute(statement).rowcount != 1:
        raise MetadataUnavailable("the schema is being changed")
