"""A proxy before a Store that knows which S3 call passes, counts it, and lets it go wrong as told.

    with FaultyStore(store) as faulty:
        faulty.fault("upload_part", nth=2, what=slow_down())
        ...  # a service with endpoint faulty.endpoint
        faulty.wait_for("complete_multipart_upload")
        assert faulty.count("upload_part") == 4

Host passes as it is, so the client's signatures stay good. Everything runs in threads of its own: it
serves processes and event loops alike, and an async test calls `wait_for` in a thread.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, Self

from tests.stores.calls import Call, Kind, read_call
from tests.stores.faults import Answer, Cut, Fault, s3_error
from tests.stores.signing import sign
from tests.stores.wire import Gone, Head, Line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from mypy_boto3_s3 import S3Client

    from tests.stores.servers import Store

#: seconds to wait for something to arrive
SOON: Final = 30.0
_CHECKSUMS: Final = ("x-amz-checksum-", "x-amz-sdk-checksum-algorithm", "x-amz-trailer")
_CHECKSUM_ELEMENT: Final = re.compile(rb"<(Checksum\w+)>[^<]*</\1>")
_PART_NUMBER: Final = re.compile(rb"<PartNumber>(\d+)</PartNumber>")
_UPLOAD_ID: Final = re.compile(rb"<UploadId>([^<]*)</UploadId>")


@dataclass(slots=True)
class _Rule:
    kind: Kind | None
    nth: int
    times: int | None
    part_number: int | None
    key: str
    what: Fault
    seen: int = 0

    def takes(self, call: Call) -> bool:
        """Count the call if it is one of this rule's; whether this is one that goes wrong."""
        if self.kind not in {None, call.kind} or self.part_number not in {None, call.part_number}:
            return False
        if self.key not in call.key:
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


class FaultyStore:
    """Listens on a port of its own until it is closed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        #: every call, in the order of arrival
        self.calls: list[Call] = []
        #: every call is reset, or answered with a plain 503, and never reaches the store
        self.down: Literal["reset", "503"] | None = None
        #: as stores from before 2022: any field of a checksum other than MD5 is an error
        self.refuse_checksum_headers = False
        #: as stores that know no such checksums and do not say so
        self.drop_checksum_headers = False
        #: as Cloudflare R2: all parts but the last have the same size, and the last no more
        self.equal_parts = False
        #: as stores without ListMultipartUploads
        self.no_list_multiparts = False
        self._direct = store.client()
        self._rules: list[_Rule] = []
        self._change = threading.Condition()
        self._closed = False
        self._connections: set[_Connection] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._port = int(self._listener.getsockname()[1])
        self._in_thread(threading.Thread(target=self._accept, daemon=True))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def client(self) -> S3Client:
        """As the store's own, through here."""
        return self.store.client(self.endpoint)

    def fault(
        self,
        kind: Kind | None,
        *,
        what: Fault,
        nth: int = 1,
        times: int | None = 1,
        part_number: int | None = None,
        key: str = "",
    ) -> None:
        """From the nth such call from now on, `times` of them go wrong; the first rule that says so decides.

        Args:
            kind: None: any.
            nth: counted from 1.
            times: None: from then on all.
            part_number: only calls for this part, if given.
            key: only calls whose key has this in it.
        """
        with self._change:
            self._rules.append(_Rule(kind, nth, times, part_number, key, what))

    def clear(self) -> None:
        """No rule is left, those who waited go on, and no call was ever counted."""
        with self._change:
            rules, self._rules, self.calls = self._rules, [], []
        for rule in rules:
            rule.what.release()

    def count(self, kind: Kind | None = None) -> int:
        """How many calls of the kind, or of any, have arrived."""
        with self._change:
            return len(self._of(kind))

    def wait_for(self, kind: Kind | None, n: int = 1, *, over: bool = False, timeout: float = SOON) -> Call:
        """The nth call of the kind, once it has arrived; with `over` once the proxy has done with it.

        Raises:
            TimeoutError: it did not in time.
        """
        with self._change:
            if not self._change.wait_for(lambda: sum(call.over or not over for call in self._of(kind)) >= n, timeout):
                raise TimeoutError(f"{len(self._of(kind))} of {n} calls {kind} within {timeout} s")
            return [call for call in self._of(kind) if call.over or not over][n - 1]

    def close(self) -> None:
        """Every connection is reset, nobody waits here any more, and the threads have ended."""
        with self._change:
            self._closed = True
            connections = list(self._connections)
        # A thread that waits for a connection is woken by nothing else on every system.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port)).close()
        for rule in self._rules:
            rule.what.release()
        for connection in connections:
            connection.wake()
        for thread in self._threads:
            thread.join(SOON)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _of(self, kind: Kind | None) -> list[Call]:
        return [call for call in self.calls if kind in {None, call.kind}]

    def _in_thread(self, thread: threading.Thread) -> None:
        self._threads = [known for known in self._threads if known.is_alive()]
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._closed:
                sock.close()
                self._listener.close()
                return
            self._in_thread(threading.Thread(target=self._serve, args=(Line(sock),), daemon=True))

    def _serve(self, client: Line) -> None:
        """One connection of a client, until either side ends it or a fault does."""
        connection = _Connection(client, self.store.port)
        with self._change:
            self._connections.add(connection)
        ended = client.reset
        try:
            while not self._closed and self._serve_call(connection):
                pass
            ended = client.close
        except (Gone, Cut):
            pass
        finally:
            ended()
            connection.hang_up()
            with self._change:
                self._connections.discard(connection)

    def _serve_call(self, connection: _Connection) -> bool:
        """Whether another call may come on this connection."""
        try:
            head = connection.client.read_head()
        except Gone:
            return False
        call, fault = self._arrive(head)
        try:
            fault.arrived(call)
            if self.down == "reset":
                raise Cut
            body = _Body(connection.client, head, call, fault)
            answer = self._own_answer(call, head)
            if answer or fault.takes_over:
                for _ in body:
                    pass
                self._reply(connection, call, answer or fault.answer(call))
                return True
            return self._forward(connection, call, head, body, fault)
        finally:
            with self._change:
                call.over = True
                self._change.notify_all()

    def _arrive(self, head: Head) -> tuple[Call, Fault]:
        call = read_call(head)
        with self._change:
            self.calls.append(call)
            # Every rule counts, also where another one decides.
            taking = [rule.what for rule in self._rules if rule.takes(call)]
            self._change.notify_all()
        return call, taking[0] if taking else Fault()

    def _own_answer(self, call: Call, head: Head) -> Answer | None:
        """What the store would say if it were down or had the quirks that are switched on."""
        if self.down == "503":
            return Answer(503)
        if self.no_list_multiparts and call.kind == "list_multipart_uploads":
            return s3_error("NotImplemented", 501, "This operation is not implemented.")
        if self.refuse_checksum_headers:
            for name, _ in head.fields:
                if name.lower().startswith(_CHECKSUMS):
                    return s3_error("InvalidArgument", 400, f"Unsupported header '{name}' received for this API call.")
        return None

    def _reply(self, connection: _Connection, call: Call, answer: Answer) -> None:
        status = HTTPStatus(answer.status)
        fields = [*answer.fields, ("Content-Length", str(len(answer.body)))]
        head = Head(f"HTTP/1.1 {status.value} {status.phrase}", fields)
        call.status = answer.status
        connection.client.send(head.render() + (b"" if call.method == "HEAD" else answer.body))

    def _forward(self, connection: _Connection, call: Call, head: Head, body: _Body, fault: Fault) -> bool:
        pieces: Iterator[bytes] = iter(body)
        if call.kind == "complete_multipart_upload":
            # Small, and two of the quirks are about what is in it.
            whole = b"".join(pieces)
            if self.equal_parts and (refusal := self._unequal(call, whole)):
                self._reply(connection, call, refusal)
                return True
            if self.drop_checksum_headers:
                whole = _CHECKSUM_ELEMENT.sub(b"", whole)
                head.put("Content-Length", str(len(whole)))
                head.put("X-Amz-Content-SHA256", sha256(whole).hexdigest())
            pieces = iter([whole])
        if self.drop_checksum_headers:
            head.drop(*_CHECKSUMS)
            sign(self.store, head)
        store = connection.store()
        store.send(head.render())
        taken = True
        for piece in pieces:
            # An answer before the end of the body: the store has made up its mind and reads no further.
            taken = taken and not store.has_more() and store.try_send(piece)
        if body.cut:
            raise Cut
        goes_on = self._relay(connection, call, store, fault)
        if not taken:
            connection.hang_up()
        return goes_on

    def _relay(self, connection: _Connection, call: Call, store: Line, fault: Fault) -> bool:
        """The store's answer goes to the client; whether the connection goes on."""
        head = store.read_head()
        while head.first.split(" ")[1].startswith("1"):
            head = store.read_head()
        status = int(head.first.split(" ")[1])
        bodiless = call.method == "HEAD" or status in {204, 304}
        pieces = iter(()) if bodiless else store.read_body(head, to_end=True)
        ends = _ends(head, bodiless=bodiless)
        if call.kind != "get_object":
            # The store has done it all, and what it answered is known, before the fault has its say.
            pieces = iter([b"".join(pieces)])
        if call.kind == "create_multipart_upload":
            whole = next(pieces)
            if found := _UPLOAD_ID.search(whole):
                call.upload_id = found[1].decode()
            pieces = iter([whole])
        fault.answered(call)
        if self.drop_checksum_headers:
            head.drop(*_CHECKSUMS)
        connection.client.send(head.render())
        call.status = status
        left = fault.cut_reply_after
        for piece in pieces:
            connection.client.send(piece if left is None else piece[:left])
            left = None if left is None else left - len(piece)
            if left is not None and left <= 0:
                break
        if fault.cut_reply_after is not None:
            raise Cut
        return not ends

    def _unequal(self, call: Call, body: bytes) -> Answer | None:
        pages = self._direct.get_paginator("list_parts").paginate(
            Bucket=call.bucket, Key=call.key, UploadId=call.upload_id or ""
        )
        held = {part["PartNumber"]: part["Size"] for page in pages for part in page.get("Parts", [])}
        sizes = [held.get(int(number), 0) for number in _PART_NUMBER.findall(body)]
        if all(size == sizes[0] for size in sizes[:-1]) and (not sizes or sizes[-1] <= sizes[0]):
            return None
        return s3_error("InvalidPart", 400, "All non-trailing parts must have the same length.")


class _Connection:
    """A client and, once it is needed, the store: one line to it for each of a client's."""

    def __init__(self, client: Line, port: int) -> None:
        self.client = client
        self._port = port
        self._store: Line | None = None

    def store(self) -> Line:
        """A line to the store that it has not closed."""
        if self._store is not None and self._store.has_more():
            self.hang_up()
        if self._store is None:
            try:
                self._store = Line(socket.create_connection(("127.0.0.1", self._port), timeout=60))
            except OSError as error:
                raise Gone from error
        return self._store

    def wake(self) -> None:
        """Whoever waits for either end finds it gone."""
        self.client.wake()
        if store := self._store:
            store.wake()

    def hang_up(self) -> None:
        if self._store is not None:
            self._store.reset()
        self._store = None


class _Body:
    """The request's body as it is to reach the store, counted."""

    def __init__(self, client: Line, head: Head, call: Call, fault: Fault) -> None:
        self._client = client
        self._head = head
        self._call = call
        self._fault = fault
        self._expected = (head.get("expect") or "").lower() == "100-continue"
        # The store is not asked whether it wants the body; the proxy takes it.
        head.drop("expect")
        #: the body ended where the fault said, not where the client did
        self.cut = fault.cut_request_after is not None

    def __iter__(self) -> Iterator[bytes]:
        if self._expected:
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        limit, at = self._fault.cut_request_after, self._fault.damage_at
        passed = 0
        for piece in self._client.read_body(self._head, to_end=False):
            self._call.bytes_sent += len(piece)
            if at is not None and passed <= at < passed + len(piece):
                piece = piece[: at - passed] + bytes([piece[at - passed] ^ 1]) + piece[at - passed + 1 :]
            yield piece if limit is None else piece[: limit - passed]
            passed += len(piece)
            if limit is not None and passed >= limit:
                return


def _ends(head: Head, *, bodiless: bool) -> bool:
    """The connection ends after this response."""
    if (head.get("connection") or "").lower() == "close" or head.first.startswith("HTTP/1.0"):
        return True
    return not bodiless and head.get("content-length") is None and head.get("transfer-encoding") is None
