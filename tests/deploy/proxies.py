"""The proxies of deploy/, each with the configuration that is shipped: addresses and places are the test's.

    with Proxy("nginx", tmp_path, service) as proxy:
        proxy.connect().request("HEAD", "/files/u_…")

What is replaced is asserted to be there, so that a test cannot run on something else than the file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import time
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.process import ROOT, ServiceProcess
from tests.ports import free_port

if TYPE_CHECKING:
    from types import TracebackType

DEPLOY: Final = ROOT / "deploy"
NAMES: Final = ("nginx", "haproxy", "caddy")
#: seconds until a proxy that was started must take connections, and until one that was told to end has ended
PATIENCE: Final = 30.0


def replaced(text: str, changes: dict[str, str]) -> str:
    """The text with every key replaced by its value; AssertionError where one is not in it."""
    for old, new in changes.items():
        assert old in text, f"the file no longer has {old!r}"
        text = text.replace(old, new)
    return text


def make_certificate(folder: Path) -> None:
    """attachd.crt, attachd.key and both in attachd.pem, for 127.0.0.1 and an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "attachd test")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    crt = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "attachd.crt").write_bytes(crt)
    (folder / "attachd.key").write_bytes(secret)
    (folder / "attachd.pem").write_bytes(crt + secret)


class Proxy:
    """One proxy over TLS on a free port of 127.0.0.1, in front of a service. What it says goes below `folder`."""

    def __init__(self, name: str, folder: Path, service: ServiceProcess, *, patience: str = "") -> None:
        self.name = name
        self.port = free_port()
        self.folder = folder / name
        self.folder.mkdir()
        make_certificate(self.folder)
        self._service = service
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self.command, self.check = getattr(self, f"_{name}")()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def upstream(self) -> str:
        return f"127.0.0.1:{self._service.port}"

    def _nginx(self) -> tuple[list[str], list[str]]:
        source = DEPLOY / "nginx"
        places = {
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "/etc/nginx/tls/": f"{self.folder}/",
            "/var/log/nginx/": f"{self.folder}/",
            "/var/lib/attachd/": f"{self._service.data}/",
        }
        (self.folder / "attachd.conf").write_text(replaced((source / "attachd.conf").read_text(), places))
        upstream = replaced((source / "upstream.conf").read_text(), {"127.0.0.1:8080": self.upstream})
        (self.folder / "upstream.conf").write_text(upstream)
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = " ".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
        )
        (self.folder / "nginx.conf").write_text(
            f"daemon off; {user} pid {self.folder}/pid; error_log {self.folder}/main.log alert; events {{}}\n"
            f"http {{ access_log off; {temporary}\n"
            f"include {self.folder}/attachd.conf; include {self.folder}/upstream.conf; }}\n"
        )
        command = ["nginx", "-c", f"{self.folder}/nginx.conf", "-e", f"{self.folder}/main.log"]
        return command, [*command, "-t"]

    def _haproxy(self) -> tuple[list[str], list[str]]:
        places = {
            "bind :443 ": f"bind 127.0.0.1:{self.port} ",
            "/etc/haproxy/tls/": f"{self.folder}/",
            "127.0.0.1:8080": self.upstream,
        }
        if os.geteuid() != 0:
            places |= {"    user haproxy\n": "", "    group haproxy\n": ""}
        if self._patience:
            places["retries 30"] = "retries 1"
        path = self.folder / "haproxy.cfg"
        path.write_text(replaced((DEPLOY / "haproxy" / "haproxy.cfg").read_text(), places))
        command = ["haproxy", "-f", str(path)]
        return [*command, "-db"], [*command, "-c"]

    def _caddy(self) -> tuple[list[str], list[str]]:
        places = {
            "files.example.org {": f"{self.url} {{\n\ttls {self.folder}/attachd.crt {self.folder}/attachd.key",
            "\n{\n": "\n{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n",
            "127.0.0.1:8080": self.upstream,
        }
        if self._patience:
            places["lb_try_duration 30s"] = f"lb_try_duration {self._patience}"
        path = self.folder / "Caddyfile"
        path.write_text(replaced((DEPLOY / "caddy" / "Caddyfile").read_text(), places))
        options = ["--config", str(path), "--adapter", "caddyfile"]
        return ["caddy", "run", *options], ["caddy", "validate", *options]

    @property
    def environment(self) -> dict[str, str]:
        """Caddy keeps things in its home."""
        return os.environ | {"HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder)}

    def __enter__(self) -> Self:
        with (self.folder / "output.log").open("wb") as output:
            self._process = subprocess.Popen(self.command, env=self.environment, stdout=output, stderr=output)
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise AssertionError(f"{self.name} did not start:\n{self.said()}")
            time.sleep(0.02)

    def close(self) -> None:
        """The proxy has ended; one that does not is killed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> HTTPSConnection:
        """A new connection that trusts the proxy's certificate."""
        context = ssl.create_default_context(cafile=str(self.folder / "attachd.crt"))
        return HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE * 2, context=context)

    def said(self) -> str:
        """All that the proxy wrote: logs of every kind."""
        said = "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))
        # JSON may write a slash in two ways
        return said.replace("\\/", "/")
