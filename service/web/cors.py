"""CORS on every response, errors included: without it a script sees status 0 (lesson R4, T-0E0 to T-0E3)."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from service.protocol.problems import refuse

METHODS: Final = "POST, HEAD, PATCH, OPTIONS, GET, DELETE, PUT"
ALLOW_HEADERS: Final = ", ".join(
    (
        "Authorization",
        "Origin",
        "X-Requested-With",
        "X-Request-ID",
        "X-HTTP-Method-Override",
        "Content-Type",
        "Content-Disposition",
        "Content-Encoding",
        "Upload-Length",
        "Upload-Offset",
        "Tus-Resumable",
        "Upload-Metadata",
        "Upload-Defer-Length",
        "Upload-Concat",
        "Upload-Checksum",
        "Upload-Incomplete",
        "Upload-Complete",
        "Upload-Draft-Interop-Version",
        "Content-Digest",
        "Repr-Digest",
        "Want-Content-Digest",
        "Want-Repr-Digest",
    )
)
EXPOSE_HEADERS: Final = ", ".join(
    (
        "Upload-Offset",
        "Location",
        "Upload-Length",
        "Tus-Version",
        "Tus-Resumable",
        "Tus-Max-Size",
        "Tus-Extension",
        "Tus-Checksum-Algorithm",
        "Upload-Metadata",
        "Upload-Defer-Length",
        "Upload-Concat",
        "Upload-Expires",
        "Upload-Incomplete",
        "Upload-Complete",
        "Upload-Limit",
        "Upload-Draft-Interop-Version",
        "Repr-Digest",
        "Content-Digest",
        "Retry-After",
        "X-Request-ID",
        "Attachd-File-Id",
    )
)
#: seconds a browser may remember a preflight
_MAX_AGE: Final = "86400"


class Cors:
    """Exact origins, or `*` for any; cookies are never used, so any is no risk."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)

    def check(self, request: web.Request) -> None:
        """Raises origin-refused for a page that is not on the list (T-0E3)."""
        origin = request.headers.get("Origin")
        if origin is not None and not self._allowed(origin):
            raise refuse("origin-refused", "this origin may not use the service", close=True)

    def decorate(self, request: web.Request, response: web.StreamResponse) -> None:
        """The headers that let the page read the answer."""
        origin = request.headers.get("Origin")
        if origin is None or not self._allowed(origin):
            return
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers.add("Vary", "Origin")
        response.headers["Access-Control-Expose-Headers"] = EXPOSE_HEADERS
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response.headers["Access-Control-Allow-Methods"] = METHODS
            response.headers["Access-Control-Allow-Headers"] = ALLOW_HEADERS
            response.headers["Access-Control-Max-Age"] = _MAX_AGE

    def _allowed(self, origin: str) -> bool:
        return self._any or origin in self._origins
