"""OPTIONS, HEAD and GET (sections B and C)."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.metadata.base import MetadataUnavailable
from service.metadata.sql import SqlMetadata
from service.protocol.tus import EXTENSIONS
from service.storage.base import StorageUnavailable
from service.storage.filesystem import FilesystemStorage
from tests.web.harness import OCTETS, TUS, Answer, FakeClock, Site, path_of, site
from tests.web.under_way import begin_patch, until

UNKNOWN = "/files/u_" + "a" * 26
ORIGIN = "https://chat.example"


def fails(error: Callable[[], Exception]) -> Callable[..., Any]:
    """Stands in for an asynchronous method of a dependency that is out of reach."""

    async def call(*_: Any, **__: Any) -> Any:
        raise error()

    return call


def out_of_reach() -> MetadataUnavailable:
    return MetadataUnavailable("the database is locked")


def no_disk() -> StorageUnavailable:
    return StorageUnavailable("the disk does not answer")


# --- B: OPTIONS -----------------------------------------------------------------------------


async def test_T_010_options_tells_the_version(here: Site) -> None:
    """OPTIONS of the endpoint without `Tus-Resumable` answers 200 and the version served."""
    answer = await here.ask("OPTIONS", "/files")
    assert (answer.status, answer.headers["Tus-Version"], answer.body) == (200, "1.0.0", b"")


async def test_T_011_options_tells_extensions_and_limit(tmp_path: Path) -> None:
    """Every extension is named once, and the limit is the one set; no header is empty."""
    async with site(tmp_path, max_size="3MiB") as here:
        answer = await here.ask("OPTIONS", "/files")
    assert answer.headers["Tus-Extension"] == (
        "creation,creation-with-upload,creation-defer-length,expiration,checksum,checksum-trailer,"
        "termination,concatenation,concatenation-unfinished"
    )
    assert answer.headers["Tus-Max-Size"] == str(3 * 2**20)
    assert all(answer.headers.values())


async def test_T_011_default_limit(here: Site) -> None:
    """The limit is 4 GiB unless set."""
    assert (await here.ask("OPTIONS", "/files")).headers["Tus-Max-Size"] == str(2**32)


async def test_T_012_options_tells_checksum_algorithms(here: Site) -> None:
    """The checksum algorithms are listed in lower case, sha1 among them."""
    algorithms = (await here.ask("OPTIONS", "/files")).headers["Tus-Checksum-Algorithm"]
    assert algorithms == "sha1,sha256,sha512,md5,crc32c,xxh3-64,xxh128"


async def test_T_013_options_ignores_the_version(here: Site) -> None:
    """OPTIONS with a version that is not served answers 200."""
    assert (await here.ask("OPTIONS", "/files", {"Tus-Resumable": "9.9.9"})).status == 200


async def test_T_014_options_of_an_upload(here: Site) -> None:
    """OPTIONS of an upload, also of an unknown one, tells the same as of the endpoint."""
    told = told_by(await here.ask("OPTIONS", "/files"))
    assert told_by(await here.ask("OPTIONS", await here.create(10))) == told
    assert told_by(await here.ask("OPTIONS", UNKNOWN)) == told
    assert len(told) == 6


def told_by(answer: Answer) -> dict[str, str]:
    """The status and what discovery is about."""
    names = ("Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm", "Tus-Resumable")
    return {"status": str(answer.status)} | {name: answer.headers[name] for name in names}


@pytest.mark.parametrize("path", ["/files", UNKNOWN])
async def test_T_015_preflight(here: Site, path: str) -> None:
    """A preflight answers 200 and lets the page send its request."""
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "PATCH"}
    answer = await here.ask("OPTIONS", path, asked)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert "PATCH" in answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert "Upload-Offset" in answer.headers["Access-Control-Allow-Headers"].split(", ")


# --- C: HEAD and GET ------------------------------------------------------------------------


async def test_T_020_new_upload(here: Site) -> None:
    """HEAD of a new upload answers 200 and offset 0."""
    answer = await here.head(await here.create(10))
    assert (answer.status, answer.offset) == (200, 0)


async def test_T_021_known_length(here: Site) -> None:
    """HEAD tells the length where it is known, and not that it is deferred."""
    answer = await here.head(await here.create(10))
    assert answer.headers["Upload-Length"] == "10"
    assert "Upload-Defer-Length" not in answer.headers


async def test_T_022_deferred_length(here: Site) -> None:
    """HEAD tells that the length is deferred, and no length."""
    answer = await here.head(await here.create(None, Upload_Defer_Length="1"))
    assert answer.headers["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in answer.headers


#: what a HEAD or GET can meet
PLACES = ["new", "complete", "terminated", "unknown", "not an id", "wrong version"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_T_023_nothing_is_cached(here: Site, method: str, place: str) -> None:
    """No answer to HEAD or GET of an upload, refusals included, may be stored by a cache."""
    path = {"unknown": UNKNOWN, "not an id": "/files/nothing"}.get(place) or await here.create(0)
    if place == "terminated":
        assert (await here.ask("DELETE", path, TUS)).status == 204
    answer = await here.ask(method, path, {"Tus-Resumable": "2" if place == "wrong version" else "1.0.0"})
    assert answer.headers["Cache-Control"] == "no-store"


async def test_T_024_completed_upload(here: Site) -> None:
    """HEAD of a completed upload answers 200 and offset = length."""
    path = await here.create(5)
    assert (await here.patch(path, 0, b"hello")).status == 204
    answer = await here.head(path)
    assert (answer.status, answer.offset, answer.headers["Upload-Length"]) == (200, 5, "5")


@pytest.mark.parametrize(
    ("state", "status"), [("unknown", 404), ("expired", 410), ("terminated", 410), ("failed", 410)]
)
async def test_T_025_no_live_upload(later: Site, state: str, status: int) -> None:
    """HEAD of what is not live answers 404 or 410, without an offset and without a body."""
    path = await ended(later, state)
    answer = await later.head(path)
    assert (answer.status, answer.body) == (status, b"")
    assert {"Upload-Offset", "Upload-Length"}.isdisjoint(answer.headers)


async def ended(here: Site, state: str) -> str:
    """The path of an upload that ended so."""
    if state == "unknown":
        return UNKNOWN
    path = await here.create(5, here.link(sha256="0" * 64))
    if state == "expired":
        assert isinstance(here.clock, FakeClock)
        here.clock.forward(24 * 3600)
    elif state == "terminated":
        assert (await here.ask("DELETE", path, TUS)).status == 204
    else:
        assert (await here.patch(path, 0, b"hello")).status == 460
    return path


@pytest.mark.parametrize("metadata", ["filename d29ybGQ=,is_confidential", "a", "empty ,type YQ==", "a YQ== , b Yg=="])
async def test_T_026_metadata_verbatim(here: Site, metadata: str) -> None:
    """HEAD gives `Upload-Metadata` back byte for byte."""
    path = await here.create(10, Upload_Metadata=metadata)
    assert (await here.head(path)).headers["Upload-Metadata"] == metadata.strip()


async def test_T_026_no_metadata(here: Site) -> None:
    """HEAD has no `Upload-Metadata` where none was sent."""
    assert "Upload-Metadata" not in (await here.head(await here.create(10))).headers


async def test_T_027_concat_verbatim(here: Site) -> None:
    """HEAD gives `Upload-Concat` back byte for byte: of a partial, of a final, of none."""
    partial = await here.create(0, Upload_Concat="partial")
    value = f"final;  http://elsewhere.test{partial}   {partial}"
    final = await here.create(None, Upload_Concat=value)
    assert (await here.head(partial)).headers["Upload-Concat"] == "partial"
    assert (await here.head(final)).headers["Upload-Concat"] == value
    assert "Upload-Concat" not in (await here.head(await here.create(10))).headers


async def assert_locked(here: Site, path: str) -> None:
    """HEAD asks to come again, in the words that stock clients understand."""
    answer = await here.head(path)
    assert (answer.status, answer.headers["Retry-After"], answer.body) == (423, "1", b"")
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert "Upload-Offset" not in answer.headers


@pytest.mark.parametrize("error", [out_of_reach, OSError, RuntimeError, TimeoutError])
async def test_T_028_metadata_out_of_reach(
    log: io.StringIO, here: Site, error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the state cannot be read HEAD answers 423, and 200 once it can."""
    path = await here.create(10)
    with monkeypatch.context() as broken:
        broken.setattr(SqlMetadata, "upload", fails(error))
        await assert_locked(here, path)
    assert (await here.head(path)).status == 200


async def test_T_028_lease_out_of_reach(later: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While leases cannot be read HEAD of an upload that somebody holds, and that rested, answers 423."""
    path = await later.create(10)
    assert later.clock is not None
    later.clock.forward(60)
    now = later.clock.now()
    lease, _ = await later.service.metadata.acquire_lease(later.upload_id(path), "another:1", now=now, until=now + 60)
    with monkeypatch.context() as broken:
        broken.setattr(SqlMetadata, "lease", fails(out_of_reach))
        await assert_locked(later, path)
    await later.service.metadata.release_lease(lease)
    assert (await later.head(path)).status == 200


@pytest.mark.parametrize("complete", [False, True])
async def test_T_028_storage_out_of_reach(here: Site, complete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While storage does not answer HEAD answers 200 from the recorded state."""
    path = await here.create(5)
    assert (await here.patch(path, 0, b"hello" if complete else b"hell")).status == 204
    for name in ("probe", "free_bytes", "complete", "append", "read_upload", "open_file"):
        monkeypatch.setattr(FilesystemStorage, name, fails(no_disk))
    assert (await here.head(path)).offset == (5 if complete else 4)


async def test_T_028_disk_fails_under_a_patch(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATCH that storage failed answers 503, and HEAD 200 with what is committed."""
    path = await here.create(10)
    assert (await here.patch(path, 0, b"hello")).status == 204
    with monkeypatch.context() as broken:
        broken.setattr("service.storage.filesystem.appender.DiskAppender.write", fails(no_disk))
        refused = await here.patch(path, 5, b"world")
        assert (refused.status, refused.slug, refused.offset) == (503, "storage-unavailable", 5)
        assert (await here.head(path)).offset == 5
    assert (await here.patch(path, 5, b"world")).status == 204


async def test_T_028_draining(here: Site) -> None:
    """While the service stops HEAD answers 200 although new transfers are refused."""
    path = await here.create(10)
    here.service.bodies.drain()
    assert (await here.patch(path, 0, b"hello")).status == 503
    assert (await here.head(path)).status == 200


async def test_T_028_served_until_the_end_of_a_drain(here: Site) -> None:
    """While a stop waits for a download to end HEAD is answered, on a new connection too."""
    path = await here.create(10)
    with here.service.bodies.sending():
        stopping = asyncio.create_task(here.service.stop())
        await until(lambda: here.service.bodies.draining)
        assert (await here.head(path)).status == 200
    await stopping


@pytest.mark.parametrize("full", ["transfers", "buffers"])
async def test_T_028_overload(here: Site, full: str) -> None:
    """While new transfers are refused for lack of slots or memory HEAD answers 200."""
    path = await here.create(10)
    if full == "transfers":
        here.service.bodies._max_transfers = 0
    else:
        here.service.bodies._pool.used_bytes = here.service.bodies._pool.limit_bytes
    refused = await here.patch(path, 0, b"hello")
    assert (refused.status, refused.slug) == (503, "overloaded")
    assert (await here.head(path)).status == 200
    here.service.bodies._pool.used_bytes = 0


async def test_T_028_lively_writer(here: Site) -> None:
    """While a PATCH brings bytes HEAD answers 200 with what is committed."""
    path = await here.create(10)
    await begin_patch(here, path, 0, b"hello", length=10)
    assert (await here.head(path)).status == 200


async def test_T_028_writer_that_does_not_stop(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAD answers 423 when a silent writer cannot be stopped in time."""
    monkeypatch.setattr(here.service.leases, "_patience_seconds", 0.01)
    path = await here.create(10)
    await begin_patch(here, path, 0, b"hello", length=10)
    holder = here.service.leases._holders[here.upload_id(path)]
    monkeypatch.setattr(holder, "silent_seconds", lambda: 60.0)
    with monkeypatch.context() as stuck:
        stuck.setattr(holder, "stop", lambda: None)
        await assert_locked(here, path)


async def test_T_028_any_token(here: Site) -> None:
    """HEAD looks at no token: a wrong one does not matter."""
    path = await here.create(10)
    answer = await here.ask("HEAD", path + "?sig=nonsense", TUS | {"Authorization": "Bearer nonsense"})
    assert answer.status == 200


#: kinds of uploads whose 200 must have all that tus-js-client reads
DESCRIBED = {
    "new": {"Upload-Length": "10"},
    "deferred": {"Upload-Defer-Length": "1"},
    "partial": {"Upload-Length": "10", "Upload-Concat": "partial"},
    "deferred partial": {"Upload-Defer-Length": "1", "Upload-Concat": "partial"},
    "complete": {"Upload-Length": "0"},
}


@pytest.mark.parametrize("kind", DESCRIBED)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_T_029_all_that_clients_need(here: Site, method: str, kind: str) -> None:
    """A 200 has a numeric offset and either a length or that it is deferred."""
    expected = DESCRIBED[kind]
    link = here.link()
    created = await here.ask("POST", link, TUS | expected | {"Content-Length": "0"})
    answer = await here.ask(method, path_of(created.headers["Location"]), TUS)
    assert (answer.status, answer.offset) == (200, 0)
    told = {name: answer.headers[name] for name in ("Upload-Length", "Upload-Defer-Length") if name in answer.headers}
    assert told == {name: value for name, value in expected.items() if name != "Upload-Concat"}


@pytest.mark.parametrize("state", ["new", "unknown", "terminated", "wrong version", "unreachable"])
async def test_T_02A_head_speaks_of_no_content(here: Site, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer to HEAD has `Content-Length` or `Content-Type`."""
    path = UNKNOWN if state == "unknown" else await here.create(10)
    if state == "terminated":
        assert (await here.ask("DELETE", path, TUS)).status == 204
    if state == "unreachable":
        monkeypatch.setattr(SqlMetadata, "upload", fails(out_of_reach))
    answer = await here.ask("HEAD", path, {"Tus-Resumable": "2" if state == "wrong version" else "1.0.0"})
    assert {"Content-Length", "Content-Type", "Transfer-Encoding"}.isdisjoint(answer.headers)


@pytest.mark.parametrize("marker", [{}, TUS, {"Upload-Draft-Interop-Version": "6"}], ids=["none", "tus", "ietf"])
async def test_T_02B_status(here: Site, marker: dict[str, str]) -> None:
    """GET answers the status as JSON, with any protocol or none."""
    path = await here.create(10)
    assert (await here.patch(path, 0, b"hello")).status == 204
    answer = await here.ask("GET", path, marker)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert (answer.offset, answer.headers["Upload-Length"]) == (5, "10")
    told = answer.json
    assert told.pop("expires_at") > 0
    assert told == {
        "upload_id": here.upload_id(path),
        "state": "receiving",
        "offset": 5,
        "length": 10,
        "file_id": None,
        "problem": None,
    }


async def test_T_02B_status_of_a_complete_upload(here: Site) -> None:
    """GET of a completed upload names its file."""
    path = await here.create(5)
    file_id = (await here.patch(path, 0, b"hello")).headers["Attachd-File-Id"]
    told = (await here.ask("GET", path)).json
    assert (told["state"], told["file_id"], told["expires_at"]) == ("ready", file_id, None)


async def test_T_02B_length_only_if_known(here: Site) -> None:
    """GET of an upload of deferred length names no length."""
    answer = await here.ask("GET", await here.create(None, Upload_Defer_Length="1"))
    assert answer.json["length"] is None
    assert "Upload-Length" not in answer.headers


async def test_T_02B_disturbs_no_writer(here: Site) -> None:
    """GET during a PATCH answers, and the PATCH goes on to its end."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    assert (await here.ask("GET", path)).status == 200
    await line.send(b"world")
    assert ((await line.answer()).status, (await here.head(path)).offset) == (204, 10)


@pytest.mark.parametrize(
    ("state", "status"), [("unknown", 404), ("expired", 410), ("terminated", 410), ("failed", 410)]
)
async def test_T_02B_status_of_no_live_upload(later: Site, state: str, status: int) -> None:
    """GET of what is not live answers 404 or 410 as problem+json."""
    answer = await later.ask("GET", await ended(later, state))
    assert (answer.status, answer.slug) == (status, "not-found" if status == 404 else "gone")


async def finishing(here: Site, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of an upload whose bytes are all in, while storage cannot make a file of them."""
    path = await here.create(5)
    monkeypatch.setattr(FilesystemStorage, "complete", fails(no_disk))
    answer = await here.patch(path, 0, b"hello")
    assert (answer.status, answer.slug) == (503, "storage-unavailable")
    return path


async def test_T_02C_not_complete_before_it_is_stored(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAD answers 423 while the file is not stored whole, and offset = length once it is."""
    with monkeypatch.context() as broken:
        path = await finishing(here, broken)
        await assert_locked(here, path)
        await here.service.tasks.drain()
        await assert_locked(here, path)
        await here.service.tasks.drain()
    # the HEAD that finds it unfinished sets it going again
    await assert_locked(here, path)
    await here.service.tasks.drain()
    assert (await here.head(path)).offset == 5
    assert await here.stored(path) == b"hello"


async def test_T_02C_nobody_hears_of_the_end_early(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No refusal of a request to an upload that is being stored says offset = length."""
    with monkeypatch.context() as broken:
        link = here.link()
        created = await here.post(5, link)
        path = path_of(created.headers["Location"])
        broken.setattr(FilesystemStorage, "complete", fails(no_disk))
        answers = [await here.patch(path, 0, b"hello")]
        answers += [await here.patch(path, 5, b""), await here.patch(path, 0, b"hello"), await here.post(5, link)]
        await here.service.tasks.drain()
    assert [answer.status for answer in answers] == [503, 423, 423, 423]
    assert [answer.headers.get("Upload-Offset") for answer in answers] == [None] * 4
    await here.service.tasks.drain()


async def test_T_02C_the_next_request_finishes(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATCH to an upload that waits to be stored sets its storing going again."""
    with monkeypatch.context() as broken:
        path = await finishing(here, broken)
    assert (await here.patch(path, 5, b"")).status == 423
    await here.service.tasks.drain()
    assert (await here.patch(path, 5, b"")).status == 204
    assert await here.stored(path) == b"hello"


async def test_T_02D_what_a_link_made(here: Site) -> None:
    """HEAD of the endpoint with a used link answers 204, where the upload is and how far it came."""
    link = here.link()
    path = await here.create(10, link)
    assert (await here.patch(path, 0, b"hello")).status == 204
    answer = await here.ask("HEAD", link)
    assert (answer.status, answer.offset) == (204, 5)
    assert answer.headers["Location"] == f"http://files.test{path}"


async def test_T_02D_a_link_not_yet_used(here: Site) -> None:
    """HEAD of the endpoint with an unused link answers 404, and the link stays good."""
    link = here.link()
    assert (await here.ask("HEAD", link)).status == 404
    assert (await here.post(10, link)).status == 201


async def test_T_02D_no_link(here: Site) -> None:
    """HEAD of the endpoint without a token answers 401."""
    assert (await here.ask("HEAD", "/files", TUS)).status == 401


async def test_T_02D_token_in_the_header(here: Site) -> None:
    """The token may come as Bearer, too."""
    token = here.token()
    headers = {"Authorization": f"Bearer {token}"}
    assert (
        await here.ask("POST", "/files", TUS | headers | {"Upload-Length": "5", "Content-Type": OCTETS})
    ).status == 201
    assert (await here.ask("HEAD", "/files", headers)).status == 204


def test_T_011_creation_comes_with_its_variants() -> None:
    """What the specification bundles is offered together: variants of creation only with creation."""
    assert {"creation", "creation-with-upload", "creation-defer-length"} <= set(EXTENSIONS)
