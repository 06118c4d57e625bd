"""Header grammars: text in, values or a Refusal out. The ABNF stands above each parser.

Parsers are strict where a lax reading would drop or invent bytes, and lenient only where a
published client needs it (the rule that says so is named).
"""

from __future__ import annotations

import base64
import binascii
import re
from email.utils import formatdate
from functools import lru_cache
from typing import Final, Protocol
from urllib.parse import unquote

from service.hashing import ALGORITHMS
from service.model import ConcatKind, UploadId, parse_upload_id
from service.protocol.intents import ChecksumClaim, Framing
from service.protocol.problems import refuse

#: tus decoded metadata may be this many bytes in all (T-088)
METADATA_LIMIT: Final = 16 * 1024

_INTEGER: Final = re.compile(r"[0-9]{1,19}")
_INTEGER_END: Final = 2**63
_KEY: Final = re.compile(r"[!-+\--~]+")
_UPLOAD_PATH: Final = re.compile(r"(?:[^?#]*/)?files/([^/?#]+)")
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")


class Fields(Protocol):
    """The request's header fields, names in any case, repeats kept."""

    def getall(self, key: str, default: list[str]) -> list[str]: ...


def single(fields: Fields, name: str) -> str | None:
    """The field's value, None if absent. Repeats are refused (T-004): aiohttp would take the first."""
    values = fields.getall(name, [])
    if len(values) > 1:
        raise refuse("bad-header", f"{name} was sent more than once")
    return values[0].strip(" \t") if values else None


#: fields that mean one value; a list is no value (T-004)
_ONCE: Final = (
    "Tus-Resumable",
    "Upload-Offset",
    "Upload-Length",
    "Upload-Checksum",
    "Upload-Concat",
    "Upload-Defer-Length",
)


def refuse_repeats(fields: Fields) -> None:
    """Raises bad-header if a protocol field was sent more than once, also one that the request does not need."""
    for name in _ONCE:
        single(fields, name)


# 1*19DIGIT, below 2^63 (T-005)
def parse_integer(name: str, text: str) -> int:
    """The value in bytes. `-1`, `+5`, `5.0`, `0x5`, `1e3` and the empty string are refused."""
    if not _INTEGER.fullmatch(text) or int(text) >= _INTEGER_END:
        raise refuse("bad-header", f"{name} must be a whole number of bytes from 0 to 2^63-1")
    return int(text)


def integer(fields: Fields, name: str) -> int | None:
    """The field as a number of bytes, None if absent."""
    text = single(fields, name)
    return None if text is None else parse_integer(name, text)


# metadata = [ pair *( OWS "," OWS pair ) ]; pair = key [ SP [ base64 ] ]
# key = 1*( %x21-2B / %x2D-7E ); base64 as RFC 4648 section 4, padded
def parse_metadata(fields: Fields) -> tuple[str | None, dict[str, bytes]]:
    """`Upload-Metadata` as sent (lines joined, T-086) and its decoded pairs.

    `key` and `key ` (T-081, tus-js-client sends the latter for '') both mean an empty value. An
    empty header is as none (T-058, tuspy always sends one).
    """
    lines = fields.getall("Upload-Metadata", [])
    raw = ",".join(lines)
    if not raw.strip(" \t"):
        return None, {}
    pairs: dict[str, bytes] = {}
    for entry in raw.split(","):
        key, _, value = entry.lstrip(" \t").partition(" ")
        value = value.rstrip(" \t") if not value.startswith(" ") else value
        if not _KEY.fullmatch(key):
            raise refuse("bad-metadata", "each key of Upload-Metadata must be ASCII without spaces and commas")
        if key in pairs:
            raise refuse("bad-metadata", "a key of Upload-Metadata was sent twice")
        pairs[key] = _base64(value, "bad-metadata", "each value of Upload-Metadata must be padded base64")
    if sum(len(value) for value in pairs.values()) > METADATA_LIMIT:
        raise refuse("bad-metadata", f"the values of Upload-Metadata may have {METADATA_LIMIT} bytes in all")
    return raw, pairs


def _base64(text: str, slug: str, detail: str) -> bytes:
    try:
        decoded = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise refuse(slug, detail) from error
    # b64decode accepts stray bits in the last character; one value, one spelling
    if base64.b64encode(decoded).decode("ascii") != text:
        raise refuse(slug, detail)
    return decoded


# checksum = algorithm SP base64
def parse_checksum(text: str) -> ChecksumClaim:
    """tus 1.0.0, Checksum. An unknown algorithm is `checksum-unsupported`, any other flaw `bad-header`."""
    algorithm, space, encoded = text.partition(" ")
    if not space or not algorithm:
        raise refuse("bad-header", "Upload-Checksum must be an algorithm, one space and a base64 digest")
    known = ALGORITHMS.get(algorithm)
    if known is None:
        raise refuse("checksum-unsupported", "see Tus-Checksum-Algorithm of OPTIONS for the algorithms served")
    digest = _base64(encoded, "bad-header", "the digest of Upload-Checksum must be padded base64")
    if len(digest) != known.digest_length:
        raise refuse("bad-header", f"a digest of {algorithm} has {known.digest_length} bytes")
    return ChecksumClaim(algorithm, digest)


# concat = "partial" / "final;" *SP url *( 1*SP url )
def parse_concat(text: str) -> tuple[ConcatKind, tuple[UploadId, ...]]:
    """tus 1.0.0, Concatenation. URLs may be absolute or paths; scheme and host are ignored (T-0C2).

    Raises:
        Refusal: bad-header for the grammar, not-found for a path that is no upload of ours (T-0CA).
    """
    if not text.isascii():
        # such bytes could neither be kept nor echoed
        raise refuse("bad-header", "Upload-Concat must be ASCII")
    if text == "partial":
        return ConcatKind.PARTIAL, ()
    kind, semicolon, rest = text.partition(";")
    urls = rest.split()
    if kind != "final" or not semicolon or not urls:
        raise refuse("bad-header", "Upload-Concat must be 'partial' or 'final;' and the partials' URLs")
    return ConcatKind.FINAL, tuple(_upload_of(url) for url in urls)


def _upload_of(url: str) -> UploadId:
    path = re.sub(r"\A[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", "", url)
    match = _UPLOAD_PATH.fullmatch(path)
    found = parse_upload_id(unquote(match[1])) if match else None
    if found is None:
        raise refuse("not-found", "an entry of Upload-Concat is not an upload of this service")
    return found


def media_type(text: str | None) -> str | None:
    """The media type in lower case without parameters; None if absent or no media type."""
    essence = (text or "").partition(";")[0].strip(" \t").lower()
    return essence if _MEDIA_TYPE.fullmatch(essence) else None


# Transfer-Encoding = #transfer-coding
def parse_framing(fields: Fields) -> Framing:
    """What the HTTP framing says about the body (RFC 9112, section 6); the server checked its syntax.

    Raises:
        Refusal: bad-header for a coding other than chunked alone: its bytes would be stored as the file's.
    """
    announced = frozenset(
        name.strip().lower() for line in fields.getall("Trailer", []) for name in line.split(",") if name.strip()
    )
    codings = [name.strip(" \t").lower() for line in fields.getall("Transfer-Encoding", []) for name in line.split(",")]
    if any(codings):
        if [name for name in codings if name] != ["chunked"]:
            raise refuse("bad-header", "chunked is the only transfer coding served", close=True)
        return Framing(None, chunked=True, trailers=announced)
    length = fields.getall("Content-Length", [])
    return Framing(int(length[0]) if length and length[0].strip().isdigit() else 0)


def http_date(instant: float) -> str:
    """IMF-fixdate (RFC 9110 5.6.7): tusgo parses `Upload-Expires` strictly (T-092)."""
    return _date_of(int(instant))


@lru_cache(maxsize=256)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


def text_of(pairs: dict[str, bytes], *names: str) -> str | None:
    """The first named metadata value that is UTF-8 text; opaque bytes are no name (T-087)."""
    for name in names:
        value = pairs.get(name)
        if value:
            try:
                return value.decode("utf-8")[:1024]
            except UnicodeDecodeError:
                continue
    return None
