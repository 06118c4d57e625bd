"""The disk adapter before and after a crash of the machine: what is synced, and what is taken up again."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.clock import new_upload_id
from service.model import UploadId
from service.storage.base import StorageShort, StorageStale, StorageUnavailable, Stored
from service.storage.filesystem import FilesystemStorage, salvaging, sync_unfinished
from tests.contract.disk import Calls, make, segments, several
from tests.contract.storage_values import Ledger, appended, content, unfinished


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def storage(root: Path) -> AsyncIterator[FilesystemStorage]:
    storage = await make(root)
    yield storage
    await storage.close()


async def passed() -> None:
    """A fence of somebody who has the lease."""


async def refused() -> None:
    """A fence of somebody who has it no more."""
    raise StorageStale("overtaken")


async def goes_on(storage: FilesystemStorage, upload_id: UploadId, ledger: Ledger) -> bytes:
    """The file, after a `+` was appended."""
    ledger = await appended(storage, upload_id, ledger, b"+", epoch=9)
    return await content(storage, await storage.complete(upload_id, ledger, epoch=9))


# --- salvage ------------------------------------------------------------------------------------


async def test_salvage_of_what_is_whole_changes_nothing(storage: FilesystemStorage, root: Path) -> None:
    """Where all is there the ledger is the same, and so are the segments; no fence is needed."""
    ledger = await several(storage, upload_id := new_upload_id())
    before = [(path, path.stat()) for path in segments(root)]
    assert await storage.salvage(upload_id, ledger, fence=refused) == ledger
    assert [(path, path.stat()) for path in segments(root)] == before
    assert await goes_on(storage, upload_id, ledger) == b"abcdefghi+"


@pytest.mark.parametrize(("part", "size", "held"), [(0, 0, b""), (0, 2, b"ab"), (1, 1, b"abcd"), (2, 2, b"abcdefgh")])
async def test_o6_salvage_ends_at_the_first_byte_that_is_gone(
    storage: FilesystemStorage, part: int, size: int, held: bytes
) -> None:
    """O6: What lies behind a gap is nobody's, whether or not it is there; an append goes on before the gap."""
    ledger = await several(storage, upload_id := new_upload_id())
    os.truncate(storage._layout.segment(ledger[part].key), size)
    left = await storage.salvage(upload_id, ledger, fence=refused)
    assert await unfinished(storage, left) == held
    assert await goes_on(storage, upload_id, left) == held + b"+"


@pytest.mark.parametrize(("part", "held"), [(0, b""), (1, b"abc"), (2, b"abcdef")])
async def test_o6_salvage_ends_at_a_name_that_is_gone(storage: FilesystemStorage, part: int, held: bytes) -> None:
    """O6: A segment whose name the crash took is a gap."""
    ledger = await several(storage, upload_id := new_upload_id())
    storage._layout.segment(ledger[part].key).unlink()
    left = await storage.salvage(upload_id, ledger, fence=refused)
    assert await unfinished(storage, left) == held
    assert await goes_on(storage, upload_id, left) == held + b"+"


async def test_salvage_takes_up_a_file_that_nothing_records(storage: FilesystemStorage, root: Path) -> None:
    """The bytes of an older ledger are there again to be appended to, and there is no file meanwhile."""
    older = await several(storage, upload_id := new_upload_id())
    newer = await appended(storage, upload_id, older, b"jkl", epoch=4)
    await storage.complete(upload_id, newer, epoch=4)
    left = await storage.salvage(upload_id, older, fence=passed)
    assert await unfinished(storage, left) == b"abcdefghi"
    with pytest.raises(StorageShort):
        await content(storage, Stored(upload_id, 12))
    assert await goes_on(storage, upload_id, left) == b"abcdefghi+"
    assert segments(root) == []


async def test_salvage_of_an_upload_without_a_byte_removes_a_file(storage: FilesystemStorage) -> None:
    """A file of an upload whose every commit is gone is no more, and the upload begins anew."""
    upload_id = new_upload_id()
    await storage.complete(upload_id, await appended(storage, upload_id, (), b"abc"), epoch=1)
    assert await storage.salvage(upload_id, (), fence=passed) == ()
    assert await goes_on(storage, upload_id, ()) == b"+"


async def test_l2_salvage_of_somebody_overtaken_leaves_a_file_alone(storage: FilesystemStorage) -> None:
    """L2: Whoever lost the lease does not touch what a newer one published, wherever it slept."""
    older = await appended(storage, upload_id := new_upload_id(), (), b"abc")
    stored = await storage.complete(upload_id, await appended(storage, upload_id, older, b"def"), epoch=2)
    with pytest.raises(StorageStale):
        await storage.salvage(upload_id, older, fence=refused)
    assert await content(storage, stored) == b"abcdef"

    async def slept() -> None:
        """Held when asked; then somebody newer took the upload up and finished it."""
        left = await storage.salvage(upload_id, older, fence=passed)
        await storage.complete(upload_id, await appended(storage, upload_id, left, b"xyz", epoch=4), epoch=4)

    with pytest.raises(StorageStale):
        await storage.salvage(upload_id, older, fence=slept)
    assert await content(storage, stored) == b"abcxyz"


async def test_l2_a_file_that_comes_after_the_look_is_left_alone(storage: FilesystemStorage) -> None:
    """L2: Between looking for a file and taking it up nobody newer can have published one unnoticed."""
    ledger = await appended(storage, upload_id := new_upload_id(), (), b"abc")
    stored = await storage.complete(upload_id, ledger, epoch=2)
    with pytest.raises(StorageStale):
        await asyncio.to_thread(salvaging.salvage, storage._layout, upload_id, ledger, None)
    assert await content(storage, stored) == b"abc"


async def test_an_unmounted_disk_has_lost_nothing(storage: FilesystemStorage, root: Path) -> None:
    """Without the directories salvage is worth a retry, and then all is there."""
    ledger = await appended(storage, upload_id := new_upload_id(), (), b"abc")
    (root / "uploads").rename(root / "elsewhere")
    with pytest.raises(StorageUnavailable):
        await storage.salvage(upload_id, ledger, fence=passed)
    (root / "elsewhere").rename(root / "uploads")
    assert await storage.salvage(upload_id, ledger, fence=passed) == ledger


# --- what is synced ------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["complete", "always", "none"])
async def test_o6_sync_reaches_bytes_and_names(root: Path, monkeypatch: pytest.MonkeyPatch, durability: str) -> None:
    """O6: Each segment of a ledger is synced, then the directory with their names; under `none` nothing is."""
    storage = await make(root, durability)
    ledger = await several(storage, new_upload_id())
    fakes = Calls()
    fakes.install(monkeypatch)
    await storage.sync(ledger)
    await storage.close()
    paths = [str(storage._layout.segment(part.key)) for part in ledger]
    expected = [*paths, str(Path(paths[0]).parent)]
    assert [path for name, path in fakes.seen if name == "fsync"] == ([] if durability == "none" else expected)


async def test_sync_of_lost_bytes_is_short(storage: FilesystemStorage) -> None:
    """What is not there cannot be made durable."""
    ledger = await appended(storage, new_upload_id(), (), b"abc")
    with pytest.raises(StorageShort):
        await storage.sync([replace(ledger[0], end=4)])


async def test_o6_sync_unfinished_reaches_every_segment(
    storage: FilesystemStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O6: Every segment below uploads/ is synced before its directory, in a ledger or not; finished files are not."""
    for _ in range(3):
        await several(storage, new_upload_id())
    done = new_upload_id()
    await storage.complete(done, await appended(storage, done, (), b"abc"), epoch=1)
    fakes = Calls()
    monkeypatch.setattr(salvaging, "os", fakes)
    monkeypatch.setattr("service.storage.filesystem.layout.os", fakes)
    await asyncio.to_thread(sync_unfinished, root, threading.Event())
    synced = [Path(path) for name, path in fakes.seen if name == "fsync"]
    assert set(synced) == {*segments(root), *(root / "uploads").iterdir(), root / "uploads"}
    assert len(segments(root)) > 6
    assert all(synced.index(path) < synced.index(path.parent) for path in synced if path != root / "uploads")


async def test_a_sync_that_is_stopped_says_so(storage: FilesystemStorage, root: Path) -> None:
    """What was not synced to the end is an error, worth a retry."""
    await appended(storage, new_upload_id(), (), b"abc")
    stop = threading.Event()
    stop.set()
    with pytest.raises(StorageUnavailable):
        await asyncio.to_thread(sync_unfinished, root, stop)
    stop.clear()
    await asyncio.to_thread(sync_unfinished, root, stop)


def test_there_is_nothing_to_sync_where_nothing_is(tmp_path: Path) -> None:
    """A directory that is not there has synced nothing: an error, worth a retry."""
    with pytest.raises(StorageUnavailable):
        sync_unfinished(tmp_path / "absent", threading.Event())
