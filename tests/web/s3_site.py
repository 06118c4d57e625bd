"""A service whose files lie in a bucket, behind a store that fails as told; see `tests.stores.faulty`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from service.model import State, Upload
from service.storage.s3 import Memory
from tests.contract.buckets import MIB, PART, PREFIX, Bucket, bucket_of, give_up_soon
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS, Answer, FakeClock, Site, chunk, head, site
from tests.web.traces import events
from tests.web.under_way import held, until

__all__ = ["MIB", "PART", "PREFIX", "S3Site", "s3_site"]

#: the least that the settings take
LEAST_MEMORY: Final = 8 * PART


@dataclass(slots=True)
class S3Site:
    """The service, and what is behind it."""

    here: Site
    bucket: Bucket

    @property
    def faulty(self) -> FaultyStore:
        return self.bucket.faulty

    @property
    def memory(self) -> Memory:
        """What the adapter keeps bytes in."""
        inner: Any = self.here.service.storage._inner
        found: Memory = inner._memory
        return found

    @property
    def in_hand(self) -> int:
        """Bytes in memory that somebody works with, request bodies included."""
        return self.memory.used - self.memory._kept_bytes + self.here.service.bodies._pool.used_bytes

    async def patch(self, path: str, offset: int, body: bytes, **headers: str) -> Answer:
        """A tus PATCH whose answer may come, and whose connection may end, before all of it is sent."""
        fields = TUS | {"Upload-Offset": str(offset), "Content-Type": OCTETS}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask("PATCH", path, fields, body)

    async def ask(
        self,
        method: str,
        path: str,
        fields: dict[str, str],
        body: bytes,
        *,
        trailers: dict[str, str] | None = None,
    ) -> Answer:
        """As `Site.ask`, for answers that come early; with trailers the body is chunked."""
        line = await self.here.line()
        chunked = trailers is not None
        await line.send(head(method, path, [*fields.items()], body, chunked=chunked))
        sending = asyncio.ensure_future(line.send(chunk(body, trailers) if chunked else body))
        try:
            return await line.answer()
        finally:
            sending.cancel()
            await asyncio.wait({sending})
            if not sending.cancelled():
                sending.exception()
            await line.close()

    async def upload_of(self, path: str) -> Upload:
        """The upload as committed."""
        found = await self.here.service.metadata.upload(self.here.upload_id(path))
        assert found is not None
        return found

    async def state(self, path: str) -> State:
        """What is recorded of the upload."""
        return (await self.upload_of(path)).state

    async def released(self, path: str) -> None:
        """Returns once no request holds the upload."""
        await until(lambda: not held(self.here, path))

    async def sweep(self) -> None:
        """The janitor comes, when nobody else is at any upload any more, and has done all that is due."""
        await self.here.service.tasks.drain()
        await self.here.service.janitor.sweep()

    def ready_events(self) -> int:
        """How often a file was told to be ready."""
        return sum(kind == "file.ready" for kind, _ in events(self.here))

    def metric(self, name: str, **labels: str) -> float:
        return self.here.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def counted(self) -> dict[str, int]:
        """The calls so far, by kind."""
        return dict(Counter(str(call.kind) for call in self.faulty.calls))

    async def quiet(self) -> None:
        """Returns once no call is on its way."""
        await until(lambda: all(call.over for call in self.faulty.calls))

    async def wait_for(self, kind: Any, n: int = 1, *, over: bool = False) -> None:
        """The nth such call has arrived, or is over."""
        await asyncio.to_thread(self.faulty.wait_for, kind, n, over=over)

    def files(self) -> dict[str, int]:
        """Finished files in the bucket, by key."""
        return {key: size for key, size in self.bucket.objects().items() if "/file" in key}

    def assert_only_files(self, *sizes: int) -> None:
        """The bucket holds finished files of these sizes, and nothing else at all."""
        found = self.bucket.objects()
        assert sorted(found.values()) == sorted(sizes)
        assert found == self.files()
        assert self.bucket.multiparts() == []

    async def ops(self, path: str) -> int:
        """The status that the operations listener answers."""
        address: Any = self.here.service.operations
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1])


def on_bucket(store: Store, bucket: str, faulty: FaultyStore) -> dict[str, Any]:
    """Settings of a service whose files lie in the bucket, in parts as small as stores take them."""
    return {
        "storage": "s3",
        "s3_bucket": bucket,
        "s3_endpoint": faulty.endpoint,
        "s3_region": store.region,
        "s3_prefix": PREFIX,
        "s3_addressing": "path",
        "s3_part_size": PART,
        "block_size": MIB,
    }


@asynccontextmanager
async def s3_site(
    folder: Path,
    store: Store,
    bucket: str,
    faulty: FaultyStore,
    monkeypatch: pytest.MonkeyPatch,
    *,
    clock: FakeClock | None = None,
    answers_within: float | None = None,
    sweeps: bool = True,
    **changes: Any,
) -> AsyncIterator[S3Site]:
    """A service on the bucket, in parts as small as stores take them; what it asked at its start is not counted.

    At the end no call is on its way, and no memory was lost.

    Args:
        answers_within: how long it waits for the store, in seconds; None: as in production.
        sweeps: False for the second of two processes, which leaves that to the first.
    """
    if answers_within is not None:
        give_up_soon(monkeypatch, answers_within)
    settings = on_bucket(store, bucket, faulty)
    async with bucket_of(store, bucket, faulty, monkeypatch) as held_in:
        async with site(folder, clock=clock, **settings | changes) as here:
            running = S3Site(here, held_in)
            try:
                if sweeps:
                    await until(lambda: here.service.janitor._slow is not None and here.service.janitor._slow.done())
                faulty.clear()
                yield running
            finally:
                faulty.down = None
                faulty.clear()
        memory = running.memory
        assert memory.used == memory._kept_bytes, "memory was not given back"
        assert here.service.bodies._pool.used_bytes == 0


@contextlib.contextmanager
def at_most(seconds: float) -> Any:
    """What is inside takes no longer."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began <= seconds
