"""What is told is true: no offset = length before the file is there, no file the link does not allow."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from service.model import State
from tests.web.harness import OCTETS, TUS, Line, Site, head, path_of
from tests.web.under_way import until

PARTIAL = {"Upload_Concat": "partial"}


async def test_C1_the_last_byte_is_told_with_the_file(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the end of a chunked body is awaited, HEAD never says offset = length; once cut, the file is ready."""
    monkeypatch.setattr("service.receiving.COMMIT_SECONDS", 0.0)
    path = await here.create(10)
    line = await here.line()
    fields = [*TUS.items(), ("Upload-Offset", "0"), ("Content-Type", OCTETS)]
    await line.send(head("PATCH", path, fields, None, chunked=True))
    for piece in (b"hello", b"world"):
        await line.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        if piece == b"hello":
            await until_offset(here, path, 5)
    await until(lambda: received(here) >= 10)
    for _ in range(20):
        assert (await here.head(path)).offset == 5
        await asyncio.sleep(0)
    line.reset()
    await until_state(here, path, "ready")
    assert (await here.head(path)).offset == 10
    assert await here.stored(path) == b"helloworld"


def received(here: Site) -> float:
    for text in here.service.metrics.render().decode().splitlines():
        if text.startswith('attachd_upload_bytes_received_total{protocol="tus"}'):
            return float(text.rsplit(" ", 1)[1])
    return 0.0


async def until_offset(here: Site, path: str, offset: int) -> None:
    async with asyncio.timeout(30):
        while (await here.ask("GET", path)).json["offset"] != offset:
            await asyncio.sleep(0.01)


async def until_state(here: Site, path: str, state: str) -> None:
    async with asyncio.timeout(30):
        while (await here.ask("GET", path)).json["state"] != state:
            await asyncio.sleep(0.01)


async def test_C1_an_empty_upload_is_never_half_made(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty upload whose creation died before it was finished is finished by whoever asks next."""
    link = here.link()

    async def dies(*_: Any, **__: Any) -> Any:
        raise RuntimeError("killed here")

    with monkeypatch.context() as broken:
        broken.setattr("service.settling.Settling.settle", dies)
        assert (await here.post(0, link)).status == 500
    answer = await here.post(0, link)
    assert (answer.status, answer.offset) == (201, 0)
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b""


async def test_C1_an_empty_upload_left_alone_is_finished_by_the_janitor(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty upload is recorded as `finishing` from its first row on, so the janitor finds it."""
    link = here.link()

    async def dies(*_: Any, **__: Any) -> Any:
        raise RuntimeError("killed here")

    with monkeypatch.context() as broken:
        broken.setattr("service.settling.Settling.settle", dies)
        await here.post(0, link)
    left = await here.service.metadata.finishing_uploads(limit=10)
    assert [upload.state for upload in left] == [State.FINISHING]
    await here.service.janitor.sweep()
    assert await here.service.metadata.finishing_uploads(limit=10) == ()


async def test_size_holds_for_a_put_of_unknown_length(here: Site) -> None:
    """A chunked PUT that ends short of the link's exact size makes no file; what came is kept and can be finished."""
    link = here.link(size=10)
    answer = await here.ask("PUT", link, body=b"hello", chunked=True)
    assert (answer.status, answer.slug) == (403, "length-mismatch")
    path = path_of(answer.headers["Location"])
    done = await here.patch(path, 5, b"world", Upload_Length="10")
    assert done.status == 204
    assert await here.stored(path) == b"helloworld"


async def test_size_holds_for_a_final_of_deferred_partials(here: Site) -> None:
    """A final whose partials turn out shorter than the link's exact size fails: no file of another size."""
    link = here.link(size=10)
    parts = [await here.create(None, link, Upload_Defer_Length="1", **PARTIAL)]
    final = await here.create(None, link, Upload_Concat="final;" + " ".join(parts))
    assert (await here.patch(parts[0], 0, b"hello", Upload_Length="5")).status == 204
    async with asyncio.timeout(30):
        while (answer := await here.head(final)).status == 200:
            await asyncio.sleep(0.01)
    assert answer.status == 410
    gone = await here.ask("GET", final)
    assert (gone.slug, gone.json["problem"]) == ("gone", "length-mismatch")


async def test_T_0C2_concat_of_foreign_bytes_is_refused(here: Site) -> None:
    """A list with bytes beyond ASCII is a bad header, not a fault of ours."""
    answer = await here.post(None, Upload_Concat="final;/\xff/files/u_aaaaaaaaaaaaaaaaaaaaaaaaaa")
    assert (answer.status, answer.slug) == (400, "bad-header")


async def test_C2_an_upload_whose_bytes_vanished_ends(here: Site) -> None:
    """When storage has lost committed bytes the next PATCH says gone, HEAD agrees, and the link is free again."""
    link = here.link()
    path = await here.create(10, link)
    await here.patch(path, 0, b"hello")
    for left in here.leftovers():
        (here.service.settings.data / left).unlink()
    assert (await here.patch(path, 5, b"world")).status == 410
    assert (await here.head(path)).status == 410
    again = await here.post(10, link)
    assert (again.status, again.offset) == (201, 0)
    assert path_of(again.headers["Location"]) != path


async def test_a_next_chunk_is_no_resumption(here: Site) -> None:
    """attachd_uploads_resumed_total counts requests after a cut, not every chunk of a client that sends many."""
    path = await here.create(10)
    await here.patch(path, 0, b"hel")
    await here.patch(path, 3, b"lo")
    assert resumed(here) == 0
    line: Line = await here.line()
    fields = [*TUS.items(), ("Upload-Offset", "5"), ("Content-Type", OCTETS), ("Content-Length", "5")]
    await line.send(head("PATCH", path, fields, None) + b"w")
    await until(lambda: received(here) >= 6)
    line.reset()
    await until_offset(here, path, 6)
    await here.patch(path, 6, b"orld")
    assert resumed(here) == 1


def resumed(here: Site) -> float:
    lines = here.service.metrics.render().decode().splitlines()
    return sum(float(text.rsplit(" ", 1)[1]) for text in lines if text.startswith("attachd_uploads_resumed_total{"))


async def test_hashing_for_two_digests_is_counted_for_both(here: Site) -> None:
    """attachd_hashed_bytes_total counts the SHA-256 that a link asks for."""
    await here.upload(b"hello", sha256=hashlib.sha256(b"hello").hexdigest())
    text = here.service.metrics.render().decode()
    assert 'attachd_hashed_bytes_total{algorithm="sha256"} 5.0' in text
    assert 'attachd_checksum_verifications_total{algorithm="sha256",result="ok"} 1.0' in text
