"""Tells those who wait in this process that an upload or a file has changed.

A hint, never the truth: whoever wakes reads the metadata store again. Another process's change is
not heard, so waiters also look by themselves now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """Remembers whether something changed since the last `wait`, so no change falls between two looks."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def wait(self, timeout: float) -> bool:
        """True once something changed since the last wait; False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Changes:
    """In-process notification by key; a key is an upload id or a file id. For one event loop."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}

    def changed(self, key: str) -> None:
        """Everyone who watches the key looks again. Costs nothing if nobody does."""
        for watch in self._watches.get(key, ()):
            watch.wake()

    @contextmanager
    def watch(self, key: str) -> Iterator[Watch]:
        """A Watch that misses nothing from here on: enter, read the store, then wait."""
        watch = Watch()
        self._watches.setdefault(key, set()).add(watch)
        try:
            yield watch
        finally:
            watches = self._watches[key]
            watches.discard(watch)
            if not watches:
                del self._watches[key]

    async def wait(self, key: str, timeout: float) -> bool:
        """True once the key changed from now on; False after `timeout` seconds."""
        with self.watch(key) as watch:
            return await watch.wait(timeout)
