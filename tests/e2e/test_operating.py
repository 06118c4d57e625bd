"""What an operator does to the process: start it twice, stop it, look at what it leaves on the disk."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.e2e.process import ROOT, ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TUS = {"Tus-Resumable": "1.0.0"}


def run(service: ServiceProcess, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command under the service's settings; the process's own umask lets everybody read and write."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=service.environment | settings,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        umask=0,
    )


def begin_upload(service: ServiceProcess, length: int) -> str:
    """The address of a new upload."""
    headers = TUS | {"Upload-Length": str(length)}
    request = urllib.request.Request(service.mint_upload(), method="POST", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.headers["Location"])


def patch(service: ServiceProcess, upload: str, length: int, sent: bytes) -> socket.socket:
    """A PATCH under way, which holds the upload: `sent` of `length` bytes."""
    line = socket.create_connection(service.address, timeout=30)
    path = upload.removeprefix(service.url)
    line.sendall(
        f"PATCH {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Length: {length}\r\n"
        "Content-Type: application/offset+octet-stream\r\n\r\n".encode()
        + sent
    )
    deadline = time.monotonic() + 30
    while not service.metrics()['attachd_transfers_in_flight{direction="in"}']:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return line


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path, ATTACHD_GRACE="1s") as running:
        yield running


def test_a_second_serve_harms_nobody(service: ServiceProcess) -> None:
    """On the same directory it exits with 1 and one line; the first one's PATCH goes on to its end."""
    upload = begin_upload(service, 10)
    with patch(service, upload, 10, b"hello") as line:
        second = run(service, "serve", ATTACHD_LISTEN="127.0.0.1:0", ATTACHD_OPS_LISTEN="127.0.0.1:0")
        assert second.returncode == 1
        (said,) = second.stderr.splitlines()
        assert "ATTACHD_DATA" in said
        assert str(service.data) in said
        line.sendall(b"world")
        assert line.recv(1000).startswith(b"HTTP/1.1 204 ")
    assert service.status(upload)["state"] == "ready"


def test_a_stop_is_over_soon_after_its_grace(service: ServiceProcess) -> None:
    """A download that would run on is cut off, and the process ends with 0, which it could not do any later."""
    request = urllib.request.Request(service.mint_upload(), method="PUT", data=bytes(32 * 2**20))
    with urllib.request.urlopen(request, timeout=30) as answer:
        file_id = json.load(answer)["file_id"]
    link = service.mint_download(file_id)
    with closing(http.client.HTTPConnection(*service.address)) as slow:
        slow.request("GET", link.removeprefix(service.url))
        slow.getresponse().read(1000)
        # two seconds after the grace it would have ended itself, with another code
        assert service.terminate() == 0
    assert "service_stopped" in service.log_tail()


def test_a_stop_does_not_wait_for_a_database_that_hangs(service: ServiceProcess) -> None:
    """Over a database that another process holds the process ends too, and says that it was forced."""
    upload = begin_upload(service, 10)
    with closing(sqlite3.connect(service.data / "attachd.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with socket.create_connection(service.address, timeout=30) as line:
            path = upload.removeprefix(service.url)
            line.sendall(f"DELETE {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n\r\n".encode())
            line.recv(1000)
            # the other one holds it on
            assert service.terminate() == 1
    assert "stop_forced" in service.log_tail()


def test_nothing_is_for_everybody(tmp_path: Path) -> None:
    """Whatever the umask it is started with, others can read nothing that the service makes."""
    service = ServiceProcess(tmp_path)
    before = os.umask(0)
    try:
        service.start()
    finally:
        os.umask(before)
    try:
        request = urllib.request.Request(service.mint_upload(), method="PUT", data=b"hello")
        urllib.request.urlopen(request, timeout=30).close()
    finally:
        service.kill()
    made = [service.data, *service.data.rglob("*")]
    assert {path.name for path in made} >= {"attachd.db", "keys.json", "attachd.lock", "uploads", "files"}
    assert [str(path) for path in made if path.stat().st_mode & 0o027] == []
    assert service.data.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("command", [("keys", "new"), ("migrate",)])
def test_commands_make_the_directory_private(tmp_path: Path, command: tuple[str, ...]) -> None:
    """So it is with what is made before the first start."""
    service = ServiceProcess(tmp_path)
    assert run(service, *command).returncode == 0
    made = [service.data, *service.data.rglob("*")]
    assert [str(path) for path in made if path.stat().st_mode & 0o027] == []
    assert service.data.stat().st_mode & 0o777 == 0o700


def test_a_link_cannot_be_printed_without_a_key_that_signs(tmp_path: Path) -> None:
    """`serve --print-link` says so before it serves anything."""
    service = ServiceProcess(tmp_path)
    kid = run(service, "keys", "new").stdout.strip()
    run(service, "keys", "retire", kid)
    refused = run(service, "serve", "--print-link")
    assert refused.returncode == 1
    (said,) = refused.stderr.splitlines()
    assert "ATTACHD_KEYS" in said
    assert "keys new" in said
