"""`download_mode=redirect` with a store that does as a presigned URL says: what the client ends up with."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from email.message import Message
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.contract.buckets import some_bytes
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS, b64, path_of
from tests.web.s3_site import MIB, S3Site, s3_site

CONTENT = some_bytes(6 * MIB)


@pytest.fixture
def front(moto_store: Store) -> Iterator[FaultyStore]:
    """A proxy before moto, which honours response-content-type and -disposition."""
    with FaultyStore(moto_store) as running:
        yield running


@pytest.fixture
async def s3(
    tmp_path: Path, moto_store: Store, front: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    """A service that redirects downloads to the store."""
    bucket = moto_store.make_bucket()
    async with s3_site(tmp_path, moto_store, bucket, front, monkeypatch, download_mode="redirect") as running:
        yield running
    moto_store.drop_bucket(bucket)


async def ready(s3: S3Site, content: bytes, filename: str, media_type: str) -> tuple[str, str]:
    """A finished file; its upload's path and a download link."""
    metadata = f"filename {b64(filename.encode())},filetype {b64(media_type.encode())}"
    fields = TUS | {"Upload-Length": str(len(content)), "Content-Type": OCTETS, "Upload-Metadata": metadata}
    answer = await s3.ask("POST", s3.here.link(), fields, content)
    assert answer.status == 201
    return path_of(answer.headers["Location"]), s3.here.download_link(answer.headers["Attachd-File-Id"])


async def follow(url: str, headers: dict[str, str] | None = None) -> tuple[int, Message, bytes]:
    """What the store answers to whoever has the URL and nothing else."""

    def get() -> tuple[int, Message, bytes]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=30) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    return await asyncio.to_thread(get)


@pytest.mark.parametrize("content", [b"<p>hello</p>", CONTENT], ids=["small", "multipart"])
async def test_a_redirect_ends_in_the_file(s3: S3Site, content: bytes) -> None:
    """Whoever follows the 307 has the bytes, with the type and the name that a proxied answer would have."""
    _, link = await ready(s3, content, "näme.html", "text/html")
    answer = await s3.here.ask("GET", link)
    assert (answer.status, answer.body) == (307, b"")
    proxied = await s3.here.ask("HEAD", link)
    assert proxied.status == 200
    status, headers, body = await follow(answer.headers["Location"])
    assert (status, body) == (200, content)
    assert headers["Content-Type"] == proxied.headers["Content-Type"]
    assert headers["Content-Disposition"] == proxied.headers["Content-Disposition"]
    assert headers["Content-Disposition"].startswith("attachment; filename=")


async def test_a_range_is_asked_of_the_store(s3: S3Site) -> None:
    """A client that asks for a range is redirected, and gets it from the store."""
    _, link = await ready(s3, CONTENT, "a.bin", "application/octet-stream")
    answer = await s3.here.ask("GET", link, {"Range": "bytes=5-9"})
    assert answer.status == 307
    status, _, body = await follow(answer.headers["Location"], {"Range": "bytes=5-9"})
    assert (status, body) == (206, CONTENT[5:10])


async def test_our_own_questions_are_answered_here(s3: S3Site) -> None:
    """HEAD, and a request that asks about our ETag, are not sent to the store, whose tags are others."""
    _, link = await ready(s3, CONTENT, "a.bin", "application/octet-stream")
    head = await s3.here.ask("HEAD", link)
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(CONTENT)))
    asked = {"Range": "bytes=5-9", "If-Range": head.headers["ETag"]}
    answer = await s3.here.ask("GET", link, asked)
    assert (answer.status, answer.body) == (206, CONTENT[5:10])


async def test_a2_a_redirect_does_not_tell_the_uploads_address(s3: S3Site) -> None:
    """A2: The key in the URL has half of the upload's id; the address, a capability, cannot be told from it."""
    path, link = await ready(s3, b"hello", "a.txt", "text/plain")
    upload_id = s3.here.upload_id(path)
    location = (await s3.here.ask("GET", link)).headers["Location"]
    assert upload_id[:15] in location
    assert upload_id[:16] not in location
    assert upload_id[15:] not in location


async def test_a_redirect_asks_nothing_and_is_short(s3: S3Site) -> None:
    """Signing needs no call; the URL is good for five minutes at most, for this object and for reading only."""
    _, link = await ready(s3, b"hello", "a.txt", "text/plain")
    s3.faulty.clear()
    location = (await s3.here.ask("GET", link)).headers["Location"]
    assert s3.counted() == {}
    query = parse_qs(urlsplit(location).query)
    assert int(query["X-Amz-Expires"][0]) <= 300
    assert "X-Amz-Signature" in query
    assert location.startswith(s3.faulty.endpoint)


async def test_g4_a_deleted_file_is_not_redirected(s3: S3Site) -> None:
    """G4: Deleted is 410 here, and a URL that was handed out before finds nothing."""
    path, link = await ready(s3, b"hello", "a.txt", "text/plain")
    location = (await s3.here.ask("GET", link)).headers["Location"]
    assert (await s3.here.ask("DELETE", path, TUS)).status == 204
    assert (await s3.here.ask("GET", link)).status == 410
    assert (await follow(location))[0] in {403, 404}


async def test_clients_are_sent_where_they_can_reach_the_store(
    tmp_path: Path, moto_store: Store, front: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `s3_public_endpoint` the URL begins there, signed for that host."""
    bucket = moto_store.make_bucket()
    public = moto_store.endpoint
    async with s3_site(
        tmp_path, moto_store, bucket, front, monkeypatch, download_mode="redirect", s3_public_endpoint=public
    ) as s3:
        _, link = await ready(s3, b"hello", "a.txt", "text/plain")
        location = (await s3.here.ask("GET", link)).headers["Location"]
        assert location.startswith(f"{public}/")
        s3.faulty.clear()
        assert (await follow(location))[2] == b"hello"
        assert s3.counted() == {}
    moto_store.drop_bucket(bucket)
