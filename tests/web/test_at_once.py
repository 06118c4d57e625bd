"""Small files in one step: one commit, and nothing lost or left wherever it breaks."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import Any

import pytest

from service.changes import Watch
from service.metadata.base import MetadataUnavailable
from service.storage.base import StorageFull
from tests.web.harness import OCTETS, TUS, Answer, Site, b64, head, path_of
from tests.web.sweeps import HOUR, age, broken, skip
from tests.web.under_way import begin, until

pytestmark = pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
#: what is done to an upload, as opposed to a sweep
CHANGES = {"create_upload", "create_ready", "acquire", "release", "advance", "go_on", "publish", "end_upload"}
CONTENT = random.Random(7).randbytes(60_000)


async def send(here: Site, link: str | None = None, content: bytes = CONTENT, **headers: str) -> Answer:
    """A creation with the whole file."""
    sent = TUS | {"Upload-Length": str(len(content)), "Content-Type": OCTETS}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return await here.ask("POST", link or here.link(), sent, content)


def commits(here: Site, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the changes to the records from now on."""
    seen: list[str] = []
    metadata: Any = here.service.metadata
    inner = metadata._write

    async def counted(work: Any, **options: Any) -> Any:
        if work.func.__name__ in CHANGES:
            seen.append(work.func.__name__)
        return await inner(work, **options)

    monkeypatch.setattr(metadata, "_write", counted)
    return seen


async def test_a_small_file_is_one_commit(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there as soon as its head is recorded once, and is all that any other file is."""
    seen = commits(here, monkeypatch)
    answer = await send(here, Upload_Metadata=f"filename {b64(b'a.bin')}")
    assert (answer.status, answer.offset, seen) == (201, len(CONTENT), ["create_ready"])
    file_id = answer.headers["Attachd-File-Id"]
    assert await here.fetch(file_id) == CONTENT
    status = (await here.ask("GET", path_of(answer.headers["Location"]))).json
    assert (status["state"], status["offset"], status["file_id"]) == ("ready", len(CONTENT), file_id)
    told = [event for _, event in await here.service.metadata.events()]
    assert [event.type for event in told] == ["upload.created", "file.ready"]
    assert told[1].data["filename"] == "a.bin"
    await here.service.tasks.drain()
    assert here.leftovers() == [f"files/{path_of(answer.headers['Location'])[9:11]}/{told[0].subject}"]


async def test_the_manifest_is_that_of_the_long_way(here: Site) -> None:
    """The same bytes have the same digests, however they came."""
    path = await here.create(len(CONTENT))
    await here.patch(path, 0, CONTENT)
    short, long = await send(here), await here.file_id(path)
    found = []
    for file_id in (short.headers["Attachd-File-Id"], long):
        link = here.download_link(file_id).replace("?", "/manifest?")
        manifest = (await here.ask("GET", link)).json
        assert manifest.pop("file_id") == file_id
        found.append(manifest)
    assert found[0] == found[1]


async def test_a_plain_PUT_goes_the_same_way(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """`curl -T` of a small file is one commit too."""
    seen = commits(here, monkeypatch)
    answer = await here.ask("PUT", here.link(), {}, CONTENT)
    assert (answer.status, seen) == (201, ["create_ready"])
    assert await here.fetch(answer.json["file_id"]) == CONTENT


async def test_a_repeated_creation_finds_the_file(here: Site) -> None:
    """T-05C: a link that has made its file answers with it, and nothing else is kept of the second body."""
    link = here.link()
    first, second = await send(here, link), await send(here, link)
    assert (second.status, second.offset) == (201, len(CONTENT))
    assert second.headers["Location"] == first.headers["Location"]
    await here.service.tasks.drain()
    assert len(here.leftovers()) == 1


async def test_creations_at_the_same_moment_make_one_file(here: Site) -> None:
    """T-05C: of many that race for one link all are told of the same upload, and the others' bytes are gone."""
    link = here.link()
    answers = await asyncio.gather(*(send(here, link) for _ in range(8)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.headers["Location"] for answer in answers}) == 1
    await here.service.tasks.drain()
    assert len(here.leftovers()) == 1


async def test_a_file_id_that_is_taken_is_refused(here: Site) -> None:
    """Two links for one file: the second is told so, and its bytes are gone."""
    file_id = await here.upload(CONTENT)
    answer = await send(here, here.link(file_id=file_id))
    assert (answer.status, answer.slug) == (403, "link-used")
    await here.service.tasks.drain()
    assert len(here.leftovers()) == 1


async def test_a_body_that_takes_its_time_is_kept_as_it_comes(here: Site) -> None:
    """Half a small file is an upload with that offset, which a PATCH completes (lesson D3)."""
    link = here.link()
    headers = TUS | {"Upload-Length": str(len(CONTENT)), "Content-Type": OCTETS}
    line = await begin(here, "POST", link, headers, CONTENT[:1000], length=len(CONTENT))

    await until(lambda: here.leftovers() != [])
    await line.close()
    await until(lambda: not here.service.bodies._open)
    await here.service.tasks.drain()
    found = await here.ask("HEAD", link, TUS)
    assert found.offset == 1000
    path = path_of(found.headers["Location"])
    assert (await here.patch(path, 1000, CONTENT[1000:])).status == 204
    assert await here.stored(path) == CONTENT


async def test_who_asks_first_is_refused_first(here: Site) -> None:
    """A-03: with `Expect: 100-continue` no byte is asked for before the link was looked at."""
    link = here.link()
    await send(here, link, b"other")
    line = await here.line()
    headers = TUS | {"Upload-Length": "6", "Content-Type": OCTETS, "Expect": "100-continue", "Content-Length": "6"}
    await line.send(head("POST", link, list(headers.items()), None))
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.interim) == (403, "link-used", ())


async def test_content_of_another_type_is_refused_as_ever(here: Site) -> None:
    """What the link does not allow is an upload that failed, with its event."""
    answer = await send(here, here.link(types=["image/*"]), b"%PDF-1.7 no picture", Upload_Metadata="")
    assert (answer.status, answer.slug) == (403, "type-refused")
    assert [event.type for _, event in await here.service.metadata.events()] == ["upload.created", "upload.failed"]
    assert here.leftovers() == []


async def test_what_cannot_be_stored_at_once_is_stored_the_long_way(here: Site) -> None:
    """Where the short way finds no room the long way tries, and the client hears of what that comes to."""
    link = here.link()
    with broken(here, "storage", "put", StorageFull("full")):
        answer = await send(here, link)
    assert answer.status == 201
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == CONTENT


async def test_a_commit_that_fails_leaves_what_the_janitor_knows(swept: Site) -> None:
    """After a crash between file and record an hour's sweep removes both; the link makes its file."""
    link = swept.link(expires_in=20 * HOUR)
    with broken(swept, "metadata", "create_ready", MetadataUnavailable("away")):
        assert (await send(swept, link)).status == 503
    assert len(swept.leftovers()) == 2
    await swept.service.janitor.sweep()
    assert len(swept.leftovers()) == 2
    skip(swept, HOUR)
    age(swept)
    await swept.service.janitor.sweep()
    assert swept.leftovers() == []
    assert await swept.fetch((await send(swept, link)).headers["Attachd-File-Id"]) == CONTENT


async def test_many_files_without_a_record_are_no_strangers(swept: Site) -> None:
    """However many creations failed to be recorded, what they left goes, and nothing else is kept for them."""
    link = swept.link(expires_in=20 * HOUR)
    with broken(swept, "metadata", "create_ready", MetadataUnavailable("away")):
        for _ in range(25):
            assert (await send(swept, link)).status == 503
    assert len(swept.leftovers()) == 50
    skip(swept, HOUR)
    age(swept)
    await swept.service.janitor.sweep()
    assert swept.leftovers() == []


async def test_a_stray_segment_is_no_mark(swept: Site) -> None:
    """A file whose record was lost stays, also beside an unfinished thing of the same name."""
    name = "u_" + "a" * 26
    for folder, file in (("files", name), ("uploads", f"{name}.e3"), ("uploads", f"{name}.e0")):
        path = swept.service.settings.data / folder / name[2:4] / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"hello")
    skip(swept, HOUR)
    age(swept)
    await swept.service.janitor.sweep()
    assert swept.leftovers() == [f"files/{name[2:4]}/{name}"]


async def test_a_link_that_was_used_reads_no_body(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated creation is answered, and nothing is stored for it."""
    link = here.link()
    await send(here, link)
    with broken(here, "storage", "put", AssertionError("it was stored")):
        assert (await send(here, link)).status == 201


async def test_whoever_waits_for_the_file_is_woken(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download with `?wait=` of a file whose id was fixed beforehand hears of it, and need not look by itself."""
    wait = Watch.wait
    monkeypatch.setattr(Watch, "wait", lambda self, _: wait(self, 3600.0))
    file_id = "f_" + "b" * 26
    link = here.download_link(file_id) + "&wait=20"
    waiting = asyncio.create_task(here.ask("GET", link))
    await until(lambda: file_id in here.service.context.downloads._changes._watches)
    made = await send(here, here.link(file_id=file_id))
    assert made.headers["Attachd-File-Id"] == file_id
    assert (await waiting).body == CONTENT


async def test_where_files_have_one_name_it_goes_the_long_way(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links small files are stored like any, and it is tried once."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr("service.storage.filesystem.putting.os.link", no_links)
    for _ in range(2):
        answer = await send(here)
        assert await here.fetch(answer.headers["Attachd-File-Id"]) == CONTENT
    assert not here.service.storage.puts
    await here.service.tasks.drain()
    assert [name.partition("/")[0] for name in here.leftovers()] == ["files", "files"]


async def test_a_mark_that_stays_is_a_leftover(swept: Site) -> None:
    """After a crash between record and mark only the mark goes; the file stays."""
    with broken(swept, "storage", "recorded", StorageFull("away")):
        answer = await send(swept, swept.link(expires_in=20 * HOUR))
        await swept.service.tasks.drain()
    assert len(swept.leftovers()) == 2
    skip(swept, HOUR)
    age(swept)
    await swept.service.janitor.sweep()
    assert [name.partition("/")[0] for name in swept.leftovers()] == ["files"]
    assert await swept.fetch(answer.headers["Attachd-File-Id"]) == CONTENT
