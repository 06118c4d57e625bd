"""Lessons A3 and A4: refused before anything happens, limited on every path."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service import listening
from service.web.connection import Connection
from tests.web.harness import OCTETS, TUS, Answer, Site, b64, path_of, site
from tests.web.traces import traces

HUGE = 2**32
KIB = 1024

# --- A3: checks come before effects --------------------------------------------------------------


@dataclass
class Refused:
    """A request with a body of 4 GiB that never gets to send it."""

    status: int
    slug: str
    method: str = "POST"
    path: str = "/files?sig={token}"
    headers: dict[str, str] = field(default_factory=dict)
    #: claims of the token
    claims: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=lambda: TUS)
    #: runs before the request
    before: Callable[[Site], Awaitable[None]] | None = None


async def _full(here: Site) -> None:
    async def nothing() -> int:
        return 0

    here.service.storage.free_bytes = nothing  # type: ignore[method-assign]


async def _crowded(here: Site) -> None:
    here.service.bodies._max_transfers = 0


async def _stopping(here: Site) -> None:
    here.service.bodies.drain()


def create(status: int, slug: str, headers: Mapping[str, str] = {}, **rest: Any) -> Refused:
    """A creation with data that is refused."""
    sent = {"Upload-Length": str(HUGE), "Content-Type": OCTETS, **headers}
    return Refused(status, slug, headers={name: value for name, value in sent.items() if value != "-"}, **rest)


def append(status: int, slug: str, headers: Mapping[str, str] = {}, path: str = "{live}", **rest: Any) -> Refused:
    """A PATCH that is refused."""
    sent = {"Upload-Offset": "5", "Content-Type": OCTETS, **headers}
    kept = {name: value for name, value in sent.items() if value != "-"}
    return Refused(status, slug, "PATCH", path, kept, **rest)


REFUSALS: Mapping[str, Refused] = {
    "no token": create(401, "bad-link", path="/files"),
    "no good token": create(401, "bad-link", path="/files?sig=a.b.c"),
    "expired": create(401, "link-expired", claims={"expires_in": 3600, "now": time.time() - 7200}),
    "download link": create(403, "wrong-scope", path="/files?sig={download}"),
    "used for another length": create(403, "link-used", {"Upload-Length": str(HUGE - 1)}, path="{used}"),
    "too large for the link": create(413, "too-large", claims={"max_size": HUGE - 1}),
    "too large for the server": create(413, "too-large", {"Upload-Length": str(HUGE + 1)}, claims={"max_size": 2**40}),
    "another size": create(
        403, "length-mismatch", claims={"size": HUGE, "max_size": HUGE}, headers={"Upload-Length": str(HUGE - 1)}
    ),
    "body longer than the upload": create(413, "too-large", {"Upload-Length": "5"}),
    "another type": create(
        403, "type-refused", {"Upload-Metadata": f"filetype {b64(b'text/html')}"}, claims={"types": ["image/*"]}
    ),
    "no length": create(400, "bad-header", {"Upload-Length": "-"}),
    "two lengths": create(400, "bad-header", {"Upload-Defer-Length": "1"}),
    "a length that is none": create(400, "bad-header", {"Upload-Length": "1e3"}),
    "a wrong deferral": create(400, "bad-header", {"Upload-Defer-Length": "2", "Upload-Length": "-"}),
    "bad metadata": create(400, "bad-metadata", {"Upload-Metadata": "a b c"}),
    "wrong content type": create(415, "wrong-content-type", {"Content-Type": "image/png"}),
    "unknown checksum": create(400, "checksum-unsupported", {"Upload-Checksum": "md4 AAAA"}),
    "malformed checksum": create(400, "bad-header", {"Upload-Checksum": "sha1"}),
    "body on a final": create(403, "final-upload", {"Upload-Concat": "final;{live}", "Upload-Length": "-"}),
    "a final of nothing": create(400, "bad-header", {"Upload-Concat": "final;"}),
    "no protocol": create(412, "version-unsupported", protocol={}),
    "another version": create(412, "version-unsupported", protocol={"Tus-Resumable": "0.2.2"}),
    "the IETF draft": create(412, "version-unsupported", {"Upload-Complete": "?1"}, protocol={}),
    "unknown override": create(405, "method-not-allowed", {"X-HTTP-Method-Override": "MOVE"}),
    "no room": create(507, "storage-full", before=_full),
    "too many transfers": create(503, "overloaded", before=_crowded),
    "stopping": create(503, "draining", before=_stopping),
    "PUT without token": create(401, "bad-link", method="PUT", path="/files/a.bin", protocol={}),
    "PUT too large": create(413, "too-large", method="PUT", claims={"max_size": 5}, protocol={}),
    "PUT of another type": create(403, "type-refused", method="PUT", claims={"types": ["image/*"]}, protocol={}),
    "PUT without room": create(507, "storage-full", method="PUT", protocol={}, before=_full),
    "unknown upload": append(404, "not-found", path="/files/u_" + "a" * 26),
    "no upload": append(404, "not-found", path="/files/..%2f..%2fetc"),
    "terminated upload": append(410, "gone", path="{gone}"),
    "lower offset": append(409, "offset-mismatch", {"Upload-Offset": "4"}),
    "higher offset": append(409, "offset-mismatch", {"Upload-Offset": "6"}),
    "no offset": append(400, "bad-header", {"Upload-Offset": "-"}),
    "an offset that is none": append(400, "bad-header", {"Upload-Offset": "0x5"}),
    "more than is left": append(413, "too-large"),
    "another length": append(400, "length-mismatch", {"Upload-Length": "11"}),
    "PATCH of another type": append(415, "wrong-content-type", {"Content-Type": "application/octet-stream"}),
    "PATCH with an unknown checksum": append(400, "checksum-unsupported", {"Upload-Checksum": "md4 AAAA"}),
    "PATCH of a final": append(403, "final-upload", {"Upload-Offset": "3"}, path="{final}"),
    "PATCH without protocol": append(412, "version-unsupported", protocol={}),
    "PATCH framed for the IETF draft": append(400, "bad-header", {"Upload-Complete": "?1"}, protocol={}),
    "PATCH while stopping": append(503, "draining", before=_stopping),
    "POST to an upload": Refused(405, "method-not-allowed", "POST", "{live}", {"Content-Type": OCTETS}),
}


@dataclass
class Stage:
    """A service with uploads in every state."""

    here: Site
    paths: dict[str, str]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """`live` has 5 of 10 bytes; `used` is a link with an upload; `gone` is terminated; `final` is joined."""
    async with site(tmp_path) as here:
        live = await here.create(10)
        await here.patch(live, 0, b"hello")
        used = here.link(max_size=HUGE)
        await here.create(HUGE, used)
        gone = await here.create(10)
        await here.ask("DELETE", gone, TUS)
        link = here.link()
        partial = await here.create(3, link, Upload_Concat="partial")
        await here.patch(partial, 0, b"abc")
        final = await here.post(None, link, Upload_Concat=f"final;{partial}")
        yield Stage(here, {"live": live, "used": used, "gone": gone, "final": path_of(final.headers["Location"])})


def _request(stage: Stage, case: Refused) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers."""
    here = stage.here
    words = dict(stage.paths)
    words["token"] = here.token(**{"max_size": HUGE} | dict(case.claims))
    words["download"] = here.download_link("f_" + "a" * 26).partition("sig=")[2]
    headers = {name: value.format(**words) for name, value in case.headers.items()}
    return case.method, case.path.format(**words), dict(case.protocol) | headers


@pytest.mark.parametrize("name", REFUSALS)
async def test_A3_refusals_cost_nothing(stage: Stage, name: str) -> None:
    """A refused request gets its status instead of 100, changes nothing anywhere, and the connection ends."""
    case = REFUSALS[name]
    if case.before is not None:
        await case.before(stage.here)
    method, path, headers = _request(stage, case)
    before = traces(stage.here)
    line = await stage.here.line()
    sent = headers | {"Host": "files.test", "Expect": "100-continue", "Content-Length": str(HUGE)}
    await line.send((f"{method} {path} HTTP/1.1\r\n" + _lines(sent)).encode())
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.interim) == (case.status, case.slug, ())
    assert answer.headers["Connection"] == "close"
    assert traces(stage.here) == before


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"


@pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
@pytest.mark.parametrize("name", ["no token", "too large for the link", "wrong content type", "lower offset"])
async def test_A3_a_refused_body_is_not_read(stage: Stage, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 GiB that a client sends without asking, 1 MiB is read at most, and it hears the refusal at once."""
    read = 0
    passed_on = Connection.receive

    def count(self: Connection, data: bytes) -> None:
        nonlocal read
        read += len(data)
        passed_on(self, data)

    monkeypatch.setattr(Connection, "receive", count)
    case = REFUSALS[name]
    method, path, headers = _request(stage, case)
    line = await stage.here.line()
    sent = headers | {"Host": "files.test", "Content-Length": str(HUGE)}
    began = time.monotonic()
    await line.send((f"{method} {path} HTTP/1.1\r\n" + _lines(sent)).encode())
    sending = asyncio.create_task(_pour(line.writer))
    assert (await line.answer()).status == case.status
    # 0.1 s is the promise; a busy test machine gets some more, and whoever waits for the body has to wait for ever
    assert time.monotonic() - began < 30
    with contextlib.suppress(ConnectionError):
        await sending
    # the head, and what asyncio reads at once: before the handler begins, while it does, for aiohttp, and to drop it
    assert read <= KIB + 4 * 256 * KIB


async def _pour(writer: asyncio.StreamWriter) -> None:
    """Sends until the server ends the connection."""
    block = bytes(256 * KIB)
    while not writer.transport.is_closing():
        writer.write(block)
        await writer.drain()


@pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
async def test_A3_the_answer_to_a_small_refused_body_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused body that has come whole ends the connection without a pause."""
    # whoever waited for more of the body would wait for longer than the test does
    monkeypatch.setattr(listening, "_LINGER_SECONDS", 90.0)
    async with site(tmp_path) as here:
        line = await here.line()
        headers = TUS | {"Upload-Length": "5", "Content-Type": "image/png", "Content-Length": "5", "Host": "files.test"}
        await line.send((f"POST {here.link()} HTTP/1.1\r\n" + _lines(headers)).encode() + b"hello")
        assert (await line.answer()).slug == "wrong-content-type"
        async with asyncio.timeout(30):
            assert await line.closed()


# --- A4: limits hold on every path ---------------------------------------------------------------

LIMIT = 3000


@dataclass(frozen=True)
class Way:
    """How n bytes are sent; the answer that decides, and how many bytes are kept of too many."""

    send: Callable[[Site, str, int], Awaitable[Answer]]
    keeps: int | None


async def _known(here: Site, link: str, size: int) -> Answer:
    return await here.post(size, link)


async def _deferred(here: Site, link: str, size: int) -> Answer:
    path = await here.create(None, link, Upload_Defer_Length="1")
    return await here.patch(path, 0, bytes(size))


async def _deferred_chunked(here: Site, link: str, size: int) -> Answer:
    path = await here.create(None, link, Upload_Defer_Length="1")
    return await here.ask(
        "PATCH", path, TUS | {"Upload-Offset": "0", "Content-Type": OCTETS}, bytes(size), chunked=True
    )


async def _deferred_then_told(here: Site, link: str, size: int) -> Answer:
    path = await here.create(None, link, Upload_Defer_Length="1")
    return await here.patch(path, 0, b"", Upload_Length=str(size))


async def _in_post(here: Site, link: str, size: int) -> Answer:
    return await here.ask("POST", link, TUS | {"Upload-Length": str(size), "Content-Type": OCTETS}, bytes(size))


async def _in_post_deferred(here: Site, link: str, size: int) -> Answer:
    headers = TUS | {"Upload-Defer-Length": "1", "Content-Type": OCTETS}
    return await here.ask("POST", link, headers, bytes(size))


async def _in_post_chunked(here: Site, link: str, size: int) -> Answer:
    headers = TUS | {"Upload-Defer-Length": "1", "Content-Type": OCTETS}
    return await here.ask("POST", link, headers, bytes(size), chunked=True)


async def _checksummed(here: Site, link: str, size: int) -> Answer:
    headers = TUS | {"Upload-Defer-Length": "1", "Content-Type": OCTETS, "Trailer": "Upload-Checksum"}
    return await here.ask("POST", link, headers, bytes(size), chunked=True, trailers={"Upload-Checksum": "sha1 x"})


async def _put(here: Site, link: str, size: int) -> Answer:
    return await here.ask("PUT", link, {}, bytes(size))


async def _put_chunked(here: Site, link: str, size: int) -> Answer:
    return await here.ask("PUT", link, {}, bytes(size), chunked=True)


async def _partials(here: Site, link: str, size: int) -> Answer:
    await here.create(1000, link, Upload_Concat="partial")
    return await here.post(size - 1000, link, Upload_Concat="partial")


async def _final(here: Site, link: str, size: int) -> Answer:
    # of links of their own, whose limits together would let it pass
    paths = []
    for length in (1000, size - 1000):
        paths.append(await here.create(length, here.link(), Upload_Concat="partial"))
        await here.patch(paths[-1], 0, bytes(length))
    return await here.post(None, link, Upload_Concat="final;" + " ".join(paths))


WAYS: Mapping[str, Way] = {
    "declared": Way(_known, None),
    "deferred": Way(_deferred, 0),
    "deferred and chunked": Way(_deferred_chunked, LIMIT),
    "deferred, then told": Way(_deferred_then_told, None),
    "in the POST": Way(_in_post, None),
    "in a deferred POST": Way(_in_post_deferred, None),
    "in a chunked POST": Way(_in_post_chunked, LIMIT),
    "PUT": Way(_put, None),
    "chunked PUT": Way(_put_chunked, LIMIT),
    "partials": Way(_partials, None),
    "final": Way(_final, None),
}


@pytest.mark.parametrize("who", ["link", "server", "size"])
@pytest.mark.parametrize("way", WAYS)
async def test_A4_limits_hold_on_every_path(tmp_path: Path, way: str, who: str) -> None:
    """One byte under the limit and the limit pass; one over is 413 and leaves the allowed bytes at most."""
    changes: dict[str, Any] = {"max_size": str(LIMIT)} if who == "server" else {}
    claims: dict[str, Any] = {"server": {}, "link": {"max_size": LIMIT}, "size": {"size": LIMIT}}[who]
    async with site(tmp_path, **changes) as here:
        # a link for exactly so many bytes takes no other length where one is declared
        for size in (LIMIT,) if who == "size" else (LIMIT - 1, LIMIT):
            assert (await WAYS[way].send(here, here.link(**claims), size)).status in (201, 204)
        answer = await WAYS[way].send(here, here.link(**claims), LIMIT + 1)
        assert (answer.status, answer.slug) == (413, "too-large")
        assert _most_stored(here) <= LIMIT
        if WAYS[way].keeps is not None:
            assert answer.headers["Upload-Offset"] == str(WAYS[way].keeps)


def _most_stored(here: Site) -> int:
    """The size of the largest file on disk."""
    root = here.service.settings.data
    return max((root / name).stat().st_size for name in here.leftovers()) if here.leftovers() else 0


async def test_A4_a_checksum_does_not_lift_the_limit(here: Site) -> None:
    """A chunked body with a checksum to come that is too long keeps nothing, as it cannot be verified."""
    answer = await _checksummed(here, here.link(max_size=LIMIT), LIMIT + 1)
    assert (answer.status, answer.slug) == (413, "too-large")
    assert here.leftovers() == []


@examples(max_examples=15)
@given(limit=st.integers(0, 3000), over=st.integers(1, 3000), cuts=st.lists(st.integers(1, 1000), max_size=3))
def test_A4_exactly_the_allowed_bytes_are_kept(
    tmp_path_factory: pytest.TempPathFactory, limit: int, over: int, cuts: Sequence[int]
) -> None:
    """However a chunked stream is cut into PATCHes, 413 comes at the limit and the limit is what is kept."""

    async def play() -> None:
        async with site(tmp_path_factory.mktemp("limit")) as here:
            path = await here.create(None, here.link(max_size=limit), Upload_Defer_Length="1")
            offset = 0
            for size in (*cuts, limit + over):
                headers = TUS | {"Upload-Offset": str(offset), "Content-Type": OCTETS}
                answer = await here.ask("PATCH", path, headers, bytes(size), chunked=True)
                assert answer.status == (204 if offset + size <= limit else 413), answer
                offset = min(limit, offset + size)
                assert answer.headers["Upload-Offset"] == str(offset)
                assert (await here.head(path)).offset == offset

    asyncio.run(play())
