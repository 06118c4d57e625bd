"""Whether uploads pass through what stands before the service: `attachd doctor` sends one and watches its bytes.

The upload goes to ATTACHD_PUBLIC_URL, as a client's would. Its body is announced as large as the
settings allow, and only its first bytes are sent; then the sender is silent. So three things are
seen at once, and none costs more than these bytes: whether the announced size is refused on the
way, whether a pause ends the request, and whether the bytes have arrived while the rest is held
back (lesson K2). The length of the upload is left open, so no room is promised to it, and it is
removed at the end, also after Ctrl-C. Receivers of events hear of both.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from service import links
from service.keyset import Key
from service.storage.s3.trials import Check
from service.units import format_size

#: names of the checks, in order
SIZE: Final = "proxy size"
PAUSE: Final = "proxy pause"
STREAM: Final = "proxy stream"
#: bytes that are sent at first, more than a proxy holds back of a body that it passes on
SENT: Final = 64 * 2**10
#: how long the body is silent: longer than the shortest limits in use, and than the service takes a PATCH for busy
PAUSE_SECONDS: Final = 6.0
#: a refusal of what was announced comes at once
_EARLY_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 20.0
#: of a link, unless the settings want it shorter
LINK_SECONDS: Final = 300
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_PROBLEM: Final = "urn:attachd:problem:"

_SIZE_ADVICE: Final = (
    "let it take bodies of any size: `client_max_body_size 0` (nginx), no `max_size` in `request_body` (Caddy)"
)
_PAUSE_ADVICE: Final = (
    "let it wait longer than ATTACHD_BODY_IDLE: `client_body_timeout`, `proxy_read_timeout` and `proxy_send_timeout` "
    "(nginx), `timeout client` and `timeout server` (HAProxy), `read_body` (Caddy)"
)
_STREAM_ADVICE: Final = (
    "let it pass bodies on as they come: `proxy_request_buffering off` and `proxy_http_version 1.1` (nginx), "
    "no `option http-buffer-request` (HAProxy), no `request_buffers` (Caddy)"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """What is sent, and where.

    Args:
        url: what links begin with and are for, without a slash at the end.
        key: signs the link.
        max_size: the most bytes of an upload.
        link_seconds: how long the link may live.
    """

    url: str
    key: Key
    max_size: int
    link_seconds: int = LINK_SECONDS

    def checks(self) -> Iterator[Check]:
        """One Check after the other; blocks for the pause and the calls."""
        try:
            address = self._create()
        except _Stopped as stopped:
            yield stopped.check
            return
        except OSError as error:
            found = f"{self.url} cannot be reached: {_words(error)}"
            yield Check(SIZE, False, found, "start what listens there, or correct ATTACHD_PUBLIC_URL")
            return
        try:
            yield from self._watched(address)
        except OSError as error:
            yield Check(
                STREAM, False, f"the connection failed: {_words(error)}", "run doctor again; see the proxy's log"
            )
        finally:
            gone = self._removed(address)
        if not gone:
            yield Check("proxy cleanup", False, "an upload is left behind", "nothing: it expires by itself")

    def _watched(self, address: str) -> Iterator[Check]:
        sent = min(SENT, self.max_size // 2)
        if sent == 0:
            yield Check(SIZE, None, "ATTACHD_MAX_SIZE leaves nothing to try it with")
            return
        announced, shown = self.max_size, format_size(self.max_size)
        began = time.monotonic()
        with self._patch(address, announced, sent) as answered:
            early = answered(_EARLY_SECONDS)
            if early is not None and early.status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                yield Check(SIZE, False, f"a body of {shown} is refused on the way, with 413", _SIZE_ADVICE)
                announced = 2 * sent
            elif early is not None:
                yield Check(SIZE, False, f"a body of {shown} got {early.status} before its end", early.advice)
                return
            else:
                yield Check(SIZE, True, f"a body of {shown} may come")
                yield from self._paused(address, sent, answered, began)
                return
        began = time.monotonic()
        with self._patch(address, announced, sent) as answered:
            yield from self._paused(address, sent, answered, began)

    def _paused(
        self, address: str, sent: int, answered: Callable[[float], _Answer | None], began: float
    ) -> Iterator[Check]:
        """The rest is held back: nothing may end the request, and the service must have what was sent."""
        early = answered(PAUSE_SECONDS)
        if early is not None:
            found = (
                f"a body that pauses was ended after {time.monotonic() - began:.0f} s, with {early.status or 'a cut'}"
            )
            yield Check(PAUSE, False, found, _PAUSE_ADVICE)
        else:
            yield Check(PAUSE, True, f"a body may pause for {PAUSE_SECONDS:.0f} s")
        offset = self._offset(address)
        if offset is None:
            yield Check(STREAM, False, "HEAD of an upload got no offset", "let HEAD and its answer's fields pass")
        elif offset < sent and early is None:
            found = f"of {format_size(sent)} the service had {format_size(offset)} while the rest was held back"
            yield Check(STREAM, False, found, _STREAM_ADVICE)
        elif offset < sent:
            found = f"of {format_size(sent)} before the cut the service had {format_size(offset)}"
            yield Check(STREAM, False, found, _STREAM_ADVICE)
        else:
            yield Check(STREAM, True, "bytes arrive as they are sent")

    def _create(self) -> str:
        """The address of a new upload. Raises _Stopped, OSError."""
        token = links.mint_upload(
            self.key,
            audience=self.url,
            jti=secrets.token_urlsafe(16),
            now=time.time(),
            expires_in=self.link_seconds,
            max_size=self.max_size,
            meta={"attachd": "doctor"},
        )
        answer = self._ask("POST", links.upload_url(self.url, token), {"Upload-Defer-Length": "1"})
        location = answer.headers.get("location", "")
        if answer.status == http.HTTPStatus.CREATED and location.startswith(self.url):
            return location
        if answer.status == http.HTTPStatus.CREATED:
            raise _Stopped(False, "an upload's address begins with another URL", "correct ATTACHD_PUBLIC_URL")
        if answer.slug == "hook-refused":
            raise _Stopped(None, "the pre_create hook refuses doctor's upload, whose meta has `attachd`: `doctor`")
        raise _Stopped(False, f"a creation got {answer.status} {answer.slug}".rstrip(), answer.advice)

    def _offset(self, address: str) -> int | None:
        """What the service has; asking ends the PATCH, whose sender is silent (contract, section 5.4)."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            try:
                answer = self._ask("HEAD", address, {})
            except OSError:
                return None
            if answer.status != http.HTTPStatus.LOCKED or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        text = answer.headers.get("upload-offset", "")
        return int(text) if text.isdecimal() else None

    def _removed(self, address: str) -> bool:
        for _ in range(3):
            with contextlib.suppress(OSError):
                if self._ask("DELETE", address, {}).status in {204, 404, 410}:
                    return True
            time.sleep(0.5)
        return False

    def _ask(self, method: str, url: str, headers: Mapping[str, str]) -> _Answer:
        """One request without a body on a connection of its own. Raises OSError."""
        with contextlib.closing(_connect(url)) as connection:
            try:
                connection.request(method, _target(url), headers={**_TUS, **headers})
                return _read(connection)
            except http.client.HTTPException as error:
                raise ConnectionError(_words(error)) from error

    @contextlib.contextmanager
    def _patch(self, url: str, announced: int, sent: int) -> Iterator[Callable[[float], _Answer | None]]:
        """The head and the first bytes of a PATCH are on their way; the function waits for an early end."""
        connection = _connect(url)
        try:
            connection.putrequest("PATCH", _target(url))
            fields = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
            for name, value in (_TUS | fields | {"Content-Length": str(announced)}).items():
                connection.putheader(name, value)
            connection.endheaders()
            # an early answer may come with a closed connection; it is read below
            with contextlib.suppress(OSError):
                connection.send(bytes(sent))

            def answered(seconds: float) -> _Answer | None:
                connection.sock.settimeout(seconds)
                try:
                    return _read(connection)
                except TimeoutError:
                    # nothing was read: it can be asked again
                    return None
                except (OSError, http.client.HTTPException):
                    return _Answer(0, {}, "")

            yield answered
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class _Answer:
    """Status 0: the connection ended without an answer."""

    status: int
    #: by lower-case name
    headers: Mapping[str, str]
    #: of attachd's own problems
    slug: str

    @property
    def advice(self) -> str:
        """What to do about an answer that was none."""
        if self.slug in {"bad-link", "wrong-scope", "link-expired"}:
            return "run doctor with the settings of the service: keys and ATTACHD_PUBLIC_URL, and with its clock"
        if self.slug:
            return "see the service's log"
        if self.status in {http.HTTPStatus.REQUEST_URI_TOO_LONG, http.HTTPStatus.BAD_REQUEST, 431}:
            return "let it take links of 5 KiB: `large_client_header_buffers` (nginx), `tune.bufsize` (HAProxy)"
        return "this is not attachd's answer: have what listens there pass requests on to ATTACHD_LISTEN"


class _Stopped(Exception):
    """Nothing more can be tried; carries what was found."""

    def __init__(self, ok: bool | None, found: str, advice: str = "") -> None:  # noqa: FBT001 - as Check
        super().__init__(found)
        self.check = Check(SIZE, ok, found, advice)


def _connect(url: str) -> http.client.HTTPConnection:
    """Raises OSError."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=_ANSWER_SECONDS, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_ANSWER_SECONDS)
    connection.connect()
    return connection


def _target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _read(connection: http.client.HTTPConnection) -> _Answer:
    """Raises OSError, HTTPException."""
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    slug = ""
    if headers.get("content-type", "").startswith("application/problem+json"):
        with contextlib.suppress(ValueError, AttributeError):
            slug = str(json.loads(response.read()).get("type", "")).removeprefix(_PROBLEM)
    return _Answer(response.status, headers, slug)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
