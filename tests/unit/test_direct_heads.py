"""Which heads leave no doubt about their body, and that all others go to aiohttp as they came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.heads import Direct, direct, may_be_direct

START = b"PATCH /files/u_a?sig=b HTTP/1.1\r\nHost: files.test\r\n"
LENGTH = b"Content-Length: 5\r\n"
END = b"\r\n"
PLAIN = START + LENGTH + END


def test_a_plain_head() -> None:
    """One length and nothing odd: aiohttp gets the same head, with a body of open end."""
    expected = START + b"Transfer-Encoding: chunked\r\n" + END
    assert direct(PLAIN) == Direct(expected, 5)


@pytest.mark.parametrize("method", [b"PATCH", b"POST", b"PUT"])
@pytest.mark.parametrize("line", [b"content-length:5", b"CONTENT-LENGTH: \t005 \t"])
@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n", b"X-\xc3\xa4: \xe4\r\n", b"Connection: close\r\n"])
def test_plain_heads(method: bytes, line: bytes, more: bytes) -> None:
    """Case, white space around the value and other fields make no head odd, unless a name is none."""
    head = b"%b / HTTP/1.1\r\n%b%b\r\n\r\n" % (method, more, line)
    assert may_be_direct(head)
    made = direct(head)
    assert made is None if b"X-\xc3" in more else made is not None and made.length == 5


ODD = {
    "two lengths": LENGTH + LENGTH,
    "two lengths that differ": LENGTH + b"Content-Length: 6\r\n",
    "two lengths in one": b"Content-Length: 5, 5\r\n",
    "a signed length": b"Content-Length: +5\r\n",
    "a hexadecimal length": b"Content-Length: 0x5\r\n",
    "a length of many digits": b"Content-Length: " + b"9" * 19 + b"\r\n",
    "an empty length": b"Content-Length:\r\n",
    "a length of nothing": b"Content-Length: 0\r\n",
    "digits of another script": "Content-Length: \u0665\r\n".encode(),
    "no length": b"",
    "a space before the colon": b"Content-Length : 5\r\n",
    "a second length with a space": LENGTH + b"Content-Length : 6\r\n",
    "a length behind a folded line": b"X: a\r\n Content-Length: 6\r\n" + LENGTH,
    "a folded length": b"Content-Length:\r\n 5\r\n",
    "a folded line": LENGTH + b"X: a\r\n\tb\r\n",
    "a transfer coding": LENGTH + b"Transfer-Encoding: chunked\r\n",
    "a transfer coding that is none": LENGTH + b"Transfer-Encoding:\r\n",
    "a transfer coding with a space": LENGTH + b"Transfer-Encoding : chunked\r\n",
    "an upgrade": LENGTH + b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    "a bare line feed": LENGTH + b"X: a\nTransfer-Encoding: chunked\r\n",
    "a bare carriage return": LENGTH + b"X: a\rb\r\n",
    "two carriage returns": LENGTH + b"X: a\r\r\n",
    "a NUL": LENGTH + b"X: a\0b\r\n",
    "a control character": LENGTH + b"X: a\x0bb\r\n",
    "a line without a name": LENGTH + b": a\r\n",
    "a line without a colon": LENGTH + b"X\r\n",
}


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD.keys())
def test_odd_fields(fields: bytes) -> None:
    """What is not known to be plain is for the parser to judge."""
    assert direct(START + fields + END) is None


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1", b"DELETE / HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"PATCH / HTTP/1.0", b"PATCH / HTTP/2.0",
        b"PATCH /", b"PATCH  / HTTP/1.1", b"PATCH / a HTTP/1.1", b"PATCH /\xe4 HTTP/1.1", b"patch / HTTP/1.1",
        b"PATCH\t/ HTTP/1.1", b"PATCHX / HTTP/1.1", b"PATCH / HTTP/1.1 ", b"\r\nPATCH / HTTP/1.1",
    ],
)  # fmt: skip
def test_odd_request_lines(line: bytes) -> None:
    """So are other methods, other versions, and request lines of another form."""
    assert direct(line + b"\r\n" + LENGTH + END) is None


@pytest.mark.parametrize("more", [b"x", b"\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_head_and_more(more: bytes) -> None:
    """Only a head that ends where it should is one."""
    assert direct(PLAIN + more) is None
    assert direct(PLAIN[:-2]) is None


@given(st.binary(min_size=1, max_size=3), st.integers(0, len(PLAIN)))
def test_no_byte_in_a_plain_head_makes_another_length(odd: bytes, at: int) -> None:
    """Whatever is put into a head, it is refused or its one length is the one that it says."""
    head = PLAIN[:at] + odd + PLAIN[at:]
    made = direct(head)
    if made is not None:
        (value,) = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        assert made.length == int(value)
