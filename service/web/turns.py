"""Where a request begins and ends on its connection, and what its handler may ask of that connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from service.protocol.fields import Fields
from service.web.connection import Connection

_CONNECTION: Final = web.RequestKey("connection", Connection)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def follow(app: web.Application) -> None:
    """Lets `Connection` know where requests of the application begin and end; it must, to be served behind one."""
    app.middlewares.insert(0, _in_turn)
    app.on_response_prepare.append(_close_unbegun)


@web.middleware
async def _in_turn(request: web.Request, handler: Handler) -> web.StreamResponse:
    protocol = request.transport.get_protocol() if request.transport is not None else None
    if not isinstance(protocol, Connection):
        # neither we nor aiohttp hand out a body then, and half a request is none
        raise ConnectionResetError("the client has gone before its request began")
    request[_CONNECTION] = protocol
    protocol.begin(request)
    try:
        response = await handler(request)
    except web.HTTPException as error:
        if not protocol.end():
            error.force_close()
        raise
    if not protocol.end():
        response.force_close()
    return response


async def _close_unbegun(request: web.Request, response: web.StreamResponse) -> None:
    """Signal `on_response_prepare`: an answer that no middleware saw (417, A-03) ends its connection."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    if isinstance(protocol, Connection) and _CONNECTION not in request:
        response.headers["Connection"] = "close"
        response.force_close()


def fields_of(request: web.Request) -> Fields:
    """The header fields, with the framing as it was sent: `request.headers` tells that of a direct body otherwise."""
    connection = request.get(_CONNECTION)
    length = connection.direct if connection is not None else None
    if length is None:
        return request.headers
    # of a request whose body aiohttp knows nothing of
    fields = request.headers.copy()
    fields["Content-Length"] = str(length)
    fields.pop("Transfer-Encoding", None)
    return fields


def direct_of(request: web.Request) -> Connection | None:
    """The connection that a direct body of the request comes from."""
    connection = request.get(_CONNECTION)
    return connection if connection is not None and connection.direct is not None else None


def trailer_of(request: web.Request, name: str) -> str | None:
    """A trailer of the request's chunked body, once that was read to its end."""
    connection = request.get(_CONNECTION)
    return connection.trailers().get(name.lower()) if connection is not None else None


def refuse_rest(request: web.Request) -> None:
    """What has not come yet of the request's body is not read. The connection must end with the answer."""
    connection = request.get(_CONNECTION)
    if connection is not None:
        connection.refuse_rest()


def saved_of(request: web.Request) -> bytes:
    """The bytes of the body that came before the client went away and that `request.content` will not give; once."""
    connection = request.get(_CONNECTION)
    return connection.saved() if connection is not None else b""


def broken(request: web.Request) -> bool:
    """Whether the client ended its side of the connection in the middle of the request's body."""
    connection = request.get(_CONNECTION)
    return connection is not None and connection.broken


def half_closed(request: web.Request) -> bool:
    """Whether the client has sent its last byte; it may still read, though most that do so have gone."""
    connection = request.get(_CONNECTION)
    return connection is not None and connection.half_closed
