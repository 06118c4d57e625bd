"""Lessons R1, R2, R4, R5 and K1: answers that clients can act on."""

from __future__ import annotations

import asyncio
import gzip
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.metadata.base import MetadataUnavailable
from service.protocol.problems import KINDS
from service.storage.base import StorageFull, StorageShort, StorageUnavailable
from service.web.cors import EXPOSE_HEADERS
from tests.web.harness import OCTETS, TUS, Answer, Site, b64, path_of, site
from tests.web.under_way import SteppedClock, begin_patch, held, until

#: what an error of the inside might say
INSIDE = "/srv/attachd/uploads/secret.e1: bucket chat-prod at s3.internal.example"


def breaks(error: Exception) -> Any:
    """A call that fails."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise error

    return broken


# --- R1: HEAD of a live upload is 200 or 423 ------------------------------------------------------


async def _database_away(here: Site, path: str) -> None:
    here.service.metadata.upload = breaks(MetadataUnavailable(INSIDE))  # type: ignore[method-assign]


async def _database_broken(here: Site, path: str) -> None:
    here.service.metadata.upload = breaks(RuntimeError(INSIDE))  # type: ignore[method-assign]


async def _leases_away(here: Site, path: str) -> None:
    # old enough for HEAD to ask whether somebody silent holds it
    clock = here.clock
    assert clock is not None
    clock.forward(10)
    here.service.metadata.lease = breaks(MetadataUnavailable(INSIDE))  # type: ignore[method-assign]


async def _storage_away(here: Site, path: str) -> None:
    _break_storage(here, StorageUnavailable(INSIDE))


async def _disk_full(here: Site, path: str) -> None:
    _break_storage(here, StorageFull(INSIDE))


def _break_storage(here: Site, error: Exception) -> None:
    storage = here.service.storage
    for name in ("probe", "free_bytes", "complete", "discard", "delete"):
        setattr(storage, name, breaks(error))


async def _crowded(here: Site, path: str) -> None:
    here.service.bodies._max_transfers = 0


async def _stopping(here: Site, path: str) -> None:
    here.service.bodies.drain()


async def _finishing(here: Site, path: str) -> None:
    here.service.storage.complete = breaks(StorageUnavailable(INSIDE))  # type: ignore[method-assign]
    answer = await here.patch(path, 5, b"world")
    assert (answer.status, answer.slug) == (503, "storage-unavailable")


async def _held_by_a_dead_writer(here: Site, path: str) -> None:
    clock = here.clock
    assert isinstance(clock, SteppedClock)
    await begin_patch(here, path, 5, b"w", length=5)
    holder = here.service.leases._holders[here.upload_id(path)]
    holder.stop = lambda: None
    here.service.leases._patience_seconds = 0.05
    clock.skip(3)


async def _written_to(here: Site, path: str) -> None:
    await begin_patch(here, path, 5, b"w", length=5)


#: what is broken, and the answers of HEAD that are right
TROUBLE: Mapping[Callable[[Site, str], Awaitable[None]], int] = {
    _database_away: 423,
    _database_broken: 423,
    _leases_away: 423,
    _storage_away: 200,
    _disk_full: 200,
    _crowded: 200,
    _stopping: 200,
    _finishing: 423,
    _held_by_a_dead_writer: 423,
    _written_to: 200,
}


@pytest.fixture
async def stepped(tmp_path: Path) -> AsyncIterator[Site]:
    """A service whose clocks move when told."""
    async with site(tmp_path, clock=SteppedClock()) as running:
        yield running


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_R1_head_of_a_live_upload_is_200_or_423(
    stepped: Site, trouble: Callable[[Site, str], Awaitable[None]]
) -> None:
    """Whatever is broken meanwhile, HEAD gives the offset or says to come again, never to start anew."""
    path = await stepped.create(10)
    await stepped.patch(path, 0, b"hello")
    await trouble(stepped, path)
    answer = await stepped.head(path)
    assert answer.status == TROUBLE[trouble]
    if answer.status == 200:
        assert answer.offset == 5
    else:
        assert int(answer.headers["Retry-After"]) >= 1


async def test_R1_404_and_410_only_if_it_is_gone(here: Site) -> None:
    """HEAD says 404 of what never was and 410 of what is gone."""
    path = await here.create(10)
    await here.ask("DELETE", path, TUS)
    assert (await here.head(path)).status == 410
    assert (await here.head("/files/u_" + "a" * 26)).status == 404


@pytest.mark.parametrize("trouble", [_database_away, _storage_away, _finishing])
async def test_R1_after_the_trouble_the_upload_goes_on(
    stepped: Site, trouble: Callable[[Site, str], Awaitable[None]]
) -> None:
    """Once what was broken works again, the upload finishes where it was, with no second POST."""
    path = await stepped.create(10)
    await stepped.patch(path, 0, b"hello")
    await trouble(stepped, path)
    for broken in (stepped.service.metadata, stepped.service.storage):
        for name in [name for name, value in vars(broken).items() if getattr(value, "__name__", "") == "broken"]:
            delattr(broken, name)
    async with asyncio.timeout(5):
        while (found := await stepped.head(path)).status != 200:
            await asyncio.sleep(0.01)
    if found.offset == 5:
        assert (await stepped.patch(path, 5, b"world")).status == 204
    assert await stepped.stored(path) == b"helloworld"


# --- R2: errors that say what is the matter, and nothing of the inside ----------------------------

PRIVATE = re.compile(r"/srv|secret|bucket|chat-prod|internal\.example|Traceback|\.py|sqlite|errno", re.IGNORECASE)


def assert_problem(answer: Answer, status: int, slug: str) -> None:
    """The answer fits the schema and keeps the inside to itself."""
    assert (answer.status, answer.slug) == (status, slug)
    body = answer.json
    assert set(body) >= {"type", "title", "status", "detail", "request_id"}
    assert body["title"] == KINDS[slug].title
    assert body["request_id"] == answer.headers["X-Request-ID"] != ""
    assert not PRIVATE.search(repr((answer.reason, list(answer.headers.items()), answer.body)))


async def _patch(here: Site) -> Answer:
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    _inject(here)
    return await here.patch(path, 5, b"world")


async def _create(here: Site) -> Answer:
    _inject(here)
    return await here.post(10)


async def _get(here: Site) -> Answer:
    path = await here.create(10)
    _inject(here)
    return await here.ask("GET", path)


async def _delete(here: Site) -> Answer:
    path = await here.create(10)
    _inject(here)
    return await here.ask("DELETE", path, TUS)


async def _download(here: Site) -> Answer:
    file = await here.upload(b"content")
    _inject(here)
    return await here.ask("GET", here.download_link(file))


_FAULTS: dict[int, list[tuple[str, str, Exception]]] = {}


def _inject(here: Site) -> None:
    """Breaks what the test asked for."""
    for part, method, error in _FAULTS.pop(id(here), []):
        setattr(getattr(here.service, part.removeprefix("_")), method, breaks(error))


#: request; part, method and error; status and slug
FAULTS: tuple[tuple[Callable[[Site], Awaitable[Answer]], str, str, Exception, int, str], ...] = (
    (_create, "_metadata", "create_upload", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_create, "_metadata", "create_upload", RuntimeError(INSIDE), 500, "internal"),
    (_create, "_metadata", "link_use", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_create, "_storage", "free_bytes", StorageUnavailable(INSIDE), 503, "storage-unavailable"),
    (_create, "_storage", "free_bytes", OSError(INSIDE), 500, "internal"),
    (_patch, "_metadata", "upload", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_patch, "_metadata", "acquire_lease", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_patch, "_metadata", "advance", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_patch, "_metadata", "advance", RuntimeError(INSIDE), 500, "internal"),
    (_patch, "_metadata", "publish", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_patch, "_metadata", "publish", RuntimeError(INSIDE), 500, "internal"),
    (_patch, "_storage", "complete", StorageUnavailable(INSIDE), 503, "storage-unavailable"),
    (_patch, "_storage", "complete", StorageFull(INSIDE), 507, "storage-full"),
    (_patch, "_storage", "complete", StorageShort(INSIDE), 500, "internal"),
    (_patch, "_storage", "complete", RuntimeError(INSIDE), 500, "internal"),
    (_get, "_metadata", "upload", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_get, "_metadata", "upload", ValueError(INSIDE), 500, "internal"),
    (_delete, "_metadata", "end_upload", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_delete, "_storage", "discard", StorageUnavailable(INSIDE), 503, "storage-unavailable"),
    (_download, "_metadata", "file", MetadataUnavailable(INSIDE), 503, "storage-unavailable"),
    (_download, "_metadata", "file", RuntimeError(INSIDE), 500, "internal"),
)


@pytest.mark.parametrize(
    ("request_", "part", "method", "error", "status", "slug"),
    FAULTS,
    ids=[f"{row[0].__name__[1:]}-{row[2]}-{type(row[3]).__name__}" for row in FAULTS],
)
async def test_R2_faults_tell_nothing_of_the_inside(
    here: Site,
    request_: Callable[[Site], Awaitable[Answer]],
    part: str,
    method: str,
    error: Exception,
    status: int,
    slug: str,
) -> None:
    """Each fault is problem+json with its own slug, worth a retry, and without paths, buckets or driver text."""
    _FAULTS[id(here)] = [(part, method, error)]
    answer = await request_(here)
    assert_problem(answer, status, slug)
    assert status == 500 or int(answer.headers["Retry-After"]) > 0


async def _no_protocol(here: Site) -> Answer:
    return await here.ask("POST", here.link(), {"Upload-Length": "5", "Content-Length": "0"})


async def _no_length(here: Site) -> Answer:
    return await here.post(None)


async def _no_token(here: Site) -> Answer:
    return await here.post(5, "/files")


async def _multipart_form(here: Site) -> Answer:
    headers = TUS | {"Upload-Length": "5", "Content-Type": "multipart/form-data; boundary=x"}
    return await here.ask("POST", here.link(), headers, b"hello")


async def _octet_stream(here: Site) -> Answer:
    headers = TUS | {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}
    return await here.ask("PATCH", await here.create(5), headers, b"hello")


async def _no_offset(here: Site) -> Answer:
    return await here.ask("PATCH", await here.create(5), TUS | {"Content-Type": OCTETS}, b"hello")


async def _stale_offset(here: Site) -> Answer:
    return await here.patch(await here.create(5), 3, b"lo")


async def _unknown_checksum(here: Site) -> Answer:
    return await here.patch(await here.create(5), 0, b"hello", Upload_Checksum="md4 AAAA")


async def _download_link_to_upload(here: Site) -> Answer:
    return await here.post(5, "/files?" + here.download_link("f_" + "a" * 26).partition("?")[2])


async def _upload_link_to_download(here: Site) -> Answer:
    return await here.ask("GET", f"/d/f_{'a' * 26}?sig={here.token()}")


async def _plain_metadata(here: Site) -> Answer:
    return await here.post(5, Upload_Metadata="filename my cat.png")


async def _nothing_there(here: Site) -> Answer:
    return await here.ask("GET", "/upload")


async def _post_to_upload(here: Site) -> Answer:
    return await here.ask("POST", await here.create(5), TUS, b"hello")


async def _bad_wait(here: Site) -> Answer:
    return await here.ask("GET", await here.create(5) + "?wait=soon")


#: mistakes that people make: status, and what the words must name
MISTAKES: Mapping[Callable[[Site], Awaitable[Answer]], tuple[int, str, tuple[str, ...]]] = {
    _no_protocol: (412, "version-unsupported", ("Tus-Resumable: 1.0.0",)),
    _no_length: (400, "bad-header", ("Upload-Length", "Upload-Defer-Length: 1")),
    _no_token: (401, "bad-link", ("?sig=", "Authorization: Bearer")),
    _multipart_form: (415, "wrong-content-type", ("Content-Type: application/offset+octet-stream",)),
    _octet_stream: (415, "wrong-content-type", ("Content-Type: application/offset+octet-stream",)),
    _no_offset: (400, "bad-header", ("Upload-Offset",)),
    _stale_offset: (409, "offset-mismatch", ("Upload-Offset 0",)),
    _unknown_checksum: (400, "checksum-unsupported", ("Tus-Checksum-Algorithm", "OPTIONS")),
    _download_link_to_upload: (403, "wrong-scope", ("upl+jwt",)),
    _upload_link_to_download: (403, "wrong-scope", ("dl+jwt",)),
    _plain_metadata: (400, "bad-metadata", ("Upload-Metadata", "base64")),
    _nothing_there: (404, "not-found", ("address",)),
    _post_to_upload: (405, "method-not-allowed", ("HEAD", "GET", "PATCH", "DELETE")),
    _bad_wait: (400, "bad-header", ("wait", "20")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_R2_mistakes_are_told_with_what_was_expected(
    here: Site, mistake: Callable[[Site], Awaitable[Answer]]
) -> None:
    """A mistake's detail names the header or route that would have been right."""
    status, slug, words = MISTAKES[mistake]
    answer = await mistake(here)
    assert_problem(answer, status, slug)
    assert [word for word in words if word not in answer.json["detail"]] == []


async def test_R2_a_client_finds_its_own_request_id(here: Site) -> None:
    """A request id that came with the request comes back, in the header and in the problem."""
    answer = await here.ask("GET", "/nothing", {"X-Request-ID": "chat-42.7"})
    assert (answer.headers["X-Request-ID"], answer.json["request_id"]) == ("chat-42.7", "chat-42.7")


# --- R4: CORS on every answer ---------------------------------------------------------------------

PAGE = "https://chat.example"


async def _mismatch(here: Site, sent: dict[str, str]) -> Answer:
    headers = TUS | sent | {"Upload-Offset": "0", "Content-Type": OCTETS, "Upload-Checksum": f"sha1 {b64(bytes(20))}"}
    return await here.ask("PATCH", await here.create(5), headers, b"hello")


async def _fault(here: Site, sent: dict[str, str]) -> Answer:
    here.service.metadata.link_use = breaks(RuntimeError(INSIDE))  # type: ignore[method-assign]
    return await here.ask("POST", here.link(), TUS | sent | {"Upload-Length": "5", "Content-Length": "0"})


async def _locked(here: Site, sent: dict[str, str]) -> Answer:
    path = await here.create(5)
    await _database_away(here, path)
    return await here.ask("HEAD", path, TUS | sent)


async def _terminated(here: Site, sent: dict[str, str]) -> Answer:
    path = await here.create(5)
    await here.ask("DELETE", path, TUS)
    return await here.ask("GET", path, sent)


async def _overlong(here: Site, sent: dict[str, str]) -> Answer:
    headers = TUS | sent | {"Upload-Offset": "0", "Content-Type": OCTETS}
    return await here.ask("PATCH", await here.create(5), headers, b"hello world")


async def _taken_over(here: Site, sent: dict[str, str]) -> Answer:
    path = await here.create(5)
    line = await begin_patch(here, path, 0, b"he", length=5, Origin=sent["Origin"])
    # the newer request has the upload, and finds that the older has moved the offset
    assert (await here.patch(path, 0, b"hello")).status == 409
    return await line.answer()


def _ask(method: str, path: str, headers: Mapping[str, str] = {}, body: bytes | None = None) -> Any:
    """A request without ceremony."""

    async def request(here: Site, sent: dict[str, str]) -> Answer:
        target = path.format(link=here.link(), token=here.token(), live=await here.create(5), file="f_" + "a" * 26)
        return await here.ask(method, target, dict(headers) | dict(sent), body)

    return request


REPLIES: Mapping[int | str, Callable[[Site, dict[str, str]], Awaitable[Answer]]] = {
    200: _ask("HEAD", "{live}", TUS),
    "200 discovery": _ask("OPTIONS", "/files"),
    "200 status": _ask("GET", "{live}"),
    201: _ask("POST", "{link}", TUS | {"Upload-Length": "5", "Content-Length": "0"}),
    "201 PUT": _ask("PUT", "{link}", {}, b"hello"),
    204: _ask("DELETE", "{live}", TUS),
    400: _ask("POST", "{link}", TUS | {"Upload-Length": "x", "Content-Length": "0"}),
    401: _ask("POST", "/files", TUS | {"Upload-Length": "5", "Content-Length": "0"}),
    "401 download": _ask("GET", "/d/{file}"),
    403: _ask("GET", "/d/{file}?sig={token}"),
    404: _ask("GET", "/nothing/here"),
    "404 upload": _ask("HEAD", "/files/u_" + "a" * 26, TUS),
    405: _ask("POST", "{live}", TUS | {"Content-Length": "0"}),
    "405 router": _ask("DELETE", "/d/{file}"),
    409: _ask("PATCH", "{live}", TUS | {"Upload-Offset": "3", "Content-Type": OCTETS}, b"x"),
    410: _terminated,
    412: _ask("POST", "{link}", {"Upload-Length": "5", "Content-Length": "0"}),
    413: _overlong,
    415: _ask("PATCH", "{live}", TUS | {"Upload-Offset": "0"}, b"x"),
    423: _locked,
    "423 taken over": _taken_over,
    460: _mismatch,
    500: _fault,
}


@pytest.mark.parametrize("reply", REPLIES)
async def test_R4_every_answer_can_be_read_by_a_page(here: Site, reply: int | str) -> None:
    """Good or bad, an answer to a page has its origin, Vary and the full list of readable headers."""
    answer = await REPLIES[reply](here, {"Origin": PAGE})
    assert answer.status == int(str(reply)[:3])
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Origin" in answer.headers["Vary"]
    assert answer.headers["Access-Control-Expose-Headers"] == EXPOSE_HEADERS
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("status", [503, 507])
async def test_R4_overload_can_be_read_by_a_page(here: Site, status: int) -> None:
    """503 and 507 too."""
    if status == 503:
        await _crowded(here, "")
    else:
        _break_storage(here, StorageFull(INSIDE))
    headers = TUS | {"Origin": PAGE, "Upload-Length": "5", "Content-Type": OCTETS}
    answer = await here.ask("POST", here.link(), headers, b"hello")
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, PAGE)


@pytest.mark.parametrize(
    "origin",
    [
        "https://chat.example.evil.org", "https://evil.org/https://chat.example", "http://chat.example", "null",
        "https://chat.example:8443", "https://xchat.example", "https://chat.example.", "https://chat.example/", "",
        "https://sub.chat.example", "*", "https://chatxexample", "https://chat.example, https://evil.org",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["OPTIONS", "POST", "HEAD"])
async def test_R4_only_exact_origins_are_let_in(tmp_path: Path, origin: str, method: str) -> None:
    """An origin that is not on the list, however like one, gets 403 and not one CORS header."""
    async with site(tmp_path, cors_origins=f"{PAGE},https://other.example") as here:
        path = await here.create(5) if method == "HEAD" else here.link()
        headers = TUS | {"Upload-Length": "5", "Content-Length": "0"}
        answer = await here.ask(method, path, headers | {"Origin": origin})
        assert answer.status == 403
        assert [name for name in answer.headers if name.lower().startswith("access-control")] == []
        answer = await here.ask(method, path, headers | {"Origin": PAGE})
        assert answer.status in (200, 201)
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE


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
    async with asyncio.timeout(5):
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
