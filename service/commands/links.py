"""`attachd link`, `attachd token`, `attachd keys`: sign links offline, manage the key set.

`link` and `token` print the link or token on standard output and nothing else, so that scripts can
take it as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from service.claims import ClaimError
from service.clock import new_file_id, new_jti
from service.commands import DURATION, SIZE, WrongArgument, keep_private
from service.keyfile import DEFAULT_ISSUER, KeyFile, new_key
from service.keyset import ALGORITHMS, Key, KeySetError
from service.links import SERVICE_SCOPES, download_url, mint_download, mint_service, mint_upload, upload_url
from service.model import FileId, parse_file_id
from service.units import format_duration

if TYPE_CHECKING:
    from service.settings import Settings

#: what a minted claim is called on the command line
_OPTIONS: Final = {
    "max": "--max", "size": "--size", "types": "--type", "sub": "--owner", "uses": "--uses", "fid": "--file-id",
    "sha256": "--sha256", "hold": "--hold", "ttl": "--ttl", "ref": "--ref", "meta": "--meta", "exp": "--expires",
    "filename": "--filename", "scope": "--scope",
}  # fmt: skip


@click.group()
def link() -> None:
    """Sign upload and download links."""


@click.group()
def token() -> None:
    """Sign tokens for the control API."""


@click.group()
@click.pass_context
def keys(context: click.Context) -> None:
    """Manage the key set file."""
    keep_private(context)


@link.command("upload")
@click.option("--max", "max_size", type=SIZE, help="Most bytes, as in 4GiB.  [default: the service's own limit]")
@click.option("--size", type=SIZE, help="Exact bytes.")
@click.option("--type", "types", multiple=True, help="Media type allowed, as in image/png or image/*; repeat for more.")
@click.option("--owner", help="Who the file belongs to, an opaque id.")
@click.option("--uses", type=int, default=1, show_default=True, help="How many uploads the link may create.")
@click.option("--expires", type=DURATION, default="1h", show_default=True, help="How long it may create them.")
@click.option("--file-id", help="Fix the file's id: f_... or `new`, which tells it on standard error.")
@click.option("--ref", help="The file's first reference.")
@click.option("--hold", type=DURATION, help="How long the file lives unclaimed.")
@click.option("--ttl", type=DURATION, help="How long the file lives at most.")
@click.option("--sha256", help="Expected SHA-256 of the file, in hex.")
@click.option("--meta", help="JSON object of at most 1 KiB, echoed in events.")
@click.pass_obj
def link_upload(
    settings: Settings,
    /,
    *,
    max_size: int | None,
    types: tuple[str, ...],
    expires: int,
    file_id: str | None,
    sha256: str | None,
    meta: str | None,
    **terms: Any,
) -> None:
    """Print a signed upload link."""
    _check_life(expires, settings.max_upload_link_life)
    if max_size is None:
        max_size = settings.max_size
    elif max_size > settings.max_size:
        raise WrongArgument(f"--max: the service takes at most {settings.max_size} bytes (ATTACHD_MAX_SIZE)")
    key = _signing_key(settings)
    fixed = _file_id(file_id, "--file-id") if file_id not in (None, "new") else None
    if file_id == "new":
        fixed = new_file_id()
        click.echo(f"file id: {fixed}", err=True)
    with _one_line():
        minted = mint_upload(
            key,
            audience=settings.base_url,
            jti=new_jti(),
            now=time.time(),
            expires_in=expires,
            max_size=max_size,
            types=types,
            file_id=fixed,
            sha256=sha256.lower() if sha256 is not None else None,
            meta=_meta(meta),
            **terms,
        )
    click.echo(upload_url(settings.base_url, minted))


@link.command("download")
@click.argument("file_id")
@click.option("--expires", type=DURATION, default="1h", show_default=True, help="How long the link works.")
@click.option("--filename", help="Name to save the file under.")
@click.option("--inline", is_flag=True, help="Ask browsers to show the file, where its type is safe to show.")
@click.pass_obj
def link_download(settings: Settings, /, *, file_id: str, expires: int, filename: str | None, inline: bool) -> None:
    """Print a signed download link for FILE_ID."""
    _check_life(expires, settings.max_download_link_life)
    parsed = _file_id(file_id, "FILE_ID")
    key = _signing_key(settings)
    with _one_line():
        minted = mint_download(
            key,
            audience=settings.base_url,
            file_id=parsed,
            now=time.time(),
            expires_in=expires,
            jti=new_jti(),
            filename=filename,
            disposition="inline" if inline else None,
        )
    click.echo(download_url(settings.base_url, parsed, minted, filename))


@token.command("service")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SERVICE_SCOPES), help="Repeatable.")
@click.option("--expires", type=DURATION, default="1h", show_default=True, help="How long the token works.")
@click.pass_obj
def token_service(settings: Settings, /, *, scopes: tuple[str, ...], expires: int) -> None:
    """Print a service token for the control API."""
    _check_life(expires, settings.max_service_token_life)
    key = _signing_key(settings)
    with _one_line():
        minted = mint_service(
            key, audience=settings.base_url, scopes=scopes, now=time.time(), expires_in=expires, jti=new_jti()
        )
    click.echo(minted)


@keys.command("new")
@click.option("--alg", type=click.Choice(tuple(ALGORITHMS)), default="EdDSA", show_default=True)
@click.option("--issuer", default=DEFAULT_ISSUER, show_default=True, help="The iss of the links it signs.")
@click.pass_obj
def keys_new(settings: Settings, /, *, alg: str, issuer: str) -> None:
    """Add a key, from then on the one that signs, and print its kid."""
    try:
        key = new_key(alg, issuer=issuer, now=time.time())
    except KeySetError:
        raise WrongArgument("--issuer: must be 1 to 128 printable ASCII characters, no spaces") from None
    with _one_line():
        KeyFile(settings.keys_path).update(lambda held: held.with_key(key))
    click.echo(key.kid)


@keys.command("list")
@click.pass_obj
def keys_list(settings: Settings, /) -> None:
    """List the keys, oldest first, without their secrets."""
    with _one_line():
        held = KeyFile(settings.keys_path).current().keys
    rows = [("KID", "ALG", "ISSUER", "STATE", "SIGNS", "CREATED"), *map(_row, held)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command("retire")
@click.argument("kid")
@click.option("--revoke", is_flag=True, help="Refuse the key's links at once, too.")
@click.pass_obj
def keys_retire(settings: Settings, /, *, kid: str, revoke: bool) -> None:
    """Stop signing with KID; the links it signed stay valid until they expire."""
    with _one_line():
        held = KeyFile(settings.keys_path).update(lambda keys: keys.retire(kid, revoke=revoke))
    if not any(key.can_sign for key in held.keys):
        click.echo("no key signs now; `attachd keys new` makes one", err=True)


def _row(key: Key) -> tuple[str, ...]:
    created = datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if key.created else "-"
    return key.kid, key.alg, key.issuer, str(key.state), "yes" if key.can_sign else "no", created


def _signing_key(settings: Settings) -> Key:
    with _one_line():
        return KeyFile(settings.keys_path).current().signing_key()


def _check_life(expires: int, longest: float) -> None:
    if not 0 < expires <= longest:
        raise WrongArgument(f"--expires: must be from 1s to {format_duration(int(longest))}")


def _file_id(text: str, name: str) -> FileId:
    parsed = parse_file_id(text)
    if parsed is None:
        raise WrongArgument(f"{name}: must be f_ and 26 of a-z 2-7")
    return parsed


def _meta(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise WrongArgument("--meta: must be a JSON object")
    return value


@contextmanager
def _one_line() -> Iterator[None]:
    """A wrong claim is a wrong argument; a key set that will not do is the file's fault."""
    try:
        yield
    except ClaimError as error:
        claim, _, must = str(error).partition(" ")
        raise WrongArgument(f"{_OPTIONS[claim]}: {must}" if claim in _OPTIONS else str(error)) from None
    except KeySetError as error:
        raise click.ClickException(str(error)) from None
