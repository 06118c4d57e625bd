"""The backend of docs/backend.md, as a process beside the service."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.process import ROOT, ServiceProcess
from tests.ports import free_port

PAGE: Final = (ROOT / "docs" / "backend.md").read_text("utf-8")
BLOCK: Final = re.compile(r"^```(?:python|toml) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS: Final = dict(BLOCK.findall(PAGE))
CONTENT: Final = b"a photo of a cat"
LIMIT: Final = 40.0


@dataclass
class Backend:
    """The page's program, and what its clients ask of it."""

    base: str
    log: Path

    def ask(self, method: str, path: str, data: object = None, user: str = "u42", **headers: str) -> tuple[int, bytes]:
        """Status and body; redirects are followed."""
        body = data if isinstance(data, bytes) or data is None else json.dumps(data).encode()
        url = path if path.startswith("http") else self.base + path
        request = urllib.request.Request(url, data=body, method=method, headers={"X-User": user, **headers})
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    """Both run, each knowing the other."""
    port, secret = free_port(), "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    settings, program, log = tmp_path / "attachd.toml", tmp_path / "backend.py", tmp_path / "backend.log"
    settings.write_text(SNIPPETS["attachd.toml"].replace("8000", str(port)).replace("whsec_…", secret))
    program.write_text(SNIPPETS["backend.py"])
    with ServiceProcess(tmp_path / "service", ATTACHD_CONFIG=str(settings)) as service, log.open("wb") as said:
        (command,) = re.findall(r"^\$ attachd (token service .*)$", PAGE, re.MULTILINE)
        token = subprocess.run(
            [sys.executable, "-m", "service", *command.split()],
            cwd=ROOT, env=service.environment, capture_output=True, text=True, check=True, timeout=LIMIT,
        ).stdout.strip()  # fmt: skip
        known = {
            "ATTACHD_URL": service.url,
            "ATTACHD_TOKEN": token,
            "ATTACHD_WEBHOOK_SECRET": secret,
            "PORT": str(port),
        }
        process = subprocess.Popen([sys.executable, program], env=os.environ | known, stdout=said, stderr=said)
        try:
            found = Backend(f"http://127.0.0.1:{port}", log)
            deadline = time.monotonic() + LIMIT
            while True:
                with contextlib.suppress(OSError):
                    found.ask("GET", "/")
                    break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield found
        finally:
            process.kill()
            process.wait(LIMIT)


def until_sent(backend: Backend, message: str, file_id: str) -> None:
    """The message is there, once the backend has heard of its file."""
    deadline = time.monotonic() + LIMIT
    while backend.ask("PUT", f"/messages/{message}", {"file_id": file_id})[0] == 409:
        assert time.monotonic() < deadline, backend.log.read_text()
        time.sleep(0.05)


def test_an_attachment_lives_with_its_messages(backend: Backend) -> None:
    """From the link to the last message's end, as a client and its readers see it."""
    made = json.loads(backend.ask("POST", "/attachments", {"size": len(CONTENT)})[1])
    status, answer = backend.ask("PUT", made["url"], CONTENT)
    assert (status, json.loads(answer)["file_id"]) == (201, made["file_id"])
    until_sent(backend, "m1", made["file_id"])
    assert backend.ask("GET", "/messages/m1/file") == (200, CONTENT)
    # forwarded, and deleted in the first chat
    assert backend.ask("PUT", "/messages/m2", {"file_id": made["file_id"]})[0] == 204
    assert backend.ask("DELETE", "/messages/m1")[0] == 204
    assert backend.ask("GET", "/messages/m2/file") == (200, CONTENT)
    assert backend.ask("DELETE", "/messages/m2")[0] == 204
    status, answer = backend.ask("PUT", "/messages/m3", {"file_id": made["file_id"]})
    assert status == 502
    assert json.loads(answer)["type"] == "urn:attachd:problem:gone"


def test_what_is_not_ones_own_is_refused(backend: Backend) -> None:
    """Another user's file, a file that is not there, one that is too large, and an event that nobody signed."""
    made = json.loads(backend.ask("POST", "/attachments", {"size": 5})[1])
    assert backend.ask("PUT", made["url"], CONTENT)[0] == 413
    assert backend.ask("PUT", "/messages/m1", {"file_id": made["file_id"]})[0] == 409
    assert backend.ask("PUT", made["url"], b"hello")[0] == 201
    until_sent(backend, "m1", made["file_id"])
    assert backend.ask("PUT", "/messages/m2", {"file_id": made["file_id"]}, user="u43")[0] == 409
    forged = json.dumps({"type": "file.ready", "id": "evt_x", "data": {"file_id": "f_x", "owner": "u43"}}).encode()
    signed = {"webhook-id": "evt_x", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"}
    assert backend.ask("POST", "/attachd-events", forged, **signed)[0] == 401


def test_it_fits_on_a_page() -> None:
    """The program has at most 60 lines of code."""
    assert len([line for line in SNIPPETS["backend.py"].splitlines() if line.strip()]) <= 60
