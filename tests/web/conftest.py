"""Fixtures of the web tests: one service for tests that change nothing about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.web.harness import FakeClock, Site, site


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
