"""tus 1.0.0, Concatenation, finals with unfinished partials included (section M)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.keyfile import KeyFile, new_key
from tests.web.harness import OCTETS, TUS, Answer, FakeClock, Site, b64, site
from tests.web.under_way import until

DAY = 86400.0


async def partial(here: Site, content: bytes, length: int | None = None) -> str:
    """A partial upload with this content, complete unless a larger length is given."""
    path = await here.create(len(content) if length is None else length, Upload_Concat="partial")
    if content:
        assert (await here.patch(path, 0, content)).status == 204
    return path


async def join(here: Site, *paths: str, link: str | None = None, **headers: str) -> Answer:
    """The answer to the creation of a final upload."""
    return await here.post(None, link, Upload_Concat="final;" + " ".join(paths), **headers)


async def final(here: Site, *paths: str, **headers: str) -> str:
    """The path of a new final upload."""
    answer = await join(here, *paths, **headers)
    assert answer.status == 201, answer
    return "/files/" + answer.headers["Location"].rpartition("/")[2]


async def settled(here: Site, path: str) -> Answer:
    """HEAD of an upload once nothing is going on with it any more."""
    while (answer := await here.ask("GET", f"{path}?wait=5")).status == 200 and answer.json["state"] != "ready":
        pass
    return await here.head(path)


async def events(here: Site) -> list[str]:
    """The types of all events so far."""
    return [event.type for _, event in await here.service.metadata.events()]


# --- partials -------------------------------------------------------------------------------


async def test_T_0C0_partial(here: Site) -> None:
    """A partial upload says on HEAD that it is one, and where it stands."""
    path = await partial(here, b"hello", 10)
    found = await here.head(path)
    assert (found.status, found.offset, found.headers["Upload-Concat"]) == (200, 5, "partial")
    assert found.headers["Upload-Length"] == "10"


async def test_T_0C0_deferred_partial(here: Site) -> None:
    """Its length may come later."""
    path = await here.create(None, Upload_Concat="partial", Upload_Defer_Length="1")
    assert (await here.patch(path, 0, b"hello", Upload_Length="5")).status == 204
    assert (await here.head(path)).offset == 5


async def test_T_0C1_no_file_of_a_partial(here: Site) -> None:
    """A complete partial makes no file, tells of none and has no event for its completion."""
    path = await here.create(5, Upload_Concat="partial")
    before = await events(here)
    answer = await here.patch(path, 0, b"hello")
    assert (answer.status, answer.offset) == (204, 5)
    assert "Attachd-File-Id" not in answer.headers
    assert (await here.ask("GET", path)).json["file_id"] is None
    assert await events(here) == before


# --- the list -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "{path}",
        "{base}{path}",
        "https://other.example:8443{path}",
        "HTTP://user@other.example{path}",
        "/files/%75_{rest}",
        "/files/u%5f{rest}",
    ],
)
async def test_T_0C2_spellings_of_a_url(here: Site, spelling: str) -> None:
    """Partials are named by path or absolute URL, percent-encoded or not; scheme and host do not count."""
    path = await partial(here, b"hello")
    name = spelling.format(path=path, base=here.base, rest=path.removeprefix("/files/u_"))
    assert await here.stored(await final(here, name)) == b"hello"


@pytest.mark.parametrize("spelling", ["/files/%2575_{rest}", "/other/u_{rest}", "u_{rest}", "/files/u_{rest}/x"])
async def test_T_0C2_paths_that_are_none(here: Site, spelling: str) -> None:
    """A path is decoded once, and has to be that of an upload."""
    path = await partial(here, b"hello")
    answer = await join(here, spelling.format(rest=path.removeprefix("/files/u_")))
    assert (answer.status, answer.slug) == (404, "not-found")


async def test_T_0C3_listed_order(here: Site) -> None:
    """The bytes stand in the order of the list, not of creation."""
    first, second = await partial(here, b"hello"), await partial(here, b"world")
    assert await here.stored(await final(here, second, first)) == b"worldhello"


async def test_T_0C3_repeats(here: Site) -> None:
    """A partial may stand in the list twice."""
    first, second = await partial(here, b"ab"), await partial(here, b"c")
    assert await here.stored(await final(here, first, second, first, first)) == b"abcabab"


async def test_T_0C3_several_finals(here: Site) -> None:
    """And in several finals."""
    first, second = await partial(here, b"ab"), await partial(here, b"c")
    assert await here.stored(await final(here, first, second)) == b"abc"
    assert await here.stored(await final(here, second, first)) == b"cab"


async def test_T_0C4_assembled(here: Site) -> None:
    """A joined final stands at the sum of its partials and echoes its list as it was sent."""
    first, second = await partial(here, b"hello"), await partial(here, b"worlds")
    sent = f"final;{here.base}{first}  {second}"
    answer = await here.post(None, Upload_Concat=sent)
    assert (answer.status, answer.offset) == (201, 11)
    found = await here.head("/files/" + answer.headers["Location"].rpartition("/")[2])
    assert (found.offset, found.headers["Upload-Length"], found.headers["Upload-Concat"]) == (11, "11", sent)
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b"helloworlds"


async def test_T_0C4_empty_partials(here: Site) -> None:
    """Partials without a byte join to an empty file."""
    empty = await partial(here, b"")
    assert await here.stored(await final(here, empty, empty)) == b""


@pytest.mark.parametrize("headers", [{"Upload_Length": "5"}, {"Upload_Defer_Length": "1"}])
async def test_T_0C5_length_of_a_final(here: Site, headers: dict[str, str]) -> None:
    """A final has no length of its own."""
    answer = await join(here, await partial(here, b"hello"), **headers)
    assert (answer.status, answer.slug) == (400, "bad-header")


@pytest.mark.parametrize("chunked", [False, True])
async def test_T_0C6_body_on_a_final(here: Site, chunked: bool) -> None:
    """Nor bytes of its own."""
    headers = TUS | {"Upload-Concat": "final;" + await partial(here, b"hello"), "Content-Type": OCTETS}
    answer = await here.ask("POST", here.link(), headers, b"x", chunked=chunked)
    assert (answer.status, answer.slug) == (403, "final-upload")


@pytest.mark.parametrize("body", [b"", b"x"])
@pytest.mark.parametrize("length", [5, 6])
async def test_T_0C7_patch_on_a_final(here: Site, body: bytes, length: int) -> None:
    """PATCH of a final is refused whatever it brings, joined or pending, and changes nothing."""
    path = await final(here, await partial(here, b"hello", length))
    before = dict((await here.head(path)).headers) | {"Date": "", "X-Request-ID": ""}
    for offset in (5, 0):
        answer = await here.patch(path, offset, body)
        assert (answer.status, answer.slug) == (403, "final-upload")
    assert dict((await here.head(path)).headers) | {"Date": "", "X-Request-ID": ""} == before


# --- finals that wait -----------------------------------------------------------------------


async def test_T_0C8_unfinished_partials(here: Site) -> None:
    """A final of unfinished partials exists at once, has a length and no offset, and is done when they are."""
    first, second = await partial(here, b"hel", 5), await partial(here, b"", 5)
    answer = await join(here, first, second)
    assert answer.status == 201
    assert "Upload-Offset" not in answer.headers
    path = "/files/" + answer.headers["Location"].rpartition("/")[2]
    pending = await here.head(path)
    assert (pending.status, pending.headers["Upload-Length"]) == (200, "10")
    assert "Upload-Offset" not in pending.headers
    await here.patch(second, 0, b"world")
    assert "Upload-Offset" not in (await here.head(path)).headers
    await here.patch(first, 3, b"lo")
    assert (await settled(here, path)).offset == 10
    assert await here.stored(path) == b"helloworld"


async def test_T_0C8_length_once_all_are_known(here: Site) -> None:
    """While a partial's length is open the final has none; it appears with the last of them."""
    first = await here.create(None, Upload_Concat="partial", Upload_Defer_Length="1")
    path = await final(here, first, await partial(here, b"world"))
    pending = await here.head(path)
    assert pending.status == 200
    assert not {"Upload-Length", "Upload-Offset", "Upload-Defer-Length"} & set(pending.headers)
    await here.patch(first, 0, b"he", Upload_Length="5")
    known = await here.head(path)
    assert known.headers["Upload-Length"] == "10"
    assert "Upload-Offset" not in known.headers
    assert (await here.ask("GET", path)).json["length"] == 10
    await here.patch(first, 2, b"llo")
    assert (await settled(here, path)).offset == 10


async def test_T_0C9_partial_terminated(here: Site) -> None:
    """A pending final fails with the first of its partials that is terminated."""
    first, second = await partial(here, b"hello"), await partial(here, b"", 5)
    path = await final(here, first, second)
    assert (await here.ask("DELETE", first, TUS)).status == 204
    assert (await settled(here, path)).status == 410
    assert "upload.failed" in await events(here)


@pytest.mark.blocking  # the traceback in the log reads source lines
async def test_T_0C9_partial_lost(here: Site) -> None:
    """And with one whose bytes are gone from the disk."""
    first, second = await partial(here, b"hello"), await partial(here, b"", 5)
    path = await final(here, first, second)
    for name in here.leftovers():
        if here.upload_id(first) in name:
            (here.service.settings.data / name).unlink()
    await here.patch(second, 0, b"world")
    assert (await settled(here, path)).status == 410


# --- refusals -------------------------------------------------------------------------------


async def test_T_0CA_unknown_entry(here: Site) -> None:
    """A list that names no upload is refused."""
    answer = await join(here, await partial(here, b"hello"), "/files/u_" + "a" * 26)
    assert (answer.status, answer.slug) == (404, "not-found")


async def test_T_0CA_entry_of_another_issuer(here: Site) -> None:
    """An upload made by another issuer's link is as unknown."""
    path = await partial(here, b"hello")
    other = new_key("HS256", issuer="other", now=0)
    keys = KeyFile(here.service.settings.keys_path)
    await asyncio.to_thread(keys.update, lambda now: now.with_key(other))
    stranger = Site(here.service, here.clock, other)
    while (answer := await join(stranger, path)).status == 401:
        # the service has yet to see the key
        await asyncio.sleep(0.05)
    assert (answer.status, answer.slug) == (404, "not-found")


@pytest.mark.parametrize("concat", [False, True])
async def test_T_0CA_entry_that_is_no_partial(here: Site, concat: bool) -> None:
    """An ordinary upload, or a final, cannot be an entry."""
    path = await final(here, await partial(here, b"hello")) if concat else await here.create(5)
    answer = await join(here, path)
    assert (answer.status, answer.slug) == (400, "bad-header")


async def test_T_0CA_entry_that_is_gone(here: Site) -> None:
    """A terminated partial is gone."""
    path = await partial(here, b"hello")
    await here.ask("DELETE", path, TUS)
    answer = await join(here, path)
    assert (answer.status, answer.slug) == (410, "gone")


async def test_T_0CB_sum_above_the_maximum(tmp_path: Path) -> None:
    """Partials that fit one by one and not together are refused."""
    async with site(tmp_path, max_size="10") as here:
        first, second = await partial(here, b"hello!"), await partial(here, b"", 5)
        answer = await join(here, first, second)
        assert (answer.status, answer.slug) == (413, "too-large")


async def test_T_0CC_metadata_is_its_own(here: Site) -> None:
    """A final has the metadata of its own creation and nothing of its partials'."""
    part = await here.create(0, Upload_Concat="partial", Upload_Metadata=f"filename {b64(b'part.bin')}")
    assert "Upload-Metadata" not in (await here.head(await final(here, part))).headers
    named = await final(here, part, Upload_Metadata=f"filename {b64(b'whole.bin')}")
    assert (await here.head(named)).headers["Upload-Metadata"] == f"filename {b64(b'whole.bin')}"


@pytest.mark.parametrize("concat", ["final; {path}", "final;  {path}   {path} "])
async def test_T_0CD_spaces(here: Site, concat: str) -> None:
    """Spaces around the entries do not count."""
    path = await partial(here, b"hello")
    assert (await here.post(None, Upload_Concat=concat.format(path=path))).status == 201


@pytest.mark.parametrize(
    "concat", ["final;", "final; ", "final", "Final;{path}", "finale;{path}", "Partial", "partial;", "", "final {path}"]
)
async def test_T_0CD_grammar(here: Site, concat: str) -> None:
    """Anything but `partial` and `final;` with entries is refused."""
    path = await partial(here, b"hello")
    answer = await here.post(5, Upload_Concat=concat.format(path=path))
    assert (answer.status, answer.slug) == (400, "bad-header")


async def test_T_0CE_hundred_urls(here: Site) -> None:
    """A list of a hundred absolute URLs passes."""
    path = await partial(here, b"x")
    urls = [f"https://uploads.a-rather-long-name.example.org:8443{path}"] * 100
    assert len(" ".join(urls)) > 8190
    assert await here.stored(await final(here, *urls)) == b"x" * 100


# --- afterwards -----------------------------------------------------------------------------


async def test_T_0CF_partials_stay_until_they_expire(tmp_path: Path) -> None:
    """Partials outlive the final that joined them up to their own expiry, and the final them."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock) as here:
        part = await partial(here, b"hello")
        path = await final(here, part)
        clock.forward(DAY - 1)
        await here.service.janitor.sweep()
        assert (await here.head(part)).offset == 5
        assert await here.stored(await final(here, part, part)) == b"hellohello"
        clock.forward(2)
        await here.service.janitor.sweep()
        assert (await here.head(part)).status == 410
        assert await here.stored(path) == b"hello"
        assert not any(here.upload_id(part) in name for name in here.leftovers())


class Hold:
    """Stands before a storage call until it is let through."""

    def __init__(self, here: Site, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = here.service.storage
        self._inner: Any = getattr(storage, name)
        self.waiting = asyncio.Event()
        self.open = asyncio.Event()
        monkeypatch.setattr(storage, name, self)

    async def __call__(self, *values: Any, **named: Any) -> Any:
        self.waiting.set()
        await self.open.wait()
        return await self._inner(*values, **named)


async def test_T_0CG_slow_assembly(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An assembly that takes long is not waited for: 201 comes, the final is pending, then it is done."""
    monkeypatch.setattr("service.uploads.FINAL_PATIENCE_SECONDS", 0.02)
    hold = Hold(here, "concatenate", monkeypatch)
    answer = await join(here, await partial(here, b"hello"))
    assert answer.status == 201
    await until(hold.waiting.is_set)
    assert "Upload-Offset" not in answer.headers
    path = "/files/" + answer.headers["Location"].rpartition("/")[2]
    pending = await here.head(path)
    assert (pending.status, pending.headers["Upload-Length"]) == (200, "5")
    assert "Upload-Offset" not in pending.headers
    hold.open.set()
    assert (await settled(here, path)).offset == 5
    assert await here.stored(path) == b"hello"


async def test_T_0CG_plan_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A final that was not joined when the process died is joined by the next one."""
    monkeypatch.setattr("service.uploads.FINAL_PATIENCE_SECONDS", 0.02)
    async with site(tmp_path) as first:
        # the directory is free, as it is when a process has died
        await asyncio.to_thread(first.service.claim.directory.close)
        hold = Hold(first, "concatenate", monkeypatch)
        path = await final(first, await partial(first, b"hello"))
        async with site(tmp_path) as second:
            await until(hold.waiting.is_set)
            assert (await second.head(path)).status == 200
            assert (await settled(second, path)).offset == 5
            assert await second.stored(path) == b"hello"
        hold.open.set()
