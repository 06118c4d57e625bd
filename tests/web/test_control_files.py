"""Files and uploads for backends, and lesson E4: a file lives as long as something refers to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from service.storage.base import StorageUnavailable
from tests.web.backend import Backend
from tests.web.harness import TUS, Answer, FakeClock, Site, path_of, site
from tests.web.traces import breaks, events, forward, traces

REF = "chat:7/msg:9 ü"
UNKNOWN = "f_" + "a" * 26


async def claim(backend: Backend, file_id: str, ref: str) -> Answer:
    return await backend.call("PUT", f"/files/{file_id}/refs/{quote(ref, safe='')}")


async def release(backend: Backend, file_id: str, ref: str) -> Answer:
    return await backend.call("DELETE", f"/files/{file_id}/refs/{quote(ref, safe='')}")


def told(here: Site, kind: str) -> list[dict[str, Any]]:
    return [data for what, data in events(here) if what == kind]


# --- E4 ------------------------------------------------------------------------------------------


async def test_E4_the_last_release_is_410_at_once_and_the_bytes_are_gone(here: Site) -> None:
    """Links work while one of two claims stands; after its release each answers 410, and no byte is kept."""
    backend = Backend(here)
    made = await backend.store(b"posted twice", ref="first")
    file_id = made["file_id"]
    second = (await backend.call("POST", "/download-links", {"items": [{"file_id": file_id}]})).json["items"][0]["url"]
    claimed = await claim(backend, file_id, REF)
    assert (claimed.json["refs"], claimed.json["ref_count"]) == ([REF, "first"], 2)
    assert (await release(backend, file_id, "first")).json["state"] == "ready"
    assert (await backend.fetch(made)).body == (await here.ask("GET", path_of(second))).body == b"posted twice"
    gone = await release(backend, file_id, REF)
    assert (gone.status, gone.json["state"], gone.json["refs"]) == (200, "deleted", [])
    assert (await backend.fetch(made)).slug == (await here.ask("GET", path_of(second))).slug == "gone"
    assert here.leftovers() == []
    assert [data["refs"] for data in told(here, "file.deleted")] == [[]]


async def test_E4_an_unclaimed_file_dies_after_its_hold(tmp_path: Path) -> None:
    """At its very end, swept or not; its bytes go with the next sweep, and it is told."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock) as here:
        backend = Backend(here)
        made = await backend.store(hold=60)
        clock.forward(59)
        assert (await backend.fetch(made)).status == 200
        clock.forward(1)
        assert (await backend.fetch(made)).slug == "gone"
        assert (await claim(backend, made["file_id"], "late")).slug == "gone"
        assert (await backend.call("GET", f"/files/{made['file_id']}")).slug == "gone"
        assert await here.service.janitor.sweep()
        assert here.leftovers() == []
        assert len(told(here, "file.deleted")) == 1


async def test_E4_a_claim_ends_the_hold(tmp_path: Path) -> None:
    """A file that was claimed in time lives on without end; one with a `ttl` as long as that says."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock) as here:
        backend = Backend(here)
        held, short, posted = (
            await backend.store(hold=60),
            await backend.store(hold=60, ttl=600),
            await backend.store(hold=60, ref="r"),
        )
        ends = (await claim(backend, short["file_id"], "r")).json["expires_at"]
        assert (await claim(backend, held["file_id"], "r")).json["expires_at"] is None
        assert ends == int(clock.now()) + 600
        clock.forward(599)
        assert await here.service.janitor.sweep()
        assert [(await backend.fetch(made)).status for made in (held, short, posted)] == [200] * 3
        clock.forward(1)
        assert await here.service.janitor.sweep()
        assert [(await backend.fetch(made)).status for made in (held, short, posted)] == [200, 410, 200]


async def test_E4_a_claim_and_a_sweep_at_the_same_moment_agree(tmp_path: Path) -> None:
    """Of fifty files, claimed while a sweep is at them, those are there whose claim was answered 200."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock) as here:
        backend = Backend(here)
        made = [await backend.store(b"%d" % number, hold=60) for number in range(50)]
        clock.forward(59.9)
        sweep = asyncio.create_task(here.service.janitor.sweep())
        answers = []
        for number, each in enumerate(made):
            if number == 25:
                clock.forward(1)
            answers.append((await claim(backend, each["file_id"], "r")).status)
        await sweep
        await here.service.janitor.sweep()
        assert Counter(answers) == {200: 25, 410: 25}
        assert [(await backend.fetch(each)).status for each in made] == answers


async def test_E4_claims_and_releases_at_once_leave_what_they_come_to(here: Site) -> None:
    """Twenty claims of a file and the release of its first reference, in any order: it is deleted, or has them all."""
    backend = Backend(here)
    for _ in range(5):
        made = await backend.store(ref="first")
        file_id = made["file_id"]
        claims = [claim(backend, file_id, f"r{number}") for number in range(20)]
        answers = await asyncio.gather(*claims, release(backend, file_id, "first"))
        claimed = [f"r{number}" for number, answer in enumerate(answers[:20]) if answer.status == 200]
        if (await backend.fetch(made)).status == 410:
            assert claimed == []
        else:
            assert (await backend.get(f"/files/{file_id}"))["refs"] == sorted(claimed)


async def test_E4_a_release_without_storage_stands_and_the_bytes_go_later(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is what was recorded; the bytes are an orphan that the next look for those removes."""
    backend = Backend(here)
    made = await backend.store(ref="first")
    monkeypatch.setattr(here.service.storage._inner, "delete", breaks(StorageUnavailable("away")))
    assert (await release(backend, made["file_id"], "first")).json["state"] == "deleted"
    monkeypatch.undo()
    assert (await backend.fetch(made)).slug == "gone"
    assert here.leftovers() != []


# --- files ---------------------------------------------------------------------------------------


async def test_what_is_told_of_a_file(here: Site) -> None:
    """Its size, types, name, owner, digests, references and instants."""
    backend = Backend(here)
    made = await backend.link(owner="u1", ref="r")
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    put = await here.ask(
        "PUT", path_of(made["url"]).replace("/files?", "/files/a.png?"), {"Content-Type": "image/png"}, png
    )
    file = await backend.get(f"/files/{made['file_id']}")
    manifest = (await here.ask("GET", path_of(made["download_url"]).replace("?", "/manifest?"))).json
    assert file["digests"] == {
        "root_algorithm": "xxh128", "root": manifest["root"]["digest"], "sha256_root": None, "sha256": None,
    }  # fmt: skip
    del file["digests"], file["created_at"]
    assert file == {
        "file_id": made["file_id"], "upload_id": put.json["upload_id"], "state": "ready", "size": 108,
        "verdict": "unscanned",
        "type": "image/png", "sniffed_type": "image/png", "filename": "a.png", "owner": "u1", "refs": ["r"],
        "ref_count": 1, "expires_at": None,
    }  # fmt: skip


async def test_a_deleted_file_is_gone_and_told_once(here: Site) -> None:
    """Deleting again changes nothing; the event has the references that it had."""
    backend = Backend(here)
    made = await backend.store(ref="r")
    path = f"/files/{made['file_id']}"
    assert [(await backend.call("DELETE", path)).status for _ in range(2)] == [204, 204]
    assert (await backend.call("GET", path)).slug == (await backend.fetch(made)).slug == "gone"
    assert (await claim(backend, made["file_id"], "r2")).slug == "gone"
    assert (await release(backend, made["file_id"], "r")).json["state"] == "deleted"
    assert [data["refs"] for data in told(here, "file.deleted")] == [["r"]]
    assert here.leftovers() == []
    assert (await backend.get("/files"))["files"] == []


async def test_to_delete_a_file_that_is_being_uploaded_ends_the_upload(here: Site) -> None:
    """It never comes, and its link makes no other."""
    backend = Backend(here)
    answer, made = await backend.create(10)
    path = f"/files/{made['file_id']}"
    assert (await backend.call("GET", path)).slug == "not-ready"
    assert (await claim(backend, made["file_id"], "r")).slug == "not-ready"
    assert [(await backend.call("DELETE", path)).status for _ in range(2)] == [204, 204]
    assert (await here.head(path_of(answer.headers["Location"]))).status == 410
    assert (await backend.call("GET", path)).slug == "gone"
    assert (await here.post(10, path_of(made["url"]))).slug == "gone"


async def test_what_is_not_there_is_404(here: Site) -> None:
    """For each method on a file, whether its id is unknown or none at all."""
    backend = Backend(here)
    before = traces(here)
    for file_id in (UNKNOWN, "f_x", "..%2f..%2fetc"):
        for method, path in (("GET", ""), ("DELETE", ""), ("PUT", "/refs/r"), ("DELETE", "/refs/r")):
            assert (await backend.call(method, f"/files/{file_id}{path}")).slug == "not-found"
    assert (await backend.call("PUT", f"/files/{UNKNOWN}/refs/{'x' * 257}")).slug == "bad-request"
    assert traces(here) == before


async def test_files_in_pages(here: Site) -> None:
    """`next` leads through all of them, each once."""
    backend = Backend(here)
    made = [await backend.store(b"%d" % number, owner=f"u{number % 2}", ref=REF) for number in range(5)]
    ids = sorted(each["file_id"] for each in made)
    for query, expected in (
        ("", ids),
        ("&owner=u1", sorted(each["file_id"] for each in made[1::2])),
        (f"&ref={quote(REF, safe='')}", ids),
        ("&ref=other", []),
    ):
        found: list[str] = []
        after = ""
        while True:
            page = await backend.get(f"/files?limit=2{query}{after}")
            found += [file["file_id"] for file in page["files"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert found == expected


@pytest.mark.parametrize(
    "query", ["?limit=0", "?limit=501", "?limit=2&limit=3", "?ownr=u1", "?owner=", "?owner=a%20b", "?after=x", "?ref="]
)
async def test_a_wrong_query_is_refused_with_its_name(here: Site, query: str) -> None:
    """A misspelt filter is no request for everything."""
    answer = await Backend(here).call("GET", f"/files{query}")
    assert answer.slug == "bad-request"
    assert query[1:].partition("=")[0] in answer.json["detail"]


# --- uploads -------------------------------------------------------------------------------------


async def test_what_is_told_of_an_upload(later: Site) -> None:
    """Where it stands, whose it is, and when it ends."""
    backend = Backend(later)
    answer, made = await backend.create(10, owner="u1")
    path = path_of(answer.headers["Location"])
    await later.patch(path, 0, b"1234")
    told_ = await backend.get(f"/uploads/{later.upload_id(path)}")
    now = int(later.clock.now()) if later.clock else 0
    assert told_ == {
        "upload_id": later.upload_id(path), "file_id": made["file_id"], "state": "receiving", "offset": 4,
        "length": 10, "type": None, "filename": None, "owner": "u1", "protocol": "tus", "created_at": now,
        "updated_at": now, "expires_at": now + 86400, "problem": None,
    }  # fmt: skip
    await later.patch(path, 4, b"567890")
    ready = await backend.get(f"/uploads/{later.upload_id(path)}")
    assert (ready["state"], ready["expires_at"]) == ("ready", None)


async def test_an_upload_that_is_ended_is_gone_for_its_client(here: Site) -> None:
    """So is the file that one made; ending it again changes nothing."""
    backend = Backend(here)
    answer, _ = await backend.create(10)
    path = path_of(answer.headers["Location"])
    made = await backend.store()
    whole = (await backend.get(f"/files/{made['file_id']}"))["upload_id"]
    for upload_id in (here.upload_id(path), whole):
        assert [(await backend.call("DELETE", f"/uploads/{upload_id}")).status for _ in range(2)] == [204, 204]
        assert (await backend.get(f"/uploads/{upload_id}"))["state"] == "terminated"
    assert (await here.ask("HEAD", path, TUS)).status == 410
    assert (await backend.fetch(made)).slug == "gone"
    assert here.leftovers() == []
    for upload_id in ("u_" + "a" * 26, "u_x"):
        for method in ("GET", "DELETE"):
            assert (await backend.call(method, f"/uploads/{upload_id}")).slug == "not-found"


async def test_uploads_in_pages_by_state(later: Site) -> None:
    """Each once, also those of the same instant, and each in its state only."""
    backend = Backend(later)
    open_ = []
    for number in range(5):
        forward(later, number % 2)
        open_.append((await backend.create(10))[0].headers["Location"].rpartition("/")[2])
    ended = open_.pop()
    await backend.call("DELETE", f"/uploads/{ended}")
    await backend.store()

    async def all_in(state: str) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            page = await backend.get(f"/uploads?state={state}&limit=2{after}")
            found += [upload["upload_id"] for upload in page["uploads"]]
            if page["next"] is None:
                return found
            after = f"&after={quote(page['next'], safe='')}"

    assert sorted(await all_in("receiving")) == sorted(open_)
    assert await all_in("terminated") == [ended]
    assert len(await all_in("ready")) == 1
    assert await all_in("failed") == await all_in("expired") == await all_in("finishing") == []
    for query in ("", "?state=lost", "?state=ready&after=x", "?state=ready&after=1e999~u_" + "a" * 26):
        assert (await backend.call("GET", f"/uploads{query}")).slug == "bad-request"
