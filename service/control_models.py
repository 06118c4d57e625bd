"""What the control API takes and gives, as models: they check requests, and describe both in `openapi`.

Instants are whole seconds since 1970, sizes are bytes. Limits of a claim are those of `claims`,
which has the last word where a rule is not about one field. What is not a field is refused, so
that a misspelt one is not taken for its default.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from service.claims import MAX_COUNT, MAX_LIFE_SECONDS, MAX_TYPES, MAX_USES
from service.protocol.problems import refuse

#: items of one request for download links
MOST_ITEMS: Final = 500
#: what a revocation may name
_NAMED: Final = ("jti", "owner", "file_id")
#: JavaScript counts exactly up to here
_MOST_INSTANT: Final = 2**53

FileIdText: TypeAlias = Annotated[str, StringConstraints(pattern=r"^f_[a-z2-7]{26}$")]
UploadIdText: TypeAlias = Annotated[str, StringConstraints(pattern=r"^u_[a-z2-7]{26}$")]
JobIdText: TypeAlias = Annotated[str, StringConstraints(pattern=r"^j_[a-z2-7]{26}$")]
Owner: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:@-]{1,128}$")]
Jti: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,128}$")]
Ref: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Seconds: TypeAlias = Annotated[int, Field(ge=1, le=MAX_LIFE_SECONDS)]
Size: TypeAlias = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Instant: TypeAlias = Annotated[int, Field(ge=0)]
StateText: TypeAlias = Literal["receiving", "finishing", "ready", "failed", "expired", "terminated"]


class Asked(BaseModel):
    """Of a client: exact types, nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Wanted = TypeVar("Wanted", bound=Asked)


class Answer(BaseModel):
    """Ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read(model: type[Wanted], content: bytes) -> Wanted:
    """What a request's body says. Raises Refusal: bad-request, with the first field that is wrong."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where, words = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
    raise refuse("bad-request", f"{where[:100]}: {words}" if where else words)


# links


class UploadLinkWanted(Asked):
    """The terms of an upload link."""

    max: Size = Field(description="Most bytes of the file.")
    size: Size | None = Field(default=None, description="Exact bytes of the file.")
    types: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TYPES,
        description="Media types allowed; `image/*` stands for all of a kind.",
    )
    owner: Owner | None = Field(default=None, description="Whose the file is to be: quota and erasure.")
    uses: int = Field(default=1, ge=1, le=MAX_USES, description="How many uploads the link may make.")
    expires_in: Seconds = Field(default=3600, description="Seconds in which an upload may begin.")
    ref: Ref | None = Field(default=None, description="The file's first reference.")
    hold: Seconds | None = Field(default=None, description="Seconds that the file lives unclaimed.")
    ttl: Seconds | None = Field(default=None, description="Seconds that the file lives at most.")
    meta: dict[str, Any] | None = Field(default=None, description="At most 1 KiB of JSON, echoed in events.")


class UploadLink(Answer):
    """An upload link. One of several uses makes files that are told by events: it has no file of its own."""

    url: str
    file_id: FileIdText | None = Field(description="The file that the upload will be.")
    download_url: str | None = Field(description="Fetches that file from when it is ready.")
    expires_at: Instant = Field(description="When the upload link ends; an upload that it began goes on.")
    jti: Jti


class DownloadLinkWanted(Asked):
    """The terms of a download link."""

    file_id: FileIdText
    expires_in: Seconds | None = Field(
        default=None, description="Unset: long enough for a slow client, an hour at least."
    )
    filename: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    disposition: Literal["inline", "attachment"] | None = None


class DownloadLinksWanted(Asked):
    """Up to 500 download links at once."""

    items: list[DownloadLinkWanted] = Field(min_length=1, max_length=MOST_ITEMS)


class ItemProblem(Answer):
    """Why there is no link."""

    type: str
    title: str
    status: int
    detail: str


class DownloadLink(Answer):
    """One item: a link, or why there is none."""

    file_id: FileIdText
    url: str | None = None
    expires_at: Instant | None = None
    error: ItemProblem | None = None


class DownloadLinks(Answer):
    """In the order asked for."""

    items: list[DownloadLink]


# files and uploads


class Digests(Answer):
    """Of the whole file, in hex; the blocks' are in its manifest."""

    root_algorithm: str
    root: str
    sha256_root: str | None
    sha256: str | None = Field(description="Plain SHA-256, where the link asked for it.")


class FileInfo(Answer):
    """A file that is held; nobody can fetch an infected one."""

    file_id: FileIdText
    upload_id: UploadIdText
    state: Literal["ready", "infected"]
    verdict: Literal["unscanned", "clean", "infected", "skipped_size"] = Field(
        description="What a virus scanner said of it, if there was one."
    )
    size: Size
    type: str | None = Field(description="As the client declared it.")
    sniffed_type: str | None = Field(description="As the first bytes say.")
    filename: str | None
    owner: Owner | None
    digests: Digests
    refs: list[str] = Field(description="In the order of their text; at most 1000 are listed.")
    ref_count: int
    created_at: Instant
    expires_at: Instant | None = Field(description="When it goes as things are.")


class Released(Answer):
    """The file after a reference went; `deleted` if that was the last."""

    file_id: FileIdText
    state: Literal["ready", "infected", "deleted"]
    refs: list[str]
    ref_count: int


class FilePage(Answer):
    """Files by id; `next` is the `after` of the next page, null at the end."""

    files: list[FileInfo]
    next: str | None


class UploadInfo(Answer):
    """An upload, unfinished or ended a while ago."""

    upload_id: UploadIdText
    file_id: FileIdText | None = Field(description="The file that it is to be; null for a part of another one.")
    state: StateText
    offset: Size
    length: Size | None
    type: str | None
    filename: str | None
    owner: Owner | None
    protocol: Literal["tus", "ietf", "put"]
    created_at: Instant
    updated_at: Instant
    expires_at: Instant | None = Field(description="When it goes if no byte comes; null unless receiving.")
    problem: str | None = Field(description="The slug of what ended a failed one.")


class UploadPage(Answer):
    """Uploads of one state; `next` is the `after` of the next page, null at the end."""

    uploads: list[UploadInfo]
    next: str | None


# owners, revocations


class OwnerUsage(Answer):
    """What an owner has, and may have."""

    owner: Owner
    files: Size
    file_bytes: Size
    pending_uploads: Size
    reserved_bytes: Size = Field(description="What unfinished uploads may still become.")
    quota_bytes: int | None
    quota_pending: int | None


class Erasure(Answer):
    """The erasure of an owner: what it had when it was asked for goes."""

    job_id: JobIdText
    owner: Owner
    state: Literal["running", "done"]
    asked_at: Instant
    done_at: Instant | None
    files_left: Size
    uploads_left: Size


class RevocationWanted(Asked):
    """One of `jti`, `owner` and `file_id`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in _NAMED]})

    jti: Jti | None = None
    owner: Owner | None = None
    file_id: FileIdText | None = None
    issued_before: Annotated[float, Field(ge=0, le=_MOST_INSTANT, allow_inf_nan=False)] | None = Field(
        default=None, description="With `owner`: tokens with an `iat` up to this instant. Unset: up to now."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(getattr(self, name) is not None for name in _NAMED) != 1:
            raise ValueError("exactly one of jti, owner and file_id must be given")
        if self.issued_before is not None and self.owner is None:
            raise ValueError("issued_before goes with owner")
        return self


class Revoked(Answer):
    """Such tokens are refused, everywhere within a second."""

    jti: Jti | None = None
    owner: Owner | None = None
    file_id: FileIdText | None = None
    issued_before: float | None = None
    until: Instant = Field(description="No such token can be alive after that.")


# events


class EventInfo(Answer):
    """One event, as webhooks tell it."""

    type: str
    timestamp: str
    id: str
    data: dict[str, Any]


class EventPage(Answer):
    """Events, oldest first; `next` is the `after` to go on from, also where there are none yet."""

    events: list[EventInfo]
    next: str


class ProblemDetails(Answer):
    """RFC 9457. `type` is `urn:attachd:problem:` and a slug that is never renamed."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    request_id: str
