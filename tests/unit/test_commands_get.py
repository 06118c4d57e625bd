"""The get command against a small file server of the test's own, which misbehaves on order."""

from __future__ import annotations

import fcntl
import io
import json
import random
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.commands.get import fetch, get
from service.commands.line import GaveUp, Patience
from service.commands.remote import GetFailed
from service.hashing import BlockHasher, manifest, manifest_json
from service.model import FileId

FILE_ID = FileId("f_" + "a" * 26)
BLOCK = 64 * 1024


@dataclass
class FileServer:
    """One file behind one link. `faults` are used up one per request for the file's bytes."""

    content: bytes
    port: int = 0
    disposition: str = "attachment; filename=\"x.bin\"; filename*=UTF-8''x.bin"
    #: "cut:N" after N bytes, "flip:N" the byte N of the file, "whole" in spite of Range, or a status
    faults: deque[str | int] = field(default_factory=deque)
    manifest_faults: deque[int] = field(default_factory=deque)
    #: [start, end) of each request for bytes
    asked: list[tuple[int, int]] = field(default_factory=list)

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.port}/prefix/d/{FILE_ID}/x.bin?sig=secret"

    def manifest(self) -> dict[str, object]:
        hasher = BlockHasher(BLOCK, strong=False)
        hasher.update(memoryview(self.content))
        blocks = hasher.take_finished()
        last = hasher.finish()
        return manifest_json(FILE_ID, manifest([*blocks, *([last] if last else [])], len(self.content), BLOCK))


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def reply(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, status: int) -> None:
            problem = {"title": "No", "detail": "not now"}
            self.reply(status, json.dumps(problem).encode(), Retry_After="7")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if not self.path.endswith("?sig=secret"):
                self.refuse(401)
            elif self.path.startswith(f"/prefix/d/{FILE_ID}/manifest?"):
                if server.manifest_faults:
                    self.refuse(server.manifest_faults.popleft())
                else:
                    self.reply(200, json.dumps(server.manifest()).encode())
            elif self.command == "HEAD":
                self.reply(200, b"", Content_Disposition=server.disposition)
            else:
                self.file()

        def file(self) -> None:
            fault = server.faults.popleft() if server.faults else ""
            if isinstance(fault, int):
                self.refuse(fault)
                return
            kind, _, number = fault.partition(":")
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, end = (int(match[1]), int(match[2]) + 1) if match else (0, len(server.content))
            server.asked.append((start, end))
            if kind == "whole":
                match, start, end = None, 0, len(server.content)
            content = bytearray(server.content)
            if kind == "flip":
                content[int(number)] ^= 1
            body = bytes(content[start:end])
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: int(number)] if kind == "cut" else body)
            self.close_connection = kind == "cut"

    return Handler


@pytest.fixture
def server() -> Iterator[FileServer]:
    content = random.Random(5).randbytes(5 * BLOCK + 1000)
    server = FileServer(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        http.daemon_threads = True
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        http.shutdown()
        thread.join()


@dataclass
class Pauses:
    """A patience that does not wait, and what it was told."""

    reasons: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def patience(self, attempts: int = 4) -> Patience:
        return Patience(retrying=self.reasons.append, sleep=self.seconds.append, attempts=attempts)


def download(server: FileServer, final: Path, pauses: Pauses | None = None) -> Path | None:
    return fetch(server.link, final, patience=(pauses or Pauses()).patience())


def test_a_file_comes_down_whole(server: FileServer, tmp_path: Path) -> None:
    """The file has the bytes, and nothing else stays beside it."""
    assert download(server, tmp_path / "f") == tmp_path / "f"
    assert (tmp_path / "f").read_bytes() == server.content
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_empty_file_comes_down(server: FileServer, tmp_path: Path) -> None:
    """A file of no bytes is made without asking for any."""
    server.content = b""
    download(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b""
    assert server.asked == []


def test_a_cut_download_goes_on_where_it_was_cut(server: FileServer, tmp_path: Path) -> None:
    """After a cut in the middle of a block only what is missing is asked for."""
    server.faults.extend(["cut:100000", "cut:1"])
    download(server, tmp_path / "f")
    size = len(server.content)
    assert server.asked == [(0, size), (100_000, size), (100_001, size)]
    assert (tmp_path / "f").read_bytes() == server.content


def test_a_new_process_goes_on_from_the_part(server: FileServer, tmp_path: Path) -> None:
    """What an earlier process left is checked against the manifest and not fetched again."""
    (tmp_path / "f.part").write_bytes(server.content[:100_000])
    download(server, tmp_path / "f")
    assert server.asked == [(100_000, len(server.content))]
    assert (tmp_path / "f").read_bytes() == server.content


def test_only_bad_blocks_of_a_part_are_fetched(server: FileServer, tmp_path: Path) -> None:
    """Of a part with one damaged block just that block is asked for."""
    damaged = bytearray(server.content)
    damaged[2 * BLOCK + 5] ^= 1
    (tmp_path / "f.part").write_bytes(damaged)
    download(server, tmp_path / "f")
    assert server.asked == [(2 * BLOCK, 3 * BLOCK)]
    assert (tmp_path / "f").read_bytes() == server.content


def test_a_part_that_was_damaged_in_its_last_block_is_mended(server: FileServer, tmp_path: Path) -> None:
    """If the half block of an earlier process is wrong, that block is fetched once more, from its start."""
    damaged = bytearray(server.content[: BLOCK + 500])
    damaged[BLOCK + 3] ^= 1
    (tmp_path / "f.part").write_bytes(damaged)
    download(server, tmp_path / "f")
    assert server.asked == [(BLOCK + 500, len(server.content)), (BLOCK, len(server.content))]
    assert (tmp_path / "f").read_bytes() == server.content


def test_a_part_of_another_file_does_no_harm(server: FileServer, tmp_path: Path) -> None:
    """Of a part that has nothing in common with the file, and is longer, nothing stays."""
    (tmp_path / "f.part").write_bytes(bytes(len(server.content) + 9999))
    download(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == server.content


def test_a_server_without_ranges_still_lets_it_end(server: FileServer, tmp_path: Path) -> None:
    """A whole answer to a Range is used from where it was asked for."""
    (tmp_path / "f.part").write_bytes(server.content[:BLOCK])
    server.faults.append("whole")
    download(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == server.content


def test_a_damaged_block_is_named_and_the_file_does_not_appear(server: FileServer, tmp_path: Path) -> None:
    """A mismatch names the block's byte range; the name is never given to damaged bytes."""
    server.faults.append(f"flip:{3 * BLOCK + 7}")
    with pytest.raises(GetFailed, match=f"bytes {3 * BLOCK}-{4 * BLOCK - 1} "):
        download(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    download(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == server.content


@pytest.mark.parametrize("status", [429, 500, 503, 507])
def test_what_may_be_retried_is_retried_when_the_server_says(server: FileServer, tmp_path: Path, status: int) -> None:
    """A refusal that is worth a retry, of manifest or file, is waited out, not sooner than Retry-After."""
    server.manifest_faults.append(status)
    server.faults.append(status)
    pauses = Pauses()
    download(server, tmp_path / "f", pauses)
    assert len(pauses.seconds) == 2
    assert min(pauses.seconds) >= 7
    assert pauses.reasons == [f"{status}: not now"] * 2


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416])
def test_a_final_answer_is_not_asked_for_twice(server: FileServer, tmp_path: Path, status: int) -> None:
    """A 4xx that no retry can change ends the command with the server's words."""
    server.manifest_faults.append(status)
    pauses = Pauses()
    with pytest.raises(GaveUp, match=f"{status}: not now"):
        download(server, tmp_path / "f", pauses)
    assert pauses.seconds == []


def test_it_gives_up_when_nothing_moves(server: FileServer, tmp_path: Path) -> None:
    """So many failures in a row without a byte end it; the part stays for the next time."""
    server.faults.extend(["cut:1000", *["cut:0"] * 4])
    with pytest.raises(GaveUp, match="4 attempts without progress"):
        download(server, tmp_path / "f")
    assert (tmp_path / "f.part").stat().st_size == 1000


def test_progress_renews_its_patience(server: FileServer, tmp_path: Path) -> None:
    """More cuts than attempts do not matter as long as each attempt brings something."""
    server.faults.extend(["cut:5000"] * 12)
    download(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == server.content


def test_a_manifest_of_another_file_is_refused(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest has to name the file that the link names."""
    wrong = server.manifest() | {"file_id": "f_" + "b" * 26}
    monkeypatch.setattr(server, "manifest", lambda: wrong)
    with pytest.raises(GetFailed, match="another file"):
        download(server, tmp_path / "f")


def test_two_processes_do_not_write_one_part(server: FileServer, tmp_path: Path) -> None:
    """A part that somebody else writes is left alone."""
    with (tmp_path / "f.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(GetFailed, match="another process"):
            download(server, tmp_path / "f")


def test_standard_output_gets_verified_blocks_only(server: FileServer) -> None:
    """Before a damaged block all blocks were written, and of it not a byte."""
    server.faults.append(f"flip:{2 * BLOCK}")
    out = io.BytesIO()
    with pytest.raises(GetFailed):
        fetch(server.link, None, stdout=out, patience=Pauses().patience())
    assert out.getvalue() == server.content[: 2 * BLOCK]


def test_standard_output_survives_a_cut(server: FileServer) -> None:
    """A cut leaves no gap and no repetition on standard output."""
    server.faults.extend(["cut:70000", "cut:10"])
    out = io.BytesIO()
    fetch(server.link, None, stdout=out, patience=Pauses().patience())
    assert out.getvalue() == server.content


# the command


def run(*arguments: str) -> tuple[int, bytes, str]:
    result = CliRunner().invoke(get, list(arguments))
    return result.exit_code, result.stdout_bytes, result.stderr


def test_the_service_names_the_file(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without -o the file gets the service's name, made safe, and that name is all that is printed."""
    monkeypatch.chdir(tmp_path)
    server.disposition = "attachment; filename=\"x\"; filename*=UTF-8''..%2F..%2Fb%C3%B6se.sh"
    assert run(server.link) == (0, "_.._böse.sh\n".encode(), "")
    assert (tmp_path / "_.._böse.sh").read_bytes() == server.content


def test_a_name_from_the_service_replaces_nothing(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is there stays unless -o names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.bin").write_text("mine")
    code, _, error = run(server.link)
    assert (code, (tmp_path / "x.bin").read_text()) == (1, "mine")
    assert "exists already" in error
    assert run(server.link, "-o", "x.bin") == (0, b"", "")
    assert (tmp_path / "x.bin").read_bytes() == server.content


def test_o_may_be_a_directory(server: FileServer, tmp_path: Path) -> None:
    """With a directory after -o the service's name is used inside it."""
    assert run(server.link, "-o", str(tmp_path)) == (0, f"{tmp_path}/x.bin\n".encode(), "")


def test_a_dash_is_standard_output(server: FileServer) -> None:
    """`-o -` writes the bytes and nothing else."""
    assert run(server.link, "-o", "-") == (0, server.content, "")


def test_a_failure_is_one_line_without_the_token(server: FileServer, tmp_path: Path) -> None:
    """Exit 1, one line on standard error, and no token in it."""
    server.manifest_faults.append(410)
    code, out, error = run(server.link, "-o", str(tmp_path / "f"))
    assert (code, out, error) == (1, b"", "Error: refused (410: not now)\n")


def test_an_output_that_cannot_be_written_is_one_line(server: FileServer, tmp_path: Path) -> None:
    """A missing directory is told in words."""
    code, _, error = run(server.link, "-o", str(tmp_path / "no" / "f"))
    assert code == 1
    assert error.count("\n") == 1
    assert "No such file or directory" in error


@pytest.mark.parametrize(
    "link",
    [
        "nonsense",
        "ftp://h/d/" + FILE_ID + "?sig=x",
        "http://h/d/f_short?sig=x",
        "http://h/files?sig=x",
        "http://h/d/" + FILE_ID,
        "http://[h/d/" + FILE_ID + "?sig=x",
    ],
)
def test_what_is_no_download_link_is_a_usage_error(link: str) -> None:
    """Exit 2 before anything is asked."""
    assert run(link)[0] == 2
