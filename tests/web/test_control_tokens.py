"""The control API's door: which token opens which route, and what a token sees."""

from __future__ import annotations

import pytest

from service.control_routes import ROUTES, Route
from service.links import SERVICE_SCOPES
from tests.web.backend import Backend, other_backend
from tests.web.harness import Site
from tests.web.traces import forward, traces

NAMES = {"file_id": "f_" + "a" * 26, "upload_id": "u_" + "a" * 26, "job_id": "j_" + "a" * 26, "owner": "u1", "ref": "r"}


def path_for(route: Route) -> str:
    """An address of the route, of nothing that there is."""
    path = route.path.format(**NAMES).removeprefix("/v1")
    return f"{path}?state=ready" if route.operation == "listUploads" else path


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_each_route_needs_its_own_scope(here: Site, route: Route) -> None:
    """All other scopes together open nothing, and the body is not looked at; the route's own scope does."""
    before = traces(here)
    others = tuple(scope for scope in SERVICE_SCOPES if scope != route.scope)
    body = b"no json" if route.asks else None
    refused = await Backend(here, scopes=others).call(route.method, path_for(route), body)
    assert (refused.status, refused.slug) == (403, "wrong-scope")
    assert traces(here) == before
    opened = await Backend(here, scopes=(route.scope,)).call(route.method, path_for(route), body)
    assert opened.status in (200, 202, 400, 404)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_A2_no_other_token_opens_the_control_api(here: Site, route: Route) -> None:
    """No token, an upload link's, a download link's, and a service token in the address are all refused."""
    download = here.download_link(NAMES["file_id"]).partition("sig=")[2]
    for token, slug in ((None, "bad-link"), (here.token(), "wrong-scope"), (download, "wrong-scope")):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        assert (await here.ask(route.method, route.path.format(**NAMES), headers)).slug == slug
    address = f"{route.path.format(**NAMES)}?sig={Backend(here).token()}"
    assert (await here.ask(route.method, address)).slug == "bad-link"


async def test_a_service_token_ends(later: Site) -> None:
    """After its `exp` it is `link-expired`, and one that is to live too long is refused from the start."""
    backend = Backend(later)
    token = {"Authorization": f"Bearer {backend.token()}"}
    assert (await later.ask("GET", "/v1/files", token)).status == 200
    forward(later, 3700)
    assert (await later.ask("GET", "/v1/files", token)).slug == "link-expired"
    long = Backend(later, claims={"expires_in": 91 * 86400})
    assert (await long.call("GET", "/files")).slug == "bad-link"


async def test_A2_a_service_token_opens_no_upload_and_no_download(here: Site) -> None:
    """It mints links, and is none."""
    token = {"Authorization": f"Bearer {Backend(here).token()}"}
    made = await Backend(here).store()
    assert (await here.ask("GET", f"/d/{made['file_id']}", token)).slug == "wrong-scope"
    sent = token | {"Tus-Resumable": "1.0.0", "Upload-Length": "1", "Content-Length": "0"}
    assert (await here.ask("POST", "/files", sent)).slug == "wrong-scope"


async def test_an_issuer_sees_its_own_and_nothing_else(here: Site) -> None:
    """Files, uploads, jobs, owners and events of another issuer are not there, whatever is asked of them."""
    ours, theirs = Backend(here), await other_backend(here)
    file_id = (await ours.store(owner="u1", ref="r"))["file_id"]
    upload = (await ours.create(owner="u1"))[0].headers["Location"].rpartition("/")[2]
    job = (await ours.call("DELETE", "/owners/nobody")).json["job_id"]
    await here.service.tasks.drain()
    before = traces(here)
    for method, path in (
        ("GET", f"/files/{file_id}"),
        ("DELETE", f"/files/{file_id}"),
        ("PUT", f"/files/{file_id}/refs/x"),
        ("DELETE", f"/files/{file_id}/refs/r"),
        ("GET", f"/uploads/{upload}"),
        ("DELETE", f"/uploads/{upload}"),
        ("GET", f"/jobs/{job}"),
    ):
        assert (await theirs.call(method, path)).slug == "not-found"
    assert (await theirs.get("/files"))["files"] == []
    assert (await theirs.get("/files?owner=u1"))["files"] == []
    assert (await theirs.get("/files?ref=r"))["files"] == []
    assert (await theirs.get("/uploads?state=receiving"))["uploads"] == []
    assert (await theirs.get("/owners/u1/usage"))["files"] == 0
    assert (await theirs.get("/events"))["events"] == []
    links = await theirs.call("POST", "/download-links", {"items": [{"file_id": file_id}]})
    assert links.json["items"][0]["error"]["type"] == "urn:attachd:problem:not-found"
    assert traces(here) == before
    assert len((await ours.get("/files"))["files"]) == 1
    assert [event["type"] for event in (await ours.get("/events"))["events"]] == [
        "upload.created", "file.ready", "upload.created",
    ]  # fmt: skip


async def test_another_issuers_erasure_and_revocation_change_nothing_here(here: Site) -> None:
    """The same owner's name means another owner to another issuer; so does a jti and a file."""
    ours, theirs = Backend(here), await other_backend(here)
    made = await ours.store(owner="u1")
    link = await ours.link(owner="u1")
    assert (await theirs.call("DELETE", "/owners/u1")).status == 202
    for what in ({"jti": link["jti"]}, {"owner": "u1"}, {"file_id": made["file_id"]}):
        assert (await theirs.call("POST", "/revocations", what)).status == 201
    await here.service.erasing.idle()
    assert (await ours.fetch(made)).body == b"hello"
    assert (await here.post(5, "/" + link["url"].split("/", 3)[3])).status == 201
