"""`attachd serve`, which kills itself at a chosen call to the store, change on the disk or change of the metadata.

    python -m tests.e2e.killable

reads a JSON object a line, `{"environment": {...}, "log": PATH}`, starts a service with just that
environment and writes its process id. This process imports everything once and forks for each, so
that a service is up in a quarter of the time, which is what hundreds of restarts are made of.

A *point* is the moment before or after an attempt of a call to the store, in the thread that makes
it, a system call by which files come, go and last, or a change of the metadata: `before upload_part
2` is when the second UploadPart is about to be sent, `after advance 1` is when the first commit of
an offset is known to be made. What the clock rather than a request brings about is none. The
service looks for its order, a JSON object, in the file that `KILL_ORDER` names, at each point:
there is none without a file; else it appends the point to the file `log` of the order, and dies by
SIGKILL if the point is `at`. Counting begins anew with each other `log`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.loaders import JSONFileLoader

from service import cli
from service.metadata.sql import SqlMetadata
from service.storage.filesystem import FilesystemStorage, appender, layout, publishing, putting
from service.storage.s3.calls import Calls

#: renewals, questions to a holder, duties, what the sweep forgets, the probe: made when their time has come
_BY_CLOCK: Final = frozenset({"renew", "ask", "take", "give_back", "purge", "forget", "_touch"})


#: system calls that are points; not those that write bytes, whose number depends on how they came
_ON_DISK: Final = frozenset({"ftruncate", "fsync", "rename", "replace", "unlink"})
#: the same for small files; their marks go when their time has come
_ON_DISK_AT_ONCE: Final = frozenset({"fsync", "link"})


class Points:
    """Tells of each point that is reached, and dies at the one that was ordered."""

    def __init__(self, order: Path) -> None:
        self._order = order
        self._lock = threading.Lock()
        self._log = ""
        self._calls: Counter[str] = Counter()

    @contextmanager
    def around(self, call: str) -> Iterator[None]:
        """What is done inside is that call."""
        with self._lock:
            order = None if call in _BY_CLOCK else self._ordered()
            self._calls[call] += 1
            number = self._calls[call]
            self._reach(f"before {call} {number}", order)
        try:
            yield
        finally:
            with self._lock:
                self._reach(f"after {call} {number}", order)

    def _ordered(self) -> dict[str, str] | None:
        try:
            order: dict[str, str] = json.loads(self._order.read_bytes())
        except FileNotFoundError:
            return None
        if order["log"] != self._log:
            self._log = order["log"]
            self._calls.clear()
        return order

    def _reach(self, point: str, order: dict[str, str] | None) -> None:
        if order is None:
            return
        with Path(order["log"]).open("a") as log:
            log.write(point + "\n")
        if point == order["at"]:
            os.kill(os.getpid(), signal.SIGKILL)


def put_points(points: Points) -> None:
    """Every call to the store, and every change of the metadata, is between two points from now on."""
    run, write, unlink = Calls.run, SqlMetadata._write, FilesystemStorage._unlink
    delete = FilesystemStorage.delete

    async def run_between(calls: Calls, operation: str, call: Callable[[], Any], **options: Any) -> Any:
        def attempt() -> Any:
            with points.around(operation):
                return call()

        return await run(calls, operation, attempt, **options)

    async def write_between(store: SqlMetadata, work: Any, **options: Any) -> Any:
        with points.around((work.func if isinstance(work, partial) else work).__name__):
            return await write(store, work, **options)

    async def unlink_between(storage: FilesystemStorage, path: Path) -> None:
        with points.around("unlink"):
            await unlink(storage, path)

    async def delete_between(storage: FilesystemStorage, key: str) -> None:
        with points.around("unlink"):
            await delete(storage, key)

    setattr(FilesystemStorage, "delete", delete_between)  # noqa: B010
    setattr(Calls, "run", run_between)  # noqa: B010
    setattr(FilesystemStorage, "_unlink", unlink_between)  # noqa: B010
    setattr(SqlMetadata, "_write", write_between)  # noqa: B010
    for module in (appender, layout, publishing):
        setattr(module, "os", _System(points, _ON_DISK))  # noqa: B010
    setattr(putting, "os", _System(points, _ON_DISK_AT_ONCE))  # noqa: B010


class _System:
    """The module `os`, with points around what changes files."""

    def __init__(self, points: Points, names: frozenset[str]) -> None:
        self._points = points
        self._names = names

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in self._names:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            with self._points.around(name):
                return found(*arguments, **options)

        return call


def serve(environment: dict[str, str], log: str) -> None:
    """As the command does; the process is a group of its own, as one started by a supervisor is."""
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((0, nothing), (1, output), (2, output)):
        os.dup2(new, old)
    os.environ.clear()
    os.environ.update(environment)
    put_points(Points(Path(environment["KILL_ORDER"])))
    sys.argv[1:] = ["serve"]
    cli.main()


def be_prepared() -> None:
    """What takes a start its time, that can be done once for all."""
    for module in ("service.commands.serve", "alembic.command", "sqlalchemy.dialects.sqlite", "uvloop"):
        importlib.import_module(module)
    # a client reads a megabyte of JSON about S3
    read = functools.cache(partial(JSONFileLoader.load_file, JSONFileLoader()))

    def load_file(_: JSONFileLoader, path: str) -> Any:
        return read(path)

    setattr(JSONFileLoader, "load_file", load_file)  # noqa: B010
    boto3.session.Session().client("s3", region_name="us-east-1").close()


def main() -> None:
    """Until the end of standard input."""
    be_prepared()
    # nobody waits for the ended ones, and none must stay
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if not process:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve(order["environment"], order["log"])
            os._exit(0)
        print(process, flush=True)


if __name__ == "__main__":
    main()
