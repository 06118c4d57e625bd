"""A small file in one call. Blocking calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from service.model import UploadId
from service.storage.base import Stored
from service.storage.filesystem.layout import Durability, Layout, lock, mark_of, sync_directory

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP})


class NoLinks(Exception):
    """The file system gives a file no second name."""


def put(layout: Layout, upload_id: UploadId, data: memoryview) -> Stored:
    """See `Storage.put`. In this order: the mark, bytes, their sync, the mark's sync, the file's name, its sync.

    Raises NoLinks.
    """
    layout.check_room(len(data))
    target, mark = layout.file(upload_id), layout.segment(mark_of(upload_id))
    for directory in (mark.parent, target.parent):
        layout.shard(directory)
    fd = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        try:
            lock(fd)
            done = os.write(fd, data)
            while done < len(data):
                done += os.write(fd, data[done:])
            if layout.durability is not Durability.NONE:
                os.fsync(fd)
                # before the other name: without the mark nobody would know the file for what it is
                sync_directory(mark.parent)
        finally:
            os.close(fd)
        _link(mark, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(mark)
        raise
    if layout.durability is not Durability.NONE:
        sync_directory(target.parent)
    return Stored(upload_id, len(data))


def _link(mark: os.PathLike[str], target: os.PathLike[str]) -> None:
    try:
        os.link(mark, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise NoLinks from error
        raise


def unmark(layout: Layout, upload_ids: Sequence[UploadId]) -> None:
    """See `Storage.recorded`."""
    for upload_id in upload_ids:
        with suppress(FileNotFoundError):
            os.unlink(layout.segment(mark_of(upload_id)))


def remove(layout: Layout, key: str) -> None:
    """See `Storage.delete`."""
    target = layout.file(key)
    unmark(layout, [UploadId(key)])
    with suppress(FileNotFoundError):
        os.unlink(target)
