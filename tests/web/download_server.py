"""A server for the tests of downloads: the real handlers, links and digests on a real socket.

The metadata store and the storage are stand-ins that a test can put into any state; the loop runs
in a thread, so that clients may be as blocking as real ones.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, cast

import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from service.changes import Changes
from service.clock import new_upload_id
from service.downloads import Downloads
from service.gate import Gate
from service.hashing import BlockHasher
from service.hashing import manifest as make_manifest
from service.links import KeySet, download_url, mint_download
from service.model import File, FileId, LinkTerms, Protocol, State, Upload, UploadId
from service.protocol.problems import Refusal
from service.storage.base import StoredFile
from service.storage.filesystem import FilesystemStorage
from service.web import downloads as handlers
from service.web.body import Bodies
from service.web.buffers import BufferPool
from service.web.context import CONTEXT, Context
from service.web.pace import PaceRules

NOW = 1_800_000_000.0
BLOCK = 1 << 20
FILE_ID = FileId("f_" + "a" * 26)
KEYS = KeySet.parse(
    json.dumps(
        {
            "keys": [
                {
                    "kty": "oct", "kid": "k1", "alg": "HS256", "iss": "chat", "state": "active",
                    "k": base64.urlsafe_b64encode(b"s" * 32).decode().rstrip("="),
                }
            ]
        }
    )
)  # fmt: skip


@dataclass
class FakeClock:
    """A wall clock that the test moves, and a true monotonic one."""

    at: float = NOW

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass
class Recorder:
    """The metrics that downloads touch."""

    outcomes: list[str] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    moved: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def token_verified(self, result: str, **_: object) -> None:
        pass

    def download_sent(self, mode: str, count: int) -> None:
        self.bytes[mode] = self.bytes.get(mode, 0) + count
        self.moved.release()

    def transfer_started(self, direction: str) -> None:
        assert direction == "out"
        self.in_flight += 1

    def transfer_ended(self, direction: str, outcome: str, size: int, seconds: float) -> None:
        self.in_flight -= 1
        self.outcomes.append(outcome)
        self.ended.release()

    def outcome(self) -> str:
        """How the next transfer to end has ended."""
        assert self.ended.acquire(timeout=30)
        return self.outcomes[-1]


class Ledger:
    """What downloads ask the metadata store, from two dictionaries."""

    def __init__(self) -> None:
        self.files: dict[FileId, File] = {}
        self.uploads: dict[FileId, Upload] = {}

    async def file(self, file_id: FileId) -> File | None:
        return self.files.get(file_id)

    async def upload_of_file(self, file_id: FileId) -> Upload | None:
        return self.uploads.get(file_id)


class Disk:
    """Storage on disk; `kernel=False` hides the descriptors, as a store without local files would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storage = FilesystemStorage(path / "files", durability="none")
        self.kernel = True
        self.proxy_path = self.storage.proxy_path

    @asynccontextmanager
    async def open_file(self, key: str) -> AsyncIterator[StoredFile]:
        async with self.storage.open_file(key) as file:
            yield file if self.kernel else _WithoutDescriptor(file)

    async def put(self, content: bytes) -> str:
        """The content is a finished file; its key."""
        upload_id = new_upload_id()
        async with self.storage.append(upload_id, [], epoch=1, align=2**20) as appender:
            await appender.write(memoryview(content))
            receipt = await appender.flush(last=True)
        return (await self.storage.complete(upload_id, receipt.parts, epoch=1)).key

    def whereabouts(self, key: str) -> Path:
        """The file on disk, to be damaged."""
        (found,) = [path for path in self.path.rglob("*") if path.is_file() and str(path).endswith(key)]
        return found


class _WithoutDescriptor:
    fd = None

    def __init__(self, file: StoredFile) -> None:
        self.size = file.size
        self.read = file.read


class DownloadServer:
    """The handlers on a loop of their own in a thread."""

    def __init__(self, path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.clock = FakeClock()
        self.metrics = Recorder()
        self.ledger = Ledger()
        self.disk = Disk(path)
        self.changes = Changes()
        self.downloads = Downloads(
            cast(Any, self.ledger), cast(Any, self.disk), self.clock, changes=self.changes, idle_seconds=30
        )
        rules, metrics = PaceRules(idle_seconds=60, min_rate=0), cast(Any, self.metrics)
        bodies = Bodies(BufferPool(2**24), rules, max_transfers=1000, clock=self.clock, metrics=metrics)
        self.context = Context(
            uploads=cast(Any, None), downloads=self.downloads, bodies=bodies, origin=cast(Any, None),
            discovery=cast(Any, None), metrics=cast(Any, self.metrics), clock=self.clock,
            gate=Gate(
                lambda: KEYS, audience=None, upload_life_seconds=86400, download_life_seconds=7 * 86400,
                service_life_seconds=86400, clock=self.clock, metrics=cast(Any, self.metrics),
            ),
        )  # fmt: skip
        self.path = path
        self.loop = loop_factory()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.port: int = self.run(self._start())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    async def _start(self) -> int:
        await self.disk.storage.open()
        app = web.Application(middlewares=[_refusals])
        app[CONTEXT] = self.context
        app.router.add_get("/d/{file_id}/manifest", handlers.manifest)
        app.router.add_get("/d/{file_id}", handlers.download)
        app.router.add_get("/d/{file_id}/{name}", handlers.download)
        self.runner = web.AppRunner(app, auto_decompress=False, lingering_time=2, shutdown_timeout=0.2)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.unix = str(self.path / "socket")
        await web.UnixSite(self.runner, self.unix).start()
        return int(self.runner.addresses[0][1])

    async def listen_tls(self, certificate: Path) -> int:
        """The port of a TLS listener beside the plain one."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        await web.TCPSite(self.runner, "localhost", 0, ssl_context=context).start()
        return int(self.runner.addresses[-1][1])

    def close(self) -> None:
        self.run(self.runner.cleanup())
        self.run(self.disk.storage.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    # what tests put in
    def publish(self, content: bytes, **fields: Any) -> File:
        """The content is a finished file."""
        key = self.run(self.disk.put(content))
        hasher = BlockHasher(BLOCK, strong=False)
        hasher.update(memoryview(content))
        blocks = hasher.take_finished()
        last = hasher.finish()
        digests = make_manifest([*blocks, *([last] if last else [])], len(content), BLOCK)
        file = File(FILE_ID, UploadId("u_" + "a" * 26), key, digests, NOW - 1000.5, **fields)
        self.ledger.files[FILE_ID] = file
        return file

    def upload(self, state: State) -> None:
        """An upload of the file is in that state."""
        self.ledger.uploads[FILE_ID] = Upload(
            UploadId("u_" + "a" * 26),
            Protocol.TUS,
            LinkTerms("chat", "j"),
            FILE_ID,
            BLOCK,
            False,
            NOW,
            NOW,
            state=state,
        )

    def link(self, *, expires_in: int = 3600, **claims: Any) -> str:
        """Path and query of a download link."""
        token = mint_download(
            KEYS.signing_key(), audience="http://x", file_id=FILE_ID, now=self.clock.at, expires_in=expires_in, **claims
        )
        return download_url("", FILE_ID, token)

    # what tests ask
    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def connect(self, path: str, *headers: str, receive_buffer: int | None = None) -> socket.socket:
        """A client that has asked and read nothing yet."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(30)
        client.connect(("127.0.0.1", self.port))
        client.sendall(raw_request("GET", path, *headers))
        return client


@web.middleware
async def _refusals(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    try:
        return cast(web.StreamResponse, await handler(request))
    except Refusal as refusal:
        problem = refusal.problem
        return web.json_response({"type": problem.slug}, status=problem.status, headers=problem.headers)


def raw_request(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def slug(body: bytes) -> str:
    return str(json.loads(body)["type"])


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def self_signed(directory: Path) -> Path:
    """A certificate for localhost and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "tls.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    return path
