"""Verified links and service tokens for the use-cases: the key set of the moment, the audience, the counting.

The one place where a token is looked at. Tokens go no further than this: what comes out are the
terms, the key's id and a short hash for the log.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from service.links import (
    LinkRefusal,
    VerifiedDownload,
    VerifiedService,
    VerifiedUpload,
    verify_download,
    verify_service,
    verify_upload,
)
from service.protocol.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.clock import Clock
    from service.keyset import KeySet
    from service.metrics import Metrics
    from service.model import FileId
    from service.revocations import Revocations

T = TypeVar("T", VerifiedUpload, VerifiedDownload, VerifiedService)

#: tokens of unknown keys make the key set be read again at most so often
_RELOAD_SECONDS: Final = 0.1
#: verified tokens that are known again: a download in ranges and a repeated creation come with the same one
_REMEMBERED: Final = 2048


class Gate:
    """Verifies upload links, download links and service tokens against the current keys.

    Args:
        keys: the set as last read; does no I/O.
        reload: the set as it is now; asked when a token names a key that is not in `keys`, so that
            a link signed right after `attachd keys new` works at once.
        revocations: what was revoked; None: nothing ever is.
    """

    def __init__(
        self,
        keys: Callable[[], KeySet],
        *,
        reload: Callable[[], Awaitable[KeySet]] | None = None,
        revocations: Revocations | None = None,
        audience: str | None,
        upload_life_seconds: float,
        download_life_seconds: float,
        service_life_seconds: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._keys = keys
        self._reload = reload
        self._reloaded_at = float("-inf")
        #: what was verified against `_known_keys`, oldest first; told apart by the file that it was verified for
        self._known: dict[tuple[str, FileId | None], VerifiedUpload | VerifiedDownload] = {}
        self._known_keys: KeySet | None = None
        self._revocations = revocations
        self._audience = audience
        self._upload_life_seconds = upload_life_seconds
        self._download_life_seconds = download_life_seconds
        self._service_life_seconds = service_life_seconds
        self._clock = clock
        self._metrics = metrics

    async def upload(self, token: str | None) -> VerifiedUpload:
        """The terms of an upload link, `expired` ones included: a replay needs them (T-05C).

        Raises:
            Refusal: bad-link, wrong-scope.
        """
        verified = self._remembered(token, None)
        if not isinstance(verified, VerifiedUpload):
            verify = partial(verify_upload, token or "", max_life_seconds=self._upload_life_seconds)
            verified = await self._verified(verify)
            if not verified.expired:
                self._remember(token, None, verified)
        await self.unrevoked(verified)
        self._metrics.token_verified("expired" if verified.expired else "ok", kid=verified.kid)
        return verified

    async def download(self, token: str | None, file_id: FileId) -> VerifiedDownload:
        """The terms of a download link for this very file.

        Raises:
            Refusal: bad-link, wrong-scope, link-expired.
        """
        verified = self._remembered(token, file_id)
        if not isinstance(verified, VerifiedDownload):
            verified = await self._verified(
                partial(verify_download, token or "", file_id=file_id, max_life_seconds=self._download_life_seconds)
            )
            self._remember(token, file_id, verified)
        await self.unrevoked(verified)
        self._metrics.token_verified("ok", kid=verified.kid)
        return verified

    async def service(self, token: str | None, scope: str) -> VerifiedService:
        """Who a service token with the scope acts for: its key's issuer, and nobody else.

        Raises:
            Refusal: bad-link, wrong-scope, link-expired.
        """
        verified = await self._verified(
            partial(verify_service, token or "", scope=scope, max_life_seconds=self._service_life_seconds)
        )
        await self._refuse_revoked(verified, verified.issuer, jti=verified.jti, owner=None, file_id=None)
        self._metrics.token_verified("ok", kid=verified.kid)
        return verified

    async def unrevoked(self, verified: VerifiedUpload | VerifiedDownload) -> None:
        """What was waited for since the link was verified may have taken longer than a revocation does to be known.

        Raises:
            Refusal: bad-link.
        """
        if isinstance(verified, VerifiedUpload):
            terms = verified.terms
            await self._refuse_revoked(verified, terms.issuer, jti=terms.jti, owner=terms.owner, file_id=terms.file_id)
        else:
            await self._refuse_revoked(
                verified, verified.issuer, jti=verified.jti, owner=verified.owner, file_id=verified.file_id
            )

    async def _refuse_revoked(
        self, verified: T, issuer: str, *, jti: str | None, owner: str | None, file_id: FileId | None
    ) -> None:
        if self._revocations is not None and await self._revocations.revoked(
            issuer, jti=jti, owner=owner, file_id=file_id, issued_at=verified.issued_at
        ):
            self._metrics.token_verified("revoked")
            raise LinkRefusal(Problem("bad-link", "It has been revoked; ask for a new one."), "revoked", verified.kid)

    def _remembered(self, token: str | None, file_id: FileId | None) -> VerifiedUpload | VerifiedDownload | None:
        """What the token was found to be, while it and the keys are what they were."""
        keys = self._keys()
        if keys is not self._known_keys:
            self._known, self._known_keys = {}, keys
        verified = self._known.get((token or "", file_id))
        if verified is None or _expires_at(verified) <= self._clock.now():
            return None
        return verified

    def _remember(self, token: str | None, file_id: FileId | None, verified: VerifiedUpload | VerifiedDownload) -> None:
        if token is None or self._keys() is not self._known_keys:
            return
        self._known[token, file_id] = verified
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]

    async def _verified(self, verify: Callable[..., T]) -> T:
        check = partial(verify, now=self._clock.now(), audience=self._audience)
        try:
            return check(keys=self._keys())
        except LinkRefusal as refusal:
            if refusal.result != "unknown-key" or not self._may_reload():
                self._metrics.token_verified(refusal.result)
                raise
        try:
            return check(keys=await self._reloaded())
        except LinkRefusal as refusal:
            self._metrics.token_verified(refusal.result)
            raise

    def _may_reload(self) -> bool:
        now = self._clock.monotonic()
        if self._reload is None or now - self._reloaded_at < _RELOAD_SECONDS:
            return False
        self._reloaded_at = now
        return True

    async def _reloaded(self) -> KeySet:
        return self._keys() if self._reload is None else await self._reload()


def _expires_at(verified: VerifiedUpload | VerifiedDownload) -> int:
    return verified.terms.expires_at if isinstance(verified, VerifiedUpload) else verified.expires_at
