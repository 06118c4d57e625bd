"""How far the ledger of an unfinished upload is backed by what the store says that it has.

Parts are asked for by ListParts, which serves nothing else: what counts is in the ledger, and this
only tells an operator whether the two agree (lesson O1).
"""

from __future__ import annotations

from collections.abc import Sequence

from service.model import Part
from service.storage.base import StorageShort
from service.storage.s3 import naming
from service.storage.s3.calls import Calls


async def backed(calls: Calls, upload_id: str, ledger: Sequence[Part]) -> int:
    """The end of the gap-free run of bytes that are there as the ledger has them. Raises StorageUnavailable."""
    end = ledger[-1].end if ledger else 0
    reached = await _pieces(calls, ledger)
    # what a finished file was made of is gone
    if reached < end and await calls.size(naming.file_key(naming.name_of(upload_id))) == end:
        return end
    return reached


async def _pieces(calls: Calls, ledger: Sequence[Part]) -> int:
    """How far the pieces that the ledger names are there."""
    reached = await _parts(calls, [part for part in ledger if naming.multipart_of(part) is not None])
    for part in ledger:
        if naming.multipart_of(part) is not None:
            if part.end > reached:
                break
        elif await calls.size(naming.object_of(part)) == part.end - part.start:
            reached = part.end
        else:
            break
    return reached


async def _parts(calls: Calls, parts: Sequence[Part]) -> int:
    """How far the parts of a multipart upload are there, be it complete or not."""
    multipart = naming.multipart_of(parts[0]) if parts else None
    if multipart is None:
        return 0
    key = naming.object_of(parts[0])
    try:
        there = await calls.parts(key, multipart)
    except StorageShort:
        # complete already, be it as the source of a joined one or by somebody who did not come to say so
        size = await calls.size(key)
        return parts[-1].end if size is not None and size >= parts[-1].end else 0
    reached = 0
    for part in parts:
        if there.get(part.number) != (naming.named_part(part.etag)["ETag"], part.end - part.start):
            break
        reached = part.end
    return reached
