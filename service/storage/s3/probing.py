"""Whether the store checks the CRC-32C that comes with a body: asked once, at the start (lesson K3)."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

from service.storage.base import StorageError
from service.storage.s3.advice import about_checksum
from service.storage.s3.calls import Calls
from service.storage.s3.client import answer_in

_KEY: Final = "attachd-probe-"
_BODY: Final = b"attachd" * 64
#: the checksum of no bytes at all
_WRONG: Final = "AAAAAA=="
#: seconds; what is younger may be another process's that is starting
_OLD: Final = 3600.0


async def store_checks_checksums(calls: Calls) -> bool:
    """Whether it refuses a wrong one, and takes a right one, in a multipart upload too. Each call is made once.

    Some look-alikes refuse the header, and others take no notice of it and store damaged bytes.

    Raises:
        StorageError: a call failed for another reason, so it is not known.
    """
    once, key = calls.once(), f"{_KEY}{secrets.token_hex(8)}"
    try:
        if await _taken(once.put(key, _BODY, checksum=_WRONG)):
            return False
        return await _taken(_put_in_parts(once, key)) and await once.size(key) == len(_BODY)
    finally:
        # RuntimeError: the storage was closed meanwhile
        with suppress(StorageError, RuntimeError):
            await once.delete(key)


async def remove_old(calls: Calls) -> None:
    """What a start left that was killed as it asked is gone, as far as the store lists and removes it now."""
    once = calls.once()
    with suppress(StorageError):
        page = await once.multiparts(_KEY)
        for found in page.found:
            if found.multipart_id and found.changed_at < page.at - _OLD:
                await once.abort_multipart(found.key, found.multipart_id)
    with suppress(StorageError):
        page = await once.objects(_KEY)
        for found in page.found:
            if found.changed_at < page.at - _OLD:
                await once.delete(found.key)


async def _taken(sent: Awaitable[object]) -> bool:
    """Whether the store took what was sent with its checksum. Raises StorageError: it is no answer to that."""
    try:
        await sent
    except StorageError as error:
        if about_checksum(answer_in(error)):
            return False
        raise
    return True


async def _put_in_parts(calls: Calls, key: str) -> None:
    multipart = await calls.create_multipart(key, checked=True)
    try:
        tag = await calls.upload_part(key, multipart, 1, _BODY, checked=True)
        await calls.complete_multipart(key, multipart, {1: tag}, attempts=1)
    except BaseException:
        with suppress(StorageError, RuntimeError):
            await calls.abort_multipart(key, multipart)
        raise
