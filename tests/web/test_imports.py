"""What a service has in memory that it does not need: nothing that its settings do not ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: a service as `attachd serve` has it, asked for what it is asked for all the time; tells what it has imported
SERVES = """
import asyncio, sys
import service.commands.serve
from service.runtime import running
from service.settings import load

async def main(data):
    settings = load({
        "ATTACHD_DATA": data, "ATTACHD_LISTEN": "127.0.0.1:0", "ATTACHD_OPS_LISTEN": "127.0.0.1:0",
        "ATTACHD_LOG_LEVEL": "error",
    }, None, "")
    async with running(settings) as here:
        assert not await here.readiness.failed()
        here.metrics.render()
        await here.janitor.sweep()
    print(*sys.modules)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What the process of a service on a new directory of a disk has imported."""
    data = tmp_path_factory.mktemp("imports") / "data"
    command = [sys.executable, "-c", SERVES, str(data)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=50)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("boto3", id="boto3: only with a bucket"),
        pytest.param("botocore", id="botocore: only with a bucket"),
        pytest.param("alembic", id="alembic: only for a database of an earlier version"),
        pytest.param("sqlalchemy.dialects.postgresql", id="postgresql: only where that is the database"),
        pytest.param("opentelemetry", id="opentelemetry: only with a collector"),
        pytest.param("requests", id="requests: only in a client's commands"),
        pytest.param("tusclient", id="tusclient: only in a client's commands"),
    ],
)
def test_a_service_on_a_disk_does_without(imported: set[str], name: str) -> None:
    """What only other settings or commands need is not imported, from the first start on."""
    assert "service.storage.filesystem" in imported
    assert name not in imported


def test_a_service_needs_what_it_is_made_of(imported: set[str]) -> None:
    """The process that the others are held against has served."""
    assert {"aiohttp", "sqlalchemy.dialects.sqlite", "service.janitor", "service.workers.nursery"} <= imported
