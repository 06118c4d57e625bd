"""What the commands have in common that work on the stores of a service, whether or not one runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

import click

from service import logs
from service.commands import keep_private
from service.metadata.base import MetadataError
from service.starting import CannotStart, words
from service.storage.base import StorageError
from service.stores import Stores, opened

if TYPE_CHECKING:
    from service.settings import Settings

#: as a shell has it for a program that SIGINT ended
_INTERRUPTED = 128 + 2


def run(
    context: click.Context,
    work: Callable[[Stores], Awaitable[int]],
    *,
    look: bool,
    read_only: bool,
    failed: int,
    log_level: Literal["warning", "error"],
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> None:
    """Ends the command with the exit code that the work on the open stores comes to.

    Args:
        look, read_only: as `stores.opened` has them.
        failed: the exit code where the stores cannot be used; why is one line on standard error.
        log_level: of what goes to standard error as the service logs it.
        interrupted: what to say after Ctrl-C, which cancels the work.
    """
    settings: Settings = context.obj
    keep_private(context)
    logs.configure(settings.log_format, log_level)

    async def main() -> int:
        async with opened(settings, look=look, read_only=read_only) as stores:
            return await work(stores)

    try:
        code = asyncio.run(main())
    except KeyboardInterrupt:
        click.echo(interrupted(), err=True)
        code = _INTERRUPTED
    except (CannotStart, MetadataError, StorageError) as error:
        click.echo(f"Error: {' '.join(words(error).split())}", err=True)
        code = failed
    context.exit(code)
