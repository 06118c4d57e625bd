"""Fifty uploads at once onto a bucket need memory by the setting, not by their number or size.

Each is of 24 MiB, so that this runs every time; `ATTACHD_TEST_EACH=256MiB` makes it what it is for.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from service.units import parse_size
from tests.e2e.s3_measuring import MIB, MeasuredService, Source, send
from tests.stores.faults import delay
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store

EACH: Final = parse_size(os.environ.get("ATTACHD_TEST_EACH", "24MiB"))
COUNT: Final = 50
#: each upload begins elsewhere in the source, so that no two are the same
SHIFT: Final = 4096
LIMIT: Final = 128 * MIB
#: what a transfer needs beside the limit: the stream that aiohttp fills, what was taken from it and waits for
#: room, and the rest of the buffer that is filling
EACH_NEEDS: Final = 3 * MIB
SLOW_SECONDS: Final = 0.2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Enough for all of them."""
    return Source.made(tmp_path_factory.mktemp("source") / "bytes", EACH + COUNT * SHIFT)


def peaks(service: MeasuredService, source: Source, each: int) -> tuple[int, int]:
    """Bytes: the most the idle service has held, and the most while fifty uploads ran; each came out right."""
    with service:
        first = service.create(MIB)
        send(service, first, source, MIB, chunk=MIB)
        base = service.rss_peak()

        def upload(number: int) -> str:
            path = service.create(each)
            send(service, path, source, each, chunk=each, skip=number * SHIFT)
            return path

        with ThreadPoolExecutor(COUNT) as clients:
            paths = list(clients.map(upload, range(COUNT)))
        peak = service.rss_peak()
        print(f"base {base / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB", file=sys.stderr)
        wrong = [
            number
            for number, path in enumerate(paths)
            if service.digest(path) != source.digest(number * SHIFT, number * SHIFT + each)
        ]
        assert wrong == []
        assert service.files() == set()
    return base, peak


def test_d2_fifty_uploads_need_memory_by_the_setting(tmp_path: Path, store: Store, bucket: str, source: Source) -> None:
    """With buffer_limit 128 MiB all finish right, and the process holds that and at most 3 MiB more for each."""
    service = MeasuredService(tmp_path, store, bucket, ATTACHD_BUFFER_LIMIT=str(LIMIT))
    base, peak = peaks(service, source, EACH)
    assert peak <= base + LIMIT + COUNT * EACH_NEEDS


def test_d2_fifty_uploads_need_memory_by_the_setting_while_the_store_is_slow(
    tmp_path: Path, bucket: str, faulty: FaultyStore, source: Source
) -> None:
    """The same where each part takes the store a while: clients wait, bytes do not pile up."""
    faulty.fault("upload_part", what=delay(SLOW_SECONDS), times=None)
    service = MeasuredService(
        tmp_path, faulty.store, bucket, ATTACHD_BUFFER_LIMIT=str(LIMIT), ATTACHD_S3_ENDPOINT=faulty.endpoint
    )
    # half as much, as all of it passes through the proxy
    base, peak = peaks(service, source, EACH // 2)
    assert peak <= base + LIMIT + COUNT * EACH_NEEDS
