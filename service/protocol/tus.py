"""tus 1.0.0: requests in, replies out. The rules are in `decide`; here are the names and statuses.

Spec: tus 1.0.0, Core Protocol and all extensions. Deviations are listed in docs/protocols.md.
"""

from __future__ import annotations

from typing import Final

from service.hashing import ALGORITHMS
from service.model import ConcatKind, Protocol, State, Upload, UploadId
from service.protocol.decide import offset_headers
from service.protocol.dispatch import TUS_VERSION
from service.protocol.fields import (
    Fields,
    http_date,
    integer,
    media_type,
    parse_checksum,
    parse_concat,
    parse_framing,
    parse_integer,
    parse_metadata,
    refuse_repeats,
    single,
    text_of,
)
from service.protocol.intents import Append, Appended, ChecksumClaim, Create, Created, Discovery, Framing, Reply
from service.protocol.problems import URN, Problem, refuse

OFFSET_TYPE: Final = "application/offset+octet-stream"
EXTENSIONS: Final = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "checksum-trailer",
    "termination",
    "concatenation",
    "concatenation-unfinished",
)


# --- requests -------------------------------------------------------------------------------


def parse_create(fields: Fields) -> Create:
    """`POST /files` (tus 1.0.0, Creation; Creation With Upload; Concatenation).

    Raises:
        Refusal: bad-header, bad-metadata, checksum-unsupported, wrong-content-type, not-found.
    """
    refuse_repeats(fields)
    framing = parse_framing(fields)
    checksum, trailer = _checksum(fields, framing)
    length = integer(fields, "Upload-Length")
    deferred = _deferred(fields)
    raw, pairs = parse_metadata(fields)
    concat = single(fields, "Upload-Concat")
    kind, partials = parse_concat(concat) if concat is not None else (ConcatKind.NONE, ())
    if kind is ConcatKind.FINAL:
        _check_final(framing, length, deferred=deferred)
    elif (length is None) is not deferred:
        raise refuse("bad-header", "send either Upload-Length or Upload-Defer-Length: 1", close=not framing.empty)
    elif not framing.empty:
        _check_type(fields)
    return Create(
        protocol=Protocol.TUS,
        framing=framing,
        length=length,
        deferred=deferred,
        metadata=raw,
        filename=text_of(pairs, "filename", "name"),
        media_type=media_type(text_of(pairs, "filetype", "type")),
        concat=concat,
        concat_kind=kind,
        partials=partials,
        checksum=checksum,
        checksum_trailer=trailer,
    )


def parse_append(fields: Fields, upload_id: UploadId) -> Append:
    """`PATCH` (tus 1.0.0, PATCH). `Upload-Metadata` and `Upload-Concat` are ignored (T-03E).

    Raises:
        Refusal: bad-header, checksum-unsupported, wrong-content-type.
    """
    refuse_repeats(fields)
    framing = parse_framing(fields)
    _check_type(fields)
    checksum, trailer = _checksum(fields, framing)
    offset = single(fields, "Upload-Offset")
    if offset is None:
        raise refuse("bad-header", "send Upload-Offset, the number of bytes already stored", close=True)
    return Append(
        upload_id=upload_id,
        protocol=Protocol.TUS,
        framing=framing,
        offset=parse_integer("Upload-Offset", offset),
        length=integer(fields, "Upload-Length"),
        checksum=checksum,
        checksum_trailer=trailer,
    )


def parse_trailer(value: str | None) -> ChecksumClaim | None:
    """The announced trailer's claim, None if it did not come (T-0A6, T-0A7)."""
    return None if value is None else parse_checksum(value.strip(" \t"))


def _check_type(fields: Fields) -> None:
    if media_type(single(fields, "Content-Type")) != OFFSET_TYPE:
        raise refuse("wrong-content-type", f"send Content-Type: {OFFSET_TYPE}", close=True)


def _checksum(fields: Fields, framing: Framing) -> tuple[ChecksumClaim | None, bool]:
    text = single(fields, "Upload-Checksum")
    claim = parse_checksum(text) if text is not None else None
    return claim, framing.chunked and "upload-checksum" in framing.trailers


def _deferred(fields: Fields) -> bool:
    value = single(fields, "Upload-Defer-Length")
    if value not in (None, "1"):
        raise refuse("bad-header", "Upload-Defer-Length can only be 1", close=True)
    return value is not None


def _check_final(framing: Framing, length: int | None, *, deferred: bool) -> None:
    if length is not None or deferred:
        raise refuse("bad-header", "the length of a final upload is the sum of its partials", close=True)
    if not framing.empty:
        raise refuse("final-upload", "a final upload takes no bytes of its own", close=True)


# --- replies --------------------------------------------------------------------------------


def render_created(outcome: Created, location: str) -> Reply:
    """201, also for a replay (T-05C); the problem's status when the body ran into trouble."""
    upload = outcome.upload
    headers = (("Location", location), *_standing(upload))
    if outcome.problem is not None:
        return render_problem(outcome.problem, extra=headers)
    return Reply(201, headers, close=outcome.replayed)


def render_appended(outcome: Appended) -> Reply:
    """204 with the offset, or the problem with the offset that was kept."""
    headers = _standing(outcome.upload)
    if outcome.problem is not None:
        return render_problem(outcome.problem, extra=headers)
    return Reply(204, headers)


def render_head(upload: Upload) -> Reply:
    """200 with everything a client resumes from (tus 1.0.0, HEAD; T-020 to T-029)."""
    return Reply(200, _description(upload))


def render_status(upload: Upload) -> Reply:
    """`GET`: the status as JSON (contract, section 3; T-02B)."""
    return Reply(200, _description(upload), json=status_json(upload))


def render_terminated() -> Reply:
    """204 (tus 1.0.0, Termination)."""
    return Reply(204)


def render_options(discovery: Discovery) -> Reply:
    """200 rather than 204, which some old tools do not take for a success (T-010 to T-014)."""
    headers = [
        ("Tus-Version", TUS_VERSION),
        ("Tus-Extension", ",".join(discovery.extensions)),
        ("Tus-Checksum-Algorithm", ",".join(discovery.checksum_algorithms)),
        ("Accept-Patch", OFFSET_TYPE),
    ]
    if discovery.max_size is not None:
        headers.append(("Tus-Max-Size", str(discovery.max_size)))
    return Reply(200, tuple(headers))


def discovery(max_size: int | None) -> Discovery:
    """What this dialect offers."""
    return Discovery(EXTENSIONS, tuple(ALGORITHMS), max_size)


def render_problem(problem: Problem, extra: tuple[tuple[str, str], ...] = ()) -> Reply:
    """problem+json; a header of the problem wins over the same of `extra`."""
    own = {name.lower() for name, _ in problem.headers}
    headers = problem.headers + tuple(pair for pair in extra if pair[0].lower() not in own)
    reason = "Checksum Mismatch" if problem.slug == "checksum-mismatch" else None
    return Reply(problem.status, headers, problem_json(problem), reason, problem.close)


def problem_json(problem: Problem) -> dict[str, object]:
    """The body without `request_id`, which the edge adds (contract, section 11)."""
    return {
        "type": URN + problem.slug,
        "title": problem.kind.title,
        "status": problem.status,
        "detail": problem.detail,
        **problem.members,
    }


def status_json(upload: Upload) -> dict[str, object]:
    """Contract, section 3: upload status."""
    return {
        "upload_id": upload.id,
        "state": upload.state.value,
        "offset": upload.offset,
        "length": upload.length,
        "expires_at": int(upload.expires_at) if upload.state is State.RECEIVING else None,
        "file_id": upload.file_id if has_file(upload) else None,
        "problem": upload.problem,
    }


def has_file(upload: Upload) -> bool:
    """Whether a file came of it: a partial never makes one (T-0C1)."""
    return upload.complete and upload.concat_kind is not ConcatKind.PARTIAL


def _standing(upload: Upload) -> tuple[tuple[str, str], ...]:
    """Where the upload stands after a request that moved or made it."""
    if upload.pending_final:
        return () if upload.state is not State.RECEIVING else (("Upload-Expires", http_date(upload.expires_at)),)
    # offset = length is told only of a complete file (T-02C)
    headers = offset_headers(upload) if upload.state is not State.FINISHING else ()
    if has_file(upload):
        headers += (("Attachd-File-Id", upload.file_id),)
    return headers


def _description(upload: Upload) -> tuple[tuple[str, str], ...]:
    headers = list(_standing(upload))
    if upload.state is State.FINISHING and not upload.pending_final:
        # the status names the state beside it
        headers.append(("Upload-Offset", str(upload.offset)))
    if upload.length is not None:
        headers.append(("Upload-Length", str(upload.length)))
    elif upload.concat_kind is not ConcatKind.FINAL:
        headers.append(("Upload-Defer-Length", "1"))
    if upload.metadata is not None:
        headers.append(("Upload-Metadata", upload.metadata))
    if upload.concat is not None:
        headers.append(("Upload-Concat", upload.concat))
    return tuple(headers)
