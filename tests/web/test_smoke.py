"""The main path, in one breath."""

from __future__ import annotations

from tests.web.harness import Site


async def test_main_path(here: Site) -> None:
    """Bytes sent in two PATCHes through a signed link come back whole through a download link."""
    path = await here.create(10)
    first = await here.patch(path, 0, b"hello")
    assert (first.status, first.offset) == (204, 5)
    assert (await here.head(path)).offset == 5
    second = await here.patch(path, 5, b"world")
    assert (second.status, second.offset) == (204, 10)
    assert await here.fetch(second.headers["Attachd-File-Id"]) == b"helloworld"
