"""Verified links for the use-cases: the key set of the moment, the audience, the counting.

The one place where a token is looked at. Tokens go no further than this: what comes out are the
terms, the key's id and a short hash for the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.links import LinkRefusal, VerifiedDownload, VerifiedUpload, verify_download, verify_upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.clock import Clock
    from service.links import KeySet
    from service.metrics import Metrics
    from service.model import FileId


class Gate:
    """Verifies upload and download links against the current keys."""

    def __init__(
        self,
        keys: Callable[[], KeySet],
        *,
        audience: str | None,
        upload_life_seconds: float,
        download_life_seconds: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._upload_life_seconds = upload_life_seconds
        self._download_life_seconds = download_life_seconds
        self._clock = clock
        self._metrics = metrics

    def upload(self, token: str | None) -> VerifiedUpload:
        """The terms of an upload link, `expired` ones included: a replay needs them (T-05C).

        Raises:
            Refusal: bad-link, wrong-scope.
        """
        try:
            verified = verify_upload(
                token or "",
                self._keys(),
                now=self._clock.now(),
                audience=self._audience,
                max_life_seconds=self._upload_life_seconds,
            )
        except LinkRefusal as refusal:
            self._metrics.token_verified(refusal.result)
            raise
        self._metrics.token_verified("expired" if verified.expired else "ok", kid=verified.kid)
        return verified

    def download(self, token: str | None, file_id: FileId) -> VerifiedDownload:
        """The terms of a download link for this very file.

        Raises:
            Refusal: bad-link, wrong-scope, link-expired.
        """
        try:
            verified = verify_download(
                token or "",
                self._keys(),
                now=self._clock.now(),
                audience=self._audience,
                file_id=file_id,
                max_life_seconds=self._download_life_seconds,
            )
        except LinkRefusal as refusal:
            self._metrics.token_verified(refusal.result)
            raise
        self._metrics.token_verified("ok", kid=verified.kid)
        return verified
