"""What requests are made of when nobody is careful: good and broken methods, addresses and field values."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from tests.web.harness import OCTETS, TUS, b64

METHODS = ("POST", "PATCH", "HEAD", "DELETE", "OPTIONS", "PUT", "GET")

#: what is asked for; the names are filled in while playing
PATHS = (
    "/files?sig={token}",
    "/files?sig={token}",
    "/files?sig={used}",
    "/files?sig={download}",
    "/files",
    "/files?sig=",
    "/files?sig=a.b.c",
    "/files/name.bin?sig={token}",
    "{live}",
    "{live}",
    "{live}",
    "{live}?wait=0.001",
    "{live}?wait=x",
    "{live}?wait=nan",
    "{live}?wait=-1",
    "{live}?wait=",
    "{live}?sig={token}",
    "{done}",
    "{gone}",
    "{partial}",
    "/files/u_aaaaaaaaaaaaaaaaaaaaaaaaaa",
    "/files/..%2f..%2fetc",
    "/files/",
    "/files/%ff%00",
    "{fetch}",
    "{fetch}",
    "{fetch}",
    "/d/f_aaaaaaaaaaaaaaaaaaaaaaaaaa?sig={download}",
    "/d/f_aaaaaaaaaaaaaaaaaaaaaaaaaa",
    "{manifest}",
    "/d/x",
    "/d/",
    "/",
    "/files?sig={token}&sig={token}",
    "/nothing",
    "*",
    "/files?" + "x" * 5000,
)

#: anything that a field value may hold, and some that it may not
TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=255, exclude_characters="\r\n"), max_size=30)
NUMBERS = st.one_of(
    st.integers(0, 20).map(str),
    st.sampled_from(
        [
            "0",
            "5",
            "10",
            "-1",
            "+5",
            "5.0",
            "0x5",
            "1e3",
            "",
            " ",
            "00005",
            str(2**31),
            str(2**32),
            str(2**63 - 1),
            str(2**63),
            str(10**19),
            "9" * 400,
            "٣",
            "5, 5",
            "5;5",
            "NaN",
            "inf",
        ]
    ).filter(lambda text: text.isascii()),
)
DIGESTS = st.sampled_from(
    [
        "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=",
        "sha1 " + b64(bytes(20)),
        "md5 " + b64(bytes(16)),
        "crc32c " + b64(bytes(4)),
        "xxh128 " + b64(bytes(16)),
        "sha1",
        "sha1 ",
        " sha1 AAAA",
        "sha1  AAAA",
        "sha1 AAAA",
        "md4 AAAA",
        "SHA1 " + b64(bytes(20)),
        "sha1 !!!!",
        "sha1 " + "A" * 3000,
        "",
    ]
)
METADATA = st.sampled_from(
    [
        "",
        " ",
        ",",
        "filename d29ybGQ=",
        "filename d29ybGQ",
        "filename,filename",
        "a b c",
        "é d29ybGQ=",
        "a " + "A" * 24_000,
        "filename d29ybGQ=,type aW1hZ2UvcG5n",
        "empty ",
        "empty ,x",
        "a  AA==",
        "filetype //79",
    ]
)
CONCATS = st.sampled_from(
    [
        "partial",
        "Partial",
        "final;",
        "final;{partial}",
        "final;{partial} {partial}",
        "final;{live}",
        "final;/x",
        "final; ",
        "final;{gone}",
        "final;http://[::1",
        "final;http://x{partial}",
        "finale;{partial}",
        "",
        "final;%00",
        "final;{done}",
    ]
)
RANGES = st.sampled_from(
    [
        "bytes=0-0",
        "bytes=0-",
        "bytes=-1",
        "bytes=-0",
        "bytes=5-2",
        "bytes=99-",
        "bytes=0-1,3-4",
        "bytes=",
        "bytes",
        "=0-1",
        "bytes=a-b",
        "items=0-1",
        "bytes=0-" + "9" * 400,
        "bytes=" + "9" * 400 + "-",
        "bytes=--1",
        "bytes=0-1,",
        "BYTES=0-1",
    ]
)
TAGS = st.sampled_from(
    ["*", '"x"', 'W/"x"', "x", '"', '""', '"a", "b"', "{etag}", "W/{etag}", "{etag}, *", '"é"', ",", '"a" "b"', ""]
)
DATES = st.sampled_from(
    [
        "Wed, 25 Jun 2014 16:00:00 GMT",
        "Wednesday, 25-Jun-14 16:00:00 GMT",
        "Wed Jun 25 16:00:00 2014",
        "0",
        "x",
        "",
        "Wed, 25 Jun 99999 16:00:00 GMT",
        "Wed, 99 Jun 2014 16:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Wed, 25 Jun 2014",
        "Wed, 25 Jun 0000 16:00:00 +9999",
        "Thu, 01 Jan 1970 00:00:00 GMT",
    ]
)
TYPES = st.sampled_from(
    [
        OCTETS,
        OCTETS,
        OCTETS + "; charset=utf-8",
        OCTETS.upper(),
        "application/partial-upload",
        "image/png",
        "",
        "/",
        "x",
        "multipart/form-data; boundary=x",
        "text/plain;;;",
        "é/é",
    ]
)

#: the value of each field: mostly what may stand there, now and then anything
FIELDS: dict[str, st.SearchStrategy[str]] = {
    "Upload-Offset": NUMBERS,
    "Upload-Length": NUMBERS,
    "Upload-Defer-Length": st.sampled_from(["1", "1", "0", "2", "true", "", "1, 1"]),
    "Upload-Metadata": METADATA,
    "Upload-Checksum": DIGESTS,
    "Upload-Concat": CONCATS,
    "Content-Type": TYPES,
    "Tus-Resumable": st.sampled_from(["1.0.0", "0.2.2", "", "1.0.0, 1.0.0", "1"]),
    "Upload-Complete": st.sampled_from(["?1", "?0", "1", "true", "?2", "?1;x=y", ""]),
    "Upload-Incomplete": st.sampled_from(["?1", "?0", "x"]),
    "Upload-Draft-Interop-Version": st.sampled_from(["3", "6", "8", "x", ""]),
    "X-HTTP-Method-Override": st.sampled_from([*METHODS, "patch", "TRACE", "CONNECT", "", "é"]),
    "Range": RANGES,
    "If-Range": st.one_of(TAGS, DATES),
    "If-Match": TAGS,
    "If-None-Match": TAGS,
    "If-Modified-Since": DATES,
    "If-Unmodified-Since": DATES,
    "Expect": st.sampled_from(["100-continue", "100-Continue", "200-ok", "", "100-continue, x"]),
    "Trailer": st.sampled_from(["Upload-Checksum", "upload-checksum, x", "", ",", "Content-Length"]),
    "Authorization": st.sampled_from(["Bearer {token}", "bearer {used}", "Bearer", "Bearer ", "Basic eDp4", "", "é"]),
    "Origin": st.sampled_from(["https://chat.example", "null", "", "é", "https://a, https://b"]),
    "Access-Control-Request-Method": st.sampled_from(["PATCH", "", "é"]),
    "Host": st.sampled_from(["files.test", "", "a b", "é", "[::1", "x" * 300, "files.test:99999"]),
    "X-Forwarded-Host": st.sampled_from(["evil.test", ""]),
    "X-Request-ID": st.sampled_from(["abc", "", "a b", "x" * 500, "é"]),
    "Content-Encoding": st.sampled_from(["gzip", "deflate", "br", "identity", ""]),
    "Content-Disposition": st.sampled_from(['attachment; filename="x"', "é"]),
    "Cookie": TEXT,
    "Accept-Encoding": st.sampled_from(["gzip", "*;q=0", ""]),
    "Connection": st.sampled_from(["keep-alive", "close", "upgrade", "x"]),
    "Upgrade": st.sampled_from(["websocket", "h2c"]),
    "Content-Digest": st.sampled_from(["sha-256=:AAAA:", "x"]),
}


NAMES = sorted(FIELDS)


SHA1: Final = "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="
#: requests that succeed, or come as far as the body, if nothing spoils them: method, path, fields, body
GOOD: tuple[tuple[str, str, dict[str, str], bytes | None], ...] = (
    ("OPTIONS", "/files", {}, None),
    ("POST", "/files?sig={token}", TUS | {"Upload-Length": "10"}, None),
    ("POST", "/files?sig={token}", TUS | {"Upload-Length": "5", "Content-Type": OCTETS}, b"hello"),
    ("POST", "/files?sig={token}", TUS | {"Upload-Defer-Length": "1", "Upload-Metadata": "filename YQ=="}, None),
    ("POST", "/files?sig={token}", TUS | {"Upload-Length": "5", "Upload-Concat": "partial"}, None),
    ("POST", "/files?sig={token}", TUS | {"Upload-Concat": "final;{partial}"}, None),
    ("POST", "/files?sig={used}", TUS | {"Upload-Length": "10"}, None),
    ("PUT", "/files/name?sig={token}", {}, b"hello"),
    ("PATCH", "{live}", TUS | {"Upload-Offset": "5", "Content-Type": OCTETS}, b"h"),
    ("PATCH", "{live}", TUS | {"Upload-Offset": "5", "Content-Type": OCTETS, "Upload-Checksum": SHA1}, b"hello"),
    ("PATCH", "{live}", TUS | {"Upload-Offset": "5", "Content-Type": OCTETS, "Upload-Checksum": SHA1}, b"other"),
    ("PATCH", "{live}", TUS | {"Upload-Offset": "5", "Content-Type": OCTETS}, b"more than there is room for"),
    ("PATCH", "{partial}", TUS | {"Upload-Offset": "0", "Content-Type": OCTETS}, b"hello"),
    ("POST", "{live}", TUS | {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "5", "Content-Type": OCTETS}, b"h"),
    ("HEAD", "{live}", TUS, None),
    ("HEAD", "/files?sig={used}", TUS, None),
    ("GET", "{live}", {}, None),
    ("DELETE", "{live}", TUS, None),
    ("GET", "{fetch}", {}, None),
    ("GET", "{fetch}", {"Range": "bytes=1-2", "If-Range": "{etag}"}, None),
    ("GET", "{fetch}", {"Range": "bytes=99-"}, None),
    ("GET", "{fetch}", {"If-None-Match": "{etag}"}, None),
    ("HEAD", "{fetch}", {}, None),
    ("GET", "{manifest}", {}, None),
)
