"""Settings become a running service: the only place that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from service import __version__
from service.changes import Changes
from service.claiming import Claiming
from service.clock import Clock, SystemClock, new_event_id
from service.downloads import Downloads
from service.events import EventMaker
from service.files import Files
from service.finishing import Finisher
from service.gate import Gate
from service.janitor import Janitor
from service.keyfile import KeyFile
from service.leases import Leases
from service.lookup import Lookup
from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from service.metrics import Metrics
from service.protocol.intents import Policy
from service.protocol.tus import discovery
from service.receiving import Receiver
from service.setting_types import Address, TcpAddress, UnixAddress
from service.settings import Settings
from service.settling import Settling
from service.storage.filesystem import FilesystemStorage
from service.storage.wrappers import MeteredStorage
from service.tasks import Tasks
from service.uploads import Uploads
from service.web.app import make_app
from service.web.body import Bodies
from service.web.buffers import BufferPool
from service.web.connection import Connection
from service.web.context import Context
from service.web.cors import Cors
from service.web.ops import make_ops_app
from service.web.origin import Origin
from service.web.pace import PaceRules

log = structlog.get_logger(__name__)

#: aiohttp's limits on a header line and on the request line, for `Upload-Concat` and `?sig=` (A-04)
_LINE_BYTES: Final = 65536
#: how long a refused body is read and thrown away, so that the client sees the answer (A-12)
_LINGER_SECONDS: Final = 2.0
_KEEPALIVE_SECONDS: Final = 75.0
_KEYS_LOOK_SECONDS: Final = 1.0
_LAG_LOOK_SECONDS: Final = 0.5
_BACKLOG: Final = 1024
#: a signal to a process group comes twice where `make` or a shell passes it on
_ONE_SIGNAL_SECONDS: Final = 0.5
#: free disk that is left to the database, so that a full disk can be recorded, and given back (lesson D5)
_RESERVE_BYTES: Final = 16 * 2**20


@dataclass(slots=True)
class Service:
    """One running process. `stop` ends it gently."""

    context: Context
    janitor: Janitor
    bodies: Bodies
    tasks: Tasks
    leases: Leases
    metadata: SqlMetadata
    storage: MeteredStorage
    metrics: Metrics
    settings: Settings
    #: the addresses really bound: port 0 is the kernel's choice
    public: Address
    operations: Address
    _runner: web.AppRunner
    _server: asyncio.Server

    async def stop(self) -> None:
        """Contract, section 12: transfers in are committed and cut off, downloads may run on for `grace`.

        HEAD is served to the end: a client that asks meanwhile must not start over (lesson S1).
        """
        log.info("service_draining")
        self.metrics.draining(on=True)
        self.bodies.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.grace):
                await self.tasks.drain()
                await self.bodies.idle()
        self._server.close()
        # connections that only idle are closed at once, a request under way has a moment left
        await self._runner.cleanup()


@contextlib.asynccontextmanager
async def running(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Service]:
    """The service, accepting requests on both listeners until the context is left.

    Raises:
        OSError: an address cannot be listened on.
        KeySetError, MetadataError, StorageError: what it needs is not usable; says why.
    """
    clock = clock or SystemClock()
    metrics = Metrics(__version__)
    async with contextlib.AsyncExitStack() as stack:
        keys = await _keys(settings)
        metadata = await asyncio.to_thread(SqlMetadata, settings.database_url, durability=settings.durability)
        stack.push_async_callback(metadata.close)
        if settings.database is None:
            await asyncio.to_thread(migrate, settings.database_url)
        await metadata.open()
        # one process owns this database: whoever held a lease is gone
        await metadata.drop_leases()
        disk = FilesystemStorage(settings.data, durability=settings.durability, reserve_bytes=_RESERVE_BYTES)
        storage = MeteredStorage(disk, metrics, clock)
        stack.push_async_callback(storage.close)
        await storage.open()
        policy = _policy(settings)
        changes = Changes()
        events = EventMaker(new_event_id)
        leases = Leases(metadata, clock, metrics, secrets.token_hex(8))
        files = Files(metadata, storage, clock, events, changes.changed)
        finisher = Finisher(metadata, storage, policy, clock, metrics, events, changes.changed)
        tasks, lookup = Tasks(), Lookup(metadata, clock)
        settling = Settling(
            metadata=metadata,
            storage=storage,
            leases=leases,
            finisher=finisher,
            files=files,
            clock=clock,
            events=events,
            tasks=tasks,
            changed=changes.changed,
        )
        uploads = Uploads(
            metadata=metadata,
            leases=leases,
            lookup=lookup,
            claiming=Claiming(
                metadata=metadata,
                storage=storage,
                lookup=lookup,
                settling=settling,
                policy=policy,
                clock=clock,
                events=events,
            ),
            receiver=Receiver(metadata, storage, policy, clock, metrics, changes.changed),
            finisher=finisher,
            settling=settling,
            policy=policy,
            clock=clock,
            metrics=metrics,
            changes=changes,
            tasks=tasks,
        )
        downloads = Downloads(metadata, storage, clock, changes=changes, idle_seconds=settings.body_idle)
        pool = BufferPool(settings.buffer_limit)
        metrics.buffer_limit(settings.buffer_limit)
        bodies = Bodies(
            pool, PaceRules(settings.body_idle, settings.body_min_rate), settings.max_transfers, clock, metrics
        )
        context = Context(
            uploads=uploads,
            downloads=downloads,
            gate=_gate(settings, keys, clock, metrics),
            bodies=bodies,
            origin=Origin(settings.public_url, settings.trusted_proxies),
            discovery=discovery(settings.max_size),
            metrics=metrics,
            clock=clock,
            accel_prefix=settings.accel_prefix if settings.download_mode == "accel" else None,
        )
        janitor = Janitor(metadata, settling, files, policy, clock, metrics)
        for work in (
            leases.run(),
            janitor.run(settings.sweep_interval),
            _watch_keys(keys),
            _watch_loop(metrics, pool),
        ):
            task = asyncio.create_task(work)
            stack.push_async_callback(_ended, task)
        runner, server, public = await _listen(make_app(context, Cors(settings.cors_origins)), settings.listen)
        stack.push_async_callback(tasks.drain)
        stack.push_async_callback(runner.cleanup)
        stack.callback(server.close)
        ops = make_ops_app(metrics, {"storage": storage.probe, "database": metadata.probe}, lambda: bodies.draining)
        ops_runner, ops_server, operations = await _listen(ops, settings.ops_listen)
        stack.push_async_callback(ops_runner.cleanup)
        stack.callback(ops_server.close)
        yield Service(
            context=context,
            janitor=janitor,
            bodies=bodies,
            tasks=tasks,
            leases=leases,
            metadata=metadata,
            storage=storage,
            metrics=metrics,
            settings=settings,
            public=public,
            operations=operations,
            _runner=runner,
            _server=server,
        )


async def serve(settings: Settings, ready: Callable[[Service], None] | None = None) -> None:
    """Runs until SIGTERM or SIGINT, then drains; a second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    first = 0.0

    def on_signal() -> None:
        nonlocal first
        if not stopped.is_set():
            first = loop.time()
            stopped.set()
        elif loop.time() - first > _ONE_SIGNAL_SECONDS:
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with running(settings) as service:
        log.info("service_started", version=__version__, listen=str(service.public), ops=str(service.operations))
        if ready is not None:
            ready(service)
        await stopped.wait()
        await service.stop()
    log.info("service_stopped")


def _policy(settings: Settings) -> Policy:
    return Policy(
        max_size=settings.max_size,
        block_size=settings.block_size,
        strong_hash=settings.strong_hash == "sha256",
        idle_seconds=settings.upload_idle,
        life_seconds=settings.upload_life,
        tombstone_seconds=settings.tombstone,
    )


def _gate(settings: Settings, keys: KeyFile, clock: Clock, metrics: Metrics) -> Gate:
    return Gate(
        keys.keys,
        reload=partial(asyncio.to_thread, keys.refresh),
        audience=settings.public_url,
        upload_life_seconds=settings.max_upload_link_life,
        download_life_seconds=settings.max_download_link_life,
        clock=clock,
        metrics=metrics,
    )


async def _keys(settings: Settings) -> KeyFile:
    """The key set; a first key is made where neither a file nor a setting names one (contract, section 2)."""
    keys = KeyFile(settings.keys_path, on_broken=lambda error: log.error("keys_broken", detail=str(error)))
    if settings.keys is None:
        made = await asyncio.to_thread(keys.create_default)
        if made is not None:
            log.warning("key_created", kid=made.kid, alg=made.alg, path=str(settings.keys_path))
    await asyncio.to_thread(keys.current)
    return keys


async def _watch_keys(keys: KeyFile) -> None:
    while True:
        await asyncio.sleep(_KEYS_LOOK_SECONDS)
        await asyncio.to_thread(keys.current)


async def _watch_loop(metrics: Metrics, pool: BufferPool) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_LOOK_SECONDS
        await asyncio.sleep(_LAG_LOOK_SECONDS)
        metrics.event_loop_lag(loop.time() - due)
        metrics.buffers(pool.used_bytes)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _listen(app: web.Application, address: Address) -> tuple[web.AppRunner, asyncio.Server, Address]:
    """A runner with the settings of docs/aiohttp, behind our own connection class."""
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        max_field_size=_LINE_BYTES,
        max_line_size=_LINE_BYTES,
        lingering_time=_LINGER_SECONDS,
        keepalive_timeout=_KEEPALIVE_SECONDS,
        handler_cancellation=False,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    make = runner.server
    if make is None:
        raise RuntimeError("aiohttp made no server")
    loop = asyncio.get_running_loop()

    def connection() -> Connection:
        return Connection(make())

    if isinstance(address, UnixAddress):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(address.path.stat().st_mode):
                address.path.unlink()
        server = await loop.create_unix_server(connection, str(address.path), backlog=_BACKLOG)
        return runner, server, address
    server = await loop.create_server(
        connection, address.host, address.port, backlog=_BACKLOG, reuse_address=True, family=socket.AF_UNSPEC
    )
    bound = server.sockets[0].getsockname()
    return runner, server, TcpAddress(address.host, bound[1])
