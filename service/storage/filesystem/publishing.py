"""Segments become one: a finished file, or the bytes of a concatenation. Blocking calls.

Everything here can be cut by a crash at any system call and made again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress

from service.model import Part, UploadId
from service.storage.base import Receipt, StorageShort, StorageStale, Stored
from service.storage.filesystem.copying import copy
from service.storage.filesystem.layout import JOIN, Durability, Layout, lock, same_file, sync_directory


def complete(layout: Layout, upload_id: UploadId, ledger: Sequence[Part], epoch: int, stop: threading.Event) -> Stored:
    """See `Storage.complete`. In this order: bytes, their sync, the name, its sync, the segments."""
    size = ledger[-1].end if ledger else 0
    target = layout.file(upload_id)
    present = _size_of(target)
    if present and not ledger:
        raise StorageStale("the upload is finished, and its ledger gone")
    if present != size:
        try:
            _publish(layout, upload_id, ledger, epoch, stop)
        except StorageStale:
            # Fine if somebody else got there between our look and our attempt.
            found = _size_of(target)
            if found is not None and found != size:
                raise StorageShort("the finished file is not whole") from None
            if found is None:
                raise
    if layout.durability is not Durability.NONE:
        # Also when the file was there: whoever renamed it may not have come to this.
        sync_directory(target.parent)
        if (layout.uploads / upload_id[2:4]).is_dir():
            sync_directory(layout.uploads / upload_id[2:4])
    remove(layout, (key for key, _ in layout.segments(upload_id)))
    return Stored(upload_id, size)


def _publish(layout: Layout, upload_id: UploadId, ledger: Sequence[Part], epoch: int, stop: threading.Event) -> None:
    size = ledger[-1].end if ledger else 0
    target = layout.file(upload_id)
    layout.shard(target.parent)
    key, fd, held = _base(layout, upload_id, ledger, epoch)
    try:
        for part in ledger:
            if part.end > held:
                _copy_part(layout, part, fd, part.start, stop)
        if os.fstat(fd).st_size != size:
            # what lies behind the ledger's end was never committed (T-0A9)
            os.ftruncate(fd, size)
        if layout.durability is not Durability.NONE:
            os.fsync(fd)
        # Under its lock until it has the final name, so that no writer goes on in it. Whoever
        # opened it before and locks it after finds that it is not what the name leads to.
        try:
            os.rename(layout.segment(key), target)
        except FileNotFoundError:
            raise StorageStale("somebody newer finishes the upload") from None
    except Exception:
        # a full disk gets back what this attempt took
        if held:
            os.ftruncate(fd, held)
        else:
            remove(layout, [key])
        raise
    finally:
        os.close(fd)


def _base(layout: Layout, upload_id: UploadId, ledger: Sequence[Part], epoch: int) -> tuple[str, int, int]:
    """The file that becomes the finished one: key, locked descriptor, how many bytes it has already.

    The first segment, unless somebody who was overtaken still has it open for writing: then a
    fresh one, and everything is copied.
    """
    if ledger:
        first = ledger[0]
        path = layout.segment(first.key)
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            raise layout.gone(upload_id) from None
        try:
            if os.fstat(fd).st_size < first.end:
                raise StorageShort("a segment is shorter than its part")
            if lock(fd) and same_file(fd, path):
                return first.key, fd, first.end
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    remove(layout, _joins(layout, upload_id, epoch))
    key, fd = layout.create(upload_id, epoch, suffix=JOIN)
    return key, fd, 0


def concatenate(
    layout: Layout, upload_id: UploadId, sources: Sequence[Sequence[Part]], epoch: int, stop: threading.Event
) -> Receipt:
    """See `Storage.concatenate`.

    Under way the bytes are in a `.join` segment, which no ledger ever names: one left by a crash
    goes at once, or a few crashes would fill the disk. A whole one may have been committed, so it
    goes only after the commit of this receipt. Those of newer epochs are nobody's business here.
    """
    remove(layout, _joins(layout, upload_id, epoch))
    drop = tuple(sorted(key for key, made_in in layout.segments(upload_id) if made_in <= epoch and JOIN not in key))
    parts = [part for ledger in sources for part in ledger if part.end > part.start]
    if not parts:
        return Receipt(0, drop=drop)

    joining, fd = layout.create(upload_id, epoch, suffix=JOIN)
    try:
        try:
            at = 0
            for part in parts:
                _copy_part(layout, part, fd, at, stop)
                at += part.end - part.start
            if layout.durability is Durability.ALWAYS:
                os.fsync(fd)
            key, place = layout.create(upload_id, epoch)
            os.close(place)
            try:
                os.replace(layout.segment(joining), layout.segment(key))
            except FileNotFoundError:
                raise StorageStale("somebody newer concatenates the upload") from None
        finally:
            os.close(fd)
    except Exception:
        remove(layout, [joining])
        raise
    if layout.durability is Durability.ALWAYS:
        sync_directory(layout.segment(key).parent)
    return Receipt(at, (Part(number=1, start=0, end=at, key=key, epoch=epoch),), drop)


def sync(layout: Layout, ledger: Sequence[Part]) -> None:
    """See `Storage.sync`."""
    for part in ledger:
        fd, _ = layout.open_part(part)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    for shard in {layout.segment(part.key).parent for part in ledger}:
        sync_directory(shard)


def remove(layout: Layout, keys: Iterable[str]) -> None:
    """The segments are gone."""
    for key in keys:
        with suppress(FileNotFoundError):
            os.unlink(layout.segment(key))


def _joins(layout: Layout, upload_id: UploadId, epoch: int) -> list[str]:
    """What earlier attempts left under way, in this epoch and before. Nothing names them."""
    return [key for key, made_in in layout.segments(upload_id) if made_in <= epoch and key.endswith(JOIN)]


def _copy_part(layout: Layout, part: Part, target: int, at: int, stop: threading.Event) -> None:
    source, first = layout.open_part(part)
    try:
        copy(source, first, target, at, part.end - part.start, stop)
    finally:
        os.close(source)


def _size_of(path: os.PathLike[str]) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None
