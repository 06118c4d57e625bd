"""Media types from the link to the download: refused before there is a file, and never taken at a client's word."""

from __future__ import annotations

import pytest

from service.model import State
from tests.unit.samples import DRAWING, PAGE, SAMPLES
from tests.web.harness import OCTETS, TUS, Answer, Site, b64
from tests.web.sweeps import state


def declared(media_type: str) -> str:
    """The Upload-Metadata that says so."""
    return f"filetype {b64(media_type.encode())}"


async def sent(here: Site, content: bytes, media_type: str | None, types: list[str]) -> Answer:
    """A file in one request, under a link that allows those types."""
    headers = TUS | {"Upload-Length": str(len(content)), "Content-Type": OCTETS}
    if media_type is not None:
        headers["Upload-Metadata"] = declared(media_type)
    return await here.ask("POST", here.link(types=types), headers, content)


@pytest.mark.parametrize(
    ("name", "media_type", "types"),
    [
        ("png", "image/png", ["image/*"]),
        ("webm", "audio/webm", ["audio/*"]),
        ("mp4 of a browser", "audio/mp4", ["audio/*", "image/*"]),
        ("wav", "audio/wav", ["audio/wav"]),
        ("jar", "application/java-archive", ["application/java-archive"]),
        ("word", SAMPLES["word"][1], [SAMPLES["word"][1]]),
        ("JSON", "application/json", ["application/json"]),
        ("pdf", None, ["application/pdf"]),
        ("drawing", "image/svg+xml", ["image/svg+xml"]),
    ],
)
async def test_what_the_link_allows_is_kept(here: Site, name: str, media_type: str | None, types: list[str]) -> None:
    """Content of an allowed type becomes a file, served as what was declared where the bytes agree."""
    content, seen = SAMPLES[name]
    answer = await sent(here, content, media_type, types)
    assert answer.status == 201, answer
    got = await here.ask("GET", here.download_link(answer.headers["Attachd-File-Id"]))
    assert (got.body, got.headers["Content-Type"]) == (content, media_type or seen)


@pytest.mark.parametrize(
    ("content", "media_type", "types"),
    [
        (PAGE, "image/png", ["image/*"]),
        (DRAWING, "image/png", ["image/png"]),
        (PAGE, None, ["image/*", "text/plain"]),
        (SAMPLES["program"][0], "application/pdf", ["application/pdf"]),
        (SAMPLES["zip"][0], "image/jpeg", ["image/jpeg"]),
        (SAMPLES["text"][0], "video/mp4", ["video/*"]),
        (SAMPLES["noise"][0], None, ["image/*"]),
    ],
)
async def test_C6_content_of_another_type_makes_no_file(
    here: Site, content: bytes, media_type: str | None, types: list[str]
) -> None:
    """C6: the request with the last byte is refused, the refusal stays, and nothing is left of the bytes."""
    headers = {"Upload_Metadata": declared(media_type)} if media_type else {}
    link = here.link(types=types)
    path = await here.create(len(content), link, **headers)
    assert (await here.patch(path, 0, content[:1])).status == 204
    refused = await here.patch(path, 1, content[1:])
    assert (refused.status, refused.slug) == (403, "type-refused")
    assert await state(here, path) is State.FAILED
    assert (await here.head(path)).status == 410
    again = await here.post(len(content), link, **headers)
    assert (again.status, again.slug) == (403, "type-refused")
    assert here.leftovers() == []


@pytest.mark.parametrize("content", [PAGE, DRAWING])
async def test_g3_a_page_is_no_picture_whatever_was_declared(here: Site, content: bytes) -> None:
    """G3: markup that was declared a picture is an attachment, under the guards, and not of a picture's type."""
    answer = await sent(here, content, "image/png", [])
    link = here.download_link(answer.headers["Attachd-File-Id"], disposition="inline")
    got = await here.ask("GET", link)
    assert got.headers["Content-Type"] in {"text/html", "image/svg+xml"}
    assert got.headers["Content-Disposition"] == "attachment"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
