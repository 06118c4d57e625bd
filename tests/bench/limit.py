"""The machine's own limit: `python -m tests.bench.limit PORT DIRECTORY DURABILITY WHAT`.

One blocking loop, one connection at a time, just enough HTTP that the same client can talk to it.
Uploads: receive 1 MiB, XXH3-128, write, again. Downloads: sendfile. No checks of any kind: it
shows what the kernel's copies and the hash alone cost, and nobody should run it for real.

WHAT is `all`, or one half of it: `receive` drops what it has received, `write` writes as much as
a body has, which its client then keeps to itself.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import Final

import xxhash

STEP: Final = 1 << 20
NOT_SENT: Final = 128 * 1024
_LENGTH: Final = re.compile(rb"\r\nContent-Length: ([0-9]+)")


class Limit:
    """What is left of a service when everything is left out."""

    def __init__(self, directory: Path, *, sync: bool, what: str) -> None:
        self.directory = directory
        self.body = {"all": self.append, "receive": self.receive, "write": self.write}[what]
        self.sync = sync
        self.made = 0
        self.lengths: dict[str, int] = {}
        #: bytes of each upload, where they are only received
        self.dropped: dict[str, int] = {}
        self.buffer = bytearray(STEP)

    def serve(self, peer: socket.socket) -> None:
        """Every request of the connection, until its end."""
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The less waits in the socket, the warmer it is in the processor's cache when it is read.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)
        while True:
            # looked at first, so that the body is left in the socket
            seen = b""
            while (end := seen.find(b"\r\n\r\n")) < 0:
                seen = peer.recv(STEP // 16, socket.MSG_PEEK)
                if not seen:
                    return
            head = peer.recv(end + 4)
            method, target, _ = head.split(b" ", 2)
            peer.sendall(self.answer(peer, method, target.decode(), head))

    def answer(self, peer: socket.socket, method: bytes, target: str, head: bytes) -> bytes:
        """The head of the answer, or b"" where the answer has been sent."""
        path = self.directory / target.rpartition("/")[2]
        if method == b"POST":
            self.made += 1
            self.lengths[str(self.made)] = int(head.lower().partition(b"upload-length: ")[2].split(b"\r\n")[0])
            (self.directory / str(self.made)).touch()
            return _head("201 Created", f"Location: /files/{self.made}", "Content-Length: 0")
        if method == b"PATCH":
            found = _LENGTH.search(head)
            assert found is not None
            return _head("204 No Content", f"Upload-Offset: {self.body(peer, path, int(found[1]))}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            peer.sendall(_head("200 OK", f"Content-Length: {size}"))
            start = 0
            while start < size:
                start += os.sendfile(peer.fileno(), file.fileno(), start, min(NOT_SENT, size - start))
        return b""

    def receive(self, peer: socket.socket, path: Path, length: int) -> int:
        """Where the file would end, had it been written."""
        left = length
        while left and (count := peer.recv_into(self.buffer, min(left, STEP), socket.MSG_WAITALL)):
            left -= count
        self.dropped[path.name] = self.dropped.get(path.name, 0) + length - left
        return self.dropped[path.name]

    def write(self, peer: socket.socket, path: Path, length: int) -> int:
        """Where the file ends after as many bytes, which have come from nowhere."""
        view = memoryview(self.buffer)
        with path.open("ab", buffering=0) as file:
            while length:
                length -= os.write(file.fileno(), view[: min(length, STEP)])
            end = os.fstat(file.fileno()).st_size
            if self.sync and end == self.lengths[path.name]:
                os.fdatasync(file.fileno())
            return end

    def append(self, peer: socket.socket, path: Path, length: int) -> int:
        """Where the file ends after the body."""
        hasher = xxhash.xxh3_128()
        view = memoryview(self.buffer)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            while length:
                count = peer.recv_into(view, min(length, STEP), socket.MSG_WAITALL)
                if not count:
                    break
                hasher.update(view[:count])
                os.write(fd, view[:count])
                length -= count
            hasher.digest()
            end = os.fstat(fd).st_size
            if self.sync and end == self.lengths[path.name]:
                os.fdatasync(fd)
            return end
        finally:
            os.close(fd)


def _head(status: str, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def main() -> None:
    port, directory, durability, what = sys.argv[1:]
    limit = Limit(Path(directory), sync=durability != "none", what=what)
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        while True:
            peer, _ = listener.accept()
            with peer:
                limit.serve(peer)


if __name__ == "__main__":
    main()
