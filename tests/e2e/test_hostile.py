"""Clients that dawdle, lie, flood and vanish: each costs little, harms nobody else, and ends by itself.

Bounds are generous, as memory is given back to the system when the allocator likes. How many
uploads are cut is 200, so that this runs every time; `ATTACHD_TEST_CUTS=10000` makes it what it is
for, and `ATTACHD_TEST_CONNECTIONS=10000` does the same for connections that say nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.faulty import Ending, FaultyProxy, Plan
from tests.e2e.lines import (
    OCTETS,
    PATIENCE,
    Line,
    all_ended,
    append,
    ask,
    create,
    download,
    finish,
    head,
    offset_of,
    patch,
    until,
)
from tests.e2e.process import ServiceProcess
from tests.e2e.sick import SickProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# on a loaded machine a start alone can take ten seconds
pytestmark = pytest.mark.timeout(180)

KIB: Final = 2**10
MIB: Final = 2**20
CUTS: Final = int(os.environ.get("ATTACHD_TEST_CUTS", "200"))
CONNECTIONS: Final = int(os.environ.get("ATTACHD_TEST_CONNECTIONS", "1500"))
OPTIONS: Final = head("OPTIONS", "/files")
#: what a thread, a page of a heap or a file of the database may add whatever is done
SLACK_DESCRIPTORS: Final = 3


class Cost:
    """What a service held before something was done to it, and holds after."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        content = os.urandom(MIB)
        url = create(service, len(content))
        finish(service, url, content)
        assert download(service, url) == content
        self.rss, self.descriptors = service.rss(), service.descriptors()

    def bytes_more(self) -> int:
        return self._service.rss() - self.rss

    def all_closed(self) -> bool:
        return self._service.descriptors() <= self.descriptors + SLACK_DESCRIPTORS

    def assert_over(self, most_bytes: int) -> None:
        """All is closed in the end, and little memory has stayed."""
        until(self.all_closed, "all descriptors are given back")
        assert self.bytes_more() < most_bytes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """With the settings that everybody has."""
    with ServiceProcess(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def cost(service: ServiceProcess) -> Cost:
    return Cost(service)


# --- dawdlers -----------------------------------------------------------------------------------


def test_D4_whoever_dawdles_is_ended(tmp_path: Path) -> None:
    """Connections that say nothing, half a head, a byte of one now and then, no body, or a drip of one, all end by
    themselves; what came of bodies is kept, a slow client is not touched, and HEAD answers meanwhile.
    """
    with (
        SickProcess(tmp_path, hurry=10, ATTACHD_BODY_IDLE="4s", ATTACHD_BODY_MIN_RATE="20B/s") as service,
        ExitStack() as stack,
    ):
        cost = Cost(service)

        def lines(count: int) -> list[Line]:
            made = [Line(service.address) for _ in range(count)]
            for line in made:
                stack.enter_context(line)
            return made

        urls = [create(service, 10_000) for _ in range(45)]
        silent, half, drips = lines(100), lines(100), lines(20)
        for line in half:
            line.send(OPTIONS[:-2] + b"X-Large: " + b"a" * 50_000)
        # never a byte of a body; some bytes and then silence; bytes that never stop
        bodies = lines(45)
        for line, url in zip(bodies, urls, strict=True):
            line.send(patch(url, 0, 10_000))
        for line in bodies[15:]:
            line.send(b"0123456789")
        slow_content, slow_sent = os.urandom(64 * KIB), 0
        slow_url = create(service, len(slow_content))
        slow = lines(1)[0]
        slow.send(patch(slow_url, 0, len(slow_content)))
        dripping, sent = [*drips, *bodies[30:]], dict.fromkeys(bodies[30:], 10)
        dawdlers = [*silent, *half, *drips, *bodies]

        def drip() -> bool:
            """One more byte each, and a few of the slow client's; whether all of the others have ended."""
            nonlocal slow_sent
            for line in dripping:
                try:
                    line.socket.send(b"x")
                except OSError:
                    continue
                if line in sent:
                    sent[line] += 1
            slow.send(slow_content[slow_sent : slow_sent + 200])
            slow_sent += 200
            assert ask(service, "HEAD", slow_url).status == 200
            time.sleep(0.5)
            return all_ended(dawdlers)

        until(drip, "all dawdlers are ended", 100)
        assert cost.bytes_more() < 60 * MIB
        slow.send(slow_content[slow_sent:])
        assert slow.answer().status == 204
        assert download(service, slow_url) == slow_content
        for line, url in zip(bodies, urls, strict=True):
            kept = offset_of(service, url)
            if line in sent:
                # the last bytes may have come when it had been ended
                assert 10 <= kept <= sent[line]
            else:
                assert kept == (0 if line in bodies[:15] else 10)
        slow.close()
        cost.assert_over(40 * MIB)


def test_an_answer_that_nobody_reads_ends(tmp_path: Path) -> None:
    """Who asks again and again and reads nothing costs a bounded amount of memory, and loses the connection."""
    with SickProcess(tmp_path, hurry=10) as service:
        cost = Cost(service)
        with Line(service.address, receive_buffer=4096) as deaf, Line(service.address, receive_buffer=4096) as deaf_too:
            read = service.bytes_read()
            sent = deaf.pour(OPTIONS, 100 * MIB, 1)
            assert sent < 30 * MIB, "the service never stopped reading"
            assert service.bytes_read() - read < 30 * MIB
            deaf_too.pour(OPTIONS, 100 * MIB, 1)
            assert cost.bytes_more() < 20 * MIB
            assert ask(service, "OPTIONS", "/files").status == 200
            until(cost.all_closed, "both connections are ended")


# --- crowds -------------------------------------------------------------------------------------


def test_D4_more_transfers_than_places_are_told_to_come_again(tmp_path: Path) -> None:
    """Above ATTACHD_MAX_TRANSFERS a transfer is 503 with Retry-After, HEAD is 200 all the same, and the next place
    that is free is given away.
    """
    with ServiceProcess(tmp_path, ATTACHD_MAX_TRANSFERS="3") as service, ExitStack() as stack:
        urls = [create(service, 10) for _ in range(4)]
        lines = [stack.enter_context(Line(service.address)) for _ in urls[:3]]
        for line, url in zip(lines, urls, strict=False):
            line.send(patch(url, 0, 10) + b"hello")
        in_flight = 'attachd_transfers_in_flight{direction="in"}'
        until(lambda: service.metrics()[in_flight] == 3, "three transfers are under way")
        with Line(service.address) as line:
            line.send(patch(urls[3], 0, 10, Expect="100-continue"))
            refused = line.answer()
            assert (refused.status, refused.slug) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) > 0
            until(line.ended, "the refused request's connection ends")
        # of one without a writer: one that is asked for after a silence of two seconds has its writer stop
        assert ask(service, "HEAD", urls[3]).status == 200
        lines[0].send(b"world")
        assert lines[0].answer().status == 204
        assert until(lambda: append(service, urls[3], 0, b"helloworld").status == 204, "the place is given away")


@pytest.mark.timeout(240)
def test_connections_that_say_nothing_keep_nobody_out(tmp_path: Path) -> None:
    """With more silent connections than descriptors allow, a PATCH under way goes on, new requests are served, uploads
    find descriptors for their files, and in the end all are given back.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = hard if hard != resource.RLIM_INFINITY else CONNECTIONS + 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(allowed, CONNECTIONS + 1000)), hard))
    count = min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)
    with Limited(tmp_path, most_descriptors=count) as service, ExitStack() as stack:
        cost, content = Cost(service), os.urandom(64 * KIB)
        url, other = create(service, len(content)), create(service, len(content))
        patching = stack.enter_context(Line(service.address))
        patching.send(patch(url, 0, len(content)) + content[:1000])
        until(lambda: service.metrics()['attachd_transfers_in_flight{direction="in"}'], "the PATCH is under way")
        for number in range(count):
            silent = stack.enter_context(Line(service.address))
            if number % 2:
                silent.send(OPTIONS[:20])
            if number % 100 == 0:
                # whoever comes is served, whatever the number of those who only sit there
                assert ask(service, "HEAD", other).status == 200
        assert service.descriptors() < count / 2
        print(f"{count} connections: {cost.bytes_more() / KIB / count:.1f} KiB each", file=sys.stderr)
        assert cost.bytes_more() < 20 * MIB + count * 16 * KIB
        finish(service, other, content)
        assert download(service, other) == content
        patching.send(content[1000:])
        assert patching.answer().status == 204
        assert download(service, url) == content
        stack.close()
        cost.assert_over(40 * MIB)
    assert "connections_dropped" in service.log_path.read_text()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Limited(ServiceProcess):
    """May use so many descriptors and no more."""

    def __init__(self, directory: Path, *, most_descriptors: int) -> None:
        super().__init__(directory)
        self.command = ["sh", "-c", f'ulimit -n {most_descriptors}; exec "$@"', "sh", *self.command]


def test_without_descriptors_the_service_survives(tmp_path: Path) -> None:
    """While no descriptor is left uploads are told to come again; with descriptors given back all is as before."""
    with ServiceProcess(tmp_path) as service, ExitStack() as stack:
        cost = Cost(service)
        url = create(service, 10)
        kept = stack.enter_context(Line(service.address))
        kept.send(OPTIONS)
        assert kept.answer().status == 200
        limits = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (service.descriptors() + 5, limits[1]))
        crowd = [stack.enter_context(Line(service.address)) for _ in range(100)]
        until(lambda: sum(line.ended() for line in crowd) > 50, "connections are turned away")
        kept.send(patch(url, 0, 10) + b"helloworld")
        refused = kept.answer()
        assert (refused.status, refused.slug) == (503, "storage-unavailable")
        assert int(refused.headers["retry-after"]) > 0
        for line in crowd:
            line.close()
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, limits)
        finish(service, url, b"helloworld")
        assert download(service, url) == b"helloworld"
        stack.close()
        cost.assert_over(20 * MIB)


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


# --- nothing stays ------------------------------------------------------------------------------


@pytest.mark.timeout(max(120, CUTS // 2))
def test_D6_many_cut_uploads_leave_nothing(tmp_path: Path) -> None:
    """After many uploads, each cut by FIN, RST or a head that breaks off, descriptors are back to what they were and
    memory is flat; no offset that was told was more than what came.
    """
    with ServiceProcess(tmp_path) as service, ThreadPoolExecutor(8) as threads:
        cost = Cost(service)
        list(threads.map(partial_upload(service), range(min(CUTS, 500) // 2)))
        until(cost.all_closed, "all descriptors are given back")
        warm = service.rss()
        print(
            f"\nbefore: {cost.rss / MIB:.1f} MiB, {cost.descriptors} descriptors; warm: {warm / MIB:.1f} MiB",
            file=sys.stderr,
        )
        for done in range(0, CUTS, 1000):
            list(threads.map(partial_upload(service), range(done, min(done + 1000, CUTS))))
            print(
                f"{done + 1000} cut: {service.rss() / MIB:.1f} MiB, {service.descriptors()} descriptors",
                file=sys.stderr,
            )
        until(cost.all_closed, "all descriptors are given back")
        assert service.rss() < warm * 1.05 + 8 * MIB
        metrics = service.metrics()
        assert metrics['attachd_transfers_in_flight{direction="in"}'] == 0
        until(lambda: service.metrics()["attachd_buffer_bytes"] == 0, "all buffers are given back")


def partial_upload(service: ServiceProcess) -> Callable[[int], None]:
    """An upload that is cut; each tenth is finished."""

    def one(number: int) -> None:
        chance = random.Random(number)
        content = chance.randbytes(64 * KIB)
        url = create(service, len(content))
        request = patch(url, 0, len(content)) + content
        size = chance.randrange(1, len(request) - 1)
        line = Line(service.address)
        line.send(request[:size])
        if number % 2:
            line.reset()
        else:
            line.close()
        came = max(0, size - (len(request) - len(content)))
        assert offset_of(service, url) <= came
        if number % 10 == 0:
            finish(service, url, content)

    return one
