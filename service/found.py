"""Files and uploads as one issuer may see them: another's are not there."""

from __future__ import annotations

from service.clock import Clock
from service.metadata.base import MetadataStore
from service.model import File, FileId, Upload, UploadId, Verdict
from service.protocol.problems import Refusal, refuse


class Found:
    """Reads; changes nothing."""

    def __init__(self, metadata: MetadataStore, clock: Clock) -> None:
        self._metadata = metadata
        self._clock = clock

    async def file(self, issuer: str, file_id: FileId, *, infected: bool = False) -> File:
        """The file, which can be fetched; or, if `infected`, one that nobody gets as well.

        Raises:
            Refusal: not-found; gone: deleted, past its time, or its upload made none; not-ready, worth a retry;
                infected.
        """
        file, upload = await self.either(issuer, file_id)
        if file is None:
            if upload is not None and upload.state.live:
                raise refuse("not-ready", "The upload is not finished; ask again later.", retry_after=2)
            raise self._gone()
        if file.deleted_at is not None or (file.expires_at is not None and file.expires_at <= self._clock.now()):
            raise self._gone()
        if file.verdict is Verdict.INFECTED and not infected:
            raise refuse("infected", "A virus was found in the file, so nobody gets it.")
        return file

    async def promised(self, issuer: str, file_id: FileId) -> tuple[int, str | None]:
        """The size and the owner of the file, or of the one that is being uploaded.

        Raises:
            Refusal: not-found, gone, infected.
        """
        file, upload = await self.either(issuer, file_id)
        if file is None and upload is not None and upload.state.live and not upload.complete:
            return upload.length or 0, upload.terms.owner
        file = await self.file(issuer, file_id)
        return file.manifest.size, file.owner

    async def either(self, issuer: str, file_id: FileId) -> tuple[File | None, Upload | None]:
        """The file, also a deleted one; or the upload that is to be it, or failed to be. Raises Refusal: not-found."""
        file = await self._metadata.file(file_id)
        if file is not None:
            if file.issuer != issuer:
                raise self._unknown("file")
            return file, None
        upload = await self._metadata.upload_of_file(file_id)
        if upload is None or upload.terms.issuer != issuer:
            raise self._unknown("file")
        # published between the two looks, perhaps
        return (await self._metadata.file(file_id) if upload.complete else None), upload

    async def upload(self, issuer: str, upload_id: UploadId) -> Upload:
        """The upload, in whatever state. Raises Refusal: not-found."""
        upload = await self._metadata.upload(upload_id)
        if upload is None or upload.terms.issuer != issuer:
            raise self._unknown("upload")
        return upload

    @staticmethod
    def _unknown(what: str) -> Refusal:
        return refuse("not-found", f"There is no such {what}.")

    @staticmethod
    def _gone() -> Refusal:
        return refuse("gone", "The file was deleted, has expired, or its upload did not succeed.")
