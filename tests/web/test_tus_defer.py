"""tus 1.0.0, Creation: deferred length (section H)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.web.harness import Site, site

MOST = 10


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Site]:
    """A service that takes uploads of at most MOST bytes."""
    async with site(tmp_path, max_size=str(MOST)) as running:
        yield running


async def deferred(here: Site, content: bytes = b"") -> str:
    """A new upload without a length, with these bytes."""
    path = await here.create(None, Upload_Defer_Length="1")
    if content:
        assert (await here.patch(path, 0, content)).status == 204
    return path


async def assert_deferred(here: Site, path: str, offset: int) -> None:
    """The upload is at the offset, its length still open."""
    found = await here.head(path)
    assert (found.status, found.offset, found.headers["Upload-Defer-Length"]) == (200, offset, "1")
    assert "Upload-Length" not in found.headers


async def test_T_070_creation_without_a_length(here: Site) -> None:
    """A creation may leave the length open."""
    answer = await here.post(None, Upload_Defer_Length="1")
    assert (answer.status, answer.offset) == (201, 0)


@pytest.mark.parametrize("value", ["0", "2", "true", "", "1, 1", "01"])
async def test_T_071_value_other_than_1(here: Site, value: str) -> None:
    """`Upload-Defer-Length` has one valid value, 1."""
    answer = await here.post(None, Upload_Defer_Length=value)
    assert (answer.status, answer.slug) == (400, "bad-header")


async def test_T_072_patch_before_the_length_is_known(here: Site) -> None:
    """Bytes are taken before the length is known."""
    path = await deferred(here)
    answer = await here.patch(path, 0, b"hello")
    assert (answer.status, answer.offset) == (204, 5)
    await assert_deferred(here, path, 5)


@pytest.mark.parametrize("body", [b"", b" world", b" worlds"])
async def test_T_073_any_patch_may_bring_the_length(here: Site, body: bytes) -> None:
    """A PATCH with bytes, without, or with the last ones fixes the length."""
    path = await deferred(here, b"hello")
    answer = await here.patch(path, 5, body, Upload_Length="12")
    assert (answer.status, answer.offset) == (204, 5 + len(body))
    found = await here.head(path)
    assert (found.headers["Upload-Length"], found.offset) == ("12", 5 + len(body))
    assert "Upload-Defer-Length" not in found.headers


async def test_T_073_length_at_the_offset_completes(here: Site) -> None:
    """A length that equals what is stored completes the upload, without another byte."""
    path = await deferred(here, b"hello")
    answer = await here.patch(path, 5, b"", Upload_Length="5")
    assert (answer.status, answer.offset) == (204, 5)
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b"hello"


async def test_T_073_length_zero_completes_an_empty_upload(here: Site) -> None:
    """An upload without a byte can turn out to be an empty file."""
    path = await deferred(here)
    answer = await here.patch(path, 0, b"", Upload_Length="0")
    assert answer.status == 204
    assert await here.stored(path) == b""


async def test_T_074_length_below_the_offset(here: Site) -> None:
    """A length that is less than what is stored is refused and not fixed."""
    path = await deferred(here, b"hello")
    answer = await here.patch(path, 5, b"", Upload_Length="4")
    assert (answer.status, answer.slug) == (400, "length-mismatch")
    await assert_deferred(here, path, 5)


async def test_T_074_body_beyond_the_length(here: Site) -> None:
    """A body that would pass the length it brings is refused; nothing is stored, the length stays open."""
    path = await deferred(here, b"hello")
    answer = await here.patch(path, 5, b"world", Upload_Length="9")
    assert (answer.status, answer.slug, answer.offset) == (413, "too-large", 5)
    await assert_deferred(here, path, 5)


async def test_T_075_length_above_the_maximum(small: Site) -> None:
    """A length above `Tus-Max-Size` is refused and not fixed."""
    path = await deferred(small, b"hello")
    answer = await small.patch(path, 5, b"", Upload_Length=str(MOST + 1))
    assert (answer.status, answer.slug) == (413, "too-large")
    await assert_deferred(small, path, 5)


async def test_T_076_another_length_later(here: Site) -> None:
    """A length that was fixed cannot be changed."""
    path = await deferred(here)
    await here.patch(path, 0, b"hello", Upload_Length="10")
    answer = await here.patch(path, 5, b"w", Upload_Length="11")
    assert (answer.status, answer.slug) == (400, "length-mismatch")
    found = await here.head(path)
    assert (found.offset, found.headers["Upload-Length"]) == (5, "10")


async def test_T_076_the_same_length_again(here: Site) -> None:
    """A client may send the length with every PATCH."""
    path = await deferred(here)
    await here.patch(path, 0, b"hello", Upload_Length="10")
    assert (await here.patch(path, 5, b"world", Upload_Length="10")).status == 204
    assert await here.stored(path) == b"helloworld"


async def test_T_077_announced_body_beyond_the_maximum(small: Site) -> None:
    """A body that would pass `Tus-Max-Size` is refused with nothing stored."""
    path = await deferred(small, b"hello")
    answer = await small.patch(path, 5, b"x" * (MOST - 4))
    assert (answer.status, answer.slug, answer.offset) == (413, "too-large", 5)
    await assert_deferred(small, path, 5)


async def test_T_077_chunked_body_beyond_the_maximum(small: Site) -> None:
    """Of a chunked body what fits is stored, then it is refused."""
    path = await deferred(small, b"hello")
    headers = {"Tus-Resumable": "1.0.0", "Upload-Offset": "5", "Content-Type": "application/offset+octet-stream"}
    answer = await small.ask("PATCH", path, headers, b"x" * MOST, chunked=True)
    assert (answer.status, answer.slug, answer.offset) == (413, "too-large", MOST)
    await assert_deferred(small, path, MOST)


async def test_T_078_another_length_than_declared(here: Site) -> None:
    """A PATCH cannot change the length that the creation declared."""
    path = await here.create(10)
    answer = await here.patch(path, 0, b"hello", Upload_Length="11")
    assert (answer.status, answer.slug) == (400, "length-mismatch")
    assert (await here.head(path)).offset == 0


async def test_T_078_the_length_declared(here: Site) -> None:
    """A PATCH that repeats the declared length is as one without."""
    path = await here.create(10)
    answer = await here.patch(path, 0, b"hello", Upload_Length="10")
    assert (answer.status, answer.offset) == (204, 5)
