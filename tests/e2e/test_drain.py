"""Stops and upgrades under load: clients see that they have to come again, and nothing else.

ATTACHD_TEST_UPLOADS=100 pytest tests/e2e/test_drain.py -s
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.lines import Line, append, ask, create, download, head, patch, until
from tests.e2e.process import ServiceProcess
from tests.e2e.senders import KIB, Senders

UPLOADS: Final = int(os.environ.get("ATTACHD_TEST_UPLOADS", "40"))
MIB: Final = 2**20


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_S1_an_upgrade_costs_no_more_than_a_retry(tmp_path: Path, workers: str) -> None:
    """A second service is started beside the first, which is then stopped, while uploads run: no byte is lost, no
    client is told anything but to come again, and the first one exits with 0.
    """
    with ServiceProcess(tmp_path, ATTACHD_WORKERS=workers) as first:
        clients = Senders(first, UPLOADS, file_bytes=MIB, chunk_bytes=128 * KIB, seed=1)
        second = first.successor()
        with second:
            with clients.sending():
                until(lambda: clients.begun == UPLOADS or clients.faults, "all clients have begun")
                until(lambda: "service_started" in second.log_path.read_text(), "the second service serves")
                assert first.terminate() == 0
                # each of them goes on with what it had begun
                clients.wait_for(UPLOADS * 128 * KIB)
            assert second.terminate() == 0
    print(f"\n{UPLOADS} uploads, {workers} workers: {clients.files} files, {clients.answers}", file=sys.stderr)


@pytest.mark.timeout(240)
def test_S1_a_restart_costs_no_more_than_a_retry(tmp_path: Path) -> None:
    """So does a stop and a start on the same port, but for the moment in which nobody listens."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as service:
        clients = Senders(service, UPLOADS, file_bytes=MIB, chunk_bytes=128 * KIB, seed=2)
        with clients.sending():
            until(lambda: clients.begun == UPLOADS or clients.faults, "all clients have begun")
            assert service.terminate() == 0
            service.start()
            clients.wait_for(UPLOADS * 128 * KIB)


@pytest.mark.parametrize("stop", [ServiceProcess.terminate, ServiceProcess.kill])
def test_S2_a_join_that_was_stopped_ends_in_its_file(tmp_path: Path, stop: Callable[[ServiceProcess], object]) -> None:
    """A final upload whose joining a stop or a kill interrupted becomes ready after the next start, unasked."""
    pieces = [os.urandom(3 * MIB + at) for at in range(3)]
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as service:
        link = service.mint_upload()
        urls = []
        for piece in pieces:
            made = ask(service, "POST", link, Upload_Length=str(len(piece)), Upload_Concat="partial")
            assert made.status == 201, made
            urls.append(made.headers["location"])
            assert append(service, urls[-1], 0, piece).status == 204
        with Line(service.address) as line:
            line.send(head("POST", link, 0, Upload_Concat=f"final;{' '.join(urls)}"))
            until(lambda: service.log_path.read_text().count("upload_created") > len(urls), "the plan is stored")
            stop(service)
        service.start()
        made = ask(service, "POST", link, Upload_Concat=f"final;{' '.join(urls)}")
        assert made.status == 201, made
        until(lambda: service.status(made.headers["location"])["state"] == "ready", "the file is there")
        assert download(service, made.headers["location"]) == b"".join(pieces)


def test_S1_a_stop_keeps_what_a_writer_sent(tmp_path: Path) -> None:
    """SIGTERM in the middle of a body: 503, and the offset it names is there after the start."""
    content = os.urandom(MIB)
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="2") as service:
        url = create(service, len(content))
        with Line(service.address) as line:
            line.send(patch(url, 0, len(content)) + content[: 300 * KIB])
            until(lambda: service.metrics()['attachd_transfers_in_flight{direction="in"}'] == 1, "the body comes")
            os.kill(service.pid, signal.SIGTERM)
            answer = line.answer()
            assert (answer.status, answer.slug) == (503, "draining")
        assert service.wait() == 0
        service.start()
        assert ask(service, "HEAD", url).offset == answer.offset
