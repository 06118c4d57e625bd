"""What an operator reads of a request: one line and one count, however it ended."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from service.storage.base import StorageError, StorageUnavailable
from tests.web.harness import OCTETS, TUS, Site, b64, head, path_of, site
from tests.web.under_way import begin, begin_patch, until

pytestmark = pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)


def lines(log: io.StringIO, event: str = "request_answered") -> list[dict[str, Any]]:
    """The records of that event."""
    return [record for record in map(json.loads, log.getvalue().splitlines()) if record["event"] == event]


async def line_of(log: io.StringIO, **fields: Any) -> dict[str, Any]:
    """The one record of a request with these fields, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(log) if fields.items() <= line.items()]

    await until(lambda: bool(found()))
    (line,) = found()
    return line


def counted(here: Site, method: str, code: int) -> float:
    """How many requests of the method were counted under the code."""
    return sum(
        sample.value
        for family in here.service.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "attachd_http_requests_total"
        and (sample.labels["method"], sample.labels["code"]) == (method, str(code))
    )


@pytest.mark.parametrize("end", ["FIN", "RST"])
async def test_a_cut_upload_is_counted_as_the_clients_doing(here: Site, log: io.StringIO, end: str) -> None:
    """A client that hangs up in the middle of its body is 499, not a 503 of the service."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    if end == "FIN":
        await line.close()
    else:
        line.reset()
    told = await line_of(log, method="PATCH")
    assert (told["status"], told["outcome"], told["received"]) == (499, "client_abort", 5)
    assert told["upload_id"] == here.upload_id(path)
    assert "reason" not in told
    assert (counted(here, "PATCH", 499), counted(here, "PATCH", 503)) == (1, 0)


async def test_a_refusal_carries_its_slug(here: Site, log: io.StringIO) -> None:
    """A refusal that is raised has its slug in the request's own line, and is told once."""
    assert (await here.ask("PUT", "/files?sig=nothing", body=b"x")).status == 401
    told = await line_of(log, method="PUT")
    assert (told["status"], told["reason"]) == (401, "bad-link")
    assert not lines(log, "request_refused")


async def test_a_rendered_problem_carries_its_slug(here: Site, log: io.StringIO) -> None:
    """So has a problem that is an outcome, after the body came."""
    path = await here.create(10)
    checksum = "sha1 " + b64(hashlib.sha1(b"other").digest())
    assert (await here.patch(path, 0, b"hello", Upload_Checksum=checksum)).status == 460
    told = await line_of(log, method="PATCH")
    assert (told["status"], told["reason"], told["received"]) == (460, "checksum-mismatch", 5)


async def test_a_writer_that_was_overtaken_carries_its_slug(here: Site, log: io.StringIO) -> None:
    """The older of two PATCHes says why it ended."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    await here.patch(path, 0, b"")
    assert (await line.answer()).status == 423
    assert (await line_of(log, status=423))["reason"] == "locked"


async def test_a_refused_head_carries_its_slug(here: Site, log: io.StringIO) -> None:
    """HEAD has no body to tell the slug in; the line has it."""
    assert (await here.head("/files/u_" + "a" * 26)).status == 404
    assert (await line_of(log, method="HEAD"))["reason"] == "not-found"


async def test_a_download_is_told_with_its_file_and_bytes(here: Site, log: io.StringIO) -> None:
    """A whole download says which file, how many bytes, and that it went well."""
    file_id = await here.upload(b"hello")
    await here.fetch(file_id)
    told = await line_of(log, method="GET")
    assert (told["status"], told["file_id"], told["sent"], told["outcome"]) == (200, file_id, 5, "ok")


async def test_a_cut_download_is_counted_as_the_clients_doing(here: Site, log: io.StringIO) -> None:
    """A client that leaves in the middle of a download is 499, with what it got."""
    size = 32 * 2**20
    file_id = await here.upload(bytes(size))
    line = await here.line()
    await line.send(head("GET", here.download_link(file_id), [], None))
    await line.reader.readexactly(1000)
    line.reset()
    told = await line_of(log, method="GET")
    assert (told["status"], told["outcome"]) == (499, "client_abort")
    assert 1000 <= told["sent"] < size
    assert counted(here, "GET", 499) == 1


async def test_a_handler_that_the_stop_ends_leaves_a_line(tmp_path: Path, log: io.StringIO) -> None:
    """A download that outlasts the grace is told and counted, as drained."""
    async with site(tmp_path, grace="0s") as here:
        file_id = await here.upload(bytes(32 * 2**20))
        line = await here.line()
        await line.send(head("GET", here.download_link(file_id), [], None))
        await line.reader.readexactly(1000)
        await here.service.stop()
        told = await line_of(log, method="GET")
        assert (told["status"], told["outcome"]) == (200, "drained")
        assert counted(here, "GET", 200) == 1


async def test_records_of_a_request_name_its_upload(
    here: Site, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong inside a request is told with the upload's id; the next request does not inherit it."""
    path = await here.create(10)

    async def away(*_: object, **__: object) -> None:
        raise StorageUnavailable("away")

    monkeypatch.setattr(here.service.context.uploads, "append", away)
    assert (await here.patch(path, 0, b"hello")).status == 503
    (told,) = lines(log, "storage_failed")
    assert told["upload_id"] == here.upload_id(path)
    await here.ask("OPTIONS", "/files")
    assert "upload_id" not in await line_of(log, method="OPTIONS")


# --- what was promised is not there ----------------------------------------------------------


async def test_c2_lost_bytes_of_a_file_are_an_error_of_ours(here: Site, log: io.StringIO) -> None:
    """A file whose bytes are gone is 500 `internal` and an ERROR with its id: no retry brings them back."""
    file_id = await here.upload(b"hello")
    await here.service.tasks.drain()
    (stored,) = here.leftovers()
    (here.service.settings.data / stored).unlink()
    answer = await here.ask("GET", here.download_link(file_id))
    assert (answer.status, answer.slug) == (500, "internal")
    (told,) = lines(log, "bytes_lost")
    assert (told["level"], told["file_id"]) == ("error", file_id)


async def test_a_download_is_not_told_to_resume_an_upload(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails a download is told in words for whoever downloads."""
    file_id = await here.upload(b"hello")

    def broken(*_: object) -> None:
        raise StorageError("broken")

    monkeypatch.setattr(here.service.context.downloads, "open", broken)
    answer = await here.ask("GET", here.download_link(file_id))
    assert (answer.status, answer.slug) == (503, "storage-unavailable")
    assert "resume" not in answer.json["detail"]


# --- answers that are held back --------------------------------------------------------------


async def test_waiting_above_the_cap_is_answered_at_once(here: Site) -> None:
    """As many answers as the cap are held; the next request gets the state of now."""
    path = await here.create(10)
    waiting = here.service.context.waiting
    waiting.limit = 1
    first = asyncio.create_task(here.ask("GET", path + "?wait=20"))
    await until(lambda: waiting.held == 1)
    assert (await here.ask("GET", path + "?wait=20")).json["state"] == "receiving"
    await here.patch(path, 0, b"helloworld")
    assert (await first).json["state"] in ("finishing", "ready")


@pytest.mark.parametrize("address", ["upload", "download"])
async def test_nothing_is_held_for_a_client_that_left(here: Site, log: io.StringIO, address: str) -> None:
    """A client whose connection breaks while it waits frees its place, and is counted as gone."""
    file_id = "f_" + "a" * 26
    path = await here.create(10) + "?wait=20" if address == "upload" else here.download_link(file_id) + "&wait=20"
    line = await here.line()
    await line.send(head("GET", path, [], None))
    waiting = here.service.context.waiting
    await until(lambda: waiting.held == 1)
    line.reset()
    assert (await line_of(log, method="GET"))["status"] == 499
    assert waiting.held == 0


async def test_a_client_that_closes_its_end_is_held_no_longer(here: Site) -> None:
    """A client that says it sends nothing more is answered with the state of now: most have gone."""
    line = await here.line()
    await line.send(head("GET", await here.create(10) + "?wait=20", [], None))
    await until(lambda: here.service.context.waiting.held == 1)
    line.writer.write_eof()
    assert (await line.answer()).json["state"] == "receiving"


async def test_a_stop_answers_those_who_wait(here: Site) -> None:
    """A service that stops holds nothing back."""
    path = await here.create(10)
    waiting = asyncio.create_task(here.ask("GET", path + "?wait=20"))
    await until(lambda: here.service.context.waiting.held == 1)
    here.service.bodies.drain()
    assert (await waiting).json["state"] == "receiving"


# --- a service that stops --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_T_0D6_no_creation_while_stopping(here: Site, method: str) -> None:
    """A creation without a body is refused with 503 `draining` too, and uses up no link."""
    link = here.link()
    here.service.bodies.drain()
    sent = {"POST": TUS | {"Upload-Length": "5"}, "PUT": {}}[method]
    answer = await here.ask(method, link, sent | {"Content-Length": "0"})
    assert (answer.status, answer.slug) == (503, "draining")
    assert "Retry-After" in answer.headers
    assert (await here.ask("HEAD", link, TUS)).status == 404


async def test_T_0D6_creation_that_was_begun_is_found_while_stopping(here: Site) -> None:
    """HEAD on the link and on the upload are served to the end."""
    link = here.link()
    line = await begin(here, "POST", link, TUS | {"Content-Type": OCTETS, "Upload-Length": "10"}, b"hello", length=10)
    here.service.bodies.drain()
    await line.answer()
    found = await here.ask("HEAD", link, TUS)
    assert (found.status, found.offset) == (204, 5)
    assert (await here.head(path_of(found.headers["Location"]))).offset == 5


async def test_a_stop_does_not_wait_for_work_that_hangs(tmp_path: Path, log: io.StringIO) -> None:
    """Work without a client that outlasts the grace is cancelled, and told."""
    async with site(tmp_path, grace="0s") as here:
        hanging = here.service.tasks.spawn(asyncio.Event().wait())
        await here.service.stop()
    assert hanging.cancelled()
    assert lines(log, "tasks_cancelled")[0]["count"] == 1


async def test_a_link_is_told_by_its_key_and_a_hash(here: Site, log: io.StringIO) -> None:
    """The line of a creation names key, upload and file, and no token; so does that of a download."""
    link = here.link()
    file_id = (await here.ask("PUT", link, {}, b"hello")).json["file_id"]
    made = await line_of(log, method="PUT")
    await here.fetch(file_id)
    got = await line_of(log, method="GET")
    assert (made["kid"], made["file_id"], got["kid"]) == (here.key.kid, file_id, here.key.kid)
    assert len(made["jti"]) < 20
    assert link.partition("sig=")[2] not in log.getvalue()
