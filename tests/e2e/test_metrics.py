"""What Prometheus sees of two workers, while things go on and after they went wrong."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.e2e.process import ServiceProcess
from tests.e2e.working import IN_FLIGHT, OCTETS, ask, begin, create, store, until

RECEIVED: Final = 'attachd_upload_bytes_received_total{protocol="tus"}'
COMMITTED: Final = 'attachd_upload_bytes_committed_total{protocol="tus"}'


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of two workers that sweeps every second."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2", ATTACHD_SWEEP_INTERVAL="1s") as running:
        yield running


def ledger(service: ServiceProcess) -> tuple[int, int]:
    """How many uploads are open and how many files there are, as the database has it."""
    with closing(sqlite3.connect(service.data / "attachd.db")) as database:
        opened = "SELECT count(*) FROM uploads WHERE state IN ('receiving', 'finishing')"
        return database.execute(opened).fetchone()[0], database.execute("SELECT count(*) FROM files").fetchone()[0]


def test_m1_gauges_equal_the_ledger_after_kill_and_delete(service: ServiceProcess) -> None:
    """What is open and stored is counted in the database, so neither a dead worker nor a deletion is miscounted."""
    store(service, b"hello")
    deleted, kept = create(service, 5), create(service, 300_000)
    line, holder = begin(service, kept, 300_000, b"x" * 100_000)
    with line:
        os.kill(holder, signal.SIGKILL)
        # connections that were waiting for it are reset
        until(lambda: holder not in service.workers().values() and len(service.workers()) == 2)
        until(lambda: service.metrics()[IN_FLIGHT] == 0)
        assert ask(service, "DELETE", deleted).status == 204
    assert ledger(service) == (1, 1)
    until(lambda: (service.metrics()["attachd_uploads_open"], service.metrics()["attachd_files"]) == (1, 1))
    assert ask(service, "DELETE", kept).status == 204
    assert ledger(service) == (0, 1)
    until(lambda: (service.metrics()["attachd_uploads_open"], service.metrics()["attachd_files"]) == (0, 1))


def test_m3_scrapes_move_while_a_body_comes(service: ServiceProcess) -> None:
    """Bytes are counted as they come and as they are committed, hours before the request may end."""
    upload = create(service, 300_000)
    line, _ = begin(service, upload, 300_000, b"x" * 100_000)
    with line:
        until(lambda: service.metrics()[RECEIVED] == 100_000)
        line.sendall(b"x" * 100_000)
        # commits come with bytes, a second after the one before or later
        until(lambda: service.metrics()[RECEIVED] == 200_000)
        more = 0

        def committed() -> bool:
            nonlocal more
            line.sendall(b"x")
            more += 1
            return service.metrics()[COMMITTED] >= 200_000

        until(committed)
        assert service.metrics()[IN_FLIGHT] == 1
        assert service.metrics()[RECEIVED] <= 200_000 + more


def test_m3_waste_is_what_had_to_be_sent_again(service: ServiceProcess) -> None:
    """Of a body with a checksum a cut keeps nothing: received less committed is what came before the cut."""
    content = os.urandom(100_000)
    upload = create(service, len(content))
    claim = f"sha1 {base64.b64encode(hashlib.sha1(content).digest()).decode()}"
    with socket.create_connection(service.address, timeout=30) as line:
        head = (
            f"PATCH {urlsplit(upload).path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Content-Type: {OCTETS}\r\nUpload-Checksum: {claim}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        line.sendall(head.encode() + content[:40_000])
        until(lambda: service.metrics()[RECEIVED] == 40_000)
    until(lambda: service.metrics()[IN_FLIGHT] == 0)
    assert service.metrics()[COMMITTED] == 0
    answer = ask(service, "PATCH", upload, content, Upload_Offset="0", Content_Type=OCTETS, Upload_Checksum=claim)
    assert answer.status == 204
    seen = service.metrics()
    assert (seen[RECEIVED], seen[COMMITTED]) == (140_000, 100_000)
