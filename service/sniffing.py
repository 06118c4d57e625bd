"""What a file's first bytes say it is. Declared types are claims; this is evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import filetype

from service.protocol.decide import type_allowed

#: bytes from the start of a file that `sniff` wants to see
SNIFF_BYTES: Final = 8192


def sniff(head: bytes) -> str | None:
    """The media type by magic number, None for text and anything unknown."""
    guess = filetype.guess(head)
    return str(guess.mime) if guess is not None else None


#: kinds that always carry a magic number: content without one is not of them
_TELLTALE: Final = frozenset({"image", "audio", "video", "font"})


def content_allowed(sniffed: str | None, declared: str | None, allowed: Sequence[str]) -> bool:
    """Whether content may be kept under a link that allows only some types.

    What has no magic number (text, JSON, SVG) passes on its declared type, unless that claims a
    kind that always has one: an HTML page is no `image/png`.
    """
    if not allowed:
        return True
    if sniffed is not None:
        return type_allowed(sniffed, allowed)
    if declared is not None:
        return type_allowed(declared, allowed) and (
            declared.partition("/")[0] not in _TELLTALE or declared == "image/svg+xml"
        )
    return any(entry.partition("/")[0] not in _TELLTALE for entry in allowed)
