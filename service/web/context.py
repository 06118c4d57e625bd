"""What handlers may reach, under one typed key of the application."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiohttp import web

from service.web.waiting import Waiting

if TYPE_CHECKING:
    from service.clock import Clock
    from service.downloads import Downloads
    from service.gate import Gate
    from service.metrics import Metrics
    from service.protocol.intents import Discovery
    from service.tracing import Tracer
    from service.uploads import Uploads
    from service.web.body import Bodies
    from service.web.origin import Origin


@dataclass(frozen=True, slots=True)
class Context:
    """The use-cases and the edge's own helpers, made by `runtime`."""

    uploads: Uploads
    downloads: Downloads
    gate: Gate
    bodies: Bodies
    origin: Origin
    discovery: Discovery
    metrics: Metrics
    clock: Clock
    #: `X-Accel-Redirect` prefix, or None to send files ourselves
    accel_prefix: str | None = None
    #: whether clients are sent to the store for the bytes
    redirect: bool = False
    #: makes a span for each request; None: no traces
    tracer: Tracer | None = None
    waiting: Waiting = field(default_factory=Waiting)


CONTEXT: Final = web.AppKey("context", Context)
