"""`/d/f_…`: a finished file, or its manifest, for whoever holds a link to it (contract, section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from aiohttp import web

from service.model import parse_file_id
from service.protocol import ranges
from service.protocol.problems import refuse
from service.web.access import access_of
from service.web.context import CONTEXT, Context
from service.web.query import token_of
from service.web.sendfile import Body, send

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from service.links import VerifiedDownload
    from service.metrics import DownloadMode, TransferOutcome
    from service.model import File

#: on every download, whatever its type (lesson G3): no sniffing, no script, no referrer with our link in it
_GUARDS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "cross-origin",
}

#: how long a presigned URL is good for: enough to begin, as a transfer under way is not cut off
_REDIRECT_SECONDS: Final = 300
#: a redirect that was kept is not followed so late that its URL ends on the way
_REDIRECT_MARGIN_SECONDS: Final = 30
#: a question about our validators, which the store cannot answer: it has its own
_PRECONDITIONS: Final = tuple(name for name in ranges.CONDITIONAL_FIELDS if name != "Range")


async def download(request: web.Request) -> web.StreamResponse:
    """`GET`, `HEAD /d/f_…` and `/d/f_…/NAME`. The NAME is for people; the link or the file says how it is called."""
    context = request.app[CONTEXT]
    link, file = await _found(request, context)
    headers = _headers(link, file, now=context.clock.now())
    plan = _plan(request, file, headers)
    if plan.status == 304:
        return web.Response(status=304, headers=headers)
    headers |= _entity_headers(link, file)
    elsewhere = await _elsewhere(request, context, link, file, headers)
    return await _sent(request, context, file, plan, headers) if elsewhere is None else elsewhere


async def manifest(request: web.Request) -> web.Response:
    """`GET /d/f_…/manifest`: the block digests of the file."""
    context = request.app[CONTEXT]
    link, file = await _found(request, context)
    headers = _headers(link, file, now=context.clock.now())
    # the ETag names the file's bytes, not those of this answer
    del headers["ETag"], headers["Accept-Ranges"]
    return web.json_response(await context.downloads.manifest(file), headers=headers)


async def _elsewhere(
    request: web.Request, context: Context, link: VerifiedDownload, file: File, headers: dict[str, str]
) -> web.Response | None:
    """The answer that leaves the bytes to somebody else; None: they are ours to send."""
    path = context.downloads.proxy_path(file) if context.accel_prefix is not None else None
    if path is not None:
        return web.Response(headers=headers | {"X-Accel-Redirect": f"{context.accel_prefix}{quote(path)}"})
    if not context.redirect or request.method != "GET" or any(name in request.headers for name in _PRECONDITIONS):
        return None
    seconds = min(_REDIRECT_SECONDS, int(_ends_at(link, file) - context.clock.now()))
    if seconds < 1:
        # within the leeway of the link
        return None
    url = await context.downloads.signed_url(
        file, seconds=seconds, content_type=headers["Content-Type"], disposition=headers["Content-Disposition"]
    )
    return None if url is None else _redirect(url, seconds)


def _redirect(url: str, seconds: int) -> web.Response:
    """307 to the URL, which is good for so long. Nothing is said of the file: the store's answer has its own ETag."""
    kept = max(0, seconds - _REDIRECT_MARGIN_SECONDS)
    return web.Response(status=307, headers=_GUARDS | {"Location": url, "Cache-Control": f"private, max-age={kept}"})


async def _found(request: web.Request, context: Context) -> tuple[VerifiedDownload, File]:
    """The link and the file it is for. The link's end is looked at once, here (lesson G5)."""
    file_id = parse_file_id(request.match_info["file_id"])
    if file_id is None:
        raise refuse("not-found", "A download link has the form /d/f_…?sig=….")
    access_of(request).about_file(file_id)
    link = await context.gate.download(token_of(request), file_id)
    access_of(request).by_link(link)

    def find(seconds: float) -> Awaitable[File]:
        return context.downloads.find(file_id, wait_seconds=seconds)

    file = await context.waiting.ask(request, find, stopping=lambda: context.bodies.draining)
    # it may have been waited for
    await context.gate.unrevoked(link)
    return link, file


def _plan(request: web.Request, file: File, headers: dict[str, str]) -> ranges.ReadPlan:
    """What to send. Raises Refusal: precondition-failed, range-not-satisfiable."""
    fields = {
        name: ", ".join(values) for name in ranges.CONDITIONAL_FIELDS if (values := request.headers.getall(name, ()))
    }
    plan = ranges.plan_read(
        fields, request.method, size=file.manifest.size, etag=headers["ETag"], last_modified=file.created_at
    )
    if plan.status == 412:
        raise refuse("precondition-failed", "The file is another one.", headers=[("ETag", headers["ETag"])])
    if plan.status == 416:
        raise refuse(
            "range-not-satisfiable",
            "The file has fewer bytes; see Content-Range.",
            headers=[("Content-Range", f"bytes */{file.manifest.size}"), ("Accept-Ranges", "bytes")],
        )
    return plan


def _headers(link: VerifiedDownload, file: File, *, now: float) -> dict[str, str]:
    """The headers of every answer about the file, 304 included (RFC 9110 15.4.5)."""
    return {
        "ETag": ranges.etag(file.manifest),
        "Last-Modified": ranges.http_date(file.created_at),
        "Cache-Control": f"private, max-age={max(0, int(_ends_at(link, file) - now))}, immutable",
        "Accept-Ranges": "bytes",
        **_GUARDS,
    }


def _ends_at(link: VerifiedDownload, file: File) -> float:
    """Until when the file can be had with the link, seconds since 1970."""
    return link.expires_at if file.expires_at is None else min(link.expires_at, file.expires_at)


def _entity_headers(link: VerifiedDownload, file: File) -> dict[str, str]:
    """Name and type, from the ledger or the signed link and never from the request (lesson G3)."""
    inline = ranges.shown_inline(file.sniffed_type, file.media_type, asked=link.disposition == "inline")
    return {
        "Content-Type": ranges.content_type(file.sniffed_type, file.media_type),
        "Content-Disposition": ranges.content_disposition(link.filename or file.filename, inline=inline),
    }


async def _sent(
    request: web.Request, context: Context, file: File, plan: ranges.ReadPlan, headers: dict[str, str]
) -> web.StreamResponse:
    """The answer with the planned bytes, or for HEAD the head of it."""
    if plan.content_range is not None:
        headers["Content-Range"] = plan.content_range
    response = web.StreamResponse(status=plan.status, headers=headers | {"Content-Length": str(plan.length)})
    if request.method == "GET" and plan.length:
        with context.bodies.sending():
            await _transfer(request, response, context, file, plan)
    return response


async def _transfer(
    request: web.Request, response: web.StreamResponse, context: Context, file: File, plan: ranges.ReadPlan
) -> None:
    """The planned bytes, counted as they leave."""
    metrics, clock = context.metrics, context.clock
    moved = 0

    def sent(mode: DownloadMode, count: int) -> None:
        nonlocal moved
        moved += count
        metrics.download_sent(mode, count)

    async with context.downloads.open(file) as stored:
        began = clock.monotonic()
        metrics.transfer_started("out")
        # what stays if the service stops in the middle
        outcome: TransferOutcome = "drained"
        try:
            body = Body(stored, plan.start, plan.end, sent, context.downloads.idle_seconds)
            outcome = await send(request, response, body)
        finally:
            metrics.transfer_ended("out", outcome, moved, clock.monotonic() - began)
            access = access_of(request)
            access.outcome, access.sent = outcome, moved
