"""What an owner has and may have (lesson A7), and that all of it goes when it is to be erased."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from service import erasing
from service.erasing import Erasing
from service.metadata.control import Job
from service.protocol.problems import refuse
from service.settling import Settling
from service.storage.base import StorageUnavailable
from tests.web.backend import Backend, other_backend
from tests.web.harness import OCTETS, TUS, FakeClock, Site, path_of, site
from tests.web.test_control_files import told
from tests.web.traces import breaks, traces
from tests.web.under_way import begin_patch

GIB = 2**30
MIB = 2**20


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs need not wait for other processes here."""
    monkeypatch.setattr(erasing, "SETTLED_SECONDS", 0.0)


async def usage(backend: Backend, owner: str = "u1") -> tuple[int, int, int, int]:
    told_ = await backend.get(f"/owners/{owner}/usage")
    return told_["files"], told_["file_bytes"], told_["pending_uploads"], told_["reserved_bytes"]


# --- A7 ------------------------------------------------------------------------------------------


async def test_A7_of_a_hundred_at_once_ten_fit_and_expiry_gives_all_back(tmp_path: Path) -> None:
    """100 parallel creations of 1 GiB against 10 GiB: ten are made, the others 413; after expiry 0 are reserved."""
    clock = FakeClock()
    async with (
        site(tmp_path, clock=clock, quota_bytes="10GiB") as one,
        site(tmp_path, clock=clock, quota_bytes="10GiB", alone=False) as two,
    ):
        backend = Backend(one)
        links = [await backend.link(max=GIB, owner="u1") for _ in range(100)]
        answers = await asyncio.gather(
            *((one, two)[number % 2].post(GIB, path_of(link["url"])) for number, link in enumerate(links))
        )
        assert Counter(answer.status for answer in answers) == {201: 10, 413: 90}
        assert {answer.slug for answer in answers if answer.status == 413} == {"quota-exceeded"}
        assert await usage(backend) == (0, 0, 10, 10 * GIB)
        clock.forward(2 * 86400)
        assert await one.service.janitor.sweep()
        assert await usage(backend) == (0, 0, 0, 0)


@pytest.mark.parametrize("end", ["terminated", "expired", "failed", "undone", "deleted", "released"])
async def test_A7_every_end_gives_back_what_was_reserved(tmp_path: Path, end: str) -> None:
    """Whatever becomes of an upload or its file, its owner has all of the quota again, and could not have it before."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock, quota_bytes="10", quota_pending="1", upload_idle="1h") as here:
        backend = Backend(here)
        made, path = {"file_id": ""}, ""
        if end in ("deleted", "released"):
            made = await backend.store(b"0123456789", owner="u1", ref="r")
            assert await usage(backend) == (1, 10, 0, 0)
        elif end == "failed":
            terms = {"max": 10, "owner": "u1", "types": ["image/png"]}
            link = path_of((await backend.link(**terms))["url"])
            path = await here.create(10, link)
        else:
            answer, made = await backend.create(10, owner="u1")
            path = path_of(answer.headers["Location"])
        assert (await backend.create(1, owner="u1"))[0].slug == "quota-exceeded"
        match end:
            case "terminated":
                await here.ask("DELETE", path, TUS)
            case "expired":
                clock.forward(3601)
                assert await here.service.janitor.sweep()
            case "failed":
                assert (await here.patch(path, 0, b"not a png ")).slug == "type-refused"
            case "undone":
                await here.ask("DELETE", path, TUS)
                link = path_of((await backend.link(max=10, owner="u1"))["url"])
                wrong = TUS | {
                    "Upload-Length": "10",
                    "Content-Type": OCTETS,
                    "Upload-Checksum": "md5 " + "A" * 22 + "==",
                }
                assert (await here.ask("POST", link, wrong, b"0123456789")).slug == "checksum-mismatch"
            case "deleted":
                await backend.call("DELETE", f"/files/{made['file_id']}")
            case "released":
                await backend.call("DELETE", f"/files/{made['file_id']}/refs/r")
        assert await usage(backend) == (0, 0, 0, 0)
        assert (await backend.create(10, owner="u1"))[0].status == 201
        assert await here.service.metadata.miscounted() == {}


async def test_A7_an_upload_of_unknown_length_reserves_all_that_its_link_allows(tmp_path: Path) -> None:
    """Until it is a file, which counts with its bytes; so no body can pass the quota."""
    async with site(tmp_path, quota_bytes="100") as here:
        backend = Backend(here)
        link = await backend.link(max=80, owner="u1")
        path = await here.create(None, path_of(link["url"]), Upload_Defer_Length="1")
        assert await usage(backend) == (0, 0, 1, 80)
        assert (await backend.create(21, owner="u1"))[0].slug == "quota-exceeded"
        assert (await here.patch(path, 0, b"12345", Upload_Length="5")).status == 204
        assert await usage(backend) == (1, 5, 0, 0)
        assert (await backend.create(96, owner="u1"))[0].slug == "quota-exceeded"
        assert (await backend.create(95, owner="u1"))[0].status == 201


async def test_A7_a_replay_reserves_nothing(tmp_path: Path) -> None:
    """The same creation again is the same upload, also where the quota is used up; so is a PUT that asks again."""
    async with site(tmp_path, quota_bytes="10") as here:
        backend = Backend(here)
        answer, made = await backend.create(10, owner="u1")
        again = await here.post(10, path_of(made["url"]))
        assert (again.status, again.headers["Location"]) == (201, answer.headers["Location"])
        assert await usage(backend) == (0, 0, 1, 10)


async def test_A7_parts_of_a_file_count_until_they_are_over(tmp_path: Path) -> None:
    """What a concatenation needs is reserved like anything else: its parts, and what they are joined to."""
    async with site(tmp_path) as here:
        backend = Backend(here)
        link = path_of((await backend.link(max=20, owner="u1"))["url"])
        parts = []
        for _ in range(2):
            path = await here.create(10, link, Upload_Concat="partial")
            await here.patch(path, 0, b"0123456789")
            parts.append(path)
        assert await usage(backend) == (0, 0, 0, 20)
        final = await here.post(None, link, Upload_Concat="final;" + " ".join(parts))
        assert final.status == 201
        assert await usage(backend) == (1, 20, 0, 20)
        for path in parts:
            await here.ask("DELETE", path, TUS)
        assert await usage(backend) == (1, 20, 0, 0)
        assert await here.service.metadata.miscounted() == {}


async def test_A7_who_has_no_owner_has_no_quota(tmp_path: Path) -> None:
    """Links without `sub` count for nobody."""
    async with site(tmp_path, quota_bytes="10", quota_pending="1") as here:
        backend = Backend(here)
        assert [(await backend.create(1000))[0].status for _ in range(3)] == [201] * 3
        told_ = await backend.get("/owners/u1/usage")
        assert (told_["quota_bytes"], told_["quota_pending"]) == (10, 1)
        assert (await backend.call("GET", "/owners/a%20b/usage")).slug == "not-found"


# --- erasure -------------------------------------------------------------------------------------


async def job_done(backend: Backend, job_id: str) -> dict[str, Any]:
    await backend.here.service.erasing.idle()
    return await backend.get(f"/jobs/{job_id}")


async def test_an_erasure_takes_everything_of_its_owner_and_nothing_else(here: Site) -> None:
    """Files, open uploads with their writers, parts; and the links that were signed before. Others' are as before."""
    backend, theirs = Backend(here), await other_backend(here)
    files = [await backend.store(b"%d" % number, owner="u1", ref=f"r{number}") for number in range(3)]
    kept = [await backend.store(owner="u2"), await backend.store(), await theirs.store(owner="u1")]
    path = path_of((await backend.create(100, owner="u1"))[0].headers["Location"])
    writer = await begin_patch(here, path, 0, b"some", length=100)
    link = path_of((await backend.link(max=50, owner="u1"))["url"])
    part = await here.create(10, link, Upload_Concat="partial")
    await here.patch(part, 0, b"0123456789")
    unused = await backend.link(owner="u1")

    answer = await backend.call("DELETE", "/owners/u1")
    assert (answer.status, answer.json["state"]) == (202, "running")
    done = await job_done(backend, answer.json["job_id"])
    assert (done["state"], done["files_left"], done["uploads_left"]) == ("done", 0, 0)
    assert (await writer.answer()).status == 423
    assert [(await backend.fetch(made)).status for made in files] == [401] * 3
    assert [(await here.ask("GET", here.download_link(made["file_id"]))).status for made in files] == [410] * 3
    assert [(await backend.fetch(made)).status for made in kept] == [200] * 3
    assert [(await here.ask("HEAD", each, TUS)).status for each in (path, part)] == [410, 410]
    assert (await here.post(5, path_of(unused["url"]))).slug == "bad-link"
    assert await usage(backend) == (0, 0, 0, 0)
    assert len(told(here, "file.deleted")) == 3
    assert sorted(data["refs"] for data in told(here, "file.deleted")) == [["r0"], ["r1"], ["r2"]]
    assert len(here.leftovers()) == 3
    # who comes back has links of its own, at once
    assert (await backend.create(5, owner="u1"))[0].status == 201


async def test_an_erasure_that_was_asked_for_twice_is_one(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is the same while it is not done, and takes what there is at the second time too."""
    backend, erase, go = Backend(here), Erasing._erase, asyncio.Event()

    async def held(self: Erasing, job: Job, *, again: bool) -> None:
        await go.wait()
        await erase(self, job, again=again)

    monkeypatch.setattr(Erasing, "_erase", held)
    first = (await backend.call("DELETE", "/owners/u1")).json
    assert (await backend.call("DELETE", "/owners/u1")).json["job_id"] == first["job_id"]
    go.set()
    await job_done(backend, first["job_id"])
    assert (await backend.call("DELETE", "/owners/u1")).json["job_id"] != first["job_id"]
    assert (await backend.call("GET", "/jobs/j_x")).slug == "not-found"


async def test_an_erasure_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that a stop left behind is taken up by the first sweep of the next service."""
    clock = FakeClock()

    async def never(self: Erasing, job: object, *, again: bool) -> None:
        await asyncio.Event().wait()

    async with site(tmp_path, clock=clock) as here:
        backend = Backend(here)
        made = await backend.store(owner="u1")
        with monkeypatch.context() as patch:
            patch.setattr(Erasing, "_erase", never)
            job_id = (await backend.call("DELETE", "/owners/u1")).json["job_id"]
        assert (await here.ask("GET", here.download_link(made["file_id"]))).status == 200
    async with site(tmp_path, clock=clock) as here:
        backend = Backend(here)
        await here.service.janitor.sweep()
        assert (await job_done(backend, job_id))["state"] == "done"
        assert (await here.ask("GET", here.download_link(made["file_id"]))).status == 410
        clock.forward(86400 + 1)
        await here.service.janitor.sweep()
        assert (await backend.call("GET", f"/jobs/{job_id}")).slug == "not-found"


async def test_an_erasure_keeps_what_came_after_it_was_asked_for(tmp_path: Path) -> None:
    """A file of a link that was signed later is no part of it."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock) as here:
        backend = Backend(here)
        old = await backend.store(owner="u1")
        metadata = here.service.metadata
        job_id = (await backend.call("DELETE", "/owners/u1")).json["job_id"]
        clock.forward(5)
        new = await backend.store(b"new", owner="u1")
        assert (await job_done(backend, job_id))["state"] == "done"
        assert (await here.ask("GET", here.download_link(old["file_id"]))).status == 410
        assert (await backend.fetch(new)).body == b"new"
        assert await metadata.miscounted() == {}


async def test_an_erasure_is_done_when_no_byte_is_left(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While storage is away the files are gone for everybody, and the job runs until their bytes are gone as well."""
    backend = Backend(here)
    for number in range(3):
        await backend.store(b"%d" % number, owner="u1")
    path = path_of((await backend.create(10, owner="u1"))[0].headers["Location"])
    await here.patch(path, 0, b"01234")
    await here.service.tasks.drain()
    with monkeypatch.context() as patch:
        for name in ("delete", "discard"):
            patch.setattr(here.service.storage._inner, name, breaks(StorageUnavailable("away")))
        job_id = (await backend.call("DELETE", "/owners/u1")).json["job_id"]
        job = await job_done(backend, job_id)
        assert (job["state"], job["files_left"], job["uploads_left"], len(here.leftovers())) == ("running", 0, 0, 4)
    await here.service.erasing.upkeep()
    assert (await job_done(backend, job_id))["state"] == "done"
    assert here.leftovers() == []


async def test_an_erasure_that_meets_a_lock_is_not_done(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays to be taken up again, and its answer says so."""

    async def locked(self: Settling, upload: object) -> None:
        raise refuse("locked", "another holds it")

    backend = Backend(here)
    await backend.create(10, owner="u1")
    with monkeypatch.context() as patch:
        patch.setattr(Settling, "terminate", locked)
        job_id = (await backend.call("DELETE", "/owners/u1")).json["job_id"]
        job = await job_done(backend, job_id)
        assert (job["state"], job["uploads_left"]) == ("running", 1)
    await here.service.erasing.upkeep()
    assert (await job_done(backend, job_id))["state"] == "done"
    assert "u1" not in str(traces(here)["owners"])
