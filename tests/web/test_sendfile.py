"""The bytes of downloads through a real server: production flags, real sockets, both event loops."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from pathlib import Path

import pytest

from tests.web.download_server import BLOCK, FILE_ID, LOOPS, DownloadServer, noise, raw_request, self_signed, slug


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DownloadServer]:
    server = DownloadServer(tmp_path, LOOPS[request.param])
    yield server
    server.close()


@pytest.fixture(params=[True, False], ids=["sendfile", "proxy"])
def either_way(request: pytest.FixtureRequest, server: DownloadServer) -> DownloadServer:
    """The server, sending by the kernel and in pieces."""
    server.disk.kernel = request.param
    return server


@pytest.mark.parametrize("size", [1, 65_536, 3 * BLOCK + 7, 20 * BLOCK])
def test_a_download_is_the_file(either_way: DownloadServer, size: int) -> None:
    """The body has exactly the file's bytes, and all of them are counted under the right mode."""
    content = noise(size)
    either_way.publish(content)
    response, body = either_way.get(either_way.link())
    assert (response.status, body) == (200, content)
    assert either_way.metrics.outcome() == "ok"
    assert either_way.metrics.bytes == {"sendfile" if either_way.disk.kernel else "proxy": size}
    assert either_way.metrics.in_flight == 0


def test_an_empty_file_is_an_empty_200(server: DownloadServer) -> None:
    """A file of no bytes answers 200 with Content-Length 0."""
    server.publish(b"")
    response, body = server.get(server.link())
    assert (response.status, response.headers["Content-Length"], body) == (200, "0", b"")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=-1", 2 * BLOCK - 1, 2 * BLOCK), ("bytes=1048000-1500000", 1_048_000, 1_500_001)],
)
def test_g2_a_range_is_that_part(either_way: DownloadServer, asked: str, start: int, end: int) -> None:
    """G2: 206 carries exactly the bytes that Content-Range names."""
    content = noise(2 * BLOCK)
    either_way.publish(content)
    response, body = either_way.get(either_way.link(), Range=asked)
    assert (response.status, body) == (206, content[start:end])
    assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{2 * BLOCK}"


def test_g2_a_range_past_the_end_is_refused_with_the_size(server: DownloadServer) -> None:
    """G2: 416 tells the file's size in Content-Range."""
    server.publish(b"12345")
    response, body = server.get(server.link(), Range="bytes=5-")
    assert (response.status, slug(body)) == (416, "range-not-satisfiable")
    assert response.headers["Content-Range"] == "bytes */5"


def test_g2_repeated_range_fields_count_as_several_ranges(server: DownloadServer) -> None:
    """G2: two Range fields are a multi range, answered whole."""
    server.publish(b"12345")
    with (
        server.connect(server.link(), "Range: bytes=0-0", "Range: bytes=1-1", "Connection: close") as client,
        HTTPResponse(client) as response,
    ):
        response.begin()
        assert (response.status, response.read()) == (200, b"12345")


def test_g2_a_cut_download_is_resumed_by_if_range(either_way: DownloadServer) -> None:
    """G2: what was missing after a cut comes as 206 under the old ETag, whole under a stale one."""
    content = noise(BLOCK)
    either_way.publish(content)
    tag = either_way.get(either_way.link(), "HEAD")[0].headers["ETag"]
    fresh, rest = either_way.get(either_way.link(), Range="bytes=500000-", If_Range=tag)
    stale, whole = either_way.get(either_way.link(), Range="bytes=500000-", If_Range='"other"')
    assert (fresh.status, rest) == (206, content[500_000:])
    assert (stale.status, whole) == (200, content)


def test_one_connection_serves_many_downloads(either_way: DownloadServer) -> None:
    """After a whole file, a HEAD, a part and a 304 the connection is still in step."""
    content = noise(3 * BLOCK)
    either_way.publish(content)
    connection = HTTPConnection("127.0.0.1", either_way.port, timeout=30)
    tag = f'"{either_way.ledger.files[FILE_ID].manifest.root.hex()}"'
    seen, ports = [], set()
    for method, headers in [
        ("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=5-9"}), ("GET", {"If-None-Match": tag}), ("GET", {}),
    ]:  # fmt: skip
        connection.request(method, either_way.link(), headers=headers)
        response = connection.getresponse()
        seen.append((response.status, hashlib.sha256(response.read()).digest()))
        ports.add(connection.sock.getsockname())
    connection.close()
    whole, nothing = hashlib.sha256(content).digest(), hashlib.sha256(b"").digest()
    part = hashlib.sha256(content[5:10]).digest()
    assert seen == [(200, whole), (200, nothing), (206, part), (304, nothing), (200, whole)]
    assert len(ports) == 1


def test_pipelined_requests_are_answered_in_order(either_way: DownloadServer) -> None:
    """Requests sent in one packet get their answers in order and unmixed."""
    content = noise(BLOCK + 1)
    either_way.publish(content)
    path = either_way.link()
    with socket.create_connection(("127.0.0.1", either_way.port), timeout=30) as client:
        client.sendall(
            raw_request("GET", path)
            + raw_request("HEAD", path)
            + raw_request("GET", path, "Range: bytes=3-4")
            + raw_request("GET", path, "Connection: close")
        )
        raw = b"".join(iter(lambda: client.recv(1 << 16), b""))
    for method, status, body in [
        ("GET", b"200 OK", content), ("HEAD", b"200 OK", b""), ("GET", b"206 Partial Content", content[3:5]),
        ("GET", b"200 OK", content),
    ]:  # fmt: skip
        head, _, raw = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status), method
        assert raw[: len(body)] == body
        raw = raw[len(body) :]
    assert raw == b""


def test_a_unix_socket_is_served_too(server: DownloadServer) -> None:
    """A client on a unix socket gets the whole file by sendfile."""
    content = noise(2 * BLOCK)
    server.publish(content)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(server.unix)
        client.sendall(raw_request("GET", server.link(), "Connection: close"))
        response = HTTPResponse(client)
        response.begin()
        assert response.read() == content
    assert server.metrics.outcome() == "ok"
    assert server.metrics.bytes == {"sendfile": 2 * BLOCK}


def test_tls_never_sees_raw_bytes(server: DownloadServer, tmp_path: Path) -> None:
    """Over TLS a local file goes through the TLS layer, not around it."""
    content = noise(2 * BLOCK)
    server.publish(content)
    certificate = self_signed(tmp_path)
    port = server.run(server.listen_tls(certificate))
    trust = ssl.create_default_context(cafile=certificate)
    connection = HTTPSConnection("localhost", port, timeout=30, context=trust)
    connection.request("GET", server.link())
    assert connection.getresponse().read() == content
    connection.close()
    assert server.metrics.outcome() == "ok"
    assert server.metrics.bytes == {"proxy": 2 * BLOCK}


def test_g1_fifty_readers_of_one_file(server: DownloadServer) -> None:
    """G1: fifty downloads of one file at once are all right."""
    content = noise(BLOCK)
    server.publish(content)
    path = server.link()
    with ThreadPoolExecutor(50) as pool:
        bodies = list(pool.map(lambda _: server.get(path)[1], range(50)))
    assert all(body == content for body in bodies)


# trouble on the way


def test_g1_a_slow_client_is_served_however_long_it_takes(either_way: DownloadServer) -> None:
    """G1: a reader that takes many idle limits in all, but never one between two reads, gets the file."""
    content = noise(4 * BLOCK)
    either_way.publish(content)
    either_way.downloads.idle_seconds = 0.3
    with (
        either_way.connect(either_way.link(), "Connection: close", receive_buffer=65_536) as client,
        HTTPResponse(client) as response,
    ):
        response.begin()
        body = b""
        while piece := response.read(256 * 1024):
            body += piece
            time.sleep(0.06)  # the slow client: 16 reads, three idle limits
    assert body == content
    assert either_way.metrics.outcome() == "ok"


def test_g1_a_silent_client_is_cut_off(either_way: DownloadServer) -> None:
    """G1: a client that takes nothing for the idle limit loses its connection; the outcome is timeout."""
    either_way.publish(noise(16 * BLOCK))
    either_way.downloads.idle_seconds = 0.2
    with either_way.connect(either_way.link(), receive_buffer=65_536):
        assert either_way.metrics.outcome() == "timeout"


@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
def test_a_client_that_hangs_up_is_no_error(
    either_way: DownloadServer,
    reset: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hang-up in the middle is counted as the client's, leaves no descriptor open and logs no error."""
    either_way.publish(noise(16 * BLOCK))
    path = either_way.link()
    either_way.get(path, Range="bytes=0-9")
    assert either_way.metrics.outcome() == "ok"
    before = _descriptors(either_way)
    client = either_way.connect(path, receive_buffer=65_536)
    assert client.recv(10)
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert either_way.metrics.outcome() == "client_abort"
    assert _descriptors(either_way) == before
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def _descriptors(server: DownloadServer) -> int:
    """How many descriptors are open once no connection is."""

    async def settled() -> None:
        while server.runner.server is not None and server.runner.server.connections:
            await asyncio.sleep(0.005)
        for _ in range(5):
            await asyncio.sleep(0)

    server.run(settled())
    return len(os.listdir("/proc/self/fd"))


def test_g4_a_file_that_ends_early_never_looks_whole(either_way: DownloadServer) -> None:
    """G4: if the stored bytes end before the size, the connection is aborted in the middle of the body."""
    stored = either_way.disk.whereabouts(either_way.publish(noise(16 * BLOCK)).key)
    with either_way.connect(either_way.link(), receive_buffer=65_536) as client, HTTPResponse(client) as response:
        response.begin()
        assert response.headers["Content-Length"] == str(16 * BLOCK)
        os.truncate(stored, BLOCK)
        with pytest.raises((IncompleteRead, ConnectionResetError)):
            response.read()
    assert either_way.metrics.outcome() == "error"


def test_a_file_deleted_while_it_is_read_is_still_whole(server: DownloadServer) -> None:
    """A reader that has the file open reads to its end."""
    content = noise(16 * BLOCK)
    file = server.publish(content)
    with (
        server.connect(server.link(), "Connection: close", receive_buffer=65_536) as client,
        HTTPResponse(client) as response,
    ):
        response.begin()
        server.run(server.disk.storage.delete(file.key))
        assert response.read() == content


def test_a_stop_ends_a_stalled_download(tmp_path: Path) -> None:
    """When the service's grace is over, a running download is cut, counted as drained and leaves nothing open."""
    server = DownloadServer(tmp_path, asyncio.new_event_loop)
    server.publish(noise(16 * BLOCK))
    with server.connect(server.link(), receive_buffer=65_536) as client:
        assert client.recv(10)
        assert server.metrics.moved.acquire(timeout=30)
        server.close()
        assert server.metrics.outcome() == "drained"
        received = 0
        with suppress(ConnectionResetError):
            while piece := client.recv(1 << 16):
                received += len(piece)
    assert received < 16 * BLOCK
