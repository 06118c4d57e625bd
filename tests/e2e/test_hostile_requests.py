"""Requests that are not as they should be, refused ones, and writers that are away or asked about."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.cost import Cost
from tests.e2e.faulty import Ending, FaultyProxy, Plan
from tests.e2e.lines import OCTETS, PATIENCE, Line, append, ask, create, download, finish, head, offset_of, patch, until
from tests.e2e.process import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# on a loaded machine a start alone can take ten seconds
pytestmark = pytest.mark.timeout(180)

KIB: Final = 2**10
MIB: Final = 2**20
OPTIONS: Final = head("OPTIONS", "/files")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """With the settings that everybody has."""
    with ServiceProcess(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def cost(service: ServiceProcess) -> Cost:
    return Cost(service)


# --- heads and bodies that are not as they should be ----------------------------------------------


def test_large_heads_pass_and_larger_ones_are_refused(service: ServiceProcess, cost: Cost) -> None:
    """A field of 50 KB is served. One of 100 KB is 400, and of a head without end less than a mebibyte is read; a
    hundred of them cost little.
    """
    assert ask(service, "OPTIONS", "/files", X_Large="a" * 50_000).status == 200
    assert ask(service, "OPTIONS", "/files", X_Large="a" * 100_000).status == 400
    field = b"X-Large: " + b"a" * 60_000 + b"\r\n"
    read = service.bytes_read()
    with Line(service.address) as line:
        line.send(OPTIONS[:-2])
        line.pour(field, 100 * MIB, PATIENCE)
        until(line.ended, "the endless head is ended")
    assert service.bytes_read() - read < MIB
    with ExitStack() as stack:
        lines = [stack.enter_context(Line(service.address)) for _ in range(100)]
        for line in lines:
            line.send(OPTIONS[:-2] + field * 3)
        assert ask(service, "OPTIONS", "/files").status == 200
        assert cost.bytes_more() < 100 * MIB
    cost.assert_over(60 * MIB)


def test_pipelined_requests_are_answered_in_order(service: ServiceProcess, cost: Cost) -> None:
    """Two thousand requests in one breath, PATCHes among them, are each answered, in order."""
    content = os.urandom(20 * KIB)
    url = create(service, len(content))
    requests = b"".join(
        OPTIONS * 100 + patch(url, at, KIB) + content[at : at + KIB] for at in range(0, len(content), KIB)
    )
    with Line(service.address) as line, ThreadPoolExecutor(1) as threads:
        sending = threads.submit(line.send, requests)
        for end in range(KIB, len(content) + 1, KIB):
            assert [line.answer().status for _ in range(100)] == [200] * 100
            appended = line.answer()
            assert (appended.status, appended.offset) == (204, end)
        sending.result(PATIENCE)
    assert download(service, url) == content
    cost.assert_over(20 * MIB)


def test_a_body_longer_than_said_is_not_kept(service: ServiceProcess) -> None:
    """What comes behind a body is no part of it: it is taken for a request, refused, and the connection ends."""
    url = create(service, 100)
    with Line(service.address) as line:
        line.send(patch(url, 0, 10) + b"0123456789" + b"surplus " * 100 + b"\r\n\r\n")
        assert line.answer().offset == 10
        assert line.answer().status == 400
        until(line.ended, "the connection ends")
    assert offset_of(service, url) == 10


@pytest.mark.parametrize("length", [1, 100 * KIB, 8 * MIB])
def test_a_client_that_ends_in_the_middle_is_answered(service: ServiceProcess, length: int) -> None:
    """A body shorter than said, behind which the client ends its side and listens, is kept and told of."""
    content = os.urandom(length)
    url = create(service, 2 * length)
    with Line(service.address) as line:
        line.send(patch(url, 0, 2 * length) + content)
        line.end_of_sending()
        answer = line.answer()
        assert (answer.status, answer.slug, answer.offset) == (503, "timeout", length)
        until(line.ended, "the connection ends")
    finish(service, url, content * 2)
    assert download(service, url) == content * 2


# --- refusals -----------------------------------------------------------------------------------


def bad_link(service: ServiceProcess) -> Callable[..., bytes]:
    return lambda **more: head(
        "POST", f"{service.url}/files?sig=a.b.c", 4 * 2**30, Upload_Length=str(4 * 2**30), Content_Type=OCTETS, **more
    )


def too_large(service: ServiceProcess) -> Callable[..., bytes]:
    link = service.mint_upload(max_size=2**30)
    return lambda **more: head("POST", link, 4 * 2**30, Upload_Length=str(4 * 2**30), Content_Type=OCTETS, **more)


def wrong_offset(service: ServiceProcess) -> Callable[..., bytes]:
    url = create(service, 4 * 2**30)
    return lambda **more: patch(url, 1, 4 * 2**30 - 1, **more)


@pytest.mark.parametrize(("refused", "status"), [(bad_link, 401), (too_large, 413), (wrong_offset, 409)])
def test_A3_a_refused_upload_is_not_read(
    service: ServiceProcess, refused: Callable[[ServiceProcess], Callable[..., bytes]], status: int
) -> None:
    """Of 4 GiB that are refused under a mebibyte is read and the connection ends, whether the client asks first,
    sends all the same, or asks and sends without waiting.
    """
    request = refused(service)
    ways: list[tuple[bool, dict[str, str]]] = [(True, {"Expect": "100-continue"}), (False, {})]
    if status == 413:
        ways.append((False, {"Expect": "100-continue"}))
    for waits, more in ways:
        read = service.bytes_read()
        with Line(service.address) as line:
            line.send(request(**more))
            if not waits:
                line.pour(bytes(64 * KIB), 4 * 2**30, 3)
            # after a reset an answer that came before is still there, or was never read
            try:
                assert line.answer().status == status
            except ConnectionError:
                assert not waits
            until(line.ended, "the connection ends")
        assert service.bytes_read() - read < MIB


# --- writers that are away, or asked about --------------------------------------------------------


@pytest.mark.alone
def test_L3_asking_does_not_stop_a_writer(service: ServiceProcess) -> None:
    """HEAD every 100 ms during a PATCH is answered with an offset that grows, and the PATCH goes on to its end."""
    content = os.urandom(32 * MIB)
    url = create(service, len(content))
    before = service.metrics()["attachd_lock_takeovers_total"]
    told: list[int] = []
    done = threading.Event()

    def send() -> int:
        with Line(service.address) as line:
            line.send(patch(url, 0, len(content)))
            for at in range(0, len(content), MIB):
                line.send(content[at : at + MIB])
                time.sleep(0.1)
            try:
                return line.answer().status
            finally:
                done.set()

    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(send)
        while not done.wait(0.1):
            answer = ask(service, "HEAD", url)
            # the last byte is in, and the file is being made
            if answer.status != 423:
                assert answer.status == 200
                told.append(answer.offset)
        assert sending.result() == 204
    assert told == sorted(told)
    assert len(set(told)) > 2
    assert service.metrics()["attachd_lock_takeovers_total"] == before
    assert download(service, url) == content


async def test_L1_a_half_open_writer_makes_way(service: ServiceProcess) -> None:
    """A PATCH whose client is gone without a word holds nobody up: the next one goes on from its bytes at once."""
    content = os.urandom(MIB)
    url = await asyncio.to_thread(create, service, len(content))
    size = len(patch(url, 0, len(content)))
    stalls = Plan(cut_up=size + len(content) // 2, ending=Ending.STALL)
    async with FaultyProxy(service.address, [stalls]) as proxy:
        line = await asyncio.to_thread(Line, ("127.0.0.1", proxy.port))
        await asyncio.to_thread(line.send, patch(url, 0, len(content)) + content)
        await proxy.stalled.wait()

        def resume() -> int:
            began = time.monotonic()
            while (found := ask(service, "HEAD", url).offset) < len(content) // 2:
                assert time.monotonic() < began + PATIENCE
            assert found == len(content) // 2
            began = time.monotonic()
            assert append(service, url, found, content[found:]).status == 204
            return round(time.monotonic() - began)

        assert await asyncio.to_thread(resume) < 10
        line.close()
    assert await asyncio.to_thread(download, service, url) == content


def test_L1_two_clients_of_one_upload_both_succeed(service: ServiceProcess) -> None:
    """Two clients that send the same file to one address, and come again when told to, both see its end, after few
    take-overs.
    """
    content = os.urandom(4 * MIB)
    url = create(service, len(content))
    before = service.metrics()["attachd_lock_takeovers_total"]

    def client(seed: int) -> None:
        """As tus-js-client does: HEAD, PATCH, and after an error a pause that gets longer."""
        pause = 0.1
        while (offset := offset_of(service, url)) < len(content):
            with Line(service.address) as line:
                line.send(patch(url, offset, len(content) - offset))
                try:
                    for at in range(offset, len(content), 256 * KIB):
                        line.send(content[at : at + 256 * KIB])
                        time.sleep(0.02)
                    if line.answer().status == 204:
                        return
                except ConnectionError:
                    pass
            time.sleep(pause * (1 + seed / 2))
            pause = min(2 * pause, 3.0)

    with ThreadPoolExecutor(2) as threads:
        for ended in [threads.submit(client, seed) for seed in range(2)]:
            ended.result(PATIENCE)
    assert service.metrics()["attachd_lock_takeovers_total"] - before < 20
    assert download(service, url) == content
