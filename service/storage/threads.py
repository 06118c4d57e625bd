"""Blocking calls off the event loop, without leaving one behind when its task is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """A bounded pool whose calls are over when `run` is, whichever way it ends."""

    def __init__(self, count: int, name: str) -> None:
        self.executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, call: Callable[[], T], *, stop: Callable[[], None] | None = None) -> T:
        """What the call returns.

        Under cancellation a call that has not begun never does, and one that has is waited for
        before CancelledError goes on: it may be using a buffer or descriptor of the caller's.

        Args:
            stop: asks a long call to end early; it is called when the task is cancelled.
        """
        running = self.executor.submit(call)
        result = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            if not running.cancel():
                if stop is not None:
                    stop()
                await _over(result)
            raise

    async def surely(self, call: Callable[[], T]) -> T:
        """What the call returns; it is made, and over, also under cancellation, which goes on after."""
        result = asyncio.wrap_future(self.executor.submit(call))
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            await _over(result)
            raise

    def close(self) -> None:
        """No more calls; the running ones end by themselves."""
        self.executor.shutdown(wait=False)


async def _over(result: asyncio.Future[T]) -> None:
    """Returns when the result is there, whatever it is and however often the task is cancelled."""
    while not result.done():
        try:
            await asyncio.wait({result})
        except asyncio.CancelledError:
            continue
    if not result.cancelled():
        # looked at, so that asyncio does not report as lost what the cancellation overrode
        result.exception()
