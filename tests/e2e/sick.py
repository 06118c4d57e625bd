"""`attachd` with a disk that can be held up and deadlines that come soon.

    python -m tests.e2e.sick serve

takes the settings of the service, and from `SICK` a JSON object: `hurry`, by which the fixed
deadlines are divided (those of heads and answers, and the time over which the rate of a body is
measured), and `held`, a path: while there is a file, each write of a byte to storage waits.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from service import cli, runtime
from service.web import deadlines, pace
from tests.e2e.process import ServiceProcess


class SickProcess(ServiceProcess):
    """See the module."""

    module = "tests.e2e.sick"

    def __init__(self, directory: Path, *, hurry: float = 1, **settings: str) -> None:
        super().__init__(directory, **settings)
        self.held = directory / "held"
        self._hurry = hurry

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"SICK": json.dumps({"hurry": self._hurry, "held": str(self.held)})}

    def hold_up_disk(self) -> None:
        self.held.touch()

    def let_disk_go(self) -> None:
        self.held.unlink()


def _hurry(by: float) -> None:
    deadlines.HEAD_SECONDS /= by  # type: ignore[misc]
    deadlines.ANSWER_SECONDS /= by  # type: ignore[misc]
    runtime._DATABASE_SECONDS /= by  # type: ignore[misc]
    rules: Any = pace.PaceRules.__init__
    rules.__defaults__ = tuple(seconds / by for seconds in rules.__defaults__)


def _hold_up(held: Path) -> None:
    pwrite = os.pwrite

    def wait_and_write(fd: int, data: memoryview, at: int) -> int:
        while held.exists():
            time.sleep(0.01)
        return pwrite(fd, data, at)

    os.pwrite = wait_and_write  # type: ignore[assignment]


if __name__ == "__main__":
    orders = json.loads(os.environ.pop("SICK"))
    _hurry(orders["hurry"])
    _hold_up(Path(orders["held"]))
    cli.main()
