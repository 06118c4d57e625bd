"""A disk that is full, read-only, slow or gone, and a database that is locked or damaged.

Whatever it is: clients are told to come again and never to start over, other uploads go on, and
once it is over all goes on from where it was, without a restart.
"""

from __future__ import annotations

import os
import random
import resource
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.cost import Cost
from tests.e2e.lines import Answer, Line, append, ask, create, download, finish, offset_of, patch, until
from tests.e2e.process import ROOT, ServiceProcess
from tests.e2e.sick import SickProcess
from tests.volumes import read_only, small_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# on a loaded machine a start alone can take ten seconds
pytestmark = pytest.mark.timeout(180)

MIB: Final = 2**20
UPLOADS: Final = 10


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The same process for all: that it needs no restart is what is shown."""
    with ServiceProcess(tmp_path_factory.mktemp("service")) as running:
        yield running


class Uploads:
    """Ten uploads of one size, with their contents."""

    def __init__(self, service: ServiceProcess, size: int, seed: int = 0) -> None:
        self.service = service
        self.contents = [random.Random(f"{seed} {number}").randbytes(size) for number in range(UPLOADS)]
        self.urls = [create(service, size) for _ in self.contents]

    def append_all(self) -> list[Answer]:
        """A PATCH with the whole of each, all at once."""

        def one(number: int) -> Answer:
            return append(self.service, self.urls[number], 0, self.contents[number])

        with ThreadPoolExecutor(UPLOADS) as threads:
            return list(threads.map(one, range(UPLOADS)))

    def assert_all_finish(self) -> None:
        """Each goes on from where the service says, and is stored as it was sent."""
        for url, content in zip(self.urls, self.contents, strict=True):
            finish(self.service, url, content)
            assert download(self.service, url) == content


def assert_comes_again(answer: Answer, *slugs: str) -> None:
    """An error that is worth a retry, and says when."""
    assert answer.slug in slugs, answer
    assert answer.status == (507 if answer.slug == "storage-full" else 503)
    assert int(answer.headers["retry-after"]) > 0


# --- full ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_D5_files_that_cannot_grow_at_a_random_byte(service: ServiceProcess, seed: int) -> None:
    """Ten uploads of which the system takes so many bytes and no more keep just these, are told 507, and all finish
    once it takes more; a smaller upload does not notice.
    """
    size = 6 * MIB
    uploads = Uploads(service, size, seed)
    most = random.Random(seed).randrange(4 * MIB, size)
    limits = resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    for url, answer in zip(uploads.urls, uploads.append_all(), strict=True):
        assert_comes_again(answer, "storage-full")
        assert answer.offset == most
        assert offset_of(service, url) == most
    small = create(service, 10)
    assert append(service, small, 0, b"helloworld").status == 204
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, limits)
    uploads.assert_all_finish()
    assert download(service, small) == b"helloworld"


def test_D5_a_full_disk_and_ten_uploads(tmp_path: Path) -> None:
    """The disk under files and database fills up somewhere in ten uploads: those are 507 and keep what they have, a new
    one is 507, HEAD, downloads and DELETE work; with space given back all ten finish.
    """
    with small_volume(tmp_path / "volume", "64m") as volume, ServiceProcess(volume) as service:
        done = create(service, 1000)
        finish(service, done, bytes(1000))
        for seed in range(3):
            uploads = Uploads(service, 2 * MIB, seed)
            other = create(service, 1000)
            ballast, room = volume / "ballast", random.Random(seed).randrange(MIB, (UPLOADS - 1) * 2 * MIB)
            found = os.statvfs(volume)
            # 16 MiB are kept for the database
            ballast.write_bytes(bytes(found.f_bavail * found.f_frsize - 16 * MIB - room))
            answers = uploads.append_all()
            full = [answer for answer in answers if answer.status != 204]
            assert full
            for answer in full:
                assert_comes_again(answer, "storage-full")
            for url, answer in zip(uploads.urls, answers, strict=True):
                assert offset_of(service, url) == answer.offset
            refused = ask(service, "POST", service.mint_upload(), Upload_Length=str(20 * MIB))
            assert_comes_again(refused, "storage-full")
            assert download(service, done) == bytes(1000)
            assert ask(service, "DELETE", other).status == 204
            ballast.unlink()
            uploads.assert_all_finish()
            for url in uploads.urls:
                assert ask(service, "DELETE", url).status == 204


# --- read-only, gone ------------------------------------------------------------------------------


def test_a_disk_that_turns_read_only(service: ServiceProcess) -> None:
    """Bytes are 503 with Retry-After, and HEAD and downloads work; a PATCH under way whose file is open goes on. Once
    it can be written all goes on.
    """
    content = os.urandom(MIB)
    done, url, under_way = (create(service, len(content)) for _ in range(3))
    finish(service, done, content)
    assert append(service, url, 0, content[:1000]).offset == 1000
    with Line(service.address) as line:
        line.send(patch(under_way, 0, len(content) // 2) + content[:1000])
        until(lambda: offset_of(service, under_way) == 1000, "the PATCH has a file")
        with read_only(service.data / "uploads", service.data / "files"):
            for offset, target in ((1000, url), (0, create(service, len(content)))):
                assert_comes_again(append(service, target, offset, content[offset:]), "storage-unavailable")
                assert offset_of(service, target) == offset
            assert download(service, done) == content
            until(lambda: not ready(service), "the service says that it is not ready")
            line.send(content[1000 : len(content) // 2])
            assert line.answer().status in (204, 423)
    for each in (url, under_way):
        finish(service, each, content)
        assert download(service, each) == content
    until(lambda: ready(service), "the service says that it is ready")


@pytest.mark.parametrize("mount_point", [False, True], ids=["renamed", "unmounted"])
def test_a_disk_that_goes_away_and_comes_back(service: ServiceProcess, mount_point: bool) -> None:
    """While the data directory is not there, or an empty one is in its place, nothing is lost, gone or unknown, and
    nothing grows there; when it is back all goes on.
    """
    content = os.urandom(MIB)
    done, url, untouched = (create(service, len(content)) for _ in range(3))
    finish(service, done, content)
    assert append(service, url, 0, content[:1000]).offset == 1000
    file_id = service.status(done)["file_id"]
    link, upload_link = service.mint_download(file_id), service.mint_upload()
    away = service.data.rename(service.data.with_name("away"))
    if mount_point:
        service.data.mkdir()
    for offset, target in ((1000, url), (0, untouched)):
        assert_comes_again(append(service, target, offset, content[offset:]), "storage-unavailable")
        assert ask(service, "HEAD", target).status in (200, 423)
    assert_comes_again(ask(service, "GET", link), "storage-unavailable")
    assert ask(service, "POST", upload_link, Upload_Length="10").status in (201, 503)
    assert ask(service, "OPTIONS", "/files").status == 200
    until(lambda: not ready(service), "the service says that it is not ready")
    assert not service.data.exists() or not list(service.data.iterdir())
    if mount_point:
        service.data.rmdir()
    away.rename(service.data)
    for each in (url, untouched):
        finish(service, each, content)
        assert download(service, each) == content
    assert ask(service, "GET", link).body == content
    assert ask(service, "POST", upload_link, Upload_Length="10").status == 201
    until(lambda: ready(service), "the service says that it is ready")


def ready(service: ServiceProcess) -> bool:
    """What an orchestrator sees."""
    with Line(("127.0.0.1", service.ops_port)) as line:
        line.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        return line.answer().status == 200


# --- slow ---------------------------------------------------------------------------------------


def test_D6_a_disk_that_hangs_holds_up_nobody_else(tmp_path: Path) -> None:
    """While no write to storage comes back, everything that writes nothing is answered, and the uploads that wait
    are not taken for silent: when the disk goes on, so do they.
    """
    with SickProcess(tmp_path, ATTACHD_BODY_IDLE="1s") as service:
        content = os.urandom(100_000)
        done, other = create(service, len(content)), create(service, len(content))
        finish(service, done, content)
        urls = [create(service, len(content)) for _ in range(2 * UPLOADS)]
        lines = [Line(service.address) for _ in urls]
        service.hold_up_disk()
        for line, url in zip(lines, urls, strict=True):
            line.send(patch(url, 0, len(content)) + content)
        in_flight = 'attachd_transfers_in_flight{direction="in"}'
        until(lambda: service.metrics()[in_flight] == len(urls), "all wait for the disk")
        began = time.monotonic()
        while time.monotonic() < began + 3:
            asked = time.monotonic()
            assert ask(service, "HEAD", other).status == 200
            assert download(service, done) == content
            assert ask(service, "HEAD", urls[0]).status in (200, 423)
            assert create(service, 10)
            assert time.monotonic() < asked + 10
        service.let_disk_go()
        for line, url in zip(lines, urls, strict=True):
            assert line.answer().status == 204
            assert download(service, url) == content
            line.close()


def test_memory_is_bounded_while_a_disk_hangs(tmp_path: Path) -> None:
    """Of what many clients send meanwhile no more is taken in than the buffers hold and each connection may."""
    with SickProcess(tmp_path, ATTACHD_BUFFER_LIMIT="16MiB") as service, ExitStack() as stack:
        cost = Cost(service)
        urls = [create(service, 8 * MIB) for _ in range(100)]
        service.hold_up_disk()
        lines = [stack.enter_context(Line(service.address)) for _ in urls]
        with ThreadPoolExecutor(len(lines)) as threads:
            for line, url in zip(lines, urls, strict=True):
                line.send(patch(url, 0, 8 * MIB))
                threads.submit(line.pour, bytes(MIB), 8 * MIB, 2)
        print(f"{len(lines)} clients: {cost.bytes_more() / MIB:.0f} MiB more", file=sys.stderr)
        # the allocator keeps 64 MiB of what it was given back
        assert cost.bytes_more() < (16 + 64) * MIB + len(lines) * MIB
        service.let_disk_go()
        stack.close()
        until(cost.all_closed, "all descriptors are given back")


# --- a database that is locked or damaged -----------------------------------------------------------


@pytest.mark.alone
def test_a_locked_database_is_waited_for_and_not_for_long(service: ServiceProcess) -> None:
    """While another process holds the database, changes are 503 with Retry-After within the time of one wait, reads
    are answered, and afterwards all goes on.
    """
    content = os.urandom(1000)
    done, url, running = (create(service, len(content)) for _ in range(3))
    finish(service, done, content)
    assert append(service, url, 0, content[:100]).offset == 100
    link = service.mint_upload()
    with Line(service.address) as line, ThreadPoolExecutor(UPLOADS) as threads:
        line.send(patch(running, 0, len(content)) + content[:100])
        until(lambda: offset_of(service, running) == 100, "the PATCH is under way")
        with closing(sqlite3.connect(service.data / "attachd.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            changes = [threads.submit(ask, service, "POST", link, Upload_Length="10") for _ in range(4)]
            changes.append(threads.submit(append, service, url, 100, content[100:]))
            changes.append(threads.submit(ask, service, "DELETE", url))
            assert offset_of(service, url) == 100
            assert service.status(url)["offset"] == 100
            assert download(service, done) == content
            line.send(content[100:200])
            for change in changes:
                assert_comes_again(change.result(), "storage-unavailable")
            # ten seconds, where it were twenty if each wait came after another
            assert time.monotonic() < began + 18
            assert offset_of(service, url) == 100
    for each in (url, running):
        finish(service, each, content)
        assert download(service, each) == content
    assert ask(service, "POST", link, Upload_Length="10").status == 201


def refused(service: ServiceProcess) -> str:
    """What a start says that is refused."""
    ran = subprocess.run(
        service.command, cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    (said,) = [line for line in ran.stderr.splitlines() if not line.startswith("{")]
    assert said.startswith(f"Error: ATTACHD_DATABASE: sqlite:///{service.data / 'attachd.db'}: ")
    return said


def test_a_start_over_a_locked_database_says_so(tmp_path: Path) -> None:
    """A start that waited in vain ends with a line that names the setting and the reason."""
    with SickProcess(tmp_path, hurry=10) as service:
        assert service.terminate() == 0
        with closing(sqlite3.connect(service.data / "attachd.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert "locked" in refused(service)


PADDING: Final = b"YWFh" * 100


def garbled(database: bytes) -> bytes:
    """Its head is something else."""
    return os.urandom(100) + database[100:]


def truncated(database: bytes) -> bytes:
    return database[: len(database) // 8192 * 4096]


def zeroed(database: bytes) -> bytes:
    """A page with uploads on it was lost."""
    at = database.index(PADDING) // 4096 * 4096
    return database[:at] + bytes(4096) + database[at + 4096 :]


def disagreeing(database: bytes) -> bytes:
    """An index lost the page on which it has the newest of its keys."""
    at = database.rindex(b"u_") // 4096 * 4096
    return database[:at] + bytes(4096) + database[at + 4096 :]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> ServiceProcess:
    """A service that has made uploads and was stopped."""
    with ServiceProcess(tmp_path_factory.mktemp("stopped")) as service:
        for _ in range(20):
            padded = f"pad {PADDING.decode()}"
            made = ask(service, "POST", service.mint_upload(), Upload_Length="10", Upload_Metadata=padded)
            assert made.status == 201, made
        assert service.terminate() == 0
    return service


@pytest.mark.parametrize("damage", [garbled, truncated, zeroed, disagreeing])
def test_a_start_over_a_damaged_database_says_so(stopped: ServiceProcess, damage: Callable[[bytes], bytes]) -> None:
    """Whatever was lost of the database, a start ends with a line that names the setting and what is wrong."""
    path = stopped.data / "attachd.db"
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert "the database is damaged (" in refused(stopped)
    path.write_bytes(content)


def test_a_good_copy_helps(stopped: ServiceProcess) -> None:
    """What was refused for its damage starts with the database as it was."""
    with stopped as service:
        assert ask(service, "OPTIONS", "/files").status == 200
