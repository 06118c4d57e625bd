"""Bytes that no sync covered: brought to the disk at an orderly end, looked for after a crash. Blocking calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from service.model import Part, UploadId
from service.storage.base import StorageStale, StorageUnavailable
from service.storage.filesystem.layout import Durability, Layout, segment_of, sync_directory, translated
from service.storage.filesystem.listing import shards

_SYNCS_AT_ONCE: Final = 16


class Seen(NamedTuple):
    """A file at one moment: not the same where it was replaced, renamed or written to since."""

    inode: int
    changed: int
    size: int


def sync_unfinished(root: Path, stop: threading.Event) -> None:
    """All that is held of unfinished uploads survives a crash of the machine.

    Every segment is synced, whoever wrote it and when. Shards side by side: the file system joins
    syncs that come at once, which makes thousands of small ones ten times as fast.

    Raises:
        StorageUnavailable: worth a retry; `stop` was set on the way, or a sync failed.
    """
    uploads = Layout(root, Durability.COMPLETE).uploads
    with translated("syncing"), ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        for _ in pool.map(partial(_sync_shard, stop=stop), shards(uploads)):
            pass
        sync_directory(uploads)


def _sync_shard(shard: Path, stop: threading.Event) -> None:
    with os.scandir(shard) as entries:
        segments = [entry.path for entry in entries if segment_of(entry.name) is not None]
    for path in segments:
        if stop.is_set():
            raise StorageUnavailable("the sync was stopped")
        _sync(path)
    sync_directory(shard)


def _sync(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        # finished or discarded meanwhile
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def look(layout: Layout, upload_id: UploadId) -> Seen | None:
    """The finished file of the upload as it is now, None if there is none."""
    try:
        found = layout.file(upload_id).stat()
    except FileNotFoundError:
        return None
    return Seen(found.st_ino, found.st_ctime_ns, found.st_size)


def salvage(layout: Layout, upload_id: UploadId, ledger: Sequence[Part], file: Seen | None) -> tuple[Part, ...]:
    """See `Salvage`.

    Args:
        file: as it was before the fence. Whoever slept since, while somebody newer published the
            upload, finds another one, or this one changed, and leaves it alone.
    """
    if not layout.uploads.is_dir() or not layout.files.is_dir():
        # an unmounted disk has lost nothing
        raise layout.gone_file()
    if look(layout, upload_id) != file:
        raise StorageStale("somebody newer finishes the upload")
    if file is not None:
        ledger = _unpublished(layout, upload_id, tuple(ledger), file.size)
    held: list[Part] = []
    for part in ledger:
        length = min(_size_of(layout.segment(part.key)) or 0, part.end - part.start)
        if length:
            held.append(replace(part, end=part.start + length))
        if part.start + length < part.end:
            break
    return tuple(held)


def _unpublished(layout: Layout, upload_id: UploadId, ledger: tuple[Part, ...], size: int) -> tuple[Part, ...]:
    """The finished file is the one segment again.

    It was whole and synced before it got its name: `complete` came to its end, and the crash took
    the commits since.
    """
    file = layout.file(upload_id)
    if not ledger or size < ledger[-1].end:
        os.unlink(file)
        return ledger
    segment = layout.segment(ledger[0].key)
    layout.shard(segment.parent)
    os.replace(file, segment)
    return (replace(ledger[0], end=ledger[-1].end),)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
