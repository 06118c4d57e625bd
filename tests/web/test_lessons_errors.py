"""Lessons R1 and R2: what clients hear when something is broken."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from service.metadata.base import MetadataUnavailable
from service.protocol.problems import KINDS
from service.storage.base import StorageFull, StorageShort, StorageUnavailable
from tests.web.harness import OCTETS, TUS, Answer, Site, site
from tests.web.traces import breaks
from tests.web.under_way import SteppedClock, begin_patch

#: what an error of the inside might say
INSIDE = "/srv/attachd/uploads/secret.e1: bucket chat-prod at s3.internal.example"


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
    now = clock.now()
    await here.service.metadata.acquire_lease(here.upload_id(path), "another:1", now=now, until=now + 10)
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
    async with asyncio.timeout(30):
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


async def test_R2_what_is_recorded_is_told_whatever_becomes_of_the_bytes(here: Site) -> None:
    """A DELETE whose bytes cannot be removed now is done all the same: the record says so, and HEAD with it."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    here.service.storage.discard = breaks(StorageUnavailable(INSIDE))  # type: ignore[method-assign]
    assert (await here.ask("DELETE", path, TUS)).status == 204
    assert (await here.head(path)).status == 410


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
