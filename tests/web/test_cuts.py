"""Two hundred cuts at random points: nothing that a client was told is lost, and what arrived is kept.

Each upload is cut ten times, by RST, FIN or silence, at points drawn from a seed; then it is
finished and compared. Sizes go from 1 B to 64 MiB.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.web.harness import OCTETS, TUS, Answer, Line, Site, chunk, head, site
from tests.web.under_way import SteppedClock, held, received, until

MIB: Final = 2**20
CUTS: Final = 10
#: one upload each; twenty uploads of ten cuts
SIZES: Final = (
    1, 2, 3, 100, 1000, 4095, 65_536, 65_537, 200_000, 262_145, 524_289, MIB - 1, MIB + 1, 3 * MIB, 5 * MIB + 7,
    8 * MIB, 8 * MIB + 1, 17 * MIB, 64 * MIB - 1, 64 * MIB,
)  # fmt: skip


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[Site]:
    """A service whose time-outs come when told, and that looks for them often."""
    async with site(tmp_path, clock=SteppedClock(), body_idle="1s", body_min_rate="0") as running:
        yield running


@dataclass
class Client:
    """Uploads one file, and remembers the most that it was told."""

    here: Site
    path: str
    content: bytes
    chance: random.Random
    told: int = 0

    def believe(self, answer: Answer) -> None:
        """Every offset told is at least the last one."""
        if "Upload-Offset" in answer.headers:
            assert answer.offset >= self.told
            self.told = answer.offset

    async def ask(self) -> int:
        """The offset, by HEAD or by GET."""
        if self.chance.random() < 0.2:
            answer = await self.here.ask("GET", self.path)
        else:
            answer = await self.here.head(self.path)
        assert answer.status == 200
        self.believe(answer)
        return answer.offset

    async def begin(self, *, chunked: bool) -> Line:
        """A PATCH at the offset that was told, of which the service has seen the head.

        It may have been refused: a writer whose cut is not noticed yet went on past that offset.
        """
        line = await self.here.line()
        fields = TUS | {"Upload-Offset": str(self.told), "Content-Type": OCTETS}
        left = str(len(self.content) - self.told)
        fields |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": left}
        await line.send(head("PATCH", self.path, [*fields.items()], None))
        await until(lambda: self.busy or line.answered)
        return line

    async def cut(self, how: str) -> None:
        """One PATCH that does not come to its end, or whose end nobody hears of."""
        offset, left = self.told, len(self.content) - self.told
        chunked = self.chance.random() < 0.3
        # now and then all of the body comes, and only the client never hears of it
        size = left if self.chance.random() < 0.03 else self.chance.randrange(left)
        ends = size == left and not chunked
        line = await self.begin(chunked=chunked)
        sent = self.content[offset : offset + size]
        # the last chunk, which ends the body, stays away
        line.writer.write(chunk(sent).removesuffix(b"0\r\n\r\n") if chunked else sent)
        arrived = how == "silence" or self.chance.random() < 0.6
        if arrived:
            await until(lambda: received(self.here) >= size or (ends and not self.busy))
        if how == "silence":
            await self._fall_silent(line)
        elif how == "RST":
            line.reset()
        else:
            await line.close()
        await until(lambda: not self.busy)
        kept = await self.ask()
        assert offset <= kept <= offset + size
        assert not arrived or kept == offset + size

    async def _fall_silent(self, line: Line) -> None:
        """Nothing more comes until the service ends the request; its answer tells what it kept."""
        clock = self.here.clock
        assert isinstance(clock, SteppedClock)
        clock.skip(2)
        async with asyncio.timeout(30):
            self.believe(await line.answer())

    @property
    def busy(self) -> bool:
        """Whether a body of ours is under way or not yet committed."""
        return bool(self.here.service.bodies._open) or held(self.here, self.path)

    async def finish(self) -> None:
        """Sends what is left, from where the service says."""
        if self.told < len(self.content):
            answer = await self.here.patch(self.path, self.told, self.content[self.told :])
            assert answer.status == 204
            self.believe(answer)


def assert_same(found: bytes, content: bytes) -> None:
    """Equal; else the first byte that is not, as a diff of megabytes takes for ever."""
    if found != content:
        at = next((n for n, (left, right) in enumerate(zip(found, content, strict=False)) if left != right), None)
        pytest.fail(f"{len(found)} bytes of {len(content)}; the first wrong one is at {at}")


def ways(chance: random.Random) -> list[str]:
    """How each of the cuts is made: mostly RST and FIN, and silence, which costs a wait."""
    return chance.sample(["RST"] * 4 + ["FIN"] * 4 + ["silence"] * 2, CUTS)


@pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
@pytest.mark.parametrize("size", SIZES)
async def test_cut_anywhere(patient: Site, size: int) -> None:
    """After each of ten cuts the offset is at least what was told and all that arrived; in the end the file is whole.

    Lessons D3 and O2: an offset that was told never falls; bytes that reached the service before
    the cut are kept, whatever cut it.
    """
    chance = random.Random(size)
    content = chance.randbytes(size)
    client = Client(patient, await patient.create(size), content, chance)
    for how in ways(chance):
        if client.told == size:
            assert_same(await patient.stored(client.path), content)
            client = Client(patient, await patient.create(size), content, chance)
        await client.cut(how)
    await client.finish()
    assert_same(await patient.stored(client.path), content)


@pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
@pytest.mark.parametrize("seed", range(4))
async def test_cut_while_resuming(patient: Site, seed: int) -> None:
    """A client that resumes at once, on another connection, while the cut one is not noticed yet, ends whole too."""
    chance = random.Random(seed)
    content = chance.randbytes(MIB + seed)
    client = Client(patient, await patient.create(len(content)), content, chance)
    for _ in range(5):
        line = await client.begin(chunked=False)
        line.writer.write(content[client.told :][: chance.randrange(len(content) - client.told)])
        if chance.random() < 0.5:
            line.reset()
        found = await patient.head(client.path)
        assert found.status == 200
        client.believe(found)
    while client.told < len(content):
        answer = await patient.patch(client.path, client.told, content[client.told :])
        assert answer.status in (204, 409, 423)
        client.believe(answer)
    assert_same(await patient.stored(client.path), content)
