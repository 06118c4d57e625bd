"""What first bytes say, which names stand for it, and what a link's list of types makes of both."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.protocol.media import content_allowed, names_of, same_content
from service.protocol.ranges import content_type, may_inline
from service.sniffing import SNIFF_BYTES, sniff
from tests.unit.samples import DRAWING, PAGE, SAMPLES


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_is_known_by_its_first_bytes(name):
    """Each sample is what it is, or nothing where it has no signature."""
    content, media_type = SAMPLES[name]
    assert sniff(content[:SNIFF_BYTES]) == media_type


@given(st.binary(max_size=300), st.sampled_from(sorted(SAMPLES)), st.integers(0, 60))
def test_any_bytes_can_be_looked_at(noise, name, kept):
    """Neither noise nor a sample that breaks off anywhere is an error."""
    sniff(noise)
    sniff(SAMPLES[name][0][:kept] + noise)


@pytest.mark.parametrize(
    "repeated",
    [b"<!--", b"<!---->", b"<?", b"<!DOCTYPE x [", b"<!DOCTYPE ", b" ", b"<!DOCTYPE x>", b"<!-- -->\n", b"<"],
)
def test_hostile_markup_costs_one_pass(repeated):
    """A head made to be looked at over and over takes milliseconds all the same."""
    for end in (b"", b"<svg", b"\0", b">"):
        began = time.process_time()
        sniff((repeated * SNIFF_BYTES)[: SNIFF_BYTES - len(end)] + end)
        # it takes a fifth of a millisecond; where each byte costs a look at the rest it is seconds
        assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("sniffed", "declared"),
    [
        ("video/webm", "audio/webm"),
        ("video/mp4", "audio/mp4"),
        ("audio/ogg", "audio/opus"),
        ("audio/x-wav", "audio/wav"),
        ("image/heic", "image/heif"),
        ("image/apng", "image/png"),
        ("application/zip", "application/vnd.android.package-archive"),
        ("application/zip", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("application/zip", "application/vnd.ms-excel.sheet.macroenabled.12"),
        ("application/zip", "application/epub+zip"),
        ("application/x-rar-compressed", "application/vnd.rar"),
    ],
)
def test_what_bytes_cannot_tell_apart_is_what_was_declared(sniffed, declared):
    """A voice message is no film: under a list of its declared type it is kept, and it is served as that."""
    assert same_content(sniffed, declared)
    assert content_allowed(sniffed, declared, [declared])
    assert content_type(sniffed, declared) == declared


@pytest.mark.parametrize(
    ("sniffed", "declared"),
    [
        ("image/png", "image/jpeg"),
        ("text/html", "image/png"),
        ("image/svg+xml", "image/png"),
        ("image/png", "text/html"),
        ("application/zip", "image/png"),
        ("application/zip", "text/html"),
        ("video/mp4", "text/html"),
        ("application/x-msdownload", "application/pdf"),
        ("application/pdf", "application/epub+zip"),
    ],
)
def test_what_bytes_tell_apart_is_what_was_seen(sniffed, declared):
    """A declared type that the bytes belie neither passes a list of it, nor is it served."""
    assert not same_content(sniffed, declared)
    assert not content_allowed(sniffed, declared, [declared])
    assert content_type(sniffed, declared) == sniffed


@given(st.sampled_from(sorted({found for _, found in SAMPLES.values() if found})), st.text(max_size=30))
def test_no_name_of_other_content_can_be_run(sniffed, declared):
    """Whatever is declared, bytes that are not markup are never served as such (G3)."""
    markup = {"text/html", "image/svg+xml"}
    assert sniffed in markup or not markup & {content_type(sniffed, name) for name in (*names_of(sniffed), declared)}


@pytest.mark.parametrize("content", [PAGE, DRAWING])
def test_markup_declared_plain_text_is_served_as_that(content):
    """Somebody's source code is not made a page; declared a picture it is not one either (G3)."""
    seen = sniff(content)
    assert content_type(seen, "text/plain") == "text/plain; charset=utf-8"
    assert content_type(seen, "image/png") == seen
    assert not may_inline(seen)


#: what is seen, what is declared, what the link allows, whether it is kept
KEPT = [
    ("image/png", None, ["image/*"], True),
    ("image/png", "image/png", ["image/png"], True),
    ("image/png", "image/jpeg", ["image/*"], True),
    ("image/png", None, ["*/*"], True),
    ("image/png", None, [], True),
    ("text/html", "image/png", ["image/*"], False),
    ("text/html", "text/plain", ["text/plain"], False),
    ("text/html", "text/plain", ["text/*"], True),
    ("image/svg+xml", "image/svg+xml", ["image/*"], True),
    ("image/svg+xml", "image/png", ["image/png", "image/jpeg"], False),
    ("audio/x-wav", None, ["audio/wav"], True),
    ("audio/x-wav", "audio/wav", ["audio/vnd.wave", "audio/wav"], True),
    ("video/webm", "audio/webm", ["audio/*"], True),
    ("video/webm", None, ["audio/*"], False),
    ("application/zip", "application/java-archive", ["application/java-archive"], True),
    ("application/zip", "image/png", ["image/*"], False),
    ("application/x-msdownload", "application/pdf", ["application/pdf"], False),
    # no signature: text, or of a format that is not known
    (None, "text/plain", ["text/plain"], True),
    (None, "application/json", ["application/json"], True),
    (None, "image/svg+xml", ["image/svg+xml"], True),
    (None, "image/jxl", ["image/*"], False),
    (None, "video/mp2t", ["video/*"], False),
    (None, None, ["image/*", "video/*"], False),
    (None, None, ["image/*", "text/plain"], True),
    (None, "image/jxl", [], True),
]


@pytest.mark.parametrize(("sniffed", "declared", "allowed", "kept"), KEPT)
def test_a_list_of_types_is_held_against_what_is_seen(sniffed, declared, allowed, kept):
    """The content counts; what was declared only where the content does not tell."""
    assert content_allowed(sniffed, declared, allowed) is kept
