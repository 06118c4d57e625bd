"""Settings become a running service: the only place that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

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
from service.keyset import KeySet, KeySetError, KeyState
from service.leases import Leases
from service.lookup import Lookup
from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from service.metrics import Metrics
from service.protocol.tus import discovery
from service.receiving import Receiver
from service.setting_types import Address, hide_secrets
from service.settings import Settings
from service.settling import Settling
from service.starting import Listener, naming, own
from service.storage.wrappers import MeteredStorage
from service.stores import make_policy, make_storage, storage_setting
from service.tasks import Tasks
from service.uploads import Uploads
from service.web.app import make_app
from service.web.body import Bodies
from service.web.context import Context
from service.web.cors import Cors
from service.web.ops import make_ops_app
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
#: after the grace, whatever still keeps the process up (a disk or a database that hangs) is left behind
_FORCED_SECONDS: Final = 2.0
#: a signal to a process group comes twice where `make` or a shell passes it on
_ONE_SIGNAL_SECONDS: Final = 0.5


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
    operations: Address
    _listener: Listener

    @property
    def public(self) -> Address:
        """The address really bound: port 0 is the kernel's choice."""
        return self._listener.address

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
                await self.tasks.drain()
        await self._listener.end()


@contextlib.asynccontextmanager
async def running(settings: Settings, clock: Clock | None = None, *, alone: bool = True) -> AsyncIterator[Service]:
    """The service, accepting requests on both listeners until the context is left.

    Args:
        alone: no other process uses the data directory, and none can while this one does. False where
            the caller sees to that, and others share directory and database with this one.

    Raises:
        CannotStart: an address, the directory, the keys, the database or the storage is not usable; says why.
    """
    clock = clock or SystemClock()
    metrics = Metrics(__version__)
    async with contextlib.AsyncExitStack() as stack:
        if alone:
            stack.callback(os.close, await asyncio.to_thread(own, settings.data))
        listeners = Listener(settings.listen, "ATTACHD_LISTEN"), Listener(settings.ops_listen, "ATTACHD_OPS_LISTEN")
        for listener in listeners:
            await listener.take()
            stack.push_async_callback(listener.close)
        with naming("ATTACHD_KEYS"):
            keys = await _keys(settings)
        with naming("ATTACHD_DATABASE", hide_secrets(settings.database_url)), _saying_that_it_waits(settings):
            metadata = await _metadata(settings, stack, alone=alone)
            owner, totals = await metadata.identity(), await metadata.totals()
        settled = totals.files > 0 or totals.stored_bytes > 0
        pool, inner, buffered = make_storage(settings, clock, metrics, owner=owner, settled=settled)
        storage = MeteredStorage(inner, metrics, clock)
        stack.push_async_callback(storage.close)
        with naming(storage_setting(settings)):
            await storage.open()
        policy = make_policy(settings)
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
            redirect=settings.download_mode == "redirect",
        )
        janitor = Janitor(metadata, settling, files, policy, clock, metrics)
        for work in (
            leases.run(),
            janitor.run(settings.sweep_interval),
            _watch_keys(keys),
            _watch_loop(metrics, buffered),
        ):
            task = asyncio.create_task(work)
            stack.push_async_callback(_ended, task)
        public, operations = listeners
        stack.push_async_callback(tasks.end, _TASKS_SECONDS)
        stack.push_async_callback(public.end)
        await public.serve(make_app(context, Cors(settings.cors_origins)))
        ops = make_ops_app(metrics, {"storage": storage.probe, "database": metadata.probe}, lambda: bodies.draining)
        stack.push_async_callback(operations.end)
        await operations.serve(ops)
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
            operations=operations.address,
            _listener=public,
        )


async def serve(settings: Settings, ready: Callable[[Service], None] | None = None) -> None:
    """Runs until SIGTERM or SIGINT, then drains; a second signal ends the process at once.

    During the start one signal ends it: nobody is served yet. Only for a process of its own: soon
    after the grace the process ends whatever still hangs in it.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    starting = asyncio.current_task()
    first = 0.0

    def on_signal() -> None:
        nonlocal first
        if not stopped.is_set():
            first = loop.time()
            stopped.set()
            if starting is not None:
                # a thread of the start's may hang on
                _end_by(_FORCED_SECONDS)
                starting.cancel()
        elif loop.time() - first > _ONE_SIGNAL_SECONDS:
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        async with running(settings) as service:
            starting = None
            log.info("service_started", version=__version__, listen=str(service.public), ops=str(service.operations))
            if ready is not None:
                ready(service)
            await stopped.wait()
            _end_by(settings.grace + _FORCED_SECONDS)
            await service.stop()
    except asyncio.CancelledError:
        if starting is None or not stopped.is_set():
            raise
        starting.uncancel()
    log.info("service_stopped")


def _end_by(seconds: float) -> None:
    """The process has ended by then, which costs nothing that was promised: a kill does not either."""

    def end() -> None:
        log.error("stop_forced", seconds=seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


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


async def _metadata(settings: Settings, stack: contextlib.AsyncExitStack, *, alone: bool) -> SqlMetadata:
    """The metadata store, open until the stack is left. Raises MetadataError."""
    metadata = await asyncio.to_thread(SqlMetadata, settings.database_url, durability=settings.durability)
    stack.push_async_callback(metadata.close)
    if settings.database is None:
        await asyncio.to_thread(migrate, settings.database_url, busy_seconds=_DATABASE_SECONDS)
    await metadata.open()
    if alone:
        # whoever held a lease is gone
        await metadata.drop_leases()
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


async def _keys(settings: Settings) -> KeyFile:
    """The key set; a first key is made where neither a file nor a setting names one (contract, section 2)."""

    def loaded(held: KeySet) -> None:
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
    return keys


async def _watch_keys(keys: KeyFile) -> None:
    while True:
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
