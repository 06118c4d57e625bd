"""When a body has become too slow. Pure: instants are arguments.

Deadlines move with progress: slow is fine, silent is not, and neither is a drip that only keeps
a slot busy (lesson D4).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

#: the first seconds of a body are not measured
GRACE_SECONDS: Final = 30.0
#: the rate is taken over this long
WINDOW_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class PaceRules:
    """Silent for `idle_seconds`, or slower than `min_rate` bytes per second: the body ends."""

    idle_seconds: float
    min_rate: float
    grace_seconds: float = GRACE_SECONDS
    window_seconds: float = WINDOW_SECONDS


class Pace:
    """Watches one body."""

    def __init__(self, rules: PaceRules, now: float) -> None:
        self._rules = rules
        self._began = now
        self._last_byte = now
        self._received = 0
        #: (instant, bytes received by then), one a look, no older than the window but for the first
        self._looks: deque[tuple[float, int]] = deque()

    def progress(self, received: int, now: float) -> None:
        """`received` bytes have come in all."""
        self._received = received
        self._last_byte = now

    def paused(self, now: float) -> None:
        """We were not reading: the silence is ours, not the client's."""
        self._last_byte = now
        self._looks.clear()
        self._began = now

    def silent_seconds(self, now: float) -> float:
        """How long ago the last byte came."""
        return now - self._last_byte

    def too_slow(self, now: float) -> bool:
        """Whether to end the body. To be asked about once a second."""
        if self.silent_seconds(now) >= self._rules.idle_seconds:
            return True
        if now - self._began < self._rules.grace_seconds:
            return False
        self._looks.append((now, self._received))
        while len(self._looks) > 1 and self._looks[1][0] <= now - self._rules.window_seconds:
            self._looks.popleft()
        since, before = self._looks[0]
        window = now - since
        return window >= self._rules.window_seconds and self._received - before < self._rules.min_rate * window
