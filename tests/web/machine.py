"""A machine that goes down under a service: another boot, and bytes that are not there any more.

What a stopped service leaves is in the page cache of this machine, which stays up. So a crash here
is a stop that says nothing of synced bytes, another boot id, and damage by the test's own hand.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service import crashes
from service.model import UploadId
from service.storage.base import StorageUnavailable
from tests.web.harness import Site, settings_for, site

KIB = 1024
BLOCK = 64 * KIB


class Machine:
    """Where services run, one after the other or side by side, on one directory."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.boot_id = folder / "boot_id"
        monkeypatch.setattr(crashes, "BOOT_ID", self.boot_id)
        self._boots = 0
        self.reboot()

    def reboot(self) -> None:
        self._boots += 1
        self.boot_id.write_text(f"boot {self._boots}\n")

    @property
    def data(self) -> Path:
        return settings_for(self.folder).data

    @asynccontextmanager
    async def service(self, *, orderly: bool = False, **changes: Any) -> AsyncIterator[Site]:
        """A service that promises what the default durability does. `orderly`: it syncs when it ends."""
        with pytest.MonkeyPatch.context() as patch:
            if not orderly:
                patch.setattr(crashes, "sync_unfinished", _cut_off)
            settings: dict[str, Any] = {"durability": "complete", "block_size": BLOCK} | changes
            async with site(self.folder, **settings) as here:
                yield here

    def segments(self, upload_id: UploadId) -> list[Path]:
        """Where the unfinished upload is."""
        return sorted((self.data / "uploads" / upload_id[2:4]).glob(f"{upload_id}.*"))

    def segment(self, upload_id: UploadId) -> Path:
        (path,) = self.segments(upload_id)
        return path

    def copy_database(self, to: Path) -> None:
        """What a crash that takes all later commits leaves of it; the service must be idle."""
        to.mkdir()
        for path in self._database():
            shutil.copy(path, to)

    def restore_database(self, copy: Path) -> None:
        """The later commits are gone."""
        for path in self._database():
            path.unlink()
        for path in copy.iterdir():
            shutil.copy(path, self.data)

    def _database(self) -> list[Path]:
        """With its log. What readers share besides is made anew."""
        return [path for path in self.data.glob("attachd.db*") if not path.name.endswith("-shm")]


def _cut_off(*_: object) -> None:
    raise StorageUnavailable("the machine went down")


def zero(path: Path, start: int, end: int) -> None:
    """The pages are there, and were never written."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(end - start))
