"""A crash of the machine takes back commits that were not synced; the bucket does not go back with the database.

`durability=complete` promises no offset over such a crash. What comes back must be true all the same: an
upload whose bytes are there, or one that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from service.metadata.base import MetadataUnavailable
from service.metadata.sql import SqlMetadata
from service.model import State
from tests.contract.buckets import some_bytes
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import TUS
from tests.web.s3_site import MIB, PART, S3Site, s3_site

CONTENT = some_bytes(12 * MIB)


class Machine:
    """Starts services on one database, and crashes at its worst moment: nothing is left but what was synced."""

    def __init__(self, folder: Path, start: Callable[[Path], AbstractAsyncContextManager[S3Site]]) -> None:
        self._folder = folder
        self._database = folder / "var" / "attachd.db"
        self._synced = folder / "synced.db"
        self._start = start
        self._write = SqlMetadata._write

    async def write(self, store: SqlMetadata, work: Any, *, durable: bool = False) -> Any:
        """As the store's own; a durable one takes all before it along."""
        result = await self._write(store, work, durable=durable)
        if durable:
            await asyncio.to_thread(self._sync)
        return result

    def _sync(self) -> None:
        with (
            contextlib.closing(sqlite3.connect(self._database)) as database,
            contextlib.closing(sqlite3.connect(self._synced)) as synced,
        ):
            database.backup(synced)

    def crash(self) -> None:
        """For when no service runs."""
        for left in self._database.parent.glob("attachd.db*"):
            left.unlink()
        shutil.copy(self._synced, self._database)

    def running(self) -> AbstractAsyncContextManager[S3Site]:
        return self._start(self._folder)


@pytest.fixture
def machine(tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path, lambda folder: s3_site(folder, store, bucket, faulty, monkeypatch, durability="complete"))

    async def write(store: SqlMetadata, work: Any, *, durable: bool = False) -> Any:
        return await made.write(store, work, durable=durable)

    monkeypatch.setattr(SqlMetadata, "_write", write)
    return made


@contextlib.asynccontextmanager
async def begun(machine: Machine, size: int) -> AsyncIterator[tuple[S3Site, str]]:
    """A service with an upload of so many bytes, all of which a later durable change has taken along."""
    async with machine.running() as s3:
        path = await s3.here.create(len(CONTENT))
        assert (await s3.patch(path, 0, CONTENT[:size])).status == 204
        await s3.here.upload(b"another")
        yield s3, path


async def test_o2_a_ledger_that_comes_back_names_no_tail_that_was_dropped(machine: Machine) -> None:
    """O2: A tail that a part swallowed is gone; no crash brings the ledger back that needs it."""
    async with begun(machine, 3 * MIB) as (s3, path):
        (tail,) = s3.bucket.tails()
        assert (await s3.patch(path, 3 * MIB, CONTENT[3 * MIB : 6 * MIB])).status == 204
        assert tail not in s3.bucket.tails()
    machine.crash()
    async with machine.running() as s3:
        offset = (await s3.here.head(path)).offset
        assert offset is not None
        assert (await s3.patch(path, offset, CONTENT[offset:])).status == 204
        assert await s3.here.stored(path) == CONTENT


async def test_what_is_not_needed_again_is_not_synced(machine: Machine) -> None:
    """A step that drops nothing waits for no disk, so a crash may take it back; what is told then is there."""
    async with begun(machine, PART) as (s3, path):
        assert (await s3.patch(path, PART, CONTENT[PART : PART + MIB])).status == 204
    machine.crash()
    async with machine.running() as s3:
        assert (await s3.here.head(path)).offset == PART
        assert (await s3.patch(path, PART, CONTENT[PART:])).status == 204
        assert await s3.here.stored(path) == CONTENT


async def test_c1_an_upload_that_was_completed_does_not_come_back_as_unfinished(machine: Machine) -> None:
    """C1: The object is there, its multipart upload used up, and the crash comes before that is published: ready."""

    async def publish(*_: Any, **__: Any) -> Any:
        raise MetadataUnavailable("the machine is about to crash")

    with pytest.MonkeyPatch.context() as patch:
        async with begun(machine, 7 * MIB) as (s3, path):
            patch.setattr(SqlMetadata, "publish", publish)
            assert (await s3.patch(path, 7 * MIB, CONTENT[7 * MIB :])).status == 503
            assert len(CONTENT) in s3.files().values()
    machine.crash()
    async with machine.running() as s3:
        assert await s3.state(path) is State.READY
        assert await s3.here.stored(path) == CONTENT


async def test_e3_an_upload_that_was_terminated_does_not_come_back(machine: Machine) -> None:
    """E3: Bytes that were removed for a DELETE leave no upload that claims them."""
    async with begun(machine, 7 * MIB) as (s3, path):
        assert (await s3.here.ask("DELETE", path, TUS)).status == 204
        s3.assert_only_files(len(b"another"))
    machine.crash()
    async with machine.running() as s3:
        assert (await s3.here.head(path)).status == 410


async def test_g4_a_file_that_was_deleted_does_not_come_back(machine: Machine) -> None:
    """G4: An object that was removed leaves no file that cannot be read: its links are 410."""
    async with begun(machine, PART) as (s3, path):
        assert (await s3.patch(path, PART, CONTENT[PART:])).status == 204
        link = s3.here.download_link((await s3.upload_of(path)).file_id)
        assert (await s3.here.ask("DELETE", path, TUS)).status == 204
    machine.crash()
    async with machine.running() as s3:
        assert (await s3.here.ask("GET", link)).status == 410
