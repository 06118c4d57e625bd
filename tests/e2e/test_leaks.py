"""The search that every run of these tests ends with, and what it is made for: a service that is shown tokens."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.leaks import leaks
from tests.e2e.process import LOGS, ServiceProcess

UPLOAD_ID = "u_" + "a2" * 13


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"path": "/files?sig=abcdefgh.ijkl"}', ["a signature parameter"]),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", ["a token"]),
        (f"GET /files/{UPLOAD_ID} 404", ["an upload's address"]),
        (f'{{"upload_id": "{UPLOAD_ID}", "detail": "/files?sig=***"}}', []),
    ],
)
def test_a6_what_must_not_be_logged_is_found(tmp_path: Path, line: str, found: list[str]) -> None:
    """A token, a parameter `sig` and an upload's address are found on their line and not quoted; the rest may stand."""
    log = tmp_path / "service.log"
    log.write_text(f"first\n{line}\n")
    assert leaks([log, tmp_path / "none"]) == [f"{log}:2: {kind}" for kind in found]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a6_one_line_for_each_request_without_its_token(tmp_path: Path, workers: str) -> None:
    """Good, wrong and malformed requests have a line each, with the request's id as it came in and went out."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS=workers, ATTACHD_LOG_LEVEL="debug") as service:
        link = service.mint_upload()
        created = urllib.request.Request(
            link,
            method="POST",
            headers={"Tus-Resumable": "1.0.0", "Upload-Length": "5", "X-Request-ID": "first.1"},
        )
        with urllib.request.urlopen(created) as answer:
            location = answer.headers["Location"]
            assert answer.headers["X-Request-ID"] == "first.1"
        fields = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        sent = urllib.request.Request(location, method="PATCH", data=b"hello", headers=fields)
        with urllib.request.urlopen(sent) as answer:
            file_id, made = answer.headers["Attachd-File-Id"], answer.headers["X-Request-ID"]
        urllib.request.urlopen(service.mint_download(file_id)).close()
        for wrong in (f"{link}x", f"{service.url}/nowhere?sig={link.partition('sig=')[2]}", f"{location}x"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(wrong).close()
        connection = http.client.HTTPConnection("127.0.0.1", service.port)
        connection.putrequest("GET", "/d/" + link.partition("?")[2], skip_host=True)
        connection.putheader("Host", "a b\tc")
        connection.putheader("Authorization", f"Bearer {link.partition('sig=')[2]}")
        connection.endheaders()
        connection.getresponse().read()
        connection.close()
        service.terminate()
    told = [json.loads(line) for line in service.log_path.read_text().splitlines()]
    answered = {each["request_id"]: each for each in told if each["event"] == "request_answered"}
    assert len(answered) >= 6
    assert answered["first.1"]["status"] == 201
    assert {"kid", "jti", "upload_id", "method", "route", "seconds"} <= set(answered["first.1"])
    assert answered[made] | {"received": 5, "file_id": file_id, "status": 204} == answered[made]
    assert service.log_path in LOGS
    assert leaks([service.log_path]) == []
