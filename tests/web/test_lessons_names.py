"""Lesson A5: what clients call things stays out of storage."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.web.harness import OCTETS, TUS, Site, b64
from tests.web.traces import events, traces
from tests.web.under_way import begin_patch, held, until

STRANGE_IDS = (
    "..", "%2e%2e", "%2e%2e%2f", "..%2f..%2fkeys.json", "%2e%2e%5c", "..%5ckeys.json", "u_%2f", "%00", "u_%00",
    "u_" + "a" * 25, "u_" + "a" * 27, "u_" + "A" * 26, "u_" + "1" * 26, "u_" + "a" * 25 + "%2f", "{id}%00",
    "{id}%0a", "{id}%2f", "{id}%2f..", "{id}.info", "%2f{id}", " {id}".replace(" ", "%20"), "{id}%20", "{id};x",
    "{id}+", "U_{tail}", "keys.json", "attachd.db", "%c0%ae%c0%ae", "%ef%bc%8f", "a" * 4000,
)  # fmt: skip


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
async def test_A5_strange_ids_name_nothing(here: Site, method: str) -> None:
    """Whatever stands where an id should is 404, as nothing but the id of an upload names one."""
    path = await here.create(5)
    here_id = here.upload_id(path)
    before = traces(here)
    found = {}
    for strange in STRANGE_IDS:
        target = "/files/" + strange.format(id=here_id, tail=here_id[2:])
        headers = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS}
        body = b"hello" if method == "PATCH" else None
        found[target] = (await here.ask(method, target, headers, body)).status
    assert found == dict.fromkeys(found, 404)
    assert traces(here) == before


@pytest.mark.parametrize(
    "path", ["/files/../keys.json", "/d/../../keys.json", "/d/..%2fkeys.json", "/d/%2e%2e", "//etc"]
)
async def test_A5_no_address_leads_out(here: Site, path: str) -> None:
    """Paths that climb are 404 and give nothing away."""
    answer = await here.ask("GET", path)
    assert (answer.status, answer.slug) == (404, "not-found")


STRANGE_NAMES = (
    "../../etc/passwd", "..\\..\\x", "/etc/passwd", "a\0b", "a\r\nSet-Cookie: x=1", 'a"b;c', "\u202egnp.exe", ".", "..",
    "", "a/b", "%2e%2e%2f", "x" * 1000, "con", "\U0001f600", "{0.__class__}", "'; drop table uploads; --",
)  # fmt: skip


@pytest.mark.parametrize("name", STRANGE_NAMES)
async def test_A5_metadata_is_opaque(here: Site, name: str) -> None:
    """Hostile names and storage coordinates in metadata come back verbatim and do nothing else."""
    pairs = {
        "filename": name, "_s3_parts": "[]", "_s3_upload_id": name, "key": "../../evil", "path": name, "bucket": "evil",
        "Storage": name, "offset": "5", "__proto__": name, "id": "u_" + "a" * 26,
    }  # fmt: skip
    metadata = ",".join(f"{key} {b64(value.encode())}" for key, value in pairs.items())
    path = await here.create(5, Upload_Metadata=metadata)
    found = await here.head(path)
    assert (found.headers["Upload-Metadata"], found.offset) == (metadata, 0)
    assert (await here.patch(path, 0, b"hello")).status == 204
    file = await here.file_id(path)
    assert await here.fetch(file) == b"hello"
    answer = await here.ask("GET", here.download_link(file))
    assert "Set-Cookie" not in answer.headers
    assert all(text not in answer.headers["Content-Disposition"] for text in ("/", "\\", "\0", "\u202e"))
    names = [Path(left).name for left in here.leftovers()]
    assert len(names) == 1
    assert name == "" or name not in names[0]


async def test_A5_storage_coordinates_stay_private(here: Site, log: io.StringIO) -> None:
    """No key, path or directory of storage is in any answer, log line or event of an upload's whole life."""
    said, coordinates = await _whole_life(here)
    assert len(coordinates) >= 3
    shown = "\n".join([*said, log.getvalue(), *(repr(event) for event in events(here))])
    assert "upload_ready" in shown
    assert [secret for secret in (*coordinates, str(here.service.settings.data)) if secret in shown] == []


async def _whole_life(here: Site) -> tuple[list[str], set[str]]:
    """Every answer along the way, a cut and some refusals included; and the names of all files on disk meanwhile."""
    path = await here.create(2000, Upload_Metadata=f"filename {b64(b'a.txt')}")
    answers = [await here.patch(path, 0, bytes(1000)), await here.patch(path, 0, b"again"), await here.head(path)]
    line = await begin_patch(here, path, 1000, bytes(500), length=1000)
    answers += [await here.ask("GET", path)]
    line.reset()
    await until(lambda: not held(here, path))
    offset = (await here.head(path)).offset
    coordinates = set(here.leftovers())
    answers += [await here.patch(path, offset, bytes(2000 - offset)), await here.ask("GET", path)]
    coordinates.update(here.leftovers())
    file = await here.file_id(path)
    link = here.download_link(file)
    answers += [await here.ask("GET", link), await here.ask("GET", link.replace("?", "/manifest?"))]
    answers += [await here.ask("GET", link, {"Range": "bytes=9999-"}), await here.ask("DELETE", path, TUS)]
    answers += [await here.ask("GET", link), await here.ask("GET", path), await here.ask("GET", "/nothing")]
    said = [repr((answer.reason, sorted(answer.headers.items()), answer.body)) for answer in answers]
    # the id of the upload is public, and a file is called like it; a segment's name is not
    return said, (coordinates | {Path(name).name for name in coordinates}) - {here.upload_id(path)}
