"""Which protocol and which method a request means (T-000a to T-000e, T-040 to T-043).

aiohttp chooses a route before any middleware runs, so one route takes all methods and asks here.
"""

from __future__ import annotations

from typing import Final

from service.model import Protocol
from service.protocol.fields import Fields, single
from service.protocol.problems import Refusal, refuse

TUS_VERSION: Final = "1.0.0"
_IETF_FIELDS: Final = ("Upload-Complete", "Upload-Incomplete", "Upload-Draft-Interop-Version")
_IETF_TYPE: Final = "application/partial-upload"
#: the methods that tus gives a meaning, and so a version (T-003); OPTIONS ignores it (T-013)
_VERSIONED: Final = ("POST", "HEAD", "GET", "PATCH", "DELETE")
METHODS: Final = ("OPTIONS", *_VERSIONED, "PUT")


def effective_method(method: str, fields: Fields, allowed: tuple[str, ...]) -> str:
    """The method after `X-HTTP-Method-Override`, which wins over any actual one (T-042).

    A wrong tus version is told before a method that is not served (T-000g).

    Raises:
        Refusal: method-not-allowed, with `Allow`; version-unsupported.
    """
    override = single(fields, "X-HTTP-Method-Override")
    meant = method if override is None else override.upper()
    if meant in _VERSIONED and has_tus(fields):
        check_tus_version(fields)
    if meant not in METHODS or meant not in allowed:
        raise refuse(
            "method-not-allowed",
            "this address serves " + ", ".join(allowed),
            headers=(("Allow", ", ".join(allowed)),),
            close=True,
        )
    return meant


def has_tus(fields: Fields) -> bool:
    """Whether the request speaks tus: the header decides, whatever else is there (T-000a)."""
    return bool(fields.getall("Tus-Resumable", []))


def protocol_of(fields: Fields) -> Protocol | None:
    """The protocol the request is framed for, None without any marker.

    URLSession adds the IETF fields to every upload task, so tus goes first (T-000a, T-000b).
    """
    if has_tus(fields):
        return Protocol.TUS
    content_type = (single(fields, "Content-Type") or "").partition(";")[0].strip().lower()
    if content_type == _IETF_TYPE or any(fields.getall(name, []) for name in _IETF_FIELDS):
        return Protocol.IETF
    return None


def check_tus_version(fields: Fields) -> None:
    """Raises version-unsupported unless `Tus-Resumable` is one we speak (T-003)."""
    if single(fields, "Tus-Resumable") != TUS_VERSION:
        raise version_refusal()


def version_refusal() -> Refusal:
    """412 with `Tus-Version`: the request has no protocol, or one that is not served (T-001)."""
    return refuse(
        "version-unsupported",
        f"send Tus-Resumable: {TUS_VERSION}",
        headers=(("Tus-Version", TUS_VERSION),),
        close=True,
    )


def refuse_ietf(fields: Fields) -> Refusal:
    """The IETF dialect is recognised, so that it is never mistaken for tus, but not served.

    A malformed `Upload-Complete` is told apart (T-000e).
    """
    complete = single(fields, "Upload-Complete")
    if complete is not None and complete.partition(";")[0].strip() not in ("?0", "?1"):
        return refuse("bad-header", "Upload-Complete must be ?0 or ?1", close=True)
    return version_refusal()
