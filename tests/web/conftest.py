"""Fixtures of the web tests: one service for tests that change nothing about it."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from aiohttp import web_app

from service import at_once, janitor, logs, room, uploads
from tests.scanners.double import Double
from tests.web.harness import FakeClock, Site, site
from tests.web.sweeps import succeeded
from tests.web.under_way import SteppedClock, until


@pytest.fixture(autouse=True)
def _plain_tracebacks() -> Iterator[None]:
    """As the service's own logging: structlog's default asks the disk for each frame of a traceback, which blocks."""
    before = structlog.get_config()
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before["processors"][:-1], plain])
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def _forgotten_services() -> Iterator[None]:
    """aiohttp remembers the last thousand applications, each with a whole service: soon no collection is quick."""
    yield
    web_app._cached_build_middleware.cache_clear()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    """A running service with default settings, on this machine's clock."""
    async with site(tmp_path) as running:
        yield running


@pytest.fixture
async def later(tmp_path: Path) -> AsyncIterator[Site]:
    """A running service whose clock the test moves: `later.clock.forward(seconds)`."""
    async with site(tmp_path, clock=FakeClock()) as running:
        yield running


@pytest.fixture(autouse=True)
def _room_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that fills the disk means at once."""
    monkeypatch.setattr(room, "_KNOWN_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _marks_go_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test waits for them after each small file."""
    monkeypatch.setattr(at_once, "_MARKS_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _finals_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that joins finds the file, however slow the machine is; those of a slow join say so."""
    monkeypatch.setattr(uploads, "FINAL_PATIENCE_SECONDS", 30.0)


@pytest.fixture(autouse=True)
def _sweeps_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sweep of a service succeeds, and not the next one, which would be a day later; slow ones say so."""
    monkeypatch.setattr(janitor, "_PATIENCE_SECONDS", 30.0)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that is logged while the test runs, as the service writes it."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    # else the loggers of modules would keep the stream
    structlog.configure(cache_logger_on_first_use=False)
    yield stream
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
async def clamd() -> AsyncIterator[Double]:
    """A scanner that works, until a test says otherwise."""
    async with Double().serving() as double:
        yield double


@pytest.fixture
async def swept(tmp_path: Path, log: io.StringIO) -> AsyncIterator[Site]:
    """A service whose first sweep is over and whose next one the test makes."""
    async with site(tmp_path, clock=SteppedClock(), tombstone="2h", upload_idle="1h") as running:
        await until(lambda: succeeded(running) > 0)
        yield running
