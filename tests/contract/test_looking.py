"""Stores opened to be looked at: nothing is made, claimed, tried or changed; and what only one kind tells."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from service.clock import SystemClock, new_upload_id
from service.metadata.base import MetadataUnavailable
from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from service.storage.base import Backing, Staged, StorageError, StorageUnavailable
from service.storage.filesystem import FilesystemStorage
from service.storage.s3 import Memory, S3Storage, naming, owning
from tests.contract import disk
from tests.contract.buckets import Bucket, bucket_of, some_bytes
from tests.contract.metadata_values import created
from tests.contract.storage_values import ALIGN, appended, uncommitted
from tests.contract.test_s3 import MIB, options_of
from tests.e2e.process import ROOT
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store

HOUR = 3600.0

# --- disk -----------------------------------------------------------------------------------------


async def test_a_look_makes_no_directory(tmp_path: Path) -> None:
    """Where the directories are missing, say of a disk that is not mounted, a look fails and makes none."""
    storage = FilesystemStorage(tmp_path / "data", durability="complete")
    with pytest.raises(StorageError, match="mounted"):
        await storage.open(look=True)
    await storage.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_look_needs_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look tries no write: a directory that is mounted read-only can be looked at."""
    await (await disk.make(tmp_path)).close()
    storage = FilesystemStorage(tmp_path, durability="complete")

    async def probe() -> None:
        raise StorageUnavailable("read-only file system")

    monkeypatch.setattr(storage, "probe", probe)
    await storage.open(look=True)
    assert [held async for held in storage.held(older_than=0)] == []
    await storage.close()


async def test_staged_leftovers_are_told(tmp_path: Path) -> None:
    """Segments that the ledger does not name are told by key and size, once they are old enough."""
    storage = await disk.make(tmp_path)
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    # two requests at once: the second finds the segment locked, and starts one of its own
    async with storage.append(upload_id, ledger, epoch=2, align=ALIGN) as first:
        await first.write(memoryview(b"x"))
        await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=3)
    assert await storage.examine(upload_id, ledger, older_than=HOUR) == Backing(3)
    disk.age(tmp_path, HOUR + 1)
    found = await storage.examine(upload_id, ledger, older_than=HOUR)
    assert found == Backing(3, (Staged(f"{upload_id}.e3", 5),))
    await storage.close()


async def test_an_unmounted_disk_is_no_missing_segment(tmp_path: Path) -> None:
    """Where the directories have gone it cannot be told what is backed."""
    storage = await disk.make(tmp_path / "data")
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageUnavailable, match="mounted"):
        await storage.examine(upload_id, ledger, older_than=HOUR)
    await storage.close()


# --- bucket ---------------------------------------------------------------------------------------


@pytest.fixture
async def held(
    any_store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bucket]:
    async with bucket_of(any_store, bucket, faulty, monkeypatch) as opened:
        yield opened


def looker(held_in: Bucket, owner: str = "test") -> S3Storage:
    """An adapter behind the proxy that has not been opened."""
    options = options_of(held_in.store, held_in.name, held_in.faulty.endpoint)
    return S3Storage(
        options, SystemClock(), Memory(96 * MIB), most_bytes=2**32, part_bytes=5 * MIB, owner=owner, settled=False
    )


async def test_a_look_claims_nothing(held: Bucket) -> None:
    """A place that nobody has claimed stays unclaimed, and is not taken for this database's."""
    storage = looker(held)
    with pytest.raises(owning.NotOurs, match="nothing of this database is here"):
        await storage.open(look=True)
    await storage.close()
    assert held.store.objects(held.name) == {}


async def test_a_look_at_anothers_place_is_refused(held: Bucket) -> None:
    """With the words that a start has for it."""
    await held.adapter()
    storage = looker(held, owner="another")
    with pytest.raises(owning.NotOurs, match="belongs to another database"):
        await storage.open(look=True)
    await storage.close()


async def test_a_look_tries_nothing_out(held: Bucket) -> None:
    """What the store can is not asked: no call of a look changes anything."""
    await held.adapter()
    storage = looker(held)
    await storage.open(look=True)
    assert [found async for found in storage.held(older_than=-HOUR)] == []
    await storage.close()
    assert set(held.kinds()) <= {"head_bucket", "get_object", "list_objects", "list_multipart_uploads"}


async def test_a_look_does_not_wait_for_a_store_that_is_away(held: Bucket) -> None:
    """It is told at once, where a start would go on without the store."""
    await held.adapter()
    held.faulty.down = "reset"
    storage = looker(held)
    with pytest.raises(StorageUnavailable):
        await storage.open(look=True)
    await storage.close()


async def test_o1_a_part_that_is_not_the_ledgers_backs_nothing(held: Bucket) -> None:
    """A part with the right number and size and another ETag is not what was committed."""
    storage = await held.adapter()
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), some_bytes(2 * ALIGN + 1))
    assert (await storage.examine(upload_id, ledger, older_than=HOUR)).backed == 2 * ALIGN + 1
    multipart = ledger[1].key.split(":")[2]
    key, checked = naming.object_of(ledger[1]), naming.is_checked(ledger[1].etag)
    await storage._calls.upload_part(key, multipart, 2, some_bytes(ALIGN, seed=2), checked=checked)
    assert (await storage.examine(upload_id, ledger, older_than=HOUR)).backed == ALIGN


async def test_c2_an_aborted_multipart_upload_backs_nothing(held: Bucket) -> None:
    """C2: parts that a rule of the bucket removed are missing, and nothing is taken for complete."""
    storage = await held.adapter()
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), some_bytes(2 * ALIGN + 1))
    ((key, multipart),) = held.multiparts()
    held.store.client().abort_multipart_upload(Bucket=held.name, Key=key, UploadId=multipart)
    assert await storage.examine(upload_id, ledger, older_than=HOUR) == Backing(0)


# --- database -------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite:///{tmp_path}/metadata.db"
    migrate(made)
    return made


async def test_a_database_that_is_looked_at_does_not_change(url: str, tmp_path: Path) -> None:
    """Reads answer, changes are refused, and the file is the same to the byte though a log beside it waits."""
    path = tmp_path / "metadata.db"
    # a process that dies leaves a log that whoever closes the database last folds into it
    code = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("INSERT INTO links VALUES ('a', 'b', 0, '[]', 0, 0, 1)")
database.commit()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert os.path.getsize(f"{path}-wal") > 0
    before = path.read_bytes()
    store = SqlMetadata(url, durability="complete", read_only=True)
    await store.open()
    assert await store.link_use("a", "b") is not None
    assert (await store.totals()).files == 0
    for _ in range(2):
        with pytest.raises(MetadataUnavailable, match="readonly"):
            await created(store)
    await store.close()
    assert path.read_bytes() == before


async def test_a_copy_without_a_log_stays_one(url: str, tmp_path: Path) -> None:
    """A database that is in no write-ahead mode, as a copy may be, is not put into it."""
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(tmp_path / "metadata.db")) as connection:
        connection.execute("VACUUM INTO ?", [str(copy)])
    before = copy.read_bytes()
    store = SqlMetadata(f"sqlite:///{copy}", durability="complete", read_only=True)
    await store.open()
    assert len(await store.identity()) == 32
    await store.close()
    await asyncio.sleep(0)
    assert copy.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("copy")} == {"copy.db"}
