"""A finisher that slept while another published: nothing it does can be seen, on disk and in a bucket (L2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.metadata.base import Conflict, Lease
from service.model import State, Upload
from service.storage.base import StorageUnavailable
from tests.contract.buckets import some_bytes
from tests.web.harness import TUS, Site, path_of, site
from tests.web.s3_site import MIB, PART, s3_site
from tests.web.sweeps import broken, replaced, state
from tests.web.under_way import until

LARGE = some_bytes(2 * PART + 7)
SMALL = b"hello"


@pytest.fixture(params=["disk", "s3"])
async def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    """A service on each kind of storage."""
    if request.param == "disk":
        async with site(tmp_path, block_size=MIB) as here:
            await first_sweep(here)
            yield here
        return
    store, bucket, faulty = (request.getfixturevalue(name) for name in ("store", "bucket", "faulty"))
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch) as s3:
        yield s3.here


async def first_sweep(here: Site) -> None:
    """It is over, which would go on with what a test leaves unfinished."""
    await until(lambda: here.service.janitor._slow is not None and here.service.janitor._slow.done())


async def whole(here: Site, content: bytes) -> str:
    """An upload that has all of its bytes, and no file yet."""
    path = await here.create(len(content))
    with broken(here, "storage", "complete", StorageUnavailable("away")):
        assert (await here.patch(path, 0, content)).status == 503
    return path


async def joined(here: Site, *contents: bytes) -> tuple[str, list[str]]:
    """A final upload whose partials could not be joined yet; and those."""
    partials = []
    for content in contents:
        partials.append(await here.create(len(content), Upload_Concat="partial"))
        assert (await here.patch(partials[-1], 0, content)).status == 204
    with broken(here, "storage", "concatenate", StorageUnavailable("away")):
        answer = await here.post(None, here.link(), Upload_Concat="final;" + " ".join(partials))
        await here.service.tasks.drain()
    return path_of(answer.headers["Location"]), partials


async def overtaken(here: Site, path: str) -> tuple[Upload, Lease]:
    """What a finisher has in hand whose lease ran out; the sweep has published the file since."""
    assert await state(here, path) is State.FINISHING
    now = here.service.context.uploads._clock.now()
    lease, upload = await here.service.metadata.acquire_lease(here.upload_id(path), "sleeper:1", now=now, until=now - 1)
    await here.service.tasks.drain()
    await here.service.janitor.sweep()
    assert await state(here, path) is State.READY
    return upload, lease


async def wake(here: Site, upload: Upload, lease: Lease) -> None:
    """The finisher goes on: it is told that it comes too late, and asks nothing of storage."""
    asked: list[str] = []
    with ExitStack() as stack:
        for name in ("complete", "concatenate", "discard"):
            call = getattr(here.service.storage, name)

            async def watched(*values: Any, _name: str = name, _call: Any = call, **named: Any) -> Any:
                asked.append(_name)
                return await _call(*values, **named)

            stack.enter_context(replaced(here, "storage", name, watched))
        with pytest.raises(Conflict):
            await here.service.context.uploads._finisher.finish(upload, lease)
    assert not asked


@pytest.mark.parametrize("content", [LARGE, SMALL], ids=["large", "small"])
async def test_l2_a_finisher_that_slept_leaves_the_file_as_it_is(served: Site, content: bytes) -> None:
    """L2: One that finds the ledger published away asks nothing of storage, and the file reads as before."""
    path = await whole(served, content)
    upload, lease = await overtaken(served, path)
    await wake(served, upload, lease)

    assert await state(served, path) is State.READY
    assert await served.stored(path) == content


@pytest.mark.parametrize("sizes", [(PART + 5, MIB), (3, 5)], ids=["large", "small"])
async def test_l2_a_joiner_that_slept_leaves_the_file_as_it_is(served: Site, sizes: tuple[int, int]) -> None:
    """L2: One that finds a partial deleted after the file was made asks nothing of storage, and the file stays."""
    contents = [some_bytes(size, seed) for seed, size in enumerate(sizes)]
    path, partials = await joined(served, *contents)
    upload, lease = await overtaken(served, path)
    assert (await served.ask("DELETE", partials[0], TUS)).status == 204
    await wake(served, upload, lease)

    assert await state(served, path) is State.READY
    assert await served.stored(path) == b"".join(contents)


async def test_l2_a_finisher_whose_upload_was_removed_asks_nothing_of_storage(served: Site) -> None:
    """L2: One whose upload was published and then deleted makes no file anew."""
    path = await whole(served, SMALL)
    upload, lease = await overtaken(served, path)
    assert (await served.ask("DELETE", path, TUS)).status == 204
    await wake(served, upload, lease)
    assert (await served.head(path)).status == 410
