"""What every test runs under: a blocking-call detector, Hypothesis profiles, missing components."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

from service.web import connection
from tests.scanners.double import has_clamd
from tests.stores.servers import find_versitygw

pytest_plugins = ["tests.alone", "tests.stores.fixtures"]

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("default"), max_examples=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def helm_path() -> str | None:
    """The program's path: on the PATH, else where `.ci/run` puts what it builds."""
    built = Path(__file__).resolve().parents[1] / ".cache" / "bin"
    return shutil.which("helm") or shutil.which("helm", path=built)


#: how to tell that a component is there
COMPONENTS: Final[dict[str, Callable[[], bool]]] = {
    "caddy": lambda: shutil.which("caddy") is not None,
    "clamd": has_clamd,
    "haproxy": lambda: shutil.which("haproxy") is not None,
    "helm": lambda: helm_path() is not None,
    "node": lambda: shutil.which("node") is not None,
    "nginx": lambda: shutil.which("nginx") is not None,
    "promtool": lambda: shutil.which("promtool") is not None,
    "s3": lambda: find_versitygw() is not None,
    "systemd": lambda: shutil.which("systemd-analyze") is not None,
}


def require(component: str, *, why: str = "") -> None:
    """The test goes on with the component, is skipped without it, or fails where it must be there.

    `ATTACHD_TEST_REQUIRE` lists, comma separated, what must be there.

    Args:
        component: a name of COMPONENTS.
        why: what is missing, if the caller found so itself; empty: look for the component.
    """
    if not why and not COMPONENTS[component]():
        why = "it is not on this machine"
    if not why:
        return
    if component in os.environ.get("ATTACHD_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{component} is required by ATTACHD_TEST_REQUIRE: {why}", pytrace=False)
    pytest.skip(f"needs {component}: {why}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--body-path",
        choices=("fast", "plain"),
        default="fast",
        help="how bodies of a known length are received: straight from the socket, or through aiohttp's parser",
    )


@pytest.fixture(autouse=True)
def body_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How bodies are received: as the test's parameter says, or else the option of the run."""
    path: str = getattr(request, "param", request.config.getoption("--body-path"))
    monkeypatch.setattr(connection, "DIRECT", path == "fast")
    if path == "plain":
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "plain_bodies"), prepend=os.pathsep)
    return path


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call from `service` that blocks a running event loop raises BlockingError (lesson D6).

    On in async tests, and in web tests, whose server may run in a thread of its own. Elsewhere no
    loop runs, and the detector would only add itself to the causes of errors.
    """
    looked_at = inspect.iscoroutinefunction(request.function) or "web" in request.path.parts
    if not looked_at or request.node.get_closest_marker("blocking"):
        yield
        return
    with blockbuster_ctx("service"):
        yield
