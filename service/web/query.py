"""What a request's query says: the link's token, and how long to wait."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from service.protocol.problems import refuse

#: `wait` holds an answer at most this long (contract, section 3)
MOST_WAIT_SECONDS: Final = 20.0
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")


def token_of(request: web.Request) -> str | None:
    """The token of `?sig=` or `Authorization: Bearer`, None without either."""
    sig = request.query.get("sig")
    return sig if sig is not None else bearer_of(request)


def bearer_of(request: web.Request) -> str | None:
    """The token of `Authorization: Bearer`, None without: a service token in an address would be kept by proxies."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def wait_of(request: web.Request) -> float:
    """`?wait=` in seconds, capped; 0 without it.

    Raises:
        Refusal: bad-header, for what is no number of seconds.
    """
    text = request.query.get("wait", "0")
    if not _SECONDS.fullmatch(text):
        raise refuse("bad-header", f"wait must be a number of seconds, at most {MOST_WAIT_SECONDS:.0f}")
    return min(float(text), MOST_WAIT_SECONDS)
