"""The service as a real process, with a directory and ports of its own.

    with ServiceProcess(tmp_path, ATTACHD_MAX_SIZE="1MiB") as service:
        link = service.mint_upload(max_size=1000)
        service.kill()
        service.restart()

The process leads a group of its own, so that ending it ends its workers too, and the context ends
it whatever happens in between. Everything here blocks; a test whose own loop must go on meanwhile
(a proxy lives in it) calls through `asyncio.to_thread`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

from prometheus_client.parser import text_string_to_metric_families

from service import links
from service.keyset import KeySet
from service.model import FileId
from service.workers.counting import SHARED_MEMORY, shared_prefix
from tests.ports import free_port

if TYPE_CHECKING:
    from types import TracebackType

ROOT: Final = Path(__file__).resolve().parents[2]
#: seconds in which a start or an orderly stop must be over
START_LIMIT: Final = 30.0
STOP_LIMIT: Final = 45.0
#: what services of this run have logged to
LOGS: Final[set[Path]] = set()


class NotReady(AssertionError):
    """The service did not come up, or ended; the text carries the end of its log."""


class ServiceProcess:
    """`python -m service serve` with data under `directory`; keyword arguments are settings by name.

    One process unless `ATTACHD_WORKERS` says otherwise.
    """

    #: has the command `serve`; a test's own may do something to the service first
    module = "service"

    def __init__(self, directory: Path, *arguments: str, **settings: str) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log_path = directory / "service.log"
        self.port = free_port()
        self.ops_port = free_port()
        self.settings = settings
        self.command = [sys.executable, "-m", self.module, "serve", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ops_url(self) -> str:
        return f"http://127.0.0.1:{self.ops_port}"

    @property
    def address(self) -> tuple[str, int]:
        """Where a proxy connects to."""
        return ("127.0.0.1", self.port)

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """What the process sees: nothing of attachd but what this object says."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATTACHD_")}
        return inherited | {
            "ATTACHD_LISTEN": f"127.0.0.1:{self.port}",
            "ATTACHD_OPS_LISTEN": f"127.0.0.1:{self.ops_port}",
            "ATTACHD_DATA": str(self.data),
            "ATTACHD_LOG_FORMAT": "json",
            "ATTACHD_WORKERS": "1",
            **self.settings,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Ready to serve, or NotReady."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def wait_ready(self, limit_seconds: float = START_LIMIT) -> None:
        """`/readyz` answered 200, or NotReady."""
        LOGS.add(self.log_path)
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise NotReady(f"the service ended\n{self.log_tail()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.ops_url}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.02)
        raise NotReady(f"the service was not ready after {limit_seconds} s\n{self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL to the process and its workers; nothing of it is left."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_LIMIT)
        # Workers are no children of ours; until the last is gone the port may still be answered.
        deadline = time.monotonic() + STOP_LIMIT
        while self.pids():
            assert time.monotonic() < deadline, f"still running: {self.pids()}"
            time.sleep(0.01)
        # the next start on the directory would; most tests have none
        with contextlib.suppress(FileNotFoundError):
            for left in SHARED_MEMORY.glob(f"{shared_prefix(self.data)}*"):
                shutil.rmtree(left, ignore_errors=True)

    def terminate(self) -> int:
        """SIGTERM, as an orchestrator stops it; the exit code."""
        assert self._process is not None, "not started"
        self._process.terminate()
        return self.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """The exit code, once the process has ended."""
        assert self._process is not None, "not started"
        return self._process.wait(STOP_LIMIT)

    def restart(self) -> None:
        """A new process on the same ports and data; the old one is killed where it still runs."""
        self.kill()
        self.start()

    def log_tail(self, lines: int = 40) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _keys(self) -> KeySet:
        path = self.settings.get("ATTACHD_KEYS", str(self.data / "keys.json"))
        return KeySet.parse(Path(path).read_bytes())

    def mint_upload(self, *, base: str | None = None, **claims: Any) -> str:
        """An upload link; claims as `links.mint_upload` names them. `base`: a proxy in front."""
        base = base or self.url
        terms: dict[str, Any] = {"jti": secrets.token_urlsafe(16), "expires_in": 3600, "max_size": 4 * 2**30} | claims
        token = links.mint_upload(self._keys().signing_key(), audience=self._audience(base), now=time.time(), **terms)
        return links.upload_url(base, token)

    def mint_download(self, file_id: str, *, base: str | None = None, **claims: Any) -> str:
        """A download link for the file; claims as `links.mint_download` names them."""
        base = base or self.url
        terms: dict[str, Any] = {"expires_in": 3600} | claims
        token = links.mint_download(
            self._keys().signing_key(),
            audience=self._audience(base),
            file_id=FileId(file_id),
            now=time.time(),
            **terms,
        )
        return links.download_url(base, FileId(file_id), token)

    def _audience(self, base: str) -> str:
        return self.settings.get("ATTACHD_PUBLIC_URL", base)

    def status(self, upload_url: str) -> dict[str, Any]:
        """The JSON status of an upload, or of the error it answers with."""
        try:
            with urllib.request.urlopen(upload_url, timeout=30) as answer:
                return cast("dict[str, Any]", json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return cast("dict[str, Any]", json.load(error))

    def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`, as `name{label="value",…}` with the labels in order."""
        with urllib.request.urlopen(f"{self.ops_url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                samples[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return samples

    def successor(self) -> ServiceProcess:
        """The service that takes the place of this one: on the same directory and ports, to be started `--beside`."""
        other = ServiceProcess(self.directory, "--beside", **self.settings)
        other.port, other.ops_port = self.port, self.ops_port
        other.log_path = self.log_path.with_name("successor.log")
        return other

    def workers(self) -> dict[int, int]:
        """The process ids of the workers, by number; empty where the service is one process."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                name, _, number = Path(f"/proc/{pid}/comm").read_text().strip().partition("-")
                if name == "attachd" and number.isdecimal():
                    found[int(number)] = pid
        return found

    def worker_of(self, connected: socket.socket) -> int:
        """The process id of the worker at the other end of the connection."""
        port = connected.getsockname()[1]
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {f"socket:[{row[9]}]" for row in rows if row[2].endswith(f":{port:04X}")}
        for pid in self.workers().values():
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(entry) in inodes:
                        return pid
        raise AssertionError("no worker has the connection")

    def pids(self) -> list[int]:
        """The process, its nursery and its workers."""
        return [
            int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _group(entry) == self.pid
        ]

    def rss(self) -> int:
        """Bytes that the processes of the service hold now, summed."""
        return sum(_status(pid, "VmRSS:") for pid in self.pids())

    def descriptors(self) -> int:
        """How many the processes of the service have open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())

    def bytes_read(self) -> int:
        """From sockets and files, since the start."""
        return sum(_io(pid, "rchar:") for pid in self.pids())

    def rss_peak(self) -> int:
        """Bytes: the most each process of the service ever held, summed."""
        return sum(_status(pid, "VmHWM:") for pid in self.pids())


def _group(entry: Path) -> int | None:
    """The process group of a process that still runs."""
    try:
        # After the command name, which may hold anything: state, parent, group.
        state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return None
    return None if state == "Z" else int(group)


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def _io(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0
