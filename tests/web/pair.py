"""Two services on one directory, as two workers are, under a clock of the test's own.

They run in a loop that goes on only inside `run`, so that a test without one can take its steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web_app

from service.duties import TERM_SECONDS
from service.janitor import _SWEEPS
from service.storage.base import StorageUnavailable
from tests.web.harness import OCTETS, Answer, FakeClock, Line, Site, b64, chunk, head, site
from tests.web.modelled import Body, Upload
from tests.web.sweeps import broken
from tests.web.traces import events
from tests.web.under_way import begin, begin_patch, until

T = TypeVar("T")
#: seconds in which any step is over
_LIMIT = 60.0


class Pair:
    """Both services. What they leave behind is kept; `settings` are those of `harness.site`."""

    def __init__(self, folder: Path, stored: Callable[[Pair], list[str]], **settings: Any) -> None:
        self.clock = FakeClock()
        self.sites: list[Site] = []
        self._folder = folder
        self._stored = stored
        self._settings = settings
        self._runner = asyncio.Runner()
        self._stacks: list[AsyncExitStack] = []
        self._around = AsyncExitStack()

    def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """The context is entered now, and left when both services have ended."""
        return self._runner.run(self._around.enter_async_context(context))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work comes to, once nothing goes on by itself any more."""

        async def limited() -> T:
            async with asyncio.timeout(_LIMIT):
                result = await work
                await self._settled()
                return result

        return self._runner.run(limited())

    async def _settled(self) -> None:
        for here in self.sites:
            await here.service.tasks.drain()

    async def open(self) -> None:
        """Both serve, and sweep when they are told to: another has the duty for ever."""
        for which in range(2):
            await self._start(which)
        later = self.clock.now() + TERM_SECONDS
        assert await self.sites[0].service.metadata.take_duty(_SWEEPS, "nobody", now=later, until=math.inf)

    async def _start(self, which: int) -> None:
        stack = AsyncExitStack()
        new = site(self._folder, clock=self.clock, alone=not self.sites, **self._settings)
        self.sites[which : which + 1] = [await stack.enter_async_context(new)]
        self._stacks[which : which + 1] = [stack]

    def close(self) -> None:
        """Neither does, and the loop has ended."""
        try:
            self._runner.run(self._end())
            self._runner.run(self._around.aclose())
        finally:
            self._runner.close()

    def renew(self) -> None:
        """Both services are new."""
        self._runner.run(self._end())
        self._runner.run(self.open())

    async def _end(self) -> None:
        for stack in self._stacks:
            await stack.aclose()
        self.sites.clear()
        self._stacks.clear()

    async def restart(self, which: int) -> None:
        """One is stopped as an operator does it, and another takes its place."""
        await self.sites[which].service.stop()
        await self._stacks[which].aclose()
        # aiohttp remembers applications, each with a whole service
        web_app._cached_build_middleware.cache_clear()
        await self._start(which)

    async def sweep(self, which: int) -> None:
        """What is due has been done."""
        await self._settled()
        await self.sites[which].service.janitor.sweep()

    def stored(self) -> list[str]:
        """Names of what storage holds."""
        return self._stored(self)

    def ready_files(self) -> list[str]:
        """Ids of the uploads whose files were told to be ready, as often as that was told, oldest first."""
        return [data["upload_id"] for kind, data in events(self.sites[0]) if kind == "file.ready"]

    def forget_lines(self) -> None:
        """Connections that were opened so far are closed."""
        for here in self.sites:
            for line in here.lines:
                with contextlib.suppress(AttributeError):
                    line.writer.transport.abort()
            here.lines.clear()

    # --- requests -------------------------------------------------------------------------------

    async def send(
        self, which: int, method: str, path: str, fields: dict[str, str], body: Body, expected: int | None
    ) -> Answer | None:
        """The answer, which must be the expected one; None: there is none, for the body is cut off."""
        headers, content = _fields(body)
        if expected is None:
            here = self.sites[which]
            length = None if body.chunked else len(body.content)
            await self.cut(which, await begin(here, method, path, fields | headers, content, length=length))
            return None
        answer = await self._ask(which, method, path, fields | headers, body)
        assert answer.status == expected, (body, answer)
        return answer

    async def _ask(self, which: int, method: str, path: str, fields: dict[str, str], body: Body) -> Answer:
        """The answer may come before all of the body is sent."""
        line = await self.sites[which].line()
        framing = {"Transfer-Encoding": "chunked"} if body.chunked else {"Content-Length": str(len(body.content))}
        await line.send(head(method, path, [*fields.items(), *framing.items()], None))
        coded = chunk(body.content, size=1 << 20) if body.chunked else body.content
        sending = asyncio.ensure_future(line.send(coded))
        try:
            return await line.answer(head=method == "HEAD")
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await line.close()

    async def begin(self, which: int, upload: Upload, offset: int, body: Body) -> Line:
        """A PATCH that has brought what it is to bring before it is cut."""
        headers, content = _fields(body)
        checksum = {name: value for name, value in headers.items() if name != "Content-Type"}
        return await begin_patch(self.sites[which], upload.path, offset, content, length=len(body.content), **checksum)

    async def cut(self, which: int, line: Line) -> None:
        """The connection breaks off, and the service has dealt with that."""
        line.reset()
        await until(lambda: not self.sites[which].service.bodies._open)
        await self._settled()

    async def fail_to_complete(self, which: int, upload: Upload, offset: int, content: bytes) -> None:
        """The last bytes come while storage makes no file: 503; HEAD is 423 then, and sets it going again."""
        here = self.sites[which]
        with broken(here, "storage", "complete", StorageUnavailable("away")):
            assert (await here.patch(upload.path, offset, content)).status == 503
            assert (await here.head(upload.path)).status == 423
            await self._settled()
        assert (await self.sites[1 - which].head(upload.path)).status == 423

    async def restart_under(self, which: int, upload: Upload, offset: int, body: Body, kept: int) -> None:
        """A restart in the middle of a PATCH: it hears what was kept."""
        line = await self.begin(which, upload, offset, body)
        restarting = asyncio.ensure_future(self.restart(which))
        answer = await line.answer()
        assert (answer.status, answer.slug, answer.offset) == (503, "draining", kept)
        await restarting


def _fields(body: Body) -> tuple[dict[str, str], bytes]:
    """Headers of a request body, and its bytes as far as they are sent."""
    fields = {"Content-Type": OCTETS}
    if body.claim is not None:
        digest = hashlib.sha1(body.content if body.claim else body.content + b"!").digest()
        fields["Upload-Checksum"] = f"sha1 {b64(digest)}"
    return fields, body.arrived
