"""Lessons D3 to D6: what arrived is kept, drips end, full disks pass, nothing blocks and nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError

from service.metadata.base import MetadataUnavailable
from service.storage.filesystem import appender
from service.web import gathering, uploads
from tests.web.harness import OCTETS, TUS, Line, Site, site
from tests.web.traces import traces
from tests.web.under_way import SteppedClock, begin_patch, held, received, until

pytestmark = pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
KIB = 1024
MIB = 1024 * KIB


# --- D3: a cut connection loses nothing that arrived ----------------------------------------------


async def _stall(here: Site, line: Line) -> None:
    """The client says nothing more until the service has had enough."""
    clock = here.clock
    assert isinstance(clock, SteppedClock)
    (body,) = here.service.bodies._open
    # silence is the client's only while the service reads
    await until(lambda: not body._holding_up)
    clock.skip(61)
    assert (await line.answer()).slug == "timeout"


async def _reset(here: Site, line: Line) -> None:
    line.reset()


async def _hang_up(here: Site, line: Line) -> None:
    await line.close()


@pytest.mark.parametrize("cut", [_reset, _hang_up, _stall])
async def test_D3_what_arrived_before_a_cut_is_kept(tmp_path: Path, cut: Callable[..., Any]) -> None:
    """After FIN, RST or a stall at 31 of 64 MiB, HEAD says 31 MiB, and the rest completes the file."""
    content = random.Random(3).randbytes(64 * MIB)
    async with site(tmp_path, clock=SteppedClock(), body_min_rate="0") as here:
        path = await here.create(len(content))
        line = await begin_patch(here, path, 0, content[: 31 * MIB], length=len(content))
        await cut(here, line)
        await until(lambda: not held(here, path))
        assert (await here.head(path)).offset == 31 * MIB
        assert (await here.patch(path, 31 * MIB, content[31 * MIB :])).status == 204
        assert await here.stored(path) == content


@pytest.mark.parametrize("cut", [_reset, _hang_up])
async def test_D3_a_cut_right_behind_the_bytes_loses_little(here: Site, cut: Callable[..., Any]) -> None:
    """Bytes sent and cut off in one breath at 31 of 64 MiB: HEAD says 30 MiB at least, and never less later."""
    path = await here.create(64 * MIB)
    line = await here.line()
    head = f"PATCH {path} HTTP/1.1\r\nHost: files.test\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
    await line.send(f"{head}Content-Type: {OCTETS}\r\nContent-Length: {64 * MIB}\r\n\r\n".encode())
    await line.send(bytes(30 * MIB))
    # the kernel may still have all of it: what a reset throws away there, nobody received
    await until(lambda: received(here) >= 30 * MIB)
    line.writer.write(bytes(MIB))
    await cut(here, line)
    await until(lambda: not held(here, path))
    assert (await here.head(path)).offset >= 30 * MIB


# --- D4: a drip does not hold a slot for ever -----------------------------------------------------


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A service whose durations move when told, and that looks at its bodies all the time."""
    monkeypatch.setattr(gathering, "_TICK_SECONDS", 0.001)
    async with site(tmp_path, clock=SteppedClock()) as running:
        yield running


async def _step(here: Site, line: Line, seconds: float, data: bytes) -> None:
    """Time passes, the service has had a look, the bytes are there, and it has looked again."""
    clock, before = here.clock, received(here)
    assert isinstance(clock, SteppedClock)
    clock.skip(seconds)
    await asyncio.sleep(0.002)
    await line.send(data)
    await until(lambda: received(here) - before >= len(data) or not here.service.bodies._open)
    await asyncio.sleep(0.002)


async def test_D4_a_drip_is_closed_and_its_bytes_are_kept(watched: Site) -> None:
    """A byte every 10 s never idles for 60 s, and is ended within 100 s all the same, its bytes committed."""
    path = await watched.create(1000)
    line = await begin_patch(watched, path, 0, b"x", length=1000)
    sent = 1
    for _ in range(10):
        if not held(watched, path):
            break
        await _step(watched, line, 10, b"x")
        sent += 1
    assert not watched.service.bodies._open
    assert 30 < 10 * sent <= 110
    answer = await line.answer()
    assert (answer.status, answer.slug) == (503, "timeout")
    assert (await watched.head(path)).offset in (sent - 1, sent)


async def test_D4_silence_ends_a_body(watched: Site) -> None:
    """A body without a byte for 60 s ends with 503 `timeout`, and what came is kept."""
    path = await watched.create(1000)
    line = await begin_patch(watched, path, 0, b"x" * 300, length=1000)
    await _step(watched, line, 59, b"")
    assert held(watched, path)
    await _step(watched, line, 2, b"")
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.headers["Connection"]) == (503, "timeout", "close")
    assert (await watched.head(path)).offset == 300


async def test_D4_a_slow_client_is_left_alone(watched: Site) -> None:
    """At 2 KiB/s a client sends for three hours in one request, and nobody cuts it off."""
    step, piece = 15, bytes(30 * KIB)
    rounds = 3 * 3600 // step
    path = await watched.create(rounds * len(piece))
    line = await begin_patch(watched, path, 0, piece, length=rounds * len(piece))
    for _ in range(rounds - 1):
        await _step(watched, line, step, piece)
    assert (await line.answer()).status == 204


# --- D5: a full disk ------------------------------------------------------------------------------


async def test_D5_no_room_is_told_at_creation(here: Site) -> None:
    """On a volume of 100 MiB a creation of 200 MiB is 507 with Retry-After, and one of 50 MiB is made."""

    async def free() -> int:
        return 100 * MIB

    here.service.storage.free_bytes = free  # type: ignore[method-assign]
    refused = await here.post(200 * MIB)
    assert (refused.status, refused.slug) == (507, "storage-full")
    assert int(refused.headers["Retry-After"]) > 0
    assert (await here.post(50 * MIB)).status == 201
    # what the first was promised is not there for a second
    assert (await here.post(60 * MIB)).slug == "storage-full"


async def test_D5_a_disk_that_fills_up_keeps_what_it_took(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATCH that fills the disk is 507 with the offset kept; with room again it goes on; others never notice."""
    content = random.Random(5).randbytes(3 * MIB)
    path, other = await here.create(len(content)), await here.create(5)
    room = [MIB + 500]

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        size = os.pwrite(fd, data[: room[0]], at)
        room[0] -= size
        return size

    with monkeypatch.context() as patched:
        patched.setattr(appender, "os", _Os(pwrite=pwrite))
        full = await here.patch(path, 0, content)
        assert (full.status, full.slug) == (507, "storage-full")
        assert int(full.headers["Retry-After"]) > 0
        # told, HEAD, and what the disk took: one number
        assert full.offset == MIB + 500
        assert (await here.head(path)).offset == MIB + 500
        assert (await here.ask("GET", path)).json["state"] == "receiving"
        again = await here.patch(path, full.offset, content[full.offset :])
        assert (again.status, again.offset) == (507, full.offset)
        room[0] = 5
        assert (await here.patch(other, 0, b"hello")).status == 204
    assert (await here.patch(path, full.offset, content[full.offset :])).status == 204
    assert await here.stored(path) == content
    assert await here.stored(other) == b"hello"


class _Os:
    """The module `os` with some functions replaced."""

    def __init__(self, **replaced: Any) -> None:
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


async def test_D5_reads_go_on_while_the_disk_is_full(here: Site) -> None:
    """HEAD, status and downloads do not ask for room."""
    file = await here.upload(b"content")
    path = await here.create(10)

    async def nothing() -> int:
        return 0

    here.service.storage.free_bytes = nothing  # type: ignore[method-assign]
    assert (await here.post(10)).status == 507
    assert (await here.head(path)).status == 200
    assert (await here.ask("GET", path)).status == 200
    assert await here.fetch(file) == b"content"


# --- D6: nothing blocks, nothing leaks ------------------------------------------------------------


async def test_D6_a_handler_that_blocks_fails_its_test(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector is on in web tests: a handler of the service that sleeps raises instead of sleeping."""
    caught: list[BaseException] = []

    async def blocking(request: Any) -> Any:
        # compiled under a file of the service, as the detector looks at who calls
        code = compile("time.sleep(0.001)", uploads.__file__, "exec")
        try:
            exec(code, {"time": time, "__name__": "service.web.uploads"})
        except BlockingError as error:
            caught.append(error)
            raise
        return await options(request)

    options = uploads.options
    monkeypatch.setitem(uploads._ENDPOINT, "OPTIONS", blocking)
    assert (await here.ask("OPTIONS", "/files")).status == 500
    assert len(caught) == 1


async def test_D6_no_lock_no_write(here: Site) -> None:
    """While the lease cannot be had nothing is written, and the client is told to come again."""
    path = await here.create(10)
    metadata = here.service.metadata
    acquire = metadata.acquire_lease

    async def broken(*_: Any, **__: Any) -> Any:
        raise MetadataUnavailable("database is locked at /var/secret")

    metadata.acquire_lease = broken  # type: ignore[method-assign]
    before = traces(here)
    refused = await here.patch(path, 0, b"hello")
    assert (refused.status, refused.slug) == (503, "storage-unavailable")
    assert b"secret" not in refused.body
    assert traces(here) == before
    metadata.acquire_lease = acquire  # type: ignore[method-assign]
    assert (await here.patch(path, 0, b"helloworld")).status == 204


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_D6_nothing_is_left_of_many_uploads(tmp_path: Path) -> None:
    """After 300 uploads of which a third were cut, tasks, descriptors, leases and buffers are as before."""
    async with site(tmp_path) as here:
        await _uploads(here, range(20))
        await _quiet(here)
        tasks, files = len(asyncio.all_tasks()), _open_files()
        for batch in range(10):
            await _uploads(here, range(batch * 30, batch * 30 + 30))
        await _quiet(here)
        assert len(asyncio.all_tasks()) <= tasks
        assert _open_files() <= files + 2
        assert here.service.bodies._open == set()
        assert here.service.bodies._pool.used_bytes == 0
        leases = here.service.leases
        assert (leases._holders, leases._queues) == ({}, {})


async def _uploads(here: Site, numbers: range) -> None:
    await asyncio.gather(*(_one(here, number) for number in numbers))


async def _one(here: Site, number: int) -> None:
    """An upload, each third cut in the middle and resumed."""
    content = random.Random(number).randbytes(20 * KIB)
    path = await here.create(len(content))
    offset = 0
    if number % 3 == 0:
        line = await here.line()
        fields = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS, "Content-Length": str(len(content))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await line.send(f"PATCH {path} HTTP/1.1\r\nHost: files.test\r\n{lines}\r\n".encode() + content[: 10 * KIB])
        line.reset()
    while True:
        answer = await here.patch(path, offset, content[offset:])
        if answer.status == 204:
            break
        assert answer.status in (409, 423)
        offset = answer.offset if answer.status == 409 else (await here.head(path)).offset
    assert (await here.head(path)).offset == len(content)


async def _quiet(here: Site) -> None:
    """All connections of the test are closed and the service has noticed."""
    for line in here.lines:
        line.writer.transport.abort()
    here.lines.clear()
    await until(lambda: not here.service.bodies._open and not here.service.tasks)
    gc.collect()
    before, steady = -1, 0
    while steady < 5:
        await asyncio.sleep(0.02)
        now = len(asyncio.all_tasks())
        steady = steady + 1 if now == before else 0
        before = now
