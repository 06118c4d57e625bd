"""A chat backend, which talks to the control API of a `Site` with service tokens of its issuer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from service.keyfile import KeyFile, new_key
from service.keyset import Key
from service.links import SERVICE_SCOPES, mint_service
from tests.web.harness import OCTETS, TUS, Answer, Site, path_of
from tests.web.traces import instant

MIB = 2**20


@dataclass(slots=True)
class Backend:
    """`scopes` are those of its tokens; `key` is its issuer's, the service's own unless told otherwise."""

    here: Site
    key: Key | None = None
    scopes: tuple[str, ...] = SERVICE_SCOPES
    claims: dict[str, Any] = field(default_factory=dict)

    def token(self) -> str:
        terms: dict[str, Any] = {"audience": self.here.base, "now": instant(self.here), "expires_in": 3600}
        return mint_service(self.key or self.here.key, scopes=self.scopes, **(terms | self.claims))

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request below `/v1`. Header names: `_` for `-`."""
        sent = {"Authorization": f"Bearer {self.token()}"}
        content = None
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.here.ask(method, f"/v1{path}", sent, content)

    async def get(self, path: str) -> dict[str, Any]:
        """The answer of a GET that succeeds."""
        answer = await self.call("GET", path)
        assert answer.status == 200, answer
        return answer.json

    async def link(self, **terms: Any) -> dict[str, Any]:
        """A new upload link with what comes with it."""
        answer = await self.call("POST", "/upload-links", {"max": MIB} | terms)
        assert answer.status == 201, answer
        return answer.json

    async def store(self, content: bytes = b"hello", **terms: Any) -> dict[str, Any]:
        """A file that was uploaded with a link of its own; what came with the link."""
        made = await self.link(**terms)
        headers = TUS | {"Upload-Length": str(len(content)), "Content-Type": OCTETS}
        answer = await self.here.ask("POST", path_of(made["url"]), headers, content)
        assert answer.headers["Attachd-File-Id"] == made["file_id"], answer
        return made

    async def create(self, length: int = 10, **terms: Any) -> tuple[Answer, dict[str, Any]]:
        """The answer to a creation with a new link."""
        made = await self.link(**terms)
        return await self.here.post(length, path_of(made["url"])), made

    async def fetch(self, made: dict[str, Any]) -> Answer:
        """What the download link of a file gives."""
        return await self.here.ask("GET", path_of(made["download_url"]))


async def other_backend(here: Site, issuer: str = "other") -> Backend:
    """A backend of another issuer, which has a key in the set from now on."""
    key = new_key("EdDSA", issuer=issuer, now=instant(here))
    keys = KeyFile(here.service.settings.keys_path)
    await asyncio.to_thread(keys.update, lambda held: held.with_key(key))
    return Backend(here, key)
