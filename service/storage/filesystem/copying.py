"""Bytes from one open file into another, by the kernel where it can. Blocking calls."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Final

from service.storage.base import StorageShort, StorageUnavailable

#: bytes of one call; between two of them the copy can be stopped
STEP: Final = 64 << 20
_BY_HAND_STEP: Final = 1 << 20

#: answers that mean "not between these two files", which the next way may still be able to do
_CANNOT: Final = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTSOCK, errno.EPERM})

#: (source, position, target, position, count) -> bytes copied, 0 at the end of the source
Way = Callable[[int, int, int, int, int], int]


def _in_kernel(source: int, start: int, target: int, at: int, count: int) -> int:
    """On file systems that share extents (XFS, Btrfs) this copies no byte at all."""
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "no copy_file_range")
    return os.copy_file_range(source, target, count, offset_src=start, offset_dst=at)


def _through_pipe(source: int, start: int, target: int, at: int, count: int) -> int:
    os.lseek(target, at, os.SEEK_SET)
    return os.sendfile(target, source, start, count)


def _by_hand(source: int, start: int, target: int, at: int, count: int) -> int:
    piece = memoryview(os.pread(source, min(count, _BY_HAND_STEP), start))
    done = 0
    while done < len(piece):
        done += os.pwrite(target, piece[done:], at + done)
    return done


WAYS: tuple[Way, ...] = (_in_kernel, _through_pipe, _by_hand)


def copy(source: int, start: int, target: int, at: int, count: int, stop: threading.Event) -> None:
    """Bytes [at, at + count) of the target are bytes [start, start + count) of the source.

    Raises:
        StorageShort: permanent; the source ends before that.
        StorageUnavailable: `stop` was set on the way.
        OSError: from the system; the target may hold some of the bytes.
    """
    ways = list(WAYS)
    done = 0
    while done < count:
        if stop.is_set():
            raise StorageUnavailable("the copy was stopped")
        try:
            copied = ways[0](source, start + done, target, at + done, min(STEP, count - done))
        except OSError as error:
            if len(ways) == 1 or error.errno not in _CANNOT:
                raise
            copied = 0
        if copied == 0:
            # Some file systems also answer 0 where they cannot; only the last way is believed.
            if len(ways) == 1:
                raise StorageShort("a segment is shorter than its part")
            ways.pop(0)
        done += copied
