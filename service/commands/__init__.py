"""The commands beside `serve`, as click groups and commands for `cli` to collect.

Each gets the effective `Settings` as the context's object. An error is one line on standard error:
exit code 2 for a wrong argument, 1 for anything else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import click

from service.units import parse_duration, parse_rate, parse_size

#: of what the service and its commands make: nothing for others, nothing to change for the group
_UMASK: Final = 0o027


def keep_private(context: click.Context) -> None:
    """What the command makes is not for everybody on this machine; a stricter umask stays as it is."""
    before = os.umask(_UMASK)
    os.umask(before | _UMASK)
    context.call_on_close(lambda: os.umask(before))


class WrongArgument(click.ClickException):
    """An argument is wrong: one line without click's usage text around it."""

    exit_code = 2


class _Unit(click.ParamType[int]):
    """An int behind a unit, read by one of the parsers of `units`."""

    def __init__(self, name: str, parse: Callable[[str | int], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return self._parse(value)
        except ValueError as error:
            name = param.opts[0] if param is not None else self.name
            raise WrongArgument(f"{name}: {error}") from None


SIZE = _Unit("size", parse_size)
RATE = _Unit("rate", parse_rate)
DURATION = _Unit("duration", parse_duration)
