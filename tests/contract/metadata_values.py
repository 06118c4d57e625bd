"""Uploads, link uses and files as the metadata tests need them: one line each, all different."""

from __future__ import annotations

from typing import Any

from service.clock import new_event_id, new_file_id, new_upload_id
from service.metadata.base import Advance, Lease, MetadataStore
from service.model import (
    Block,
    ConcatKind,
    Event,
    File,
    LinkTerms,
    LinkUse,
    Manifest,
    Part,
    Protocol,
    State,
    Upload,
    UploadId,
)

NOW = 1_000_000.0
DAY = 86_400.0


def make_upload(**changes: Any) -> Upload:
    """A fresh upload of 1000 bytes under a link of its own, unless told otherwise."""
    upload_id = new_upload_id()
    values: dict[str, Any] = {
        "id": upload_id,
        "protocol": Protocol.TUS,
        "terms": LinkTerms(issuer="backend", jti=f"jti-{upload_id}", max_size=5000, expires_at=int(NOW + 3600)),
        "file_id": new_file_id(),
        "block_size": 100,
        "strong_hash": False,
        "created_at": NOW,
        "updated_at": NOW,
        "expires_at": NOW + DAY,
        "length": 1000,
    }
    return Upload(**{**values, **changes})


def use_of(upload: Upload, **changes: Any) -> LinkUse:
    """The first use of the upload's link."""
    terms = upload.terms
    values: dict[str, Any] = {
        "issuer": terms.issuer,
        "jti": terms.jti,
        "expires_at": terms.expires_at,
        "uploads": (upload.id,),
    }
    return LinkUse(**{**values, **changes})


def make_event(subject: str = "f_x", kind: str = "file.ready", **payload: Any) -> Event:
    return Event(new_event_id(), kind, subject, NOW, payload)


def make_file(upload: Upload, **changes: Any) -> File:
    values: dict[str, Any] = {
        "id": upload.file_id,
        "upload_id": upload.id,
        "key": f"files/{upload.id}",
        "manifest": Manifest(1000, 100, "xxh128", b"r" * 16, tuple(bytes([n]) * 16 for n in range(10))),
        "created_at": NOW,
        "issuer": "backend",
    }
    return File(**{**values, **changes})


def part(number: int, start: int, end: int, **changes: Any) -> Part:
    return Part(number, start, end, **{"key": f"k{number}", **changes})


def block(number: int) -> Block:
    return Block(number, bytes([number]) * 16)


def step(to_offset: int, **changes: Any) -> Advance:
    return Advance(to_offset, **{"expires_at": NOW + DAY, **changes})


async def created(store: MetadataStore, **changes: Any) -> Upload:
    upload = make_upload(**changes)
    await store.create_upload(upload, use_of(upload))
    return upload


async def leased(store: MetadataStore, **changes: Any) -> tuple[Upload, Lease]:
    """A new upload and the lease on it, of owner `node.1`, for 10 s from NOW."""
    upload = await created(store, **changes)
    lease, upload = await store.acquire_lease(upload.id, "node.1", now=NOW, until=NOW + 10)
    return upload, lease


async def finishing(store: MetadataStore, **changes: Any) -> tuple[Upload, Lease]:
    """All bytes are in, as one part and two blocks."""
    upload, lease = await leased(store, **changes)
    whole = step(1000, parts=[part(0, 0, 1000)], blocks=[block(0), block(1)], state=State.FINISHING)
    return await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=whole, now=NOW), lease


async def ready(store: MetadataStore, **changes: Any) -> Upload:
    """Published: with a file, or, for a partial, without."""
    upload, lease = await finishing(store, **changes)
    file = None if upload.concat_kind is ConcatKind.PARTIAL else make_file(upload)
    return await store.publish(upload.id, epoch=lease.epoch, file=file, events=(), now=NOW)


async def partial(store: MetadataStore, **changes: Any) -> Upload:
    upload = make_upload(concat="partial", concat_kind=ConcatKind.PARTIAL, **changes)
    await store.create_upload(upload, use_of(upload, uploads=(), partials=1, partial_bytes=upload.length or 0))
    return upload


async def final(store: MetadataStore, *partials: Upload, **changes: Any) -> Upload:
    ids: tuple[UploadId, ...] = tuple(each.id for each in partials)
    return await created(store, concat="final;x", concat_kind=ConcatKind.FINAL, partials=ids, length=None, **changes)
