"""A service of several processes, asked and watched from outside."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from service.workers.counting import NAME, SHARED_MEMORY, shared_prefix
from tests.e2e.process import ServiceProcess

#: far more than anything here takes, on a machine that does other things as well
PATIENCE = 60.0
TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = "application/offset+octet-stream"
IN_FLIGHT = 'attachd_transfers_in_flight{direction="in"}'


def until(holds: Callable[[], object]) -> None:
    """Returns once it holds; fails the test if that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@contextmanager
def line_to(service: ServiceProcess) -> Iterator[http.client.HTTPConnection]:
    """A connection, closed at the end."""
    line = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    try:
        line.connect()
        yield line
    finally:
        line.close()


def ask(
    service: ServiceProcess, method: str, url: str, body: bytes | None = None, **headers: str
) -> http.client.HTTPResponse:
    """One request on a connection of its own; header names with `_` for `-`."""
    parts = urlsplit(url)
    with line_to(service) as line:
        sent = TUS | {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body, sent)
        answer = line.getresponse()
        answer.read()
        return answer


def create(service: ServiceProcess, length: int) -> str:
    """A new upload; its address."""
    answer = ask(service, "POST", service.mint_upload(), Upload_Length=str(length))
    assert answer.status == 201
    return answer.headers["Location"]


def begin(service: ServiceProcess, upload: str, said: int, sent: bytes) -> tuple[socket.socket, int]:
    """A PATCH that stops in the middle of its body, and which process has the connection."""
    line = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)
    head = (
        f"PATCH {urlsplit(upload).path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        f"Content-Type: {OCTETS}\r\nContent-Length: {said}\r\n\r\n"
    )
    line.sendall(head.encode() + sent)
    until(lambda: service.metrics()[IN_FLIGHT] == 1)
    return line, service.worker_of(line)


def resume(service: ServiceProcess, upload: str, content: bytes) -> http.client.HTTPResponse:
    """The rest of the upload, from where HEAD says."""
    answer = ask(service, "HEAD", upload)
    assert answer.status == 200
    offset = int(answer.headers["Upload-Offset"])
    return ask(
        service,
        "PATCH",
        upload,
        content[offset:],
        Upload_Offset=str(offset),
        Content_Type=OCTETS,
    )


def listens(service: ServiceProcess, port: int) -> bool:
    """Whether a process of the service takes new connections there."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    for pid in service.pids():
        with contextlib.suppress(OSError):
            if any(os.readlink(entry) in listening for entry in Path(f"/proc/{pid}/fd").iterdir()):
                return True
    return False


def left_of(service: ServiceProcess) -> list[Path]:
    """What is left of runs of the service where workers count."""
    below = service.data / NAME
    return [*SHARED_MEMORY.glob(f"{shared_prefix(service.data)}*"), *(below.iterdir() if below.exists() else ())]


def store(service: ServiceProcess, content: bytes) -> str:
    """A new file; its download link."""
    answer = ask(service, "POST", service.mint_upload(), content, Upload_Length=str(len(content)), Content_Type=OCTETS)
    assert answer.status == 201
    return service.mint_download(answer.headers["Attachd-File-Id"])


@contextmanager
def downloading(service: ServiceProcess, link: str, *, window: int = 4096) -> Iterator[tuple[socket.socket, bytes]]:
    """A download that has begun and is as slow as the test reads; its connection, and what has come of the answer.

    Args:
        window: bytes of the socket's receive buffer.
    """
    parts = urlsplit(link)
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        slow.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        yield slow, slow.recv(1000)
