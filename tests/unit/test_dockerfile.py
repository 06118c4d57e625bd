"""The container image, as far as its recipe can tell without building it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from service.settings import load
from tests.e2e.process import ServiceProcess

ROOT = Path(__file__).resolve().parents[2]
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()


def arguments(instruction: str) -> list[str]:
    """What stands behind the instruction, in the last stage."""
    last_stage = max(number for number, line in enumerate(LINES) if line.startswith("FROM "))
    return [line.partition(" ")[2] for line in LINES[last_stage:] if line.startswith(instruction + " ")]


def test_it_does_not_run_as_root():
    """The last USER is a number other than 0, which Kubernetes can check."""
    assert int(arguments("USER")[-1]) > 0


def test_it_stops_on_sigterm_as_process_one():
    """Signals reach the service itself: exec form, no shell between, SIGTERM."""
    assert arguments("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(arguments("ENTRYPOINT")[-1]) + json.loads(arguments("CMD")[-1]) == ["attachd", "serve"]


def test_its_settings_are_valid():
    """The settings in the image load, and keep everything in the volume."""
    env = dict(re.findall(r"(ATTACHD_\w+)=(\S+)", arguments("ENV")[-1]))
    settings = load(env)
    assert [str(settings.data)] == arguments("VOLUME")
    assert settings.listen.url.endswith(":" + arguments("EXPOSE")[-1])


def test_its_health_check_asks_the_operations_listener():
    """The health check is Python that parses and asks `/livez` where the image listens."""
    command = json.loads(arguments("HEALTHCHECK")[-1].partition("CMD ")[2])
    ast.parse(command[-1])
    env = dict(re.findall(r"(ATTACHD_\w+)=(\S+)", arguments("ENV")[-1]))
    assert f"{load(env).ops_listen.url}/livez" in command[-1]


@pytest.mark.parametrize("name", ["pyproject.toml", "README.md", "LICENSE", "service"])
def test_what_it_copies_is_in_the_build_context(name):
    """What the recipe copies is let through by .dockerignore."""
    assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()


def _copy_context(target: Path) -> None:
    """What the first stage copies, nothing else of the repository."""
    for line in LINES:
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = line.split()[1:]
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, target / source, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, target)


class Installed(ServiceProcess):
    """The service as the image has it: the installed package and its script, the repository out of reach."""

    def __init__(self, directory: Path, place: Path) -> None:
        super().__init__(directory, PYTHONPATH=str(place), PYTHONSAFEPATH="1")
        self.command = [sys.executable, str(place / "bin" / "attachd"), "serve"]


@pytest.mark.slow
def test_what_it_installs_runs(tmp_path: Path):
    """A package built from the copied files alone has all that it takes to start and to store a file."""
    context, place = tmp_path / "src", tmp_path / "place"
    context.mkdir()
    _copy_context(context)
    # the dependencies are those of the tests: what is to be seen is the package
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), "."]
    subprocess.run(command, cwd=context, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}, check=True)
    with Installed(tmp_path, place) as service:
        request = urllib.request.Request(service.mint_upload(max_size=5), method="PUT", data=b"hello")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.headers["Attachd-File-Id"]
        whose = [sys.executable, "-c", "import service; print(service.__file__)"]
        done = subprocess.run(whose, env=service.environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(place))
