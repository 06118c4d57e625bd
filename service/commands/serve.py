"""`attachd serve`."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import click

from service import logs
from service.allocator import suit_large_buffers
from service.cli import count_in
from service.commands import keep_private
from service.keyfile import KeyFile
from service.links import mint_upload, upload_url
from service.runtime import Claim
from service.settings import MOST_WORKERS
from service.starting import CannotStart, naming, processors
from service.web.crowd import raise_descriptors
from service.workers import single, supervisor
from service.workers.nursery import Nursery

if TYPE_CHECKING:
    from service.settings import Settings

HOUR_SECONDS: Final = 3600


@click.command()
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="Processes that share the address; else ATTACHD_WORKERS, else one per core.",
)
@click.option(
    "--beside", is_flag=True, help="Start while another attachd runs here, which is stopped next: an upgrade."
)
@click.option("--print-link", is_flag=True, help="Print an upload link and the lines that use it.")
@click.pass_context
def serve(context: click.Context, *, workers: int | None, beside: bool, print_link: bool) -> None:
    """Run the service until SIGTERM."""
    settings: Settings = context.obj
    keep_private(context)
    logs.configure(settings.log_format, settings.log_level)
    suit_large_buffers()
    raise_descriptors()
    # what is imported stays: to look at it for garbage takes time, and copies pages that workers share
    gc.freeze()

    def ready(claim: Claim) -> None:
        if print_link:
            _print_link(settings, claim)

    count = workers or settings.workers or processors()
    try:
        if print_link:
            _check_signing(settings)
        if count == 1:
            _run(single.serve(settings, beside=beside, ready=ready))
        else:
            # before there is a thread or a loop
            nursery = Nursery.begin(count_in)
            _run(supervisor.serve(settings, count, nursery, beside=beside, ready=ready))
    except CannotStart as error:
        raise click.ClickException(str(error)) from error


def _run(service: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(service)
        return
    import uvloop  # noqa: PLC0415 - does not exist on Windows

    uvloop.run(service)


def _check_signing(settings: Settings) -> None:
    """A key that signs is there, or will be made by the start. Raises CannotStart."""
    if settings.keys is not None or settings.keys_path.exists():
        with naming("ATTACHD_KEYS"):
            KeyFile(settings.keys_path).current().signing_key()


def _print_link(settings: Settings, claim: Claim) -> None:
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
attachd is listening on {claim.public.address}; operations on {claim.operations.address}.
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
