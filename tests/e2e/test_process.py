"""The process harness starts, finds and ends what it started."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.e2e.process import NotReady, ServiceProcess

if TYPE_CHECKING:
    from pathlib import Path


def test_a_killed_service_is_gone(tmp_path: Path) -> None:
    """After `kill` no process of the service is left and nobody answers at its address."""
    with ServiceProcess(tmp_path) as service:
        assert service.pid in service.pids()
        service.kill()
        assert service.pids() == []
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{service.ops_url}/livez", timeout=30)


def test_a_restart_keeps_address_and_keys(tmp_path: Path) -> None:
    """A link minted before `restart` is accepted after it, at the same address."""
    with ServiceProcess(tmp_path) as service:
        link, before = service.mint_upload(), service.pid
        service.restart()
        assert service.pid != before
        request = urllib.request.Request(link, method="POST", headers={"Tus-Resumable": "1.0.0", "Upload-Length": "5"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 201
            assert service.status(answer.headers["Location"])["state"] == "receiving"


def test_a_stopped_service_exits_with_0(tmp_path: Path) -> None:
    """`terminate` is an orderly stop."""
    with ServiceProcess(tmp_path) as service:
        assert service.terminate() == 0


def test_a_service_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    """NotReady carries what the service said, and nothing is left running."""
    service = ServiceProcess(tmp_path, ATTACHD_MAX_SIZE="a lot")
    with pytest.raises(NotReady, match="ATTACHD_MAX_SIZE"), service:
        pass
    assert service.pids() == []


def test_metrics_and_memory_are_read_from_outside(tmp_path: Path) -> None:
    """Samples are found by name and labels, and the peak is that of a Python process."""
    with ServiceProcess(tmp_path) as service:
        assert any(name.startswith("attachd_build_info{") for name in service.metrics())
        assert 20 * 2**20 < service.rss_peak() < 2**30
