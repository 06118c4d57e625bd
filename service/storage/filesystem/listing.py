"""What lies below the root, a shard at a time. Blocking calls.

Only names that this adapter gives are looked at, where it puts them: whatever else somebody keeps
below the root is nobody's business here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from service.model import UploadId
from service.storage.base import Held
from service.storage.filesystem.layout import Layout, file_of, is_mark, segment_of

_SHARD: Final = re.compile(r"[a-z2-7]{2}")

#: what is held in one shard and was last changed at or before an instant
Listing: TypeAlias = Callable[[Path, float], list[Held]]


def listings(layout: Layout) -> tuple[tuple[Path, Listing], ...]:
    """The directories of shards, and how one shard of each is listed."""
    return ((layout.uploads, _unfinished), (layout.files, _finished))


def shards(directory: Path) -> list[Path]:
    """The shard directories of a directory."""
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries if _SHARD.fullmatch(entry.name) and entry.is_dir())
    return [directory / name for name in names]


def _unfinished(shard: Path, before: float) -> list[Held]:
    """One for all segments of an upload; none for an upload of which any is younger."""
    sizes: dict[UploadId, int] = {}
    marks: set[UploadId] = set()
    changed: dict[UploadId, float] = {}
    for name, found in _entries(shard):
        upload_id = segment_of(name)
        if upload_id is not None:
            if is_mark(name) and found.st_nlink > 1:
                marks.add(upload_id)
            sizes[upload_id] = sizes.get(upload_id, 0) + found.st_size
            changed[upload_id] = max(changed.get(upload_id, found.st_mtime), found.st_mtime)
    return [
        Held(upload_id, None, size, mark=upload_id in marks)
        for upload_id, size in sizes.items()
        if changed[upload_id] <= before
    ]


def _finished(shard: Path, before: float) -> list[Held]:
    return [
        Held(upload_id, upload_id, found.st_size)
        for name, found in _entries(shard)
        if (upload_id := file_of(name)) is not None and found.st_mtime <= before
    ]


def _entries(shard: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Files that are where their name says, unless they go meanwhile."""
    with os.scandir(shard) as entries:
        for entry in entries:
            if entry.name[2:4] != shard.name or not entry.is_file(follow_symlinks=False):
                continue
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
