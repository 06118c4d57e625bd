"""`attachd events`: what is kept is listed, and goes out again under its id."""

from __future__ import annotations

import asyncio
import io
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service import delivery, duties, logs
from service.commands.events import _words
from service.commands.events import events as command
from service.metadata.outbox import Which
from tests.web.harness import Site, site
from tests.web.receiver import LOOPBACK, Receiver, receiver


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(duties, "LOOK_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def _logs_apart(monkeypatch: pytest.MonkeyPatch, log: io.StringIO) -> None:
    """What the service logs meanwhile is none of the command's output, and stays set up as it is."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)


def telling(folder: Path, chat: Receiver) -> AbstractAsyncContextManager[Site]:
    """A service with that endpoint."""
    return site(folder, webhook_networks=LOOPBACK, endpoints=[chat.endpoint()])


async def called(here: Site, *arguments: str) -> Result:
    """The command, with the settings of the service, as a process beside it."""
    return await asyncio.to_thread(CliRunner().invoke, command, list(arguments), obj=here.service.settings)


async def stands(here: Site, *words: str) -> None:
    """Returns once these, and no others, are missing somewhere."""
    async with asyncio.timeout(30):
        while True:
            listed = await here.service.metadata.outbox.listed(Which(), limit=99)
            if [_words(standing) for each in listed for standing in each.missing] == list(words):
                return
            await asyncio.sleep(0.01)


async def disabled(here: Site) -> None:
    """Returns once an endpoint is."""
    async with asyncio.timeout(30):
        while not await here.service.metadata.outbox.disabled():
            await asyncio.sleep(0.01)


async def ids(here: Site) -> list[str]:
    return [each.event.id for each in await here.service.metadata.outbox.listed(Which(), limit=99)]


async def test_list_shows_what_is_missing(tmp_path: Path) -> None:
    """A line for each event; an endpoint that has not got it stands there with its tries and what came of the last."""
    async with receiver() as good, receiver(reply=lambda _: 500) as bad:
        tables = [good.endpoint("good"), bad.endpoint("bad")]
        async with site(tmp_path, webhook_networks=LOOPBACK, endpoints=tables) as here:
            file_id = await here.upload(b"hello")
            await good.until(2)
            await stands(here, "bad: pending (1 tries, error)", "bad: pending (0 tries)")
            first, second = await ids(here)
            result = await called(here, "list")
            assert result.exit_code == 0, result.output
            lines = result.output.splitlines()
            assert lines[0].startswith(f"{first}  20")
            assert lines[0].endswith(f"upload.created     {file_id}  bad: pending (1 tries, error)")
            assert lines[1].endswith(f"file.ready         {file_id}  bad: pending (0 tries)")
            assert (await called(here, "list", "--id", second)).output.splitlines() == lines[1:]
            assert (await called(here, "list", "--until", "1h")).output == ""
            assert (await called(here, "list", "--since", "1h", "--missing")).output.splitlines() == lines


async def test_replay_sends_the_same_ids(tmp_path: Path) -> None:
    """Everything since an instant, or one event, goes out again in its order; a receiver can drop what it knows."""
    async with receiver() as chat, telling(tmp_path, chat) as here:
        for _ in range(3):
            await here.upload(b"hello")
        await chat.until(6)
        sent = [each.id for each in chat.got]
        result = await called(here, "replay", "--since", "1h")
        assert result.output == "chat: 6 of 6 events will be sent again\n"
        await chat.until(12)
        again = chat.got[6:]
        assert sorted(each.id for each in again) == sorted(sent)
        for file_id in {each.data["file_id"] for each in again}:
            types = [each.type for each in again if each.data["file_id"] == file_id]
            assert types == ["upload.created", "file.ready"]
        await called(here, "replay", "--id", sent[3])
        await chat.until(13)
        assert (chat.got[-1].id, chat.got[-1].body) == (chat.got[3].id, chat.got[3].body)


async def test_replay_to_one_endpoint(tmp_path: Path) -> None:
    """With `--endpoint` only that one gets them, and only of the types that it wants."""
    async with receiver() as chat, receiver() as audit:
        tables = [chat.endpoint(), audit.endpoint("audit", types=["file.*"])]
        async with site(tmp_path, webhook_networks=LOOPBACK, endpoints=tables) as here:
            await here.upload(b"hello")
            await chat.until(2)
            await audit.until(1)
            result = await called(here, "replay", "--since", "1h", "--endpoint", "audit")
            assert result.output == "audit: 1 of 2 events will be sent again\n"
            await audit.until(2)
            assert [each.type for each in audit.got] == ["file.ready"] * 2
            assert len(chat.got) == 2


async def test_V1_what_was_given_up_can_be_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """V1: After the last try an event is listed as failed, and a replay delivers it."""
    monkeypatch.setattr(delivery, "GAPS", ())
    async with receiver(reply=lambda _: 500) as chat, telling(tmp_path, chat) as here:
        await here.create(5)
        await stands(here, "chat: failed (1 tries, error)")
        assert "chat: failed (1 tries, error)" in (await called(here, "list", "--missing")).output
        chat.reply = lambda _: 204
        await called(here, "replay", "--since", "1h")
        await chat.until(1)
        await stands(here)
        assert (await called(here, "list", "--missing")).output == ""


async def test_enable(tmp_path: Path) -> None:
    """An endpoint that said 410 gets what it missed once it is enabled; one that was not disabled is an error."""
    async with receiver(reply=lambda _: 410) as chat, telling(tmp_path, chat) as here:
        assert (await called(here, "enable", "chat")).exit_code == 1
        await here.upload(b"hello")
        await disabled(here)
        chat.reply = lambda _: 204
        assert (await called(here, "enable", "chat")).output == "chat: enabled\n"
        await chat.until(2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["replay"], "--id, or --since"),
        (["replay", "--until", "1h"], "--id, or --since"),
        (["replay", "--id", "evt_x", "--since", "1h"], "--id, or --since"),
        (["replay", "--since", "yesterday"], "2026-11-23T10:00:00Z"),
        (["replay", "--since", "1h", "--endpoint", "none"], "no such endpoint"),
    ],
)
async def test_wrong_arguments_are_named(tmp_path: Path, arguments: list[str], says: str) -> None:
    """A mistake is one line that says what would be right, and sends nothing."""
    async with receiver() as chat, telling(tmp_path, chat) as here:
        result = await called(here, *arguments)
        assert result.exit_code == 2
        assert says in result.output


async def test_an_event_that_is_not_there(tmp_path: Path) -> None:
    """Replaying what is not kept any more ends with 1."""
    async with receiver() as chat, telling(tmp_path, chat) as here:
        result = await called(here, "replay", "--id", "evt_none")
        assert (result.exit_code, result.output) == (1, "chat: 0 of 0 events will be sent again\n")
