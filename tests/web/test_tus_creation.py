"""tus 1.0.0, Creation (section F): `POST /files`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.model import parse_upload_id
from service.storage.filesystem import FilesystemStorage
from tests.web.harness import OCTETS, TUS, Answer, Site, b64, head, path_of, site
from tests.web.traces import claims, events, forge, traces

ORIGIN = "https://chat.example"


async def assert_refused(here: Site, headers: dict[str, str], status: int, slug: str) -> None:
    """The creation is refused so, and leaves nothing."""
    link, before = here.link(), traces(here)
    answer = await here.ask("POST", link, TUS | headers, b"")
    assert (answer.status, answer.slug) == (status, slug)
    assert traces(here) == before


async def test_T_050_creation(here: Site) -> None:
    """A POST with a length and no body answers 201, the upload's address and offset 0."""
    answer = await here.ask("POST", here.link(), TUS | {"Upload-Length": "100", "Content-Length": "0"})
    assert (answer.status, answer.offset, answer.body) == (201, 0, b"")
    found = await here.head(path_of(answer.headers["Location"]))
    assert (found.status, found.offset, found.headers["Upload-Length"]) == (200, 0, "100")


async def test_T_050_without_framing(here: Site) -> None:
    """A POST that has neither Content-Length nor a body is a creation, too."""
    answer = await here.ask("POST", here.link(), TUS | {"Upload-Length": "100"})
    assert (answer.status, answer.offset) == (201, 0)


async def test_T_051_location_of_the_request(here: Site) -> None:
    """`Location` is absolute and begins with the host that the client asked."""
    answer = await here.ask("POST", here.link(), TUS | {"Upload-Length": "1", "Host": "chat.example:8443"}, b"")
    assert answer.headers["Location"].startswith("http://chat.example:8443/files/u_")


async def test_T_051_location_as_configured(tmp_path: Path) -> None:
    """`Location` begins with the public URL where that is set, whatever the request says."""
    async with site(tmp_path, public_url="https://files.example/up") as here:
        link = here.link(audience="https://files.example/up")
        answer = await here.ask("POST", link, TUS | {"Upload-Length": "1", "Host": "evil.test"}, b"")
    assert answer.headers["Location"].startswith("https://files.example/up/files/u_")


FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "files.example"}


async def test_T_051_forwarded_fields_of_anyone(here: Site) -> None:
    """`X-Forwarded-*` of a peer that is no trusted proxy does not count."""
    answer = await here.ask("POST", here.link(), TUS | FORWARDED | {"Upload-Length": "1"}, b"")
    assert answer.headers["Location"].startswith("http://files.test/files/u_")


async def test_T_051_forwarded_fields_of_a_proxy(tmp_path: Path) -> None:
    """`X-Forwarded-*` of a trusted proxy counts."""
    async with site(tmp_path, trusted_proxies="127.0.0.0/8") as here:
        answer = await here.ask("POST", here.link(), TUS | FORWARDED | {"Upload-Length": "1"}, b"")
    assert answer.headers["Location"].startswith("https://files.example/files/u_")


@pytest.mark.parametrize("more", [{}, {"Upload-Concat": "partial"}], ids=["plain", "partial"])
async def test_T_052_no_length(here: Site, more: dict[str, str]) -> None:
    """A POST with neither a length nor its deferral answers 400 and creates nothing."""
    await assert_refused(here, more, 400, "bad-header")


async def test_T_053_length_and_deferral(here: Site) -> None:
    """A POST with both a length and its deferral answers 400 and creates nothing."""
    await assert_refused(here, {"Upload-Length": "10", "Upload-Defer-Length": "1"}, 400, "bad-header")


@pytest.mark.parametrize("length", ["-10", "abc", "1.5", "", "10, 10"])
async def test_T_054_malformed_length(here: Site, length: str) -> None:
    """A POST with a length that is none answers 400 and creates nothing."""
    await assert_refused(here, {"Upload-Length": length}, 400, "bad-header")


async def test_T_055_longer_than_the_maximum(tmp_path: Path) -> None:
    """A length above `Tus-Max-Size` answers 413 and creates nothing; the maximum itself is accepted."""
    async with site(tmp_path, max_size="1MiB") as here:
        assert (await here.ask("OPTIONS", "/files")).headers["Tus-Max-Size"] == str(2**20)
        await assert_refused(here, {"Upload-Length": str(2**20 + 1)}, 413, "too-large")
        assert (await here.post(2**20)).status == 201


async def test_T_056_empty_file(here: Site) -> None:
    """A length of 0 makes a complete upload at once: a file without bytes, announced once."""
    answer = await here.post(0)
    assert (answer.status, answer.offset) == (201, 0)
    path = path_of(answer.headers["Location"])
    found = await here.head(path)
    assert (found.offset, found.headers["Upload-Length"]) == (0, "0")
    assert (await here.patch(path, 0, b"")).status == 204
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b""
    assert [kind for kind, _ in events(here)] == ["upload.created", "file.ready"]


async def test_T_056_empty_file_in_chunks(here: Site) -> None:
    """The same holds if the empty body comes chunked."""
    headers = TUS | {"Upload-Length": "0", "Content-Type": OCTETS}
    answer = await here.ask("POST", here.link(), headers, b"", chunked=True)
    assert (answer.status, answer.offset) == (201, 0)
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b""


@pytest.mark.parametrize("value", ["text/plain", "application/json", "application/x-www-form-urlencoded", OCTETS, ""])
async def test_T_057_content_type_of_nothing(here: Site, value: str) -> None:
    """The Content-Type of a POST without a body does not matter."""
    assert (await here.post(10, Content_Type=value)).status == 201


@pytest.mark.parametrize("value", ["", " "])
async def test_T_058_empty_metadata(here: Site, value: str) -> None:
    """An empty `Upload-Metadata` is as none: accepted, and not echoed."""
    path = await here.create(10, Upload_Metadata=value)
    assert "Upload-Metadata" not in (await here.head(path)).headers


async def assert_not_permitted(answer: Answer, status: int, slug: str) -> None:
    """Refused with everything a tus client and a page need to read it."""
    assert (answer.status, answer.slug) == (status, slug)
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["Connection"] == "close"
    assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)


async def offer(here: Site, target: str, **headers: str) -> Answer:
    """The first answer to a creation whose body is only offered."""
    fields = {"Upload-Length": "10", "Content-Type": OCTETS, "Content-Length": "10"}
    fields |= TUS | {"Origin": ORIGIN, "Expect": "100-continue"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    line = await here.line()
    await line.send(head("POST", target, [*fields.items()], None))
    return await line.answer(interim=True)


@pytest.mark.parametrize("sig", ["", "?sig=", "?sig=nonsense", "?sig=a.b.c", "?sig=" + "a" * 5000, "?other=1"])
async def test_T_059_no_good_token(here: Site, sig: str) -> None:
    """A missing or malformed token answers 401 + `WWW-Authenticate`, before `100 Continue`."""
    await assert_not_permitted(await offer(here, "/files" + sig), 401, "bad-link")


@pytest.mark.parametrize("value", ["Bearer", "Bearer nonsense", "Basic YTpi", "nonsense"])
async def test_T_059_no_good_bearer(here: Site, value: str) -> None:
    """The same holds for a token in `Authorization`."""
    await assert_not_permitted(await offer(here, "/files", Authorization=value), 401, "bad-link")


async def test_T_059_forged_token(here: Site) -> None:
    """A token that another secret signed answers 401."""
    token = forge(here.key, claims(here), secret=b"x" * 32)
    await assert_not_permitted(await offer(here, f"/files?sig={token}"), 401, "bad-link")


async def test_T_059_expired_token(here: Site) -> None:
    """A token that expired before its first use answers 401."""
    link = here.link(now=time.time() - 7200, expires_in=3600)
    await assert_not_permitted(await offer(here, link), 401, "link-expired")


async def test_T_059_token_for_something_else(here: Site) -> None:
    """A valid token that is for downloads answers 403."""
    token = here.download_link("f_" + "a" * 26).partition("sig=")[2]
    await assert_not_permitted(await offer(here, f"/files?sig={token}"), 403, "wrong-scope")


#: terms of a link and the creation they do not allow
NOT_ALLOWED: Mapping[str, tuple[int, str, dict[str, Any], dict[str, str]]] = {
    "size over the link": (413, "too-large", {"max_size": 9}, {}),
    "another size": (403, "length-mismatch", {"max_size": 11, "size": 11}, {}),
    "another type": (403, "type-refused", {"types": ["image/*"]}, {"Upload_Metadata": f"type {b64(b'text/html')}"}),
}


@pytest.mark.parametrize("case", NOT_ALLOWED)
async def test_T_059_not_what_the_link_allows(here: Site, case: str) -> None:
    """What a valid link does not allow is refused before `100 Continue`, and leaves nothing."""
    status, slug, terms, headers = NOT_ALLOWED[case]
    link, before = here.link(**terms), traces(here)
    await assert_not_permitted(await offer(here, link, **headers), status, slug)
    assert traces(here) == before


async def test_T_059_storage_full(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A length that does not fit on the disk answers 507 before `100 Continue`; one that does is created."""

    async def little(_: object) -> int:
        return 5

    monkeypatch.setattr(FilesystemStorage, "free_bytes", little)
    before = traces(here)
    answer = await offer(here, here.link())
    await assert_not_permitted(answer, 507, "storage-full")
    assert "Retry-After" in answer.headers
    assert traces(here) == before
    assert (await here.post(5)).status == 201


async def test_T_059_token_in_the_header(here: Site) -> None:
    """A token in `Authorization: Bearer`, in any case of the scheme, permits creation."""
    for scheme in ("Bearer", "bearer"):
        headers = TUS | {"Upload-Length": "10", "Authorization": f"{scheme} {here.token()}"}
        assert (await here.ask("POST", "/files", headers, b"")).status == 201


async def test_T_05A_post_to_an_upload(here: Site) -> None:
    """A POST to an upload without override answers 405 + `Allow` and stores nothing."""
    path = await here.create(10)
    headers = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS}
    answer = await here.ask("POST", path, headers, b"hello")
    assert (answer.status, answer.slug) == (405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "HEAD", "GET", "PATCH", "DELETE"}
    assert (await here.head(path)).offset == 0


async def test_T_05B_ids_are_random(here: Site) -> None:
    """Equal creations get different ids of the right form."""
    made = {here.upload_id(await here.create(10, Upload_Metadata="filename YQ==")) for _ in range(20)}
    assert len(made) == 20
    assert all(parse_upload_id(upload_id) for upload_id in made)


async def test_T_05B_metadata_chooses_no_id(here: Site) -> None:
    """An id in the metadata is not the upload's."""
    wanted = "u_" + "a" * 26
    metadata = ",".join(f"{key} {b64(wanted.encode())}" for key in ("id", "ID", "upload_id", "filename", "uid"))
    assert here.upload_id(await here.create(10, Upload_Metadata=metadata)) != wanted
    assert (await here.head(f"/files/{wanted}")).status == 404
