"""What a link makes: a new upload counted against it, or the one it made before (T-05C to T-05F)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Final

from service.clock import Clock, new_file_id, new_upload_id
from service.events import EventMaker
from service.hooks import Hooks
from service.links import VerifiedUpload
from service.lookup import Lookup
from service.metadata.base import Conflict, FileIdTaken, MetadataStore, QuotaExceeded
from service.model import ConcatKind, LinkTerms, LinkUse, State, Upload
from service.protocol.decide import decide_create, decide_final, decide_use, limit_of, overdue, partial_room
from service.protocol.intents import Create, Policy
from service.protocol.problems import refuse
from service.room import Room
from service.settling import Settling

#: a link raced by more creations than this is told to try again
_TRIES: Final = 8


class Claiming:
    """Creations against links, by compare-and-set on the link's row."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        room: Room,
        lookup: Lookup,
        settling: Settling,
        policy: Policy,
        clock: Clock,
        events: EventMaker,
        hooks: Hooks,
        unrevoked: Callable[[VerifiedUpload], Awaitable[None]],
    ) -> None:
        """`unrevoked`: refuses a link that was revoked since it was verified."""
        self._metadata = metadata
        self._room = room
        self._lookup = lookup
        self._settling = settling
        self._policy = policy
        self._clock = clock
        self._events = events
        self._hooks = hooks
        self._unrevoked = unrevoked

    async def claim(self, intent: Create, verified: VerifiedUpload) -> tuple[Upload, bool]:
        """The upload, and whether it is one that the link made before.

        Raises:
            Refusal: what `decide_create`, `decide_use` and `decide_final` raise; link-expired;
                storage-full; quota-exceeded; hook-refused; hook-unavailable; bad-link, when it was revoked
                meanwhile; locked, when it is raced.
        """
        terms = verified.terms
        allowed = False
        for _ in range(_TRIES):
            use = await self._metadata.link_use(terms.issuer, terms.jti)
            # only a single-use link has replays to look for
            made = await self._metadata.uploads(use.uploads[-1:]) if use and terms.single_use else {}
            now = self._clock.now()
            earlier = decide_use(intent, terms, use, made, self._policy, now)
            if earlier is not None:
                return earlier, True
            if verified.expired:
                raise refuse("link-expired", "the link has expired; ask for a new one", close=True)
            decide_create(intent, terms, self._policy)
            await self._forget_overdue(made.values(), now)
            length = await self._final_length(intent, terms) if intent.partials else intent.length
            await self._room.check(length)
            if not allowed:
                # last, so that a backend is asked about what would be made; once, whoever races for the link
                await self._hooks.before_creation(intent, terms, length)
                allowed = True
            # a backend takes seconds to answer, and an erasure takes what there is one second after it was asked for
            await self._unrevoked(verified)
            try:
                return await self._insert(intent, terms, use, length), False
            except Conflict:
                continue
            except FileIdTaken:
                raise refuse("link-used", "the file of this link exists already", close=True) from None
            except QuotaExceeded:
                raise refuse("quota-exceeded", "the link's owner has no room left for it", close=True) from None
        raise refuse("locked", "the link is being used by other requests", retry_after=1, close=True)

    async def _insert(self, intent: Create, terms: LinkTerms, use: LinkUse | None, length: int | None) -> Upload:
        now = self._clock.now()
        part = intent.concat_kind is ConcatKind.PARTIAL
        before = use or LinkUse(terms.issuer, terms.jti, terms.expires_at)
        partial_bytes = 0
        if part:
            # a partial of unknown length reserves what the others left, and may not take more (T-05F)
            room = partial_room(terms, before, self._policy)
            partial_bytes = room if length is None else length
            terms = replace(terms, max_size=partial_bytes)
        upload = fresh_upload(intent, terms, self._policy, now, length)
        # a single-use link that is free again has only its newest upload
        counting = () if terms.single_use else before.uploads
        after = replace(
            before,
            uploads=before.uploads if part else (*counting, upload.id),
            partials=before.partials + part,
            partial_bytes=before.partial_bytes + partial_bytes,
        )
        events = [self._events.of_upload("created", upload, now)]
        await self._metadata.create_upload(upload, after, events=events, quota=self._policy.quota)
        return upload

    async def _forget_overdue(self, made: Iterable[Upload], now: float) -> None:
        """An upload that expired before the sweeper came ends now, so that the link is free (T-05E)."""
        for upload in made:
            if overdue(upload, now):
                await self._settling.expire(upload, now)

    async def _final_length(self, intent: Create, terms: LinkTerms) -> int | None:
        partials = await self._lookup.several(intent.partials)
        return decide_final(partials, terms, self._policy, self._clock.now())


def _empty(intent: Create) -> bool:
    """Whether the creation is the whole of an empty file: all bytes are in before the first (T-056)."""
    plain = intent.checksum is None and intent.concat_kind is not ConcatKind.FINAL
    return intent.length == 0 and intent.framing.empty and plain


def fresh_upload(intent: Create, terms: LinkTerms, policy: Policy, now: float, length: int | None) -> Upload:
    """The upload that the creation asks for, nothing received: `finishing` if there is nothing to receive."""
    part = intent.concat_kind is ConcatKind.PARTIAL
    # for its owner an upload counts with all that may come of it (lesson A7)
    most = length if length is not None else limit_of(terms, policy)
    return Upload(
        id=new_upload_id(),
        protocol=intent.protocol,
        terms=terms,
        file_id=new_file_id() if part or terms.file_id is None else terms.file_id,
        block_size=policy.block_size,
        strong_hash=policy.strong_hash,
        created_at=now,
        updated_at=now,
        expires_at=now + min(policy.idle_seconds, policy.life_seconds),
        length=length,
        deferred=intent.deferred,
        state=State.FINISHING if _empty(intent) else State.RECEIVING,
        metadata=intent.metadata,
        filename=intent.filename,
        media_type=intent.media_type,
        concat=intent.concat,
        concat_kind=intent.concat_kind,
        partials=intent.partials,
        reserved=0 if terms.owner is None or most is None else most,
    )
