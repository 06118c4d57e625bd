"""Settings become a policy and two stores: what a service and the commands beside it both need.

A command is given stores that were made by a service: it makes none, migrates nothing and lets go
of nobody's lease, so it may run beside any number of processes, and without one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from service import __version__
from service.clamd import Clamd
from service.clock import Clock, SystemClock, new_question_id
from service.hooks import Hooks
from service.metadata.base import MetadataError
from service.metadata.engine import parse_url
from service.metadata.sql import SqlMetadata
from service.metrics import Metrics
from service.protocol.intents import Policy
from service.scanning import Scanning, ScanRules
from service.setting_types import hide_secrets
from service.settings import Settings
from service.starting import CannotStart, naming
from service.storage.base import Storage
from service.storage.filesystem import FilesystemStorage
from service.tracing import Tracer
from service.web.buffers import BufferPool
from service.webhooks import Webhooks

#: free disk that is left to the database, so that a full disk can be recorded, and given back (lesson D5)
_RESERVE_BYTES: Final = 16 * 2**20
#: of the memory for bytes under way, what request bodies get where parts wait in memory as well
_BODIES_SHARE: Final = 4


def make_policy(settings: Settings) -> Policy:
    return Policy(
        max_size=_most_bytes(settings),
        block_size=settings.block_size,
        strong_hash=settings.strong_hash == "sha256",
        idle_seconds=settings.upload_idle,
        life_seconds=settings.upload_life,
        tombstone_seconds=settings.tombstone,
        quota=settings.quota,
    )


def _most_bytes(settings: Settings) -> int:
    """Of one upload: what is too large to be scanned need not be sent either."""
    scanned = settings.clamd is not None and settings.scan_skipped == "refuse"
    return min(settings.max_size, settings.clamd_max_size) if scanned else settings.max_size


def make_scanning(settings: Settings, storage: Storage, clock: Clock, metrics: Metrics) -> Scanning | None:
    """How files are scanned; None: they are not."""
    if settings.clamd is None:
        return None
    rules = ScanRules(
        most_bytes=settings.clamd_max_size,
        takes_large=settings.scan_skipped == "allow",
        takes_unscanned=settings.scan_failure == "open",
    )
    return Scanning(Clamd(settings.clamd), rules, storage, clock, metrics)


def make_storage(
    settings: Settings, clock: Clock, metrics: Metrics, *, owner: str, settled: bool
) -> tuple[BufferPool, Storage, Callable[[], int]]:
    """Where the bytes are kept; the memory for those that come in; and how much of `buffer_limit` is in use.

    Args:
        owner: the identity of the database.
        settled: whether it knows of bytes that must be there.
    """
    if settings.s3_bucket is None:
        pool = BufferPool(settings.buffer_limit)
        disk = FilesystemStorage(settings.data, durability=settings.durability, reserve_bytes=_RESERVE_BYTES)
        return pool, disk, lambda: pool.used_bytes
    # boto3 is 20 MiB and a quarter of a second that a disk does not need
    from service.storage.s3 import Memory, S3Storage, options_of  # noqa: PLC0415

    pool = BufferPool(settings.buffer_limit // _BODIES_SHARE)
    memory = Memory(settings.buffer_limit - pool.limit_bytes)
    bucket = S3Storage(
        options_of(settings),
        clock,
        memory,
        most_bytes=settings.max_size,
        part_bytes=settings.s3_part_size,
        owner=owner,
        settled=settled,
        watch=partial(metrics.storage_request, S3Storage.name),
    )
    return pool, bucket, lambda: pool.used_bytes + memory.used


def make_webhooks(settings: Settings, clock: Clock, *, connections: int) -> Webhooks:
    """Who posts to the addresses of the settings, to be closed. Connections are made as they are needed."""
    return Webhooks(clock, agent=f"attachd/{__version__}", networks=settings.webhook_networks, connections=connections)


def make_tracer(settings: Settings, stack: contextlib.AsyncExitStack) -> Tracer | None:
    """What sends traces until the stack is left, if it is wanted. Raises CannotStart without its packages."""
    if settings.otlp_endpoint is None:
        return None
    try:
        # optional, and a tenth of a second of imports
        from service.otlp import OtlpTracer  # noqa: PLC0415
    except ImportError as error:
        raise CannotStart(f"ATTACHD_OTLP_ENDPOINT: needs `pip install 'attachd[otel]'`: {error}") from error
    tracer = OtlpTracer(settings.otlp_endpoint, __version__)
    stack.push_async_callback(tracer.close)
    return tracer


def make_hooks(
    settings: Settings, clock: Clock, metrics: Metrics, stack: contextlib.AsyncExitStack, *, connections: int = 64
) -> Hooks:
    """What asks the backend, until the stack is left. The connections bound how many clients wait for it at once."""
    sender = make_webhooks(settings, clock, connections=connections)
    stack.push_async_callback(sender.close)
    return Hooks(sender, settings.hooks, clock, metrics, new_question_id)


def storage_setting(settings: Settings) -> str:
    """What is to blame for trouble with the storage; with S3 its words tell which setting or AWS variable is."""
    return "ATTACHD_STORAGE=s3" if settings.storage == "s3" else "ATTACHD_DATA"


@dataclass(frozen=True, slots=True)
class Stores:
    """Both, open."""

    metadata: SqlMetadata
    storage: Storage
    clock: Clock
    metrics: Metrics


@contextlib.asynccontextmanager
async def opened(settings: Settings, *, look: bool, read_only: bool) -> AsyncIterator[Stores]:
    """The stores of a service, for a command.

    Args:
        look: nothing is changed in the storage.
        read_only: nor in the database.

    Raises:
        CannotStart: one of them is not there, not usable, or not the other's; says why.
    """
    clock, metrics = SystemClock(), Metrics(__version__)
    async with contextlib.AsyncExitStack() as stack:
        with naming("ATTACHD_DATABASE", hide_secrets(settings.database_url)):
            await asyncio.to_thread(_check_there, settings)
            metadata = SqlMetadata(settings.database_url, durability=settings.durability, read_only=read_only)
            stack.push_async_callback(metadata.close)
            await metadata.open()
            owner = await metadata.identity()
        # a place without an owner is claimed by a service alone
        _, storage, _ = make_storage(settings, clock, metrics, owner=owner, settled=True)
        stack.push_async_callback(storage.close)
        with naming(storage_setting(settings)):
            await storage.open(look=look)
        yield Stores(metadata, storage, clock, metrics)


def _check_there(settings: Settings) -> None:
    """Raises MetadataError: SQLite would make a database that is not there."""
    url = parse_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise MetadataError("there is no such database; a service makes it at its first start")
