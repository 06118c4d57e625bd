"""Several processes that are one service: whichever dies, the others and the supervisor make up for it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.workers.counting import NAME, SHARED_MEMORY, shared_prefix
from tests.e2e.process import ROOT, START_LIMIT, ServiceProcess
from tests.volumes import small_volume

#: far more than anything here takes, on a machine that does other things as well
PATIENCE = 60.0
TUS = {"Tus-Resumable": "1.0.0"}
#: a service whose supervisor waits three seconds for a sign of life
IMPATIENT = "import service.workers.supervisor as s; s._STUCK_BEATS = 3; from service.cli import main; main()"
#: one whose supervisor waits three seconds for a start, which hangs while there is a file
HANGING = """
import asyncio, contextlib, os, service.workers.supervisor as s, service.workers.worker as w
s._START_BEATS, running = 3, w.running
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
#: one that loses its nursery as soon as it wants a worker of it
BEREAVED = """
import os, signal, service.workers.nursery as n
def gone(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
n._bear = gone
from service.cli import main; main()
"""
OCTETS = "application/offset+octet-stream"
IN_FLIGHT = 'attachd_transfers_in_flight{direction="in"}'


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of two workers."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as running:
        yield running


def until(holds: Callable[[], object]) -> None:
    """Returns once it holds; fails the test if that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@contextmanager
def line_to(service: ServiceProcess) -> Iterator[http.client.HTTPConnection]:
    """A connection, closed at the end."""
    line = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    try:
        line.connect()
        yield line
    finally:
        line.close()


def ask(
    service: ServiceProcess, method: str, url: str, body: bytes | None = None, **headers: str
) -> http.client.HTTPResponse:
    """One request on a connection of its own; header names with `_` for `-`."""
    parts = urlsplit(url)
    with line_to(service) as line:
        sent = TUS | {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body, sent)
        answer = line.getresponse()
        answer.read()
        return answer


def create(service: ServiceProcess, length: int) -> str:
    """A new upload; its address."""
    answer = ask(service, "POST", service.mint_upload(), Upload_Length=str(length))
    assert answer.status == 201
    return answer.headers["Location"]


def begin(service: ServiceProcess, upload: str, said: int, sent: bytes) -> tuple[socket.socket, int]:
    """A PATCH that stops in the middle of its body, and which process has the connection."""
    line = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)
    head = (
        f"PATCH {urlsplit(upload).path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        f"Content-Type: {OCTETS}\r\nContent-Length: {said}\r\n\r\n"
    )
    line.sendall(head.encode() + sent)
    until(lambda: service.metrics()[IN_FLIGHT] == 1)
    return line, service.worker_of(line)


def resume(service: ServiceProcess, upload: str, content: bytes) -> http.client.HTTPResponse:
    """The rest of the upload, from where HEAD says."""
    answer = ask(service, "HEAD", upload)
    assert answer.status == 200
    offset = int(answer.headers["Upload-Offset"])
    return ask(
        service,
        "PATCH",
        upload,
        content[offset:],
        Upload_Offset=str(offset),
        Content_Type=OCTETS,
    )


def listens(service: ServiceProcess, port: int) -> bool:
    """Whether a process of the service takes new connections there."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    for pid in service.pids():
        with contextlib.suppress(OSError):
            if any(os.readlink(entry) in listening for entry in Path(f"/proc/{pid}/fd").iterdir()):
                return True
    return False


def left_of(service: ServiceProcess) -> list[Path]:
    """What is left of runs of the service where workers count."""
    below = service.data / NAME
    return [*SHARED_MEMORY.glob(f"{shared_prefix(service.data)}*"), *(below.iterdir() if below.exists() else ())]


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
    assert time.monotonic() - killed_at < 8
    samples = service.metrics()
    assert samples["attachd_worker_deaths_total"] == 1
    assert samples[IN_FLIGHT] == 0


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
    answer = ask(service, "POST", service.mint_upload(), content, Upload_Length=str(len(content)), Content_Type=OCTETS)
    parts = urlsplit(service.mint_download(answer.headers["Attachd-File-Id"]))
    before = service.workers()
    with contextlib.ExitStack() as stack:
        busy: set[int] = set()
        while len(busy) < 2:
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE))
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            slow.recv(1000)
            busy.add(service.worker_of(slow))
        for pid in before.values():
            os.kill(pid, signal.SIGTERM)
        until(lambda: "service_draining" in service.log_path.read_text())
        for _ in range(50):
            assert create(service, 5)
        assert service.log_path.read_text().count("service_draining") == 1
    until(lambda: set(service.workers().values()).isdisjoint(before.values()) and len(service.workers()) == 2)
    assert "worker_died" not in service.log_path.read_text()


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
                pid = service.workers()[number]
                os.kill(pid, signal.SIGKILL)
                until(lambda: pid not in service.workers().values() and service.metrics()["attachd_workers"] == 2)  # noqa: B023
            for _ in range(10):
                assert ask(service, "HEAD", unfinished).status == 200
                with urllib.request.urlopen(service.mint_download(made.headers["Attachd-File-Id"])) as fetched:
                    assert fetched.read() == content
            (volume / "others").unlink()
            until(lambda: ask(service, "POST", service.mint_upload(), Upload_Length="5").status == 201)


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


def test_L4_a_start_beside_what_a_killed_supervisor_left(service: ServiceProcess) -> None:
    """The next start does not wait for a worker that still sends a download, and takes nothing of it away."""
    content = os.urandom(32 * 2**20)
    answer = ask(service, "POST", service.mint_upload(), content, Upload_Length=str(len(content)), Content_Type=OCTETS)
    parts = urlsplit(service.mint_download(answer.headers["Attachd-File-Id"]))
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        slow.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        got = bytearray(slow.recv(1000))
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
    answer = ask(service, "POST", service.mint_upload(), content, Upload_Length=str(len(content)), Content_Type=OCTETS)
    parts = urlsplit(service.mint_download(answer.headers["Attachd-File-Id"]))
    with socket.create_connection(("127.0.0.1", service.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
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
        answer = ask(first, "POST", first.mint_upload(), content, Upload_Length=str(len(content)), Content_Type=OCTETS)
        parts = urlsplit(first.mint_download(answer.headers["Attachd-File-Id"]))
        second = first.successor()
        with second, socket.create_connection(("127.0.0.1", first.port), timeout=PATIENCE) as slow:
            until(lambda: "service_started" in second.log_path.read_text())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            slow.recv(1000)
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
        answer = ask(first, "POST", first.mint_upload(), content, Upload_Length=str(len(content)), Content_Type=OCTETS)
        parts = urlsplit(first.mint_download(answer.headers["Attachd-File-Id"]))
        with first.successor() as second, socket.create_connection(("127.0.0.1", first.port), timeout=PATIENCE) as slow:
            until(lambda: "service_started" in second.log_path.read_text())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            slow.recv(1000)
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
