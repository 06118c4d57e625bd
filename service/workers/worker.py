"""One worker process: its share of the service, and its end of the channel to the supervisor.

It ends when it is told to, on a signal of its own, and when the supervisor is gone: a worker
without one would keep the port and never be replaced.
"""

from __future__ import annotations

import asyncio
import os
import socket
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


def main(job: Job, channel: int, bound: int | None = None) -> None:
    """The life of a worker process.

    Args:
        channel: the descriptor of its end.
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
        self._checking: asyncio.Task[None] | None = None

    async def run(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        channel = await Channel.over(connected)
        start = Start()
        on_signals(start.stop, lambda: os._exit(1))
        listening = asyncio.create_task(self._listen(channel, start))
        try:
            await self._serve(channel, start)
        except CannotStart as error:
            channel.tell("refused", detail=str(error))
        except asyncio.CancelledError:
            if not start.cancelled():
                raise
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
            await channel.close()

    async def _serve(self, channel: Channel, start: Start) -> None:
        async with running(self._settings, share=self._share) as service:
            start.over()
            self._service = service
            channel.tell("started")
            log.info("worker_started")
            beating = asyncio.create_task(_beat(channel))
            try:
                await start.stopped.wait()
                end_by(self._settings.grace + FORCED_SECONDS)
                await service.stop(succeeded=self._succeeded)
            finally:
                self._service = None
                beating.cancel()
        log.info("worker_stopped")

    async def _listen(self, channel: Channel, start: Start) -> None:
        """Does as it is told, until it is told to end or nobody is there any more."""
        async for message in channel.told():
            await self._do(message, channel, start)
        # as if succeeded: whoever starts next finds the address free
        self._succeeded = True
        start.stop()

    async def _do(self, message: dict[str, Any], channel: Channel, start: Start) -> None:
        service = self._service
        match message["kind"]:
            case "drain":
                self._succeeded = bool(message["succeeded"])
                start.stop()
            case "check" if service is not None:
                # by itself: what hangs must not keep a word about the end from being heard
                self._checking = asyncio.create_task(_check(service, channel))
            case "release" if service is not None:
                with suppress(MetadataError):
                    await service.metadata.drop_leases(message["process"])
                    channel.tell("released", process=message["process"])


async def _check(service: Service, channel: Channel) -> None:
    channel.tell("checked", failed=await service.readiness.failed())


async def _beat(channel: Channel) -> None:
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        channel.tell("beat")
