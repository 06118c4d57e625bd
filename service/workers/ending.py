"""How a process is told to end, and how it is sure to."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from service.directory import DataDirectory

log = structlog.get_logger(__name__)

#: after the grace, whatever still keeps the process up (a disk or a database that hangs) is left behind
FORCED_SECONDS: Final = 2.0
#: a signal to a process group comes twice where `make` or a shell passes it on
ONE_SIGNAL_SECONDS: Final = 0.5
_DISK_SECONDS: Final = 1.0


def on_signals(asked: Callable[[], None], insisted: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT calls one, each that comes later the other. For the running loop."""
    loop = asyncio.get_running_loop()
    first: float | None = None

    def on_signal() -> None:
        nonlocal first
        if first is None:
            first = loop.time()
            asked()
        elif loop.time() - first > ONE_SIGNAL_SECONDS:
            insisted()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


async def succeeded(directory: DataDirectory) -> bool:
    """Tells others that this service drains. Whether one of them has its place: a disk that hangs tells nothing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISK_SECONDS):
            return await asyncio.to_thread(directory.drains)
    return False


def end_by(seconds: float, last: Callable[[], None] | None = None) -> None:
    """The process has ended by then, which costs nothing that was promised: a kill does not either.

    Args:
        last: called before, in a thread of its own.
    """

    def end() -> None:
        log.error("stop_forced", seconds=seconds)
        try:
            if last is not None:
                last()
        finally:
            os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


class Start:
    """A start that one word ends: nobody is served yet. Enter it where the start begins.

    Once it has been left, `stop` only sets `stopped`.
    """

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self._starting = asyncio.current_task()

    def stop(self) -> None:
        """The start is cancelled, or who waits for `stopped` goes on."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        if self._starting is not None:
            # a thread of the start's may hang on
            end_by(FORCED_SECONDS)
            self._starting.cancel()

    def over(self) -> None:
        """The start went well."""
        self._starting = None

    def cancelled(self) -> bool:
        """Whether a cancellation that was caught just now was `stop`'s, which is then dealt with."""
        if self._starting is None or not self.stopped.is_set():
            return False
        self._starting.uncancel()
        return True
