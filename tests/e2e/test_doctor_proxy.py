"""`attachd doctor` through a real nginx: what it says of one that passes uploads on, and of each way to spoil them."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.cli import cli
from service.commands import passage
from tests.conftest import require
from tests.e2e.process import ServiceProcess
from tests.ports import free_port

GOOD = {
    "client_max_body_size": "0",
    "proxy_request_buffering": "off",
    "proxy_http_version": "1.1",
    "proxy_set_header Host": "$http_host",
    "large_client_header_buffers": "4 64k",
}


@contextmanager
def nginx(folder: Path, port: int, upstream: int, **lines: str) -> Iterator[None]:
    """One in front of the upstream, with GOOD and these lines in its server; it accepts connections."""
    user = "user root;" if os.geteuid() == 0 else ""
    server = " ".join(f"{name} {value};" for name, value in (GOOD | lines).items())
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; {user} pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"server {{ listen 127.0.0.1:{port}{' ssl' if 'ssl_certificate' in lines else ''}; {server}\n"
        f"location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-c", str(conf), "-e", f"{folder}/error.log"])
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "error.log").read_text()
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(20)


def said_of(service: ServiceProcess, **settings: str) -> tuple[int, dict[str, str]]:
    """The exit code, and what is said of the proxy."""
    clean = dict.fromkeys(name for name in os.environ if name.startswith("ATTACHD_"))
    result = CliRunner().invoke(cli, ["doctor"], env={**clean, **service.environment, **settings})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.output.splitlines() if line.startswith("proxy ")]
    return result.exit_code, {line[:15].strip(): line[15:].strip() for line in lines}


def uploads(service: ServiceProcess) -> list[str]:
    """The states of all uploads there are."""
    with closing(sqlite3.connect(service.data / "attachd.db")) as database:
        return [state for (state,) in database.execute("SELECT state FROM uploads")]


@pytest.mark.parametrize(
    ("lines", "failed", "advice"),
    [
        ({}, {}, ""),
        ({"proxy_request_buffering": "on"}, {passage.STREAM: "the service had 0"}, "proxy_request_buffering off"),
        ({"client_max_body_size": "1m"}, {passage.SIZE: "413"}, "client_max_body_size 0"),
        ({"client_body_timeout": "5s"}, {passage.PAUSE: "5 s"}, "client_body_timeout"),
    ],
)
def test_k2_doctor_names_the_setting_of_the_proxy_that_is_at_fault(
    tmp_path: Path, lines: dict[str, str], failed: dict[str, str], advice: str
) -> None:
    """Buffering, a 1 MiB cap and a 5 s limit are three right answers; a proxy that streams is clean; nothing stays."""
    require("nginx")
    port = free_port()
    settings = {"ATTACHD_PUBLIC_URL": f"http://127.0.0.1:{port}"}
    with ServiceProcess(tmp_path, **settings) as service, nginx(tmp_path, port, service.port, **lines):
        code, said = said_of(service)
        assert list(said) == [passage.SIZE, passage.PAUSE, passage.STREAM]
        assert {name for name, line in said.items() if not line.startswith("ok ")} == set(failed)
        for name, word in failed.items():
            found, _, todo = said[name].partition(" -> ")
            assert found.startswith("FAILED")
            assert word in found
            assert advice in todo
        assert code == (1 if failed else 0)
        assert uploads(service) == ["terminated"]


def certificate(folder: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    kinds = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *kinds))
    return paths


def test_tls_is_no_hindrance_and_a_wrong_certificate_is_told(tmp_path: Path) -> None:
    """Through TLS the same is seen; a certificate that nobody vouches for fails as clients would see it."""
    require("nginx")
    port, (cert, key) = free_port(), certificate(tmp_path)
    tls = {"ssl_certificate": str(cert), "ssl_certificate_key": str(key), "client_max_body_size": "1m"}
    settings = {"ATTACHD_PUBLIC_URL": f"https://127.0.0.1:{port}"}
    with ServiceProcess(tmp_path, **settings) as service, nginx(tmp_path, port, service.port, **tls):
        code, said = said_of(service, SSL_CERT_FILE=str(cert))
        assert code == 1
        assert [line.split()[0] for line in said.values()] == ["FAILED", "ok", "ok"]
        assert "413" in said[passage.SIZE]
        code, said = said_of(service, SSL_CERT_FILE="/dev/null")
        assert (code, list(said)) == (1, [passage.SIZE])
        assert "certificate" in said[passage.SIZE].lower()


def test_a_proxy_without_a_service_behind_it_is_told(tmp_path: Path) -> None:
    """An answer of the proxy's own is no answer: the line says where requests have to go."""
    require("nginx")
    port = free_port()
    settings = {"ATTACHD_PUBLIC_URL": f"http://127.0.0.1:{port}"}
    with ServiceProcess(tmp_path, **settings) as service, nginx(tmp_path, port, free_port()):
        code, said = said_of(service)
        assert (code, list(said)) == (1, [passage.SIZE])
        assert "502" in said[passage.SIZE]
        assert "ATTACHD_LISTEN" in said[passage.SIZE].partition(" -> ")[2]


def test_a_proxy_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The service runs and nobody answers at its public address: a failure that names the setting."""
    settings = {"ATTACHD_PUBLIC_URL": f"http://127.0.0.1:{free_port()}"}
    with ServiceProcess(tmp_path, **settings) as service:
        code, said = said_of(service)
        assert code == 1
        assert "ATTACHD_PUBLIC_URL" in said[passage.SIZE].partition(" -> ")[2]
        service.kill()
        code, said = said_of(service)
        assert (code, said[passage.SIZE].split()[0]) == (0, "skipped")


def test_settings_of_another_service_are_told(tmp_path: Path) -> None:
    """Where the service that runs was given another public URL, the refusal of the link leads to the settings."""
    with ServiceProcess(tmp_path, ATTACHD_PUBLIC_URL="https://files.example") as service:
        code, said = said_of(service, ATTACHD_PUBLIC_URL=service.url)
        assert code == 1
        assert "bad-link" in said[passage.SIZE]
        assert "settings of the service" in said[passage.SIZE].partition(" -> ")[2]


def test_the_events_of_what_doctor_sent_say_so(tmp_path: Path) -> None:
    """A backend knows the upload by its meta, and that it was terminated, so it can pass over both events."""
    service = ServiceProcess(tmp_path)
    service.settings["ATTACHD_PUBLIC_URL"] = service.url
    with service:
        code, _ = said_of(service)
        assert code == 0
        with closing(sqlite3.connect(service.data / "attachd.db")) as database:
            told = [(kind, json.loads(text)) for kind, text in database.execute("SELECT type, data FROM events")]
        assert [kind for kind, _ in told] == ["upload.created", "upload.terminated"]
        assert all(about["meta"] == {"attachd": "doctor"} for _, about in told)
