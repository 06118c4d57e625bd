"""The trailer section of a chunked body, found in the raw bytes of the connection (A-01)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.trailers import TAIL_BYTES, Tail, parse_trailers

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=10)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)


def coded(body: bytes, trailers: dict[str, str], last: bytes = b"0") -> bytes:
    """One chunk, the last chunk, the trailer section."""
    section = "".join(f"{name}: {value}\r\n" for name, value in trailers.items()).encode()
    return b"%x\r\n%b\r\n%b\r\n%b\r\n" % (len(body), body, last, section)


@given(st.binary(max_size=200), st.dictionaries(NAMES, VALUES, max_size=4))
def test_whatever_the_body_is(body: bytes, trailers: dict[str, str]) -> None:
    """The trailers are those behind the last chunk, whatever the body looks like."""
    assert parse_trailers(coded(body, trailers)) == trailers


@given(NAMES, VALUES)
def test_body_that_imitates_one(name: str, value: str) -> None:
    """A body that ends like a trailer section gives none, and hides no real one."""
    imitation = b"\r\n0\r\n" + f"{name}: {value}\r\n\r\n".encode()
    assert parse_trailers(coded(imitation, {})) == {}


@pytest.mark.parametrize("last", [b"0", b"000", b"0;a=b", b'0 ; a="b"', b"00;a"])
def test_last_chunk_spellings(last: bytes) -> None:
    """The last chunk may have more zeros and extensions."""
    assert parse_trailers(coded(b"hello", {"a": "1"}, last)) == {"a": "1"}


@pytest.mark.parametrize(
    ("section", "found"),
    [
        (b"Upload-Checksum: x\r\n", {"upload-checksum": "x"}),
        (b"A:x\r\n", {"a": "x"}),
        (b"A: \t x \t\r\n", {"a": "x"}),
        (b"A:\r\n", {"a": ""}),
        (b"A: b: c\r\n", {"a": "b: c"}),
        (b"A: \xe9\r\n", {"a": "\xe9"}),
        (b"no colon\r\n", None),
        (b": x\r\n", None),
        (b"A : x\r\n", None),
        (b"A: x\r\n folded\r\n", None),
    ],
)
def test_section(section: bytes, found: dict[str, str] | None) -> None:
    """A field is a name, a colon and a value; a line that is none makes the section none."""
    assert parse_trailers(b"5\r\nhello\r\n0\r\n" + section + b"\r\n") == found


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"5\r\nhello\r\n",
        b"5\r\nhello\r\n0\r\n",
        b"5\r\nhello\r\n0\r\nA: x\r\n",
        b"A: x\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA: x\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\nGET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA: x\n\n",
    ],
)
def test_no_trailer_section(tail: bytes) -> None:
    """Bytes that do not end in a last chunk and an empty line have no trailer."""
    assert parse_trailers(tail) is None


@given(st.binary(max_size=400))
def test_any_bytes(tail: bytes) -> None:
    """Nothing that a client can send makes it fail."""
    parse_trailers(tail)


@given(st.lists(st.integers(0, 60), max_size=30), st.binary(max_size=40))
def test_where_the_network_cuts(cuts: list[int], body: bytes) -> None:
    """How the bytes arrive makes no difference."""
    tail = Tail()
    whole = coded(body, {"a": "1", "b": ""})
    edges = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        tail.add(whole[start:end])
        tail.add(b"")
    assert tail.trailers() == {"a": "1", "b": ""}


@pytest.mark.parametrize(("size", "kept"), [(TAIL_BYTES - 60, True), (TAIL_BYTES + 1, False)])
def test_section_too_long(size: int, kept: bool) -> None:
    """A section that passes what is kept counts as not sent."""
    tail = Tail()
    tail.add(coded(b"hello", {"a": "x" * size, "b": "1"}))
    assert (tail.trailers() is not None) is kept


@pytest.mark.parametrize("size", [1, 100, 65536])
def test_memory_is_bounded(size: int) -> None:
    """Of a long body only the tail is kept, however it is cut."""
    tail = Tail()
    most = 0
    for turn in range(40_000 // size + 2):
        tail.add(bytes(size))
        if turn % 100 == 0 or size > 100:
            most = max(most, sum(map(len, tail._pieces)))
    assert most < TAIL_BYTES + size
