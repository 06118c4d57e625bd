"""`attachd doctor`: whether what the settings name can be used, one line for each thing that was tried.

It takes no lock, so it may be run while the service does. What it writes to find out, it removes; all
that stays is what the service remembers for a while of the upload that was sent to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click
from rich.console import Console
from rich.text import Text

from service.clamd import Clamd
from service.commands import keep_private, limits, passage
from service.commands.passage import Passage
from service.commands.reach import receivers
from service.keyfile import KeyFile
from service.keyset import Key, KeySetError, KeyState
from service.metadata.engine import parse_url
from service.metadata.schema import REVISION
from service.scanner import ScanError, ScanTooLarge
from service.setting_types import Address, TcpAddress
from service.settings import Settings
from service.starting import words
from service.storage.s3.client import options_of
from service.storage.s3.doctor import Check, examine
from service.units import format_size

_NAME_WIDTH: Final = max(map(len, ("data directory", "list-multiparts", "hook pre_create")))
#: bytes of what is sent to clamd at once
_PIECE: Final = 2**20
_SECONDS_OF_DATABASE: Final = 5.0
#: this version was not there before 2026
_EARLIEST: Final = 1_767_225_600.0
_LATEST: Final = 4_102_444_800.0
#: file systems may be of other machines, with clocks of their own
_BEHIND_SECONDS: Final = 60.0
#: a key that signs is to be followed by another
_KEY_SECONDS: Final = 365 * 86400.0
_CONNECT_SECONDS: Final = 2.0
_GOOD: Final = ("ok", "green")
_WARNING: Final = ("warning", "yellow")
_WORDS: Final[dict[bool | None, tuple[str, str]]] = {
    True: _GOOD,
    False: ("FAILED", "bold red"),
    None: ("skipped", "dim"),
}


@click.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Try what the settings name: keys, database, disk, clock, limits, receivers of events, with S3 every kind of call,
    and with ATTACHD_PUBLIC_URL whether uploads pass through what stands before the service.

    Exits with 1 if anything failed; a warning is none.
    """
    settings: Settings = context.obj
    keep_private(context)
    console = Console(highlight=False)
    failed = False
    with contextlib.closing(_checks(settings)) as checks:
        for check in checks:
            _print(console, check)
            failed |= check.ok is False
    context.exit(1 if failed else 0)


def _print(console: Console, check: Check) -> None:
    word, style = _WARNING if check.ok and check.advice else _WORDS[check.ok]
    advice = f" -> {check.advice}" if check.advice else ""
    if console.is_terminal:
        line = Text.assemble(f"{check.name:<{_NAME_WIDTH}}  ", (f"{word:<7}", style), f"  {check.found}{advice}")
        console.print(line, soft_wrap=True)
    else:
        click.echo(f"{check.name:<{_NAME_WIDTH}}  {word:<7}  {check.found}{advice}")


def _checks(settings: Settings) -> Generator[Check]:
    # wrong ones have stopped the command before this
    yield Check("settings", True, f"storage {settings.storage}, downloads by {settings.download_mode}")
    local: tuple[tuple[str, Callable[[Settings], Check], str], ...] = (
        ("keys", _keys, "correct ATTACHD_KEYS"),
        ("database", _database, "correct ATTACHD_DATABASE"),
        ("data directory", _directory, "correct ATTACHD_DATA, or let the user of the service write there"),
        ("machine clock", _clock, ""),
        ("descriptors", limits.descriptors, ""),
        ("memory", limits.memory, ""),
        ("shared memory", limits.shared_memory, ""),
    )
    for name, check, advice in local:
        try:
            yield check(settings)
        except (OSError, sqlite3.Error, KeySetError) as error:
            yield Check(name, False, " ".join(words(error).split()), advice)
    if settings.clamd is not None:
        yield asyncio.run(_clamd(settings, Clamd(settings.clamd)))
    yield from _receivers(settings)
    if settings.storage == "s3":
        yield from examine(
            options_of(settings), upload_life=settings.upload_life, redirect=settings.download_mode == "redirect"
        )
    yield from _passage(settings)


def _keys(settings: Settings) -> Check:
    path = settings.keys_path
    if settings.keys is None and not path.exists():
        return Check("keys", None, f"no key set at {path} yet; the first start makes one")
    held = KeyFile(path)
    keys = [key for key in held.current().keys if key.state is not KeyState.REVOKED]
    if not keys:
        return Check("keys", False, f"no key in {path} verifies any more", "make one with `attachd keys new`")
    found = f"{len(keys)} in force, in {path}"
    if held.exposed():
        return Check("keys", False, f"{found}, which everybody can read", f"chmod 600 {path}")
    aged = [*_old(keys, time.time()), *_spent(keys, time.time(), settings.longest_token_life)]
    said, advice = [said for said, _ in aged], [todo for _, todo in aged]
    return Check("keys", True, "; ".join([found, *said]), "; ".join(advice))


def _old(keys: Sequence[Key], now: float) -> Iterator[tuple[str, str]]:
    """The key that signs for each issuer, where it has done so for long: what it is, and what to do."""
    for key in {key.issuer: key for key in keys if key.can_sign}.values():
        if key.created is not None and now - key.created > _KEY_SECONDS:
            yield (
                f"{key.kid} has signed for {_days(now - key.created)}",
                f"`attachd keys new`, then `attachd keys retire {key.kid}`",
            )


def _spent(keys: Sequence[Key], now: float, life_seconds: float) -> Iterator[tuple[str, str]]:
    """Retired keys of which no token can be in force any more, if nobody else signs with them."""
    for number, key in enumerate(keys):
        later = [other.created for other in keys[number + 1 :] if other.issuer == key.issuer and other.created]
        if key.state is KeyState.VERIFY and later and now - min(later) > life_seconds:
            yield (
                f"{key.kid} is retired, still verifies, and was followed {_days(now - min(later))} ago",
                f"`attachd keys retire {key.kid} --revoke` if attachd_key_tokens_total counts it no more",
            )


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.0f} d"


def _database(settings: Settings) -> Check:
    path = Path(str(parse_url(settings.database_url).database))
    if not path.exists():
        if settings.database is None:
            return Check("database", None, f"no {path} yet; the first start makes it")
        return Check("database", False, f"there is no {path}", "run `attachd migrate`, or correct ATTACHD_DATABASE")
    schema = _schema(path)
    if schema is None or schema < REVISION:
        found = f"{path} has schema {schema or 'none'}, this version needs {REVISION}"
        if settings.database is None:
            return Check("database", True, f"{found}; the next start brings it up to date")
        return Check("database", False, found, "run `attachd migrate`")
    if schema > REVISION:
        found = f"{path} has schema {schema} of a newer version, this one knows {REVISION}"
        return Check("database", False, found, "run that newer version")
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.R_OK | os.W_OK | os.X_OK):
        advice = "let the user of the service write to it and to its directory"
        return Check("database", False, f"{path} cannot be written", advice)
    return Check("database", True, f"{path}, schema {schema}")


def _schema(path: Path) -> str | None:
    """The revision in an SQLite file. Raises sqlite3.Error."""
    with _opened(path) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The SQLite file, which is not changed. Raises sqlite3.Error."""
    # without a log nobody has it open, and reading it as a mere file leaves no log behind
    how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    address = f"file:{quote(str(path.absolute()))}?{how}"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_SECONDS_OF_DATABASE)) as database:
        yield database


@contextlib.contextmanager
def _current(settings: Settings) -> Iterator[sqlite3.Connection | None]:
    """The database if it is there and of this version's schema. Raises sqlite3.Error."""
    path = Path(str(parse_url(settings.database_url).database))
    try:
        usable = path.exists() and _schema(path) == REVISION
    except sqlite3.Error:
        # told already
        usable = False
    if not usable:
        yield None
        return
    with _opened(path) as database:
        yield database


def _directory(settings: Settings) -> Check:
    directory = settings.data.absolute()
    # the first start makes what is missing
    there = next(path for path in (directory, *directory.parents) if path.exists())
    with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-") as file:
        file.write(b"attachd doctor")
        file.flush()
        os.fsync(file.fileno())
        usage = os.statvfs(file.name)
    free = usage.f_bavail * usage.f_frsize
    state = "can be written" if there == directory else f"can be made in {there}"
    found, advice = f"{directory} {state}, {format_size(free)} free", ""
    if settings.storage == "filesystem" and free < settings.max_size:
        found, advice = f"{found}, less than one file of ATTACHD_MAX_SIZE", "make room, or lower the setting"
    return Check("data directory", True, found, advice)


def _receivers(settings: Settings) -> Iterator[Check]:
    with _current(settings) as database:
        yield from receivers(settings, database)


def _passage(settings: Settings) -> Iterator[Check]:
    """Whether uploads pass the way that clients have, if there is one and the service runs."""
    if settings.public_url is None:
        return
    if not _serves(settings.listen):
        yield Check(passage.SIZE, None, "the service does not run; run doctor again once it does")
        return
    try:
        key = KeyFile(settings.keys_path).current().signing_key()
    except KeySetError:
        yield Check(passage.SIZE, None, "no key here signs links, so no upload can be sent")
        return
    life = min(passage.LINK_SECONDS, int(settings.max_upload_link_life))
    yield from Passage(settings.public_url, key, settings.max_size, life).checks()


def _serves(address: Address) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError):
        if isinstance(address, TcpAddress):
            socket.create_connection((address.host, address.port), _CONNECT_SECONDS).close()
        else:
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as held:
                held.settimeout(_CONNECT_SECONDS)
                held.connect(str(address.path))
        return True
    return False


async def _clamd(settings: Settings, clamd: Clamd) -> Check:
    """Whether it answers, and takes as much as is sent to it: its own limit is told by nothing else."""

    async def nothing() -> AsyncIterator[bytes]:
        for start in range(0, settings.clamd_max_size, _PIECE):
            yield bytes(min(_PIECE, settings.clamd_max_size - start))

    version = "clamd"
    try:
        version = await clamd.version()
        await clamd.scan(nothing())
    except ScanTooLarge:
        found = f"{version} does not take {format_size(settings.clamd_max_size)}"
        return Check("clamd", False, found, "lower ATTACHD_CLAMD_MAX_SIZE, or raise StreamMaxLength in clamd.conf")
    except ScanError as error:
        return Check("clamd", False, str(error), "start clamd, or correct ATTACHD_CLAMD")
    return Check("clamd", True, f"{version} at {settings.clamd}, takes {format_size(settings.clamd_max_size)}")


def _clock(settings: Settings) -> Check:
    """Against the dates of what attachd wrote: links end, and uploads expire, by this clock."""
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    advice = "set it by NTP"
    if not _EARLIEST <= now < _LATEST:
        return Check("machine clock", False, f"{shown} cannot be", advice)
    for what, written in _written(settings):
        behind = written - now
        if behind > _BEHIND_SECONDS:
            return Check("machine clock", False, f"{shown} is {behind:.0f} s before {what}", advice)
    return Check("machine clock", True, shown)


def _written(settings: Settings) -> Iterator[tuple[str, float]]:
    """When attachd wrote what; a restored copy of the database has new dates outside and old ones inside."""
    for path in (Path(str(parse_url(settings.database_url).database)), settings.keys_path):
        with contextlib.suppress(FileNotFoundError):
            yield f"the last change of {path}", path.stat().st_mtime
    with _current(settings) as database:
        if database is not None:
            (newest,) = database.execute("SELECT max(updated_at) FROM uploads").fetchone()
            if newest is not None:
                yield "the newest record in the database", float(newest)
