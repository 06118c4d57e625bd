"""SIGKILL at each step of what a backend asks for: every change of the metadata, and of files."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.killing import Answer, Client, kill_at_each
from tests.e2e.s3_service import KillableService, Nursery
from tests.e2e.test_control import token_of
from tests.e2e.test_disk_kills import Disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Client]]:
    """Two services on a directory each, for two threads."""
    folder = tmp_path_factory.mktemp("kills")
    with Nursery() as nursery, contextlib.ExitStack() as stack:
        made = []
        for number in range(2):
            settings = {"ATTACHD_SWEEP_INTERVAL": "1s"}
            service = stack.enter_context(KillableService(folder / str(number), nursery, settings))
            made.append(Client(service, Disk(), str(service.data)))
        yield made


def call(client: Client, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """The answer of the control API, asked for again where the service died."""
    sent = {"Authorization": f"Bearer {token_of(client.service)}", "Content_Type": "application/json"} | headers
    content = b"" if body is None else json.dumps(body).encode()
    return client.surely(method, f"{client.service.url}/v1{path}", content, **sent)


def store(client: Client, **terms: Any) -> dict[str, Any]:
    """A file; what came with its link."""
    made: dict[str, Any] = json.loads(call(client, "POST", "/upload-links", {"max": 10} | terms).body)
    answer = client.surely("PUT", local(client, made["url"]), b"0123456789")
    assert answer.status == 201
    return made


def local(client: Client, url: str) -> str:
    """The service's own address: it may be another after a death."""
    parts = urlsplit(url)
    return f"{client.service.url}{parts.path}?{parts.query}"


def fetched(client: Client, made: dict[str, Any]) -> int:
    return client.surely("GET", local(client, made["download_url"])).status


def released(client: Client, killed: AbstractContextManager[object]) -> None:
    """Claimed twice and released twice: there until the last release, then gone to the last byte, and told once."""
    made = store(client, hold=3600)
    path = f"/files/{made['file_id']}"
    with killed:
        for ref in ("a", "b"):
            assert call(client, "PUT", f"{path}/refs/{ref}").status == 200
        assert json.loads(call(client, "DELETE", f"{path}/refs/a").body)["state"] == "ready"
        assert fetched(client, made) == 200
        assert json.loads(call(client, "DELETE", f"{path}/refs/b").body)["state"] == "deleted"
    assert fetched(client, made) == 410
    client.until(lambda: client.left() == {}, "bytes of a file that was released")
    assert client.events(made["file_id"]) == ["file.ready", "file.deleted"]


def erased(client: Client, killed: AbstractContextManager[object]) -> None:
    """An owner with a file and an open upload: done when no byte is left, whatever was told is told once."""
    owner = secrets.token_hex(4)
    made = store(client, owner=owner)
    open_ = json.loads(call(client, "POST", "/upload-links", {"max": 10, "owner": owner}).body)
    upload = client.surely("POST", local(client, open_["url"]), Upload_Length="10").headers["Location"]
    sent = {"Upload_Offset": "0", "Content_Type": "application/offset+octet-stream"}
    assert client.surely("PATCH", upload, b"01234", **sent).status == 204
    with killed:
        job = json.loads(call(client, "DELETE", f"/owners/{owner}").body)["job_id"]
        client.until(
            lambda: json.loads(call(client, "GET", f"/jobs/{job}").body)["state"] == "done", "a job that is not done"
        )
    assert client.left() == {}
    assert client.surely("GET", client.service.mint_download(made["file_id"])).status == 410
    assert client.surely("HEAD", upload).status == 410
    assert client.events(made["file_id"]) == ["file.ready", "file.deleted"]
    usage = json.loads(call(client, "GET", f"/owners/{owner}/usage").body)
    assert (usage["files"], usage["pending_uploads"], usage["reserved_bytes"]) == (0, 0, 0)


def repeated(client: Client, killed: AbstractContextManager[object]) -> None:
    """A link and its revocation, each with a key: one of each, however often they are asked for."""
    keys = {"link": secrets.token_hex(8), "revocation": secrets.token_hex(8)}
    with killed:
        made = call(client, "POST", "/upload-links", {"max": 10}, Idempotency_Key=keys["link"])
        jti = json.loads(made.body)["jti"]
        revoked = call(client, "POST", "/revocations", {"jti": jti}, Idempotency_Key=keys["revocation"])
    link = local(client, json.loads(made.body)["url"])
    assert client.surely("PUT", link, b"0123456789").status == 401
    again = call(client, "POST", "/upload-links", {"max": 10}, Idempotency_Key=keys["link"])
    assert json.loads(again.body)["jti"] == jti
    again = call(client, "POST", "/revocations", {"jti": jti}, Idempotency_Key=keys["revocation"])
    assert again.body == revoked.body


def test_E4_a_file_is_released_once(clients: list[Client]) -> None:
    """Wherever it dies, a claim that was answered holds, and the last release leaves nothing."""
    kill_at_each(clients, released, among={"claim_file", "release_file", "unlink"})


def test_an_erasure_ends_wherever_it_was_killed(clients: list[Client]) -> None:
    """The next process takes it up where the last one was."""
    kill_at_each(clients, erased, among={"begin_job", "end_upload", "delete_file", "unlink", "end_job"})


def test_a_repeated_request_is_answered_as_the_first_time(clients: list[Client]) -> None:
    """Killed before or after anything was recorded of it."""
    kill_at_each(clients, repeated, among={"remember", "revoke"})
