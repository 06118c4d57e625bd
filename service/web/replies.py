"""Replies become aiohttp responses; refusals become problem+json."""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web

from service.protocol.intents import Reply
from service.protocol.problems import URN, Problem
from service.protocol.tus import render_problem
from service.web.access import access_of

#: the request id, set by the outermost middleware
REQUEST_ID: Final = web.RequestKey("request_id", str)


def respond(request: web.Request, reply: Reply) -> web.Response:
    """The response; HEAD, 204 and 304 carry no body."""
    headers = dict(reply.headers)
    if reply.status == web.HTTPUnauthorized.status_code:
        headers["WWW-Authenticate"] = "Bearer"
    content = dict(reply.json or {})
    problem = "type" in content and "detail" in content
    if problem:
        content["request_id"] = request.get(REQUEST_ID, "")
        access = access_of(request)
        access.reason, access.detail = str(content["type"]).removeprefix(URN), str(content["detail"])
    body: bytes | None = None
    if content and request.method != "HEAD":
        headers["Content-Type"] = "application/problem+json" if problem else "application/json"
        body = json.dumps(content).encode()
    response = web.Response(status=reply.status, reason=reply.reason, headers=headers, body=body)
    if reply.close:
        response.force_close()
    return response


def respond_problem(request: web.Request, problem: Problem) -> web.Response:
    """The refusal as problem+json (contract, section 11)."""
    return respond(request, render_problem(problem))
