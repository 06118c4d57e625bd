"""Which protocol, version and method a request means; what all requests share (sections 0, A and E)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import pytest

from tests.web.harness import OCTETS, TUS, Answer, Site, head
from tests.web.traces import traces
from tests.web.under_way import begin, begin_patch, until

UNKNOWN = "/files/u_" + "a" * 26
IETF = {"Upload-Draft-Interop-Version": "6", "Upload-Complete": "?1"}
APPEND = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS}


async def expecting(here: Site, method: str, path: str, headers: Mapping[str, str], length: int = 5) -> Answer:
    """The first answer to a request whose body is only offered, with `Expect: 100-continue`."""
    line = await here.line()
    offered = [*headers.items(), ("Expect", "100-continue"), ("Content-Length", str(length))]
    await line.send(head(method, path, offered, None))
    return await line.answer(head=method == "HEAD", interim=True)


async def assert_unsupported(answer: Answer) -> None:
    """412 that names the version served."""
    assert (answer.status, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert answer.slug == "version-unsupported"


# --- 0: which protocol ----------------------------------------------------------------------


async def test_T_000a_tus_creation_wins_over_ietf_fields(here: Site) -> None:
    """A POST with `Tus-Resumable` is tus although it also carries what URLSession adds."""
    headers = TUS | IETF | {"Upload-Length": "10", "Content-Type": OCTETS}
    answer = await here.ask("POST", here.link(), headers, b"hello")
    assert (answer.status, answer.offset, answer.interim) == (201, 5, ())


async def test_T_000a_tus_append_wins_over_ietf_fields(here: Site) -> None:
    """A PATCH with `Tus-Resumable` is tus although it also carries what URLSession adds; no 104 comes."""
    path = await here.create(10)
    answer = await here.ask("PATCH", path, APPEND | IETF, b"hello")
    assert (answer.status, answer.offset, answer.interim) == (204, 5, ())
    assert (await here.head(path)).offset == 5


async def test_T_000a_any_value_is_tus(here: Site) -> None:
    """A wrong `Tus-Resumable` is a wrong tus version, not another protocol."""
    headers = IETF | {"Tus-Resumable": "0.2.2", "Upload-Complete": "true", "Upload-Length": "10"}
    await assert_unsupported(await here.ask("POST", here.link(), headers, b""))


@pytest.mark.parametrize(
    "marker",
    [
        {"Upload-Complete": "?1"},
        {"Upload-Complete": "?0;x=1"},
        {"Upload-Incomplete": "?0"},
        {"Upload-Draft-Interop-Version": "6"},
        {"Upload-Draft-Interop-Version": "bogus"},
        {"Content-Type": "application/partial-upload"},
        {"Content-Type": "application/partial-upload; x=1"},
    ],
    ids=str,
)
async def test_T_000b_ietf_creation_is_not_taken_for_a_plain_request(here: Site, marker: dict[str, str]) -> None:
    """A POST with any mark of the IETF draft is recognised, refused with 412 and makes nothing."""
    before = traces(here)
    await assert_unsupported(await here.ask("POST", here.link(), marker, b"hello"))
    assert traces(here) == before


@pytest.mark.parametrize(
    "marker",
    [
        {"Upload-Complete": "?1"},
        {"Upload-Incomplete": "?0"},
        {"Upload-Draft-Interop-Version": "bogus"},
        {"Content-Type": "application/partial-upload"},
    ],
    ids=str,
)
async def test_T_000b_ietf_append_is_told_from_an_unmarked_one(here: Site, marker: dict[str, str]) -> None:
    """A PATCH with any mark of the IETF draft is a PATCH of another protocol (400), not one of none (412)."""
    path = await here.create(10)
    answer = await here.ask("PATCH", path, {"Upload-Offset": "0"} | marker, b"hello")
    assert (answer.status, answer.slug) == (400, "bad-header")


@pytest.mark.parametrize("extra", [{}, IETF], ids=["unmarked", "ietf"])
@pytest.mark.parametrize("method", ["HEAD", "DELETE"])
async def test_T_000c_tus_upload_wants_the_version(here: Site, method: str, extra: dict[str, str]) -> None:
    """HEAD and DELETE of an upload made by tus without `Tus-Resumable` answer 412, and the upload stays."""
    path = await here.create(10)
    answer = await here.ask(method, path, extra)
    assert (answer.status, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert (await here.head(path)).status == 200


async def test_T_000c_status_needs_no_version(here: Site) -> None:
    """GET of an upload made by tus works without `Tus-Resumable`."""
    path = await here.create(10)
    assert (await here.ask("GET", path)).json["state"] == "receiving"


@pytest.mark.parametrize("place", ["endpoint", "upload"])
async def test_T_000d_no_protocol(here: Site, place: str) -> None:
    """POST to the endpoint and PATCH to an upload without any protocol answer 412."""
    path = await here.create(10)
    method, target = ("POST", here.link()) if place == "endpoint" else ("PATCH", path)
    headers = {"Upload-Offset": "0", "Upload-Length": "10", "Content-Type": OCTETS}
    await assert_unsupported(await here.ask(method, target, headers, b"hello"))
    assert (await here.head(path)).offset == 0


async def test_T_000d_plain_put(here: Site) -> None:
    """A PUT without any protocol is a plain upload."""
    answer = await here.ask("PUT", here.link(), {}, b"hello")
    assert answer.status == 201
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b"hello"


async def test_T_000d_put_counts_as_tus_afterwards(here: Site) -> None:
    """What a PUT left unfinished is finished with tus HEAD and PATCH."""
    link = here.link()
    line = await begin(here, "PUT", link, {}, b"hello", length=10)
    await line.close()
    await until(lambda: not here.service.bodies._open)
    path = await made_by(here, link)
    found = await here.head(path)
    assert (found.status, found.offset, found.headers["Upload-Length"]) == (200, 5, "10")
    assert (await here.patch(path, 5, b"world")).status == 204
    assert await here.stored(path) == b"helloworld"


async def made_by(here: Site, link: str) -> str:
    """The path of the upload that a link made."""
    found = await here.ask("HEAD", link, TUS)
    assert found.status == 204, found
    return "/" + found.headers["Location"].split("/", 3)[3]


@pytest.mark.parametrize("value", ["true", "1", "?2", "yes", ""])
async def test_T_000e_invalid_upload_complete(here: Site, value: str) -> None:
    """A POST without `Tus-Resumable` and with an invalid `Upload-Complete` answers 400 and makes nothing."""
    before = traces(here)
    answer = await here.ask("POST", here.link(), {"Upload-Complete": value}, b"hello")
    assert (answer.status, answer.slug) == (400, "bad-header")
    assert traces(here) == before


async def test_T_000f_append_of_the_other_protocol(here: Site) -> None:
    """A PATCH framed for the IETF draft on a tus upload answers 400 and stores nothing."""
    path = await here.create(10)
    headers = IETF | {"Upload-Offset": "0", "Content-Type": "application/partial-upload"}
    answer = await here.ask("PATCH", path, headers, b"helloworld")
    assert (answer.status, answer.slug, answer.headers["Connection"]) == (400, "bad-header", "close")
    assert (await here.head(path)).offset == 0


async def test_T_000f_put_is_inspected_and_ended_by_tus(here: Site) -> None:
    """HEAD, GET and DELETE with tus work on an upload that PUT made."""
    path = await made_by_put(here)
    assert (await here.head(path)).offset == 5
    assert (await here.ask("GET", path, TUS)).json["state"] == "ready"
    assert (await here.ask("DELETE", path, TUS)).status == 204


async def made_by_put(here: Site) -> str:
    """The path of an upload that a PUT made and completed."""
    answer = await here.ask("PUT", here.link(), {}, b"hello")
    return "/" + answer.headers["Location"].split("/", 3)[3]


#: two faults in one request, the earlier in the order of checks first: (method, path, headers) -> status
FAULTS: Mapping[str, tuple[int, str, str, Mapping[str, str]]] = {
    "override before version": (405, "POST", "{link}", {"Tus-Resumable": "9", "X-HTTP-Method-Override": "MOVE"}),
    "protocol before token": (412, "POST", "/files", {"Upload-Complete": "?1"}),
    "version before path": (412, "PATCH", "/files/nothing", {"Tus-Resumable": "9"}),
    "version before method": (412, "POST", "{live}", {"Tus-Resumable": "9"}),
    "version before token": (412, "POST", "/files", {"Tus-Resumable": "9", "Upload-Length": "5"}),
    "method before token": (405, "DELETE", "/files", TUS),
    "path before headers": (404, "PATCH", "/files/nothing", TUS | {"Upload-Offset": "x"}),
    "token before headers": (401, "POST", "/files", TUS | {"Upload-Length": "x"}),
    "token before checksum": (401, "POST", "/files", TUS | {"Upload-Length": "5", "Upload-Checksum": "md4 AA=="}),
    "content type before existence": (415, "PATCH", UNKNOWN, APPEND | {"Content-Type": "text/plain"}),
    "checksum before existence": (400, "PATCH", UNKNOWN, APPEND | {"Upload-Checksum": "md4 AA=="}),
    "offset syntax before existence": (400, "PATCH", UNKNOWN, APPEND | {"Upload-Offset": "-1"}),
    "existence before offset": (410, "PATCH", "{gone}", APPEND | {"Upload-Offset": "99"}),
    "final before offset": (403, "PATCH", "{final}", APPEND | {"Upload-Offset": "99"}),
    "offset before size": (409, "PATCH", "{live}", APPEND | {"Upload-Offset": "9"}),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_T_000g_order_of_checks(here: Site, case: str) -> None:
    """Of two faults in one request the earlier in the order is the answer, and no `100 Continue` comes before it."""
    status, method, path, headers = FAULTS[case]
    places = {"link": here.link(), "live": await here.create(10), "gone": await here.create(10)}
    partial = await here.create(0, Upload_Concat="partial")
    places["final"] = await here.create(None, Upload_Concat=f"final;{partial}")
    assert (await here.ask("DELETE", places["gone"], TUS)).status == 204
    answer = await expecting(here, method, path.format(**places), headers, length=100)
    assert (answer.status, answer.headers["Connection"]) == (status, "close")


async def test_T_000g_size_before_lock(here: Site) -> None:
    """A PATCH that is too long is refused without disturbing the PATCH that holds the upload."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    assert (await expecting(here, "PATCH", path, APPEND, length=11)).status == 413
    await line.send(b"world")
    assert (await line.answer()).status == 204


async def test_T_000g_offset_again_under_the_lock(here: Site) -> None:
    """A PATCH whose offset was right until the older one committed hears 409, before `100 Continue`."""
    path = await here.create(10)
    older = await begin_patch(here, path, 0, b"hello", length=10)
    newer = await expecting(here, "PATCH", path, APPEND, length=10)
    assert (newer.status, newer.offset) == (409, 5)
    assert (await older.answer()).status == 423


# --- A: common ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_T_001_unmarked_request_changes_nothing(here: Site, method: str) -> None:
    """POST and PATCH without any marker answer 412 + `Tus-Version`; the body is not asked for, nothing is created."""
    path = here.link() if method == "POST" else await here.create(10)
    before = traces(here)
    answer = await expecting(here, method, path, {"Upload-Offset": "0", "Upload-Length": "10", "Content-Type": OCTETS})
    await assert_unsupported(answer)
    assert traces(here) == before


#: (status, method, path, headers, body) of tus requests with every kind of answer
ANSWERS: Mapping[str, tuple[int, str, str, dict[str, str], bytes | None]] = {
    "created": (201, "POST", "{link}", {"Upload-Length": "10"}, b""),
    "inspected": (200, "HEAD", "{live}", {}, None),
    "status": (200, "GET", "{live}", {}, None),
    "appended": (204, "PATCH", "{live}", APPEND, b"hello"),
    "terminated": (204, "DELETE", "{live}", {}, None),
    "options": (200, "OPTIONS", "/files", {}, None),
    "no token": (401, "POST", "/files", {"Upload-Length": "10"}, b""),
    "unknown upload": (404, "HEAD", UNKNOWN, {}, None),
    "unknown path": (404, "POST", "/files/a/b", {}, b""),
    "unknown path elsewhere": (404, "POST", "/elsewhere", {}, b""),
    "method of the endpoint": (405, "DELETE", "/files", {}, None),
    "method of the router": (405, "POST", "/d/f_" + "a" * 26, {}, b""),
    "offset": (409, "PATCH", "{live}", APPEND | {"Upload-Offset": "1"}, b"hello"),
    "version": (412, "HEAD", "{live}", {"Tus-Resumable": "2.0.0"}, None),
    "too large": (413, "PATCH", "{live}", APPEND, b"hello world"),
    "content type": (415, "PATCH", "{live}", APPEND | {"Content-Type": "text/plain"}, b"hello"),
    "checksum": (460, "PATCH", "{live}", APPEND | {"Upload-Checksum": "md5 1B2M2Y8AsgTpgAmY7PhCfg=="}, b"hello"),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_T_002_every_answer_names_the_version(here: Site, case: str) -> None:
    """Every answer to a tus request carries `Tus-Resumable: 1.0.0`, whoever gives it."""
    status, method, path, headers, body = ANSWERS[case]
    target = path.format(link=here.link(), live=await here.create(10))
    answer = await here.ask(method, target, TUS | headers, body)
    assert (answer.status, answer.headers.getall("Tus-Resumable")) == (status, ["1.0.0"])


@pytest.mark.parametrize("version", ["0.2.2", "1.0.1", "1.0", "9.9.9", "", "1.0.0, 1.0.0"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "GET", "PATCH", "DELETE"])
async def test_T_003_another_version(here: Site, method: str, version: str) -> None:
    """Any other version answers 412 with the one served, and has no effect."""
    path = here.link() if method == "POST" else await here.create(10)
    before = traces(here)
    headers = {"Tus-Resumable": version, "Upload-Offset": "0", "Upload-Length": "10", "Content-Type": OCTETS}
    answer = await here.ask(method, path, headers, b"hello" if method in ("POST", "PATCH") else None)
    assert (answer.status, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert traces(here) == before


async def test_T_003_another_version_on_the_endpoint(here: Site) -> None:
    """HEAD of the endpoint asks for the version too, when one is named."""
    link = here.link()
    await here.create(10, link)
    assert (await here.ask("HEAD", link, {"Tus-Resumable": "2.0.0"})).status == 412


SHA1_OF_HELLO = "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="
CREATION = {"Tus-Resumable": "1.0.0", "Upload-Length": "10", "Content-Type": OCTETS}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Tus-Resumable", "1.0.0"),
        ("Upload-Length", "10"),
        ("Upload-Checksum", SHA1_OF_HELLO),
        ("Upload-Concat", "partial"),
        ("Upload-Defer-Length", "1"),
        ("Upload-Offset", "0"),
    ],
)
async def test_T_004_repeated_field_of_a_creation(here: Site, name: str, value: str) -> None:
    """A POST that repeats a protocol field, even with the same value, answers 400 and creates nothing."""
    headers = {key: text for key, text in CREATION.items() if key != name}
    if name == "Upload-Defer-Length":
        del headers["Upload-Length"]
    link, before = here.link(), traces(here)
    answer = await here.ask("POST", link, [*headers.items(), (name, value), (name, value)], b"hello")
    assert (answer.status, answer.slug) == (400, "bad-header")
    assert traces(here) == before


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Tus-Resumable", ("1.0.0", "1.0.0")),
        ("Upload-Offset", ("0", "0")),
        ("Upload-Offset", ("0", "5")),
        ("Upload-Length", ("10", "10")),
        ("Upload-Checksum", (SHA1_OF_HELLO, SHA1_OF_HELLO)),
        ("Upload-Concat", ("partial", "partial")),
        ("Upload-Defer-Length", ("1", "1")),
    ],
    ids=str,
)
async def test_T_004_repeated_field_of_an_append(here: Site, name: str, values: tuple[str, str]) -> None:
    """A PATCH that repeats a protocol field answers 400 and stores nothing."""
    path = await here.create(10)
    headers = [pair for pair in APPEND.items() if pair[0] != name]
    answer = await here.ask("PATCH", path, [*headers, *((name, value) for value in values)], b"hello")
    assert (answer.status, answer.slug) == (400, "bad-header")
    assert (await here.head(path)).offset == 0


NOT_NUMBERS = ["-1", "+5", "5.0", "0x5", " ", "1e3", "five", "5 5", "1_0", "5,5", str(2**63), "0" * 20, "\xb2"]


@pytest.mark.parametrize("value", NOT_NUMBERS)
async def test_T_005_offset_that_is_no_number(here: Site, value: str) -> None:
    """`Upload-Offset` that is no whole number below 2^63 answers 400."""
    path = await here.create(10)
    answer = await here.ask("PATCH", path, APPEND | {"Upload-Offset": value}, b"hello")
    assert (answer.status, answer.slug) == (400, "bad-header")
    assert (await here.head(path)).offset == 0


@pytest.mark.parametrize("value", NOT_NUMBERS)
async def test_T_005_length_that_is_no_number(here: Site, value: str) -> None:
    """`Upload-Length` that is no whole number below 2^63 answers 400, on POST and on PATCH."""
    answer = await here.ask("POST", here.link(), TUS | {"Upload-Length": value}, b"")
    assert (answer.status, answer.slug) == (400, "bad-header")
    path = await here.create(None, Upload_Defer_Length="1")
    answer = await here.patch(path, 0, b"hello", Upload_Length=value)
    assert (answer.status, answer.slug) == (400, "bad-header")
    assert (await here.head(path)).offset == 0


async def test_T_005_largest_number(here: Site) -> None:
    """2^63 - 1 with leading zeros up to 19 digits is a number: it is too large, not malformed."""
    assert (await here.post(2**63 - 1)).status == 413
    assert (await here.ask("POST", here.link(), TUS | {"Upload-Length": "0" * 17 + "10"}, b"")).status == 201


ORIGIN = "https://chat.example"


@pytest.mark.parametrize("path", ["/", "/nothing", "/files/", "/files/nothing", "/files/u_short", "/files/a/b"])
async def test_T_006_unknown_path(here: Site, path: str) -> None:
    """An unknown path answers 404 that a page can read."""
    answer = await here.ask("PATCH", path, TUS | {"Origin": ORIGIN})
    assert (answer.status, answer.slug) == (404, "not-found")
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize(
    ("method", "place", "allow"),
    [
        ("GET", "/files", {"OPTIONS", "POST", "HEAD", "PUT"}),
        ("PATCH", "/files", {"OPTIONS", "POST", "HEAD", "PUT"}),
        ("DELETE", "/files", {"OPTIONS", "POST", "HEAD", "PUT"}),
        ("PUT", "{live}", {"OPTIONS", "HEAD", "GET", "PATCH", "DELETE"}),
        ("TRACE", "{live}", {"OPTIONS", "HEAD", "GET", "PATCH", "DELETE"}),
        ("DELETE", "/d/f_" + "a" * 26, {"OPTIONS", "HEAD", "GET"}),
    ],
)
async def test_T_006_wrong_method(here: Site, method: str, place: str, allow: set[str]) -> None:
    """A method that a known path does not serve answers 405 with `Allow`, and a page can read it."""
    path = place.format(live=await here.create(10))
    answer = await here.ask(method, path, TUS | {"Origin": ORIGIN})
    assert (answer.status, answer.slug) == (405, "method-not-allowed")
    assert {method.strip() for method in answer.headers["Allow"].split(",")} == allow
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


#: heads that aiohttp's parser refuses by itself (A-04, A-05)
UNPARSABLE: Mapping[str, bytes] = {
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "negative length": b"Content-Length: -5\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "field name": b"Upload Offset: 5\r\n",
    "two content types": b"Content-Type: text/plain\r\nContent-Type: application/offset+octet-stream\r\n",
    "long value": b"Upload-Metadata: " + b"a" * 65537 + b"\r\n",
    "many fields": b"".join(b"X-%d: 1\r\n" % number for number in range(129)),
}


@pytest.mark.parametrize("case", UNPARSABLE)
async def test_T_007_unparsable_request(here: Site, case: str) -> None:
    """What the parser refuses gets the parser's own 400 and a closed connection, before attachd sees it."""
    path = await here.create(10)
    line = await here.line()
    await line.send(f"PATCH {path} HTTP/1.1\r\nHost: files.test\r\nOrigin: {ORIGIN}\r\n".encode())
    await line.send(UNPARSABLE[case] + b"\r\n")
    answer = await line.answer()
    assert answer.status == 400
    assert {"Tus-Resumable", "Access-Control-Allow-Origin", "X-Request-ID"}.isdisjoint(answer.headers)
    assert await line.closed()
    assert (await here.head(path)).offset == 0


async def test_T_007_limits_spare_valid_clients(here: Site) -> None:
    """A field value of 64 KiB, a request line of 32 KiB and 100 fields are read."""
    fields = {f"X-{number}": "1" for number in range(100)}
    target = await here.create(10) + "?x=" + "a" * 32768
    found = await here.ask("HEAD", target, TUS | fields | {"Upload-Metadata": "a" * 65000})
    assert found.status == 200


async def test_T_007_one_line_in_the_log(log: io.StringIO, here: Site) -> None:
    """A request that cannot be parsed is one INFO line without traceback and without the client's bytes."""
    log.truncate(0)
    log.seek(0)
    line = await here.line()
    await line.send(b"PATCH /files HTTP/1.1\r\nHost: h\r\nBad Name: canary\r\n\r\n")
    assert (await line.answer()).status == 400
    # what the service does by itself meanwhile has lines of its own
    written = [record for record in map(json.loads, log.getvalue().splitlines()) if record["event"] != "duty_taken"]
    assert [(record["event"], record["level"]) for record in written] == [("request_unparsable", "info")]
    assert "canary" not in log.getvalue()


# --- E: X-HTTP-Method-Override --------------------------------------------------------------


async def test_T_040_post_for_patch(here: Site) -> None:
    """A POST to an upload with the override PATCH appends."""
    path = await here.create(10)
    answer = await here.ask("POST", path, APPEND | {"X-HTTP-Method-Override": "PATCH"}, b"hello")
    assert (answer.status, answer.offset) == (204, 5)
    assert (await here.head(path)).offset == 5


async def test_T_041_post_for_head(here: Site) -> None:
    """A POST with the override HEAD answers 200, the fields of HEAD and no body."""
    path = await here.create(10, Upload_Metadata="a YQ==")
    answer = await here.ask("POST", path, TUS | {"X-HTTP-Method-Override": "HEAD"}, b"")
    assert (answer.status, answer.offset, answer.body) == (200, 0, b"")
    assert (answer.headers["Upload-Length"], answer.headers["Upload-Metadata"]) == ("10", "a YQ==")
    assert answer.headers["Cache-Control"] == "no-store"


async def test_T_041_post_for_delete(here: Site) -> None:
    """A POST with the override DELETE terminates the upload."""
    path = await here.create(10)
    assert (await here.ask("POST", path, TUS | {"X-HTTP-Method-Override": "DELETE"}, b"")).status == 204
    assert (await here.head(path)).status == 410


@pytest.mark.parametrize("actual", ["POST", "GET", "PUT", "DELETE", "PATCH"])
async def test_T_042_actual_method_is_ignored(here: Site, actual: str) -> None:
    """With the override HEAD an upload is only inspected, whatever the actual method."""
    path = await here.create(10)
    answer = await here.ask(actual, path, TUS | {"X-HTTP-Method-Override": "HEAD"})
    assert (answer.status, answer.offset) == (200, 0)
    assert (await here.head(path)).status == 200


@pytest.mark.parametrize("value", ["MOVE", "TRACE", "", "PATCH, DELETE"])
async def test_T_042_unknown_override(here: Site, value: str) -> None:
    """An override that is no method served answers 405 with `Allow`."""
    path = await here.create(10)
    answer = await here.ask("POST", path, APPEND | {"X-HTTP-Method-Override": value}, b"hello")
    assert (answer.status, answer.slug) == (405, "method-not-allowed")
    assert "PATCH" in answer.headers["Allow"]
    assert (await here.head(path)).offset == 0


@pytest.mark.parametrize("actual", ["GET", "PATCH", "DELETE"])
async def test_T_043_applied_before_routing(here: Site, actual: str) -> None:
    """A method that the endpoint does not serve creates an upload with the override POST."""
    headers = TUS | {"Upload-Length": "10", "X-HTTP-Method-Override": "POST"}
    assert (await here.ask(actual, here.link(), headers, b"")).status == 201


@pytest.mark.parametrize("path", ["/files", "/files/a.bin"])
async def test_T_043_override_put(here: Site, path: str) -> None:
    """A POST with the override PUT is a plain upload, also with a name in the path."""
    token = here.token()
    answer = await here.ask("POST", f"{path}?sig={token}", {"X-HTTP-Method-Override": "PUT"}, b"hello")
    assert answer.status == 201
    assert await here.fetch(answer.headers["Attachd-File-Id"]) == b"hello"
