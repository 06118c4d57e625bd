"""Connections that speak bytes, from outside, at any pace and in any disorder. Everything here blocks."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from tests.e2e.process import ServiceProcess

T = TypeVar("T")

#: seconds in which an answer, or whatever else is waited for, must have come on the slowest of machines
PATIENCE: Final = 40.0
OCTETS: Final = "application/offset+octet-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def offset(self) -> int:
        return int(self.headers["upload-offset"])

    @property
    def slug(self) -> str:
        return str(json.loads(self.body)["type"]).removeprefix("urn:attachd:problem:")


class Line:
    """One connection."""

    def __init__(self, address: tuple[str, int], *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            # before the connection is made, else its window is open already
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self._came = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def pour(self, data: bytes, most: int, quiet_seconds: float) -> int:
        """Sends it again and again until the other end takes nothing for so long, is gone, or has `most` bytes."""
        sent = 0
        self.socket.settimeout(quiet_seconds)
        with contextlib.suppress(OSError):
            while sent < most:
                sent += self.socket.send(data[sent % len(data) :])
        self.socket.settimeout(PATIENCE)
        return sent

    def end_of_sending(self) -> None:
        """FIN; what is said to that can still be read."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def answer(self, *, head: bool = False) -> Answer:
        """The next response that is not an interim one. `head`: to HEAD. Raises ConnectionError: it ended instead."""
        while True:
            while (end := self._came.find(b"\r\n\r\n")) < 0:
                self._more()
            start, *lines = self._came[:end].decode("latin-1").split("\r\n")
            del self._came[: end + 4]
            status = int(start.split(" ", 2)[1])
            if status >= 200:
                break
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if head or status in (204, 304) else int(headers.get("content-length", 0))
        while len(self._came) < length:
            self._more()
        body = bytes(self._came[:length])
        del self._came[:length]
        return Answer(status, headers, body)

    def _more(self) -> None:
        piece = self.socket.recv(2**16)
        if not piece:
            raise ConnectionResetError("the connection ended before the answer did")
        self._came += piece

    def ended(self) -> bool:
        """Whether the other end has ended the connection, now; what it said before is thrown away."""
        self.socket.settimeout(0)
        try:
            while self.socket.recv(2**16):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)
        return True


def head(method: str, url: str, length: int | None = None, **headers: str) -> bytes:
    """The head of a tus request; names with `_` for `-`, and a value in its place where one of ours is given again."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    fields = {"Host": parts.netloc or "files.test", "Tus-Resumable": "1.0.0"}
    fields |= {} if length is None else {"Content-Length": str(length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    return "\r\n".join([f"{method} {target} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items()), "", ""]).encode()


def patch(url: str, offset: int, length: int, **headers: str) -> bytes:
    """The head of a PATCH."""
    return head("PATCH", url, length, Upload_Offset=str(offset), Content_Type=OCTETS, **headers)


def ask(service: ServiceProcess, method: str, url: str, body: bytes = b"", **headers: str) -> Answer:
    """One request on a connection of its own."""
    with Line(service.address) as line:
        sent = None if method in ("HEAD", "GET", "DELETE") and not body else len(body)
        line.send(head(method, url, sent, **headers) + body)
        return line.answer(head=method == "HEAD")


def create(service: ServiceProcess, length: int, **claims: Any) -> str:
    """The address of a new upload."""
    made = ask(service, "POST", service.mint_upload(**claims), Upload_Length=str(length))
    assert made.status == 201, made
    return made.headers["location"]


def append(service: ServiceProcess, url: str, offset: int, body: bytes) -> Answer:
    return ask(service, "PATCH", url, body, Upload_Offset=str(offset), Content_Type=OCTETS)


def offset_of(service: ServiceProcess, url: str) -> int:
    """What HEAD says."""
    answer = until(lambda: found if (found := ask(service, "HEAD", url)).status != 423 else None, "HEAD is not 423")
    assert answer.status == 200, answer
    return answer.offset


def finish(service: ServiceProcess, url: str, content: bytes) -> None:
    """Sends what is left from where the service says, as often as it says to come again."""

    def sent() -> bool:
        offset = offset_of(service, url)
        return offset == len(content) or append(service, url, offset, content[offset:]).status == 204

    until(sent, "the upload is finished")


def download(service: ServiceProcess, url: str) -> bytes:
    """The whole content of a finished upload."""
    status = service.status(url)
    assert status["state"] == "ready", status
    fetched = ask(service, "GET", service.mint_download(status["file_id"]))
    assert fetched.status == 200, fetched
    return fetched.body


def until(look: Callable[[], T | None], what: str, limit_seconds: float = PATIENCE) -> T:
    """The first answer that is true."""
    deadline = time.monotonic() + limit_seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


def all_ended(lines: Iterable[Line]) -> bool:
    return all(line.ended() for line in lines)
