"""Uploads as clients may see them: the committed row, and what follows from rows beside it."""

from __future__ import annotations

from service.clock import Clock
from service.metadata.base import MetadataStore
from service.model import ConcatKind, Upload, UploadId
from service.protocol.decide import overdue
from service.protocol.problems import refuse


class Lookup:
    """Reads; changes nothing."""

    def __init__(self, metadata: MetadataStore, clock: Clock) -> None:
        self._metadata = metadata
        self._clock = clock

    async def upload(self, upload_id: UploadId) -> Upload:
        """The upload, in whatever state. Raises Refusal: not-found."""
        upload = await self._metadata.upload(upload_id)
        if upload is None:
            raise refuse("not-found", "no such upload", close=True)
        return await self._measured(upload) if upload.pending_final else await self.spared(upload)

    async def several(self, upload_ids: tuple[UploadId, ...]) -> list[Upload | None]:
        """The uploads in that order, repeats too; None for one that is not known."""
        found = await self._metadata.uploads(upload_ids)
        spared = {upload_id: await self.spared(upload) for upload_id, upload in found.items()}
        return [spared.get(upload_id) for upload_id in upload_ids]

    async def spared(self, upload: Upload) -> Upload:
        """A partial lives at least as long as the pending finals that name it (T-096)."""
        if upload.concat_kind is not ConcatKind.PARTIAL or not overdue(upload, self._clock.now()):
            return upload
        finals = await self._metadata.uploads(await self._metadata.pending_finals(upload.id))
        return upload.with_(expires_at=max([upload.expires_at, *(final.expires_at for final in finals.values())]))

    async def _measured(self, final: Upload) -> Upload:
        """A pending final has a length as soon as each of its partials has one (T-0C8)."""
        found = await self._metadata.uploads(final.partials) if final.length is None else {}
        lengths = [found[partial].length for partial in final.partials if partial in found]
        known = [length for length in lengths if length is not None]
        return final.with_(length=sum(known)) if found and len(known) == len(final.partials) else final
