"""Requests whose end is in doubt: nothing that is hidden in one is served, whichever way bodies are received."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest

from service.web import connection
from tests.web.harness import OCTETS, Line, site

START: Final = (
    "PATCH {path} HTTP/1.1\r\nHost: files.test\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
    f"Content-Type: {OCTETS}\r\n"
)
#: what an attacker wants to be taken for a request of its own: it would end the upload
HIDDEN: Final = "DELETE {path} HTTP/1.1\r\nHost: files.test\r\nTus-Resumable: 1.0.0\r\n\r\n"
#: fields, and what comes behind the head; HIDDEN is at its end
SHAPES: Final = {
    "two lengths": ("Content-Length: 0\r\nContent-Length: {size}\r\n", ""),
    "two lengths that agree": ("Content-Length: {size}\r\nContent-Length: {size}\r\n", ""),
    "a list of lengths": ("Content-Length: {size}, {size}\r\n", ""),
    "a signed length": ("Content-Length: +{size}\r\n", ""),
    "a length and chunks": ("Content-Length: {size}\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    "chunks and a length": ("Transfer-Encoding: chunked\r\nContent-Length: {size}\r\n", "0\r\n\r\n"),
    "a coding with a space": ("Content-Length: {size}\r\nTransfer-Encoding : chunked\r\n", "0\r\n\r\n"),
    "a coding in a folded line": ("Content-Length: {size}\r\nTransfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
    "a coding with a tab": ("Content-Length: {size}\r\nTransfer-Encoding:\tchunked\r\n", "0\r\n\r\n"),
    "a coding that is none": ("Content-Length: {size}\r\nTransfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
    "a bare line feed": ("Content-Length: {size}\r\nX: a\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    "a bare carriage return": ("Content-Length: {size}\r\nX: a\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    "a NUL": ("Content-Length: {size}\r\nTransfer-Encoding\0: chunked\r\n", "0\r\n\r\n"),
    "an upgrade": ("Content-Length: {size}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n", ""),
    "a length behind a folded line": ("X: a\r\n Content-Length: 0\r\nContent-Length: {size}\r\n", ""),
}


async def _statuses(line: Line) -> list[int]:
    """Of all answers until the server ends the connection, or has nothing more to say."""
    seen: list[int] = []
    try:
        async with asyncio.timeout(3):
            while True:
                seen.append((await line.answer()).status)
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return seen


async def _try(folder: Path, shape: str) -> tuple[list[int], int]:
    """The answers, and the status of the upload afterwards."""
    fields, more = SHAPES[shape]
    async with site(folder) as here:
        path = await here.create(10_000)
        behind = more + HIDDEN.format(path=path)
        line = await here.line()
        await line.send((START + fields + "\r\n").format(path=path, size=len(behind)).encode() + behind.encode())
        line.writer.write_eof()
        statuses = await _statuses(line)
        return statuses, (await here.head(path)).status


@pytest.mark.parametrize("shape", SHAPES)
async def test_nothing_hidden_is_served(tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer at most, the upload lives, and both ways to receive a body say the same."""
    monkeypatch.setattr(connection, "DIRECT", True)
    fast = await _try(tmp_path / "fast", shape)
    monkeypatch.setattr(connection, "DIRECT", False)
    plain = await _try(tmp_path / "plain", shape)
    assert fast == plain
    assert len(fast[0]) == 1
    assert fast[1] == 200
