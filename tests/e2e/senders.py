"""Clients that go on: each sends files one after the other, whatever happens to the service meanwhile.

A sender does what a good client does: it repeats a creation whose answer did not come, asks with
HEAD where to go on, and comes again when told to. What it is told it holds the service to: an
offset never falls below one that was acknowledged, HEAD is 200 or 423, a link makes one upload, and
the finished file is the one that was sent. What else it meets is kept in `faults`.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tests.e2e.lines import OCTETS, PATIENCE, Answer, Line, head

if TYPE_CHECKING:
    from tests.e2e.process import ServiceProcess

KIB: Final = 2**10
#: how long a client waits before it comes again
_PAUSE_SECONDS: Final = 0.05
#: what may be answered to a PATCH that is told to come again
_AGAIN: Final = frozenset({409, 423, 503})


class Senders:
    """So many clients at once, each with files of its own until `stop`."""

    def __init__(self, service: ServiceProcess, count: int, *, file_bytes: int, chunk_bytes: int, seed: int) -> None:
        self._service = service
        self._file_bytes = file_bytes
        self._chunk_bytes = chunk_bytes
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(f"{seed}.{at}",), daemon=True) for at in range(count)]
        #: bytes that were acknowledged, in all files
        self.acknowledged = 0
        self.files = 0
        #: those that sent the first byte of their first file
        self.begun = 0
        #: how often each status came, by method; `cut` where the connection ended instead
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []

    @contextmanager
    def sending(self) -> Iterator[None]:
        """They send; at the end each finishes its file, and nothing has gone wrong."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(2 * PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "a client has not come to its end"
        assert not self.faults, self.faults

    def wait_for(self, size: int) -> None:
        """Returns once so many bytes more have been acknowledged; less if a client has failed."""
        until, deadline = self.acknowledged + size, time.monotonic() + PATIENCE
        while self.acknowledged < until and not self.faults:
            assert time.monotonic() < deadline, "nothing is acknowledged any more"
            time.sleep(0.005)

    def _run(self, seed: str) -> None:
        chance = random.Random(seed)
        try:
            first = True
            while first or not self._stop.is_set():
                self._send(chance, chance.randbytes(chance.randint(1, self._file_bytes)), first=first)
                first = False
        except Exception as error:  # noqa: BLE001 - told by `sending`
            self.faults.append(f"{seed}: {error!r}")

    def _send(self, chance: random.Random, content: bytes, *, first: bool) -> None:
        link = self._service.mint_upload()
        answer = self._ask("POST", link, again={503}, Upload_Length=str(len(content)))
        self._expect(answer.status == 201, f"POST: {answer}")
        url, offset, file_id = answer.headers["location"], 0, None
        while file_id is None:
            size = chance.randint(1, self._chunk_bytes)
            body = content[offset : offset + size]
            sent = self._try("PATCH", url, body, Upload_Offset=str(offset), Content_Type=OCTETS)
            if sent is not None and sent.status == 204:
                self._expect(sent.offset == offset + len(body), f"PATCH: {sent}")
                self._count(len(body), first=first and not offset)
                offset, file_id = sent.offset, sent.headers.get("attachd-file-id")
                continue
            self._expect(sent is None or sent.status in _AGAIN, f"PATCH: {sent}")
            asked = self._ask("HEAD", url, again={423})
            self._expect(asked.status == 200, f"HEAD: {asked}")
            self._expect(offset <= asked.offset <= offset + len(body), f"HEAD after {offset}: {asked}")
            offset = asked.offset
            if offset == len(content):
                file_id = json.loads(self._ask("GET", url, again={503}).body)["file_id"]
        self._check(file_id, content)

    def _check(self, file_id: str, content: bytes) -> None:
        """The file is what was sent."""
        fetched = self._ask("GET", self._service.mint_download(file_id), again={503})
        same = hashlib.sha256(fetched.body).digest() == hashlib.sha256(content).digest()
        self._expect(fetched.status == 200 and same, f"a wrong file: {fetched.status}, {len(fetched.body)} bytes")
        with self._lock:
            self.files += 1

    def _count(self, size: int, *, first: bool) -> None:
        with self._lock:
            self.acknowledged += size
            self.begun += first

    @staticmethod
    def _expect(holds: bool, what: str) -> None:
        if not holds:
            raise AssertionError(what)

    def _ask(self, method: str, url: str, *, again: set[int], **headers: str) -> Answer:
        """The answer, once there is one that does not say to come again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._try(method, url, b"", **headers)
            if answer is not None and answer.status not in again:
                return answer
            self._expect(time.monotonic() < deadline, f"{method}: no answer in time, the last one {answer}")
            time.sleep(_PAUSE_SECONDS)

    def _try(self, method: str, url: str, body: bytes, **headers: str) -> Answer | None:
        """The answer, or None where the connection was refused or ended before there was one."""
        try:
            with Line(self._service.address) as line:
                length = len(body) if method in ("POST", "PATCH") else None
                line.send(head(method, url, length, **headers) + body)
                answer = line.answer(head=method == "HEAD")
        except ConnectionError:
            self.answers[f"{method} cut"] += 1
            return None
        self.answers[f"{method} {answer.status}"] += 1
        return answer
