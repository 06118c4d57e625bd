"""One file, one request, many kills: with a stock client on one side or the service itself on the other.

The size is 256 MiB, so that this runs every time; `ATTACHD_TEST_LARGE=4GiB` makes it what it is for.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from service.units import parse_size
from tests.conftest import require
from tests.e2e.process import ServiceProcess

SIZE = parse_size(os.environ.get("ATTACHD_TEST_LARGE", "256MiB"))
KILLS = 6
#: contract of the service: memory is flat whatever the size
PEAK_BYTES = 150 * 2**20
NODE = Path(__file__).parent / "node"

# stock tuspy, the whole rest in one request
TUSPY = """
import sys
from tusclient.client import TusClient
link, path, url = sys.argv[1:]
uploader = TusClient(link).uploader(path, url=url or None)
if not url:
    uploader.set_url(uploader.create_url())
    uploader.offset = 0
print(uploader.url, flush=True)
uploader.upload()
"""


def tuspy(link: str, source: Path, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TUSPY, link, str(source), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def tus_js(link: str, source: Path, url: str) -> subprocess.Popen[str]:
    request = {"file": str(source), "endpoint": link, "retryDelays": []} | ({"uploadUrl": url} if url else {})
    return subprocess.Popen(
        ["node", "upload.mjs", json.dumps(request)],
        cwd=NODE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def first_url(client: subprocess.Popen[str]) -> str:
    """The upload's address, as the client tells it."""
    assert client.stdout is not None
    for line in client.stdout:
        if line.startswith("http"):
            return line.strip()
        event = json.loads(line)
        if event.get("url"):
            return str(event["url"])
    raise AssertionError("the client ended without an address")


def received(service: ServiceProcess) -> float:
    """Bytes of request bodies that reached the service since it started."""
    with urllib.request.urlopen(f"{service.ops_url}/metrics") as answer:
        found = re.search(rb'attachd_upload_bytes_received_total\{protocol="tus"\} (\S+)', answer.read())
    return float(found[1]) if found else 0.0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("start", [tuspy, tus_js])
def test_a_large_file_survives_kills_of_both_sides(
    tmp_path: Path, start: Callable[[str, Path, str], subprocess.Popen[str]]
) -> None:
    """Sent in one request a time and killed at random points, the file goes on from the server's offset and comes
    back with the same SHA-256, the offset never falls, and the service stays below 150 MiB of memory.
    """
    if start is tus_js:
        require("node", why="" if (NODE / "node_modules").is_dir() else "npm install was not run in tests/e2e/node")
    source, digest = tmp_path / "source.bin", hashlib.sha256()
    with source.open("wb") as made:
        for _ in range(0, SIZE, 2**20):
            block = os.urandom(2**20)
            digest.update(block)
            made.write(block)
    chance = random.Random(SIZE)
    with ServiceProcess(tmp_path) as service:
        link, url, peak, told = service.mint_upload(max_size=SIZE), "", 0, 0
        for number in range(KILLS):
            target = received(service) + chance.randrange(SIZE // 100, max(SIZE // 50, (SIZE - told) // 3))
            with start(link, source, url) as client:
                url = url or first_url(client)
                while client.poll() is None and received(service) < target:
                    offset = service.status(url)["offset"]
                    assert offset >= told
                    told = offset
                peak = max(peak, service.rss_peak())
                if number % 2:
                    service.kill()
                client.kill()
            if number % 2:
                service.restart()
            after = service.status(url)["offset"]
            print(
                f"kill {number + 1} of the {'service' if number % 2 else 'client'}: told {told}, kept {after}",
                file=sys.stderr,
            )
            assert after >= told
            told = after
        began = time.monotonic()
        with start(link, source, url) as client:
            client.communicate()
        assert client.returncode == 0
        print(f"the last run took {time.monotonic() - began:.1f} s from {told}", file=sys.stderr)
        status = service.status(url)
        assert status["state"] == "ready"
        came = hashlib.sha256()
        with urllib.request.urlopen(service.mint_download(status["file_id"])) as fetched:
            while piece := fetched.read(2**20):
                came.update(piece)
        peak = max(peak, service.rss_peak())
    print(f"peak memory of the service: {peak / 2**20:.0f} MiB", file=sys.stderr)
    assert came.hexdigest() == digest.hexdigest()
    assert peak < PEAK_BYTES
