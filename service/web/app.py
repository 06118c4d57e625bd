"""The public application: routes, and the order in which things are put around them."""

from __future__ import annotations

import json
from functools import cache

from aiohttp import web

from service import __version__
from service.control_routes import ROUTES
from service.openapi import document
from service.web import downloads, uploads
from service.web.context import CONTEXT, Context
from service.web.control import CONTROL, Control, handler_of
from service.web.cors import Cors
from service.web.middleware import CORS, ELSEWHERE, Handler, decorate, observe, present_errors


async def _no_continue(_request: web.Request) -> None:
    """aiohttp would send `100 Continue` before any check (A-03); a body sends it when first read."""


class _Elsewhere(web.DynamicResource):
    """Every address that nothing else serves, `*` too: aiohttp's own 404 would answer `Expect` by itself."""

    def _match(self, path: str) -> dict[str, str]:
        return {}


async def _nothing(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPNotFound


def _not_served(*methods: str) -> Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, methods)

    return refuse


def _add_control(app: web.Application) -> None:
    """`/v1`: each path with its methods, and 405 for the others."""
    add = app.router.add_route
    served: dict[str, list[str]] = {}
    for route in ROUTES:
        # a reference may have slashes
        path, handler = route.path.replace("{ref}", "{ref:.+}"), handler_of(route)
        methods = (route.method, "HEAD") if route.method == "GET" else (route.method,)
        for method in methods:
            add(method, path, handler, expect_handler=_no_continue)
        served.setdefault(path, ["OPTIONS"]).extend(methods)
    for path, allowed in served.items():
        add("OPTIONS", path, uploads.options, expect_handler=_no_continue)
        add("*", path, _not_served(*sorted(allowed)), expect_handler=_no_continue)


def _describer() -> Handler:
    """`/openapi.json`, put together when it is first asked for."""
    text = cache(lambda: json.dumps(document(__version__)))

    async def describe(_request: web.Request) -> web.StreamResponse:
        return web.json_response(text=text())

    return describe


def make_app(context: Context, cors: Cors, control: Control) -> web.Application:
    """The application; it holds nothing that would need to be started or stopped."""
    app = web.Application(middlewares=[observe, present_errors])
    app[CONTEXT] = context
    app[CORS] = cors
    app[CONTROL] = control
    app.on_response_prepare.append(decorate)
    add = app.router.add_route
    add("*", "/files", uploads.endpoint, expect_handler=_no_continue)
    add("*", "/files/{tail}", uploads.upload, expect_handler=_no_continue)
    for path, handler in (
        ("/d/{file_id}", downloads.download),
        ("/d/{file_id}/manifest", downloads.manifest),
        ("/d/{file_id}/{name}", downloads.download),
        ("/openapi.json", _describer()),
    ):
        add("GET", path, handler, expect_handler=_no_continue)
        add("HEAD", path, handler, expect_handler=_no_continue)
        add("OPTIONS", path, uploads.options, expect_handler=_no_continue)
        add("*", path, _not_served("GET", "HEAD", "OPTIONS"), expect_handler=_no_continue)
    _add_control(app)
    elsewhere = _Elsewhere(ELSEWHERE)
    app.router.register_resource(elsewhere)
    elsewhere.add_route("*", _nothing, expect_handler=_no_continue)
    return app
