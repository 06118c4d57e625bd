"""A small file in one call. Blocking calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from service.model import UploadId
from service.storage.base import Stored
from service.storage.filesystem.layout import Durability, Layout, sync_directory

#: of the segment that is the mark; an upload that is recorded later begins with higher ones
_EPOCH = 0


def put(layout: Layout, upload_id: UploadId, data: memoryview) -> Stored:
    """See `Storage.put`. In this order: the mark, bytes, their sync, the file's name, the names' sync."""
    layout.check_room(len(data))
    target = layout.file(upload_id)
    layout.shard(target.parent)
    key, fd = layout.create(upload_id, _EPOCH)
    mark = layout.segment(key)
    try:
        done = os.write(fd, data)
        while done < len(data):
            done += os.write(fd, data[done:])
        if layout.durability is not Durability.NONE:
            os.fsync(fd)
        os.link(mark, target)
        if layout.durability is not Durability.NONE:
            # the mark's name first: without it nobody would know the file for what it is
            sync_directory(mark.parent)
            sync_directory(target.parent)
    except BaseException:
        for path in (target, mark):
            with suppress(OSError):
                os.unlink(path)
        raise
    finally:
        os.close(fd)
    return Stored(upload_id, len(data))


def unmark(layout: Layout, upload_ids: Sequence[UploadId]) -> None:
    """See `Storage.recorded`."""
    for upload_id in upload_ids:
        with suppress(FileNotFoundError):
            os.unlink(layout.segment(f"{upload_id}.e{_EPOCH}"))


def remove(layout: Layout, key: str) -> None:
    """See `Storage.delete`."""
    target = layout.file(key)
    unmark(layout, [UploadId(key)])
    with suppress(FileNotFoundError):
        os.unlink(target)
