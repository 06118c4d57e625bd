"""Thirty clients that go on while workers, or all processes, are killed at random moments again and again.

ATTACHD_TEST_ROUNDS=100 pytest tests/e2e/test_fire.py -s
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.lines import until
from tests.e2e.process import ServiceProcess
from tests.e2e.senders import KIB, Senders

ROUNDS: Final = int(os.environ.get("ATTACHD_TEST_ROUNDS", "6"))
CLIENTS: Final = 30
MIB: Final = 2**20


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_L4_kills_lose_no_acknowledged_byte(tmp_path: Path) -> None:
    """Whoever is killed, and when: no offset falls below one that was told, and every file is the one that was sent."""
    chance = random.Random(ROUNDS)
    killed = {"one worker": 0, "all": 0}
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as service:
        clients = Senders(service, CLIENTS, file_bytes=2 * MIB, chunk_bytes=256 * KIB, seed=ROUNDS)
        with clients.sending():
            for _ in range(ROUNDS):
                clients.wait_for(chance.randint(1, 16 * MIB))
                if chance.random() < 0.6:
                    killed["one worker"] += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(list(service.workers().values())), signal.SIGKILL)
                    until(lambda: len(service.workers()) == 2, "the worker is replaced")
                else:
                    killed["all"] += 1
                    service.restart()
            clients.wait_for(1)
        # the last answer is out a moment before its request is over
        until(lambda: service.metrics()['attachd_transfers_in_flight{direction="in"}'] == 0, "all transfers are over")
    print(
        f"\n{ROUNDS} rounds, {killed}: {clients.files} files, {clients.acknowledged / MIB:.0f} MiB, {clients.answers}",
        file=sys.stderr,
    )
