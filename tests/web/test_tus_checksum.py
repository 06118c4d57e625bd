"""tus 1.0.0, Checksum and its trailer (section K)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.web.harness import OCTETS, TUS, Answer, Line, Site, b64, chunk, head, site
from tests.web.under_way import SteppedClock, begin_patch, until

APPEND = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS}
ANNOUNCED = APPEND | {"Trailer": "Upload-Checksum"}

#: published check values: RFC 3720 for CRC-32C, xxHash's own sanity table, the usual ones of "" and "abc"
VECTORS = [
    ("sha1", b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
    ("sha256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
        "sha512",
        b"abc",
        (
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        ),
    ),
    ("md5", b"abc", "900150983cd24fb0d6963f7d28e17f72"),
    ("crc32c", b"123456789", "e3069283"),
    ("xxh3-64", b"", "2d06800538d394c2"),
    ("xxh128", b"", "99aa06d3014798d86001c324468d497f"),
]


def sha1(body: bytes) -> str:
    """The checksum field of a body."""
    return "sha1 " + b64(hashlib.sha1(body).digest())


async def assert_untouched(here: Site, path: str) -> None:
    """Nothing was kept, and the right bytes at the old offset make the file."""
    assert (await here.head(path)).offset == 0
    assert (await here.patch(path, 0, b"helloworld", Upload_Checksum=sha1(b"helloworld"))).status == 204
    assert await here.stored(path) == b"helloworld"


# --- in the header --------------------------------------------------------------------------


async def test_T_0A0_match(here: Site) -> None:
    """A body that matches its checksum moves the offset."""
    path = await here.create(10)
    answer = await here.patch(path, 0, b"hello", Upload_Checksum=sha1(b"hello"))
    assert (answer.status, answer.offset) == (204, 5)
    assert (await here.head(path)).offset == 5


async def test_T_0A1_mismatch_discards_the_body(here: Site) -> None:
    """A body that does not match answers 460 and changes nothing; the right one can follow."""
    path = await here.create(10)
    answer = await here.patch(path, 0, b"hellO", Upload_Checksum=sha1(b"hello"))
    assert (answer.status, answer.reason, answer.slug) == (460, "Checksum Mismatch", "checksum-mismatch")
    assert answer.offset == 0
    await assert_untouched(here, path)


async def test_T_0A1_mismatch_of_the_last_bytes(here: Site) -> None:
    """A last body that does not match completes nothing, and what was there before stays."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    assert (await here.patch(path, 5, b"w0rld", Upload_Checksum=sha1(b"world"))).status == 460
    assert (await here.head(path)).offset == 5
    assert (await here.patch(path, 5, b"world", Upload_Checksum=sha1(b"world"))).status == 204
    assert await here.stored(path) == b"helloworld"


async def test_T_0A1_connection_goes_on(here: Site) -> None:
    """After 460 the same connection takes the body again: it was read to its end."""
    path = await here.create(5)
    line = await here.line()
    headers = [*APPEND.items(), ("Upload-Checksum", sha1(b"hello"))]
    await line.send(head("PATCH", path, headers, b"hellO") + b"hellO")
    assert (await line.answer()).status == 460
    await line.send(head("PATCH", path, headers, b"hello") + b"hello")
    assert (await line.answer()).status == 204


@pytest.mark.parametrize("algorithm", ["sha9", "crc32", "xxh64", "SHA-1"])
async def test_T_0A2_unknown_algorithm(here: Site, algorithm: str) -> None:
    """An algorithm that is not served is refused before the body is asked for."""
    path = await here.create(10)
    line = await here.line()
    headers = [*APPEND.items(), ("Upload-Checksum", f"{algorithm} AAAA"), ("Content-Length", "10")]
    await line.send(head("PATCH", path, [*headers, ("Expect", "100-continue")], None))
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.interim) == (400, "checksum-unsupported", ())


@pytest.mark.parametrize("value", ["sha1", "sha1 ", "", " AAAA", "sha1 AAAA", "sha1 !", "sha1  " + b64(bytes(20))])
async def test_T_0A3_malformed(here: Site, value: str) -> None:
    """A checksum is an algorithm, one space and a digest of the algorithm's length."""
    path = await here.create(10)
    answer = await here.patch(path, 0, b"hello", Upload_Checksum=value)
    assert (answer.status, answer.slug) == (400, "bad-header")
    await assert_untouched(here, path)


@pytest.mark.parametrize("cut", [Line.reset, Line.close])
async def test_T_0A4_cut_discards_all(here: Site, cut: Callable[[Line], Awaitable[None] | None]) -> None:
    """Of a request with a checksum that is cut off nothing is kept."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10, Upload_Checksum=sha1(b"helloworld"))
    done = cut(line)
    if done is not None:
        await done
    await until(lambda: not here.service.bodies._open)
    await assert_untouched(here, path)


async def test_T_0A4_timeout_discards_all(tmp_path: Path) -> None:
    """Nor of one that falls silent: the 503 names the old offset."""
    clock = SteppedClock()
    async with site(tmp_path, clock=clock, body_idle="1s") as here:
        path = await here.create(10)
        line = await begin_patch(here, path, 0, b"hello", length=10, Upload_Checksum=sha1(b"helloworld"))
        clock.skip(2)
        answer = await line.answer()
        assert (answer.status, answer.slug, answer.offset) == (503, "timeout", 0)
        await assert_untouched(here, path)


async def test_T_0A4_takeover_discards_all(here: Site) -> None:
    """Nor of one that a newer request takes over."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10, Upload_Checksum=sha1(b"helloworld"))
    assert (await here.patch(path, 0, b"helloworld")).status == 204
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.offset) == (423, "locked", 0)
    assert await here.stored(path) == b"helloworld"


async def test_T_0A5_names(here: Site) -> None:
    """The seven algorithms are advertised, in lower case."""
    offered = (await here.ask("OPTIONS", "/files")).headers["Tus-Checksum-Algorithm"]
    assert offered == "sha1,sha256,sha512,md5,crc32c,xxh3-64,xxh128"


@pytest.mark.parametrize(("algorithm", "body", "digest"), VECTORS)
async def test_T_0A5_published_vectors(here: Site, algorithm: str, body: bytes, digest: str) -> None:
    """Each algorithm is what its name says, its digest in big-endian bytes."""
    path = await here.create(10)
    answer = await here.patch(path, 0, body, Upload_Checksum=f"{algorithm} {b64(bytes.fromhex(digest))}")
    assert (answer.status, answer.offset) == (204, len(body))


@pytest.mark.parametrize(("algorithm", "body", "digest"), [row for row in VECTORS if row[1]])
async def test_T_0A5_each_can_mismatch(here: Site, algorithm: str, body: bytes, digest: str) -> None:
    """With each algorithm another body is a mismatch."""
    path = await here.create(10)
    answer = await here.patch(path, 0, body[::-1], Upload_Checksum=f"{algorithm} {b64(bytes.fromhex(digest))}")
    assert answer.status == 460


@pytest.mark.parametrize("algorithm", ["SHA1", "Sha256", "XXH128"])
async def test_T_0A5_case_counts(here: Site, algorithm: str) -> None:
    """A name in another case is another name."""
    path = await here.create(10)
    answer = await here.patch(path, 0, b"hello", Upload_Checksum=f"{algorithm} {b64(bytes(20))}")
    assert (answer.status, answer.slug) == (400, "checksum-unsupported")


# --- in the trailer -------------------------------------------------------------------------


async def trailing(
    here: Site, path: str, body: bytes, trailers: Mapping[str, str], headers: Mapping[str, str] = ANNOUNCED
) -> Answer:
    """A chunked PATCH with trailers."""
    return await here.ask("PATCH", path, headers, body, chunked=True, trailers=trailers)


async def test_T_0A6_match(here: Site) -> None:
    """A body that matches the checksum in its trailer moves the offset."""
    path = await here.create(10)
    answer = await trailing(here, path, b"hello", {"Upload-Checksum": sha1(b"hello")})
    assert (answer.status, answer.offset) == (204, 5)


async def test_T_0A6_mismatch(here: Site) -> None:
    """One that does not answers 460 and changes nothing."""
    path = await here.create(10)
    answer = await trailing(here, path, b"hellO", {"Upload-Checksum": sha1(b"hello")})
    assert (answer.status, answer.reason, answer.offset) == (460, "Checksum Mismatch", 0)
    await assert_untouched(here, path)


async def test_T_0A6_goes_on_in_the_middle(here: Site) -> None:
    """The trailer speaks of this body, not of what was stored before."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    answer = await trailing(
        here, path, b"world", {"Upload-Checksum": sha1(b"world")}, ANNOUNCED | {"Upload-Offset": "5"}
    )
    assert answer.status == 204
    assert await here.stored(path) == b"helloworld"


async def test_T_0A6_names_in_any_case(here: Site) -> None:
    """Field names have no case, neither in `Trailer` nor in the trailer; others may stand beside."""
    path = await here.create(10)
    announced = APPEND | {"Trailer": "X-Other, upload-checksum"}
    trailers = {"X-Other": "a: b", "uPLOAD-cHECKSUM": sha1(b"hello"), "X-Last": ""}
    assert (await trailing(here, path, b"hello", trailers, announced)).status == 204


async def test_T_0A6_unannounced_trailer_is_ignored(here: Site) -> None:
    """A trailer that no `Trailer` field announced counts for nothing, even a wrong one."""
    path = await here.create(10)
    answer = await trailing(here, path, b"hello", {"Upload-Checksum": sha1(b"other")}, APPEND)
    assert (answer.status, answer.offset) == (204, 5)


LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def on_loop(
    factory: Callable[[], asyncio.AbstractEventLoop], folder: Path, talk: Callable[[Site], Awaitable[None]]
) -> None:
    """Runs a talk with a service of its own on that loop."""

    async def run() -> None:
        async with site(folder) as here:
            await talk(here)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


@pytest.mark.parametrize("loop", LOOPS)
def test_T_0A6_byte_by_byte(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Where the network cuts body and trailer makes no difference: here, after every byte."""

    async def talk(here: Site) -> None:
        path = await here.create(10)
        line = await here.line()
        await line.send(head("PATCH", path, list(ANNOUNCED.items()), None, chunked=True))
        for byte in chunk(b"hello", {"Upload-Checksum": sha1(b"hello")}, size=2):
            await line.send(bytes([byte]))
            await asyncio.sleep(0)
        answer = await line.answer()
        assert (answer.status, answer.offset) == (204, 5)

    on_loop(loop, tmp_path, talk)


@pytest.mark.parametrize("loop", LOOPS)
def test_T_0A6_large_body(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The trailer of a body of many reads is found, and decides."""
    body = bytes(range(256)) * 12_000

    async def talk(here: Site) -> None:
        path = await here.create(len(body))
        assert (await trailing(here, path, body, {"Upload-Checksum": sha1(body[1:])})).status == 460
        assert (await trailing(here, path, body, {"Upload-Checksum": sha1(body)})).status == 204
        assert await here.stored(path) == body

    on_loop(loop, tmp_path, talk)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("imitation", [b"\r\n0\r\nUpload-Checksum: %b\r\n\r\n", b"0\r\nUpload-Checksum: %b"])
def test_T_0A6_body_that_imitates_a_trailer(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], imitation: bytes
) -> None:
    """Bytes of the body that look like a trailer are bytes of the body; the trailer behind them decides."""
    body = b"hello" + imitation % sha1(b"hello").encode()

    async def talk(here: Site) -> None:
        path = await here.create(len(body))
        assert (await trailing(here, path, body, {})).status == 400
        assert (await trailing(here, path, body, {"Upload-Checksum": sha1(b"hello")})).status == 460
        assert (await trailing(here, path, body, {"Upload-Checksum": sha1(body)})).status == 204
        assert await here.stored(path) == body

    on_loop(loop, tmp_path, talk)


@pytest.mark.parametrize("trailers", [{}, {"X-Other": "1"}, {"Upload-Checksums": "sha1 AAAA"}])
async def test_T_0A7_announced_trailer_missing(here: Site, trailers: dict[str, str]) -> None:
    """A checksum that was announced and did not come answers 400, and the body is discarded."""
    path = await here.create(10)
    answer = await trailing(here, path, b"hello", trailers)
    assert (answer.status, answer.slug) == (400, "bad-header")
    await assert_untouched(here, path)


@pytest.mark.parametrize("value", ["", "sha1", "sha1 !!", "sha9 AAAA", "sha1 AAAA"])
async def test_T_0A7_malformed_trailer(here: Site, value: str) -> None:
    """One that came malformed, or of an unknown algorithm, as well."""
    path = await here.create(10)
    assert (await trailing(here, path, b"hello", {"Upload-Checksum": value})).status == 400
    await assert_untouched(here, path)


async def test_T_0A7_cut_before_the_trailer(here: Site) -> None:
    """A body that is whole but cut off before its trailer is discarded."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"helloworld", Trailer="Upload-Checksum")
    await line.close()
    await until(lambda: not here.service.bodies._open)
    await assert_untouched(here, path)


async def test_T_0A8_header_and_trailer_differ(here: Site) -> None:
    """Two checksums of one body must be the same, even if one of them matches."""
    path = await here.create(10)
    headers = ANNOUNCED | {"Upload-Checksum": sha1(b"hello")}
    answer = await trailing(here, path, b"hello", {"Upload-Checksum": sha1(b"other")}, headers)
    assert (answer.status, answer.slug) == (400, "bad-header")
    await assert_untouched(here, path)


async def test_T_0A8_another_algorithm_in_the_trailer(here: Site) -> None:
    """Nor may they be of two algorithms."""
    path = await here.create(10)
    headers = ANNOUNCED | {"Upload-Checksum": sha1(b"hello")}
    md5 = "md5 " + b64(hashlib.md5(b"hello").digest())
    assert (await trailing(here, path, b"hello", {"Upload-Checksum": md5}, headers)).status == 400


async def test_T_0A8_header_and_trailer_agree(here: Site) -> None:
    """The same checksum twice is one checksum."""
    path = await here.create(10)
    headers = ANNOUNCED | {"Upload-Checksum": sha1(b"hello")}
    assert (await trailing(here, path, b"hello", {"Upload-Checksum": sha1(b"hello")}, headers)).status == 204


# --- until it is verified -------------------------------------------------------------------


async def staged(here: Site) -> tuple[str, Line]:
    """An upload at offset 2 with eight more bytes received and not verified yet."""
    path = await here.create(20)
    await here.patch(path, 0, b"he")
    line = await begin_patch(here, path, 2, b"lloworld", length=18, Upload_Checksum=sha1(b"other"))
    return path, line


async def test_T_0A9_unverified_bytes_are_invisible(here: Site) -> None:
    """While a body with a checksum runs, HEAD and GET tell the offset before it."""
    path, _ = await staged(here)
    assert (await here.head(path)).offset == 2
    status = await here.ask("GET", path)
    assert (status.offset, status.json["offset"]) == (2, 2)


@pytest.mark.parametrize("stopped", [True, False])
async def test_T_0A9_restart_forgets_unverified_bytes(tmp_path: Path, stopped: bool) -> None:
    """After a stop, or a death, in the middle of such a body the upload goes on from the offset before it."""
    async with site(tmp_path) as first:
        # the directory is free, as it is when a process has died
        await asyncio.to_thread(first.service.claim.directory.close)
        path, _ = await staged(first)
        if stopped:
            await first.service.stop()
        async with site(tmp_path) as second:
            assert (await second.head(path)).offset == 2
            assert (await second.patch(path, 2, b"y" * 18)).offset == 20
            assert await second.stored(path) == b"he" + b"y" * 18


async def test_T_0AA_empty_body(here: Site) -> None:
    """An empty body matches the checksum of nothing."""
    path = await here.create(10)
    answer = await here.patch(path, 0, b"", Upload_Checksum=sha1(b""))
    assert (answer.status, answer.offset) == (204, 0)


async def test_T_0AA_empty_body_mismatch(here: Site) -> None:
    """And mismatches any other."""
    path = await here.create(10)
    assert (await here.patch(path, 0, b"", Upload_Checksum=sha1(b"hello"))).status == 460


async def test_T_0AA_empty_body_at_the_end(here: Site) -> None:
    """On a complete upload too."""
    path = await here.create(5)
    await here.patch(path, 0, b"hello")
    answer = await here.patch(path, 5, b"", Upload_Checksum=sha1(b""))
    assert (answer.status, answer.offset) == (204, 5)


async def test_T_0AA_empty_body_mismatch_at_the_end(here: Site) -> None:
    """Where it mismatches too."""
    path = await here.create(5)
    await here.patch(path, 0, b"hello")
    assert (await here.patch(path, 5, b"", Upload_Checksum=sha1(b"hello"))).status == 460
    assert (await here.head(path)).offset == 5
