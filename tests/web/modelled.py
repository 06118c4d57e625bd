"""What becomes of uploads, in memory: the rules of docs/rules.md without network, storage, leases or processes.

`tests.web.test_state_machine` holds a real service against it. Every method that stands for a
request changes the model and returns the status that a client must see; `None` where it is cut off
before there is one. Time is an argument; what a sweep does is `Model.sweep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from service.model import ConcatKind, State

HOUR: Final = 3600.0
#: settings that the service must run with
IDLE: Final = 1 * HOUR
LIFE: Final = 5 * HOUR
TOMBSTONE: Final = 2 * HOUR
LINK_LIFE: Final = 24 * HOUR
LEEWAY: Final = 60.0
LARGEST: Final = 2**30

_ENDED: Final = (State.EXPIRED, State.TERMINATED, State.FAILED)


@dataclass(eq=False)
class Upload:
    """One upload as it must be."""

    #: where it is, and the link that made it: paths
    path: str
    link: str = field(repr=False)
    link_expires_at: float
    created_at: float
    expires_at: float
    updated_at: float
    length: int | None = None
    kind: ConcatKind = ConcatKind.NONE
    state: State = State.RECEIVING
    content: bytes = field(default=b"", repr=False)
    #: of a final
    partials: Sequence[Upload] = field(default=(), repr=False)
    #: the link names another SHA-256 than the content will have
    doomed: bool = False
    #: the `Upload-Length` of its creation, None: deferred; and whether a tus creation with this link finds it
    declared: int | None = None
    repeatable: bool = False
    #: no row of it is left
    forgotten: bool = False
    #: a file came of it, if only for a time; and what the service calls that
    published: bool = False
    file_id: str | None = None

    @property
    def offset(self) -> int:
        return len(self.content)

    @property
    def makes_file(self) -> bool:
        return self.kind is not ConcatKind.PARTIAL

    @property
    def waits(self) -> bool:
        """A final whose partials are not all complete."""
        return self.kind is ConcatKind.FINAL and self.state is State.RECEIVING


@dataclass(frozen=True)
class Body:
    """A request body as it is sent."""

    content: bytes = field(default=b"", repr=False)
    #: bytes of it that are sent before the connection ends; None: all, and an answer is read
    cut_after: int | None = None
    chunked: bool = False
    #: whether a checksum comes with it, and is right
    claim: bool | None = None

    @property
    def arrived(self) -> bytes:
        return self.content if self.cut_after is None else self.content[: self.cut_after]

    @property
    def cut(self) -> bool:
        return self.cut_after is not None


@dataclass
class Model:
    """All uploads of a service."""

    uploads: list[Upload] = field(default_factory=list)

    # --- what a client sees --------------------------------------------------------------------

    def gone(self, upload: Upload, now: float) -> int | None:
        """404 or 410 for any request to it, if it is over (T-025, T-093)."""
        if upload.forgotten:
            return 404
        return 410 if upload.state in _ENDED or self._overdue(upload, now) else None

    def _overdue(self, upload: Upload, now: float) -> bool:
        expires_at = upload.expires_at
        if upload.kind is ConcatKind.PARTIAL:
            # a partial lives at least as long as the pending finals that name it (T-096)
            expires_at = max([expires_at, *(final.expires_at for final in self._finals_of(upload))])
        elif upload.state is not State.RECEIVING:
            return False
        return expires_at <= now

    def _finals_of(self, partial: Upload) -> list[Upload]:
        return [final for final in self.uploads if final.waits and partial in final.partials]

    @staticmethod
    def told_length(upload: Upload) -> int | None:
        """What HEAD says: a pending final has a length once all of its partials have (T-0C8)."""
        if not upload.waits:
            return upload.length
        lengths = [partial.length for partial in upload.partials if partial.length is not None]
        return sum(lengths) if len(lengths) == len(upload.partials) else None

    # --- creation ------------------------------------------------------------------------------

    @staticmethod
    def may_create(length: int | None, body: Body) -> int | None:
        """The status of a creation under a new link; None: the connection ends before."""
        room = LARGEST if length is None else length
        if not body.chunked and len(body.content) > room:
            return 413
        if body.cut:
            return None
        if body.chunked and len(body.content) > room:
            return 413
        return 460 if body.claim is False else 201

    @staticmethod
    def makes_nothing(length: int | None, body: Body) -> bool:
        """Whether no upload is left of such a creation (T-064, T-068)."""
        room = LARGEST if length is None else length
        over = len(body.arrived) > room
        if body.claim is not None:
            return over or body.cut or body.claim is False
        return not body.chunked and len(body.content) > room

    def created(self, upload: Upload, body: Body, now: float, *, closes: bool = False) -> None:
        """The upload is there, with what came of its first body. `closes`: the body's end is the upload's."""
        self.uploads.append(upload)
        if upload.kind is ConcatKind.FINAL:
            self._settle_final(upload, now)
            return
        room = LARGEST if upload.length is None else upload.length
        self._take(upload, body.arrived[:room], now)
        if closes and not body.cut:
            upload.length = upload.offset
        self._complete(upload, now)

    def final_status(self, partials: Sequence[Upload | None], now: float) -> int:
        """Of a creation that joins these; None stands for an address that is not an upload's (T-0CA)."""
        for partial in partials:
            if partial is None:
                return 404
            if (status := self.gone(partial, now)) is not None:
                return status
            if partial.kind is not ConcatKind.PARTIAL:
                return 400
        return 201

    def repeated(self, upload: Upload, declared: int | None, now: float) -> int:
        """The status of a creation with the upload's link: 201 is for it or, if `link_is_free`, for a new one."""
        if self.link_is_free(upload, now):
            return 401 if upload.link_expires_at + LEEWAY < now else 201
        if upload.state is State.TERMINATED:
            return 410
        if upload.state is State.FAILED:
            return 460
        return 201 if declared == upload.declared else 403

    def link_is_free(self, upload: Upload, now: float) -> bool:
        """Whether the link can make another upload (T-05E)."""
        return upload.forgotten or upload.state is State.EXPIRED or self._overdue(upload, now)

    # --- bytes ---------------------------------------------------------------------------------

    def append(self, upload: Upload, offset: int, body: Body, length: int | None, now: float) -> int | None:
        """A PATCH, in the order of T-000g."""
        refused = self._refused(upload, offset, body, length, now)
        if refused is not None or upload.state is State.READY:
            return refused or (460 if body.claim is False else 204)
        known = upload.length if length is None else length
        arrived = body.arrived
        over = known is not None and offset + len(arrived) > known
        if over:
            arrived = arrived[: (known or 0) - offset]
        if body.claim is not None:
            # a body with a checksum counts only when whole and right (T-0A4)
            if over:
                return 413
            if body.cut or not body.claim:
                return None if body.cut else 460
        self._take(upload, arrived, now)
        if known != upload.length:
            upload.length, upload.updated_at = known, now
        self._complete(upload, now)
        if upload.state is State.FAILED:
            return 460
        if over:
            return 413
        return None if body.cut else 204

    def _refused(self, upload: Upload, offset: int, body: Body, length: int | None, now: float) -> int | None:
        if (status := self.gone(upload, now)) is not None:
            return status
        if upload.kind is ConcatKind.FINAL:
            return 403
        if offset != upload.offset:
            return 409
        if length is not None and upload.length is not None and length != upload.length:
            return 400
        if length is not None and length < upload.offset:
            return 400
        known = upload.length if length is None else length
        if not body.chunked and known is not None and offset + len(body.content) > known:
            return 413
        if upload.state is State.READY and body.arrived:
            return 413
        return None

    @staticmethod
    def _take(upload: Upload, arrived: bytes, now: float) -> None:
        if arrived:
            upload.content += arrived
            upload.expires_at = min(now + IDLE, upload.created_at + LIFE)
            upload.updated_at = now

    def _complete(self, upload: Upload, now: float) -> None:
        """The last byte makes the file, or shows that there will be none."""
        if upload.length is None or upload.offset != upload.length or upload.state is not State.RECEIVING:
            return
        upload.state, upload.updated_at = State.FAILED if upload.doomed else State.READY, now
        upload.published = upload.makes_file and not upload.doomed
        self._settle_finals(upload, now)

    def _settle_finals(self, partial: Upload, now: float) -> None:
        for final in self._finals_of(partial):
            self._settle_final(final, now)

    def _settle_final(self, final: Upload, now: float) -> None:
        if any(partial.forgotten or partial.state in _ENDED for partial in final.partials):
            final.state, final.updated_at = State.FAILED, now
        elif all(partial.state is State.READY for partial in final.partials):
            final.content = b"".join(partial.content for partial in final.partials)
            final.length, final.state, final.updated_at, final.published = final.offset, State.READY, now, True

    # --- ends ----------------------------------------------------------------------------------

    def terminate(self, upload: Upload, now: float) -> int:
        """A DELETE (T-0B0 to T-0B5)."""
        if upload.state is State.TERMINATED:
            return 404
        if (status := self.gone(upload, now)) is not None:
            return status
        self._end(upload, State.TERMINATED, now)
        return 204

    def _end(self, upload: Upload, state: State, now: float) -> None:
        upload.state, upload.updated_at = state, now
        self._settle_finals(upload, now)

    def overtaken(self, upload: Upload, now: float) -> None:
        """An overdue upload whose link makes a new one ends there and then (T-05E)."""
        if not upload.forgotten and upload.state is State.RECEIVING and self._overdue(upload, now):
            self._end(upload, State.EXPIRED, now)

    def sweep(self, now: float) -> None:
        """What is over is removed, and what has been over for long is forgotten (lesson E1)."""
        again = True
        while again:
            due = [upload for upload in self.uploads if self.gone(upload, now) == 410 and upload.state not in _ENDED]
            # a partial waits for the finals that name it
            due = [upload for upload in due if not self._finals_of(upload)]
            for upload in due:
                self._end(upload, State.EXPIRED, now)
            again = bool(due)
        for upload in self.uploads:
            ended = upload.state in _ENDED or (upload.state is State.READY and upload.makes_file)
            upload.forgotten |= ended and upload.updated_at < now - TOMBSTONE
