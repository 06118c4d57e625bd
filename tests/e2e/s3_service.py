"""The service on a bucket of a real store, as a process that can be told where to die.

with Nursery() as nursery, KillableService(tmp_path, nursery, on_bucket(store, bucket)) as service:
    with service.ordered("after upload_part 2"):
        ...
        assert service.died()
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Self, cast

from tests.e2e.process import ROOT, STOP_LIMIT, ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from tests.stores.servers import Store

#: seconds until a service that was ordered to die, and answers no more, must have
_DEATH_SECONDS: Final = 30.0


def on_bucket(store: Store, bucket: str) -> dict[str, str]:
    """Settings of a service that keeps its files there, in parts as small as stores take them."""
    return {
        "ATTACHD_STORAGE": "s3",
        "ATTACHD_S3_BUCKET": bucket,
        "ATTACHD_S3_ENDPOINT": store.endpoint,
        "ATTACHD_S3_REGION": store.region,
        "ATTACHD_S3_ADDRESSING": "path",
        "ATTACHD_S3_PART_SIZE": "5MiB",
        "ATTACHD_BLOCK_SIZE": "1MiB",
        **store.environment(),
    }


class Nursery:
    """The process whose children killable services are. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.killable"],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("ATTACHD_")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, environment: dict[str, str], log: Path) -> int:
        """The process id of a new service."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"environment": environment, "log": str(log)}) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


class _Child:
    """What `ServiceProcess` asks of a Popen, for a process that is another's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return -signal.SIGKILL
        return None

    def wait(self, limit_seconds: float) -> int:
        deadline = time.monotonic() + limit_seconds
        while (ended := self.poll()) is None:
            assert time.monotonic() < deadline, f"{self.pid} does not end"
            time.sleep(0.002)
        return ended


def _pending(points: list[str]) -> bool:
    """Whether a call has begun and not ended."""
    return 2 * sum(point.startswith("before ") for point in points) != len(points)


class KillableService(ServiceProcess):
    """Of the nursery's; `ordered` says where it dies."""

    def __init__(self, directory: Path, nursery: Nursery, settings: dict[str, str]) -> None:
        super().__init__(directory, **settings)
        self._nursery = nursery
        self._order = directory / "order.json"
        self._reached = directory / "none"

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"KILL_ORDER": str(self._order)}

    def start(self) -> None:
        """Ready to serve, without an order."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._order.unlink(missing_ok=True)
        child = _Child(self._nursery.begin(self.environment, self.log_path))
        self._process = cast("subprocess.Popen[bytes]", child)
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def wait_swept(self) -> None:
        """The sweep that comes with a start, which looks for orphans too, has ended well."""
        deadline = time.monotonic() + STOP_LIMIT
        while not self.metrics()["attachd_gc_last_success_timestamp_seconds"]:
            assert time.monotonic() < deadline, self.log_tail()
            time.sleep(0.02)

    @contextlib.contextmanager
    def ordered(self, at: str) -> Iterator[list[str]]:
        """Inside, the service dies at the point named so, if any is; the points, once it is left without a death."""
        reached = self._reached = self.directory / f"points.{secrets.token_hex(4)}"
        reached.touch()
        new = self._order.with_suffix(".new")
        new.write_text(json.dumps({"log": str(reached), "at": at}))
        new.replace(self._order)
        points: list[str] = []
        yield points
        if self._order.exists():
            # what was begun in there may still be going on
            deadline = time.monotonic() + STOP_LIMIT
            while _pending(found := reached.read_text().splitlines()):
                assert time.monotonic() < deadline, found
                time.sleep(0.01)
            self._order.unlink()
            points += found

    def die(self, at: str) -> None:
        """It dies now, which is the point named so."""
        with self._reached.open("a") as reached:
            reached.write(at + "\n")
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)

    def died(self) -> bool:
        """Whether it obeyed; if it is about to, it has when this returns."""
        if self._process is None or not self._order.exists():
            return False
        at = json.loads(self._order.read_text())["at"]
        if at not in self._reached.read_text().splitlines():
            return False
        with contextlib.suppress(AssertionError):
            self._process.wait(_DEATH_SECONDS)
        return self._process.poll() is not None
