"""What can go wrong with a call to the store; `FaultyStore.fault` says with which.

Each is made once and given to one rule. The functions are the names to use in tests.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stores.calls import Call


class Cut(Exception):
    """The connections of this call are to be reset, to the client and to the store."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered in the store's place."""

    status: int
    body: bytes = b""
    fields: tuple[tuple[str, str], ...] = ()


class Fault:
    """Nothing goes wrong."""

    #: of the request's body: how many bytes pass before the connection is reset, which byte is damaged
    cut_request_after: int | None = None
    damage_at: int | None = None
    #: of the response's body
    cut_reply_after: int | None = None
    #: the body is read and the store never asked: `answer` has the word
    takes_over: bool = False

    def arrived(self, call: Call) -> None:
        """The head of the request is there, its body is not read, the store knows of nothing.

        Raises:
            Cut: the call ends here.
        """

    def answer(self, call: Call) -> Answer:
        """What a fault that takes over says in the store's place.

        Raises:
            Cut: nothing.
        """
        raise Cut

    def answered(self, call: Call) -> None:
        """The store has done it and has answered; the client knows of nothing.

        Raises:
            Cut: nor will it.
        """

    def release(self) -> None:
        """Nobody waits in here any longer."""


@dataclass
class _Answers(Fault):
    what: Answer
    takes_over: bool = True

    def answer(self, call: Call) -> Answer:
        return self.what


def status(code: int) -> Fault:
    """An answer with this status and no body, as from a proxy in between."""
    return _Answers(Answer(code))


def error(code: str, status: int, *, message: str = "as the test said") -> Fault:
    """An S3 error; with status 200 what CompleteMultipartUpload and CopyObject answer when it went wrong late."""
    return _Answers(s3_error(code, status, message))


def slow_down(retry_after: int | None = None) -> Fault:
    """503 SlowDown, with Retry-After in seconds if given."""
    told = () if retry_after is None else (("Retry-After", str(retry_after)),)
    return _Answers(s3_error("SlowDown", 503, "Please reduce your request rate.", told))


@dataclass
class Hold(Fault):
    """Each call waits until it is released, then goes on as if nothing had been."""

    when: Literal["arrived", "read", "answered"]
    takes_over: bool = False
    _go: threading.Event = field(default_factory=threading.Event)
    _caught: threading.Event = field(default_factory=threading.Event)

    def arrived(self, call: Call) -> None:
        if self.when == "arrived":
            self._wait()

    def answer(self, call: Call) -> Answer:
        self._wait()
        raise Cut

    def answered(self, call: Call) -> None:
        if self.when == "answered":
            self._wait()

    def _wait(self) -> None:
        self._caught.set()
        self._go.wait()

    def caught(self, timeout: float = 30.0) -> None:
        """A call waits here, or has.

        Raises:
            TimeoutError: none came in time.
        """
        if not self._caught.wait(timeout):
            raise TimeoutError

    def release(self) -> None:
        self._go.set()


def hold(when: Literal["arrived", "answered"] = "arrived") -> Hold:
    """Calls wait for `release()`: before the store knows of them, or when it has done them and only the reply lacks."""
    return Hold(when)


def hang() -> Hold:
    """The request is read and never answered; reset on `release()` or when the proxy closes."""
    return Hold("read", takes_over=True)


@dataclass
class _Delays(Fault):
    seconds: float

    def arrived(self, call: Call) -> None:
        time.sleep(self.seconds)


def delay(seconds: float) -> Fault:
    """The call begins so much later."""
    return _Delays(seconds)


@dataclass
class _CutsRequest(Fault):
    cut_request_after: int | None


def cut_request(after_bytes: int) -> Fault:
    """The connection is reset when so much of the request's body, or all there is, has reached the store."""
    return _CutsRequest(after_bytes)


@dataclass
class _CutsReply(Fault):
    cut_reply_after: int | None


def cut_reply(after_bytes: int) -> Fault:
    """The connection is reset when the client has so much of the response's body, or all there is."""
    return _CutsReply(after_bytes)


class _LosesReply(Fault):
    def answered(self, call: Call) -> None:
        raise Cut


def lose_reply() -> Fault:
    """The store has done it; the client sees a reset in place of the answer."""
    return _LosesReply()


@dataclass
class _Damages(Fault):
    damage_at: int | None


def damage(at: int = 0) -> Fault:
    """One bit of this byte of the request's body is flipped on its way to the store."""
    return _Damages(at)


@dataclass
class _Before(Fault):
    callback: Callable[[Call], object]

    def arrived(self, call: Call) -> None:
        self.callback(call)


def before(callback: Callable[[Call], object]) -> Fault:
    """Called, in a thread of the proxy, before the store knows of the call; it may raise Cut."""
    return _Before(callback)


@dataclass
class _After(Fault):
    callback: Callable[[Call], object]

    def answered(self, call: Call) -> None:
        self.callback(call)


def after(callback: Callable[[Call], object]) -> Fault:
    """Called, in a thread of the proxy, when the store has answered and the client knows nothing; it may raise Cut."""
    return _After(callback)


def s3_error(code: str, status: int, message: str, fields: tuple[tuple[str, str], ...] = ()) -> Answer:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message><RequestId>faulty</RequestId></Error>"
    )
    return Answer(status, body.encode(), (("Content-Type", "application/xml"), *fields))
