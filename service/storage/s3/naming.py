"""What things are called in the bucket, and in the ledger.

    {prefix}{name}/file           what the parts of a multipart upload become
    {prefix}{name}/file.{fresh}   a file that is no larger than a part, put at once
    {prefix}{name}/tail.{fresh}   a tail segment

An upload's *name* is the first half of its id. Whoever is sent to the store for a file sees its
key, and must not learn the upload's address from it: the other 65 random bits stay secret. A
fresh name is never used again, so that a writer that was asleep replaces nothing (lesson L2).

The ledger's `Part.key` is `m:{name}:{UploadId}` for a part of that multipart upload, and
`o:{name}/{...}` for an object.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from service.model import Part

NAME_LENGTH: Final = 15
#: how the names of uploads begin
START: Final = "u_"
FILE: Final = "file"
_TAIL: Final = "tail."
_SMALL: Final = "file."


#: every key that is ever made here
_KEY: Final = re.compile(r"u_[a-z2-7]{13}/(?:file|(?:file|tail)\.[0-9a-f]{16})")


def is_ours(key: str) -> bool:
    """Whether attachd made the key; others in the same place are nobody's to remove."""
    return _KEY.fullmatch(key) is not None


def name_of(upload_id: str) -> str:
    """The name of an upload; of a name, itself."""
    return upload_id[:NAME_LENGTH]


def file_key(name: str) -> str:
    """Where the parts of the upload's multipart upload become one object."""
    return f"{name}/{FILE}"


def fresh_file_key(name: str) -> str:
    """A key for a small whole file, never used before."""
    return f"{name}/{_SMALL}{secrets.token_hex(8)}"


def fresh_tail_key(name: str) -> str:
    """A key for a tail segment, never used before."""
    return f"{name}/{_TAIL}{secrets.token_hex(8)}"


def is_file(key: str) -> bool:
    """Whether a finished file may lie there, as opposed to a tail segment."""
    last = key.rpartition("/")[2]
    return last == FILE or last.startswith(_SMALL)


def name_in(key: str) -> str:
    """The name of the upload whose key it is."""
    return key.partition("/")[0]


def multipart_part_key(name: str, multipart_id: str) -> str:
    """The ledger's key for a part of a multipart upload."""
    return f"m:{name}:{multipart_id}"


def object_part_key(key: str) -> str:
    """The ledger's key for an object."""
    return f"o:{key}"


def object_in(part_key: str) -> str:
    """The object that such a key of the ledger names. Raises ValueError: it names none."""
    if not part_key.startswith("o:"):
        raise ValueError("no key of an object")
    return part_key[2:]


def multipart_of(part: Part) -> str | None:
    """The multipart upload that the part belongs to; None: it is an object."""
    return part.key.split(":", 2)[2] if part.key.startswith("m:") else None


def object_of(part: Part) -> str:
    """The key that holds the part's bytes: of an object of its own, or the completed multipart upload's."""
    if part.key.startswith("m:"):
        return file_key(part.key.split(":", 2)[1])
    return object_in(part.key)


def part_tag(etag: str, checksum: str | None) -> str:
    """What the ledger keeps of a stored part, to name it at the end: its ETag, and the checksum that came along."""
    return f"{etag} {checksum}" if checksum else etag


def named_part(tag: str) -> dict[str, str]:
    """The same as CompleteMultipartUpload takes it."""
    etag, _, checksum = tag.partition(" ")
    return {"ETag": etag, "ChecksumCRC32C": checksum} if checksum else {"ETag": etag}


def is_checked(tag: str) -> bool:
    """Whether the part came with a checksum, as all parts of its multipart upload must then."""
    return " " in tag
