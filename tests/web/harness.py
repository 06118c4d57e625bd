"""A real service on port 0 in the test's own loop, with the production runner and flags (A-10).

`Site` talks raw bytes where framing matters and through a plain client where it does not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multidict import CIMultiDict

from service.keyfile import KeyFile
from service.keyset import Key
from service.links import download_url, mint_download, mint_upload
from service.model import FileId, UploadId
from service.runtime import Service, running
from service.settings import Settings, TcpAddress

OCTETS = "application/offset+octet-stream"
TUS = {"Tus-Resumable": "1.0.0"}


class FakeClock:
    """Instants move only when a test says so; durations run on as they do."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def forward(self, seconds: float) -> None:
        self.at += seconds


@dataclass(slots=True)
class Answer:
    """A response as a client reads it."""

    status: int
    reason: str
    headers: CIMultiDict[str]
    body: bytes = b""
    #: the interim responses before it, as status codes
    interim: tuple[int, ...] = ()

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def slug(self) -> str:
        """The problem's slug; fails the test if the answer is no problem+json."""
        assert self.headers["Content-Type"] == "application/problem+json", self
        assert self.json["status"] == self.status
        return str(self.json["type"]).removeprefix("urn:attachd:problem:")

    @property
    def offset(self) -> int:
        return int(self.headers["Upload-Offset"])


class Line:
    """One connection that speaks bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False, interim: bool = False) -> Answer:
        """The next response; interim ones are collected unless asked for."""
        seen: list[int] = []
        while True:
            block = await self.reader.readuntil(b"\r\n\r\n")
            start, *lines = block.decode("latin-1").split("\r\n")[:-2]
            _, status, reason = (start + " ").split(" ", 2)
            headers = CIMultiDict((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
            if int(status) < 200 and not interim:
                seen.append(int(status))
                continue
            length = 0 if head or int(status) in (204, 304) or int(status) < 200 else None
            if length is None:
                length = int(headers.get("Content-Length", 0))
            body = await self.reader.readexactly(length)
            return Answer(int(status), reason.strip(), headers, body, tuple(seen))

    @property
    def answered(self) -> bool:
        """Whether something came that nobody has read, or the end; does not wait."""
        return bool(self.reader._buffer) or self.reader.at_eof()  # type: ignore[attr-defined]

    async def closed(self) -> bool:
        """Whether the server ends the connection (waits for it)."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    def reset(self) -> None:
        """RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """FIN."""
        self.writer.close()


@dataclass(slots=True)
class Site:
    """A running service and what a test needs to talk to it."""

    service: Service
    clock: FakeClock | None
    key: Key
    lines: list[Line] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"http://{self.service.public}"

    @property
    def port(self) -> int:
        assert isinstance(self.service.public, TcpAddress)
        return self.service.public.port

    async def line(self) -> Line:
        """A new connection."""
        line = Line(*await asyncio.open_connection("127.0.0.1", self.port))
        self.lines.append(line)
        return line

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        *,
        chunked: bool = False,
        trailers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own. Nothing is added but Host and the framing."""
        line = await self.line()
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        await line.send(head(method, path, pairs, body, chunked=chunked))
        if body is not None:
            await line.send(chunk(body, trailers) if chunked else body)
        try:
            answer = await line.answer(head=method == "HEAD")
        finally:
            await line.close()
        if answer.status == 201 and "Attachd-File-Id" in answer.headers:
            await self._unmarked()
        return answer

    async def _unmarked(self) -> None:
        """The marks of small files are gone, or stay: what is on the disk does not change by itself any more."""
        running = {
            task for task in self.service.tasks._running if getattr(task.get_coro(), "__name__", "") == "_unmark"
        }
        if running:
            await asyncio.wait(running)

    def token(self, **claims: Any) -> str:
        """An upload token; `max` 1 GiB, an hour, single use, unless told otherwise."""
        now = self.clock.now() if self.clock else None
        terms: dict[str, Any] = {
            "audience": self.base,
            "jti": secrets.token_urlsafe(16),
            "now": now or time.time(),
            "expires_in": 3600,
            "max_size": 2**30,
        }
        terms.update(claims)
        return mint_upload(self.key, **terms)

    def link(self, **claims: Any) -> str:
        """The path of an upload link."""
        return f"/files?sig={self.token(**claims)}"

    def download_link(self, file_id: str, **claims: Any) -> str:
        """The path of a download link."""
        now = self.clock.now() if self.clock else time.time()
        terms: dict[str, Any] = {"audience": self.base, "now": now, "expires_in": 3600}
        terms.update(claims)
        token = mint_download(self.key, file_id=FileId(file_id), **terms)
        return download_url("", FileId(file_id), token)

    async def create(self, length: int | None = 100, link: str | None = None, **headers: str) -> str:
        """A new tus upload; its path `/files/u_...`."""
        answer = await self.post(length, link, **headers)
        assert answer.status == 201, answer
        return path_of(answer.headers["Location"])

    async def post(self, length: int | None = 100, link: str | None = None, **headers: str) -> Answer:
        """A tus creation without a body. Header names: `_` for `-`."""
        sent = TUS | {name.replace("_", "-"): value for name, value in headers.items()}
        if length is not None:
            sent["Upload-Length"] = str(length)
        return await self.ask("POST", link or self.link(), sent | {"Content-Length": "0"})

    async def head(self, path: str) -> Answer:
        return await self.ask("HEAD", path, TUS)

    async def patch(self, path: str, offset: int, body: bytes, **headers: str) -> Answer:
        """A tus PATCH."""
        sent = TUS | {"Upload-Offset": str(offset), "Content-Type": OCTETS}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask("PATCH", path, sent, body)

    async def upload(self, content: bytes, **claims: Any) -> str:
        """A finished file; its id."""
        link = self.link(**claims)
        headers = TUS | {"Upload-Length": str(len(content)), "Content-Type": OCTETS}
        answer = await self.ask("POST", link, headers, content)
        assert answer.status == 201, answer
        return answer.headers["Attachd-File-Id"]

    async def fetch(self, file_id: str) -> bytes:
        """The bytes of a finished file."""
        answer = await self.ask("GET", self.download_link(file_id))
        assert answer.status == 200, answer
        return answer.body

    async def file_id(self, path: str) -> str:
        """The file that an upload made."""
        status = (await self.ask("GET", path)).json
        assert status["state"] == "ready", status
        return str(status["file_id"])

    async def stored(self, path: str) -> bytes:
        """The whole content of a finished upload."""
        return await self.fetch(await self.file_id(path))

    def upload_id(self, path: str) -> UploadId:
        return UploadId(path.rpartition("/")[2])

    def leftovers(self) -> list[str]:
        """Files on disk below the storage directories."""
        root = self.service.settings.data
        return sorted(
            str(path.relative_to(root))
            for folder in ("uploads", "files")
            for path in (root / folder).rglob("*")
            if path.is_file()
        )


def head(
    method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes | None, *, chunked: bool = False
) -> bytes:
    """The bytes of a request's head."""
    names = {name.lower() for name, _ in headers}
    lines = [f"{method} {path} HTTP/1.1"]
    if "host" not in names:
        lines.append("Host: files.test")
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    elif body is not None and "content-length" not in names:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(body: bytes, trailers: Mapping[str, str] | None = None, size: int = 65536) -> bytes:
    """The body in the chunked coding, with trailers."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    fields = "".join(f"{name}: {value}\r\n" for name, value in (trailers or {}).items())
    return coded + b"0\r\n" + fields.encode() + b"\r\n"


def path_of(url: str) -> str:
    """The path of an absolute URL."""
    return "/" + url.split("://", 1)[1].split("/", 1)[1]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def settings_for(folder: Path, **changes: Any) -> Settings:
    """Settings of a service of the test's own."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "ops_listen": "127.0.0.1:0",
        "data": str(folder / "var"),
        "durability": "none",
        "sweep_interval": "1d",
    }
    values.update(changes)
    return Settings(**values)


@asynccontextmanager
async def site(
    folder: Path, *, clock: FakeClock | None = None, alone: bool = True, **changes: Any
) -> AsyncIterator[Site]:
    """A service with these settings, stopped at the end. `alone`: no other one is on the same folder meanwhile."""
    settings = settings_for(folder, **changes)
    async with running(settings, clock, beside=not alone) as service:
        # a busy disk may keep the database waiting for longer; tests of the patience itself set their own
        service.leases._patience_seconds = 20.0
        keys = await asyncio.to_thread(KeyFile(settings.keys_path).current)
        here = Site(service, clock, keys.signing_key())
        try:
            yield here
        finally:
            for line in here.lines:
                # asyncio's transport fails so if it was closed with bytes to send, and is done by now
                with contextlib.suppress(AttributeError):
                    line.writer.transport.abort()
            # a transport closes its socket in the loop's next round
            await asyncio.sleep(0)
