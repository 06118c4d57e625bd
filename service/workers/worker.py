"""One worker process: its share of the service, and its end of the channel to the supervisor.

It ends when it is told to, and when the supervisor is gone: a worker without one would keep the
port and never be replaced. A signal of its own it passes on: only the supervisor knows whether the
whole service stops, or others are there for new connections.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from service import logs, metrics
from service.metadata.base import MetadataError
from service.runtime import Service, Share, running
from service.settings import Settings
from service.starting import CannotStart
from service.workers.channel import Channel
from service.workers.ending import FORCED_SECONDS, Start, end_by, on_signals

log = structlog.get_logger(__name__)

BEAT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """What a supervisor hands to a new worker."""

    #: from 0; no two that live have the same
    number: int
    #: see `Share.process`
    process: str
    #: with the addresses that are really bound
    settings: Settings
    #: where it counts what `/metrics` sums
    directory: str


def main(job: Job, channel: int, lock: int, bound: int | None = None) -> None:  # noqa: ARG001 - it is just held
    """The life of a worker process.

    Args:
        channel: the descriptor of its end.
        lock: that of `DataDirectory.lock`, which is open as long as the process lives.
        bound: that of the Unix socket to accept from; none where the address is a port.
    """
    import uvloop  # noqa: PLC0415 - does not exist on Windows

    metrics.count_as(job.number)
    logs.configure(job.settings.log_format, job.settings.log_level, worker=job.number)
    share = Share(job.process, None if bound is None else socket.socket(fileno=bound))
    uvloop.run(_Worker(job.settings, share).run(socket.socket(fileno=channel)))


class _Worker:
    def __init__(self, settings: Settings, share: Share) -> None:
        self._settings = settings
        self._share = share
        self._succeeded = False
        self._service: Service | None = None
        #: what messages have begun, by what they asked for: one that hangs must not keep others from being heard
        self._doing: dict[str, asyncio.Task[None]] = {}

    async def run(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        channel = await Channel.over(connected)
        start = Start()
        on_signals(lambda: channel.tell("signalled"), lambda: os._exit(1))
        beating = asyncio.create_task(_beat(channel))
        listening = asyncio.create_task(self._listen(channel, start))
        try:
            await self._serve(channel, start)
        except CannotStart as error:
            channel.tell("refused", detail=str(error))
        except asyncio.CancelledError:
            if not start.cancelled():
                raise
        finally:
            tasks = [listening, beating, *self._doing.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await channel.close()

    async def _serve(self, channel: Channel, start: Start) -> None:
        async with running(self._settings, share=self._share) as service:
            start.over()
            self._service = service
            channel.tell("started")
            log.info("worker_started")
            try:
                await start.stopped.wait()
                end_by(self._settings.grace + FORCED_SECONDS)
                await service.stop(succeeded=self._succeeded)
            finally:
                self._service = None
        log.info("worker_stopped")

    async def _listen(self, channel: Channel, start: Start) -> None:
        """Does as it is told, until it is told to end or nobody is there any more."""
        async for message in channel.told():
            self._do(message, channel, start)
        # as if succeeded: whoever starts next finds the address free
        self._end(start, succeeded=True)

    def _do(self, message: dict[str, Any], channel: Channel, start: Start) -> None:
        service = self._service
        match message["kind"]:
            case "drain":
                self._end(start, succeeded=bool(message["succeeded"]))
            case "check" if service is not None:
                self._begin("check", _check(service, channel))
            case "release" if service is not None:
                process = message["process"]
                self._begin(process, _release(service, channel, process))

    def _end(self, start: Start, *, succeeded: bool) -> None:
        """It ends, or goes on ending, now with somebody to leave new connections to."""
        if succeeded and self._service is not None:
            self._begin("make way", self._service.make_way())
        self._succeeded |= succeeded
        start.stop()

    def _begin(self, what: str, doing: Coroutine[Any, Any, None]) -> None:
        """It is done, if it is not under way."""
        if what in self._doing:
            doing.close()
            return
        task = self._doing[what] = asyncio.create_task(doing)
        task.add_done_callback(lambda _done: self._doing.pop(what, None))


async def _check(service: Service, channel: Channel) -> None:
    channel.tell("checked", failed=await service.readiness.failed())


async def _release(service: Service, channel: Channel, process: str) -> None:
    """Frees the leases of a process that died; the supervisor asks again, perhaps another one, if that fails."""
    with suppress(MetadataError):
        await service.metadata.drop_leases(process)
        channel.tell("released", process=process)


async def _beat(channel: Channel) -> None:
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        channel.tell("beat")
