"""`attachd check-config`: what the service would run with."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.settings import Settings, describe


@click.command("check-config")
@click.pass_obj
def check_config(settings: Settings) -> None:
    """Print the effective settings, secrets hidden. A wrong one has stopped the command before this."""
    rows = describe(settings)
    console = Console()
    if not console.is_terminal:
        # a line each, for scripts and diffs: no wrapping, no alignment
        for row in rows:
            click.echo(f"{row.name}={row.value}")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for row in rows:
        changed = "bold" if row.value != row.default and row.default else ""
        table.add_row(row.name, Text(row.value, style=changed), Text(row.default), Text(row.description))
    console.print(table)
