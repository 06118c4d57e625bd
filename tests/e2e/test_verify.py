"""`attachd verify`: damage is found, named by its byte range and told; what is right is left in peace."""

from __future__ import annotations

import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.process import ROOT, ServiceProcess
from tests.e2e.test_operating import begin_upload, patch, run
from tests.e2e.upkeep import DiskPlace, Place
from tests.web.harness import Site

BLOCK = 64 * 2**10
CONTENT = random.Random(1).randbytes(3 * BLOCK + 1000)
SIZE = len(CONTENT)


def flipped(content: bytes, *positions: int) -> bytes:
    """With one bit changed at each of the positions."""
    changed = bytearray(content)
    for position in positions:
        changed[position] ^= 1
    return bytes(changed)


def stored(place: Place, *contents: bytes, **settings: str) -> list[tuple[str, str]]:
    """Id and storage key of a file with each of the contents."""
    place.service.settings.update(settings)

    async def upload(here: Site) -> list[str]:
        return [await here.upload(content) for content in contents]

    ids = place.made(upload)
    keys = dict(place.rows("select id, key from files"))
    return [(file_id, keys[file_id]) for file_id in ids]


def ranges(event: dict[str, Any]) -> list[tuple[int, int]]:
    return [(start, end) for start, end in event["ranges"]]


@pytest.mark.parametrize("strong", ["none", "sha256"])
def test_what_is_right_is_left_in_peace(place: Place, strong: str) -> None:
    """Files of any size verify, one by one and all: exit code 0, no event, and no byte changed."""
    files = stored(place, CONTENT, b"", CONTENT[:BLOCK], ATTACHD_STRONG_HASH=strong)
    before = place.snapshot()
    for file_id, _ in files[:2]:
        done = place.run("verify", file_id)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"ok {file_id}: ")
    done = place.run("verify", "--all")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 files, 257.0KiB read: 0 corrupt\n", "")
    assert place.events("file.corrupt") == []
    assert place.snapshot() == before


def test_o7_damage_is_named_by_the_range_of_its_block(place: Place) -> None:
    """O7: one flipped bit in the middle and in the last block: two ranges, exit code 1, one event, one log record."""
    (bad, key), (good, _) = stored(place, CONTENT, CONTENT)
    place.replace(key, flipped(CONTENT, BLOCK + 5, SIZE - 1))
    done = place.run("verify", "--all")
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    assert lines == [
        f"corrupt {bad}: bytes [{BLOCK}, {2 * BLOCK}) of {SIZE}: not what was stored",
        f"corrupt {bad}: bytes [{3 * BLOCK}, {SIZE}) of {SIZE}: not what was stored",
    ]
    assert last.startswith("2 files, ")
    assert last.endswith(": 1 corrupt")
    (event,) = place.events("file.corrupt")
    assert (event["file_id"], event["damaged_bytes"]) == (bad, BLOCK + 1000)
    assert ranges(event) == [(BLOCK, 2 * BLOCK), (3 * BLOCK, SIZE)]
    (record,) = done.stderr.splitlines()
    assert "file_corrupt" in record
    assert bad in record
    assert place.run("verify", good).returncode == 0
    assert place.run("verify", bad).returncode == 1
    assert len(place.events("file.corrupt")) == 2


def test_blocks_side_by_side_are_one_range(place: Place) -> None:
    """Neighbouring damage is told as one run of bytes."""
    ((file_id, key),) = stored(place, CONTENT)
    place.replace(key, flipped(CONTENT, 0, BLOCK, 2 * BLOCK + 1))
    done = place.run("verify", file_id)
    assert done.stdout == f"corrupt {file_id}: bytes [0, {3 * BLOCK}) of {SIZE}: not what was stored\n"


def test_what_is_missing_is_told(place: Place) -> None:
    """A file without an object, an empty one too; one that is too short; one that is too long."""
    files = stored(place, CONTENT, b"", CONTENT, CONTENT)
    (gone, gone_key), (empty, empty_key), (short, short_key), (long, long_key) = files
    place.lose(gone_key)
    place.lose(empty_key)
    place.replace(short_key, CONTENT[: BLOCK + 7])
    place.replace(long_key, CONTENT + b"!")
    done = place.run("verify", "--all")
    assert done.returncode == 1
    assert set(done.stdout.splitlines()[:-1]) == {
        f"corrupt {gone}: bytes [0, {SIZE}) of {SIZE}: missing",
        f"corrupt {empty}: bytes [0, 0) of 0: missing",
        f"corrupt {short}: bytes [{BLOCK + 7}, {SIZE}) of {SIZE}: missing",
        f"corrupt {long}: bytes [{SIZE}, {SIZE + 1}) of {SIZE}: more than was stored",
    }
    assert {event["file_id"] for event in place.events("file.corrupt")} == {gone, empty, short, long}


def test_a_stronger_digest_is_checked_too(tmp_path: Path) -> None:
    """Where only the SHA-256 of a block differs, the record itself is damaged, and is told."""
    place = DiskPlace(tmp_path, {"ATTACHD_STRONG_HASH": "sha256"})
    ((file_id, _),) = stored(place, CONTENT)
    place.change("update files set block_sha256 = zeroblob(length(block_sha256))")
    done = place.run("verify", file_id)
    assert done.returncode == 1
    assert done.stdout == f"corrupt {file_id}: bytes [0, {SIZE}) of {SIZE}: the manifest in the database is damaged\n"


def test_what_there_is_not_is_said(place: Place) -> None:
    """An id that no file has, one that is none, a deleted file, and no id at all: exit code 2 and a line each."""

    async def deleted(here: Site) -> str:
        path = await here.create(5)
        await here.patch(path, 0, b"hello")
        file_id = await here.file_id(path)
        assert (await here.ask("DELETE", path, {"Tus-Resumable": "1.0.0"})).status == 204
        return file_id

    gone = place.made(deleted)
    for arguments in (
        ["f_" + "a" * 26],
        ["f_x"],
        [gone],
        [],
        [gone, "--all"],
        [gone, "--rate", "0"],
        ["--rate", "fast"],
    ):
        done = place.run("verify", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (said,) = done.stderr.splitlines()
        assert said.startswith("Error: ")
    assert place.run("verify", "--all").stdout == "0 files, 0B read: 0 corrupt\n"


def test_a_file_that_cannot_be_read_keeps_no_other(tmp_path: Path) -> None:
    """It has a line with the reason and makes the exit code 2; the others are verified."""
    place = DiskPlace(tmp_path, {})
    (odd, key), (bad, bad_key) = stored(place, CONTENT, CONTENT)
    path = place.data / "files" / key[2:4] / key
    path.unlink()
    path.mkdir()
    place.replace(bad_key, flipped(CONTENT, 0))
    done = place.run("verify", "--all")
    assert done.returncode == 2
    assert any(line.startswith(f"unchecked {odd}: ") for line in done.stdout.splitlines())
    assert any(line.startswith(f"corrupt {bad}: ") for line in done.stdout.splitlines())
    assert done.stdout.endswith(": 1 corrupt, 1 unchecked\n")


def test_the_rate_is_kept(tmp_path: Path) -> None:
    """So many bytes take at least so long."""
    place = DiskPlace(tmp_path, {})
    ((file_id, _),) = stored(place, bytes(3 * 2**20))
    began = time.monotonic()
    assert place.run("verify", file_id, "--rate", "1MiB/s").returncode == 0
    assert time.monotonic() - began >= 3


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of one: what a program writes to the second comes out of the first."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def shown(ours: int, process: subprocess.Popen[bytes], text: bytes = b"") -> bytes:
    """What the terminal shows up to the text, or to the end of the program."""
    seen, deadline = b"", time.monotonic() + 45
    while not text or text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([ours], [], [], 0.1)[0]:
            try:
                seen += os.read(ours, 4096)
            except OSError:
                return seen
        elif process.poll() is not None:
            return seen
    return seen


def begun(place: Place, theirs: int, *arguments: str, stdout: Any) -> subprocess.Popen[bytes]:
    """The command, whose standard error is a terminal."""
    environment = place.service.environment | {"TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "service", "verify", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=theirs
    )
    os.close(theirs)
    return process


@pytest.fixture
def _hears_ctrl_c() -> Iterator[None]:
    """What is started inside does, also where these tests run behind `nohup` or `&`: ignoring a signal is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_hears_ctrl_c")
def test_ctrl_c_ends_it_cleanly(tmp_path: Path, terminal: tuple[int, int]) -> None:
    """Within the pause of a slow rate: exit code 130, a line of what was done, no traceback."""
    place = DiskPlace(tmp_path, {})
    stored(place, bytes(8 * 2**20))
    with begun(place, terminal[1], "--all", "--rate", "16KiB/s", stdout=subprocess.PIPE) as process:
        try:
            # the bar knows how much there is once reading begins
            seen = shown(terminal[0], process, b"1.0/8.0 MiB")
            process.send_signal(signal.SIGINT)
            seen += shown(terminal[0], process)
            assert process.wait(30) == 130
        finally:
            process.kill()
    assert b"interrupted after 0 files, 1MiB read: 0 corrupt" in seen
    assert b"Traceback" not in seen


def test_findings_go_to_standard_output_beside_a_bar(tmp_path: Path, terminal: tuple[int, int]) -> None:
    """Where the bar is on a terminal and standard output is a file, the file has the findings."""
    place = DiskPlace(tmp_path, {})
    ((file_id, key),) = stored(place, CONTENT)
    place.replace(key, flipped(CONTENT, 0))
    report = tmp_path / "report.txt"
    with report.open("wb") as file, begun(place, terminal[1], file_id, stdout=file) as process:
        seen = shown(terminal[0], process)
        assert process.wait(30) == 1
    assert report.read_text() == f"corrupt {file_id}: bytes [0, {SIZE}) of {SIZE}: not what was stored\n"
    assert b"verifying" in seen


def test_a_service_beside_it_is_not_disturbed(tmp_path: Path) -> None:
    """Damage is found and told in the outbox of a running service, whose PATCH under way goes on."""
    place = DiskPlace(tmp_path, {"ATTACHD_BLOCK_SIZE": "64KiB"})
    ((file_id, key),) = stored(place, CONTENT)
    place.replace(key, flipped(CONTENT, 0))
    with ServiceProcess(tmp_path, **place.service.settings) as service:
        busy = begin_upload(service, 10)
        with patch(service, busy, 10, b"hello") as line:
            assert run(service, "verify", "--all").returncode == 1
            line.sendall(b"world")
            assert line.recv(1000).startswith(b"HTTP/1.1 204 ")
        assert service.status(busy)["state"] == "ready"
    assert [event["file_id"] for event in place.events("file.corrupt")] == [file_id]
