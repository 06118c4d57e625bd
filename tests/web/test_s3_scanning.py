"""Files in a bucket are scanned as those on a disk are: read back in ranges, and in quarantine for everybody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from service import scanning
from service.model import State
from tests.contract.buckets import some_bytes
from tests.scanners.double import EICAR, Double
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.s3_site import MIB, S3Site, s3_site
from tests.web.traces import events
from tests.web.under_way import until

CONTENT = some_bytes(12 * MIB)


@pytest.fixture
def front(moto_store: Store) -> Iterator[FaultyStore]:
    with FaultyStore(moto_store) as running:
        yield running


@pytest.fixture
async def clamd() -> AsyncIterator[Double]:
    async with Double().serving() as serving:
        yield serving


@pytest.fixture
async def s3(
    tmp_path: Path, moto_store: Store, front: FaultyStore, clamd: Double, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    """A service that scans, and would send clients to the store."""
    bucket = moto_store.make_bucket()
    changes: dict[str, Any] = {"download_mode": "redirect", "clamd": clamd.address}
    async with s3_site(tmp_path, moto_store, bucket, front, monkeypatch, **changes) as running:
        yield running
    moto_store.drop_bucket(bucket)


async def test_an_object_is_scanned_whole(s3: S3Site, clamd: Double) -> None:
    """What the scanner gets is what was sent, of whatever parts it was made."""
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT[: 5 * MIB])).status == 204
    assert (await s3.patch(path, 5 * MIB, CONTENT[5 * MIB :])).status == 204
    assert await s3.state(path) is State.READY
    assert clamd.scanned == [CONTENT]
    assert s3.in_hand == 0


async def test_an_infected_object_is_no_ones(s3: S3Site) -> None:
    """It stays in the bucket, and no link leads there: not even to a presigned URL."""
    content = CONTENT + EICAR
    path = await s3.here.create(len(content))
    assert (await s3.patch(path, 0, content)).slug == "infected"
    (infected,) = [data for kind, data in events(s3.here) if kind == "file.infected"]
    refused = await s3.here.ask("GET", s3.here.download_link(infected["file_id"]))
    assert (refused.status, refused.slug) == (403, "infected")
    assert "Location" not in refused.headers
    file = await s3.here.service.metadata.file(infected["file_id"])
    assert file is not None
    async with s3.here.service.storage.open_file(file.key) as opened:
        assert opened.size == len(content)


async def test_a_scanner_that_hangs_keeps_no_memory(s3: S3Site, clamd: Double) -> None:
    """What was read for a scan that is given up is free for others, and the next scan is of all of it."""
    judging = s3.here.service.context.uploads._finisher._scanning
    assert judging is not None
    judging._scan_seconds = 1
    clamd.manner = "hangs"
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT)).status == 423
    await until(lambda: s3.in_hand == 0)
    assert await s3.state(path) is State.FINISHING
    clamd.manner = "honest"
    judging._scan_seconds, judging._paused_until = scanning.SCAN_SECONDS, 0
    await s3.sweep()
    assert await s3.state(path) is State.READY
    assert clamd.scanned == [CONTENT]
