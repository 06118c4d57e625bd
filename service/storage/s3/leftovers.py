"""What lies in the bucket below one upload's name, and its removal: for after the end, and for orphans.

The only place where a listing decides anything, and it decides on removal alone (lesson O1).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.storage.base import Held, StorageError
from service.storage.s3 import naming
from service.storage.s3.calls import Calls, Listed, Page

_AT_ONCE: Final = 8


async def remove(calls: Calls, name: str, *, spare: Callable[[str], bool]) -> None:
    """Of the upload with that name nothing is in the bucket but the objects whose keys are spared. Idempotent."""
    key = naming.file_key(name)
    # the whole key, because some stores list the multipart uploads of no shorter prefix
    multiparts, objects = await asyncio.gather(
        _all(calls.multiparts, key), _all(calls.objects, f"{name}/"), return_exceptions=True
    )
    work: list[Awaitable[None]] = []
    # a store that cannot list the ones still loses the others (lesson K3)
    if not isinstance(multiparts, BaseException):
        # keys that only begin so are others'
        ours = [found.multipart_id for found in multiparts if found.key == key and found.multipart_id]
        work += [calls.abort_multipart(key, multipart) for multipart in ours]
    if not isinstance(objects, BaseException):
        work += [calls.delete(found.key) for found in objects if naming.is_ours(found.key) and not spare(found.key)]
    await _each(work)
    for failed in (multiparts, objects):
        if isinstance(failed, BaseException):
            raise failed


async def _each(work: Sequence[Awaitable[None]]) -> None:
    """All of it is done, some at a time; one that fails keeps none of the others."""
    failed: BaseException | None = None
    for low in range(0, len(work), _AT_ONCE):
        for result in await asyncio.gather(*work[low : low + _AT_ONCE], return_exceptions=True):
            failed = failed or (result if isinstance(result, BaseException) else None)
    if failed is not None:
        raise failed


async def _all(listing: Callable[[str, Mapping[str, str] | None], Awaitable[Page]], start: str) -> list[Listed]:
    return [found async for page in _pages(listing, start) for found in page.found]


async def _pages(
    listing: Callable[[str, Mapping[str, str] | None], Awaitable[Page]], start: str
) -> AsyncIterator[Page]:
    more: Mapping[str, str] | None = None
    while True:
        page = await listing(start, more)
        yield page
        more = page.more
        if more is None:
            return


@dataclass(slots=True)
class _Unfinished:
    """The tail segments and multipart uploads of one name."""

    name: str
    size: int = 0
    changed_at: float = 0.0

    def add(self, found: Listed) -> None:
        """One more of them."""
        self.size += found.size
        self.changed_at = max(self.changed_at, found.changed_at)

    def before(self, instant: float) -> list[Held]:
        """What to tell of it, if there is any and all was last changed before the instant."""
        return [Held(self.name, None, self.size)] if 0 < self.changed_at < instant else []


async def held(calls: Calls, *, older_than: float) -> AsyncIterator[Held]:
    """See `Storage.held`. Of a multipart upload neither the size nor when it last got a part is known."""
    unfinished, failed = await _multiparts(calls)
    before = time.time() - older_than
    current = _Unfinished("")
    async for page in _pages(calls.objects, naming.START):
        before = page.at - older_than
        for found in filter(_ours, page.found):
            name = naming.name_in(found.key)
            if current.name != name:
                # keys come in order, so nothing more of the name before comes
                for told in current.before(before):
                    yield told
                current = unfinished.pop(name, _Unfinished(name))
            if not naming.is_file(found.key):
                current.add(found)
            elif found.changed_at < before:
                yield Held(name, found.key, found.size)
    for left in (current, *unfinished.values()):
        for told in left.before(before):
            yield told
    if failed is not None:
        raise failed


def _ours(found: Listed) -> bool:
    return naming.is_ours(found.key)


async def _multiparts(calls: Calls) -> tuple[dict[str, _Unfinished], StorageError | None]:
    """By name; and what kept the store from listing all."""
    unfinished: dict[str, _Unfinished] = {}
    try:
        async for page in _pages(calls.multiparts, naming.START):
            for found in filter(_ours, page.found):
                name = naming.name_in(found.key)
                unfinished.setdefault(name, _Unfinished(name)).add(found)
    except StorageError as error:
        return unfinished, error
    return unfinished, None
