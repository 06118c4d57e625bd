"""What the benchmark holds servers against does what it says, and so does what it measures with."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import xxhash

from tests.bench.client import OCTETS, Answer, Connection, Source, head
from tests.bench.limits import Limit, LimitC, ReceiveOnly, WriteOnly, compilable
from tests.bench.machine import unread_bytes
from tests.bench.sides import Program
from tests.bench.trimming import BEGINNING, Trimmed

MIB = 1 << 20
SIZE = 3 * MIB + 5

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source", SIZE)


def upload(side: Program, source: Source, *, bodies: bool = True) -> tuple[Path, list[Answer]]:
    """Two PATCHes, of a byte more than 1 MiB and of the rest: the file, and their answers."""
    answers = []
    with Connection(side.address) as connection:
        made = connection.ask(head("POST", "/files", side.address, upload_length=SIZE, content_length=0)).expect(201)
        path = made.header("Location")
        for start, end in ((0, MIB + 1), (MIB + 1, SIZE)):
            length = end - start
            connection.send(
                head("PATCH", path, side.address, upload_offset=start, content_length=length, content_type=OCTETS)
            )
            if bodies:
                source.send(connection, start, end)
            answers.append(connection.answer().expect(204, offset=end))
    return side.files / path.rpartition("/")[2], answers


def test_the_loop_in_c_keeps_and_hashes_each_body(tmp_path: Path, source: Source) -> None:
    """The file has all bytes in order, and the answers tell the XXH3-128 of each body."""
    if why := compilable():
        pytest.skip(why)
    with LimitC(tmp_path / "side", "one", "complete") as side:
        path, answers = upload(side, source)
        content = source.path.read_bytes()
        assert path.read_bytes() == content
        hashes = [xxhash.xxh3_128(body).hexdigest() for body in (content[: MIB + 1], content[MIB + 1 :])]
        assert [answer.header("X-Hash") for answer in answers] == hashes


def test_the_loop_in_python_keeps_each_body(tmp_path: Path, source: Source) -> None:
    """The file has all bytes in order."""
    with Limit(tmp_path / "side", "one", "none") as side:
        path, _ = upload(side, source)
        assert path.read_bytes() == source.path.read_bytes()


def test_what_is_only_received_is_dropped(tmp_path: Path, source: Source) -> None:
    """Every byte is acknowledged, and none is stored."""
    with ReceiveOnly(tmp_path / "side", "one", "none") as side:
        path, _ = upload(side, source)
        assert path.stat().st_size == 0


def test_what_is_only_written_has_not_been_sent(tmp_path: Path, source: Source) -> None:
    """As many bytes are stored as the heads announce, without a body."""
    with WriteOnly(tmp_path / "side", "one", "none") as side:
        path, _ = upload(side, source, bodies=False)
        assert path.stat().st_size == SIZE


def test_an_upload_larger_than_its_source_has_it_again(tmp_path: Path, source: Source) -> None:
    """What goes out after the last byte of the source is its first."""
    near, far = socket.create_server(("127.0.0.1", 0)), bytearray()
    with near, Connection(near.getsockname()) as connection:
        peer, _ = near.accept()
        with peer:
            source.send(connection, SIZE - 2, SIZE + 3)
            connection.socket.shutdown(socket.SHUT_WR)
            while more := peer.recv(100):
                far += more
    content = source.path.read_bytes()
    assert far == content[-2:] + content[:3]


def test_bytes_that_nobody_has_read_are_counted() -> None:
    """As many as came to the port; none once they are read, and never those of a socket that only listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        port = listener.getsockname()[1]
        assert unread_bytes(port) == 0
        peer, _ = listener.accept()
        with peer:
            near.sendall(bytes(1000))
            assert unread_bytes(port) == 1000
            peer.recv(1000, socket.MSG_WAITALL)
            assert unread_bytes(port) == 0


def test_a_trimmed_file_keeps_beginning_and_end(tmp_path: Path) -> None:
    """What is between goes, once it is worth it, and takes no room; the length stays."""
    path, content = tmp_path / "files" / "0", os.urandom(6 * MIB)
    path.parent.mkdir()
    path.write_bytes(content[: 3 * MIB])
    trimmed = Trimmed(path.parent, keep=2 * MIB, piece=MIB)
    trimmed.trim()
    assert path.read_bytes() == content[: 3 * MIB]
    path.write_bytes(content)
    trimmed.trim()
    assert path.read_bytes() == content[:BEGINNING] + bytes(3 * MIB) + content[4 * MIB :]
    assert path.stat().st_blocks * 512 < 4 * MIB


def test_a_file_that_grows_elsewhere_is_no_measurement(tmp_path: Path) -> None:
    """Where nothing was trimmed the file has been stored whole, which fails."""
    with pytest.raises(AssertionError, match="no large file grew"), Trimmed(tmp_path):
        pass
