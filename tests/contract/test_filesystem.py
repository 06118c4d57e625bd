"""The disk adapter: the shared suite, then what is particular to a directory."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.clock import new_upload_id
from service.hashing import BlockHasher, manifest
from service.model import Block, Part
from service.storage.base import (
    Storage,
    StorageShort,
    StorageStale,
    Stored,
)
from service.storage.filesystem import FilesystemStorage, copying
from tests.contract.disk import age, make, segments, several
from tests.contract.storage import StorageContract
from tests.contract.storage_values import (
    ALIGN,
    Ledger,
    appended,
    committed,
    content,
    gathered,
    uncommitted,
    unfinished,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def storage(root: Path) -> AsyncIterator[FilesystemStorage]:
    storage = await make(root)
    yield storage
    await storage.close()


class DiskContract(StorageContract):
    """The wiring that both runs of the suite share."""

    durability = "complete"

    @pytest.fixture
    async def storage(self, root: Path) -> AsyncIterator[Storage]:
        self._root = root
        self._open = [await make(root, self.durability)]
        yield self._open[0]
        for storage in self._open:
            await storage.close()

    async def reopened(self, storage: Storage) -> Storage:
        self._open.append(await make(self._root, self.durability))
        return self._open[-1]

    async def shorten(self, storage: Storage, part: Part) -> None:
        segment = self._root / "uploads" / part.key[2:4] / part.key
        os.truncate(segment, part.end - part.start - 1)

    async def age(self, storage: Storage, seconds: float) -> None:
        age(self._root, seconds)


class TestFilesystem(DiskContract):
    """The default durability."""


class TestFilesystemAlways(DiskContract):
    """Synced before each receipt."""

    durability = "always"


class TestFilesystemNone(DiskContract):
    """Never synced."""

    durability = "none"


# one segment, or several


async def test_resumes_go_on_in_one_segment(storage: FilesystemStorage, root: Path) -> None:
    """An upload cut and resumed without leftovers stays one segment and one ledger part."""
    upload_id = new_upload_id()
    ledger: Ledger = ()
    for epoch in range(1, 5):
        ledger = await appended(storage, upload_id, ledger, b"abc", epoch=epoch)

    assert len(ledger) == 1
    assert len(segments(root)) == 1


async def test_finishing_leaves_the_file_and_nothing_else(storage: FilesystemStorage, root: Path) -> None:
    """E3: Segments of every kind, also those no ledger names, are gone once the file is there."""
    upload_id = new_upload_id()
    await uncommitted(storage, upload_id, (), b"WRONG", epoch=1)
    ledger = await appended(storage, upload_id, (), b"abc", epoch=2)
    await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=3)
    ledger = await appended(storage, upload_id, ledger, b"def", epoch=4)
    assert len(segments(root)) == 3
    stored = await storage.complete(upload_id, ledger, epoch=5)

    assert segments(root) == []
    assert await content(storage, stored) == b"abcdef"


async def test_bytes_without_a_receipt_are_given_back(storage: FilesystemStorage, root: Path) -> None:
    """A body that is thrown away before any receipt takes no space and no second segment."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    async with storage.append(upload_id, ledger, epoch=2, align=ALIGN) as writer:
        await writer.write(memoryview(b"WRONG"))

    assert [path.stat().st_size for path in segments(root)] == [3]
    assert len(await appended(storage, upload_id, ledger, b"def", epoch=3)) == 1


async def test_a_first_body_without_a_receipt_leaves_no_segment(storage: FilesystemStorage, root: Path) -> None:
    """A creation whose body is thrown away leaves nothing behind."""
    async with storage.append(new_upload_id(), (), epoch=1, align=ALIGN) as writer:
        await writer.write(memoryview(b"WRONG"))

    assert segments(root) == []


async def test_an_empty_body_leaves_no_segment(storage: FilesystemStorage, root: Path) -> None:
    """A request without bytes makes no file."""
    async with storage.append(new_upload_id(), (), epoch=1, align=ALIGN) as writer:
        await writer.flush(last=True)

    assert segments(root) == []


async def test_finishing_copies_nothing_of_an_upload_in_one_segment(storage: FilesystemStorage, root: Path) -> None:
    """The finished file is the segment itself, renamed."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    before = segments(root)[0].stat().st_ino
    stored = await storage.complete(upload_id, ledger, epoch=1)

    assert (root / "files" / stored.key[2:4] / stored.key).stat().st_ino == before


async def test_what_was_read_back_before_the_end_can_be_read_after_it(storage: FilesystemStorage) -> None:
    """A ledger reads the same bytes once its upload is finished: a crash may ask again."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=2)
    ledger = await appended(storage, upload_id, ledger, b"def", epoch=3)
    await storage.complete(upload_id, ledger, epoch=3)

    assert await gathered(storage.read_upload(ledger, 2, 5)) == b"cde"


async def test_an_upload_that_was_killed_stays_in_one_segment(storage: FilesystemStorage) -> None:
    """After a kill between write and commit, the next writer goes on in place: nothing to copy at the end."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=2)

    async def holds() -> None:
        return None

    async with storage.append(upload_id, ledger, epoch=3, align=ALIGN, fence=holds) as appender:
        await appender.write(memoryview(b"d"))
        ledger = committed(ledger, await appender.flush(last=False))
    assert len(ledger) == 1


async def test_a_late_append_to_a_finished_upload_is_stale(storage: FilesystemStorage) -> None:
    """A writer that comes after the end learns that it was overtaken, not that bytes are lost."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    await storage.complete(upload_id, ledger, epoch=2)

    with pytest.raises(StorageStale):
        await appended(storage, upload_id, ledger, b"def", epoch=1)


@pytest.mark.parametrize("key", ["../../etc/passwd", "u_" + "a" * 26 + ".e1/../x", "", "u_" + "A" * 26 + ".e1"])
async def test_a_foreign_key_reaches_no_path(storage: FilesystemStorage, key: str) -> None:
    """A key that this adapter cannot have made is refused before the file system sees it."""
    with pytest.raises(StorageShort):
        await unfinished(storage, (Part(number=1, start=0, end=1, key=key),))


async def test_drop_refuses_keys_of_another_upload(storage: FilesystemStorage) -> None:
    """A receipt of one upload cannot remove bytes of another."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")

    with pytest.raises(ValueError, match="another upload"):
        await storage.drop(new_upload_id(), [ledger[0].key])
    assert await unfinished(storage, ledger) == b"abc"


async def test_a_reader_may_read_a_deleted_file_to_its_end(storage: FilesystemStorage) -> None:
    """Deleting a file does not disturb who has it open, by descriptor or by read."""
    upload_id = new_upload_id()
    stored = await storage.complete(upload_id, await appended(storage, upload_id, (), b"abc"), epoch=1)
    async with storage.open_file(stored.key) as file:
        await storage.delete(stored.key)

        assert file.fd is not None
        assert os.pread(file.fd, 9, 0) == b"abc"
        assert await gathered(file.read(0, 3)) == b"abc"


async def test_long_reads_come_in_bounded_pieces(storage: FilesystemStorage) -> None:
    """No piece is larger than 1 MiB, whatever the range."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), bytes(2_500_000))

    assert [len(piece) async for piece in storage.read_upload(ledger, 10, 2_500_000)] == [1 << 20, 1 << 20, 402_838]


# the property of sizes and splits

BLOCK = 64
SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7]


async def sent(storage: FilesystemStorage, data: bytes, cuts: list[int], *, crash_at: set[int]) -> tuple[Stored, Any]:
    """Data in requests that end at the cuts, hashed as the service does: no hash state between requests."""
    upload_id = new_upload_id()
    ledger: Ledger = ()
    blocks: list[Block] = []
    hasher = BlockHasher(BLOCK, strong=True)
    edges = sorted({len(data), *(cut % (len(data) + 1) for cut in cuts)})
    offset = 0
    for epoch, edge in enumerate(edges, 1):
        if epoch in crash_at:
            await uncommitted(storage, upload_id, ledger, b"WRONG" * 40, epoch=epoch)
        start = offset - offset % BLOCK
        hasher = BlockHasher(BLOCK, strong=True, first_block=offset // BLOCK)
        async for piece in storage.read_upload(ledger, start, offset):
            hasher.update(memoryview(piece))
        async with storage.append(upload_id, ledger, epoch=epoch, align=ALIGN, observe=hasher.update) as writer:
            await writer.write(memoryview(data)[offset:edge])
            ledger = committed(ledger, await writer.flush(last=edge == len(data)))
        blocks += hasher.take_finished()
        offset = edge
    last = hasher.finish()
    stored = await storage.complete(upload_id, ledger, epoch=len(edges))
    return stored, manifest([*blocks, *([last] if last else [])], len(data), BLOCK)


def in_one_go(data: bytes) -> list[Block]:
    """The blocks of data from one hasher."""
    hasher = BlockHasher(BLOCK, strong=True)
    hasher.update(memoryview(data))
    last = hasher.finish()
    return [*hasher.take_finished(), *([last] if last else [])]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from(SIZES),
    cuts=st.lists(st.integers(0, 4 * BLOCK), max_size=6),
    crash_at=st.sets(st.integers(1, 6), max_size=3),
)
async def test_o3_any_size_in_any_split_is_the_same_file(
    storage: FilesystemStorage, size: int, cuts: list[int], crash_at: set[int]
) -> None:
    """O3: Bytes and manifest depend neither on where requests end nor on what crashed between them."""
    data = bytes(index % 251 for index in range(size))
    stored, made = await sent(storage, data, cuts, crash_at=crash_at)

    assert await content(storage, stored) == data
    assert made == manifest(in_one_go(data), size, BLOCK)


# copying


@pytest.mark.parametrize("way", range(len(copying.WAYS)), ids=[way.__name__ for way in copying.WAYS])
async def test_every_way_to_copy_gives_the_same_bytes(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, way: int
) -> None:
    """Where the kernel cannot copy one way, the next one is taken and the bytes are the same."""

    def cannot(*_: int) -> int:
        raise OSError(errno.EXDEV, "not between these")

    monkeypatch.setattr(copying, "WAYS", (*[cannot] * way, *copying.WAYS[way:]))
    monkeypatch.setattr(copying, "STEP", 4)
    ledger = await several(storage, new_upload_id())
    receipt = await storage.concatenate(new_upload_id(), [ledger, ledger], epoch=1)

    assert await unfinished(storage, receipt.parts) == b"abcdefghi" * 2


async def test_a_cancelled_join_ends_and_leaves_nothing(
    storage: FilesystemStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A concatenation that is cancelled stops between two steps and gives its space back."""
    ledger = await several(storage, new_upload_id())
    before = segments(root)
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def slow(*_: int) -> int:
        if not begun.is_set():
            loop.call_soon_threadsafe(begun.set)
        return 1

    monkeypatch.setattr(copying, "WAYS", (slow,))
    huge = (Part(number=1, start=0, end=3, key=ledger[0].key),) * 1_000_000
    joining = asyncio.ensure_future(storage.concatenate(new_upload_id(), [huge], epoch=1))
    await begun.wait()
    joining.cancel()
    await asyncio.wait({joining})

    assert joining.cancelled()
    assert segments(root) == before


# what is held


async def test_foreign_names_are_not_held(storage: FilesystemStorage, root: Path) -> None:
    """Only files of our names in the place that goes with the name are listed, nothing is left out for them."""
    upload_id, name = new_upload_id(), new_upload_id()
    await appended(storage, upload_id, (), b"abc")
    shard = root / "files" / name[2:4]
    shard.mkdir(exist_ok=True)
    (root / "files" / "zz").mkdir(exist_ok=True)
    wrong_shard = "aa" if name[2:4] != "aa" else "bb"
    (root / "files" / wrong_shard).mkdir(exist_ok=True)
    for path in (
        root / "files" / name,
        root / "files" / wrong_shard / name,
        shard / "README",
        shard / f"{name}.e1",
        shard / f"{name}x",
        root / "uploads" / upload_id[2:4] / f"{upload_id}.backup",
        root / "uploads" / upload_id[2:4] / upload_id,
        root / "uploads" / "22",
        root / "uploads" / "lost+found",
    ):
        if not path.exists():
            path.write_bytes(b"mine")
    (shard / name).mkdir()

    assert [(held.name, held.key, held.size) async for held in storage.held(older_than=-1)] == [(upload_id, None, 3)]
