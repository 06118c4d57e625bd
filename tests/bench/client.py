"""A client that costs little, and the same for every side.

Upload bodies go from the page cache into the socket by `os.sendfile`, download bodies are thrown
away by the kernel (`MSG_TRUNC`) without being copied, and small requests run over raw sockets that
stay open. Time limits are the kernel's (`SO_RCVTIMEO`, `SO_SNDTIMEO`), so the sockets are blocking
and no call is made twice.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

#: seconds in which a single system call must get on
LIMIT_SECONDS: Final = 60
#: bytes; large enough that a small request is in the socket after one call
SEND_BUFFER: Final = 256 * 1024
STEP: Final = 1 << 20
OCTETS: Final = "application/offset+octet-stream"

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)", re.IGNORECASE)
_CHUNKED: Final = b"\r\ntransfer-encoding: chunked\r\n"
_BODILESS: Final = frozenset({204, 304})


class Unexpected(AssertionError):
    """A side answered something else than the case needs; what was measured is worth nothing."""


class Answer(NamedTuple):
    """A response: its head as bytes, for most are only looked at for the status."""

    status: int
    head: bytes

    def header(self, name: str) -> str:
        """The value of a header; Unexpected if it is absent."""
        found = re.search(rb"\r\n" + name.encode() + rb":[ \t]*([^\r\n]*)", self.head, re.IGNORECASE)
        if found is None:
            raise Unexpected(f"no {name} in {self.head!r}")
        return found[1].decode("latin-1").strip()

    def expect(self, status: int, *, offset: int | None = None) -> Self:
        """The answer itself, or Unexpected if its status or its `Upload-Offset` is another."""
        if self.status != status or (offset is not None and self.header("Upload-Offset") != str(offset)):
            raise Unexpected(f"expected {status}, offset {offset}: {self.head!r}")
        return self


def head(method: str, target: str, address: tuple[str, int], **headers: str | int) -> bytes:
    """A request's head; `upload_offset=0` is the header `Upload-Offset: 0`."""
    fields = {"Host": f"{address[0]}:{address[1]}", "Tus-Resumable": "1.0.0"}
    fields |= {name.replace("_", "-").title(): str(value) for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()


class Connection:
    """One connection with keep-alive, one request at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, LIMIT_SECONDS)
        self.socket.setblocking(True)
        limit = struct.pack("ll", LIMIT_SECONDS, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._bodiless = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, request: bytes, body: bytes = b"") -> None:
        self.sent_at = time.perf_counter()
        self._bodiless = request.startswith(b"HEAD ")
        sent = self.socket.sendmsg([request, body])
        if sent < len(request) + len(body):
            self.socket.sendall((request + body)[sent:])

    def send_file(self, source: int, start: int, end: int) -> None:
        """The bytes [start, end) of an open file."""
        while start < end:
            start += os.sendfile(self.socket.fileno(), source, start, end - start)

    def answer(self) -> Answer:
        """The next response; its body is read and dropped."""
        answer, length, early = self._head()
        if early < length:
            self._drop(length - early)
        return answer

    def download(self) -> tuple[Answer, int]:
        """The next response, and how many bytes its body had, dropped by the kernel."""
        answer, length, early = self._head()
        self._drop(length - early)
        return answer, length

    def ask(self, request: bytes, body: bytes = b"") -> Answer:
        self.send(request, body)
        return self.answer()

    def _head(self) -> tuple[Answer, int, int]:
        """The response, the length of its body, and how many bytes of that have been read already."""
        seen = b""
        while (end := seen.find(b"\r\n\r\n")) < 0:
            more = self.socket.recv(65536)
            if not more:
                raise Unexpected(f"the connection ended after {seen!r}")
            seen += more
        answer = Answer(int(seen[9:12]), seen[: end + 2])
        if self._bodiless or answer.status in _BODILESS:
            return answer, 0, 0
        found = _LENGTH.search(answer.head)
        if found is None and _CHUNKED in answer.head.lower():
            # some say so of no body at all; nothing larger is asked for without a length
            while not seen.endswith(b"0\r\n\r\n"):
                more = self.socket.recv(65536)
                if not more:
                    raise Unexpected(f"the connection ended after {seen!r}")
                seen += more
            return answer, 0, 0
        if found is None:
            raise Unexpected(f"a body without a length: {answer.head!r}")
        return answer, int(found[1]), len(seen) - end - 4

    def _drop(self, length: int) -> None:
        nowhere = bytearray(min(length, STEP))
        while length > 0:
            count = self.socket.recv_into(nowhere, min(length, STEP), socket.MSG_TRUNC)
            if not count:
                raise Unexpected(f"the connection ended {length} bytes early")
            length -= count


class Source:
    """The bytes to upload, in the page cache; an upload that is larger has them again and again."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        block = os.urandom(STEP)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for at in range(0, size, STEP):
            os.write(self.fd, block[: min(STEP, size - at)])
        # Written back now, lest it be while a side is measured.
        os.fsync(self.fd)

    def send(self, connection: Connection, start: int, end: int) -> None:
        """The bytes [start, end) of an upload go out."""
        while start < end:
            at = start % self.size
            length = min(end - start, self.size - at)
            connection.send_file(self.fd, at, at + length)
            start += length

    def close(self) -> None:
        os.close(self.fd)


def burst(
    address: tuple[str, int], requests: Sequence[bytes], body: bytes, connections: int, check: Callable[[Answer], None]
) -> list[float]:
    """Every request is answered, and `check` is content with the answer; seconds that each took.

    As many are under way as there are connections. A time holds what the answer waited until this
    client, which is busy with the others, came to read it.
    """
    waiting: Iterator[bytes] = iter(requests)
    taken: list[float] = []
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for request in (next(waiting) for _ in range(min(connections, len(requests)))):
            connection = stack.enter_context(Connection(address))
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(request, body)
        while selector.get_map():
            ready = selector.select(LIMIT_SECONDS)
            if not ready:
                raise Unexpected(f"no answer within {LIMIT_SECONDS} s")
            for key, _ in ready:
                connection = key.data
                check(connection.answer())
                taken.append(time.perf_counter() - connection.sent_at)
                following = next(waiting, None)
                if following is None:
                    selector.unregister(key.fileobj)
                else:
                    connection.send(following, body)
    return taken
