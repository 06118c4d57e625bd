"""`attachd gc`: one sweep now, or what it would remove."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, get_args

import click

from service.clock import new_event_id
from service.commands.upkeep import run
from service.due import Due, Removal
from service.events import EventMaker
from service.files import Files
from service.finishing import Finisher
from service.hooks import Hooks
from service.janitor import Janitor, Kind
from service.leases import Leases
from service.links import hash_jti
from service.settling import Settling
from service.stores import Stores, make_hooks, make_policy, make_scanning
from service.tasks import Tasks
from service.units import format_size

if TYPE_CHECKING:
    from service.settings import Settings

_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
#: no client waits for the answer, and the first use of a database is slow
_PATIENCE_SECONDS: Final = 5.0
_WIDTH: Final = max(map(len, _KINDS))


class Tally:
    """How many of each kind, and how many bytes."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(_KINDS, 0)
        self._sizes = dict.fromkeys(_KINDS, 0)

    def add(self, kind: Kind, count: int, size: int) -> None:
        self._counts[kind] += count
        self._sizes[kind] += size

    def lines(self) -> list[str]:
        return [
            f"{kind:<{_WIDTH}}  {self._counts[kind]:>9}  {format_size(self._sizes[kind]):>9}".rstrip()
            for kind in _KINDS
        ]


@click.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be removed, each with its id and bytes.")
@click.pass_context
def gc(context: click.Context, *, dry_run: bool) -> None:
    """Remove what expired, and what no record needs any more.

    One sweep as the service makes them by itself: uploads and files past their time, tombstones,
    what ended uploads left in the storage, and files that no record needs. It also finishes
    uploads whose end a crash interrupted, and counts anew what owners have. It may run beside the service.

    Exits with 1 if something could not be done.
    """
    settings: Settings = context.obj
    run(
        context,
        lambda stores: _tell(stores, settings) if dry_run else _sweep(stores, settings),
        look=dry_run,
        read_only=dry_run,
        failed=1,
        log_level="error" if dry_run else "warning",
    )


async def _tell(stores: Stores, settings: Settings) -> int:
    events = EventMaker(new_event_id)
    files = Files(stores.metadata, stores.storage, stores.clock, events, lambda _: None)
    due = Due(stores.metadata, files, make_policy(settings), stores.clock)
    tally = Tally()
    async for removal in due.removals():
        tally.add(removal.kind, 1, removal.size)
        click.echo(_line(removal))
    click.echo("would be removed:")
    for line in tally.lines():
        click.echo(line)
    return 0


def _line(removal: Removal) -> str:
    what = removal.id
    if removal.what == "link":
        # its id is part of a token
        what = f"link {hash_jti(removal.id)}"
    return f"{removal.kind:<{_WIDTH}}  {what}  {removal.size} bytes"


async def _sweep(stores: Stores, settings: Settings) -> int:
    tally = Tally()
    async with contextlib.AsyncExitStack() as stack:
        hooks = make_hooks(settings, stores.clock, stores.metrics, stack)
        janitor = await stack.enter_async_context(_janitor(stores, settings, hooks, tally.add))
        well = await janitor.sweep()
    click.echo("removed:")
    for line in tally.lines():
        click.echo(line)
    if not well:
        click.echo("Error: not all could be done; why is told above. The next sweep tries again.", err=True)
    return 0 if well else 1


@asynccontextmanager
async def _janitor(
    stores: Stores, settings: Settings, hooks: Hooks, removed: Callable[[Kind, int, int], None]
) -> AsyncIterator[Janitor]:
    """One that sweeps when told to, with all that its steps need. Work that these began is over at the end."""
    metadata, storage, clock, metrics = stores.metadata, stores.storage, stores.clock, stores.metrics
    policy, events, tasks = make_policy(settings), EventMaker(new_event_id), Tasks()
    leases = Leases(metadata, clock, metrics, secrets.token_hex(8), patience_seconds=_PATIENCE_SECONDS)
    files = Files(metadata, storage, clock, events, lambda _: None)
    settling = Settling(
        metadata=metadata,
        storage=storage,
        leases=leases,
        finisher=Finisher(
            metadata,
            storage,
            policy,
            clock,
            metrics,
            events,
            lambda _: None,
            hooks,
            make_scanning(settings, storage, clock, metrics),
        ),
        files=files,
        clock=clock,
        events=events,
        tasks=tasks,
        changed=lambda _: None,
    )

    async def count() -> None:
        # looked at first: to count is one long change, which a service beside this would have to wait for
        if await metadata.miscounted():
            await metadata.recount()

    janitor = Janitor(metadata, settling, files, policy, clock, metrics, removed, upkeep=count)
    renewing = asyncio.create_task(leases.run())
    try:
        yield janitor
        await tasks.drain()
    finally:
        await janitor.end()
        renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewing
