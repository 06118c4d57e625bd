"""Clients that are in no hurry: each has an upload open and sends a kilobyte a second."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from tests.bench.client import OCTETS, Connection, Unexpected, head

#: what each sends, how often: a little above the rate below which the service ends a body
PIECE: Final = bytes(110)
EVERY_SECONDS: Final = 0.1


class Neighbours:
    """They send until the context is left. Raises Unexpected there: one of them was not let.

    Args:
        address: of the service.
        paths: of their uploads, each of `size` bytes and empty.
    """

    def __init__(self, address: tuple[str, int], paths: Sequence[str], size: int) -> None:
        self._connections = [Connection(address) for _ in paths]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        for connection, path in zip(self._connections, paths, strict=True):
            connection.send(
                head(
                    "PATCH", path, address, upload_offset=0, content_length=size,
                    content_type=OCTETS,
                ),
                PIECE,
            )  # fmt: skip
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        early = [connection for connection in self._connections if _answered(connection)]
        for connection in self._connections:
            connection.__exit__()
        if early and kind is None:
            raise Unexpected(f"{len(early)} of {len(self._connections)} neighbours were not let send")

    def _run(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            for connection in self._connections:
                # who was sent away is counted at the end
                with contextlib.suppress(OSError):
                    connection.socket.sendall(PIECE)


def _answered(connection: Connection) -> bool:
    try:
        connection.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
