"""Plain PUT: for clients that speak no upload protocol (`curl -T`, bots, XMPP slots).

The upload that it makes counts as a tus upload afterwards: what arrived before a cut is kept and
can be finished with tus HEAD and PATCH.
"""

from __future__ import annotations

from service.model import Protocol
from service.protocol.fields import Fields, media_type, parse_framing, single
from service.protocol.intents import Create, Created, Reply
from service.protocol.problems import Problem
from service.protocol.tus import render_created, render_problem, status_json


def parse_put(fields: Fields, name: str | None) -> Create:
    """`PUT /files` or `PUT /files/NAME`. Without Content-Length the end of the body is the end of the file."""
    framing = parse_framing(fields)
    return Create(
        protocol=Protocol.PUT,
        framing=framing,
        length=framing.length,
        deferred=framing.chunked,
        filename=name,
        media_type=media_type(single(fields, "Content-Type")),
    )


def render_put(outcome: Created, location: str) -> Reply:
    """201 with the status as body once complete (contract, section 3).

    A repeated PUT on an upload that is not complete is refused: its body was not read, and 201
    would tell a client without tus that the file had arrived.
    """
    upload = outcome.upload
    if outcome.problem is None and not upload.complete:
        problem = Problem("offset-mismatch", "the link has begun an upload; go on with tus at Location", close=True)
        return render_problem(problem, extra=render_created(outcome, location).headers)
    reply = render_created(outcome, location)
    if outcome.problem is not None:
        return reply
    return Reply(201, reply.headers, json=status_json(upload), close=reply.close)
