"""Links that the service signs for backends, and requests that are sent again."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from service.keyfile import KeyFile
from service.keyset import Key, KeySet
from service.links import verify_download, verify_upload
from service.model import FileId
from service.once import Once
from service.web.json_body import MOST_BYTES
from tests.web.backend import MIB, Backend, other_backend
from tests.web.harness import Answer, FakeClock, Site, path_of, site
from tests.web.traces import count, forward, instant, traces
from tests.web.under_way import begin_patch

DAY = 86400
TERMS = {
    "max": MIB, "size": 5, "types": ["image/*", "text/plain"], "owner": "u1", "expires_in": 60, "ref": "chat:7/msg:9",
    "hold": 10, "ttl": 20, "meta": {"a": [1, "ü"]},
}  # fmt: skip


def token_in(url: str) -> str:
    return url.partition("sig=")[2]


async def keys_of(here: Site) -> KeySet:
    return await asyncio.to_thread(KeyFile(here.service.settings.keys_path).current)


async def test_a_link_has_the_terms_that_were_asked_for(here: Site) -> None:
    """Each term is a claim of the link, and both links are for the same file, which is not there yet."""
    made = await Backend(here).link(**TERMS)
    common: dict[str, Any] = {"now": time.time(), "audience": "http://files.test", "max_life_seconds": 7 * DAY}
    keys = await keys_of(here)
    terms = verify_upload(token_in(made["url"]), keys, **common).terms
    assert (terms.max_size, terms.size, terms.types, terms.owner) == (MIB, 5, ("image/*", "text/plain"), "u1")
    assert (terms.ref, terms.hold_seconds, terms.ttl_seconds) == ("chat:7/msg:9", 10, 20)
    assert (terms.meta, terms.jti, terms.file_id) == ({"a": [1, "ü"]}, made["jti"], made["file_id"])
    assert terms.expires_at == made["expires_at"] == pytest.approx(time.time() + 60, abs=5)
    fetched = verify_download(token_in(made["download_url"]), keys, file_id=FileId(made["file_id"]), **common)
    assert fetched.owner == "u1"
    assert (await Backend(here).fetch(made)).slug == "not-ready"


async def test_a_link_of_many_uses_fixes_no_file(here: Site) -> None:
    """Each of its uploads is a file of its own, so there is none to name beforehand."""
    made = await Backend(here).link(uses=3)
    assert (made["file_id"], made["download_url"]) == (None, None)
    answers = [await here.post(5, path_of(made["url"])) for _ in range(4)]
    assert [answer.status for answer in answers] == [201, 201, 201, 403]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "max: "), ({"max": -1}, "max: "), ({"max": "5"}, "max: "), ({"max": True}, "max: "),
        ({"max": 2**40}, "max: the service takes at most"), ({"max": 5, "size": 6}, "size: must not be more than max"),
        ({"max": 5, "expires_in": 2 * DAY}, "expires_in: a link lives for at most 86400 s"),
        ({"max": 5, "owner": "a b"}, "owner: "), ({"max": 5, "types": ["image"]}, "types: "),
        ({"max": 5, "types": []}, "types: "), ({"max": 5, "ref": "a\nb"}, "ref: "), ({"max": 5, "uses": 0}, "uses: "),
        ({"max": 5, "meta": {"a": "x" * 1024}}, "meta: "), ({"max": 5, "hold": 0}, "hold: "),
        ({"max": 5, "expires": 60}, "expires: "), ([], "object"), (b"{", "JSON"), (b"", "JSON"),
        (b'{"max":5,"a":\xff}', ""),
    ],
)  # fmt: skip
async def test_a_wrong_term_is_named(here: Site, body: Any, words: str) -> None:
    """The refusal says which field and what it must be, and nothing is kept."""
    before = traces(here)
    answer = await Backend(here).call("POST", "/upload-links", body, Idempotency_Key="k")
    assert (answer.status, answer.slug) == (400, "bad-request")
    assert words in answer.json["detail"]
    assert traces(here) == before


async def test_only_json_is_read(here: Site) -> None:
    """Another Content-Type is 415, and a body that is too long is refused before it comes (lesson A3)."""
    backend = Backend(here)
    answer = await backend.call("POST", "/upload-links", b'{"max":5}', Content_Type="text/plain")
    assert (answer.status, answer.slug) == (415, "wrong-content-type")
    line = await here.line()
    head = f"POST /v1/upload-links HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {backend.token()}\r\n"
    head += f"Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {MOST_BYTES + 1}\r\n\r\n"
    await line.send(head.encode())
    long = await line.answer()
    assert (long.status, long.slug, long.interim) == (413, "too-large", ())
    chunked = {"Authorization": f"Bearer {backend.token()}", "Content-Type": "application/json"}
    answer = await here.ask("POST", "/v1/upload-links", chunked, b" " * (MOST_BYTES + 1), chunked=True)
    assert answer.slug == "too-large"
    answer = await here.ask("POST", "/v1/upload-links", chunked, b'{"max":5}', chunked=True)
    assert answer.status == 201


async def test_backends_are_served_while_there_is_no_room_for_transfers(tmp_path: Path) -> None:
    """Links are signed and revoked however many uploads run; none of these requests is measured as a transfer."""
    async with site(tmp_path, max_transfers="1") as here:
        backend = Backend(here)
        path = await here.create(100)
        line = await begin_patch(here, path, 0, b"some", length=100)
        assert (await here.ask("PUT", here.link(), {}, b"more")).slug == "overloaded"
        made = await backend.link()
        assert (await backend.call("POST", "/revocations", {"jti": made["jti"]})).status == 201
        await line.send(bytes(96))
        assert (await line.answer()).status == 204
        metrics = here.service.metrics.render().decode()
        assert 'attachd_transfer_duration_seconds_count{direction="in",outcome="ok"} 1.0' in metrics


async def test_a_service_without_a_private_key_signs_nothing(here: Site) -> None:
    """403, of each kind of link; what such a key signed elsewhere is good all the same."""
    theirs = await other_backend(here)
    keys = KeyFile(here.service.settings.keys_path)

    def public_only(held: KeySet) -> KeySet:
        public = [Key.parse({k: v for k, v in key.jwk.items() if k != "d"}) for key in held.keys if key.alg == "EdDSA"]
        return KeySet((*(key for key in held.keys if key.alg != "EdDSA"), *public))

    await asyncio.to_thread(keys.update, public_only)
    await here.service.context.gate._reloaded()
    for path, body in (("/upload-links", {"max": 5}), ("/download-links", {"items": [{"file_id": "f_" + "a" * 26}]})):
        answer = await theirs.call("POST", path, body)
        assert (answer.status, answer.slug) == (403, "cannot-sign")
    assert (await theirs.get("/files"))["files"] == []


# --- download links ------------------------------------------------------------------------------


async def test_five_hundred_download_links_at_once(here: Site) -> None:
    """Each item has its answer in its place: a link that works, or why there is none; one more is refused."""
    backend = Backend(here)
    files = [(await backend.store(b"%d" % number))["file_id"] for number in range(3)]
    unfinished = (await backend.create())[1]["file_id"]
    await backend.call("DELETE", f"/files/{files[2]}")
    unknown = "f_" + "a" * 26
    items: list[dict[str, Any]] = [{"file_id": file_id} for file_id in (files[0], unknown, files[2], unfinished)]
    items += [{"file_id": files[1], "filename": f"ä {number}.txt", "disposition": "inline"} for number in range(496)]
    answer = await backend.call("POST", "/download-links", {"items": items})
    links = answer.json["items"]
    assert [link["file_id"] for link in links] == [item["file_id"] for item in items]
    assert [link["error"] and link["error"]["status"] for link in links] == [None, 404, 410, None] + [None] * 496
    assert (await here.ask("GET", path_of(links[0]["url"]))).body == b"0"
    last = await here.ask("GET", path_of(links[-1]["url"]))
    assert last.body == b"1"
    assert "%C3%A4%20495.txt" in last.headers["Content-Disposition"]
    assert (await here.ask("GET", path_of(links[3]["url"]))).slug == "not-ready"
    answer = await backend.call("POST", "/download-links", {"items": [*items, items[0]]})
    assert (answer.slug, "items" in answer.json["detail"]) == ("bad-request", True)


async def test_G5_a_download_link_lives_long_enough_for_its_file(here: Site) -> None:
    """An hour at least, else what 200 kB/s need, unless the request says so itself; never longer than is accepted."""
    backend = Backend(here)
    small = (await backend.store())["file_id"]
    large = (await backend.create(2**31, max=2**31))[1]["file_id"]
    items = [{"file_id": small}, {"file_id": large}, {"file_id": large, "expires_in": 5}]
    links = (await backend.call("POST", "/download-links", {"items": items})).json["items"]
    lives = [link["expires_at"] - time.time() for link in links]
    assert lives == [pytest.approx(seconds, abs=5) for seconds in (3600, 2**31 // 200_000, 5)]
    wanted = {"items": [{"file_id": small, "expires_in": 8 * DAY}]}
    assert (await backend.call("POST", "/download-links", wanted)).json["detail"].startswith("items.0.expires_in: ")


# --- Idempotency-Key -----------------------------------------------------------------------------


async def test_the_same_key_and_request_have_the_same_answer(later: Site) -> None:
    """To the byte, whatever the spelling of the JSON, for 24 h; then the key is free."""
    backend = Backend(later)
    first = await backend.call("POST", "/upload-links", b'{"max": 5, "owner": "u1"}', Idempotency_Key="k")
    forward(later, DAY / 2)
    again = await backend.call("POST", "/upload-links", b'{"owner":"u1",\n"max":5}', Idempotency_Key="k")
    assert (again.status, again.body) == (first.status, first.body) == (201, first.body)
    assert count(later, "requests") == 1
    forward(later, DAY / 2 + 1)
    fresh = await backend.call("POST", "/upload-links", {"max": 5, "owner": "u1"}, Idempotency_Key="k")
    assert fresh.json["jti"] != first.json["jti"]
    assert (await backend.call("POST", "/upload-links", {"max": 5, "owner": "u1"})).json["jti"] != first.json["jti"]


async def test_a_key_belongs_to_one_request(here: Site) -> None:
    """Another body, and another route, are 422; another issuer's key of that name is its own."""
    backend, theirs = Backend(here), await other_backend(here)
    assert (await backend.call("POST", "/upload-links", {"max": 5}, Idempotency_Key="k")).status == 201
    assert (await theirs.call("POST", "/upload-links", {"max": 6}, Idempotency_Key="k")).status == 201
    before = traces(here)
    for path, body in (("/upload-links", {"max": 6}), ("/revocations", {"owner": "u1"})):
        answer = await backend.call("POST", path, body, Idempotency_Key="k")
        assert (answer.status, answer.slug) == (422, "key-reused")
    for key in ("", "x" * 256, "\u00fc"):
        assert (await backend.call("POST", "/upload-links", {"max": 5}, Idempotency_Key=key)).slug == "bad-request"
    assert traces(here) == before


async def test_doubles_at_once_are_one_request_also_across_processes(tmp_path: Path) -> None:
    """A hundred equal requests to two services on one database come to one link."""
    async with site(tmp_path) as one, site(tmp_path, alone=False) as two:
        calls = [
            Backend((one, two)[number % 2]).call("POST", "/upload-links", {"max": 5}, Idempotency_Key="k")
            for number in range(100)
        ]
        answers = await asyncio.gather(*calls)
        assert {answer.status for answer in answers} == {201}
        assert len({answer.body for answer in answers}) == 1
        assert count(one, "requests") == 1


async def test_a_request_that_was_cut_off_by_a_stop_has_the_same_answer_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded and not carried out is carried out by the next service, for the request that is sent again."""
    plan = Once.plan
    plans = []

    async def lost(self: Once, *arguments: Any) -> Any:
        plans.append(await plan(self, *arguments))
        raise ConnectionResetError

    clock = FakeClock()
    async with site(tmp_path, clock=clock) as here:
        monkeypatch.setattr(Once, "plan", lost)
        await Backend(here).call("POST", "/revocations", {"owner": "u1"}, Idempotency_Key="k")
        monkeypatch.undo()
        assert count(here, "revocations") == 0
    clock.forward(60)
    async with site(tmp_path, clock=clock) as here:
        answer = await Backend(here).call("POST", "/revocations", {"owner": "u1"}, Idempotency_Key="k")
        assert answer.json["issued_before"] == plans[0]["at"] == instant(here) - 60
        assert count(here, "revocations") == 1


async def test_A6_the_database_keeps_no_token_of_a_repeated_request(here: Site) -> None:
    """What is recorded of it signs nothing."""
    backend = Backend(here)
    file_id = (await backend.store())["file_id"]

    async def repeat(path: str, body: object) -> Answer:
        return await backend.call("POST", path, body, Idempotency_Key=path)

    upload = (await repeat("/upload-links", {"max": 5})).json
    download = (await repeat("/download-links", {"items": [{"file_id": file_id}]})).json
    kept = json.dumps(traces(here))
    for url in (upload["url"], upload["download_url"], download["items"][0]["url"]):
        assert token_in(url) not in kept
        assert token_in(url).rpartition(".")[2] not in kept
