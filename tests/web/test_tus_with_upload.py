"""tus 1.0.0, Creation With Upload (section G)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.web.harness import OCTETS, TUS, Site, b64, chunk, head, path_of
from tests.web.under_way import begin, until

BODY = TUS | {"Content-Type": OCTETS}


async def assert_nothing_made(here: Site, link: str) -> None:
    """The link has made no upload and still can; nothing lies on disk."""
    assert (await here.ask("HEAD", link, TUS)).status == 404
    assert here.leftovers() == []
    assert (await here.post(1, link)).status == 201


async def test_T_060_first_bytes_come_with_the_creation(here: Site) -> None:
    """A POST with a part of the bytes answers 201 and the offset behind them."""
    answer = await here.ask("POST", here.link(), BODY | {"Upload-Length": "100"}, b"hello")
    assert (answer.status, answer.offset) == (201, 5)
    found = await here.head(path_of(answer.headers["Location"]))
    assert (found.offset, found.headers["Upload-Length"]) == (5, "100")


async def test_T_061_whole_file_with_the_creation(here: Site) -> None:
    """A POST with all bytes makes a complete upload and names its file."""
    answer = await here.ask("POST", here.link(), BODY | {"Upload-Length": "5"}, b"hello")
    assert (answer.status, answer.offset) == (201, 5)
    assert "Upload-Expires" not in answer.headers
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b"hello"


async def test_T_061_whole_file_chunked(here: Site) -> None:
    """The same holds for a chunked body: the length says where the file ends."""
    answer = await here.ask("POST", here.link(), BODY | {"Upload-Length": "5"}, b"hello", chunked=True)
    assert (answer.status, answer.offset) == (201, 5)
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b"hello"


async def test_T_062_deferred_length_with_a_body(here: Site) -> None:
    """A body together with `Upload-Defer-Length` is stored, and the length stays open."""
    answer = await here.ask("POST", here.link(), BODY | {"Upload-Defer-Length": "1"}, b"hello")
    assert (answer.status, answer.offset) == (201, 5)
    found = await here.head(path_of(answer.headers["Location"]))
    assert (found.offset, found.headers["Upload-Defer-Length"]) == (5, "1")
    assert "Upload-Length" not in found.headers


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream", "application/offset"])
async def test_T_063_body_of_another_content_type(here: Site, content_type: str | None) -> None:
    """A body that is not declared as upload bytes is refused with 415, and nothing is made of it."""
    link = here.link()
    headers = TUS | {"Upload-Length": "100"} | ({"Content-Type": content_type} if content_type else {})
    answer = await here.ask("POST", link, headers, b"hello")
    assert (answer.status, answer.slug) == (415, "wrong-content-type")
    await assert_nothing_made(here, link)


async def test_T_064_announced_body_too_long(here: Site) -> None:
    """A Content-Length above `Upload-Length` is refused with 413, and nothing is made."""
    link = here.link()
    answer = await here.ask("POST", link, BODY | {"Upload-Length": "4"}, b"hello")
    assert (answer.status, answer.slug) == (413, "too-large")
    await assert_nothing_made(here, link)


async def test_T_064_chunked_body_too_long(here: Site) -> None:
    """Of a chunked body the prefix up to the length is kept; 413 names the upload and closes."""
    line = await here.line()
    await line.send(head("POST", here.link(), [*BODY.items(), ("Upload-Length", "4")], None, chunked=True))
    await line.send(chunk(b"hello"))
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.headers["Connection"]) == (413, "too-large", "close")
    path = path_of(answer.headers["Location"])
    assert (await here.head(path)).offset == 4
    assert await here.stored(path) == b"hell"


async def test_T_065_expect_refused_without_100(here: Site) -> None:
    """Headers that are refused get the final status instead of `100 Continue`, and the connection ends."""
    line = await here.line()
    headers = [*BODY.items(), ("Upload-Length", "5"), ("Content-Length", "5"), ("Expect", "100-continue")]
    await line.send(head("POST", "/files?sig=wrong", headers, None))
    answer = await line.answer()
    assert (answer.status, answer.interim, answer.headers["Connection"]) == (401, (), "close")
    assert await line.closed()


async def test_T_065_expect_accepted_with_100(here: Site) -> None:
    """Headers that pass get `100 Continue`, then the body gets 201."""
    line = await here.line()
    headers = [*BODY.items(), ("Upload-Length", "5"), ("Content-Length", "5"), ("Expect", "100-continue")]
    await line.send(head("POST", here.link(), headers, None))
    assert (await line.answer(interim=True)).status == 100
    await line.send(b"hello")
    answer = await line.answer()
    assert (answer.status, answer.offset, answer.interim) == (201, 5, ())


@pytest.mark.parametrize("cut", ["FIN", "RST"])
async def test_T_066_cut_keeps_the_bytes(here: Site, cut: str) -> None:
    """What came before a cut is kept, and the same creation again finds the upload and its offset."""
    link = here.link()
    line = await begin(here, "POST", link, BODY | {"Upload-Length": "100"}, b"hello", length=100)
    if cut == "RST":
        line.reset()
    else:
        await line.close()
    await until(lambda: not here.service.bodies._open)
    again = await here.post(100, link)
    assert (again.status, again.offset) == (201, 5)
    path = path_of(again.headers["Location"])
    assert (await here.patch(path, 5, b"x" * 95)).offset == 100
    assert await here.stored(path) == b"hello" + b"x" * 95


async def test_T_066_expiry_removes_a_cut_creation(later: Site) -> None:
    """An upload that was cut and never gone on with is removed when it expires, bytes included."""
    link = later.link()
    line = await begin(later, "POST", link, BODY | {"Upload-Length": "100"}, b"hello", length=100)
    await line.close()
    await until(lambda: not later.service.bodies._open)
    assert (await later.post(100, link)).offset == 5
    assert later.clock is not None
    later.clock.forward(later.service.settings.upload_idle + 1)
    await later.service.janitor.sweep()
    assert later.leftovers() == []


async def test_T_067_advertised_with_creation(here: Site) -> None:
    """`creation-with-upload` is advertised, and `creation` with it."""
    offered = (await here.ask("OPTIONS", "/files")).headers["Tus-Extension"].split(",")
    assert {"creation", "creation-with-upload"} <= set(offered)


async def test_T_068_checksum_on_creation(here: Site) -> None:
    """A creation whose body matches its checksum is as any other."""
    checksum = "sha1 " + b64(hashlib.sha1(b"hello").digest())
    headers = BODY | {"Upload-Length": "100", "Upload-Checksum": checksum}
    answer = await here.ask("POST", here.link(), headers, b"hello")
    assert (answer.status, answer.offset) == (201, 5)


async def test_T_068_mismatch_leaves_nothing(here: Site) -> None:
    """A creation whose body does not match leaves no upload, and the link is free again."""
    link = here.link()
    checksum = "sha1 " + b64(hashlib.sha1(b"other").digest())
    headers = BODY | {"Upload-Length": "100", "Upload-Checksum": checksum}
    answer = await here.ask("POST", link, headers, b"hello")
    assert (answer.status, answer.reason, answer.slug) == (460, "Checksum Mismatch", "checksum-mismatch")
    assert "Location" not in answer.headers
    await assert_nothing_made(here, link)


@pytest.mark.parametrize("trailer", ["sha1 !!", "sha9 AAAA", "sha1"])
async def test_T_068_malformed_trailer_leaves_nothing(here: Site, trailer: str) -> None:
    """A checksum that comes as a malformed trailer is refused like one in the header: nothing is left."""
    link = here.link()
    headers = BODY | {"Upload-Length": "100", "Trailer": "Upload-Checksum"}
    answer = await here.ask("POST", link, headers, b"hello", chunked=True, trailers={"Upload-Checksum": trailer})
    assert answer.status == 400
    await assert_nothing_made(here, link)


async def test_T_068_cut_leaves_nothing(here: Site, tmp_path: Path) -> None:
    """A creation with a checksum that is cut off leaves nothing: its bytes cannot be verified."""
    link = here.link()
    checksum = "sha1 " + b64(hashlib.sha1(b"hello").digest())
    headers = BODY | {"Upload-Length": "100", "Upload-Checksum": checksum}
    line = await begin(here, "POST", link, headers, b"hel", length=5)
    await line.close()
    await until(lambda: not here.service.bodies._open)
    await until(lambda: here.leftovers() == [])
    await assert_nothing_made(here, link)
