"""Memory on the way to a bucket: what slow clients hold, and what happens when there is no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.buckets import some_bytes
from tests.stores.faults import hold
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS, Line, Site, path_of
from tests.web.s3_site import LEAST_MEMORY, MIB, PREFIX, S3Site, s3_site
from tests.web.under_way import begin_patch, received, until


@pytest.fixture
async def s3(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    """A service with as little memory as its settings allow."""
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch, buffer_limit=LEAST_MEMORY) as running:
        yield running


# --- D1: slow clients -----------------------------------------------------------------------------


async def drip(here: Site, line: Line, data: bytes) -> None:
    """A little more of a running body has been received."""
    before = received(here)
    await line.send(data)
    await until(lambda: received(here) - before >= len(data))


async def test_d1_slow_clients_hold_what_they_sent_and_nothing_else(s3: S3Site) -> None:
    """D1: Ten uploads that get a kilobyte now and then keep these bytes in memory and ask nothing of the store.

    An eleventh has all the rest: it sends 40 MiB at once, which is as much as there is memory in all.
    """
    slow, sent = [], 0
    for _ in range(10):
        path = await s3.here.create(20 * MIB)
        slow.append((path, await begin_patch(s3.here, path, 0, b"x" * 1000, length=20 * MIB)))
        sent += 1000
    for _ in range(3):
        for _, line in slow:
            await drip(s3.here, line, b"y" * 1000)
            sent += 1000
    await until(lambda: s3.in_hand == sent)
    assert s3.memory.used == sent
    assert s3.here.service.bodies._pool.used_bytes == 0, "no buffer waits for a client"
    assert s3.counted() == {}

    content = some_bytes(40 * MIB)
    path = await s3.here.create(len(content))
    assert (await s3.patch(path, 0, content)).status == 204
    name = s3.here.upload_id(path)[:15]
    assert {call.key for call in s3.faulty.calls if call.kind == "upload_part"} == {f"{PREFIX}{name}/file"}
    assert await s3.here.stored(path) == content
    for other, line in slow:
        line.reset()
        await s3.released(other)
        assert (await s3.here.head(other)).offset == 4000


# --- D2: no more memory ---------------------------------------------------------------------------


class Watch:
    """Looks at the memory whenever it is asked for, and remembers the most."""

    def __init__(self, s3: S3Site) -> None:
        self.most = 0
        memory, pool = s3.memory, s3.here.service.bodies._pool
        give = memory.give

        def look(size: int, **how: bool) -> None:
            self.most = max(self.most, memory.used + pool.used_bytes)
            give(size, **how)

        memory.give = look  # type: ignore[method-assign]


async def test_d2_a_store_that_is_held_back_stops_the_clients(s3: S3Site, tmp_path: Path) -> None:
    """D2: Twelve uploads of 11 MiB into memory for 40, and no call returns: all wait, HEAD works, and all end right.

    One more is refused as `overloaded`, or waits with them. Nothing is put on disk meanwhile.
    """
    content = some_bytes(11 * MIB)
    contents = [content[at:] + content[:at] for at in range(12)]
    paths = [await s3.here.create(len(content)) for _ in contents]
    watch = Watch(s3)
    holding = hold()
    s3.faulty.fault(None, what=holding, times=None)
    before = await asyncio.to_thread(lambda: {path.name for path in s3.here.service.settings.data.rglob("*")})
    patching = [asyncio.ensure_future(s3.patch(path, 0, sent)) for path, sent in zip(paths, contents, strict=True)]
    await until(lambda: len(s3.memory._waiting) == len(paths))
    assert s3.in_hand <= LEAST_MEMORY
    for path in paths:
        assert (await s3.here.head(path)).status == 200

    fields = TUS | {"Upload-Length": "5", "Content-Type": OCTETS}
    late = asyncio.ensure_future(s3.ask("POST", s3.here.link(), fields, b"hello"))
    await until(lambda: late.done() or len(s3.memory._waiting) > len(paths))
    if late.done():
        assert (late.result().status, late.result().slug) == (503, "overloaded")
        assert "Retry-After" in late.result().headers
    now = await asyncio.to_thread(lambda: {path.name for path in s3.here.service.settings.data.rglob("*")})
    assert {name for name in now - before if not name.startswith("attachd.db")} == set(), "no temporary files"
    holding.release()
    assert [answer.status for answer in await asyncio.gather(*patching)] == [204] * len(paths)
    assert watch.most <= LEAST_MEMORY
    if (await late).status == 201:
        assert await s3.here.stored(path_of(late.result().headers["Location"])) == b"hello"
    for path, sent in zip(paths, contents, strict=True):
        assert await s3.here.stored(path) == sent


async def test_d2_the_gauge_is_what_is_held(s3: S3Site) -> None:
    """D2: `attachd_buffer_bytes` tells what is in memory, and `attachd_buffer_limit_bytes` what may be."""
    path = await s3.here.create(20 * MIB)
    await begin_patch(s3.here, path, 0, bytes(3 * MIB), length=20 * MIB)
    await until(lambda: s3.metric("attachd_buffer_bytes") == 3 * MIB)
    assert s3.metric("attachd_buffer_limit_bytes") == LEAST_MEMORY
