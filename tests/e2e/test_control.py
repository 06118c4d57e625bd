"""The control API of real processes: what one worker was told holds for all, and a kill forgets nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.links import SERVICE_SCOPES, mint_service
from tests.e2e.process import ServiceProcess
from tests.e2e.working import OCTETS, PATIENCE, ask, line_to, until


def token_of(service: ServiceProcess) -> str:
    """A service token with every scope."""
    key = service._keys().signing_key()
    audience = service._audience(service.url)
    return mint_service(key, audience=audience, scopes=SERVICE_SCOPES, now=time.time(), expires_in=3600)


def call(
    service: ServiceProcess, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    """One request below `/v1`: status and JSON. Header names: `_` for `-`."""
    sent = {"Authorization": f"Bearer {token_of(service)}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = None
    if body is not None:
        content, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
    with line_to(service) as line:
        line.request(method, f"/v1{path}", content, sent)
        answer = line.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else {}


def store(service: ServiceProcess, content: bytes, **terms: Any) -> dict[str, Any]:
    """A file; what came with its link."""
    status, made = call(service, "POST", "/upload-links", {"max": len(content)} | terms)
    assert status == 201
    answer = ask(service, "POST", made["url"], content, Upload_Length=str(len(content)), Content_Type=OCTETS)
    assert answer.status == 201
    return made


def lines_to_each(service: ServiceProcess, count: int) -> dict[int, http.client.HTTPConnection]:
    """A connection to each of the workers, by process id; the test closes them."""
    lines: dict[int, http.client.HTTPConnection] = {}
    deadline = time.monotonic() + PATIENCE
    while len(lines) < count:
        assert time.monotonic() < deadline
        line = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        # answered, it has been accepted
        line.request("OPTIONS", "/files")
        line.getresponse().read()
        pid = service.worker_of(line.sock)
        if pid in lines:
            line.close()
        else:
            lines[pid] = line
    return lines


@pytest.mark.alone
def test_a_revoked_link_stops_within_a_second_on_every_worker(tmp_path: Path) -> None:
    """Asked without a pause on a connection to each of three workers, every one refuses the link in time."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS="3") as service:
        made = store(service, b"content")
        parts = urlsplit(made["download_url"])
        last: dict[int, float] = {}
        over = threading.Event()
        lines = lines_to_each(service, 3)

        def fetch(pid: int, line: http.client.HTTPConnection) -> None:
            status = 200
            while status == 200 and not over.is_set():
                line.request("GET", f"{parts.path}?{parts.query}")
                asked = time.monotonic()
                answer = line.getresponse()
                answer.read()
                status = answer.status
                if status == 200:
                    last[pid] = asked
            assert status == 401

        threads = [threading.Thread(target=fetch, args=item) for item in lines.items()]
        for thread in threads:
            thread.start()
        until(lambda: len(last) == 3)
        status, _ = call(service, "POST", "/revocations", {"file_id": made["file_id"]})
        revoked = time.monotonic()
        assert status == 201
        for thread in threads:
            thread.join(30)
        over.set()
        late = {pid: asked - revoked for pid, asked in last.items()}
        print("the last request that was served, seconds after the revocation:", late)
        assert max(late.values()) < 1.0
        for line in lines.values():
            line.close()


def test_an_erasure_that_is_killed_goes_on(tmp_path: Path) -> None:
    """All processes are killed in its middle, twice: in the end no byte of the owner is left, and all was told."""
    count = 60
    with ServiceProcess(tmp_path, ATTACHD_SWEEP_INTERVAL="1s") as service:
        made = [store(service, b"%d" % number, owner="u1") for number in range(count)]
        kept = store(service, b"kept", owner="u2")
        status, job = call(service, "DELETE", "/owners/u1")
        assert (status, job["state"]) == (202, "running")
        left = count
        for _ in range(2):
            # all may be gone before anybody looks
            until(lambda before=left: usage(service)["files"] < max(before, 1))  # type: ignore[misc]
            left = usage(service)["files"]
            service.restart()
        until(lambda: call(service, "GET", f"/jobs/{job['job_id']}")[1]["state"] == "done")
        print("files that were left at the second kill:", left)
        assert usage(service)["files"] == 0
        statuses = {ask(service, "GET", service.mint_download(each["file_id"])).status for each in made}
        assert statuses == {410}
        assert ask(service, "GET", kept["download_url"]).status == 200
        _, page = call(service, "GET", "/events?limit=500")
        deleted = [event["data"]["file_id"] for event in page["events"] if event["type"] == "file.deleted"]
        assert sorted(deleted) == sorted(each["file_id"] for each in made)
        assert [path.stat().st_size for path in (service.data / "files").rglob("*") if path.is_file()] == [4]


def usage(service: ServiceProcess) -> dict[str, Any]:
    return call(service, "GET", "/owners/u1/usage")[1]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_request_that_a_kill_cut_off_is_answered_as_the_first_time(tmp_path: Path, moment: str) -> None:
    """Killed before or after its plan was recorded, a repeated request makes one link, however often it is sent."""
    body = {"max": 5, "owner": "u1"}
    with ServiceProcess(tmp_path) as service:
        if moment == "after":
            first = call(service, "POST", "/upload-links", body, Idempotency_Key="k")
        else:
            os.kill(service.pid, signal.SIGSTOP)
            threading.Thread(target=_sent_in_vain, args=(service, body)).start()
            time.sleep(0.2)
            first = None
        service.restart()
        answers = [call(service, "POST", "/upload-links", body, Idempotency_Key="k") for _ in range(3)]
        assert len({json.dumps(answer) for answer in [*answers, *([first] if first else [])]}) == 1
        assert answers[0][0] == 201
        assert call(service, "POST", "/upload-links", {"max": 6}, Idempotency_Key="k")[0] == 422


def _sent_in_vain(service: ServiceProcess, body: object) -> None:
    try:
        call(service, "POST", "/upload-links", body, Idempotency_Key="k")
    except (OSError, http.client.HTTPException):
        return
