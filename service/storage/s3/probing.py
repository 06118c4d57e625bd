"""Whether the store checks the CRC-32C that comes with a body: asked once, at the start (lesson K3)."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Final

from service.storage.base import StorageError
from service.storage.s3.calls import Calls

_KEY: Final = "attachd-probe"
_BODY: Final = b"attachd" * 64
#: the checksum of no bytes at all
_WRONG: Final = "AAAAAA=="


async def store_checks_checksums(calls: Calls) -> bool:
    """Whether it refuses a wrong one, and takes a right one, in a multipart upload too.

    Some look-alikes refuse the header, and others take no notice of it and store damaged bytes.
    """
    key = f"{_KEY}-{secrets.token_hex(8)}"
    try:
        return await _refuses_wrong(calls, key) and await _takes_right(calls, key)
    finally:
        with suppress(StorageError):
            await calls.delete(key)


async def _refuses_wrong(calls: Calls, key: str) -> bool:
    try:
        await calls.put(key, _BODY, checksum=_WRONG, attempts=1)
    except StorageError:
        return True
    return False


async def _takes_right(calls: Calls, key: str) -> bool:
    multipart: str | None = None
    try:
        multipart = await calls.create_multipart(key, checked=True)
        tag = await calls.upload_part(key, multipart, 1, _BODY, checked=True)
        await calls.complete_multipart(key, multipart, {1: tag}, attempts=1)
    except StorageError:
        if multipart is not None:
            await calls.abort_multipart(key, multipart)
        return False
    return await calls.size(key) == len(_BODY)
