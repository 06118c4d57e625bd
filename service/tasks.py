"""Work that runs on although whoever asked for it has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Tasks:
    """The running ones, so that a stop can wait for them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """The work runs by itself."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def drive(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns; it runs to its end even if the caller is cancelled meanwhile."""
        return await asyncio.shield(self.spawn(work))

    async def drain(self) -> None:
        """Returns once nothing runs."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def end(self, seconds: float) -> None:
        """As `drain`, but what is not over after so many seconds is cancelled, and given as many to clean up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.drain()
        if not self._running:
            return
        log.warning("tasks_cancelled", count=len(self._running))
        for task in self._running:
            task.cancel()
        await asyncio.wait(set(self._running), timeout=seconds)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # whoever still waits for the task gets it too; nobody may, if the client is gone
            log.debug("task_failed", error=repr(task.exception()))
