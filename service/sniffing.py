"""What a file's first bytes say it is. Declared types are claims; this is evidence.

Magic numbers are `filetype`'s. It knows none of text, and a browser is one for which text can be a
page: so markup is looked for as browsers do (WHATWG, MIME Sniffing, 7.1), and further, behind a
prologue, which they would skip once they took it for markup. Two faults of the library are made
good: MP4 as browsers record it (fragmented, under newer brands) is not known to it, and two or
three letters at the start of a text are enough for it to see a picture, a song or a program.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

import filetype

#: bytes from the start of a file that `sniff` wants to see
SNIFF_BYTES: Final = 8192

#: what the library tells by less than four bytes that are letters: "BM", "MZ", "ID3"
_BRIEF: Final = frozenset({"image/bmp", "application/x-msdownload", "audio/mpeg"})
#: a binary data byte (WHATWG, MIME Sniffing, 3)
_BINARY: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")

# ftyp-box = size "ftyp" major-brand minor-version *compatible-brand (ISO/IEC 14496-12 4.3)
_VIDEO_BRAND: Final = re.compile(rb"(?s).{4}ftyp(?:iso[2-9a-c]|avc1|dash|cmf[c2]|msdh|MSNV|[fF]4V |mp7[12])")
_AUDIO_BRAND: Final = re.compile(rb"(?s).{4}ftyp(?:M4[BP] |[fF]4[aAbB] )")

# Possessive, so that hostile input costs one pass. A comment, doctype or instruction without an end takes all.
_PROLOGUE: Final = re.compile(
    rb"(?s)\s*+(?:(?:<!--.*?(?:-->|\Z)|<\?.*?(?:\?>|\Z)|<!DOCTYPE\s++(?!html)[^>\[]*+(?:\[[^\]]*+\]\s*+)?>)\s*+)*+",
    re.IGNORECASE,
)
# tag = one of the table's names and a tag-terminating byte, or the head's end (WHATWG, MIME Sniffing, 7.1)
_HTML: Final = re.compile(
    rb"<(?:!DOCTYPE\s+html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p)(?:[\s>/]|\Z)",
    re.IGNORECASE,
)
_XHTML: Final = re.compile(rb"<(?:!DOCTYPE\s++html|(?:[a-z]+:)?html)(?:[\s>/]|\Z)", re.IGNORECASE)
_SVG: Final = re.compile(rb"<(?:[a-z]+:)?svg(?:[\s>/]|\Z)", re.IGNORECASE)
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def sniff(head: bytes) -> str | None:
    """The media type of content that begins so; None for plain text and anything unknown."""
    guess = filetype.guess(head)
    if guess is not None and (guess.mime not in _BRIEF or _BINARY.search(head)):
        return str(guess.mime)
    if _VIDEO_BRAND.match(head):
        return "video/mp4"
    if _AUDIO_BRAND.match(head):
        return "audio/mp4"
    return _markup(_text(head))


def _text(head: bytes) -> bytes:
    """The head in a coding of which ASCII is a part."""
    for mark, coding in _MARKS:
        if head.startswith(mark):
            return head.removeprefix(mark).decode(coding, "ignore").encode()
    return head


def _markup(text: bytes) -> str | None:
    prologue = _PROLOGUE.match(text)
    at = prologue.end() if prologue else 0
    if _SVG.match(text, at):
        return "image/svg+xml"
    # in XML an element of any name may be called as one of HTML
    page = _XHTML if text.lstrip().startswith(b"<?xml") else _HTML
    return "text/html" if page.match(text, at) else None
