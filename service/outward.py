"""The port for what attachd says to others: signed JSON to an address of the operator's settings.

Nothing is promised of delivery here: one try, which ends in an answer or in the reason why there is
none. Who tries again, and when, is `delivery` and `hooks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, get_args

from service.endpoints import Target

#: what a try came to; a metric label. 2xx; 4xx; 5xx and any other; 3xx, which is not followed; 410; no answer in
#: time; no connection, or one that broke; an address that the settings do not allow
Result: TypeAlias = Literal["ok", "refused", "error", "redirected", "gone", "timeout", "unreachable", "forbidden"]
RESULTS: Final = get_args(Result)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, and of a 4xx the beginning of its body."""

    status: int
    body: bytes = b""

    @property
    def result(self) -> Result:
        """What the status says."""
        match self.status // 100:
            case 2:
                return "ok"
            case 3:
                return "redirected"
            case 4:
                return "gone" if self.status == 410 else "refused"
            case _:
                return "error"


class Unsent(Exception):
    """There is no answer; whether the message came is not known. Worth a retry, but for `forbidden`."""

    def __init__(self, result: Result, detail: str) -> None:
        super().__init__(f"{result}: {detail}")
        self.result = result
        self.detail = detail


class Sender(Protocol):
    """Posts one message at a time to anybody."""

    async def post(self, target: Target, message_id: str, payload: str, *, seconds: float) -> Answer:
        """The receiver's answer to the payload, which is signed with each of the target's secrets.

        Args:
            seconds: until the answer must be there.

        Raises:
            Unsent: it is not.

        Spec: Standard Webhooks, Sending webhooks.
        """
        ...
