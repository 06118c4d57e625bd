"""A crash of the machine at each commit, with every write gone that no sync covered (lesson O6).

A scenario runs once. At each commit the disk is copied as a crash at that moment could leave it, and
each copy is started under another boot: what it claims must be what a client finds there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.metadata.sql import SqlMetadata
from service.storage.filesystem import appender
from tests.contract.buckets import some_bytes
from tests.web.harness import Site
from tests.web.machine import BLOCK, Machine

CONTENT = some_bytes(3 * BLOCK + 3000)
#: where the requests end: in a block, behind one, at the end
ENDS = (BLOCK + 500, 2 * BLOCK + 10, len(CONTENT))
SMALL = b"another upload, whose end syncs the log of the database"
#: commits of what a client is told of; others change leases only
_TOLD = frozenset({"create_upload", "create_ready", "advance", "go_on", "publish"})


@dataclass
class Disk:
    """What is on the disk below `root`, as far as syncs have brought it there."""

    root: Path
    #: by inode, as it was when it was synced last
    contents: dict[int, bytes] = field(default_factory=dict)
    #: by directory, the inodes by name when it was synced last
    names: dict[Path, dict[str, int]] = field(default_factory=dict)
    #: keeps the number of an inode from being given to another file
    pins: dict[int, int] = field(default_factory=dict)

    def synced(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if not path.is_relative_to(self.root):
            return
        if path.is_dir():
            self.names[path] = {entry.name: self._pinned(Path(entry.path)) for entry in os.scandir(path)}
            return
        self.contents[self._pinned(path)] = path.read_bytes()

    def _pinned(self, path: Path) -> int:
        inode = path.stat().st_ino
        if path.is_file() and inode not in self.pins:
            self.pins[inode] = os.open(path, os.O_RDONLY)
        return inode

    def copy(self, to: Path, left: str) -> None:
        """As a crash now leaves it.

        Args:
            left: of bytes that were not synced: `nothing`; or `zeros`, where the length of a file
                came to the disk before its content; or `all`, luckily.
        """
        for folder in ("uploads", "files"):
            if left == "all":
                shutil.copytree(self.root / folder, to / folder)
                continue
            (to / folder).mkdir(parents=True)
            for shard in self.names.get(self.root / folder, {}):
                (to / folder / shard).mkdir()
                for name, inode in self.names.get(self.root / folder / shard, {}).items():
                    content = self.contents.get(inode, b"")
                    if left == "zeros":
                        content = content.ljust(os.fstat(self.pins[inode]).st_size, b"\0")
                    (to / folder / shard / name).write_bytes(content)


class Replay:
    """Copies of the directory at each commit."""

    def __init__(self, disk: Disk, folder: Path, left: str, commits: str) -> None:
        self.disk = disk
        self.copies: list[Path] = []
        self._folder = folder
        self._left = left
        self._commits = commits
        self._durable = folder / "durable.db"

    def committed(self, *, durable: bool, told: bool) -> None:
        """A commit is over; one that was durable took all before it to the disk."""
        if durable:
            self._backup(self._durable)
        if not told:
            return
        copy = self._folder / str(len(self.copies))
        (copy / "var").mkdir(parents=True)
        shutil.copy(self.disk.root / "keys.json", copy / "var")
        self.disk.copy(copy / "var", self._left)
        if self._commits == "all":
            self._backup(copy / "var" / "attachd.db")
        else:
            shutil.copy(self._durable, copy / "var" / "attachd.db")
        self.copies.append(copy)

    def _backup(self, to: Path) -> None:
        with (
            contextlib.closing(sqlite3.connect(self.disk.root / "attachd.db")) as source,
            contextlib.closing(sqlite3.connect(to)) as target,
        ):
            source.backup(target)


@contextlib.contextmanager
def replayed(machine: Machine, folder: Path, left: str, commits: str) -> Iterator[Replay]:
    """Syncs and commits of the services inside are followed."""
    folder.mkdir()
    replay = Replay(Disk(machine.data), folder, left, commits)
    fsync, write = os.fsync, SqlMetadata._write

    def synced(fd: int) -> None:
        fsync(fd)
        replay.disk.synced(fd)

    async def written(store: SqlMetadata, work: Any, *, durable: bool = False) -> Any:
        result = await write(store, work, durable=durable)
        told = isinstance(work, partial) and work.func.__name__ in _TOLD
        await asyncio.to_thread(replay.committed, durable=durable, told=told)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(appender, "_sync", synced)
        patch.setattr(SqlMetadata, "_write", written)
        yield replay
    for fd in replay.disk.pins.values():
        os.close(fd)


async def run_scenario(here: Site) -> str:
    """An upload in three requests, between which another one ends."""
    path = await here.create(len(CONTENT))
    at = 0
    for end in ENDS:
        assert (await here.patch(path, at, CONTENT[at:end])).status == 204
        at = end
        if end != len(CONTENT):
            await here.upload(SMALL)
    assert await here.stored(path) == CONTENT
    return path


@pytest.mark.parametrize(
    ("left", "commits"),
    [("nothing", "all"), ("zeros", "all"), ("nothing", "durable"), ("zeros", "durable"), ("all", "durable")],
)
async def test_O6_a_crash_at_any_commit_claims_nothing_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, commits: str
) -> None:
    """O6: At each commit, with what no sync covered gone or zero, or later commits gone: the file comes out right."""
    machine = Machine(tmp_path, monkeypatch)
    with replayed(machine, tmp_path / "copies", left, commits) as replay:
        async with machine.service() as here:
            path = await run_scenario(here)
    offsets = []
    for copy in replay.copies:
        after = Machine(copy, monkeypatch)
        after.reboot()
        async with after.service() as here:
            offsets.append(await resumed(here, path))
    # the commits of the upload, and twice the one of the other
    assert len(offsets) == 5 + 2
    # the last one is that of a file, which no crash can harm
    assert offsets[-1] == len(CONTENT)
    if left == "all":
        assert set(ENDS[:2]) <= set(offsets)
    else:
        assert [offset for offset in offsets[:-1] if offset] == []


async def resumed(here: Site, path: str) -> int | None:
    """What the service claims to have, None if it does not know of the upload; and that is so."""
    async with asyncio.timeout(30):
        while (answer := await here.head(path)).status == 423:
            await asyncio.sleep(0.01)
    if answer.status == 404:
        return None
    assert answer.status == 200, answer
    if answer.offset < len(CONTENT):
        assert (await here.patch(path, answer.offset, CONTENT[answer.offset :])).status == 204
    assert await here.stored(path) == CONTENT
    return answer.offset
