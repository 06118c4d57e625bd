"""What is measured: each case prepares a piece of work for one side, which is then timed.

Whatever a client would have beforehand (links, an upload to ask about, a file to fetch) is made
before the clock starts. The work checks what it is answered: a side that loses bytes is not fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from service.storage.s3.appender import _UNDER_WAY as S3_UNDER_WAY
from service.units import format_size
from tests.bench.client import OCTETS, Answer, Connection, Source, Unexpected, burst, head
from tests.bench.held import finish_together
from tests.bench.limits import WriteOnly
from tests.bench.neighbours import Neighbours
from tests.bench.sides import AttachdS3, Bare, Side, store_missing, target
from tests.bench.trimming import KEEP as TRIMMED_KEEP
from tests.bench.trimming import Trimmed

MIB: Final = 1 << 20
#: a filename and a filetype, without which tuspyserver answers no HEAD
METADATA: Final = "filename ZmlsZS5iaW4=,filetype YXBwbGljYXRpb24vb2N0ZXQtc3RyZWFt"

Unit = Literal["bytes", "requests"]


@dataclass(frozen=True)
class Load:
    """How much of it: the sizes that `--size` and `--quick` choose."""

    size: int = 512 * MIB
    chunk: int = 8 * MIB
    mib: int = MIB
    small: int = 64 * 1024
    files: int = 1000
    at_once: int = 8
    readers: int = 4
    heads: int = 10_000
    connections: int = 16
    #: uploads that are compared by their size, each as often as it goes into `size`
    sizes: tuple[int, ...] = (MIB, 16 * MIB, 256 * MIB, 4096 * MIB)
    each: int = MIB
    open: int = 300
    open_size: int = 2 * MIB

    @classmethod
    def quick(cls) -> Load:
        """Sizes that show that it works, and nothing else."""
        sizes = (MIB // 4, MIB, 2 * MIB, 4 * MIB)
        return cls(size=3 * MIB, chunk=MIB, mib=MIB // 2, files=48, heads=200, sizes=sizes, open=20, open_size=MIB // 2)


@dataclass(frozen=True)
class Work:
    """A piece of work for one side: `run` does it and tells how long each request took, if there are many."""

    run: Callable[[], list[float]]
    #: bytes, or requests
    amount: int
    #: bytes that the side will store
    writes: int = 0


@dataclass(frozen=True)
class Case:
    """`set_up` once for each started side; what it returns goes into `work`, once a round."""

    title: str
    unit: Unit
    set_up: Callable[[Side, Load, Source], Any]
    work: Callable[[Side, Load, Source, Any], Work]
    #: why it cannot be measured here; empty if it can
    missing: Callable[[], str] = str
    #: by name, what each round measures one after another, each in a table of its own
    parts: Callable[[Load], Mapping[str, Load]] = lambda load: {"": load}


def _upload(side: Side, creation: str, source: Source, size: int, chunk: int) -> tuple[str, Answer]:
    """The upload's location and the last answer, once the side has acknowledged every byte."""
    with Connection(side.address) as connection:
        return _upload_by(connection, side, creation, source, size, chunk)


def _upload_by(
    connection: Connection, side: Side, creation: str, source: Source, size: int, chunk: int
) -> tuple[str, Answer]:
    made = connection.ask(head("POST", creation, side.address, upload_length=size, content_length=0)).expect(201)
    location = made.header("Location")
    path, last = target(location), made
    for start in range(0, size, chunk):
        end = min(start + chunk, size)
        request = head(
            "PATCH", path, side.address, upload_offset=start, content_length=end - start, content_type=OCTETS
        )
        connection.send(request)
        if not isinstance(side, WriteOnly):
            source.send(connection, start, end)
        last = connection.answer().expect(204, offset=end)
    return location, last


def _nothing(side: Side, load: Load, source: Source) -> None:
    """Needs nothing beforehand."""


def _one(side: Side, load: Load, source: Source, _: object) -> Work:
    return _large(side, source, load.size, load.size)


def _chunks(side: Side, load: Load, source: Source, _: object) -> Work:
    return _large(side, source, load.size, load.chunk)


def _mib_chunks(side: Side, load: Load, source: Source, _: object) -> Work:
    return _large(side, source, load.size, load.mib)


def _at_once(side: Side, load: Load, source: Source, _: object) -> Work:
    each = load.size // load.at_once
    creations = side.creations(load.at_once, each)

    def run() -> list[float]:
        with ThreadPoolExecutor(load.at_once) as threads:
            sending = [threads.submit(_upload, side, creation, source, each, each) for creation in creations]
            for sent in sending:
                sent.result()
        return []

    return Work(run, amount=each * load.at_once, writes=each * load.at_once)


def _large(side: Side, source: Source, size: int, chunk: int) -> Work:
    (creation,) = side.creations(1, size)

    def run() -> list[float]:
        _upload(side, creation, source, size, chunk)
        return []

    return Work(run, amount=size, writes=size)


def _by_size(load: Load) -> Mapping[str, Load]:
    """For each size as many uploads as make up a large one."""
    return {format_size(each): replace(load, each=each) for each in load.sizes}


def _sizes(side: Side, load: Load, source: Source, _: object) -> Work:
    creations = side.creations(max(load.size // load.each, 1), load.each)
    amount = load.each * len(creations)

    large = load.each > 2 * TRIMMED_KEEP

    def run() -> list[float]:
        with Trimmed(side.unfinished) if large else nullcontext(), Connection(side.address) as connection:
            for creation in creations:
                _upload_by(connection, side, creation, source, load.each, load.each)
        return []

    return Work(run, amount=amount, writes=min(amount, 2 * TRIMMED_KEEP))


def _open(side: Side, load: Load, source: Source, _: object) -> Work:
    paths = _made(side, load.open, load.open_size)
    amount = load.open_size * load.open

    def run() -> list[float]:
        finish_together(side.address, paths, source, load.open_size)
        return []

    return Work(run, amount=amount, writes=amount)


def _small(side: Side, load: Load, source: Source, _: object) -> Work:
    return _files(side, load, source, load.small, load.files)


def _mib_files(side: Side, load: Load, source: Source, _: object) -> Work:
    return _files(side, load, source, load.mib, load.files // 2)


def _files(side: Side, load: Load, source: Source, size: int, count: int) -> Work:
    body = os.pread(source.fd, size, 0)
    requests = [
        head("POST", creation, side.address, upload_length=len(body), content_length=len(body), content_type=OCTETS)
        for creation in side.creations(count, len(body))
    ]

    def kept_whole(answer: Answer) -> None:
        answer.expect(201, offset=len(body))

    return Work(
        lambda: burst(side.address, requests, body, load.connections, kept_whole),
        amount=count,
        writes=count * len(body),
    )


def _a_file(side: Side, load: Load, source: Source) -> str:
    (creation,) = side.creations(1, load.size)
    location, last = _upload(side, creation, source, load.size, load.size)
    # Written back now, lest it be while it is read.
    os.sync()
    return side.download(location, last)


def _download(side: Side, load: Load, source: Source, path: str) -> Work:
    return _read(side, load, path, 1)


def _readers(side: Side, load: Load, source: Source, path: str) -> Work:
    return _read(side, load, path, load.readers)


def _read(side: Side, load: Load, path: str, readers: int) -> Work:
    def read() -> None:
        with Connection(side.address) as connection:
            connection.send(head("GET", path, side.address))
            answer, length = connection.download()
            answer.expect(200)
            if length != load.size:
                raise Unexpected(f"expected {load.size} bytes, got {length}")

    def run() -> list[float]:
        with ThreadPoolExecutor(readers) as threads:
            for done in [threads.submit(read) for _ in range(readers)]:
                done.result()
        return []

    return Work(run, amount=load.size * readers)


def _unfinished(side: Side, load: Load, source: Source) -> list[str]:
    """An upload for each connection."""
    return _made(side, load.connections, load.size)


def _made(side: Side, count: int, size: int) -> list[str]:
    """The request targets of as many empty uploads."""
    with Connection(side.address) as connection:
        requests = (
            head("POST", creation, side.address, upload_length=size, content_length=0, upload_metadata=METADATA)
            for creation in side.creations(count, size)
        )
        return [target(connection.ask(request).expect(201).header("Location")) for request in requests]


def _heads(side: Side, load: Load, source: Source, paths: list[str]) -> Work:
    requests = [head("HEAD", paths[at % len(paths)], side.address) for at in range(load.heads)]

    def at_the_start(answer: Answer) -> None:
        answer.expect(200, offset=0)

    return Work(lambda: burst(side.address, requests, b"", load.connections, at_the_start), amount=load.heads)


def _s3_put(side: Side, load: Load, source: Source, _: object) -> Work:
    return _s3_large(side, source, load.size, load.size, at_once=S3_UNDER_WAY)


def _s3_chunks(side: Side, load: Load, source: Source, _: object) -> Work:
    # each PATCH is answered when its bytes are in the bucket, so one part at a time is the limit
    return _s3_large(side, source, load.size, load.chunk, at_once=1)


def _s3_large(side: Side, source: Source, size: int, chunk: int, *, at_once: int) -> Work:
    if not isinstance(side, Bare):
        return _large(side, source, size, chunk)

    def run() -> list[float]:
        side.tell(f"put {source.path} {size} {at_once}")
        return []

    return Work(run, amount=size, writes=size)


def _s3_file(side: Side, load: Load, source: Source) -> str:
    if not isinstance(side, Bare):
        return _a_file(side, load, source)
    side.tell(f"put {source.path} {load.size} {S3_UNDER_WAY}")
    os.sync()
    return ""


def _s3_get(side: Side, load: Load, source: Source, path: str) -> Work:
    if not isinstance(side, Bare):
        return _download(side, load, source, path)

    def run() -> list[float]:
        side.tell(f"get {load.size}")
        return []

    return Work(run, amount=load.size)


def _s3_slow_neighbours(side: Side, load: Load, source: Source, _: object) -> Work:
    assert isinstance(side, AttachdS3)
    alone = _large(side, source, load.size, load.size)
    paths = _made(side, side.NEIGHBOURS, load.size)

    def run() -> list[float]:
        with Neighbours(side.address, paths, load.size):
            return alone.run()

    return Work(run, amount=alone.amount, writes=alone.writes)


CASES: Final[Mapping[str, Case]] = {
    "one": Case("{size} in one PATCH", "bytes", _nothing, _one),
    "chunks": Case("{size} in {chunk} PATCHes", "bytes", _nothing, _chunks),
    "mib-chunks": Case("{size} in {mib} PATCHes", "bytes", _nothing, _mib_chunks),
    "eight": Case("{size} as {at_once} uploads at once", "bytes", _nothing, _at_once),
    "sizes": Case(
        "{size} as uploads of {each}, each in one PATCH on one connection", "bytes", _nothing, _sizes, parts=_by_size
    ),
    "open": Case("{open} bodies of {open_size} open at once, all finished then", "bytes", _nothing, _open),
    "small": Case("{small} creation-with-upload, {connections} connections", "requests", _nothing, _small),
    "mib-files": Case("{mib} creation-with-upload, {connections} connections", "requests", _nothing, _mib_files),
    "download": Case("download of {size}, one reader", "bytes", _a_file, _download),
    "readers": Case("download of {size}, {readers} readers", "bytes", _a_file, _readers),
    "head": Case("HEAD, {connections} connections", "requests", _unfinished, _heads),
    "s3-put": Case("{size} in one PATCH onto a bucket", "bytes", _nothing, _s3_put, store_missing),
    "s3-chunks": Case("{size} in {chunk} PATCHes onto a bucket", "bytes", _nothing, _s3_chunks, store_missing),
    "s3-get": Case("download of {size} from a bucket, one reader", "bytes", _s3_file, _s3_get, store_missing),
    "s3-slow-neighbours": Case(
        "{size} in one PATCH onto a bucket, alone and beside ten clients of 1 KB/s",
        "bytes",
        _nothing,
        _s3_slow_neighbours,
        store_missing,
    ),
}
