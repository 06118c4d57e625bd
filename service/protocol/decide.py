"""What may be done: (intent, upload, policy, now) -> decision, or a Refusal. Pure.

The order inside each function is the order of checks of T-000g; everything here happens before
the first byte of a body is read, and appends are decided twice: before and after the lease is
held, because the offset may have moved meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.hashing import checksum
from service.model import ConcatKind, LinkTerms, LinkUse, Protocol, State, Upload, UploadId
from service.protocol.fields import http_date
from service.protocol.intents import Append, ChecksumClaim, Create, Ending, Policy
from service.protocol.media import type_allowed
from service.protocol.problems import KINDS, Problem, Refusal, refuse


@dataclass(frozen=True, slots=True)
class Intake:
    """How a body is taken: at most `limit` bytes, committed as they come or only when whole."""

    limit: int
    #: the length from now on, if it is known
    length: int | None = None
    #: commit only when the whole body came and its checksum holds (T-0A4)
    whole: bool = False
    #: the end of the body is the end of the upload (a PUT without Content-Length)
    closes: bool = False


# --- what an upload's state says about any request to it ------------------------------------


def refuse_ended(upload: Upload, now: float) -> None:
    """Raises gone (410) for an upload that ended or expired, whether or not the sweeper came (T-093)."""
    if not upload.state.live:
        words = f"the upload {_END_WORDS[upload.state]}; create a new one"
        raise Refusal(Problem("gone", words, members={"problem": upload.problem} if upload.problem else {}))
    if overdue(upload, now):
        raise refuse("gone", "the upload expired; create a new one")


def overdue(upload: Upload, now: float) -> bool:
    """Whether its time is over: of an unfinished upload, and of a partial even when complete (T-0CF)."""
    expires = upload.state is State.RECEIVING or (
        upload.state is State.READY and upload.concat_kind is ConcatKind.PARTIAL
    )
    return expires and upload.expires_at <= now


_END_WORDS = {State.FAILED: "failed", State.EXPIRED: "expired", State.TERMINATED: "was terminated"}


# --- creation -------------------------------------------------------------------------------


def limit_of(terms: LinkTerms, policy: Policy) -> int | None:
    """The most bytes an upload may have: the narrowest of link and server. None: no limit."""
    bounds = [bound for bound in (policy.max_size, terms.max_size, terms.size) if bound is not None]
    return min(bounds) if bounds else None


def decide_create(intent: Create, terms: LinkTerms, policy: Policy) -> Intake:
    """How the first body is taken if the link still has a use. Refuses what the terms do not allow.

    Raises:
        Refusal: too-large, length-mismatch, type-refused.
    """
    limit = limit_of(terms, policy)
    _check_type(intent.media_type, terms.types)
    if intent.length is not None:
        _check_length(intent.length, terms, policy, intent.concat_kind)
    room = intent.length if intent.length is not None else limit
    if room is not None and intent.framing.length is not None and intent.framing.length > room:
        raise refuse("too-large", f"the body is longer than the {room} bytes allowed", close=True)
    return Intake(
        limit=_NO_LIMIT if room is None else room,
        length=intent.length,
        whole=intent.checksum is not None or intent.checksum_trailer,
        closes=intent.protocol is Protocol.PUT and intent.deferred,
    )


_NO_LIMIT = 2**63 - 1


def _check_type(declared: str | None, allowed: Sequence[str]) -> None:
    if declared is not None and allowed and not type_allowed(declared, allowed):
        raise refuse("type-refused", "the link allows other media types than the one declared", close=True)


def length_problem(length: int, terms: LinkTerms, policy: Policy, *, whole: bool = True) -> Problem | None:
    """Why a file of this length, or a partial (not `whole`), is not what the link allows; None: it is."""
    limit = limit_of(terms, policy)
    if limit is not None and length > limit:
        return Problem("too-large", f"at most {limit} bytes are allowed", close=True)
    if whole and terms.size is not None and length != terms.size:
        return Problem("length-mismatch", f"the link is for exactly {terms.size} bytes", status=403, close=True)
    return None


def _check_length(length: int, terms: LinkTerms, policy: Policy, kind: ConcatKind) -> None:
    problem = length_problem(length, terms, policy, whole=kind is not ConcatKind.PARTIAL)
    if problem is not None:
        raise Refusal(problem)


def decide_use(
    intent: Create,
    terms: LinkTerms,
    use: LinkUse | None,
    made: Mapping[UploadId, Upload],
    policy: Policy,
    now: float,
) -> Upload | None:
    """The upload that this creation repeats (T-05C), or None if the link has a use left for it.

    Args:
        made: the uploads that `use` names.

    Raises:
        Refusal: link-used; gone (terminated); the refusal stored at completion (T-05E);
            too-large for partials that pass the link's `max` together (T-05F).
    """
    if use is None:
        if intent.concat_kind is ConcatKind.PARTIAL:
            _check_partials(intent, terms, LinkUse(terms.issuer, terms.jti, 0), policy)
        return None
    used = len(use.uploads)
    if intent.concat_kind is ConcatKind.PARTIAL:
        if used >= terms.uses:
            raise refuse("link-used", "the link has made its file already", close=True)
        _check_partials(intent, terms, use, policy)
        return None
    if not terms.single_use or not used:
        if used >= terms.uses:
            raise refuse("link-used", "the link has no use left", close=True)
        return None
    return _replay(intent, made.get(use.uploads[-1]), now)


def _check_partials(intent: Create, terms: LinkTerms, use: LinkUse, policy: Policy) -> None:
    if use.partials >= policy.max_partials * terms.uses:
        raise refuse("link-used", f"a link makes at most {policy.max_partials} partial uploads", close=True)
    room = partial_room(terms, use, policy)
    if (intent.length is not None and intent.length > room) or (intent.deferred and not room):
        raise refuse("too-large", f"the partial uploads of this link may have {room} more bytes in all", close=True)


def partial_room(terms: LinkTerms, use: LinkUse, policy: Policy) -> int:
    """Bytes that the partial uploads of a link may still have together (T-05F)."""
    limit = limit_of(terms, policy)
    return _NO_LIMIT if limit is None else max(limit * terms.uses - use.partial_bytes, 0)


def _replay(intent: Create, earlier: Upload | None, now: float) -> Upload | None:
    """The earlier upload of a single-use link, if this request is the same creation again."""
    if earlier is None or earlier.state is State.EXPIRED or overdue(earlier, now):
        return None
    if earlier.state is State.TERMINATED:
        raise refuse("gone", "the upload made with this link was terminated", close=True)
    if earlier.state is State.FAILED:
        raise Refusal(stored_problem(earlier))
    same_length = intent.deferred == earlier.deferred and (
        earlier.deferred or intent.length is None or intent.length == earlier.length
    )
    same = same_length and intent.concat_kind is earlier.concat_kind and intent.partials == earlier.partials
    # a plain PUT without Content-Length declares nothing that could differ
    if not same and not (intent.protocol is Protocol.PUT and intent.length is None):
        raise refuse("link-used", "the link belongs to an upload of another length", close=True)
    return earlier


def stored_problem(upload: Upload) -> Problem:
    """The refusal that ended a failed upload, to be told again (T-05E, lesson C6)."""
    slug = upload.problem if upload.problem in KINDS else "internal"
    return Problem(slug, upload.problem_detail or "the upload was refused", close=True)


def decide_final(partials: Sequence[Upload | None], terms: LinkTerms, policy: Policy, now: float) -> int | None:
    """The length of a final upload, None while a partial's length is unknown.

    Raises:
        Refusal: not-found, gone, bad-header (not a partial), too-large, length-mismatch (T-0CA, T-0CB).
    """
    total: int | None = 0
    for partial in partials:
        if partial is None or partial.terms.issuer != terms.issuer:
            raise refuse("not-found", "an entry of Upload-Concat is not an upload of this service")
        refuse_ended(partial, now)
        if partial.concat_kind is not ConcatKind.PARTIAL:
            raise refuse("bad-header", "every entry of Upload-Concat must be a partial upload")
        total = None if total is None or partial.length is None else total + partial.length
    known = sum(partial.length or partial.offset for partial in partials if partial is not None)
    problem = length_problem(known, terms, policy, whole=total is not None)
    if problem is not None:
        raise Refusal(problem)
    return total


# --- append ---------------------------------------------------------------------------------


def refuse_suspect(upload: Upload) -> None:
    """Raises Refusal: locked, while nobody knows what a crash of the machine left of the upload."""
    if upload.suspect:
        detail = "the upload is being checked after a crash of the machine; ask again"
        raise refuse("locked", detail, retry_after=1, close=True)


def decide_append(intent: Append, upload: Upload, policy: Policy, now: float) -> Intake | None:
    """How the body is taken; None if the upload is complete and the empty body asks for nothing.

    Raises:
        Refusal: gone, bad-header (framing of another protocol), final-upload, locked (being
            stored), offset-mismatch, length-mismatch, too-large.
    """
    refuse_ended(upload, now)
    if (intent.protocol is Protocol.IETF) is not (upload.protocol is Protocol.IETF):
        raise refuse("bad-header", "the upload was made with another protocol; continue with that one", close=True)
    if upload.concat_kind is ConcatKind.FINAL:
        raise refuse("final-upload", "a final upload is made of its partial uploads only", close=True)
    if upload.state is State.FINISHING:
        # offset = length is told only of a complete file (T-02C)
        raise refuse("locked", "all bytes are in; the file is being stored", retry_after=1, close=True)
    if intent.offset != upload.offset:
        raise refuse(
            "offset-mismatch",
            f"resume from Upload-Offset {upload.offset}",
            headers=offset_headers(upload),
            close=not intent.framing.empty,
        )
    length = _length_after(intent, upload, policy)
    limit = length if length is not None else limit_of(upload.terms, policy)
    room = _NO_LIMIT if limit is None else limit - upload.offset
    if intent.framing.length is not None and intent.framing.length > room:
        raise refuse(
            "too-large",
            f"the body is longer than the {room} bytes that are left",
            headers=offset_headers(upload),
            close=True,
        )
    if upload.state is State.READY and intent.framing.empty:
        _check_empty(intent.checksum)
        return None
    return Intake(limit=room, length=length, whole=intent.checksum is not None or intent.checksum_trailer)


def _check_empty(claim: ChecksumClaim | None) -> None:
    if claim is None:
        return
    problem = settle_checksum(claim, None, checksum(claim.algorithm).digest(), expect_trailer=False)
    if problem is not None:
        raise Refusal(problem)


def _length_after(intent: Append, upload: Upload, policy: Policy) -> int | None:
    """The length once this request is accepted (T-073 to T-078)."""
    if intent.length is None or intent.length == upload.length:
        return upload.length
    if upload.length is not None:
        raise refuse("length-mismatch", f"the length is {upload.length} and stays so", close=True)
    if intent.length < upload.offset:
        raise refuse("length-mismatch", f"{upload.offset} bytes are stored already", close=True)
    _check_length(intent.length, upload.terms, policy, upload.concat_kind)
    return intent.length


def offset_headers(upload: Upload) -> tuple[tuple[str, str], ...]:
    """What a client needs to go on from where the upload stands."""
    headers: tuple[tuple[str, str], ...] = (("Upload-Offset", str(upload.offset)),)
    if upload.state is State.RECEIVING:
        headers += (("Upload-Expires", http_date(upload.expires_at)),)
    return headers


# --- after the body -------------------------------------------------------------------------


def problem_of(ending: Ending, *, overrun: bool, offset: int) -> Problem | None:
    """What to tell about a body that did not end as it should; its bytes are kept (T-03A, T-036)."""
    where = (("Upload-Offset", str(offset)),)
    if overrun:
        return Problem("too-large", "the body was longer than allowed; what fits was kept", where, close=True)
    match ending:
        case Ending.WHOLE:
            return None
        case Ending.TAKEN_OVER:
            return Problem("locked", "a newer request took the upload over", (*where, ("Retry-After", "1")), close=True)
        case Ending.DRAINED:
            return Problem("draining", "resume from Upload-Offset", (*where, ("Retry-After", "1")), close=True)
        case Ending.TIMEOUT | Ending.CUT:
            return Problem("timeout", "resume from Upload-Offset", (*where, ("Retry-After", "1")), close=True)


def settle_checksum(
    claim: ChecksumClaim | None, trailer: ChecksumClaim | None, computed: bytes | None, *, expect_trailer: bool
) -> Problem | None:
    """Why a whole body with a checksum must be discarded, or None: commit it (T-0A0 to T-0A8)."""
    if expect_trailer and trailer is None:
        return Problem("bad-header", "the announced Upload-Checksum trailer did not come", close=True)
    if claim is not None and trailer is not None and claim != trailer:
        return Problem("bad-header", "Upload-Checksum differs between header and trailer")
    wanted = claim or trailer
    if wanted is not None and wanted.digest != computed:
        return Problem("checksum-mismatch", "the body was discarded; send it again from the same offset")
    return None


def expiry(upload: Upload, policy: Policy, now: float) -> float:
    """When the upload expires if its last byte was accepted now: it slides, up to its longest life (E2)."""
    return min(now + policy.idle_seconds, upload.created_at + policy.life_seconds)
