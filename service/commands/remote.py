"""A finished file as `attachd get` sees it: over HTTP, behind a download link."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
import urllib3

from service.commands.line import TIMEOUTS, Trouble, cause, refused
from service.hashing import verify_manifest
from service.model import FILE_ID, Manifest
from service.protocol.ranges import safe_filename

#: most bytes taken from the socket at once
PIECE: Final = 256 * 1024


class GetFailed(Exception):
    """The file cannot be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The bytes [start, end) are missing; they end with a block, or with the file."""

    start: int
    end: int


class Source:
    """The file behind a link, over HTTP."""

    def __init__(self, link: str) -> None:
        parts = urlsplit(link)
        self.file_id, base = parts_of(parts.path)
        self._link = link
        self._manifest = urlunsplit(parts._replace(path=f"{base}/manifest"))
        self._session = requests.Session()
        # what is hashed are the bytes as stored
        self._session.headers["Accept-Encoding"] = "identity"

    def close(self) -> None:
        self._session.close()

    def _ask(self, method: str, url: str, *, follow: bool = False, **headers: str) -> requests.Response:
        """An answer whose body is still to be read. Raises Trouble."""
        try:
            response = self._session.request(
                method, url, headers=headers, timeout=TIMEOUTS, stream=True, allow_redirects=follow
            )
            if not response.ok:
                with response:
                    raise refused(response)
        except requests.RequestException as error:
            raise Trouble(None, f"no answer from {urlsplit(url).netloc} ({cause(error)})") from error
        return response

    def manifest(self) -> Manifest:
        """The block digests. Raises Trouble; GetFailed: they are not those of this file."""
        with self._ask("GET", self._manifest) as response:
            try:
                content = response.content
            except requests.RequestException as error:
                raise Trouble(None, f"the manifest was cut off ({cause(error)})") from error
            try:
                json = response.json()
                found = verify_manifest(json)
                if json.get("file_id") != self.file_id:
                    raise ValueError("it is of another file")
            except ValueError as error:
                raise GetFailed(f"the manifest cannot be used ({len(content)} bytes): {error}") from error
        return found

    def name(self) -> str:
        """What the file is called, made safe for a file system; its id if nobody named it. Raises Trouble."""
        with self._ask("HEAD", self._link) as response:
            return _name_of(response.headers.get("Content-Disposition", "")) or self.file_id

    def read(self, gap: Gap, size: int) -> Iterator[bytes]:
        """The bytes of the gap as they come, at least one. Raises Trouble: they ended too soon."""
        part = {} if (gap.start, gap.end) == (0, size) else {"Range": f"bytes={gap.start}-{gap.end - 1}"}
        with self._ask("GET", self._link, follow=True, **part) as response:
            skip, left = self._skipped(response, gap, size), gap.end - gap.start
            while left:
                try:
                    piece = response.raw.read1(PIECE)
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    raise Trouble(None, f"the connection was cut ({cause(error)})") from error
                if not piece:
                    raise Trouble(None, "the answer ended too soon")
                skipped = min(skip, len(piece))
                skip -= skipped
                if wanted := piece[skipped : skipped + left]:
                    left -= len(wanted)
                    yield wanted

    def _skipped(self, response: requests.Response, gap: Gap, size: int) -> int:
        """How many bytes come before those asked for: a server may answer a Range with the whole file."""
        if response.status_code == 200:
            return gap.start
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code != 206 or found is None or (int(found[1]), int(found[2])) != (gap.start, size):
            raise GetFailed("the answer is not the part that was asked for")
        return 0


_PATH: Final = re.compile(rf"(?P<base>.*/d/(?P<id>{FILE_ID.pattern}))(?:/[^/]*)?")


def parts_of(path: str) -> tuple[str, str]:
    """File id and path of the file in a link's path. Raises ValueError: it is no download link."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise ValueError("a download link has /d/f_… in its path")
    return match["id"], match["base"]


def _name_of(disposition: str) -> str | None:
    """RFC 6266 4.3: `filename*` before `filename`."""
    if (match := re.search(r"filename\*=UTF-8''([^;\s]+)", disposition, re.IGNORECASE)) is not None:
        return safe_filename(unquote(match[1], errors="replace"))
    match = re.search(r'filename="((?:[^"\\]|\\.)*)"', disposition, re.IGNORECASE)
    return safe_filename(match[1]) if match else None
