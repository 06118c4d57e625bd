"""The disk adapter cut off by a crash at any system call, or overtaken between two of them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service.clock import new_upload_id
from service.storage.base import Receipt, StorageStale, Stored
from service.storage.filesystem import appender, layout, publishing
from tests.contract.disk import Calls, Crash, make, segments, several, single
from tests.contract.storage_values import ALIGN, appended, committed, content, unfinished


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("prepare", [single, several])
@pytest.mark.parametrize("stale", [False, True], ids=["alone", "with a stale writer"])
async def test_complete_survives_a_crash_at_every_system_call(root: Path, prepare: Any, stale: bool) -> None:
    """O6: Whatever call a crash cuts `complete` at, a new instance completes it with the right bytes."""
    calls = 0
    while True:
        with pytest.MonkeyPatch.context() as monkeypatch:
            storage = await make(root)
            upload_id = new_upload_id()
            ledger = await prepare(storage, upload_id)
            lock = None
            if stale:
                lock = os.open(root / "uploads" / ledger[0].key[2:4] / ledger[0].key, os.O_RDWR)
                layout.lock(lock)
            fakes = Calls(crash_at=calls)
            fakes.install(monkeypatch)
            crashed = False
            try:
                await storage.complete(upload_id, ledger, epoch=4)
            except Crash:
                crashed = True
            await storage.close()
            if lock is not None:
                os.close(lock)
        again = await make(root)
        stored = await again.complete(upload_id, ledger, epoch=5)
        assert await content(again, stored) == b"abcdefghi", f"crash at call {calls}: {fakes.seen[-1:]}"
        assert segments(root) == [], f"crash at call {calls}"
        await again.close()
        if not crashed:
            break
        calls += 1

    assert calls > 10


async def test_append_survives_a_crash_at_every_system_call(root: Path) -> None:
    """Acknowledged is kept: whatever call a crash cuts an append at, the committed bytes stay and it goes on."""
    calls = 0
    while True:
        with pytest.MonkeyPatch.context() as monkeypatch:
            storage = await make(root, "always")
            upload_id = new_upload_id()
            ledger = await appended(storage, upload_id, (), b"abc")
            fakes = Calls(crash_at=calls)
            fakes.install(monkeypatch)
            crashed = False
            try:
                async with storage.append(upload_id, ledger, epoch=2, align=ALIGN) as writer:
                    await writer.write(memoryview(b"de"))
                    ledger = committed(ledger, await writer.held())
                    await writer.write(memoryview(b"f"))
                    ledger = committed(ledger, await writer.flush(last=True))
            except Crash:
                crashed = True
            await storage.close()
        again = await make(root, "always")
        kept = await unfinished(again, ledger)
        assert kept == b"abcdef"[: len(kept)]
        ledger = await appended(again, upload_id, ledger, b"abcdef"[len(kept) :], b"!", epoch=3)
        stored = await again.complete(upload_id, ledger, epoch=3)
        assert await content(again, stored) == b"abcdef!", f"crash at call {calls}"
        await again.close()
        if not crashed:
            break
        calls += 1

    assert calls > 5


async def test_c5_concatenate_survives_a_crash_at_every_system_call(root: Path) -> None:
    """C5: Whatever call a crash cuts it at, joined again it is right, and leftovers do not add up."""
    storage = await make(root)
    ledger = await several(storage, source := new_upload_id())
    sources = segments(root)
    calls = 0
    while True:
        upload_id = new_upload_id()
        with pytest.MonkeyPatch.context() as monkeypatch:
            fakes = Calls(crash_at=calls)
            fakes.install(monkeypatch)
            crashed = False
            try:
                await storage.concatenate(upload_id, [ledger, ledger], epoch=1)
            except Crash:
                crashed = True
        receipt: Receipt = await storage.concatenate(upload_id, [ledger, ledger], epoch=2)
        assert await unfinished(storage, receipt.parts) == b"abcdefghi" * 2, f"crash at call {calls}"
        await storage.drop(upload_id, receipt.drop)
        assert [path.name for path in segments(root) if path not in sources] == [receipt.parts[0].key]
        await storage.discard(upload_id)
        if not crashed:
            break
        calls += 1

    assert calls > 10
    assert await unfinished(storage, ledger) == b"abcdefghi"
    await storage.discard(source)
    await storage.close()


@pytest.mark.parametrize("who", [appender, publishing], ids=["a writer", "a finisher"])
async def test_whoever_opened_a_segment_before_it_was_published_leaves_the_file_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, who: ModuleType
) -> None:
    """L2: A segment that becomes the file between being opened and being locked is not written to."""
    storage = await make(root)
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc")
    there = layout.Layout(root, layout.Durability.COMPLETE)

    def overtaken(fd: int) -> bool:
        monkeypatch.undo()
        publishing.complete(there, upload_id, ledger, 3, threading.Event())
        return layout.lock(fd)

    monkeypatch.setattr(who, "lock", overtaken)
    if who is appender:
        with pytest.raises(StorageStale):
            await appended(storage, upload_id, ledger, b"WRONG", epoch=2)
    else:
        assert (await storage.complete(upload_id, ledger, epoch=2)).size == 3

    assert await content(storage, Stored(upload_id, 3)) == b"abc"
    assert segments(root) == []
    await storage.close()


def last_of(seen: list[tuple[str, str]], *wanted: tuple[str, str]) -> int:
    """Where the last such call is."""
    return max(index for index, call in enumerate(seen) if call in wanted)


@pytest.mark.parametrize("prepare", [single, several])
@pytest.mark.parametrize("durability", ["complete", "always"])
async def test_o6_a_file_is_synced_before_its_name_and_its_name_before_the_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch, prepare: Any, durability: str
) -> None:
    """O6: Data is synced after its last change and before the rename, both directories after it."""
    storage = await make(root, durability)
    upload_id = new_upload_id()
    ledger = await prepare(storage, upload_id)
    fakes = Calls()
    fakes.install(monkeypatch)
    await storage.complete(upload_id, ledger, epoch=4)
    await storage.close()

    segment = str(root / "uploads" / upload_id[2:4] / ledger[0].key)
    renamed = last_of(fakes.seen, ("rename", segment))
    synced = last_of(fakes.seen, ("fsync", segment))
    changes = [index for index, (name, path) in enumerate(fakes.seen) if path == segment and name == "ftruncate"]
    assert all(index < synced < renamed for index in changes)
    for directory in ("uploads", "files"):
        assert last_of(fakes.seen, ("fsync", str(root / directory / upload_id[2:4]))) > renamed
    removed = [index for index, (name, _) in enumerate(fakes.seen) if name == "unlink"]
    assert all(last_of(fakes.seen, ("fsync", str(root / "files" / upload_id[2:4]))) < index for index in removed)


async def test_o6_a_receipt_follows_the_sync_of_bytes_and_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O6: Under `always` a receipt comes after its bytes, and a new segment's name, were synced."""
    storage = await make(root, "always")
    fakes = Calls()
    fakes.install(monkeypatch)
    upload_id = new_upload_id()
    async with storage.append(upload_id, (), epoch=1, align=ALIGN) as writer:
        await writer.write(memoryview(b"abc"))
        receipt = await writer.held()
        seen = list(fakes.seen)
    await storage.close()

    shard = root / "uploads" / upload_id[2:4]
    segment = str(shard / receipt.parts[0].key)
    assert last_of(seen, ("fdatasync", segment)) > last_of(seen, ("pwrite", segment))
    assert ("fsync", str(shard)) in seen
    assert ("fsync", str(root / "uploads")) in seen


@pytest.mark.parametrize(("durability", "synced"), [("none", set()), ("complete", {"uploads"})])
async def test_appending_syncs_no_bytes_unless_asked(
    root: Path, monkeypatch: pytest.MonkeyPatch, durability: str, synced: set[str]
) -> None:
    """Under `none` nothing is synced; under `complete` an append syncs at most the name of its directory."""
    storage = await make(root, durability)
    fakes = Calls()
    fakes.install(monkeypatch)
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), b"abc", last=True)
    appending = {Path(path).name for name, path in fakes.seen if "sync" in name}
    if durability == "none":
        await storage.complete(upload_id, ledger, epoch=1)
        appending = {path for name, path in fakes.seen if "sync" in name}
    await storage.close()

    assert appending == synced
