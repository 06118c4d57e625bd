"""The container image, as far as its recipe can tell without building it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from service.settings import load

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
