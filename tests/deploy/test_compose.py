"""The compose files: what can be known of them without an engine, and the S3 gateway's start for real."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from service.settings import load
from tests.conftest import require
from tests.deploy.proxies import DEPLOY, replaced
from tests.e2e.process import ROOT
from tests.ports import free_port
from tests.stores.servers import find_versitygw

ALONE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
#: goes on top of the other
WITH_S3: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.s3.yaml").read_text())
SERVICES: Final[dict[str, Any]] = WITH_S3["services"] | {
    "attachd": ALONE["services"]["attachd"] | WITH_S3["services"]["attachd"]
}
#: what the image sets
IMAGE: Final = dict(re.findall(r"(ATTACHD_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
#: seconds until the gateway must answer
PATIENCE: Final = 30.0


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_be_watched_and_starts_again(name: str) -> None:
    """Each service has a health check, starts again by itself, gains no rights, and keeps its log small."""
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"attachd"}))
def test_an_image_has_a_version(name: str) -> None:
    """No image is whatever its registry calls the latest."""
    assert re.search(r":v?\d", SERVICES[name]["image"])


def test_only_nginx_is_reached_from_outside() -> None:
    """Every other port that is published is this machine's own, and the operations listener is not published."""
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert name == "nginx" or port.startswith("127.0.0.1:")
            assert not port.endswith(":9080")


@pytest.mark.parametrize("compose", [ALONE, WITH_S3], ids=["alone", "s3"])
def test_what_is_mounted_is_there(compose: dict[str, Any]) -> None:
    """Files of the repository exist; volumes, networks and secrets are declared; secrets are of an ignored folder."""
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        for network in service.get("networks", []):
            assert network == "default" or network in compose["networks"]
        for secret in service.get("secrets", []):
            assert (secret["source"] if isinstance(secret, dict) else secret) in compose["secrets"]
    for secret in compose["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_no_environment_has_a_credential() -> None:
    """What is called a key, a password or a token is the path of a secret."""
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"KEY|SECRET|PASSWORD|TOKEN|CREDENTIAL", name):
                assert value.startswith("/run/secrets/")


@pytest.mark.parametrize("compose", [ALONE, WITH_S3], ids=["alone", "s3"])
def test_the_settings_are_valid(compose: dict[str, Any]) -> None:
    """Settings of the image, the compose file and the example file load together; data is in the volume."""
    given = compose["services"]["attachd"]["environment"]
    environment = IMAGE | {name: value for name, value in given.items() if name.startswith("ATTACHD_")}
    environment.pop("ATTACHD_CONFIG", None)
    settings = load(environment, (DEPLOY / "attachd.toml").read_text("utf-8"))
    assert f"data:{settings.data}" in ALONE["services"]["attachd"]["volumes"]
    assert str(settings.listen.url).endswith(ALONE["services"]["attachd"]["ports"][0].rpartition(":")[2])


def test_a_stop_has_more_time_than_the_grace() -> None:
    """The engine kills nothing before the service has given up by itself: the grace, four seconds, and some."""
    seconds = re.fullmatch(r"(\d+)s", ALONE["services"]["attachd"]["stop_grace_period"])
    assert seconds is not None
    assert int(seconds[1]) > max(40, load({}).grace + 4 + 5)


def test_nginx_finds_attachd_by_the_names_that_are_there() -> None:
    """The upstream of the container is the service and its port; the certificate is where attachd.conf looks."""
    upstream = (DEPLOY / "nginx" / "upstream.compose.conf").read_text()
    assert f"server attachd:{IMAGE['ATTACHD_LISTEN'].rpartition(':')[2]} resolve;" in upstream
    site = (DEPLOY / "nginx" / "attachd.conf").read_text()
    places = set(re.findall(r"ssl_certificate\w* (\S+);", site))
    assert places == {secret["target"] for secret in SERVICES["nginx"]["secrets"]}


@contextmanager
def gateway(folder: Path, port: int) -> Iterator[None]:
    """The gateway as compose starts it, its places and its port replaced."""
    program = find_versitygw()
    assert program is not None
    service = WITH_S3["services"]["s3"]
    places = {
        "/run/secrets/s3-credentials": f"{folder}/s3-credentials",
        "/data": f"{folder}/objects",
        ":7070": f"127.0.0.1:{port}",
        "/app/versitygw": program,
    }
    (folder / "objects").mkdir()
    script = replaced(service["command"][0].replace("$$", "$"), places)
    process = subprocess.Popen([*service["entrypoint"], script], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        probe = service["healthcheck"]["test"][-1].replace(":7070", f":{port}")
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(probe, timeout=2) as answer:
                assert answer.status == 200
                break
            assert process.poll() is None, "the gateway ended"
            assert time.monotonic() < deadline, "the gateway is not healthy"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_attachd_can_use_the_gateway(tmp_path: Path) -> None:
    """Started by the file's own lines, the gateway has the bucket and the keys that attachd is given."""
    require("s3")
    port = free_port()
    keys = f"aws_access_key_id = AK{secrets.token_hex(8)}\naws_secret_access_key = {secrets.token_urlsafe(30)}\n"
    (tmp_path / "s3-credentials").write_text(f"[default]\n{keys}")
    changes = {"http://s3:7070": f"http://127.0.0.1:{port}", "/run/secrets/": f"{tmp_path}/"}
    given = json.loads(replaced(json.dumps(WITH_S3["services"]["attachd"]["environment"]), changes))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATTACHD_", "AWS_"))}
    environment |= given | {"ATTACHD_DATA": str(tmp_path / "data"), "NO_PROXY": "127.0.0.1"}

    def attachd(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service", *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    with gateway(tmp_path, port):
        assert attachd("keys", "new", "--alg", "HS256").returncode == 0
        done = attachd("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
