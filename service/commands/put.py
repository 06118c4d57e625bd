"""`attachd put FILE LINK`: a file goes up through a signed link, however often the line is cut.

Mechanism. tuspy builds the requests; the loop around it is ours. Each attempt asks the server for
its offset (HEAD) and sends the rest of the file in one PATCH, streamed from disk, so memory does
not grow with the file. Nothing is remembered on this side: creating with the same single-use link
answers with the same upload and its offset (T-05C), so a second run of the command goes on where
the first one ended.

Guarantees: bytes are read from the offset the server names, never from a count of ours; a file
that changes while it is sent fails before its last byte goes out. Not guaranteed: that a file
changed between two runs is noticed, as long as its length stays.
"""

from __future__ import annotations

import mimetypes
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qs, urljoin, urlsplit

import click
import requests
from tusclient.client import TusClient

from service.commands.line import ATTEMPTS, TIMEOUTS, Trouble, bar, cause, pause, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: tuspy itself would wait for ever on a half-open connection
CONNECT_SECONDS, SILENCE_SECONDS = TIMEOUTS
#: bytes handed to the socket at a time: small, because a socket's time limit covers the whole piece,
#: and a line of 1 KiB/s (the least the service puts up with) must manage one in time
PIECE: Final = 64 * 1024


class UploadFailed(Exception):
    """The upload cannot go on; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What the service made of the file."""

    file_id: str
    upload_url: str


class _Body:
    """The bytes [start, end) of the file as a request body of known length, read while it is sent."""

    def __init__(self, source: _Source, start: int, end: int) -> None:
        self._source = source
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[bytes]:
        position = self._start
        while position < self._end:
            piece = self._source.piece(position, min(PIECE, self._end - position))
            position += len(piece)
            yield piece
            self._source.sent(position)


class _Source:
    """The file: its size for tuspy, its pieces for a body, and word of it where it changes."""

    def __init__(self, stream: IO[bytes], sent: Callable[[int], None]) -> None:
        self._stream = stream
        self._position = 0
        self._first = self._identity()
        self.size = self._first[0]
        self.sent = sent

    def _identity(self) -> tuple[int, int]:
        status = os.fstat(self._stream.fileno())
        return status.st_size, status.st_mtime_ns

    def piece(self, position: int, length: int) -> bytes:
        """Bytes [position, position + length) of the file that was opened, or UploadFailed.

        The look at the file comes after the read: the last piece goes out only while the file is
        still the one whose length was declared.
        """
        self._stream.seek(position)
        piece = self._stream.read(length)
        if len(piece) < length or self._identity() != self._first:
            raise UploadFailed("the file changed while it was being sent")
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self.size + offset if whence == os.SEEK_END else offset
        return self._position

    def tell(self) -> int:
        return self._position


class _Line:
    """tuspy's uploader, with a deadline for each request and refusals kept whole.

    tuspy reads a chunk into memory, waits without limit and drops the status and headers of a
    refusal; what it builds (metadata, headers, offsets, chunks) is used as it is.
    """

    def __init__(self, source: _Source, link: str, *, metadata: dict[str, str], chunk_size: int) -> None:
        self._source = source
        self._link = link
        # tuspy's methods carry no types
        self._tus: Any = TusClient(link).uploader(file_stream=source, metadata=metadata, chunk_size=chunk_size)
        self.upload_url: str | None = None
        self.file_id: str | None = None

    @property
    def offset(self) -> int:
        """As the server last named it."""
        return int(self._tus.offset)

    def _send(self, method: str, url: str, headers: dict[str, str], body: _Body | None = None) -> requests.Response:
        # urllib3 sends under the limit for connecting. With a body that is the limit for silence:
        # a service under load may stop reading for longer than a connection takes.
        limits = (CONNECT_SECONDS if body is None else SILENCE_SECONDS, SILENCE_SECONDS)
        try:
            response = requests.request(
                method, url, data=cast("Any", body), headers=headers, timeout=limits, allow_redirects=False
            )
        except requests.RequestException as error:
            raise Trouble(None, f"no answer from {urlsplit(url).netloc} ({cause(error)})") from error
        if not response.ok or response.is_redirect:
            raise refused(response)
        self.file_id = response.headers.get("Attachd-File-Id", self.file_id)
        return response

    def create(self) -> str:
        """The upload's address: a new one, or the one this link made before (T-05C)."""
        location = self._send("POST", self._link, self._tus.get_url_creation_headers()).headers.get("Location")
        if not location:
            raise UploadFailed("the link does not lead to an upload service: no Location in its answer")
        return urljoin(self._link, location)

    def advance(self) -> str:
        """All bytes are at the service; its address there. From wherever the upload stands now."""
        if self.upload_url is None:
            self.upload_url = self._tus.url = self.create()
        head = self._send("HEAD", self.upload_url, self._tus.get_headers())
        length = head.headers.get("Upload-Length")
        if length is not None and length != str(self._source.size):
            raise UploadFailed(f"the link belongs to another file, of {length} bytes")
        self._tus.offset = _offset(head)
        while self.offset < self._source.size:
            self._source.sent(self.offset)
            headers = self._tus.get_headers() | {
                "Upload-Offset": str(self.offset),
                "Content-Type": "application/offset+octet-stream",
            }
            body = _Body(self._source, self.offset, self.offset + int(self._tus.get_request_length()))
            committed = _offset(self._send("PATCH", self.upload_url, headers, body))
            # The service may keep less than it was sent (T-03D); nothing at all is no reason to hurry.
            if committed <= self.offset:
                raise Trouble(None, "the service kept nothing of the last request")
            self._tus.offset = committed
        self._source.sent(self.offset)
        return self.upload_url

    def find_file_id(self, upload_url: str) -> str:
        """The id of the finished file, from the completing answer or else from the upload's status."""
        if self.file_id is None:
            answer = self._send("GET", upload_url + "?wait=20", self._tus.get_headers())
            try:
                self.file_id = str(answer.json()["file_id"] or "") or None
            except (ValueError, KeyError, TypeError) as error:
                raise UploadFailed("the link does not lead to attachd: no file id in the upload's status") from error
        if self.file_id is None:
            raise Trouble(None, "the service has not stored the file yet")
        return self.file_id


def _offset(response: requests.Response) -> int:
    value = response.headers.get("Upload-Offset", "")
    if not value.isdecimal():
        raise UploadFailed(f"the link does not lead to an upload service: {response.status_code} without Upload-Offset")
    return int(value)


def upload(
    path: Path,
    link: str,
    *,
    chunk_size: int | None = None,
    sent: Callable[[int], None] = lambda _: None,
    retrying: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    attempts: int = ATTEMPTS,
) -> Uploaded:
    """The file at path is whole and ready at the service.

    Args:
        chunk_size: most bytes in one request; None: the rest of the file, whatever its size.
        sent: told the offset up to which bytes went out; it may step back after a cut.
        retrying: told why, before each pause.
        attempts: how many in a row may fail without the offset rising.

    Raises:
        UploadFailed: permanent for this file and link, or every attempt was used up.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UploadFailed(f"{path}: {error.strerror}") from error
    with stream:
        source = _Source(stream, sent)
        media_type, _ = mimetypes.guess_type(path.name)
        line = _Line(
            source,
            link,
            metadata={"filename": path.name, "filetype": media_type or "application/octet-stream"},
            chunk_size=chunk_size or sys.maxsize,
        )
        best = -1
        failures = 0
        while True:
            try:
                upload_url = line.advance()
                return Uploaded(line.find_file_id(upload_url), upload_url)
            except Trouble as trouble:
                if not trouble.retryable:
                    raise UploadFailed(_explain(trouble, created=line.upload_url is not None)) from trouble
                failures = 1 if line.offset > best else failures + 1
                best = max(best, line.offset)
                if failures >= attempts:
                    raise UploadFailed(f"gave up after {failures} attempts without progress: {trouble}") from trouble
                retrying(str(trouble))
                sleep(pause(failures, trouble.retry_after))


def _explain(trouble: Trouble, *, created: bool) -> str:
    if created and trouble.status in (404, 410):
        return f"the upload is gone ({trouble})"
    if not created and trouble.status == 403:
        return f"the link is not for this file, or is used up ({trouble})"
    return f"refused ({trouble})"


class _Link(click.ParamType[str]):
    """An upload link: `http(s)://HOST[/prefix]/files?sig=TOKEN`."""

    name = "link"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            self.fail("an upload link begins with http:// or https://", param, ctx)
        if not parts.path.endswith("/files") or not parse_qs(parts.query).get("sig"):
            self.fail("an upload link ends with /files?sig=…", param, ctx)
        return text


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("link", type=_Link())
@click.option(
    "--chunk-size",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Most bytes in one request, for proxies that limit bodies. Default: the rest of the file.",
)
def put(file: Path, link: str, chunk_size: int | None) -> None:
    """Upload FILE through the signed upload LINK, and print the file's id.

    A cut connection is taken up again where the service says it was cut. So is an upload whose
    command was ended: run the same line again.
    """
    with bar() as progress:
        task = progress.add_task(file.name, total=file.stat().st_size)
        try:
            uploaded = upload(
                file,
                link,
                chunk_size=chunk_size,
                sent=lambda offset: progress.update(task, completed=offset, description=file.name),
                retrying=lambda reason: progress.update(task, description=f"{file.name} (waiting: {reason})"),
            )
        except UploadFailed as error:
            raise click.ClickException(str(error)) from error
    click.echo(uploaded.file_id)
