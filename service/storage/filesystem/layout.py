"""Where things lie under the root, and what the operating system's errors mean. Blocking calls."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from service.model import Part, UploadId, parse_upload_id
from service.storage.base import StorageError, StorageFull, StorageShort, StorageStale, StorageUnavailable

#: ends the name of a segment that is being put together and that no ledger names yet
JOIN: Final = ".join"
_SEGMENT: Final = re.compile(r"(u_[a-z2-7]{26})\.e([0-9]+)(?:-[0-9]+)?(\.join)?")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)


class Durability(StrEnum):
    """What is synced before storage says that it holds bytes (contract, section 5)."""

    COMPLETE = "complete"
    ALWAYS = "always"
    NONE = "none"


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """An OSError inside comes out as the port's error, its cause kept."""
    try:
        yield
    except OSError as error:
        words = f"{doing}: {error.strerror or error}"
        raise (StorageFull(words) if error.errno in _FULL else StorageUnavailable(words)) from error


class Layout:
    """Names to paths and back, and the directories they need."""

    def __init__(self, root: Path, durability: Durability, reserve_bytes: int = 0) -> None:
        self.root = root
        self.uploads = root / "uploads"
        self.files = root / "files"
        self.durability = durability
        self._reserve_bytes = reserve_bytes
        self._made: set[Path] = set()

    def make(self) -> None:
        """The root and the two directories below it exist."""
        for directory in (self.root, self.uploads, self.files):
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        if self.durability is not Durability.NONE:
            sync_directory(self.root)

    def check_there(self) -> None:
        """Raises StorageUnavailable: what `make` makes is not there."""
        if not self.uploads.is_dir() or not self.files.is_dir():
            raise StorageUnavailable("the storage directory is not there; is its disk mounted?")

    def free_bytes(self) -> int:
        """What an unprivileged user may still write, less the reserve; never negative."""
        found = os.statvfs(self.root)
        return max(found.f_bavail * found.f_frsize - self._reserve_bytes, 0)

    def check_room(self, size: int) -> None:
        """Raises StorageFull rather than eat into the reserve."""
        if self._reserve_bytes and size > self.free_bytes():
            raise StorageFull("no room is left but the reserve")

    def file(self, key: str) -> Path:
        """Where the finished file of that key is. Raises StorageShort: the key is none of ours."""
        if parse_upload_id(key) is None:
            raise StorageShort("no file has such a key")
        return self.files / key[2:4] / key

    def segment(self, key: str) -> Path:
        """Where the segment of that key is. Raises StorageShort: the key is none of ours."""
        if not _SEGMENT.fullmatch(key):
            raise StorageShort("no segment has such a key")
        return self.uploads / key[2:4] / key

    def shard(self, directory: Path) -> None:
        """The shard directory exists, and survives a crash of the machine if anything in it does.

        Synced on its first use in this process even if it was there: another process may have
        made it and not come to the sync.
        """
        if directory in self._made:
            return
        with suppress(FileExistsError):
            # not its parents: if the disk is not mounted, nothing may grow in its place
            directory.mkdir(mode=0o750)
        if self.durability is not Durability.NONE:
            sync_directory(directory.parent)
        self._made.add(directory)

    def create(self, upload_id: UploadId, epoch: int, *, suffix: str = "") -> tuple[str, int]:
        """A fresh, locked, empty segment of a name that was not there: its key and descriptor."""
        directory = self.uploads / upload_id[2:4]
        self.shard(directory)
        attempt = 1
        while True:
            key = f"{upload_id}.e{epoch}{f'-{attempt}' if attempt > 1 else ''}{suffix}"
            try:
                fd = os.open(directory / key, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
            except FileExistsError:
                attempt += 1
                continue
            try:
                lock(fd)
            except BaseException:
                os.close(fd)
                raise
            return key, fd

    def segments(self, upload_id: UploadId) -> list[tuple[str, int]]:
        """Keys and epochs of all segments of the upload, in a ledger or not."""
        try:
            with os.scandir(self.uploads / upload_id[2:4]) as entries:
                names = [_SEGMENT.fullmatch(entry.name) for entry in entries]
        except FileNotFoundError:
            return []
        return [(found[0], int(found[2])) for found in names if found and found[1] == upload_id]

    def gone(self, upload_id: UploadId) -> StorageError:
        """Why a segment that a ledger names is not there."""
        if self.file(upload_id).exists():
            return StorageStale("the upload is finished already")
        return self.gone_file()

    def gone_file(self) -> StorageError:
        """Why something that the metadata names is not there: an unmounted disk is no lost file."""
        try:
            self.check_there()
        except StorageUnavailable as error:
            return error
        return StorageShort("it is not there")

    def open_part(self, part: Part) -> tuple[int, int]:
        """A descriptor to read the part from, and the position of its first byte there.

        Where the segment has become the finished file meanwhile, the bytes are read from that:
        what was begun before a crash can be begun again after it.

        Raises:
            StorageShort: permanent; fewer bytes are held than the part says.
        """
        segment = self.segment(part.key)
        upload_id = UploadId(part.key.partition(".")[0])
        try:
            fd, first = os.open(segment, os.O_RDONLY), 0
        except FileNotFoundError:
            try:
                fd, first = os.open(self.file(upload_id), os.O_RDONLY), part.start
            except FileNotFoundError:
                raise self.gone(upload_id) from None
        try:
            if os.fstat(fd).st_size < first + part.end - part.start:
                raise StorageShort("a segment is shorter than its part")
        except BaseException:
            os.close(fd)
            raise
        return fd, first


def mark_of(upload_id: UploadId) -> str:
    """The segment that marks a small file as one without a record: of an epoch that no lease has."""
    return f"{upload_id}.e0"


def is_mark(name: str) -> bool:
    """Whether a segment of that name is one."""
    return name.endswith(".e0")


def segment_of(name: str) -> UploadId | None:
    """The upload that the segment of that name belongs to, None for any other name."""
    found = _SEGMENT.fullmatch(name)
    return UploadId(found[1]) if found else None


def file_of(name: str) -> UploadId | None:
    """The upload that became the finished file of that name, None for any other name."""
    return parse_upload_id(name)


def lock(fd: int) -> bool:
    """Whether the descriptor now has the lock of its file. Closing it gives the lock back."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def same_file(fd: int, path: Path) -> bool:
    """Whether the path still leads to what the descriptor has open."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def sync_directory(directory: Path) -> None:
    """Names in the directory survive a crash of the machine."""
    fd = os.open(directory, os.O_RDONLY | _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
