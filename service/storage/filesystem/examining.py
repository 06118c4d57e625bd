"""What lies on the disk of an unfinished upload, held against its ledger. Blocking calls that change nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from service.model import Part, UploadId
from service.storage.base import Backing, Staged
from service.storage.filesystem.layout import Layout


def examine(layout: Layout, upload_id: UploadId, ledger: Sequence[Part], before: float) -> Backing:
    """See `Storage.examine`. `before`: the instant at or before which a segment must have been changed."""
    backed = 0
    for part in ledger:
        there = _size_there(layout, part)
        backed = part.start + there
        if there < part.end - part.start:
            # an unmounted disk is no lost segment
            layout.check_there()
            break
    named = {part.key for part in ledger}
    staged = []
    for key, _ in sorted(layout.segments(upload_id)):
        found = None if key in named else _stat(layout.segment(key))
        if found is not None and found.st_mtime <= before:
            staged.append(Staged(key, found.st_size))
    return Backing(backed, tuple(staged))


def _size_there(layout: Layout, part: Part) -> int:
    """How many of the part's bytes are there, from its first on: in its segment, or in the file that this became."""
    length = part.end - part.start
    segment = _stat(layout.segment(part.key))
    if segment is not None:
        return min(segment.st_size, length)
    file = _stat(layout.file(part.key.partition(".")[0]))
    return 0 if file is None else min(max(file.st_size - part.start, 0), length)


def _stat(path: os.PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
