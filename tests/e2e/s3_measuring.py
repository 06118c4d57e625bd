"""What it takes to tell how large files fare on a bucket: sources, senders, and looks at the process from outside."""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.bench.client import Connection, head
from tests.e2e.process import ServiceProcess
from tests.e2e.s3_service import on_bucket

if TYPE_CHECKING:
    from tests.stores.servers import Store

MIB: Final = 2**20
_CALLS: Final = re.compile(
    r'attachd_storage_requests_total{backend="s3",operation="'
    r"((?:put|get|head|delete)_object|(?:create|complete|abort)_multipart_upload|upload_part(?:_copy)?|list_\w+|head_bucket)"
    r'",outcome="\w+"}'
)
#: what the service keeps in its data directory beside the bytes of files
_OWN: Final = re.compile(r"attachd\.(db(-wal|-shm|-journal)?|lock)|keys\.json(\.lock)?|[0-9a-f]{16}\.serving")


@dataclass(frozen=True)
class Source:
    """A file of random bytes; what is uploaded is a run of it."""

    path: Path
    size: int

    @classmethod
    def made(cls, path: Path, size: int) -> Self:
        with path.open("wb") as file:
            for at in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - at)))
        return cls(path, size)

    def digest(self, start: int, end: int) -> str:
        """SHA-256 of the bytes [start, end)."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(start)
            while start < end:
                piece = file.read(min(MIB, end - start))
                digest.update(piece)
                start += len(piece)
        return digest.hexdigest()


class MeasuredService(ServiceProcess):
    """On a bucket, with its own defaults; temporary files would land in `temporary`."""

    def __init__(self, directory: Path, store: Store, bucket: str, **settings: str) -> None:
        self.temporary = directory / "tmp"
        self.temporary.mkdir(parents=True)
        given = on_bucket(store, bucket) | settings | {"TMPDIR": str(self.temporary)}
        for name in ("ATTACHD_S3_PART_SIZE", "ATTACHD_BLOCK_SIZE"):
            given.pop(name, None)
        super().__init__(directory, **given)

    def create(self, size: int, **fields: str) -> str:
        """The path of a new, empty upload."""
        return self._make(self.mint_upload(max_size=size), upload_length=str(size), **fields)

    def join(self, partials: Sequence[str], size: int) -> tuple[str, float]:
        """The path of their final upload, and the seconds until it was answered."""
        link, began = self.mint_upload(max_size=size), time.monotonic()
        return self._make(link, upload_concat=f"final;{' '.join(partials)}"), time.monotonic() - began

    def _make(self, link: str, **fields: str) -> str:
        with Connection(self.address) as connection:
            target = link.removeprefix(self.url)
            made = connection.ask(head("POST", target, self.address, content_length=0, **fields)).expect(201)
            return made.header("Location").removeprefix(self.url)

    def calls(self) -> dict[str, int]:
        """How many calls to the store there were since the process began, by operation."""
        found: dict[str, int] = {}
        for sample, value in self.metrics().items():
            if named := _CALLS.fullmatch(sample):
                found[named[1]] = found.get(named[1], 0) + int(value)
        return found

    def files(self) -> set[str]:
        """Files that the process has made and that are none of its database, keys or lock; deleted ones as well."""
        found = {path.name for path in self.data.rglob("*") if path.is_file() and not _OWN.fullmatch(path.name)}
        found |= {path.name for path in self.temporary.rglob("*")}
        for pid in self.pids():
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    target = os.readlink(descriptor)
                    found |= {target} if target.endswith("(deleted)") else set()
        return found

    def digest(self, path: str) -> str:
        """SHA-256 of the file that the upload has become, by a download."""
        status = self.status(self.url + path)
        assert status["state"] == "ready", status
        digest = hashlib.sha256()
        with urllib.request.urlopen(self.mint_download(status["file_id"])) as fetched:
            while piece := fetched.read(MIB):
                digest.update(piece)
        return digest.hexdigest()


def sent(
    service: ServiceProcess, path: str, source: Source, start: int, end: int, *, chunk: int, skip: int = 0
) -> Iterator[int]:
    """Sends the upload's bytes [start, end) in requests of `chunk` bytes; tells after each MiB at most how far it is.

    Args:
        skip: where the upload's first byte is in the source.
    """
    with Connection(service.address) as connection, source.path.open("rb") as file:
        for low in range(start, end, chunk):
            high = min(low + chunk, end)
            connection.send(
                head(
                    "PATCH", path, service.address, upload_offset=low, content_length=high - low,
                    content_type="application/offset+octet-stream",
                )
            )  # fmt: skip
            for at in range(low, high, MIB):
                connection.send_file(file.fileno(), skip + at, skip + min(at + MIB, high))
                yield min(at + MIB, high)
            connection.answer().expect(204, offset=high)


def send(
    service: ServiceProcess,
    path: str,
    source: Source,
    size: int,
    *,
    chunk: int,
    skip: int = 0,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Sends all of the upload; looks around after every sixteenth."""
    following = 0
    for at in sent(service, path, source, 0, size, chunk=chunk, skip=skip):
        if at >= following:
            following = at + size // 16
            look()
