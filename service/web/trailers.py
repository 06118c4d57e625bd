"""The trailer section of a chunked body, found at the end of its raw bytes (A-01)."""

from __future__ import annotations

import re
from typing import Final

#: raw bytes kept for the trailer section
TAIL_BYTES: Final = 16 * 1024
_LAST_CHUNK: Final = re.compile(rb"0+[ \t]*(;[^\r\n]*)?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Tail:
    """The last bytes of a body, at least TAIL_BYTES of them if there were so many."""

    def __init__(self) -> None:
        #: whether there were any
        self.seen = False
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """More of the body."""
        self.seen = True
        if len(data) >= TAIL_BYTES:
            self._pieces, self._size = [data[-TAIL_BYTES:]], TAIL_BYTES
            return
        self._pieces.append(data)
        self._size += len(data)
        while self._size - len(self._pieces[0]) >= TAIL_BYTES:
            self._size -= len(self._pieces.pop(0))

    def trailers(self) -> dict[str, str] | None:
        """The trailer fields that ended the bytes so far, names in lower case.

        None where the bytes do not end in a trailer section after a last chunk: a section over
        16 KiB, or one with the next request already behind it, counts as not sent (A-01).
        """
        return parse_trailers(b"".join(self._pieces)[-TAIL_BYTES:])


# trailer-section = *( field-line CRLF ); it stands between the last chunk and an empty line (RFC 9112 7.1)
def parse_trailers(tail: bytes) -> dict[str, str] | None:
    """Walks back from the empty line to the last-chunk line; None if that is not how the bytes end."""
    lines = tail.split(b"\r\n")
    if lines[-2:] != [b"", b""]:
        return None
    fields: dict[str, str] = {}
    for line in reversed(lines[:-2]):
        if _LAST_CHUNK.fullmatch(line):
            return fields
        name, colon, value = line.partition(b":")
        # a request line is none: it has a space before any colon
        if not colon or not _NAME.fullmatch(name):
            return None
        fields[name.decode("latin-1").lower()] = value.strip(b" \t").decode("latin-1")
    return None
