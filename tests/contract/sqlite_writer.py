"""A process of its own that writes to a metadata database: `sqlite_writer.py WHAT URL ...`.

advance: makes an upload, says its id, then says each offset once it is acknowledged, for ever.
create: makes an upload under each link named on standard input; says how many it could.
"""

from __future__ import annotations

import asyncio
import sys

from service.metadata.base import Conflict
from service.metadata.sql import SqlMetadata
from service.model import LinkTerms
from tests.contract.metadata_values import NOW, leased, make_upload, part, step, use_of


def say(value: object) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


async def advance(store: SqlMetadata) -> None:
    upload, lease = await leased(store, length=None)
    say(upload.id)
    offset = 0
    while True:
        move = step(offset + 10, parts=[part(0, 0, offset + 10)])
        await store.advance(upload.id, epoch=lease.epoch, from_offset=offset, step=move, now=NOW)
        offset += 10
        say(offset)


async def create(store: SqlMetadata, names: list[str]) -> None:
    made = 0
    for name in names:
        upload = make_upload(terms=LinkTerms(issuer="backend", jti=name))
        try:
            await store.create_upload(upload, use_of(upload))
        except Conflict:
            continue
        made += 1
    say(made)


async def main(what: str, url: str) -> None:
    store = SqlMetadata(url, durability="complete")
    await store.open()
    if what == "advance":
        await advance(store)
    else:
        await create(store, sys.stdin.read().split())
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
