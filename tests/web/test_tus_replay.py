"""A link used again (section F, T-05C to T-05F): creation is idempotent by the link."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.storage.base import StorageShort
from service.storage.filesystem import FilesystemStorage
from tests.web.harness import OCTETS, TUS, FakeClock, Site, head, path_of, site
from tests.web.traces import count, events, traces

HOUR = 3600.0
PARTIAL = {"Upload_Concat": "partial"}


def forward(here: Site, seconds: float) -> None:
    """The service's clock is that much further."""
    assert here.clock is not None
    here.clock.forward(seconds)


# --- T-05C: the same creation again ---------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"hello", b"helloworld"], ids=["new", "unfinished", "complete"])
async def test_T_05C_same_creation_again(here: Site, sent: bytes) -> None:
    """The same creation with the same link answers 201, the same `Location` and the offset; nothing is made."""
    link = here.link()
    path = await here.create(10, link)
    await here.patch(path, 0, sent)
    made, told = count(here, "uploads"), events(here)
    again = await here.post(10, link)
    assert (again.status, path_of(again.headers["Location"]), again.offset) == (201, path, len(sent))
    assert (count(here, "uploads"), events(here)) == (made, told)


async def test_T_05C_complete_upload_names_its_file(here: Site) -> None:
    """A replay that finds the upload complete names the file."""
    link = here.link()
    headers = TUS | {"Upload-Length": "5", "Content-Type": OCTETS}
    first = await here.ask("POST", link, headers, b"hello")
    again = await here.ask("POST", link, headers, b"hello")
    assert again.headers["Attachd-File-Id"] == first.headers["Attachd-File-Id"]


@pytest.mark.parametrize("sent", [b"hello", b"helloworld"], ids=["unfinished", "complete"])
async def test_T_05C_after_the_link_expired(later: Site, sent: bytes) -> None:
    """A link that expired meanwhile still finds its upload."""
    link = later.link()
    path = await later.create(10, link)
    await later.patch(path, 0, sent)
    forward(later, 2 * HOUR)
    again = await later.post(10, link)
    assert (again.status, path_of(again.headers["Location"]), again.offset) == (201, path, len(sent))


async def test_T_05C_deferred_length(here: Site) -> None:
    """A creation of deferred length is the same again after its length became known."""
    link = here.link()
    path = await here.create(None, link, Upload_Defer_Length="1")
    await here.patch(path, 0, b"hello", Upload_Length="10")
    again = await here.post(None, link, Upload_Defer_Length="1")
    assert (again.status, path_of(again.headers["Location"]), again.offset) == (201, path, 5)


@pytest.mark.parametrize("chunked", [False, True])
async def test_T_05C_body_is_not_read(here: Site, chunked: bool) -> None:
    """The body of a replay is neither asked for nor stored, and the connection ends."""
    link = here.link()
    path = await here.create(10, link)
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "10")
    fields = [*TUS.items(), ("Upload-Length", "10"), ("Content-Type", OCTETS), ("Expect", "100-continue"), framing]
    line = await here.line()
    await line.send(head("POST", link, fields, None))
    again = await line.answer(interim=True)
    assert (again.status, again.offset, again.headers["Connection"]) == (201, 0, "close")
    assert (await here.head(path)).offset == 0


async def test_T_05C_body_that_comes_anyway(here: Site) -> None:
    """A body that is sent with a replay changes nothing of what is stored."""
    link = here.link()
    headers = TUS | {"Upload-Length": "10", "Content-Type": OCTETS}
    first = await here.ask("POST", link, headers, b"hello")
    again = await here.ask("POST", link, headers, b"HELLOWORLD")
    assert (again.status, again.offset, again.headers["Connection"]) == (201, 5, "close")
    path = path_of(first.headers["Location"])
    await here.patch(path, 5, b"world")
    assert await here.stored(path) == b"helloworld"


async def test_T_05C_other_metadata(here: Site) -> None:
    """Only the length tells one file from another: other metadata is a replay, and the first stays."""
    link = here.link()
    path = await here.create(10, link, Upload_Metadata="filename YQ==")
    again = await here.post(10, link, Upload_Metadata="filename Yg==")
    assert (again.status, path_of(again.headers["Location"])) == (201, path)
    assert (await here.head(path)).headers["Upload-Metadata"] == "filename YQ=="


async def test_T_05C_at_the_same_time(here: Site) -> None:
    """Eight creations with one link at once make one upload."""
    link = here.link()
    answers = await asyncio.gather(*(here.post(10, link) for _ in range(8)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert count(here, "uploads") == 1


async def test_T_05C_after_a_restart(tmp_path: Path) -> None:
    """The link is remembered across a restart."""
    async with site(tmp_path) as here:
        link = here.link()
        path = await here.create(10, link)
        await here.patch(path, 0, b"hello")
    async with site(tmp_path) as here:
        again = await here.post(10, link)
        assert (again.status, path_of(again.headers["Location"]), again.offset) == (201, path, 5)


async def test_T_05C_link_for_several_files(here: Site) -> None:
    """A link for two files makes two uploads of equal creations, and no third."""
    link = here.link(uses=2)
    assert await here.create(10, link) != await here.create(10, link)
    refused = await here.post(10, link)
    assert (refused.status, refused.slug) == (403, "link-used")


# --- T-05D: another creation ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"Upload_Length": "10"}, {"Upload_Length": "11"}),
        ({"Upload_Length": "10"}, {"Upload_Length": "0"}),
        ({"Upload_Length": "10"}, {"Upload_Defer_Length": "1"}),
        ({"Upload_Defer_Length": "1"}, {"Upload_Length": "10"}),
    ],
    ids=str,
)
async def test_T_05D_another_length(here: Site, first: dict[str, str], second: dict[str, str]) -> None:
    """A creation of another length, or of another deferral, with the same link answers 403; nothing changes."""
    link = here.link()
    path = await here.create(None, link, **first)
    await here.patch(path, 0, b"hello")
    before = traces(here)
    refused = await here.post(None, link, **second)
    assert (refused.status, refused.slug) == (403, "link-used")
    assert traces(here) == before
    assert (await here.head(path)).offset == 5


async def test_T_05D_another_length_of_a_complete_upload(here: Site) -> None:
    """The same holds once the upload is complete."""
    link = here.link()
    path = await here.create(5, link)
    await here.patch(path, 0, b"hello")
    assert (await here.post(6, link)).status == 403
    assert await here.stored(path) == b"hello"


# --- T-05E: the upload is gone --------------------------------------------------------------


@pytest.mark.parametrize("length", [10, 20])
async def test_T_05E_expired(later: Site, length: int) -> None:
    """After its upload expired a link makes a new one, of whatever length; the old one stays gone."""
    link = later.link(expires_in=24 * 3600)
    path = await later.create(10, link)
    forward(later, 24 * HOUR)
    again = await later.post(length, link)
    assert (again.status, again.offset) == (201, 0)
    assert path_of(again.headers["Location"]) != path
    assert (await later.head(path)).status == 410


async def test_T_05E_expired_with_the_link(later: Site) -> None:
    """A link that expired too makes no new upload."""
    link = later.link()
    await later.create(10, link)
    forward(later, 24 * HOUR)
    refused = await later.post(10, link)
    assert (refused.status, refused.slug) == (401, "link-expired")


async def test_T_05E_failed(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its upload failed through no fault of the client a link makes a new one."""

    async def lost(*_: Any, **__: Any) -> Any:
        raise StorageShort("the bytes are not there")

    link = here.link()
    path = await here.create(5, link)
    with monkeypatch.context() as broken:
        broken.setattr(FilesystemStorage, "complete", lost)
        assert (await here.patch(path, 0, b"hello")).status == 500
    assert (await here.head(path)).status == 410
    again = await here.create(5, link)
    assert again != path
    assert (await here.patch(again, 0, b"hello")).status == 204


async def test_T_05E_terminated(here: Site) -> None:
    """After its upload was terminated a link answers 410, and makes nothing."""
    link = here.link()
    path = await here.create(10, link)
    assert (await here.ask("DELETE", path, TUS)).status == 204
    before = traces(here)
    again = await here.post(10, link)
    assert (again.status, again.slug) == (410, "gone")
    assert traces(here) == before


@pytest.mark.parametrize(
    ("terms", "status", "slug"),
    [
        ({"sha256": "0" * 64}, 460, "checksum-mismatch"),
        ({"types": ["image/png"]}, 403, "type-refused"),
    ],
)
async def test_T_05E_refused_at_completion(here: Site, terms: dict[str, Any], status: int, slug: str) -> None:
    """A file that was refused at completion is refused again with the same words, and makes nothing."""
    link = here.link(**terms)
    path = await here.create(5, link)
    first = await here.patch(path, 0, b"hello")
    before = traces(here)
    again = await here.post(5, link)
    assert (first.status, first.slug) == (again.status, again.slug) == (status, slug)
    assert first.json["detail"] == again.json["detail"]
    assert traces(here) == before
    assert (await here.head(path)).status == 410


# --- T-05F: partial uploads -----------------------------------------------------------------


async def test_T_05F_each_post_makes_a_partial(here: Site) -> None:
    """Equal creations of partials with one link make different uploads, never a replay."""
    link = here.link()
    assert await here.create(5, link, **PARTIAL) != await here.create(5, link, **PARTIAL)
    assert count(here, "uploads") == 2


async def test_T_05F_up_to_64(here: Site) -> None:
    """A link makes 64 partials and no more."""
    link = here.link()
    for _ in range(64):
        await here.create(1, link, **PARTIAL)
    refused = await here.post(1, link, **PARTIAL)
    assert (refused.status, refused.slug) == (403, "link-used")
    assert count(here, "uploads") == 64


async def test_T_05F_partials_share_the_size(here: Site) -> None:
    """All partials of a link together have at most its `max` bytes."""
    link = here.link(max_size=10)
    await here.create(6, link, **PARTIAL)
    refused = await here.post(5, link, **PARTIAL)
    assert (refused.status, refused.slug) == (413, "too-large")
    assert (await here.post(4, link, **PARTIAL)).status == 201


async def test_T_05F_deferred_partials_share_the_size(here: Site) -> None:
    """A partial of deferred length takes no more than the others left."""
    link = here.link(max_size=10)
    known = await here.create(6, link, **PARTIAL)
    deferred = await here.create(None, link, Upload_Defer_Length="1", **PARTIAL)
    assert (await here.patch(known, 0, b"hellow")).status == 204
    assert (await here.patch(deferred, 0, b"orld!")).status == 413
    assert (await here.patch(deferred, 0, b"orld")).status == 204


async def joined(here: Site, link: str) -> tuple[str, str]:
    """The paths of a finished final and the value of its `Upload-Concat`."""
    parts = [await here.create(5, link, **PARTIAL) for _ in range(2)]
    for part, content in zip(parts, (b"hello", b"world"), strict=True):
        assert (await here.patch(part, 0, content)).status == 204
    value = "final;" + " ".join(parts)
    return await here.create(None, link, Upload_Concat=value), value


async def test_T_05F_one_final_completes_the_use(here: Site) -> None:
    """Partials and their final are one use of a link; afterwards it makes neither partials nor files."""
    link = here.link(max_size=10)
    final, _ = await joined(here, link)
    assert await here.stored(final) == b"helloworld"
    assert (await here.post(0, link, **PARTIAL)).status == 403
    assert (await here.post(10, link)).status == 403


async def test_T_05F_final_replays(here: Site) -> None:
    """The same final again answers 201 and the same `Location`; another one answers 403."""
    link = here.link()
    final, value = await joined(here, link)
    made = count(here, "uploads")
    again = await here.post(None, link, Upload_Concat=value)
    assert (again.status, path_of(again.headers["Location"])) == (201, final)
    assert (await here.post(None, link, Upload_Concat=value + " " + value.split()[1])).status == 403
    assert count(here, "uploads") == made


async def test_T_05F_partial_of_a_used_link(here: Site) -> None:
    """A link that made a plain upload makes no partial."""
    link = here.link()
    await here.create(10, link)
    refused = await here.post(5, link, **PARTIAL)
    assert (refused.status, refused.slug) == (403, "link-used")


async def test_T_05F_expired_partial_gives_its_share_back(later: Site) -> None:
    """The bytes of a partial that expired may be used by another."""
    assert isinstance(later.clock, FakeClock)
    link = later.link(max_size=10, expires_in=24 * 3600)
    await later.create(10, link, **PARTIAL)
    forward(later, 24 * HOUR)
    await later.service.janitor.sweep()
    assert (await later.post(10, link, **PARTIAL)).status == 201
