"""Handlers of `/files`: choose the dialect, parse, call the use-case, render.

One route takes every method (T-043). Rules do not live here: an `if` about state belongs in
`protocol/decide`, one about a header in a dialect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from service.links import VerifiedUpload
from service.metadata.base import MetadataError
from service.model import ConcatKind, Protocol, Upload, UploadId, parse_upload_id
from service.protocol import put, tus
from service.protocol.dispatch import (
    METHODS,
    effective_method,
    has_tus,
    protocol_of,
    refuse_ietf,
    version_refusal,
)
from service.protocol.intents import Created, Framing, Reply
from service.protocol.problems import Refusal, refuse
from service.receiving import Body
from service.web.access import access_of
from service.web.context import CONTEXT
from service.web.query import token_of
from service.web.replies import respond
from service.web.turns import fields_of

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# --- /files ---------------------------------------------------------------------------------


async def endpoint(request: web.Request) -> web.StreamResponse:
    """`/files`: creation, discovery, plain PUT, what a link made."""
    return await _ENDPOINT[effective_method(request.method, request.headers, tuple(_ENDPOINT))](request)


async def options(request: web.Request) -> web.StreamResponse:
    """Discovery and CORS preflight; no token, `Tus-Resumable` ignored (T-010 to T-015)."""
    return respond(request, tus.render_options(request.app[CONTEXT].discovery))


async def create(request: web.Request) -> web.StreamResponse:
    """`POST /files`: tus creation."""
    _require_tus(request)
    _refuse_while_stopping(request)
    context = request.app[CONTEXT]
    verified = await _verified(request)
    intent = tus.parse_create(fields_of(request))
    async with _body(request, intent.framing) as body:
        outcome = await context.uploads.create(intent, verified, body)
    outcome = await context.uploads.settled(outcome)
    return respond(request, tus.render_created(outcome, _location(request, outcome)))


async def plain(request: web.Request) -> web.StreamResponse:
    """`PUT /files` and `PUT /files/NAME`."""
    _refuse_while_stopping(request)
    context = request.app[CONTEXT]
    verified = await _verified(request)
    intent = put.parse_put(fields_of(request), request.match_info.get("tail"))
    async with _body(request, intent.framing) as body:
        outcome = await context.uploads.create(intent, verified, body)
    outcome = await context.uploads.settled(outcome)
    return respond(request, put.render_put(outcome, _location(request, outcome)))


async def made(request: web.Request) -> web.StreamResponse:
    """`HEAD /files?sig=`: the upload that a single-use link made (T-02D)."""
    context = request.app[CONTEXT]
    verified = await _verified(request)
    upload = await context.uploads.made_by(verified.terms)
    if upload is None:
        raise refuse("not-found", "the link has made no upload yet")
    current = await context.uploads.inspect(upload.id)
    head = tus.render_head(current)
    location = context.origin.upload(request, current.id)
    return respond(request, Reply(204, (("Location", location), *head.headers)))


async def _verified(request: web.Request) -> VerifiedUpload:
    verified = await request.app[CONTEXT].gate.upload(token_of(request))
    access_of(request).by_link(verified)
    return verified


def _location(request: web.Request, outcome: Created) -> str:
    access_of(request).about_upload(outcome.upload.id)
    _tell_file(request, outcome.upload)
    return request.app[CONTEXT].origin.upload(request, outcome.upload.id)


def _refuse_while_stopping(request: web.Request) -> None:
    """A new upload is a new transfer, with a first body or without (contract, section 12)."""
    if request.app[CONTEXT].bodies.draining:
        raise refuse("draining", "the service is stopping; try again", retry_after=1, close=True)


@asynccontextmanager
async def _body(request: web.Request, framing: Framing) -> AsyncIterator[Body]:
    """The request's body; what came of it is told in the log line. Raises what `Bodies.open` does."""
    body: Body | None = None
    try:
        async with request.app[CONTEXT].bodies.open(request, framing) as body:
            yield body
    finally:
        if body is not None and not framing.empty:
            access_of(request).received = body.received


def _require_tus(request: web.Request) -> None:
    """T-000a to T-000e, T-001; which version it is was looked at with the method (T-000g)."""
    protocol = protocol_of(request.headers)
    if protocol is Protocol.IETF:
        raise refuse_ietf(request.headers)
    if protocol is None:
        raise version_refusal()


# --- /files/u_... ---------------------------------------------------------------------------


async def upload(request: web.Request) -> web.StreamResponse:
    """`/files/u_...`: the upload itself. The address is the capability; a token is not looked at."""
    upload_id = parse_upload_id(request.match_info["tail"])
    if upload_id is None:
        if effective_method(request.method, request.headers, METHODS) == "PUT":
            return await plain(request)
        raise refuse("not-found", "no such upload", close=True)
    access_of(request).about_upload(upload_id)
    method = effective_method(request.method, request.headers, ("OPTIONS", *_UPLOAD))
    return await options(request) if method == "OPTIONS" else await _UPLOAD[method](request, upload_id)


async def head(request: web.Request, upload_id: UploadId) -> web.StreamResponse:
    """`HEAD`: 200, or 423 for any trouble with a live upload: clients start over on anything else (T-028)."""
    _require_tus_version(request)
    try:
        found = await request.app[CONTEXT].uploads.inspect(upload_id)
    except Refusal:
        raise
    except MetadataError as error:
        log.warning("metadata_failed", upload_id=upload_id, error=str(error))
    except Exception:
        log.exception("head_failed", upload_id=upload_id)
    else:
        return respond(request, tus.render_head(found))
    raise refuse("locked", "the state is not to be had now; ask again", retry_after=1)


async def status(request: web.Request, upload_id: UploadId) -> web.StreamResponse:
    """`GET`: the status as JSON, whatever the protocol (T-02B)."""
    context = request.app[CONTEXT]
    ask = partial(context.uploads.status, upload_id)
    found = await context.waiting.ask(request, ask, stopping=lambda: context.bodies.draining)
    return respond(request, tus.render_status(found))


def _tell_file(request: web.Request, upload: Upload) -> None:
    """The line of the request that brought the last byte names the file."""
    if upload.complete and upload.concat_kind is not ConcatKind.PARTIAL:
        access_of(request).about_file(upload.file_id)


async def append(request: web.Request, upload_id: UploadId) -> web.StreamResponse:
    """`PATCH`: the body at the offset."""
    context = request.app[CONTEXT]
    if protocol_of(request.headers) is Protocol.IETF:
        await context.uploads.status(upload_id)
        raise refuse("bad-header", "the upload was made with tus; continue with tus", close=True)
    _require_tus(request)
    intent = tus.parse_append(fields_of(request), upload_id)
    async with _body(request, intent.framing) as body:
        outcome = await context.uploads.append(intent, body)
    outcome = await context.uploads.settled(outcome)
    _tell_file(request, outcome.upload)
    return respond(request, tus.render_appended(outcome))


async def terminate(request: web.Request, upload_id: UploadId) -> web.StreamResponse:
    """`DELETE`: the upload is gone (tus 1.0.0, Termination)."""
    _require_tus_version(request)
    await request.app[CONTEXT].uploads.terminate(upload_id)
    return respond(request, tus.render_terminated())


def _require_tus_version(request: web.Request) -> None:
    """Every upload served here was made with tus or PUT: `Tus-Resumable` is a must (T-000c)."""
    if not has_tus(request.headers):
        raise version_refusal()


_ENDPOINT: Final[dict[str, Handler]] = {"OPTIONS": options, "POST": create, "HEAD": made, "PUT": plain}
_UPLOAD: Final[dict[str, Callable[[web.Request, UploadId], Awaitable[web.StreamResponse]]]] = {
    "HEAD": head,
    "GET": status,
    "PATCH": append,
    "DELETE": terminate,
}
