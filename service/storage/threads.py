"""Blocking calls off the event loop, without leaving one behind when its task is cancelled.

A body of a gigabyte is a thousand such calls. `concurrent.futures` takes a lock, a condition and
two futures for each, which is a third of what a small piece costs in all.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


class _Call:
    """One call, from when it was asked for to when it is over. The loop's, but for `begun`."""

    __slots__ = ("begun", "dropped", "future", "over", "work")

    def __init__(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        #: whoever waits; replaced by a new one when that is cancelled
        self.future = future
        #: set by the thread, before it looks at `dropped`
        self.begun = False
        #: set by the loop, before it looks at `begun`
        self.dropped = False
        self.over = False


class Threads:
    """A bounded pool whose calls are over when `run` is, whichever way it ends. For one event loop."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._started = 0
        #: asked for and not over
        self._pending = 0
        self._closed = False

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """As many threads again, for libraries that want an executor."""
        return ThreadPoolExecutor(self._count, thread_name_prefix=self._name)

    async def run(self, call: Callable[[], T], *, stop: Callable[[], None] | None = None) -> T:
        """What the call returns.

        Under cancellation a call that has not begun never does, and one that has is waited for
        before CancelledError goes on: it may be using a buffer or descriptor of the caller's.

        Args:
            stop: asks a long call to end early; it is called when the task is cancelled.
        """
        asked = self._ask(call)
        try:
            result: T = await asked.future
        except asyncio.CancelledError:
            asked.dropped = True
            if asked.begun:
                if stop is not None:
                    stop()
                await self._end(asked)
            raise
        return result

    async def surely(self, call: Callable[[], T]) -> T:
        """What the call returns; it is made, and over, also under cancellation, which goes on after."""
        asked = self._ask(call)
        try:
            result: T = await asked.future
        except asyncio.CancelledError:
            await self._end(asked)
            raise
        return result

    def close(self) -> None:
        """No more calls; the running ones end by themselves, and so do those that wait."""
        self._closed = True
        for _ in range(self._started):
            self._calls.put(None)
        if "executor" in self.__dict__:
            self.executor.shutdown(wait=False)

    def _ask(self, work: Callable[[], Any]) -> _Call:
        if self._closed:
            raise RuntimeError("the threads are closed")
        loop = asyncio.get_running_loop()
        asked = _Call(work, loop.create_future())
        if self._pending >= self._started and self._started < self._count:
            self._start(loop)
        self._pending += 1
        self._calls.put(asked)
        return asked

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        name = f"{self._name}_{self._started + 1}"
        try:
            # a daemon: a disk that hangs must not keep a process that has given it up
            threading.Thread(target=self._main, args=(loop,), name=name, daemon=True).start()
        except RuntimeError:
            # the machine has no thread to give; the next call asks again
            if not self._started:
                raise
        else:
            self._started += 1

    def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        while (asked := self._calls.get()) is not None:
            asked.begun = True
            result, error = None, None
            if not asked.dropped:
                try:
                    result = asked.work()
                except BaseException as raised:  # noqa: BLE001 - the caller's
                    error = raised
            try:
                loop.call_soon_threadsafe(self._settle, asked, result, error)
            except RuntimeError:
                # the loop is closed: nobody is left who could hear it
                return
            # an idle thread keeps nobody's buffer
            del asked, result, error

    def _settle(self, asked: _Call, result: object, error: BaseException | None) -> None:
        self._pending -= 1
        asked.over = True
        if asked.future.done():
            return
        if error is None:
            asked.future.set_result(result)
        else:
            asked.future.set_exception(error)

    @staticmethod
    async def _end(asked: _Call) -> None:
        """Returns when the call is over, however often the task is cancelled."""
        if asked.over:
            return
        asked.future = asyncio.get_running_loop().create_future()
        while not asked.future.done():
            try:
                await asyncio.wait({asked.future})
            except asyncio.CancelledError:
                continue
        # looked at, so that asyncio does not report as lost what the cancellation overrode
        asked.future.exception()
