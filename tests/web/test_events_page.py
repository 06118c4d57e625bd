"""docs/events.md: its snippets take what the service sends, and its lists are those of the code."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from service.cli import COMMANDS
from service.commands.events import events as command
from service.delivery import CONCURRENCY, GAPS, TIMEOUT_SECONDS
from service.endpoints import EVENT_TYPES, MOST_BUDGET_SECONDS, MOST_ENDPOINTS
from service.hooks import _NOT_ABOUT_IT
from service.outward import RESULTS
from service.settings import Settings, env_name, load
from tests.conftest import require
from tests.e2e.process import ROOT
from tests.web.harness import site
from tests.web.receiver import LOOPBACK, Message, Receiver, new_secret, now_clock, receiver

PAGE: Final = (ROOT / "docs" / "events.md").read_text("utf-8")
BLOCK: Final = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [text for found, _, text in BLOCK.findall(PAGE) if found == kind]


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[Receiver]:
    """One that got the events of a file, each signed with two secrets."""
    async with receiver() as chat:
        table = chat.endpoint(secrets=[new_secret(), chat.secret])
        async with site(tmp_path, clock=now_clock(), webhook_networks=LOOPBACK, endpoints=[table]) as here:
            await here.upload(b"hello")
            await chat.until(2)
        yield chat


async def test_the_python_snippet_takes_what_comes(told: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It handles each id once, and refuses what was altered."""
    monkeypatch.setenv("ATTACHD_WEBHOOK_SECRET", told.secret)
    module: dict[str, Any] = {}
    exec(blocks("python")[0], module)
    known: set[str] = set()
    handled: list[dict[str, Any]] = []
    for message in [*told.got, *told.got]:
        assert module["receive"](message.headers, message.body, known, handled.append) == 204
    assert handled == [message.json for message in told.got]
    assert module["receive"](told.got[0].headers, told.got[1].body, known, handled.append) == 400


def in_node(folder: Path, secret: str, message: Message) -> subprocess.CompletedProcess[str]:
    """What the snippet makes of a message."""
    (folder / "receive-events.mjs").write_text(blocks("js")[0], "utf-8")
    (folder / "driver.mjs").write_text(
        'import { verified } from "./receive-events.mjs";\n'
        "const [secret, headers, body] = JSON.parse(process.argv[2]);\n"
        "console.log(JSON.stringify(verified(secret, headers, Buffer.from(body))));\n"
    )
    sent = json.dumps([secret, message.headers, message.body.decode()])
    return subprocess.run(
        ["node", "driver.mjs", sent], cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )


async def test_the_node_snippet_takes_what_comes(told: Receiver, tmp_path: Path) -> None:
    """It returns the event, and throws for another body, another secret, or an old message."""
    require("node")
    first, second = told.got
    said = await asyncio.to_thread(in_node, tmp_path, told.secret, first)
    assert json.loads(said.stdout) == first.json, said.stderr
    old = Message(first.headers | {"webhook-timestamp": "1700000000"}, first.body)
    for secret, message, error in (
        (told.secret, Message(first.headers, second.body), "not signed"),
        (new_secret(), first, "not signed"),
        (told.secret, old, "too old"),
    ):
        said = await asyncio.to_thread(in_node, tmp_path, secret, message)
        assert said.returncode != 0
        assert error in said.stderr


def test_the_tables_are_settings() -> None:
    """What the page shows of the settings file is taken."""
    settings = load({}, "\n".join(blocks("toml")))
    assert [endpoint.id for endpoint in settings.endpoints] == ["chat"]
    assert settings.hooks.pre_create is not None
    assert settings.hooks.pre_finish is not None
    assert settings.hooks.pre_finish.budget == MOST_BUDGET_SECONDS
    assert all(tomllib.loads(text) for text in blocks("toml"))


async def test_the_payload_has_the_members_shown(told: Receiver) -> None:
    """Those of the example, and those of each upload event."""
    shown = json.loads(blocks("json")[0])
    created, ready = told.got
    assert ready.json.keys() == shown.keys()
    assert ready.data.keys() == shown["data"].keys()
    row = next(line for line in PAGE.splitlines() if line.startswith("| `upload.created`"))
    assert set(re.findall(r"`(\w+)`", row)) == created.data.keys()


def rows(pattern: str) -> list[str]:
    return re.findall(pattern, PAGE, re.MULTILINE)


def test_the_lists_are_those_there_are() -> None:
    """Types, results, statuses of hooks, numbers, settings and commands."""
    assert rows(r"^\| `((?:upload|file)\.\w+)` \|") == list(EVENT_TYPES)
    results = rows(r"what tries came to: (.*)\.$")[0]
    assert re.findall(r"`(\w+)`", results) == list(RESULTS)
    statuses = rows(r"^\| 4xx, but for ([\d, ]+) \|")[0]
    assert [int(each) for each in statuses.split(", ")] == sorted(_NOT_ABOUT_IT)
    assert f"({CONCURRENCY} requests at once" in PAGE
    assert f"**2xx within {TIMEOUT_SECONDS:g} s**" in PAGE
    assert f"There may be {MOST_ENDPOINTS} endpoints." in PAGE
    for name in rows(r"`(ATTACHD_\w+)`"):
        assert name == "ATTACHD_CONFIG" or name in {env_name(field) for field in Settings.model_fields}
    assert "events" in COMMANDS
    for name, options in re.findall(r"`attachd events (\w+)([^`|]*)`", PAGE):
        there = {option for each in command.commands[name].params for option in each.opts}
        assert set(re.findall(r"--\w+", options)) <= there


def test_the_gaps_are_those_that_are_waited() -> None:
    """The sentence about tries has each gap, in order."""
    units = {"s": 1, "min": 60, "h": 3600}
    sentence = rows(r"tried again (.*) after the try before")[0]
    gaps = [int(number) * units[unit] for number, unit in re.findall(r"(\d+) (s|min|h)\b", sentence)]
    assert gaps == list(GAPS)
