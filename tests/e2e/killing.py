"""A client of a service that dies where it is told to, and what is said of every such death.

`kill_at_each` first lets a scenario run through and notes the points that it passes (`killable`
says what a point is: before or after one call). Then, for each of them, it runs the scenario again
with a service that kills itself there, starts the service anew with all that is in the bucket made
two hours older, so that the sweep at the start sees debris for what it is, and goes on as a client
does. A failure names the point. `-s` prints how many there were.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from service.storage.s3.owning import OWNER
from tests.e2e.s3_service import KillableService, Nursery, on_bucket

if TYPE_CHECKING:
    from tests.stores.servers import Store

HOUR: Final = 3600
#: seconds in which the service must have come to an end by itself (lesson C1)
PATIENCE: Final = 30.0


@dataclass
class Answer:
    """What came back for one request."""

    status: int
    headers: Message
    body: bytes


class Holding(Protocol):
    """What keeps the bytes of services, each in a place of its own, as a test sees it."""

    def objects(self, place: str) -> dict[str, int]:
        """Size of each thing there, by name."""
        ...

    def multiparts(self, place: str) -> list[tuple[str, str]]:
        """Key and id of each unfinished multipart upload."""
        ...

    def age(self, place: str, seconds: float) -> None:
        """All that is there has been for so much longer."""
        ...


class Client:
    """Asks one service; starts it again when it dies of that."""

    def __init__(self, service: KillableService, store: Holding, bucket: str) -> None:
        self.service = service
        self._store = store
        self._bucket = bucket
        self._before: dict[str, int] = {}
        self.deaths = 0

    def begin(self) -> None:
        """A new run: what is in the bucket now is not its concern."""
        self._before = self._held()
        self.deaths = 0

    def _held(self) -> dict[str, int]:
        unfinished = self._store.multiparts(self._bucket)
        objects = {key: size for key, size in self._store.objects(self._bucket).items() if key != OWNER}
        return objects | {f"{key}?{multipart}": 0 for key, multipart in unfinished}

    def left(self) -> dict[str, int]:
        """What this run has left in the bucket: key and size, or key, `?` and id of a multipart upload."""
        return {key: size for key, size in self._held().items() if key not in self._before}

    def ask(self, method: str, url: str, body: bytes = b"", **headers: str) -> Answer | None:
        """None: the service died of it, and runs again."""
        parts = urlsplit(url)
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(
                method,
                f"{parts.path}?{parts.query}",
                body or None,
                {"Tus-Resumable": "1.0.0"} | named,
            )
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        except (OSError, http.client.HTTPException):
            if not self.service.died():
                raise
        finally:
            connection.close()
        self.revive()
        return None

    def surely(self, method: str, url: str, body: bytes = b"", **headers: str) -> Answer:
        """The answer, asked for again where the service died."""
        while (answer := self.ask(method, url, body, **headers)) is None:
            pass
        return answer

    def revive(self) -> None:
        """A new process; what is in the bucket has been there for long."""
        self.deaths += self.service.died()
        self._store.age(self._bucket, 2 * HOUR)
        self.service.restart()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"{what}; in the bucket: {self.left()}"
            time.sleep(0.02)

    def events(self, file_id: str) -> list[str]:
        """The types of the events that were recorded of a file."""
        with contextlib.closing(sqlite3.connect(self.service.data / "attachd.db")) as database:
            return [row[0] for row in database.execute("SELECT type FROM events WHERE subject = ?", (file_id,))]


class Sending:
    """A client's side of one upload: what it was told, and that this never gets less."""

    def __init__(self, client: Client, source: bytes, link: str | None = None, **creation: str) -> None:
        self._client = client
        self._source = source
        self.link = link or client.service.mint_upload()
        self._creation = {"Upload_Length": str(len(source)), **creation}
        self.location = ""
        self.offset = 0

    @property
    def name(self) -> str:
        """In the bucket."""
        return self.location.rpartition("/")[2][:15]

    def create(self, body: bytes = b"") -> None:
        """The upload is there, by as many creations under the one link as it takes."""
        if body:
            self._creation["Content_Type"] = "application/offset+octet-stream"
        answer = self._client.surely("POST", self.link, body, **self._creation)
        assert answer.status == 201, answer
        self.location = answer.headers["Location"]
        self._told(answer)

    def _told(self, answer: Answer) -> None:
        offset = int(answer.headers.get("Upload-Offset", "0"))
        assert offset >= self.offset, f"{self.offset} was acknowledged, now it is {offset}"
        self.offset = offset

    def look(self) -> None:
        """HEAD is 200, or 423 for a moment."""
        deadline = time.monotonic() + PATIENCE
        while (answer := self._client.surely("HEAD", self.location)).status == 423:
            assert time.monotonic() < deadline, "423 for too long"
            time.sleep(0.05)
        assert answer.status == 200, answer
        self._told(answer)

    def send(self, end: int) -> None:
        """The bytes before end are acknowledged."""
        while self.offset < end:
            answer = self._client.ask(
                "PATCH",
                self.location,
                self._source[self.offset : end],
                Upload_Offset=str(self.offset),
                Content_Type="application/offset+octet-stream",
            )
            if answer is None:
                self.look()
                continue
            assert answer.status == 204, answer
            self._told(answer)

    def download(self, source: bytes) -> None:
        """The upload is a file with just these bytes, of which one event tells."""
        self.look()
        assert self.offset == len(source)
        status = self._client.service.status(self.location)
        assert status["state"] == "ready", status
        answer = self._client.surely("GET", self._client.service.mint_download(status["file_id"]))
        assert answer.status == 200
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(source).digest()
        assert self._client.events(status["file_id"]) == ["file.ready"]


# --- running a scenario once for each point ------------------------------------------------------

#: prepares, does what is to be killed within the second argument, and looks at what came of it
Scenario = Callable[[Client, contextlib.AbstractContextManager[object]], None]


def kill_at_each(clients: Sequence[Client], scenario: Scenario, *, among: set[str]) -> None:
    """The scenario holds with a kill at each of its points, which are of these calls at least."""
    began = time.monotonic()
    passed = [_passed(clients[0], scenario) for _ in range(2)]
    # on a busy machine an offset may be committed in two steps, once and then never again
    points = [point for point in passed[0] if point in passed[1]]
    assert {point.split()[1] for point in points} >= among, points
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for point in points:
        waiting.put(point)
    failed: dict[str, str] = {}

    def work(client: Client) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                point = waiting.get_nowait()
                try:
                    _kill_at(client, scenario, point)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told with its point
                    failed[point] = f"{error!r}\n{client.service.log_tail(8)}"
                    client.service.restart()

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"\n{len(points)} points in {time.monotonic() - began:.1f} s: {', '.join(points)}")
    assert not failed, "\n".join(f"--- killed {point}: {why}" for point, why in failed.items())


def _passed(client: Client, scenario: Scenario) -> list[str]:
    """The points of the scenario."""
    points: list[str] = []
    client.begin()
    scenario(client, _dying(client, "", points))
    return points


def _kill_at(client: Client, scenario: Scenario, point: str) -> None:
    client.begin()
    scenario(client, _dying(client, point, []))
    # a directory that this process has used before is not synced again
    assert client.deaths == 1 or (client.deaths == 0 and point.split()[1] == "fsync"), f"killed {client.deaths} times"


@contextlib.contextmanager
def _dying(client: Client, at: str, points: list[str]) -> Iterator[None]:
    """Inside, the service dies at that point, if there is one; else the points are noted."""
    client.service.wait_swept()
    with client.service.ordered(at) as reached:
        yield
    points += reached


@contextlib.contextmanager
def running(folder: Path, store: Store, **settings: str) -> Iterator[list[Client]]:
    """Two services on a bucket each, for two threads."""
    with Nursery() as nursery, contextlib.ExitStack() as stack:
        clients = []
        for number in range(2):
            bucket = store.make_bucket()
            stack.callback(store.drop_bucket, bucket)
            named = on_bucket(store, bucket) | {"ATTACHD_SWEEP_INTERVAL": "1s"} | settings
            service = stack.enter_context(KillableService(folder / str(number), nursery, named))
            clients.append(Client(service, store, bucket))
        yield clients
