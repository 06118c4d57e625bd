"""What is revoked, erased or refused while a request waits for somebody: nothing of it is there afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service import erasing
from service.storage.base import StorageUnavailable
from tests.scanners.double import Double
from tests.web.backend import Backend, other_backend
from tests.web.harness import OCTETS, TUS, FakeClock, Site, path_of, site
from tests.web.receiver import LOOPBACK, now_clock, receiver
from tests.web.scanned import INFECTED, scanned
from tests.web.traces import breaks
from tests.web.under_way import until

BODY = TUS | {"Upload-Length": "5", "Content-Type": OCTETS}


async def send(here: Site, made: dict[str, Any]) -> int:
    """The status of a creation with its five bytes."""
    return (await here.ask("POST", path_of(made["url"]), BODY, b"hello")).status


@pytest.mark.parametrize("how", ["revoked", "erased"])
async def test_a_link_that_goes_while_a_hook_is_asked_makes_nothing(tmp_path: Path, how: str) -> None:
    """What `pre_create` allowed too late is refused: of an owner that was erased nothing comes back."""
    go = asyncio.Event()

    async def slow(_: object) -> int:
        await go.wait()
        return 204

    async with (
        receiver(reply=slow) as chat,
        site(tmp_path, hooks={"pre_create": chat.hook(budget="3s")}, webhook_networks=LOOPBACK) as here,
    ):
        backend = Backend(here)
        made = await backend.link(owner="u1", max=10)
        creating = asyncio.create_task(send(here, made))
        await until(lambda: len(chat.messages) == 1)
        if how == "revoked":
            assert (await backend.call("POST", "/revocations", {"jti": made["jti"]})).status == 201
        else:
            await backend.call("DELETE", "/owners/u1")
            await here.service.erasing.idle()
        go.set()
        assert await creating == 401
        assert (await backend.get("/files?owner=u1"))["files"] == []
        assert here.leftovers() == []


async def test_a_small_file_that_is_stored_while_its_owner_is_erased_is_none(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are there, and no record comes of them."""
    backend, storage = Backend(here), here.service.storage._inner
    made = await backend.link(owner="u1", max=10)
    put, go, began = storage.put, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        stored = await put(*args)
        began.set()
        await go.wait()
        return stored

    monkeypatch.setattr(storage, "put", slow)
    creating = asyncio.create_task(send(here, made))
    await began.wait()
    job_id = (await backend.call("DELETE", "/owners/u1")).json["job_id"]
    await here.service.erasing.idle()
    assert (await backend.get(f"/jobs/{job_id}"))["state"] == "done"
    go.set()
    assert await creating == 401
    assert (await backend.get("/files?owner=u1"))["files"] == []
    assert here.leftovers() == []


async def test_a_download_that_waits_is_refused_once_its_link_is_revoked(here: Site) -> None:
    """With `?wait=` the link is looked at again when the file is there."""
    backend = Backend(here)
    made = await backend.link(owner="u1", max=10)
    path = await here.create(5, path_of(made["url"]))
    fetching = asyncio.create_task(here.ask("GET", path_of(made["download_url"]) + "&wait=20"))
    await until(lambda: made["file_id"] in here.service.context.downloads._changes._watches)
    assert (await backend.call("POST", "/revocations", {"file_id": made["file_id"]})).status == 201
    await here.patch(path, 0, b"hello")
    assert (await fetching).status == 401


async def test_an_erasure_asked_for_again_forgets_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done means that no byte is left, also if it was asked for again while storage was away."""
    monkeypatch.setattr(erasing, "SETTLED_SECONDS", 0.0)
    clock = FakeClock()
    async with site(tmp_path, clock=clock) as here:
        backend = Backend(here)
        for number in range(3):
            await backend.store(b"%d" % number, owner="u1")
        await here.service.tasks.drain()
        with monkeypatch.context() as patch:
            for name in ("delete", "discard"):
                patch.setattr(here.service.storage._inner, name, breaks(StorageUnavailable("away")))
            job_id = (await backend.call("DELETE", "/owners/u1")).json["job_id"]
            await here.service.erasing.idle()
            clock.forward(5)
            assert (await backend.call("DELETE", "/owners/u1")).json["job_id"] == job_id
            await here.service.erasing.idle()
            assert (await backend.get(f"/jobs/{job_id}"))["state"] == "running"
        await here.service.erasing.upkeep()
        await here.service.erasing.idle()
        assert (await backend.get(f"/jobs/{job_id}"))["state"] == "done"
        assert here.leftovers() == []


async def test_an_infected_file_is_looked_at_and_deleted_only(tmp_path: Path) -> None:
    """A backend sees what it is; nothing lifts its `hold`, and no link is made for it."""
    async with Double().serving() as clamd, scanned(tmp_path, clamd) as here:
        backend = Backend(here)
        made = await backend.link(owner="u1", max=10000, hold=60)
        headers = BODY | {"Upload-Length": str(len(INFECTED))}
        assert (await here.ask("POST", path_of(made["url"]), headers, INFECTED)).slug == "infected"
        info = await backend.get(f"/files/{made['file_id']}")
        assert (info["state"], info["verdict"]) == ("infected", "infected")
        links = await backend.call("POST", "/download-links", {"items": [{"file_id": made["file_id"]}]})
        assert links.json["items"][0]["error"]["type"] == "urn:attachd:problem:infected"
        assert (await backend.call("PUT", f"/files/{made['file_id']}/refs/r1")).slug == "infected"
        assert await here.service.metadata.miscounted() == {}
        assert (await backend.call("DELETE", f"/files/{made['file_id']}")).status in (200, 204)
        assert here.leftovers() == []


async def test_C6_a_file_that_nobody_ever_allows_is_given_up(tmp_path: Path) -> None:
    """When its time is over it fails, its owner has the room again, and it was never scanned."""
    clock = now_clock()
    async with (
        receiver(reply=lambda _: 503) as chat,
        Double().serving() as clamd,
        site(
            tmp_path,
            clock=clock,
            clamd=clamd.address,
            hooks={"pre_finish": chat.hook()},
            webhook_networks=LOOPBACK,
            quota_pending="1",
        ) as here,
    ):
        backend = Backend(here)
        made = await backend.link(owner="u1", max=10000)
        answer = await here.ask("POST", path_of(made["url"]), BODY, b"hello")
        assert (answer.status, answer.slug) == (503, "hook-unavailable")
        clock.skip(30 * 86400)
        await here.service.janitor.sweep()
        assert (await backend.get("/owners/u1/usage"))["pending_uploads"] == 0
        assert here.service.metrics.registry.get_sample_value("attachd_scans_total", {"verdict": "clean"}) == 0


async def test_a_reader_of_few_events_gets_past_those_of_others(here: Site) -> None:
    """With `limit=1` an issuer's only event is found behind sixty of another's, at once."""
    mine, theirs = Backend(here), await other_backend(here)
    for _ in range(60):
        await theirs.create(10)
    await mine.create(10)
    assert len((await mine.get("/events?after=0&limit=1"))["events"]) == 1
