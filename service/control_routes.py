"""The routes of the control API as data: the edge serves them from here, and `openapi` describes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from service import control_models as models
from service.model import State
from service.protocol.problems import refuse

#: rows of a page where a request does not say
DEFAULT_LIMIT: Final = 100
MOST_LIMIT: Final = 500


@dataclass(frozen=True)
class Param:
    """A value in the query; `pattern` is all of it."""

    name: str
    pattern: str
    description: str
    required: bool = False

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def fits(self, value: str) -> bool:
        return self._whole.fullmatch(value) is not None


@dataclass(frozen=True)
class Route:
    """One operation: what it takes, what it gives, and the scope that a token must have for it."""

    operation: str
    method: str
    path: str
    scope: str
    summary: str
    answer: type[models.Answer] | None
    status: int = 200
    asks: type[models.Asked] | None = None
    query: tuple[Param, ...] = ()
    #: slugs that are its own, besides those of every route
    problems: tuple[str, ...] = field(default=())

    def read_query(self, given: Mapping[str, list[str]]) -> dict[str, str]:
        """The values by name. Raises Refusal: bad-request, for one that is unknown, missing, twice there or wrong."""
        known = {param.name: param for param in self.query}
        for name, values in given.items():
            if name not in known:
                raise refuse(
                    "bad-request", f"{name[:40]!r}: no such parameter here; there are: {', '.join(known) or 'none'}"
                )
            if len(values) != 1 or not known[name].fits(values[0]):
                raise refuse("bad-request", f"{name}: must be {known[name].description}")
        for param in self.query:
            if param.required and param.name not in given:
                raise refuse("bad-request", f"{param.name}: must be given: {param.description}")
        return {name: values[0] for name, values in given.items()}


_LIMIT: Final = Param("limit", r"[1-9]|[1-9][0-9]|[1-4][0-9][0-9]|500", f"how many at most, 1 to {MOST_LIMIT}")
_OWNER: Final = Param("owner", r"[A-Za-z0-9._:@-]{1,128}", "an owner")
_REF: Final = Param("ref", r"[^\x00-\x1f\x7f]{1,256}", "a reference, 1 to 256 printable characters")
_AFTER_FILE: Final = Param("after", r"f_[a-z2-7]{26}", "what the page before has as next, a file's id")
_AFTER_UPLOAD: Final = Param("after", r"[0-9.e+]{1,24}~u_[a-z2-7]{26}", "what the page before has as next")
_AFTER_EVENT: Final = Param("after", r"[0-9]{1,18}", "what the page before has as next; without it, from the oldest on")
_WAIT: Final = Param("wait", r"[0-9]{1,9}(\.[0-9]{1,6})?", "seconds to wait for an event if there is none, at most 20")
_STATE: Final = Param("state", "|".join(State), "one of " + ", ".join(State), required=True)

ROUTES: Final = (
    Route(
        "mintUploadLink", "POST", "/v1/upload-links", "links:mint", "Sign an upload link, and one to its file.",
        models.UploadLink, 201, models.UploadLinkWanted, problems=("cannot-sign", "key-reused"),
    ),
    Route(
        "mintDownloadLinks", "POST", "/v1/download-links", "links:mint", "Sign up to 500 download links.",
        models.DownloadLinks, 200, models.DownloadLinksWanted, problems=("cannot-sign", "key-reused"),
    ),
    Route(
        "listFiles", "GET", "/v1/files", "files:read", "Files, in pages by id.",
        models.FilePage, query=(_OWNER, _REF, _AFTER_FILE, _LIMIT),
    ),
    Route(
        "getFile", "GET", "/v1/files/{file_id}", "files:read", "What is known of a file.",
        models.FileInfo, problems=("not-found", "gone", "not-ready"),
    ),
    Route(
        "deleteFile", "DELETE", "/v1/files/{file_id}", "files:write",
        "Delete a file, or end the upload that is to be it; again: nothing.", None, 204,
        problems=("not-found", "locked"),
    ),
    Route(
        "claimFile", "PUT", "/v1/files/{file_id}/refs/{ref}", "files:write",
        "Give a file a reference; no `hold` ends it any more.", models.FileInfo,
        problems=("not-found", "gone", "not-ready", "infected", "locked"),
    ),
    Route(
        "releaseFile", "DELETE", "/v1/files/{file_id}/refs/{ref}", "files:write",
        "Take a reference from a file; without any it is deleted.", models.Released,
        problems=("not-found", "gone", "not-ready"),
    ),
    Route(
        "listUploads", "GET", "/v1/uploads", "files:read", "Uploads of one state, in pages, oldest first.",
        models.UploadPage, query=(_STATE, _AFTER_UPLOAD, _LIMIT),
    ),
    Route(
        "getUpload", "GET", "/v1/uploads/{upload_id}", "files:read", "What is known of an upload.",
        models.UploadInfo, problems=("not-found",),
    ),
    Route(
        "endUpload", "DELETE", "/v1/uploads/{upload_id}", "files:write",
        "End an upload, with the file that it made; again: nothing.", None, 204, problems=("not-found", "locked"),
    ),
    Route(
        "getUsage", "GET", "/v1/owners/{owner}/usage", "files:read", "What an owner has, and may have.",
        models.OwnerUsage, problems=("not-found",),
    ),
    Route(
        "eraseOwner", "DELETE", "/v1/owners/{owner}", "owners:erase",
        "Erase all that an owner has, and refuse its links up to now.", models.Erasure, 202, problems=("not-found",),
    ),
    Route(
        "getJob", "GET", "/v1/jobs/{job_id}", "owners:erase", "How far an erasure is.",
        models.Erasure, problems=("not-found",),
    ),
    Route(
        "revoke", "POST", "/v1/revocations", "links:mint", "Refuse links that were signed.",
        models.Revoked, 201, models.RevocationWanted, problems=("key-reused",),
    ),
    Route(
        "listEvents", "GET", "/v1/events", "events:read", "Events, oldest first.",
        models.EventPage, query=(_AFTER_EVENT, _LIMIT, _WAIT),
    ),
)  # fmt: skip
