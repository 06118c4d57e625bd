"""The `attachd` command. The environment and the settings file are read here and nowhere else."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Final

import click

from service import __version__
from service.settings import SettingsError, load

#: command -> where it is; imported when it is called, so that `link` does not wait for the server's imports
COMMANDS: Final = {
    "serve": "service.commands.serve:serve",
    "link": "service.commands.links:link",
    "token": "service.commands.links:token",
    "keys": "service.commands.links:keys",
    "put": "service.commands.put:put",
    "get": "service.commands.get:get",
    "check-config": "service.commands.config:check_config",
    "doctor": "service.commands.doctor:doctor",
    "verify": "service.commands.verify:verify",
    "fsck": "service.commands.fsck:fsck",
    "gc": "service.commands.gc:gc",
    "events": "service.commands.events:events",
    "migrate": "service.commands.migrate:migrate",
}
#: where prometheus_client looks for the directory of several processes
_COUNT_IN: Final = "PROMETHEUS_MULTIPROC_DIR"
#: these talk to any service, so the settings of this one do not matter
_WITHOUT_SETTINGS = frozenset({"put", "get"})


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a user's day."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, None if there is no such one."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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


def count_in(directory: str) -> None:
    """What `/metrics` sums is counted in files there: prometheus_client asks nowhere else for the place."""
    os.environ[_COUNT_IN] = directory


def main() -> None:
    """The entry point of the distribution."""
    # an operator's own would have prometheus_client count in files there as soon as it is imported
    os.environ.pop(_COUNT_IN, None)
    cli(prog_name="attachd")
