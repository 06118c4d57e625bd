"""`download_mode=redirect`: which requests are sent to the store, for how long, and what stays attachd's."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.web.harness import Answer, FakeClock, Site, path_of, site

CONTENT = b"<p>hello</p>"
STORE = "https://store.example/bucket/u_abc/file"


class Signing:
    """The service's storage, with a store behind it that signs URLs; `url` None: with one that does not."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self.url: str | None = STORE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def signed_url(self, key: str, *, seconds: int, content_type: str, disposition: str) -> str | None:
        if self.url is None:
            return None
        return f"{self.url}?X-Amz-Expires={seconds}&X-Amz-Signature=canary&type={content_type}&name={disposition}"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[tuple[Site, Signing]]:
    """A service that redirects, and its storage."""
    async with site(tmp_path, clock=FakeClock()) as running:
        signing = Signing(running.service.context.downloads._storage)
        running.service.context.downloads._storage = signing
        object.__setattr__(running.service.context, "redirect", True)
        yield running, signing


def expires(answer: Answer) -> int:
    """For how many seconds the URL of a redirect is good."""
    return int(parse_qs(urlsplit(answer.headers["Location"]).query)["X-Amz-Expires"][0])


def max_age(answer: Answer) -> int:
    private, _, age = answer.headers["Cache-Control"].partition(", max-age=")
    assert private == "private"
    return int(age)


async def test_a_get_is_sent_to_the_store(store: tuple[Site, Signing]) -> None:
    """The redirect has the store's URL and no body; the type and name in the URL are those of a proxied answer."""
    here, _ = store
    link = here.download_link(await here.upload(CONTENT), filename="page.html", disposition="inline")
    answer = await here.ask("GET", link)
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (307, b"", "0")
    proxied = (await here.ask("HEAD", link)).headers
    location = answer.headers["Location"]
    assert location.startswith(STORE)
    assert location.endswith(f"type={proxied['Content-Type']}&name={proxied['Content-Disposition']}")
    assert proxied["Content-Disposition"].startswith("attachment")


async def test_a_range_is_sent_to_the_store(store: tuple[Site, Signing]) -> None:
    """A plain Range that can be served is redirected whole: the client asks the store for it."""
    here, _ = store
    answer = await here.ask("GET", here.download_link(await here.upload(CONTENT)), {"Range": "bytes=2-4"})
    assert answer.status == 307
    assert "Content-Range" not in answer.headers


async def test_a_redirect_says_nothing_of_the_file(store: tuple[Site, Signing]) -> None:
    """It keeps the guards, and no validator or type of ours is mixed up with the store's."""
    here, _ = store
    headers = (await here.ask("GET", here.download_link(await here.upload(CONTENT)))).headers
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    for name in ("ETag", "Last-Modified", "Accept-Ranges", "Content-Disposition", "Content-Type"):
        assert name not in headers


@pytest.mark.parametrize(
    ("link_seconds", "file_seconds", "seconds"), [(3600, None, 300), (100, None, 100), (3600, 40, 40), (20, 40, 20)]
)
async def test_the_url_ends_with_link_and_file(
    store: tuple[Site, Signing], link_seconds: int, file_seconds: int | None, seconds: int
) -> None:
    """It is good for 300 seconds, or for what is left of the link or the file's life if that is less."""
    here, _ = store
    claims = {} if file_seconds is None else {"ttl": file_seconds}
    link = here.download_link(await here.upload(CONTENT, **claims), expires_in=link_seconds)
    assert expires(await here.ask("GET", link)) == seconds


@pytest.mark.parametrize("link_seconds", [3600, 100, 31, 20])
async def test_a_kept_redirect_does_not_outlive_its_url(store: tuple[Site, Signing], link_seconds: int) -> None:
    """A cache may keep it for less long than the URL is good for, or not at all."""
    here, _ = store
    answer = await here.ask("GET", here.download_link(await here.upload(CONTENT), expires_in=link_seconds))
    assert max_age(answer) == max(0, expires(answer) - 30)


async def test_a_link_in_its_leeway_is_served_here(store: tuple[Site, Signing]) -> None:
    """A link that ended within the clocks' leeway still gives the file, and no URL that lives on."""
    here, _ = store
    link = here.download_link(await here.upload(CONTENT), expires_in=10)
    assert here.clock is not None
    here.clock.forward(15)
    answer = await here.ask("GET", link)
    assert (answer.status, answer.body) == (200, CONTENT)


async def test_head_is_answered_here(store: tuple[Site, Signing]) -> None:
    """HEAD has our ETag and the size, as with a proxied file."""
    here, _ = store
    answer = await here.ask("HEAD", here.download_link(await here.upload(CONTENT)))
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(CONTENT)))
    assert answer.headers["ETag"].startswith('"')


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("If-None-Match", "{etag}", 304),
        ("If-None-Match", '"other"', 200),
        ("If-Match", "{etag}", 200),
        ("If-Match", '"other"', 412),
        ("If-Modified-Since", "Fri, 15 Jan 2100 00:00:00 GMT", 304),
        ("If-Unmodified-Since", "Fri, 15 Jan 2010 00:00:00 GMT", 412),
        ("If-Range", "{etag}", 206),
        ("If-Range", '"other"', 200),
    ],
)
async def test_a_condition_is_answered_here(store: tuple[Site, Signing], name: str, value: str, status: int) -> None:
    """The client's validator is ours, which the store does not know, so attachd judges it and sends the bytes."""
    here, _ = store
    link = here.download_link(await here.upload(CONTENT))
    etag = (await here.ask("HEAD", link)).headers["ETag"]
    sent = {name: value.format(etag=etag)} | ({"Range": "bytes=0-3"} if name == "If-Range" else {})
    answer = await here.ask("GET", link, sent)
    assert answer.status == status
    assert "Location" not in answer.headers
    if status in (200, 206):
        assert answer.body == CONTENT[: int(answer.headers["Content-Length"])]


async def test_the_manifest_is_answered_here(store: tuple[Site, Signing]) -> None:
    """Block digests are attachd's own."""
    here, _ = store
    answer = await here.ask("GET", here.download_link(await here.upload(CONTENT)).replace("?", "/manifest?"))
    assert (answer.status, answer.json["size"]) == (200, len(CONTENT))


async def test_a_range_past_the_end_is_refused_here(store: tuple[Site, Signing]) -> None:
    """416 comes as a problem with the true size, not as a redirect to the store's own refusal."""
    here, _ = store
    link = here.download_link(await here.upload(CONTENT))
    answer = await here.ask("GET", link, {"Range": "bytes=100-"})
    assert (answer.status, answer.slug) == (416, "range-not-satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


async def test_nobody_is_redirected_without_a_good_link(store: tuple[Site, Signing]) -> None:
    """An expired link and one for another file get their refusals, and no URL of the store."""
    here, _ = store
    file_id = await here.upload(CONTENT)
    link = here.download_link(file_id)
    assert here.clock is not None
    here.clock.forward(7200)
    answers = [await here.ask("GET", link), await here.ask("GET", link.replace(file_id, "f_" + "b" * 26))]
    assert [answer.status for answer in answers] == [403, 403]
    assert all("Location" not in answer.headers for answer in answers)


async def test_a_store_without_urls_is_proxied(store: tuple[Site, Signing]) -> None:
    """Where the store signs nothing the bytes come through attachd."""
    here, signing = store
    signing.url = None
    assert await here.fetch(await here.upload(CONTENT)) == CONTENT


async def test_a_page_of_another_origin_may_follow(store: tuple[Site, Signing]) -> None:
    """The redirect carries the CORS headers that other answers have: without them a script sees status 0."""
    here, _ = store
    link = here.download_link(await here.upload(CONTENT))
    answer = await here.ask("GET", link, {"Origin": "https://chat.example"})
    assert answer.status == 307
    assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example"
    assert answer.headers["Vary"] == "Origin"


async def test_the_url_is_not_logged(store: tuple[Site, Signing], log: io.StringIO) -> None:
    """The presigned URL opens the file for anybody: the request's record has its status and not its Location."""
    here, _ = store
    answer = await here.ask("GET", here.download_link(await here.upload(CONTENT)))
    assert "canary" in answer.headers["Location"]
    text = log.getvalue()
    assert '"status": 307' in text
    assert "canary" not in text
    assert path_of(STORE) not in text
