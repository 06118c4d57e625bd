"""How a bucket is reached: by its name in the path or in the host, below a prefix or none, with keys that end."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from service.clock import SystemClock
from service.storage.s3 import Memory, S3Options, S3Storage
from tests.conftest import require
from tests.contract.buckets import MIB, PART, Upload, forget_tails, share_models, some_bytes
from tests.contract.storage_values import content
from tests.stores.fixtures import missing
from tests.stores.servers import Store, open_store

DOMAIN: Final = "s3.test"


@asynccontextmanager
async def _opened(options: S3Options) -> AsyncIterator[S3Storage]:
    storage = S3Storage(
        options,
        SystemClock(),
        Memory(96 * MIB),
        most_bytes=4 * 2**30,
        part_bytes=PART,
        owner="test",
        settled=False,
    )
    await storage.open()
    yield storage
    await storage.close()


async def _fetched(url: str) -> bytes:
    def fetch() -> bytes:
        with urllib.request.urlopen(url, timeout=30) as answer:
            body: bytes = answer.read()
            return body

    return await asyncio.to_thread(fetch)


async def _every_kind_of_call(storage: S3Storage) -> str:
    """Uploaded, resumed, finished, joined, read, listed and discarded; a presigned URL, which has the file."""
    large = Upload(some_bytes(2 * PART))
    await large.request(storage, MIB)
    forget_tails(storage)
    await large.request(storage, last=True)
    stored = await large.complete(storage, epoch=2)
    assert await content(storage, stored) == large.data
    sources = [Upload(some_bytes(PART + MIB, seed=2)), Upload(some_bytes(7, seed=3))]
    for source in sources:
        await source.request(storage, last=True)
    joined = Upload(b"".join(source.data for source in sources))
    joined.commit(await storage.concatenate(joined.upload_id, [source.ledger for source in sources], epoch=1))
    assert await content(storage, await joined.complete(storage)) == joined.data
    unfinished = Upload(some_bytes(PART + MIB))
    await unfinished.request(storage)
    await storage.discard(unfinished.upload_id)
    await storage.probe()
    # in the future, by any clock: nothing is too young
    names = Counter([held.name async for held in storage.held(older_than=-3600)])
    assert names.keys() == {large.name, joined.name, *(source.name for source in sources)}
    url = await storage.signed_url(stored.key, seconds=60, content_type="text/plain", disposition="attachment")
    assert url is not None
    assert await _fetched(url) == large.data
    return url


#: which `_every_kind_of_call` makes
KINDS: Final = {
    "put_object", "get_object", "head_object", "head_bucket", "delete_object", "list_objects", "list_multipart_uploads",
    "create_multipart_upload", "upload_part", "upload_part_copy", "complete_multipart_upload", "abort_multipart_upload",
}  # fmt: skip


def _have_keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's keys are what the AWS chain finds."""
    for variable, value in store.environment().items():
        monkeypatch.setenv(variable, value)
    share_models(monkeypatch)


@pytest.mark.parametrize("prefix", ["", "a/", "some/where/deep/", "mit Leerzeichen/ü+%2F&/"])
async def test_everything_is_below_the_prefix(
    store: Store, bucket: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call works below any prefix, and no key is made elsewhere."""
    _have_keys(store, monkeypatch)
    options = S3Options(bucket, store.endpoint, region=store.region, prefix=prefix, addressing="path")
    async with _opened(options) as storage:
        await _every_kind_of_call(storage)
    keys = store.objects(bucket)
    assert len(keys) > 3
    assert all(key.startswith(prefix) for key in keys)


async def test_temporary_credentials_come_with_their_token(
    store: Store, bucket: str, faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of call, and a presigned URL, has the session token that AWS_SESSION_TOKEN names."""
    _have_keys(store, monkeypatch)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a+token/of=theirs")
    options = S3Options(bucket, faulty.endpoint, region=store.region, addressing="path")
    async with _opened(options) as storage:
        url = await _every_kind_of_call(storage)
    assert {call.kind for call in faulty.calls} == KINDS
    # that of the presigned URL has it in its query
    assert [call.kind for call in faulty.calls if call.session_token != "a+token/of=theirs"] == ["get_object"]
    assert "X-Amz-Security-Token=a%2Btoken%2Fof%3Dtheirs" in url


@pytest.fixture(scope="module")
def named_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store whose buckets are host names."""
    if why := missing("versitygw"):
        require("s3", why=why)
    with open_store("versitygw", tmp_path_factory.mktemp("named"), domain=DOMAIN) as running:
        yield running


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names below DOMAIN that were looked up; all of them are this machine."""
    found: set[str] = set()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(host, str) and host.endswith(DOMAIN):
            found.add(host)
            host = "127.0.0.1"
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return found


async def test_a_bucket_in_the_host_name(named_store: Store, asked: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With `virtual` each kind of call, and a presigned URL, goes to BUCKET.HOST, and the path is the key."""
    bucket = named_store.make_bucket()
    _have_keys(named_store, monkeypatch)
    monkeypatch.setenv("NO_PROXY", f"127.0.0.1,{DOMAIN}")
    options = S3Options(
        bucket,
        f"http://{DOMAIN}:{named_store.port}",
        region=named_store.region,
        prefix="some/where/",
        addressing="virtual",
    )
    async with _opened(options) as storage:
        url = await _every_kind_of_call(storage)
    assert url.startswith(f"http://{bucket}.{DOMAIN}:{named_store.port}/some/where/u_")
    assert asked == {f"{bucket}.{DOMAIN}"}
    named_store.drop_bucket(bucket)
