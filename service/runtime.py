"""Settings become a running service: the only place that knows every part.

A service is one process, or several workers under a supervisor (`workers`). What happens once for
all of them is `claimed`: directory, addresses, keys, database. What each process is by itself is
`running`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from service import __version__
from service.changes import Changes
from service.clock import Clock, SystemClock, new_event_id
from service.control_wiring import make_control
from service.crashes import run_recorded
from service.delivery import CONCURRENCY, Delivery
from service.directory import DataDirectory
from service.downloads import Downloads
from service.duties import Duties
from service.erasing import Erasing
from service.events import EventMaker
from service.gate import Gate
from service.janitor import Janitor
from service.keyfile import KeyFile
from service.keyset import KeySet, KeySetError, KeyState
from service.leases import Leases
from service.listening import Listener
from service.metadata.base import SchemaMismatch
from service.metadata.migrate import migrate
from service.metadata.sql import BUSY_SECONDS, CHECK_SECONDS, SqlMetadata
from service.metrics import Metrics, ready_in
from service.protocol.tus import discovery
from service.revocations import Revocations
from service.setting_types import Address, hide_secrets
from service.settings import Settings
from service.starting import naming
from service.storage.filesystem import FilesystemStorage
from service.storage.wrappers import MeteredStorage
from service.stores import (
    make_hooks,
    make_policy,
    make_scanning,
    make_storage,
    make_tracer,
    make_webhooks,
    storage_setting,
)
from service.tasks import Tasks
from service.upload_wiring import Ground, make_upload_side
from service.web.app import make_app
from service.web.body import Bodies
from service.web.context import Context
from service.web.cors import Cors
from service.web.ops import Readiness, make_ops_app, watch_readiness
from service.web.origin import Origin
from service.web.pace import PaceRules

log = structlog.get_logger(__name__)

_KEYS_LOOK_SECONDS: Final = 1.0
_LAG_LOOK_SECONDS: Final = 0.5
#: how long a start waits for a database that another process has locked, and when it says that it waits
_DATABASE_SECONDS: Final = 15.0
_SAY_SECONDS: Final = 2.0
#: how long work without a client may run on once everything else is closed; it can be done again
_TASKS_SECONDS: Final = 0.5


@dataclass(slots=True)
class Service:
    """One running process. `stop` ends it gently."""

    context: Context
    janitor: Janitor
    bodies: Bodies
    tasks: Tasks
    leases: Leases
    duties: Duties
    metadata: SqlMetadata
    storage: MeteredStorage
    metrics: Metrics
    settings: Settings
    readiness: Readiness
    claim: Claim
    erasing: Erasing
    _listener: Listener

    @property
    def public(self) -> Address:
        """The address really bound: port 0 is the kernel's choice."""
        return self._listener.address

    @property
    def operations(self) -> Address:
        """The same for the operations listener."""
        return self.claim.operations.address

    async def make_way(self) -> None:
        """New connections are for another service, which has the addresses as well: also while this one stops."""
        await self._listener.close()
        await self.claim.operations.close()

    async def stop(self, *, succeeded: bool = False) -> None:
        """Contract, section 12: transfers in are committed and cut off, downloads may run on for `grace`.

        HEAD is served to the end: a client that asks meanwhile must not start over (lesson S1).

        Args:
            succeeded: another service has the address as well, and is the one that new connections are for.
        """
        log.info("service_draining", succeeded=succeeded)
        self.metrics.draining(on=True)
        if succeeded:
            await self.make_way()
        self.bodies.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.grace):
                await self.tasks.drain()
                await self.bodies.idle()
                await self.tasks.drain()
        await self._listener.end()


@dataclass(frozen=True, slots=True)
class Claim:
    """What is a service's own before it serves: directory and addresses; keys and database are in order."""

    directory: DataDirectory
    public: Listener
    operations: Listener
    keys: KeyFile
    #: whether no other service used the directory when this one began
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of several is: the rest has been claimed by its supervisor."""

    #: the random token that its leases begin with
    process: str
    #: see `Listener.join`
    bound: socket.socket | None


@contextlib.asynccontextmanager
async def claimed(settings: Settings, *, beside: bool = False) -> AsyncIterator[Claim]:
    """What a service has once, until the context is left.

    Args:
        beside: another service on the same directory and addresses is about to be replaced by this one.

    Raises:
        CannotStart: an address, the directory, the keys or the database is not usable; says why.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = DataDirectory(settings.data)
        stack.push_async_callback(asyncio.to_thread, directory.close)
        alone = await asyncio.to_thread(directory.take, beside=beside)
        public, operations = _listeners(settings)
        for listener in (public, operations):
            stack.push_async_callback(listener.close)
            await listener.take(beside=not alone)
        with naming("ATTACHD_KEYS"):
            keys = await _keys(settings, logs=True)
        with naming("ATTACHD_DATABASE", hide_secrets(settings.database_url)), _saying_that_it_waits(settings):
            metadata = await _metadata(settings, stack, migrates=alone)
            if alone:
                # whoever held a lease is gone
                await metadata.drop_leases()
            # before the first event that is for them
            await metadata.outbox.register({endpoint.id: endpoint.url for endpoint in settings.endpoints})
            await stack.enter_async_context(run_recorded(metadata, settings, directory.others))
        await asyncio.to_thread(directory.settle)
        yield Claim(directory, public, operations, keys, alone)


@contextlib.asynccontextmanager
async def running(
    settings: Settings, clock: Clock | None = None, *, beside: bool = False, share: Share | None = None
) -> AsyncIterator[Service]:
    """The service, accepting requests until the context is left: all of it, or one worker's share.

    Args:
        beside: see `claimed`.
        share: of a worker, which has no operations listener.

    Raises:
        CannotStart: an address, the directory, the keys, the database or the storage is not usable; says why.
    """
    clock = clock or SystemClock()
    metrics = Metrics(__version__)
    async with contextlib.AsyncExitStack() as stack:
        if share is None:
            claim = await stack.enter_async_context(claimed(settings, beside=beside))
        else:
            claim = await stack.enter_async_context(_joined(settings, share))
        keys = claim.keys
        with naming("ATTACHD_DATABASE", hide_secrets(settings.database_url)), _saying_that_it_waits(settings):
            metadata = await _metadata(settings, stack, migrates=False)
            owner, totals = await metadata.identity(), await metadata.totals()
        settled = totals.files > 0 or totals.stored_bytes > 0
        pool, inner, buffered = make_storage(settings, clock, metrics, owner=owner, settled=settled)
        storage = MeteredStorage(inner, metrics, clock)
        stack.push_async_callback(storage.close)
        with naming(storage_setting(settings)):
            await storage.open()
        policy, changes, events = make_policy(settings), Changes(), EventMaker(new_event_id)
        revocations = Revocations(metadata, clock, life_seconds=settings.longest_token_life)
        process = share.process if share else new_process()
        leases, duties = Leases(metadata, clock, metrics, process), Duties(metadata, clock, process)
        tasks = Tasks()
        gate = _gate(settings, keys, revocations, clock, metrics)
        side = make_upload_side(
            Ground(metadata, storage, policy, clock, metrics, events, changes, leases, tasks, gate.unrevoked),
            make_hooks(settings, clock, metrics, stack),
            make_scanning(settings, storage, clock, metrics),
            inner.salvage if isinstance(inner, FilesystemStorage) else None,
        )
        downloads = Downloads(metadata, storage, clock, changes=changes, idle_seconds=settings.body_idle)
        metrics.buffer_limit(settings.buffer_limit)
        bodies = Bodies(
            pool, PaceRules(settings.body_idle, settings.body_min_rate), settings.max_transfers, clock, metrics
        )
        context = Context(
            uploads=side.uploads,
            downloads=downloads,
            gate=gate,
            bodies=bodies,
            origin=Origin(settings.public_url, settings.trusted_proxies),
            discovery=discovery(policy.max_size),
            metrics=metrics,
            clock=clock,
            accel_prefix=settings.accel_prefix if settings.download_mode == "accel" else None,
            redirect=settings.download_mode == "redirect",
            tracer=make_tracer(settings, stack),
        )
        control = make_control(
            settings, metadata, storage, keys, clock, changes, side.files, side.settling, revocations
        )
        stack.push_async_callback(control.erasing.end)
        janitor = Janitor(
            metadata,
            side.settling,
            side.files,
            policy,
            clock,
            metrics,
            event_seconds=settings.event_retention,
            upkeep=control.erasing.upkeep,
        )
        delivery = _delivery(settings, metadata, clock, metrics, stack)
        for work in (
            leases.run(),
            pool.run(),
            janitor.run(settings.sweep_interval, duties),
            *([side.rechecker.run()] if side.rechecker is not None else []),
            *([delivery.run(duties)] if delivery is not None else []),
            _watch_keys(keys, metrics),
            _watch_loop(metrics, buffered),
        ):
            task = asyncio.create_task(work)
            stack.push_async_callback(_ended, task)
        stack.push_async_callback(tasks.end, _TASKS_SECONDS)
        stack.push_async_callback(claim.public.end)
        await claim.public.serve(make_app(context, Cors(settings.cors_origins), control))
        readiness = Readiness({"storage": storage.probe, "database": metadata.probe})
        stack.push_async_callback(readiness.close)
        if share is None:
            ops = make_ops_app(metrics.render, readiness.failed, lambda: bodies.draining)
            stack.push_async_callback(claim.operations.end)
            await claim.operations.serve(ops)
            watch = watch_readiness(readiness.failed, lambda: bodies.draining, ready_in(metrics.registry))
            stack.push_async_callback(_ended, asyncio.create_task(watch))
            await asyncio.to_thread(claim.directory.serves)
        yield Service(
            context=context,
            janitor=janitor,
            bodies=bodies,
            tasks=tasks,
            leases=leases,
            duties=duties,
            metadata=metadata,
            storage=storage,
            metrics=metrics,
            settings=settings,
            readiness=readiness,
            claim=claim,
            erasing=control.erasing,
            _listener=claim.public,
        )


@contextlib.asynccontextmanager
async def _joined(settings: Settings, share: Share) -> AsyncIterator[Claim]:
    """What the supervisor has claimed, as one of its workers has it."""
    public, operations = _listeners(settings)
    try:
        await public.join(share.bound)
        with naming("ATTACHD_KEYS"):
            keys = await _keys(settings, logs=False)
        yield Claim(DataDirectory(settings.data), public, operations, keys)
    finally:
        await public.close()


def _delivery(
    settings: Settings, metadata: SqlMetadata, clock: Clock, metrics: Metrics, stack: contextlib.AsyncExitStack
) -> Delivery | None:
    """What sends events to their receivers, if there are any; hears of each that is committed here."""
    if not settings.endpoints:
        return None
    lines = []
    for endpoint in settings.endpoints:
        sender = make_webhooks(settings, clock, connections=CONCURRENCY)
        stack.push_async_callback(sender.close)
        lines.append((endpoint, sender))
    delivery = Delivery(metadata.outbox, lines, clock, metrics)
    metadata.told = delivery.wake
    return delivery


def new_process() -> str:
    """A token for the leases of a process, never used before (lesson L4)."""
    return secrets.token_hex(8)


def _listeners(settings: Settings) -> tuple[Listener, Listener]:
    return Listener(settings.listen, "ATTACHD_LISTEN"), Listener(settings.ops_listen, "ATTACHD_OPS_LISTEN")


def _gate(settings: Settings, keys: KeyFile, revocations: Revocations, clock: Clock, metrics: Metrics) -> Gate:
    return Gate(
        keys.keys,
        reload=partial(asyncio.to_thread, keys.refresh),
        revocations=revocations,
        audience=settings.public_url,
        upload_life_seconds=settings.max_upload_link_life,
        download_life_seconds=settings.max_download_link_life,
        service_life_seconds=settings.max_service_token_life,
        clock=clock,
        metrics=metrics,
    )


async def _metadata(settings: Settings, stack: contextlib.AsyncExitStack, *, migrates: bool) -> SqlMetadata:
    """The metadata store, open until the stack is left. Raises MetadataError.

    Args:
        migrates: nobody else uses it now: it is looked through for damage, and the default one is made, or
            brought up to date.
    """
    busy_seconds = _DATABASE_SECONDS if migrates else BUSY_SECONDS
    metadata = await asyncio.to_thread(
        SqlMetadata,
        settings.database_url,
        durability=settings.durability,
        busy_seconds=busy_seconds,
        check_seconds=CHECK_SECONDS if migrates else 0,
    )
    stack.push_async_callback(metadata.close)
    try:
        await metadata.open()
    except SchemaMismatch:
        if not migrates or settings.database is not None:
            raise
        await asyncio.to_thread(migrate, settings.database_url, busy_seconds=busy_seconds)
        await metadata.open()
    return metadata


@contextlib.contextmanager
def _saying_that_it_waits(settings: Settings) -> Iterator[None]:
    """A start that takes its time says so: for a lock of another process, or a large change of the schema."""
    database = hide_secrets(settings.database_url)
    saying = asyncio.get_running_loop().call_later(
        _SAY_SECONDS, partial(log.warning, "database_awaited", database=database)
    )
    try:
        yield
    finally:
        saying.cancel()


async def _keys(settings: Settings, *, logs: bool) -> KeyFile:
    """The key set; a first key is made where neither a file nor a setting names one (contract, section 2).

    Args:
        logs: what is in force from now on is told; changes are in any case.
    """

    def loaded(held: KeySet) -> None:
        if not logs:
            return
        kids = [key.kid for key in held.keys if key.state is not KeyState.REVOKED]
        log.info("keys_loaded", path=str(settings.keys_path), kids=kids)
        if keys.exposed():
            log.warning("keys_exposed", path=str(settings.keys_path), detail="everybody can read the keys; chmod 600")

    def broken(error: KeySetError) -> None:
        log.error("keys_broken", detail=str(error))

    keys = KeyFile(settings.keys_path, on_broken=broken, on_loaded=loaded)
    if settings.keys is None:
        made = await asyncio.to_thread(keys.create_default)
        if made is not None:
            log.warning("key_created", kid=made.kid, alg=made.alg, path=str(settings.keys_path))
    await asyncio.to_thread(keys.current)
    logs = True
    return keys


async def _watch_keys(keys: KeyFile, metrics: Metrics) -> None:
    while True:
        metrics.keys({key.kid: key.state for key in keys.keys().keys})
        await asyncio.sleep(_KEYS_LOOK_SECONDS)
        await asyncio.to_thread(keys.current)


async def _watch_loop(metrics: Metrics, buffered: Callable[[], int]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_LOOK_SECONDS
        await asyncio.sleep(_LAG_LOOK_SECONDS)
        metrics.event_loop_lag(loop.time() - due)
        metrics.buffers(buffered())


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
