"""SIGKILL between a change and the delivery of its event, at every step of both (lesson V1).

ATTACHD_TEST_EVENT_KILLS=100 pytest tests/e2e/test_event_kills.py -s
"""

from __future__ import annotations

import os
import signal
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.killing import Client
from tests.e2e.lines import create, finish, until
from tests.e2e.listening import assert_agrees, assert_told, backend
from tests.e2e.process import ServiceProcess
from tests.e2e.s3_service import KillableService, Nursery
from tests.e2e.test_disk_kills import Disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS: Final = int(os.environ.get("ATTACHD_TEST_EVENT_KILLS", "22"))
#: of the changes that are told of, and of what their delivery records
POINTS: Final = (
    "before create_upload 1", "after create_upload 1", "before take_in 1", "after take_in 1", "before settle 1",
    "after settle 1", "before publish 1", "after publish 1", "after take_in 2", "after settle 2", "after delete_file 1",
    "before end_upload 1", "after end_upload 1", "after settle 3", "in delivery 1", "in delivery 2", "in delivery 3",
)  # fmt: skip
SETTINGS: Final = {"ATTACHD_SWEEP_INTERVAL": "1s", "ATTACHD_BLOCK_SIZE": "64KiB"}


def live(client: Client) -> None:
    """An upload is made, filled and removed, however often the service dies meanwhile."""
    answer = client.surely("POST", client.service.mint_upload(), Upload_Length="5")
    assert answer.status == 201, answer
    url = answer.headers["Location"]
    octets = "application/offset+octet-stream"
    while (answer := client.surely("PATCH", url, b"hello", Upload_Offset="0", Content_Type=octets)).status != 204:
        if client.surely("HEAD", url).headers["Upload-Offset"] == "5":
            break
        time.sleep(0.02)
    while client.surely("DELETE", url).status not in (204, 404, 410):
        time.sleep(0.02)


def test_V1_kills_between_commit_and_delivery(tmp_path: Path) -> None:
    """V1: Wherever the service dies, every event comes, in order per file, and none of what did not happen."""
    with backend() as chat, Nursery() as nursery:
        settings = SETTINGS | {"ATTACHD_CONFIG": chat.settings_file(tmp_path)}
        with KillableService(tmp_path / "service", nursery, settings) as service:
            client = Client(service, Disk(), str(service.data))
            kills = 0
            for point in islice(cycle(POINTS), KILLS):
                number = int(point.rsplit(" ", 1)[1]) if point.startswith("in delivery") else 0
                came = len(chat.got)

                def die(_: dict[str, Any], at: str = point, when: int = came + number, dies: bool = number > 0) -> None:
                    if dies and len(chat.got) == when:
                        service.die(at)

                chat.before = die
                before = client.deaths
                with service.ordered(point):
                    live(client)
                    deadline = time.monotonic() + 20
                    while not (service.died() or client.deaths > before) and time.monotonic() < deadline:
                        time.sleep(0.01)
                    if service.died():
                        client.revive()
                kills += client.deaths > before
                client.deaths = before
            chat.before = lambda _: None
            count = assert_told(chat, service.data)
            assert_agrees(service.data)
            print(f"\n{kills} kills at {len(POINTS)} points: {count} events, {len(chat.got)} messages")
            assert kills >= 0.9 * KILLS


def test_V1_workers_are_killed(tmp_path: Path) -> None:
    """V1: Of two workers on one database either may be killed at any time: all events come, by whoever is left."""
    rounds = max(3, KILLS // 5)
    with backend() as chat:
        settings = SETTINGS | {"ATTACHD_CONFIG": chat.settings_file(tmp_path), "ATTACHD_WORKERS": "2"}
        with ServiceProcess(tmp_path / "service", **settings) as service:
            for number in range(rounds):
                for _ in range(5):
                    finish(service, create(service, 5), b"hello")
                victims = service.workers()
                os.kill(victims[number % 2], signal.SIGKILL)
                deadline = time.monotonic() + 30
                while len(set(service.workers().values()) - {victims[number % 2]}) < 2:
                    assert time.monotonic() < deadline, service.log_tail()
                    time.sleep(0.02)
                service.wait_ready()
            count = assert_told(chat, service.data)
            assert_agrees(service.data)
            print(f"\n{rounds} workers killed: {count} events, {len(chat.got)} messages")
            assert count == rounds * 10
            # what the killed ones counted is counted
            assert service.metrics()['attachd_webhook_deliveries_total{endpoint="chat",result="ok"}'] >= count
            until(lambda: service.metrics()['attachd_outbox_pending{endpoint="chat"}'] == 0, "the backlog is counted")
