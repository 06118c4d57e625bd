"""From the last byte to a file: what is read back of it, and what is not."""

from __future__ import annotations

import hashlib
from typing import Any

from service.model import FileId, State
from service.sniffing import SNIFF_BYTES
from service.storage.base import StorageUnavailable
from tests.web.harness import Site
from tests.web.sweeps import broken, replaced, state

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(2 * SNIFF_BYTES)


def unreadable(here: Site) -> Any:
    """No finished file can be opened inside."""

    def away(_: str) -> None:
        raise StorageUnavailable("away")

    return replaced(here, "storage", "open_file", away)


async def sniffed_type(here: Site, file_id: str) -> str | None:
    """What is recorded of the file's content."""
    file = await here.service.metadata.file(FileId(file_id))
    assert file is not None
    return file.sniffed_type


async def test_a_file_that_came_in_one_request_is_not_opened(here: Site) -> None:
    """Its first bytes are known when it ends, so that its type is, without a read."""
    with unreadable(here):
        file = await here.upload(PNG)
    assert await sniffed_type(here, file) == "image/png"
    assert await here.fetch(file) == PNG


async def test_an_empty_file_is_not_opened(here: Site) -> None:
    """A body that turned out to be empty has a first byte as little as its file."""
    path = await here.create(None, Upload_Defer_Length="1")
    with unreadable(here):
        assert (await here.patch(path, 0, b"", Upload_Length="0")).status == 204
    assert await sniffed_type(here, await here.file_id(path)) is None


async def test_a_file_that_came_in_several_requests_is_known_by_its_start(here: Site) -> None:
    """The request that brings the end looks at the beginning, not at what it brought."""
    path = await here.create(len(PNG))
    await here.patch(path, 0, PNG[:4])
    assert (await here.patch(path, 4, PNG[4:])).status == 204
    assert await sniffed_type(here, await here.file_id(path)) == "image/png"


async def test_a_file_whose_finishing_failed_is_known_by_its_start(here: Site) -> None:
    """Whoever goes on after a failure has no first bytes in hand, and reads them."""
    path = await here.create(len(PNG))
    with broken(here, "storage", "complete", StorageUnavailable("away")):
        assert (await here.patch(path, 0, PNG)).status == 503
    await here.service.janitor.sweep()
    assert await sniffed_type(here, await here.file_id(path)) == "image/png"


async def test_a_digest_that_the_link_names_is_of_what_is_stored(here: Site) -> None:
    """The whole file is read for it, also one that came in one request: else it is not finished."""
    path = await here.create(len(PNG), here.link(sha256=hashlib.sha256(PNG).hexdigest()))
    with unreadable(here):
        assert (await here.patch(path, 0, PNG)).status == 503
    assert await state(here, path) is State.FINISHING
    await here.service.janitor.sweep()
    assert await here.stored(path) == PNG
