"""The claims of a link: which a token has, of which type, in which range (contract, section 4).

One table for each kind of token; what is minted and what is verified pass the same one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from service.model import FILE_ID

MAX_COUNT: Final = (1 << 63) - 1
MAX_USES: Final = 1000
#: 100 years: further away, dates stop being representable
MAX_LIFE_SECONDS: Final = 3_155_760_000
MAX_TYPES: Final = 64
MAX_META_BYTES: Final = 1024

#: Returns the value to use, or raises ValueError with what the claim must be.
Check: TypeAlias = Callable[[Any], Any]
#: claim -> (required, check)
Table: TypeAlias = dict[str, tuple[bool, Check]]


class ClaimError(ValueError):
    """A claim is missing, of the wrong type or out of range; names the claim, not its value."""


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        # type(), not isinstance(): JSON true is an int to Python
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return value

    return check


def _text(pattern: re.Pattern[str], must: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"must be {must}")
        return value

    return check


def _instant(value: Any) -> int | float:
    # RFC 7519 2, NumericDate: fractions are allowed. NaN fails the comparison.
    if type(value) not in (int, float) or not 0 <= value < 1 << 53:
        raise ValueError("must be seconds since 1970 as a number")
    return value  # type: ignore[no-any-return]


def _ref(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable():
        raise ValueError("must be 1 to 256 printable characters")
    return value


def _filename(value: Any) -> str:
    # Whatever can be written as UTF-8: a lone surrogate could not be sent in a header. What is
    # unfit for a header or a disk is cut where the name is used (lesson G3).
    if not isinstance(value, str) or not 1 <= len(value) <= 255 or re.search("[\ud800-\udfff]", value):
        raise ValueError("must be text of 1 to 255 characters")
    return value


_RESTRICTED_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838 4.2
_MEDIA_RANGE: Final = re.compile(rf"{_RESTRICTED_NAME}/(?:{_RESTRICTED_NAME}|\*)")


def _types(value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MAX_TYPES
        or not all(isinstance(item, str) and _MEDIA_RANGE.fullmatch(item) for item in value)
    ):
        raise ValueError(f"must be a list of 1 to {MAX_TYPES} media types, like image/png or image/*")
    return tuple(item.lower() for item in value)


def _meta(value: Any) -> dict[str, Any]:
    must = f"must be a JSON object of at most {MAX_META_BYTES} bytes"
    if not isinstance(value, dict):
        raise ValueError(must)
    try:
        size = len(dump(value))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(must) from None
    if size > MAX_META_BYTES:
        raise ValueError(must)
    return value


def _audience(value: Any) -> tuple[str, ...]:
    audiences = [value] if isinstance(value, str) else value
    if not isinstance(audiences, list) or not audiences or not all(isinstance(item, str) for item in audiences):
        raise ValueError("must be text or a list of texts")
    return tuple(audiences)


_JTI: Final = _text(re.compile(r"[A-Za-z0-9_-]{16,128}"), "16 to 128 of A-Z a-z 0-9 _ -, at least 96 random bits")
_OWNER: Final = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
_SUB: Final = _text(_OWNER, "1 to 128 of A-Z a-z 0-9 . _ : @ -")
_FID: Final = _text(FILE_ID, "f_ and 26 of a-z 2-7")

_COMMON: Final[Table] = {
    "aud": (True, _audience),
    "iat": (True, _instant),
    "nbf": (False, _instant),
    "exp": (True, _instant),
}
UPLOAD: Final[Table] = _COMMON | {
    "jti": (True, _JTI),
    "max": (True, _integer(0, MAX_COUNT)),
    "size": (False, _integer(0, MAX_COUNT)),
    "types": (False, _types),
    "sub": (False, _SUB),
    "uses": (False, _integer(1, MAX_USES)),
    "fid": (False, _FID),
    "sha256": (False, _text(re.compile("[0-9a-f]{64}"), "64 lower-case hex digits")),
    "hold": (False, _integer(1, MAX_LIFE_SECONDS)),
    "ttl": (False, _integer(1, MAX_LIFE_SECONDS)),
    "ref": (False, _ref),
    "meta": (False, _meta),
}
DOWNLOAD: Final[Table] = _COMMON | {
    "jti": (False, _JTI),
    "fid": (True, _FID),
    "sub": (False, _SUB),
    "filename": (False, _filename),
    "disposition": (False, _text(re.compile("inline|attachment"), "inline or attachment")),
}
SERVICE: Final[Table] = _COMMON | {"jti": (False, _JTI), "sub": (False, _SUB)}


def is_owner(text: str) -> bool:
    """Whether the text can be an owner."""
    return _OWNER.fullmatch(text) is not None


def is_ref(text: str) -> bool:
    """Whether the text can be a reference."""
    try:
        _ref(text)
    except ValueError:
        return False
    return True


def read(claims: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """The claims of the table, each of the right type and in range. Raises ClaimError."""
    values: dict[str, Any] = {}
    for name, (required, check) in table.items():
        if name in claims:
            try:
                values[name] = check(claims[name])
            except ValueError as error:
                raise ClaimError(f"{name} {error}") from None
        elif required:
            raise ClaimError(f"{name} is missing")
    if values["exp"] <= values["iat"]:
        raise ClaimError("exp must be later than iat")
    if values.get("size", 0) > values.get("max", MAX_COUNT):
        raise ClaimError("size must not be more than max")
    if values.get("uses", 1) > 1 and "fid" in values:
        raise ClaimError("uses must be 1 where fid fixes the file")
    return values


def dump(value: Any) -> bytes:
    """Compact JSON in UTF-8. Raises ValueError for NaN, infinities and lone surrogates."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
