"""Logs: one line a record, with the request's id, and never a secret."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog
from aiohttp.http_exceptions import BadStatusLine
from hypothesis import given
from hypothesis import strategies as st

from service import logs
from service.keyfile import new_key
from service.links import mint_upload

UPLOAD = "u_" + "abcdefghij234567abcdefghij"
TOKEN = "eyJhbGciOiJIUzI1NiIsInR5cCI6InVwbCtqd3QifQ.eyJjYW5hcnkiOjF9.Y2FuYXJ5LWNhbmFyeQ"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Logging is as it was, after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("aiohttp.access", "sqlalchemy", "alembic"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Output:
    """What was logged."""

    def __init__(self, log_format="json", log_level="info"):
        self.stream = io.StringIO()
        logs.configure(log_format, log_level, self.stream)

    @property
    def text(self):
        return self.stream.getvalue()

    @property
    def records(self):
        return [json.loads(line) for line in self.text.splitlines()]


def test_a_record_is_one_json_line_with_the_requests_id():
    """A record has event, level, time, logger, its fields, and what is bound to the request."""
    output = Output()
    structlog.contextvars.bind_contextvars(request_id="r1")
    structlog.get_logger("service.uploads").info("upload_advanced", upload_id=UPLOAD, to_offset=5)
    (record,) = output.records
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "upload_advanced",
        "level": "info",
        "logger": "service.uploads",
        "request_id": "r1",
        "upload_id": UPLOAD,
        "to_offset": 5,
    }


def test_the_standard_librarys_records_look_the_same():
    """A library's warning is a JSON line with level, logger and the request's id."""
    output = Output()
    structlog.contextvars.bind_contextvars(request_id="r1")
    logging.getLogger("asyncio").warning("socket %s", "x")
    (record,) = output.records
    assert (record["event"], record["level"], record["logger"], record["request_id"]) == (
        "socket x", "warning", "asyncio", "r1",
    )  # fmt: skip


def _raise(words: str) -> None:
    raise RuntimeError(words)


SECRETS = {
    "sig": f"/files?sig={TOKEN}&x=1",
    "encoded sig": f"http%3A%2F%2Fh%2Ffiles%3Fsig%3D{TOKEN}",
    "short sig": "/files?sig=canary-canary",
    "bearer": "Authorization: Bearer canary-canary",
    "lower bearer": "authorization: bearer  canary-canary",
    "bare token": f"could not verify {TOKEN}",
    "query dict": "{'sig': 'canary-canary'}",
    "upload url": f"http://h/files/{UPLOAD}",
}


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a6_canaries_never_come_out(secret, log_format):
    """A secret in an event, a field, a nested field, an argument or a traceback is not in the output."""
    output = Output(log_format, "debug")
    log, library = structlog.get_logger("service.web"), logging.getLogger("aiohttp.server")
    log.info(secret)
    log.info("request_failed", path=secret, nested={"a": [secret, secret.encode()], secret: 1}, odd=Exception(secret))
    log.info("request_failed", upload_id=secret)
    library.error("failed: %s", secret)
    structlog.contextvars.bind_contextvars(path=secret)
    try:
        _raise(secret)
    except RuntimeError:
        log.exception("request_failed")
        library.exception("failed")
    assert "RuntimeError" in output.text
    for canary in ("canary-canary", TOKEN, TOKEN.split(".")[2], UPLOAD):
        assert canary not in output.text


def test_a_real_link_is_not_readable_in_a_log():
    """A minted link that is logged whole comes out without its token."""
    output = Output()
    token = mint_upload(
        new_key("HS256", issuer="i", now=0), audience="http://h", now=0, expires_in=60, jti="j" * 16, max_size=1
    )
    logging.getLogger("x").warning("%s", f"http://h/files?sig={token} {token}")
    assert not any(part in output.text for part in token.split("."))


@given(st.text(max_size=200))
def test_ordinary_text_passes_or_shrinks(text):
    """Taking secrets out of any text does not fail, and doing it twice changes nothing more."""
    once = logs.redact(text)
    assert logs.redact(once) == once


@pytest.mark.parametrize("text", ["service.web.middleware", "signal=TERM", "design=x", "offset 5 of 10", "u_short"])
def test_harmless_text_stays(text):
    """Names that merely resemble a secret are left alone."""
    assert logs.redact(text) == text


def test_a05_a_request_that_cannot_be_parsed_is_one_line():
    """aiohttp's parser error is one INFO line that keeps the kind of error and no byte of the client's."""
    output = Output()
    try:
        raise BadStatusLine("GET /files?sig=canary HTTP/9")
    except BadStatusLine as error:
        logging.getLogger("aiohttp.server").exception("Error handling request from %s", "203.0.113.9", exc_info=error)
    (record,) = output.records
    assert (record["event"], record["reason"], record["level"]) == ("request_unparsable", "BadStatusLine", "info")
    assert "canary" not in output.text
    assert "203.0.113.9" not in output.text


def test_a_failure_of_ours_keeps_its_traceback():
    """An unhandled exception of a handler stays an ERROR with traceback."""
    output = Output()
    try:
        _raise("broken promise")
    except RuntimeError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    (record,) = output.records
    assert record["level"] == "error"
    assert "broken promise" in record["exception"]


def test_less_than_the_level_is_not_logged():
    """At `warning`, an INFO record of ours or of a library leaves no line; nor does aiohttp's access log."""
    output = Output(log_level="warning")
    structlog.get_logger("service.x").info("quiet")
    logging.getLogger("asyncio").info("quiet")
    logging.getLogger("aiohttp.access").error("quiet")
    assert output.text == ""


def test_warnings_are_log_records():
    """A Python warning leaves through the same handler."""
    output = Output()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("odd", UserWarning, stacklevel=1)
    assert output.records[0]["logger"] == "py.warnings"


def test_text_is_a_line_for_people():
    """The text format has event and fields, without colours where there is no terminal."""
    output = Output("text")
    structlog.get_logger("service.x").info("service_started", listen="127.0.0.1:8080")
    assert "service_started" in output.text
    assert "listen=127.0.0.1:8080" in output.text
    assert "\x1b" not in output.text


class _Untold:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("value", [{("a",): 1}, _Untold(), [_Untold()]])
def test_a_record_that_cannot_be_told_fails_nobody(value):
    """Whatever is logged, the caller goes on, and one line says that there was something."""
    output = Output()
    structlog.get_logger("service.web").info("odd", value=value, upload_id=UPLOAD)
    (record,) = output.records
    assert record["event"] == "odd"
    assert record["upload_id"] == UPLOAD
