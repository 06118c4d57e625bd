"""The public application: routes, and the order in which things are put around them."""

from __future__ import annotations

from aiohttp import web

from service.web import downloads, uploads
from service.web.context import CONTEXT, Context
from service.web.cors import Cors
from service.web.middleware import CORS, ELSEWHERE, decorate, observe, present_errors


async def _no_continue(_request: web.Request) -> None:
    """aiohttp would send `100 Continue` before any check (A-03); a body sends it when first read."""


class _Elsewhere(web.DynamicResource):
    """Every address that nothing else serves, `*` too: aiohttp's own 404 would answer `Expect` by itself."""

    def _match(self, path: str) -> dict[str, str]:
        return {}


async def _nothing(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPNotFound


async def _not_served(request: web.Request) -> web.StreamResponse:
    raise web.HTTPMethodNotAllowed(request.method, ("GET", "HEAD", "OPTIONS"))


def make_app(context: Context, cors: Cors) -> web.Application:
    """The application; it holds nothing that would need to be started or stopped."""
    app = web.Application(middlewares=[observe, present_errors])
    app[CONTEXT] = context
    app[CORS] = cors
    app.on_response_prepare.append(decorate)
    add = app.router.add_route
    add("*", "/files", uploads.endpoint, expect_handler=_no_continue)
    add("*", "/files/{tail}", uploads.upload, expect_handler=_no_continue)
    for path, handler in (
        ("/d/{file_id}", downloads.download),
        ("/d/{file_id}/manifest", downloads.manifest),
        ("/d/{file_id}/{name}", downloads.download),
    ):
        add("GET", path, handler, expect_handler=_no_continue)
        add("HEAD", path, handler, expect_handler=_no_continue)
        add("OPTIONS", path, uploads.options, expect_handler=_no_continue)
        add("*", path, _not_served, expect_handler=_no_continue)
    elsewhere = _Elsewhere(ELSEWHERE)
    app.router.register_resource(elsewhere)
    elsewhere.add_route("*", _nothing, expect_handler=_no_continue)
    return app
