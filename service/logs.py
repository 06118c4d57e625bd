"""Log records: one line each, JSON or text, with the request's id and without secrets.

structlog's records and the standard library's (aiohttp, asyncio, SQLAlchemy) are made the same by
the same processors; ours take the short way, as there is one for each request. What must not be
logged is taken out last, after tracebacks have become text, whoever logged it (lessons A6, R2):
tokens in whatever form, and upload ids outside the field `upload_id`, because an upload's address
is a capability. This is the last net: code does not log them at all.

`request_id` and whatever else was bound with `structlog.contextvars` is in every record of the
request. The access log is the web edge's own; aiohttp's is switched off.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final, Literal, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from structlog.typing import EventDict, Processor, WrappedLogger

#: the only field in which an upload's id may stand
ID_FIELD: Final = "upload_id"

#: where a word may begin: not inside another, but also behind a percent-encoded byte
_START: Final = r"(?:(?<![A-Za-z0-9_])|(?<=%[0-9A-Fa-f][0-9A-Fa-f]))"
_SIG: Final = re.compile(rf"(?i){_START}(sig(?:=|%3d|['\"]?:\s*['\"]?))[^&\s\"'<>]+")
_BEARER: Final = re.compile(r"(?i)\b(bearer)(\s+|%20)[^\s\"'<>,;]+")
#: a compact JWS begins with `{"` or `{` and white space, in base64
_JWT: Final = re.compile(rf"{_START}e[yw][A-Za-z0-9_-]{{6,}}\.[A-Za-z0-9_-]{{4,}}\.[A-Za-z0-9_-]*")
_UPLOAD_ID: Final = re.compile(r"u_[a-z2-7]{26}")
#: what a token begins with, in lower-case text
_TOKEN_START: Final = re.compile(r"e[yw][a-z0-9_-]{6}")

_QUIET: Final = {
    "aiohttp.access": logging.CRITICAL,
    "alembic": logging.WARNING,
    # they tell keys, hosts and signatures (lesson A6)
    "boto3": logging.WARNING,
    "botocore": logging.WARNING,
    "sqlalchemy": logging.WARNING,
    # warns of answers that it cannot parse, with the whole URL
    "urllib3": logging.ERROR,
}


def _suspicious(text: str) -> bool:
    """Whether any of the four could be found in it; most text is looked at once, by this."""
    low = text.lower()
    return "sig" in low or "bearer" in low or "u_" in low or _TOKEN_START.search(low) is not None


def redact(text: str) -> str:
    """The text without tokens and upload ids."""
    if not _suspicious(text):
        return text
    text = _SIG.sub(r"\1***", text)
    text = _BEARER.sub(r"\1\2***", text)
    return _UPLOAD_ID.sub("u_***", _JWT.sub("***", text))


def configure(
    log_format: Literal["auto", "json", "text"] = "auto",
    log_level: str = "info",
    stream: TextIO | None = None,
    *,
    worker: int | None = None,
) -> None:
    """All logging of the process goes to the stream (standard error) in the format, from the level up.

    Args:
        log_format: `auto` is text on a terminal and JSON lines elsewhere.
        log_level: debug, info, warning or error.
        worker: the number of this process, to be in every record, where there are several.
    """
    stream = sys.stderr if stream is None else stream
    level = logging.getLevelNamesMapping()[log_level.upper()]
    text = log_format == "text" or (log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
    ]
    if worker is not None:
        shared.append(functools.partial(_add_worker, worker))
    renders: list[Processor] = [_redact_record, _text_renderer(colors=stream.isatty())] if text else [_render_json]
    last: list[Processor] = [structlog.processors.format_exc_info, *renders]
    handler = logging.StreamHandler(stream)
    handler.addFilter(_shorten_parser_error)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow={"reason"})],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=functools.partial(_Lines, handler),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, level))
    logging.captureWarnings(capture=True)


class _Lines:
    """Writes our records, rendered, where the handler writes those of the standard library."""

    def __init__(self, handler: logging.StreamHandler[TextIO], name: str) -> None:
        self.name = name
        self._handler = handler

    def msg(self, line: str) -> None:
        """One record. A log that cannot be written fails no request."""
        # each lock of a handler is made anew in a forked process
        with suppress(OSError, ValueError), self._handler.lock or nullcontext():
            self._handler.stream.write(line + "\n")
            self._handler.stream.flush()

    debug = info = warning = error = critical = msg


def _add_worker(worker: int, _logger: WrappedLogger, _method: str, record: EventDict) -> EventDict:
    record["worker"] = worker
    return record


def _text_renderer(*, colors: bool) -> Processor:
    # tracebacks are text by then
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)


#: made once: `json.dumps` makes one for each record
_ENCODER: Final = json.JSONEncoder(default=repr)


def _render_json(_logger: WrappedLogger, _method: str, record: EventDict) -> str:
    """The record as JSON, redacted: field by field only where the whole line gives a reason to."""
    own = record.get(ID_FIELD)
    if not isinstance(own, str) or not _UPLOAD_ID.fullmatch(own):
        return _encoded(record)
    del record[ID_FIELD]
    return f'{_encoded(record)[:-1]}, "{ID_FIELD}": "{own}"}}'


def _encoded(record: EventDict) -> str:
    try:
        line = _ENCODER.encode(record)
        return _ENCODER.encode(_clean_fields(record)) if _suspicious(line) else line
    except Exception as error:  # noqa: BLE001 - a record that cannot be told fails no request
        return _ENCODER.encode({
            "event": redact(str(record.get("event"))), "level": "error", "unrenderable": type(error).__name__
        })  # fmt: skip


def _shorten_parser_error(record: logging.LogRecord) -> bool:
    """A request that aiohttp cannot parse is one line, and the client's doing (A-05).

    Its message quotes the client's bytes, so the kind of error is all that is kept.
    """
    error = record.exc_info[1] if record.exc_info else None
    if record.name == "aiohttp.server" and type(error).__module__ == "aiohttp.http_exceptions":
        record.msg, record.args, record.exc_info, record.exc_text = "request_unparsable", None, None, None
        record.reason = type(error).__name__
        record.levelno, record.levelname = logging.INFO, "INFO"
        return logging.getLogger().isEnabledFor(logging.INFO)
    return True


def _redact_record(_logger: WrappedLogger, _method: str, record: EventDict) -> Mapping[str, object]:
    return _clean_fields(record)


def _clean_fields(fields: MutableMapping[str, object]) -> dict[str, object]:
    return {_clean_name(str(name)): _clean(value, own_id=name == ID_FIELD) for name, value in fields.items()}


#: names of fields are the code's own, and few
_clean_name = functools.lru_cache(maxsize=1024)(redact)


def _clean(value: object, *, own_id: bool = False) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if own_id and isinstance(value, str) and _UPLOAD_ID.fullmatch(value):
        return str(value)
    if isinstance(value, dict):
        return _clean_fields(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode("ascii", "backslashreplace")
    return redact(str(value) if isinstance(value, str | BaseException) else repr(value))
