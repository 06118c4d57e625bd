"""A backend that gets events and is asked by hooks: a real server, which answers as the test says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook

from tests.web.under_way import SteppedClock, until

#: what loopback is, for `webhook_networks`
LOOPBACK = "127.0.0.0/8,::1"


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def now_clock() -> SteppedClock:
    """A clock of the test's own that begins now: receivers hold the timestamp against theirs."""
    return SteppedClock(time.time())


@dataclass
class Message:
    """One request, as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def type(self) -> str:
        return str(self.json["type"])

    @property
    def data(self) -> dict[str, Any]:
        return dict(self.json["data"])

    def verified(self, secret: str) -> dict[str, Any]:
        """What a receiver's library makes of it; raises if it would not take it."""
        return dict(Webhook(secret).verify(self.body, self.headers))


#: what a test makes of a message: a status, or an answer
Reply = int | web.Response


@dataclass
class Receiver:
    """`reply` decides; what was answered with 2xx is `got`, all that came is `messages`."""

    secret: str = field(default_factory=new_secret)
    reply: Callable[[Message], Reply | Awaitable[Reply]] = lambda _: 204
    messages: list[Message] = field(default_factory=list)
    got: list[Message] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        message = Message({name.lower(): value for name, value in request.headers.items()}, await request.read())
        self.messages.append(message)
        reply = self.reply(message)
        if not isinstance(reply, int | web.Response):
            reply = await reply
        answer = web.Response(status=reply) if isinstance(reply, int) else reply
        if answer.status // 100 == 2:
            self.got.append(message)
        return answer

    def endpoint(self, name: str = "chat", **more: Any) -> dict[str, Any]:
        """The table of the settings file."""
        return {"id": name, "url": self.url, "secrets": [self.secret], **more}

    def hook(self, **more: Any) -> dict[str, Any]:
        return {"url": self.url, "secrets": [self.secret], **more}

    def types(self, file_id: str | None = None) -> list[str]:
        """Of what it got, each id once, in order."""
        first = {each.id: each for each in reversed(self.got)}
        ordered = sorted(first.values(), key=self.got.index)
        return [each.type for each in ordered if file_id in (None, each.data["file_id"])]

    async def until_told_of(self, count: int) -> None:
        """Something came of so many files, whatever it answered."""
        await until(lambda: len({each.data["file_id"] for each in self.messages}) >= count)

    async def until(self, count: int) -> None:
        """It got so many."""
        await until(lambda: len(self.got) >= count)


@asynccontextmanager
async def receiver(**fields: Any) -> AsyncIterator[Receiver]:
    """One that listens on a port of loopback."""
    found = Receiver(**fields)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", found.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}/events"
    try:
        yield found
    finally:
        await runner.cleanup()


def hangs(_: Message) -> Awaitable[Reply]:
    """Never answers."""

    async def never() -> Reply:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 500

    return never()
