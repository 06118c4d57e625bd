"""Whether the machine went down under bytes that were not on its disk yet.

The question at a start is whether the kernel is still there that took the bytes. If it is, they
are in its page cache or on the disk, however the processes ended. If it is another boot of the
machine, what no sync covered may be lost, and how the processes ended says nothing about that: a
power cut five seconds after an orderly stop takes the page cache all the same. So each run records
at its start, durably, under which boot it takes bytes that nobody syncs; and what an orderly end
records is not that it was orderly, but that the bytes have been synced since the last one came.
After that, and only then, another boot means nothing. A sync at the end that fails or takes too
long is not recorded: then the next boot costs a look at what is unfinished, and nothing else.

Only durability `complete` on a disk takes such bytes. `always` syncs before it acknowledges, and
`none` has promised nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from service.metadata.base import MetadataError, MetadataStore
from service.settings import Settings
from service.storage.base import StorageError
from service.storage.filesystem import sync_unfinished

log = structlog.get_logger(__name__)

#: where the kernel tells which boot this is; the same in all containers
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: how long a stop may take longer for what the next boot is spared
_SYNC_SECONDS: Final = 2.0


def may_lose_bytes(settings: Settings) -> bool:
    """Whether a crash of the machine may take acknowledged bytes."""
    return settings.storage == "filesystem" and settings.durability == "complete"


@asynccontextmanager
async def run_recorded(
    metadata: MetadataStore, settings: Settings, others: Callable[[], bool] = lambda: False
) -> AsyncIterator[None]:
    """The run of the one process (tree) on the data directory; it writes nothing any more when it is left.

    Args:
        others: whether another service uses the directory: then what that one takes is not synced by this end.

    Raises:
        MetadataError: the run could not be recorded, so it must not take bytes.
    """
    run = secrets.token_hex(8)
    boot = await asyncio.to_thread(_boot_id)
    begun = await metadata.begin_run(run, boot, unsynced=may_lose_bytes(settings))
    if begun.suspects:
        log.warning("uploads_suspected", count=begun.suspects, detail="the machine went down; they are checked")
    try:
        yield
    finally:
        if begun.unsynced and not await asyncio.to_thread(others):
            await _end(metadata, settings, run)


def _boot_id() -> str:
    """A kernel that does not tell is taken for another one each time."""
    try:
        return BOOT_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        return secrets.token_hex(16)


async def _end(metadata: MetadataStore, settings: Settings, run: str) -> None:
    stop = threading.Event()
    too_late = asyncio.get_running_loop().call_later(_SYNC_SECONDS, stop.set)
    try:
        await asyncio.to_thread(sync_unfinished, settings.data, stop)
        await metadata.end_run(run)
    except (StorageError, MetadataError) as error:
        log.info("sync_left_out", reason=str(error))
    finally:
        too_late.cancel()
