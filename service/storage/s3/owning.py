"""Whose files lie below the prefix: an object there names the one database that may change anything.

Two databases on one place would each take the other's files for nobody's, and one that is pointed
at a wrong place would take its own bytes for lost. So nothing is read as missing and nothing is
removed until the place was seen to be this database's.
"""

from __future__ import annotations

from typing import Final

import structlog

from service.storage.s3.calls import Calls
from service.storage.s3.client import StoreRefused

log = structlog.get_logger(__name__)

#: below the prefix; a key that no upload has
OWNER: Final = "attachd-owner"


class NotOurs(StoreRefused):
    """The place is another database's, or holds nothing of this one's. For an operator to mend."""


async def claim(calls: Calls, owner: str, *, settled: bool) -> None:
    """The place is the database's, from now on if it was nobody's.

    Args:
        owner: the database's identity.
        settled: it knows of bytes that must be there, so that it makes no place without its name its own.

    Raises:
        NotOurs: nothing was changed.
        StorageUnavailable: worth a retry.
    """
    found = await calls.whole(OWNER)
    if found is not None:
        if found.strip() != owner.encode():
            raise NotOurs(
                "this place belongs to another database; each needs an ATTACHD_S3_BUCKET or ATTACHD_S3_PREFIX of its"
                f" own (to take over from the other one for good, put {owner} into the object {OWNER} below the prefix)"
            )
    elif settled:
        raise NotOurs(
            f"nothing of this database is here (no {OWNER}); wrong ATTACHD_S3_BUCKET or ATTACHD_S3_PREFIX?"
            f" (if all its files were brought here, put {owner} into the object {OWNER} below the prefix)"
        )
    else:
        await calls.put(OWNER, owner.encode() + b"\n")
        log.info("storage_claimed")
