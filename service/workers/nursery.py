"""Where worker processes come from: a fork of one that has everything imported and does nothing else.

A worker is there in milliseconds, and shares what it never changes with the others. The nursery is
forked itself before the supervisor has a thread or an event loop, since neither survives a fork.
It is the parent of all workers, so it tells how they ended, and a process id stays theirs until
that has been asked for. It ignores signals and ends when the supervisor does.
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

from service.workers.worker import Job, main

_MOST_BYTES: Final = 2**18
#: the channel, and a Unix socket to accept from
_MOST_DESCRIPTORS: Final = 2
#: a worker that has closed its channel is gone, or about to be
_GONE_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.005
_NAME: Final = Path("/proc/self/comm")


class NurseryLost(Exception):
    """The nursery has been killed; nothing can be started any more."""


class Nursery:
    """The supervisor's end. Its methods block, for moments."""

    def __init__(self, connected: socket.socket) -> None:
        self._connected = connected
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
        """The process id of a new worker; the descriptors are its channel, and what it accepts from if not a port.

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

        Raises:
            NurseryLost: nobody knows any more.
        """
        return self._ask(pid, ())

    def _ask(self, request: Job | int, descriptors: Sequence[int]) -> int:
        with self._turn:
            try:
                socket.send_fds(self._connected, [pickle.dumps(request)], descriptors)
                answer = self._connected.recv(_MOST_BYTES)
            except OSError as error:
                raise NurseryLost from error
        if not answer:
            raise NurseryLost
        return int(answer)


def _serve(connected: socket.socket, prepare: Callable[[str], None]) -> NoReturn:
    """The life of the nursery."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        while True:
            data, descriptors, _, _ = socket.recv_fds(connected, _MOST_BYTES, _MOST_DESCRIPTORS)
            if not data:
                break
            request = pickle.loads(data)  # noqa: S301 - of our own parent, over a socket pair
            if isinstance(request, Job):
                try:
                    answer = _bear(request, descriptors, connected, prepare)
                except OSError as error:
                    answer = -(error.errno or 1)
                for descriptor in descriptors:
                    os.close(descriptor)
            else:
                answer = _reap(request)
            connected.send(str(answer).encode())
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


def _reap(pid: int) -> int:
    deadline = time.monotonic() + _GONE_SECONDS
    while True:
        with suppress(ChildProcessError):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                if time.monotonic() >= deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(_LOOK_SECONDS)
                continue
            return os.waitstatus_to_exitcode(status)
        return 1
