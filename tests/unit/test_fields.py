"""Header grammars: what each takes, what it refuses, and that nothing else can happen."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from service.hashing import ALGORITHMS
from service.model import ConcatKind
from service.protocol.fields import (
    METADATA_LIMIT,
    http_date,
    integer,
    media_type,
    parse_checksum,
    parse_concat,
    parse_framing,
    parse_integer,
    parse_metadata,
    single,
    text_of,
)
from service.protocol.problems import Refusal

ID = "u_" + "abcdefghijklmnopqrstuvwxyz"
OTHER = "u_" + "234567abcdefghijklmnopqrst"
#: text as a header field may carry it, and some that it may not
FIELD = st.text(st.characters(codec="latin-1"), max_size=60)


def fields(*pairs: tuple[str, str], **named: str) -> CIMultiDict[str]:
    return CIMultiDict([*pairs, *((name.replace("_", "-"), value) for name, value in named.items())])


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


T = TypeVar("T")


def tried(parse: Callable[[], T]) -> T | str:
    """The value, or the slug of the refusal."""
    try:
        return parse()
    except Refusal as refusal:
        return refusal.problem.slug


def slug_of(error: pytest.ExceptionInfo[Refusal]) -> tuple[str, int]:
    return error.value.problem.slug, error.value.problem.status


# --- single fields and integers -------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_fields", "value"),
    [(fields(), None), (fields(upload_offset="5"), "5"), (fields(Upload_Offset=" 5\t"), "5"), (fields(A="x"), None)],
)
def test_single(given_fields: CIMultiDict[str], value: str | None) -> None:
    """A field is found in any case and without the white space around it."""
    assert single(given_fields, "Upload-Offset") == value


@pytest.mark.parametrize("values", [("1", "1"), ("1", "2"), ("", "")])
def test_single_refuses_repeats(values: tuple[str, str]) -> None:
    """A field that came twice is refused, even with the same value."""
    with pytest.raises(Refusal) as error:
        single(fields(*(("Upload-Offset", value) for value in values)), "Upload-Offset")
    assert slug_of(error) == ("bad-header", 400)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("00", 0), ("7", 7), ("0000000000000000007", 7), (str(2**63 - 1), 2**63 - 1)],
)
def test_integer(text: str, value: int) -> None:
    """Digits are a number of bytes, up to 2^63-1."""
    assert parse_integer("Upload-Length", text) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+5", "5.0", "0x5", "1e3", "1_000", "5 ", "٣", "²", "1,2", str(2**63), "9" * 19, "0" * 20, "5\n"],
)
def test_integer_refused(text: str) -> None:
    """Whatever else Python would take for a number is none."""
    with pytest.raises(Refusal) as error:
        parse_integer("Upload-Length", text)
    assert slug_of(error) == ("bad-header", 400)


@given(st.integers(0, 2**63 - 1))
def test_integer_round_trip(value: int) -> None:
    """Every number of bytes is read as written."""
    assert integer(fields(Upload_Length=str(value)), "Upload-Length") == value


@given(st.text(max_size=25))
def test_integer_never_fails_otherwise(text: str) -> None:
    """Any text is a number in range or refused."""
    try:
        assert 0 <= parse_integer("Upload-Offset", text) < 2**63
    except Refusal:
        assert not (text.isascii() and text.isdigit() and len(text) < 19)


# --- Upload-Metadata ------------------------------------------------------------------------

METADATA: list[tuple[str, dict[str, bytes]]] = [
    ("a", {"a": b""}),
    ("a ", {"a": b""}),
    ("a YQ==", {"a": b"a"}),
    ("a YQ==,b", {"a": b"a", "b": b""}),
    ("a ,b YQ==", {"a": b"", "b": b"a"}),
    ("a YQ== , b Yg==", {"a": b"a", "b": b"b"}),
    ("a YQ==,\tb", {"a": b"a", "b": b""}),
    ("a , b", {"a": b"", "b": b""}),
    ("a,A", {"a": b"", "A": b""}),
    ("a ////", {"a": b"\xff\xff\xff"}),
    ("!#$%&'*+-.^_`|~:;=?@[]{}/\\\"() YQ==", {"!#$%&'*+-.^_`|~:;=?@[]{}/\\\"()": b"a"}),
]


@pytest.mark.parametrize(("raw", "pairs"), METADATA)
def test_metadata(raw: str, pairs: dict[str, bytes]) -> None:
    """The pairs are decoded, and the field is kept as it came."""
    assert parse_metadata(fields(Upload_Metadata=raw)) == (raw, pairs)


@pytest.mark.parametrize("lines", [[], [""], [" "], ["\t "]])
def test_metadata_absent(lines: list[str]) -> None:
    """An empty field is as none."""
    assert parse_metadata(fields(*(("Upload-Metadata", line) for line in lines))) == (None, {})


def test_metadata_lines_are_joined() -> None:
    """Several lines are one list."""
    lines = fields(("Upload-Metadata", "a YQ=="), ("Upload-Metadata", "b"))
    assert parse_metadata(lines) == ("a YQ==,b", {"a": b"a", "b": b""})


@pytest.mark.parametrize(
    "raw",
    [
        ",",
        "a,",
        ",a",
        "a,,b",
        "a, ,b",
        "a,a",
        "a YQ==,a",
        "a  YQ==",
        "a  ",
        "a YQ== YQ==",
        "a\tYQ==",
        "clé YQ==",
        "a\x7f",
        "a\x00",
        "a YQ",
        "a YQ=",
        "a YQ===",
        "a YR==",
        "a Y-_=",
        "a YQ==YQ==",
        "a Y Q==",
        "a YQ==\n",
        "a é===",
        "a =",
    ],
)
def test_metadata_refused(raw: str) -> None:
    """An empty or repeated key, a stray space, a value that is not padded base64: all are refused."""
    with pytest.raises(Refusal) as error:
        parse_metadata(fields(Upload_Metadata=raw))
    assert slug_of(error) == ("bad-metadata", 400)


@pytest.mark.parametrize(("size", "passes"), [(METADATA_LIMIT, True), (METADATA_LIMIT + 1, False)])
def test_metadata_limit(size: int, passes: bool) -> None:
    """The decoded values together have a limit."""
    raw = f"a {b64(bytes(10))},b {b64(bytes(size - 10))}"
    if passes:
        parse_metadata(fields(Upload_Metadata=raw))
        return
    with pytest.raises(Refusal):
        parse_metadata(fields(Upload_Metadata=raw))


KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=1, max_size=8)


@given(
    st.dictionaries(KEYS, st.binary(max_size=20), min_size=1, max_size=6), st.sampled_from([",", " ,", ", ", " ,\t "])
)
@example({"a": b""}, " ,")
def test_metadata_round_trip(pairs: Mapping[str, bytes], comma: str) -> None:
    """Whatever a client encodes by the grammar is what comes out."""
    raw = comma.join(f"{key} {b64(value)}" if value else key for key, value in pairs.items())
    assert parse_metadata(fields(Upload_Metadata=raw)) == (raw, pairs)


@given(FIELD)
def test_metadata_never_fails_otherwise(raw: str) -> None:
    """Any field is metadata or refused, and what is kept can be sent back as a header."""
    found = tried(lambda: parse_metadata(fields(Upload_Metadata=raw))[0])
    assert found is None or found == "bad-metadata" or (found == raw and raw.isascii() and not set(raw) & set("\r\n\0"))


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ({"filename": b"a.png"}, "a.png"),
        ({"filename": "привет".encode()}, "привет"),
        ({"filename": b"\xff", "name": b"b.png"}, "b.png"),
        ({"filename": b"", "name": b"b.png"}, "b.png"),
        ({"filename": b"\xff"}, None),
        ({}, None),
        ({"filename": b"x" * 2000}, "x" * 1024),
    ],
)
def test_text_of(pairs: dict[str, bytes], text: str | None) -> None:
    """A name is the first of its keys that is text."""
    assert text_of(pairs, "filename", "name") == text


# --- Upload-Checksum ------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=str)
@given(seed=st.binary(min_size=64, max_size=64))
def test_checksum_round_trip(algorithm: object, seed: bytes) -> None:
    """A digest of the algorithm's length is a claim, byte for byte."""
    row = next(row for row in ALGORITHMS.values() if row == algorithm)
    digest = seed[: row.digest_length]
    claim = parse_checksum(f"{row.name} {b64(digest)}")
    assert (claim.algorithm, claim.digest) == (row.name, digest)


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("", "bad-header"),
        ("sha1", "bad-header"),
        ("sha1 ", "bad-header"),
        (" AAAA", "bad-header"),
        ("sha1 AAAA", "bad-header"),
        ("sha1  " + b64(bytes(20)), "bad-header"),
        ("sha1 " + b64(bytes(20)) + " ", "bad-header"),
        ("sha1 " + b64(bytes(20))[:-1], "bad-header"),
        ("sha1 " + b64(bytes(21)), "bad-header"),
        ("sha1 " + base64.urlsafe_b64encode(b"\xff" * 20).decode(), "bad-header"),
        ("SHA1 " + b64(bytes(20)), "checksum-unsupported"),
        ("sha9 AAAA", "checksum-unsupported"),
        ("sha1," + b64(bytes(20)), "bad-header"),
    ],
)
def test_checksum_refused(text: str, slug: str) -> None:
    """A flaw of form is malformed, an unknown name is unsupported; neither is a mismatch."""
    with pytest.raises(Refusal) as error:
        parse_checksum(text)
    assert slug_of(error) == (slug, 400)


@given(FIELD)
def test_checksum_never_fails_otherwise(text: str) -> None:
    """Any field is a claim of a known algorithm or refused."""
    found = tried(lambda: parse_checksum(text))
    if isinstance(found, str):
        assert found in {"bad-header", "checksum-unsupported"}
    else:
        assert len(found.digest) == ALGORITHMS[found.algorithm].digest_length


# --- Upload-Concat --------------------------------------------------------------------------


def test_concat_partial() -> None:
    """`partial` is a kind without a list."""
    assert parse_concat("partial") == (ConcatKind.PARTIAL, ())


@pytest.mark.parametrize(
    "url",
    [
        f"/files/{ID}",
        f"files/{ID}",
        f"https://a.example/files/{ID}",
        f"http://[::1]:8080/files/{ID}",
        f"HTTPS://A.EXAMPLE/under/a/prefix/files/{ID}",
        f"/under/a/prefix/files/{ID}",
        f"/files/u%5F{ID[2:]}",
        f"/files/{''.join(f'%{ord(letter):02x}' for letter in ID)}",
    ],
)
def test_concat_final(url: str) -> None:
    """An entry is the path of an upload; scheme, host and a proxy's prefix do not count."""
    assert parse_concat(f"final;{url} /files/{OTHER}") == (ConcatKind.FINAL, (ID, OTHER))


@pytest.mark.parametrize("text", [f"final; /files/{ID}", f"final;  /files/{ID} ", f"final;/files/{ID}   "])
def test_concat_spaces(text: str) -> None:
    """More spaces change nothing."""
    assert parse_concat(text) == (ConcatKind.FINAL, (ID,))


@pytest.mark.parametrize(
    "text",
    ["", "final", "final;", "final; ", "Final;x", "finale;x", "Partial", "PARTIAL", "partial;", "partial ", "x", ";"],
)
def test_concat_grammar(text: str) -> None:
    """Anything but the two forms is malformed."""
    with pytest.raises(Refusal) as error:
        parse_concat(text)
    assert slug_of(error) == ("bad-header", 400)


@pytest.mark.parametrize(
    "url",
    [
        "x",
        ID,
        "/files/",
        "/files/x",
        f"/files/{ID}/",
        f"/files/{ID}?a=b",
        f"/files/{ID}#a",
        f"/other/{ID}",
        f"/files/{ID.upper()}",
        f"/files/{ID}a",
        f"/files/%2575_{ID[2:]}",
        f"/files/{ID[:-1]}%00",
        f"/files/..%2f{ID}",
        f"/otherfiles/{ID}",
        f"?/files/{ID}",
        f"https://a.example?/files/{ID}",
        "https://a.example",
    ],
)
def test_concat_no_such_upload(url: str) -> None:
    """An entry that is not the path of an upload is unknown, never looked up as something else."""
    with pytest.raises(Refusal) as error:
        parse_concat(f"final;/files/{OTHER} {url}")
    assert slug_of(error) == ("not-found", 404)


@given(FIELD, st.booleans())
def test_concat_never_fails_otherwise(text: str, final: bool) -> None:
    """Any field is a list of ids of ours or refused."""
    found = tried(lambda: parse_concat(f"final;{text}" if final else text)[1])
    if isinstance(found, str):
        assert found in {"bad-header", "not-found"}
    else:
        assert all(len(partial) == len(ID) and partial.isascii() for partial in found)


# --- the rest -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("", None),
        ("image/png", "image/png"),
        ("Image/PNG; q=1", "image/png"),
        (" image/png\t;x", "image/png"),
        ("application/vnd.a+b.c-d", "application/vnd.a+b.c-d"),
        ("image", None),
        ("image/", None),
        ("/png", None),
        ("image/png/x", None),
        ("image/*", None),
        ("image/p ng", None),
        ("image/p\r\nng", None),
        ("bücher/png", None),
    ],
)
def test_media_type(text: str | None, value: str | None) -> None:
    """A media type is two names and a slash, in lower case, parameters cut off."""
    assert media_type(text) == value


@pytest.mark.parametrize(
    ("given_fields", "length", "chunked", "empty"),
    [
        (fields(), 0, False, True),
        (fields(Content_Length="0"), 0, False, True),
        (fields(Content_Length="5"), 5, False, False),
        (fields(Transfer_Encoding="chunked"), None, True, False),
    ],
)
def test_framing(given_fields: CIMultiDict[str], length: int | None, chunked: bool, empty: bool) -> None:
    """A body has a length, or it is chunked; only a length of 0 says that there is none."""
    framing = parse_framing(given_fields)
    assert (framing.length, framing.chunked, framing.empty) == (length, chunked, empty)


@pytest.mark.parametrize("codings", ["gzip, chunked", "chunked, chunked", "gzip", "identity", "deflate,chunked"])
def test_framing_other_codings(codings: str) -> None:
    """A transfer coding that would have to be undone is refused: the bytes on the way are not the file's."""
    with pytest.raises(Refusal) as refused:
        parse_framing(fields(Transfer_Encoding=codings))
    assert refused.value.problem.slug == "bad-header"


@pytest.mark.parametrize("coding", ["chunked", "Chunked", " chunked ", "chunked,"])
def test_framing_spellings_of_chunked(coding: str) -> None:
    """Case, blanks and empty list members make no difference."""
    assert parse_framing(fields(Transfer_Encoding=coding)).chunked


def test_framing_trailers() -> None:
    """Announced trailers are collected over all lines, without case."""
    announced = fields(("Trailer", "Upload-Checksum, X-A"), ("Trailer", "x-b,"), Transfer_Encoding="chunked")
    assert parse_framing(announced).trailers == {"upload-checksum", "x-a", "x-b"}


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (1403712000, "Wed, 25 Jun 2014 16:00:00 GMT"),
        (1403712000.999, "Wed, 25 Jun 2014 16:00:00 GMT"),
        (784111777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
    ],
)
def test_http_date(instant: float, text: str) -> None:
    """An instant is written as IMF-fixdate."""
    assert http_date(instant) == text
