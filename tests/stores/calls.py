"""Which S3 call an HTTP request is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from tests.stores.wire import Head

Kind = Literal[
    "put_object",
    "upload_part",
    "upload_part_copy",
    "copy_object",
    "create_multipart_upload",
    "complete_multipart_upload",
    "abort_multipart_upload",
    "list_parts",
    "list_objects",
    "list_multipart_uploads",
    "get_object",
    "head_object",
    "head_bucket",
    "delete_object",
    "delete_objects",
    "other",
]

#: what a query may hold and the call still be one of these; x-* and response-* come with presigned URLs
_PLAIN: Final = frozenset({
    "continuation-token", "delimiter", "encoding-type", "fetch-owner", "key-marker", "list-type", "marker", "max-keys",
    "max-parts", "max-uploads", "part-number-marker", "partnumber", "prefix", "start-after", "upload-id-marker",
    "uploadid", "uploads", "versionid",
})  # fmt: skip


@dataclass(slots=True)
class Call:
    """One request, filled in as it goes on."""

    kind: Kind
    method: str
    bucket: str
    #: decoded; empty for a call on the bucket
    key: str
    part_number: int | None = None
    #: for create_multipart_upload: what the store answered
    upload_id: str | None = None
    #: the Range or the x-amz-copy-source-range field
    range: str | None = None
    #: what came along with temporary credentials
    session_token: str | None = None
    #: whether the client waits with the body until it is told to go on
    announced: bool = False
    #: of the body, as far as the client has sent it
    bytes_sent: int = 0
    #: what was answered; None: nothing yet, or nothing ever
    status: int | None = None
    #: the proxy has done with it: answered, reset or given up
    over: bool = False


def read_call(head: Head) -> Call:
    """The call that a request with this head is, by path-style addressing."""
    method, target, _ = head.first.split(" ", 2)
    parts = urlsplit(target)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = {name.lower(): value for name, value in parse_qsl(parts.query, keep_blank_values=True)}
    copies = head.get("x-amz-copy-source") is not None
    number = query.get("partnumber")
    return Call(
        kind=_kind(method, key=key, bucket=bucket, query=query, copies=copies),
        method=method,
        bucket=bucket,
        key=key,
        part_number=int(number) if number else None,
        upload_id=query.get("uploadid"),
        range=head.get("range") or head.get("x-amz-copy-source-range"),
        session_token=head.get("x-amz-security-token"),
        announced=head.get("expect") is not None,
    )


def _kind(method: str, *, bucket: str, key: str, query: dict[str, str], copies: bool) -> Kind:
    known = all(name in _PLAIN or name.startswith(("x-", "response-")) for name in query)
    if not bucket or not (known or (method == "POST" and "delete" in query)):
        return "other"
    found = _of_an_object(method, query, copies=copies) if key else _of_a_bucket(method, query)
    return found or "other"


def _of_an_object(method: str, query: dict[str, str], *, copies: bool) -> Kind | None:
    of_a_multipart = "uploadid" in query
    if method == "PUT" and of_a_multipart:
        return "upload_part_copy" if copies else "upload_part"
    if method == "PUT":
        return "copy_object" if copies else "put_object"
    if method == "POST" and "uploads" in query:
        return "create_multipart_upload"
    if of_a_multipart:
        return _OF_A_MULTIPART.get(method)
    return _OF_AN_OBJECT.get(method)


_OF_A_MULTIPART: Final[dict[str, Kind]] = {
    "POST": "complete_multipart_upload",
    "GET": "list_parts",
    "DELETE": "abort_multipart_upload",
}
_OF_AN_OBJECT: Final[dict[str, Kind]] = {"GET": "get_object", "HEAD": "head_object", "DELETE": "delete_object"}


def _of_a_bucket(method: str, query: dict[str, str]) -> Kind | None:
    if method == "HEAD":
        return "head_bucket"
    if method == "GET":
        return "list_multipart_uploads" if "uploads" in query else "list_objects"
    return "delete_objects" if method == "POST" and "delete" in query else None
