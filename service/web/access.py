"""What the log line and the count of a request tell, gathered by whoever learns it first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

if TYPE_CHECKING:
    from service.links import VerifiedDownload, VerifiedUpload
    from service.metrics import TransferOutcome
    from service.model import FileId, UploadId

#: nobody was there any more to hear the answer; nginx's number for it
CLIENT_GONE: Final = 499


@dataclass(slots=True)
class Access:
    """One request, as far as it got."""

    upload_id: UploadId | None = None
    file_id: FileId | None = None
    #: the slug of the problem that is the answer, and its words
    reason: str | None = None
    detail: str | None = None
    #: how the transfer ended, where it is not the answer that says so
    outcome: TransferOutcome | None = None
    #: bytes of the request's body that came, and of the answer's that were sent
    received: int | None = None
    sent: int | None = None
    #: of an answer whose head has been sent
    status: int | None = None
    #: of the link that was good: its key, and a short hash of its `jti`
    kid: str | None = None
    jti: str | None = None

    def by_link(self, verified: VerifiedUpload | VerifiedDownload) -> None:
        """The request came with that link."""
        self.kid, self.jti = verified.kid, verified.jti_hash or None

    def about_upload(self, upload_id: UploadId) -> None:
        """The request is about that upload, and so is every record that it logs."""
        self.upload_id = upload_id
        structlog.contextvars.bind_contextvars(upload_id=upload_id)

    def about_file(self, file_id: FileId) -> None:
        """As `about_upload`, for a file."""
        self.file_id = file_id
        structlog.contextvars.bind_contextvars(file_id=file_id)


_ACCESS: Final = web.RequestKey("access", Access)


def access_of(request: web.Request) -> Access:
    """The request's own."""
    found = request.get(_ACCESS)
    if found is None:
        found = request[_ACCESS] = Access()
    return found


def gone(request: web.Request) -> bool:
    """Whether the client has closed its connection: an answer would reach nobody."""
    return request.transport is None or request.transport.is_closing()
