"""Events reach their receivers: signed, in order per file, at least once, whatever fails on the way (V1 to V3)."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import WebhookVerificationError

from service import delivery, duties
from service.endpoints import Target
from service.metadata.base import MetadataUnavailable
from service.outward import RESULTS, Unsent
from service.webhooks import Webhooks
from tests.web.harness import TUS, Site, site
from tests.web.receiver import LOOPBACK, Message, Receiver, hangs, new_secret, now_clock, receiver
from tests.web.sweeps import logged
from tests.web.traces import breaks, events, forward
from tests.web.under_way import SteppedClock, until

HOUR = 3600.0
#: as in production; these tests look all the time
LOOK_SECONDS = delivery.LOOK_SECONDS
DAY = 24 * HOUR


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(duties, "LOOK_SECONDS", 0.02)


def telling(folder: Path, *receivers: Receiver | dict[str, Any], **changes: Any) -> Any:
    """A service with these endpoints, on a clock that begins now."""
    tables = [each.endpoint() if isinstance(each, Receiver) else each for each in receivers]
    values: dict[str, Any] = {"clock": now_clock(), "webhook_networks": LOOPBACK, "endpoints": tables}
    return site(folder, **(values | changes))


def skip(here: Site, seconds: float) -> None:
    assert isinstance(here.clock, SteppedClock)
    here.clock.skip(seconds)


def tries(here: Site, endpoint: str, result: str) -> float:
    labels = {"endpoint": endpoint, "result": result}
    return here.service.metrics.registry.get_sample_value("attachd_webhook_deliveries_total", labels) or 0.0


async def tried(here: Site, endpoint: str, result: str, count: int) -> None:
    """So many tries came to that."""
    await until(lambda: tries(here, endpoint, result) >= count)


async def looked(here: Site) -> None:
    """The lines of this process have looked for something to send, and found what there is."""
    looks = 0
    outbox: Any = here.service.metadata.outbox
    real = outbox.outlook

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal looks
        found = await real(*args, **options)
        looks += 1
        return found

    outbox.outlook = counted
    await until(lambda: looks > 3)
    outbox.outlook = real


async def lived(here: Site) -> str:
    """A file that was made and deleted; its id."""
    path = await here.create(5)
    assert (await here.patch(path, 0, b"hello")).status == 204
    file_id = await here.file_id(path)
    assert (await here.ask("DELETE", path, TUS)).status == 204
    return file_id


LIFE = ["upload.created", "file.ready", "file.deleted", "upload.terminated"]


# --- what comes ---------------------------------------------------------------------------------


async def test_V1_an_upload_is_told_of_from_its_creation_to_its_end(tmp_path: Path) -> None:
    """V1: Each change is told once, under the id of the outbox, in the order in which it happened."""
    async with receiver() as chat, telling(tmp_path, chat) as here:
        await lived(here)
        await chat.until(4)
        assert [each.type for each in chat.got] == LIFE
        assert [(each.type, each.data) for each in chat.got] == events(here)
        assert len({each.id for each in chat.got}) == 4


async def test_the_payload_is_that_of_the_contract(tmp_path: Path) -> None:
    """`file.ready` has the members that receivers are promised, and no others."""
    async with receiver() as chat, telling(tmp_path, chat.endpoint(types=["file.*"])) as here:
        file_id = await here.upload(b"\x89PNG\r\n\x1a\n", owner="u42", ref="chat:7/msg:99", meta={"album": "x"})
        await chat.until(1)
        (message,) = chat.got
        assert message.json.keys() == {"type", "timestamp", "id", "data"}
        assert message.json["id"] == message.id
        assert message.json["timestamp"].endswith("Z")
        data = message.data
        assert data.pop("upload_id").startswith("u_")
        assert len(data.pop("root")) == 32
        assert data == {
            "file_id": file_id, "size": 8, "type": None, "sniffed_type": "image/png", "filename": None, "owner": "u42",
            "sha256": None, "refs": ["chat:7/msg:99"], "meta": {"album": "x"},
            "verdict": "unscanned",
        }  # fmt: skip


async def test_V3_a_foreign_verifier_accepts_what_came_and_nothing_else(tmp_path: Path) -> None:
    """V3: The stock library takes each message; an altered body, another secret or an old message it refuses."""
    async with receiver() as chat, telling(tmp_path, chat) as here:
        await here.upload(b"hello")
        await chat.until(2)
        for message in chat.got:
            assert message.verified(chat.secret) == message.json
            for other in (
                Message(message.headers, message.body.replace(b'"size"', b'"sizf"').replace(b"null", b"true", 1)),
                Message(message.headers | {"webhook-id": "evt_other"}, message.body),
                Message(message.headers | {"webhook-timestamp": str(int(time.time()) - 3600)}, message.body),
            ):
                with pytest.raises(WebhookVerificationError):
                    other.verified(chat.secret)
            with pytest.raises(WebhookVerificationError):
                message.verified(new_secret())


async def test_V3_while_a_secret_is_replaced_the_old_and_the_new_verify(tmp_path: Path) -> None:
    """V3: With two secrets each message has a signature of both."""
    async with receiver() as chat:
        new = new_secret()
        async with telling(tmp_path, chat.endpoint(secrets=[new, chat.secret])) as here:
            await here.upload(b"hello")
            await chat.until(2)
        for message in chat.got:
            assert message.verified(new) == message.verified(chat.secret)
            assert len(message.headers["webhook-signature"].split()) == 2


async def test_no_token_is_in_a_message(tmp_path: Path) -> None:
    """Neither the link's token, nor its id, nor any address that grants something is sent to anybody."""
    async with receiver() as chat, telling(tmp_path, chat) as here:
        jti = "canary-jti-0123456789"
        token = here.token(jti=jti)
        path = await here.create(5, f"/files?sig={token}")
        await here.patch(path, 0, b"hello")
        await chat.until(2)
        sent = "".join(str(each.headers) + each.body.decode() for each in chat.messages)
        for canary in (jti, *token.split("."), "sig="):
            assert canary not in sent


async def test_only_types_that_are_asked_for_come(tmp_path: Path) -> None:
    """An endpoint with `types` gets these, another all."""
    async with receiver() as chat, receiver() as audit:
        async with telling(
            tmp_path, chat.endpoint(types=["file.ready", "upload.terminated"]), audit.endpoint("audit")
        ) as here:
            await lived(here)
            await audit.until(4)
            await chat.until(2)
        assert [each.type for each in chat.messages] == ["file.ready", "upload.terminated"]


async def test_what_another_process_commits_is_told_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process delivers; it looks for events of another within a second, and hears of its own at once."""
    assert LOOK_SECONDS < 1
    async with receiver() as chat, telling(tmp_path, chat) as one:
        await one.upload(b"first")
        await chat.until(2)
        async with telling(tmp_path, chat, clock=one.clock, alone=False) as other:
            await other.upload(b"other")
            await chat.until(4)
            monkeypatch.setattr(delivery, "LOOK_SECONDS", HOUR)
            await one.upload(b"own")
            await chat.until(6)
        assert len(chat.messages) == 6


# --- what fails ---------------------------------------------------------------------------------


async def test_V1_a_receiver_that_is_down_for_an_hour_gets_everything(tmp_path: Path) -> None:
    """V1: What happened while nobody listened comes when somebody does, in order per file, and nothing twice."""
    async with receiver(reply=lambda _: 503) as chat, telling(tmp_path, chat) as here:
        files = []
        for _ in range(12):
            files += [await lived(here) for _ in range(2)]
            await chat.until_told_of(len(files))
            skip(here, HOUR / 12)
        assert chat.got == []
        chat.reply = lambda _: 204
        skip(here, 3 * HOUR)
        await chat.until(24 * 4)
        for file_id in files:
            assert [each.type for each in chat.got if each.data["file_id"] == file_id] == LIFE
        assert len({each.id for each in chat.got}) == len(chat.got) == 24 * 4


async def test_V1_the_schedule_survives_a_restart(tmp_path: Path, log: io.StringIO) -> None:
    """V1: After a stop an event is due when it was, with the tries it had; none is made early, none is lost."""
    clock = now_clock()
    async with receiver(reply=lambda _: 500) as chat:
        async with telling(tmp_path, chat, clock=clock) as here:
            await here.create(5)
            # recorded, not only tried
            await until(lambda: len(logged(log, "event_postponed")) == 1)
            clock.skip(6)
            await until(lambda: len(logged(log, "event_postponed")) == 2)
        async with telling(tmp_path, chat, clock=clock) as here:
            clock.skip(40)
            await looked(here)
            assert len(chat.messages) == 2
            clock.skip(30)
            await until(lambda: len(chat.messages) == 3)
            assert len({each.id for each in chat.messages}) == 1


async def test_V1_ten_tries_then_it_stays_recorded(tmp_path: Path, log: io.StringIO) -> None:
    """V1: Over three days an event is tried ten times; then the file's next has its turn, and the log says so."""
    async with (
        receiver(reply=lambda message: 500 if message.type == "upload.created" else 204) as chat,
        telling(tmp_path, chat, event_retention="30d") as here,
    ):
        await here.upload(b"hello")
        for number, gap in enumerate((0.0, *delivery.GAPS), 1):
            skip(here, gap * 1.1)
            await tried(here, "chat", "error", number)
        await chat.until(1)
        assert [each.type for each in chat.messages] == ["upload.created"] * 10 + ["file.ready"]
        (record,) = logged(log, "event_given_up")
        assert (record["endpoint"], record["tries"], record["result"]) == ("chat", 10, "error")


async def test_V2_a_receiver_that_fails_after_it_took_the_event_gets_it_again_under_its_id(tmp_path: Path) -> None:
    """V2: Each id comes until it is answered; dropping ids that it knows, a receiver has each change once, no gap."""
    seen: set[str] = set()

    def processes_then_fails(message: Message) -> int:
        known = message.id in seen
        seen.add(message.id)
        return 204 if known else 500

    async with receiver(reply=processes_then_fails) as chat, telling(tmp_path, chat) as here:
        file_id = await lived(here)
        for number in range(1, 5):
            await tried(here, "chat", "error", number)
            assert len(chat.messages) == 2 * number - 1
            skip(here, 6)
            await chat.until(number)
        assert [each.id for each in chat.messages[::2]] == [each.id for each in chat.messages[1::2]]
        assert chat.types(file_id) == LIFE


async def test_V2_an_event_that_waits_holds_back_its_own_file_only(tmp_path: Path) -> None:
    """V2: While one file's creation cannot be told nothing of it is; others come to their end."""
    stuck: list[str] = []
    async with (
        receiver(reply=lambda message: 500 if message.data["file_id"] in stuck else 204) as chat,
        telling(tmp_path, chat) as here,
    ):
        first = "f_" + "a" * 26
        stuck.append(first)
        await here.upload(b"stuck", file_id=first)
        others = [await lived(here) for _ in range(3)]
        await chat.until(12)
        assert {each.data["file_id"] for each in chat.got} == set(others)
        assert [each.type for each in chat.messages if each.data["file_id"] == first] == ["upload.created"]
        stuck.clear()
        skip(here, 6)
        await chat.until(14)
        assert chat.types(first) == ["upload.created", "file.ready"]


@pytest.mark.alone
async def test_V3_a_hanging_receiver_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """V3: While one endpoint never answers, another gets 99 of 100 events within a second of their commit."""
    monkeypatch.setattr(delivery, "TIMEOUT_SECONDS", 0.3)
    arrived: dict[str, float] = {}

    def note(message: Message) -> int:
        arrived[message.data["upload_id"]] = time.monotonic()
        return 204

    async with (
        receiver(reply=hangs) as dead,
        receiver(reply=note) as chat,
        telling(tmp_path, dead.endpoint("dead"), chat) as here,
    ):
        took = []
        for _ in range(100):
            path = await here.create(5)
            made = time.monotonic()
            await until(partial(arrived.__contains__, here.upload_id(path)))
            took.append(arrived[here.upload_id(path)] - made)
        half, most = sorted(took)[49] * 1000, sorted(took)[98] * 1000
        print(f"\nbeside a hanging endpoint: p50 {half:.1f} ms, p99 {most:.1f} ms")
        assert most < 1000
        await tried(here, "dead", "timeout", 8)
        assert dead.got == []


async def test_at_most_eight_are_under_way_to_one_endpoint(tmp_path: Path) -> None:
    """However much waits, a receiver has no more requests at once than that."""
    now = most = 0
    go = asyncio.Event()

    async def counted() -> int:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await go.wait()
        now -= 1
        return 204

    async with receiver(reply=lambda _: counted()) as chat, telling(tmp_path, chat) as here:
        for _ in range(20):
            await here.create(5)
        await until(lambda: now == 8)
        go.set()
        await chat.until(20)
        assert most == 8


async def test_410_disables_until_the_url_is_another(tmp_path: Path, log: io.StringIO) -> None:
    """410: one that says it is gone is left alone, over restarts too; with another url it gets what it missed."""
    clock = now_clock()
    async with receiver(reply=lambda _: 410) as gone, receiver() as chat:
        async with telling(tmp_path, gone, clock=clock) as here:
            first = await lived(here)
            await until(lambda: logged(log, "endpoint_disabled") != [])
            second = await lived(here)
            skip(here, DAY)
            await looked(here)
            assert len(gone.messages) == 1
        async with telling(tmp_path, gone, clock=clock) as here:
            await looked(here)
            assert len(gone.messages) == 1
        async with telling(tmp_path, chat, clock=clock):
            await chat.until(8)
            assert chat.types(first) == chat.types(second) == LIFE


async def test_V3_redirects_are_not_followed(tmp_path: Path) -> None:
    """V3: A redirect is a failure; where it points to hears nothing."""
    async with receiver() as elsewhere, receiver() as chat, telling(tmp_path, chat) as here:
        chat.reply = lambda _: web.Response(status=307, headers={"Location": elsewhere.url})
        await here.create(5)
        await tried(here, "chat", "redirected", 1)
        assert elsewhere.messages == []


@pytest.mark.parametrize("host", ["localhost", "0x7f.1"])
async def test_V3_private_addresses_are_refused(tmp_path: Path, host: str) -> None:
    """V3: Without leave nothing is sent to this machine, by whatever name."""
    async with receiver() as chat:
        port = chat.url.rsplit(":", 1)[1]
        table = chat.endpoint(url=f"http://{host}:{port}")
        async with telling(tmp_path, table, webhook_networks="10.0.0.0/8") as here:
            await here.create(5)
            await tried(here, "chat", "forbidden", 1)
            assert chat.messages == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_V3_private_addresses_are_refused_as_addresses(host: str) -> None:
    """V3: Nor is anything sent to an address that is in the URL, whoever put it there."""
    async with receiver() as chat:
        port = chat.url.rsplit(":", 1)[1]
        sender = Webhooks(now_clock(), agent="attachd", networks=(), connections=1)
        with pytest.raises(Unsent) as refused:
            await sender.post(Target(f"http://{host}:{port}", (chat.secret,)), "evt_x", "{}", seconds=5)
        await sender.close()
        assert refused.value.result == "forbidden"
        assert chat.messages == []


async def test_a_name_is_connected_to_where_it_was_looked_at(tmp_path: Path) -> None:
    """A name that the settings allow by its network is resolved once, and that address gets the message."""
    async with receiver() as chat:
        table = chat.endpoint(url=chat.url.replace("127.0.0.1", "localhost"))
        async with telling(tmp_path, table) as here:
            await here.create(5)
            await tried(here, "chat", "ok", 1)
            assert len(chat.got) == 1


async def test_V3_a_name_server_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """V3: While one endpoint's name cannot be looked up another gets its events, and other threads are free."""
    monkeypatch.setattr(delivery, "TIMEOUT_SECONDS", 0.1)
    answered, look = threading.Event(), socket.getaddrinfo

    def slow(host: str, *args: Any, **options: Any) -> Any:
        if host == "slow.example":
            answered.wait(20)
            raise socket.gaierror("gave up")
        return look(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with receiver() as chat:
        named = chat.endpoint(url=chat.url.replace("127.0.0.1", "localhost"))
        dead = chat.endpoint("dead", url="http://slow.example/")
        async with telling(tmp_path, dead, named) as here:
            for _ in range(20):
                await here.create(5)
            await chat.until(20)
            await tried(here, "dead", "timeout", 8)
            async with asyncio.timeout(10):
                await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.001) for _ in range(20)))
            answered.set()


async def test_nobody_listens(tmp_path: Path) -> None:
    """A refused connection, and a name that does not exist, are failures like others."""
    async with receiver() as chat:
        table = chat.endpoint()
    async with telling(tmp_path, table, chat.endpoint("named", url="http://attachd.invalid/")) as here:
        await here.create(5)
        for endpoint in ("chat", "named"):
            await tried(here, endpoint, "unreachable", 1)


async def test_a_database_that_is_away_sends_nothing_twice(tmp_path: Path, log: io.StringIO) -> None:
    """What was answered and cannot be recorded is not sent again while the process lives; then all goes on."""
    async with receiver() as chat, telling(tmp_path, chat) as here:
        outbox = here.service.metadata.outbox
        settle = outbox.settle
        outbox.settle = breaks(MetadataUnavailable("full"))
        file_id = await lived(here)
        await until(lambda: len(logged(log, "delivery_unrecorded")) > 3)
        assert [each.type for each in chat.messages] == ["upload.created"]
        outbox.settle = settle
        await chat.until(4)
        assert [each.type for each in chat.messages] == chat.types(file_id) == LIFE


# --- who delivers -------------------------------------------------------------------------------


async def test_another_process_goes_on_when_one_stops(tmp_path: Path) -> None:
    """V1: At the end of the process that delivers another takes over, and what was under way comes again, or once."""
    clock = now_clock()
    async with receiver(reply=hangs) as chat, AsyncExitStack() as first:
        one = await first.enter_async_context(telling(tmp_path, chat, clock=clock))
        path = await one.create(5)
        await until(lambda: len(chat.messages) == 1)
        async with telling(tmp_path, chat, clock=clock, alone=False) as other:
            chat.reply = lambda _: 204
            await first.aclose()
            await chat.until(1)
            assert (await other.patch(path, 0, b"hello")).status == 204
            await chat.until(2)
            assert chat.types() == ["upload.created", "file.ready"]
            assert len({each.id for each in chat.messages}) == 2


async def test_without_endpoints_nothing_runs(tmp_path: Path) -> None:
    """A service that tells nobody asks the database for nothing, and has no series of an endpoint."""
    async with site(tmp_path) as here:
        await here.upload(b"hello")
        assert b"attachd_outbox_pending{" not in here.service.metrics.render()
        assert all(task.get_coro().__qualname__ != "Delivery.run" for task in asyncio.all_tasks())  # type: ignore[union-attr]


async def test_the_backlog_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators see how much waits for each endpoint and for how long; a try is counted by what came of it."""
    monkeypatch.setattr(delivery, "_COUNT_SECONDS", 0.02)
    async with receiver(reply=lambda _: 500) as chat, telling(tmp_path, chat) as here:
        assert all(f'endpoint="chat",result="{result}"' in here.service.metrics.render().decode() for result in RESULTS)

        def gauge(name: str) -> Any:
            return here.service.metrics.registry.get_sample_value(f"attachd_outbox_{name}", {"endpoint": "chat"})

        def failed() -> float:
            sample = here.service.metrics.registry.get_sample_value
            labels = ({"endpoint": "chat", "result": result} for result in RESULTS if result != "ok")
            return sum(sample("attachd_webhook_deliveries_total", each) or 0 for each in labels)

        await here.upload(b"hello")
        await until(lambda: gauge("pending") == 2 and failed() == 1)
        skip(here, 2)
        await until(lambda: (gauge("oldest_seconds") or 0) >= 2)
        chat.reply = lambda _: 204
        skip(here, 5)
        await chat.until(2)
        await until(lambda: (gauge("pending"), gauge("oldest_seconds")) == (0, 0))


async def test_events_are_forgotten_by_the_janitor(tmp_path: Path) -> None:
    """After the retention what was delivered is gone; what still waits stays."""
    async with (
        receiver(reply=lambda message: 204 if message.type == "upload.created" else 500) as chat,
        telling(tmp_path, chat, event_retention="3d") as here,
    ):
        await here.upload(b"hello")
        await tried(here, "chat", "error", 1)
        forward(here, 3 * DAY + 1)
        await here.service.janitor.sweep()
        assert [kind for kind, _ in events(here)] == ["file.ready"]


async def test_nothing_secret_is_logged(tmp_path: Path, log: io.StringIO) -> None:
    """Whatever fails, no record has a secret, or the query of an endpoint's url."""
    async with receiver(reply=lambda _: 500) as chat:
        async with telling(tmp_path, chat.endpoint(url=chat.url + "?key=canary-key")) as here:
            await here.create(5)
            await until(lambda: logged(log, "event_postponed") != [])
        assert chat.secret.removeprefix("whsec_") not in log.getvalue()
        assert "canary-key" not in log.getvalue()
        assert json.dumps(chat.secret) not in log.getvalue()
