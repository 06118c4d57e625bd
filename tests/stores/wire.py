"""HTTP/1.1 as far as a proxy before an S3 store needs it: heads, and bodies in pieces as they come."""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE: Final = 256 * 1024
LONGEST_HEAD: Final = 64 * 1024


class Gone(Exception):
    """The other end is not there any more, or never was."""


@dataclass(slots=True)
class Head:
    """The first line and the fields of a request or a response."""

    first: str
    fields: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key.lower() == name), None)

    def drop(self, *prefixes: str) -> None:
        """No field is left whose lower-case name begins with one of these."""
        self.fields = [(key, value) for key, value in self.fields if not key.lower().startswith(prefixes)]

    def put(self, name: str, value: str) -> None:
        """The field has this one value."""
        self.fields = [(key, old) for key, old in self.fields if key.lower() != name.lower()] + [(name, value)]

    def render(self) -> bytes:
        lines = [self.first, *(f"{key}: {value}" for key, value in self.fields)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Line:
    """One end of a connection: blocking reads and writes, for a thread of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._held = bytearray()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, piece: bytes) -> None:
        try:
            self._sock.sendall(piece)
        except OSError as error:
            raise Gone from error

    def try_send(self, piece: bytes) -> bool:
        """Whether the other end, or at least the kernel, took it."""
        try:
            self.send(piece)
        except Gone:
            return False
        return True

    def has_more(self) -> bool:
        """Something, an end of stream included, can be read at once."""
        try:
            return bool(self._held) or bool(select.select([self._sock], [], [], 0)[0])
        except (OSError, ValueError):
            return True

    def read_head(self) -> Head:
        """The next head.

        Raises:
            Gone: the stream ended before a whole one.
        """
        end = -1
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > LONGEST_HEAD:
                raise Gone
            self._fill()
        first, *lines = bytes(self._held[:end]).decode("latin-1").split("\r\n")
        del self._held[: end + 4]
        fields = [line.split(":", 1) for line in lines]
        return Head(first, [(key, value.strip()) for key, value in fields])

    def read_body(self, head: Head, *, to_end: bool) -> Iterator[bytes]:
        """The body that comes after the head, as it is on the wire (chunked stays chunked).

        Args:
            to_end: without a length the body is all that comes; a request's is then empty.
        """
        if "chunked" in (head.get("transfer-encoding") or "").lower():
            yield from self._read_chunked()
            return
        length = head.get("content-length")
        if length is None and to_end:
            yield from self._read_all()
            return
        left = int(length or 0)
        while left:
            piece = self._read_some(left)
            left -= len(piece)
            yield piece

    def _read_chunked(self) -> Iterator[bytes]:
        size = -1
        while size:
            line = self._read_line()
            yield line
            size = int(line.split(b";")[0], 16)
            left = size + 2 if size else 0
            while left:
                piece = self._read_some(left)
                left -= len(piece)
                yield piece
        line = b""
        while line != b"\r\n":
            line = self._read_line()
            yield line

    def _read_all(self) -> Iterator[bytes]:
        try:
            while True:
                yield self._read_some(PIECE)
        except Gone:
            return

    def _read_line(self) -> bytes:
        while (end := self._held.find(b"\n")) < 0:
            self._fill()
        line = bytes(self._held[: end + 1])
        del self._held[: end + 1]
        return line

    def _read_some(self, most: int) -> bytes:
        if self._held:
            piece = bytes(self._held[:most])
            del self._held[:most]
            return piece
        return self._receive(min(most, PIECE))

    def _fill(self) -> None:
        self._held += self._receive(PIECE)

    def _receive(self, most: int) -> bytes:
        try:
            piece = self._sock.recv(most)
        except OSError as error:
            raise Gone from error
        if not piece:
            raise Gone
        return piece

    def wake(self) -> None:
        """A thread that reads or writes here finds the stream ended."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        self._sock.close()

    def reset(self) -> None:
        """The other end sees a connection reset, and loses what it had not read."""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            return
        finally:
            self._sock.close()
