"""The whole service in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import structlog

from service import __version__
from service.crashes import may_lose_bytes
from service.runtime import Claim, running
from service.settings import Settings
from service.workers.ending import FORCED_SECONDS, Start, end_by, on_signals, succeeded

log = structlog.get_logger(__name__)


async def serve(settings: Settings, *, beside: bool, ready: Callable[[Claim], None]) -> None:
    """Runs until SIGTERM or SIGINT, then drains; a second signal ends the process at once.

    During the start one signal ends it. Only for a process of its own: soon after the grace the
    process ends whatever still hangs in it.

    Args:
        beside: see `runtime.claimed`.
        ready: called once it serves.

    Raises:
        CannotStart: says why.
    """
    start = Start()
    on_signals(start.stop, lambda: os._exit(1))
    try:
        async with running(settings, beside=beside) as service:
            start.over()
            log.info("service_started", version=__version__, listen=str(service.public), ops=str(service.operations))
            ready(service.claim)
            await start.stopped.wait()
            # what the next boot is spared is synced at the end
            end_by(settings.grace + FORCED_SECONDS * (1 + may_lose_bytes(settings)))
            await service.stop(succeeded=await succeeded(service.claim.directory))
    except asyncio.CancelledError:
        if not start.cancelled():
            raise
    log.info("service_stopped")
