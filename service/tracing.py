"""What a request leaves in a trace: the port. Without a tracer nothing is made, and nothing is imported for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Span(Protocol):
    """One request, as others who look at the trace see it."""

    @property
    def trace_id(self) -> str:
        """32 hex digits: what the request's log records and its span have in common."""
        ...

    def end(self, status: int, fields: Mapping[str, str | int]) -> None:
        """The request has been answered. To be called once.

        Args:
            fields: what is known of it by name. No upload id is among them, nor a URL: an upload's
                address is a capability, and a query has a token (lesson A6).
        """
        ...


class Tracer(Protocol):
    """Makes spans, and sends them somewhere in the background: no call waits for the receiver."""

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> Span:
        """A request has come.

        Args:
            route: the template of its address.
            headers: as they came; `traceparent` and `tracestate` name the trace that it is part of (W3C Trace Context).
        """
        ...
