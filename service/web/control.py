"""`/v1`: the control API for backends (contract, section 8).

One way for every route of `control_routes`: the token and its scope, the query, the body, then the
use-case, which is given the issuer that the token speaks for. A handler only says which use-case.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from service.claims import is_owner, is_ref
from service.control_models import Answer, Revoked
from service.control_routes import DEFAULT_LIMIT, Route
from service.model import FileId, State, UploadId, parse_file_id, parse_upload_id
from service.protocol.intents import Reply
from service.protocol.problems import refuse
from service.web.access import access_of
from service.web.context import CONTEXT
from service.web.json_body import read_json
from service.web.query import bearer_of
from service.web.replies import respond

if TYPE_CHECKING:
    from service.clock import Clock
    from service.control_files import ControlFiles
    from service.erasing import Erasing
    from service.feed import Feed
    from service.minting import Minting
    from service.once import Once
    from service.revocations import Revocations

_KEY_HEADER: Final = "Idempotency-Key"
_MOST_KEY: Final = 255
#: answers name links and owners: nothing in between keeps them
_HEADERS: Final = (("Cache-Control", "no-store"),)


@dataclass(frozen=True, slots=True)
class Control:
    """The use-cases of the control API, made by `runtime`."""

    minting: Minting
    files: ControlFiles
    erasing: Erasing
    revocations: Revocations
    feed: Feed
    once: Once
    clock: Clock


CONTROL: Final = web.AppKey("control", Control)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, checked as far as its route can."""

    route: Route
    request: web.Request
    control: Control
    issuer: str
    query: Mapping[str, str]
    body: Any = None

    @property
    def base(self) -> str:
        return self.request.app[CONTEXT].origin.base(self.request)

    @property
    def limit(self) -> int:
        return int(self.query.get("limit", DEFAULT_LIMIT))

    @property
    def file_id(self) -> FileId:
        """Raises Refusal: not-found."""
        file_id = parse_file_id(self.request.match_info["file_id"])
        if file_id is None:
            raise refuse("not-found", "There is no such file.")
        access_of(self.request).about_file(file_id)
        return file_id

    @property
    def upload_id(self) -> UploadId:
        """Raises Refusal: not-found."""
        upload_id = parse_upload_id(self.request.match_info["upload_id"])
        if upload_id is None:
            raise refuse("not-found", "There is no such upload.")
        access_of(self.request).about_upload(upload_id)
        return upload_id

    @property
    def ref(self) -> str:
        """Raises Refusal: bad-request."""
        ref = self.request.match_info["ref"]
        if not is_ref(ref):
            raise refuse("bad-request", "A reference has 1 to 256 printable characters.")
        return ref

    @property
    def owner(self) -> str:
        """Raises Refusal: not-found."""
        owner = self.request.match_info["owner"]
        if not is_owner(owner):
            raise refuse("not-found", "An owner is 1 to 128 of A-Z a-z 0-9 . _ : @ -")
        return owner

    async def plan(self, make: Callable[[], Awaitable[Mapping[str, Any]]]) -> Mapping[str, Any]:
        """See `Once.plan`."""
        asked = f"{self.route.operation}\n{self.body.model_dump_json()}"
        return await self.control.once.plan(self.issuer, _key_of(self.request), asked, make)


Handler = Callable[[Call], Awaitable[Answer | None]]


def handler_of(route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What serves the route."""
    handle = _HANDLERS[route.operation]

    async def serve(request: web.Request) -> web.StreamResponse:
        verified = await request.app[CONTEXT].gate.service(bearer_of(request), route.scope)
        query = route.read_query({name: request.query.getall(name) for name in request.query})
        body = None if route.asks is None else await read_json(request, route.asks)
        answer = await handle(Call(route, request, request.app[CONTROL], verified.issuer, query, body))
        json = None if answer is None else answer.model_dump(mode="json")
        return respond(request, Reply(route.status, _HEADERS, json=json))

    return serve


def _key_of(request: web.Request) -> str | None:
    """Raises Refusal: bad-request."""
    values = request.headers.getall(_KEY_HEADER, [])
    if not values:
        return None
    key = values[0].strip()
    if len(values) > 1 or not 1 <= len(key) <= _MOST_KEY or not (key.isascii() and key.isprintable()):
        raise refuse("bad-request", f"{_KEY_HEADER}: must be 1 to {_MOST_KEY} printable ASCII characters, once")
    return key


async def _mint_upload(call: Call) -> Answer:
    minting = call.control.minting
    plan = await call.plan(lambda: minting.plan_upload(call.issuer, call.body))
    return minting.upload(call.issuer, call.body, plan, base=call.base)


async def _mint_downloads(call: Call) -> Answer:
    minting = call.control.minting
    plan = await call.plan(lambda: minting.plan_downloads(call.issuer, call.body))
    return await minting.downloads(call.issuer, call.body, plan, base=call.base)


async def _list_files(call: Call) -> Answer:
    after = parse_file_id(call.query.get("after", ""))
    owner, ref = call.query.get("owner"), call.query.get("ref")
    return await call.control.files.files(call.issuer, owner=owner, ref=ref, after=after, limit=call.limit)


async def _get_file(call: Call) -> Answer:
    return await call.control.files.file(call.issuer, call.file_id)


async def _delete_file(call: Call) -> None:
    await call.control.files.delete(call.issuer, call.file_id)


async def _claim_file(call: Call) -> Answer:
    return await call.control.files.claim(call.issuer, call.file_id, call.ref)


async def _release_file(call: Call) -> Answer:
    return await call.control.files.release(call.issuer, call.file_id, call.ref)


async def _list_uploads(call: Call) -> Answer:
    state, after = State(call.query["state"]), call.query.get("after")
    return await call.control.files.uploads(call.issuer, state, after=after, limit=call.limit)


async def _get_upload(call: Call) -> Answer:
    return await call.control.files.upload(call.issuer, call.upload_id)


async def _end_upload(call: Call) -> None:
    await call.control.files.terminate(call.issuer, call.upload_id)


async def _get_usage(call: Call) -> Answer:
    return await call.control.erasing.usage(call.issuer, call.owner)


async def _erase_owner(call: Call) -> Answer:
    return await call.control.erasing.begin(call.issuer, call.owner)


async def _get_job(call: Call) -> Answer:
    return await call.control.erasing.job(call.issuer, call.request.match_info["job_id"])


async def _revoke(call: Call) -> Answer:
    asked, control = call.body, call.control

    async def now() -> Mapping[str, Any]:
        return {"at": control.clock.now()}

    at = (await call.plan(now))["at"]
    before = at if asked.issued_before is None else asked.issued_before
    if asked.jti is not None:
        revocation = await control.revocations.revoke(call.issuer, "jti", asked.jti, at=at)
        return Revoked(jti=asked.jti, until=int(revocation.until))
    if asked.owner is not None:
        revocation = await control.revocations.revoke(call.issuer, "owner", asked.owner, at=at, issued_before=before)
        return Revoked(owner=asked.owner, issued_before=before, until=int(revocation.until))
    revocation = await control.revocations.revoke(call.issuer, "file", asked.file_id, at=at)
    return Revoked(file_id=asked.file_id, issued_before=at, until=int(revocation.until))


async def _list_events(call: Call) -> Answer:
    context = call.request.app[CONTEXT]
    after = int(call.query.get("after", "0"))

    def page(seconds: float) -> Awaitable[Answer]:
        return call.control.feed.page(call.issuer, after=after, limit=call.limit, wait_seconds=seconds)

    return await context.waiting.ask(call.request, page, stopping=lambda: context.bodies.draining)


_HANDLERS: Final[dict[str, Handler]] = {
    "mintUploadLink": _mint_upload,
    "mintDownloadLinks": _mint_downloads,
    "listFiles": _list_files,
    "getFile": _get_file,
    "deleteFile": _delete_file,
    "claimFile": _claim_file,
    "releaseFile": _release_file,
    "listUploads": _list_uploads,
    "getUpload": _get_upload,
    "endUpload": _end_upload,
    "getUsage": _get_usage,
    "eraseOwner": _erase_owner,
    "getJob": _get_job,
    "revoke": _revoke,
    "listEvents": _list_events,
}
