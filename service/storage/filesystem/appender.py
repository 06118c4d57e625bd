"""One request's writes to one upload."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from service.model import Part, UploadId
from service.storage.base import Fence, Observer, Receipt, StorageError, StorageShort, StorageUnavailable
from service.storage.filesystem.layout import Durability, Layout, lock, same_file, sync_directory, translated
from service.storage.threads import Threads

# data and what is needed to find it again; macOS has fsync only
_sync = getattr(os, "fdatasync", os.fsync)


class DiskAppender:
    """Writes at the end of one locked segment; made by `FilesystemStorage.append`.

    The segment is opened, or a fresh one made, in the thread call that writes the first bytes, so
    that an empty body leaves nothing behind; and given up in the one that writes the last. Nobody
    waits for the commit with the lock: whoever gets it meanwhile has a newer lease, by which that
    commit fails, and may write over what it would have told of; or has none (`extend`), and leaves
    alone what is behind the end that it knows.

    After an error of `write`, `held` counts every byte that the system took, which can be a part
    of the buffer, while the observer has seen the whole buffer: whoever keeps hash state throws
    it away and reads back from the last block's start. Further writes are refused.
    """

    def __init__(
        self,
        layout: Layout,
        writers: Threads,
        syncers: Threads,
        upload_id: UploadId,
        ledger: Sequence[Part],
        *,
        epoch: int,
        observe: Observer | None,
        fence: Fence | None,
    ) -> None:
        self._layout = layout
        self._writers = writers
        self._syncers = syncers
        self._upload_id = upload_id
        self._epoch = epoch
        self._observe = observe
        self._fence = fence
        self._last: Final = ledger[-1] if ledger else None
        #: the part that the next receipt names; it has no bytes of ours yet
        self._part = Part(number=len(ledger) + 1, start=self._last.end if self._last else 0, end=0, key="", epoch=epoch)
        self._offset: Final = self._part.start
        #: whether the ledger's last segment has been looked at
        self._placed = self._last is None
        self._fd: int | None = None
        #: the ledger's last segment, locked, while it is open whether it may be gone on in
        self._held_fd: int | None = None
        self._written = 0
        self._synced = 0
        self._receipted = 0
        self._named = False
        self._failed = False
        self._lost = False
        #: whether the last write was made
        self._over = False

    def _go_on(self) -> None:
        """Takes the ledger's last segment, if it can be gone on in. Blocking.

        It can if nobody else has it open for writing and it ends where the ledger ends. Bytes
        behind that may have been committed meanwhile by somebody newer: only the fence lets them
        be written over.
        """
        last = self._last
        if last is None:
            return
        path = self._layout.segment(last.key)
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            raise self._layout.gone(self._upload_id) from None
        try:
            locked = lock(fd)
            # looked at under the lock, so that it stays true
            surplus = os.fstat(fd).st_size - (last.end - last.start)
            if surplus < 0:
                raise StorageShort("a segment is shorter than its part")
            if locked and not same_file(fd, path):
                raise self._layout.gone(self._upload_id)
        except BaseException:
            os.close(fd)
            raise
        if not locked:
            os.close(fd)
            return
        self._held_fd = fd
        if surplus == 0:
            self._trust()

    def _trust(self) -> None:
        """Nobody newer has written to the segment, so what is behind the ledger's end is nobody's."""
        fd, self._held_fd = self._held_fd, None
        if fd is not None and self._last is not None:
            self._fd = fd
            self._named = True
            self._part = replace(self._last, epoch=self._epoch)

    async def write(self, data: memoryview, *, last: bool = False) -> None:
        """See `Appender.write`. One thread call as a rule: placed, observed, written, synced, given up."""
        if self._failed or self._over:
            raise StorageUnavailable("an earlier write failed, or was the last; append anew")
        if not data or await self._writers.run(lambda: self._place_and_write(data, last=last)):
            return
        if self._fence is not None:
            await self._fence()
            self._trust()
        await self._writers.run(lambda: self._write(data, last=last))

    def _place_and_write(self, data: memoryview, *, last: bool) -> bool:
        """Whether it was written: where to, the fence may have to say first."""
        if not self._placed:
            with translated("opening a segment"):
                self._go_on()
            self._placed = True
            if self._held_fd is not None:
                return False
        self._write(data, last=last)
        return True

    def _write(self, data: memoryview, *, last: bool) -> None:
        try:
            if self._observe is not None:
                self._observe(data)
            with translated("writing"):
                self._layout.check_room(len(data))
                if self._fd is None:
                    key, self._fd = self._layout.create(self._upload_id, self._epoch)
                    self._part = replace(self._part, key=key)
                at = self._offset - self._part.start
                done = 0
                while done < len(data):
                    count = os.pwrite(self._fd, data[done:], at + self._written)
                    done += count
                    self._written += count
            if last:
                self._over = True
                if self._layout.durability is Durability.ALWAYS:
                    self._sync()
                fd, self._fd = self._fd, None
                with translated("writing"):
                    os.close(fd)
        except BaseException:
            self._failed = True
            raise

    def extend(self, data: memoryview) -> Receipt | None:
        """See `Storage.extend`. Blocking."""
        try:
            with translated("opening a segment"):
                self._go_on()
            if self._fd is None:
                return None
            self._write(data, last=True)
            return self._receipt(self._written)
        finally:
            self._close()

    async def held(self) -> Receipt:
        """See `Appender.held`."""
        written = self._written
        if self._synced < written and self._layout.durability is Durability.ALWAYS:
            await self._syncers.run(self._sync)
        return self._receipt(written)

    async def flush(self, *, last: bool) -> Receipt:
        """See `Appender.flush`."""
        return await self.held()

    def _sync(self) -> None:
        if self._lost:
            raise StorageUnavailable("an earlier sync failed; append anew")
        written = self._written
        try:
            with translated("syncing"):
                if self._fd is not None:
                    _sync(self._fd)
                if not self._named:
                    sync_directory(self._layout.segment(self._part.key).parent)
                    self._named = True
        except StorageError:
            # The kernel reports a lost page once: a second sync would succeed and promise nothing.
            self._lost = self._failed = True
            raise
        self._synced = written

    def _receipt(self, written: int) -> Receipt:
        self._receipted = max(self._receipted, written)
        if not written:
            return Receipt(self._offset)
        end = self._offset + written
        return Receipt(end, (replace(self._part, end=end),))

    async def close(self) -> None:
        """The lock and the descriptor are given back, and bytes that no receipt named with them."""
        left = self._written and not self._receipted and self._part.start == self._offset
        if self._fd is not None or self._held_fd is not None or left:
            await self._writers.surely(self._close)

    def _close(self) -> None:
        if self._held_fd is not None:
            os.close(self._held_fd)
            self._held_fd = None
        fd, self._fd = self._fd, None
        # Only courtesies to the disk and to the next writer, who copes without them.
        with suppress(OSError):
            if self._part.key and not self._receipted and self._part.start == self._offset:
                os.unlink(self._layout.segment(self._part.key))
            elif fd is not None and self._written > self._receipted:
                os.ftruncate(fd, self._offset - self._part.start + self._receipted)
        if fd is not None:
            with suppress(OSError):
                os.close(fd)
