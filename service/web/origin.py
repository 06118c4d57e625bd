"""Where the service seems to be, as its clients see it (lesson K1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from aiohttp import web

from service.model import UploadId

_HOST: Final = re.compile(r"[A-Za-z0-9._~\-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


class Origin:
    """Base URLs of replies: the configured one, else what the request says.

    `X-Forwarded-Proto`, `-Host` and `-Prefix` count only from listed proxies; from anyone else
    they would let a client choose where others are sent.
    """

    def __init__(self, public_url: str | None, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        self._public_url = public_url
        self._trusted = tuple(trusted)

    def base(self, request: web.Request) -> str:
        """`scheme://host[/prefix]`, no slash at the end."""
        if self._public_url is not None:
            return self._public_url
        scheme, host, prefix = request.scheme, request.headers.get("Host", ""), ""
        if self.trusts(request):
            scheme = self._first(request, "X-Forwarded-Proto", scheme)
            host = self._first(request, "X-Forwarded-Host", host)
            prefix = self._first(request, "X-Forwarded-Prefix", "").rstrip("/")
        if scheme not in ("http", "https") or not _HOST.fullmatch(host):
            host, scheme = self._own(request), "http"
        return f"{scheme}://{host}{prefix if re.fullmatch(r'(/[A-Za-z0-9._~-]+)*', prefix) else ''}"

    def upload(self, request: web.Request, upload_id: UploadId) -> str:
        """The absolute `Location` of an upload (T-051)."""
        return f"{self.base(request)}/files/{upload_id}"

    def trusts(self, request: web.Request) -> bool:
        """Whether the peer is a listed proxy."""
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        if not self._trusted or not isinstance(peer, tuple):
            return False
        address = ip_address(peer[0].partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._trusted if network.version == mapped.version)

    @staticmethod
    def _first(request: web.Request, name: str, default: str) -> str:
        return request.headers.get(name, default).partition(",")[0].strip() or default

    @staticmethod
    def _own(request: web.Request) -> str:
        """The address that was connected to, for a client that names no usable host (HTTP/1.0)."""
        name = request.transport.get_extra_info("sockname") if request.transport is not None else None
        if not isinstance(name, tuple):
            return "localhost"
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
