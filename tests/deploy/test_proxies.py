"""nginx, HAProxy and Caddy as deploy/ configures them, each for real, between a client and the service."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPMessage, HTTPSConnection, IncompleteRead
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.conftest import require
from tests.deploy.proxies import NAMES, Proxy
from tests.e2e.process import ServiceProcess

#: bytes; more than sockets and proxies hold on the way
SIZE = 32_000_000
TUS = {"Tus-Resumable": "1.0.0"}
#: a client that claims to be a proxy
SPOOFED = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-For": "203.0.113.9",
    "Forwarded": "host=evil.example;proto=http",
}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Each proxy that is here; `ATTACHD_TEST_REQUIRE` may want it."""
    require(request.param)
    return str(request.param)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """The service with the settings that the proxies' files name but the public URL: it has to find that out."""
    with ServiceProcess(tmp_path, ATTACHD_TRUSTED_PROXIES="127.0.0.1") as running:
        yield running


class Answer(NamedTuple):
    """A whole answer; its connection is closed."""

    status: int
    headers: HTTPMessage
    body: bytes


def ask(proxy: Proxy, method: str, url: str, headers: dict[str, str] | None = None) -> Answer:
    """What a request without a body is answered, on a connection of its own."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    with closing(proxy.connect()) as connection:
        connection.request(method, target, headers=headers or {})
        return answer_of(connection)


def answer_of(connection: HTTPSConnection) -> Answer:
    with connection.getresponse() as response:
        return Answer(response.status, response.headers, response.read())


def begin(proxy: Proxy, service: ServiceProcess) -> tuple[str, str]:
    """A new upload of SIZE bytes: its link and its address."""
    link = service.mint_upload(base=proxy.url, max_size=SIZE)
    answer = ask(proxy, "POST", link, TUS | {"Upload-Length": str(SIZE)})
    assert answer.status == 201, answer
    return link, str(answer.headers["Location"])


def reaches(proxy: Proxy, upload: str, offset: int) -> bool:
    """Whether HEAD tells the offset within half a minute; all it says before is that, less, or 423."""
    for _ in range(300):
        answer = ask(proxy, "HEAD", upload, TUS)
        assert answer.status in {200, 423}
        if answer.status == 200 and int(answer.headers["Upload-Offset"]) == offset:
            return True
        time.sleep(0.1)
    return False


def append(connection: HTTPSConnection, upload: str, start: int, body: bytes) -> None:
    """A PATCH that announces all the bytes from `start` on, with these as what has been sent of them."""
    connection.putrequest("PATCH", urlsplit(upload).path)
    fields = {"Upload-Offset": str(start), "Content-Type": "application/offset+octet-stream"}
    for field, value in (TUS | fields | {"Content-Length": str(SIZE - start)}).items():
        connection.putheader(field, value)
    connection.endheaders()
    connection.send(body)


def cut(proxy: Proxy, service: ServiceProcess, upload: str, content: bytes) -> None:
    """Half of the content is sent of a PATCH of all, the service has it, and the connection is gone."""
    with closing(proxy.connect()) as connection:
        append(connection, upload, 0, content[: SIZE // 2])
        deadline = time.monotonic() + 30
        while service.metrics().get('attachd_upload_bytes_received_total{protocol="tus"}', 0) < SIZE // 2:
            assert time.monotonic() < deadline, "the proxy holds back what it was sent"
            time.sleep(0.05)


def finish(proxy: Proxy, upload: str, start: int, content: bytes) -> str:
    """The rest is sent; the file's id."""
    with closing(proxy.connect()) as connection:
        append(connection, upload, start, content[start:])
        answer = answer_of(connection)
    assert answer.status == 204, answer
    return str(answer.headers["Attachd-File-Id"])


def secrets_of(*urls: str) -> list[str]:
    """What no log may have: the token of each link, what opens each upload."""
    found = []
    for url in urls:
        signature = re.search(r"sig=([^&]+)", url)
        found.append(signature[1].rpartition(".")[2] if signature else url[-13:])
    return found


def test_the_proxy_takes_its_file(name: str, service: ServiceProcess, tmp_path: Path) -> None:
    """The proxy's own check finds nothing to say against the configuration."""
    proxy = Proxy(name, tmp_path, service)
    done = subprocess.run(proxy.check, env=proxy.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Caddy warns of the test's certificate only, which names no OCSP server
    assert not re.search(r"\[(warn|WARNING)\]", done.stderr), done.stderr


def test_k2_a_cut_upload_goes_on_and_no_log_has_its_secrets(name: str, service: ServiceProcess, tmp_path: Path) -> None:
    """What arrived before a cut is kept, the rest follows, the file comes back whole; logs know paths, no tokens."""
    content = os.urandom(SIZE)
    with Proxy(name, tmp_path, service, patience="1s") as proxy:
        link, upload = begin(proxy, service)
        cut(proxy, service, upload, content)
        assert reaches(proxy, upload, SIZE // 2)
        file_id = finish(proxy, upload, SIZE // 2, content)

        download = service.mint_download(file_id, base=proxy.url)
        assert ask(proxy, "GET", download).body == content
        answer = ask(proxy, "GET", download, {"Range": "bytes=10-19"})
        assert (answer.status, answer.body) == (206, content[10:20])
        # each has its own way to complain of a server that goes, and of one that is gone
        with closing(proxy.connect()) as connection:
            connection.request("GET", download.removeprefix(proxy.url))
            with connection.getresponse() as response:
                service.kill()
                with pytest.raises((IncompleteRead, OSError)):
                    response.read()
        assert ask(proxy, "GET", download).status in {502, 503}
    said = proxy.said()
    assert f"/d/{file_id}" in said, "nothing was logged"
    assert "/files/u_" in said
    for secret in secrets_of(link, upload, download):
        assert secret not in said


def test_k2_a_large_head_and_a_refusal_pass(name: str, service: ServiceProcess, tmp_path: Path) -> None:
    """Metadata of the largest size goes through, and a refusal is attachd's, not the proxy's."""
    with Proxy(name, tmp_path, service) as proxy:
        # 16 KiB of values, a third more in base64
        metadata = "filename " + "QUJD" * (16 * 1024 // 3)
        link = service.mint_upload(base=proxy.url, max_size=SIZE)
        answer = ask(proxy, "POST", link, TUS | {"Upload-Length": "5", "Upload-Metadata": metadata})
        assert answer.status == 201, answer
        link = service.mint_upload(base=proxy.url, max_size=SIZE)
        answer = ask(proxy, "POST", link, TUS | {"Upload-Length": str(SIZE + 1)})
        assert (answer.status, answer.headers["Content-Type"]) == (413, "application/problem+json")


def test_K1_location_is_the_proxy_whatever_a_client_claims(name: str, service: ServiceProcess, tmp_path: Path) -> None:
    """`Location` begins with the address that was asked, by https, and with nothing of a forged header."""
    with Proxy(name, tmp_path, service) as proxy:
        link = service.mint_upload(base=proxy.url, max_size=SIZE)
        answer = ask(proxy, "POST", link, TUS | SPOOFED | {"Upload-Length": "5"})
        assert answer.status == 201, answer
        assert answer.headers["Location"].startswith(f"{proxy.url}/files/u_")


def test_S1_head_of_an_upload_is_423_while_the_service_is_away(
    name: str, service: ServiceProcess, tmp_path: Path
) -> None:
    """HEAD is not answered for the dead with what has clients start over, and goes on after the restart."""
    with Proxy(name, tmp_path, service, patience="1s") as proxy:
        _, upload = begin(proxy, service)
        cut(proxy, service, upload, os.urandom(SIZE))
        assert reaches(proxy, upload, SIZE // 2)
        service.kill()
        answer = ask(proxy, "HEAD", upload, TUS)
        assert (answer.status, answer.headers["Retry-After"]) == (423, "1")
        service.restart()
        assert reaches(proxy, upload, SIZE // 2)
        assert upload[-13:] not in proxy.said()


@pytest.mark.parametrize("name", ["haproxy", "caddy"])
def test_S1_a_request_waits_out_a_restart(name: str, service: ServiceProcess, tmp_path: Path) -> None:
    """A request made while nobody listens is answered by the service that starts a moment later."""
    require(name)
    with Proxy(name, tmp_path, service) as proxy:
        _, upload = begin(proxy, service)
        service.kill()
        restart = threading.Timer(0.5, service.start)
        restart.start()
        try:
            answer = ask(proxy, "HEAD", upload, TUS)
        finally:
            restart.join()
        assert (answer.status, answer.headers["Upload-Offset"]) == (200, "0")


def test_k2_nginx_sends_the_files_itself(tmp_path: Path) -> None:
    """In mode accel nginx sends the bytes with the guarding headers, and shows nobody where it has them from."""
    require("nginx")
    content = os.urandom(SIZE)
    settings = {"ATTACHD_TRUSTED_PROXIES": "127.0.0.1", "ATTACHD_DOWNLOAD_MODE": "accel"}
    with ServiceProcess(tmp_path, **settings) as service, Proxy("nginx", tmp_path, service) as proxy:
        _, upload = begin(proxy, service)
        file_id = finish(proxy, upload, 0, content)
        answer = ask(proxy, "GET", service.mint_download(file_id, base=proxy.url))
        assert answer.body == content
        assert answer.headers["Server"].startswith("nginx")
        assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert service.metrics().get('attachd_download_bytes_sent_total{mode="sendfile"}', 0) == 0
        assert ask(proxy, "GET", f"{proxy.url}/_attachd/files/").status == 404
