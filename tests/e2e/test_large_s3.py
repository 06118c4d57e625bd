"""One large file onto a bucket, in one request with kills of the service, and in small ones.

The size is 96 MiB, so that this runs every time; `ATTACHD_TEST_LARGE=4GiB` makes it what it is for.
"""

from __future__ import annotations

import os
import random
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from service.storage.s3.owning import OWNER
from service.units import parse_size
from tests.e2e.s3_measuring import MIB, MeasuredService, Source, send, sent
from tests.stores.servers import Store

SIZE: Final = parse_size(os.environ.get("ATTACHD_TEST_LARGE", "96MiB"))
PART: Final = 8 * MIB
KILLS: Final = 3
#: a slow client's for each MiB; the service commits once a second
SLOW_SECONDS: Final = 0.05
#: contract of the service: memory is flat whatever the size
PEAK_BYTES: Final = 200 * MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """SIZE random bytes."""
    return Source.made(tmp_path_factory.mktemp("source") / "bytes", SIZE)


class Looks:
    """What was seen of the service, so far, whenever somebody looked."""

    def __init__(self, service: MeasuredService) -> None:
        self.service = service
        self.peak = 0
        self.files: set[str] = set()

    def __call__(self) -> None:
        self.peak = max(self.peak, self.service.rss_peak())
        self.files |= self.service.files()

    def tell(self, what: str, seconds: float) -> None:
        print(f"{what}: {seconds:.1f} s, peak {self.peak / MIB:.0f} MiB, {self.service.calls()}", file=sys.stderr)


def test_d2_one_request_survives_kills_with_flat_memory_and_no_file(
    tmp_path: Path, store: Store, bucket: str, source: Source
) -> None:
    """Sent in one request and killed in the middle of it, the upload goes on from an offset that never falls and
    comes back with the same SHA-256; the service stays below 200 MiB and makes no file.
    """
    chance = random.Random(SIZE)
    with MeasuredService(tmp_path, store, bucket) as service:
        looks, path, start, began = Looks(service), service.create(SIZE), 0, time.monotonic()
        for number in range(KILLS):
            target, told = start + chance.randrange(SIZE // 16, SIZE // 6), start
            for at in sent(service, path, source, start, SIZE, chunk=SIZE):
                if at < target:
                    continue
                # from here on slowly, until something of this request is committed, lest there be nothing to lose
                told = service.status(service.url + path)["offset"]
                looks()
                if told > start:
                    service.kill()
                    break
                time.sleep(SLOW_SECONDS)
            service.restart()
            kept = service.status(service.url + path)["offset"]
            print(f"kill {number + 1}: sent {at}, told {told}, kept {kept}", file=sys.stderr)
            assert start < told <= kept <= at
            start = kept
        for at in sent(service, path, source, start, SIZE, chunk=SIZE):
            if not at % (64 * MIB):
                looks()
        looks()
        looks.tell("one request", time.monotonic() - began)
        assert service.digest(path) == source.digest(0, SIZE)
        looks()
        looks.tell("and a download", time.monotonic() - began)
        assert store.multiparts(bucket) == []
        assert len(store.objects(bucket).keys() - {OWNER}) == 1
    assert looks.files == set()
    assert looks.peak < PEAK_BYTES


@pytest.mark.parametrize("chunk", [5 * MIB, MIB, SIZE], ids=["5MiB", "1MiB", "one"])
def test_d2_requests_of_any_size_have_flat_memory_and_no_file(
    tmp_path: Path, store: Store, bucket: str, source: Source, chunk: int
) -> None:
    """A file sent in requests of 5 MiB, of 1 MiB and in a single one comes back with the same SHA-256; the service
    stays below 200 MiB and makes no file; each part is uploaded once, and what lies between two requests once.
    """
    with MeasuredService(tmp_path, store, bucket) as service:
        looks, path, before = Looks(service), service.create(SIZE), service.calls()
        began = time.monotonic()
        send(service, path, source, SIZE, chunk=chunk, look=looks)
        looks.tell(f"requests of {chunk / MIB:.0f} MiB", time.monotonic() - began)
        calls = {name: count - before.get(name, 0) for name, count in service.calls().items()}
        assert service.digest(path) == source.digest(0, SIZE)
        looks()
        looks.tell("and a download", time.monotonic() - began)
    assert looks.files == set()
    assert looks.peak < PEAK_BYTES
    assert calls["upload_part"] == -(-SIZE // PART)
    assert (calls["create_multipart_upload"], calls["complete_multipart_upload"]) == (1, 1)
    cuts = sum(1 for at in range(chunk, SIZE, chunk) if at % PART)
    assert calls.get("put_object", 0) == cuts
    # nothing is fetched again but the first bytes, which tell the type, where the last request did not bring them;
    # the sweep's look at whose bucket it is comes once, before the upload or beside it
    assert calls.get("get_object", 0) - (chunk < SIZE) in {0, 1}


def test_c5_large_partials_are_joined_in_the_store(tmp_path: Path, store: Store, bucket: str, source: Source) -> None:
    """C5: Of four partials, a quarter of the size each, the final is answered at once and joined without a file here
    and in flat memory, also when the service is killed while it joins.
    """
    # no border of a partial but the first one is one of parts
    ends = [SIZE // 4 + MIB, SIZE // 2 + 3 * MIB, 3 * SIZE // 4 + 5 * MIB, SIZE]
    with MeasuredService(tmp_path, store, bucket) as service:
        looks, began, paths = Looks(service), time.monotonic(), []
        for low, high in pairwise([0, *ends]):
            paths.append(service.create(high - low, upload_concat="partial"))
            send(service, paths[-1], source, high - low, chunk=high - low, skip=low, look=looks)
        looks.tell("four partials", time.monotonic() - began)
        before = service.calls()
        final, answered = service.join(paths, SIZE)
        deadline = time.monotonic() + 60
        while service.calls().get("upload_part_copy", 0) == before.get("upload_part_copy", 0):
            assert time.monotonic() < deadline
            time.sleep(SLOW_SECONDS / 10)
        service.kill()
        service.restart()
        began = time.monotonic()
        while service.status(service.url + final)["state"] != "ready":
            looks()
            time.sleep(SLOW_SECONDS)
        looks.tell(f"201 after {answered:.3f} s, killed, joined after the restart", time.monotonic() - began)
        assert service.digest(final) == source.digest(0, SIZE)
        looks()
        assert store.multiparts(bucket) == []
    assert looks.files == set()
    assert looks.peak < PEAK_BYTES
    assert answered < 10
