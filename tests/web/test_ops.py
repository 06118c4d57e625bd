"""The operations listener."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
import structlog
from aiohttp import web

from service.metrics import Metrics
from service.web import ops
from service.web.ops import Readiness, make_ops_app


class Dependency:
    """Fails, hangs or works as told, and counts the looks."""

    def __init__(self):
        self.error: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.looks = 0

    async def __call__(self) -> None:
        self.looks += 1
        await self.go_on.wait()
        if self.error:
            raise self.error


@asynccontextmanager
async def serving(checks, *, draining=False):
    """A client of a real server on a port of the kernel's choice."""
    readiness = Readiness(checks)
    runner = web.AppRunner(make_ops_app(Metrics("1.2.3").render, readiness.failed, lambda: draining))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            yield session
    finally:
        await runner.cleanup()
        await readiness.close()


async def test_m2_alive_asks_nobody():
    """`/livez` is 200 without looking at any dependency."""
    storage = Dependency()
    async with serving({"storage": storage}) as client, client.get("/livez") as answer:
        assert answer.status == 200
    assert storage.looks == 0


async def test_ready_when_every_check_passes():
    """`/readyz` is 200 when all checks pass."""
    async with serving({"storage": Dependency(), "metadata": Dependency()}) as client, client.get("/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ready"})


async def test_m2_not_ready_names_what_fails():
    """A failing check gives 503 with its name, and nothing of the error's words."""
    storage = Dependency()
    storage.error = OSError("/srv/secret/path")
    checks = {"storage": storage, "metadata": Dependency()}
    async with serving(checks) as client, client.get("/readyz") as answer:
        assert (answer.status, await answer.json()) == (503, {"status": "not ready", "failed": {"storage": "error"}})


async def test_not_ready_while_draining():
    """While the service stops, `/readyz` is 503 and no dependency is asked."""
    storage = Dependency()
    async with serving({"storage": storage}, draining=True) as client, client.get("/readyz") as answer:
        assert (answer.status, (await answer.json())["failed"]) == (503, {"draining": "stopping"})
    assert storage.looks == 0


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_head_works(path):
    """HEAD answers as GET does, without a body."""
    async with serving({}) as client, client.head(path) as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_metrics_are_served_in_the_text_format():
    """`/metrics` has the exposition with its content type."""
    async with serving({}) as client, client.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert 'attachd_build_info{version="1.2.3"} 1.0' in await answer.text()


async def test_a_check_that_hangs_has_failed():
    """A check that does not come back in time is a time-out, and is not started again beside itself."""
    storage = Dependency()
    storage.go_on.clear()
    readiness = Readiness({"storage": storage}, check_seconds=0.01, cache_seconds=0)
    assert await readiness.failed() == {"storage": "timeout"}
    assert await readiness.failed() == {"storage": "timeout"}
    assert storage.looks == 1
    await readiness.close()


async def test_a_check_that_recovers_is_ready_again():
    """Once the hanging check comes back, the next look says so."""
    storage = Dependency()
    storage.go_on.clear()
    readiness = Readiness({"storage": storage}, check_seconds=0.01, cache_seconds=0)
    assert await readiness.failed() == {"storage": "timeout"}
    storage.go_on.set()
    assert await readiness.failed() == {}


@pytest.mark.parametrize("trouble", ["error", "timeout"])
async def test_readiness_that_comes_back_is_told(trouble):
    """The log has when a dependency was lost and when it was back, once each."""
    storage = Dependency()
    readiness = Readiness({"storage": storage}, check_seconds=0.01, cache_seconds=0)
    with structlog.testing.capture_logs() as records:
        if trouble == "error":
            storage.error = OSError()
        else:
            storage.go_on.clear()
        await readiness.failed()
        await readiness.failed()
        storage.error = None
        storage.go_on.set()
        await readiness.failed()
        await readiness.failed()
    told = [(record["event"], record["check"]) for record in records]
    assert told == [("readiness_lost", "storage"), ("readiness_regained", "storage")]


async def test_many_probes_are_one_look():
    """Probes within the cache's time, also at the same moment, ask the dependency once."""
    storage = Dependency()
    readiness = Readiness({"storage": storage}, cache_seconds=60)
    assert await asyncio.gather(*(readiness.failed() for _ in range(20))) == [{}] * 20
    assert storage.looks == 1


async def test_m2_the_gauge_of_readiness_follows_what_readyz_would_say(monkeypatch):
    """The gauge is 1 from the start, 0 while a check fails or cannot be told, and 1 again afterwards."""
    monkeypatch.setattr(ops, "LOOK_SECONDS", 0)
    answers: list[dict[str, str] | Exception] = [{"storage": "error"}, OSError("unexpected"), {}]
    seen: list[bool] = []

    async def failed() -> dict[str, str]:
        if not answers:
            await asyncio.Event().wait()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    task = asyncio.create_task(ops.watch_readiness(failed, lambda: False, seen.append))
    while len(seen) < 4:
        await asyncio.sleep(0)
    task.cancel()
    assert seen == [True, False, False, True]


async def test_the_gauge_of_readiness_is_0_while_stopping():
    """A service that drains is not ready, and nobody is asked."""
    seen: list[bool] = []
    storage = Dependency()
    readiness = Readiness({"storage": storage})
    task = asyncio.create_task(ops.watch_readiness(readiness.failed, lambda: True, seen.append))
    while not seen:
        await asyncio.sleep(0)
    task.cancel()
    assert (seen, storage.looks) == ([False], 0)


async def test_a_check_at_work_ends_before_the_service_does():
    """What a check has opened is closed again: it is not cut off while it goes on."""
    go_on, ended = asyncio.Event(), asyncio.Event()

    async def check():
        await go_on.wait()
        ended.set()

    readiness = Readiness({"storage": check}, check_seconds=0.01)
    assert await readiness.failed() == {"storage": "timeout"}
    asyncio.get_running_loop().call_soon(go_on.set)
    await readiness.close()
    assert ended.is_set()
