"""The put command against a small tus server of the test's own, which misbehaves on order."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from service.commands import put as put_module
from service.commands.put import UploadFailed, put, upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

UPLOAD_PATH = "/files/u_" + "a" * 26
FILE_ID = "f_" + "b" * 26


@dataclass
class TusServer:
    """One upload behind one link. `faults` are used up one per request of that method."""

    port: int = 0
    length: int | None = None
    metadata: str = ""
    content: bytearray = field(default_factory=bytearray)
    requests: list[str] = field(default_factory=list)
    bodies: list[int] = field(default_factory=list)
    #: method -> what to do instead: a status, "cut:N" (keep N bytes of the body, then hang up), or
    #: "silent" (neither read nor answer until `heard` is set)
    faults: dict[str, deque[int | str]] = field(default_factory=dict)
    tell_file_id: bool = True
    on_patch: Callable[[], object] = lambda: None
    heard: threading.Event = field(default_factory=threading.Event)

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.port}/files?sig=token"

    def fault(self, method: str) -> int | str | None:
        queue = self.faults.get(method)
        return queue.popleft() if queue else None

    def fail(self, method: str, *faults: int | str) -> None:
        self.faults.setdefault(method, deque()).extend(faults)


def _handler(server: TusServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        def reply(self, status: int, body: bytes = b"", **headers: object) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def faulty(self) -> bool:
            server.requests.append(self.command)
            fault = server.fault(self.command)
            if fault is None:
                return False
            self.close_connection = True
            if isinstance(fault, int):
                self.reply(fault, b'{"title": "No", "detail": "try later"}', Retry_After=0, Connection="close")
            elif fault == "silent":
                server.heard.wait(10)
            else:
                kept = int(fault.removeprefix("cut:"))
                server.content += self.rfile.read(kept)
                self.connection.close()
            return True

        def do_POST(self) -> None:
            if self.faulty():
                return
            length = int(self.headers["Upload-Length"])
            if server.length not in (None, length):
                self.reply(403, b'{"title": "Used", "detail": "the link belongs to another file"}')
                return
            server.length = length
            server.metadata = self.headers["Upload-Metadata"]
            extra: dict[str, Any] = {"Attachd_File_Id": FILE_ID} if length == 0 and server.tell_file_id else {}
            self.reply(201, Location=UPLOAD_PATH, Upload_Offset=len(server.content), **extra)

        def do_HEAD(self) -> None:
            if not self.faulty():
                self.reply(200, Upload_Offset=len(server.content), Upload_Length=server.length)

        def do_GET(self) -> None:
            if not self.faulty():
                self.reply(200, b'{"state": "ready", "file_id": "%s"}' % FILE_ID.encode())

        def do_PATCH(self) -> None:
            server.on_patch()
            if self.faulty():
                return
            if int(self.headers["Upload-Offset"]) != len(server.content):
                self.reply(409, Upload_Offset=len(server.content))
                return
            size = int(self.headers["Content-Length"])
            server.bodies.append(size)
            server.content += self.rfile.read(size)
            extra: dict[str, Any] = (
                {"Attachd_File_Id": FILE_ID} if len(server.content) == server.length and server.tell_file_id else {}
            )
            self.reply(204, Upload_Offset=len(server.content), **extra)

    return Handler


@pytest.fixture
def server() -> Iterator[TusServer]:
    state = TusServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.png"
    path.write_bytes(os.urandom(300_000))
    return path


@pytest.fixture
def pauses() -> list[float]:
    """Where the pauses go instead of being slept."""
    return []


def test_a_file_goes_up_whole_in_one_patch(server: TusServer, source: Path, pauses: list[float]) -> None:
    """Without a fault the service holds the file's bytes after one POST and one PATCH."""
    uploaded = upload(source, server.link, sleep=pauses.append)
    assert bytes(server.content) == source.read_bytes()
    assert (server.requests.count("POST"), server.bodies, pauses) == (1, [300_000], [])
    assert uploaded.file_id == FILE_ID


def test_metadata_names_file_and_type(server: TusServer, source: Path) -> None:
    """Upload-Metadata carries the base name and the type guessed from it, base64."""
    upload(source, server.link)
    assert server.metadata == "filename YSBwaG90by5wbmc=,filetype aW1hZ2UvcG5n"


def test_chunk_size_limits_each_request(server: TusServer, source: Path) -> None:
    """With a chunk size no request carries more bytes than that."""
    upload(source, server.link, chunk_size=128_000)
    assert server.bodies == [128_000, 128_000, 44_000]
    assert bytes(server.content) == source.read_bytes()


def test_an_empty_file_needs_no_patch(server: TusServer, tmp_path: Path) -> None:
    """An empty file is complete with its creation."""
    path = tmp_path / "empty"
    path.touch()
    assert upload(path, server.link).file_id == FILE_ID
    assert "PATCH" not in server.requests


def test_the_file_id_is_asked_for_where_the_answer_lacked_it(server: TusServer, source: Path) -> None:
    """When the completing answer carries no file id, the upload's status gives it."""
    server.tell_file_id = False
    assert upload(source, server.link).file_id == FILE_ID
    assert server.requests[-1] == "GET"


def test_a_cut_is_resumed_at_the_servers_offset(server: TusServer, source: Path, pauses: list[float]) -> None:
    """After a cut the next PATCH starts at the offset the server kept, in the same upload."""
    server.fail("PATCH", "cut:100000", "cut:70000")
    upload(source, server.link, sleep=pauses.append)
    assert bytes(server.content) == source.read_bytes()
    assert server.bodies == [130_000]
    assert server.requests.count("POST") == 1


@pytest.mark.parametrize("status", [409, 423, 429, 460, 500, 503, 507])
def test_a_retryable_status_is_tried_again(server: TusServer, source: Path, pauses: list[float], status: int) -> None:
    """These statuses on a PATCH cost a pause, not the upload."""
    server.fail("PATCH", status)
    upload(source, server.link, sleep=pauses.append)
    assert bytes(server.content) == source.read_bytes()
    assert len(pauses) == 1


@pytest.mark.parametrize("method", ["POST", "HEAD", "GET"])
def test_any_request_may_fail_once(server: TusServer, source: Path, pauses: list[float], method: str) -> None:
    """A 503 to creation, offset or status is tried again as well."""
    server.tell_file_id = False
    server.fail(method, 503)
    assert upload(source, server.link, sleep=pauses.append).file_id == FILE_ID
    assert len(pauses) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 415])
def test_another_4xx_ends_the_upload(server: TusServer, source: Path, pauses: list[float], status: int) -> None:
    """Every other 4xx fails at once, with the service's own words."""
    server.fail("PATCH", status)
    with pytest.raises(UploadFailed, match=f"{status}: try later"):
        upload(source, server.link, sleep=pauses.append)
    assert pauses == []


def test_attempts_without_progress_are_counted(server: TusServer, source: Path, pauses: list[float]) -> None:
    """Ten attempts in a row that move no byte end the command."""
    server.fail("PATCH", *[503] * 10)
    with pytest.raises(UploadFailed, match="gave up after 10 attempts without progress: 503: try later"):
        upload(source, server.link, sleep=pauses.append)
    assert len(pauses) == 9


def test_progress_resets_the_count(server: TusServer, source: Path, pauses: list[float]) -> None:
    """As long as each attempt moves a byte there is no limit to their number."""
    server.fail("PATCH", *["cut:1000"] * 25)
    upload(source, server.link, sleep=pauses.append)
    assert bytes(server.content) == source.read_bytes()


def test_pauses_grow_and_stay_bounded(server: TusServer, source: Path, pauses: list[float]) -> None:
    """Each pause lies in the upper half of a ceiling that doubles from 0.5 s up to 30 s."""
    server.fail("PATCH", *[503] * 10)
    with pytest.raises(UploadFailed):
        upload(source, server.link, sleep=pauses.append)
    ceilings = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert all(ceiling / 2 <= pause <= ceiling for pause, ceiling in zip(pauses, ceilings, strict=True))


def test_a_second_run_goes_on_where_the_first_ended(server: TusServer, source: Path) -> None:
    """A new run with the same link and file sends only what is missing, and nothing is kept locally."""
    server.fail("PATCH", "cut:200000", 400)
    with pytest.raises(UploadFailed):
        upload(source, server.link, sleep=lambda _: None)
    upload(source, server.link)
    assert server.bodies == [100_000]
    assert bytes(server.content) == source.read_bytes()


def test_the_link_of_another_file_is_refused_in_words(server: TusServer, source: Path) -> None:
    """A link used for a file of another length fails and says so."""
    server.length = 5
    with pytest.raises(UploadFailed, match="not for this file, or is used up .*belongs to another file"):
        upload(source, server.link)


def test_a_file_that_grows_fails(server: TusServer, source: Path) -> None:
    """A file that grows while it is sent fails, and the service never gets its last byte."""

    def grow() -> None:
        with source.open("ab") as stream:
            stream.write(b"more")

    server.on_patch = grow
    server.fail("PATCH", "cut:1000")
    with pytest.raises(UploadFailed, match="changed while it was being sent"):
        upload(source, server.link, sleep=lambda _: None)
    assert len(server.content) < 300_000


def test_a_file_that_shrinks_fails(server: TusServer, source: Path) -> None:
    """A file that shrinks while it is sent fails, and the service never gets its last byte."""
    server.on_patch = lambda: os.truncate(source, 150_000)
    server.fail("PATCH", "cut:1000")
    with pytest.raises(UploadFailed, match="changed while it was being sent"):
        upload(source, server.link, sleep=lambda _: None)
    assert len(server.content) < 300_000


def test_a_silent_server_is_left(
    server: TusServer, source: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection on which nothing moves is given up after the limit, and the upload resumes."""
    monkeypatch.setattr(put_module, "SILENCE_SECONDS", 0.2)
    server.fail("PATCH", "silent")
    upload(source, server.link, sleep=pauses.append)
    server.heard.set()
    assert bytes(server.content) == source.read_bytes()
    assert len(pauses) == 1


def test_the_token_is_not_in_an_error(source: Path) -> None:
    """When nobody listens the message names the host and the reason, and not the token."""
    with pytest.raises(UploadFailed, match="127.0.0.1:1 .Connection refused") as caught:
        upload(source, "http://127.0.0.1:1/files?sig=secret", sleep=lambda _: None)
    assert "secret" not in str(caught.value)


def test_the_command_prints_the_file_id_alone(server: TusServer, source: Path) -> None:
    """Standard output is the file id and a newline; off a terminal standard error stays empty."""
    result = CliRunner().invoke(put, [str(source), server.link])
    assert (result.exit_code, result.stdout, result.stderr) == (0, FILE_ID + "\n", "")


def test_the_command_fails_on_one_line(server: TusServer, source: Path) -> None:
    """A failure is exit code 1, one line on standard error and nothing on standard output."""
    server.fail("POST", 401)
    result = CliRunner().invoke(put, [str(source), server.link])
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"Error: refused \(401: try later\)\n", result.stderr)


@pytest.mark.parametrize(
    "link",
    ["files?sig=x", "ftp://host/files?sig=x", "http://host/files", "http://host/d/f_x?sig=x", "http:///files?sig=x"],
)
def test_a_link_of_another_shape_is_a_usage_error(source: Path, link: str) -> None:
    """What is not an upload link is refused with exit code 2 before anything is sent."""
    assert CliRunner().invoke(put, [str(source), link]).exit_code == 2


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """A file that is not there is refused with exit code 2."""
    assert CliRunner().invoke(put, [str(tmp_path / "none"), "http://host/files?sig=x"]).exit_code == 2
