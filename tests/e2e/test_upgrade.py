"""An upgrade in the middle of long requests: what clients see of it, and what they have to send again."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.clients import need_node, tus_js
from tests.e2e.faulty import FaultyProxy, Plan
from tests.e2e.lines import Answer, Line, create, download, offset_of, patch, until
from tests.e2e.process import ServiceProcess

MIB: Final = 2**20
UPLOADS: Final = 12
CONTENT: Final = os.urandom(4 * MIB)
PIECE: Final = 64 * 2**10
#: so far is each request when the first service is told to stop
HELD_BYTES: Final = 2 * MIB


class Sender:
    """One body as long as the upload, held up until the upgrade has begun; then the rest, from where HEAD says."""

    def __init__(self, service: ServiceProcess, go_on: threading.Event) -> None:
        self._service = service
        self._go_on = go_on
        self.url = create(service, len(CONTENT))
        #: bytes that left this client, in all requests
        self.sent = 0
        self.waiting = threading.Event()

    def send(self) -> Answer | None:
        """What the long request was told; None where its connection ended instead."""
        told = self._pour(0, hold_at=HELD_BYTES)
        last = self._pour(offset_of(self._service, self.url))
        assert last is not None
        assert last.status == 204, last
        return told

    def _pour(self, offset: int, *, hold_at: int = -1) -> Answer | None:
        with Line(self._service.address) as line:
            try:
                line.send(patch(self.url, offset, len(CONTENT) - offset))
                for start in range(offset, len(CONTENT), PIECE):
                    if start == hold_at:
                        self.waiting.set()
                        assert self._go_on.wait(60)
                    if select.select([line.socket], [], [], 0)[0]:
                        break
                    line.send(CONTENT[start : start + PIECE])
                    self.sent += len(CONTENT[start : start + PIECE])
                return line.answer()
            except ConnectionError:
                return None


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_S1_an_upgrade_in_the_middle_of_bodies_has_nothing_sent_again(tmp_path: Path, workers: str) -> None:
    """Every client is told 503 with the offset of all that it had sent, and sends the rest, and only that."""
    with ServiceProcess(tmp_path, ATTACHD_WORKERS=workers) as first:
        go_on = threading.Event()
        senders = [Sender(first, go_on) for _ in range(UPLOADS)]
        with first.successor() as second, ThreadPoolExecutor(UPLOADS) as threads:
            sending = [threads.submit(sender.send) for sender in senders]
            for sender in senders:
                assert sender.waiting.wait(60)
            until(lambda: "service_started" in second.log_path.read_text(), "the second service serves")
            os.kill(first.pid, signal.SIGTERM)
            # each is told while it sends nothing: what it had sent has been committed by then
            until(lambda: first.log_path.read_text().count('"reason": "draining"') == UPLOADS, "all are told")
            go_on.set()
            told = [future.result() for future in sending]
            assert first.wait() == 0
            assert [answer and (answer.status, answer.offset) for answer in told] == [(503, HELD_BYTES)] * UPLOADS
            for sender in senders:
                assert download(second, sender.url) == CONTENT
                assert sender.sent == len(CONTENT)


@pytest.mark.timeout(240)
async def test_S1_tus_js_gets_through_an_upgrade(tmp_path: Path) -> None:
    """The stock client goes on at the new service by itself: one POST, and a file that is right."""
    need_node()
    source = tmp_path / "source.bin"
    content = os.urandom(16 * MIB)
    await asyncio.to_thread(source.write_bytes, content)
    first = ServiceProcess(tmp_path / "service", ATTACHD_WORKERS="2")
    await asyncio.to_thread(first.start)
    second = first.successor()
    try:
        async with FaultyProxy(first.address, default=Plan(rate=MIB)) as proxy:
            link = first.mint_upload(base=proxy.url)
            sending = asyncio.create_task(tus_js(source, link))
            in_flight = 'attachd_transfers_in_flight{direction="in"}'
            await asyncio.to_thread(until, lambda: first.metrics()[in_flight] == 1, "the body comes")
            await asyncio.to_thread(second.start)
            await asyncio.to_thread(until, lambda: "service_started" in second.log_path.read_text(), "it serves")
            # only the request that is to be in flight had to be slow
            proxy.default = Plan()
            assert await asyncio.to_thread(first.terminate) == 0
            run = await sending
            assert run.returncode == 0, run
            assert proxy.requests(rb"POST ") == 1
            assert proxy.requests(rb"PATCH ") == 2
            url = run.one("success")["url"].replace(proxy.url, second.url)
        assert await asyncio.to_thread(download, second, url) == content
    finally:
        await asyncio.to_thread(second.kill)
        await asyncio.to_thread(first.kill)
