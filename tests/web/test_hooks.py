"""A backend that is asked may refuse an upload, or its file; one that does not answer makes no wrong one (C6, V3)."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from service import logs
from service.commands.gc import gc
from service.model import State
from tests.web.harness import OCTETS, TUS, Site, site
from tests.web.receiver import LOOPBACK, Message, Receiver, hangs, now_clock, receiver
from tests.web.sweeps import final, logged, state
from tests.web.traces import count, events
from tests.web.under_way import until

#: `filename a.txt`, `kind note`
METADATA = "filename YS50eHQ=,kind bm90ZQ=="


def asking(folder: Path, backend: Receiver, *names: str, hook: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A service that asks the backend at these moments, for as long as it may."""
    tables = {name: backend.hook(**(hook or {})) for name in names}
    return site(folder, **({"hooks": tables, "webhook_networks": LOOPBACK} | changes))


def refuses(detail: object = "no cats today", status: int = 403) -> Any:
    def reply(_: Message) -> web.Response:
        return web.json_response({"detail": detail}, status=status)

    return reply


def unavailable(answer: Any) -> bool:
    return (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "hook-unavailable", "5")


# --- before an upload is made -------------------------------------------------------------------


async def test_pre_create_sees_what_the_link_allows_and_the_client_says(tmp_path: Path) -> None:
    """The question has the link's terms and the client's words, a signature, and no token."""
    clock = now_clock()
    async with receiver() as backend, asking(tmp_path, backend, "pre_create", clock=clock) as here:
        token = here.token(
            jti="canary-jti-0123456789", owner="u42", ref="chat:7", meta={"n": 1}, max_size=100, types=["text/*"]
        )
        await here.create(5, f"/files?sig={token}", Upload_Metadata=METADATA + ",filetype dGV4dC9wbGFpbg==")
        (question,) = backend.messages
        assert question.verified(backend.secret) == question.json
        assert question.json.keys() == {"type", "timestamp", "id", "data"}
        assert (question.type, question.json["id"]) == ("hook.pre_create", question.id)
        assert question.data == {
            "protocol": "tus", "length": 5, "type": "text/plain", "filename": "a.txt",
            "metadata": {"filename": "a.txt", "kind": "note", "filetype": "text/plain"}, "concat": "none",
            "file_id": None, "max": 100, "size": None, "types": ["text/*"], "issuer": here.key.issuer, "owner": "u42",
            "refs": ["chat:7"], "meta": {"n": 1},
        }  # fmt: skip
        sent = str(question.headers) + question.body.decode()
        assert not any(canary in sent for canary in ("canary-jti", *token.split("."), "sig="))


async def test_C6_a_refused_creation_makes_nothing(tmp_path: Path) -> None:
    """C6: The client gets 403 with the backend's words; there is no upload, no event, and the link is as it was."""
    async with receiver(reply=refuses()) as backend, asking(tmp_path, backend, "pre_create") as here:
        link = here.link()
        answer = await here.post(5, link)
        assert (answer.status, answer.slug, answer.json["detail"]) == (403, "hook-refused", "no cats today")
        assert (count(here, "uploads"), count(here, "links"), events(here)) == (0, 0, [])
        backend.reply = lambda _: 204
        assert (await here.post(5, link)).status == 201


async def test_a_refused_body_is_not_read(tmp_path: Path) -> None:
    """With the first bytes in the creation the refusal comes before them, and so it does for a plain PUT."""
    async with receiver(reply=refuses()) as backend, asking(tmp_path, backend, "pre_create") as here:
        headers = TUS | {"Upload-Length": "5", "Content-Type": OCTETS}
        for method, fields in (("POST", headers), ("PUT", {})):
            answer = await here.ask(method, here.link(), fields, b"hello")
            assert (answer.status, answer.slug, answer.headers["Connection"]) == (403, "hook-refused", "close")
        assert here.leftovers() == []


async def test_a_creation_that_is_repeated_is_not_asked_about(tmp_path: Path) -> None:
    """What a link made before is found without the backend."""
    async with receiver() as backend, asking(tmp_path, backend, "pre_create") as here:
        link = here.link()
        await here.post(5, link)
        backend.reply = refuses()
        assert (await here.post(5, link)).status == 201
        assert len(backend.messages) == 1


async def test_what_is_refused_anyhow_is_not_asked_about(tmp_path: Path) -> None:
    """A backend hears only of uploads that would be made."""
    async with receiver() as backend, asking(tmp_path, backend, "pre_create") as here:
        assert (await here.post(5, here.link(max_size=4))).status == 413
        assert backend.messages == []


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_any_2xx_allows(tmp_path: Path, status: int) -> None:
    """Whatever its body says."""
    reply = lambda _: web.Response(status=status, body=None if status == 204 else b'{"allow":false}')  # noqa: E731
    async with receiver(reply=reply) as backend, asking(tmp_path, backend, "pre_create") as here:
        assert (await here.post(5)).status == 201


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"detail":"too \\u0007 loud\\n"}', "too  loud"),
        (b'{"detail":7}', "the upload was refused"),
        (b'{"detail":"\\n"}', "the upload was refused"),
        (b"no", "the upload was refused"),
        (b"", "the upload was refused"),
        (b'["detail"]', "the upload was refused"),
        (b"\xff", "the upload was refused"),
        (json.dumps({"detail": "x" * 300}).encode(), "x" * 200),
        (b'{"detail":"' + b"x" * 9000 + b'"}', "the upload was refused"),
    ],
)
@pytest.mark.parametrize("status", [400, 403, 409, 422])
async def test_a_refusal_is_told_in_the_backends_words(tmp_path: Path, body: bytes, shown: str, status: int) -> None:
    """Printable, and not too long; without any, in ours. Nothing but `detail` comes through."""
    reply = lambda _: web.Response(status=status, body=body)  # noqa: E731
    async with receiver(reply=reply) as backend, asking(tmp_path, backend, "pre_create") as here:
        answer = await here.post(5)
        assert (answer.status, answer.slug, answer.json["detail"]) == (403, "hook-refused", shown)


@pytest.mark.parametrize("status", [302, 401, 404, 405, 408, 429, 500, 502, 503])
async def test_V3_what_does_not_speak_of_the_upload_is_a_failure(tmp_path: Path, status: int) -> None:
    """V3: Closed, the client is told to come again and nothing is made; open, the upload is made."""
    async with receiver(reply=lambda _: status) as backend:
        async with asking(tmp_path / "closed", backend, "pre_create") as here:
            assert unavailable(await here.post(5))
            assert count(here, "uploads") == 0
        async with asking(tmp_path / "open", backend, "pre_create", hook={"on_failure": "open"}) as here:
            assert (await here.post(5)).status == 201


async def test_V3_a_hook_that_hangs_costs_its_budget(tmp_path: Path, log: io.StringIO) -> None:
    """V3: After the budget the answer is there; meanwhile uploads that are under way go on."""
    async with receiver() as backend, asking(tmp_path, backend, "pre_create") as here:
        path = await here.create(5)
        backend.reply = hangs
        began = time.monotonic()
        waiting = [asyncio.create_task(here.post(5)) for _ in range(30)]
        await until(lambda: bool(backend.messages))
        assert (await here.patch(path, 0, b"hello")).status == 204
        assert not all(request.done() for request in waiting)
        assert all(unavailable(answer) for answer in await asyncio.gather(*waiting))
        # three seconds; where one waited for the other it were a minute and a half
        assert time.monotonic() - began < 45
        assert {record["reason"] for record in logged(log, "hook_failed")} == {"timeout"}


async def test_V3_a_private_hook_is_not_asked_without_leave(tmp_path: Path) -> None:
    """V3: An address that is not public is a failure, and hears nothing."""
    async with receiver() as backend:
        backend.url = backend.url.replace("127.0.0.1", "localhost")
        async with asking(tmp_path, backend, "pre_create", webhook_networks="") as here:
            assert unavailable(await here.post(5))
            assert backend.messages == []


# --- before there is a file ---------------------------------------------------------------------


async def whole(here: Site, link: str | None = None) -> tuple[str, Any]:
    """An upload whose last byte was sent, and the answer to that."""
    path = await here.create(5, link, Upload_Metadata=METADATA)
    return path, await here.patch(path, 0, b"hello")


async def test_pre_finish_sees_the_file_that_is_to_be(tmp_path: Path) -> None:
    """The question has what was measured: size, kind, digests; nothing can be fetched before the answer."""
    clock = now_clock()
    async with receiver() as backend, asking(tmp_path, backend, "pre_finish", clock=clock) as here:
        seen: list[int] = []

        async def look(message: Message) -> int:
            seen.append((await here.ask("GET", here.download_link(message.data["file_id"]))).status)
            return 204

        backend.reply = look
        path, answer = await whole(here, here.link(owner="u42"))
        assert answer.status == 204
        (question,) = backend.messages
        assert question.verified(backend.secret) == question.json
        root = question.data["root"]
        assert question.data == {
            "protocol": "tus", "upload_id": here.upload_id(path), "file_id": await here.file_id(path), "size": 5,
            "type": None, "sniffed_type": None, "filename": "a.txt", "metadata": {"filename": "a.txt", "kind": "note"},
            "root": root, "sha256": None, "issuer": here.key.issuer, "owner": "u42", "refs": [], "meta": {},
        }  # fmt: skip
        assert seen == [503]
        assert await here.stored(path) == b"hello"


async def test_C6_a_refused_file_is_a_refusal_to_the_client(tmp_path: Path) -> None:
    """C6: The last PATCH gets 403, HEAD 410, the same link the same words; no file, no `file.ready`, no bytes."""
    async with receiver(reply=refuses()) as backend, asking(tmp_path, backend, "pre_finish") as here:
        link = here.link()
        path, answer = await whole(here, link)
        assert (answer.status, answer.slug, answer.json["detail"]) == (403, "hook-refused", "no cats today")
        assert (await here.head(path)).status == 410
        again = await here.post(5, link)
        assert (again.status, again.slug, again.json["detail"]) == (403, "hook-refused", "no cats today")
        assert [kind for kind, _ in events(here)] == ["upload.created", "upload.failed"]
        assert events(here)[-1][1]["reason"] == "hook-refused"
        assert here.leftovers() == []
        file_id = backend.messages[0].data["file_id"]
        assert (await here.ask("GET", here.download_link(file_id))).status in (404, 410)
        assert len(backend.messages) == 1


@pytest.mark.parametrize("reply", [hangs, lambda _: 500, lambda _: 404], ids=["hangs", "500", "404"])
async def test_C6_a_file_that_nobody_allowed_is_finishing(tmp_path: Path, reply: Any) -> None:
    """C6: The last PATCH gets 503, HEAD 423 and never offset = length; once the hook answers, the upload is ready."""
    budget = {"budget": "1s"}
    async with receiver(reply=reply) as backend, asking(tmp_path, backend, "pre_finish", hook=budget) as here:
        path, answer = await whole(here)
        assert unavailable(answer)
        for _ in range(2):
            assert (await here.head(path)).status == 423
        await here.service.tasks.drain()
        assert await state(here, path) is State.FINISHING
        assert [kind for kind, _ in events(here)] == ["upload.created"]
        backend.reply = lambda _: 204
        await here.service.janitor.sweep()
        assert (await here.head(path)).offset == 5
        assert await here.stored(path) == b"hello"
        assert [kind for kind, _ in events(here)] == ["upload.created", "file.ready"]


async def test_V3_while_a_hook_hangs_the_upload_is_held_no_longer_than_its_budget(tmp_path: Path) -> None:
    """V3: HEAD is 423 meanwhile and nobody waits; after the budget the lease is free, and the next is asked at once."""
    async with receiver(reply=hangs) as backend, asking(tmp_path, backend, "pre_finish") as here:
        path = await here.create(5)
        sending = asyncio.create_task(here.patch(path, 0, b"hello"))
        await until(lambda: len(backend.messages) == 1)
        assert (await here.head(path)).status == 423
        assert (await here.ask("GET", path)).json["state"] == "finishing"
        assert not sending.done()
        assert unavailable(await sending)
        assert not here.service.leases.held_here(here.upload_id(path))
        backend.reply = lambda _: 204
        await here.service.janitor.sweep()
        assert await here.stored(path) == b"hello"


async def test_a_sweep_by_hand_asks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`attachd gc` makes no file that the backend refuses."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    async with receiver(reply=lambda _: 500) as backend, asking(tmp_path, backend, "pre_finish") as here:
        path, _ = await whole(here)
        backend.reply = refuses()
        result = await asyncio.to_thread(CliRunner().invoke, gc, [], obj=here.service.settings)
        assert result.exit_code == 0, result.output
        assert (await here.head(path)).status == 410


async def test_C6_a_backend_that_died_is_asked_after_a_restart(tmp_path: Path) -> None:
    """C6: Nobody listens, the service restarts, the backend comes back: the refusal holds, and the link hears it."""
    async with receiver() as backend:
        tables = {"pre_finish": backend.hook()}
        dead = {"pre_finish": backend.hook(url="http://127.0.0.1:1/")}
        async with site(tmp_path, hooks=dead, webhook_networks=LOOPBACK) as here:
            path, answer = await whole(here)
            assert unavailable(answer)
        backend.reply = refuses()
        async with site(tmp_path, hooks=tables, webhook_networks=LOOPBACK) as here:
            await here.service.janitor.sweep()
            assert (await here.head(path)).status == 410
            assert [kind for kind, _ in events(here)] == ["upload.created", "upload.failed"]


async def test_a_creation_with_its_whole_body_is_refused_or_told_to_come_again(tmp_path: Path) -> None:
    """One request that makes an upload and fills it: 503 with its address while nobody answers, then 403."""
    async with receiver(reply=lambda _: 500) as backend, asking(tmp_path, backend, "pre_finish") as here:
        link = here.link()
        headers = TUS | {"Upload-Length": "5", "Content-Type": OCTETS}
        first = await here.ask("POST", link, headers, b"hello")
        assert unavailable(first)
        assert "/files/u_" in first.headers["Location"]
        assert unavailable(await here.post(5, link))
        backend.reply = refuses()
        again = await here.post(5, link)
        assert (again.status, again.slug) == (403, "hook-refused")


async def test_a_plain_put_is_told_to_come_again_or_refused(tmp_path: Path) -> None:
    """A PUT of a whole file: 503 while nobody answers, with the upload kept; the same PUT again hears the refusal."""
    async with receiver(reply=lambda _: 500) as backend, asking(tmp_path, backend, "pre_finish") as here:
        link = here.link()
        first = await here.ask("PUT", link, {}, b"hello")
        assert unavailable(first)
        backend.reply = refuses()
        again = await here.ask("PUT", link, {}, b"hello")
        assert (again.status, again.slug) == (403, "hook-refused")


async def test_open_lets_the_file_pass(tmp_path: Path, log: io.StringIO) -> None:
    """With `on_failure = "open"` a dead backend keeps nobody's file; the log says that it was not asked."""
    lenient = {"on_failure": "open"}
    async with receiver(reply=lambda _: 500) as backend, asking(tmp_path, backend, "pre_finish", hook=lenient) as here:
        path, answer = await whole(here)
        assert answer.status == 204
        assert await here.stored(path) == b"hello"
        (record,) = logged(log, "hook_failed")
        assert (record["hook"], record["on_failure"], record["came"]) == ("pre_finish", "open", "500")


async def test_of_joined_uploads_the_final_is_asked_about(tmp_path: Path) -> None:
    """Partials become no file, so nobody asks; a refused final is refused."""
    async with receiver(reply=refuses()) as backend, asking(tmp_path, backend, "pre_finish") as here:
        part = await here.create(5, Upload_Concat="partial")
        assert (await here.patch(part, 0, b"hello")).status == 204
        assert backend.messages == []
        answer = await here.post(None, here.link(), Upload_Concat=f"final;{part}")
        assert (answer.status, answer.slug) == (403, "hook-refused")
        backend.reply = lambda _: 204
        joined = await final(here, part)
        await here.service.tasks.drain()
        assert await here.stored(joined) == b"hello"


async def test_an_empty_file_is_asked_about(tmp_path: Path) -> None:
    """A creation of length 0 is all of a file."""
    async with receiver(reply=refuses()) as backend, asking(tmp_path, backend, "pre_finish") as here:
        answer = await here.post(0)
        assert (answer.status, answer.slug) == (403, "hook-refused")


async def test_what_the_service_refuses_itself_is_not_asked_about(tmp_path: Path) -> None:
    """Size, digest and type are checked first."""
    async with receiver() as backend, asking(tmp_path, backend, "pre_finish") as here:
        path = await here.create(5, here.link(types=["image/*"]))
        assert (await here.patch(path, 0, b"hello")).slug == "type-refused"
        assert backend.messages == []


async def test_answers_of_hooks_are_counted(tmp_path: Path) -> None:
    """By the hook's name and what came of it."""
    async with receiver(reply=lambda _: 204) as backend, asking(tmp_path, backend, "pre_create", "pre_finish") as here:
        await whole(here)
        backend.reply = refuses()
        await here.post(5)
        samples = here.service.metrics.registry.get_sample_value
        for name, result, expected in (("pre_create", "ok", 1), ("pre_create", "refused", 1), ("pre_finish", "ok", 1)):
            labels = {"endpoint": name, "result": result}
            assert samples("attachd_webhook_deliveries_total", labels) == expected
