"""Lesson R4: what a page in a browser may read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.metadata.base import MetadataUnavailable
from service.storage.base import StorageFull
from service.web.cors import EXPOSE_HEADERS
from tests.web.harness import OCTETS, TUS, Answer, Site, b64, site
from tests.web.traces import breaks
from tests.web.under_way import begin_patch

# --- R4: CORS on every answer ---------------------------------------------------------------------

PAGE = "https://chat.example"


async def _mismatch(here: Site, sent: dict[str, str]) -> Answer:
    headers = TUS | sent | {"Upload-Offset": "0", "Content-Type": OCTETS, "Upload-Checksum": f"sha1 {b64(bytes(20))}"}
    return await here.ask("PATCH", await here.create(5), headers, b"hello")


async def _fault(here: Site, sent: dict[str, str]) -> Answer:
    here.service.metadata.link_use = breaks(RuntimeError())  # type: ignore[method-assign]
    return await here.ask("POST", here.link(), TUS | sent | {"Upload-Length": "5", "Content-Length": "0"})


async def _locked(here: Site, sent: dict[str, str]) -> Answer:
    path = await here.create(5)
    here.service.metadata.upload = breaks(MetadataUnavailable())  # type: ignore[method-assign]
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
        here.service.bodies._max_transfers = 0
    else:
        here.service.storage.free_bytes = breaks(StorageFull())  # type: ignore[method-assign]
    headers = TUS | {"Origin": PAGE, "Upload-Length": "5", "Content-Type": OCTETS}
    answer = await here.ask("POST", here.link(), headers, b"hello")
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, PAGE)


STRANGERS = (
    "https://chat.example.evil.org", "https://evil.org/https://chat.example", "http://chat.example", "null", "",
    "https://chat.example:8443", "https://xchat.example", "https://chat.example.", "https://chat.example/", "*",
    "https://sub.chat.example", "https://chatxexample", "https://chat.example, https://evil.org",
)  # fmt: skip


@pytest.mark.parametrize("method", ["OPTIONS", "POST", "HEAD"])
async def test_R4_only_exact_origins_are_let_in(tmp_path: Path, method: str) -> None:
    """An origin that is not on the list, however like one, gets 403 and not one CORS header."""
    async with site(tmp_path, cors_origins=f"{PAGE},https://other.example") as here:
        path = await here.create(5) if method == "HEAD" else here.link()
        headers = TUS | {"Upload-Length": "5", "Content-Length": "0"}
        answers = {origin: await here.ask(method, path, headers | {"Origin": origin}) for origin in STRANGERS}
        assert {origin: answer.status for origin, answer in answers.items()} == dict.fromkeys(STRANGERS, 403)
        names = {name.lower() for answer in answers.values() for name in answer.headers}
        assert [name for name in names if name.startswith("access-control")] == []
        answer = await here.ask(method, path, headers | {"Origin": PAGE})
        assert answer.status in (200, 201)
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
