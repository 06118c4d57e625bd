"""Stock clients, as they come from their registries, against a real service and a signed link.

Each test ends with the SHA-256 of the download equal to that of the source, unless the upload is
meant to be refused or cancelled. Uploads that are to be cut go through the faulty proxy, where each
connection ends after so many bytes; a client that does not resume from the service's offset would
never get past them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import aiotus
import pytest

from service.protocol.problems import KINDS
from tests.e2e.clients import (
    NODE,
    ClientFailed,
    aiotus_upload,
    need_node,
    put_command,
    run_node,
    sha256_of_file,
    sha256_of_url,
    tus_js,
    tuspy,
)
from tests.e2e.faulty import Ending, FaultyProxy, Plan
from tests.e2e.process import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 2**20
#: statuses a PATCH can be answered with
PATCH_STATUSES = sorted({kind.status for kind in KINDS.values()} - {405, 416, 417})
RETRYABLE = {kind.status for kind in KINDS.values() if kind.retry}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path_factory.mktemp("service")) as process:
        yield process


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MiB and a bit: three blocks and a short one."""
    path = tmp_path_factory.mktemp("source") / "big.bin"
    path.write_bytes(os.urandom(24 * MIB + 12345))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "a photo.png"
    path.write_bytes(os.urandom(300_000))
    return path


@pytest.fixture
def node() -> None:
    need_node()


async def assert_arrived(service: ServiceProcess, upload_url: str, source: Path) -> str:
    """The upload is ready and its file is the source; the file's id."""
    # Straight to the service: the proxy the client went through may be gone.
    path = re.sub(r"^http://[^/]+", "", upload_url)
    status = await asyncio.to_thread(service.status, f"{service.url}{path}?wait=20")
    assert status.get("state") == "ready", status
    file_id = str(status["file_id"])
    assert await sha256_of_url(service.mint_download(file_id)) == sha256_of_file(source)
    return file_id


async def kept(service: ServiceProcess, upload_url: str) -> int:
    """The offset, once the service has committed something of a request that was cut."""
    path = re.sub(r"^http://[^/]+", "", upload_url)
    async with asyncio.timeout(30):
        while not (offset := (await asyncio.to_thread(service.status, f"{service.url}{path}"))["offset"]):
            await asyncio.sleep(0.02)
    return int(offset)


def created(service: ServiceProcess) -> float:
    """Uploads created so far."""
    return sum(value for name, value in service.metrics().items() if name.startswith("attachd_uploads_created_total"))


def canned(status: int) -> bytes:
    return f"HTTP/1.1 {status} No\r\nTus-Resumable: 1.0.0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


# tuspy


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk_size": 5 * MIB}, {"chunk_size": 5 * MIB, "upload_checksum": True}],
    ids=["one PATCH", "chunks", "sha1 checksums"],
)
async def test_tuspy_uploads(service: ServiceProcess, big: Path, options: dict[str, Any]) -> None:
    """tuspy sends a file in one request, in chunks, and in chunks with checksums."""
    await assert_arrived(service, await tuspy(big, service.mint_upload(), **options), big)


async def test_tuspy_uploads_an_empty_file(service: ServiceProcess, tmp_path: Path) -> None:
    """tuspy's single POST completes an empty file."""
    empty = tmp_path / "empty"
    empty.touch()
    await assert_arrived(service, await tuspy(empty, service.mint_upload()), empty)


@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RST])
async def test_tuspy_resumes_after_cuts(service: ServiceProcess, big: Path, ending: Ending) -> None:
    """tuspy gets through a line that is cut after every 7 MiB, without a second creation."""
    async with FaultyProxy(service.address, default=Plan(cut_up=7 * MIB, ending=ending)) as proxy:
        url = await tuspy(big, service.mint_upload(base=proxy.url), retries=20, retry_delay=0)
        assert proxy.cuts >= 3
        assert proxy.requests(rb"POST ") == 1
    await assert_arrived(service, url, big)


async def test_tuspy_resends_a_damaged_chunk(service: ServiceProcess, big: Path) -> None:
    """A chunk damaged on the way costs a 460 and a second try, and the file is right."""
    # tuspy opens a connection for each request: the third carries the second PATCH.
    plans = [Plan(), Plan(), Plan(flip=3 * MIB)]
    async with FaultyProxy(service.address, plans) as proxy:
        link = service.mint_upload(base=proxy.url)
        url = await tuspy(big, link, chunk_size=5 * MIB, upload_checksum=True, retries=3, retry_delay=0)
        assert proxy.requests(rb"PATCH ") == 6
    await assert_arrived(service, url, big)


async def test_tuspy_resumes_from_its_store(service: ServiceProcess, big: Path, tmp_path: Path) -> None:
    """A second tuspy that knows only the URL store goes on where the first one was cut."""
    store = tmp_path / "urls.json"
    async with FaultyProxy(service.address, default=Plan(cut_up=10 * MIB)) as proxy:
        link = service.mint_upload(base=proxy.url)
        with pytest.raises(ClientFailed):
            await tuspy(big, link, store=store)
        url = await tuspy(big, link, store=store, retries=5, retry_delay=0)
        assert proxy.requests(rb"POST ") == 1
    await assert_arrived(service, url, big)


@pytest.mark.parametrize("status", sorted(RETRYABLE))
async def test_r3_tuspy_retries(service: ServiceProcess, small: Path, status: int) -> None:
    """R3: tuspy tries again after a PATCH with a status the table calls worth a retry."""
    async with FaultyProxy(service.address) as proxy:
        proxy.answer(rb"PATCH ", canned(status))
        url = await tuspy(small, service.mint_upload(base=proxy.url), retries=2, retry_delay=0)
    await assert_arrived(service, url, small)


# aiotus

#: aiohttp's client says so of the chunks that aiotus hands it
LARGE_BODY = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@LARGE_BODY
async def test_aiotus_uploads(service: ServiceProcess, big: Path) -> None:
    """aiotus sends a file in its own chunks and reads its metadata back."""
    url = await aiotus_upload(big, service.mint_upload())
    assert await aiotus.metadata(url) == {"filename": b"big.bin"}
    await assert_arrived(service, url, big)


@LARGE_BODY
async def test_aiotus_resumes_after_cuts(service: ServiceProcess, big: Path) -> None:
    """aiotus gets through a line that is cut after every 7 MiB, without a second creation."""
    config = aiotus.RetryConfiguration(retry_attempts=20, max_retry_period_seconds=0.05)
    async with FaultyProxy(service.address, default=Plan(cut_up=7 * MIB, ending=Ending.RST)) as proxy:
        url = await aiotus_upload(big, service.mint_upload(base=proxy.url), config=config)
        assert proxy.cuts >= 3
        assert proxy.requests(rb"POST ") == 1
    await assert_arrived(service, url, big)


@LARGE_BODY
async def test_aiotus_concatenates(service: ServiceProcess, tmp_path: Path) -> None:
    """aiotus sends three files as partials of one single-use link, and the final is all of them in order."""
    pieces = [os.urandom(size) for size in (3 * MIB, 1, 5 * MIB + 7)]
    whole = tmp_path / "whole"
    whole.write_bytes(b"".join(pieces))
    streams = []
    for number, piece in enumerate(pieces):
        path = tmp_path / f"piece{number}"
        path.write_bytes(piece)
        streams.append(path.open("rb"))
    try:
        url = await aiotus.upload_multiple(service.mint_upload(), streams, {"filename": b"whole"})
    finally:
        for stream in streams:
            stream.close()
    assert url is not None
    await assert_arrived(service, str(url), whole)


# tus-js-client


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunkSize": 5 * MIB},
        {"parallelUploads": 3},
        {"stream": True, "uploadLengthDeferred": True, "chunkSize": 5 * MIB},
        {"stream": True, "uploadLengthDeferred": True, "uploadDataDuringCreation": True, "chunkSize": 5 * MIB},
        {"overridePatchMethod": True, "chunkSize": 9 * MIB},
        {"uploadDataDuringCreation": True},
        {"uploadDataDuringCreation": True, "chunkSize": 5 * MIB},
        {"parallelUploads": 2, "uploadDataDuringCreation": True},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
async def test_tus_js_uploads(service: ServiceProcess, big: Path, options: dict[str, Any]) -> None:
    """tus-js-client sends a file in each of its modes through one single-use link."""
    run = await tus_js(big, service.mint_upload(), **options)
    await assert_arrived(service, run.one("success")["url"], big)


@pytest.mark.usefixtures("node")
async def test_tus_js_is_told_the_file_id(service: ServiceProcess, small: Path) -> None:
    """The last response that tus-js-client hands to its caller names the file."""
    run = await tus_js(small, service.mint_upload())
    done = run.one("success")
    assert done["file_id"] == await assert_arrived(service, done["url"], small)


@pytest.mark.usefixtures("node")
async def test_tus_js_terminates(service: ServiceProcess, big: Path) -> None:
    """An upload that tus-js-client terminates half-way is gone: 410."""
    async with FaultyProxy(service.address, default=Plan(rate=40 * MIB)) as proxy:
        run = await tus_js(big, service.mint_upload(base=proxy.url), terminateAt=8 * MIB)
        assert proxy.requests(rb"DELETE ") == 1
        url = run.one("terminated")["url"]
        assert (await asyncio.to_thread(service.status, url))["status"] == 410


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RST])
@pytest.mark.parametrize("options", [{}, {"parallelUploads": 2}], ids=["one", "parallel"])
async def test_tus_js_resumes_after_cuts(
    service: ServiceProcess, big: Path, ending: Ending, options: dict[str, Any]
) -> None:
    """tus-js-client gets through a line that is cut after every 5 MiB, without a creation more than it needs."""
    async with FaultyProxy(service.address, default=Plan(cut_up=5 * MIB, ending=ending)) as proxy:
        run = await tus_js(big, service.mint_upload(base=proxy.url), **options)
        url = run.one("success")["url"]
        assert proxy.cuts >= 3
        assert proxy.requests(rb"POST ") == (3 if options else 1)
    await assert_arrived(service, url, big)


@pytest.mark.usefixtures("node")
async def test_tus_js_resumes_in_a_new_process(service: ServiceProcess, big: Path, tmp_path: Path) -> None:
    """After a SIGKILL of the client a new one finds the upload by file and endpoint, and goes on from its offset."""
    async with FaultyProxy(service.address, default=Plan(rate=20 * MIB)) as proxy:
        token = service.mint_upload(base=proxy.url).partition("sig=")[2]
        # The token as Bearer: the endpoint is part of the fingerprint and must be the same after a reload.
        options = {"headers": {"Authorization": f"Bearer {token}"}, "urlStorage": str(tmp_path / "urls.json")}
        request = {"file": str(big), "endpoint": f"{proxy.url}/files", "retryDelays": [0, 50, 100, 200]} | options
        killed = await run_node(
            "upload.mjs", request, kill_when=lambda item: item["event"] == "progress" and item["sent"] > 8 * MIB
        )
        await kept(service, killed.one("url")["url"])
        run = await run_node("upload.mjs", request)
        assert proxy.requests(rb"POST ") == 1
        resumed = next(item for item in run.all("response") if item["method"] == "HEAD")
        assert 0 < int(resumed["offset"]) < big.stat().st_size
    await assert_arrived(service, run.one("success")["url"], big)


@pytest.mark.usefixtures("node")
async def test_tus_js_starts_again_with_the_same_link(service: ServiceProcess, big: Path) -> None:
    """A client that lost everything but link and file gets the same upload from a second POST, at its offset."""
    async with FaultyProxy(service.address, default=Plan(rate=20 * MIB)) as proxy:
        link = service.mint_upload(base=proxy.url)
        first = await tus_js(big, link, abortAt=8 * MIB)
        await kept(service, first.one("aborted")["url"])
        second = await tus_js(big, link)
        url = second.one("success")["url"]
        assert url == first.one("aborted")["url"]
        creation = next(item for item in second.all("response") if item["method"] == "POST")
        assert int(creation["offset"]) > 0
    await assert_arrived(service, url, big)


@pytest.mark.usefixtures("node")
async def test_c3_a_lost_final_answer_is_a_success(service: ServiceProcess, big: Path) -> None:
    """C3: the 204 that completes the upload is lost; tus-js-client reports success after one POST in all."""
    async with FaultyProxy(service.address) as proxy:
        proxy.eat(rb"HTTP/1\.1 204")
        run = await tus_js(big, service.mint_upload(base=proxy.url))
        url = run.one("success")["url"]
        assert proxy.cuts == 1
        assert proxy.requests(rb"POST ") == 1
    await assert_arrived(service, url, big)


@pytest.mark.usefixtures("node")
async def test_c4_a_lost_creation_answer_makes_no_second_upload(service: ServiceProcess, big: Path) -> None:
    """C4: the 201 is lost three times; tus-js-client ends with the one upload those requests made."""
    before = await asyncio.to_thread(created, service)
    async with FaultyProxy(service.address) as proxy:
        proxy.eat(rb"HTTP/1\.1 201", times=3)
        run = await tus_js(big, service.mint_upload(base=proxy.url))
        assert proxy.requests(rb"POST ") == 4
    await assert_arrived(service, run.one("success")["url"], big)
    assert await asyncio.to_thread(created, service) - before == 1


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("status", PATCH_STATUSES)
async def test_r3_tus_js_retries_as_the_table_says(service: ServiceProcess, small: Path, status: int) -> None:
    """R3: after a PATCH with this status tus-js-client tries again exactly if the table says so."""
    async with FaultyProxy(service.address) as proxy:
        proxy.answer(rb"PATCH ", canned(status))
        run = await tus_js(small, service.mint_upload(base=proxy.url))
        assert proxy.requests(rb"PATCH ") == (2 if status in RETRYABLE else 1)
    if status in RETRYABLE:
        await assert_arrived(service, run.one("success")["url"], small)
    else:
        assert run.one("error")["status"] == status


@pytest.mark.usefixtures("node")
async def test_a_refused_creation_tells_tus_js_why(service: ServiceProcess, small: Path) -> None:
    """A file over the link's limit is a 413 whose body names the problem, after a single POST."""
    async with FaultyProxy(service.address) as proxy:
        run = await tus_js(small, service.mint_upload(base=proxy.url, max_size=1000))
        assert proxy.requests() == 1
    error = run.one("error")
    assert (error["status"], json.loads(error["body"])["type"]) == (413, "urn:attachd:problem:too-large")


# Uppy


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("options", [{}, {"chunkSize": 5 * MIB}], ids=["one PATCH", "chunks"])
async def test_uppy_uploads(service: ServiceProcess, big: Path, options: dict[str, Any]) -> None:
    """Uppy with its Tus plugin sends a file through a signed link."""
    run = await run_node("uppy.mjs", {"file": str(big), "endpoint": service.mint_upload()} | options)
    await assert_arrived(service, run.one("success")["url"], big)


@pytest.mark.usefixtures("node")
async def test_uppy_resumes_after_cuts(service: ServiceProcess, big: Path) -> None:
    """Uppy gets through a line that is cut after every 7 MiB, without a second creation."""
    async with FaultyProxy(service.address, default=Plan(cut_up=7 * MIB)) as proxy:
        request = {"endpoint": service.mint_upload(base=proxy.url), "retryDelays": [0, 50, 100, 200]}
        run = await run_node("uppy.mjs", {"file": str(big)} | request)
        assert proxy.cuts >= 3
        assert proxy.requests(rb"POST ") == 1
    await assert_arrived(service, run.one("success")["url"], big)


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("status", PATCH_STATUSES)
async def test_r3_uppy_retries_as_the_table_says(service: ServiceProcess, small: Path, status: int) -> None:
    """R3: after a PATCH with this status Uppy tries again exactly if the table says so."""
    async with FaultyProxy(service.address) as proxy:
        proxy.answer(rb"PATCH ", canned(status))
        request = {"endpoint": service.mint_upload(base=proxy.url), "retryDelays": [0, 50]}
        run = await run_node("uppy.mjs", {"file": str(small)} | request)
        assert proxy.requests(rb"PATCH ") == (2 if status in RETRYABLE else 1)
    assert bool(run.all("success")) == (status in RETRYABLE)


# Links made elsewhere, and our own command


@pytest.mark.usefixtures("node")
async def test_a_link_made_in_node_is_accepted(service: ServiceProcess, small: Path) -> None:
    """A backend in Node mints with jose what the service accepts."""
    request = {"keys": str(service.data / "keys.json"), "base": service.url, "max": MIB}
    minted = await asyncio.to_thread(
        subprocess.run,
        ["node", "mint.mjs", json.dumps(request)],
        cwd=NODE,
        capture_output=True,
        check=True,
        text=True,
    )
    await assert_arrived(service, await tuspy(small, minted.stdout.strip()), small)


async def test_put_uploads(service: ServiceProcess, big: Path) -> None:
    """`attachd put` prints the id of the file and nothing else."""
    code, out, err = await put_command(big, service.mint_upload())
    assert (code, err) == (0, "")
    assert await sha256_of_url(service.mint_download(out.removesuffix("\n"))) == sha256_of_file(big)


async def test_put_uploads_an_empty_file(service: ServiceProcess, tmp_path: Path) -> None:
    """`attachd put` of an empty file ends with a file id as well."""
    empty = tmp_path / "empty"
    empty.touch()
    code, out, _ = await put_command(empty, service.mint_upload())
    assert code == 0
    assert await sha256_of_url(service.mint_download(out.strip())) == sha256_of_file(empty)


async def test_put_gets_through_cuts_of_every_kind(service: ServiceProcess, big: Path) -> None:
    """`attachd put` survives a refused connection, lost answers, a FIN and a reset in one upload."""
    plans = [Plan(refuse=True), Plan(), Plan(), Plan(cut_up=3 * MIB), Plan(cut_down=10)]
    async with FaultyProxy(service.address, plans, default=Plan(cut_up=9 * MIB, ending=Ending.RST)) as proxy:
        proxy.eat(rb"HTTP/1\.1 201")
        proxy.eat(rb"HTTP/1\.1 204")
        code, out, err = await put_command(big, service.mint_upload(base=proxy.url))
        assert (code, err) == (0, "")
    assert await sha256_of_url(service.mint_download(out.strip())) == sha256_of_file(big)


async def test_put_goes_on_in_a_new_process(service: ServiceProcess, big: Path) -> None:
    """After a SIGKILL the same command line sends only what the service lacks."""
    async with FaultyProxy(service.address, default=Plan(rate=40 * MIB)) as proxy:
        link = service.mint_upload(base=proxy.url)
        code, _, _ = await put_command(big, link, kill_at=lambda: proxy.bytes_up > 10 * MIB)
        assert code == -9
        before = proxy.bytes_up
        code, out, _ = await put_command(big, link)
        assert code == 0
        assert proxy.bytes_up - before < 15 * MIB
    assert await sha256_of_url(service.mint_download(out.strip())) == sha256_of_file(big)


async def test_put_refuses_another_file(service: ServiceProcess, small: Path, big: Path) -> None:
    """A link that was used for one file is refused for another, in one line that says so."""
    link = service.mint_upload()
    await put_command(small, link)
    code, out, err = await put_command(big, link)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"Error: the link is not for this file, or is used up \(403: .+\)\n", err)
