"""Which bytes a download answers with, and how it is named, as tables and laws."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model import Manifest
from service.protocol.ranges import (
    CONDITIONAL_FIELDS,
    ReadPlan,
    content_disposition,
    content_type,
    etag,
    http_date,
    may_inline,
    plan_read,
    safe_filename,
    shown_inline,
)

TAG = '"0a1b"'
MODIFIED = 1_700_000_000.75
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"
LATER = "Tue, 14 Nov 2023 22:13:21 GMT"


def plan(headers: dict[str, str], method: str = "GET", size: int = 10) -> ReadPlan:
    return plan_read(headers, method, size=size, etag=TAG, last_modified=MODIFIED)


WHOLE = ReadPlan(200, 0, 10)


# Range


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-9", 0, 10),
        ("bytes=3-5", 3, 6),
        ("bytes=3-", 3, 10),
        ("bytes=9-", 9, 10),
        ("bytes=5-99999999999999999999999", 5, 10),
        ("bytes=-1", 9, 10),
        ("bytes=-10", 0, 10),
        ("bytes=-11", 0, 10),
        ("bytes=-" + "9" * 5000, 0, 10),
        ("BYTES=3-5", 3, 6),
        ("bytes= ,3-5 ,", 3, 6),
        ("bytes=0003-0005", 3, 6),
    ],
)
def test_g2_a_satisfiable_range_is_206(asked: str, start: int, end: int) -> None:
    """G2: one range inside the file is answered with its bytes and Content-Range."""
    assert plan({"Range": asked}) == ReadPlan(206, start, end, f"bytes {start}-{end - 1}/10")


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=" + "9" * 5000 + "-"])
def test_g2_a_range_past_the_end_is_416_with_the_size(asked: str) -> None:
    """G2: a range outside the file is 416 and tells the size."""
    assert plan({"Range": asked}) == ReadPlan(416, content_range="bytes */10")


@pytest.mark.parametrize(
    "asked",
    [
        "", "bytes", "bytes=", "bytes=-", "bytes=5-3", "bytes=a-b", "bytes=1-2,4-5", "bytes=0-0, -1", "bytes=1--2",
        "bytes=+1-2", "bytes=1 -2", "octets=1-2", "bytes:1-2", "bytes =1-2", "bytes=\u0661-\u0662",
        "bytes=1-2-3", "bytes=0x1-2",
    ],
)  # fmt: skip
def test_g2_a_malformed_or_multi_range_is_the_whole_file(asked: str) -> None:
    """G2: what is not one well-formed range of bytes is as good as no Range."""
    assert plan({"Range": asked}) == WHOLE


def test_range_means_nothing_to_head() -> None:
    """RFC 9110 14.2: Range is defined for GET only."""
    assert plan({"Range": "bytes=1-2"}, "HEAD") == WHOLE


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ReadPlan(200, 0, 0)),
        ("bytes=0-", ReadPlan(416, content_range="bytes */0")),
        ("bytes=-0", ReadPlan(416, content_range="bytes */0")),
        ("bytes=-5", ReadPlan(200, 0, 0)),
    ],
)
def test_an_empty_file_has_no_part(asked: str | None, expected: ReadPlan) -> None:
    """Of a file without bytes there is no 206, for no Content-Range could say which part it is."""
    assert plan({"Range": asked} if asked else {}, size=0) == expected


# preconditions


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": TAG}, 304),
        ({"If-None-Match": f"W/{TAG}"}, 304),
        ({"If-None-Match": f'"x,y", {TAG}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": "0a1b"}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": LATER}, 200),
        ({"If-Modified-Since": DATE}, 304),
        ({"If-Modified-Since": LATER}, 304),
        ({"If-Modified-Since": EARLIER}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Match": TAG}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": f'"other", {TAG}'}, 200),
        ({"If-Match": f"W/{TAG}"}, 412),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": "0a1b"}, 412),
        ({"If-Match": TAG, "If-Unmodified-Since": EARLIER}, 200),
        ({"If-Unmodified-Since": EARLIER}, 412),
        ({"If-Unmodified-Since": DATE}, 200),
        ({"If-Unmodified-Since": "never"}, 200),
        ({"If-Match": '"other"', "If-None-Match": TAG}, 412),
        ({"If-None-Match": TAG, "Range": "bytes=99-"}, 304),
        ({"If-Match": '"other"', "Range": "bytes=99-"}, 412),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_g2_preconditions_come_in_the_order_of_the_rfc(headers: dict[str, str], status: int, method: str) -> None:
    """G2, RFC 9110 13.2.2: If-Match before If-Unmodified-Since, tags before dates, Range last."""
    assert plan(headers, method).status == status


@pytest.mark.parametrize(
    ("if_range", "status"),
    [
        (TAG, 206), (f" {TAG} ", 206), (f"W/{TAG}", 200), ('"other"', 200), (DATE, 206), (EARLIER, 200), (LATER, 200),
        ("0a1b", 200), ("", 200),
    ],
)  # fmt: skip
def test_g2_if_range_needs_the_strong_tag_or_the_exact_date(if_range: str, status: int) -> None:
    """G2: a part is given only to who has the rest of this very file; everyone else gets all of it."""
    assert plan({"Range": "bytes=1-2", "If-Range": if_range}).status == status


field_text = st.one_of(
    st.text(max_size=60),
    st.sampled_from([TAG, DATE, "*", "bytes=0-4", "bytes=5-", "bytes=-3", "Mon, 99 Foo 99999 99:99:99 +9999"]),
    st.from_regex(r"\Abytes=[0-9]{0,25}-[0-9]{0,25}\Z"),
)


@given(
    st.dictionaries(st.sampled_from(CONDITIONAL_FIELDS), field_text),
    st.sampled_from(["GET", "HEAD"]),
    st.integers(0, 2**40),
)
def test_g2_every_request_has_a_plan_within_the_file(headers: dict[str, str], method: str, size: int) -> None:
    """G2: whatever the fields say, the plan is one of five statuses and stays inside the file."""
    found = plan(headers, method, size)
    assert found.status in {200, 206, 304, 412, 416}
    assert 0 <= found.start <= found.end <= size
    assert (found.status == 206) <= (found.content_range == f"bytes {found.start}-{found.end - 1}/{size}")
    assert (found.status == 200) <= ((found.start, found.end) == (0, size))
    assert (found.status == 206) <= (found.length > 0)


@given(st.integers(1, 10_000), st.data())
def test_g2_ranges_that_cover_a_file_join_to_it(size: int, data: st.DataObject) -> None:
    """G2: parts asked for one after the other meet without gap or overlap."""
    content = data.draw(st.binary(min_size=size, max_size=size)) if size < 100 else bytes(size)
    joined, start = b"", 0
    while start < size:
        end = data.draw(st.integers(start + 1, size))
        part = plan({"Range": f"bytes={start}-{end - 1}"}, size=size)
        joined += content[part.start : part.end]
        start = end
    assert joined == content


# entity tag and date


def test_the_tag_is_strong_and_prefers_sha256() -> None:
    """The ETag is the quoted SHA-256 root where there is one, else the XXH3 root."""
    manifest = Manifest(0, 1, "xxh128", b"\x01\x02", ())
    assert etag(manifest) == '"0102"'
    assert etag(Manifest(0, 1, "xxh128", b"\x01\x02", (), (), b"\xff")) == '"ff"'


def test_last_modified_is_the_whole_second() -> None:
    """A date sent back as If-Modified-Since matches, although the file's instant has fractions."""
    assert http_date(MODIFIED) == DATE
    assert plan({"If-Modified-Since": http_date(MODIFIED)}).status == 304


# names


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        (None, None),
        ("", None),
        ("..", None),
        (" . ", None),
        ("a.txt", "a.txt"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("C:\\evil.exe", "C:_evil.exe"),
        ("a\r\nSet-Cookie: x=1", "aSet-Cookie: x=1"),
        ("a\x00b\x7fc\x85d", "abcd"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("a\u2066b\u2069c\u200ed\u061ce", "abcde"),
        ("a\ud800b", "ab"),
        ("a\u2028b", "ab"),
        (".htaccess", "htaccess"),
        ("dots...", "dots"),
        ("👩\u200d👧.png", "👩\u200d👧.png"),
    ],
)
def test_g3_names_lose_what_could_harm(name: str | None, safe: str | None) -> None:
    """G3: controls, separators, direction marks and surrogates are cut; joiners of scripts and emoji stay."""
    assert safe_filename(name) == safe


def test_a_long_name_keeps_its_extension() -> None:
    """A name is cut to 200 bytes of UTF-8 between characters, before its extension."""
    name = safe_filename("ü" * 300 + ".tar.gz")
    assert name is not None
    assert name == "ü" * ((200 - 3) // 2) + ".gz"


@pytest.mark.parametrize(
    ("name", "inline", "header"),
    [
        (None, False, "attachment"),
        ("a b.txt", True, "inline; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"),
        ('q"u%41.txt', False, "attachment; filename=\"q_u_41.txt\"; filename*=UTF-8''q%22u%2541.txt"),
        ("naïve.png", False, "attachment; filename=\"na_ve.png\"; filename*=UTF-8''na%C3%AFve.png"),
    ],
)
def test_g3_a_name_goes_out_in_both_forms(name: str | None, inline: bool, header: str) -> None:
    """G3: `filename` for old clients, `filename*` with the true name."""
    assert content_disposition(name, inline=inline) == header


@given(st.text(st.characters(codec=None), max_size=400), st.booleans())
def test_g3_any_name_makes_a_valid_header(name: str, inline: bool) -> None:
    """G3: whatever the name, the header is short printable ASCII, and `filename*` gives back the safe name."""
    header = content_disposition(name, inline=inline)
    match = re.fullmatch(
        r"(?:inline|attachment)(?:; filename=\"[ !#-\[\]-~]+\"; filename\*=UTF-8''([A-Za-z0-9%._~-]+))?", header
    )
    assert match is not None
    assert len(header) < 1000
    assert (unquote(match[1]) if match[1] else None) == safe_filename(name)
    assert safe_filename(safe_filename(name)) == safe_filename(name)


# types


@pytest.mark.parametrize(
    ("sniffed", "declared", "served"),
    [
        ("image/png", "text/html", "image/png"),
        (None, "text/html; charset=x", "text/html"),
        (None, "Text/Plain", "text/plain; charset=utf-8"),
        (None, None, "application/octet-stream"),
        (None, "nonsense", "application/octet-stream"),
        (None, "text/html\r\nX: y", "application/octet-stream"),
        (None, "text/ümlaut", "application/octet-stream"),
        (None, "a/" + "b" * 200, "application/octet-stream"),
    ],
)
def test_g3_the_type_is_what_was_seen_then_what_was_said(
    sniffed: str | None, declared: str | None, served: str
) -> None:
    """G3: a sniffed type wins; a declared one counts only in the safe syntax, without its parameters."""
    assert content_type(sniffed, declared) == served


@pytest.mark.parametrize("media_type", ["image/png", "image/webp", "audio/mpeg", "video/mp4", "text/plain"])
def test_g3_harmless_types_may_be_inline(media_type: str) -> None:
    """G3: raster images, audio, video and plain text are shown."""
    assert may_inline(media_type)


@pytest.mark.parametrize(
    "media_type",
    [
        "text/html",
        "image/svg+xml",
        "application/pdf",
        "text/xml",
        "text/javascript",
        "video/",
        "image/",
        "",
        "audio/x y",
    ],
)
def test_g3_active_types_may_not_be_inline(media_type: str) -> None:
    """G3: whatever can carry script is an attachment."""
    assert not may_inline(media_type)


@pytest.mark.parametrize(
    ("sniffed", "declared", "asked", "inline"),
    [
        ("image/png", "image/png", True, True),
        ("image/png", "image/png", False, False),
        ("image/png", "text/html", True, True),
        ("text/html", "image/png", True, False),
        (None, "image/png", True, False),
        (None, "text/plain", True, True),
        (None, "text/plain; charset=utf-7", True, True),
        ("application/zip", "text/plain", True, False),
        (None, None, True, False),
    ],
)
def test_g3_inline_needs_the_link_and_a_type_that_was_seen(
    sniffed: str | None, declared: str | None, asked: bool, inline: bool
) -> None:
    """G3: a client's word alone makes nothing inline; only plain text, which has no signature, may be declared."""
    assert shown_inline(sniffed, declared, asked=asked) is inline
