"""tus 1.0.0, Termination (section L)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.harness import OCTETS, TUS, FakeClock, Site, site
from tests.web.under_way import begin_patch

KINDS = ["new", "unfinished", "deferred", "complete", "partial", "complete partial", "final", "pending final"]


async def make(here: Site, kind: str) -> str:
    """An upload of that kind."""
    if kind == "deferred":
        return await here.create(None, Upload_Defer_Length="1")
    if "final" in kind:
        partial = await make(here, "partial" if kind == "pending final" else "complete partial")
        return await here.create(None, Upload_Concat=f"final;{partial}")
    path = await here.create(10, **({"Upload_Concat": "partial"} if "partial" in kind else {}))
    if "complete" in kind:
        assert (await here.patch(path, 0, b"helloworld")).status == 204
    elif kind != "new":
        assert (await here.patch(path, 0, b"hello")).status == 204
    return path


async def delete(here: Site, path: str) -> int:
    """The status that DELETE answers."""
    return (await here.ask("DELETE", path, TUS)).status


@pytest.mark.parametrize("kind", KINDS)
async def test_T_0B0_delete_any_kind(here: Site, kind: str) -> None:
    """DELETE answers 204 without a body, whatever the upload is and wherever it stands."""
    path = await make(here, kind)
    answer = await here.ask("DELETE", path, TUS)
    assert (answer.status, answer.body) == (204, b"")
    assert (await here.head(path)).status == 410


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH"])
async def test_T_0B1_gone(here: Site, method: str) -> None:
    """A terminated upload answers 410."""
    path = await make(here, "unfinished")
    await delete(here, path)
    headers = TUS | ({"Upload-Offset": "5", "Content-Type": OCTETS} if method == "PATCH" else {})
    answer = await here.ask(method, path, headers, b"world" if method == "PATCH" else None)
    assert answer.status == 410
    assert "Upload-Offset" not in answer.headers


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH"])
async def test_T_0B1_unknown_after_the_tombstone(tmp_path: Path, method: str) -> None:
    """And 404 once its tombstone is gone."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock) as here:
        path = await make(here, "unfinished")
        await delete(here, path)
        clock.forward(here.service.settings.tombstone + 1)
        await here.service.janitor.sweep()
        headers = TUS | ({"Upload-Offset": "5", "Content-Type": OCTETS} if method == "PATCH" else {})
        answer = await here.ask(method, path, headers, b"world" if method == "PATCH" else None)
        assert answer.status == 404


@pytest.mark.parametrize("kind", ["unfinished", "complete"])
async def test_T_0B2_second_delete(here: Site, kind: str) -> None:
    """A second DELETE finds nothing."""
    path = await make(here, kind)
    await delete(here, path)
    assert await delete(here, path) == 404


async def test_T_0B2_delete_of_unknown(here: Site) -> None:
    """Nor does one of an upload that never was."""
    assert await delete(here, "/files/u_" + "a" * 26) == 404


async def test_T_0B3_delete_stops_the_writer(here: Site) -> None:
    """DELETE cuts a running PATCH off and wins."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    assert await delete(here, path) == 204
    stopped = await line.answer()
    assert (stopped.status, stopped.headers["Connection"]) == (423, "close")
    assert (await here.head(path)).status == 410
    assert here.leftovers() == []


async def test_T_0B4_partial_of_a_finished_final(here: Site) -> None:
    """A final that is whole does not need its partials any more."""
    partial = await make(here, "complete partial")
    final = await here.create(None, Upload_Concat=f"final;{partial} {partial}")
    assert await delete(here, partial) == 204
    assert (await here.head(final)).offset == 20
    assert await here.stored(final) == b"helloworld" * 2


@pytest.mark.parametrize("kind", KINDS)
async def test_T_0B5_frees_storage(here: Site, kind: str) -> None:
    """Nothing of a terminated upload stays on disk; of a final, only its partials do."""
    path = await make(here, kind)
    await delete(here, path)
    assert len(here.leftovers()) == (1 if "final" in kind else 0)


async def test_T_0B5_frees_what_was_promised(here: Site) -> None:
    """The room that an unfinished upload was promised is free again."""
    path = await here.create(1000)
    metadata = here.service.metadata
    assert await metadata.promised_bytes() == 1000
    await delete(here, path)
    assert await metadata.promised_bytes() == 0


async def test_T_0B5_frees_the_lock(here: Site) -> None:
    """No lease outlives the upload."""
    path = await here.create(10)
    await begin_patch(here, path, 0, b"hello", length=10)
    await delete(here, path)
    assert await here.service.metadata.lease(here.upload_id(path)) is None


async def test_T_0B5_file_is_gone_too(here: Site) -> None:
    """The file that a terminated upload made is not served any more."""
    path = await make(here, "complete")
    link = here.download_link(await here.file_id(path))
    await delete(here, path)
    assert (await here.ask("GET", link)).status == 410
