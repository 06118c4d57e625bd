"""The start of a service whose store says nothing, or refuses: how long it takes, and what an operator hears."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.starting import CannotStart
from service.storage.s3 import S3Storage, adapter
from tests.contract.buckets import bucket_of, give_up_soon
from tests.stores.faults import error, hang, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import site
from tests.web.s3_site import PART, PREFIX, S3Site, at_most

Start = Callable[..., AbstractAsyncContextManager[S3Site]]


@pytest.fixture
async def start(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Starts a service that waits until its store has answered, and looks for it again soon."""
    monkeypatch.setattr(adapter, "_START_SECONDS", 30.0)
    monkeypatch.setattr(adapter, "_FIRST_WAIT_SECONDS", 0.05)
    give_up_soon(monkeypatch, 2.0)
    settings: dict[str, Any] = {
        "storage": "s3",
        "s3_bucket": bucket,
        "s3_endpoint": faulty.endpoint,
        "s3_region": store.region,
        "s3_prefix": PREFIX,
        "s3_addressing": "path",
        "s3_part_size": PART,
    }
    async with bucket_of(store, bucket, faulty, monkeypatch) as held_in:

        @asynccontextmanager
        async def begin(**changes: Any) -> AsyncIterator[S3Site]:
            async with site(tmp_path, **settings | changes) as here:
                try:
                    yield S3Site(here, held_in)
                finally:
                    faulty.clear()

        yield begin


async def refusal(starting: AbstractAsyncContextManager[S3Site]) -> str:
    """The one line of a start that cannot be."""
    with pytest.raises(CannotStart) as caught:
        async with starting:
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def told(log: io.StringIO, event: str) -> list[dict[str, Any]]:
    """The records of an event."""
    return [record for record in map(json.loads, log.getvalue().splitlines()) if record["event"] == event]


def checksums(s3: S3Site) -> bool:
    """Whether the adapter sends any."""
    inner: Any = s3.here.service.storage._inner
    assert isinstance(inner, S3Storage)
    return inner._calls.checksums


async def found(s3: S3Site) -> None:
    """Returns once the service is ready."""
    async with asyncio.timeout(30):
        while await s3.ops("/readyz") != 200:
            await asyncio.sleep(0.02)


@pytest.fixture
def checking(store: Store) -> bool:
    """Whether the store looks at checksums."""
    return store.kind != "moto"


@pytest.mark.parametrize("kind", [None, "put_object", "create_multipart_upload"])
async def test_k3_a_start_does_not_wait_for_a_store_that_hangs(
    start: Start,
    faulty: FaultyStore,
    log: io.StringIO,
    kind: Any,
    checking: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """K3: Whatever the store does not answer, the service is soon alive and not ready, and finds it when it is back."""
    if kind == "create_multipart_upload" and not checking:
        pytest.skip("moto is not asked for more")
    monkeypatch.setattr(adapter, "_START_SECONDS", 0.5)
    give_up_soon(monkeypatch, 60.0)
    faulty.fault(kind, times=None, what=hang())
    with at_most(15):
        starting = start()
        s3 = await starting.__aenter__()
    try:
        assert await s3.ops("/livez") == 200
        assert len(told(log, "storage_away")) == 1
        assert not told(log, "storage_found")
        faulty.clear()
        await found(s3)
        assert checksums(s3) == checking
        assert len(told(log, "storage_found")) == 1
        path = await s3.here.create(5)
        assert (await s3.patch(path, 0, b"hello")).status == 204
        assert await s3.here.stored(path) == b"hello"
    finally:
        await starting.__aexit__(None, None, None)


async def test_k3_a_service_is_not_ready_before_it_knows_its_store(start: Start, faulty: FaultyStore) -> None:
    """K3: While the bucket answers and what the store can is still to be found out, /readyz is 503."""
    faulty.fault("put_object", times=None, what=status(500))
    async with start() as s3:
        assert await s3.ops("/readyz") == 503


@pytest.mark.parametrize("what", [status(503), status(500), error("QuotaExceeded", 403)], ids=["503", "500", "full"])
@pytest.mark.parametrize("kind", ["put_object", "upload_part"])
async def test_k3_trouble_while_asking_is_no_answer_about_checksums(
    start: Start, faulty: FaultyStore, checking: bool, kind: Any, what: Any
) -> None:
    """K3: A call that fails in passing leaves unknown whether checksums work; once it is over they are in use."""
    if not checking:
        pytest.skip("moto looks at no checksum")
    faulty.fault(kind, times=2, what=what)
    async with start() as s3:
        await found(s3)
        assert checksums(s3)


@pytest.mark.parametrize("kind", ["put_object", "create_multipart_upload", "upload_part"])
async def test_a_start_is_refused_with_the_right_that_lacks(
    start: Start, faulty: FaultyStore, checking: bool, kind: Any
) -> None:
    """Credentials that may not write end the start with a line that names the right, not with checksums off."""
    if kind != "put_object" and not checking:
        pytest.skip("moto is not asked for more")
    faulty.fault(kind, times=None, what=error("AccessDenied", 403))
    said = await refusal(start())
    assert said.startswith("ATTACHD_STORAGE=s3: AccessDenied")
    assert "allow s3:PutObject" in said


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("AWS_ACCESS_KEY_ID", "AKNOBODY", "AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_PROFILE", "there-is-none", "AWS_PROFILE"),
    ],
)
async def test_a_start_with_wrong_credentials_names_the_variable(
    start: Start, checking: bool, monkeypatch: pytest.MonkeyPatch, name: str, value: str, word: str
) -> None:
    """A key, secret or profile that is wrong ends the start with a line that says what to correct, and no other."""
    if name != "AWS_PROFILE" and not checking:
        pytest.skip("moto looks at no signature")
    monkeypatch.setenv(name, value)
    said = await refusal(start())
    assert word in said.partition(" -> ")[2]
    assert "ATTACHD_S3_BUCKET" not in said


async def test_a_start_without_its_bucket_says_so(start: Start) -> None:
    """The store's own word comes with the two settings that may be wrong."""
    said = await refusal(start(s3_bucket="there-is-none"))
    assert said.startswith("ATTACHD_STORAGE=s3: NoSuchBucket")
    assert "ATTACHD_S3_BUCKET or ATTACHD_S3_ENDPOINT" in said


async def test_a_start_with_an_address_that_is_no_store_is_refused(
    start: Start, faulty: FaultyStore, checking: bool
) -> None:
    """A server that answers everything with a page is no store whose checksums do not work."""
    faulty.fault("put_object", times=None, what=status(200))
    said = await refusal(start())
    assert "an answer that cannot be read" in said


async def test_what_is_refused_after_the_start_is_told_once(
    start: Start, faulty: FaultyStore, log: io.StringIO, checking: bool
) -> None:
    """A store that comes back and refuses is a new reason, logged once and without the bucket's name."""
    faulty.fault("head_bucket", what=status(503))
    faulty.fault("head_bucket", times=None, what=status(403))
    faulty.fault("list_objects", times=None, what=error("InvalidAccessKeyId", 403))
    async with start() as s3:
        await asyncio.to_thread(faulty.wait_for, "head_bucket", 5)
        reasons = [record["reason"] for record in told(log, "storage_away")]
        assert reasons == ["head_bucket: 503", "list_objects: InvalidAccessKeyId"]
        assert s3.bucket.name not in log.getvalue()
