"""Ten thousand header sets that Hypothesis makes up: no 500, no hang, and every refusal has its name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service.protocol.problems import KINDS
from tests.web.fuzz_values import FIELDS, GOOD, METHODS, NAMES, PATHS, SHA1, TEXT
from tests.web.harness import OCTETS, TUS, Answer, Line, Site, chunk, path_of, site
from tests.web.traces import forward
from tests.web.under_way import SteppedClock

EXAMPLES: Final = 500
REQUESTS: Final = 20

# --- requests ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request, its placeholders not filled in. The framing is honest, so that nobody waits for bytes."""

    method: str
    path: str
    fields: tuple[tuple[str, str], ...]
    body: bytes | None
    chunked: bool
    trailers: dict[str, str] = field(default_factory=dict)

    def encode(self, words: dict[str, str]) -> bytes:
        """The bytes on the wire."""
        lines = [f"{self.method} {_fill(self.path, words)} HTTP/1.1"]
        if not any(name == "Host" for name, _ in self.fields):
            lines.append("Host: files.test")
        lines += [f"{name}: {_fill(value, words)}" for name, value in self.fields]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self.body is not None:
            lines.append(f"Content-Length: {len(self.body)}")
        body = self.body or b""
        coded = chunk(body, self.trailers) if self.chunked else body
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + coded


def _fill(text: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        text = text.replace("{" + name + "}", word)
    return text


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Mostly a request that would succeed, spoilt by some fields; now and then anything at all."""
    if draw(st.integers(0, 3)):
        method, path, good, body = draw(st.sampled_from(GOOD))
        fields = [*good.items()]
    else:
        method, path = draw(st.sampled_from(METHODS)), draw(st.sampled_from(PATHS))
        fields = [*draw(st.sampled_from([TUS, TUS | {"Upload-Offset": "5", "Content-Type": OCTETS}, {}])).items()]
        body = draw(st.sampled_from([None, b"", b"hello", b"hello world, and more than that"]))
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
        value = draw(FIELDS[name] if draw(st.integers(0, 9)) else TEXT)
        if draw(st.booleans()):
            # in place of the good one; else a repeat
            fields = [pair for pair in fields if pair[0] != name]
        fields.append((name, value))
    chunked = body is not None and draw(st.booleans())
    trailers = draw(st.sampled_from([{}, {"Upload-Checksum": SHA1}, {"X": "y"}]))
    return Request(method, path, tuple(fields), body, chunked, trailers if chunked else {})


# --- playing ----------------------------------------------------------------------------------


class Player:
    """A service for the whole test, one connection to it that is kept as long as the service keeps it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self._line: Line | None = None
        self._words: dict[str, str] = {}
        self.here: Site
        self.statuses: Counter[int] = Counter()

    def __enter__(self) -> Self:
        self._runner.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def play(self, sequence: list[Request]) -> None:
        """The requests, one after the other."""
        self._runner.run(self._play(sequence))

    async def _start(self) -> None:
        clock = SteppedClock()
        self.here = await self._stack.enter_async_context(site(self._folder, clock=clock, max_size="1MiB"))
        here = self.here
        done, gone = await here.create(5), await here.create(5)
        await here.patch(done, 0, b"hello")
        await here.ask("DELETE", gone, TUS)
        file = await here.file_id(done)
        fetch = here.download_link(file)
        self._words = {
            "done": done, "gone": gone, "fetch": fetch, "manifest": fetch.replace("?", "/manifest?"),
            "download": fetch.partition("sig=")[2], "etag": (await here.ask("HEAD", fetch)).headers["ETag"],
        }  # fmt: skip

    async def _play(self, sequence: list[Request]) -> None:
        here = self.here
        # tokens of one second would be alike
        forward(here, 1)
        used = here.token()
        live = path_of((await here.post(10, f"/files?sig={used}")).headers["Location"])
        await here.patch(live, 0, b"hello")
        partial = await here.create(5, here.link(), Upload_Concat="partial")
        words = self._words | {"token": here.token(), "used": used, "live": live, "partial": partial}
        for request in sequence:
            async with asyncio.timeout(30):
                answer = await self._exchange(request, request.encode(words))
            self.statuses[answer.status] += 1
            self._check(request, answer)
        # without its finished file the rest would be dull
        if (await here.head(self._words["done"])).status != 200:
            await self._renew()

    async def _renew(self) -> None:
        here = self.here
        done = await here.create(5)
        await here.patch(done, 0, b"hello")
        fetch = here.download_link(await here.file_id(done))
        self._words |= {"done": done, "fetch": fetch, "manifest": fetch.replace("?", "/manifest?")}

    async def _exchange(self, request: Request, data: bytes) -> Answer:
        """The answer, on the old connection if it still takes requests."""
        here = self.here
        if self._line is None:
            self._line = await here.line()
        line = self._line
        await line.send(data)
        answer = await line.answer(head=request.method == "HEAD")
        assert all(code == 100 for code in answer.interim), (request, answer)
        if answer.headers.get("Connection", "").lower() == "close" or _parser(answer):
            # the parser does not know of HEAD, and sends its words all the same
            assert await line.closed() or _parser(answer), (request, answer)
            await line.close()
            here.lines.remove(line)
            self._line = None
        return answer

    @staticmethod
    def _check(request: Request, answer: Answer) -> None:
        """No fault of ours, and every refusal is one of the known kind."""
        assert answer.status < 500 or answer.slug in ("storage-unavailable", "timeout", "not-ready"), (request, answer)
        if answer.status < 400 or request.method == "HEAD" or _parser(answer):
            return
        assert answer.slug in KINDS, (request, answer)
        assert answer.json["title"] == KINDS[answer.slug].title


def _parser(answer: Answer) -> bool:
    """Whether aiohttp's parser refused the request by itself (T-007)."""
    return answer.status == 400 and answer.headers.get("Content-Type", "").startswith("text/plain")


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    """One service for all header sets."""
    # thousands of requests that its parser refuses, each with a traceback
    parser = logging.getLogger("aiohttp.server")
    before = parser.level
    parser.setLevel(logging.CRITICAL)
    with Player(tmp_path_factory.mktemp("fuzz")) as ready:
        yield ready
    parser.setLevel(before)


@pytest.mark.timeout(600)
def test_any_header_set_is_answered(player: Player) -> None:
    """Ten thousand sets of valid and broken fields give an answer in time, never a 500, and refusals with a known slug;
    together they meet every way of ending that they should.
    """

    @examples(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(sequence=st.lists(requests(), min_size=REQUESTS, max_size=REQUESTS))
    def play(sequence: list[Request]) -> None:
        player.play(sequence)

    play()
    assert player.statuses.total() >= EXAMPLES * REQUESTS
    expected = {200, 201, 204, 206, 304, 400, 401, 403, 404, 405, 409, 410, 412, 413, 415, 416, 460}
    assert expected - set(player.statuses) == set()
