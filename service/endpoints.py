"""Who is told of events, and who is asked about uploads: the tables of the settings file.

    [[endpoints]]
    id = "chat"
    url = "https://chat.example.com/attachd/events"
    secrets = ["whsec_…"]
    types = ["file.*"]

    [hooks.pre_create]
    url = "https://chat.example.com/attachd/may-create"
    secrets = ["whsec_…"]
    budget = "3s"
    on_failure = "closed"

They come from the operator's file only: nothing that a client or a link says names an address that
attachd calls (lesson V3). Readers raise ValueError whose words name the field and say what would be
right, and never quote a secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

from service.setting_types import Kind, duration

#: every type of event there is (contract, section 9)
EVENT_TYPES: Final = (
    "upload.created", "upload.expired", "upload.terminated", "upload.failed",
    "file.ready", "file.infected", "file.deleted", "file.corrupt",
)  # fmt: skip
#: connections, rows and series are for each endpoint
MOST_ENDPOINTS: Final = 32
#: a client waits while a hook is asked (contract, section 9)
MOST_BUDGET_SECONDS: Final = 3

Network = IPv4Network | IPv6Network
OnFailure = Literal["open", "closed"]
HookName = Literal["pre_create", "pre_finish"]

_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MARK: Final = "whsec_"
#: Standard Webhooks, Signature scheme: the bytes of a secret
_SECRET_BYTES: Final = range(24, 65)
_PATTERNS: Final = frozenset(EVENT_TYPES) | {"upload.*", "file.*"}
_NUMERIC: Final = re.compile(r"[0-9.]+")
#: RFC 6052: IPv4 addresses as translators have them
_NAT64: Final = IPv6Network("64:ff9b::/96")
#: RFC 4291 2.4: all the rest is special, or not given out
_UNICAST: Final = IPv6Network("2000::/3")
_QUERY: Final = re.compile(r"\?.*", re.DOTALL)

_URL_IS: Final = "http:// or https:// and a host, perhaps a path and a query, such as https://chat.example.com/events"
_SECRETS_ARE: Final = "one secret or two (while one replaces the other), each whsec_ and base64 of 24 to 64 bytes"


@dataclass(frozen=True, slots=True)
class Target:
    """Where signed JSON is sent. Two secrets are valid at once while one replaces the other."""

    url: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    @property
    def shown(self) -> str:
        """The URL for people: a query may hold what is secret."""
        return _QUERY.sub("?***", self.url)

    @property
    def address(self) -> str | None:
        """The address in the URL, where that is no name."""
        host = urlsplit(self.url).hostname or ""
        try:
            ip_address(host)
        except ValueError:
            return None
        return host


@dataclass(frozen=True, slots=True)
class Endpoint(Target):
    """A receiver of events."""

    id: str = ""
    #: types of events, `file.*` for all of a kind; empty: all
    types: tuple[str, ...] = ()

    def wants(self, kind: str) -> bool:
        """Whether events of that type go there."""
        return not self.types or kind in self.types or f"{kind.partition('.')[0]}.*" in self.types


@dataclass(frozen=True, slots=True)
class Hook(Target):
    """Who may refuse an upload."""

    #: seconds until no answer is a failure
    budget: float = MOST_BUDGET_SECONDS
    #: what a failure comes to: `open` lets the upload pass, `closed` has the client try again
    on_failure: OnFailure = "closed"


@dataclass(frozen=True, slots=True)
class HookSet:
    """The hooks there are."""

    pre_create: Hook | None = None
    pre_finish: Hook | None = None


def endpoints() -> Kind:
    """Tables of endpoints; as text only empty, for none."""
    return Kind(_read_endpoints, lambda items: "; ".join(_shown(item.id, item, item.types) for item in items))


def hooks() -> Kind:
    """The tables of the two hooks; as text only empty, for none."""
    return Kind(_read_hooks, _show_hooks)


def _shown(name: str, target: Target, more: tuple[str, ...]) -> str:
    return " ".join([name, target.shown, f"secrets={len(target.secrets)}", *more])


def _show_hooks(held: HookSet) -> str:
    there = {"pre_create": held.pre_create, "pre_finish": held.pre_finish}
    return "; ".join(
        _shown(name, hook, (f"budget={hook.budget:g}s", f"on_failure={hook.on_failure}"))
        for name, hook in there.items()
        if hook is not None
    )


def _read_endpoints(value: object) -> tuple[Endpoint, ...]:
    right = "tables [[endpoints]] of the settings file, each with id, url and secrets"
    if value == "":
        return ()
    if not isinstance(value, list):
        raise ValueError(right)
    if len(value) > MOST_ENDPOINTS:
        raise ValueError(f"at most {MOST_ENDPOINTS} endpoints")
    found = tuple(_read_endpoint(item, f"endpoint {number}") for number, item in enumerate(value, 1))
    ids = [endpoint.id for endpoint in found]
    for name in ids:
        if ids.count(name) > 1:
            raise ValueError(f"endpoints with an id each: {name} is there twice")
    return found


def _read_endpoint(value: object, where: str) -> Endpoint:
    table = _table(value, where, {"id", "url", "secrets"}, {"types"})
    name = table["id"]
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise ValueError(f"right in the id of {where}: 1 to 32 of a-z, 0-9 and hyphens, no hyphen in front")
    where = f"endpoint {name}"
    types = table.get("types", [])
    if not isinstance(types, list) or not all(each in _PATTERNS for each in types):
        raise ValueError(f"right in the types of {where}: a list of {', '.join(EVENT_TYPES)}, upload.* or file.*")
    return Endpoint(_url(table["url"], where), _secrets(table["secrets"], where), name, tuple(types))


def _read_hooks(value: object) -> HookSet:
    right = "tables [hooks.pre_create] and [hooks.pre_finish] of the settings file, each with url and secrets"
    if value == "":
        return HookSet()
    if not isinstance(value, dict) or value.keys() - {"pre_create", "pre_finish"}:
        raise ValueError(right)
    return HookSet(**{name: _read_hook(table, f"hook {name}") for name, table in value.items()})


def _read_hook(value: object, where: str) -> Hook:
    table = _table(value, where, {"url", "secrets"}, {"budget", "on_failure"})
    budget = duration(1, MOST_BUDGET_SECONDS)
    try:
        seconds = cast("float", budget.read(table.get("budget", MOST_BUDGET_SECONDS)))
    except ValueError as error:
        raise ValueError(f"right in the budget of {where}: {error}") from None
    on_failure = table.get("on_failure", "closed")
    if on_failure not in ("open", "closed"):
        raise ValueError(f"right in the on_failure of {where}: open or closed")
    return Hook(_url(table["url"], where), _secrets(table["secrets"], where), seconds, on_failure)


def _table(value: object, where: str, needed: set[str], more: set[str]) -> Mapping[str, Any]:
    """Names are quoted, values are not: one may be a secret."""
    if not isinstance(value, dict) or not needed <= value.keys() <= needed | more:
        optional = f", and perhaps {', '.join(sorted(more))}"
        raise ValueError(f"a table for {where}, with {', '.join(sorted(needed))}{optional}")
    return value


def _url(value: object, where: str) -> str:
    wrong = ValueError(f"right in the url of {where}: {_URL_IS}; no user, no fragment")
    if not isinstance(value, str):
        raise wrong
    try:
        parts = urlsplit(value)
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        if _NUMERIC.fullmatch(parts.hostname or ""):
            # 127.1 and 2130706433 are addresses to some and names to others
            ip_address(parts.hostname or "")
    except ValueError:
        raise wrong from None
    if not whole or "@" in parts.netloc or re.search(r"[#\\\s]|[^\x21-\x7e]", value):
        raise wrong
    return value


def _secrets(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) not in (1, 2) or not all(map(_is_secret, value)):
        raise ValueError(f"right in the secrets of {where}: {_SECRETS_ARE}")
    return tuple(value)


def _is_secret(value: object) -> bool:
    if not isinstance(value, str) or not value.startswith(_MARK):
        return False
    try:
        return len(base64.b64decode(value.removeprefix(_MARK), validate=True)) in _SECRET_BYTES
    except (binascii.Error, ValueError):
        return False


def allowed(text: str, networks: Sequence[Network]) -> bool:
    """Whether an address may be connected to: it is public, or one of the networks has it."""
    address = ip_address(text)
    inner = _inner(address)
    if any(each in network for each in (address, inner) for network in networks):
        return True
    if isinstance(inner, IPv6Address) and inner not in _UNICAST:
        return False
    return inner.is_global and not (inner.is_multicast or inner.is_reserved)


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for."""
    if not isinstance(address, IPv6Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & (2**32 - 1))
    return address.ipv4_mapped or address.sixtofour or address
