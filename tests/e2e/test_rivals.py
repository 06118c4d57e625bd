"""Clients that fight over one upload: each cuts the others off, none gives up, and the upload gets done."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from service.leases import TURN_SECONDS
from tests.e2e.lines import Answer, Line, ask, create, download, patch
from tests.e2e.process import ServiceProcess

KIB: Final = 2**10
CONTENT: Final = os.urandom(3 * 2**20)
PIECE: Final = 32 * KIB
#: a client of 1.6 MB/s
PACE_SECONDS: Final = 0.02
#: far more than it takes, with the time between a cut and the next request
PATIENCE: Final = 120.0


def pour(line: Line, url: str, offset: int) -> Answer | None:
    """Sends the rest at its own pace until it is answered; None where the connection ended instead."""
    try:
        line.send(patch(url, offset, len(CONTENT) - offset))
        for start in range(offset, len(CONTENT), PIECE):
            line.send(CONTENT[start : start + PIECE])
            if select.select([line.socket], [], [], PACE_SECONDS)[0]:
                break
        return line.answer()
    except ConnectionError:
        return None


class Rivals:
    """What the clients were told, together."""

    def __init__(self, service: ServiceProcess, url: str) -> None:
        self._service = service
        self._url = url
        self._lock = threading.Lock()
        #: the highest offset that anybody was told
        self.told = 0
        self.patches = 0

    def send(self) -> None:
        """One of them: asks where to go on, goes on, and comes again at once when it is cut off."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            before = self.told
            asked = ask(self._service, "HEAD", self._url)
            assert asked.status in (200, 423), asked
            if asked.status == 423:
                continue
            self._hear(asked.offset, before)
            if asked.offset == len(CONTENT):
                return
            before = self.told
            with Line(self._service.address) as line:
                answer = pour(line, self._url, asked.offset)
            self.patches += 1
            if answer is not None:
                assert answer.status in (204, 409, 423), answer
                if answer.status == 204:
                    self._hear(answer.offset, before)
        raise AssertionError(f"not done after {self.patches} requests: {self.told} bytes")

    def _hear(self, offset: int, before: int) -> None:
        assert offset >= before, "an offset fell"
        with self._lock:
            self.told = max(self.told, offset)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("clients", "workers"), [(2, "1"), (2, "2"), (3, "2")])
def test_T_0D1_rivals_get_done(tmp_path: Path, clients: int, workers: str) -> None:
    """Whoever has just begun gets on before it makes way, so they take turns and not only take over."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS=workers) as service:
        url = create(service, len(CONTENT))
        rivals = Rivals(service, url)
        began = time.monotonic()
        with ThreadPoolExecutor(clients) as threads:
            for client in [threads.submit(rivals.send) for _ in range(clients)]:
                client.result()
        seconds = time.monotonic() - began
        assert download(service, url) == CONTENT
        taken = service.metrics()["attachd_lock_takeovers_total"]
    # a turn may be shorter by a beat where another process asks
    assert taken <= 2 * seconds / TURN_SECONDS + clients
    print(
        f"\n{clients} clients, {workers} workers: {seconds:.1f} s, {taken:.0f} take-overs, {rivals.patches} requests",
        file=sys.stderr,
    )
