"""tus 1.0.0, PATCH (section D)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from service.protocol.problems import KINDS, Kind
from service.storage.base import Receipt
from service.storage.filesystem.appender import DiskAppender
from tests.web.harness import OCTETS, TUS, Line, Site, head, site
from tests.web.under_way import SteppedClock, begin_patch, held, until

UNKNOWN = "/files/u_" + "a" * 26
APPEND = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS}


async def offer(here: Site, path: str, headers: Mapping[str, str]) -> Line:
    """A PATCH of which only the head was sent."""
    line = await here.line()
    await line.send(head("PATCH", path, [*headers.items()], None))
    return line


async def test_T_030_bytes_at_the_offset(here: Site) -> None:
    """A PATCH at the current offset answers 204 without a body, and the offset behind its bytes."""
    path = await here.create(10)
    answer = await here.patch(path, 0, b"hello")
    assert (answer.status, answer.offset, answer.body) == (204, 5, b"")
    assert {"Content-Length", "Content-Type", "Attachd-File-Id"}.isdisjoint(answer.headers)


async def test_T_030_completing_patch_names_the_file(here: Site) -> None:
    """The PATCH that brings the last byte answers 204 and the id of the file, which has all bytes in order."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    answer = await here.patch(path, 5, b"world")
    assert (answer.status, answer.offset) == (204, 10)
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b"helloworld"


@pytest.mark.parametrize("value", [None, "", "text/plain", "application/octet-stream", "application/offset"])
async def test_T_031_other_content_type(here: Site, value: str | None) -> None:
    """A PATCH with another Content-Type, or none, answers 415 and stores nothing."""
    path = await here.create(10)
    headers = TUS | {"Upload-Offset": "0"} | ({} if value is None else {"Content-Type": value})
    answer = await here.ask("PATCH", path, headers, b"hello")
    assert (answer.status, answer.slug) == (415, "wrong-content-type")
    assert (await here.head(path)).offset == 0


@pytest.mark.parametrize("value", [f"{OCTETS}; charset=utf-8", f"{OCTETS};x=1", OCTETS.upper()])
async def test_T_031_only_the_media_type_counts(here: Site, value: str) -> None:
    """Parameters and case of the Content-Type do not matter."""
    path = await here.create(10)
    assert (await here.patch(path, 0, b"hello", Content_Type=value)).status == 204


@pytest.mark.parametrize("offset", [0, 4, 6, 10, 11, 2**63 - 1])
async def test_T_032_another_offset(here: Site, offset: int) -> None:
    """A PATCH at a lower or a higher offset changes nothing and reports the current offset."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    answer = await here.patch(path, offset, b"WRONG")
    assert (answer.status, answer.slug, answer.offset) == (409, "offset-mismatch", 5)
    assert (await here.patch(path, 5, b"world")).status == 204
    assert await here.stored(path) == b"helloworld"


async def test_T_032_another_offset_without_a_body(here: Site) -> None:
    """An empty PATCH at another offset answers 409 too."""
    path = await here.create(10)
    assert (await here.patch(path, 3, b"")).status == 409


@pytest.mark.parametrize("value", [None, "", "-1", "five"])
async def test_T_033_no_offset(here: Site, value: str | None) -> None:
    """A PATCH without a valid offset answers 400 and stores nothing."""
    path = await here.create(10)
    headers = TUS | {"Content-Type": OCTETS} | ({} if value is None else {"Upload-Offset": value})
    answer = await here.ask("PATCH", path, headers, b"hello")
    assert (answer.status, answer.slug) == (400, "bad-header")
    assert (await here.head(path)).offset == 0


@pytest.mark.parametrize("offset", [0, 7])
async def test_T_034_unknown_upload(here: Site, offset: int) -> None:
    """A PATCH to an unknown upload answers 404, whatever its offset."""
    answer = await here.patch(UNKNOWN, offset, b"hello")
    assert (answer.status, answer.slug) == (404, "not-found")


@pytest.mark.parametrize("offset", [0, 7])
async def test_T_034_upload_that_is_gone(here: Site, offset: int) -> None:
    """A PATCH to a terminated upload answers 410, whatever its offset."""
    path = await here.create(10)
    assert (await here.ask("DELETE", path, TUS)).status == 204
    answer = await here.patch(path, offset, b"hello")
    assert (answer.status, answer.slug) == (410, "gone")


async def test_T_035_announced_body_too_long(here: Site) -> None:
    """A PATCH that announces more than is left answers 413 before its body, of which nothing is stored."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    line = await offer(here, path, APPEND | {"Upload-Offset": "5", "Content-Length": "6"})
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.headers["Connection"]) == (413, "too-large", "close")
    assert (await here.head(path)).offset == 5
    assert (await here.patch(path, 5, b"world")).status == 204


async def test_T_036_chunked_body_too_long(here: Site) -> None:
    """A chunked body that is longer than is left is stored exactly up to the length, then refused."""
    path = await here.create(10)
    answer = await here.ask("PATCH", path, APPEND, b"helloworld, and more", chunked=True)
    assert (answer.status, answer.slug, answer.headers["Connection"]) == (413, "too-large", "close")
    assert (await here.head(path)).offset == 10
    assert await here.stored(path) == b"helloworld"


async def test_T_036_does_not_wait_for_the_end(here: Site) -> None:
    """The refusal comes once a byte too many did, not at the end of the body."""
    path = await here.create(10)
    line = await offer(here, path, APPEND | {"Transfer-Encoding": "chunked"})
    await line.send(b"b\r\nhelloworld!\r\n")
    assert (await line.answer()).status == 413


async def test_T_037_chunked_body(here: Site) -> None:
    """A chunked body counts by its decoded bytes, wherever its chunks were cut."""
    path = await here.create(10)
    line = await offer(here, path, APPEND | {"Transfer-Encoding": "chunked"})
    await line.send(b"1\r\nh\r\n4;ext=1\r\nello\r\n0\r\n\r\n")
    answer = await line.answer()
    assert (answer.status, answer.offset) == (204, 5)
    assert (await here.ask("PATCH", path, APPEND | {"Upload-Offset": "5"}, b"world", chunked=True)).status == 204
    assert await here.stored(path) == b"helloworld"


@pytest.mark.parametrize("chunked", [False, True])
async def test_T_038_empty_body(here: Site, chunked: bool) -> None:
    """An empty PATCH at the current offset answers 204 and moves nothing."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    answer = await here.ask("PATCH", path, APPEND | {"Upload-Offset": "5"}, b"", chunked=chunked)
    assert (answer.status, answer.offset) == (204, 5)
    assert (await here.head(path)).offset == 5


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("body", "status"), [(b"", 204), (b"!", 413)])
async def test_T_039_completed_upload(here: Site, body: bytes, status: int, chunked: bool, partial: bool) -> None:
    """At the end of a completed upload an empty PATCH answers 204 and one with bytes 413; nothing changes."""
    path = await here.create(5, **({"Upload_Concat": "partial"} if partial else {}))
    await here.patch(path, 0, b"hello")
    answer = await here.ask("PATCH", path, APPEND | {"Upload-Offset": "5"}, body, chunked=chunked)
    assert (answer.status, answer.offset) == (status, 5)
    found = await here.head(path)
    assert (found.status, found.offset) == (200, 5)


async def test_T_039_completed_upload_stays_whole(here: Site) -> None:
    """The file of a completed upload has the same bytes after refused ones."""
    path = await here.create(5)
    file_id = (await here.patch(path, 0, b"hello")).headers["Attachd-File-Id"]
    await here.ask("PATCH", path, APPEND | {"Upload-Offset": "5"}, b"world", chunked=True)
    assert (await here.patch(path, 0, b"WORLD")).status == 409
    assert await here.fetch(file_id) == b"hello"


@pytest.mark.parametrize("length", [10, None], ids=["length", "chunked"])
@pytest.mark.parametrize("end", ["FIN", "RST"])
async def test_T_03A_cut_keeps_what_arrived(here: Site, end: str, length: int | None) -> None:
    """All bytes that came before the client hung up are committed."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=length)
    if end == "FIN":
        await line.close()
    else:
        line.reset()
    await until(lambda: not held(here, path))
    assert (await here.head(path)).offset == 5
    assert (await here.patch(path, 5, b"world")).status == 204
    assert await here.stored(path) == b"helloworld"


async def test_T_03A_large_cut_keeps_what_arrived(here: Site) -> None:
    """The same holds for a body of many buffers."""
    content = bytes(range(256)) * 12345
    path = await here.create(len(content))
    line = await begin_patch(here, path, 0, content[:-1], length=len(content))
    line.reset()
    await until(lambda: not held(here, path))
    assert (await here.head(path)).offset == len(content) - 1
    assert (await here.patch(path, len(content) - 1, content[-1:])).status == 204
    assert await here.stored(path) == content


def tick(here: Site) -> None:
    """The service looks at the pace of the one body now, rather than in a second."""
    (body,) = here.service.bodies._open
    body._tick()


async def assert_timed_out(here: Site, path: str, line: Line, kept: int) -> None:
    """The PATCH was ended with 503 and its bytes are kept."""
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.offset) == (503, "timeout", kept)
    assert answer.headers["Connection"] == "close"
    assert "Retry-After" in answer.headers
    assert (await here.head(path)).offset == kept


async def test_T_03A_silent_body(tmp_path: Path) -> None:
    """A body that is silent for too long answers 503 and keeps its bytes."""
    clock = SteppedClock()
    async with site(tmp_path, clock=clock) as here:
        path = await here.create(10)
        line = await begin_patch(here, path, 0, b"hello", length=10)
        clock.skip(59)
        tick(here)
        assert here.service.bodies._open
        clock.skip(1)
        tick(here)
        await assert_timed_out(here, path, line, 5)


async def test_T_03A_slow_body(tmp_path: Path) -> None:
    """A body that brings bytes, but too few of them, answers 503 and keeps its bytes."""
    clock = SteppedClock()
    async with site(tmp_path, clock=clock) as here:
        path = await here.create(1000)
        line = await begin_patch(here, path, 0, b"h", length=1000)
        (body,) = here.service.bodies._open
        # the first 30 s are not measured, then the rate is taken over 60 s
        for _ in range(3):
            clock.skip(29)
            tick(here)
            before = body.received
            await line.send(b"e")
            await until(lambda before=before: body.received > before)  # type: ignore[misc]
        clock.skip(29)
        tick(here)
        assert here.service.bodies._open
        clock.skip(2)
        tick(here)
        await assert_timed_out(here, path, line, 4)


@pytest.mark.parametrize("body", [b"", b"hello", b"helloworld"])
async def test_T_03B_success_is_204(here: Site, body: bytes) -> None:
    """A PATCH that went well answers exactly 204, whether it brought nothing, something or the last byte."""
    path = await here.create(10)
    assert (await here.patch(path, 0, body)).status == 204


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.slug)
def test_T_03C_statuses_say_whether_to_try_again(kind: Kind) -> None:
    """What is worth a retry is 409, 423 or 5xx; what is final is any other 4xx, and none is 429."""
    assert kind.retry == (kind.status in (409, 423) or kind.status >= 500)
    assert 400 <= kind.status < 600
    assert kind.status != 429


class Losing(DiskAppender):
    """Storage that says at the end that it holds two bytes less than it took."""

    async def flush(self, *, last: bool) -> Receipt:
        self._written = max(self._written - 2, 0)
        return await super().flush(last=last)


@pytest.mark.parametrize("body", [b"hello", b"helloworld"], ids=["middle", "end"])
async def test_T_03D_bytes_lost_on_the_server(here: Site, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATCH of which storage holds less answers 204 with the real offset, and the client goes on from there."""
    path = await here.create(10)
    with monkeypatch.context() as losing:
        losing.setattr("service.storage.filesystem.adapter.DiskAppender", Losing)
        answer = await here.patch(path, 0, body)
    assert (answer.status, answer.offset) == (204, len(body) - 2)
    assert "Attachd-File-Id" not in answer.headers
    assert (await here.head(path)).offset == len(body) - 2
    assert (await here.patch(path, answer.offset, b"helloworld"[answer.offset :])).status == 204
    assert await here.stored(path) == b"helloworld"


@pytest.mark.parametrize(
    "field", [("Upload-Metadata", "a b c"), ("Upload-Concat", "bogus"), ("Upload-Concat", "partial")]
)
async def test_T_03E_fields_of_a_creation(here: Site, field: tuple[str, str]) -> None:
    """`Upload-Metadata` and `Upload-Concat` on a PATCH change nothing, valid or not."""
    path = await here.create(10, Upload_Metadata="a YQ==")
    answer = await here.ask("PATCH", path, APPEND | dict([field]), b"hello")
    assert (answer.status, answer.offset) == (204, 5)
    found = await here.head(path)
    assert found.headers["Upload-Metadata"] == "a YQ=="
    assert "Upload-Concat" not in found.headers
