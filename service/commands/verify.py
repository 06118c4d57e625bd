"""`attachd verify`: whether the stored bytes are still those that came."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from service.clock import new_event_id
from service.commands import RATE, WrongArgument
from service.commands.line import bar
from service.commands.upkeep import run
from service.events import EventMaker
from service.model import FileId, parse_file_id
from service.stores import Stores
from service.units import format_size
from service.verifying import Pace, Verdict, Verifier

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: how often a line tells how far it is where there is no terminal for a bar
_TELL_SECONDS: Final = 30.0


class Report:
    """How far it is, and what was found: for a bar, for lines now and then, and for the last line.

    Args:
        say: takes a line for people, none of which is a finding.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        say: Callable[[str], object] = lambda line: click.echo(line, err=True),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("verifying", total=None)
        self._say = say
        self._monotonic = monotonic
        self._told = monotonic()
        self._total = ""
        self.files = 0
        self.damaged = 0
        self.unread = 0
        self._bytes = 0

    def expect(self, files: int, size: int) -> None:
        """So much is to be read."""
        self._total = f" of {files}, {format_size(size)}"
        self._progress.update(self._task, total=size)

    def read(self, size: int) -> None:
        """So many bytes more were read."""
        self._bytes += size
        self._progress.update(self._task, completed=self._bytes)
        if self._progress.disable and self._monotonic() - self._told >= _TELL_SECONDS:
            self._told = self._monotonic()
            self._say(f"verified {self.files} files, {format_size(self._bytes)}{self._total}")

    def judged(self, verdict: Verdict) -> None:
        """Prints what was found; a file without a fault is only counted."""
        file = verdict.file
        self.files += 1
        self.damaged += bool(verdict.damage)
        self.unread += bool(verdict.unread)
        for each in verdict.damage:
            click.echo(f"corrupt {file.id}: bytes [{each.start}, {each.end}) of {file.manifest.size}: {each.how}")
        if verdict.unread:
            click.echo(f"unchecked {file.id}: {verdict.unread}")

    def __str__(self) -> str:
        found = f"{self.damaged} corrupt" + (f", {self.unread} unchecked" if self.unread else "")
        return f"{self.files} files, {format_size(self._bytes)} read: {found}"

    @property
    def code(self) -> int:
        """The exit code."""
        return 2 if self.unread else 1 if self.damaged else 0


@click.command()
@click.argument("file_id", metavar="[FILE_ID]", required=False)
@click.option("--all", "every", is_flag=True, help="Every file that is not deleted.")
@click.option("--rate", type=RATE, metavar="RATE", help="Read no faster than this, e.g. 200MiB/s.")
@click.pass_context
def verify(context: click.Context, *, file_id: str | None, every: bool, rate: int | None) -> None:
    """Read the stored bytes of FILE_ID, or of all files, and compare every block with its manifest.

    Prints one line for each range of bytes that is missing or not what was stored, and tells it as
    the event file.corrupt. It may run beside the service.

    Exits with 0 if all is right, 1 if not, 2 if not all could be checked, 130 after Ctrl-C.
    """
    wanted = _wanted(file_id, every=every)
    if rate == 0:
        raise WrongArgument("--rate: nothing could be read at a rate of 0 B/s")
    with bar() as progress:
        report = Report(progress)

        async def work(stores: Stores) -> int:
            pace = Pace(rate, stores.clock)
            events = EventMaker(new_event_id)
            verifier = Verifier(stores.metadata, stores.storage, stores.clock, events, pace, read=report.read)
            if wanted is None:
                await _all(verifier, stores, report)
            else:
                await _one(verifier, wanted, stores, report)
            return report.code

        run(
            context,
            work,
            look=True,
            read_only=False,
            failed=2,
            log_level="warning",
            interrupted=lambda: f"interrupted after {report}",
        )


async def _all(verifier: Verifier, stores: Stores, report: Report) -> None:
    totals = await stores.metadata.totals()
    report.expect(totals.files, totals.file_bytes)
    async for verdict in verifier.all():
        report.judged(verdict)
    click.echo(report)


async def _one(verifier: Verifier, wanted: FileId, stores: Stores, report: Report) -> None:
    file = await stores.metadata.file(wanted)
    if file is None:
        raise WrongArgument(f"there is no file {wanted}")
    report.expect(1, file.manifest.size)
    verdict = await verifier.one(wanted)
    if verdict is None:
        raise WrongArgument(f"{wanted} was deleted")
    report.judged(verdict)
    if not report.code:
        click.echo(f"ok {wanted}: {verdict.file.manifest.size} bytes")


def _wanted(text: str | None, *, every: bool) -> FileId | None:
    """The file, None: all. Raises WrongArgument."""
    if every is (text is not None):
        raise WrongArgument("name one FILE_ID, or --all")
    if text is None:
        return None
    file_id = parse_file_id(text)
    if file_id is None:
        raise WrongArgument("FILE_ID: must be f_ and 26 of a-z 2-7")
    return file_id
