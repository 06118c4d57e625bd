"""A body that is stopped ends, at whatever step its reading is."""

from __future__ import annotations

import asyncio

import pytest

from service.protocol.intents import Ending
from service.web.body import StreamBody
from service.web.direct import DirectBody
from service.web.gathering import Gathering
from tests.web.harness import OCTETS, TUS, Site, head


@pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
async def test_L1_a_body_stopped_before_its_first_step_ends(
    here: Site, monkeypatch: pytest.MonkeyPatch, body_path: str
) -> None:
    """A body stopped in the very moment its reading begins hands out what arrived and ends, and the lease is free."""
    path = await here.create(10)
    kind: type[Gathering] = DirectBody if body_path == "fast" else StreamBody
    start = kind._start

    def start_and_stop(body: Gathering) -> None:
        start(body)
        body.stop(Ending.TAKEN_OVER)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "_start", start_and_stop)
        line = await here.line()
        fields = [*TUS.items(), ("Upload-Offset", "0"), ("Content-Type", OCTETS), ("Content-Length", "10")]
        await line.send(head("PATCH", path, fields, None) + b"hello")
        async with asyncio.timeout(30):
            assert (await line.answer()).status == 423
    assert (await here.patch(path, (await here.head(path)).offset, b"")).status == 204
