"""`attachd fsck`: whether metadata and storage agree, one line for each difference."""

from __future__ import annotations

from typing import Final

import click

from service.clock import new_event_id
from service.commands import DURATION
from service.commands.upkeep import run
from service.events import EventMaker
from service.files import ORPHAN_SECONDS, Files
from service.fsck import Finding, Fsck, Word
from service.stores import Stores
from service.units import format_duration

_ADVICE: Final[dict[Word, str]] = {
    Word.FILE_MISSING: "put the object back from a backup; downloads fail until then",
    Word.FILE_SIZE: "put the object back from a backup; downloads are wrong or fail until then",
    Word.UPLOAD_SHORT: "put the bytes back from a backup; else the next request fails the upload, and its link is free",
    Word.UPLOAD_FINISHED: "restore a newer copy of the database; by this one the upload can neither go on nor end",
    Word.LEFTOVER: "`attachd gc`, or the service itself, removes it",
    Word.ORPHAN: "`attachd gc`, or the service itself, removes it",
    Word.STRANGER: "restore a newer copy of the database, or remove it by hand; attachd leaves it alone",
    Word.STAGED: "nothing to do: it goes with the upload",
    Word.MISCOUNTED: "`attachd gc` counts anew; until then the owner's quota is off",
    Word.UNCHECKED: "see to that it can be read, then run this again",
}
#: needs nobody, so it is told and not counted
_HARMLESS: Final = frozenset({Word.STAGED})


def line_of(finding: Finding) -> str:
    return f"{finding.word} {finding.id}: {finding.found} -> {_ADVICE[finding.word]}"


@click.command()
@click.option(
    "--older-than",
    type=DURATION,
    default=format_duration(int(ORPHAN_SECONDS)),
    show_default=True,
    help="Spare bytes without a record that were changed since: a service may be about to record or remove them.",
)
@click.pass_context
def fsck(context: click.Context, older_than: int) -> None:
    """Compare the database with what is stored, both ways. Changes nothing.

    Prints one line for each file or upload whose bytes are not there, and for all that is stored
    without a record. It may run beside the service. What the bytes are is not looked at: see
    `attachd verify`.

    Exits with 0 if all agrees, 1 after findings, 2 if not all could be checked.
    """
    run(context, lambda stores: _compare(stores, older_than), look=True, read_only=True, failed=2, log_level="error")


async def _compare(stores: Stores, older_than: int) -> int:
    files = Files(stores.metadata, stores.storage, stores.clock, EventMaker(new_event_id), lambda _: None)
    comparison = Fsck(stores.metadata, stores.metadata, stores.storage, files, older_than=older_than)
    found = unchecked = 0
    async for finding in comparison.findings():
        click.echo(line_of(finding))
        found += finding.word not in _HARMLESS
        unchecked += finding.word is Word.UNCHECKED
    spared = f"bytes without a record that are younger than {format_duration(older_than)} were spared"
    if comparison.moving:
        spared += f"; {comparison.moving} uploads moved on meanwhile"
    click.echo(f"{comparison.files} files, {comparison.uploads} unfinished uploads: {found} findings ({spared})")
    return 2 if unchecked else 1 if found else 0
