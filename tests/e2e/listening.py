"""A backend that gets events, in threads of its own: for services that are real processes."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook


@dataclass
class Backend:
    """What came, in order; each message was verified before it counts."""

    secret: str = field(default_factory=lambda: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    got: list[dict[str, Any]] = field(default_factory=list)
    #: called with each message before it is answered
    before: Callable[[dict[str, Any]], None] = lambda _: None
    url: str = ""

    def take(self, headers: dict[str, str], body: bytes) -> None:
        message = Webhook(self.secret).verify(body, headers)
        self.got.append(message)
        self.before(message)

    def settings_file(self, folder: Path) -> str:
        """Where the settings are that name this backend."""
        path = folder / "attachd.toml"
        path.write_text(
            f'webhook_networks = "127.0.0.0/8"\n[[endpoints]]\nid = "chat"\nurl = "{self.url}"\n'
            f'secrets = ["{self.secret}"]\n'
        )
        return str(path)


@contextmanager
def backend() -> Iterator[Backend]:
    """One that listens on a port of loopback."""
    found = Backend()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.take(dict(self.headers.items()), body)
            # whoever sent it may have been killed
            with contextlib.suppress(OSError):
                self.send_response(204)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A sender that was killed."""

    server = Server(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/events"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def recorded(data: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """The outbox: id, type and data, in the order of what happened."""
    with contextlib.closing(sqlite3.connect(data / "attachd.db")) as database:
        rows = database.execute("SELECT id, type, data FROM events ORDER BY seq").fetchall()
    return [(name, kind, json.loads(text)) for name, kind, text in rows]


def assert_told(found: Backend, data: Path, limit_seconds: float = 60.0) -> int:
    """Every event that is recorded has come, no other has, and those of a file first came in their order.

    Returns how many events there are.
    """
    deadline = time.monotonic() + limit_seconds
    while {each["id"] for each in found.got} != {name for name, _, _ in recorded(data)}:
        assert time.monotonic() < deadline, f"{len(recorded(data))} events, {len(found.got)} messages"
        time.sleep(0.05)
    expected, first = recorded(data), {each["id"]: each for each in reversed(found.got)}
    order = [each["id"] for each in sorted(first.values(), key=found.got.index)]
    for file_id in {about["file_id"] for _, _, about in expected}:
        happened = [name for name, _, about in expected if about["file_id"] == file_id]
        came = [name for name in order if first[name]["data"]["file_id"] == file_id]
        assert came == happened
    for name, kind, about in expected:
        assert (first[name]["type"], first[name]["data"]) == (kind, about)
    return len(expected)


def assert_agrees(data: Path) -> None:
    """What the events say is what the tables say: nothing is told that did not happen, all that did is."""
    told: dict[str, set[str]] = {}
    for _, kind, about in recorded(data):
        told.setdefault(kind, set()).add(about["upload_id"])
    with contextlib.closing(sqlite3.connect(data / "attachd.db")) as database:
        states = dict(database.execute("SELECT id, state FROM uploads").fetchall())
        files = dict(database.execute("SELECT upload_id, deleted_at FROM files").fetchall())
    assert told.get("upload.created", set()) == set(states)
    assert told.get("file.ready", set()) == set(files)
    assert told.get("file.deleted", set()) == {name for name, deleted_at in files.items() if deleted_at is not None}
    for state in ("terminated", "failed", "expired"):
        assert told.get(f"upload.{state}", set()) == {name for name, is_in in states.items() if is_in == state}
