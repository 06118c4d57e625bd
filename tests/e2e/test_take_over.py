"""Another request for an upload that a stalled one holds, at the same worker and at another one.

ATTACHD_TEST_TAKE_OVERS=100 pytest tests/e2e/test_take_over.py -s
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.lines import Answer, Line, ask, create, download, finish, head, offset_of, patch, until
from tests.e2e.process import ServiceProcess

COUNT: Final = int(os.environ.get("ATTACHD_TEST_TAKE_OVERS", "5"))
KIB: Final = 2**10
CONTENT: Final = os.urandom(256 * KIB)
IN_FLIGHT: Final = 'attachd_transfers_in_flight{direction="in"}'
RECEIVED: Final = 'attachd_upload_bytes_received_total{protocol="tus"}'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service of two workers."""
    with ServiceProcess(tmp_path_factory.mktemp("service"), ATTACHD_WORKERS="2") as running:
        yield running


@contextmanager
def line_to(service: ServiceProcess, *, worker: int, other: bool) -> Iterator[Line]:
    """A connection to that worker, or to another one: the kernel chooses, until it has chosen so."""
    while True:
        with Line(service.address) as line:
            line.send(head("OPTIONS", "http://x/files"))
            line.answer()
            if (service.worker_of(line.socket) != worker) is other:
                yield line
                return


@contextmanager
def stalled(service: ServiceProcess, url: str, sent: bytes) -> Iterator[tuple[Line, int]]:
    """A PATCH whose client has gone silent in the middle, and the process that has it."""
    before = service.metrics().get(RECEIVED, 0)
    with Line(service.address) as line:
        line.send(patch(url, 0, len(CONTENT)) + sent)
        # the last byte has come before anybody asks
        until(lambda: service.metrics().get(RECEIVED, 0) >= before + len(sent), "the body comes")
        yield line, service.worker_of(line.socket)


def request(method: str, url: str) -> bytes:
    return patch(url, 0, len(CONTENT)) + CONTENT if method == "PATCH" else head(method, url)


@pytest.mark.timeout(120 + 6 * COUNT)
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize("other", [False, True], ids=["same worker", "other worker"])
def test_L1_a_stalled_writer_makes_way(service: ServiceProcess, method: str, other: bool) -> None:
    """PATCH and DELETE are answered as if nobody held the upload, and the one who did is told that it was overtaken."""
    seconds = []
    for _ in range(COUNT):
        url = create(service, len(CONTENT))
        with stalled(service, url, CONTENT[: 100 * KIB]) as (line, worker):
            with line_to(service, worker=worker, other=other) as newer:
                began = time.monotonic()
                newer.send(request(method, url))
                answer = newer.answer()
                seconds.append(time.monotonic() - began)
            # the PATCH is for byte 0, behind which the other one's bytes are by now
            assert answer.status == (409 if method == "PATCH" else 204)
            overtaken = line.answer()
            assert (overtaken.status, overtaken.slug) == (423, "locked")
        if method == "PATCH":
            assert answer.offset == 100 * KIB
            finish(service, url, CONTENT)
            assert download(service, url) == CONTENT
    _tell(f"{method} at the {'other' if other else 'same'} worker", seconds)


@pytest.mark.timeout(120 + 8 * COUNT)
@pytest.mark.parametrize("other", [False, True], ids=["same worker", "other worker"])
def test_L1_head_has_a_silent_writer_commit(service: ServiceProcess, other: bool) -> None:
    """HEAD tells of the bytes of a writer that has been silent for two seconds, which it has let go of."""
    seconds = []
    for _ in range(COUNT):
        url = create(service, len(CONTENT))
        with stalled(service, url, CONTENT[: 100 * KIB]) as (line, worker):
            with line_to(service, worker=worker, other=other) as asking:
                answers: list[Answer] = []

                def asked(url: str = url, asking: Line = asking, answers: list[Answer] = answers) -> bool:
                    began = time.monotonic()
                    asking.send(head("HEAD", url))
                    answers.append(asking.answer(head=True))
                    seconds.append(time.monotonic() - began)
                    return answers[-1].status == 200 and answers[-1].offset > 0

                until(asked, "the bytes are told")
            # a writer is spared for as long as it may be lively, and no HEAD is anything but these
            assert {answer.status for answer in answers} <= {200, 423}
            assert answers[-1].offset == 100 * KIB
            assert line.answer().status == 423
    _tell(f"HEAD at the {'other' if other else 'same'} worker", seconds)


@pytest.mark.timeout(180)
def test_L2_a_worker_that_slept_changes_nothing(tmp_path: Path) -> None:
    """A worker is stopped with bytes in hand, another one takes over with other content, the first wakes up and goes
    on: the file is the second client's.
    """
    other = bytes(reversed(CONTENT))
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as service:
        url = create(service, len(CONTENT))
        with stalled(service, url, CONTENT[: 100 * KIB]) as (line, worker):
            os.kill(worker, signal.SIGSTOP)
            line.send(CONTENT[100 * KIB : -1])
            began = time.monotonic()

            def taken() -> bool:
                with line_to_the_living(service) as newer:
                    newer.send(patch(url, 0, len(other) - 1) + other[:-1])
                    return newer.answer().status == 204

            until(taken, "the lease of who sleeps has run out")
            seconds = time.monotonic() - began
            os.kill(worker, signal.SIGCONT)
            line.send(CONTENT[-1:])
            assert line.answer().status == 423
        finish(service, url, other)
        assert download(service, url) == other
    _tell("a holder stopped by SIGSTOP", [seconds])


@contextmanager
def line_to_the_living(service: ServiceProcess) -> Iterator[Line]:
    """A connection that is answered: some go to a worker that has been stopped."""
    while True:
        with Line(service.address) as line:
            line.socket.settimeout(1)
            line.send(head("OPTIONS", "http://x/files"))
            try:
                line.answer()
            except TimeoutError:
                continue
            line.socket.settimeout(40)
            yield line
            return


@pytest.mark.timeout(180)
def test_L4_a_killed_holder_is_no_obstacle(tmp_path: Path) -> None:
    """When all processes were killed under writers, the next start finds every upload free."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as service:
        urls = [create(service, len(CONTENT)) for _ in range(10)]
        lines = [Line(service.address) for _ in urls]
        for url, line in zip(urls, lines, strict=True):
            line.send(patch(url, 0, len(CONTENT)) + CONTENT[:KIB])
        until(lambda: service.metrics()[IN_FLIGHT] == len(urls), "all bodies come")
        service.restart()
        for url, line in zip(urls, lines, strict=True):
            line.close()
            assert ask(service, "HEAD", url).status == 200
            finish(service, url, CONTENT)
            assert offset_of(service, url) == len(CONTENT)


def _tell(what: str, seconds: list[float]) -> None:
    median, worst = statistics.median(seconds), max(seconds)
    print(f"\n{what}: median {median * 1000:.0f} ms, worst {worst * 1000:.0f} ms of {len(seconds)}", file=sys.stderr)
