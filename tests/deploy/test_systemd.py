"""The systemd unit: systemd's own check of it, how far it is locked in, and what the service makes of that."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Final

import pytest

from service.settings import load
from tests.conftest import require
from tests.deploy.proxies import DEPLOY, replaced
from tests.e2e.process import ServiceProcess

UNIT: Final = DEPLOY / "systemd" / "attachd.service"
#: of 100, by systemd's own count; lower is tighter
MOST_EXPOSURE: Final = 20


class Options(configparser.RawConfigParser):
    """A unit file without the names that may stand there twice."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def options() -> Options:
    found = Options(strict=False)
    found.read(UNIT)
    return found


def _unit(folder: Path) -> Path:
    """The unit with a program that exists, where systemd finds nothing else called so."""
    program = Path(sys.executable).with_name("attachd")
    path = folder / UNIT.name
    path.write_text(replaced(UNIT.read_text(), {"/opt/attachd/bin/attachd": str(program)}))
    return path


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say: no unknown option, no bad value."""
    require("systemd")
    command = ["systemd-analyze", "verify", "--man=no", str(_unit(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_locked_in(tmp_path: Path) -> None:
    """`systemd-analyze security` finds little that the service could reach besides its own."""
    require("systemd")
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSURE}", str(_unit(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]


def test_a_stop_has_more_time_than_the_grace() -> None:
    """systemd kills nothing before the service has given up by itself: the grace, four seconds, and some."""
    assert float(options()["Service"]["TimeoutStopSec"]) > load({}).grace + 4 + 5


def test_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    """A start that cannot succeed ends with the code that the unit does not restart on."""
    command = [sys.executable, "-m", "service", "serve"]
    done = subprocess.run(command, env={"ATTACHD_GRACE": "soon"}, capture_output=True, text=True, check=False)
    assert str(done.returncode) == options()["Service"]["RestartPreventExitStatus"]
    assert "ATTACHD_GRACE" in done.stderr


def test_the_example_settings_are_valid() -> None:
    """deploy/attachd.toml starts the service, and keeps its data where the unit lets it write."""
    settings = load({}, (DEPLOY / "attachd.toml").read_text("utf-8"))
    unit = options()["Service"]
    assert str(settings.data) == f"/var/lib/{unit['StateDirectory']}"
    assert f"ATTACHD_DATA={settings.data}" in unit["Environment"]
    assert not re.search(r"(?i)secret *=|password", (DEPLOY / "attachd.toml").read_text("utf-8"))


class LockedProcess(ServiceProcess):
    """A service that the kernel gives no memory both written and run, as `MemoryDenyWriteExecute` has it."""

    module = "tests.deploy.locked"


@pytest.mark.skipif(sys.platform != "linux", reason="the lock is Linux's")
def test_the_service_runs_without_writable_code(tmp_path: Path) -> None:
    """Under that lock it starts, takes an upload and gives it back."""
    with LockedProcess(tmp_path, ATTACHD_WORKERS="2") as service:
        request = urllib.request.Request(service.mint_upload(max_size=5), method="PUT", data=b"hello")
        with urllib.request.urlopen(request, timeout=20) as answer:
            file_id = answer.headers["Attachd-File-Id"]
        with urllib.request.urlopen(service.mint_download(file_id), timeout=20) as answer:
            assert answer.read() == b"hello"
        assert service.terminate() == 0
