"""`attachd migrate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from service.commands import keep_private
from service.metadata.migrate import migrate as bring_up_to_date
from service.setting_types import hide_secrets
from service.starting import CannotStart, naming

if TYPE_CHECKING:
    from service.settings import Settings


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
