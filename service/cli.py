"""The `attachd` command. The environment and the settings file are read here and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import click

from service import __version__
from service.commands.config import check_config
from service.commands.links import keys, link, token
from service.commands.put import put
from service.commands.serve import migrate, serve
from service.settings import SettingsError, load

#: these talk to any service, so the settings of this one do not matter
_WITHOUT_SETTINGS = frozenset({"put", "get"})


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="ATTACHD_CONFIG",
    help="A TOML file of settings; the environment (ATTACHD_...) wins.",
)
@click.version_option(__version__, prog_name="attachd")
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:
    """Resumable uploads for chat attachments."""
    if context.invoked_subcommand in _WITHOUT_SETTINGS or context.resilient_parsing:
        return
    try:
        context.obj = load(os.environ, config.read_text("utf-8") if config else None, str(config or ""))
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"attachd: {problem}", err=True)
        context.exit(2)
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{config}: {error}") from error


for command in (serve, link, keys, token, put, check_config, migrate):
    cli.add_command(command)


def main() -> None:
    """The entry point of the distribution."""
    cli(prog_name="attachd")
