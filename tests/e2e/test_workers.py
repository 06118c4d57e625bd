"""Several processes that are one service: whichever dies, the others and the supervisor make up for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.process import ROOT, START_LIMIT, ServiceProcess
from tests.e2e.working import (
    IN_FLIGHT,
    OCTETS,
    PATIENCE,
    ask,
    begin,
    create,
    downloading,
    left_of,
    line_to,
    resume,
    store,
    until,
)
from tests.volumes import small_volume

#: a service whose supervisor waits six seconds for a sign of life
IMPATIENT = "import service.workers.supervisor as s; s._STUCK_BEATS = 6; from service.cli import main; main()"
#: one whose supervisor waits eight seconds for a start, which hangs while there is a file
HANGING = """
import asyncio, contextlib, os, service.workers.supervisor as s, service.workers.worker as w
s._START_BEATS, running = 8, w.running
@contextlib.asynccontextmanager
async def hanging(*args, **named):
    while os.path.exists({mark!r}):
        await asyncio.sleep(0.05)
    async with running(*args, **named) as service:
        yield service
w.running = hanging
from service.cli import main; main()
"""
#: one whose nursery has no process to give while there is a file
CROWDED = """
import errno, os, service.workers.nursery as n
fork = os.fork
def crowded():
    if os.path.exists({mark!r}):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
n.os.fork = crowded
from service.cli import main; main()
"""
#: one whose workers speak nonsense, when they are asked how they are, while there is a file
ODD = """
import os, service.workers.worker as w
check = w._check
async def odd(service, channel):
    if os.path.exists({mark!r}):
        channel.tell("checked")
    else:
        await check(service, channel)
w._check = odd
from service.cli import main; main()
"""
#: one that loses its nursery as soon as it wants a worker of it
BEREAVED = """
import os, signal, service.workers.nursery as n
def gone(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
n._bear = gone
from service.cli import main; main()
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of two workers."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as running:
        yield running


def test_all_workers_serve_and_are_counted_as_one(service: ServiceProcess) -> None:
    """Connections come to both workers, and what `/metrics` counts is what both of them answered."""
    seen: set[int] = set()
    count = 0
    while len(seen) < 2 and count < 500:
        with line_to(service) as line:
            line.request("OPTIONS", "/files")
            assert line.getresponse().status == 200
            seen.add(service.worker_of(line.sock))
        count += 1
    assert seen == set(service.workers().values())
    samples = service.metrics()
    assert samples['attachd_http_requests_total{code="200",method="OPTIONS",route="/files"}'] == count
    assert samples["attachd_workers"] == 2
    assert samples["attachd_buffer_limit_bytes"] == 2 * 256 * 2**20


@pytest.mark.alone
def test_L4_a_dead_worker_leaves_its_uploads_free_at_once(service: ServiceProcess) -> None:
    """The upload that a killed worker held goes on long before its lease would have run out; no byte is lost."""
    content = os.urandom(300_000)
    upload = create(service, len(content))
    line, holder = begin(service, upload, len(content), content[:100_000])
    with line:
        killed_at = time.monotonic()
        os.kill(holder, signal.SIGKILL)
        until(lambda: holder not in service.workers().values() and len(service.workers()) == 2)
        until(lambda: ask(service, "HEAD", upload).status == 200)
        until(lambda: resume(service, upload, content).status == 204)
    assert service.status(upload)["state"] == "ready"
    # the term of a lease is ten seconds
    assert time.monotonic() - killed_at < 9
    assert service.metrics()["attachd_worker_deaths_total"] == 1
    until(lambda: service.metrics()[IN_FLIGHT] == 0)


def test_counters_do_not_fall_with_a_worker(service: ServiceProcess) -> None:
    """What a worker counted before it died is still counted when it has been replaced."""
    for _ in range(20):
        assert ask(service, "POST", service.mint_upload(), Upload_Length="5").status == 201
    for pid in service.workers().values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: service.metrics()["attachd_worker_deaths_total"] == 2 and service.metrics()["attachd_workers"] == 2)
    assert service.metrics()['attachd_uploads_created_total{protocol="tus"}'] == 20
    assert ask(service, "POST", service.mint_upload(), Upload_Length="5").status == 201
    assert service.metrics()['attachd_uploads_created_total{protocol="tus"}'] == 21


def test_a_worker_that_is_told_to_end_is_replaced(service: ServiceProcess) -> None:
    """SIGTERM to one worker drains it; the service goes on with another one in its place."""
    before = service.workers()
    os.kill(before[0], signal.SIGTERM)
    until(lambda: service.workers().get(0) not in (None, before[0]))
    until(lambda: service.metrics()["attachd_workers"] == 2)
    assert service.workers()[1] == before[1]


def test_a_worker_for_which_there_is_no_process_comes_later(tmp_path: Path) -> None:
    """A fork that fails is tried again; meanwhile the other worker serves."""
    service = ServiceProcess(tmp_path, ATTACHD_WORKERS="2")
    service.command = [sys.executable, "-c", CROWDED.format(mark=str(tmp_path / "full")), "serve"]
    with service:
        (tmp_path / "full").touch()
        os.kill(service.workers()[1], signal.SIGKILL)
        until(lambda: service.log_path.read_text().count("worker_not_made") >= 2)
        assert create(service, 5)
        assert service.metrics()["attachd_workers"] == 1
        (tmp_path / "full").unlink()
        until(lambda: service.metrics()["attachd_workers"] == 2)
    assert "resource temporarily unavailable" in service.log_path.read_text()


def test_a_start_without_a_nursery_is_none(tmp_path: Path) -> None:
    """It ends with 1 and says why, whatever the workers that it was to have."""
    service = ServiceProcess(tmp_path, ATTACHD_WORKERS="2")
    done = subprocess.run(
        [sys.executable, "-c", BEREAVED, "serve"],
        cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=START_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nursery_lost" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stuck_worker_is_replaced(tmp_path: Path) -> None:
    """One that gives no sign of life is killed, since new connections still go to it."""
    service = ServiceProcess(tmp_path, ATTACHD_WORKERS="2")
    service.command = [sys.executable, "-c", IMPATIENT, "serve"]
    with service:
        stopped = service.workers()[1]
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: service.workers().get(1) not in (None, stopped))
        until(lambda: service.metrics()["attachd_workers"] == 2)
    assert "worker_stuck" in service.log_path.read_text()


def test_a_worker_that_ends_in_a_way_without_a_name_is_replaced(service: ServiceProcess) -> None:
    """Whatever becomes of a worker, its place is filled again."""
    pid = service.workers()[1]
    os.kill(pid, signal.SIGRTMIN + 6)
    until(lambda: service.workers().get(1) not in (None, pid))
    until(lambda: service.metrics()["attachd_workers"] == 2)
    assert f"signal {signal.SIGRTMIN + 6}" in service.log_path.read_text()


def test_workers_that_are_all_told_to_end_go_one_by_one(service: ServiceProcess) -> None:
    """There is one for new connections at every moment, though the others take their time."""
    content = os.urandom(8 * 2**20)
    link = store(service, content)
    before = service.workers()
    with contextlib.ExitStack() as stack:
        busy: set[int] = set()
        while len(busy) < 2:
            slow, _ = stack.enter_context(downloading(service, link))
            busy.add(service.worker_of(slow))
        for pid in before.values():
            os.kill(pid, signal.SIGTERM)
        until(lambda: "service_draining" in service.log_path.read_text())
        for _ in range(50):
            assert create(service, 5)
        assert service.log_path.read_text().count("service_draining") == 1
    until(lambda: set(service.workers().values()).isdisjoint(before.values()) and len(service.workers()) == 2)
    assert "worker_died" not in service.log_path.read_text()


def replaced(service: ServiceProcess, number: int) -> None:
    """That worker has been killed, and another one serves in its place."""
    pid = service.workers()[number]
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in service.workers().values() and service.metrics()["attachd_workers"] == 2)


def test_D5_a_worker_is_replaced_on_a_full_disk(tmp_path: Path) -> None:
    """Others have filled it: what is stored can be read, and every offset be asked for, by the new worker too."""
    with small_volume(tmp_path / "volume", "96m") as volume:
        service = ServiceProcess(volume / "service", ATTACHD_WORKERS="2")
        service.log_path = tmp_path / "service.log"
        with service:
            content = os.urandom(300_000)
            made = ask(
                service, "POST", service.mint_upload(), content, Upload_Length=str(len(content)), Content_Type=OCTETS
            )
            unfinished = create(service, 5)
            with contextlib.suppress(OSError), (volume / "others").open("wb", buffering=0) as filling:
                while True:
                    filling.write(bytes(2**16))
            for number in (0, 1):
                replaced(service, number)
            for _ in range(10):
                assert ask(service, "HEAD", unfinished).status == 200
                with urllib.request.urlopen(service.mint_download(made.headers["Attachd-File-Id"])) as fetched:
                    assert fetched.read() == content
            (volume / "others").unlink()
            until(lambda: ask(service, "POST", service.mint_upload(), Upload_Length="5").status == 201)


def test_a_worker_that_speaks_nonsense_is_replaced(tmp_path: Path) -> None:
    """It is ended before another one gets its number; the word of its like does not end the service."""
    service = ServiceProcess(tmp_path, ATTACHD_WORKERS="2")
    service.command = [sys.executable, "-c", ODD.format(mark=str(tmp_path / "odd")), "serve"]
    with service:
        before = set(service.workers().values())
        (tmp_path / "odd").touch()

        def misheard() -> bool:
            # whoever asks is answered as soon as one of them is not understood
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(f"{service.ops_url}/readyz", timeout=PATIENCE).close()
            return service.log_path.read_text().count("worker_misheard") >= 2

        until(misheard)
        (tmp_path / "odd").unlink()
        until(lambda: service.metrics()["attachd_workers"] == 2)
        assert before.isdisjoint(service.workers().values())
        service.wait_ready()


def test_a_worker_whose_start_hangs_is_replaced(tmp_path: Path) -> None:
    """One that comes to life and never serves is killed in the end; its successor serves."""
    service = ServiceProcess(tmp_path, ATTACHD_WORKERS="2")
    service.command = [sys.executable, "-c", HANGING.format(mark=str(tmp_path / "hang")), "serve"]
    with service:
        (tmp_path / "hang").touch()
        os.kill(service.workers()[1], signal.SIGKILL)
        until(lambda: '"event": "worker_stuck"' in service.log_path.read_text())
        (tmp_path / "hang").unlink()
        until(lambda: service.metrics()["attachd_workers"] == 2)


def test_a_worker_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """A stop does not wait for a stuck worker longer than it said; the exit code tells, and no process is left."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2", ATTACHD_GRACE="1s") as service:
        os.kill(service.workers()[1], signal.SIGSTOP)
        assert service.terminate() == 1
        until(lambda: not service.pids())
    assert "stop_forced" in service.log_path.read_text()


def test_a_stuck_worker_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    """It would keep the port, and take connections that nobody serves."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2", ATTACHD_GRACE="1s") as service:
        os.kill(service.workers()[1], signal.SIGSTOP)
        os.kill(service.pid, signal.SIGKILL)
        until(lambda: not service.pids())


def test_workers_end_with_their_supervisor(service: ServiceProcess) -> None:
    """A killed supervisor leaves no worker behind, and the next start finds the address free."""
    os.kill(service.pid, signal.SIGKILL)
    until(lambda: not service.workers())
    service.restart()
    assert len(service.workers()) == 2


def test_a_service_without_a_nursery_ends_and_says_so(service: ServiceProcess) -> None:
    """When no worker can be replaced any more the service drains and fails, for whatever looks after it."""
    workers = service.workers()
    (nursery,) = set(service.pids()) - {service.pid} - set(workers.values())
    os.kill(nursery, signal.SIGKILL)
    os.kill(workers[0], signal.SIGKILL)
    assert service.wait() == 1
    assert "nursery_lost" in service.log_path.read_text()
    until(lambda: not service.pids())


def test_a_stop_takes_all_with_it(service: ServiceProcess) -> None:
    """SIGTERM to the supervisor ends every process, with 0, and leaves nothing of the run in the directory."""
    assert service.terminate() == 0
    until(lambda: not service.pids())
    assert left_of(service) == []


def test_a_second_signal_ends_all_at_once(service: ServiceProcess) -> None:
    """A second SIGTERM does not wait for the download that the first one waits for; no process is left."""
    content = os.urandom(8 * 2**20)
    link = store(service, content)
    with downloading(service, link):
        until(lambda: service.metrics()['attachd_transfers_in_flight{direction="out"}'] == 1)
        os.kill(service.pid, signal.SIGTERM)
        until(lambda: service.log_path.read_text().count("service_draining") == 3)
        while service.running:
            os.kill(service.pid, signal.SIGTERM)
            time.sleep(0.1)
        assert service.wait() == 1
        until(lambda: not service.pids())
    assert "stop_forced" not in service.log_path.read_text()


def test_a_worker_that_cannot_start_ends_the_start(tmp_path: Path) -> None:
    """The one line that it says is the service's, with exit code 1, and no process is left."""
    service = ServiceProcess(tmp_path, ATTACHD_WORKERS="3")
    service.data.mkdir()
    (service.data / "files").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=START_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    said = [text for text in done.stderr.splitlines() if not text.startswith("{")]
    assert len(said) == 1
    assert said[0].startswith("Error: ATTACHD_DATA: ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_directory_for_counts_in_the_environment_is_not_used(tmp_path: Path, workers: str) -> None:
    """It is of another program of the operator's."""
    with ServiceProcess(
        tmp_path, ATTACHD_WORKERS=workers, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "counts")
    ) as service:
        assert create(service, 5)
        assert service.metrics()['attachd_uploads_created_total{protocol="tus"}'] == 1
    assert not (tmp_path / "counts").exists()


def test_workers_share_a_unix_socket(tmp_path: Path) -> None:
    """A public address that is a Unix socket is served by all workers, and is gone after the end."""
    path = tmp_path / "public.sock"
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2", ATTACHD_LISTEN=f"unix:{path}") as service:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(PATIENCE)
                line.connect(str(path))
                line.sendall(b"OPTIONS /files HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert line.recv(100).startswith(b"HTTP/1.1 200 ")
        assert service.metrics()['attachd_http_requests_total{code="200",method="OPTIONS",route="/files"}'] == 20
        assert service.terminate() == 0
        assert not path.exists()
