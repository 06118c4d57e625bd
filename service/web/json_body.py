"""The JSON body of a request: refused before it is read if it is too long, and checked by a model."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from service.control_models import Wanted, read
from service.protocol.fields import parse_framing
from service.protocol.intents import Ending, Framing
from service.protocol.problems import refuse
from service.web.context import CONTEXT
from service.web.turns import fields_of

#: 500 items with long names fit
MOST_BYTES: Final = 2**20


async def read_json(request: web.Request, model: type[Wanted]) -> Wanted:
    """The body, as the model has it.

    Raises:
        Refusal: wrong-content-type, too-large, bad-request, which names the field; timeout, draining.
    """
    framing = parse_framing(fields_of(request))
    if request.content_type != "application/json":
        raise refuse("wrong-content-type", "Send Content-Type: application/json.", close=not framing.empty)
    return read(model, await _read(request, framing))


async def _read(request: web.Request, framing: Framing) -> bytes:
    if (framing.length or 0) > MOST_BYTES:
        raise _too_large()
    content = bytearray()
    async with request.app[CONTEXT].bodies.open(request, framing, transfer=False) as body:
        while (piece := await body.read()) is not None:
            content += piece
            if len(content) > MOST_BYTES:
                raise _too_large()
        if body.ending is Ending.DRAINED:
            raise refuse("draining", "The service is stopping; try again.", retry_after=1, close=True)
        if body.ending is not Ending.WHOLE:
            raise refuse("timeout", "The body did not come to its end; try again.", retry_after=1, close=True)
    return bytes(content)


def _too_large() -> Exception:
    return refuse("too-large", f"The body may have {MOST_BYTES} bytes.", close=True)
