"""CORS (section O): what a script in a browser may send and read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.web.harness import OCTETS, TUS, Answer, Site, site

PAGE = "https://chat.example"
FROM_PAGE = {"Origin": PAGE}
PREFLIGHT = FROM_PAGE | {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "tus-resumable"}
UPLOAD = "/files/u_" + "a" * 26

METHODS = "POST, HEAD, PATCH, OPTIONS, GET, DELETE, PUT"
ALLOW = (
    "Authorization, Origin, X-Requested-With, X-Request-ID, X-HTTP-Method-Override, Content-Type, "
    "Content-Disposition, Content-Encoding, Upload-Length, Upload-Offset, Tus-Resumable, Upload-Metadata, "
    "Upload-Defer-Length, Upload-Concat, Upload-Checksum, Upload-Incomplete, Upload-Complete, "
    "Upload-Draft-Interop-Version, Content-Digest, Repr-Digest, Want-Content-Digest, Want-Repr-Digest"
)
EXPOSE = (
    "Upload-Offset, Location, Upload-Length, Tus-Version, Tus-Resumable, Tus-Max-Size, Tus-Extension, "
    "Tus-Checksum-Algorithm, Upload-Metadata, Upload-Defer-Length, Upload-Concat, Upload-Expires, "
    "Upload-Incomplete, Upload-Complete, Upload-Limit, Upload-Draft-Interop-Version, Repr-Digest, "
    "Content-Digest, Retry-After, X-Request-ID, Attachd-File-Id"
)


@pytest.fixture
async def listed(tmp_path: Path) -> AsyncIterator[Site]:
    """A service for two origins."""
    async with site(tmp_path, cors_origins=f"{PAGE},https://other.example:8443") as running:
        yield running


def names(value: str) -> set[str]:
    return {name.strip().lower() for name in value.split(",")}


def assert_readable(answer: Answer) -> None:
    """A script of the page may read this answer and its headers."""
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "origin" in names(answer.headers["Vary"])
    assert names(EXPOSE) <= names(answer.headers["Access-Control-Expose-Headers"])


@pytest.mark.parametrize("path", ["/files", "/files?sig=whatever", UPLOAD])
async def test_T_0E0_preflight(here: Site, path: str) -> None:
    """A preflight needs no token; the page's own origin is allowed, also under `*`, for a day."""
    answer = await here.ask("OPTIONS", path, PREFLIGHT)
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "origin" in names(answer.headers["Vary"])
    assert answer.headers["Access-Control-Max-Age"] == "86400"
    assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_T_0E0_preflight_of_a_listed_origin(listed: Site) -> None:
    """With a list, an origin on it is answered the same."""
    answer = await listed.ask("OPTIONS", "/files", PREFLIGHT | {"Origin": "https://other.example:8443"})
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://other.example:8443")


@pytest.mark.parametrize("path", ["/files", UPLOAD])
async def test_T_0E1_methods_and_headers(here: Site, path: str) -> None:
    """A preflight allows every method and header that a client of ours may send."""
    answer = await here.ask("OPTIONS", path, PREFLIGHT)
    assert answer.headers["Access-Control-Allow-Methods"] == METHODS
    assert answer.headers["Access-Control-Allow-Headers"] == ALLOW


async def test_T_0E1_only_on_a_preflight(here: Site) -> None:
    """An `OPTIONS` that is no preflight is not answered as one."""
    answer = await here.ask("OPTIONS", "/files", FROM_PAGE)
    assert "Access-Control-Allow-Methods" not in answer.headers


async def test_T_0E2_successes_are_readable(here: Site) -> None:
    """Every answer of a transfer can be read, header by header."""
    created = await here.post(5, Origin=PAGE)
    path = "/files/" + created.headers["Location"].rpartition("/")[2]
    head = await here.ask("HEAD", path, TUS | FROM_PAGE)
    status = await here.ask("GET", path, FROM_PAGE)
    patched = await here.patch(path, 0, b"hello", Origin=PAGE)
    deleted = await here.ask("DELETE", path, TUS | FROM_PAGE)
    for answer, expected in ((created, 201), (head, 200), (status, 200), (patched, 204), (deleted, 204)):
        assert answer.status == expected
        assert_readable(answer)


async def test_T_0E2_expose_list(here: Site) -> None:
    """The list of readable headers is complete, and has nothing more."""
    answer = await here.ask("OPTIONS", "/files", FROM_PAGE)
    assert answer.headers["Access-Control-Expose-Headers"] == EXPOSE


REFUSED = [
    ("POST", "/files?sig=wrong", TUS | {"Upload-Length": "5", "Content-Length": "0"}, 401),
    ("POST", "/files", {"Upload-Length": "5", "Content-Length": "0"}, 412),
    ("HEAD", UPLOAD, TUS, 404),
    ("GET", UPLOAD, {}, 404),
    ("GET", "/nowhere", {}, 404),
    ("GET", "/files/not-an-upload", {}, 404),
    ("POST", UPLOAD, TUS | {"Content-Length": "0"}, 405),
    ("PATCH", "/files", TUS | {"Content-Length": "0"}, 405),
    ("POST", "/d/f_" + "a" * 26, {"Content-Length": "0"}, 405),
    ("PATCH", UPLOAD, TUS | {"Content-Length": "0", "Content-Type": "text/plain"}, 415),
    ("PATCH", UPLOAD, TUS | {"Content-Length": "0", "Content-Type": OCTETS}, 400),
]


@pytest.mark.parametrize(("method", "path", "headers", "expected"), REFUSED)
async def test_T_0E2_refusals_are_readable(
    here: Site, method: str, path: str, headers: dict[str, str], expected: int
) -> None:
    """A script sees the status of a refusal, whoever refused: else it would see 0."""
    answer = await here.ask(method, path, headers | FROM_PAGE)
    assert answer.status == expected
    assert_readable(answer)


async def test_T_0E2_refusals_of_a_body_are_readable(here: Site) -> None:
    """Nor is a conflict, a body too long or a wrong checksum unreadable."""
    path = await here.create(5)
    conflict = await here.patch(path, 3, b"x", Origin=PAGE)
    long = await here.patch(path, 0, b"hello!", Origin=PAGE)
    wrong = await here.patch(path, 0, b"hello", Origin=PAGE, Upload_Checksum="crc32c AAAAAA==")
    for answer, expected in ((conflict, 409), (long, 413), (wrong, 460)):
        assert answer.status == expected
        assert_readable(answer)


async def test_T_0E2_failure_of_ours_is_readable(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even an internal error is."""

    async def broken(*_: object) -> None:
        raise ValueError("on purpose")

    monkeypatch.setattr(here.service.context.uploads, "terminate", broken)
    monkeypatch.setattr("service.web.middleware.log.exception", lambda *_, **__: None)
    answer = await here.ask("DELETE", UPLOAD, TUS | FROM_PAGE)
    assert (answer.status, answer.slug) == (500, "internal")
    assert_readable(answer)


async def test_T_0E2_download_is_readable(here: Site) -> None:
    """A script may fetch a file, and read why it may not."""
    file_id = await here.upload(b"hello")
    found = await here.ask("GET", here.download_link(file_id), FROM_PAGE)
    refused = await here.ask("GET", f"/d/{file_id}?sig=wrong", FROM_PAGE)
    assert (found.status, found.body, refused.status) == (200, b"hello", 401)
    assert_readable(found)
    assert_readable(refused)


async def test_T_0E2_nothing_without_an_origin(here: Site) -> None:
    """A client that is no browser gets no CORS headers."""
    answer = await here.ask("OPTIONS", "/files")
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("method", ["OPTIONS", "POST", "HEAD", "GET", "PATCH", "DELETE", "PUT"])
@pytest.mark.parametrize("path", ["/files", UPLOAD, "/d/f_" + "a" * 26, "/nowhere"])
async def test_T_0E3_origin_not_on_the_list(listed: Site, method: str, path: str) -> None:
    """A page that is not on the list is refused on every method and address, and cannot read why."""
    headers = TUS | {"Origin": "https://evil.example", "Content-Length": "0"}
    answer = await listed.ask(method, path, headers)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    "origin",
    [
        "http://chat.example",
        "https://chat.example:444",
        "https://chat.example.evil.example",
        "https://sub.chat.example",
        "HTTPS://CHAT.EXAMPLE",
        "null",
        "",
    ],
)
async def test_T_0E3_match_is_exact(listed: Site, origin: str) -> None:
    """Only the very origin on the list is on it."""
    answer = await listed.ask("OPTIONS", "/files", PREFLIGHT | {"Origin": origin})
    assert answer.status == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_T_0E3_nothing_is_made(listed: Site) -> None:
    """A creation from elsewhere makes nothing, although its link is valid."""
    link = listed.link()
    assert (await listed.post(5, link, Origin="https://evil.example")).status == 403
    assert (await listed.ask("HEAD", link, TUS)).status == 404
