"""Real processes on a machine that goes down: all killed, bytes gone, another boot (lesson O6)."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.contract.buckets import some_bytes
from tests.e2e.lines import until
from tests.e2e.process import ServiceProcess

MIB = 2**20
CONTENT = some_bytes(12 * MIB + 5)
OCTETS = "application/offset+octet-stream"


def ask(method: str, url: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer, whatever it is."""
    named = {"Tus-Resumable": "1.0.0"} | {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body or None, headers=named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def begin(service: ServiceProcess, end: int) -> str:
    """An upload of CONTENT of which so many bytes are acknowledged."""
    status, headers, _ = ask("POST", service.mint_upload(), Upload_Length=str(len(CONTENT)), Content_Length="0")
    assert status == 201
    url = headers["Location"]
    status, headers, _ = ask("PATCH", url, CONTENT[:end], Upload_Offset="0", Content_Type=OCTETS)
    assert (status, headers["Upload-Offset"]) == (204, str(end))
    return url


def offset(url: str) -> int:
    """The offset, once it is told: 423 and nothing else until then."""
    deadline = time.monotonic() + 60
    while True:
        status, headers, _ = ask("HEAD", url)
        if status == 200:
            return int(headers["Upload-Offset"])
        assert status == 423
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_O6_a_machine_that_goes_down_takes_no_more_than_it_took(tmp_path: Path) -> None:
    """O6: After a kill of all processes, another boot and a shorter segment, each upload is at what is there."""
    boot = tmp_path / "boot"
    boot.write_text("first")
    service = ServiceProcess(tmp_path / "service", ATTACHD_BLOCK_SIZE="1MiB")
    service.command = [sys.executable, "-m", "tests.e2e.rebooted", str(boot), "serve"]
    with service:
        harmed, whole = begin(service, 7 * MIB + 3), begin(service, 7 * MIB + 3)
        service.kill()
        name = harmed.rpartition("/")[2]
        (segment,) = (service.data / "uploads").rglob(f"{name}.*")
        os.truncate(segment, 4 * MIB + 4096)
        boot.write_text("second")
        service.start()
        assert [offset(harmed), offset(whole)] == [4 * MIB, 7 * MIB + 3]
        for url in (harmed, whole):
            at = offset(url)
            status, headers, _ = ask("PATCH", url, CONTENT[at:], Upload_Offset=str(at), Content_Type=OCTETS)
            assert status == 204
            _, _, body = ask("GET", service.mint_download(headers["Attachd-File-Id"]))
            assert hashlib.sha256(body).digest() == hashlib.sha256(CONTENT).digest()
        assert "bytes_lost" in service.log_path.read_text()


def test_a_reboot_after_an_orderly_stop_is_not_noticed(tmp_path: Path) -> None:
    """SIGTERM, another boot: nothing is doubted, and the first HEAD is 200 at the byte that was acknowledged."""
    boot = tmp_path / "boot"
    boot.write_text("first")
    service = ServiceProcess(tmp_path / "service", ATTACHD_BLOCK_SIZE="1MiB")
    service.command = [sys.executable, "-m", "tests.e2e.rebooted", str(boot), "serve"]
    with service:
        url = begin(service, 3 * MIB + 1)
        assert service.terminate() == 0
        boot.write_text("second")
        service.start()
        status, headers, _ = ask("HEAD", url)
        assert (status, headers["Upload-Offset"]) == (200, str(3 * MIB + 1))
        assert "uploads_suspected" not in service.log_path.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_O6_a_service_that_ends_beside_another_speaks_for_itself_alone(tmp_path: Path, workers: str) -> None:
    """An upgrade that is given up syncs nothing of what the first service takes: another boot doubts it."""
    boot = tmp_path / "boot"
    boot.write_text("first")
    service = ServiceProcess(tmp_path / "service", ATTACHD_BLOCK_SIZE="1MiB", ATTACHD_WORKERS=workers)
    service.command = [sys.executable, "-m", "tests.e2e.rebooted", str(boot), "serve"]
    with service:
        second = service.successor()
        second.command = [*service.command, "--beside"]
        with second:
            until(lambda: "service_started" in second.log_path.read_text(), "the second service serves")
            assert second.terminate() == 0
        url = begin(service, 7 * MIB + 3)
        service.kill()
        (segment,) = (service.data / "uploads").rglob(f"{url.rpartition('/')[2]}.*")
        os.truncate(segment, 4 * MIB + 4096)
        boot.write_text("second")
        service.start()
        assert offset(url) == 4 * MIB
        assert "uploads_suspected" in service.log_path.read_text()
