"""Around every request: its id, its line in the log, its numbers, and errors made presentable."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from service.metadata.base import MetadataError
from service.protocol.dispatch import TUS_VERSION, has_tus
from service.protocol.problems import Problem, Refusal
from service.receiving import storage_problem
from service.storage.base import StorageError, StorageShort
from service.tracing import Span
from service.web.access import CLIENT_GONE, access_of, gone
from service.web.context import CONTEXT
from service.web.cors import Cors
from service.web.replies import REQUEST_ID, respond_problem
from service.web.turns import broken, refuse_rest

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CORS: Final = web.AppKey("cors", Cors)
#: the route of addresses where nothing is; not a label, as there is one for that
ELSEWHERE: Final = "/{elsewhere}"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One log line and one count for each request, however it ends; the query, where tokens are, is never logged."""
    context = request.app[CONTEXT]
    given = request.headers.get("X-Request-ID", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
    request[REQUEST_ID] = request_id
    began = context.clock.monotonic()
    access, status = access_of(request), web.HTTPInternalServerError.status_code
    structlog.contextvars.bind_contextvars(request_id=request_id)
    span = context.tracer.begin(request.method, _route(request), request.headers) if context.tracer else None
    if span is not None:
        structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
    try:
        response = await _answered(request, handler)
        status = response.status
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            access.sent = len(response.body)
    except asyncio.CancelledError:
        # the service stops and its grace is over
        status = access.status or web.HTTPServiceUnavailable.status_code
        access.outcome = access.outcome or "drained"
        raise
    finally:
        _tell(request, status, context.clock.monotonic() - began, span)
        structlog.contextvars.unbind_contextvars("request_id", "trace_id", "upload_id", "file_id")
    return response


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except ConnectionError:
        if not gone(request):
            raise
        # nobody reads it
        response = web.Response(status=CLIENT_GONE)
    if _unread(request):
        # the next request would be taken for the rest of this body (A-03b)
        response.force_close()
        refuse_rest(request)
    return response


def _tell(request: web.Request, status: int, seconds: float, span: Span | None) -> None:
    context, access, route = request.app[CONTEXT], access_of(request), _route(request)
    if access.outcome is None and (gone(request) or broken(request)):
        access.outcome = "client_abort"
    if access.outcome == "client_abort":
        # what it would have been told, nobody was
        status, access.reason, access.detail = CLIENT_GONE, None, None
    context.metrics.http_request(route, request.method, status, seconds)
    told = {
        "outcome": access.outcome,
        "reason": access.reason,
        "received": access.received,
        "sent": access.sent,
        "file_id": access.file_id,
        "kid": access.kid,
        "jti": access.jti,
    }
    if span is not None:
        span.end(status, {name: value for name, value in told.items() if value is not None})
    told |= {"detail": access.detail, "upload_id": access.upload_id}
    log.info(
        "request_answered",
        method=request.method,
        route=route,
        status=status,
        seconds=round(seconds, 6),
        **{name: value for name, value in told.items() if value is not None},
    )


@web.middleware
async def present_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure is problem+json with a stable slug; a 5xx tells nothing of the inside."""
    try:
        request.app[CORS].check(request)
        return await handler(request)
    except Refusal as refusal:
        problem = refusal.problem
    except web.HTTPException as error:
        problem = _of_router(error)
    except StorageShort:
        # what was promised to be kept is not there (lesson C2): an operator's matter, no retry brings it back
        log.exception("bytes_lost", reason="internal")
        problem = Problem("internal", "the fault is ours, and its operator is told", close=True)
    except StorageError as error:
        log.warning("storage_failed", error=str(error))
        problem = storage_problem(error) if access_of(request).file_id is None else _of_storage_read()
    except MetadataError as error:
        log.warning("metadata_failed", error=str(error))
        problem = Problem("storage-unavailable", "try again", (("Retry-After", "1"),), close=True)
    except ConnectionError:
        raise
    except Exception:
        log.exception("request_failed")
        problem = Problem("internal", "the fault is ours; try again", close=True)
    return respond_problem(request, problem)


async def decorate(request: web.Request, response: web.StreamResponse) -> None:
    """Signal `on_response_prepare`: also reaches answers of the router itself (A-06)."""
    request.app[CORS].decorate(request, response)
    access_of(request).status = response.status
    # not which Python and which aiohttp
    response.headers["Server"] = "attachd"
    files = request.path == "/files" or request.path.startswith("/files/")
    if files or has_tus(request.headers):
        response.headers["Tus-Resumable"] = TUS_VERSION
    if files:
        # a cached 404 or 410 would outlive the next upload at the same link as much as a cached offset (T-023)
        response.headers["Cache-Control"] = "no-store"
    request_id = request.get(REQUEST_ID)
    if request_id is not None:
        response.headers["X-Request-ID"] = request_id


def _of_router(error: web.HTTPException) -> Problem:
    if error.status == web.HTTPMethodNotAllowed.status_code:
        allow = error.headers.get("Allow", "")
        return Problem("method-not-allowed", f"this address serves {allow}", (("Allow", allow),), close=True)
    if error.status == web.HTTPNotFound.status_code:
        return Problem("not-found", "nothing is served at this address", close=True)
    return Problem("bad-header", error.reason, status=error.status, close=True)


def _of_storage_read() -> Problem:
    return Problem("storage-unavailable", "the file cannot be read now; try again later", (("Retry-After", "5"),))


def _unread(request: web.Request) -> bool:
    return request.body_exists and not request.content.is_eof()


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None and resource.canonical != ELSEWHERE else "unknown"
