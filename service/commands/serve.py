"""`attachd serve` and `attachd migrate`."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from service import logs
from service.allocator import suit_large_buffers
from service.commands import keep_private
from service.keyfile import KeyFile
from service.links import mint_upload, upload_url
from service.metadata.migrate import migrate as bring_up_to_date
from service.runtime import Service
from service.runtime import serve as run_service
from service.setting_types import hide_secrets
from service.starting import CannotStart, naming
from service.web.crowd import raise_descriptors

if TYPE_CHECKING:
    from service.settings import Settings

HOUR_SECONDS: Final = 3600


@click.command()
@click.option("--print-link", is_flag=True, help="Print an upload link and the lines that use it.")
@click.pass_context
def serve(context: click.Context, *, print_link: bool) -> None:
    """Run the service until SIGTERM."""
    settings: Settings = context.obj
    keep_private(context)
    logs.configure(settings.log_format, settings.log_level)
    suit_large_buffers()
    raise_descriptors()

    def ready(service: Service) -> None:
        if print_link:
            _print_link(service)

    try:
        if print_link:
            _check_signing(settings)
        _run(settings, ready)
    except CannotStart as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.pass_context
def migrate(context: click.Context) -> None:
    """Bring the schema of the database up to date."""
    settings: Settings = context.obj
    keep_private(context)
    try:
        with naming("ATTACHD_DATABASE", hide_secrets(settings.database_url)):
            bring_up_to_date(settings.database_url)
    except CannotStart as error:
        raise click.ClickException(str(error)) from error
    click.echo("the schema is up to date")


def _run(settings: Settings, ready: Callable[[Service], None]) -> None:
    if sys.platform == "win32":
        asyncio.run(run_service(settings, ready))
        return
    import uvloop  # noqa: PLC0415 - does not exist on Windows

    uvloop.run(run_service(settings, ready))


def _check_signing(settings: Settings) -> None:
    """A key that signs is there, or will be made by the start. Raises CannotStart."""
    if settings.keys is not None or settings.keys_path.exists():
        with naming("ATTACHD_KEYS"):
            KeyFile(settings.keys_path).current().signing_key()


def _print_link(service: Service) -> None:
    settings = service.settings
    key = KeyFile(settings.keys_path).current().signing_key()
    token = mint_upload(
        key,
        audience=settings.base_url,
        jti=secrets.token_urlsafe(16),
        now=time.time(),
        expires_in=HOUR_SECONDS,
        max_size=settings.max_size,
    )
    link, command = upload_url(settings.base_url, token), _command(sys.argv[0])
    click.echo(
        f"""
attachd is listening on {service.public}; operations on {service.operations}.
An upload link for one file, good for an hour:

  {link}

Send a file with either of these:

  curl -T FILE '{link}'
  {command} put FILE '{link}'

Then make a download link with the file id that was answered:

  {command} link download FILE_ID
"""
    )


def _command(called: str) -> str:
    """How a shell in this directory calls attachd: what is in a virtual environment need not be on its PATH."""
    if os.path.basename(called) != "attachd" or shutil.which("attachd") is not None:
        return "attachd"
    path = os.path.relpath(called)
    return shlex.quote(os.path.abspath(called) if path.startswith("..") else path)
