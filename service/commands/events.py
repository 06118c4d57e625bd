"""`attachd events`: what was recorded, what has not reached its receivers, and sending it again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from service.commands import WrongArgument
from service.commands.upkeep import run
from service.events import render_instant
from service.metadata.outbox import Listed, Outbox, Standing, Which
from service.stores import Stores
from service.units import parse_duration

if TYPE_CHECKING:
    from service.endpoints import Endpoint
    from service.settings import Settings

_PAGE: Final = 200


class _Instant(click.ParamType[float]):
    """`2026-11-23T10:00:00Z`, or a duration: that long ago."""

    name = "instant"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return time.time() - parse_duration(value)
        except ValueError:
            pass
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            name = param.opts[0] if param is not None else self.name
            right = "an instant such as 2026-11-23T10:00:00Z, or how long ago, such as 2h"
            raise WrongArgument(f"{name}: must be {right}") from None
        return at.replace(tzinfo=at.tzinfo or UTC).timestamp()


_INSTANT: Final = _Instant()


@click.group()
def events() -> None:
    """List events, and send them again."""


@events.command("list")
@click.option("--id", "event_id", metavar="EVT", help="This event only.")
@click.option("--since", type=_INSTANT, metavar="WHEN", help="Those from then on; a time, or 2h for two hours ago.")
@click.option("--until", type=_INSTANT, metavar="WHEN", help="Those before then.")
@click.option("--missing", is_flag=True, help="Only those that an endpoint has not got.")
@click.pass_context
def list_(
    context: click.Context, *, event_id: str | None, since: float | None, until: float | None, missing: bool
) -> None:
    """Print the events that are kept, oldest first, a line each.

    A line has the event's id, its time, its type, the file, and each endpoint that has not got it
    yet: pending, with the tries so far and what came of the last, or failed after the last try.
    """
    which = Which(event_id, since, until)

    async def work(stores: Stores) -> int:
        async for listed in _chosen(stores.metadata.outbox, which):
            if listed.missing or not missing:
                click.echo(_line(listed))
        return 0

    run(context, work, look=True, read_only=True, failed=1, log_level="error")


@events.command()
@click.option("--id", "event_id", metavar="EVT", help="This event.")
@click.option("--since", type=_INSTANT, metavar="WHEN", help="Those from then on; a time, or 2h for two hours ago.")
@click.option("--until", type=_INSTANT, metavar="WHEN", help="Those before then; left out: up to now.")
@click.option("--endpoint", "endpoint_id", metavar="ID", help="To this endpoint only; left out: to all.")
@click.pass_context
def replay(
    context: click.Context,
    *,
    event_id: str | None,
    since: float | None,
    until: float | None,
    endpoint_id: str | None,
) -> None:
    """Send events again, whether they were delivered or not.

    They go out under the same ids, of the types that each endpoint wants, in order per file, with
    ten tries as the first time. The service sends them: it may run meanwhile or later.
    """
    if (event_id is None) is (since is None) or (event_id is not None and until is not None):
        raise WrongArgument("name one --id, or --since and perhaps --until")
    settings: Settings = context.obj
    wanted = [each for each in settings.endpoints if endpoint_id in (None, each.id)]
    if not wanted:
        raise WrongArgument("--endpoint: no such endpoint in the settings" if endpoint_id else "there are no endpoints")
    which = Which(event_id, since, until)

    async def work(stores: Stores) -> int:
        counts = dict.fromkeys((each.id for each in wanted), 0)
        found = 0
        async for page in _pages(stores.metadata.outbox, which):
            found += len(page)
            for endpoint in wanted:
                counts[endpoint.id] += await _again(stores, endpoint, page)
        for name, count in counts.items():
            click.echo(f"{name}: {count} of {found} events will be sent again")
        return 0 if found else 1

    run(context, work, look=True, read_only=False, failed=1, log_level="warning")


@events.command()
@click.argument("endpoint_id", metavar="ENDPOINT")
@click.pass_context
def enable(context: click.Context, *, endpoint_id: str) -> None:
    """Send to ENDPOINT again, which answered 410 and was left alone since. It gets what it missed."""

    async def work(stores: Stores) -> int:
        if await stores.metadata.outbox.enable(endpoint_id):
            click.echo(f"{endpoint_id}: enabled")
            return 0
        click.echo(f"Error: {endpoint_id} is not disabled, or there is no such endpoint", err=True)
        return 1

    run(context, work, look=True, read_only=False, failed=1, log_level="warning")


async def _again(stores: Stores, endpoint: Endpoint, page: tuple[Listed, ...]) -> int:
    seqs = [listed.seq for listed in page if endpoint.wants(listed.event.type)]
    return await stores.metadata.outbox.replay(endpoint.id, seqs, now=stores.clock.now()) if seqs else 0


async def _pages(outbox: Outbox, which: Which) -> AsyncIterator[tuple[Listed, ...]]:
    after = 0
    while page := await outbox.listed(which, after=after, limit=_PAGE):
        yield page
        after = page[-1].seq


async def _chosen(outbox: Outbox, which: Which) -> AsyncIterator[Listed]:
    async for page in _pages(outbox, which):
        for listed in page:
            yield listed


def _line(listed: Listed) -> str:
    event = listed.event
    file_id = event.data.get("file_id") or event.subject
    missing = "".join(f"  {_words(standing)}" for standing in listed.missing)
    return f"{event.id}  {render_instant(event.created_at)}  {event.type:<17}  {file_id}{missing}"


def _words(standing: Standing) -> str:
    came = f", {standing.result}" if standing.result else ""
    return f"{standing.endpoint}: {'failed' if standing.failed else 'pending'} ({standing.attempts} tries{came})"
