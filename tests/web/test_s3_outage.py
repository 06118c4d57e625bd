"""A store that is away or says nothing: what clients and operators hear meanwhile, and what nobody hears."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from tests.contract.buckets import some_bytes
from tests.stores.calls import Call
from tests.stores.faults import Answer as Answered
from tests.stores.faults import Fault, cut_reply, error, hang, hold, lose_reply, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS, Answer, path_of
from tests.web.s3_site import MIB, PART, PREFIX, S3Site, at_most, s3_site
from tests.web.under_way import begin_patch

TROUBLES: Final = ["503", "hang"]


@pytest.fixture
async def s3(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch) as running:
        yield running


@pytest.fixture
async def impatient(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    """A service that waits for its store no longer than a second."""
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch, answers_within=1.0) as running:
        yield running


def begin(s3: S3Site, trouble: str) -> None:
    """From now on the store is of no use."""
    if trouble == "hang":
        s3.faulty.fault(None, what=hang(), times=None)
    else:
        s3.faulty.down = trouble  # type: ignore[assignment]


def end(s3: S3Site) -> None:
    """The store is back."""
    s3.faulty.down = None
    s3.faulty.clear()


# --- R1: clients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_r1_head_of_a_live_upload_asks_no_store(s3: S3Site, trouble: str) -> None:
    """R1: Whatever is wrong with the store, HEAD and the status tell the offset at once and ask it nothing."""
    path = await s3.here.create(12 * MIB)
    assert (await s3.patch(path, 0, bytes(6 * MIB))).status == 204
    begin(s3, trouble)
    asked = s3.faulty.count()
    with at_most(15):
        answer = await s3.here.head(path)
        shown = await s3.here.ask("GET", path)
    assert (answer.status, answer.offset) == (200, 6 * MIB)
    assert (shown.status, shown.json["offset"]) == (200, 6 * MIB)
    assert s3.faulty.count() == asked


async def test_r1_creation_works_without_the_store(s3: S3Site) -> None:
    """R1: An upload can be created while the store is away, and is filled when it is back."""
    begin(s3, "hang")
    with at_most(15):
        path = await s3.here.create(5)
    end(s3)
    assert (await s3.patch(path, 0, b"hello")).status == 204
    assert await s3.here.stored(path) == b"hello"


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_r1_a_creation_with_its_bytes_is_worth_a_retry(impatient: S3Site, trouble: str) -> None:
    """R1: A creation whose bytes cannot be stored is told so, and the same again gives an upload that works."""
    s3, link, content = impatient, impatient.here.link(), some_bytes(64 * 1024)
    fields = TUS | {"Upload-Length": str(len(content)), "Content-Type": OCTETS}
    begin(s3, trouble)
    answer = await s3.ask("POST", link, fields, content)
    assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "storage-unavailable", "5")
    end(s3)
    again = await s3.here.post(len(content), link)
    assert (again.status, again.offset) == (201, 0)
    path = path_of(again.headers["Location"])
    assert (await s3.patch(path, 0, content)).status == 204
    assert await s3.here.stored(path) == content


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_r1_a_patch_is_worth_a_retry(impatient: S3Site, trouble: str) -> None:
    """R1: A PATCH that cannot be stored is 503 with Retry-After and the offset that holds."""
    s3 = impatient
    path = await s3.here.create(12 * MIB)
    begin(s3, trouble)
    answer = await s3.patch(path, 0, bytes(12 * MIB))
    assert (answer.status, answer.slug, answer.offset) == (503, "storage-unavailable", 0)
    assert answer.headers["Retry-After"] == "5"
    end(s3)
    assert (await s3.here.head(path)).offset == 0


async def test_s1_a_store_that_hangs_does_not_hold_up_a_stop(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1: With a request that waits for a store that says nothing, a stop ends within its grace and two seconds."""
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch, grace="1s") as s3:
        path = await s3.here.create(12 * MIB)
        holding = hold()
        faulty.fault(None, what=holding, times=None)
        await begin_patch(s3.here, path, 0, bytes(6 * MIB), length=12 * MIB)
        await asyncio.to_thread(holding.caught)
        with at_most(15):
            await s3.here.service.stop()


# --- M2: operators --------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_m2_readiness_follows_the_store(s3: S3Site, trouble: str) -> None:
    """M2: Without the store the service is alive and not ready, within ten seconds; with it, it is ready again."""
    assert await s3.ops("/readyz") == 200
    begin(s3, trouble)
    async with asyncio.timeout(30):
        while await s3.ops("/readyz") != 503:
            await asyncio.sleep(0.05)
    assert await s3.ops("/livez") == 200
    assert await s3.ops("/metrics") == 200
    end(s3)
    async with asyncio.timeout(30):
        while await s3.ops("/readyz") != 200:
            await asyncio.sleep(0.05)


async def test_k3_a_service_starts_without_its_store(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K3: A store that is away at the start keeps nothing from starting; it is asked what it can when it is back."""
    faulty.down = "503"
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch) as s3:
        assert await s3.ops("/readyz") == 503
        path = await s3.here.create(5)
        faulty.down = None
        async with asyncio.timeout(30):
            while await s3.ops("/readyz") != 200:
                await asyncio.sleep(0.05)
        assert (await s3.patch(path, 0, b"hello")).status == 204
        assert await s3.here.stored(path) == b"hello"


# --- A5, A6: what nobody hears --------------------------------------------------------------------


async def _provoke(s3: S3Site, heard: list[Answer]) -> set[str]:
    """Every kind of trouble once; the UploadIds that the store made."""
    content = some_bytes(PART + MIB)

    async def upload(**faults: object) -> str:
        path = await s3.here.create(len(content))
        for kind, what in faults.items():
            s3.faulty.fault(kind, what=what, times=None)  # type: ignore[arg-type]
        answer = await s3.patch(path, 0, content)
        heard.append(answer)
        heard.append(await s3.here.head(path))
        heard.append(await s3.here.ask("GET", path))
        return path

    ids: set[str] = set()

    def over() -> None:
        ids.update(call.upload_id for call in s3.faulty.calls if call.upload_id)
        end(s3)

    named = f"{s3.bucket.name} at {s3.faulty.endpoint}"
    for what in (
        status(500),
        error("AccessDenied", 403, message=f"no rights on {named}"),
        error("NoSuchBucket", 404, message=named),
        error("SlowDown", 503, message=named),
        error("QuotaExceeded", 403, message=named),
        lose_reply(),
    ):
        await upload(upload_part=what)
        over()
        await upload(complete_multipart_upload=what)
        over()
        await s3.sweep()
        await upload(put_object=what, create_multipart_upload=what)
        over()
    s3.faulty.down = "reset"
    await upload()
    over()
    path = await upload(upload_part=error("NoSuchUpload", 404, message=named))
    over()
    path = await upload()
    link = s3.here.download_link(await s3.here.file_id(path))
    for kind, what in (("head_object", status(404)), ("head_object", status(500)), ("get_object", cut_reply(5))):
        s3.faulty.fault(kind, what=what, times=None)  # type: ignore[arg-type]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            heard.append(await s3.here.ask("GET", link))
        over()
    s3.faulty.fault(None, what=error("AccessDenied", 403, message=named), times=None)
    heard.append(await s3.here.ask("DELETE", path, TUS))
    await s3.sweep()
    over()
    await s3.sweep()
    return ids


async def test_a5_no_trouble_tells_where_the_bytes_are(s3: S3Site, log: io.StringIO) -> None:
    """A5, A6: No answer and no record names bucket, endpoint, key, UploadId or credentials, whatever went wrong."""
    heard: list[Answer] = []
    ids = await _provoke(s3, heard)
    records = log.getvalue()
    assert len(ids) > 5
    assert "storage_failed" in records
    assert "finish_postponed" in records
    for text in ("\n".join(f"{answer.headers} {answer.body!r}" for answer in heard), records):
        for secret in (s3.bucket.name, PREFIX, s3.faulty.endpoint.removeprefix("http://"), *ids):
            assert secret not in text
        for secret in (s3.bucket.store.access_key, s3.bucket.store.secret_key):
            assert secret not in text
        assert "/file" not in text.replace("/files", "").replace("/d/", "")
        assert "tail." not in text


class Unparsable(Fault):
    """An answer with a line among its fields that is none, of which urllib3 warns with the whole URL."""

    takes_over = True

    def answer(self, call: Call) -> Answered:
        """See `Fault.answer`."""
        return Answered(500, b"", (("Content-Length", "0"), ("no field at all\r\nX-After", "it")))


async def test_a5_an_answer_that_cannot_be_parsed_tells_no_key(s3: S3Site, log: io.StringIO) -> None:
    """A5: What the libraries below warn of, with bucket and key in it, is in no record."""
    s3.faulty.fault("put_object", what=Unparsable(), times=2)
    await s3.here.upload(b"hello")
    assert s3.faulty.count("put_object") == 3
    assert "upload_ready" in log.getvalue()
    assert s3.bucket.name not in log.getvalue()


async def test_r2_trouble_with_the_store_is_told_in_our_words(s3: S3Site, log: io.StringIO) -> None:
    """R2: Every failure is a problem of the list, worth a retry or final, without a word of the store's or boto's."""
    heard: list[Answer] = []
    await _provoke(s3, heard)
    for answer in heard:
        if answer.status >= 400 and answer.body:
            assert answer.slug in {"storage-unavailable", "storage-full", "gone", "locked", "internal"}
            for word in ("boto", "urllib", "AccessDenied", "NoSuch", "SlowDown", "Traceback", "s3"):
                assert word not in json.dumps(answer.json)
