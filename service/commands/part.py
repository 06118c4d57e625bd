"""Where `attachd get` puts the bytes: a part file that becomes the file, or standard output."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import xxhash

from service.commands.remote import Gap, GetFailed
from service.model import Manifest


class Target(Protocol):
    """Takes the bytes of gaps, in order within a gap."""

    def gaps(self, manifest: Manifest, checked: Callable[[int], None]) -> list[Gap]:
        """What is missing, in order. Told how far the check of what is there has come."""
        ...

    def held(self, start: int, end: int) -> bytes:
        """Bytes held from before, for the digest of a block that goes on in the middle."""
        ...

    def write(self, position: int, piece: bytes) -> None:
        """The bytes at the position; not verified yet."""
        ...

    def verified(self) -> None:
        """Everything written so far belongs to blocks that are right."""
        ...


class Part:
    """`FILE.part`, which becomes FILE."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream = stream
        self._path = path

    def gaps(self, manifest: Manifest, checked: Callable[[int], None]) -> list[Gap]:
        found: list[Gap] = []
        length = os.fstat(self._stream.fileno()).st_size
        for number, digest in enumerate(manifest.xxh128):
            start = number * manifest.block_size
            end = min(start + manifest.block_size, manifest.size)
            if start < length < end:
                # goes on where it stops; its digest will tell
                found.append(Gap(length, end))
            elif length <= start or xxhash.xxh3_128(self.held(start, end)).digest() != digest:
                found.append(Gap(start, end))
            checked(min(length, end))
        return _joined(found)

    def held(self, start: int, end: int) -> bytes:
        return os.pread(self._stream.fileno(), end - start, start)

    def write(self, position: int, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._stream.fileno(), view, position)
            position, view = position + count, view[count:]

    def verified(self) -> None:
        pass

    def publish(self, final: Path, size: int) -> None:
        """The file is on disk and has its name."""
        self._stream.truncate(size)
        os.fsync(self._stream.fileno())
        self._path.replace(final)
        directory = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class Stream:
    """Standard output: a block goes out once it is verified."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._waiting = bytearray()

    def gaps(self, manifest: Manifest, checked: Callable[[int], None]) -> list[Gap]:
        return [Gap(0, manifest.size)] if manifest.size else []

    def held(self, start: int, end: int) -> bytes:
        return b""

    def write(self, position: int, piece: bytes) -> None:
        self._waiting += piece

    def verified(self) -> None:
        self._stream.write(self._waiting)
        self._stream.flush()
        self._waiting.clear()


def _joined(gaps: list[Gap]) -> list[Gap]:
    """The same bytes in as few gaps as can be."""
    joined: list[Gap] = []
    for gap in gaps:
        if joined and joined[-1].end == gap.start:
            joined[-1] = Gap(joined[-1].start, gap.end)
        else:
            joined.append(gap)
    return joined


@contextmanager
def part_of(final: Path) -> Iterator[Part]:
    """`FILE.part`, for this process alone. Raises GetFailed: another one is writing it."""
    path = final.with_name(final.name + ".part")
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GetFailed(f"{path} is being written by another process") from error
        yield Part(stream, path)
