"""Which bytes of a finished file a download answers with, and under which name and type.

RFC 9110: preconditions (13.2.2) come first, `Range` (14.2) and `If-Range` (13.1.5) after them.
Only here are HTTP's inclusive ranges spoken; a ReadPlan is half-open like everything else.
The bytes of a file never change, so its ETag is strong and its date an exact validator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from typing import Final
from urllib.parse import quote

from service.model import Manifest
from service.protocol.media import same_content

#: The request fields that `plan_read` looks at; repeated ones must be joined with ", " (RFC 9110 5.3).
CONDITIONAL_FIELDS: Final = (
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "If-Range",
    "Range",
)

# entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE; etagc may contain commas (RFC 9110 8.8.3)
_ENTITY_TAG: Final = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_ENTITY_TAGS: Final = re.compile(rf"[ \t,]*{_ENTITY_TAG}(?:[ \t]*,[ \t,]*{_ENTITY_TAG})*[ \t,]*")
_FIND_TAG: Final = re.compile(_ENTITY_TAG)
# ranges-specifier = range-unit "=" range-set, with one range-spec (RFC 9110 14.1.1, 14.1.2)
_ONE_RANGE: Final = re.compile(r"bytes=[ \t,]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t,]*", re.IGNORECASE)
#: more digits than any size has; int() refuses texts of thousands of digits
_DIGITS: Final = 19


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """The answer to a download: status, the bytes [start, end) of the body, `Content-Range` if any.

    200 and 206 have a body; 304, 412 and 416 have none of the file's bytes.
    """

    status: int
    start: int = 0
    end: int = 0
    content_range: str | None = None

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return self.end - self.start


def etag(manifest: Manifest) -> str:
    """The strong entity tag, quotes included (contract, section 6)."""
    return f'"{(manifest.sha256_root or manifest.root).hex()}"'


def http_date(instant: float) -> str:
    """`Last-Modified` as IMF-fixdate: the whole second."""
    return formatdate(int(instant), usegmt=True)


def plan_read(headers: Mapping[str, str], method: str, *, size: int, etag: str, last_modified: float) -> ReadPlan:
    """What to answer to a GET or HEAD with these fields. Malformed fields are as good as absent.

    Args:
        headers: by the names of CONDITIONAL_FIELDS.
        size: bytes of the file.
        etag: as `etag()` gives it.
        last_modified: seconds since the epoch; fractions are dropped as in the header.

    Spec: RFC 9110 13.2.2 (the order), 14.2; lesson G2.
    """
    modified = int(last_modified)
    # 1. and 2.: the client wants this very file or nothing
    if (wanted := headers.get("If-Match")) is not None:
        if not _matches(wanted, etag, weak=False):
            return ReadPlan(412)
    elif (date := _date(headers.get("If-Unmodified-Since"))) is not None and modified > date:
        return ReadPlan(412)
    # 3. and 4.: the client has it already
    if (known := headers.get("If-None-Match")) is not None:
        if _matches(known, etag, weak=True):
            return ReadPlan(304)
    elif (date := _date(headers.get("If-Modified-Since"))) is not None and modified <= date:
        return ReadPlan(304)
    # 5.: Range is defined for GET only
    asked = headers.get("Range")
    if method == "GET" and asked is not None and _same_file(headers.get("If-Range"), etag, modified):
        return _plan_range(asked, size)
    return ReadPlan(200, 0, size)


def _plan_range(text: str, size: int) -> ReadPlan:
    """RFC 9110 14.1.2. What is malformed or asks for several ranges gets the whole file (14.2)."""
    whole = ReadPlan(200, 0, size)
    match = _ONE_RANGE.fullmatch(text)
    if match is None:
        return whole
    first, last, suffix = match.groups()
    if suffix is not None:
        count = _number(suffix)
        if count and not size:
            # satisfiable by definition, but no Content-Range can name bytes of an empty file
            return whole
        start, end = max(size - count, 0), size
    else:
        start = _number(first)
        if last and _number(last) < start:
            return whole
        end = min(_number(last) + 1, size) if last else size
    if start >= end:
        return ReadPlan(416, content_range=f"bytes */{size}")
    return ReadPlan(206, start, end, f"bytes {start}-{end - 1}/{size}")


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS else 10**_DIGITS


def _matches(text: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags, or `*`, names the file (RFC 9110 8.8.3.2)."""
    if text.strip(" \t") == "*":
        return True
    if not _ENTITY_TAGS.fullmatch(text):
        return False
    tags = _FIND_TAG.findall(text)
    return etag in tags or (weak and f"W/{etag}" in tags)


def _same_file(if_range: str | None, etag: str, modified: int) -> bool:
    """Whether the part that the client has is of this file: strong tag, or exactly our date (RFC 9110 13.1.5)."""
    if if_range is None:
        return True
    if if_range.lstrip().startswith(('"', "W/")):
        return if_range.strip(" \t") == etag
    return _date(if_range) == modified


def _date(text: str | None) -> int | None:
    """Seconds since the epoch of an HTTP-date; None for none or a malformed one, which is ignored."""
    if text is None:
        return None
    try:
        date = parsedate_to_datetime(text)
        # "-0000" gives a date without a zone, which would be read in the machine's
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# Names and types (lesson G3)

# Controls, lone surrogates, and what changes the direction or the look of a line: LRM, RLM, ALM,
# the embeddings, overrides and isolates, line and paragraph separators, BOM.
_CUT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
#: bytes of a name in UTF-8: most file systems take 255, and a browser may add " (1)" or ".crdownload"
_NAME_LIMIT: Final = 200
_EXTENSION_LIMIT: Final = 20


def safe_filename(name: str | None) -> str | None:
    """The name as it may be offered to, or used by, a file system; None if nothing is left of it.

    One path component: no separators, controls, bidi controls or surrogates, no leading dot,
    at most 200 bytes of UTF-8, keeping a short extension.
    """
    text = _CUT.sub("", name or "")
    text = re.sub(r"[/\\]+", "_", text).strip(" .")
    if len(text.encode()) <= _NAME_LIMIT:
        return text or None
    stem, dot, extension = text.rpartition(".")
    tail = dot + extension if stem and len(extension.encode()) <= _EXTENSION_LIMIT else ""
    head = text[: len(text) - len(tail)].encode()[: _NAME_LIMIT - len(tail.encode())]
    return head.decode(errors="ignore").rstrip(" .") + tail


def content_disposition(filename: str | None, *, inline: bool) -> str:
    """`Content-Disposition` with an ASCII name and the true one (RFC 6266 4.3, RFC 8187 3.2)."""
    kind = "inline" if inline else "attachment"
    name = safe_filename(filename)
    if name is None:
        return kind
    # a "%" in filename= is taken for an escape by some browsers (RFC 6266 D)
    plain = re.sub(r'[^\x20-\x7e]|["%]', "_", name)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


# type-name "/" subtype-name (RFC 6838 4.2), lower case
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
_RASTER: Final = frozenset(
    f"image/{subtype}"
    for subtype in (
        "apng", "avif", "bmp", "gif", "heic", "heif", "jpeg", "png", "tiff", "vnd.microsoft.icon", "webp", "x-icon",
    )
)  # fmt: skip


#: text in which a browser may run script
_MARKUP: Final = frozenset({"text/html", "image/svg+xml"})


def may_inline(media_type: str) -> bool:
    """Whether a browser shows this type without ever running script from it: not HTML, SVG or PDF."""
    return (
        media_type in _RASTER
        or media_type == "text/plain"
        or (media_type.startswith(("audio/", "video/")) and _MEDIA_TYPE.fullmatch(media_type) is not None)
    )


def _essence(media_type: str | None) -> str | None:
    """`type/subtype` in lower case, without parameters; None if it is not in the safe syntax."""
    text = (media_type or "").partition(";")[0].strip(" \t").lower()
    return text if _MEDIA_TYPE.fullmatch(text) else None


def content_type(sniffed: str | None, declared: str | None) -> str:
    """`Content-Type`: what the bytes look like, else what the client said, else octets.

    What was said counts also where the bytes may well be that. Markup that was declared plain text
    stays it, which runs nowhere.
    """
    seen, said = _essence(sniffed), _essence(declared)
    if seen and said and (same_content(seen, said) or (said == "text/plain" and seen in _MARKUP)):
        seen = said
    media_type = seen or said or "application/octet-stream"
    return "text/plain; charset=utf-8" if media_type == "text/plain" else media_type


def shown_inline(sniffed: str | None, declared: str | None, *, asked: bool) -> bool:
    """Whether a file is answered as `inline`: asked for by the link, and of a type seen to be safe.

    Plain text has no signature to sniff; it is what was declared so and looks like nothing else.
    """
    if not asked:
        return False
    if sniffed is None:
        return _essence(declared) == "text/plain"
    return may_inline(_essence(sniffed) or "")
