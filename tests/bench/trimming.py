"""A file far larger than what a machine writes at full speed, stored without being stored whole.

What it costs to write 4 GiB is mostly the machine's affair: beyond a share of the memory the kernel
holds a writer back until the disk has caught up, and on a virtual machine fresh pages come from the
host. A blocking loop in C pays five times as much per byte then as for 512 MiB. So, to compare
what sizes cost the server, bytes go away again some way behind the end of the file (a hole is punched,
before they are written back), and it never occupies more than a smaller one would.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

#: bytes before the end of a file, and at its beginning, that are left alone: the server may read them again
KEEP: Final = 256 << 20
BEGINNING: Final = 1 << 20
#: bytes that go at once
PIECE: Final = 64 << 20
LOOK_SECONDS: Final = 0.02
#: FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE
_PUNCH: Final = 2 | 1

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Trimmed:
    """Inside the context no file below the directory occupies much more than `keep` bytes.

    Raises, at the end:
        OSError: the file system cannot do it.
        AssertionError: there was no such file, so it has been stored elsewhere, and whole.
    """

    def __init__(self, directory: Path, keep: int = KEEP, piece: int = PIECE) -> None:
        self._directory = directory
        self._keep = keep
        self._piece = piece
        #: by file, up to where it is a hole
        self._done: dict[Path, int] = {}
        self._over = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is not None:
            return
        if self._failure is not None:
            raise self._failure
        assert self._done, f"no large file grew below {self._directory}"

    def trim(self) -> None:
        """What is far enough behind goes now."""
        for path in self._directory.rglob("*"):
            start = self._done.get(path, BEGINNING)
            try:
                end = path.stat().st_size - self._keep
            except FileNotFoundError:
                # finished, and elsewhere by now
                continue
            if end - start >= self._piece and _punch(path, start, end):
                self._done[path] = end

    def _run(self) -> None:
        try:
            while not self._over.wait(LOOK_SECONDS):
                self.trim()
        except OSError as failure:
            self._failure = failure


def _punch(path: Path, start: int, end: int) -> bool:
    """Whether the file was still there."""
    try:
        fd = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return False
    try:
        if _fallocate(fd, _PUNCH, start, end - start):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        return True
    finally:
        os.close(fd)
