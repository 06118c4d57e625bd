"""`attachd get LINK`: a file comes down through a signed link, checked block by block.

Mechanism. The manifest behind the same link lists the digest of every block. Bytes go to
`FILE.part` as they come and are hashed on the way; after a cut the next request asks for the rest
(Range). A new process re-reads what `FILE.part` holds against the manifest and asks only for the
blocks that are missing or wrong, so nothing has to be remembered beside it. When every block is
right the file is synced and takes its name.

Guarantees: the name never stands for anything but the whole, verified file; standard output
(`-o -`) gets no byte of a block before the block is verified. XXH3-128 finds damage, not an
attacker who can change the manifest as well: that is what TLS is for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import click
import xxhash

from service.commands.line import GaveUp, Patience, Trouble, bar
from service.commands.part import Part, Stream, Target, part_of
from service.commands.remote import Gap, GetFailed, Source, parts_of
from service.model import Manifest

T = TypeVar("T")


class BlockMismatch(GetFailed):
    """A block is not what the manifest says."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__(f"bytes {start}-{end - 1} do not match their digest in the manifest")
        self.start = start


@dataclass(slots=True)
class Download:
    """One file from a source to a target. `moved` is told how many bytes are there."""

    source: Source
    manifest: Manifest
    target: Target
    patience: Patience
    moved: Callable[[int], None]
    done: int = 0

    def run(self) -> None:
        """Every block is in the target and right. Raises GetFailed, GaveUp, OSError of the target."""
        gaps = self.target.gaps(self.manifest, self.moved)
        self.done = self.manifest.size - sum(gap.end - gap.start for gap in gaps)
        for gap in gaps:
            try:
                self._fill(gap)
            except BlockMismatch as mismatch:
                # Its first half may be of an earlier process, and wrong since. Of our own bytes none is fetched twice.
                if not mismatch.start < gap.start:
                    raise
                self.done -= gap.start - mismatch.start
                self._fill(Gap(mismatch.start, gap.end))

    def _fill(self, gap: Gap) -> None:
        position, block_size = gap.start, self.manifest.block_size
        hasher = xxhash.xxh3_128(self.target.held(position - position % block_size, position))
        while position < gap.end:
            try:
                for piece in self.source.read(Gap(position, gap.end), self.manifest.size):
                    at = 0
                    while at < len(piece):
                        some = piece[at : at + block_size - position % block_size]
                        self.target.write(position, some)
                        hasher.update(some)
                        at, position = at + len(some), position + len(some)
                        if position % block_size == 0 or position == self.manifest.size:
                            self._check(position, hasher.digest())
                            hasher.reset()
                    self.done += len(piece)
                    self.moved(self.done)
                    self.patience.progress()
            except Trouble as trouble:
                self.patience.after(trouble)

    def _check(self, end: int, digest: bytes) -> None:
        """The block that ends there is right, and the target knows."""
        number = (end - 1) // self.manifest.block_size
        if digest != self.manifest.xxh128[number]:
            raise BlockMismatch(number * self.manifest.block_size, end)
        self.target.verified()


def _patiently(patience: Patience, ask: Callable[[], T]) -> T:
    while True:
        try:
            found = ask()
        except Trouble as trouble:
            patience.after(trouble)
        else:
            patience.progress()
            return found


def fetch(
    link: str,
    output: Path | None,
    *,
    stdout: IO[bytes] | None = None,
    patience: Patience | None = None,
    started: Callable[[str, int], None] = lambda _name, _size: None,
    moved: Callable[[int], None] = lambda _: None,
) -> Path | None:
    """The verified file stands under the path that is returned.

    Args:
        output: the file, or a directory to put it into; None: the current one. A name that the
            service gives never replaces a file.
        stdout: where to write the bytes to instead; then None is returned.
        started: told name and size in bytes, then `moved` how many bytes are there.

    Raises:
        GetFailed, GaveUp: the text says why.
    """
    patience = patience or Patience()
    source = Source(link)
    try:
        manifest = _patiently(patience, source.manifest)
        final = None if stdout is not None else _final(output, source, patience)
        started(final.name if final else source.file_id, manifest.size)
        opened: AbstractContextManager[Part | Stream]
        opened = part_of(final) if final else nullcontext(Stream(stdout or sys.stdout.buffer))
        with opened as target:
            Download(source, manifest, target, patience, moved).run()
            if final is not None and isinstance(target, Part):
                target.publish(final, manifest.size)
    except OSError as error:
        raise GetFailed(f"{error.filename or output or 'the output'}: {error.strerror or error}") from error
    finally:
        source.close()
    return final


def _final(output: Path | None, source: Source, patience: Patience) -> Path:
    """Where the file goes."""
    if output is not None and not output.is_dir():
        return output
    final = (output or Path()) / _patiently(patience, source.name)
    if final.exists():
        raise GetFailed(f"{final} exists already; name another file, or this one, with -o")
    return final


class _Link(click.ParamType[str]):
    """A download link: `http(s)://HOST[/prefix]/d/f_…[/NAME]?sig=TOKEN`."""

    name = "link"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            parts = urlsplit(text)
            parts_of(parts.path)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            self.fail("a download link begins with http:// or https://", param, ctx)
        if not parse_qs(parts.query).get("sig"):
            self.fail("a download link ends with ?sig=…", param, ctx)
        return text


@click.command()
@click.argument("link", type=_Link())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the file goes: a file, a directory, or - for standard output. Default: the name the service gives.",
)
def get(link: str, output: Path | None) -> None:
    """Download the file behind the signed LINK and verify every block of it.

    A cut connection is taken up again where it was cut. So is a download whose command was ended:
    run the same line again. Where the service named the file, its name is printed.
    """
    stdout = sys.stdout.buffer if output == Path("-") else None
    with bar() as progress:
        task = progress.add_task("…", total=None)
        patience = Patience(retrying=lambda reason: progress.update(task, description=f"waiting: {reason}"))
        name = ""

        def started(found: str, size: int) -> None:
            nonlocal name
            name = found
            progress.update(task, total=size, description=name)

        try:
            final = fetch(
                link,
                output,
                stdout=stdout,
                patience=patience,
                started=started,
                moved=lambda done: progress.update(task, completed=done, description=name),
            )
        except (GetFailed, GaveUp) as error:
            raise click.ClickException(str(error)) from error
    if final is not None and final != output:
        click.echo(final)
