"""The events of the contract's section 9, as values for the outbox.

They are written in the transaction of the change they tell of. No token and no address that
grants anything is ever part of one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from service.model import Event, File, Upload


def payload_of(event: Event) -> dict[str, object]:
    """The event as others see it, in a webhook as in the feed."""
    return {"type": event.type, "timestamp": render_instant(event.created_at), "id": event.id, "data": event.data}


def render_instant(at: float) -> str:
    """RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class EventMaker:
    """Makes events with new ids."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id

    def of_upload(self, what: str, upload: Upload, now: float, **more: object) -> Event:
        """`upload.created`, `upload.expired`, `upload.terminated`, `upload.failed`."""
        terms = upload.terms
        data: dict[str, object] = {
            "upload_id": upload.id,
            "file_id": upload.file_id,
            "offset": upload.offset,
            "length": upload.length,
            "type": upload.media_type,
            "filename": upload.filename,
            "owner": terms.owner,
            "refs": [terms.ref] if terms.ref else [],
            "meta": terms.meta or {},
            **more,
        }
        return Event(self._new_id(), f"upload.{what}", upload.id, now, data, terms.issuer)

    def of_file(self, what: str, file: File, upload: Upload | None, now: float, **more: object) -> Event:
        """`file.ready`, `file.infected`, `file.deleted`, `file.corrupt`."""
        data: dict[str, object] = {
            "file_id": file.id,
            "upload_id": file.upload_id,
            "size": file.manifest.size,
            "type": file.media_type,
            "sniffed_type": file.sniffed_type,
            "filename": file.filename,
            "owner": file.owner,
            "root": file.manifest.root.hex(),
            "sha256": file.sha256,
            "verdict": file.verdict.value,
            "refs": [file.ref] if file.ref else [],
            "meta": (upload.terms.meta if upload else None) or {},
            **more,
        }
        return Event(self._new_id(), f"file.{what}", file.id, now, data, file.issuer)
