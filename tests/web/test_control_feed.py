"""The event feed: what happened, in order, from wherever its reader was."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service import feed
from service.metadata.control_sql import SqlControl
from tests.web.backend import Backend, other_backend
from tests.web.harness import Site
from tests.web.traces import count
from tests.web.under_way import until


async def test_the_feed_tells_each_event_once_in_order(here: Site) -> None:
    """Page by page, whatever their size; the last cursor waits for what comes."""
    backend = Backend(here)
    for number in range(3):
        await backend.store(b"%d" % number, ref=f"r{number}")
    whole = await backend.get("/events")
    kinds = [event["type"] for event in whole["events"]]
    assert kinds == ["upload.created", "file.ready"] * 3
    assert [event["data"]["refs"] for event in whole["events"][1::2]] == [["r0"], ["r1"], ["r2"]]
    found, after = [], "0"
    while (page := await backend.get(f"/events?after={after}&limit=1"))["events"]:
        found += page["events"]
        after = page["next"]
    assert found == whole["events"]
    assert after == whole["next"]
    await backend.store()
    assert len((await backend.get(f"/events?after={after}"))["events"]) == 2


async def test_an_event_looks_as_the_contract_has_it(here: Site) -> None:
    """Type, RFC 3339 instant, id, data; no token and no address in it (lesson A6)."""
    backend = Backend(here)
    made = await backend.store(b"hello", owner="u1", meta={"a": 1})
    event = (await backend.get("/events"))["events"][1]
    assert set(event) == {"type", "timestamp", "id", "data"}
    assert event["timestamp"].startswith(time.strftime("%Y-%m-%dT", time.gmtime()))
    assert event["timestamp"].endswith("Z")
    assert event["id"].startswith("evt_")
    told = {name: event["data"][name] for name in ("file_id", "size", "owner", "meta", "sha256")}
    assert told == {"file_id": made["file_id"], "size": 5, "owner": "u1", "meta": {"a": 1}, "sha256": None}
    assert "sig=" not in str(event)


async def test_a_reader_that_waits_hears_at_once(here: Site) -> None:
    """A held request is answered as soon as there is an event, and with none when its time is over."""
    backend = Backend(here)
    waiting = asyncio.create_task(backend.get("/events?wait=20"))
    await until(lambda: here.service.context.waiting.held == 1)
    began = time.monotonic()
    await backend.store()
    assert (await waiting)["events"][0]["type"] == "upload.created"
    assert time.monotonic() - began < 15
    after = (await backend.get("/events"))["next"]
    began = time.monotonic()
    assert await backend.get(f"/events?after={after}&wait=0.2") == {"events": [], "next": after}
    assert time.monotonic() - began >= 0.2


async def test_many_readers_wait_at_the_cost_of_one(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty that wait ask the database for news a few times a second in all, and all of them hear it."""
    looks: list[int] = []
    newest_event = SqlControl.newest_event

    async def counted(self: SqlControl) -> int:
        looks.append(1)
        return await newest_event(self)

    monkeypatch.setattr(SqlControl, "newest_event", counted)
    backend = Backend(here)
    began = time.monotonic()
    waiting = [asyncio.create_task(backend.get("/events?wait=20")) for _ in range(50)]
    await until(lambda: here.service.context.waiting.held == 50)
    await asyncio.sleep(1)
    await backend.store()
    pages = await asyncio.gather(*waiting)
    assert {page["events"][0]["type"] for page in pages} == {"upload.created"}
    # one at a time asks, and not sooner than a quarter of a second after the last
    assert len(looks) <= 2 + (time.monotonic() - began) / 0.25


async def test_others_events_are_passed_over_and_the_cursor_goes_on(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader with few events among many of others gets its own, and is not sent back to the start."""
    monkeypatch.setattr(feed, "_BATCHES", 2)
    monkeypatch.setattr(feed, "_BATCH", 2)
    backend, theirs = Backend(here), await other_backend(here)
    for _ in range(5):
        await theirs.store()
    await backend.store()
    assert count(here, "events") == 12
    found: list[dict[str, Any]] = []
    after, pages = "0", 0
    while len(found) < 2:
        page = await backend.get(f"/events?after={after}&limit=2")
        assert int(page["next"]) > int(after)
        found += page["events"]
        after, pages = page["next"], pages + 1
    assert pages == 3
    assert [event["type"] for event in found] == ["upload.created", "file.ready"]


@pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=0", "limit=501", "wait=x", "wait=-1", "since=5"])
async def test_a_wrong_cursor_is_refused(here: Site, query: str) -> None:
    """400 with the parameter's name."""
    answer = await Backend(here).call("GET", f"/events?{query}")
    assert answer.slug == "bad-request"
    assert query.partition("=")[0] in answer.json["detail"]
