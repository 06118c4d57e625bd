"""Two services at once: one that takes the place of the other, one that comes by mistake, one after a kill."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.process import ROOT, START_LIMIT, ServiceProcess
from tests.e2e.working import (
    create,
    downloading,
    listens,
    resume,
    store,
    until,
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of two workers."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as running:
        yield running


def test_L4_a_start_beside_what_a_killed_supervisor_left(service: ServiceProcess) -> None:
    """The next start does not wait for a worker that still sends a download, and takes nothing of it away."""
    content = os.urandom(32 * 2**20)
    link = store(service, content)
    with downloading(service, link, window=2**16) as (slow, came):
        got = bytearray(came)
        killed, old = service.pid, service.pids()
        os.kill(killed, signal.SIGKILL)
        service.wait()
        service.start()
        try:
            assert service.metrics()["attachd_workers"] == 2
            while data := slow.recv(2**20):
                got += data
            assert bytes(got).partition(b"\r\n\r\n")[2] == content
            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in old if pid != killed))
        finally:
            for pid in old:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_second_service_is_refused_unless_it_says_why_it_comes(service: ServiceProcess) -> None:
    """Without --beside a start on the same directory ends with a line that names both ways out."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=START_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "another attachd runs on it; stop that one first, or take its place with --beside" in done.stderr
    assert service.metrics()["attachd_workers"] == 2


def test_an_address_of_another_directory_is_refused(service: ServiceProcess, tmp_path: Path) -> None:
    """Ports are shared within a service only: another one on the same port does not start."""
    other = ServiceProcess(tmp_path / "other", ATTACHD_WORKERS="2")
    other.directory.mkdir()
    other.port = service.port
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        cwd=ROOT, env=other.environment, capture_output=True, text=True, timeout=START_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"ATTACHD_LISTEN: cannot listen on 127.0.0.1:{service.port}: address already in use" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_S1_a_successor_gets_the_new_connections(tmp_path: Path, workers: str) -> None:
    """From the moment the first service is told to stop every connection goes to the one started beside it."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS=workers, ATTACHD_GRACE="20s") as first:
        content = os.urandom(200_000)
        upload = create(first, len(content))
        second = first.successor()
        with second:
            # an answer may be of either: both have to be there
            until(lambda: "service_started" in second.log_path.read_text())
            os.kill(first.pid, signal.SIGTERM)
            until(lambda: '"succeeded": true' in first.log_path.read_text())
            until(lambda: not first.pids())
            assert resume(second, upload, content).status == 204
            assert second.status(upload)["state"] == "ready"
            assert second.terminate() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_S1_a_signal_to_the_whole_group_is_one_to_the_service(tmp_path: Path, workers: str) -> None:
    """Workers that hear of it before their supervisor does leave new connections to the successor all the same."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS=workers, ATTACHD_GRACE="20s") as first:
        content = os.urandom(8 * 2**20)
        link = store(first, content)
        second = first.successor()
        # of the first one, since the second is not there yet
        with downloading(first, link), second:
            until(lambda: "service_started" in second.log_path.read_text())
            os.killpg(first.pid, signal.SIGTERM)
            drained = 1 if workers == "1" else 3
            until(lambda: first.log_path.read_text().count("service_draining") == drained)
            until(lambda: not any(listens(first, port) for port in (first.port, first.ops_port)))
            second.wait_ready()
            for _ in range(20):
                assert create(second, 10)
            assert first.running


def test_a_successor_that_dies_can_be_started_anew(tmp_path: Path) -> None:
    """As whatever looks after it does: without --beside, while the first one that it replaced still drains."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2", ATTACHD_GRACE="20s") as first:
        content = os.urandom(8 * 2**20)
        link = store(first, content)
        # of the first one, since the second is not there yet
        with downloading(first, link), first.successor() as second:
            until(lambda: "service_started" in second.log_path.read_text())
            os.kill(first.pid, signal.SIGTERM)
            until(lambda: '"succeeded": true' in first.log_path.read_text())
            second.kill()
            second.command.remove("--beside")
            second.start()
            assert create(second, 5)


def test_of_two_services_on_one_port_one_starts(tmp_path: Path) -> None:
    """Also where both begin at the same moment, and neither listens yet."""
    one, other = (ServiceProcess(tmp_path / name, ATTACHD_WORKERS="2") for name in ("one", "other"))
    other.port = one.port
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as threads:
        for service in (one, other):
            stack.callback(service.kill)
        starts = [threads.submit(service.start) for service in (one, other)]
        refused = [str(start.exception()) for start in starts if start.exception() is not None]
        assert len(refused) == 1
        assert "address already in use" in refused[0]
