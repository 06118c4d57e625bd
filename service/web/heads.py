"""Whether a request's head leaves no doubt how long its body is: only such a body is received without a parser.

The list is of what is known to be plain. Whatever is not on it, however harmless, is for aiohttp's
parser to judge, so that no two readers of one connection can disagree about where a request ends
(request smuggling; RFC 9112, section 11.2).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: a longer head is not looked at
MOST_BYTES: Final = 32 * 1024
#: the requests whose bodies are worth it
_METHODS: Final = (b"PATCH ", b"POST ", b"PUT ")
# No NUL, no bare CR or LF, no folded line, no space before a colon, no other version. Each byte is
# looked at once: what follows a name cannot be part of it.
_PLAIN: Final = re.compile(
    rb"(?:PATCH|POST|PUT) [!-~]++ HTTP/1\.1\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~\x80-\xff]*+\r\n)*+"
    rb"\r\n"
)
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_ODD: Final = (b"\r\ntransfer-encoding:", b"\r\nupgrade:")
#: takes the place of the length: nobody but us tells aiohttp where the body ends
_OPEN: Final = b"\r\nTransfer-Encoding: chunked\r\n"


class Direct(NamedTuple):
    """A request whose body is received by us."""

    #: for aiohttp, to which the body is one that ends when it is told so
    head: bytes
    #: bytes of the body, > 0
    length: int


def may_be_direct(start: bytes) -> bool:
    """Whether a head that begins so, with six bytes or more, is worth a look once it is whole."""
    return start.startswith(_METHODS)


def direct(head: bytes) -> Direct | None:
    """What is made of a whole head, its empty line included; None: it goes to aiohttp as it is."""
    if _PLAIN.fullmatch(head) is None:
        return None
    low = head.lower()
    if low.count(b"\r\ncontent-length:") != 1 or any(odd in low for odd in _ODD):
        return None
    found = _LENGTH.search(low)
    if found is None or not int(found[1]):
        return None
    return Direct(head[: found.start()] + _OPEN + head[found.end() :], int(found[1]))
