"""The kinds of values that settings have: read from text or TOML, checked, written back as text.

Each function returns an annotation for a pydantic field. A reader raises ValueError whose words
complete "must be ...", so that a message says what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from service.units import format_duration, parse_duration, parse_rate, parse_size

KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
TIB: Final = 2**40

MINUTE: Final = 60.0
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

_SIZE_UNITS: Final = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - known as such, not listened on
_PASSWORD: Final = re.compile(r"(://[^/@\s:]*:)[^/@\s]+@")
_WEBHOOK_SECRET: Final = re.compile(r"whsec_[A-Za-z0-9+/=_-]+")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name or address, without brackets) and a port; port 0 is the kernel's choice."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """An http URL that reaches it from this machine."""
        return f"http://{TcpAddress(_WILDCARDS.get(self.host, self.host), self.port)}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket. Only a proxy reaches it, so its URL is a mere stand-in."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def url(self) -> str:
        """What links begin with when no public URL is set."""
        return "http://localhost"


Address = TcpAddress | UnixAddress


def overlap(one: Address, other: Address) -> bool:
    """Whether both could not be listened on at once."""
    if isinstance(one, UnixAddress) or isinstance(other, UnixAddress):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    return one.host == other.host or one.host in _WILDCARDS or other.host in _WILDCARDS


def hide_secrets(text: str) -> str:
    """The text with passwords inside URLs, and secrets of webhooks, replaced by stars."""
    return _WEBHOOK_SECRET.sub("whsec_***", _PASSWORD.sub(r"\1***@", text))


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of value is read and written; pydantic finds it in an Annotated type."""

    read: Callable[[Any], object]
    write: Callable[[Any], str]

    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        writing = core_schema.plain_serializer_function_ser_schema(self.write, return_schema=core_schema.str_schema())
        return core_schema.no_info_plain_validator_function(self.read, serialization=writing)


#: for kinds that are defined elsewhere
Kind = _Kind


def _number(value: object, parse: Callable[[str], int], low: float, high: float, right: str) -> int:
    """Text through parse; a whole TOML number as it is."""
    try:
        number = value if isinstance(value, int) and not isinstance(value, bool) else parse(_text(value, right))
    except ValueError:
        raise ValueError(right) from None
    if not low <= number <= high:
        raise ValueError(right)
    return number


def _text(value: object, right: str) -> str:
    if not isinstance(value, str):
        raise ValueError(right)
    return value


def written_size(size: int) -> str:
    """The size in the largest unit that divides it."""
    return next((f"{size // unit}{name}" for unit, name in _SIZE_UNITS if size and size % unit == 0), str(size))


def _written_duration(seconds: float) -> str:
    return format_duration(int(seconds))


def size(low: int, high: int) -> _Kind:
    """A number of bytes, `8MiB` or `8388608`."""
    right = f"a size from {written_size(low)} to {written_size(high)}, such as 64MiB"
    return _Kind(lambda value: _number(value, parse_size, low, high, right), written_size)


def rate(low: int, high: int) -> _Kind:
    """A number of bytes per second, `1KiB/s`."""
    right = f"a rate from {written_size(low)}/s to {written_size(high)}/s, such as 1KiB/s"
    return _Kind(lambda value: _number(value, parse_rate, low, high, right), lambda number: written_size(number) + "/s")


def duration(low: float, high: float) -> _Kind:
    """A whole number of seconds, `90s`, `24h` or `7d`."""
    right = f"a duration from {_written_duration(low)} to {_written_duration(high)}, such as 90s, 24h or 7d"
    return _Kind(lambda value: float(_number(value, parse_duration, low, high, right)), _written_duration)


def count(low: int, high: int) -> _Kind:
    """A plain whole number."""
    right = f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()):
            raise ValueError(right)
        return int(text)

    return _Kind(lambda value: _number(value, parse, low, high, right), str)


def optional(kind: _Kind) -> _Kind:
    """The same, or nothing, which is None."""
    return _Kind(
        lambda value: None if value in ("", None) else kind.read(value),
        lambda held: "" if held is None else kind.write(held),
    )


def workers(high: int) -> _Kind:
    """A number of processes; 0 or nothing is None: as many as there are cores."""
    right = f"a whole number from 1 to {high}, or 0 for one per core"
    counted = count(0, high)

    def read(value: object) -> int | None:
        try:
            number = counted.read(value or 0)
        except ValueError:
            raise ValueError(right) from None
        return number if isinstance(number, int) and number else None

    return _Kind(read, lambda number: str(number or 0))


def address() -> _Kind:
    """Where a listener listens."""
    return _Kind(_read_address, str)


def _read_address(value: object) -> Address:
    right = "HOST:PORT (0.0.0.0:8080 for every address), [IPV6]:PORT or unix:/PATH"
    text = _text(value, right)
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(right)
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if bracketed:
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(right) from None
    named = bracketed or _HOST_NAME.fullmatch(host) is not None
    if not (colon and named and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 2**16):
        raise ValueError(right)
    return TcpAddress(host, int(port))


def server_address() -> _Kind:
    """Where somebody else listens; empty is None."""
    return _Kind(_read_server_address, lambda address: str(address or ""))


def _read_server_address(value: object) -> Address | None:
    right = "HOST:PORT, [IPV6]:PORT or unix:/PATH, where a server listens"
    try:
        address = _read_address(value) if value else None
    except ValueError:
        raise ValueError(right) from None
    if isinstance(address, TcpAddress) and address.port == 0:
        raise ValueError(right)
    return address


def base_url() -> _Kind:
    """The public URL, held without a trailing slash; empty is None."""
    return _Kind(_read_base_url, lambda url: url or "")


def _read_base_url(value: object) -> str | None:
    right = "http:// or https://, a host and perhaps a path, such as https://files.example.com; no query, no user"
    text = _text(value, right)
    if not text:
        return None
    try:
        parts = urlsplit(text)
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ValueError(right) from None
    if not whole or "@" in parts.netloc or re.search(r"[?#\\\s]|[^\x21-\x7e]", text):
        raise ValueError(right)
    return text.rstrip("/")


def endpoint() -> _Kind:
    """The URL of a service's root, held without a slash at the end; empty is None."""
    return _Kind(_read_endpoint, lambda url: url or "")


def _read_endpoint(value: object) -> str | None:
    right = "http:// or https:// and a host, such as https://s3.example.com:9000; no path, no query, no user"
    try:
        url = _read_base_url(value)
    except ValueError:
        raise ValueError(right) from None
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.path:
        raise ValueError(right)
    # as signers and clients compare it
    return f"{parts.scheme}://{parts.netloc.lower()}"


def bucket() -> _Kind:
    """The name of an S3 bucket; empty is None."""
    return _Kind(_read_bucket, lambda name: name or "")


# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET: Final = re.compile(r"[a-z0-9](?!.*\.\.)[a-z0-9.-]{1,61}[a-z0-9]")


def _read_bucket(value: object) -> str | None:
    right = (
        "the bucket's name alone (no s3://, no path: that is s3_prefix), 3 to 63 of a-z, 0-9, dots and hyphens, "
        "with a letter or digit at both ends, and no IP address"
    )
    text = _text(value, right)
    if not text:
        return None
    if not _BUCKET.fullmatch(text) or re.fullmatch(r"[0-9]+(?:\.[0-9]+){3}", text):
        raise ValueError(right)
    return text


def region() -> _Kind:
    """A region as S3 signatures name it; empty is None."""
    return _Kind(_read_region, lambda name: name or "")


def _read_region(value: object) -> str | None:
    right = "the name of a region: letters, digits and hyphens, such as eu-central-1"
    text = _text(value, right)
    if not text:
        return None
    # it becomes part of a host name
    if not re.fullmatch(r"(?![0-9]+$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", text):
        raise ValueError(right)
    return text


def key_prefix() -> _Kind:
    """What S3 keys begin with: empty, or ending with a slash, which is added."""
    return _Kind(_read_key_prefix, str)


_MOST_PREFIX: Final = 256
# segment = 1*( ALPHA / DIGIT / "!" / "-" / "_" / "." / "*" / "'" / "(" / ")" ), what S3 calls safe in a key
_KEY_PREFIX: Final = re.compile(r"(?:(?!\.{1,2}/)[A-Za-z0-9!_.*'()-]+/)*")


def _read_key_prefix(value: object) -> str:
    right = (
        "folders such as attachd/ or chat/files/: letters, digits and !-_.*'() between single slashes, none in front, "
        f"no . or .. alone, {_MOST_PREFIX} characters at most"
    )
    text = _text(value, right)
    prefix = text + "/" if text and not text.endswith("/") else text
    if len(prefix) > _MOST_PREFIX or not _KEY_PREFIX.fullmatch(prefix):
        raise ValueError(right)
    return prefix


def networks() -> _Kind:
    """Networks, comma separated or a TOML list; an address is a network of one."""
    return _Kind(_read_networks, lambda items: ",".join(map(str, items)))


def _read_networks(value: object) -> tuple[IPv4Network | IPv6Network, ...]:
    right = "networks, comma separated, such as 10.0.0.0/8,fd00::/8, without bits beyond the prefix"
    try:
        return tuple(ip_network(item) for item in _items(value, right))
    except ValueError:
        raise ValueError(right) from None


def origins() -> _Kind:
    """Exact origins (RFC 6454), comma separated or a TOML list, or `*`; empty for none."""
    return _Kind(_read_origins, ",".join)


def _read_origins(value: object) -> tuple[str, ...]:
    right = "* alone, or exact origins, comma separated, such as https://chat.example.com: no path, no pattern"
    items = _items(value, right)
    exact = re.compile(r"https?://(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
    if items != ("*",) and not all(exact.fullmatch(item) for item in items):
        raise ValueError(right)
    return items


def _items(value: object, right: str) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(_text(item, right) for item in value)
    return tuple(item.strip() for item in _text(value, right).split(",")) if value else ()


def path() -> _Kind:
    """A path of this machine."""
    return _Kind(lambda value: _read_path(value) or _refuse("a path"), str)


def optional_path() -> _Kind:
    """A path of this machine; empty is None."""
    return _Kind(_read_path, lambda value: str(value or ""))


def _read_path(value: object) -> Path | None:
    text = _text(value, "a path")
    return _refuse("a path") if "\0" in text else Path(text) if text else None


def _refuse(right: str) -> Path:
    raise ValueError(right)


def path_prefix() -> _Kind:
    """The path of an internal location, with a slash at both ends."""
    return _Kind(_read_path_prefix, str)


def _read_path_prefix(value: object) -> str:
    right = "a path that begins and ends with a slash, such as /_attachd/"
    text = _text(value, right)
    if not re.fullmatch(r"/(?:[A-Za-z0-9._~-]+/)+", text):
        raise ValueError(right)
    return text


def database_url() -> _Kind:
    """An SQLite URL with a file; empty is None."""
    return _Kind(_read_database_url, lambda url: url or "")


def _read_database_url(value: object) -> str | None:
    # a database in memory would forget, on a restart, what clients were told is kept
    right = "sqlite:///PATH (four slashes for an absolute path), a file"
    text = _text(value, right)
    if not text:
        return None
    if not re.fullmatch(r"sqlite:///[^?#\s]+", text) or text.endswith((":memory:", "/")):
        raise ValueError(right)
    return text
