"""The disk adapter on a disk that is full, broken or gone, and giving back what it was lent."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.clock import new_upload_id
from service.storage.base import (
    StorageError,
    StorageFull,
    StorageStale,
    StorageUnavailable,
)
from service.storage.filesystem import FilesystemStorage, copying, listing
from tests.contract.disk import Calls, make, segments, several
from tests.contract.storage_values import (
    ALIGN,
    appended,
    committed,
    content,
    finished,
    uncommitted,
    unfinished,
)
from tests.volumes import small_volume


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def storage(root: Path) -> AsyncIterator[FilesystemStorage]:
    storage = await make(root)
    yield storage
    await storage.close()


# full disk, lost disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A volume of 1 MiB."""
    with small_volume(tmp_path / "volume", "1m") as volume:
        yield volume


async def test_d5_a_full_disk_keeps_what_was_held_and_goes_on(small_disk: Path) -> None:
    """D5: Disk full is StorageFull, the held bytes stay readable, and space given back lets it go on."""
    storage = await make(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    upload_id, data = new_upload_id(), os.urandom(800_000)
    ledger = await appended(storage, upload_id, (), data[:100_000])
    async with storage.append(upload_id, ledger, epoch=2, align=ALIGN) as writer:
        with pytest.raises(StorageFull):
            await writer.write(memoryview(data)[100_000:])
        receipt = await writer.held()
    ledger = committed(ledger, receipt)

    assert 100_000 < receipt.offset < len(data)
    assert await unfinished(storage, ledger) == data[: receipt.offset]
    with pytest.raises(StorageFull):
        await storage.probe()
    ballast.unlink()
    await storage.probe()
    ledger = await appended(storage, upload_id, ledger, data[receipt.offset :], epoch=3)
    stored = await storage.complete(upload_id, ledger, epoch=3)
    assert await content(storage, stored) == data
    await storage.close()


async def test_d5_a_join_that_does_not_fit_gives_its_space_back(small_disk: Path) -> None:
    """D5: A concatenation on a full disk is StorageFull, leaves nothing, and works once there is space."""
    storage = await make(small_disk)
    source = new_upload_id()
    ledger = await appended(storage, source, (), bytes(400_000))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    upload_id = new_upload_id()
    with pytest.raises(StorageFull):
        await storage.concatenate(upload_id, [ledger], epoch=1)

    assert [path.name for path in segments(small_disk)] == [ledger[0].key]
    ballast.unlink()
    receipt = await storage.concatenate(upload_id, [ledger], epoch=2)
    assert receipt.offset == 400_000
    await storage.close()


async def test_d5_a_finish_that_does_not_fit_gives_its_space_back(small_disk: Path) -> None:
    """D5: Finishing several segments on a full disk is StorageFull, keeps them, and works once there is space."""
    storage = await make(small_disk)
    upload_id, data = new_upload_id(), os.urandom(600_000)
    ledger = await appended(storage, upload_id, (), data[:200_000])
    await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=2)
    ledger = await appended(storage, upload_id, ledger, data[200_000:], epoch=3)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    with pytest.raises(StorageFull):
        await storage.complete(upload_id, ledger, epoch=4)

    assert [path.stat().st_size for path in segments(small_disk)] == [200_000, 400_000]
    ballast.unlink()
    stored = await storage.complete(upload_id, ledger, epoch=5)
    assert await content(storage, stored) == data
    await storage.close()


def test_d5_a_limit_on_file_size_is_storage_full(root: Path) -> None:
    """D5: Where the system refuses to let a file grow, what it took counts as held and is readable."""
    script = """
        import asyncio, resource, sys
        from pathlib import Path
        from service.clock import new_upload_id
        from service.storage.base import StorageFull
        from service.storage.filesystem import FilesystemStorage

        async def main():
            storage = FilesystemStorage(Path(sys.argv[1]), durability="complete")
            await storage.open()
            resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))
            async with storage.append(new_upload_id(), (), epoch=1, align=1) as writer:
                await writer.write(memoryview(b"a" * 60_000))
                try:
                    await writer.write(memoryview(b"b" * 60_000))
                except StorageFull:
                    receipt = await writer.held()
            pieces = [piece async for piece in storage.read_upload(receipt.parts, 0, receipt.offset)]
            await storage.close()
            print(receipt.offset, b"".join(pieces) == b"a" * 60_000 + b"b" * 5_536)

        asyncio.run(main())
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), root], capture_output=True, text=True, check=False, timeout=60
    )

    assert (ran.stdout.split(), ran.stderr) == (["65536", "True"], "")


async def test_a_writer_that_failed_takes_no_more(storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error the observer would see bytes twice: the next write is refused, held stays true."""
    fakes = Calls()
    fakes.fail_at("pwrite", 2, OSError(errno.EIO, "broken"))
    fakes.install(monkeypatch)
    async with storage.append(new_upload_id(), (), epoch=1, align=ALIGN) as writer:
        await writer.write(memoryview(b"abc"))
        with pytest.raises(StorageUnavailable):
            await writer.write(memoryview(b"def"))
        with pytest.raises(StorageUnavailable, match="append anew"):
            await writer.write(memoryview(b"def"))

        assert (await writer.held()).offset == 3


async def test_a_failed_sync_is_never_forgotten(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `always` no receipt follows a sync that failed, even if the next one would succeed."""
    storage = await make(root, "always")
    fakes = Calls()
    fakes.fail_at("fdatasync", 1, OSError(errno.EIO, "broken"))
    fakes.install(monkeypatch)
    async with storage.append(new_upload_id(), (), epoch=1, align=ALIGN) as writer:
        await writer.write(memoryview(b"abc"))
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await writer.held()
    await storage.close()


async def test_a_disk_that_vanished_is_worth_a_retry(storage: FilesystemStorage, root: Path) -> None:
    """An unmounted disk is never taken for lost bytes, and nothing grows in its place."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    stored = await storage.complete(done := new_upload_id(), await appended(storage, done, (), b"x"), epoch=1)
    away = root.rename(root.with_name("away"))
    new = new_upload_id()
    calls: list[Callable[[], Any]] = [
        lambda: appended(storage, upload_id, ledger, b"def", epoch=2),
        lambda: appended(storage, new, (), b"def"),
        lambda: unfinished(storage, ledger),
        lambda: storage.complete(upload_id, ledger, epoch=2),
        lambda: storage.concatenate(new, [ledger], epoch=1),
        lambda: content(storage, stored),
        storage.probe,
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable):
            await call()
    assert not root.exists()
    away.rename(root)

    assert await unfinished(storage, await appended(storage, upload_id, ledger, b"def", epoch=2)) == b"abcdef"


@pytest.mark.parametrize("directory", ["uploads", "files"])
async def test_the_probe_writes_wherever_bytes_go(storage: FilesystemStorage, root: Path, directory: str) -> None:
    """A directory that takes no file, be it that of uploads or of files, fails the probe, which names it."""
    (root / directory).rmdir()
    with pytest.raises(StorageUnavailable, match=f"{directory}/ cannot be written"):
        await storage.probe()
    (root / directory).mkdir()
    await storage.probe()


async def test_a_shard_that_cannot_be_listed_hides_no_other(
    storage: FilesystemStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other shards are listed, and the error comes at the end."""
    stored = [await finished(storage, b"abc") for _ in range(3)]
    broken = min(each.key for each in stored)
    real = os.scandir

    def scandir(path: Path) -> Any:
        if path == root / "files" / broken[2:4]:
            raise OSError(errno.EIO, "broken")
        return real(path)

    monkeypatch.setattr(listing, "os", SimpleNamespace(scandir=scandir, stat_result=os.stat_result))
    seen: set[str | None] = set()

    async def walk() -> None:
        async for held in storage.held(older_than=-1):
            seen.add(held.key)

    with pytest.raises(StorageUnavailable, match=f"listing {broken[2:4]}/: broken"):
        await walk()
    assert seen == {each.key for each in stored if each.key[2:4] != broken[2:4]}


async def test_a_store_that_is_gone_is_not_an_empty_one(storage: FilesystemStorage, root: Path) -> None:
    """Listing an unmounted disk is worth a retry."""
    root.rename(root.with_name("away"))
    with pytest.raises(StorageUnavailable):
        await anext(aiter(storage.held(older_than=0)))


class SlowCopies:
    """Copies stand still until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._running = threading.Semaphore(0)
        self.go = threading.Event()
        self._real = copying.WAYS[-1]
        monkeypatch.setattr(copying, "WAYS", (self._copy,))

    def _copy(self, *args: int) -> int:
        self._running.release()
        self.go.wait(60)
        return self._real(*args)

    async def run(self, number: int) -> None:
        """So many copies are under way."""
        for _ in range(number):
            assert await asyncio.to_thread(self._running.acquire, timeout=30)


async def test_joins_keep_nothing_else_waiting(storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While as many joins run as may, files are opened, uploads begin, grow and end, and the probe answers."""
    source, stored = new_upload_id(), await finished(storage, b"abcde")
    ledger = await appended(storage, source, (), b"abc")
    copies = SlowCopies(monkeypatch)
    joins = [asyncio.ensure_future(storage.concatenate(new_upload_id(), [ledger], epoch=1)) for _ in range(4)]
    try:
        await copies.run(2)
        async with asyncio.timeout(30):
            await storage.probe()
            await storage.free_bytes()
            assert await content(storage, stored) == b"abcde"
            assert await content(storage, await finished(storage, b"more")) == b"more"
    finally:
        copies.go.set()
        receipts = await asyncio.gather(*joins)

    assert {receipt.offset for receipt in receipts} == {3}


async def test_slow_ends_keep_nothing_else_waiting(storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While as many uploads of several segments end as may, files are opened, uploads grow, and the probe answers."""
    stored = await finished(storage, b"abcde")
    uploads = [new_upload_id() for _ in range(2)]
    ledgers = [await several(storage, upload_id) for upload_id in uploads]
    copies = SlowCopies(monkeypatch)
    ends = [asyncio.ensure_future(storage.complete(*each, epoch=9)) for each in zip(uploads, ledgers, strict=True)]
    try:
        await copies.run(2)
        async with asyncio.timeout(30):
            await storage.probe()
            assert await content(storage, stored) == b"abcde"
            assert len(await appended(storage, new_upload_id(), (), b"abc")) == 1
    finally:
        copies.go.set()
        whole = await asyncio.gather(*ends)

    assert [each.size for each in whole] == [9, 9]


async def test_a_root_that_cannot_be_used_stops_the_start_in_words(tmp_path: Path) -> None:
    """The error at the start names the directory and what the system said."""
    (tmp_path / "file").write_text("")
    storage = FilesystemStorage(tmp_path / "file" / "store", durability="complete")

    with pytest.raises(StorageError, match=r"storage directory .*file/store cannot be used: .*Not a directory"):
        await storage.open()
    await storage.close()


def test_an_unknown_durability_is_refused(tmp_path: Path) -> None:
    """A misspelt durability is an error, not the weakest one."""
    with pytest.raises(ValueError, match="sometimes"):
        FilesystemStorage(tmp_path, durability="sometimes")


async def test_descriptors_come_back(storage: FilesystemStorage) -> None:
    """D6: Uploads cut, cancelled, failed and finished leave no descriptor open."""
    await storage.free_bytes()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        writing = asyncio.ensure_future(appended(storage, upload_id, ledger, b"def", epoch=2))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait({writing})
        stored = await storage.complete(upload_id, ledger, epoch=3)
        await content(storage, stored)
        with pytest.raises(StorageStale):
            await appended(storage, upload_id, ledger, b"def", epoch=2)

    assert len(os.listdir("/proc/self/fd")) == before
