"""Finding the file that a download link names, and opening it.

A finished file never changes, so nothing here takes a lock, holds a lease or hashes (lesson G1).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from service.hashing import manifest_json
from service.metadata.base import MetadataUnavailable
from service.model import Verdict
from service.protocol.problems import Refusal, refuse
from service.storage.base import StorageShort, StorageUnavailable

if TYPE_CHECKING:
    from service.changes import Changes
    from service.clock import Clock
    from service.metadata.base import MetadataStore
    from service.model import File, FileId
    from service.storage.base import Storage, StoredFile

_RETRY_SECONDS: Final = 2


class Downloads:
    """What other services do with finished files.

    Args:
        changes: wakes `find` when this process publishes the file.
        wait_poll_seconds: how often a waiting `find` looks by itself, for changes of other processes.
        idle_seconds: a client that takes no byte for so long is cut off; a slow one never is (lesson G1).
    """

    def __init__(
        self,
        metadata: MetadataStore,
        storage: Storage,
        clock: Clock,
        *,
        changes: Changes,
        wait_poll_seconds: float = 1.0,
        idle_seconds: float = 60.0,
    ) -> None:
        self.idle_seconds = idle_seconds
        self._metadata = metadata
        self._storage = storage
        self._clock = clock
        self._changes = changes
        self._wait_poll_seconds = wait_poll_seconds

    def proxy_path(self, file: File) -> str | None:
        """Where a proxy in front finds the file below the storage's root, None where it cannot."""
        return self._storage.proxy_path(file.key)

    async def signed_url(self, file: File, *, seconds: int, content_type: str, disposition: str) -> str | None:
        """A URL of the store's own from which anybody can fetch the file for so long; None where it has none.

        Raises:
            Refusal: `storage-unavailable`, worth a retry.
        """
        try:
            return await self._storage.signed_url(
                file.key, seconds=seconds, content_type=content_type, disposition=disposition
            )
        except StorageUnavailable as error:
            raise _retry_later() from error

    async def find(self, file_id: FileId, *, wait_seconds: float = 0) -> File:
        """The file, ready to be read; waits for it at most `wait_seconds`, and never over 20.

        Raises:
            Refusal: `not-ready`, worth a retry: not there yet, and nothing says it will not be; an
                upload may not even have begun, since both links can be minted at once.
                `gone`, permanent: deleted, expired, or its upload ended without a file.
                `infected`, permanent: held, and given to nobody.
                `storage-unavailable`, worth a retry.
        """
        until = self._clock.monotonic() + wait_seconds
        # watched before the store is read, so that no change falls between
        with self._changes.watch(file_id) as watch:
            while (file := await self._look(file_id)) is None:
                left = until - self._clock.monotonic()
                if left <= 0:
                    raise refuse("not-ready", "Ask again later, or with ?wait=20.", retry_after=_RETRY_SECONDS)
                await watch.wait(min(left, self._wait_poll_seconds))
        return file

    async def _look(self, file_id: FileId) -> File | None:
        """The file; None while one may still come."""
        with _unavailable():
            file = await self._metadata.file(file_id)
            if file is None:
                upload = await self._metadata.upload_of_file(file_id)
                if upload is None:
                    return None
                if not upload.state.live:
                    raise _gone()
                # published between the two looks, or else forgotten since
                file = await self._metadata.file(file_id) if upload.complete else None
                if file is None and upload.complete:
                    raise _gone()
        if file is not None and self._dead(file):
            raise _gone()
        if file is not None and file.verdict is Verdict.INFECTED:
            raise refuse("infected", "A virus was found in the file, so nobody gets it.")
        return file

    def _dead(self, file: File) -> bool:
        """Deleted, or past its time, whether or not the sweeper has been (lesson E1)."""
        return file.deleted_at is not None or (file.expires_at is not None and file.expires_at <= self._clock.now())

    @asynccontextmanager
    async def open(self, file: File) -> AsyncIterator[StoredFile]:
        """The file's bytes, until the context is left.

        Raises:
            Refusal: `gone`, permanent: deleted since it was found. `storage-unavailable`, worth a retry.
            StorageShort: permanent; a promise was broken, the bytes are not there.
        """
        async with AsyncExitStack() as stack:
            try:
                stored = await stack.enter_async_context(self._storage.open_file(file.key))
            except StorageUnavailable as error:
                raise _retry_later() from error
            except StorageShort:
                await self.find(file.id)
                raise
            if stored.size != file.manifest.size:
                raise StorageShort(f"the stored file has {stored.size} bytes, not {file.manifest.size}")
            yield stored

    async def manifest(self, file: File) -> dict[str, Any]:
        """The block digests as JSON (contract, section 6)."""
        return manifest_json(file.id, file.manifest)


def _gone() -> Refusal:
    return refuse("gone", "The file was deleted, has expired, or its upload did not succeed.")


def _retry_later() -> Refusal:
    return refuse("storage-unavailable", "Try again later.", retry_after=_RETRY_SECONDS)


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except MetadataUnavailable as error:
        raise _retry_later() from error
