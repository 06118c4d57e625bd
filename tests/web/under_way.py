"""Requests that are under way: begun, some of the body received, the rest up to the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import uvloop

from tests.web.harness import OCTETS, TUS, FakeClock, Line, Site, head, site

#: a test of connections runs on each
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class SteppedClock(FakeClock):
    """Durations take a step as well when the test says so: nobody waits for a time-out."""

    skipped = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped

    def skip(self, seconds: float) -> None:
        """Both clocks are that much further."""
        self.skipped += seconds
        self.forward(seconds)


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; the test's time-out says that it never did."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def received(site: Site) -> int:
    """Bytes that running request bodies brought so far."""
    return sum(body.received for body in site.service.bodies._open)


async def begin(
    site: Site,
    method: str,
    path: str,
    headers: Mapping[str, str],
    sent: bytes,
    *,
    length: int | None = None,
) -> Line:
    """A request whose body has begun: `sent` has been received, of `length` bytes or of a chunked body."""
    line = await site.line()
    framing = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    coded = b"%x\r\n%b\r\n" % (len(sent), sent) if length is None and sent else sent
    before = received(site)
    await line.send(head(method, path, [*headers.items(), *framing.items()], None))
    await line.send(coded)
    await until(lambda: received(site) - before >= len(sent))
    return line


async def begin_patch(
    site: Site, path: str, offset: int, sent: bytes, *, length: int | None = None, **headers: str
) -> Line:
    """A tus PATCH that holds the upload: `sent` has been received of it."""
    fields = TUS | {"Upload-Offset": str(offset), "Content-Type": OCTETS}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    line = await begin(site, "PATCH", path, fields, sent, length=length)
    await until(lambda: held(site, path))
    return line


def held(site: Site, path: str) -> bool:
    """Whether a request of this service holds the upload's lease."""
    return site.service.leases.held_here(site.upload_id(path))


def on_loop(
    factory: Callable[[], asyncio.AbstractEventLoop], folder: Path, talk: Callable[[Site], Awaitable[None]]
) -> None:
    """Runs a talk with a service of its own on that loop."""

    async def run() -> None:
        async with asyncio.timeout(90), site(folder) as here:
            await talk(here)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


def patch(path: str, offset: int, length: int, sent: bytes, *more: tuple[str, str]) -> bytes:
    """A tus PATCH of `length` bytes of which `sent` come with it."""
    fields = [*TUS.items(), ("Upload-Offset", str(offset)), ("Content-Type", OCTETS), ("Content-Length", str(length))]
    return head("PATCH", path, [*fields, *more], None) + sent
