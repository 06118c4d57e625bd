"""The operations listener: is it alive, can it work, what does it do.

An application of its own on a listener of its own (lesson M2): none of it is ever reachable
through the public one. `/livez` looks at nothing, so a broken database does not get the process
killed. `/readyz` looks at what the service needs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import web

from service.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

log = structlog.get_logger(__name__)

#: a check that takes longer has failed
CHECK_SECONDS: Final = 2.0
#: how old an answer may be, so that frequent probes do not become load
CACHE_SECONDS: Final = 1.0
#: how long a check may run on when the service has stopped: cut off, it would leave a file open
_CLOSE_SECONDS: Final = 0.2
#: how old the gauge of readiness may be
LOOK_SECONDS: Final = 10.0


class Readiness:
    """Runs the checks and remembers for a moment what came out."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], Awaitable[None]]],
        *,
        check_seconds: float = CHECK_SECONDS,
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        self._checks = checks
        self._check_seconds = check_seconds
        self._cache_seconds = cache_seconds
        self._lock = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, str] = {}
        self._looked_at = float("-inf")

    async def failed(self) -> dict[str, str]:
        """The checks that fail now, each with `error` or `timeout`; empty: all is well."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() - self._looked_at >= self._cache_seconds:
                failed = await self._look()
                self._failed, self._looked_at = failed, loop.time()
            return self._failed

    async def _look(self) -> dict[str, str]:
        # a check that hangs in a thread cannot be cancelled: it is kept, not started again beside itself
        for name, check in self._checks.items():
            if name not in self._running:
                self._running[name] = asyncio.ensure_future(_run(check))
        if self._running:
            await asyncio.wait(self._running.values(), timeout=self._check_seconds)
        failed: dict[str, str] = {}
        for name in self._checks:
            if not self._running[name].done():
                failed[name], cause = "timeout", None
            else:
                cause = self._running.pop(name).exception()
                if cause is not None:
                    failed[name] = "error"
            if name in failed and name not in self._failed:
                log.warning("readiness_lost", check=name, reason=failed[name], cause=cause)
            elif name in self._failed and name not in failed:
                log.warning("readiness_regained", check=name)
        return failed

    async def close(self) -> None:
        """No check runs any more; one that is at work may end, one that hangs is left."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=_CLOSE_SECONDS)
        for check in self._running.values():
            check.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)


async def _run(check: Callable[[], Awaitable[None]]) -> None:
    await check()


async def watch_readiness(
    failed: Callable[[], Awaitable[Mapping[str, str]]], draining: Callable[[], bool], told: Callable[[bool], None]
) -> None:
    """A scrape finds what `/readyz` would say, without looking itself; until cancelled."""
    # all that is needed was in use a moment ago, for the start
    ready = True
    while True:
        told(ready and not draining())
        await asyncio.sleep(LOOK_SECONDS)
        try:
            ready = not draining() and not await failed()
        except Exception:
            log.exception("readiness_unknown")
            ready = False


def make_ops_app(
    render: Callable[[], bytes], failed: Callable[[], Awaitable[Mapping[str, str]]], draining: Callable[[], bool]
) -> web.Application:
    """The application for the operations listener.

    Args:
        render: the exposition of the metrics; may block.
        failed: what the service needs and cannot use now, by name.
        draining: whether the service is stopping; then it is not ready.
    """

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(render), headers={"Content-Type": CONTENT_TYPE})

    async def livez(_request: web.Request) -> web.Response:
        return _answer(200, {"status": "alive"})

    async def readyz(_request: web.Request) -> web.Response:
        lacking = {"draining": "stopping"} if draining() else dict(await failed())
        if lacking:
            return _answer(503, {"status": "not ready", "failed": lacking})
        return _answer(200, {"status": "ready"})

    app = web.Application()
    app.add_routes(
        [web.get("/metrics", show_metrics), web.get("/livez", livez), web.get("/readyz", readyz)]  # HEAD comes along
    )
    return app


def _answer(status: int, body: dict[str, Any]) -> web.Response:
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})
