"""Values of the model to rows and back. Nothing here runs a statement.

A row has an attribute for each column. Values come as the driver has them: SQLite's truth is an
integer, JSON is text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final

from service.metadata.base import Asked
from service.model import (
    Block,
    ConcatKind,
    Event,
    File,
    FileId,
    LinkTerms,
    LinkUse,
    Manifest,
    Part,
    Protocol,
    State,
    Upload,
    UploadId,
    Verdict,
)

_TERMS: Final = tuple((field.name, field.default) for field in fields(LinkTerms))
_XXH128_BYTES: Final = 16
_SHA256_BYTES: Final = 32


def _dump_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def dump_terms(terms: LinkTerms) -> str:
    """What differs from the defaults."""
    values = ((name, getattr(terms, name), default) for name, default in _TERMS)
    return _dump_json({name: value for name, value, default in values if value != default})


@lru_cache(maxsize=1024)
def load_terms(stored: str) -> LinkTerms:
    """Cached: terms never change, and each step of an upload reads them."""
    values = json.loads(stored)
    if "types" in values:
        values["types"] = tuple(values["types"])
    return LinkTerms(**values)


def dump_upload(upload: Upload) -> dict[str, Any]:
    """The row of a new upload, which no lease holds. Its partials are rows of their own."""
    return {
        "id": upload.id,
        "protocol": upload.protocol.value,
        "issuer": upload.terms.issuer,
        "jti": upload.terms.jti,
        "owner": upload.terms.owner,
        "terms": dump_terms(upload.terms),
        "file_id": upload.file_id,
        "block_size": upload.block_size,
        "strong_hash": upload.strong_hash,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "updated_at": upload.updated_at,
        "state": upload.state.value,
        "offset": upload.offset,
        "length": upload.length,
        "deferred": upload.deferred,
        "metadata": upload.metadata,
        "filename": upload.filename,
        "media_type": upload.media_type,
        "concat": upload.concat,
        "concat_kind": upload.concat_kind.value,
        "epoch": upload.epoch,
        "problem": upload.problem,
        "problem_detail": upload.problem_detail,
        "lease_owner": None,
        "lease_until": None,
        "lease_asked": Asked.NOT,
        "tail": None,
        "suspect": upload.suspect,
        "reserved": upload.reserved,
    }


def load_upload(row: Any, partials: Sequence[str] = ()) -> Upload:
    return Upload(
        id=UploadId(row.id),
        protocol=Protocol(row.protocol),
        terms=load_terms(row.terms),
        file_id=FileId(row.file_id),
        block_size=row.block_size,
        strong_hash=bool(row.strong_hash),
        created_at=row.created_at,
        expires_at=row.expires_at,
        state=State(row.state),
        offset=row.offset,
        length=row.length,
        deferred=bool(row.deferred),
        metadata=row.metadata,
        filename=row.filename,
        media_type=row.media_type,
        concat=row.concat,
        concat_kind=ConcatKind(row.concat_kind),
        partials=tuple(UploadId(partial) for partial in partials),
        epoch=row.epoch,
        suspect=bool(row.suspect),
        updated_at=row.updated_at,
        problem=row.problem,
        problem_detail=row.problem_detail,
        reserved=row.reserved,
        leased=row.lease_owner is not None,
    )


def dump_part(upload_id: UploadId, part: Part) -> dict[str, Any]:
    return {
        "upload_id": upload_id,
        "number": part.number,
        "start": part.start,
        "end": part.end,
        "key": part.key,
        "etag": part.etag,
        "digest": part.digest,
        "epoch": part.epoch,
    }


def load_part(row: Any) -> Part:
    return Part(row.number, row.start, row.end, row.key, row.etag, row.digest, row.epoch)


def dump_block(upload_id: UploadId, block: Block) -> dict[str, Any]:
    return {"upload_id": upload_id, "number": block.number, "xxh128": block.xxh128, "sha256": block.sha256}


def load_block(row: Any) -> Block:
    return Block(row.number, row.xxh128, row.sha256)


def load_link(row: Any) -> LinkUse:
    return LinkUse(
        issuer=row.issuer,
        jti=row.jti,
        expires_at=row.expires_at,
        uploads=tuple(UploadId(upload_id) for upload_id in json.loads(row.uploads)),
        partials=row.partials,
        partial_bytes=row.partial_bytes,
        version=row.version,
    )


def dump_link(use: LinkUse) -> dict[str, Any]:
    """The row of a link used for the first time."""
    return {
        "issuer": use.issuer,
        "jti": use.jti,
        "expires_at": use.expires_at,
        "uploads": _dump_json(use.uploads),
        "partials": use.partials,
        "partial_bytes": use.partial_bytes,
        "version": use.version + 1,
    }


def dump_link_again(use: LinkUse) -> dict[str, Any]:
    """What an UPDATE of the link needs: where, and the new values."""
    return {
        "of_issuer": use.issuer,
        "of_jti": use.jti,
        "read_version": use.version,
        "new_expires_at": use.expires_at,
        "new_uploads": _dump_json(use.uploads),
        "new_partials": use.partials,
        "new_partial_bytes": use.partial_bytes,
    }


def _pack(digests: Sequence[bytes], width: int) -> bytes:
    if any(len(digest) != width for digest in digests):
        raise ValueError(f"a block digest is not of {width} bytes")
    return b"".join(digests)


def _unpack(packed: bytes, width: int) -> tuple[bytes, ...]:
    return tuple(packed[at : at + width] for at in range(0, len(packed), width))


def dump_file(file: File) -> dict[str, Any]:
    manifest = file.manifest
    return {
        "id": file.id,
        "upload_id": file.upload_id,
        "key": file.key,
        "size": manifest.size,
        "block_size": manifest.block_size,
        "root_algorithm": manifest.root_algorithm,
        "root": manifest.root,
        "block_xxh128": _pack(manifest.xxh128, _XXH128_BYTES),
        "block_sha256": None if manifest.sha256 is None else _pack(manifest.sha256, _SHA256_BYTES),
        "sha256_root": manifest.sha256_root,
        "created_at": file.created_at,
        "issuer": file.issuer,
        "owner": file.owner,
        "sha256": file.sha256,
        "media_type": file.media_type,
        "sniffed_type": file.sniffed_type,
        "filename": file.filename,
        "ref": file.ref,
        "expires_at": file.expires_at,
        "lives_until": file.lives_until,
        "deleted_at": file.deleted_at,
        "verdict": file.verdict.value,
    }


def load_file(row: Any) -> File:
    return File(
        id=FileId(row.id),
        upload_id=UploadId(row.upload_id),
        key=row.key,
        manifest=Manifest(
            size=row.size,
            block_size=row.block_size,
            root_algorithm=row.root_algorithm,
            root=row.root,
            xxh128=_unpack(row.block_xxh128, _XXH128_BYTES),
            sha256=None if row.block_sha256 is None else _unpack(row.block_sha256, _SHA256_BYTES),
            sha256_root=row.sha256_root,
        ),
        created_at=row.created_at,
        issuer=row.issuer,
        owner=row.owner,
        sha256=row.sha256,
        media_type=row.media_type,
        sniffed_type=row.sniffed_type,
        filename=row.filename,
        ref=row.ref,
        expires_at=row.expires_at,
        lives_until=row.lives_until,
        deleted_at=row.deleted_at,
        verdict=Verdict(row.verdict),
    )


def dump_event(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "type": event.type,
        "subject": event.subject,
        "created_at": event.created_at,
        "data": _dump_json(event.data),
        "issuer": event.issuer,
    }


def load_event(row: Any) -> tuple[int, Event]:
    return row.seq, Event(row.id, row.type, row.subject, row.created_at, json.loads(row.data), row.issuer)
