"""Which file a download link gives, under which name, type and headers, and when it does not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path

import pytest

from service.model import State
from service.web.context import CONTEXT
from tests.web.download_server import BLOCK, FILE_ID, LOOPS, NOW, DownloadServer, noise, slug


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DownloadServer]:
    server = DownloadServer(tmp_path, LOOPS["uvloop"])
    yield server
    server.close()


def test_every_header_of_a_download(server: DownloadServer) -> None:
    """A download says all that the contract lists, HEAD as much as GET."""
    file = server.publish(b"hello", filename="näme.txt", media_type="text/plain")
    for method in ("GET", "HEAD"):
        headers = server.get(server.link(expires_in=3600), method)[0].headers
        assert headers["ETag"] == f'"{file.manifest.root.hex()}"'
        assert headers["Last-Modified"] == "Fri, 15 Jan 2027 07:43:19 GMT"
        assert headers["Cache-Control"] == "private, max-age=3600, immutable"
        assert headers["Accept-Ranges"] == "bytes"
        assert headers["Content-Length"] == "5"
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert headers["Content-Disposition"] == "attachment; filename=\"n_me.txt\"; filename*=UTF-8''n%C3%A4me.txt"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "cross-origin"


def test_max_age_ends_with_the_file_if_that_is_sooner(server: DownloadServer) -> None:
    """No cache keeps a file longer than the file lives."""
    server.publish(b"hello", expires_at=NOW + 100)
    assert server.get(server.link())[0].headers["Cache-Control"] == "private, max-age=100, immutable"


def test_g3_a_page_or_an_svg_is_never_shown_inline(server: DownloadServer) -> None:
    """G3: even if the link asks for inline, markup comes as an attachment, under the guards."""
    for sniffed, declared in [("image/svg+xml", "image/png"), ("text/html", "image/png"), (None, "text/html")]:
        server.publish(b"<script>", sniffed_type=sniffed, media_type=declared)
        headers = server.get(server.link(disposition="inline"))[0].headers
        assert headers["Content-Disposition"] == "attachment"
        assert headers["Content-Type"] == (sniffed or declared)


def test_g3_a_sniffed_image_is_shown_inline_if_the_link_asks(server: DownloadServer) -> None:
    """G3: a raster image is inline under a link that says so, and an attachment under one that does not."""
    server.publish(b"png", sniffed_type="image/png", filename="a.png")
    assert server.get(server.link(disposition="inline"))[0].headers["Content-Disposition"].startswith("inline; ")
    assert server.get(server.link())[0].headers["Content-Disposition"].startswith("attachment; ")


def test_g3_the_name_in_the_path_is_not_believed(server: DownloadServer) -> None:
    """G3: the name comes from the signed link or the file, never from the address."""
    server.publish(b"x", filename="true.bin")
    path = server.link().replace("?", "/evil.html?")
    assert 'filename="true.bin"' in server.get(path)[0].headers["Content-Disposition"]
    forced = server.get(server.link(filename="forced.bin"))[0].headers["Content-Disposition"]
    assert 'filename="forced.bin"' in forced


def test_the_manifest_is_behind_the_same_link(server: DownloadServer) -> None:
    """The manifest lists the file's block digests, for the link of the file."""
    file = server.publish(noise(BLOCK + 1))
    response, body = server.get(server.link().replace("?", "/manifest?"))
    assert response.headers["Content-Type"].startswith("application/json")
    assert json.loads(body)["blocks"] == {"xxh128": [digest.hex() for digest in file.manifest.xxh128]}


def test_a_token_works_as_bearer(server: DownloadServer) -> None:
    """`Authorization: Bearer` does as well as `?sig=`."""
    server.publish(b"x")
    path, _, token = server.link().partition("?sig=")
    assert server.get(path, Authorization=f"Bearer {token}")[1] == b"x"


@pytest.mark.parametrize("state", [None, State.RECEIVING, State.FINISHING])
def test_g4_not_ready_is_503(server: DownloadServer, state: State | None) -> None:
    """G4: before the file is ready, even before its upload began, the answer is 503 with Retry-After."""
    if state is not None:
        server.upload(state)
    response, body = server.get(server.link())
    assert (response.status, slug(body), response.headers["Retry-After"]) == (503, "not-ready", "2")


@pytest.mark.parametrize("state", [State.FAILED, State.EXPIRED, State.TERMINATED])
def test_g4_an_upload_that_ended_without_a_file_is_410(server: DownloadServer, state: State) -> None:
    """G4: no file will come, so the answer is final."""
    server.upload(state)
    response, body = server.get(server.link())
    assert (response.status, slug(body)) == (410, "gone")


@pytest.mark.parametrize("end", [{"deleted_at": NOW - 1}, {"expires_at": NOW}])
def test_g4_a_deleted_or_expired_file_is_410(server: DownloadServer, end: dict[str, float]) -> None:
    """G4: deleted is gone, and past its time is gone even before any sweeper came."""
    server.publish(b"x", **end)
    assert server.get(server.link())[0].status == 410


def test_g4_wait_holds_until_the_file_is_ready(server: DownloadServer) -> None:
    """A waiting download is answered when this process says that the file changed, not at the next poll."""
    server.downloads._wait_poll_seconds = 60
    server.upload(State.FINISHING)
    with server.connect(server.link() + "&wait=20", "Connection: close") as client:
        # the wait has begun once somebody watches
        while not server.changes._watches:
            time.sleep(0.005)
        server.publish(b"ready")
        server.loop.call_soon_threadsafe(server.changes.changed, FILE_ID)
        response = HTTPResponse(client)
        response.begin()
        assert (response.status, response.read()) == (200, b"ready")


def test_wait_sees_what_another_process_published(server: DownloadServer) -> None:
    """Without a word in this process a waiting download still finds the file, by looking."""
    server.downloads._wait_poll_seconds = 0.05
    with server.connect(server.link() + "&wait=20", "Connection: close") as client:
        while not server.changes._watches:
            time.sleep(0.005)
        server.publish(b"ready")
        response = HTTPResponse(client)
        response.begin()
        assert (response.status, response.read()) == (200, b"ready")


def test_g5_a_link_may_end_while_its_download_runs(server: DownloadServer) -> None:
    """G5: a download begun in time ends whole; the next Range is refused as expired; a new link goes on."""
    content = noise(16 * BLOCK)
    server.publish(content)
    path = server.link(expires_in=2)
    with server.connect(path, "Connection: close", receive_buffer=65_536) as client, HTTPResponse(client) as response:
        response.begin()
        server.clock.at += 120
        assert response.read() == content
    refused, body = server.get(path, Range="bytes=5-")
    assert (refused.status, slug(body)) == (403, "link-expired")
    assert server.get(server.link(), Range="bytes=5-9")[1] == content[5:10]


def test_a_link_for_another_file_is_refused(server: DownloadServer) -> None:
    """A link opens the file it names and no other."""
    server.publish(b"x")
    other = server.link().replace(FILE_ID, "f_" + "b" * 26)
    assert server.get(other)[0].status in (401, 403)


def test_accel_leaves_the_bytes_to_nginx(server: DownloadServer) -> None:
    """With a prefix set, the answer names the file below the storage's root for nginx, without a body; 304 is ours."""
    server.publish(b"hello", media_type="text/plain")
    server.runner.app._state[CONTEXT] = replace(server.context, accel_prefix="/_attachd/")
    response, body = server.get(server.link(), Range="bytes=0-1")
    path = response.headers["X-Accel-Redirect"].removeprefix("/_attachd/")
    assert (response.status, body) == (200, b"")
    assert (server.path / "files" / path).read_bytes() == b"hello"
    assert "Content-Range" not in response.headers
    assert server.get(server.link(), If_None_Match=response.headers["ETag"])[0].status == 304
