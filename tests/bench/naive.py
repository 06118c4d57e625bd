"""A plain aiohttp service: `python -m tests.bench.naive PORT DIRECTORY DURABILITY LOOP`.

What one would write in an afternoon: each piece of the body is hashed and written as it comes, in
the loop, which is the fast way as long as few are at it. No tokens, no database, no leases, offsets
in memory. Downloads are aiohttp's own `FileResponse`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import uvloop
import xxhash
from aiohttp import web


class Naive:
    """Uploads by number."""

    def __init__(self, directory: Path, *, sync: bool) -> None:
        self.directory = directory
        self.sync = sync
        self.numbers = itertools.count(1)
        self.lengths: dict[str, int] = {}
        self.offsets: dict[str, int] = {}
        self.hashers: dict[str, Any] = {}

    async def create(self, request: web.Request) -> web.Response:
        number = str(next(self.numbers))
        self.lengths[number] = int(request.headers["Upload-Length"])
        self.offsets[number] = 0
        self.hashers[number] = xxhash.xxh3_128()
        await self._receive(request, number)
        headers = {"Location": f"/files/{number}", "Upload-Offset": str(self.offsets[number])}
        return web.Response(status=201, headers=headers)

    async def append(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        if int(request.headers["Upload-Offset"]) != self.offsets[number]:
            raise web.HTTPConflict
        await self._receive(request, number)
        return web.Response(status=204, headers={"Upload-Offset": str(self.offsets[number])})

    async def inspect(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        return web.Response(headers={"Upload-Offset": str(self.offsets[number]), "Cache-Control": "no-store"})

    async def download(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(self.directory / request.match_info["number"], chunk_size=1 << 20)

    async def _receive(self, request: web.Request, number: str) -> None:
        hasher = self.hashers[number]
        with (self.directory / number).open("ab", buffering=0) as file:
            async for piece in request.content.iter_any():
                hasher.update(piece)
                file.write(piece)
                self.offsets[number] += len(piece)
            if self.offsets[number] == self.lengths[number]:
                self.hashers.pop(number).digest()
                if self.sync:
                    os.fdatasync(file.fileno())


def main() -> None:
    port, directory, durability, loop = sys.argv[1:]
    naive = Naive(Path(directory), sync=durability != "none")
    app = web.Application()
    app.router.add_post("/files", naive.create)
    app.router.add_patch("/files/{number}", naive.append)
    app.router.add_head("/files/{number}", naive.inspect)
    app.router.add_get("/d/{number}", naive.download)
    chosen = uvloop.new_event_loop() if loop == "uvloop" else asyncio.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=chosen)


if __name__ == "__main__":
    main()
