"""Lessons R5 and K1: what is offered works, and addresses lead back here."""

from __future__ import annotations

import asyncio
import gzip
import io
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.web.harness import OCTETS, TUS, Site, b64, path_of, site
from tests.web.under_way import held, until

# --- R5: nothing is promised that is not there ----------------------------------------------------


async def _can_create(here: Site) -> bool:
    return (await here.post(5)).status == 201


async def _can_create_with_upload(here: Site) -> bool:
    headers = TUS | {"Upload-Length": "5", "Content-Type": OCTETS}
    return (await here.ask("POST", here.link(), headers, b"hel")).offset == 3


async def _can_defer(here: Site) -> bool:
    path = await here.create(None, Upload_Defer_Length="1")
    return (await here.patch(path, 0, b"hello", Upload_Length="5")).offset == 5


async def _can_expire(here: Site) -> bool:
    return "Upload-Expires" in (await here.post(5)).headers


async def _can_check(here: Site) -> bool:
    path = await here.create(5)
    return (await here.patch(path, 0, b"hello", Upload_Checksum=f"sha1 {b64(bytes(20))}")).status == 460


async def _can_check_trailer(here: Site) -> bool:
    headers = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS, "Trailer": "Upload-Checksum"}
    trailers = {"Upload-Checksum": f"sha1 {b64(bytes(20))}"}
    path = await here.create(5)
    return (await here.ask("PATCH", path, headers, b"hello", chunked=True, trailers=trailers)).status == 460


async def _can_terminate(here: Site) -> bool:
    return (await here.ask("DELETE", await here.create(5), TUS)).status == 204


async def _can_join(here: Site) -> bool:
    link = here.link()
    partials = [await here.create(2, link, Upload_Concat="partial") for _ in range(2)]
    for partial in partials:
        await here.patch(partial, 0, b"ab")
    final = await here.create(None, link, Upload_Concat="final;" + " ".join(partials))
    return await here.stored(final) == b"abab"


async def _can_join_early(here: Site) -> bool:
    link = here.link()
    partial = await here.create(2, link, Upload_Concat="partial")
    final = await here.create(None, link, Upload_Concat=f"final;{partial}")
    await here.patch(partial, 0, b"ab")
    async with asyncio.timeout(30):
        while (await here.ask("GET", final)).json["state"] != "ready":
            await asyncio.sleep(0.01)
    return await here.stored(final) == b"ab"


EXTENSIONS: Mapping[str, Callable[[Site], Awaitable[bool]]] = {
    "creation": _can_create,
    "creation-with-upload": _can_create_with_upload,
    "creation-defer-length": _can_defer,
    "expiration": _can_expire,
    "checksum": _can_check,
    "checksum-trailer": _can_check_trailer,
    "termination": _can_terminate,
    "concatenation": _can_join,
    "concatenation-unfinished": _can_join_early,
}


@pytest.mark.parametrize("extension", EXTENSIONS)
async def test_R5_an_extension_that_is_offered_works(here: Site, extension: str) -> None:
    """Each name in `Tus-Extension` is spelt as in the specification and does what it says."""
    offered = (await here.ask("OPTIONS", "/files")).headers["Tus-Extension"].split(",")
    assert sorted(offered) == sorted(EXTENSIONS)
    assert await EXTENSIONS[extension](here)


async def test_R5_offered_checksums_are_computed(here: Site) -> None:
    """Every algorithm in `Tus-Checksum-Algorithm` refuses a wrong digest of the right length."""
    lengths = {"sha1": 20, "sha256": 32, "sha512": 64, "md5": 16, "crc32c": 4, "xxh3-64": 8, "xxh128": 16}
    offered = (await here.ask("OPTIONS", "/files")).headers["Tus-Checksum-Algorithm"].split(",")
    assert sorted(offered) == sorted(lengths)
    for name in offered:
        path = await here.create(5)
        answer = await here.patch(path, 0, b"hello", Upload_Checksum=f"{name} {b64(bytes(lengths[name]))}")
        assert answer.status == 460, name


async def test_R5_compressed_bodies_are_stored_as_sent(here: Site) -> None:
    """A gzip body counts, and is kept, as the bytes on the wire."""
    packed = gzip.compress(b"hello" * 1000)
    path = await here.create(len(packed))
    answer = await here.patch(path, 0, packed, Content_Encoding="gzip")
    assert (answer.status, answer.offset) == (204, len(packed))
    assert gzip.GzipFile(fileobj=io.BytesIO(await here.stored(path))).read() == b"hello" * 1000


async def test_R5_a_hundred_urls_fit(tmp_path: Path) -> None:
    """A final of 100 absolute URLs, far over 8190 bytes of header, is joined in order."""
    async with site(tmp_path, public_url="http://a-rather-long-host-name-of-a-chat-service.files.example.test") as here:
        link = here.link(audience=here.service.settings.public_url)
        partials = []
        for number in range(50):
            made = await here.post(1, link, Upload_Concat="partial")
            partials.append(made.headers["Location"])
            await here.patch(path_of(partials[-1]), 0, bytes([number]))
        concat = "final;" + " ".join(partials * 2)
        assert len(concat) > 8190
        final = await here.post(None, link, Upload_Concat=concat)
        assert final.status == 201
        file = await here.file_id(path_of(final.headers["Location"]))
        found = await here.ask("GET", here.download_link(file, audience=here.service.settings.public_url))
        assert found.body == bytes(range(50)) * 2


async def test_R5_headers_up_to_64_kib(here: Site) -> None:
    """A header of 60,000 bytes reaches the service; one that passes the limit is the parser's 400, not a hang."""
    big = await here.ask("GET", "/nothing", {"X-Big": "x" * 60_000})
    assert big.slug == "not-found"
    assert (await here.ask("GET", "/nothing", {"X-Big": "x" * 70_000})).status == 400


async def test_R5_empty_metadata_is_no_metadata(here: Site) -> None:
    """tuspy's empty `Upload-Metadata` makes an upload, and HEAD shows none."""
    path = await here.create(5, Upload_Metadata="")
    assert "Upload-Metadata" not in (await here.head(path)).headers


async def test_R5_location_is_absolute(here: Site) -> None:
    """Creation by POST and by PUT and the link's HEAD give an address with scheme and host."""
    link = here.link()
    made = await here.post(5, link)
    put = await here.ask("PUT", here.link(), {}, b"hello")
    found = await here.ask("HEAD", link)
    for answer in (made, put, found):
        assert re.fullmatch(r"http://files\.test/files/u_[a-z2-7]{26}", answer.headers["Location"])


async def test_R5_100_continue_comes_after_the_checks(here: Site) -> None:
    """`100 Continue` is sent once, when the body is wanted, and never before a refusal."""
    path = await here.create(5)
    line = await here.line()
    fields = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS, "Content-Length": "5", "Expect": "100-continue"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    await line.send(f"PATCH {path} HTTP/1.1\r\nHost: files.test\r\n{lines}\r\n".encode())
    assert (await line.answer(interim=True)).status == 100
    await until(lambda: held(here, path))
    await line.send(b"hello")
    answer = await line.answer()
    assert (answer.status, answer.interim) == (204, ())


# --- K1: where the service is, as clients see it --------------------------------------------------

FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/up"}

#: settings; request headers; what Location begins with
PLACES: Mapping[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "host": ({}, {"Host": "files.test:8080"}, "http://files.test:8080/files/"),
    "host, IPv6": ({}, {"Host": "[::1]:8080"}, "http://[::1]:8080/files/"),
    "forwarded by nobody known": ({}, {"Host": "files.test"} | FORWARDED, "http://files.test/files/"),
    "forwarded by another proxy": (
        {"trusted_proxies": "10.0.0.0/8"}, {"Host": "files.test"} | FORWARDED, "http://files.test/files/"),
    "forwarded by the proxy": (
        {"trusted_proxies": "127.0.0.0/8"}, {"Host": "files.test"} | FORWARDED, "https://evil.example/up/files/"),
    "forwarded in part": (
        {"trusted_proxies": "127.0.0.1/32"}, {"Host": "files.test", "X-Forwarded-Proto": "https"},
        "https://files.test/files/"),
    "forwarded twice": (
        {"trusted_proxies": "127.0.0.1"}, {"Host": "a.test", "X-Forwarded-Host": "first.example, second.example"},
        "http://first.example/files/"),
    "forwarded nonsense": (
        {"trusted_proxies": "127.0.0.1"},
        {"Host": "files.test", "X-Forwarded-Proto": "javascript", "X-Forwarded-Prefix": "/a b"},
        "http://127.0.0.1:"),
    "public url": ({"public_url": "https://files.example/up"}, {"Host": "x"} | FORWARDED, "https://files.example/up/files/"),
    "public url behind the proxy": (
        {"public_url": "https://files.example/up", "trusted_proxies": "127.0.0.1"}, {"Host": "x"} | FORWARDED,
        "https://files.example/up/files/"),
    "hostile host": ({}, {"Host": "evil.example/x?y=<z>"}, "http://127.0.0.1:"),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
async def test_K1_location_begins_where_clients_are(tmp_path: Path, place: str) -> None:
    """The configured URL wins, then the request's Host; forwarded fields count from listed proxies only."""
    changes, headers, begins = PLACES[place]
    async with site(tmp_path, **changes) as here:
        link = here.link(audience=changes.get("public_url", here.base))
        sent = TUS | headers | {"Upload-Length": "5", "Content-Length": "0"}
        answer = await here.ask("POST", link, sent)
        assert answer.status == 201
        assert answer.headers["Location"].startswith(begins)
        assert (await here.head("/files/" + answer.headers["Location"].rpartition("/")[2])).status == 200


async def test_K1_partials_are_found_by_any_address(here: Site) -> None:
    """A final may name its partials by whatever address the client reached them under."""
    link = here.link()
    ids = []
    for _ in range(3):
        path = await here.create(1, link, Upload_Concat="partial")
        await here.patch(path, 0, b"x")
        ids.append(path)
    first, second, third = ids
    concat = f"final;https://proxy.example/up{first} {second} //other.example{third}"
    concat = concat.replace(" //other.example", " http://other.example:8443")
    final = await here.create(None, link, Upload_Concat=concat)
    assert await here.stored(final) == b"xxx"
