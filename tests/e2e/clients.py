"""Stock tus clients, unmodified, each as one call that ends when the client does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import subprocess
import sys
import urllib.request
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiotus
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError
from tusclient.storage.filestorage import FileStorage

from tests.conftest import require

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).resolve().parents[2]
NODE: Final = Path(__file__).parent / "node"
#: seconds in which any client run of these tests must be over
LIMIT: Final = 120.0


def need_node() -> None:
    """Node and the clients' packages are there; else the test is skipped, or fails where they are required."""
    require("node")
    if subprocess.run(["node", "check.mjs"], cwd=NODE, capture_output=True, check=False).returncode:
        require("node", why="its client packages are not installed (npm install in tests/e2e/node)")


@dataclass
class NodeRun:
    """What a script of `node/` said, event by event, and how it ended (None: killed from here)."""

    events: list[dict[str, Any]] = field(default_factory=list)
    returncode: int | None = None
    stderr: str = ""

    def all(self, event: str) -> list[dict[str, Any]]:
        return [item for item in self.events if item["event"] == event]

    def one(self, event: str) -> dict[str, Any]:
        """The last event of that name; an assertion with everything said where there is none."""
        found = self.all(event)
        assert found, f"no {event!r} event: {self.events[-5:]} {self.stderr}"
        return found[-1]

    def count(self, method: str) -> int:
        """How many answers to that method the client saw."""
        return sum(1 for item in self.all("response") if item["method"] == method)


async def run_node(
    script: str, request: dict[str, Any], *, kill_when: Callable[[dict[str, Any]], bool] | None = None
) -> NodeRun:
    """Run a script of `node/` to its end, or to a SIGKILL at the first event that `kill_when` likes."""
    process = await asyncio.create_subprocess_exec(
        "node",
        script,
        json.dumps(request),
        cwd=NODE,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    run = NodeRun()
    errors = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(LIMIT):
            async for line in process.stdout:
                run.events.append(json.loads(line))
                if kill_when is not None and kill_when(run.events[-1]):
                    break
            else:
                run.returncode = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        run.stderr = (await errors).decode()
    return run


async def tus_js(source: Path, link: str, **options: Any) -> NodeRun:
    """tus-js-client sends the file to the link; options as tus.Upload names them."""
    defaults = {"retryDelays": [0, 50, 100, 200, 400], "metadata": {"filename": source.name}}
    return await run_node("upload.mjs", {"file": str(source), "endpoint": link} | defaults | options)


class ClientFailed(Exception):
    """A stock client gave up; its own words."""


async def tuspy(source: Path, link: str, *, store: Path | None = None, **options: Any) -> str:
    """tuspy sends the file to the link; the upload's address. `store` remembers it for another call.

    Raises:
        ClientFailed: tuspy raised.
    """

    def send() -> str:
        remembered = {"store_url": True, "url_storage": FileStorage(str(store))} if store else {}
        try:
            uploader = TusClient(link).uploader(
                str(source), metadata={"filename": source.name}, **remembered, **options
            )
            uploader.upload()
        except TusCommunicationError as error:
            raise ClientFailed(str(error)) from None
        return str(uploader.url)

    def send_and_clean_up() -> str:
        # tuspy opens the file for each request and leaves closing it to the garbage collector.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                return send()
            finally:
                gc.collect()

    return await asyncio.to_thread(send_and_clean_up)


async def aiotus_upload(source: Path, link: str, **options: Any) -> str:
    """aiotus sends the file to the link; the upload's address."""
    with source.open("rb") as stream:
        location = await aiotus.upload(link, stream, {"filename": source.name.encode()}, **options)
    assert location is not None, "aiotus gave up"
    return str(location)


async def put_command(source: Path, link: str, *, kill_at: Callable[[], bool] | None = None) -> tuple[int, str, str]:
    """`attachd put` as a process: exit code, standard output, standard error. Killed once `kill_at()` holds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service",
        "put",
        str(source),
        link,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    talking = asyncio.create_task(process.communicate())
    try:
        async with asyncio.timeout(LIMIT):
            while kill_at is not None and not talking.done():
                if kill_at():
                    process.kill()
                    break
                await asyncio.sleep(0.005)
            out, err = await talking
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


async def sha256_of_url(url: str) -> str:
    """The digest of what the address serves, read without holding it."""

    def read() -> str:
        digest = hashlib.sha256()
        with urllib.request.urlopen(url, timeout=60) as answer:
            while piece := answer.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    return await asyncio.to_thread(read)
