"""What the disk adapter's tests share: a store, its segments, ledgers, and an `os` that fails or dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.model import UploadId
from service.storage.filesystem import FilesystemStorage, appender, copying, layout, publishing
from tests.contract.storage_values import (
    Ledger,
    appended,
    uncommitted,
)

MODULES = (appender, copying, layout, publishing)


def segments(root: Path) -> list[Path]:
    """Every file below uploads/."""
    return sorted(path for path in (root / "uploads").rglob("*") if path.is_file())


def age(root: Path, seconds: float) -> None:
    """Every file below the root was last changed so much earlier."""
    for path in root.rglob("*"):
        if path.is_file():
            changed = path.stat().st_mtime - seconds
            os.utime(path, (changed, changed))


async def make(root: Path, durability: str = "complete") -> FilesystemStorage:
    """An opened adapter; pytest's own temporary directory is its disk."""
    storage = FilesystemStorage(root, durability=durability, threads=2)
    await storage.open()
    return storage


async def several(storage: FilesystemStorage, upload_id: UploadId) -> Ledger:
    """A ledger of three segments and their leftovers."""
    ledger: Ledger = ()
    for epoch, piece in enumerate((b"abc", b"def", b"ghi"), 1):
        await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=epoch)
        ledger = await appended(storage, upload_id, ledger, piece, epoch=epoch)
    assert len(ledger) == 3
    return ledger


async def single(storage: FilesystemStorage, upload_id: UploadId) -> Ledger:
    """A ledger of one segment with a leftover behind it."""
    ledger = await appended(storage, upload_id, (), b"abcdefghi")
    await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=2)
    return ledger


class Crash(BaseException):
    """The process is no more."""


@dataclass
class Calls:
    """Stands in for `os` in the adapter: counts and records what changes the disk, fails on request.

    After a crash every call raises, as a dead process makes none, but for `close`: the system
    closes what a dead process had open, and gives its locks back.
    """

    names: frozenset[str] = frozenset(
        {
            "open", "pwrite", "ftruncate", "fsync", "fdatasync", "rename", "replace", "unlink",
            "copy_file_range", "sendfile", "stat", "fstat", "scandir", "lseek", "pread",
        }
    )  # fmt: skip
    crash_at: int | None = None
    seen: list[tuple[str, str]] = field(default_factory=list)
    failures: dict[tuple[str, int], OSError] = field(default_factory=dict)
    dead: bool = False

    def fail_at(self, name: str, nth: int, error: OSError) -> None:
        """The nth call of that name fails."""
        self.failures[name, nth] = error

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The adapter's modules call this instead of `os`."""
        for module in MODULES:
            monkeypatch.setattr(module, "os", self)
        monkeypatch.setattr(appender, "_sync", self.fdatasync)

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._watched(name, real) if name in self.names else real

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead or len(self.seen) == self.crash_at:
                self.dead = True
                raise Crash
            self.seen.append((name, self._path(args[0])))
            failure = self.failures.get((name, sum(seen == name for seen, _ in self.seen)))
            if failure is not None:
                raise failure
            return real(*args, **kwargs)

        return call

    @staticmethod
    def _path(target: Any) -> str:
        return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
