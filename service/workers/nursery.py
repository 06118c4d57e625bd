"""Where worker processes come from: a fork of one that has everything imported and does nothing else.

A worker is there in milliseconds, and shares what it never changes with the others. The nursery is
forked itself before the supervisor has a thread or an event loop, since neither survives a fork.
It is the parent of all workers, so it tells how they ended, and a process id stays theirs until
that has been asked for. It ignores signals. When the supervisor is gone the workers have as long as
an orderly end takes; then it ends those that are stuck, and itself.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from service.workers.ending import FORCED_SECONDS
from service.workers.worker import Job, main

_MOST_BYTES: Final = 2**18
#: the channel, the lock of the directory, and a Unix socket to accept from
_MOST_DESCRIPTORS: Final = 3
#: a worker that has closed its channel is gone, or about to be
_GONE_SECONDS: Final = 2.0
#: one that was killed ends as soon as the kernel can: not as long as it waits for a disk
_KILLED_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.005
#: longer than any answer takes
_ANSWER_SECONDS: Final = 3 * (_GONE_SECONDS + _KILLED_SECONDS)
_NAME: Final = Path("/proc/self/comm")


class NurseryLost(Exception):
    """The nursery has been killed, or hangs; nothing can be started any more."""


class Nursery:
    """The supervisor's end. Its methods block, for moments."""

    def __init__(self, connected: socket.socket) -> None:
        self._connected = connected
        connected.settimeout(_ANSWER_SECONDS)
        self._turn = threading.Lock()

    @classmethod
    def begin(cls, prepare: Callable[[str], None]) -> Nursery:
        """The nursery waits for work. Only while this process has one thread.

        Args:
            prepare: called in each worker with the directory that its job names.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            _serve(theirs, prepare)
        theirs.close()
        return cls(ours)

    def bear(self, job: Job, descriptors: Sequence[int]) -> int:
        """The process id of a new worker, which gets the descriptors as `worker.main` takes them.

        Raises:
            NurseryLost: there is none.
            OSError: worth a retry; the system has no process to give.
        """
        pid = self._ask(job, descriptors)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def reap(self, pid: int) -> int:
        """How the worker ended, as `subprocess` tells it. One that should have and has not is killed.

        A kill that the kernel has not carried out yet is taken for done.

        Raises:
            NurseryLost: nobody knows any more.
        """
        return self._ask(pid, ())

    def _ask(self, request: Job | int, descriptors: Sequence[int]) -> int:
        with self._turn:
            try:
                socket.send_fds(self._connected, [pickle.dumps(request)], descriptors)
                answer = self._connected.recv(_MOST_BYTES)
            except (ConnectionError, TimeoutError) as error:
                raise NurseryLost from error
        if not answer:
            raise NurseryLost
        return int(answer)


def _serve(connected: socket.socket, prepare: Callable[[str], None]) -> NoReturn:
    """The life of the nursery."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    #: process ids, and how long an orderly end of theirs may take
    born: dict[int, float] = {}
    with suppress(OSError):
        while True:
            data, descriptors, _, _ = socket.recv_fds(connected, _MOST_BYTES, _MOST_DESCRIPTORS)
            if not data:
                break
            request = pickle.loads(data)  # noqa: S301 - of our own parent, over a socket pair
            if isinstance(request, Job):
                try:
                    answer = _bear(request, descriptors, connected, prepare)
                    born[answer] = request.settings.grace + FORCED_SECONDS
                except OSError as error:
                    answer = -(error.errno or 1)
                for descriptor in descriptors:
                    os.close(descriptor)
            else:
                answer = _reap(request, _GONE_SECONDS)
                born.pop(request, None)
            connected.send(str(answer).encode())
    connected.close()
    deadline = time.monotonic() + max(born.values(), default=0.0)
    for pid in born:
        _reap(pid, deadline - time.monotonic())
    os._exit(0)


def _bear(job: Job, descriptors: Sequence[int], connected: socket.socket, prepare: Callable[[str], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        connected.close()
        with suppress(OSError):
            # what `top` shows
            _NAME.write_text(f"attachd-{job.number}")
        prepare(job.directory)
        main(job, *descriptors)
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must never go on as its parent
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        # threads that still hang in a call are left behind
        os._exit(code)


def _reap(pid: int, patience_seconds: float) -> int:
    """How it ended; it is killed if that takes longer."""
    kill_at = time.monotonic() + patience_seconds
    while True:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return 1
        if done:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if now >= kill_at:
            os.kill(pid, signal.SIGKILL)
        if now >= kill_at + _KILLED_SECONDS:
            return -signal.SIGKILL
        time.sleep(_LOOK_SECONDS)
