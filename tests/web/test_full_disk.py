"""Files and their database on one disk that fills up: the default layout, and the worst case."""

from __future__ import annotations

import os
from pathlib import Path

from tests.volumes import small_volume
from tests.web.harness import OCTETS, TUS, head, site

MIB = 2**20


async def test_D5_a_full_disk_is_507_and_everything_else_goes_on(tmp_path: Path) -> None:
    """A PATCH that fills the disk keeps what fitted, other uploads and DELETE work, and with room given back the
    upload is finished: the database beside the files never runs out of room first.
    """
    with small_volume(tmp_path / "volume", "48m") as volume:
        async with site(volume, durability="complete") as here:
            content = os.urandom(40 * MIB)
            ballast = volume / "ballast"
            ballast.write_bytes(bytes(8 * MIB))
            other = await here.create(1000)
            path = await here.create(None, Upload_Defer_Length="1")
            line = await here.line()
            # a client that watches for an early answer while it sends
            line.writer.write(
                head("PATCH", path, [*TUS.items(), ("Upload-Offset", "0"), ("Content-Type", OCTETS)], content)
            )
            line.writer.write(content)
            full = await line.answer()
            assert (full.status, full.slug) == (507, "storage-full")
            kept = (await here.head(path)).offset
            assert kept == full.offset
            assert 16 * MIB < kept < 40 * MIB
            assert (await here.post(MIB)).slug == "storage-full"
            assert (await here.ask("DELETE", other, TUS)).status == 204
            ballast.unlink()
            for start in range(kept, kept + 4 * MIB, MIB):
                assert (await here.patch(path, start, content[start : start + MIB])).status == 204
            end = kept + 4 * MIB
            done = await here.patch(path, end, b"", Upload_Length=str(end))
            assert done.status == 204
            assert await here.fetch(done.headers["Attachd-File-Id"]) == content[:end]
