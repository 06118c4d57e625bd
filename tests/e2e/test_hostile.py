"""Clients that dawdle, lie, flood and vanish: each costs little, harms nobody else, and ends by itself.

Bounds are generous, as memory is given back to the system when the allocator likes. How many
uploads are cut is 200, so that this runs every time; `ATTACHD_TEST_CUTS=10000` makes it what it is
for, and `ATTACHD_TEST_CONNECTIONS=10000` does the same for connections that say nothing.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.cost import Cost
from tests.e2e.lines import (
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
    from collections.abc import Callable
    from pathlib import Path

# on a loaded machine a start alone can take ten seconds
pytestmark = pytest.mark.timeout(180)

KIB: Final = 2**10
MIB: Final = 2**20
CUTS: Final = int(os.environ.get("ATTACHD_TEST_CUTS", "200"))
CONNECTIONS: Final = int(os.environ.get("ATTACHD_TEST_CONNECTIONS", "1500"))
OPTIONS: Final = head("OPTIONS", "/files")


# --- dawdlers -----------------------------------------------------------------------------------


@pytest.mark.alone
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
        until(lambda: service.metrics()['attachd_transfers_in_flight{direction="in"}'] == 0, "all transfers are over")
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
