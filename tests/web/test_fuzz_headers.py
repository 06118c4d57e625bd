"""Ten thousand header sets that Hypothesis makes up: no 500, no hang, and every refusal has its name."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service.protocol.problems import KINDS
from tests.web.harness import OCTETS, TUS, Answer, Line, Site, b64, chunk, path_of, site
from tests.web.traces import forward
from tests.web.under_way import SteppedClock

EXAMPLES: Final = 1000
REQUESTS: Final = 10

# --- requests ---------------------------------------------------------------------------------

METHODS = ("POST", "PATCH", "HEAD", "DELETE", "OPTIONS", "PUT", "GET")

#: what is asked for; the names are filled in while playing
PATHS = (
    "/files?sig={token}", "/files?sig={token}", "/files?sig={used}", "/files?sig={download}", "/files", "/files?sig=",
    "/files?sig=a.b.c", "/files/name.bin?sig={token}", "{live}", "{live}", "{live}", "{live}?wait=0.001", "{live}?wait=x",
    "{live}?wait=nan", "{live}?wait=-1", "{live}?wait=", "{live}?sig={token}", "{done}", "{gone}", "{partial}",
    "/files/u_aaaaaaaaaaaaaaaaaaaaaaaaaa", "/files/..%2f..%2fetc", "/files/", "/files/%ff%00", "{fetch}", "{fetch}", "{fetch}",
    "/d/f_aaaaaaaaaaaaaaaaaaaaaaaaaa?sig={download}", "/d/f_aaaaaaaaaaaaaaaaaaaaaaaaaa", "{manifest}", "/d/x", "/d/", "/",
    "/files?sig={token}&sig={token}", "/nothing", "*", "/files?" + "x" * 5000,
)  # fmt: skip

#: anything that a field value may hold, and some that it may not
TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=255, exclude_characters="\r\n"), max_size=30)
NUMBERS = st.one_of(
    st.integers(0, 20).map(str),
    st.sampled_from(
        [
            "0",
            "5",
            "10",
            "-1",
            "+5",
            "5.0",
            "0x5",
            "1e3",
            "",
            " ",
            "00005",
            str(2**31),
            str(2**32),
            str(2**63 - 1),
            str(2**63),
            str(10**19),
            "9" * 400,
            "٣",
            "5, 5",
            "5;5",
            "NaN",
            "inf",
        ]  # fmt: skip
    ).filter(lambda text: text.isascii()),
)
DIGESTS = st.sampled_from(
    [
        "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=",
        "sha1 " + b64(bytes(20)),
        "md5 " + b64(bytes(16)),
        "crc32c " + b64(bytes(4)),
        "xxh128 " + b64(bytes(16)),
        "sha1",
        "sha1 ",
        " sha1 AAAA",
        "sha1  AAAA",
        "sha1 AAAA",
        "md4 AAAA",
        "SHA1 " + b64(bytes(20)),
        "sha1 !!!!",
        "sha1 " + "A" * 3000,
        "",
    ]  # fmt: skip
)
METADATA = st.sampled_from(
    [
        "",
        " ",
        ",",
        "filename d29ybGQ=",
        "filename d29ybGQ",
        "filename,filename",
        "a b c",
        "é d29ybGQ=",
        "a " + "A" * 24_000,
        "filename d29ybGQ=,type aW1hZ2UvcG5n",
        "empty ",
        "empty ,x",
        "a  AA==",
        "filetype //79",
    ]  # fmt: skip
)
CONCATS = st.sampled_from(
    ["partial", "Partial", "final;", "final;{partial}", "final;{partial} {partial}", "final;{live}", "final;/x", "final; ",
     "final;{gone}", "final;http://[::1", "final;http://x{partial}", "finale;{partial}", "", "final;%00", "final;{done}"]
)  # fmt: skip
RANGES = st.sampled_from(
    ["bytes=0-0", "bytes=0-", "bytes=-1", "bytes=-0", "bytes=5-2", "bytes=99-", "bytes=0-1,3-4", "bytes=", "bytes", "=0-1",
     "bytes=a-b", "items=0-1", "bytes=0-" + "9" * 400, "bytes=" + "9" * 400 + "-", "bytes=--1", "bytes=0-1,", "BYTES=0-1"]
)  # fmt: skip
TAGS = st.sampled_from(
    ["*", '"x"', 'W/"x"', "x", '"', '""', '"a", "b"', "{etag}", "W/{etag}", "{etag}, *", '"é"', ",", '"a" "b"', ""]
)  # fmt: skip
DATES = st.sampled_from(
    ["Wed, 25 Jun 2014 16:00:00 GMT", "Wednesday, 25-Jun-14 16:00:00 GMT", "Wed Jun 25 16:00:00 2014", "0", "x", "",
     "Wed, 25 Jun 99999 16:00:00 GMT", "Wed, 99 Jun 2014 16:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Wed, 25 Jun 2014",
     "Wed, 25 Jun 0000 16:00:00 +9999", "Thu, 01 Jan 1970 00:00:00 GMT"]
)  # fmt: skip
TYPES = st.sampled_from(
    [OCTETS, OCTETS, OCTETS + "; charset=utf-8", OCTETS.upper(), "application/partial-upload", "image/png", "", "/", "x",
     "multipart/form-data; boundary=x", "text/plain;;;", "é/é"]
)  # fmt: skip

#: the value of each field: mostly what may stand there, now and then anything
FIELDS: dict[str, st.SearchStrategy[str]] = {
    "Upload-Offset": NUMBERS,
    "Upload-Length": NUMBERS,
    "Upload-Defer-Length": st.sampled_from(["1", "1", "0", "2", "true", "", "1, 1"]),
    "Upload-Metadata": METADATA,
    "Upload-Checksum": DIGESTS,
    "Upload-Concat": CONCATS,
    "Content-Type": TYPES,
    "Tus-Resumable": st.sampled_from(["1.0.0", "0.2.2", "", "1.0.0, 1.0.0", "1"]),
    "Upload-Complete": st.sampled_from(["?1", "?0", "1", "true", "?2", "?1;x=y", ""]),
    "Upload-Incomplete": st.sampled_from(["?1", "?0", "x"]),
    "Upload-Draft-Interop-Version": st.sampled_from(["3", "6", "8", "x", ""]),
    "X-HTTP-Method-Override": st.sampled_from([*METHODS, "patch", "TRACE", "CONNECT", "", "é"]),
    "Range": RANGES,
    "If-Range": st.one_of(TAGS, DATES),
    "If-Match": TAGS,
    "If-None-Match": TAGS,
    "If-Modified-Since": DATES,
    "If-Unmodified-Since": DATES,
    "Expect": st.sampled_from(["100-continue", "100-Continue", "200-ok", "", "100-continue, x"]),
    "Trailer": st.sampled_from(["Upload-Checksum", "upload-checksum, x", "", ",", "Content-Length"]),
    "Authorization": st.sampled_from(["Bearer {token}", "bearer {used}", "Bearer", "Bearer ", "Basic eDp4", "", "é"]),
    "Origin": st.sampled_from(["https://chat.example", "null", "", "é", "https://a, https://b"]),
    "Access-Control-Request-Method": st.sampled_from(["PATCH", "", "é"]),
    "Host": st.sampled_from(["files.test", "", "a b", "é", "[::1", "x" * 300, "files.test:99999"]),
    "X-Forwarded-Host": st.sampled_from(["evil.test", ""]),
    "X-Request-ID": st.sampled_from(["abc", "", "a b", "x" * 500, "é"]),
    "Content-Encoding": st.sampled_from(["gzip", "deflate", "br", "identity", ""]),
    "Content-Disposition": st.sampled_from(['attachment; filename="x"', "é"]),
    "Cookie": TEXT,
    "Accept-Encoding": st.sampled_from(["gzip", "*;q=0", ""]),
    "Connection": st.sampled_from(["keep-alive", "close", "upgrade", "x"]),
    "Upgrade": st.sampled_from(["websocket", "h2c"]),
    "Content-Digest": st.sampled_from(["sha-256=:AAAA:", "x"]),
}


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


NAMES = sorted(FIELDS)


SHA1: Final = "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="
#: requests that succeed, or come as far as the body, if nothing spoils them: method, path, fields, body
GOOD: tuple[tuple[str, str, dict[str, str], bytes | None], ...] = (
    ("OPTIONS", "/files", {}, None),
    ("POST", "/files?sig={token}", TUS | {"Upload-Length": "10"}, None),
    ("POST", "/files?sig={token}", TUS | {"Upload-Length": "5", "Content-Type": OCTETS}, b"hello"),
    ("POST", "/files?sig={token}", TUS | {"Upload-Defer-Length": "1", "Upload-Metadata": "filename YQ=="}, None),
    ("POST", "/files?sig={token}", TUS | {"Upload-Length": "5", "Upload-Concat": "partial"}, None),
    ("POST", "/files?sig={token}", TUS | {"Upload-Concat": "final;{partial}"}, None),
    ("POST", "/files?sig={used}", TUS | {"Upload-Length": "10"}, None),
    ("PUT", "/files/name?sig={token}", {}, b"hello"),
    ("PATCH", "{live}", TUS | {"Upload-Offset": "5", "Content-Type": OCTETS}, b"h"),
    ("PATCH", "{live}", TUS | {"Upload-Offset": "5", "Content-Type": OCTETS, "Upload-Checksum": SHA1}, b"hello"),
    ("PATCH", "{live}", TUS | {"Upload-Offset": "5", "Content-Type": OCTETS, "Upload-Checksum": SHA1}, b"other"),
    ("PATCH", "{live}", TUS | {"Upload-Offset": "5", "Content-Type": OCTETS}, b"more than there is room for"),
    ("PATCH", "{partial}", TUS | {"Upload-Offset": "0", "Content-Type": OCTETS}, b"hello"),
    ("POST", "{live}", TUS | {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "5", "Content-Type": OCTETS}, b"h"),
    ("HEAD", "{live}", TUS, None),
    ("HEAD", "/files?sig={used}", TUS, None),
    ("GET", "{live}", {}, None),
    ("DELETE", "{live}", TUS, None),
    ("GET", "{fetch}", {}, None),
    ("GET", "{fetch}", {"Range": "bytes=1-2", "If-Range": "{etag}"}, None),
    ("GET", "{fetch}", {"Range": "bytes=99-"}, None),
    ("GET", "{fetch}", {"If-None-Match": "{etag}"}, None),
    ("HEAD", "{fetch}", {}, None),
    ("GET", "{manifest}", {}, None),
)  # fmt: skip


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

    def __enter__(self) -> Player:
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
            async with asyncio.timeout(10):
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
    with Player(tmp_path_factory.mktemp("fuzz")) as ready:
        yield ready


@pytest.mark.timeout(240)
@examples(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(sequence=st.lists(requests(), min_size=REQUESTS, max_size=REQUESTS))
def test_any_header_set_is_answered(player: Player, sequence: list[Request]) -> None:
    """Valid and broken fields in any mixture give an answer in time, never a 500, and refusals with a known slug."""
    player.play(sequence)


def test_the_sets_were_many_and_got_far(player: Player) -> None:
    """Ten thousand were asked, and they met every way of ending that they should."""
    if not player.statuses:
        pytest.skip("only after test_any_header_set_is_answered")
    assert player.statuses.total() >= EXAMPLES * REQUESTS
    missing = {200, 201, 204, 206, 304, 400, 401, 403, 404, 405, 409, 410, 412, 413, 415, 416, 460} - set(
        player.statuses
    )
    assert missing == set()
