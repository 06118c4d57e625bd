"""The public application: routes, and the order in which things are put around them."""

from __future__ import annotations

from aiohttp import web

from service.web import downloads, uploads
from service.web.context import CONTEXT, Context
from service.web.cors import Cors
from service.web.middleware import CORS, decorate, observe, present_errors


async def _no_continue(_request: web.Request) -> None:
    """aiohttp would send `100 Continue` before any check (A-03); a body sends it when first read."""


def make_app(context: Context, cors: Cors) -> web.Application:
    """The application; it holds nothing that would need to be started or stopped."""
    app = web.Application(middlewares=[observe, present_errors])
    app[CONTEXT] = context
    app[CORS] = cors
    app.on_response_prepare.append(decorate)
    add = app.router.add_route
    add("*", "/files", uploads.endpoint, expect_handler=_no_continue)
    add("*", "/files/{tail}", uploads.upload, expect_handler=_no_continue)
    for method in ("GET", "HEAD"):
        add(method, "/d/{file_id}", downloads.download)
        add(method, "/d/{file_id}/manifest", downloads.manifest)
        add(method, "/d/{file_id}/{name}", downloads.download)
    for path in ("/d/{file_id}", "/d/{file_id}/{name}"):
        add("OPTIONS", path, uploads.options)
    return app
