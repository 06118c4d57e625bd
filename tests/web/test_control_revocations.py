"""Revocation (contract, section 4): what stops, at once and everywhere, and what goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.metadata.base import MetadataUnavailable
from service.metadata.control_sql import SqlControl
from service.revocations import LOOK_SECONDS
from tests.web.backend import Backend
from tests.web.harness import Site, path_of, site
from tests.web.traces import breaks, count, forward
from tests.web.under_way import SteppedClock


async def revoke(backend: Backend, **what: Any) -> dict[str, Any]:
    answer = await backend.call("POST", "/revocations", what)
    assert answer.status == 201, answer
    return answer.json


async def test_a_revoked_upload_link_makes_nothing_and_its_upload_goes_on(here: Site) -> None:
    """401 for the link, also for the upload it made; the upload itself lives by its own expiry."""
    backend = Backend(here)
    made, other = await backend.link(), await backend.link()
    answer = await here.post(10, path_of(made["url"]))
    await revoke(backend, jti=made["jti"])
    again = await here.post(10, path_of(made["url"]))
    assert (again.status, again.slug) == (401, "bad-link")
    assert "revoked" in again.json["detail"]
    assert (await here.ask("HEAD", path_of(made["url"]), {"Tus-Resumable": "1.0.0"})).status == 401
    path = path_of(answer.headers["Location"])
    assert (await here.patch(path, 0, b"0123456789")).status == 204
    assert (await backend.fetch(made)).body == b"0123456789"
    assert (await here.post(10, path_of(other["url"]))).status == 201


async def test_links_of_an_owner_stop_by_when_they_were_issued(later: Site) -> None:
    """Up to the instant that was named, of both kinds; a later one works, and so do another owner's."""
    backend = Backend(later)
    old, others = await backend.store(owner="u1"), await backend.store(owner="u2")
    assert later.clock
    before = later.clock.now()
    forward(later, 10)
    new = await backend.store(b"new", owner="u1")
    told = await revoke(backend, owner="u1", issued_before=before)
    assert told["issued_before"] == before
    assert [(await backend.fetch(made)).status for made in (old, others, new)] == [401, 200, 200]
    unused = await backend.link(owner="u1")
    await revoke(backend, owner="u1")
    assert (await backend.fetch(new)).slug == (await later.post(1, path_of(unused["url"]))).slug == "bad-link"


async def test_links_to_a_file_stop_and_new_ones_work_at_once(later: Site) -> None:
    """Every link to it up to now; one that is signed in the same second is not among them."""
    backend = Backend(later)
    made, other = await backend.store(), await backend.store()
    file_id = made["file_id"]
    assert later.clock
    later.clock.at = int(later.clock.at) + 0.5
    await revoke(backend, file_id=file_id)
    assert [(await backend.fetch(each)).status for each in (made, other)] == [401, 200]
    assert (await later.ask("GET", later.download_link(file_id))).slug == "bad-link"
    link = (await backend.call("POST", "/download-links", {"items": [{"file_id": file_id}]})).json["items"][0]["url"]
    assert (await later.ask("GET", path_of(link))).body == b"hello"


async def test_a_service_token_can_be_revoked(here: Site) -> None:
    """By its jti, as any other."""
    leaked = Backend(here, claims={"jti": "leaked-service-token"})
    assert (await leaked.call("GET", "/files")).status == 200
    await revoke(Backend(here), jti="leaked-service-token")
    assert (await leaked.call("GET", "/files")).slug == "bad-link"


async def test_other_processes_hear_of_a_revocation_within_a_look(tmp_path: Path) -> None:
    """A process that looked just before refuses the link from half a second on."""
    clock = SteppedClock()
    async with site(tmp_path, clock=clock) as one, site(tmp_path, clock=clock, alone=False) as two:
        backend = Backend(one)
        made = await backend.store()
        link = path_of(made["download_url"])
        assert [(await each.ask("GET", link)).status for each in (one, two)] == [200, 200]
        await revoke(backend, file_id=made["file_id"])
        assert (await one.ask("GET", link)).status == 401
        clock.skipped += LOOK_SECONDS
        assert (await two.ask("GET", link)).status == 401


async def test_tokens_are_looked_at_without_a_query_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred requests in one look's time ask the database at most once."""
    looks: list[int] = []
    revocations = SqlControl.revocations

    async def counted(self: SqlControl, *, after: int) -> Any:
        looks.append(after)
        return await revocations(self, after=after)

    monkeypatch.setattr(SqlControl, "revocations", counted)
    async with site(tmp_path, clock=SteppedClock()) as here:
        monkeypatch.setattr(here.clock, "monotonic", lambda: 1000.0)
        link = here.download_link(await here.upload(b"content"))
        answers = await asyncio.gather(*(here.ask("GET", link) for _ in range(100)))
        assert {answer.status for answer in answers} == {200}
        assert len(looks) == 1


async def test_without_the_database_no_link_is_taken_on_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody can say whether it was revoked, the answer is 503, worth a retry."""
    async with site(tmp_path, clock=SteppedClock()) as here:
        assert here.clock
        link = here.download_link(await here.upload(b"content"))
        assert isinstance(here.clock, SteppedClock)
        here.clock.skipped += LOOK_SECONDS
        with monkeypatch.context() as patch:
            patch.setattr(SqlControl, "revocations", breaks(MetadataUnavailable("away")))
            answer = await here.ask("GET", link)
            assert (answer.status, answer.slug) == (503, "storage-unavailable")
        assert (await here.ask("GET", link)).status == 200


async def test_a_revocation_is_forgotten_once_no_token_can_be_alive(tmp_path: Path) -> None:
    """After the longest life of any token the sweep drops its row; until then it is there, over restarts too."""
    clock = SteppedClock()
    lives: dict[str, Any] = {
        "max_service_token_life": "2h",
        "max_download_link_life": "1h",
        "max_upload_link_life": "1h",
    }
    async with site(tmp_path, clock=clock, **lives) as here:
        made = await Backend(here).link(expires_in=3600)
        await revoke(Backend(here), jti=made["jti"])
    async with site(tmp_path, clock=clock, **lives) as here:
        assert (await here.post(1, path_of(made["url"]))).slug == "bad-link"
        clock.skip(7200)
        await here.service.janitor.sweep()
        assert count(here, "revocations") == 1
        clock.skip(121)
        await here.service.janitor.sweep()
        assert count(here, "revocations") == 0


@pytest.mark.parametrize(
    "body",
    [
        {}, {"jti": "a" * 16, "owner": "u1"}, {"jti": "short"}, {"owner": ""}, {"file_id": "f_x"},
        {"issued_before": 5}, {"jti": "a" * 16, "issued_before": 5}, {"owner": "u1", "issued_before": -1},
        {"owner": "u1", "issued_before": 2**60}, b'{"owner":"u1","issued_before":NaN}',
        b'{"owner":"u1","issued_before":1e999}',
    ],
)  # fmt: skip
async def test_a_revocation_names_one_thing(here: Site, body: Any) -> None:
    """Anything else is refused and revokes nothing."""
    answer = await Backend(here).call("POST", "/revocations", body)
    assert (answer.status, answer.slug) == (400, "bad-request")
    assert count(here, "revocations") == 0
