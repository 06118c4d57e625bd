"""tus 1.0.0, Upload-Metadata (section I), on the wire. The grammar's tables are in the unit tests."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.web.harness import TUS, Site, b64

EMPTY = TUS | {"Upload-Length": "0", "Content-Length": "0"}


async def stored_metadata(here: Site, value: str) -> str | None:
    """What HEAD shows of the metadata of a new upload."""
    found = await here.head(await here.create(10, Upload_Metadata=value))
    return found.headers.get("Upload-Metadata")


async def assert_refused(here: Site, value: str) -> None:
    """A creation with this metadata is refused, and the link stays free."""
    link = here.link()
    answer = await here.post(10, link, Upload_Metadata=value)
    assert (answer.status, answer.slug) == (400, "bad-metadata")
    assert (await here.ask("HEAD", link, TUS)).status == 404


async def test_T_080_kept_verbatim(here: Site) -> None:
    """HEAD shows the metadata byte for byte, keys without a value included."""
    sent = f"filename {b64(b'world_domination_plan.pdf')},is_confidential"
    assert await stored_metadata(here, sent) == sent


@pytest.mark.parametrize("sent", ["empty ,type YQ==", "type YQ==,empty ", "empty ,empty2 "])
async def test_T_081_key_and_space_without_a_value(here: Site, sent: str) -> None:
    """A key with a space and no value is what tus-js-client sends for an empty one."""
    # white space around a whole field value belongs to HTTP, not to the value
    assert await stored_metadata(here, sent) == sent.strip(" ")


@pytest.mark.parametrize("sent", ["a YQ==,a Yg==", "a,a", "a YQ==,b,a"])
async def test_T_082_repeated_key(here: Site, sent: str) -> None:
    """A key counts once."""
    await assert_refused(here, sent)


@pytest.mark.parametrize("sent", ["YQ==,,b YQ==", ",a YQ==", "a YQ==,", "a  YQ==", "a YQ== YQ==", "a\tYQ=="])
async def test_T_083_empty_key_or_more_spaces(here: Site, sent: str) -> None:
    """A pair is a key, or a key, one space and a value."""
    await assert_refused(here, sent)


@pytest.mark.parametrize("sent", ["a YQ", "a YQ=", "a Y-_=", "a Y===", "a %%%%", "a YR==", "a YQ==YQ=="])
async def test_T_084_value_is_not_base64(here: Site, sent: str) -> None:
    """A value is base64 of RFC 4648 section 4: its alphabet, padded, nothing behind."""
    await assert_refused(here, sent)


@pytest.mark.parametrize("sent", ["clé YQ==", "ключ".encode().decode("latin-1") + " YQ=="])
async def test_T_085_key_that_is_not_ascii(here: Site, sent: str) -> None:
    """A key is visible ASCII."""
    await assert_refused(here, sent)


async def test_T_086_spaces_around_commas(here: Site) -> None:
    """White space around commas changes nothing, and is shown as it was sent."""
    sent = "a YQ== , b Yg==,\tc , d"
    assert await stored_metadata(here, sent) == sent


async def test_T_086_several_lines(here: Site) -> None:
    """Several header lines are one list, joined with commas."""
    pairs = [*TUS.items(), ("Upload-Length", "10"), ("Upload-Metadata", "a YQ=="), ("Upload-Metadata", "b")]
    answer = await here.ask("POST", here.link(), [*pairs, ("Content-Length", "0")])
    assert answer.status == 201
    path = "/files/" + answer.headers["Location"].rpartition("/")[2]
    assert (await here.head(path)).headers["Upload-Metadata"] == "a YQ==,b"


async def test_T_086_key_repeated_in_another_line(here: Site) -> None:
    """A key counts once over all lines together."""
    pairs = [*TUS.items(), ("Upload-Length", "10"), ("Upload-Metadata", "a YQ=="), ("Upload-Metadata", "a Yg==")]
    answer = await here.ask("POST", here.link(), [*pairs, ("Content-Length", "0")])
    assert (answer.status, answer.slug) == (400, "bad-metadata")


@pytest.mark.parametrize(
    "value",
    [
        b"a\r\nX-Evil: 1\r\n\r\nb.png",
        b"../../../etc/passwd",
        b"nul\0.png",
        b"\xff\xfe\x00",
        b'quote".png\\',
        "привет \N{RIGHT-TO-LEFT OVERRIDE}gnp.exe".encode(),
        bytes(range(256)),
    ],
)
async def test_T_087_any_bytes_as_a_value(here: Site, value: bytes) -> None:
    """Whatever a file name decodes to, it reaches no header, no path and no log line as it is."""
    headers = {"Upload_Metadata": f"filename {b64(value)},filetype {b64(value)}"}
    with capture_logs() as logs:
        path = await here.create(5, **headers)
        file_id = (await here.patch(path, 0, b"hello")).headers["Attachd-File-Id"]
        answer = await here.ask("GET", here.download_link(file_id))
    assert (answer.status, answer.body) == (200, b"hello")
    assert "X-Evil" not in answer.headers
    disposition = answer.headers["Content-Disposition"]
    assert disposition.isascii()
    assert disposition.isprintable()
    assert not set(disposition.partition("=")[2]) & set("\\/\r\n\0")
    assert not any(value.decode("latin-1") in str(line) or "X-Evil" in str(line) for line in logs)
    names = here.leftovers()
    assert names
    assert all(file_id in name or here.upload_id(path) in name for name in names)


@pytest.mark.parametrize("sizes", [(16 * 1024,), (16 * 1024 - 7, 7)])
async def test_T_088_values_of_16_kib(here: Site, sizes: tuple[int, ...]) -> None:
    """All values together may have 16 KiB, decoded."""
    sent = ",".join(f"k{number} {b64(bytes(size))}" for number, size in enumerate(sizes))
    assert await stored_metadata(here, sent) == sent


@pytest.mark.parametrize("sizes", [(16 * 1024 + 1,), (16 * 1024 - 7, 8)])
async def test_T_088_more_than_16_kib(here: Site, sizes: tuple[int, ...]) -> None:
    """One byte more is refused."""
    await assert_refused(here, ",".join(f"k{number} {b64(bytes(size))}" for number, size in enumerate(sizes)))


async def test_T_088_keys_differ_by_case(here: Site) -> None:
    """Keys are case-sensitive."""
    assert await stored_metadata(here, "a YQ==,A YQ==") == "a YQ==,A YQ=="
